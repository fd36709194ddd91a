"""Virtual time: events in order, one random generator, a trace of what happened. Knows nothing of brokers.

Everything that happens in a run is an event of this world or is called by one, so a seed decides all of it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush

#: What is printed of a run that failed.
TRACE_LINES = 60
WORD_CHARACTERS = 160
#: A run that needs more events than this goes in circles.
MAX_EVENTS = 400_000


class Violation(BaseException):
    """An invariant does not hold. No Exception: the broker answers those with INTERNAL and goes on."""


class World:
    """See the module.

    Attributes:
        now: seconds of real time since the run began; nobody in the run can read it.
        wall_s: what has to be added for the machine's wall clock. monotonic_s: likewise, for its monotonic clock.
        counts: rare thing -> how often it happened.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.wall_s = 1_700_000_000.0
        self.monotonic_s = 1_000.0
        self.counts: Counter[str] = Counter()
        self.trace: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=TRACE_LINES)
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0

    def time(self) -> float:
        """Return the wall clock; stands in for `time.time` in greenroom.clock."""
        return self.now + self.wall_s

    def monotonic(self) -> float:
        """Return the monotonic clock; stands in for `time.monotonic`."""
        return self.now + self.monotonic_s

    def after(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        """Have something happen later."""
        self.at(self.now + delay_s, call, *args)

    def at(self, when: float, call: Callable[..., None], *args: object) -> None:
        """Have something happen then; of things that are due at once, what was asked for first comes first."""
        self._order += 1
        heappush(self._heap, (when, self._order, call, args))

    def run(self, until: float, *, done: Callable[[], bool] | None = None) -> None:
        """Let time pass until then, or until `done` says so."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, args = heappop(heap)
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation("the run never comes to an end")
            call(*args)
            if done is not None and done():
                return
        self.now = max(self.now, until)

    def note(self, *what: object) -> None:
        """Remember what happened, for the trace of a failure."""
        self.trace.append((self.now, what))

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return self.rng.random() < probability

    def story(self) -> str:
        """Return the last events, one a line."""
        return "\n".join(f"{at:10.4f}  {' '.join(_short(word) for word in what)}" for at, what in self.trace)


def _short(word: object) -> str:
    text = word if isinstance(word, str) else repr(word)
    return text if len(text) <= WORD_CHARACTERS else text[:WORD_CHARACTERS - 1] + "…"


class Sleep:
    """A process that may stand still: what happens to it meanwhile is put off, and done in order when it goes on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._until = 0.0
        self._put_off: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def begin(self, seconds: float) -> None:
        """Stand still for so long, or as long as it did anyway."""
        until = self._world.now + seconds
        if until > self._until:
            self._until = until
            self._world.at(until, self._wake)

    def end(self) -> None:
        """Go on now."""
        self._until = self._world.now
        self._wake()

    def puts_off(self, call: Callable[..., None], *args: object) -> bool:
        """Put something off while the process stands still; returns whether it did."""
        if self._world.now >= self._until and not self._put_off:
            return False
        self._put_off.append((call, args))
        return True

    def _wake(self) -> None:
        if self._world.now < self._until:
            return
        put_off, self._put_off = self._put_off, []
        for call, args in put_off:
            call(*args)
