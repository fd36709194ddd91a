"""Who keeps schedules at the broker, and what must be true of them: on every disk that a broker starts from, a schedule has counted the
jobs that are there, no more and no fewer. So no planned run is lost or doubled, wherever the broker dies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tests.simulation.actors import QUEUES, TASKS, Actor
from tests.simulation.history import SCHEDULED, Spec
from tests.simulation.world import Violation
from greenroom.job import Job
from greenroom.records import StoredSchedule

if TYPE_CHECKING:
    from tests.simulation.run import Run

#: Each n-th seed has schedules.
PLANNED_EVERY = 4
#: What was sent on a connection that its sender left may take so long.
LAST_WORDS_S = 6.0


class Planner(Actor):
    """Makes some schedules, runs, pauses and resumes them, and pauses all at the end."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run, name)
        # Its own, so that it does not change what the other actors of a seed do.
        self.rng = random.Random(run.seed)
        self.confirmed: set[str] = set()  # the broker told that these are there
        self.is_ending = False
        self._may_pause_at = 0.0
        self._paused: set[str] = set()
        self._fields = [self._new(number) for number in range(3)]

    def _new(self, number: int) -> dict[str, object]:
        rng = self.rng
        payload = SCHEDULED + b"%d" % number
        job = {"task": rng.choice(TASKS), "queue": rng.choice(QUEUES), "priority": rng.choice([1, 5, 10]), "payload": payload,
               "encoding": "raw"}
        self.history.attempted[payload] = Spec(job["task"], job["queue"], job["priority"], None, None)
        overlap = rng.choice(["skip", "queue", "replace"])
        missed = rng.choice(["skip", "once", "all"]) if overlap == "queue" else rng.choice(["skip", "once"])
        return {"name": f"s{number}", "job": job, "every": rng.choice(["1s", "2s", "5s"]), "overlap": overlap, "missed": missed,
                "missed_max": 3}

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(0.5, self._step)

    @property
    def is_done(self) -> bool:
        """True when all schedules are known to be paused, or not to be there."""
        return len(self._paused) == len(self._fields)

    def end(self) -> None:
        """Pause all from now on, until that is confirmed; once what was sent before can't arrive any more."""
        self.is_ending = True
        self._may_pause_at = self.world.now + LAST_WORDS_S

    def _step(self) -> None:
        self.later(self.rng.expovariate(1.0), self._step)
        if not self.is_greeted:
            return
        if self.is_ending:
            for name in [fields["name"] for fields in self._fields if self.world.now > self._may_pause_at]:
                self.ask("schedule_pause", lambda answer, name=name: self._was_paused(name, answer), name=name, reason="the end")
            return
        fields = self.rng.choice(self._fields)
        verb = self.rng.choice(["schedule_put", "schedule_put", "schedule_run", "schedule_pause", "schedule_resume", "schedules"])
        if verb == "schedule_put":
            self.ask(verb, self._put, **fields)
        elif verb == "schedules":
            self.ask(verb, self._listed)
        elif fields["name"] in self.confirmed:
            self.ask(verb, lambda answer: None, name=fields["name"])

    def _put(self, answer: dict | None) -> None:
        if answer is not None and "schedule" in answer:
            self.confirmed.add(answer["schedule"]["name"])
            self.world.counts["schedule made"] += answer["created"]

    def _listed(self, answer: dict | None) -> None:
        if answer is not None and "schedules" in answer:
            names = [shown["name"] for shown in answer["schedules"]]
            if names != sorted(names) or not set(names) <= {fields["name"] for fields in self._fields}:
                raise Violation(f"a page of schedules is {names}")
            self.confirmed.update(names)

    def _was_paused(self, name: str, answer: dict | None) -> None:
        if answer is not None and ("schedule" in answer or answer["error"]["code"] == "NOT_FOUND"):
            self._paused.add(name)

    def check(self, schedules: Iterable[StoredSchedule], rows: Iterable[Job], counts: Counter[str]) -> None:
        """Compare a disk's schedules with its jobs: what was told is there, and each counts its jobs."""
        found = {schedule.name: schedule for schedule in schedules}
        if not self.confirmed <= found.keys():
            raise Violation(f"I1: the schedules {self.confirmed - found.keys()} were made and are gone")
        jobs = Counter(job.payload for job in rows if job.payload.startswith(SCHEDULED))
        for schedule in found.values():
            if jobs[schedule.payload] != schedule.runs:
                raise Violation(f"I8: {schedule.name} has counted {schedule.runs} runs, and {jobs[schedule.payload]} of its jobs are there")
            counts["schedule ran"] += schedule.runs > 0
            counts["schedule skipped"] += schedule.skipped > 0
