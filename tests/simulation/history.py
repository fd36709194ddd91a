"""What happened in a run, and the promises that it must keep: durability, one holder, fences, order of states, no invention.

Written against docs/protocol_v1.md, not against the engine's code. Some of it is told by the engine's hooks, some by what leaves
the broker, some by what clients receive. The numbers I1 … I18 are the invariants of docs/reliability.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from greenroom import suspects
from tests.core import FINISHED_LABELS, lease_end
from tests.simulation.blame import Blame
from tests.simulation.keyed import KeyHistory
from tests.simulation.world import Violation, World
from greenroom.errors import GreenroomError
from greenroom.job import FINISHED_STATES, Job, State
from greenroom.leases import Timing
from greenroom.records import Restored
from greenroom.sessions import Lease, Session

if TYPE_CHECKING:
    from tests.simulation.house import House, SimConversation
    from tests.simulation.planner import Planner

#: Reasons for a requeue that count as a crash of the worker.
CRASHES = ("lost", "expired", "crash")
#: Payloads of the jobs that schedules submit begin so.
SCHEDULED = b"schedule "
#: Virtual times are floats.
EPSILON = 1e-6


class Spec(NamedTuple):
    """A job as its producer asked for it."""

    task: str
    queue: str
    priority: int
    run_at: float | None  # the producer's words, in the clock that the broker had then
    delay: float | None
    attempts: int = 5
    soft_timeout: float | None = None
    keep_for: float | None = None  # it asked how long it is kept


class Ended(NamedTuple):
    """A finished job as somebody was told."""

    state: str
    result: bytes | None
    finished_at: float


class History:
    """See the module."""

    def __init__(self, world: World, house: House, timing: Timing) -> None:
        self.world = world
        self.house = house
        self.timing = timing
        self.attempted: dict[bytes, Spec] = {}  # payload, which is unique -> what was asked for
        self.told: dict[int, bytes] = {}  # job -> payload: a client was told that it is accepted
        self.payloads: dict[int, bytes] = {}  # job -> payload, of all that the broker took in
        self.cancelled: set[int] = set()  # somebody was told that these are cancelled, or will be
        self.ended: dict[int, Ended] = {}  # somebody was told how these ended
        self.settles: Counter[tuple[int, int, str]] = Counter()  # (job, fence, outcome) -> how often it was sent
        self.kept: list[tuple[int, int]] = []  # leases that a broker held when it stopped in order
        self.may_be_gone: set[int] = set()  # somebody wants these finished jobs deleted
        self.deleted: set[int] = set()  # … and was told that they are
        self._asked_after: dict[tuple[SimConversation, int], set[int]] = {}  # get -> jobs that were told to be deleted before
        self.lines: dict[int, list[str]] = {}  # job -> lines that its workers were told to be on disk
        self.latest_now = 0.0  # the highest that the broker's clock ever was
        self.delivered: set[tuple[int, int]] = set()  # (job, fence) that left in a delivery
        self._fences: dict[int, int] = {}  # job -> highest fence that left
        self._attempts: dict[int, int] = {}  # job -> attempt, in this life of the broker
        self._attempts_before: dict[int, int] = {}  # … and the highest of earlier lives
        self._granted_at: dict[tuple[int, int], float] = {}
        self._granted_payloads: dict[tuple[int, int], bytes] = {}
        self._extended: dict[tuple[int, int], float] = {}
        self._requeued: dict[tuple[int, int], str] = {}  # (job, fence) -> why its lease ended
        self._forgiven: list[tuple[float, float]] = []  # (when, how much)
        self._returns: dict[bytes, str] = {}  # instance -> how it comes back, while its hello is handled
        self._fell_due: set[int] = set()
        self._variants: dict[bytes, list[tuple[str, int]]] = {}  # payload -> (queue, priority) that somebody gave its job, in order
        self._told_priority: dict[int, int] = {}  # job -> priority of the latest change that was told
        self._limits: dict[str, dict] = {}  # queue -> the latest request about its limit
        self._told_limits: dict[str, dict] = {}  # … if it was told that this limit holds
        self._started_at = 0.0
        self._message: dict = {}
        self.blame = Blame(house)
        self.keys = KeyHistory(world)
        self.planner: Planner | None = None  # who keeps schedules, if this run has any
        house.store.on_pruned = self.pruned

    # -- what the broker does -----------------------------------------------------------------------------------------------

    def note_spec(self, item: dict, delay: float | None) -> None:
        """A producer is about to ask for this job."""
        self.attempted[item["payload"]] = Spec(item["task"], item["queue"], item["priority"], None, delay)

    def accepted(self, job: Job) -> None:
        """A job was taken in: as it was asked for (I2)."""
        spec = self._is_as_asked(job.payload, job.task, job.queue, job.priority)
        due = spec.run_at if spec.delay is None else self.house.now + spec.delay
        if job.run_at != due:
            raise Violation(f"I15: {job} is for {job.run_at}, was for {due}")
        self._check_limit(job)
        self.payloads[job.id] = job.payload
        self.keys.accepted(job)
        if job.state is State.QUEUED:
            self.falls_due(job)

    def _check_limit(self, job: Job) -> None:
        """No submit lets a queue hold more than its limit allows for a job of that priority (Q1)."""
        limited = job.lane.limited
        if limited is None:
            return
        limit = limited.limit
        most = ((limit.most_jobs, limit.most_bytes) if limit.urgent is not None and job.priority <= limit.urgent else (limit.jobs, limit.bytes))
        for waiting, bound, soft in zip((limited.waiting, limited.waiting_bytes), most, (limit.jobs, limit.bytes)):
            if bound is not None and waiting > bound:
                raise Violation(f"Q1: {job} was taken in, and {waiting} wait under {limit}")
            self.world.counts["an urgent job passes the limit"] += soft is not None and waiting > soft

    def _answered_limit(self, message: dict, answer: dict) -> None:
        """A limit that was told is on disk, unless something came after it (I1)."""
        self.world.counts["limit"] += 1
        queue = message["queue"]
        if self._limits[queue] is message and queue not in self.house.store.committed_limits():
            raise Violation(f"I1: the limit of {queue} was told before its row")
        if self._limits[queue] is message:
            self._told_limits[queue] = message

    def changed(self, job: Job) -> None:
        """A waiting job is being changed, and goes to where it waits now."""
        if job.state is State.QUEUED:
            self.world.counts["a queued job is changed"] += 1
            if job.id not in self._fell_due:
                self.falls_due(job)
        else:
            self._fell_due.discard(job.id)
        self.world.note("change", job, job.priority)
        self._variants.setdefault(self.payloads[job.id], []).append((job.queue, job.priority))

    def replaced(self, job: Job, payload: bytes) -> None:
        """A duplicate gave its payload to a job that waits: from now on it is that of the job, whoever changed it how before."""
        self._variants.setdefault(payload, []).extend([*self._variants.get(self.payloads[job.id], []), (job.queue, job.priority)])
        self.payloads[job.id] = payload

    def _answered_change(self, message: dict, answer: dict) -> None:
        for job_id, told in zip(message["jobs"], answer["outcomes"]):
            if told == "changed" and "priority" in message:
                self._told_priority[job_id] = message["priority"]

    def _answered_bulk(self, message: dict, answer: dict) -> None:
        self.world.counts["changed in bulk"] += answer["done"]
        if answer["done"] + answer["refused"] != answer["matched"]:
            raise Violation(f"I1: a bulk change left some out: {answer}")

    def _answered_purge(self, message: dict, answer: dict) -> None:
        self.world.counts["purge"] += 1

    def _answered_explain(self, message: dict, answer: dict) -> None:
        """What does not run has a reason, and what runs or is over says so (docs/protocol_v1.md, `explain`)."""
        if "job" not in message:
            return
        codes = [gate["code"] for gate in answer["gates"]]
        first = {"scheduled": "not_due", "running": "running"}.get(answer["state"], "finished" if answer["state"] in FINISHED_LABELS else None)
        if not codes or (first is not None and codes[0] != first) or (answer["ahead"] is None) != (answer["state"] != "queued"):
            raise Violation(f"an explanation does not fit the job's state: {answer}")
        if answer["ahead"] and "behind" not in codes:
            raise Violation(f"jobs come before it, and nothing says so: {answer}")
        for code in codes:
            self.world.counts["explained: " + code] += 1

    def _check_changes(self, rows: dict[int, Job]) -> None:
        """A change that was told is kept, or another came after it (I1)."""
        for job_id, priority in self._told_priority.items():
            if job_id in self.may_be_gone and job_id not in rows:
                continue
            variants = self._variants[self.payloads[job_id]]
            first = next(place for place, variant in enumerate(variants) if variant[1] == priority)
            if (rows[job_id].queue, rows[job_id].priority) not in variants[first:]:
                raise Violation(f"I1: the change of {rows[job_id]} to priority {priority} is forgotten")

    def falls_due(self, job: Job) -> None:
        """A job is queued for the first time: not before its time (I15). A clock that is set back later changes nothing."""
        if job.run_at is not None and job.run_at > self.house.now + EPSILON:
            raise Violation(f"I15: {job} is queued {job.run_at - self.house.now} s early")
        self._fell_due.add(job.id)

    def _is_as_asked(self, payload: bytes | None, task: str, queue: str, priority: int) -> Spec:
        spec = self.attempted.get(payload)
        if spec is None:
            raise Violation(f"I2: nobody submitted {payload!r}")
        known = self._variants.get(payload, [])
        if (spec.task, spec.queue, spec.priority) != (task, queue, priority) and (spec.task != task or (queue, priority) not in known):
            raise Violation(f"I2: {payload!r} is {task} {queue} {priority}, was {spec}")
        return spec

    def granted(self, job: Job, session: Session, now: float) -> None:
        """A lease was given: nobody has heard that this job is over (I6, I16), it is due (I15), its attempt is the next (I11)."""
        self.world.note("grant", job, f"fence {job.fence}", session.name)
        if job.id in self.cancelled:
            raise Violation(f"I16: {job} was granted after its cancel was confirmed")
        if job.id in self.ended:
            raise Violation(f"I6: {job} was granted after it ended")
        if job.attempt == 1 and job.expires_at is not None and job.expires_at <= now:
            raise Violation(f"I15: {job} was granted {now - job.expires_at} s after it had expired")
        if job.id not in self._fell_due:
            raise Violation(f"I15: {job} was granted, and never fell due")
        if job.rank != job.priority * 2**53 + job.place:
            raise Violation(f"I13: {job} of priority {job.priority} and place {job.place} has rank {job.rank}")
        known = self._attempts.get(job.id)
        highest = self._attempts_before.get(job.id, 0)
        if job.attempt != known + 1 if known is not None else not 1 <= job.attempt <= highest + 1:
            raise Violation(f"I11: {job} is at attempt {job.attempt} after {known} (before the restart {highest})")
        self.keys.granted(job, self.payloads[job.id])
        self._granted_payloads[job.id, job.fence] = job.payload
        self._attempts[job.id] = job.attempt
        self._granted_at[job.id, job.fence] = now
        self.blame.granted(job)

    def heard_line(self, job_id: int, text: str) -> None:
        """A worker was told that a line is in the log of its job."""
        self.lines.setdefault(job_id, []).append(text)
        self.world.counts["line acknowledged"] += 1

    def check_lines(self, job_id: int, told: list[str], answer: dict | None) -> None:
        """A log was read: what was acknowledged before it was asked for is there (I1), numbered in order, unless the job is gone."""
        if answer is None or "error" in answer or job_id in self.may_be_gone:
            return
        numbers = [line[0] for line in answer["lines"]]
        if numbers != sorted(set(numbers)):
            raise Violation(f"the lines of job {job_id} are out of order: {numbers}")
        missing = set(told) - {line[3] for line in answer["lines"]}
        if missing:
            raise Violation(f"I1: the lines {sorted(missing)} of job {job_id} were acknowledged and are not there")
        self.world.counts["log read"] += bool(told)

    def deleting(self, job_id: int, row: Job) -> None:
        """Somebody deletes a job: only a finished one, and none that was deleted before."""
        if row.state not in FINISHED_STATES:
            raise Violation(f"I1: {row} is deleted, and not finished")
        if job_id in self.deleted:
            raise Violation(f"I1: job {job_id} was deleted and is there to be deleted again")
        self.may_be_gone.add(job_id)
        self.world.counts["deleted"] += 1

    def _answered_delete(self, message: dict, answer: dict) -> None:
        self.deleted.update(job_id for job_id, told in zip(message["jobs"], answer["outcomes"]) if told == "deleted")

    def pruned(self, now: float, gone: list[Job], is_all: bool) -> None:
        """Jobs go because they asked to be kept no longer: none before its time, and with the last of them nothing is left that is due (K1)."""
        for row in gone:
            spec = self.attempted[row.payload]
            if row.state not in FINISHED_STATES or spec.keep_for is None or row.finished_at + spec.keep_for > now + EPSILON:
                raise Violation(f"K1: {row} of {spec}, finished at {row.finished_at}, is gone at {now}")
            self.may_be_gone.add(row.id)
            self.world.counts["kept no longer"] += 1
        if is_all:
            for row in self.house.store._jobs.values():
                keep_for = self.attempted[row.payload].keep_for if row.payload in self.attempted else None
                if keep_for is not None and row.state in FINISHED_STATES and row.finished_at + keep_for < now - EPSILON:
                    raise Violation(f"K1: {row} was to go at {row.finished_at + keep_for} and is there at {now}")

    def retried(self, job_id: int) -> None:
        """Somebody lets a job that had ended run again; answers that tell of its end may still be on their way."""
        self.world.counts["retried"] += 1
        self.blame.retried(job_id)
        self.ended.pop(job_id, None)
        self.cancelled.discard(job_id)
        self._fell_due.add(job_id)

    def requeued(self, job: Job, lease: Lease, now: float, reason: str) -> None:
        """A lease is about to end: not before its time (I9)."""
        self.world.note("requeue", job, f"fence {lease.fence}", reason)
        self.world.counts["requeue: " + reason] += 1
        timing = self.timing
        conn: SimConversation | None = lease.session.conn
        if reason == "expired":
            since = self._extended.get((job.id, lease.fence)) if lease.deadline is not None else None
            if since is not None:
                due = self._forgiven_since(since[0], since[1])
            else:
                heard = max(conn.heard_at, self._granted_at.get((job.id, lease.fence), 0.0))
                due = self._forgiven_since(heard, heard + timing.lease_s)
        elif reason == "lost" and conn is None:
            due = self._forgiven_since(self._started_at, self._started_at + timing.restart_grace_s)
        elif reason == "lost":
            if conn.ended_at is None:
                raise Violation(f"I9: {job} was lost, but its connection lives")
            due = self._forgiven_since(conn.ended_at, conn.ended_at + timing.reconnect_grace_s)
        else:
            self._is_asked_for(job, lease, reason)
            due = now
        if now < due - EPSILON:
            raise Violation(f"I9: {job} went back ({reason}) {due - now} s early")
        self._requeued[job.id, lease.fence] = reason

    def _forgiven_since(self, since: float, due: float) -> float:
        return due + sum(late_s for at, late_s in self._forgiven if at - late_s >= since - EPSILON)

    def _is_asked_for(self, job: Job, lease: Lease, reason: str) -> None:
        conn: SimConversation | None = lease.session.conn
        verb = self._message.get("verb")
        is_fine = {
            "nack": lambda: self.settles[job.id, lease.fence, "nack"] > 0,
            "unbegun": lambda: self.settles[job.id, lease.fence, "nack"] > 0,
            "crash": lambda: self.settles[job.id, lease.fence, "crash"] > 0,
            "never arrived": lambda: conn.beats >= 2 and [job.id, lease.fence] not in self._message["leases"],
            "not presented": lambda: verb == "hello" and [job.id, lease.fence] not in self._message.get("leases", []),
            "bye": lambda: conn._said_bye,
        }.get(reason)
        if is_fine is not None and not is_fine():
            raise Violation(f"I9: {job} went back ({reason}), and nobody asked for that")

    def told_to_stop(self, job_id: int, fence: int) -> None:
        """A worker is told that a run is over its soft limit: not before it is (I9)."""
        self.world.counts["soft limit told"] += 1
        limit_s = self.attempted[self.payloads[job_id]].soft_timeout
        if limit_s is None:
            raise Violation(f"I9: job {job_id} has no soft limit, and its run is told to stop")
        since = self._granted_at.get((job_id, fence))
        if since is not None and self.house.now < self._forgiven_since(since, since + limit_s) - EPSILON:
            raise Violation(f"I9: the run of job {job_id} is told to stop after {self.house.now - since} s of {limit_s}")

    def _check_soft_limit(self, lease: Lease, now: float) -> None:
        """A run over its soft limit was told so (I10)."""
        limit_s = self.attempted[self.payloads[lease.job.id]].soft_timeout
        since = self._granted_at.get((lease.job.id, lease.fence))
        wait_s = suspects.SUSPECT_WAIT_S if lease.job.crashes else 0.0  # until it is alone in its worker
        if limit_s is None or since is None:
            return
        # The whole of a stall, also for what was granted at its end before it was noticed.
        forgiven_s = sum(late_s for at, late_s in self._forgiven if at >= since - EPSILON)
        if since + limit_s + wait_s + forgiven_s > now - 1.0:
            return
        if lease.limits is None or not lease.limits.is_told:
            raise Violation(f"I10: the run of {lease.job} goes on {now - since} s after it began, its soft limit is {limit_s}, and nobody was told")

    def was_requeued(self, job: Job, crashes: int, place: int, reason: str) -> None:
        """A lease has ended: crashes count once (I11), the place stays (I13), a cancelled job does not come back (I16)."""
        if job.crashes != crashes + (reason in CRASHES):
            raise Violation(f"I11: {job} has {job.crashes} crashes after {crashes} and {reason}")
        if reason in CRASHES:
            self.blame.crashed(job)
        if job.place != place:
            raise Violation(f"I13: {job} lost its place")
        if job.cancel_requested and job.state is not State.CANCELLED:
            raise Violation(f"I16: {job} came back although it is cancelled")
        if job.lease is not None:
            raise Violation(f"I4: {job} went back and still has a lease")

    def finished(self, job: Job) -> None:
        """A job reached a final state: it has no lease any more (I4)."""
        self.world.note("finish", job, f"fence {job.fence}")
        if job.lease is not None:
            raise Violation(f"I4: {job} is over and still has a lease")
        if job.state is State.COMPLETED and not self.settles[job.id, job.fence, "ack"]:
            raise Violation(f"I2: {job} is completed, nobody acked it under fence {job.fence}")
        self.world.counts["too many crashes"] += job.state is State.FAILED and (job.error or {}).get("name") == "CrashLoop"

    def forgave(self, late_s: float) -> None:
        """The broker stood still so long, and gives workers as much."""
        self._forgiven.append((self.house.now, late_s))

    def ticked(self) -> None:
        """After a tick nobody is late (I10)."""
        now = self.house.now
        self.latest_now = max(self.latest_now, now)
        for session in self.house.engine.sessions.values():
            if session.grace_until is not None and session.grace_until <= now and not session.leases:
                raise Violation(f"I10: {session.name} is gone and not given up")
            for lease in session.leases.values():
                if session.grace_until is None and lease_end(self.house, lease) <= now - 1.0:
                    raise Violation(f"I10: the lease of {lease.job} ended {now - lease_end(self.house, lease)} s ago")
                if session.grace_until is None:
                    self._check_soft_limit(lease, now)

    def committed(self, rows: int) -> None:
        """A COMMIT of so many rows returned."""
        counts = self.world.counts
        counts["a COMMIT of one row"] += rows == 1
        counts["a COMMIT of hundreds"] += rows >= 100
        counts["a COMMIT of thousands"] += rows >= 1000

    def crashed(self) -> None:
        """The process ended: what is only in memory is forgotten."""
        for job_id, attempt in self._attempts.items():
            self._attempts_before[job_id] = max(attempt, self._attempts_before.get(job_id, 0))
        self._attempts.clear()
        self._granted_at.clear()
        self._granted_payloads.clear()
        self._extended.clear()
        self.house.fences = dict(self._fences)  # a number that nobody saw may be given again
        self._forgiven.clear()
        rows = self.house.store._jobs
        self.blame.broker_died(rows)
        self.payloads = {job_id: payload if job_id not in self.keys.orders else rows[job_id].payload
                         for job_id, payload in self.payloads.items() if job_id in rows}
        self._fell_due.update(job_id for job_id, row in rows.items() if row.state is State.QUEUED)

    def restarted(self, restored: Restored) -> None:
        """The broker is back: what was told is on its disk (I1, I6, I16)."""
        self._started_at = self.house.now
        self.latest_now = max(self.latest_now, self._started_at)
        self.world.counts["leases at a restart"] += bool(restored.leases)
        there = {(lease.job.id, lease.fence) for lease in restored.leases}
        if not there.issuperset(self.kept):
            raise Violation(f"I10: the broker stopped in order with the leases {self.kept}, and starts with {there}")
        self.kept = []
        limits = {limit.queue: (limit.jobs, limit.bytes, limit.urgent) for limit in restored.limits}
        for queue, told in self._told_limits.items():
            if limits.get(queue) != (told.get("jobs"), told.get("bytes"), told.get("urgent")):
                raise Violation(f"I1: the limit {told} was told, and after the restart it is {limits.get(queue)}")
        for job in restored.cancelled:
            self.world.counts["cancelled by a restart"] += 1
            self.world.note("restart cancels", job)
        self._check_rows(self.house.store._jobs)
        self._check_schedules()

    def _check_schedules(self) -> None:
        if self.planner is not None:
            store = self.house.store
            self.planner.check(store._schedules.values(), store._jobs.values(), self.world.counts)

    def check_kept(self) -> None:
        """What was told is so still (I1, I6)."""
        self._check_rows(self.house.newest())

    def _check_rows(self, rows: dict[int, Job]) -> None:
        for job_id, payload in self.told.items():
            row = rows.get(job_id)
            if row is None and job_id in self.may_be_gone:
                continue
            if row is None:
                raise Violation(f"I1: job {job_id} was accepted and is gone")
            if row.payload is not None and row.payload != payload and job_id not in self.keys.orders:
                raise Violation(f"I2: job {job_id} has payload {row.payload!r}, was {payload!r}")
        self.keys.check(rows)
        back = self.deleted & rows.keys()
        if back:
            raise Violation(f"I1: the jobs {sorted(back)} were deleted and are there")
        gone = self.may_be_gone - rows.keys()
        for job_id, ended in self.ended.items():
            if job_id in gone:
                continue
            row = rows[job_id]
            if (row.state.label, row.finished_at) != (ended.state, ended.finished_at):
                raise Violation(f"I6: {row} was told to be {ended}")
        self._check_changes(rows)
        for job_id in self.cancelled - gone:
            row = rows[job_id]
            if row.state not in FINISHED_STATES and not row.cancel_requested:
                raise Violation(f"I16: the cancel of {row} is forgotten")

    # -- what it hears and says ---------------------------------------------------------------------------------------------

    def handling(self, conversation: SimConversation, message: dict) -> None:
        """The broker begins with a request."""
        self._message = message
        verb = message["verb"]
        if verb == "get":
            self._asked_after[conversation, message["id"]] = self.deleted.intersection(message["jobs"])
        elif verb == "settle":
            for job_id, fence, outcome, *_ in message["leases"]:
                self.settles[job_id, fence, outcome] += 1
        elif verb in ("limit", "unlimit"):
            self._limits[message["queue"]] = message
            self._told_limits.pop(message["queue"], None)
        elif verb == "extend":
            for job_id, fence in message["leases"]:
                self._extended[job_id, fence] = (self.house.now, self.house.now + message["for"])
        elif verb == "hello" and message.get("leases"):
            earlier = self.house.engine._instances.get(message["instance"])
            if earlier is not None:
                self._returns[message["instance"]] = ("resume after a restart" if earlier.key < 0 else "lease taken over"
                                                      if earlier.grace_until is None else "resume in grace")

    def refused(self, conversation: SimConversation, message: dict | None, error: GreenroomError) -> None:
        """An error leaves."""
        self.world.counts[error.code] += 1
        self.world.note("refused", message and message["verb"], error.code, error.message)
        if error.code in ("INVALID", "UNKNOWN_VERB", "PROTOCOL_ERROR", "DENIED", "VERSION", "TOO_LARGE"):
            raise Violation(f"a good request was answered {error!r}: {message}")

    def answered(self, conversation: SimConversation, message: dict, answer: dict) -> None:
        """An answer leaves."""
        for shown in answer["jobs"] if message["verb"] == "get" else ():
            was_deleted = shown["id"] in self._asked_after.get((conversation, message["id"]), ())
            if was_deleted and ("state" in shown or shown["error"]["code"] != "GONE"):
                raise Violation(f"I1: job {shown['id']} was deleted and is {shown}")
            self.world.counts["deleted job asked for"] += was_deleted
        look = getattr(self, "_answered_" + message["verb"], None)
        if look is not None:
            look(message, answer)

    def _answered_hello(self, message: dict, answer: dict) -> None:
        how = self._returns.pop(message.get("instance"), None)
        if how is not None and "OK" in answer["leases"]:
            self.world.counts[how] += 1

    def _answered_submit(self, message: dict, answer: dict) -> None:
        self.world.counts["submit repeated"] += bool(answer.get("repeated"))
        self.keys.answered(message["jobs"], answer["jobs"])

    def _answered_reserve(self, message: dict, answer: dict) -> None:
        """Each delivery is a new one, of a job as it was submitted (I2, I4, I5), and tells of its crashes (I12)."""
        for job_id, fence, task, payload, _, queue, _, priority, *crashes in answer["jobs"]:
            self.blame.delivered(job_id, fence, crashes)
            self._is_as_asked(payload, task, queue, priority)
            given = self._granted_payloads.get((job_id, fence))  # it may have come back since, and got another one
            if given != payload:
                raise Violation(f"I2: job {job_id} was delivered with {payload!r}, was granted with {given!r}")
            if (job_id, fence) in self.delivered:
                raise Violation(f"I5: job {job_id} was delivered twice under fence {fence}")
            if fence <= self._fences.get(job_id, 0):
                raise Violation(f"I5: job {job_id} was delivered under fence {fence} after {self._fences[job_id]}")
            self.delivered.add((job_id, fence))
            self._fences[job_id] = fence

    def _answered_settle(self, message: dict, answer: dict) -> None:
        """Only the latest lease settles (I5), and only a repetition is repeated (I7)."""
        for (job_id, fence, outcome, *rest), told in zip(message["leases"], answer["outcomes"]):
            key = job_id, fence, outcome
            if told == "OK":
                # One that is tried again may be out again before the answer, which waits for the other jobs of the settle.
                is_final = outcome == "ack" or rest[1:] == [{"retry": False}]
                if self._fences.get(job_id, 0) != fence and is_final:
                    raise Violation(f"I5: job {job_id} was settled under fence {fence}, the latest is {self._fences.get(job_id)}")
                self.world.counts["late settle accepted"] += (job_id, fence) in self._requeued and outcome in ("ack", "fail")
            elif told == "REPEATED":
                self.world.counts["settle repeated"] += 1
                if self.settles[key] < 2 and outcome == "ack":  # a fail may also meet a job that failed for too many crashes
                    raise Violation(f"I7: {key} was sent once and is answered REPEATED")
            else:
                self.world.counts["settle: " + told["code"]] += 1

    def _answered_cancel(self, message: dict, answer: dict) -> None:
        for job_id, told in zip(message["jobs"], answer["outcomes"]):
            if told in ("cancelled", "requested") and job_id not in self.house.retried:
                self.cancelled.add(job_id)
                self.world.counts["cancel of a running job"] += told == "requested"

    def _answered_get(self, message: dict, answer: dict) -> None:
        for shown in answer["jobs"]:
            if shown.get("state") in FINISHED_LABELS:
                self._see_end(shown)

    _answered_wait = _answered_jobs = _answered_get

    def _see_end(self, shown: dict) -> None:
        """A final state stays as it is, result and all (I6)."""
        if shown["result_bytes"] and shown["result"] is None:
            return
        now = Ended(shown["state"], shown["result"], shown["finished_at"])
        if shown["id"] in self.house.retried:
            return
        before = self.ended.setdefault(shown["id"], now)
        if before != now:
            raise Violation(f"I6: job {shown['id']} was {before} and is {now}")

    # -- what clients hear --------------------------------------------------------------------------------------------------

    def heard_accepted(self, job_id: int, payload: bytes) -> None:
        """A client was told that its job is accepted, under this id (I1, I2)."""
        if self.told.setdefault(job_id, payload) != payload:
            raise Violation(f"I2: job {job_id} is told to be {payload!r} and {self.told[job_id]!r}")

    def at_the_end(self) -> None:
        """Everything is over: each job that was accepted is there, once, and ended (I1, I3)."""
        rows = self.house.store._jobs
        self._check_rows(rows)
        self._check_schedules()
        payloads = Counter(row.payload for row in rows.values())
        twice = [payload for payload, times in payloads.items() if times > 1 and not payload.startswith(SCHEDULED)]
        if twice:
            raise Violation(f"I8: {twice} were submitted once, and are there twice")
        for row in rows.values():
            if row.state not in FINISHED_STATES:
                raise Violation(f"L1: {row} is not finished")
            self._is_as_asked(row.payload, row.task, row.queue, row.priority)
            spec = self.attempted[row.payload]
            if row.failures > spec.attempts:
                raise Violation(f"I11: {row} failed {row.failures} times of {spec.attempts}")
            if row.crashes > row.attempt:
                raise Violation(f"I11: {row} crashed {row.crashes} times in {row.attempt} attempts")
