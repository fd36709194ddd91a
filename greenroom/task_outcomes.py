"""How a task can end its run in a way of its own: the exceptions that it raises instead of returning.

Must not know how the outcome travels (greenroom/pools.py).
"""

from __future__ import annotations

import math
from datetime import datetime

from greenroom.clock import Clock

#: As for `delay`: 366 days.
LONGEST_S = 31_622_400


class TaskError(Exception):
    """Base of the errors with which a task run can end before, beside or instead of the task's own. Never on the wire:
    the class name becomes the job's error name."""


class PermanentError(TaskError):
    """Base of those that come again however often the job is run: it is not tried again."""


class Retry(TaskError):
    """Raised by a task: this run failed, and the next begins at a time that the task chose. The run counts as an attempt.

    `raise Retry(in_=60) from exc` without a text records exc as the job's error.

    Args:
        at: Unix seconds or a datetime. in_: seconds from now, 0 to 31,622,400. Just one of the two.

    Raises:
        ValueError: both or neither, or out of range.
    """

    def __init__(self, *text: str, at: float | datetime | None = None, in_: float | None = None) -> None:
        super().__init__(*text)
        if (at is None) == (in_ is None):
            raise ValueError("Retry needs at= or in_=, and just one of them")
        #: Seconds from the moment it was raised, None where a time was given.
        self.in_s = None if in_ is None else _seconds(in_, "Retry: in_")
        if self.in_s is not None:
            at = Clock().now() + self.in_s
        elif isinstance(at, datetime):
            at = at.timestamp()
        if type(at) not in (int, float) or not 0 <= at <= 253_402_300_799:
            raise ValueError("Retry: at must be a datetime or seconds since 1970")
        #: Unix seconds, not before which it runs again.
        self.at = float(at)


class DontRetry(PermanentError):
    """Raised by a task: this run failed, and another one would fail too; the job is failed for good.

    `raise DontRetry() from exc` records exc as the job's error.
    """


class Snooze(TaskError):
    """Raised by a task that can't do its work now: the job runs again later, and this run uses up no attempt.

    Args:
        seconds: from now, 0 to 31,622,400. Raises ValueError otherwise.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = _seconds(seconds, "Snooze: seconds")


def wish_of(exc: BaseException) -> dict | None:
    """Return what an error says of trying its job again, as the wire's settle has it; None: nothing."""
    if isinstance(exc, Retry):
        return {"retry_at": exc.at}
    return {"retry": False} if isinstance(exc, PermanentError) else None


def recorded_error(exc: BaseException) -> BaseException:
    """Return what is recorded of a failed run: the exception, or the cause of a Retry or DontRetry without a text."""
    if isinstance(exc, (Retry, DontRetry)) and not exc.args and exc.__cause__ is not None:
        return exc.__cause__
    return exc


def _seconds(value: object, what: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= LONGEST_S:
        raise ValueError(f"{what} must be a number of seconds from 0 to {LONGEST_S}")
    return float(value)
