"""Filters in the client for users' tests: lists of jobs, what is done to all that fit, and jobs that are deleted.

A part of LocalClient (greenroom/testing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from greenroom.client_jobs import wire_change, wire_job
from greenroom.errors import ConflictError, GoneError, GreenroomError, InvalidError, NotFoundError
from greenroom.filter_text import filter_from_text
from greenroom.filters import ACTION_STATES, Filter, parse_filter
from greenroom.job import FINISHED_STATES, STATE_BY_LABEL, State

if TYPE_CHECKING:
    from greenroom.testing import LocalJob


class _Seen(NamedTuple):
    """A job as a Filter looks at it (greenroom/job.py, Job)."""

    id: int
    state: State
    queue: str
    task: str
    worker: str | None
    error: dict | None
    submitted_at: float
    finished_at: float | None
    payload: bytes
    result: bytes | None


class LocalBulk:
    """See the module."""

    submitted: list[LocalJob]
    _deleted: set[int]
    now: Callable[[], float]
    _find: Callable[[int], LocalJob | None]
    _cancel: Callable[[int], str | GreenroomError]
    _retry: Callable[[int], str | GreenroomError]
    _change: Callable[[int, dict], str | GreenroomError]
    _run_inline: Callable[[], None]

    def jobs(self, filter: str | dict | None = None, *, state: str | None = None, queue: str | None = None, task: str | None = None,
             worker: str | None = None, limit: int | None = None, payload: bool = False) -> Iterator[dict]:
        """Yield views of jobs that meet all conditions, newest first, as Client.jobs."""
        found = self._select(filter, state=state, queue=queue, task=task, worker=worker)
        yield from (job.view(payload=payload) for job in found[:limit])

    def delete(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Delete finished jobs, as Client.delete; they stay in `submitted`, for assertions."""
        return [self._delete(job_id) for job_id in ids]

    def bulk(self, action: str, filter: str | dict, *, dry_run: bool = False, on_progress: Callable[[dict], None] | None = None,
             priority: int | None = None, queue: str | None = None, delay: float | None = None, run_at: float | datetime | None = None) -> dict:
        """Do something to all jobs that fit, as Client.bulk. Inline, what is due then runs before this returns."""
        act = self._act(action, wire_change(priority, queue, delay, run_at))
        wanted, states = self._filter(filter), ACTION_STATES[action]
        wanted = wanted._replace(states=states if wanted.states is None else wanted.states & states)
        if not wanted.states:
            raise InvalidError(f"{action} is for jobs that are {', '.join(state.label for state in sorted(states))}", field="state")
        found = [job.id for job in self._fitting(wanted)]
        outcomes = [] if dry_run else [act(job_id) for job_id in found]
        refused = [outcome for outcome in outcomes if isinstance(outcome, GreenroomError)]
        sums = {"matched": len(found), "done": len(outcomes) - len(refused), "refused": len(refused),
                "why": refused[0].message if refused else None, "exact": True, "scanned_to": wanted.id_from or 1}
        if on_progress is not None:
            on_progress(dict(sums))
        self._run_inline()
        return sums

    def _act(self, action: str, changes: dict) -> Callable[[int], str | GreenroomError]:
        """Return what does it to one job. Raises InvalidError."""
        if action not in ACTION_STATES:
            raise InvalidError(f"action must be one of {', '.join(ACTION_STATES)}", field="action")
        if action == "change":
            if not changes:
                raise InvalidError("a change needs at least one of priority, queue, run_at, delay", field="action")
            checked = wire_job({"task": "any", **changes})
            if isinstance(checked, GreenroomError):
                raise checked
            return lambda job_id: self._change(job_id, checked)
        for name in changes:
            raise InvalidError(f"{name} goes with the action change, not with {action}", field=name)
        return {"retry": self._retry, "cancel": self._cancel, "delete": self._delete}[action]

    def _filter(self, given: str | dict) -> Filter:
        return parse_filter(filter_from_text(given, self.now()) if isinstance(given, str) else given)

    def _select(self, filter: str | dict | None, **named: str | None) -> list[LocalJob]:
        """Return the jobs that fit a filter and what was said by name beside it, newest first."""
        also = parse_filter({name: value for name, value in named.items() if value is not None})
        return [job for job in self._fitting(self._filter(filter or {})) if also.fits(_seen(job))]

    def _fitting(self, wanted: Filter) -> list[LocalJob]:
        """Return the jobs that fit, newest first."""
        there = [self._find(job_id) for job_id in range(len(self.submitted), 0, -1)]
        return [job for job in there if job is not None and wanted.fits(_seen(job))]

    def _delete(self, job_id: int) -> str | GreenroomError:
        job = self._find(job_id)
        if job is None:
            return self._missing(job_id)
        if STATE_BY_LABEL[job.state] not in FINISHED_STATES:
            return ConflictError(f"job {job_id} is {job.state}: only a finished job can be deleted")
        self._deleted.add(job_id)
        return "deleted"

    def _missing(self, job_id: int) -> GreenroomError:
        """Say why a job is not here."""
        return GoneError(f"job {job_id} is no longer kept") if job_id in self._deleted else NotFoundError(f"there is no job {job_id}")


def _seen(job: LocalJob) -> _Seen:
    return _Seen(job.id, STATE_BY_LABEL[job.state], job.option("queue"), job.task, "local" if job.attempt else None, job.error,
                 job.submitted_at, job.finished_at, job.payload, job.result)
