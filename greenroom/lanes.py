"""Lanes and their windows: which jobs of a (queue, task) are in memory, in which order, and which only the store has.

Pure and without time. It must not know sessions, leases or how a store works.

A lane holds in memory all its queued jobs with a rank up to its edge; with `edge` None it holds all there are. Everything
beyond the edge lies in the store alone. Ranks sort by priority, then place, and places only grow, so jobs of one priority
arrive in order: one deque a priority takes a job in, gives it out and drops it from the tail in constant time. Only jobs that come
back, with their old place, need a heap.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection
from heapq import heapify, heappop, heappush, merge, nsmallest
from itertools import chain, islice
from typing import TYPE_CHECKING

from greenroom.job import QUEUED, RUNNING, SCHEDULED, STATES, Job, State, rank_of

if TYPE_CHECKING:
    from greenroom.queue_limits import LimitedQueue

#: An edge below every rank: after a restart a lane has everything in the store and nothing in memory.
BELOW_ALL = rank_of(-1001, 0)
#: A rank above every rank.
ABOVE_ALL = rank_of(1001, 0)

#: A lane asks for more when fewer jobs than this are left in memory and the store has some: 10 ms' worth at 100,000 jobs/s.
REFILL_BELOW = 1000
#: … and is then refilled to about so many.
REFILL_TO = 3000
#: Rows of one look into the store, 0.4 ms of the hub, and their payloads: some ms.
SLICE_ROWS = 200
SLICE_BYTES = 4 * 2**20
#: Jobs that leave memory at once when there are too many: as many as one submit may bring, 2 to 3 ms of the hub.
SHRINK_JOBS = 1000


class Window:
    """What all lanes together hold in memory, against its budget.

    Attributes:
        jobs, payload_bytes: queued jobs in memory, and their payloads that are.
        max_jobs, max_bytes: the budget. Beyond it `shrink` sends tails back to the store.
    """

    def __init__(self, max_jobs: int = 100_000, max_bytes: int = 128 * 2**20) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.jobs = 0
        self.payload_bytes = 0
        self._victims: list[Lane] = []  # lanes to shrink, the next one last
        self._from_victim: int | None = None  # how many more jobs that one shall give up; None: not looked at yet
        self._has_shrunk = False  # some lane gave up jobs since the lanes were sorted
        self._kept_jobs = 0  # no look at the lanes is worth it up to here: the latest one found nothing that could go
        self._kept_bytes = 0

    @property
    def is_over(self) -> bool:
        """True from when memory holds more than the budget until a tenth of it is free.

        Where nothing more could go, because each lane keeps its head, not before some more came.
        """
        return (bool(self._victims) or self.jobs > max(self.max_jobs, self._kept_jobs)
                or self.payload_bytes > max(self.max_bytes, self._kept_bytes))

    @property
    def has_room(self) -> bool:
        """True while reading ahead is welcome: below the mark to which `shrink` goes, or the two would undo each other's work."""
        return self.jobs < self.max_jobs * 0.9 and self.payload_bytes < self.max_bytes * 0.9

    def slice_rows(self, mean_bytes: int) -> int:
        """Return how many jobs with payloads of this mean size to read at once: never more than a tenth of the budget."""
        by_bytes = min(SLICE_BYTES, self.max_bytes // 10) // max(1, mean_bytes)
        return max(1, min(SLICE_ROWS, self.max_jobs // 10, by_bytes))

    def shrink(self, lanes: Collection[Lane]) -> list[Job]:
        """Drop tails, up to SHRINK_JOBS, on the way to a tenth of the budget free; returns the jobs dropped.

        To be called again while `is_over`, whenever jobs may have come. The largest lanes go first, those that no connected
        worker can run before the others; a lane that a worker can run keeps its head. They are sorted once for the whole way.
        """
        if not self._victims:
            self._victims = sorted((lane for lane in lanes if lane.in_memory), key=_expendability)
            self._has_shrunk = False
        dropped: list[Job] = []
        while self._victims and not self._is_low and len(dropped) < SHRINK_JOBS:
            lane = self._victims[-1]
            if self._from_victim is None:
                self._from_victim = self._excess(lane)
            wanted = min(self._from_victim, SHRINK_JOBS - len(dropped))
            went = lane.drop_tail(wanted, keep=1 if lane.groups else 0)
            dropped.extend(went)
            self._from_victim -= len(went)
            if len(went) < wanted or self._from_victim <= 0:
                self._victims.pop()
                self._from_victim = None
        self._has_shrunk = self._has_shrunk or bool(dropped)
        if self._is_low:
            self._victims = []
            self._from_victim = None
        if self._has_shrunk:
            self._kept_jobs = self._kept_bytes = 0
        elif not self._victims:
            self._kept_jobs = self.jobs + min(SHRINK_JOBS, self.max_jobs // 10)
            self._kept_bytes = self.payload_bytes + min(SLICE_BYTES, self.max_bytes // 10)
        return dropped

    @property
    def _is_low(self) -> bool:
        return self.jobs <= self.max_jobs * 0.9 and self.payload_bytes <= self.max_bytes * 0.9

    def _excess(self, lane: Lane) -> int:
        """Return how many jobs of the lane's tail should go: at most half of it, so that one pass doesn't empty a busy lane."""
        by_jobs = self.jobs - int(self.max_jobs * 0.9)
        average = max(1, self.payload_bytes // max(1, self.jobs))
        by_bytes = (self.payload_bytes - int(self.max_bytes * 0.9)) // average
        wanted = max(by_jobs, by_bytes, 1)
        return min(wanted, max(1, lane.in_memory // 2)) if lane.groups else wanted


def _rank_of(job: Job) -> int:
    return job.rank


def _expendability(lane: Lane) -> int:
    """Return a number by which lanes sort that lose jobs late, soon and first."""
    return lane.in_memory if lane.groups else lane.in_memory + 2**53


class Lane:
    """The queued jobs of one task in one queue, and the counters of all its jobs.

    Attributes:
        counts: number of jobs by State: now, for the unfinished states; ever, for the finished ones.
        totals: the same over all lanes, one list that they share.
        requeues: how often jobs of this lane came back.
        edge: jobs that only the store has rank above this; None: there are none.
        in_memory: queued jobs in the window. waiting_bytes: payloads of all scheduled and queued ones.
        groups: reserve groups that may take from this lane, kept by groups.py, as is
        offered: a rank that no group's knowledge of this lane is above.
        is_filling: a refill was asked for and has not come back.
        is_closed: its queue or task is paused, so it belongs to no group.
        limited: its queue, if that has a limit; whoever changes what waits here tells it.
    """

    __slots__ = ("queue", "task", "window", "counts", "totals", "requeues", "edge", "in_memory", "waiting_bytes", "groups",
                 "offered", "is_filling", "is_closed", "limited", "_bands", "_priorities", "_returned", "_stale")

    def __init__(self, queue: str, task: str, window: Window, totals: list[int]) -> None:
        self.queue = queue
        self.task = task
        self.window = window
        self.counts: list[int] = [0] * STATES
        self.totals = totals
        self.requeues = 0
        self.edge: int | None = None
        self.in_memory = 0
        self.waiting_bytes = 0
        self.groups: list = []
        self.offered = ABOVE_ALL
        self.is_filling = False
        self.is_closed = False
        self.limited: LimitedQueue | None = None
        self._bands: dict[int, deque[Job]] = {}  # priority -> jobs in order of place
        self._priorities: list[int] = []  # the keys of _bands, sorted
        self._returned: list[tuple[int, int, Job]] = []  # heap of (rank, attempt, job that came back)
        self._stale = 0  # entries whose job was taken out of turn; such a job is finished and never comes back

    @property
    def in_store(self) -> int:
        """Queued jobs that only the store has."""
        return self.counts[QUEUED] - self.in_memory

    @property
    def mean_bytes(self) -> int:
        """Mean payload of the jobs that wait."""
        return self.waiting_bytes // max(1, self.counts[QUEUED] + self.counts[SCHEDULED])

    @property
    def is_idle(self) -> bool:
        """True when nothing of this lane waits or runs."""
        return not (self.counts[QUEUED] or self.counts[RUNNING] or self.counts[SCHEDULED])

    @property
    def wants_refill(self) -> bool:
        """True when the window runs low and the store has more. Without an edge it has not, whatever is counted."""
        return self.in_memory < REFILL_BELOW and self.in_store > 0 and self.edge is not None

    def count(self, state: State, number: int) -> None:
        """Count jobs that appear in a state: new ones, or those that a restart found."""
        self.counts[state] += number
        self.totals[state] += number

    def may_hold(self, rank: int) -> bool:
        """Tell whether a job with this rank, not yet counted as queued, belongs into memory."""
        if self.edge is not None and self.in_store <= 0:
            self.edge = None
        return self.edge is None or rank <= self.edge

    def append(self, job: Job) -> None:
        """Take in a queued job whose place is above that of every job of its priority here: a new one, or from a refill."""
        band = self._bands.get(job.priority)
        if band is None:
            band = self._new_band(job.priority)
        band.append(job)
        self._count_in(job)

    def extend(self, jobs: list[Job], size: int) -> None:
        """Take in queued jobs of one priority, in order of place, above that of every job of their priority here.

        Args:
            size: bytes of their payloads, which are all there.
        """
        band = self._bands.get(jobs[0].priority)
        if band is None:
            band = self._new_band(jobs[0].priority)
        band.extend(jobs)
        self.in_memory += len(jobs)
        self.window.jobs += len(jobs)
        self.window.payload_bytes += size

    def _new_band(self, priority: int) -> deque[Job]:
        insort(self._priorities, priority)
        band = self._bands[priority] = deque()
        return band

    def put_back(self, job: Job) -> None:
        """Take in a job that was here before and has its old place."""
        heappush(self._returned, (job.rank, job.attempt, job))
        self._count_in(job)

    def _count_in(self, job: Job) -> None:
        self.in_memory += 1
        window = self.window
        window.jobs += 1
        if job.payload is not None:
            window.payload_bytes += job.payload_bytes

    def _count_out(self, job: Job) -> None:
        self.in_memory -= 1
        window = self.window
        window.jobs -= 1
        if job.payload is not None:
            window.payload_bytes -= job.payload_bytes

    def count_payload(self, job: Job, sign: int) -> None:
        """Count out (-1) or in (+1) the payload of a job in memory, of whom it changes where it stands."""
        if job.payload is not None:
            self.window.payload_bytes += sign * job.payload_bytes

    def head(self) -> Job | None:
        """Return the first job in memory, or None. Its payload may have to be loaded first (`payload` None)."""
        returned = self._returned
        while returned and returned[0][2].state is not QUEUED:
            heappop(returned)
            self._stale -= 1
        first = self._first_in_bands()
        if returned and (first is None or returned[0][0] < first.rank):
            return returned[0][2]
        return first

    @property
    def is_head_ready(self) -> bool:
        """True if the first job is in memory with its payload; else the store must be asked."""
        first = self.head()
        return first is not None and first.payload is not None

    @property
    def head_bytes(self) -> int:
        """Payload bytes of the first job in memory, 0 if there is none."""
        first = self.head()
        return first.payload_bytes if first is not None else 0

    def _first_in_bands(self) -> Job | None:
        while self._priorities:
            band = self._bands[self._priorities[0]]
            while band:
                if band[0].state is QUEUED:
                    return band[0]
                band.popleft()
                self._stale -= 1
            del self._bands[self._priorities.pop(0)]
        return None

    def take(self, limit: int, rival_rank: int, max_bytes: int) -> list[Job]:
        """Take out the first jobs, in order: the head, which must be ready, and those after it that are.

        Args:
            limit: so many at most. max_bytes: the same of their payloads; but the head is taken in any case.
            rival_rank: only the head may have a rank above this.
        """
        taken: list[Job] = []
        size = 0
        job = self.head()
        while True:
            if self._returned and self._returned[0][2] is job:
                heappop(self._returned)
            else:
                self._bands[self._priorities[0]].popleft()
            taken.append(job)
            size += job.payload_bytes
            if len(taken) == limit:
                break
            job = self.head()
            if job is None or job.payload is None or job.rank > rival_rank or size + job.payload_bytes > max_bytes:
                break
        self.in_memory -= len(taken)
        self.window.jobs -= len(taken)
        self.window.payload_bytes -= size
        return taken

    def remove(self, job: Job) -> None:
        """Take a job that is in memory out of turn. The caller finishes it at once: its entry stays and is skipped later."""
        self._count_out(job)
        self._stale += 1
        if self._stale > 64 and self._stale > self.in_memory:
            self._compact(job)

    def pull(self, job: Job) -> None:
        """Take a job that is in memory out of turn, entry and all, for one that goes on waiting elsewhere: some µs to a millisecond."""
        band = self._bands.get(job.priority)
        place = bisect_left(band, job.rank, key=_rank_of) if band else 0
        if band and place < len(band) and band[place] is job:
            del band[place]
        else:
            self._returned = [entry for entry in self._returned if entry[2] is not job]
            heapify(self._returned)
        self._count_out(job)

    def _compact(self, leaving: Job) -> None:
        for priority in list(self._priorities):
            band = deque(job for job in self._bands[priority] if job.state is QUEUED and job is not leaving)
            if band:
                self._bands[priority] = band
            else:
                del self._bands[priority]
                self._priorities.remove(priority)
        self._returned = [entry for entry in self._returned
                          if entry[2].state is QUEUED and entry[2] is not leaving]
        heapify(self._returned)
        self._stale = 0

    def best_rank(self) -> int | None:
        """Return the rank with which this lane competes: its head's, or its edge while only the store has jobs, or None."""
        first = self.head()
        if first is not None:
            return first.rank
        return self.edge if self.in_store > 0 else None

    def ahead_of(self, rank: int) -> tuple[int, int]:
        """Return how many queued jobs come before a rank: those that memory knows of, and how many more the store may have."""
        known = sum(entry[0] < rank and entry[2].state is QUEUED for entry in self._returned)
        for priority in self._priorities:
            band = self._bands[priority]
            end = bisect_left(band, rank, key=_rank_of)
            known += sum(job.state is QUEUED for job in islice(band, end)) if self._stale else end
        return known, self.in_store if self.edge is not None and rank > self.edge else 0

    def drop_tail(self, count: int, keep: int) -> list[Job]:
        """Drop up to `count` of the last jobs, leaving at least `keep`; they must be in the store, or on their way there."""
        self._returned.sort()  # a sorted list is a heap, and its end is its tail
        dropped: list[Job] = []
        while len(dropped) < count and self.in_memory > keep:
            job = self._pop_last()
            if job.state is QUEUED:
                self._count_out(job)
                self.edge = job.rank - 1
                dropped.append(job)
            else:
                self._stale -= 1
        return dropped

    def _pop_last(self) -> Job:
        while self._priorities and not self._bands[self._priorities[-1]]:
            del self._bands[self._priorities.pop()]
        band = self._bands[self._priorities[-1]] if self._priorities else None
        if band is None or (self._returned and self._returned[-1][0] > band[-1].rank):
            return self._returned.pop()[2]
        return band.pop()

    def unloaded(self) -> list[int]:
        """Return ids of the first jobs without their payload, SLICE_BYTES of them: jobs that came back, or were put off."""
        ids: list[int] = []
        size = 0
        came_back = (job for _, _, job in nsmallest(SLICE_ROWS, self._returned))
        in_bands = islice(chain.from_iterable(self._bands[priority] for priority in self._priorities), SLICE_ROWS)
        for job in merge(came_back, in_bands, key=lambda job: job.rank):
            if job.payload is None and job.state is QUEUED:
                size += job.payload_bytes
                if ids and size > SLICE_BYTES:
                    break
                ids.append(job.id)
        return ids

    def queued_jobs(self) -> list[Job]:
        """Return the jobs in memory in order: for tests and checks, not for the hot path."""
        jobs = [job for band in self._bands.values() for job in band] + [entry[2] for entry in self._returned]
        return sorted((job for job in jobs if job.state is QUEUED), key=lambda job: job.rank)
