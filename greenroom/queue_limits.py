"""How much may wait in a queue: the limits that somebody set, and what waits in those queues now. The one truth for all who ask for room.

Pure and without a clock. A queue without a limit is not known here, and nothing is counted for it. It must not know what becomes of
what it refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from greenroom.errors import FullError, GreenroomError, TooLargeError
from greenroom.job import QUEUED, SCHEDULED, Job
from greenroom.lanes import Lane
from greenroom.paces import Paces
from greenroom.records import QueueLimit

#: Limits at the same time; beyond it FULL. All of them fit into one answer.
MAX_LIMITS = 1000
#: Who finds a queue full is told to come back when a tenth of its limit should be free, within these bounds, in seconds …
SOONEST_S, LATEST_S = 0.1, 10.0
#: … and after this if nobody knows how fast the queue gets done.
UNKNOWN_S = 5.0
#: Lanes whose pace is looked at, at most once in PACE_S: 0.4 ms.
LANES_MEASURED = 1000
PACE_S = 1.0


class LimitedQueue:
    """A queue that has a limit, and what waits in it.

    Attributes:
        limit: the limit as it was set.
        waiting, waiting_bytes: its scheduled and queued jobs, also those that only the store has, and their payloads.
        refused: jobs that the limit kept out since it was first set, or since the broker started.
    """

    __slots__ = ("limit", "waiting", "waiting_bytes", "refused", "_lanes", "_rate", "_next_look")

    def __init__(self, limit: QueueLimit) -> None:
        self.limit = limit
        self.waiting = 0
        self.waiting_bytes = 0
        self.refused = 0
        self._lanes: dict[Lane, None] = {}
        self._rate: float | None = None
        self._next_look: float | None = None

    def attach(self, lane: Lane) -> None:
        """Count a lane of this queue from now on."""
        lane.limited = self
        self._lanes[lane] = None
        self.count(lane.counts[QUEUED] + lane.counts[SCHEDULED], lane.waiting_bytes)

    def detach(self, lane: Lane) -> None:
        """Forget a lane, which must be idle."""
        lane.limited = None
        del self._lanes[lane]

    def detach_all(self) -> None:
        """Forget all lanes: the limit is over."""
        for lane in self._lanes:
            lane.limited = None
        self._lanes.clear()

    def count(self, jobs: int, size: int) -> None:
        """Note that so many jobs with so many bytes of payloads wait from now on, or (negative) do no more."""
        self.waiting += jobs
        self.waiting_bytes += size

    def most(self, priority: int | None) -> tuple[int | None, int | None]:
        """Return how many jobs, and bytes of payloads, may wait once a job of this priority is in (None: one that is not urgent).

        None among them: any number.
        """
        limit = self.limit
        if priority is None or limit.urgent is None or priority > limit.urgent:
            return limit.jobs, limit.bytes
        return limit.most_jobs, limit.most_bytes

    @property
    def full(self) -> str | None:
        """Who is refused: "ordinary" jobs, "all", or None: nobody, at least no small job."""
        limit = self.limit
        if self._is_over(limit.jobs, limit.bytes):
            return "all" if limit.urgent is None or self._is_over(limit.most_jobs, limit.most_bytes) else "ordinary"
        return None

    @property
    def fill(self) -> float:
        """How full it is: 1 is the limit, also for urgent jobs, who may go beyond."""
        limit = self.limit
        return max(0.0 if limit.jobs is None else self.waiting / limit.jobs, 0.0 if limit.bytes is None else self.waiting_bytes / limit.bytes)

    def _is_over(self, jobs: int | None, size: int | None) -> bool:
        return (jobs is not None and self.waiting >= jobs) or (size is not None and self.waiting_bytes >= size)

    def refusals(self, priority: int, sizes: Iterable[int], paces: Paces, now: float) -> list[GreenroomError | None]:
        """Judge new jobs of one priority in order, by the bytes of their payloads: None: there is room, also after those before it.

        A job that is too large for what is left leaves it to those after it.
        """
        jobs, size = self.most(priority)
        waiting, waiting_bytes = self.waiting, self.waiting_bytes
        outcomes: list[GreenroomError | None] = []
        full: FullError | None = None
        for one in sizes:
            if size is not None and one > size:
                outcomes.append(self._too_large(one, size))
            elif (jobs is not None and waiting >= jobs) or (size is not None and waiting_bytes + one > size):
                full = full or self._full_error(priority, waiting, waiting_bytes, paces, now)
                outcomes.append(full)
            else:
                outcomes.append(None)
                waiting += 1
                waiting_bytes += one
                continue
            self.refused += 1
        return outcomes

    def check(self, priority: int, jobs: int, size: int, payload_bytes: int, paces: Paces, now: float, *, instead_of: Job | None = None) -> None:
        """Raise FullError unless so many more jobs with so many more bytes may wait; what does not grow is not asked for.

        Args:
            payload_bytes: of the job as it would be then: TooLargeError if it can never fit.
            instead_of: a job that leaves before, with its place if it waits here.
        """
        most_jobs, most_bytes = self.most(priority)
        waiting, waiting_bytes = self.waiting, self.waiting_bytes
        if instead_of is not None and instead_of.queue == self.limit.queue and instead_of.state in (QUEUED, SCHEDULED):
            waiting -= 1
            waiting_bytes -= instead_of.payload_bytes
        if size > 0 and most_bytes is not None and payload_bytes > most_bytes:
            self.refused += 1
            raise self._too_large(payload_bytes, most_bytes)
        if ((jobs > 0 and most_jobs is not None and waiting + jobs > most_jobs)
                or (size > 0 and most_bytes is not None and waiting_bytes + size > most_bytes)):
            self.refused += 1
            raise self._full_error(priority, self.waiting, self.waiting_bytes, paces, now)

    def _full_error(self, priority: int, waiting: int, waiting_bytes: int, paces: Paces, now: float) -> FullError:
        jobs, size = self.most(priority)
        is_room = (jobs is None or waiting < jobs) and (size is None or waiting_bytes < size)
        text = _told(waiting, waiting_bytes, jobs, size) + (", this one does not fit" if is_room else "")
        return FullError(f"the queue {self.limit.queue} is full: {text}", field="queue", retry_after_s=self.retry_after_s(priority, paces, now))

    def _too_large(self, payload_bytes: int, size: int) -> TooLargeError:
        return TooLargeError(f"payload has {payload_bytes} bytes, the queue {self.limit.queue} takes {size} in all", field="payload")

    def told(self) -> str:
        """Return what waits and what ordinary jobs may, for a sentence."""
        return _told(self.waiting, self.waiting_bytes, self.limit.jobs, self.limit.bytes)

    def seconds(self, priority: int | None, paces: Paces, now: float) -> float | None:
        """Return about how long until a tenth of the limit (see `most`) is free; None: that is not known, or nothing gets done."""
        if self._next_look is None or now >= self._next_look:
            self._rate = paces.rate(islice(self._lanes, LANES_MEASURED), now)
            self._next_look = now + PACE_S
        if not self._rate:
            return None
        jobs, size = self.most(priority)
        excess = max(0.0, 0.0 if jobs is None else self.waiting - 0.9 * jobs,
                     0.0 if size is None else (self.waiting_bytes - 0.9 * size) * self.waiting / max(1, self.waiting_bytes))
        return excess / self._rate

    def retry_after_s(self, priority: int, paces: Paces, now: float) -> float:
        """Return when who was refused should come back."""
        seconds = self.seconds(priority, paces, now)
        if seconds is None:
            return UNKNOWN_S if self._rate is None else LATEST_S
        return round(min(LATEST_S, max(SOONEST_S, seconds)), 3)


def _told(waiting: int, waiting_bytes: int, jobs: int | None, size: int | None) -> str:
    parts = [f"{waiting} {'job waits' if waiting == 1 else 'jobs wait'}, its limit is {jobs}"] if jobs is not None else []
    if size is not None:
        parts.append(f"payloads of {waiting_bytes} bytes wait, its limit is {size}")
    return "; ".join(parts)


class QueueLimits:
    """All queues that have a limit."""

    __slots__ = ("_by_queue", "_refused_before")

    def __init__(self) -> None:
        self._by_queue: dict[str, LimitedQueue] = {}
        self._refused_before = 0  # by limits that are over

    def __len__(self) -> int:
        return len(self._by_queue)

    def __iter__(self) -> Iterator[LimitedQueue]:
        return iter(self._by_queue.values())

    @property
    def refused(self) -> int:
        """Jobs that limits kept out since the broker started, also those that are over."""
        return self._refused_before + sum(limited.refused for limited in self)

    def get(self, queue: str) -> LimitedQueue | None:
        """Return the queue with its limit, or None: it has none."""
        return self._by_queue.get(queue)

    def restore(self, limits: Iterable[QueueLimit]) -> None:
        """Take in those that the store kept, before there is a lane."""
        for limit in limits:
            self._by_queue[limit.queue] = LimitedQueue(limit)

    def put(self, limit: QueueLimit, lanes: Iterable[Lane]) -> LimitedQueue:
        """Limit a queue, in place of a limit that it has.

        Args:
            lanes: those of the queue, needed if it had none.
        """
        known = self._by_queue.get(limit.queue)
        if known is not None:
            known.limit = limit
            return known
        made = self._by_queue[limit.queue] = LimitedQueue(limit)
        for lane in lanes:
            made.attach(lane)
        return made

    def end(self, queue: str) -> QueueLimit | None:
        """End the limit of a queue; returns it, or None: there was none."""
        ended = self._by_queue.pop(queue, None)
        if ended is None:
            return None
        ended.detach_all()
        self._refused_before += ended.refused
        return ended.limit
