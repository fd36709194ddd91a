"""The rules of the broker: who gets which job when, and what becomes of it. Pure: `now` in, effects out.

No clock, no greenlet, no disk, no random. Every method takes `now` (seconds) where time matters, answers at once, and notes
in `effects` what must be written, delivered or told. What it decides becomes visible to anybody only after the commit that holds
it (batches.py). The rules about sessions and leases are in leases.py, those about time in deadlines.py, those for people who steer
it in controls.py, those for unique keys in duplicates.py; this class is built on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from greenroom.duplicates import DuplicateRules, Find
from greenroom.effects import Delivery, Notice
from greenroom.errors import BusyError, ConflictError, DrainingError, FinishedError, FullError, GoneError, GreenroomError, NotFoundError
from greenroom.events import job_event
from greenroom.expiry import LOOKS_APART_S
from greenroom.groups import Group
from greenroom.job import (CANCELLED, EXPIRED, FAILED, FINISHED_STATES, QUEUED, RETRYABLE_STATES, RUNNING, SCHEDULED, Job, JobOptions,
                           NewJob, State, move, rank_of)
from greenroom.job_log import end_progress
from greenroom.keeping import asks_for_long
from greenroom.lanes import BELOW_ALL, REFILL_TO, Lane
from greenroom.leases import damaged_error
from greenroom.sessions import Parked, Session
from greenroom.records import Damaged, LaneCounts, Lost, Restored
from greenroom.unique import Duplicate


_options_of = attrgetter("options")

#: Lanes dropped at once when the cap is met: 0.1 ms.
FORGET_LANES = 100


class RefillPlan(NamedTuple):
    """What to fetch for a lane: up to `limit` jobs after this rank, or (limit 0) the payloads of these jobs."""

    queue: str
    task: str
    after_rank: int
    limit: int
    payload_ids: list[int]


class Engine(DuplicateRules):
    """All jobs that are in memory, and the rules by which they move."""

    def restore(self, restored: Restored, now: float, grace_s: float) -> None:
        """Start from what the store found. Leases hold for `grace_s` from now, whatever their stored times say."""
        self.pauses.restore(restored.pauses)  # before there is a lane that somebody could take from
        self.limits.restore(restored.limits)
        for counts in restored.lanes:
            self._restore_lane(counts)
        for stored in restored.leases:
            self._restore_lease(stored, now, grace_s)
        for key, taken in restored.keys:  # before a job is finished that has one
            self.keys.take(key, taken)
        for job in restored.cancelled:
            self._attach(job)
            self._leave_waiting(job)
            self._finish(job, CANCELLED, now)
        self.aside.update(restored.damaged)
        for job_id, what in restored.damaged.items():
            self.note_damage(job_id, what)
        self.keeping.count = restored.keeping
        self._ask_scheduled()
        self.expiry.note(now)

    def _restore_lane(self, counts: LaneCounts) -> None:
        self.requeues += counts.requeued
        if len(self.lanes) >= self.caps.lanes and not (counts.queued or counts.scheduled):
            # The store knows all lanes that ever were; of those without work memory keeps the totals alone.
            for state in FINISHED_STATES:
                self.totals[state] += getattr(counts, state.label)
            return
        lane = self._new_lane(counts.queue, counts.task)
        for state in State:
            lane.count(state, getattr(counts, state.label, 0))
        if lane.is_idle:
            self._idle_lanes[lane] = None
        lane.requeues = counts.requeued
        lane.edge = BELOW_ALL if counts.queued else None
        self.scheduled.total += counts.scheduled
        if counts.scheduled:
            self.scheduled.edge = (0.0, 0)
        self.waiting += counts.scheduled + counts.queued
        self.waiting_bytes += counts.waiting_bytes
        lane.waiting_bytes = counts.waiting_bytes
        if lane.limited is not None:
            lane.limited.count(counts.scheduled + counts.queued, counts.waiting_bytes)

    # -- submit and cancel ------------------------------------------------------------------------------------------------

    def submit(self, items: list[NewJob], now: float, find: Find | None = None) -> list[int | Duplicate | GreenroomError]:
        """Accept new jobs; returns an id, the job that has its unique key already, or the error of that item, for each.

        Args:
            find: knows the jobs that are not in memory and have a unique key of these (key_holders.py).

        Raises BusyError, FullError or DrainingError for all of them together, with nothing changed.
        """
        self.check_room(len(items), sum(len(item.payload) for item in items))
        outcomes: list[int | Duplicate | GreenroomError] = []
        touched: dict[Lane, None] = {}
        # Jobs that ask for the same are mostly neighbours; what they have in common is done once for all, which halves their cost.
        for options, run in groupby(items, key=_options_of):
            payloads = [item.payload for item in run]
            if options.extras is not None and options.extras.unique_key is not None:
                outcomes += [self._accept_unique(options, payload, touched, now, find) for payload in payloads]
                continue
            try:
                lane = self._lane_for(options.queue, options.task)
            except FullError as exc:
                outcomes += [exc] * len(payloads)
                continue
            if lane.limited is not None or options.extras is not None:
                outcomes += [made.id if isinstance(made, Job) else made for made in self._accept_within(options, payloads, lane, now)]
            else:
                outcomes += [job.id for job in self._accept(options, payloads, lane, now)]
            touched[lane] = None
        self._match(touched, now)
        self._keep_budget()
        return outcomes

    def _accept_within(self, options: JobOptions, payloads: list[bytes], lane: Lane, now: float) -> list[Job | GreenroomError]:
        """Accept those jobs for which there is room: in their queue, if it has a limit, and among those that ask to be kept for long."""
        room = self.keeping.room(options.extras, len(payloads))
        refusals: list[GreenroomError | None] = [None] * room
        if lane.limited is not None:
            refusals = lane.limited.refusals(options.priority, map(len, payloads[:room]), self.paces, now)
        refusals += [self.keeping.full_error()] * (len(payloads) - room)
        fitting = [payload for payload, refusal in zip(payloads, refusals) if refusal is None]
        if lane.is_idle:
            self._idle_lanes[lane] = None  # if none fits, that is what it stays
        accepted = iter(self._accept(options, fitting, lane, now) if fitting else ())
        return [next(accepted) if refusal is None else refusal for refusal in refusals]

    def check_room(self, count: int, size: int) -> None:
        """Raise BusyError, FullError or DrainingError if so many jobs with so many bytes of payloads cannot be accepted now."""
        if self.draining:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        if self.waiting + count > self.caps.waiting_jobs:
            raise FullError(f"{self.waiting} jobs wait, the cap is {self.caps.waiting_jobs}", retry_after_s=5.0)
        if self.waiting_bytes + size > self.caps.waiting_bytes:
            raise FullError(f"waiting payloads are at their cap of {self.caps.waiting_bytes} bytes", retry_after_s=5.0)
        if self.ids.left < count:
            raise BusyError("job numbers are being fetched", retry_after_s=0.05)

    def _accept(self, options: JobOptions, payloads: list[bytes], lane: Lane, now: float) -> list[Job]:
        """Make jobs of one lane that ask for the same, and put them where they wait."""
        task, raw, queue, priority, run_at, delay, extras = options
        if delay is not None:
            run_at = now + delay
        jobs = [Job(number, queue, task, priority, payload, raw, now)
                for number, payload in zip(self.ids.take_many(len(payloads)), payloads)]
        dirty = self.effects.dirty
        size = 0
        for job in jobs:
            job.lane = lane
            job.run_at = run_at
            job.extras = extras
            size += job.payload_bytes
            dirty[job.id] = job
        self.waiting += len(jobs)
        self.waiting_bytes += size
        lane.waiting_bytes += size
        if lane.limited is not None:
            lane.limited.count(len(jobs), size)
        if extras is not None:
            self.keeping.count += len(jobs) * asks_for_long(extras)
            if extras.expires_in is not None:
                by = max(now, run_at or now) + extras.expires_in
                self.expiry.note(by)
                for job in jobs:
                    job.expires_at = by
        if run_at is not None and run_at > now:
            lane.count(SCHEDULED, len(jobs))
            for job in jobs:
                job.state = SCHEDULED
                self._schedule(job)
        elif lane.edge is None:
            self._enqueue_all(jobs, lane, size)
        else:
            for job in jobs:
                self._enqueue_new(job, job.id)
                lane.count(QUEUED, 1)  # one by one: the next one's place depends on it
        if self.is_watched:
            self.effects.events += [job_event("submitted", job, now) for job in jobs]
        return jobs

    def _enqueue_all(self, jobs: list[Job], lane: Lane, size: int) -> None:
        """Put new jobs of one priority into a lane that is in memory as a whole, their ids being their places."""
        base = rank_of(jobs[0].priority, 0)
        for job in jobs:
            job.place = job.id
            job.rank = base + job.id
            self.jobs[job.id] = job
        lane.extend(jobs, size)
        lane.count(QUEUED, len(jobs))
        self._offer(lane, jobs[0].rank)

    def _schedule(self, job: Job) -> None:
        if self.scheduled.add(job):
            self.jobs[job.id] = job
        else:
            self.jobs.pop(job.id, None)
        self._shrink_scheduled()

    def _shrink_scheduled(self) -> None:
        if self.scheduled.is_over:
            for dropped in self.scheduled.shrink():
                self.jobs.pop(dropped.id, None)

    def _enqueue_new(self, job: Job, place: int) -> None:
        """Give a job its place, an id or another number of that sequence, and put it into its lane; the caller counts it."""
        lane = job.lane
        job.place = place
        job.rank = rank_of(job.priority, job.place)
        if lane.may_hold(job.rank):
            self.jobs[job.id] = job
            lane.append(job)
            self._offer(lane, job.rank)
        else:
            self.jobs.pop(job.id, None)

    def cancel(self, job_id: int, now: float, loaded: Job | Lost | None = None) -> str | None:
        """Cancel a job: "cancelled" at once if it waits, "requested" if it runs.

        Args:
            loaded: the job as `Store.load` gave it, when an earlier call answered None: not in memory, load it first.

        Raises FinishedError, NotFoundError or GoneError.
        """
        job = self._unfinished(job_id, loaded)
        if job is None:
            return None
        if job.state is RUNNING:
            if not job.cancel_requested:
                job.cancel_requested = True
                self.effects.dirty[job.id] = job
                self.effects.notices.append(Notice(job.lease.session, "cancel", [(job.id, job.lease.fence)]))
            return "requested"
        self._leave_waiting(job)
        self._finish(job, CANCELLED, now)
        return "cancelled"

    def _unfinished(self, job_id: int, loaded: Job | Lost | None) -> Job | None:
        """Return a job that is not over, from memory or as loaded, or None: load it. Raises as `cancel` does."""
        job = self.jobs.get(job_id)
        if job is None:
            if loaded is None:
                return None
            job = self.check_there(job_id, loaded)
            if job.state in FINISHED_STATES:
                raise FinishedError(f"job {job_id} is already {job.state.label}")
            self._attach(job)
        return job

    def retry(self, job_id: int, now: float, loaded: Job | Lost | None = None) -> str | None:
        """Let a job that failed, was cancelled or expired wait again, behind all others of its priority: "queued".

        Its failures and crashes are counted from nought; its history stays.

        Args:
            loaded: as in `cancel`.

        Raises ConflictError for a job in another state, NotFoundError or GoneError, and what `check_room` raises.
        """
        job = self._known(job_id, loaded)
        if job is None:
            return None
        if job.state not in RETRYABLE_STATES:
            raise ConflictError(f"job {job_id} is {job.state.label}: only what failed, was cancelled or expired can be retried")
        self.check_room(1, job.payload_bytes)
        self.check_limit(job.queue, job.priority, 1, job.payload_bytes, job.payload_bytes, now)
        self._claim_again(job, now)
        self._attach(job)
        job.failures = job.crashes = 0
        job.failed_since = job.finished_at = job.run_at = job.expires_at = job.error = None
        job.cancel_requested = False
        end_progress(job)
        if not job.lane.counts[job.state]:
            job.lane.counts[job.state] = 1  # the lane was forgotten, and its counts with it
        self._count_waiting(job, +1)
        self._enqueue_new(job, self.ids.take())
        move(job, QUEUED)
        self.effects.dirty[job.id] = job
        if self.is_watched:
            self.effects.events.append(job_event("retried", job, now))
        self._match({job.lane: None}, now)
        self._keep_budget()
        return "queued"

    def _known(self, job_id: int, loaded: Job | Lost | None) -> Job | None:
        """Return a job from memory or as loaded, or None: load it. Raises as `check_there` does."""
        job = self.jobs.get(job_id)
        return self.check_there(job_id, loaded) if job is None and loaded is not None else job

    @staticmethod
    def check_there(job_id: int, loaded: Job | Lost) -> Job:
        """Return a loaded job, or raise NotFoundError, GoneError or DamagedError."""
        if isinstance(loaded, Lost):
            if loaded.handed_out:
                raise GoneError(f"job {job_id} is no longer kept")
            raise NotFoundError(f"no job {job_id}")
        if loaded.damage is not None:
            raise damaged_error(loaded)
        return loaded

    def _attach(self, job: Job) -> None:
        """Tie a job that came from the store to its lane."""
        job.lane = self.lanes.get((job.queue, job.task)) or self._new_lane(job.queue, job.task)

    def _leave_waiting(self, job: Job) -> None:
        """Take a scheduled or queued job out of its window, wherever it is; the caller finishes it."""
        in_memory = job.id in self.jobs
        if job.state is SCHEDULED:
            self.scheduled.remove(job, in_memory=in_memory)
            self._ask_scheduled()
        elif in_memory:
            job.lane.remove(job)

    # -- reserve ------------------------------------------------------------------------------------------------------------

    def reserve(self, session: Session, request_id: int, n: int, queues: list[str] | None, tasks: list[str] | None,
                wait_s: float, now: float) -> None:
        """Open a reserve of this session; the answer comes as a Delivery, at once or later.

        A session that ended, because its instance came back on another connection, gets nothing.

        Raises DrainingError, or FullError with the session's older reserve left as it was.
        """
        if self.draining:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        if self.sessions.get(session.key) is not session:
            self.effects.deliveries.append(Delivery(session, request_id, []))
            return
        if n and session.parked is None and self.parked >= self.caps.parked:
            raise FullError(f"{self.parked} reserves are open, the cap", retry_after_s=1.0)
        self.saw(session, now)
        self._unpark(session, answer=True)
        session.queues = None if queues is None else frozenset(queues)
        session.tasks = None if tasks is None else frozenset(tasks)
        group = self.groups.join(session, session.queues, session.tasks)
        if n == 0:
            self.effects.deliveries.append(Delivery(session, request_id, []))
            return
        self._order += 1
        session.parked = Parked(request_id, n, now + wait_s, self._order)
        self.parked += 1
        is_blocked = self._serve(group, session, now)
        if session.parked is None:
            return
        if wait_s <= 0 and not is_blocked:
            self._unpark(session, answer=True)
            return
        if self._room(session) > 0:
            group.waiters[session] = None
        self._look_at(session, session.parked.deadline)

    def drain(self) -> None:
        """Take no submit and no reserve any more, answer the open reserves, and write every lease."""
        self.draining = True
        for session in self.sessions.values():
            self._unpark(session, answer=True)
        self.checkpoint_all()

    def _unpark(self, session: Session, *, answer: bool) -> None:
        parked = session.parked
        if parked is None:
            return
        session.parked = None
        self.parked -= 1
        if session.group is not None:
            session.group.waiters.pop(session, None)
        if answer:
            self.effects.deliveries.append(Delivery(session, parked.request_id, []))

    def _room(self, session: Session) -> int:
        return self.caps.leases_per_session - len(session.leases)

    def _match(self, lanes: dict[Lane, None], now: float, *, was_blocked: bool = False) -> None:
        """Serve open reserves from lanes that got jobs: who waits longest first.

        Args:
            was_blocked: reserves may have waited for this lane although others had jobs for them; so try each group.
        """
        for lane in lanes:
            waiting = [(next(iter(group.waiters)).parked.order, group) for group in lane.groups if group.waiters]
            while waiting and (was_blocked or lane.best_rank() is not None):
                entry = min(waiting, key=_order_of)
                waiting.remove(entry)
                group = entry[1]
                session = next(iter(group.waiters), None)
                if session is None:
                    continue
                self._serve(group, session, now)
                # Who still waits needs the store first, and so does the rest of its group; other groups need not.
                if session.parked is None and group.waiters:
                    waiting.append((next(iter(group.waiters)).parked.order, group))

    def _serve(self, group: Group, session: Session, now: float) -> bool:
        """Give a parked session what there is. Returns True if a better job must come from the store first."""
        parked = session.parked
        wanted = min(parked.n, self._room(session), self.caps.reserve_jobs)
        taken: list[Job] = []
        size = 0
        is_blocked = False
        while len(taken) < wanted:
            lane = group.best_lane()
            if lane is None or (taken and size + lane.head_bytes > self.caps.reserve_bytes):
                break
            if not self.fences.left or not lane.is_head_ready:
                is_blocked = True  # refilled, or add_numbers, goes on from here
                if self.fences.left:
                    self._ask_refills(group, lane)
                break
            run = lane.take(min(wanted - len(taken), self.fences.left), group.rival_rank(), self.caps.reserve_bytes - size)
            if self.expiry.may_happen:
                run = self._in_time(run, now)
                if not run:
                    continue
            self._grant(run, lane, session, now)
            taken += run
            size += sum(job.payload_bytes for job in run)
            if lane.wants_refill:
                self._ask_refill(lane)
        if taken:
            self.tally.grants += len(taken)
            self._unpark(session, answer=False)
            self.effects.deliveries.append(Delivery(session, parked.request_id, taken))
        return is_blocked

    def _in_time(self, jobs: list[Job], now: float) -> list[Job]:
        """Return those of some jobs, just taken out of their lane, that may still begin; the others are expired."""
        late = [job for job in jobs if job.expires_at is not None and job.expires_at <= now and not job.attempt]
        for job in late:
            self._finish(job, EXPIRED, now)
        return [job for job in jobs if job.state is QUEUED] if late else jobs

    def expire(self, rows: list[Job], next_at: float | None, now: float) -> None:
        """End waiting jobs that should have begun by now, as `Store.take_expired` gave them; `next_at` is when more are late."""
        for row in rows:
            job = self.jobs.get(row.id)
            if job is not None and (job.attempt or job.expires_at is None):
                job.expires_at = None  # it has begun; said on disk too, or it would be found again and again
                self.effects.dirty[job.id] = job
                continue
            if job is None:
                job = row
                if job.damage is not None:
                    continue  # it is set aside when its turn comes
                self._attach(job)
            self._leave_waiting(job)
            self._finish(job, EXPIRED, now)
        if next_at is not None:
            self.expiry.note(max(next_at, now + LOOKS_APART_S))

    # -- windows ------------------------------------------------------------------------------------------------------------

    def _ask_refill(self, lane: Lane) -> None:
        if not lane.is_filling:
            lane.is_filling = True
            self.effects.refills.append(lane)

    def _ask_refills(self, group: Group, lane: Lane) -> None:
        """Ask for the lane that a reserve waits for, and before it for some that come next: all are there when it goes on.

        With more lanes than the window holds, or after a restart, each reserve would else get one job a look into the store.
        """
        for other in group.next_lanes():
            if other is not lane and other.in_store > 0 and other.head() is None:
                self._ask_refill(other)
        self._ask_refill(lane)

    def refill_plan(self, lane: Lane) -> RefillPlan | None:
        """Tell what to fetch for a lane that asked, or None: nothing (any more). Answer with `refilled` either way."""
        head = lane.head()
        if not lane.groups:
            return None  # nobody can run its jobs (any more)
        if head is not None and head.payload is None:
            return RefillPlan(lane.queue, lane.task, 0, 0, lane.unloaded())
        missing = min(self.window.slice_rows(lane.mean_bytes), REFILL_TO - lane.in_memory)
        if lane.in_store > 0 and lane.edge is not None and missing > 0 and (head is None or self.window.has_room):
            return RefillPlan(lane.queue, lane.task, lane.edge, missing, [])
        return None

    def refilled(self, lane: Lane, plan: RefillPlan | None, rows: list[Job], payloads: dict[int, bytes], now: float) -> None:
        """Take in what the store gave for a plan: jobs after the edge (fewer than asked: there are no more), or payloads.

        Rows of jobs that the engine holds already (a running job's grant need not be on disk) are skipped.
        """
        lane.is_filling = False
        self.tally.refills += plan is not None
        self.tally.refilled += len(rows)
        granted = self.tally.grants
        if plan is not None and plan.limit:
            edge = plan.after_rank
            for job in rows:
                if job.id in self.jobs:
                    edge = job.rank if job.damage is None else edge
                elif job.damage is not None:
                    self._set_aside(job, lane, QUEUED, now)
                else:
                    edge = job.rank
                    job.lane = lane
                    self.jobs[job.id] = job
                    lane.append(job)
            lane.edge = None if len(rows) < plan.limit else edge  # a damaged row's rank says nothing; its next slice lacks it
        elif plan is not None:
            self._take_payloads(plan.payload_ids, payloads, now)
        rank = lane.best_rank()
        if rank is not None:
            self._offer(lane, rank)
        if plan is not None and self.refill_plan(lane) is not None:
            self._ask_refill(lane)  # the next slice
        self._match({lane: None}, now, was_blocked=True)
        self._answer_all_late(lane.groups, now)
        self.tally.grants_after_refill += self.tally.grants - granted
        self._keep_budget()

    def _take_payloads(self, ids: list[int], payloads: dict[int, bytes], now: float) -> None:
        """Give queued jobs in memory the payloads they lack; one whose payload the store could not give is set aside."""
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is None or job.payload is not None or job.state is not QUEUED:
                continue
            if job_id in payloads:
                job.payload = payloads[job_id]
                self.window.payload_bytes += job.payload_bytes
                continue
            job.damage = "payload"
            job.lane.remove(job)
            del self.jobs[job_id]
            self._set_aside(job, job.lane, QUEUED, now)
            job.state = FAILED  # of this forgotten object alone: its entry in the lane is skipped like a finished job's

    def _set_aside(self, job: Job, lane: Lane, counted: State, now: float) -> None:
        """Count a damaged job out of its lane and have the store do the same. Its fields mean nothing but for its id."""
        if job.id in self.aside:
            return
        self.aside[job.id] = job.damage
        self.note_damage(job.id, job.damage)
        size = job.payload_bytes if job.damage == "payload" else len(job.payload or b"")
        size = min(size, lane.waiting_bytes, self.waiting_bytes)
        lane.count(counted, -1)
        lane.waiting_bytes -= size
        self.waiting_bytes -= size
        self.waiting -= 1
        if lane.limited is not None:
            lane.limited.count(-1, -size)
        self.effects.damaged.append(Damaged(job.id, job.damage, now, lane.queue, lane.task, counted, size))

    def _answer_all_late(self, groups: Iterable[Group], now: float) -> None:
        """Answer reserves that waited longer than they wanted, for the store, once it turns out that nothing is there."""
        for group in groups:
            for session in [waiter for waiter in group.waiters if waiter.parked.deadline <= now]:
                self._answer_late(session, now)

    def _answer_late(self, session: Session, now: float) -> None:
        """Answer a reserve whose time is over, unless a job for it is on its way from the store: then that comes first."""
        is_blocked = self._serve(session.group, session, now)
        if session.parked is not None and not is_blocked:
            self._unpark(session, answer=True)

    def add_numbers(self, name: str, first: int, count: int, now: float) -> None:
        """Take in a block of numbers from the store: "job" (ids and places) or "fence"."""
        numbers = self.ids if name == "job" else self.fences
        was_empty = not numbers.left
        numbers.add(first, count)
        if was_empty and name == "fence":
            self._match({lane: None for group in self.groups if group.waiters for lane in group.lanes}, now, was_blocked=True)
            self._answer_all_late(self.groups, now)

    def scheduled_slice(self) -> int:
        """Tell how many scheduled jobs to fetch at once."""
        return self.window.slice_rows(self.waiting_bytes // max(1, self.waiting))

    def scheduled_refilled(self, rows: list[Job], asked: int, now: float) -> None:
        """Take in scheduled jobs that the store gave for `take_scheduled(edge, asked)`."""
        edge = self.scheduled.edge
        for job in rows:
            if job.id in self.jobs:
                edge = (job.run_at, job.id) if job.damage is None else edge
            elif job.damage is not None:
                lane = self._lane_that_counts(job)
                if lane is not None:
                    self.scheduled.total -= job.id not in self.aside
                    self._set_aside(job, lane, SCHEDULED, now)
            else:
                edge = (job.run_at, job.id)
                self._attach(job)
                self.jobs[job.id] = job
                self.scheduled.load(job)
        self.scheduled.is_filling = False
        self.scheduled.edge = None if len(rows) < asked else edge

    def _lane_that_counts(self, job: Job) -> Lane | None:
        """Return the lane among whose scheduled jobs a damaged one is; any other that has some if its names can't be believed."""
        lane = self.lanes.get((job.queue, job.task))
        if lane is not None and lane.counts[SCHEDULED] > 0:
            return lane
        return next((lane for lane in self.lanes.values() if lane.counts[SCHEDULED] > 0), None)

    def _ask_scheduled(self) -> None:
        if self.scheduled.wants_refill and not self.scheduled.is_filling:
            self.scheduled.is_filling = True
            self.effects.wants_scheduled = True

    def _keep_budget(self) -> None:
        if not self.window.is_over:
            return
        # No group has to be told: lanes that one takes from keep their heads.
        for job in self.window.shrink(self.lanes.values()):
            self.jobs.pop(job.id, None)

    # -- lanes --------------------------------------------------------------------------------------------------------------

    def _lane_for(self, queue: str, task: str) -> Lane:
        lane = self.lanes.get((queue, task))
        if lane is not None:
            return lane
        if len(self.lanes) >= self.caps.lanes and not self._forget_idle_lanes():
            raise FullError(f"{len(self.lanes)} queues and tasks have work, the cap", field="queue")
        return self._new_lane(queue, task)

    def _new_lane(self, queue: str, task: str) -> Lane:
        lane = self.lanes[queue, task] = Lane(queue, task, self.window, self.totals)
        lane.is_closed = bool(self.pauses.of(queue, task))
        limited = self.limits.get(queue)
        if limited is not None:
            limited.attach(lane)
        self.groups.add_lane(lane)
        return lane

    def _forget_idle_lanes(self) -> bool:
        """Drop some lanes without work from memory; the totals keep their counts. Returns whether any went."""
        gone = 0
        while self._idle_lanes and gone < FORGET_LANES:
            lane, _ = self._idle_lanes.popitem()
            if lane.is_idle:
                self.groups.drop_lane(lane)
                if lane.limited is not None:
                    lane.limited.detach(lane)
                del self.lanes[lane.queue, lane.task]
                gone += 1
        return gone > 0


def _order_of(entry: tuple[int, Group]) -> int:
    return entry[0]
