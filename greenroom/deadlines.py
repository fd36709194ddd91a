"""The engine's rules about time: leases and runs that end, reserves that waited long enough, jobs that fall due, checkpoints.

Pure, like leases.py, on which this class builds: `now` in, effects out. One `tick` does all that is due and says when it wants the next.
"""

from __future__ import annotations

from heapq import heappop

from greenroom.effects import Notice
from greenroom.events import job_event
from greenroom.job import QUEUED, Job, move
from greenroom.leases import CHECKPOINT_AFTER_S, LeaseRules
from greenroom.records import SettleItem
from greenroom.sessions import Lease, RunLimits, Session

#: A session's leases are looked at for this no more often: with a thousand of them, granted one by one, it would cost a core.
CHECKPOINTS_APART_S = 0.2
#: One tick does about so much, then asks to be called again at once: 2 ms.
TICK_OPERATIONS = 500


class DeadlineRules(LeaseRules):
    """See the module."""

    def next_due(self) -> float | None:
        """Return when `tick` should be called next, or None: not before something else happens."""
        timer = self._timers[0][0] if self._timers else None
        due = self.scheduled.next_due()
        return min((at for at in (timer, due, self.expiry.look_at, self.pauses.next_end) if at is not None), default=None)

    def tick(self, now: float) -> float | None:
        """Do what is due: leases that end, reserves that waited long enough, scheduled jobs, checkpoints.

        Does a bounded amount and returns when to call again (`now`: at once), or None.
        """
        left = TICK_OPERATIONS
        if self.pauses.next_end is not None and self.pauses.next_end <= now:
            self._end_pauses(now)
        while left > 0 and self._timers and self._timers[0][0] <= now:
            at, _, session = heappop(self._timers)
            if session.timer_at == at:
                session.timer_at = None
                left -= 1 + self._review(session, now, left)
        while left > 0 and self.ids.left > 0:
            job = self.scheduled.pop_due(now)
            if job is None:
                break
            self._enqueue_new(job, self.ids.take())
            move(job, QUEUED)
            self.effects.dirty[job.id] = job
            self._returned[job.lane] = None
            if self.is_watched:
                self.effects.events.append(job_event("queued", job, now))
            left -= 1
        self._ask_scheduled()
        if self.expiry.take_due(now):
            self.effects.wants_expired = True
        self._serve_returned(now)
        self.paces.look(self.lanes.values(), now)
        return self.next_due()

    def forgive(self, late_s: float) -> None:
        """Push back every deadline of workers: the broker itself stood still for so long and heard nobody."""
        for session in self.sessions.values():
            session.last_seen = max(session.last_seen, session.granted_at) + late_s
            if session.grace_until is not None:
                session.grace_until += late_s
            if session.has_deadlines:
                for lease in session.leases.values():
                    if lease.deadline is not None:
                        lease.deadline += late_s
                    if lease.limits is not None:
                        lease.limits.put_off(late_s)

    def _review(self, session: Session, now: float, limit: int) -> int:
        """Look at one session's deadlines; returns how many jobs were moved, at most `limit`."""
        if session.key not in self.sessions:
            return 0
        if session.grace_until is not None:
            return self._review_lost(session, now, limit)
        parked = session.parked
        if parked is not None:
            if parked.deadline > now:
                self._look_at(session, parked.deadline)
            else:
                self._answer_late(session, now)
        return self._review_leases(session, now, limit)

    def _review_lost(self, session: Session, now: float, limit: int) -> int:
        if session.grace_until > now:
            self._look_at(session, session.grace_until)
            return 0
        gone = list(session.leases.values())[:limit]
        for lease in gone:
            self._requeue(lease.job, now, "lost")
        if session.leases:
            self._look_at(session, now)
        else:
            self._end_session(session, now, "lost")
        return len(gone)

    def _review_leases(self, session: Session, now: float, limit: int) -> int:
        moved = 0
        for lease in list(session.leases.values()):
            if lease.limits is not None:
                if self._review_limits(lease, lease.limits, now, may_end=moved < limit):
                    moved += 1
                    continue
            ends_at = lease.deadline
            if ends_at is None:  # a grant to who waited in silence holds as long as any, and a slow disk is no silence of the worker's
                delivered_at = now if lease.delivered_at is None else lease.delivered_at
                ends_at = max(session.last_seen, delivered_at) + self.timing.lease_s
            if ends_at <= now:
                if moved == limit:
                    self._look_at(session, now)
                    break
                if lease.deadline is None:
                    self._unpark(session, answer=True)  # else its open reserve would get the very jobs that it lost in silence
                self._requeue(lease.job, now, "expired")
                moved += 1
                continue
            if not lease.job.checkpoint:
                if lease.granted_at + CHECKPOINT_AFTER_S <= now:
                    self._checkpoint(lease.job)
                else:
                    ends_at = min(ends_at, max(lease.granted_at + CHECKPOINT_AFTER_S, now + CHECKPOINTS_APART_S))
            self._look_at(session, ends_at)
        return moved

    def _review_limits(self, lease: Lease, limits: RunLimits, now: float, *, may_end: bool) -> bool:
        """End a run that took longer than it may: True. One over its soft limit is told to stop, once; how it ends is its own affair."""
        if limits.end_at is not None and limits.end_at <= now and may_end:
            self._time_out(lease, now)
            return True
        if limits.stop_at is not None and limits.stop_at <= now and not limits.is_told:
            limits.is_told = True
            self.effects.notices.append(Notice(lease.session, "cancel", [(lease.job.id, lease.fence)], "soft_timeout"))
        if limits.next_at is not None:
            self._look_at(lease.session, max(now, limits.next_at))
        return False

    def _time_out(self, lease: Lease, now: float) -> None:
        """End a run that took longer than it may: it has failed, and its worker is told to stop it."""
        job = lease.job
        self.effects.notices.append(Notice(lease.session, "cancel", [(job.id, lease.fence)]))
        lease.session.failed += 1
        error = {"name": "TimeoutError", "message": f"the run took longer than {job.extras.timeout:g} s", "traceback": ""}
        self._fail(job, SettleItem(job.id, lease.fence, "fail", None, False, error), now)

    def _checkpoint(self, job: Job) -> None:
        job.checkpoint = True
        self.effects.dirty[job.id] = job

    def checkpoint_all(self) -> None:
        """Write every lease, for a broker that stops."""
        for session in self.sessions.values():
            for lease in session.leases.values():
                if not lease.job.checkpoint:
                    self._checkpoint(lease.job)
