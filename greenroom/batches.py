"""The commit rule: what was decided leaves only after the COMMIT that holds it. And when the store may be read in between.

No gevent, no thread, no clock: dispatch.py drives it on the hub, the simulator in virtual time. One cycle:

    start()        the store is free: answer look-ups that new submits wait for; close the gathering batch
    apply_slice()  its rows, some at a time, until it says so
    flush()        rows that came meanwhile, if the store is to be read: again in slices
    fetch()        with every row flushed and no COMMIT running: refills, loads, number blocks, pruning
    COMMIT         the caller runs `store.commit` in a thread, if `needs_commit`; a new batch gathers meanwhile
    committed()    everything that waited for it leaves

Rows are written as the jobs are when the slice is applied, so the disk may be ahead of what was answered, never behind.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from greenroom.effects import Delivery, Effects
from greenroom.engine import Engine
from greenroom.errors import GreenroomError, UnknownOutcomeError
from greenroom.events import EventLog, finished_event
from greenroom.job import RUNNING, SMALL_BYTES, Job
from greenroom.records import Damaged, LogLine, Lost, Pause, QueueLimit, StoredSchedule, Submission
from greenroom.sessions import Lease
from greenroom.stores import Store
from greenroom.waits import Waits

log = logging.getLogger(__name__)

#: Rows applied between two looks at the sockets: 1 to 2 ms of the hub.
SLICE_JOBS = 400
#: Statements of fewer jobs than this run on the hub: 0.5 ms.
THREAD_JOBS = 100
#: A batch that gathers more than this while a COMMIT runs turns new submits away (BUSY).
MAX_BATCH_JOBS = 20_000
MAX_BATCH_BYTES = 64 * 2**20
#: Log lines in a batch; beyond it reports get BUSY. Their statements take 30 ms of the thread that runs COMMIT.
MAX_BATCH_LINES = 10_000
#: Settles still have so much more room: they make work end. Then they get BUSY too.
SETTLES_FACTOR = 2
#: Answers that wait for a COMMIT take about so much; then further requests get BUSY at once.
MAX_HELD_BYTES = 64 * 2**20
#: Refills, loads and the like done in one gap between commits, each about 0.4 ms.
FETCHES_PER_GAP = 8
#: As many refills take as long as a load, with what is done with the jobs.
LOAD_COST = 4
#: Waiting jobs that are expired at once.
EXPIRED_ROWS = 100
#: Finished jobs deleted in one gap: 1 to 3 ms, most for jobs that say how long they are kept.
PRUNED_ROWS = 100
#: Bytes of payloads, results and errors applied between two looks.
SLICE_BYTES = 256 * 1024
#: Numbers fetched at once, and the mark below which more are fetched: seconds' worth at full speed.
BLOCK_NUMBERS = 200_000


class Peer(Protocol):
    """Whoever is answered: a session's connection, or a caller inside the process.

    Attributes:
        held_deliveries: deliveries that were decided and wait for a commit.
    """

    held_deliveries: int

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Take the reply to a request."""

    def notify(self, notice: dict) -> None:
        """Take a frame that nobody asked for."""

    def flush(self) -> None:
        """Send what was taken since the last flush."""


class Budget:
    """How many bytes of large payloads and results the look-ups of one request may still bring into memory.

    Attributes:
        left: bytes; the first one always fits. payload: payloads are wanted too, not only results.
    """

    __slots__ = ("left", "payload", "is_fresh")

    def __init__(self, left: int, *, payload: bool) -> None:
        self.left = left
        self.payload = payload
        self.is_fresh = True

    def take(self, job: Job) -> bool:
        """Tell whether what is missing of a job may be loaded, and count it."""
        missing = job.result_bytes if job.result is None else 0
        if self.payload and job.payload is None:
            missing += job.payload_bytes
        if not missing or (missing > self.left and not self.is_fresh):
            return False
        self.left -= missing
        self.is_fresh = False
        return True


class Batch:
    """Rows of one transaction, and what leaves after it."""

    __slots__ = ("dirty", "submissions", "damaged", "schedules", "pauses", "limits", "deleted", "lines", "first_lines", "leaving",
                 "held_bytes", "payload_bytes")

    def __init__(self) -> None:
        self.dirty: dict[int, Job] = {}
        self.submissions: dict[bytes, Submission] = {}
        self.damaged: list[Damaged] = []
        self.schedules: dict[str, StoredSchedule | None] = {}  # None: deleted
        self.pauses: dict[tuple[str, str], Pause | None] = {}
        self.limits: dict[str, QueueLimit | None] = {}
        self.deleted: list[int] = []
        self.lines: list[LogLine] = []  # their jobs are among `dirty`
        self.first_lines: dict[int, int] = {}
        # (peer, request id, answer), (peer, None, notice) or (None, None, function to call)
        self.leaving: list[tuple[Peer | None, int | None, object]] = []
        self.held_bytes = 0  # of `leaving`, roughly
        self.payload_bytes = 0  # of submits, and results of settles

    @property
    def has_rows(self) -> bool:
        """True if it needs a COMMIT of its own."""
        return bool(self.dirty or self.submissions or self.damaged or self.schedules or self.pauses or self.limits or self.deleted)


class Batches:
    """Gathers what the engine wants done, in order, and lets it leave when it may.

    Attributes:
        wake: called when there is work for a cycle and there was none before.
        commits, rows: how many so far; last_rows: rows of the latest COMMIT.
        events: what happened lately, for those who subscribed.
        on_gone: called with ids of jobs that were deleted because they asked not to be kept for longer.
        units: changes in several steps that are under way; until they are done the gathering batch must not be closed.
    """

    def __init__(self, engine: Engine, store: Store, waits: Waits, wake: Callable[[], None]) -> None:
        self.engine = engine
        self.store = store
        self.waits = waits
        self.wake = wake
        self.on_gone: Callable[[list[int]], None] = _nobody_listens
        self.events = EventLog(os.urandom(8).hex())
        self.commits = 0
        self.rows = 0
        self.last_rows = 0
        self.changes = 0
        self.units = 0
        self._gathering = Batch()
        self._closed: Batch | None = None  # applied or being committed
        self._to_apply: deque[list[Job]] = deque()
        self._store_changed = False  # rows outside the batch: number blocks, pruning
        self._storing: dict[bytes, list[Callable[[Submission | None], None]]] = {}  # submissions under way, and who asks for them
        self._lookups: deque[tuple[bytes, Callable[[Submission | None], None]]] = deque()
        self._loads: deque[tuple[list[int], Callable[[dict[int, Job | Lost]], None], Budget | None]] = deque()
        self._kept: dict[int, list] = {}  # job -> [it as loaded, by how many it is kept]
        self._refills: deque = deque()
        self._wants_scheduled = False
        self._wants_expired = False
        self._prune_at: float | None = None
        self._now = 0.0  # when the latest COMMIT returned

    # -- gathering ----------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take what the engine wants done since the last call. Must follow every call that may have had effects."""
        effects = self.engine.effects
        # Most calls want one or two things; a whole new record a call would cost as much as all else here.
        if effects.dirty:
            dirty, effects.dirty = effects.dirty, {}
            self._note_rows()
            self._gathering.dirty.update(dirty)
        if effects.deliveries:
            deliveries, effects.deliveries = effects.deliveries, []
            for delivery in deliveries:
                self._deliver(delivery)
                for job in delivery.jobs:
                    if job.stored_state and job.payload_bytes > SMALL_BYTES and job.rewrite is None:
                        _forget_payload(job)
        if effects.finished:
            finished, effects.finished = effects.finished, []
            if self.engine.is_watched:  # after the other events of this call: nothing comes after the end of a job
                effects.events += map(finished_event, finished)
            for peer, request_id, answer in self.waits.finished(finished):
                self.hold(peer, request_id, answer)
        if effects.is_unusual:
            self.engine.effects = Effects()
            self._collect_unusual(effects)
        if effects.events:
            events, effects.events = effects.events, []
            self.after_commit(partial(self.events.show, self.events.note(events)))

    def _collect_unusual(self, effects: Effects) -> None:
        if effects.damaged:
            self._note_rows()
            self._gathering.damaged.extend(effects.damaged)
            for record in effects.damaged:
                log.error("job %d is damaged: its %s does not match the checksum; it is set aside (docs/operations.md, Damage)",
                          record.job, record.what)
        if effects.pauses:
            self._note_rows()
            self._gathering.pauses.update(effects.pauses)
        if effects.limits:
            self._note_rows()
            self._gathering.limits.update(effects.limits)
        if effects.deleted:
            self._note_rows()
            self._gathering.deleted += effects.deleted
        if effects.lines:
            self._gathering.lines += effects.lines
            self._gathering.first_lines.update(effects.first_lines)
            for peer, request_id, answer in self.waits.wrote(effects.lines):
                self.hold(peer, request_id, answer)
        for notice in effects.notices:
            if notice.session.conn is not None:
                reason = {} if notice.reason is None else {"reason": notice.reason}
                self._leave(notice.session.conn, None, {"notice": notice.kind, "leases": notice.leases, **reason})
        for session in effects.closes:
            self._leave(None, None, session.conn.replaced)
        if effects.refills or effects.wants_scheduled or effects.wants_expired:
            self._wants_expired = self._wants_expired or effects.wants_expired
            self._refills.extend(effects.refills)
            self._wants_scheduled = self._wants_scheduled or effects.wants_scheduled
            self.wake()

    def _deliver(self, delivery: Delivery) -> None:
        peer = delivery.session.conn
        if peer is None:
            return
        if not self._may_leave:
            # Until it leaves, a heartbeat that lacks these leases proves nothing.
            peer.held_deliveries += 1
            leases = [job.lease for job in delivery.jobs if job.lease is not None]
            for lease in leases:
                lease.delivered_at = None
            self._leave(None, None, partial(self._now_delivered, peer, leases))
        self._leave(peer, delivery.request_id, {"jobs": _delivered(delivery)})

    def _now_delivered(self, peer: Peer, leases: list[Lease]) -> None:
        peer.held_deliveries -= 1
        for lease in leases:
            lease.delivered_at = max(lease.granted_at, self._now)

    @property
    def _may_leave(self) -> bool:
        return self._closed is None and not self._gathering.has_rows

    def hold(self, peer: Peer | None, request_id: int, answer: dict | GreenroomError) -> None:
        """Answer a request as soon as nothing is pending that the answer may tell of."""
        if peer is not None:
            self._leave(peer, request_id, answer)

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call when everything decided so far is on disk; at once if it is."""
        self._leave(None, None, call)

    def _leave(self, peer: Peer | None, request_id: int | None, answer: object) -> None:
        if self._may_leave:
            _send([(peer, request_id, answer)])
        else:
            self._gathering.leaving.append((peer, request_id, answer))
            self._gathering.held_bytes += _held_bytes(answer)

    def _note_rows(self) -> None:
        self.changes += 1
        if not self._gathering.has_rows and self._closed is None:
            self.wake()

    def note_payloads(self, size: int) -> None:
        """Count payload or result bytes that a submit or settle put into the gathering batch."""
        self._gathering.payload_bytes += size

    @property
    def is_full(self) -> bool:
        """True while the gathering batch takes no more submits."""
        return len(self._gathering.dirty) >= MAX_BATCH_JOBS or self._gathering.payload_bytes >= MAX_BATCH_BYTES

    @property
    def takes_no_lines(self) -> bool:
        """True while the gathering batch takes no more log lines."""
        return self.is_full or len(self._gathering.lines) >= MAX_BATCH_LINES

    @property
    def is_overfull(self) -> bool:
        """True while it takes no more settles either."""
        return (len(self._gathering.dirty) >= SETTLES_FACTOR * MAX_BATCH_JOBS
                or self._gathering.payload_bytes >= SETTLES_FACTOR * MAX_BATCH_BYTES)

    @property
    def held_bytes(self) -> int:
        """About how much the answers take that wait for a COMMIT."""
        return self._gathering.held_bytes + (self._closed.held_bytes if self._closed is not None else 0)

    @property
    def held_answers(self) -> int:
        """Answers and deliveries that wait for a COMMIT."""
        return len(self._gathering.leaving) + (len(self._closed.leaving) if self._closed is not None else 0)

    @property
    def holds_too_much(self) -> bool:
        """True while so many answers wait that no more may be added."""
        return self.held_bytes >= MAX_HELD_BYTES

    def remember(self, submission: Submission) -> None:
        """Store the outcome of a submit with its batch."""
        self._note_rows()
        self._gathering.submissions[submission.id] = submission

    def record_schedule(self, name: str, schedule: StoredSchedule | None) -> None:
        """Store a schedule as it is now, None: that it is gone, in the transaction of what was decided at the same moment."""
        self._note_rows()
        self._gathering.schedules[name] = schedule

    def begin_submission(self, submission_id: bytes) -> None:
        """Let those who ask for this submission from now on wait for `end_submission`. For whoever was told that it is not there."""
        self._storing[submission_id] = []

    def end_submission(self, submission_id: bytes) -> None:
        """Tell those who asked what came of it: it is remembered now, or it was refused and they may try."""
        for found in self._storing.pop(submission_id):
            self.find_submission(submission_id, found)

    def find_submission(self, submission_id: bytes, found: Callable[[Submission | None], None]) -> None:
        """Look a submission up, in what is being committed and in the store; `found` is called at once or soon."""
        if submission_id in self._storing:
            self._storing[submission_id].append(found)
            return
        for batch in (self._gathering, self._closed):
            if batch is not None and submission_id in batch.submissions:
                found(batch.submissions[submission_id])
                return
        if self._closed is None:
            found(self.store.submission(submission_id))
        else:
            self._lookups.append((submission_id, found))

    def load(self, ids: list[int], loaded: Callable[[dict[int, Job | Lost]], None], budget: Budget | None = None) -> None:
        """Load jobs from the store when it is free, with all rows flushed.

        `loaded` must act on them at once: a moment later they may be out of date. Large payloads and results are None but for
        those that the budget covers.
        """
        self._loads.append((ids, loaded, budget))
        self.wake()

    def keep(self, jobs: dict[int, Job | Lost]) -> None:
        """Keep jobs that were just loaded: whoever loads one of them before the `release` gets the same object, so it stays the job as it is."""
        for job_id, job in jobs.items():
            self._kept.setdefault(job_id, [job, 0])[1] += 1

    def known(self, job_id: int) -> Job | Lost | None:
        """Return a job that is not in memory as it is now, if its row is still to be written or it is kept; else None."""
        job = self._gathering.dirty.get(job_id)
        if job is None and job_id in self._kept:
            job = self._kept[job_id][0]  # it has what the closed batch wrote: it was read after that
        return self._closed.dirty.get(job_id) if job is None and self._closed is not None else job

    def release(self, ids: list[int]) -> None:
        """Keep these no longer."""
        for job_id in ids:
            self._kept[job_id][1] -= 1
            if not self._kept[job_id][1]:
                del self._kept[job_id]

    def _as_kept(self, row: Job | Lost, job_id: int) -> Job | Lost:
        """Return the job that is kept in place of one that was just read."""
        job, _ = self._kept.get(job_id, (None, 0))
        if job is None or isinstance(job, Lost) or isinstance(row, Lost) or row.damage is not None:
            return row
        if job.payload is None:
            job.payload = row.payload
        return job

    def prune_soon(self, now: float) -> None:
        """Have a slice of history pruned in the next gap."""
        self._prune_at = now
        self.wake()

    # -- the cycle ----------------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """True if a cycle is worth running."""
        return bool(self._gathering.has_rows or self._lookups or self._wants_store)

    @property
    def is_idle(self) -> bool:
        """True when everything decided so far is on disk and has left."""
        return self._closed is None and not self._gathering.has_rows

    def start(self) -> None:
        """Begin a cycle. Look-ups come first, so that the submits behind them still join this batch."""
        self.look_up()
        self._close_batch()

    def look_up(self) -> None:
        """Answer the look-ups that waited for the store to be free."""
        while self._lookups:
            submission_id, found = self._lookups.popleft()
            if submission_id in self._storing:
                self._storing[submission_id].append(found)
                continue
            known = self._gathering.submissions.get(submission_id)
            found(known if known is not None else self.store.submission(submission_id))

    def _close_batch(self) -> None:
        assert not self.units
        batch, self._gathering = self._gathering, Batch()
        if self._closed is None:
            self._closed = batch
        else:  # rows that came while the closed batch was applied in slices join its transaction
            self._closed.dirty.update(batch.dirty)
            self._closed.submissions.update(batch.submissions)
            self._closed.damaged.extend(batch.damaged)
            self._closed.schedules.update(batch.schedules)
            self._closed.pauses.update(batch.pauses)
            self._closed.limits.update(batch.limits)
            self._closed.deleted += batch.deleted
            self._closed.leaving.extend(batch.leaving)
            self._closed.held_bytes += batch.held_bytes
        self._to_apply.extend(_slices(batch.dirty))
        if batch.submissions:
            self.store.apply([], list(batch.submissions.values()))
        if batch.schedules:
            self.store.apply_schedules(batch.schedules)
        if batch.damaged:
            self.store.set_aside(batch.damaged)
        if batch.pauses:
            self.store.keep_pauses(batch.pauses)
        if batch.limits:
            self.store.keep_limits(batch.limits)
        if batch.lines:
            self.store.add_lines(batch.lines, batch.first_lines)
        if batch.deleted:
            self.store.delete(batch.deleted)  # they were read with all rows written, so none of them is among `dirty`

    def apply_slice(self) -> bool:
        """Hand some of the rows to the store; returns True when it has all.

        Their statements run here where the store is to be read, and where they are so few that handing them to the thread of the
        COMMIT takes longer: with the interpreter's lock, which it must get back after each, it waits up to half a millisecond.
        """
        if self._to_apply:
            jobs = self._to_apply.popleft()
            self.store.apply(jobs, [])
            for job in jobs:
                if job.payload_bytes > SMALL_BYTES:
                    _forget_payload(job)
            if self._wants_store or not self._to_apply and self.store.unwritten() < THREAD_JOBS:
                self.store.write()
        return not self._to_apply

    @property
    def _wants_store(self) -> bool:
        return bool(self._loads or self._refills or self._wants_scheduled or self._wants_expired or self._prune_at is not None
                    or self._numbers_low())

    def flush(self) -> bool:
        """Close what gathered while the slices were applied, if `fetch` would otherwise have to write more than a slice of it.

        Returns True if there are slices to apply now. Call it a bounded number of times: more may always come.
        """
        if not self._wants_store or len(self._gathering.dirty) <= SLICE_JOBS or self.units:
            return False
        self._close_batch()
        return True

    def fetch(self, now: float) -> None:
        """Do what needs the store while no COMMIT runs. Flushes what was decided meanwhile, so that reads see it."""
        if not self._wants_store or self.store.unwritten() > SLICE_JOBS:
            return  # in the next cycle then: it knows from its start that rows must be written before they are read
        if self._gathering.has_rows:
            self._close_batch()
            while not self.apply_slice():
                pass
        self._fetch_numbers(now)
        left = FETCHES_PER_GAP
        while left > 0:
            left -= 1
            if self._gathering.has_rows:
                break  # a loaded job was cancelled, say: reading on now would see it as it was
            if self._refills:
                self._refill(now)
            elif self._wants_scheduled:
                self._refill_scheduled(now)
            elif self._wants_expired:
                self._wants_expired = False
                self.engine.expire(self._all_as_kept(self.store.take_expired(now, EXPIRED_ROWS)), self.store.next_expiry(), now)
                self.collect()
            elif self._loads:
                left -= LOAD_COST - 1
                self._load_some(*self._loads.popleft())
            else:
                break
        if self._prune_at is not None and not self._gathering.has_rows:  # else what was just retried could go
            self._prune(self._prune_at, now)

    def _prune(self, at: float, now: float) -> None:
        """Delete a slice of the finished jobs whose time is over, and come back for the next one."""
        gone = self.store.prune_kept(at, PRUNED_ROWS)
        pruned = len(gone.ids)
        if gone.ids:
            self.engine.keeping.count -= gone.long
            self.on_gone(gone.ids)
        if pruned < PRUNED_ROWS:
            pruned += self.store.prune(at, PRUNED_ROWS - pruned)
        self._prune_at = now if pruned else None
        self._store_changed = self._store_changed or pruned > 0

    def _load_some(self, ids: list[int], loaded: Callable[[dict[int, Job | Lost]], None], budget: Budget | None) -> None:
        jobs = self.store.load(ids, small=True)
        if budget is not None:
            for job_id, job in jobs.items():
                if isinstance(job, Job) and budget.take(job):
                    jobs[job_id] = self.store.load([job_id])[job_id]
        for job_id, job in jobs.items():
            if job_id in self.engine.aside and isinstance(job, Job):
                job.damage = self.engine.aside[job_id]  # also where what is damaged was not loaded
            if isinstance(job, Job) and job.damage is not None and self.engine.note_damage(job_id, job.damage):
                log.error("job %d is damaged: its %s does not match the checksum (docs/operations.md, Damage)", job_id, job.damage)
        if self._kept and budget is None:  # with one they are only looked at
            jobs = {job_id: self._as_kept(job, job_id) for job_id, job in jobs.items()}
        loaded(jobs)

    def _all_as_kept(self, rows: list[Job]) -> list[Job]:
        return [self._as_kept(row, row.id) for row in rows] if self._kept else rows

    def _refill(self, now: float) -> None:
        lane = self._refills.popleft()
        plan = self.engine.refill_plan(lane)
        rows: list[Job] = []
        payloads: dict[int, bytes] = {}
        if plan is not None and plan.limit:
            rows = self._all_as_kept(self.store.take(plan.queue, plan.task, plan.after_rank, plan.limit))
        elif plan is not None:
            payloads = self.store.payloads(plan.payload_ids)
        self.engine.refilled(lane, plan, rows, payloads, now)
        self.collect()

    def _refill_scheduled(self, now: float) -> None:
        self._wants_scheduled = False
        after = self.engine.scheduled.edge or (0.0, 0)
        asked = self.engine.scheduled_slice()
        rows = self._all_as_kept(self.store.take_scheduled(after, asked))
        self.engine.scheduled_refilled(rows, asked, now)
        self.collect()

    def _numbers_low(self) -> bool:
        return self.engine.ids.left < BLOCK_NUMBERS // 2 or self.engine.fences.left < BLOCK_NUMBERS // 2

    def _fetch_numbers(self, now: float) -> None:
        for name, numbers in (("job", self.engine.ids), ("fence", self.engine.fences)):
            if numbers.left < BLOCK_NUMBERS // 2:
                self.engine.add_numbers(name, self.store.block(name, BLOCK_NUMBERS), BLOCK_NUMBERS, now)
                self._store_changed = True
                self.collect()

    @property
    def needs_commit(self) -> bool:
        """True if the cycle wrote anything."""
        return self._store_changed or (self._closed is not None and self._closed.has_rows)

    def committed(self, now: float = 0.0) -> None:
        """The COMMIT returned, or none was needed: what waited for it leaves, and so does a later batch without rows."""
        self._now = max(self._now, now)
        if self.needs_commit:
            self.commits += 1
            self.last_rows = len(self._closed.dirty) + len(self._closed.submissions) + len(self._closed.schedules) + len(self._closed.deleted)
            self.rows += self.last_rows
        batch, self._closed = self._closed, None
        self._store_changed = False
        _send(batch.leaving)
        later = self._gathering
        if later.leaving and not later.has_rows:
            leaving, later.leaving, later.held_bytes = later.leaving, [], 0
            _send(leaving)

    def failed(self) -> None:
        """A statement or COMMIT failed: nobody knows what is on disk. Tell all who wait; the process must end now."""
        error = UnknownOutcomeError("the store failed while this was being written; it may or may not be stored")
        for batch in (self._closed, self._gathering):
            if batch is not None:
                _send([(peer, request_id, error) for peer, request_id, _ in batch.leaving
                       if peer is not None and request_id is not None])
                batch.leaving = []


def _nobody_listens(_: list[int]) -> None:
    pass


def _slices(dirty: dict[int, Job]) -> Iterator[list[Job]]:
    """Cut what is to be written into what may be written at once."""
    jobs: list[Job] = []
    size = 0
    for job in dirty.values():
        jobs.append(job)
        size += (0 if job.stored_state and job.rewrite is None else job.payload_bytes) + (0 if job.result is None else len(job.result))
        if job.error is not None:
            size += sum(map(len, job.error.values()))
        if job.runs:
            size += sum(sum(map(len, run.error.values())) for run in job.runs if run.error is not None)
        if len(jobs) >= SLICE_JOBS or size >= SLICE_BYTES:
            yield jobs
            jobs, size = [], 0
    if jobs:
        yield jobs


def _forget_payload(job: Job) -> None:
    """Let go of a large payload that the store has and a worker got: it is read again if the job comes back."""
    if job.state is RUNNING:
        job.payload = None


def _delivered(delivery: Delivery) -> list[list[object]]:
    return [[job.id, job.fence, job.task, job.payload, job.raw, job.queue, job.attempt, job.priority] if not job.crashes else
            [job.id, job.fence, job.task, job.payload, job.raw, job.queue, job.attempt, job.priority, job.crashes]
            for job in delivery.jobs]


def _held_bytes(answer: object) -> int:
    """Estimate what an answer takes in memory. Payloads and results count elsewhere: jobs, windows and budgets bound them."""
    size = 300
    if type(answer) is dict:
        for value in answer.values():
            if type(value) is list and value:
                size += len(value) * (40 if type(value[0]) in (int, str) else 800)
    return size


def _send(leaving: list[tuple[Peer | None, int | None, object]]) -> None:
    touched: dict[Peer, None] = {}
    for peer, request_id, answer in leaving:
        if peer is None:
            answer()
        elif request_id is None:
            peer.notify(answer)
            touched[peer] = None
        else:
            peer.answer(request_id, answer)
            touched[peer] = None
    for peer in touched:
        peer.flush()
