"""The engine's rules for a submit whose unique key is taken: what becomes of the job that has it, and what is answered.

Pure, like engine.py, which builds on this class. Who has which key is in unique.py.
"""

from __future__ import annotations

from collections.abc import Callable

from greenroom.controls import ControlRules
from greenroom.errors import ConflictError, FullError, GreenroomError
from greenroom.job import QUEUED, SCHEDULED, Job, JobChange, JobOptions
from greenroom.lanes import Lane
from greenroom.records import Lost
from greenroom.unique import Duplicate, taken_by

#: Returns a job that is not among the engine's own, as it is now, or None: not known.
Find = Callable[[int], "Job | Lost | None"]


class DuplicateRules(ControlRules):
    """See the module."""

    def _accept_unique(self, options: JobOptions, payload: bytes, touched: dict[Lane, None], now: float,
                       find: Find | None) -> int | Duplicate | GreenroomError:
        """Accept a job with a key, or deal with it as a duplicate; returns its outcome. Notes the lane of a new job in `touched`."""
        key = options.extras.unique_key
        taken = self.keys.find(key, now)
        if taken is not None:
            return self._duplicate(taken.job, options, payload, now, find)
        if self.keys.is_full(now):
            return FullError(f"{len(self.keys)} unique keys are taken, the cap", field="unique_key", retry_after_s=5.0)
        try:
            lane = self._lane_for(options.queue, options.task)
        except FullError as exc:
            return exc
        (job,) = self._accept_within(options, [payload], lane, now)
        if isinstance(job, GreenroomError):
            return job
        self.keys.take(key, taken_by(job))
        touched[lane] = None
        return job.id

    def _duplicate(self, job_id: int, options: JobOptions, payload: bytes, now: float, find: Find | None) -> Duplicate | GreenroomError:
        job = self.jobs.get(job_id) or self.effects.dirty.get(job_id) or (None if find is None else find(job_id))
        if job is None or isinstance(job, Lost) or job.damage is not None:
            return Duplicate(job_id, None)
        # The payload is for the function that was asked for: another task could do nothing with it.
        replaces = options.extras.on_duplicate == "replace" or options.extras.unique_mode == "debounce"
        if not replaces or job.state not in (SCHEDULED, QUEUED) or job.task != options.task:
            return Duplicate(job_id, job.state.label)
        try:
            self.change(job_id, JobChange(run_at=_put_off_until(job, options, now), payload=payload, raw=options.raw), now, job)
        except GreenroomError as exc:  # no room for a larger payload
            return exc
        return Duplicate(job_id, job.state.label, replaced=True)

    def _claim_again(self, job: Job, now: float) -> None:
        """Take the key of a finished job that is about to wait again. Raises ConflictError if another has it now."""
        if job.extras is None or job.extras.unique_key is None or (job.extras.unique_mode == "debounce" and job.fence):
            return
        taken = self.keys.find(job.extras.unique_key, now)
        if taken is not None and taken.job != job.id:
            raise ConflictError(f"job {taken.job} has the unique key of job {job.id} now")
        self.keys.take(job.extras.unique_key, taken_by(job))


def _put_off_until(job: Job, options: JobOptions, now: float) -> float | None:
    """Return when a debounced job runs after one more submit, or None: that stays as it is.

    The quiet time is that of the latest submit, the bound that of the first, which somebody may rely on.
    """
    if options.extras.unique_mode != "debounce" or job.extras.unique_mode != "debounce":
        return None
    run_at = now + options.extras.unique_for
    if job.extras.debounce_max is not None:
        run_at = min(run_at, job.submitted_at + job.extras.debounce_max)
    return run_at if run_at > now else None
