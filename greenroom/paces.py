"""How fast the lanes' jobs get done, measured by looking at their counters now and then: no job pays for it.

Pure: gets `now`. Must not know who asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from greenroom.job import COMPLETED, FAILED
from greenroom.lanes import Lane

#: A round over all lanes begins so often: a rate is that of the last 10 to 20 seconds.
ROUND_S = 10.0
#: Lanes looked at in one call: 0.2 ms.
LANES_PER_LOOK = 1000


class Paces:
    """What the counters of lanes with work were at the latest two looks."""

    def __init__(self) -> None:
        self._before: dict[Lane, tuple[float, int]] = {}  # lane -> when, jobs it had finished by then
        self._latest: dict[Lane, tuple[float, int]] = {}
        self._left: Iterator[Lane] | None = None  # of the round that goes on
        self._next_round = 0.0

    def look(self, lanes: Collection[Lane], now: float) -> None:
        """Go on with the round, or begin one if it is time. Call it at each tick."""
        if self._left is None:
            if now < self._next_round:
                return
            self._next_round = now + ROUND_S
            self._before, self._latest = self._latest, {}
            self._left = iter(list(lanes))
        some = list(islice(self._left, LANES_PER_LOOK))
        for lane in some:
            if not lane.is_idle:
                self._latest[lane] = (now, _finished(lane))
        if len(some) < LANES_PER_LOOK:
            self._left = None

    def rate(self, lanes: Iterable[Lane], now: float) -> float | None:
        """Return how many jobs of these lanes end a second, all together; None: that is not known yet."""
        total, is_known = 0.0, False
        for lane in lanes:
            seen = self._before.get(lane) or self._latest.get(lane)
            if seen is not None and now - seen[0] >= 1.0:
                is_known = True
                total += (_finished(lane) - seen[1]) / (now - seen[0])
        return total if is_known else None


def _finished(lane: Lane) -> int:
    return lane.counts[COMPLETED] + lane.counts[FAILED]
