"""Engine, batches and a memory store driven in virtual time, without gevent: what dispatch and sessions do, for tests.

`Core` runs the cycle and can crash; `Peer` speaks for a client or worker and records what it is told, checking the commit rule
with each answer; `check` recounts everything. It knows nothing of frames and sockets.
"""

from __future__ import annotations

from typing import NamedTuple

from greenroom.batches import Batches
from greenroom.clock import FakeClock
from greenroom.engine import Engine
from greenroom.errors import GreenroomError
from greenroom.job import FINISHED_STATES, Extras, Job, JobOptions, NewJob, State
from greenroom.keeping import asks_for_long
from greenroom.lanes import Lane, Window
from greenroom.leases import CHECKPOINT_AFTER_S, Caps, Timing
from greenroom.records import Lost, ReportItem, SettleItem, Submission
from greenroom.sessions import Lease, Parked, Session
from greenroom.stores import Retention
from greenroom.waits import LinesWait, Wait, Waits
from tests.crash_store import CrashStore
from tests.steering import Steering

FINISHED_LABELS = frozenset(state.label for state in FINISHED_STATES)
NAMELESS = {"name": "Oops", "message": "it broke", "traceback": ""}


def new_job(task: str = "t", payload: bytes = b"x", *, queue: str = "q", priority: int = 5, delay: float | None = None,
            run_at: float | None = None, **extras: object) -> NewJob:
    """Return a checked job of a submit; `extras` are those of job.Extras."""
    return NewJob(JobOptions(task, False, queue, priority, run_at, delay, Extras(**extras) if extras else None), payload)


class CheckedEngine(Engine):
    """The engine, with each grant and each empty answer compared with all jobs there are."""

    core: Watched

    def _grant(self, jobs: list[Job], lane: Lane, session: Session, now: float) -> None:
        waiting = self._fitting(session) if self.core.looks_closely() else None
        for job in jobs:
            if waiting is not None:
                best = min(waiting.values(), key=_rank, default=None)
                assert job.id in waiting and job.rank <= best.rank, f"{job} of rank {job.rank} was granted before {best}"
                del waiting[job.id]
            assert job.payload is not None and len(job.payload) == job.payload_bytes
        super()._grant(jobs, lane, session, now)
        for job in jobs:
            before = self.core.fences.get(job.id, 0)
            assert job.fence > before, f"{job} got fence {job.fence} after {before}"
            self.core.fences[job.id] = job.fence

    def _unpark(self, session: Session, *, answer: bool) -> None:
        if answer and session.parked is not None and not self.core.may_be_empty(session):
            best = min(self._fitting(session).values(), key=_rank, default=None)
            assert best is None or self._room(session) <= 0, f"answered empty, but there is {best}"
        super()._unpark(session, answer=answer)

    def _fitting(self, session: Session) -> dict[int, Job]:
        """Return the queued jobs that a session may get."""
        if session.group is None:
            return {}
        return {job.id: job for job in self.core.unfinished().values()
                if job.state is State.QUEUED and session.group.matches(job.lane)
                and not self.pauses.of(job.queue, job.task)}


def _rank(job: Job) -> int:
    return job.rank


class Sent(NamedTuple):
    """A request as its peer remembers it."""

    verb: str
    body: object


class Peer(Steering):
    """A scripted client or worker: each method is one request. Answers lie in `answers` under the request's number."""

    def __init__(self, core: Core, name: str, role: str, instance: bytes | None) -> None:
        self.core = core
        self.session = Session(core.next_key(), role=role, name=name, instance=instance, now=core.now, conn=self)
        self.open_waits: set[Wait] = set()
        self.held_deliveries = 0
        self.sent: dict[int, Sent] = {}
        self.answers: dict[int, dict | GreenroomError] = {}
        self.notices: list[dict] = []
        self.held: dict[int, int] = {}  # job -> fence, as this peer believes
        self.payloads: dict[int, bytes] = {}
        self.flushes = 0
        self.is_replaced = False
        self.is_gone = False

    # -- what the broker calls ----------------------------------------------------------------------------------------------

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Take a reply, and check that what it tells would survive a crash."""
        assert request_id not in self.answers, f"request {request_id} was answered twice"
        self.answers[request_id] = answer
        if not isinstance(answer, GreenroomError):
            self.core.check_kept(self.sent[request_id], answer)
            if self.sent[request_id].verb == "reserve" and not self.is_gone:
                for job_id, fence, _, payload, *_ in answer["jobs"]:
                    self.held[job_id] = fence
                    self.payloads[job_id] = payload

    def notify(self, notice: dict) -> None:
        """Take a notice."""
        self.notices.append(notice)

    def flush(self) -> None:
        """Count it."""
        self.flushes += 1

    def replaced(self) -> None:
        """Another connection of this instance took over."""
        self.is_replaced = True

    # -- what it asks for ---------------------------------------------------------------------------------------------------

    def _send(self, verb: str, body: object) -> int:
        request_id = len(self.sent) + 1
        self.sent[request_id] = Sent(verb, body)
        return request_id

    def submit(self, *jobs: NewJob, submission: bytes | None = None) -> int:
        """Submit jobs; refused as a whole: the error is the answer, at once."""
        request_id = self._send("submit", jobs)
        if submission is None:
            self._submit(request_id, jobs, None)
        else:
            self.core.batches.find_submission(submission, lambda known: self._submit_once(request_id, jobs, submission, known))
        return request_id

    def _submit_once(self, request_id: int, jobs: tuple[NewJob, ...], submission: bytes, known: Submission | None) -> None:
        if known is None:
            self._submit(request_id, jobs, submission)
        else:
            ids = [int(text) for text in known.outcome.split()]
            self.core.batches.hold(self, request_id, {"jobs": ids, "repeated": True})

    def _submit(self, request_id: int, jobs: tuple[NewJob, ...], submission: bytes | None) -> None:
        core = self.core
        try:
            outcomes = core.engine.submit(list(jobs), core.now)
        except GreenroomError as exc:
            self.answer(request_id, exc)
            return
        core.batches.note_payloads(sum(len(job.payload) for job in jobs))
        if submission is not None:
            core.batches.remember(Submission(submission, bytes(16), " ".join(map(str, outcomes)), core.now))
        core.batches.collect()
        core.batches.hold(self, request_id, {"jobs": outcomes})

    def reserve(self, n: int = 1, *, wait: float = 0.0, queues: list[str] | None = None, tasks: list[str] | None = None) -> int:
        """Open a reserve."""
        request_id = self._send("reserve", n)
        try:
            self.core.reserving = request_id
            self.core.engine.reserve(self.session, request_id, n, queues, tasks, wait, self.core.now)
        except GreenroomError as exc:
            self.answer(request_id, exc)
        finally:
            self.core.reserving = None
        self.core.batches.collect()
        return request_id

    def settle(self, outcome: str, *jobs: int, fence: int | None = None, result: bytes | None = b"r",
               wish: float | bool | None = False) -> int:
        """Settle jobs that this peer holds, or one under a given fence.

        Args:
            wish: of a fail: as in SettleItem; unless said, it is never tried again. Of a snooze: seconds.
        """
        error = NAMELESS if outcome == "fail" else None
        items = [SettleItem(job, fence if fence is not None else self.held[job], outcome, result if outcome == "ack" else None,
                            False, error, wish if outcome in ("fail", "snooze") else None) for job in jobs]
        for job in jobs:
            self.held.pop(job, None)
        request_id = self._send("settle", items)
        core = self.core
        core.engine.saw(self.session, core.now)
        outcomes = core.engine.settle(items, core.now, {})
        core.batches.collect()
        missing = [place for place, known in enumerate(outcomes) if known is None]

        def loaded(jobs: dict[int, Job | Lost]) -> None:
            for place, late in zip(missing, core.engine.settle([items[place] for place in missing], core.now, jobs)):
                outcomes[place] = late
            core.batches.collect()
            core.batches.hold(self, request_id, {"outcomes": outcomes})

        if missing:
            core.batches.load([items[place].job for place in missing], loaded)
        else:
            core.batches.hold(self, request_id, {"outcomes": outcomes})
        return request_id

    def wait(self, *jobs: int, seconds: float = 60.0) -> int:
        """Wait for jobs that are not known to be finished."""
        request_id = self._send("wait", jobs)
        self.core.waits.add(Wait(self, request_id, list(jobs)), self.core.now + seconds)
        return request_id

    def heartbeat(self, *, listed: bool = True, deliveries_written: bool = True,
                  ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Send a heartbeat with what this peer believes to hold; returns (lost, cancel)."""
        leases = list(self.held.items()) if listed else None
        told = self.core.engine.heartbeat(self.session, leases, self.core.now, deliveries_written=deliveries_written)
        self.core.batches.collect()
        return told

    def extend(self, job_id: int, seconds: float) -> object:
        """Extend one lease; returns its outcome."""
        outcomes = self.core.engine.extend([(job_id, self.held[job_id])], seconds, self.core.now)
        self.core.batches.collect()
        return outcomes[0]

    def report(self, job_id: int, fraction: float | None = None, text: str | None = None, *lines: str, fence: int | None = None) -> int:
        """Tell how far a job is that this peer holds (or held under `fence`), and lines of its log."""
        request_id = self._send("report", job_id)
        core = self.core
        core.engine.saw(self.session, core.now)
        item = ReportItem(job_id, fence or self.held[job_id], fraction, text, [(core.now, line) for line in lines])
        outcomes = core.engine.report([item], core.now)
        core.batches.collect()
        core.batches.hold(self, request_id, {"outcomes": outcomes})
        return request_id

    def follow(self, job_id: int, after: int = 0, *, limit: int = 1000, seconds: float = 60.0) -> int:
        """Wait for lines of a job above a number; there is none yet."""
        request_id = self._send("logs", job_id)
        self.core.waits.add(LinesWait(self, request_id, job_id, after, limit), self.core.now + seconds)
        return request_id

    def close(self, *, bye: bool = False) -> None:
        """End the connection."""
        self.is_gone = True
        self.core.waits.drop_peer(self)
        self.core.engine.close_session(self.session, self.core.now, said_bye=bye)
        self.core.batches.collect()

    # -- what it was told ---------------------------------------------------------------------------------------------------

    def ids(self, request_id: int) -> list[int]:
        """Return the job ids in the answer of a submit or reserve."""
        return [job if isinstance(job, int) else job[0] for job in self.answers[request_id]["jobs"]]

    def outcome(self, request_id: int) -> object:
        """Return the only outcome in an answer: a word, or the code of an error."""
        (outcome,) = self.answers[request_id]["outcomes"]
        return outcome.code if isinstance(outcome, GreenroomError) else outcome


class Watched:
    """A broker whose inside tests may look at: its engine, batches, memory store and time.

    Attributes:
        fences: job -> fence of its latest lease, over all restarts. finished_under: job -> fence of the settle that finished it.
        retried: jobs that somebody let run again.
        reserving: the request id of the reserve that is being handled.
    """

    engine: CheckedEngine
    batches: Batches
    store: CrashStore
    now: float

    def __init__(self) -> None:
        self.fences: dict[int, int] = {}
        self.finished_under: dict[int, int] = {}
        self.retried: set[int] = set()
        self.reserving: int | None = None

    def looks_closely(self) -> bool:
        """Tell whether this grant shall be compared with all jobs there are; with thousands that takes a while."""
        return True

    def newest(self) -> dict[int, Job]:
        """Return every job as it is now: rows, then what is to be written, then what is in memory."""
        jobs: dict[int, Job] = dict(self.store._jobs)
        for dirty in self._newer():
            jobs.update(dirty)
        return jobs

    def _newer(self) -> list[dict[int, Job]]:
        batches = self.batches
        closed = batches._closed.dirty if batches._closed is not None else {}
        return [closed, batches._gathering.dirty, self.engine.effects.dirty, self.engine.jobs]

    def unfinished(self) -> dict[int, Job]:
        """Return the jobs that are not finished."""
        jobs: dict[int, Job] = {}
        for job_id, job in self.newest().items():
            if job.state not in FINISHED_STATES:
                jobs[job_id] = job
                if self.store._jobs.get(job_id) is job:  # rows have none: only for the comparisons here
                    job.lane = self.engine.lanes.get((job.queue, job.task))
        return jobs

    def may_be_empty(self, session: Session) -> bool:
        """Tell whether a reserve may be answered empty whatever there is: taken back, replaced, by the silent, or in a drain."""
        is_silent = session.leases and session.last_seen + self.engine.timing.lease_s <= self.now
        return self.engine.draining or is_silent or (self.reserving is not None and session.parked.request_id != self.reserving)

    def check_kept(self, sent: Sent, answer: dict) -> None:
        """Assert the commit rule: what is told would survive a crash."""
        kept = self.store.committed
        if sent.verb == "submit":
            assert all(kept(job) is not None or self._was_pruned(job) for job in answer["jobs"] if isinstance(job, int))
        elif sent.verb == "reserve":
            for job_id, *_ in answer["jobs"]:
                # It may have finished since: its session ended while the delivery waited for the COMMIT.
                assert kept(job_id) is not None or self._was_pruned(job_id), f"job {job_id} left before its row"
        elif sent.verb == "settle":
            for item, outcome in zip(sent.body, answer["outcomes"]):
                row = kept(item.job)
                ends = item.outcome == "ack" or item.outcome == "fail" and (
                    item.wish is False or row is None or (row.fence == item.fence and row.state in FINISHED_STATES))
                if outcome == "OK" and ends:
                    assert item.job not in self.finished_under or item.job in self.retried, f"job {item.job} was finished twice"
                    self.finished_under[item.job] = item.fence
                    is_kept = (row is not None and row.state in FINISHED_STATES) or self._was_pruned(item.job) or (
                        item.job in self.retried)
                    assert is_kept, f"{item} was answered before its row"
                elif outcome == "OK":
                    is_kept = (row is not None and row.fence >= item.fence) or self._was_pruned(item.job)
                    assert is_kept, f"{item} was answered before its row"
        elif sent.verb == "change" and isinstance(sent.body, tuple) and answer["outcomes"] == ["changed"]:
            job_id, change = sent.body
            row = kept(job_id)
            assert self._was_pruned(job_id) or change.priority in (None, row.priority) or row.state in FINISHED_STATES or (
                self._changed_again(job_id)), f"the change of {job_id} was told before its row"
        elif sent.verb == "pause" and isinstance(sent.body, tuple):
            is_known = sent.body in self.store.committed_pauses() or self.engine.pauses.get(*sent.body) is None
            assert is_known, f"the pause of {sent.body} was told before its row"
        elif sent.verb == "limit" and isinstance(sent.body, str):
            is_known = sent.body in self.store.committed_limits() or self.engine.limits.get(sent.body) is None
            assert is_known, f"the limit of {sent.body} was told before its row"
        elif sent.verb in ("wait", "get"):
            ids = [shown["id"] for shown in answer["jobs"] if shown.get("state") in FINISHED_LABELS and shown["id"] not in self.retried]
            assert all(self._was_pruned(job) or kept(job).state in FINISHED_STATES for job in ids), "a finish left before its row"
        elif sent.verb == "delete":
            for job_id, outcome in zip(sent.body if isinstance(sent.body, list) else [sent.body], answer["outcomes"]):
                assert outcome != "deleted" or kept(job_id) is None, f"the deletion of {job_id} was told before it was on disk"
        elif sent.verb == "cancel":
            for job_id, outcome in zip(sent.body if isinstance(sent.body, list) else [sent.body], answer["outcomes"]):
                if outcome in ("cancelled", "requested") and job_id not in self.retried:
                    row = kept(job_id)
                    is_kept = self._was_pruned(job_id) or row.state in FINISHED_STATES or row.cancel_requested
                    assert is_kept, f"the cancel of {job_id} left before its row"

    def check_event(self, job_id: int, *, is_over: bool) -> None:
        """Assert the commit rule for an event: a job that is told of is on disk, and if it is over it is so there."""
        row = self.store.committed(job_id)
        if self._was_pruned(job_id):
            return
        assert row is not None, f"an event of job {job_id} left before its row"
        assert not is_over or row.state in FINISHED_STATES or job_id in self.retried, f"the end of job {job_id} was told before its row"

    def _changed_again(self, job_id: int) -> bool:
        return sum(peer.sent[number].verb == "change" and peer.sent[number].body[0] == job_id
                   for peer in self.peers for number in peer.sent) > 1

    def _was_pruned(self, job_id: int) -> bool:
        return job_id not in self.store._jobs and not any(job_id in newer for newer in self._newer())


class Core(Watched):
    """One broker without its edges. `crash_and_restart` keeps store and clock and begins anew."""

    def __init__(self, *, max_jobs: int = 100_000, max_bytes: int = 128 * 2**20, caps: Caps = Caps(), timing: Timing = Timing(),
                 retention: Retention = Retention()) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = CrashStore(retention)
        self._limits = (max_jobs, max_bytes)
        self._caps = caps
        self._timing = timing
        self._keys = 0
        self._start()

    def _start(self) -> None:
        self.engine = CheckedEngine(self._caps, self._timing, Window(*self._limits))
        self.engine.core = self
        self.waits = Waits()
        self.peers: list[Peer] = []
        self.wakes = 0
        self.batches = Batches(self.engine, self.store, self.waits, self._wake)
        self.engine.restore(self.store.open(), self.now, self._timing.restart_grace_s)
        self.batches.collect()
        self.run()

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def now(self) -> float:
        """The virtual time."""
        return self.clock.now()

    def next_key(self) -> int:
        """Return a number for a session."""
        self._keys += 1
        return self._keys

    def connect(self, name: str = "w", *, role: str = "worker", instance: bytes | None = None,
                presented: list[tuple[int, int]] | None = None) -> Peer:
        """Open a session; its outcomes for presented leases lie in `presented` of the peer."""
        peer = Peer(self, name, role, instance)
        peer.presented = self.engine.open_session(peer.session, presented or [], self.now)
        for (job_id, fence), outcome in zip(presented or [], peer.presented):
            if outcome == "OK":
                peer.held[job_id] = fence
        self.batches.collect()
        self.peers.append(peer)
        return peer

    # -- the cycle ----------------------------------------------------------------------------------------------------------

    def begin_cycle(self) -> None:
        """Everything of a cycle up to the COMMIT, which then runs until `end_cycle`."""
        self.batches.start()
        while not self.batches.apply_slice():
            pass
        self.batches.fetch(self.now)
        self.store.is_committing = True

    def end_cycle(self) -> None:
        """The COMMIT returns."""
        self.store.is_committing = False
        if self.batches.needs_commit:
            self.store.commit()
        self.batches.committed(self.now)

    def cycle(self) -> None:
        """Run one whole cycle."""
        self.begin_cycle()
        self.end_cycle()

    def run(self) -> None:
        """Run cycles until there is nothing to do."""
        for _ in range(10_000):
            if not self.batches.has_work:
                return
            self.cycle()
        raise AssertionError("the pump never comes to rest")

    def tick(self) -> None:
        """Do what is due, again and again while it is due at once."""
        for _ in range(1000):
            due = self.engine.tick(self.now)
            for peer, request_id, answer in self.waits.tick(self.now):
                self.batches.hold(peer, request_id, answer)
            self.batches.collect()
            if due is None or due > self.now:
                return
        raise AssertionError("the tick never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, with each tick when it is due, and run cycles."""
        until = self.now + seconds
        while True:
            due = min((at for at in (self.engine.next_due(), self.waits.next_due()) if at is not None), default=until)
            self.clock.advance(max(0.0, min(due, until) - self.now))
            self.tick()
            self.run()
            if self.now >= until:
                return

    def crash_and_restart(self) -> None:
        """Lose everything that was not committed, and start again."""
        for peer in self.peers:
            peer.is_gone = True
        self.store.crash()
        self._start()


def submitted(core: Core, *jobs: object) -> list[int]:
    """Submit jobs and return their ids once they are on disk."""
    client = core.connect("c", role="client")
    request_id = client.submit(*jobs)
    core.run()
    return client.ids(request_id)


def reserved(peer: Peer, n: int = 1, **options: object) -> list[int]:
    """Reserve, and return what was delivered after the store had its turn."""
    request_id = peer.reserve(n, **options)
    peer.core.run()
    return peer.ids(request_id)


def outcome(peer: Peer, request_id: int) -> object:
    """Return the only outcome of a request after a commit."""
    peer.core.run()
    return peer.outcome(request_id)


def state(core: Core, job_id: int) -> State:
    """Return the state of a job wherever it is."""
    return core.newest()[job_id].state


# -- invariants ------------------------------------------------------------------------------------------------------------


def check(core: Watched) -> None:
    """Recount everything and compare; raises AssertionError."""
    engine = core.engine
    jobs = core.unfinished()
    for job_id in engine.jobs:
        assert job_id in jobs, f"job {job_id} is in memory and finished"
    for lane in engine.lanes.values():
        _check_lane(core, lane, [job for job in jobs.values() if job.lane is lane])
    _check_sums(core, jobs)
    _check_scheduled(core, [job for job in jobs.values() if job.state is State.SCHEDULED])
    _check_sessions(core, jobs)
    _check_groups(core)
    _check_limits(core)


def _check_lane(core: Watched, lane: Lane, jobs: list[Job]) -> None:
    for state in (State.SCHEDULED, State.QUEUED, State.RUNNING):
        assert lane.counts[state] == sum(job.state is state for job in jobs), f"{lane.queue}/{lane.task} miscounts {state.label}"
    queued = sorted((job for job in jobs if job.state is State.QUEUED), key=lambda job: job.rank)
    held = [job for job in queued if job.id in core.engine.jobs]
    assert lane.queued_jobs() == held and lane.in_memory == len(held)
    assert (lane.head() or None) is (held[0] if held else None)
    assert lane.in_store == len(queued) - len(held)
    beyond = [job for job in queued if job.id not in core.engine.jobs]
    if beyond:
        assert lane.edge is not None and beyond[0].rank > lane.edge, "a job that only the store has is within the edge"
        assert not held or held[-1].rank <= lane.edge, "a job in memory is beyond the edge"
    assert lane.waiting_bytes == sum(job.payload_bytes for job in jobs if job.state is not State.RUNNING)


def _check_sums(core: Watched, jobs: dict[int, Job]) -> None:
    engine = core.engine
    waiting = [job for job in jobs.values() if job.state is not State.RUNNING]
    assert engine.waiting == len(waiting)
    assert engine.waiting_bytes == sum(job.payload_bytes for job in waiting)
    in_window = [job for job in waiting if job.state is State.QUEUED and job.id in engine.jobs]
    assert engine.window.jobs == len(in_window)
    assert engine.window.payload_bytes == sum(len(job.payload) for job in in_window if job.payload is not None)
    for state in State:
        assert engine.totals[state] == sum(lane.counts[state] for lane in engine.lanes.values())
    assert engine.requeues == sum(lane.requeues for lane in engine.lanes.values())
    going = core.batches._gathering.deleted
    assert engine.keeping.count == sum(asks_for_long(job.extras) for job in core.newest().values() if job.id not in going)
    assert engine.leases == sum(job.state is State.RUNNING for job in jobs.values())


def _check_scheduled(core: Watched, scheduled: list[Job]) -> None:
    window = core.engine.scheduled
    held = [job for job in scheduled if job.id in core.engine.jobs]
    assert (window.total, window.in_memory) == (len(scheduled), len(held))
    assert window._bytes == sum(job.payload_bytes for job in held)
    beyond = [(job.run_at, job.id) for job in scheduled if job.id not in core.engine.jobs]
    if beyond:
        assert window.edge is not None and min(beyond) > window.edge
        assert all((job.run_at, job.id) <= window.edge for job in held)


def lease_end(core: Watched, lease: Lease) -> float:
    """Return when a lease of a connected worker ends: the silence of the worker counts from when it got the job."""
    delivered_at = core.now if lease.delivered_at is None else lease.delivered_at
    return lease.deadline or max(lease.session.last_seen, delivered_at) + core.engine.timing.lease_s


def _check_sessions(core: Watched, jobs: dict[int, Job]) -> None:
    engine = core.engine
    leases = 0
    for session in engine.sessions.values():
        for job_id, lease in session.leases.items():
            job = jobs[job_id]
            assert job.lease is lease and lease.session is session and job.state is State.RUNNING
            assert job.fence == lease.fence and job_id in engine.jobs
            due = lease_end(core, lease)
            if session.grace_until is not None:
                due = session.grace_until
            elif not job.checkpoint:
                due = min(due, max(core.now, lease.granted_at + CHECKPOINT_AFTER_S) + 1.0)
            assert session.timer_at is not None and session.timer_at <= max(due, core.now), f"nobody looks at {job}"
            leases += 1
        if session.parked is not None:
            assert session.grace_until is None
            assert (session in session.group.waiters) == (engine._room(session) > 0)
            is_late = session.parked.deadline <= core.now  # then it waits for the store
            assert is_late or session.timer_at <= session.parked.deadline
    assert engine.leases == leases
    assert engine.parked == sum(session.parked is not None for session in engine.sessions.values())
    for job in jobs.values():
        assert (job.lease is not None) == (job.state is State.RUNNING)


def _check_limits(core: Watched) -> None:
    engine = core.engine
    for limited in engine.limits:
        lanes = [lane for lane in engine.lanes.values() if lane.queue == limited.limit.queue]
        assert limited.waiting == sum(lane.counts[State.QUEUED] + lane.counts[State.SCHEDULED] for lane in lanes)
        assert limited.waiting_bytes == sum(lane.waiting_bytes for lane in lanes)
        assert set(limited._lanes) == set(lanes)
    for lane in engine.lanes.values():
        assert lane.limited is engine.limits.get(lane.queue)


def _check_groups(core: Watched) -> None:
    engine = core.engine
    for lane in engine.lanes.values():
        assert lane.is_closed == bool(engine.pauses.of(lane.queue, lane.task)) and not (lane.is_closed and lane.groups)
    for group in engine.groups:
        assert group.sessions == sum(session.group is group for session in engine.sessions.values())
        assert set(group.lanes) == {lane for lane in engine.lanes.values() if group.matches(lane) and not lane.is_closed}
        assert not any(entry[2].is_closed for entry in group._heap)
        ranks = {lane: lane.best_rank() for lane in group.lanes if lane.best_rank() is not None}
        known: dict[Lane, int] = {}
        for rank, _, lane in group._heap:
            known[lane] = min(rank, known.get(lane, rank))
        for lane, rank in ranks.items():
            assert lane in known and known[lane] <= rank, f"a group has not heard of the head of {lane.queue}/{lane.task}"
        for session in group.waiters:
            assert isinstance(session.parked, Parked) and session.group is group
            if ranks:
                # A refill tries all who wait for its lane again.
                assert any(lane.is_filling for lane in group.lanes) or not engine.fences.left, "a reserve waits, there are jobs"


def check_at_rest(core: Watched) -> None:
    """With everything committed: the store's counters are the engine's."""
    engine = core.engine
    for counts in core.store._lane_counts():
        lane = engine.lanes[counts.queue, counts.task]
        for state in (State.SCHEDULED, State.COMPLETED, State.FAILED, State.CANCELLED):
            assert getattr(counts, state.label) == lane.counts[state]
        assert counts.queued == lane.counts[State.QUEUED] + lane.counts[State.RUNNING]
        assert counts.requeued == lane.requeues
