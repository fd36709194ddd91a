"""Which unique keys are taken, and by which job. Pure and without a clock.

A key is taken from the acceptance of a job on: until that job is finished, or for a time. The store has all of them, for a restart;
here they are in memory, which is why there is a cap.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from greenroom.job import Job

#: Keys that may be taken at a time: 50 MB.
MAX_KEYS = 250_000


class Taken(NamedTuple):
    """A key that is taken."""

    job: int
    until: float | None  # free again at this time, whatever the job does; None: only when the job is finished
    until_done: bool  # True: free again when the job is finished


class Duplicate(NamedTuple):
    """The outcome of a submit whose key is taken."""

    job: int
    state: str | None  # word; None: not known here, as the job is on disk


class Keys:
    """The keys that are taken.

    Attributes:
        cap: how many there may be.
    """

    def __init__(self, cap: int = MAX_KEYS) -> None:
        self.cap = cap
        self._taken: dict[str, Taken] = {}
        self._ends: list[tuple[float, str]] = []  # heap of (until, key), also of keys that were freed before

    def __len__(self) -> int:
        return len(self._taken)

    def find(self, key: str, now: float) -> Taken | None:
        """Return who has the key, or None: it is free."""
        taken = self._taken.get(key)
        return None if taken is None or (taken.until is not None and taken.until <= now) else taken

    def is_full(self, now: float) -> bool:
        """Tell whether no more can be taken; forgets what has run out."""
        while self._ends and self._ends[0][0] <= now:
            until, key = heappop(self._ends)
            taken = self._taken.get(key)
            if taken is not None and taken.until == until:
                del self._taken[key]
        return len(self._taken) >= self.cap

    def take(self, key: str, taken: Taken) -> None:
        """Take a key that is free."""
        self._taken[key] = taken
        if taken.until is not None:
            heappush(self._ends, (taken.until, key))

    def finished(self, job: Job) -> None:
        """Free the key of a finished job, if it was taken until then."""
        key = job.extras.unique_key
        taken = self._taken.get(key)
        if taken is not None and taken.job == job.id and taken.until_done:
            del self._taken[key]


def taken_by(job: Job) -> Taken:
    """Return the entry for a job's key. Its time counts from when the job was submitted."""
    extras = job.extras
    until = None if extras.unique_for is None else job.submitted_at + extras.unique_for
    return Taken(job.id, until, extras.unique_mode == "until_done")
