"""Counts of measured values in fixed buckets, ever and over the last minute: bounded memory, a few µs a value.

Pure: gets `now`. Must not know what is measured, nor how it is shown.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

#: Upper bounds of buckets for times: five a decade, from 0.1 ms to 10 s; what is above lies in a last bucket without a bound.
SECONDS = (0.0001, 0.00016, 0.00025, 0.0004, 0.00063, 0.001, 0.0016, 0.0025, 0.004, 0.0063, 0.01, 0.016, 0.025, 0.04, 0.063,
           0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0)
#: … and for numbers of rows.
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)

#: "The last minute" is the slice that is being filled and the six before it.
SLICE_S = 10.0
SLICES = 7


class Distribution:
    """How often a value fell into which bucket.

    Attributes:
        bounds: upper bounds of the buckets, each included. buckets: counts since the start, one more than there are bounds.
        count, total: values, and their sum. latest, highest: 0 before the first.
    """

    __slots__ = ("bounds", "buckets", "count", "total", "latest", "highest", "_slices")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0
        self.latest = 0.0
        self.highest = 0.0
        self._slices = [_Slice(len(bounds) + 1) for _ in range(SLICES)]

    def add(self, value: float, now: float) -> None:
        """Count a value, which is not negative."""
        place = bisect_left(self.bounds, value)
        self.buckets[place] += 1
        self.count += 1
        self.total += value
        self.latest = value
        if value > self.highest:
            self.highest = value
        number = int(now // SLICE_S)
        current = self._slices[number % SLICES]
        if current.number != number:
            current.restart(number)
        current.buckets[place] += 1
        if value > current.highest:
            current.highest = value

    def quantiles(self, shares: tuple[float, ...], now: float) -> list[float | None]:
        """Return, for each share (0 … 1), the value below which that share of the last minute's values lie; None without values.

        Right to the width of a bucket: within one the values are taken to be spread evenly.
        """
        oldest = int(now // SLICE_S) - SLICES
        recent = [part for part in self._slices if part.number > oldest]
        reached = list(accumulate(map(sum, zip(*(part.buckets for part in recent))))) if recent else []
        if not reached or not reached[-1]:
            return [None] * len(shares)
        highest = max(part.highest for part in recent)
        return [self._at(share * reached[-1], reached, highest) for share in shares]

    def _at(self, rank: float, reached: list[int], highest: float) -> float:
        place = bisect_left(reached, rank)
        low = self.bounds[place - 1] if place else 0.0
        high = min(self.bounds[place], highest) if place < len(self.bounds) else highest
        before = reached[place - 1] if place else 0
        return low + (max(low, high) - low) * (rank - before) / (reached[place] - before)


class _Slice:
    """The values of ten seconds."""

    __slots__ = ("number", "buckets", "highest")

    def __init__(self, buckets: int) -> None:
        self.number = -SLICES  # before any time that comes
        self.buckets = [0] * buckets
        self.highest = 0.0

    def restart(self, number: int) -> None:
        """Begin anew, for the slice of this number."""
        self.number = number
        self.buckets = [0] * len(self.buckets)
        self.highest = 0.0
