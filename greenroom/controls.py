"""The engine's rules for those who steer it: queues and tasks that are paused, queues that are limited, waiting jobs that are changed or purged,
finished ones that are deleted.

Pure, like engine.py, which builds on this class. A pause closes whole lanes: a closed lane belongs to no reserve group, so neither
its jobs nor those of other lanes are touched, and what is not paused pays nothing.
"""

from __future__ import annotations

from greenroom.deadlines import DeadlineRules
from greenroom.errors import BusyError, ConflictError, DrainingError, FullError
from greenroom.events import job_event, limit_event, pause_event, resume_event, unlimit_event
from greenroom.job import CANCELLED, FINISHED_STATES, QUEUED, RUNNING, SCHEDULED, Job, JobChange, Rewrite, State, move, rank_of
from greenroom.keeping import asks_for_long
from greenroom.lanes import Lane
from greenroom.pauses import MAX_PAUSES
from greenroom.queue_limits import MAX_LIMITS, LimitedQueue
from greenroom.records import Lost, Pause, QueueLimit


class ControlRules(DeadlineRules):
    """See the module."""

    def pause(self, pause: Pause, now: float) -> None:
        """Hold back the jobs of a queue or task. Those that run go on; one that comes back waits. Replaces a pause that there is.

        Raises FullError beyond MAX_PAUSES.
        """
        if self.pauses.get(pause.kind, pause.name) is None and len(self.pauses) >= MAX_PAUSES:
            raise FullError(f"{len(self.pauses)} queues and tasks are paused, the cap", field=pause.kind)
        self.pauses.put(pause)
        self.effects.pauses[pause.kind, pause.name] = pause
        if self.is_watched:
            self.effects.events.append(pause_event(pause))
        groups = self.groups.close([lane for lane in self._lanes_of(pause.kind, pause.name) if not lane.is_closed])
        # Reserves may have waited for one of these lanes, to be read from the store, although others had jobs: one lane stands for
        # all of its group.
        self._match({next(iter(group.lanes)): None for group in groups if group.waiters and group.lanes}, now, was_blocked=True)
        self._answer_all_late(groups, now)

    def resume(self, kind: str, name: str, now: float) -> bool:
        """End a pause; returns False if there was none. A lane that something else holds back too stays closed."""
        ended = self.pauses.end(kind, name)
        if ended is None:
            return False
        self.effects.pauses[kind, name] = None
        if self.is_watched:
            self.effects.events.append(resume_event(ended, now))
        lanes = [lane for lane in self._lanes_of(kind, name) if not self.pauses.of(lane.queue, lane.task)]
        self.groups.open(lanes)
        self._match(dict.fromkeys(lanes), now)
        return True

    def _end_pauses(self, now: float) -> None:
        """Resume what was paused for a time."""
        for pause in self.pauses.over(now):
            self.resume(pause.kind, pause.name, now)

    def limit(self, limit: QueueLimit) -> LimitedQueue:
        """Let no more than so much wait in a queue by submits; what waits already stays. Replaces a limit that there is.

        Raises FullError beyond MAX_LIMITS.
        """
        if self.limits.get(limit.queue) is None and len(self.limits) >= MAX_LIMITS:
            raise FullError(f"{len(self.limits)} queues have a limit, the cap", field="queue")
        limited = self.limits.put(limit, self._lanes_of("queue", limit.queue))
        self.effects.limits[limit.queue] = limit
        if self.is_watched:
            self.effects.events.append(limit_event(limit))
        return limited

    def unlimit(self, queue: str, now: float) -> bool:
        """End the limit of a queue; returns False if it had none."""
        ended = self.limits.end(queue)
        if ended is None:
            return False
        self.effects.limits[queue] = None
        if self.is_watched:
            self.effects.events.append(unlimit_event(ended, now))
        return True

    def check_limit(self, queue: str, priority: int, jobs: int, size: int, payload_bytes: int, now: float, *, instead_of: Job | None = None) -> None:
        """Raise FullError if the limit of a queue has no room for so many more jobs of a priority with so many more bytes of payloads.

        Raise TooLargeError if a payload of `payload_bytes`, which the job has then, never fits.

        Args:
            instead_of: see LimitedQueue.check.
        """
        limited = self.limits.get(queue)
        if limited is not None:
            limited.check(priority, jobs, size, payload_bytes, self.paces, now, instead_of=instead_of)

    # -- single jobs --------------------------------------------------------------------------------------------------------

    def change(self, job_id: int, change: JobChange, now: float, loaded: Job | Lost | None = None) -> str | None:
        """Change a job that waits: "changed". None: it is not in memory, call again with it loaded.

        A new priority leaves it its place; another queue, and a time that has come, give it a new one, behind all that wait. A new time
        moves the one by which it must begin.

        Raises ConflictError, FinishedError, NotFoundError, GoneError, DamagedError; FullError or BusyError with nothing changed.
        """
        job = self._unfinished(job_id, loaded)
        if job is None:
            return None
        if job.state is RUNNING:
            raise ConflictError(f"job {job_id} is running: only a job that waits can be changed")
        run_at = change.run_at if change.delay is None else now + change.delay
        moves_queue = change.queue is not None and change.queue != job.queue
        to = job.state if run_at is None else SCHEDULED if run_at > now else QUEUED
        has_new_place = to is QUEUED and (moves_queue or job.state is SCHEDULED)
        self._check_change(job, change, now, has_new_place=has_new_place)
        if moves_queue or run_at is not None or change.priority is not None:
            self._change_where(job, change, run_at, to, now, has_new_place=has_new_place)
        else:
            self._change_payload(job, change)
        self.effects.dirty[job.id] = job
        if self.is_watched:
            self.effects.events.append(job_event("changed", job, now))
        self._returned[job.lane] = None
        self._ask_scheduled()
        self._serve_returned(now)
        return "changed"

    def _change_where(self, job: Job, change: JobChange, run_at: float | None, to: State, now: float, *, has_new_place: bool) -> None:
        """Take a waiting job out of where it waits, and put it where it waits from now on."""
        moves_queue = change.queue is not None and change.queue != job.queue
        lane = self._lane_for(change.queue, job.task) if moves_queue else job.lane
        self._take_out(job)
        self._rewrite(job, change, moves_queue=moves_queue)
        if to is not job.state:
            move(job, to)
        if run_at is not None and (to is SCHEDULED or has_new_place):
            job.run_at = run_at
            job.late_fence = 0
            if job.expires_at is not None and not job.attempt:  # it must begin as soon after its new time as after its old one
                job.expires_at = max(now, run_at) + job.extras.expires_in
                self.expiry.note(job.expires_at)
        if change.priority is not None:
            job.priority = change.priority
        job.lane.count(to, -1)  # for lanes that are asked what they may hold it is not there yet
        if job.lane.is_idle:
            self._idle_lanes[job.lane] = None
        job.lane, job.queue = lane, lane.queue
        self._put_in(job, self.ids.take() if has_new_place else job.place)
        lane.count(to, +1)
        self._count_waiting(job, +1)

    def _change_payload(self, job: Job, change: JobChange) -> None:
        """Give a waiting job another payload where it stands."""
        window = None if job.id not in self.jobs else self.scheduled if job.state is SCHEDULED else job.lane
        if window is not None:
            window.count_payload(job, -1)
        self._count_waiting(job, -1)
        self._rewrite(job, change, moves_queue=False)
        self._count_waiting(job, +1)
        if window is not None:
            window.count_payload(job, +1)
            self._shrink_scheduled()

    def _check_change(self, job: Job, change: JobChange, now: float, *, has_new_place: bool) -> None:
        if self.draining:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        if change.payload is not None:
            size = self.waiting_bytes - job.payload_bytes + len(change.payload)
            if size > self.caps.waiting_bytes and len(change.payload) > job.payload_bytes:
                raise FullError(f"waiting payloads are at their cap of {self.caps.waiting_bytes} bytes", retry_after_s=5.0)
        payload_bytes = job.payload_bytes if change.payload is None else len(change.payload)
        priority = job.priority if change.priority is None else change.priority
        if change.queue is None or change.queue == job.queue:
            self.check_limit(job.queue, priority, 0, payload_bytes - job.payload_bytes, payload_bytes, now)
        else:
            self.check_limit(change.queue, priority, 1, payload_bytes, payload_bytes, now)
        if has_new_place and not self.ids.left:
            raise BusyError("job numbers are being fetched", retry_after_s=0.05)

    def _take_out(self, job: Job) -> None:
        """Take a waiting job, which goes on waiting, out of its window and of the sums."""
        in_memory = job.id in self.jobs
        if job.state is SCHEDULED:
            self.scheduled.remove(job, in_memory=in_memory)
        elif in_memory:
            job.lane.pull(job)
        self._count_waiting(job, -1)

    @staticmethod
    def _rewrite(job: Job, change: JobChange, *, moves_queue: bool) -> None:
        """Put the payload in its place, and note what the store must write beside what it always writes."""
        has_payload = change.payload is not None
        if job.stored_state and (moves_queue or has_payload):
            known = job.rewrite or Rewrite(job.queue, job.payload_bytes, job.requeues, False)
            job.rewrite = known._replace(has_payload=known.has_payload or has_payload)
        if has_payload:
            job.payload, job.payload_bytes, job.raw = change.payload, len(change.payload), change.raw
            job.late_fence = 0  # a late result would be of another payload

    def _put_in(self, job: Job, place: int) -> None:
        """Put a waiting job, not yet counted, where it waits now."""
        if job.state is SCHEDULED:
            self._schedule(job)
            return
        job.place = place
        job.rank = rank_of(job.priority, place)
        if job.lane.may_hold(job.rank):
            self.jobs[job.id] = job
            job.lane.put_back(job)  # behind its place there may be others, and its payload may have to be loaded
            self._offer(job.lane, job.rank)
        else:
            self.jobs.pop(job.id, None)

    def purge(self, job_id: int, queue: str, task: str | None, now: float, loaded: Job | Lost | None = None) -> bool | None:
        """Cancel a job if it waits in this queue (and has this task): True. None: it is not in memory, call again with it loaded."""
        job = self.jobs.get(job_id)
        if job is None:
            if loaded is None:
                return None
            if isinstance(loaded, Lost) or loaded.damage is not None:
                return False
            job = loaded
        if job.state not in (QUEUED, SCHEDULED) or job.queue != queue or task not in (None, job.task):
            return False
        if job.lane is None:
            self._attach(job)
        self._leave_waiting(job)
        self._finish(job, CANCELLED, now)
        return True

    def delete(self, job_id: int, loaded: Job | Lost | None = None) -> str | None:
        """Leave nothing of a finished job: "deleted". None: call again with it loaded, as the store has it. Counts of what ended stay.

        Raises ConflictError for a job that lives, NotFoundError, GoneError, DamagedError.
        """
        job = self._known(job_id, loaded)
        if job is None:
            return None
        if job.state not in FINISHED_STATES:
            raise ConflictError(f"job {job_id} is {job.state.label}: only a finished job can be deleted")
        self.effects.deleted.append(job_id)
        self.keeping.count -= asks_for_long(job.extras)
        return "deleted"

    def _lanes_of(self, kind: str, name: str) -> list[Lane]:
        return [lane for lane in self.lanes.values() if (lane.queue if kind == "queue" else lane.task) == name]
