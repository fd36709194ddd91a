"""Time: one clock that never steps back, and one that tests move by hand. The only module that reads the wall clock."""

from __future__ import annotations

import time


class Clock:
    """Seconds since 1970 that grow evenly: the wall clock read once at start, then the monotonic clock.

    A step of the machine's wall clock changes nothing until the process restarts, so no lease ends early or late
    because of one (reliability I23). Times shown to people drift by as much as the wall clock was moved.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the current time in seconds since 1970, never less than the last answer."""
        return time.monotonic() + self._offset_s

    @staticmethod
    def wall() -> float:
        """Return what the machine's wall clock says now, in seconds since 1970: for cron lines alone. It may jump."""
        return time.time()


class FakeClock:
    """A clock for tests: stands still until told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now
        self.wall_is_ahead_s = 0.0  # how far the wall clock was set off

    def now(self) -> float:
        """Return the time the test has reached."""
        return self._now

    def wall(self) -> float:
        """Return what the wall clock says then."""
        return self._now + self.wall_is_ahead_s

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` (not negative) and return the new time."""
        if seconds < 0:
            raise ValueError("a clock never steps back")
        self._now += seconds
        return self._now
