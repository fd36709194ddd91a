"""Who talks to the broker: producers, an administrator, one who steers; workers.py builds on it. They speak frames and know nothing inside.

What an actor hears goes to the history. Each resends what it must until it knows the outcome, as docs/protocol_v1.md says.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.network import Wire
from tests.simulation.world import Sleep, Violation
from greenroom.protocol import DEFAULT_LIMITS, FrameReader, encode_frame

if TYPE_CHECKING:
    from tests.simulation.run import Run

TASKS = ["a", "b", "c"]
QUEUES = ["q", "r"]
FILTERS = [(None, None), (None, None), (None, None), (["q"], None), (None, ["a", "b"]), (["q", "r"], ["c"]), (["r"], ["a"])]
#: An answer that does not come within this (and the wait asked for) will not come: connect again.
PATIENCE_S = 4.0
#: A client resends for so long, by the broker's clock: then the outcome of a submit may be forgotten.
RESEND_S = 590.0

#: The longest pause of a steerer.
STEERER_PAUSE_S = 4

Answer = Callable[[dict | None], None]


class Actor:
    """A client of the broker: one connection at a time, requests and their answers.

    Attributes:
        is_over: it does nothing any more. sleep: its process may stand still.
    """

    role = "client"

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.world = run.world
        self.rng = run.world.rng
        self.history = run.history
        self.name = name
        self.wire: Wire | None = None
        self.is_greeted = False
        self.is_over = False
        self.sleep = Sleep(run.world)
        self._reader = FrameReader(DEFAULT_LIMITS.frame)
        self._pending: dict[int, tuple[dict, Answer]] = {}
        self._last_id = 0

    # -- the connection -----------------------------------------------------------------------------------------------------

    def hello(self) -> dict[str, object]:
        """Return the fields of the greeting."""
        return {"version": 1, "role": self.role, "name": self.name}

    def connect(self) -> None:
        """Connect, or try again in a moment."""
        if self.is_over or self.wire is not None or self.sleep.puts_off(self.connect):
            return
        wire = self.run.connect(self)
        if wire is None:
            self.world.after(0.1 + self.rng.random(), self.connect)
            return
        self.wire = wire
        self._reader = FrameReader(DEFAULT_LIMITS.frame)
        self.ask("hello", self._hello_answered, **self.hello())

    def _hello_answered(self, answer: dict | None) -> None:
        if answer is None:
            return
        if "error" in answer:
            raise Violation(f"hello was answered {answer}")
        self.is_greeted = True
        self.greeted(answer)

    def greeted(self, answer: dict) -> None:
        """The broker knows us; go on."""

    def hang_up(self, *, quietly: bool = False) -> None:
        """Let go of the connection; `quietly`: without closing it, as who connects again from elsewhere."""
        wire, self.wire = self.wire, None
        self.is_greeted = False
        if wire is not None and not quietly:
            wire.close_up()
        pending, self._pending = self._pending, {}
        for _, answered in pending.values():
            answered(None)
        if not self.is_over:
            self.world.after(0.05 + self.rng.random() * 0.3, self.connect)

    def got(self, wire: Wire, data: bytes) -> None:
        """See End."""
        if wire is not self.wire or self.sleep.puts_off(self.got, wire, data):
            return
        for message in self._reader.feed(data):
            if "notice" in message:
                self.noticed(message)
                continue
            if not message["id"]:
                continue  # the last words of a broker that closes the connection
            sent, answered = self._pending.pop(message["id"])
            self.world.note(self.name, "hears", sent["verb"], message)
            answered(message)
            if wire is not self.wire:
                return
        if self._reader.failed is not None:
            raise Violation(f"{self.name} got what is no frame: {self._reader.failed}")

    def ended(self, wire: Wire) -> None:
        """See End."""
        if wire is self.wire and not self.sleep.puts_off(self.ended, wire):
            self.hang_up()

    def noticed(self, notice: dict) -> None:
        """A notice came."""

    def ask(self, verb: str, answered: Answer, **fields: object) -> None:
        """Send a request; `answered` gets the reply, or None if the connection ends first."""
        if self.wire is None:
            answered(None)
            return
        self._last_id += 1
        message = {"id": self._last_id, "verb": verb, **fields}
        self._pending[self._last_id] = message, answered
        self.wire.send_up(encode_frame(message))
        self.world.note(self.name, "asks", verb, {key: value for key, value in fields.items() if key != "jobs"})
        patience_s = PATIENCE_S + float(fields.get("wait", 0.0)) + self.run.slowness_s
        self.world.after(patience_s, self._lose_patience, self.wire, self._last_id)

    def _lose_patience(self, wire: Wire, request_id: int) -> None:
        if wire is self.wire and request_id in self._pending and not self.sleep.puts_off(self._lose_patience, wire, request_id):
            self.world.counts["no answer in time"] += 1
            self.hang_up()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Do something after a while, if there is anybody to do it."""
        self.world.after(delay_s, self._do, call)

    def _do(self, call: Callable[[], None]) -> None:
        if not self.is_over and not self.sleep.puts_off(self._do, call):
            call()


class Submission:
    """One submit, until its outcome is known. `ids` is None before."""

    def __init__(self, key: bytes | None, items: list[dict], sent_at: float) -> None:
        self.key = key
        self.items = items
        self.sent_at = sent_at
        self.ids: list[int] | None = None
        self.is_over = False


class Producer(Actor):
    """Submits jobs, resends until it knows, and now and then asks for, waits for or cancels one of its own."""

    def __init__(self, run: Run, name: str, submits: int) -> None:
        super().__init__(run, name)
        self.left = submits
        self.pace_s = run.pace_s
        self.submissions: list[Submission] = []
        self.ids: list[int] = []

    def greeted(self, answer: dict) -> None:
        """Resend what is open, and go on."""
        for submission in self.submissions:
            if submission.ids is None and not submission.is_over:
                if submission.key is None:
                    submission.is_over = True  # without an id it can't be asked again: it may be there or not
                else:
                    self._send(submission)

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(self.rng.random(), self._step)

    @property
    def is_done(self) -> bool:
        """True when it has nothing more to submit, and knows all outcomes."""
        return not self.left and all(submission.ids is not None or submission.is_over for submission in self.submissions)

    def _step(self) -> None:
        self.later(self.rng.expovariate(1 / self.pace_s), self._step)
        if not self.is_greeted:
            return
        draw = self.rng.random()
        if draw < 0.55 and self.left:
            self.left -= 1
            self._submit()
        elif draw < 0.55 + self.run.resends and self.submissions:
            self._resend()
        elif self.ids:
            self._look_after(self.rng.choice(self.ids[-self.rng.choice([3, 30]):]))

    def new_items(self) -> list[dict]:
        """Return the jobs of a submit."""
        return self.run.new_items()

    def _submit(self) -> None:
        key = self.rng.randbytes(16) if self.rng.random() < 0.8 else None
        submission = Submission(key, self.new_items(), self.run.house.now)
        self.submissions.append(submission)
        self._send(submission)
        if submission.key is not None and self.world.chance(self.run.duplicates):
            self._send(submission)

    def _resend(self) -> None:
        submission = self.rng.choice(self.submissions[-10:])
        if submission.key is None:
            return
        if self.rng.random() < 0.2 and self._is_remembered(submission):
            self.ask("submit", lambda answer: self._conflicted(submission, answer), jobs=self.run.new_items(),
                     submission=submission.key)
        else:
            self._send(submission)

    def _conflicted(self, submission: Submission, answer: dict | None) -> None:
        if answer is not None and "jobs" in answer and self._is_remembered(submission):
            raise Violation(f"I8: another body under the same id was answered {answer}")

    def _is_remembered(self, submission: Submission) -> bool:
        return submission.ids is not None and self.history.latest_now - submission.sent_at < RESEND_S

    def _send(self, submission: Submission) -> None:
        if self.history.latest_now - submission.sent_at >= RESEND_S:
            submission.is_over = True  # too late: the broker may have forgotten it
            return
        submission.sent_at = min(submission.sent_at, self.run.house.now)  # a clock may have been set back meanwhile
        fields = {"submission": submission.key} if submission.key is not None else {}
        self.ask("submit", lambda answer: self._submitted(submission, answer), jobs=submission.items, **fields)

    def _submitted(self, submission: Submission, answer: dict | None) -> None:
        if answer is None:
            return  # resent when we are greeted again
        if "error" in answer:
            code = answer["error"]["code"]
            if code == "KEY_CONFLICT":
                raise Violation(f"I8: the same body is told to be another: {answer}")
            if code != "UNKNOWN" and not submission.is_over and submission.ids is None:
                self.later(0.05 + self.rng.random(), lambda: self._again(submission))
            return
        if submission.ids is not None and submission.ids != answer["jobs"] and self._is_remembered(submission):
            raise Violation(f"I8: the same submit was answered {submission.ids} and {answer['jobs']}")
        if submission.ids is None:
            submission.ids = answer["jobs"]
            refused = []
            for job_id, item in zip(answer["jobs"], submission.items, strict=True):
                if isinstance(job_id, dict) and job_id.get("field") in ("queue", "payload"):
                    refused.append(item)
                elif isinstance(job_id, dict):
                    is_there = job_id["duplicate"] in self.history.house.newest()
                    is_told = job_id["state"] is not None
                    if "unique_key" not in item or not (is_there and is_told or job_id["duplicate"] in self.history.may_be_gone):
                        raise Violation(f"U1: {item} was answered {job_id}")
                    self.world.counts["duplicate"] += 1
                    continue
                if isinstance(job_id, int):
                    self.history.heard_accepted(job_id, item["payload"])
                    self.ids.append(job_id)
            if refused:  # their queue is full; they are submitted anew when there may be room
                self.world.counts["a job finds its queue full"] += len(refused)
                anew = Submission(self.rng.randbytes(16), refused, self.run.house.now)
                self.submissions.append(anew)
                self.later(0.3 + self.rng.random(), lambda: self._again(anew))

    def _again(self, submission: Submission) -> None:
        if submission.ids is None and not submission.is_over and self.is_greeted:
            self._send(submission)

    def _look_after(self, job_id: int) -> None:
        draw = self.rng.random()
        if draw < self.run.cancels:
            self.ask("cancel", _ignore, jobs=[job_id])
        elif draw < 0.6:
            self.ask("get", _ignore, jobs=[job_id], payload=self.rng.random() < 0.5)
        else:
            self.ask("wait", _ignore, jobs=[job_id], wait=self.rng.choice([0.0, 1.0, 8.0]))


def _ignore(answer: dict | None) -> None:
    """What there is to know of an answer, the history saw."""


class Admin(Actor):
    """Looks at lists and counts, cancels anything, and stops the broker now and then."""

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(1.0, self._step)

    def _step(self) -> None:
        self.later(self.rng.expovariate(1 / (4 * self.run.pace_s)), self._step)
        if not self.is_greeted:
            return
        if self.history.lines and self.rng.random() < 0.2:
            self._read_log(self.rng.choice(list(self.history.lines)))
            return
        verb = self.rng.choice(["stats", "queues", "workers", "jobs", "jobs", "jobs", "cancel", "retry", "delete", "runs", "ping"])
        known = list(self.history.told)
        if verb == "jobs":
            state = self.rng.choice([None, "running", "running", "queued", "completed"])
            self.ask("jobs", self._listed, limit=self.rng.choice([1, 5, 50]), **({"state": state} if state else {}))
        elif verb == "cancel":
            if known and self.rng.random() < self.run.cancels:
                self._cancel(self.rng.choice(known[-6:]))
        elif verb in ("retry", "delete", "runs"):
            if known:
                jobs = self.rng.sample(known, min(len(known), 3))
                self.ask(verb, _ignore, **({"job": jobs[0]} if verb == "runs" else {"jobs": jobs}))
                if verb == "delete":
                    self.ask("get", _ignore, jobs=jobs)
        else:
            self.ask(verb, _ignore)
        if self.world.chance(self.run.stops):
            self.run.house.stop()

    def _read_log(self, job_id: int) -> None:
        told = list(self.history.lines[job_id])
        self.ask("logs", lambda answer: self.history.check_lines(job_id, told, answer), job=job_id, wait=self.rng.choice([0.0, 2.0]))

    def _listed(self, answer: dict | None) -> None:
        if answer is not None and "jobs" in answer:
            ids = [shown["id"] for shown in answer["jobs"]]
            if ids != sorted(ids, reverse=True) or len(set(ids)) != len(ids):
                raise Violation(f"a page is out of order: {ids}")
            running = [shown["id"] for shown in answer["jobs"] if shown["state"] == "running"]
            if running and self.world.chance(self.run.cancels):
                self._cancel(running[0])

    def _cancel(self, job_id: int) -> None:
        self.ask("cancel", self._cancelled, jobs=[job_id])

    def _cancelled(self, answer: dict | None) -> None:
        """A cancel that was confirmed and not yet carried out is a good moment for the broker to die."""
        if answer is not None and answer.get("outcomes") == ["requested"] and self.world.chance(0.3):
            self.run.let_broker_die()


class Steerer(Actor):
    """Pauses and resumes, changes and purges what waits, and asks why it does. All its pauses end by themselves."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run, name)
        self.rng = Random(run.seed)

    def begin(self) -> None:
        """Connect and start."""
        self.connect()
        self.later(0.5, self._step)

    def _step(self) -> None:
        self.later(self.rng.expovariate(1 / self.run.pace_s), self._step)
        known = list(self.history.told)[-12:]
        if not self.is_greeted or not known:
            return
        target = self.rng.choice([{"queue": name} for name in QUEUES] + [{"task": name} for name in TASKS])
        verb = self.rng.choice(["pause", "resume", "pauses", "change", "change", "change", "bulk", "explain", "explain", "purge"])
        if verb == "pause":
            self.ask(verb, _ignore, **target, **{"for": self.rng.choice([1, 2, STEERER_PAUSE_S])}, reason="simulated")
        elif verb == "resume":
            self.ask(verb, _ignore, **target)
        elif verb == "pauses":
            self.ask(verb, _ignore)
        elif verb == "change":
            self.ask(verb, _ignore, jobs=self.rng.sample(known, min(len(known), 2)), **self._change())
        elif verb == "bulk":
            self.ask(verb, _ignore, action="change", filter={**target, "id_from": known[0]}, **self._change())
        elif verb == "explain":
            self.ask(verb, _ignore, **self.rng.choice([{"job": self.rng.choice(known)}, {"queue": self.rng.choice(QUEUES)}]))
        elif self.rng.random() < 0.1:
            self.ask(verb, _ignore, queue=self.rng.choice(QUEUES))

    def _change(self) -> dict[str, object]:
        return self.rng.choice([{"priority": 1}, {"priority": 10}, {"priority": 5, "queue": self.rng.choice(QUEUES)},
                                {"queue": self.rng.choice(QUEUES)}, {"delay": 0}, {"delay": 2.5, "priority": 1}])
