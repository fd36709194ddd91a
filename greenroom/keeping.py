"""How long a finished job is kept that asked for it (`keep_for`), and how many such jobs there may be. Pure and without a clock.

All others are kept as the broker's settings say: the stores know those.
"""

from __future__ import annotations

from greenroom.errors import FullError
from greenroom.job import Extras, Job

#: Every finished job stays at least so long even when history holds more jobs than it should.
COUNT_KEEPS_S = 3600.0

#: Jobs that ask for longer than that which may be there at a time, waiting ones too: as many as history has by default.
MAX_KEPT_JOBS = 1_000_000


def kept_until(job: Job) -> float | None:
    """Return until when a finished job is kept as it asked, or None: it did not ask."""
    return None if job.extras is None or job.extras.keep_for is None else job.finished_at + job.extras.keep_for


def asks_for_long(extras: Extras | None) -> bool:
    """Tell whether a job may take room for longer than it would without asking: only these are limited in number."""
    return extras is not None and extras.keep_for is not None and extras.keep_for > COUNT_KEEPS_S


class Keeping:
    """How many jobs there are that ask for long, from their submit until nothing of them is left.

    Attributes:
        count: so many. cap: how many there may be.
    """

    def __init__(self, cap: int = MAX_KEPT_JOBS) -> None:
        self.count = 0
        self.cap = cap

    def room(self, extras: Extras | None, wanted: int) -> int:
        """Return how many of `wanted` new jobs that all ask for this may come in."""
        return max(0, min(wanted, self.cap - self.count)) if asks_for_long(extras) else wanted

    def full_error(self) -> FullError:
        """Return what the others are answered."""
        return FullError(f"{self.count} jobs ask to be kept for more than an hour, the cap is {self.cap}", field="keep_for",
                         retry_after_s=60.0)
