"""Who limits queues, so that producers find them full; history.py watches that no submit passes a limit (Q1)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.simulation.actors import QUEUES, Actor
from tests.simulation.planner import LAST_WORDS_S

if TYPE_CHECKING:
    from tests.simulation.run import Run

#: In each n-th seed, others than those with a planner or a steerer, somebody limits queues.
LIMITED_EVERY = 8


class Limiter(Actor):
    """Limits queues, ends their limits, and ends them all at the end."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run, name)
        self.rng = Random(run.seed)
        self._ends_at: float | None = None
        self._ended: set[str] = set()

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(0.2, self._step)

    @property
    def is_done(self) -> bool:
        """True when all limits are known to be over."""
        return len(self._ended) == len(QUEUES)

    def end(self) -> None:
        """End all limits until that is confirmed; once what was sent before can't arrive any more."""
        self._ends_at = self.world.now + LAST_WORDS_S

    def _step(self) -> None:
        self.later(self.rng.expovariate(1 / (2 * self.run.pace_s)), self._step)
        if not self.is_greeted:
            return
        queue = self.rng.choice(QUEUES)
        if self._ends_at is not None:
            if self.world.now > self._ends_at:
                self.ask("unlimit", lambda answer: self._was_ended(queue, answer), queue=queue)
        elif self.rng.random() < 0.6:
            self.ask("limit", lambda answer: None, queue=queue, **self._limit(), reason="simulated")
        else:
            self.ask(self.rng.choice(["unlimit", "limits"]), lambda answer: None, queue=queue)

    def _limit(self) -> dict[str, object]:
        limit = self.rng.choice([{"jobs": 1}, {"jobs": 3}, {"jobs": 8}, {"bytes": 600}, {"jobs": 5, "bytes": 2000}])
        return {**limit, **self.rng.choice([{}, {"urgent": 1, "extra": 100}, {"urgent": 5, "extra": 40}])}

    def _was_ended(self, queue: str, answer: dict | None) -> None:
        if answer is not None and "removed" in answer:
            self._ended.add(queue)
