"""The engine's rules about sessions and leases: settle, heartbeat, requeue, reconnect.

Pure, like engine.py, which builds on this class: there are the rules about jobs that wait (submit, reserve, windows), here
those about jobs that run; what happens by time alone is in deadlines.py. A newcomer reads engine.py first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappush
from typing import NamedTuple

from greenroom.effects import Effects
from greenroom.errors import DamagedError, GoneError, GreenroomError, LeaseLostError, NotFoundError
from greenroom.events import job_event, progress_event
from greenroom.expiry import Expiry
from greenroom.groups import Groups
from greenroom.job import (CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, SCHEDULED, STATES, Job, Run, State, move,
                           move_all)
from greenroom.job_log import Report, end_progress, take_lines
from greenroom.keeping import MAX_KEPT_JOBS, Keeping
from greenroom.lanes import Lane, Window
from greenroom.number_blocks import Numbers
from greenroom.paces import Paces
from greenroom.pauses import Pauses
from greenroom.queue_limits import QueueLimits
from greenroom.records import Lost, ReportItem, SettleItem, StoredLease
from greenroom.retries import next_try
from greenroom.scheduled import Scheduled
from greenroom.sessions import Lease, RunLimits, Session
from greenroom.suspects import SUSPECT_WAIT_S
from greenroom.tally import Tally
from greenroom.unique import Keys

#: After so many leases of a job were lost to dead or silent workers it is failed: it may be what kills them.
MAX_CRASHES = 5
#: Reasons for which a job comes back without having been begun: that is no requeue.
RETURNS = ("unbegun", "never arrived")
#: A lease older than this is written to the store, so that it survives a restart; most jobs are done before.
CHECKPOINT_AFTER_S = 1.0
#: Damaged jobs that are remembered to be shown.
MAX_DAMAGED = 10_000
#: A lease that two heartbeats miss goes back; beats closer together than this count as one.
BEATS_APART_S = 1.0


class Caps(NamedTuple):
    """Global bounds; beyond one of them a submit or reserve gets FULL."""

    waiting_jobs: int = 20_000_000  # scheduled and queued; at 100 bytes each some 6 GB of disk
    waiting_bytes: int = 64 * 2**30  # their payloads
    lanes: int = 20_000  # distinct (queue, task) with work; idle ones are forgotten first
    parked: int = 20_000  # open reserves
    kept_jobs: int = MAX_KEPT_JOBS  # jobs with a long keep_for, finished or not
    leases_per_session: int = 1000
    reserve_bytes: int = 2**20  # payloads in one delivery
    reserve_jobs: int = 500  # jobs in one delivery: 2 ms to grant


class Timing(NamedTuple):
    """The waits that the rules know, in seconds; told in the greeting."""

    lease_s: float = 15.0  # a worker silent for so long loses its leases
    heartbeat_s: float = 5.0  # how often it should send one
    reconnect_grace_s: float = 0.5  # after its connection broke
    restart_grace_s: float = 60.0  # after the broker started again


def _no_jitter() -> float:
    return 1.0


class LeaseRules:
    """The engine's state, and the rules for running jobs.

    Attributes:
        effects: what is to be written, delivered and told; the pump takes it and puts a fresh one here.
        jobs: id -> every unfinished job in memory: running ones, and those in the windows.
        lanes: (queue, task) -> Lane. expiry: when waiting jobs are looked through for those whose time to begin is over. keys: unique keys.
        keeping: jobs that ask to be kept for long.
        waiting, waiting_bytes: scheduled and queued jobs, in memory and in the store, and their payloads.
        totals: State -> jobs, over all lanes; see Lane.counts. requeues: how often jobs came back, ever.
        requeued_by: reason -> how often, since the start; also the reasons in RETURNS, which count as nothing else.
        tally: what is counted for those who watch.
        pauses: queues and tasks whose jobs are held back. limits: queues that have a limit. paces: how fast lanes get done.
        draining: no submit and no reserve any more. is_watched: somebody wants to know what happens, so it is noted.
        random: gives the jitter of the next pause, 0 … 1.
    """

    def __init__(self, caps: Caps = Caps(), timing: Timing = Timing(), window: Window | None = None,
                 random: Callable[[], float] = _no_jitter) -> None:
        self.caps = caps
        self.random = random
        self.timing = timing
        self.effects = Effects()
        self.ids = Numbers()
        self.fences = Numbers()
        self.jobs: dict[int, Job] = {}
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.window = window if window is not None else Window()
        self.groups = Groups()
        self.scheduled = Scheduled()
        self.expiry = Expiry()
        self.keys = Keys()
        self.keeping = Keeping(caps.kept_jobs)
        self.pauses = Pauses()
        self.limits = QueueLimits()
        self.paces = Paces()
        self.sessions: dict[int, Session] = {}
        self.waiting = 0
        self.waiting_bytes = 0
        self.parked = 0
        self.leases = 0
        self.draining = False
        self.is_watched = False
        self.tally = Tally()
        self.requeued_by: Counter[str] = Counter()
        self.damaged: dict[int, str] = {}  # id -> what of it does not match its checksum on disk
        self.aside: dict[int, str] = {}  # those that waited: out of every window, and not counted
        self.totals: list[int] = [0] * STATES
        self.requeues = 0
        self._instances: dict[bytes, Session] = {}
        self._idle_lanes: dict[Lane, None] = {}  # lanes that ran out of work; some have new work since
        self._timers: list[tuple[float, int, Session]] = []
        self._returned: dict[Lane, None] = {}  # lanes that got jobs back and must be matched before the call ends
        self._roomy: dict[Session, None] = {}  # sessions that had all leases they may hold, wait for more, and have room again
        self._order = 0

    # -- sessions -----------------------------------------------------------------------------------------------------------

    def open_session(self, session: Session, presented: list[tuple[int, int]], now: float) -> list[str | LeaseLostError]:
        """Take in a session that said hello; returns an outcome for each lease that it presents.

        Its instance's earlier session, connected or not, ends: presented leases move over, the others go back at once,
        counted as nothing.
        """
        self.sessions[session.key] = session
        earlier = self._instances.get(session.instance) if session.instance is not None else None
        outcomes: list[str | LeaseLostError] = []
        for job_id, fence in presented:
            lease = earlier.leases.get(job_id) if earlier is not None else None
            if lease is None or lease.fence != fence:
                outcomes.append(LeaseLostError(f"job {job_id} is not held under fence {fence}"))
                continue
            del earlier.leases[job_id]
            lease.session = session
            session.granted_at = max(session.granted_at, lease.granted_at)
            session.has_deadlines = session.has_deadlines or lease.deadline is not None or lease.limits is not None
            if lease.limits is not None:
                lease.limits.is_told = False  # the earlier connection may have ended before it was heard
            lease.missed_beats = 0
            session.leases[job_id] = lease
            lease.job.worker = session.name
            outcomes.append("OK")
        if earlier is not None:
            if earlier.grace_until is None:
                self.effects.closes.append(earlier)
            self._end_session(earlier, now, "not presented")
        if session.instance is not None:
            self._instances[session.instance] = session
        self.saw(session, now)
        if earlier is not None:
            session.inherited_grace = earlier.inherited_grace if earlier.grace_until is None else earlier.grace_until
        if session.leases:
            self._look_at(session, now)
        self._serve_returned(now)
        return outcomes

    def close_session(self, session: Session, now: float, *, said_bye: bool) -> None:
        """A connection ended. Without a bye its leases wait for the reconnect grace."""
        if session.key not in self.sessions:
            return
        self._unpark(session, answer=False)
        self.groups.leave(session)
        if said_bye or not session.leases:
            self._end_session(session, now, "bye")
        elif session.grace_until is None:
            session.grace_until = max(now + self.timing.reconnect_grace_s, session.inherited_grace or 0.0)
            self._look_at(session, session.grace_until)
        self._serve_returned(now)

    def _end_session(self, session: Session, now: float, reason: str) -> None:
        """Forget a session; what it still holds goes back."""
        self._unpark(session, answer=False)
        self.groups.leave(session)
        for lease in list(session.leases.values()):
            self._requeue(lease.job, now, reason)
        self.sessions.pop(session.key, None)
        if self._instances.get(session.instance) is session:
            del self._instances[session.instance]

    def _restore_lease(self, stored: StoredLease, now: float, grace_s: float) -> None:
        """Hold a lease from before the restart, for its instance, through a session that is waiting to come back."""
        # A worker without an instance cannot come back, so nothing tells which leases were of one: each is on its own.
        instance = stored.instance if any(stored.instance) else None
        session = self._instances.get(instance) if instance is not None else None
        if session is None:
            # Negative keys: these sessions have no connection and never meet those that are counted from 1.
            session = Session(-1 - len(self.sessions), role="worker", name=stored.worker, instance=instance, now=now)
            session.grace_until = now + grace_s
            self.sessions[session.key] = session
            if instance is not None:
                self._instances[instance] = session
            self._look_at(session, session.grace_until)
        job = stored.job
        self._attach(job)
        self.jobs[job.id] = job
        move(job, RUNNING)
        self._count_waiting(job, -1)
        job.lease = session.leases[job.id] = Lease(job, stored.fence, session, stored.granted_at)
        self.leases += 1
        job.checkpoint = True
        if job.extras is not None and job.extras.limits_run:
            self._limit_run(job.lease, now)

    def note_damage(self, job_id: int, what: str) -> bool:
        """Note that a job is damaged on disk; returns True if that was not known (and is not one too many to list)."""
        if job_id in self.damaged or len(self.damaged) >= MAX_DAMAGED:
            return False
        self.damaged[job_id] = what
        return True

    def saw(self, session: Session, now: float) -> None:
        """Note a sign of life: all leases of the session hold for another lease time."""
        if now > session.last_seen:  # a forgiven stall may have put it into the future; its timer stands as late
            session.last_seen = now
        session.inherited_grace = None

    # -- running jobs -------------------------------------------------------------------------------------------------------

    def _grant(self, jobs: list[Job], lane: Lane, session: Session, now: float) -> None:
        """Lease jobs that were just taken out of their lane."""
        move_all(jobs, lane, RUNNING)
        size = 0
        for job, fence in zip(jobs, self.fences.take_many(len(jobs))):
            size += job.payload_bytes
            job.lease = session.leases[job.id] = Lease(job, fence, session, now)
            job.fence = fence
            job.late_fence = 0
            job.checkpoint = False
            job.attempt += 1
            job.worker = session.name
            job.started_at = now
            if job.extras is not None:
                self._grant_extras(job, now)
        self.waiting -= len(jobs)
        self.waiting_bytes -= size
        lane.waiting_bytes -= size
        if lane.limited is not None:
            lane.limited.count(-len(jobs), -size)
        session.granted_at = now
        self.leases += len(jobs)
        if self.is_watched:
            self.effects.events += [job_event("started", job, now) for job in jobs]
        self._look_at(session, now + CHECKPOINT_AFTER_S)

    def _grant_extras(self, job: Job, now: float) -> None:
        """Do what some options ask for when a worker gets the job."""
        if job.extras.limits_run:
            self._limit_run(job.lease, now)
        if job.extras.unique_mode == "debounce":
            self.keys.moved(job)
            self.effects.dirty[job.id] = job  # with its fence on disk the key stays free after a crash

    def _limit_run(self, lease: Lease, now: float) -> None:
        """Note when the run is told to stop, and when it is over. A job that crashed before may have to wait in its worker first."""
        extras = lease.job.extras
        wait_s = SUSPECT_WAIT_S if lease.job.crashes else 0.0
        soft_s, hard_s = (None if limit_s is None else limit_s + wait_s for limit_s in (extras.soft_timeout, extras.timeout))
        lease.limits = RunLimits(soft_s, hard_s, now - lease.granted_at, now)
        lease.session.has_deadlines = True
        self._look_at(lease.session, lease.limits.next_at)

    def settle(self, items: list[SettleItem], now: float,
               loaded: dict[int, Job | Lost]) -> list[str | GreenroomError | None]:
        """Settle leases; one outcome each: "OK", "REPEATED", an error, or None: not in memory, call again with it loaded.

        Args:
            loaded: jobs as `Store.load` gave them, for the second call.
        """
        outcomes: list[str | GreenroomError | None] = []
        for item in items:
            job = self.jobs.get(item.job)
            if job is None:
                found = loaded.get(item.job)
                outcomes.append(None if found is None else self._tallied(_settle_finished(item, found)))
            elif job.lease is not None and job.lease.fence == item.fence:
                self._settle_running(job, item, now)
                outcomes.append("OK")
            else:
                outcomes.append(self._tallied(self._settle_late(job, item, now)))
        self._serve_returned(now)
        return outcomes

    def _tallied(self, outcome: str | GreenroomError) -> str | GreenroomError:
        """Count the outcome of a settle that did not end a lease."""
        if outcome == "REPEATED":
            self.tally.repeated_settles += 1
        elif outcome == "OK":
            self.tally.late_settles += 1
        elif isinstance(outcome, LeaseLostError):
            self.tally.stale_settles += 1
        return outcome

    def _settle_running(self, job: Job, item: SettleItem, now: float) -> None:
        session = job.lease.session
        if item.outcome == "ack":
            session.done += 1
            job.result, job.result_raw, job.error = item.result, item.raw, None
            self._finish(job, COMPLETED, now)
        elif item.outcome == "fail":
            session.failed += 1
            self._fail(job, item, now)
        elif item.outcome == "snooze":
            job.settled_fence = job.fence
            self._note_run(job, "snoozed", None, now)
            if job.cancel_requested:
                self._finish(job, CANCELLED, now)
            else:
                self._put_off(job, now + item.wish)
                if self.is_watched:
                    self.effects.events.append(job_event("scheduled", job, now, reason="snoozed"))
        else:
            self._requeue(job, now, item.outcome)

    def _fail(self, job: Job, item: SettleItem, now: float) -> None:
        """Count a failed run: the job is tried again later, or failed for good."""
        at = self._note_failure(job, item, now)
        if job.cancel_requested:
            self._finish(job, CANCELLED, now)
        elif at is None:
            self._finish(job, FAILED, now)
        else:
            self._put_off(job, at)
            if self.is_watched:
                self.effects.events.append(job_event("scheduled", job, now, reason="failed", error=item.error["name"]))

    def _fail_late(self, job: Job, item: SettleItem, now: float) -> None:
        """Do the same for a job that waits again, since its lease had ended: it keeps its place."""
        if self._note_failure(job, item, now) is None:
            job.lane.remove(job)
            self._finish(job, FAILED, now)
        else:
            job.late_fence = 0
            self.effects.dirty[job.id] = job

    def _note_failure(self, job: Job, item: SettleItem, now: float) -> float | None:
        """Note a failed run; returns when the next try is due, or None: there is none."""
        job.failures += 1
        if job.failed_since is None:
            job.failed_since = now
        job.settled_fence = job.fence
        job.error = item.error
        self._note_run(job, "failed", item.error, now)
        return next_try(job.extras, job.failures, job.failed_since, item.error["name"], item.wish, now, self.random())

    def _put_off(self, job: Job, at: float) -> None:
        """End a lease; the job waits until a time, and has a new place then."""
        self._end_lease(job)
        end_progress(job)
        job.run_at = at
        move(job, SCHEDULED)
        self._count_waiting(job, +1)
        self.effects.dirty[job.id] = job
        self._schedule(job)

    @staticmethod
    def _note_run(job: Job, outcome: str, error: dict[str, str] | None, now: float) -> None:
        """Add a line to the job's history. What completes a job needs none: the job's row says it."""
        if job.runs is None:
            job.runs = []
        job.runs.append(Run(job.attempt, job.worker, job.started_at, now, outcome, error))

    def _settle_late(self, job: Job, item: SettleItem, now: float) -> str | LeaseLostError:
        """Settle under a lease that ended. Accepted as long as nobody else got the job."""
        if job.settled_fence == item.fence and item.outcome in ("fail", "snooze"):
            return "REPEATED"
        if job.state is QUEUED and job.fence == item.fence:
            if item.outcome in ("nack", "unbegun", "crash"):
                return "REPEATED"
            if job.late_fence == item.fence and item.outcome == "ack":
                job.lane.remove(job)
                job.result, job.result_raw, job.error = item.result, item.raw, None
                self._finish(job, COMPLETED, now)
                return "OK"
            if job.late_fence == item.fence and item.outcome == "fail":
                self._fail_late(job, item, now)
                return "OK"
        return LeaseLostError(f"job {job.id} is not held under fence {item.fence}")

    def heartbeat(self, session: Session, listed: list[tuple[int, int]] | None, now: float, *,
                  deliveries_written: bool) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Take a sign of life; returns (listed leases that are not held, leases whose job someone wants cancelled).

        Args:
            listed: what the worker says it holds; None: it does not say.
            deliveries_written: False while deliveries may still be on their way: then a missing lease proves nothing.
        """
        self.saw(session, now)
        held = session.leases
        cancel = [(lease.job.id, lease.fence) for lease in held.values() if lease.job.cancel_requested]
        if listed is None:
            return [], cancel
        lost = [(job_id, fence) for job_id, fence in listed if job_id not in held or held[job_id].fence != fence]
        if deliveries_written:
            known = set(listed)
            for lease in list(held.values()):
                self._check_beat(lease, (lease.job.id, lease.fence) in known, now)
            self._serve_returned(now)
        return lost, cancel

    def _check_beat(self, lease: Lease, is_listed: bool, now: float) -> None:
        if is_listed:
            lease.missed_beats = 0
        elif lease.missed_beats == 0:
            lease.missed_beats = 1
            lease.missed_at = now
        elif now - lease.missed_at >= BEATS_APART_S:
            self._requeue(lease.job, now, "never arrived")

    def extend(self, leases: list[tuple[int, int]], for_s: float, now: float) -> list[str | LeaseLostError]:
        """Give each lease a deadline of its own."""
        outcomes: list[str | LeaseLostError] = []
        for job_id, fence in leases:
            job = self.jobs.get(job_id)
            if job is None or job.lease is None or job.lease.fence != fence:
                outcomes.append(LeaseLostError(f"job {job_id} is not held under fence {fence}"))
                continue
            job.lease.deadline = now + for_s
            job.lease.session.has_deadlines = True
            self._look_at(job.lease.session, job.lease.deadline)
            outcomes.append("OK")
        return outcomes

    def report(self, items: list[ReportItem], now: float) -> list[str | LeaseLostError]:
        """Take how far runs are, and their log lines. What has no line is written with the job's next row only."""
        outcomes: list[str | LeaseLostError] = []
        for item in items:
            job = self.jobs.get(item.job)
            if job is None or job.lease is None or job.lease.fence != item.fence:
                outcomes.append(LeaseLostError(f"job {item.job} is not held under fence {item.fence}"))
                continue
            if item.fraction is not None or item.text is not None:
                job.report = (job.report or Report())._replace(fraction=item.fraction, text=item.text)
                self.tally.progress_reports += 1
                if self.is_watched:
                    self.effects.events.append(progress_event(job, now))
            if item.lines:
                first = job.report.first if job.report is not None else 1
                self.effects.lines += take_lines(job, item.lines)
                self.tally.log_lines += len(item.lines)
                self.effects.dirty[job.id] = job
                if job.report.first > first:
                    self.effects.first_lines[job.id] = job.report.first
            outcomes.append("OK")
        return outcomes

    def _requeue(self, job: Job, now: float, reason: str) -> None:
        """End a lease without a result; the job goes back to its old place, or ends if it must.

        Args:
            reason: "lost" (worker gone), "expired" (silent, or its own deadline) and "crash" count as crashes; "nack", "bye" and
                "not presented" only as requeues; those in RETURNS as nothing.
        """
        session = job.lease.session
        is_crash = reason in ("lost", "expired", "crash")
        if is_crash:
            job.crashes += 1
            session.lost += 1
        if reason not in RETURNS:
            self._note_run(job, reason, None, now)
        if job.cancel_requested:
            self._finish(job, CANCELLED, now)
            return
        if is_crash and job.crashes >= MAX_CRASHES:
            job.error = {"name": "CrashLoop", "traceback": "",
                         "message": f"crash loop: {job.crashes} leases were lost, the last by {job.worker}"}
            self._finish(job, FAILED, now)
            return
        self._end_lease(job)
        end_progress(job)
        lane = job.lane
        job.late_fence = job.fence if reason in ("lost", "expired") else 0
        self.requeued_by[reason] += 1
        if reason not in RETURNS:
            job.requeues += 1
            lane.requeues += 1
            self.requeues += 1
        is_held = lane.may_hold(job.rank)
        move(job, QUEUED)
        self._count_waiting(job, +1)
        self.effects.dirty[job.id] = job
        if is_held:
            lane.put_back(job)
            self._offer(lane, job.rank)
        else:
            del self.jobs[job.id]
        if self.is_watched:
            self.effects.events.append(job_event("requeued", job, now, reason=reason))
        self._returned[lane] = None

    def _end_lease(self, job: Job) -> None:
        lease = job.lease
        if lease is not None:
            job.lease = None
            job.checkpoint = False
            session = lease.session
            del session.leases[job.id]
            self.leases -= 1
            if session.parked is not None and session not in session.group.waiters:
                self._roomy[session] = None

    def _finish(self, job: Job, to: State, now: float) -> None:
        """Move a job to a final state, from wherever the caller has taken it out."""
        if job.state is RUNNING:
            self._end_lease(job)
        else:
            self._count_waiting(job, -1)
        move(job, to)
        if job.lane.is_idle:
            self._idle_lanes[job.lane] = None
        job.finished_at = now
        if job.extras is not None and job.extras.unique_key is not None:
            self.keys.moved(job)
        self.jobs.pop(job.id, None)
        self.effects.dirty[job.id] = job
        self.effects.finished.append(job)

    def _count_waiting(self, job: Job, sign: int) -> None:
        self.waiting += sign
        self.waiting_bytes += sign * job.payload_bytes
        job.lane.waiting_bytes += sign * job.payload_bytes
        if job.lane.limited is not None:
            job.lane.limited.count(sign, sign * job.payload_bytes)

    def _offer(self, lane: Lane, rank: int) -> None:
        """Tell the lane's groups of a job with this rank, if they don't expect one as good."""
        if rank < lane.offered:
            lane.offered = rank
            for group in lane.groups:
                group.offer(lane, rank)

    def _serve_returned(self, now: float) -> None:
        """Match what a call gave back: sessions with room, jobs in their lanes. At its end, so that no grant ends in its call."""
        if self._roomy:
            sessions, self._roomy = self._roomy, {}
            for session in sessions:
                if session.parked is not None:
                    session.group.waiters[session] = None
                    self._serve(session.group, session, now)
        if self._returned:
            lanes, self._returned = self._returned, {}
            self._match(lanes, now)
            self._keep_budget()

    def _look_at(self, session: Session, at: float) -> None:
        """Have the session looked at no later than `at`; later wishes cost nothing while an earlier timer runs."""
        if session.timer_at is None or at < session.timer_at:
            session.timer_at = at
            self._order += 1
            heappush(self._timers, (at, self._order, session))


def damaged_error(found: Job) -> DamagedError:
    """Say that a loaded job is damaged."""
    return DamagedError(f"job {found.id} is damaged on disk (its {found.damage} does not match the checksum); it is kept as it is")


def _settle_finished(item: SettleItem, found: Job | Lost) -> str | GreenroomError:
    """Answer a settle of a job that is not in memory: the settle came before, or the lease is long gone."""
    if isinstance(found, Lost):
        if found.handed_out:
            return GoneError(f"job {item.job} is no longer kept")
        return NotFoundError(f"no job {item.job}")
    if found.damage is not None:
        return damaged_error(found)
    if found.settled_fence == item.fence and item.outcome in ("fail", "snooze"):
        return "REPEATED"
    repeats = {"ack": (COMPLETED,), "fail": (FAILED, CANCELLED), "snooze": (CANCELLED,), "nack": (QUEUED, CANCELLED),
               "unbegun": (QUEUED, CANCELLED), "crash": (QUEUED, CANCELLED, FAILED)}
    if found.fence == item.fence and found.state in repeats[item.outcome]:
        return "REPEATED"
    return LeaseLostError(f"job {item.job} is not held under fence {item.fence}")
