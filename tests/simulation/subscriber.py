"""Who wants to be told of everything that happens, and what must be true of it: nothing is told before it is on disk (house.py looks at
that), numbers leave nothing out without a gap that is told, and what is told of a job follows the table of moves.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.simulation.actors import Actor
from tests.simulation.world import Violation
from greenroom.events import KINDS
from greenroom.job import FINISHED_STATES, MOVES, STATE_BY_LABEL, State

if TYPE_CHECKING:
    from tests.simulation.run import Run

#: Each n-th seed has a subscriber; in every second of them the broker keeps few events.
SUBSCRIBED_EVERY = 4
FEW_EVENTS = 20
#: What leaves a job in its state.
STAYS = ("changed", "progress")


class Subscriber(Actor):
    """Listens, loses its connection now and then, and comes back where it was."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run, name)
        self.rng = random.Random(run.seed)  # its own, so that it does not change what the other actors of a seed do
        self._boot: str | None = None
        self._position = 0
        self._is_subscribed = self._is_asking = False
        self._states: dict[int, State] = {}  # what was told of each job last, since the last gap

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(1.0, self._step)

    def greeted(self, answer: dict) -> None:
        """Subscribe, where it was."""
        self._is_subscribed, self._is_asking = False, True
        position = {} if self._boot is None else {"boot": self._boot, "after": self._position}
        self.ask("subscribe", self._subscribed, kinds=list(KINDS), **position)

    def _subscribed(self, answer: dict | None) -> None:
        self._is_asking = False
        if answer is None or "error" in answer:
            return  # connected again, or asked again in the next step
        is_same = answer["boot"] == self._boot
        if is_same and not answer["gap"] and answer["position"] != self._position:
            raise Violation(f"E2: subscribed after {self._position}, and told to be at {answer['position']}")
        if self._boot is not None and not is_same and not answer["gap"]:
            raise Violation("E2: the broker started anew, and no gap is told")
        if answer["gap"] or not is_same:
            self._states.clear()
        self.world.counts["gap of events"] += answer["gap"]
        self.world.counts["subscribed again without a gap"] += is_same and not answer["gap"]
        self._boot, self._position = answer["boot"], answer["position"]
        self._is_subscribed = True

    def _step(self) -> None:
        self.later(self.rng.expovariate(0.7), self._step)
        if not self.is_greeted:
            return
        if not self._is_subscribed and not self._is_asking:
            self.greeted({})
        elif self.rng.random() < 0.15:
            self.hang_up()
        else:
            self.ask("ping", lambda answer: None)

    def noticed(self, notice: dict) -> None:
        """Look at what is told."""
        if notice["notice"] != "events":
            return
        if notice["gap"]:
            self.world.counts["gap of a slow subscriber"] += 1
            self._position = notice["oldest"] - 1
            self._states.clear()
        for event in notice["events"]:
            if event["seq"] != self._position + 1:
                raise Violation(f"E2: event {event['seq']} follows {self._position}, and no gap is told")
            self._position = event["seq"]
            self.world.counts[f"event: {event['kind']}"] += 1
            if "job" in event:
                self._follow(event)
        if notice["position"] != self._position:
            raise Violation(f"E2: the position is {notice['position']} after event {self._position}")

    def _follow(self, event: dict) -> None:
        job_id, state = event["job"], STATE_BY_LABEL[event["state"]]
        before = self._states.get(job_id)
        if event["kind"] == "submitted":
            is_right = before is None
        else:
            is_right = before is None or state in MOVES[before] or (state is before and event["kind"] in STAYS)
        if not is_right:
            raise Violation(f"E3: job {job_id} is told to be {event['kind']} ({event['state']}) after {before}")
        self._states[job_id] = state

    def check_end(self) -> None:
        """Everything is over: it was told of every end, as far as it heard."""
        log = self.run.house.batches.events
        if self._is_subscribed and (self._boot, self._position) == (log.boot, log.visible):
            self.world.counts["told to the end"] += 1
            open_jobs = [job_id for job_id, state in self._states.items() if state not in FINISHED_STATES]
            if open_jobs:
                raise Violation(f"E4: nothing was told of the end of {open_jobs}")
