"""When something recurs: cron lines in a time zone, and fixed intervals. Pure; the only module that knows the library cronsim.

All times are seconds since 1970, of the wall clock. It must not know what is submitted then.

Daylight saving is what Debian's cron does, and cronsim after it. A line with a fixed minute and hour names a time of the day: one that
the spring gap swallows runs at the end of the gap, one that the autumn repeats runs once, the first time. A line whose minute or hour
begins with `*` counts by elapsed time: nothing runs for the hour that is not there, and the repeated hour runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from greenroom.errors import InvalidError
from greenroom.schedule_limits import MAX_CRON_CHARACTERS, MAX_ZONE_CHARACTERS

MIN_EVERY_S = 1
MAX_EVERY_S = 366 * 86400

_EVERY = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Cron:
    """A cron line of five fields in a time zone.

    A step takes some 0.1 ms; a line that fits one day in decades takes 6 ms at the worst.
    """

    __slots__ = ("_line", "_zone")

    def __init__(self, line: str, zone: tzinfo) -> None:
        self._line = line
        self._zone = zone

    def next_after(self, at: float) -> float | None:
        """Return the first time after `at`, or None: it never comes again (within 50 years)."""
        # Times of the day that the change of the clock repeats, or moves onto another one, come more than once, or too early.
        return next((time for time in self._times(at) if time > at), None)

    def latest(self, first: float, until: float, count: int) -> list[float]:
        """Return the last `count` times from `first` to `until`, both included, in order."""
        found: list[float] = []
        # From the end: a line that runs each minute has half a million times a year.
        for time in self._times(until + 1, reverse=True):
            if time < first or len(found) == count:
                break
            if time <= until and (not found or time < found[-1]):
                found.append(time)
        return found[::-1]

    def _times(self, at: float, *, reverse: bool = False) -> Iterator[float]:
        for moment in CronSim(self._line, datetime.fromtimestamp(int(at), self._zone), reverse):
            yield moment.timestamp()


class Every:
    """A fixed interval, counted from whenever it began."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def next_after(self, at: float) -> float:
        """Return the time one interval after `at`."""
        return at + self.seconds

    def latest(self, first: float, until: float, count: int) -> list[float]:
        """Return the last `count` of the times `first`, `first` plus one interval … up to `until`, in order."""
        last = int((until - first) // self.seconds)
        return [first + number * self.seconds for number in range(max(0, last - count + 1), last + 1)]


Recurrence = Cron | Every


def parse_recurrence(cron: str | None, every: str | None, zone: str | None, now: float) -> Recurrence:
    """Check what somebody wrote.

    Args:
        cron: five fields, as `0 3 * * MON-FRI`. every: `10s`, `5m`, `2h` or `1d`. One of the two.
        zone: an IANA name such as Europe/Berlin, with `cron` only; None: UTC.
        now: what never comes after this is refused.

    Raises InvalidError: the field named is wrong.
    """
    if (cron is None) == (every is None):
        raise InvalidError("either cron or every says when", field="cron")
    if every is not None:
        if zone is not None:
            raise InvalidError("timezone goes with cron; an interval has none", field="timezone")
        return _parse_every(every)
    if len(cron) > MAX_CRON_CHARACTERS or len(cron.split()) != 5 or not cron.isascii():
        raise InvalidError(f"cron must have five fields (minute hour day month weekday) in at most {MAX_CRON_CHARACTERS} characters",
                           field="cron")
    parsed = Cron(cron, _parse_zone(zone))
    try:
        if parsed.next_after(now) is None:
            raise InvalidError("cron is a line that never comes", field="cron")
    except CronSimError as exc:
        raise InvalidError(f"cron is no cron line: {str(exc)[:1].lower()}{str(exc)[1:]}", field="cron") from None
    return parsed


def _parse_every(text: str) -> Every:
    found = _EVERY.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not MIN_EVERY_S <= seconds <= MAX_EVERY_S:
        raise InvalidError("every must be an interval like 10s, 5m, 2h or 1d, from 1s to 366d", field="every")
    return Every(seconds)


def _parse_zone(name: str | None) -> tzinfo:
    if name in (None, "UTC"):
        return timezone.utc  # also without a database of time zones
    try:
        if len(name) > MAX_ZONE_CHARACTERS:
            raise ValueError
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not there; not a name; a folder
        raise InvalidError("timezone must be an IANA name that the broker's machine knows, such as Europe/Berlin", field="timezone") from None
