"""What the client for users' tests knows of unique keys: who has one, and what a duplicate does; the rules of unique.py and duplicates.py.

A part of LocalClient (greenroom/testing.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenroom.errors import ConflictError
from greenroom.job import OPTIONS
from greenroom.unique import Duplicate

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenroom.testing import LocalJob

WAITING = ("queued", "scheduled")


class LocalKeys:
    """See the module. Its methods are called with the lock held."""

    now: Callable[[], float]
    _keys: dict[str, LocalJob]  # key -> the job that took it last
    _deleted: set[int]
    _line_up: Callable[[LocalJob], None]
    _expire: Callable[[LocalJob], None]

    def _holder(self, key: object) -> LocalJob | None:
        """Return the job that has a key, or None."""
        job = self._keys.get(key)
        if job is not None:
            self._expire(job)
        return job if job is not None and _has_key(job, self.now()) else None

    def _duplicate(self, wanted: dict[str, Any], payload: bytes) -> Duplicate | None:
        """Deal with a submit, as the wire has it, whose key is taken; None: it is free."""
        job = self._holder(wanted.get("unique_key"))
        if job is None:
            return None
        is_debounced = wanted.get("unique_mode") == "debounce"
        replaces = is_debounced or wanted.get("on_duplicate") == "replace"
        if not replaces or job.state not in WAITING or job.task != wanted["task"]:
            return Duplicate(job.id, None if job.id in self._deleted else job.state)
        job.payload, job.encoding = payload, wanted.get("encoding", OPTIONS["encoding"].default)
        if is_debounced and job.option("unique_mode") == "debounce":
            self._put_off(job, wanted["unique_for"])
        return Duplicate(job.id, job.state, replaced=True)

    def _put_off(self, job: LocalJob, quiet_s: float) -> None:
        now, most = self.now(), job.option("debounce_max")
        run_at = now + quiet_s if most is None else min(now + quiet_s, job.submitted_at + most)
        if run_at > now:
            job.run_at = run_at
            if job.expires_at is not None:
                job.expires_at = run_at + job.option("expires_in")
            self._line_up(job)

    def _claim(self, job: LocalJob) -> None:
        """Let a job that waits from now on have its key. Raises ConflictError if another has it, as when it is retried by hand."""
        key = job.option("unique_key")
        if key is None or (job.option("unique_mode") == "debounce" and job.attempt):
            return
        holder = self._holder(key)
        if holder is not None and holder is not job:
            raise ConflictError(f"job {holder.id} has the unique key of job {job.id} now")
        self._keys[key] = job


def _has_key(job: LocalJob, now: float) -> bool:
    mode, span = job.option("unique_mode"), job.option("unique_for")
    if mode == "debounce":
        return job.state in WAITING and not job.attempt
    is_in_time = span is None or now < job.submitted_at + span
    return is_in_time and (mode == "throttle" or job.state in (*WAITING, "running"))
