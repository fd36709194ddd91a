"""Workers: honest, slow, crashing, and zombies that stand still past their lease and then go on as if nothing was.

Every worker is the same program; what differs is its habits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.actors import FILTERS, Actor
from tests.simulation.world import Violation
from greenroom.suspects import Step, Suspects

if TYPE_CHECKING:
    from tests.simulation.run import Run


#: How often a worker reports before it settles.
REPORTS = 0.2

#: How often a worker looks whether the job that crashed before may begin, or has ended.
TEND_S = 0.1

#: A delivery of more jobs than this is worked on, and settled, as one.
TOGETHER = 20


class Habits(NamedTuple):
    """How a worker is."""

    kind: str
    slots: int = 2
    job_s: float = 0.3  # mean time of a job
    beats: bool = True  # it sends heartbeats
    lists: float = 0.9  # how often they list its leases
    crash_every_s: float = 0.0  # mean; 0: never
    pause_every_s: float = 0.0
    pause_s: float = 0.0
    extends: float = 0.0
    odd: float = 0.1  # share of jobs that end otherwise than by an ack
    has_instance: bool = True


class Held(NamedTuple):
    """A lease, as its worker knows it. `outcome`: how the job ended, None while it runs. `is_poison`: it kills its worker then."""

    fence: int
    outcome: list[object] | None
    is_poison: bool = False


class Worker(Actor):
    """See the module."""

    role = "worker"

    def __init__(self, run: Run, name: str, habits: Habits) -> None:
        super().__init__(run, name)
        self.habits = habits
        self.held: dict[int, Held] = {}
        self.instance = self.rng.randbytes(16)
        self.queues, self.tasks = self.rng.choice(FILTERS)
        self._is_reserving = False
        self._suspects = self._no_suspect()
        self._received: set[tuple[int, int]] = set()

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(self.run.timing.heartbeat_s, self._beat)
        for every_s, call in ((self.habits.crash_every_s, self._crash), (self.habits.pause_every_s, self._pause)):
            if every_s:
                self.later(self.rng.expovariate(1 / every_s), call)

    # -- the connection -----------------------------------------------------------------------------------------------------

    def hello(self) -> dict[str, object]:
        """Present what it holds, also what is done and not yet settled."""
        fields = super().hello()
        if self.habits.has_instance:
            fields.update(instance=self.instance, leases=[[job, held.fence] for job, held in self.held.items()])
        self._presented = list(self.held.items())
        return fields

    def greeted(self, answer: dict) -> None:
        """Drop what was lost, settle what is done, ask for more."""
        for (job, held), outcome in zip(self._presented, answer["leases"]):
            if outcome != "OK" and self.held.get(job) is not None and held.outcome is None:
                del self.held[job]  # what is done is settled all the same: a late settle may be taken
        self._is_reserving = False
        done = {job: held for job, held in self.held.items() if held.outcome is not None}
        if done:
            self._settle(done)
        for job, held in list(self.held.items()):
            if held.outcome is None and not self.habits.has_instance and self.rng.random() < 0.5:
                del self.held[job]
        self._reserve()

    def hang_up(self, *, quietly: bool = False) -> None:
        """See Actor."""
        self._is_reserving = False
        super().hang_up(quietly=quietly)

    def noticed(self, notice: dict) -> None:
        """A cancel: give up the job, sometimes. Over its soft limit it may also come to its end, or go on later."""
        if notice["notice"] == "cancel":
            is_soft = notice.get("reason") == "soft_timeout"
            self.world.counts["soft limit noticed" if is_soft else "cancel noticed"] += 1
            for job, fence in notice["leases"]:
                held = self.held.get(job)
                if held is not None and held.fence == fence and held.outcome is None and self.rng.random() < 0.5:
                    gives_up = ["fail", {"name": "Cancelled", "message": "", "traceback": ""}]
                    ways = [gives_up, ["snooze", 0.5], ["ack", b"in time", True]] if is_soft else [gives_up]
                    self._end([(job, self.rng.choice(ways))])

    # -- work ---------------------------------------------------------------------------------------------------------------

    def _reserve(self) -> None:
        free = self._suspects.most(self.habits.slots - len(self.held))
        if free <= 0 or not self.is_greeted or self._is_reserving or self.is_over:
            return
        self._is_reserving = True
        fields: dict[str, object] = {"n": free, "wait": self.rng.choice([0.0, 2.0, 10.0, 10.0])}
        if self.queues is not None:
            fields["queues"] = self.queues
        if self.tasks is not None:
            fields["tasks"] = self.tasks
        self.ask("reserve", self._delivered, **fields)

    def _delivered(self, answer: dict | None) -> None:
        if answer is None:
            return
        self._is_reserving = False
        if "error" in answer:
            self.later(0.1 + self.rng.random(), self._reserve)
            return
        leases, given_back = [], []
        for job, fence, _, payload, _, _, _, _, *crashes in answer["jobs"]:
            self._take(job, fence, payload)
            if not self._suspects.admit((job, fence), crashes[0] if crashes else 0, self.world.now):
                given_back.append((job, ["nack", False]))
            elif self._suspects.lease == (job, fence):
                self.later(0.0, self._tend_suspect)
            else:
                leases.append((job, fence))
        self._end(given_back)
        self._begin(leases)

    def _begin(self, leases: list[tuple[int, int]]) -> None:
        for some in [leases] if len(leases) > TOGETHER else [[lease] for lease in leases]:
            self.later(self.rng.expovariate(1 / self.habits.job_s), lambda some=some: self._finished(some))
        if self.habits.slots > len(self.held):
            self.later(0.01 if leases else 0.2, self._reserve)

    def _no_suspect(self) -> Suspects:
        # With a thousand slots, and a thousand jobs that were lost, one after the other takes too long: processes, say.
        return Suspects(are_kept_apart=not self.run.is_flood)

    def _tend_suspect(self) -> None:
        """Begin a job that crashed before once it is alone here, or give it back; go on when it has ended."""
        lease = self._suspects.lease
        held = {(job, known.fence) for job, known in self.held.items()}
        step = self._suspects.step(held, self.world.now, may_get_more=self._is_reserving)
        if step is Step.BEGIN:
            self.world.counts["a suspect begins beside others" if len(held) > 1 else "a suspect begins alone"] += 1
            self._begin([lease])
        elif step is Step.GIVE_BACK:
            self.world.counts["a suspect is given back"] += 1
            self._end([(lease[0], ["nack", False])])
        if self._suspects.lease is None:
            self._reserve()
        else:
            self.later(TEND_S, self._tend_suspect)

    def _take(self, job: int, fence: int, payload: bytes) -> None:
        if (job, fence) in self._received:
            raise Violation(f"I5: {self.name} got job {job} twice under fence {fence}")
        self._received.add((job, fence))
        known = self.held.get(job)
        if known is not None and known.fence >= fence:
            raise Violation(f"I5: {self.name} holds job {job} under {known.fence} and gets it under {fence}")
        self.held[job] = Held(fence, None, payload in self.history.blame.poison)
        if self.rng.random() < self.habits.extends:
            self.ask("extend", _nothing, leases=[[job, fence]], **{"for": self.rng.uniform(1.0, 10.0)})

    def _finished(self, leases: list[tuple[int, int]]) -> None:
        """These jobs have run, unless they were lost or given up meanwhile."""
        ended = []
        for job, fence in leases:
            held = self.held.get(job)
            if held is not None and held.fence == fence and held.outcome is None:
                if held.is_poison:
                    self.history.blame.worker_died(job, [(other, known.fence) for other, known in self.held.items()])
                    self._start_anew()
                    return
                ended.append((job, self._outcome(job, fence)))
        if self.rng.random() < REPORTS:
            self._report(leases)
        self._end(ended)

    def _report(self, leases: list[tuple[int, int]]) -> None:
        """Write a line to the log of each job; what is acknowledged must be read from then on."""
        items = [[job, fence, self.rng.random(), "half way", [[self.run.house.now, f"under {fence}"]]] for job, fence in leases]

        def answered(answer: dict | None) -> None:
            for (job, fence), outcome in zip(leases, answer.get("outcomes", ()) if answer is not None else ()):
                if outcome == "OK":
                    self.history.heard_line(job, f"under {fence}")

        self.ask("report", answered, leases=items)

    def _outcome(self, job: int, fence: int) -> list[object]:
        if self.rng.random() >= self.habits.odd:
            return ["ack", b"result of %d under %d" % (job, fence), True]
        failed = {"name": "Oops", "message": "it broke", "traceback": ""}
        return self.rng.choice([["fail", failed], ["fail", failed, {"retry": False}], ["snooze", self.rng.choice([0, 0.5, 3.0])],
                                ["nack"], ["nack", False], ["crash"]])

    def _end(self, ended: list[tuple[int, list[object]]]) -> None:
        for job, outcome in ended:
            self.held[job] = self.held[job]._replace(outcome=outcome)
        done = {job: self.held[job] for job, _ in ended}
        if done and self.is_greeted:
            self._settle(done)
            if self.world.chance(self.run.duplicates):
                self._settle(done)

    def _settle(self, done: dict[int, Held]) -> None:
        self.ask("settle", lambda answer: self._settled(done, answer),
                 leases=[[job, held.fence, *held.outcome] for job, held in done.items()])

    def _settled(self, done: dict[int, Held], answer: dict | None) -> None:
        left = {job: held for job, held in done.items() if self.held.get(job) == held}
        if answer is None or not left:
            return
        if "error" in answer:  # BUSY, say
            self.later(0.1 + self.rng.random(), lambda: self._settle_again(left))
            return
        for job in left:
            del self.held[job]
        self._reserve()

    def _settle_again(self, done: dict[int, Held]) -> None:
        left = {job: held for job, held in done.items() if self.held.get(job) == held}
        if left and self.is_greeted:
            self._settle(left)

    # -- signs of life, and their absence -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        self.later(self.run.timing.heartbeat_s, self._beat)
        if self.is_greeted and self.habits.beats:
            listed = {"leases": [[job, held.fence] for job, held in self.held.items()]}
            self.ask("heartbeat", self._beaten, **(listed if self.rng.random() < self.habits.lists else {}))

    def _beaten(self, answer: dict | None) -> None:
        if answer is None or "lost" not in answer:
            return
        for job, fence in answer["lost"]:
            held = self.held.get(job)
            if held is not None and held.fence == fence and held.outcome is None and self.habits.kind != "zombie":
                del self.held[job]
                self._reserve()

    def _crash(self) -> None:
        """The process dies and another one starts: nothing is known any more."""
        self.later(self.rng.expovariate(1 / self.habits.crash_every_s), self._crash)
        self._start_anew()

    def _start_anew(self) -> None:
        self.world.note(self.name, "crashes")
        self.world.counts["worker crash"] += 1
        self.held.clear()
        self._suspects = self._no_suspect()
        self.instance = self.rng.randbytes(16)
        if self.wire is not None and self.rng.random() < 0.3 and not self.run.is_healed:
            self.wire.up.is_lost = True  # the machine died: nobody is told
        self.hang_up()

    def _pause(self) -> None:
        """Stand still for longer than a lease."""
        self.later(self.rng.expovariate(1 / self.habits.pause_every_s), self._pause)
        self.world.note(self.name, "stands still")
        self.world.counts["worker stands still"] += 1
        self.sleep.begin(self.habits.pause_s * (0.5 + self.rng.random()))

    def come_again(self) -> None:
        """Connect anew while the old connection still seems to live."""
        if self.wire is not None and self.is_greeted:
            self.world.note(self.name, "connects again")
            self.hang_up(quietly=True)

    def leave(self) -> None:
        """Say bye, or just go."""
        if self.is_greeted and self.rng.random() < 0.5:
            self.ask("bye", _nothing)
        self.held.clear()
        self.is_over = True
        self.hang_up()


def _nothing(answer: dict | None) -> None:
    """Whatever the answer is, nothing follows from it."""
