"""Which unique keys are taken, and by which job. Pure and without a clock.

A key is taken from the acceptance of a job on: until that job is finished, for a time, or until a worker gets it. The store has all
of them, for a restart; here they are in memory, which is why there is a cap. What becomes of a duplicate is in duplicates.py.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from greenroom.job import FINISHED_STATES, Job

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
    state: str | None  # word; None: the job is not kept any more, or damaged
    replaced: bool = False  # it has the payload of this submit now


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

    def moved(self, job: Job) -> None:
        """Free the key of a job that was just finished, or given to a worker, if that ends its claim."""
        key = job.extras.unique_key
        taken = self._taken.get(key)
        if taken is not None and taken.job == job.id and is_claim_over(job):
            del self._taken[key]


def taken_by(job: Job) -> Taken:
    """Return the entry for a job's key. Its time counts from when the job was submitted."""
    extras = job.extras
    is_timed = extras.unique_for is not None and extras.unique_mode != "debounce"
    return Taken(job.id, job.submitted_at + extras.unique_for if is_timed else None, extras.unique_mode != "throttle")


def is_claim_over(job: Job) -> bool:
    """Tell whether a job with a key has, as it is now, no claim to it any more. Never in the mode throttle: there only time frees a key."""
    mode = job.extras.unique_mode
    if mode == "debounce" and job.fence:  # a worker has or had it, also if it came back: what is submitted from then on must run after it
        return True
    return mode != "throttle" and job.state in FINISHED_STATES
