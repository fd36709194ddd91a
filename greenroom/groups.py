"""Reserve groups: sessions that can run the same queues and tasks, and which lane serves them next.

Pure. A group keeps a heap of (rank, lane) in which every lane that it may take from, and that has jobs, stands with a rank
not above the rank with which the lane really competes; entries that are too low are mended when they come up. So a head that
changes costs nothing in the groups that don't look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from operator import itemgetter
from typing import TYPE_CHECKING

from greenroom.lanes import ABOVE_ALL, Lane

if TYPE_CHECKING:
    from greenroom.sessions import Session

#: Lanes that are refilled together: as many as batches.py looks up in one gap between commits.
LANES_AHEAD = 8

#: Tasks of which it is remembered who had them last.
MAX_LEFT = 10_000

GroupKey = tuple[frozenset[str] | None, frozenset[str] | None]


class Group:
    """Sessions with the same filter.

    Attributes:
        queues, tasks: what its sessions can run; None: any.
        waiters: sessions with an open reserve, longest waiting first (a dict keeps the order).
        sessions: how many sessions point here; at 0 the group is dropped.
    """

    __slots__ = ("queues", "tasks", "waiters", "sessions", "lanes", "_heap", "_seq")

    def __init__(self, queues: frozenset[str] | None, tasks: frozenset[str] | None) -> None:
        self.queues = queues
        self.tasks = tasks
        self.waiters: dict[Session, None] = {}
        self.sessions = 0
        self.lanes: dict[Lane, None] = {}
        self._heap: list[tuple[int, int, Lane]] = []
        self._seq = 0  # breaks ties between lanes of one rank (edges may be equal); lanes are never compared

    def matches(self, lane: Lane) -> bool:
        """Tell whether sessions of this group can run jobs of the lane."""
        return ((self.queues is None or lane.queue in self.queues)
                and (self.tasks is None or lane.task in self.tasks))

    def tie(self, lanes: Iterable[Lane]) -> None:
        """Let this group take from these lanes, which it does not take from yet."""
        entries = []
        for lane in lanes:
            self.lanes[lane] = None
            lane.groups.append(self)
            rank = lane.best_rank()
            # Not what was offered before, which may be lower: this group never heard of it, and must hear of what comes next.
            lane.offered = ABOVE_ALL if rank is None else rank
            if rank is not None:
                self._seq += 1
                entries.append((rank, self._seq, lane))
        if entries:
            self._heap.extend(entries)
            heapify(self._heap)

    def offer(self, lane: Lane, rank: int) -> None:
        """Note that the lane may now compete with this rank."""
        self._seq += 1
        heappush(self._heap, (rank, self._seq, lane))
        if len(self._heap) > 64 + 4 * len(self.lanes):
            self._forget_doubles()

    def _forget_doubles(self) -> None:
        lowest: dict[Lane, tuple[int, int, Lane]] = {}
        for entry in self._heap:
            known = lowest.get(entry[2])
            if known is None or entry[0] < known[0]:
                lowest[entry[2]] = entry
        self._heap = sorted(lowest.values(), key=lambda entry: entry[:2])

    def forget_closed(self) -> None:
        """Forget lanes that were closed, which it takes from no more."""
        self._heap = [entry for entry in self._heap if not entry[2].is_closed]
        heapify(self._heap)

    def best_lane(self) -> Lane | None:
        """Return the lane that competes with the lowest rank, or None if no lane of this group has a queued job."""
        heap = self._heap
        while heap:
            rank, _, lane = heap[0]
            actual = lane.best_rank()
            if actual == rank:
                return lane
            lane.offered = ABOVE_ALL if actual is None else actual
            if actual is None:
                heappop(heap)
            else:
                self._seq += 1
                heapreplace(heap, (actual, self._seq, lane))
        return None

    def next_lanes(self) -> list[Lane]:
        """Return some of the lanes that come soon: the front of the heap, more or less in order."""
        return [lane for _, _, lane in self._heap[:LANES_AHEAD]]

    def rival_rank(self) -> int:
        """Return a rank that no lane but the best one competes with a lower one than. Follows `best_lane`."""
        return min((entry[0] for entry in self._heap[1:3]), default=ABOVE_ALL)


class Groups:
    """All groups, and their ties to all lanes. Both are kept by task, so that neither a new lane nor a new group looks at all."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, Group] = {}
        self._by_task: dict[str | None, dict[Group, None]] = {}  # task that they can run, None: any -> groups
        self._lanes: dict[str, dict[Lane, None]] = {}  # task -> lanes
        # Task (None: any) -> name and last sign of life of who went last of those that could run it; who went longest ago is first.
        self._left: dict[str | None, tuple[str, float]] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def join(self, session: Session, queues: frozenset[str] | None, tasks: frozenset[str] | None) -> Group:
        """Put a session into the group of this filter, making it if need be."""
        group = session.group
        if group is not None and group.queues == queues and group.tasks == tasks:
            return group
        self.leave(session)
        group = self._groups.get((queues, tasks))
        if group is None:
            group = self._groups[queues, tasks] = Group(queues, tasks)
            for task in (None,) if tasks is None else tasks:
                self._by_task.setdefault(task, {})[group] = None
            found = self._lanes.values() if tasks is None else (self._lanes.get(task, ()) for task in sorted(tasks))
            group.tie([lane for lanes in found for lane in lanes
                       if (queues is None or lane.queue in queues) and not lane.is_closed])
        group.sessions += 1
        session.group = group
        return group

    def leave(self, session: Session) -> None:
        """Take a session out of its group, and drop the group when it was the last."""
        group = session.group
        if group is None:
            return
        group.waiters.pop(session, None)
        group.sessions -= 1
        session.group = None
        if group.sessions == 0:
            del self._groups[group.queues, group.tasks]
            for task in (None,) if group.tasks is None else group.tasks:
                _discard(self._by_task, task, group)
                self._left.pop(task, None)
                self._left[task] = (session.name, session.last_seen)
            while len(self._left) > MAX_LEFT:
                del self._left[next(iter(self._left))]
            for lane in group.lanes:
                lane.groups.remove(group)

    def last_seen(self, task: str) -> tuple[str, float] | None:
        """Return the name of the latest session that could run a task and does no more, and when it last gave a sign of life.

        None: there was none since the start, or it is long ago.
        """
        found = [self._left[key] for key in (task, None) if key in self._left]
        return max(found, key=itemgetter(1), default=None)

    def add_lane(self, lane: Lane) -> None:
        """Tie a new lane to the groups that match it, unless it is closed."""
        self._lanes.setdefault(lane.task, {})[lane] = None
        if not lane.is_closed:
            for group in self.matching(lane):
                group.tie((lane,))

    def matching(self, lane: Lane) -> Iterator[Group]:
        """Yield the groups whose sessions can run jobs of the lane, also while it is closed."""
        for task in (None, lane.task):
            for group in self._by_task.get(task, ()):
                if group.queues is None or lane.queue in group.queues:
                    yield group

    def close(self, lanes: Iterable[Lane]) -> list[Group]:
        """Let nobody take from these lanes; returns the groups that did. So what is paused costs those nothing that is not."""
        changed: dict[Group, None] = {}  # a dict keeps the order: what follows must be the same in each run of a simulation
        for lane in lanes:
            lane.is_closed = True
            for group in lane.groups:
                del group.lanes[lane]
                changed[group] = None
            lane.groups = []
        for group in changed:
            group.forget_closed()
        return list(changed)

    def open(self, lanes: Iterable[Lane]) -> None:
        """Let the groups that match these lanes take from them again."""
        found: dict[Group, list[Lane]] = {}
        for lane in lanes:
            lane.is_closed = False
            for group in self.matching(lane):
                found.setdefault(group, []).append(lane)
        for group, its_lanes in found.items():
            group.tie(its_lanes)

    def drop_lane(self, lane: Lane) -> None:
        """Untie a lane that goes away; it must be idle."""
        _discard(self._lanes, lane.task, lane)
        for group in lane.groups:
            del group.lanes[lane]
        lane.groups = []


def _discard(index: dict, key: str | None, member: object) -> None:
    members = index[key]
    del members[member]
    if not members:
        del index[key]
