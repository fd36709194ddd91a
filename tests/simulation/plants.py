"""Bugs planted into the real product, one at a time, to show that the simulator finds each within a stated number of seeds.

A plant replaces one function of the product by one that is a little wrong. Bugs like these were met in other brokers, or while
this one was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from greenroom import batches, engine, leases, sessions
from greenroom.batches import Batches
from greenroom.deadlines import DeadlineRules
from greenroom.effects import Delivery
from greenroom.engine import Engine
from greenroom.errors import BusyError, GreenroomError
from greenroom.events import EventLog
from greenroom.job import Job, State, rank_of
from greenroom.lanes import Lane
from greenroom.leases import LeaseRules
from greenroom.queue_limits import LimitedQueue
from greenroom.records import Gone, LogLine, Lost, Restored, SettleItem, Submission
from greenroom.scheduled import Scheduled
from greenroom.sessions import RunLimits
from greenroom.stores.memory import MemoryStore
from greenroom.subscriptions import Subscriptions
from greenroom.suspects import Suspects
from greenroom.unique import Keys, is_claim_over

Function = Callable[..., Any]


class Plant(NamedTuple):
    """A bug: `make` gets the real function and returns a wrong one. Found within so many seeds."""

    name: str
    owner: object
    attribute: str
    make: Callable[[Function], Function]
    within: int


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Have the product be wrong for a while."""
    real = getattr(plant.owner, plant.attribute)
    setattr(plant.owner, plant.attribute, plant.make(real))
    try:
        yield
    finally:
        setattr(plant.owner, plant.attribute, real)


def fence_not_checked(real: Function) -> Function:
    """A settle names the job alone, as in brokers that acknowledge by id."""
    def settle(self: LeaseRules, items: list[SettleItem], now: float, loaded: dict[int, Job | Lost]) -> list[object]:
        held = [self.jobs.get(item.job) for item in items]
        return real(self, [item._replace(fence=job.lease.fence) if job is not None and job.lease is not None else item
                           for item, job in zip(items, held)], now, loaded)
    return settle


def late_settle_after_redelivery(real: Function) -> Function:
    """A late settle is taken although somebody else got the job."""
    def settle_late(self: LeaseRules, job: Job, item: SettleItem, now: float) -> object:
        if job.state is State.RUNNING and item.outcome == "ack" and item.fence < job.fence:
            job.result, job.result_raw = item.result, item.raw
            self._finish(job, State.COMPLETED, now)
            return "OK"
        return real(self, job, item, now)
    return settle_late


def repeat_accepted_again(real: Function) -> Function:
    """A repeated settle is told to be the first."""
    def settle_finished(item: SettleItem, found: Job | Lost) -> object:
        outcome = real(item, found)
        return "OK" if outcome == "REPEATED" else outcome
    return settle_finished


def terminal_job_changes(real: Function) -> Function:
    """A repeated settle finishes the job once more."""
    def settle(self: LeaseRules, items: list[SettleItem], now: float, loaded: dict[int, Job | Lost]) -> list[object]:
        for item in items:
            found = loaded.get(item.job)
            if isinstance(found, Job) and found.state is State.COMPLETED and found.fence == item.fence:
                self._attach(found)
                found.finished_at = now
                self.effects.dirty[found.id] = found
        return real(self, items, now, loaded)
    return settle


def answer_before_commit(real: Function) -> Function:
    """Replies do not wait for the COMMIT."""
    def hold(self: Batches, peer: object, request_id: int, answer: object) -> None:
        if peer is not None:
            batches._send([(peer, request_id, answer)])
    return hold


def delivery_before_commit(real: Function) -> Function:
    """Deliveries do not wait for the COMMIT."""
    def deliver(self: Batches, delivery: Delivery) -> None:
        if delivery.session.conn is not None:
            batches._send([(delivery.session.conn, delivery.request_id, {"jobs": batches._delivered(delivery)})])
    return deliver


def refill_during_commit(real: Function) -> Function:
    """A lane that runs dry is refilled at once."""
    def collect(self: Batches) -> None:
        real(self)
        if self._refills and self._closed is not None:
            self._refill(0.0)
    return collect


def unknown_as_refusal(real: Function) -> Function:
    """After a failed COMMIT clients are told that nothing was stored."""
    def failed(self: Batches) -> None:
        for batch in (self._closed, self._gathering):
            if batch is not None:
                batches._send([(peer, request_id, BusyError("try again")) for peer, request_id, _ in batch.leaving
                               if peer is not None and request_id is not None])
    return failed


def lost_requeue(real: Function) -> Function:
    """A job that comes back is counted, but in no lane."""
    def put_back(self: Lane, job: Job) -> None:
        self._count_in(job)
    return put_back


def window_edge_off_by_one(real: Function) -> Function:
    """The first job beyond the window counts as within."""
    def drop_tail(self: Lane, count: int, keep: int) -> list[Job]:
        dropped = real(self, count, keep)
        if dropped:
            self.edge += 1
        return dropped
    return drop_tail


def place_reset(real: Function) -> Function:
    """A job that comes back goes to the end of its queue."""
    def requeue(self: LeaseRules, job: Job, now: float, reason: str) -> None:
        job.place += 1000
        job.rank = rank_of(job.priority, job.place)
        real(self, job, now, reason)
    return requeue


def crash_counted_twice(real: Function) -> Function:
    """Both the connection's end and the grace's end count."""
    def requeue(self: LeaseRules, job: Job, now: float, reason: str) -> None:
        job.crashes += reason == "lost"
        real(self, job, now, reason)
    return requeue


def ghost_lease(real: Function) -> Function:
    """A finished job's lease stays with its session."""
    def end_lease(self: LeaseRules, job: Job) -> None:
        job.lease = None
        self.leases -= 1
    return end_lease


def early_redelivery(real: Function) -> Function:
    """A silent worker's leases end after half the time."""
    def review_leases(self: DeadlineRules, session: sessions.Session, now: float, limit: int) -> int:
        timing, self.timing = self.timing, self.timing._replace(lease_s=self.timing.lease_s / 2)
        try:
            return real(self, session, now, limit)
        finally:
            self.timing = timing
    return review_leases


def no_grace(real: Function) -> Function:
    """A worker whose connection broke loses its jobs at once."""
    def close_session(self: LeaseRules, session: sessions.Session, now: float, *, said_bye: bool) -> None:
        real(self, session, now, said_bye=said_bye)
        if session.grace_until is not None:
            session.grace_until = now
            self._look_at(session, now)
    return close_session


def stall_not_forgiven(real: Function) -> Function:
    """After a stall of the broker its workers' silence counts."""
    def forgive(self: DeadlineRules, late_s: float) -> None:
        """Nothing is forgiven."""
    return forgive


def no_restart_grace(real: Function) -> Function:
    """Leases that were on disk hold for no time."""
    def restore(self: Engine, restored: Restored, now: float, grace_s: float) -> None:
        real(self, restored, now, 0.0)
    return restore


def cancel_forgotten(real: Function) -> Function:
    """A restart does not look for cancels."""
    def restore(self: Engine, restored: Restored, now: float, grace_s: float) -> None:
        real(self, restored._replace(cancelled=[]), now, grace_s)
    return restore


def lease_not_kept(real: Function) -> Function:
    """A broker that stops writes no leases."""
    def checkpoint_all(self: DeadlineRules) -> None:
        """Nothing is written."""
    return checkpoint_all


def submission_forgotten(real: Function) -> Function:
    """Submission ids do not survive a restart."""
    def opened(self: MemoryStore) -> Restored:
        self._submissions.clear()
        return real(self)
    return opened


def counter_drift(real: Function) -> Function:
    """The store counts requeues of a finished job wrongly."""
    def count(self: MemoryStore, job: Job) -> None:
        if job.state is State.COMPLETED:
            job.stored_requeues = job.requeues
        real(self, job)
        self._counts[job.queue, job.task][State.COMPLETED] -= job.state is State.COMPLETED and job.requeues > 0
    return count


def scheduled_too_early(real: Function) -> Function:
    """Scheduled jobs fall due a second before their time."""
    def pop_due(self: Scheduled, now: float) -> Job | None:
        return real(self, now + 1.0)
    return pop_due


def cancelled_job_stays_queued(real: Function) -> Function:
    """A cancel of a queued job is confirmed and not done."""
    def cancel(self: Engine, job_id: int, now: float, loaded: Job | Lost | None = None) -> str | None:
        job = self.jobs.get(job_id)
        return "cancelled" if job is not None and job.state is State.QUEUED else real(self, job_id, now, loaded)
    return cancel


def payloads_mixed(real: Function) -> Function:
    """A delivery of several jobs has the first one's payload for all."""
    def delivered(delivery: Delivery) -> list[list[object]]:
        rows = real(delivery)
        for row in rows[1:]:
            row[3] = rows[0][3]
        return rows
    return delivered


def crashes_not_told(real: Function) -> Function:
    """A delivery does not tell that its job crashed before."""
    def delivered(delivery: Delivery) -> list[list[object]]:
        return [row[:8] for row in real(delivery)]
    return delivered


def suspects_together(real: Function) -> Function:
    """A worker runs jobs that crashed before beside others."""
    def is_suspect(self: Suspects, crashes: int) -> bool:
        return False
    return is_suspect


def another_outcome(real: Function) -> Function:
    """A resend is told of another job."""
    def find_submission(self: Batches, submission_id: bytes, found: Function) -> None:
        real(self, submission_id, lambda known: found(known._replace(outcome="[1]") if known is not None else None))
    return find_submission


def priority_ignored(real: Function) -> Function:
    """Jobs queue in the order in which they came, whatever their priority."""
    def rank(priority: int, place: int) -> int:
        return real(5, place)
    return rank


def line_lost(real: Function) -> Function:
    """The last log line of a batch is not written."""
    def add_lines(self: MemoryStore, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        real(self, lines[:-1], first_lines)
    return add_lines


def kept_too_briefly(real: Function) -> Function:
    """What asks to be kept for a time goes a second before it is over."""
    def prune_kept(self: MemoryStore, now: float, limit: int) -> Gone:
        return real(self, now + 1.0, limit)
    return prune_kept


def kept_too_long(real: Function) -> Function:
    """The last of those that are kept no longer stays."""
    def prune_kept(self: MemoryStore, now: float, limit: int) -> Gone:
        return real(self, now, limit if len(self._kept) > 1 else 0)
    return prune_kept


def event_before_commit(real: Function) -> Function:
    """What happened is told at once."""
    def note(self: EventLog, noted: list[dict]) -> int:
        last = real(self, noted)
        self.show(last)
        return last
    return note


def event_left_out(real: Function) -> Function:
    """Nobody hears that a job came back."""
    def note(self: EventLog, noted: list[dict]) -> int:
        return real(self, [event for event in noted if event["kind"] != "requeued"])
    return note


def gap_not_told(real: Function) -> Function:
    """Who comes back is not told what it missed."""
    def open_(self: Subscriptions, *args: object) -> dict[str, object]:
        return {**real(self, *args), "gap": False}
    return open_


def soft_limit_early(real: Function) -> Function:
    """A run is told to stop after half its time."""
    def limits(soft_s: float | None, *args: float | None) -> RunLimits:
        return real(soft_s and soft_s / 2, *args)
    return limits


def one_too_many(real: Function) -> Function:
    """A full queue takes one more."""
    def refusals(self: LimitedQueue, priority: int, *args: object) -> list[GreenroomError | None]:
        limit = self.limit
        self.limit = limit._replace(jobs=limit.jobs and limit.jobs + 1)
        try:
            return real(self, priority, *args)
        finally:
            self.limit = limit
    return refusals


def limits_forgotten(real: Function) -> Function:
    """A restart knows no limits any more."""
    def open_(self: MemoryStore) -> Restored:
        return real(self)._replace(limits=[])
    return open_


def replaced_payload_not_written(real: Function) -> Function:
    """A job that got another payload keeps the old one on disk."""
    def apply(self: MemoryStore, jobs: list[Job], submissions: list[Submission]) -> None:
        for job in jobs:
            if job.rewrite is not None:
                job.rewrite = job.rewrite._replace(has_payload=False)
        real(self, jobs, submissions)
    return apply


def key_freed_whoever_has_it(real: Function) -> Function:
    """A job whose claim is over frees its key, although another has that by now."""
    def moved(self: Keys, job: Job) -> None:
        if is_claim_over(job):
            self._taken.pop(job.extras.unique_key, None)
    return moved


PLANTS = [
    Plant("fence not checked", LeaseRules, "settle", fence_not_checked, 40),
    Plant("late settle accepted after redelivery", LeaseRules, "_settle_late", late_settle_after_redelivery, 40),
    Plant("repeated settle accepted again", leases, "_settle_finished", repeat_accepted_again, 40),
    Plant("a terminal job changes", LeaseRules, "settle", terminal_job_changes, 40),
    Plant("answer before commit", Batches, "hold", answer_before_commit, 40),
    Plant("delivery before commit", Batches, "_deliver", delivery_before_commit, 40),
    Plant("refill during a commit", Batches, "collect", refill_during_commit, 40),
    Plant("UNKNOWN answered as a definite refusal", Batches, "failed", unknown_as_refusal, 60),
    Plant("lost requeue", Lane, "put_back", lost_requeue, 40),
    Plant("window edge off by one", Lane, "drop_tail", window_edge_off_by_one, 40),
    Plant("place reset on requeue", LeaseRules, "_requeue", place_reset, 40),
    Plant("priority ignored", engine, "rank_of", priority_ignored, 40),
    Plant("crash counted twice", LeaseRules, "_requeue", crash_counted_twice, 40),
    Plant("ghost lease", LeaseRules, "_end_lease", ghost_lease, 40),
    Plant("early redelivery", DeadlineRules, "_review_leases", early_redelivery, 40),
    Plant("no reconnect grace", LeaseRules, "close_session", no_grace, 40),
    Plant("a stall is not forgiven", DeadlineRules, "forgive", stall_not_forgiven, 80),
    Plant("no restart grace", Engine, "restore", no_restart_grace, 40),
    Plant("cancel forgotten at a restart", Engine, "restore", cancel_forgotten, 300),
    Plant("a stopping broker keeps no leases", DeadlineRules, "checkpoint_all", lease_not_kept, 40),
    Plant("submission id forgotten at a restart", MemoryStore, "open", submission_forgotten, 40),
    Plant("a log line is lost", MemoryStore, "add_lines", line_lost, 40),
    Plant("kept too briefly", MemoryStore, "prune_kept", kept_too_briefly, 40),
    Plant("kept too long", MemoryStore, "prune_kept", kept_too_long, 40),
    Plant("counter drift", MemoryStore, "_count", counter_drift, 40),
    Plant("scheduled too early", Scheduled, "pop_due", scheduled_too_early, 40),
    Plant("a cancelled job stays queued", Engine, "cancel", cancelled_job_stays_queued, 40),
    Plant("an event before its commit", EventLog, "note", event_before_commit, 40),
    Plant("an event is left out", EventLog, "note", event_left_out, 40),
    Plant("a gap of events is not told", Subscriptions, "open", gap_not_told, 80),
    Plant("a soft limit is told early", leases, "RunLimits", soft_limit_early, 40),
    Plant("payloads mixed", batches, "_delivered", payloads_mixed, 40),
    Plant("a delivery does not tell of crashes", batches, "_delivered", crashes_not_told, 40),
    Plant("suspects run together", Suspects, "is_suspect", suspects_together, 40),
    Plant("a replaced payload is not written", MemoryStore, "apply", replaced_payload_not_written, 40),
    Plant("a key is freed whoever has it", Keys, "moved", key_freed_whoever_has_it, 60),
    Plant("a repeated submit has another outcome", Batches, "find_submission", another_outcome, 40),
    Plant("a full queue takes one more", LimitedQueue, "refusals", one_too_many, 40),
    Plant("limits forgotten at a restart", MemoryStore, "open", limits_forgotten, 120),
]
