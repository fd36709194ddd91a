"""The window over scheduled jobs: those that fall due first are in memory, in order of due time; the rest only in the store.

Pure and without a clock. The twin of a lane's window (lanes.py), sorted by (run_at, id).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from greenroom.job import Job

#: Jobs in memory. Sorting so many, once when the window overflows, takes about 2 ms.
MAX_IN_MEMORY = 10_000
MAX_BYTES_IN_MEMORY = 16 * 2**20
REFILL_BELOW = 1000


class Scheduled:
    """Scheduled jobs by due time.

    Attributes:
        total: scheduled jobs, in memory and in the store.
        in_memory: those in memory.
        edge: (run_at, id) above which jobs are in the store alone; None: none are.
        is_filling: a refill was asked for and has not come back.
    """

    def __init__(self) -> None:
        self.total = 0
        self.in_memory = 0
        self.edge: tuple[float, int] | None = None
        self.is_filling = False
        self._heap: list[list] = []  # entries [run_at, id, number, job]; without a job it is gone, and skipped
        self._entries: dict[int, list] = {}  # job -> its entry, of those in memory
        self._loads = 0  # numbers the entries, as a job may come back with the same time
        self._bytes = 0

    @property
    def in_store(self) -> int:
        """Scheduled jobs that only the store has."""
        return self.total - self.in_memory

    @property
    def wants_refill(self) -> bool:
        """True when the window runs low and the store has more. Without an edge it has not, whatever is counted."""
        return (self.in_memory < REFILL_BELOW and self._bytes < MAX_BYTES_IN_MEMORY // 2 and self.in_store > 0
                and self.edge is not None)

    def add(self, job: Job) -> bool:
        """Take in a new scheduled job; returns False if it belongs to the store alone. Counts it either way."""
        if self.edge is not None and self.in_store <= 0:
            self.edge = None
        self.total += 1
        if self.edge is not None and (job.run_at, job.id) > self.edge:
            return False
        self.load(job)
        return True

    def load(self, job: Job) -> None:
        """Take in a job that the store had (it is counted already)."""
        self._loads += 1
        entry = self._entries[job.id] = [job.run_at, job.id, self._loads, job]
        heappush(self._heap, entry)
        self.in_memory += 1
        self._bytes += job.payload_bytes

    def count_payload(self, job: Job, sign: int) -> None:
        """Count out (-1) or in (+1) the payload of a job in memory, of whom it changes where it stands."""
        self._bytes += sign * job.payload_bytes

    @property
    def is_over(self) -> bool:
        """True while the window holds more than its budget."""
        return self.in_memory > MAX_IN_MEMORY or self._bytes > MAX_BYTES_IN_MEMORY

    def shrink(self) -> list[Job]:
        """Send the later half back to the store; returns the jobs that went. They must be there, or on their way."""
        self._heap = sorted(self._entries.values())
        dropped: list[Job] = []
        while len(self._heap) > 1 and (self.in_memory > MAX_IN_MEMORY // 2 or self._bytes > MAX_BYTES_IN_MEMORY // 2):
            job = self._heap[-1][3]
            self._take_out(job)
            self._heap.pop()
            dropped.append(job)
        if dropped:
            self.edge = (self._heap[-1][0], self._heap[-1][1])
        return dropped

    def next_due(self) -> float | None:
        """Return when the first job falls due, or None. With jobs in the store alone, a refill must come first."""
        self._skip_gone()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Job | None:
        """Take out the first job if it is due."""
        self._skip_gone()
        if not self._heap or self._heap[0][0] > now:
            return None
        job = heappop(self._heap)[3]
        self._take_out(job)
        self.total -= 1
        return job

    def remove(self, job: Job, *, in_memory: bool) -> None:
        """Uncount a job that is finished, or waits elsewhere or until another time from now on; its entry, if any, is skipped later."""
        self.total -= 1
        if in_memory:
            self._take_out(job)
            if len(self._heap) > 64 and len(self._heap) > 2 * self.in_memory:
                self._heap = list(self._entries.values())
                heapify(self._heap)

    def _skip_gone(self) -> None:
        while self._heap and self._heap[0][3] is None:
            heappop(self._heap)

    def _take_out(self, job: Job) -> None:
        self._entries.pop(job.id)[3] = None
        self.in_memory -= 1
        self._bytes -= job.payload_bytes
