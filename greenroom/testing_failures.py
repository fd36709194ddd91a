"""What the client for users' tests knows of filters, of jobs that failed alike, and of all that fit. A part of LocalClient (greenroom/testing.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from greenroom.client_failures import FailureCalls, FailureList, failure_list
from greenroom.errors import GreenroomError
from greenroom.failures import Failures
from greenroom.filter_text import filter_from_text
from greenroom.filters import Filter, parse_filter
from greenroom.job import FINISHED_STATES, RETRYABLE_STATES, STATE_BY_LABEL, Job, State

if TYPE_CHECKING:
    from greenroom.testing import LocalJob

#: What `bulk` does here -> states of the jobs in question.
_ACTIONS = {"retry": RETRYABLE_STATES, "cancel": frozenset(State) - FINISHED_STATES}


class LocalFailures(FailureCalls):
    """See the module."""

    submitted: list[LocalJob]
    now: Callable[[], float]
    cancel: Callable[[Iterable[int]], list[str | GreenroomError]]

    def failures(self, filter: str | dict | None = None, *, queue: str | None = None, task: str | None = None,
                 before: int | None = None) -> FailureList:
        """Return failed jobs grouped by how they failed, as Client.failures; all of them are looked at."""
        found = Failures()
        for job in self._fitting(wanted_of(filter, self.now(), queue=queue, task=task, state="failed")):
            if before is None or job.id < before:
                found.add(job.id, job.task, job.error, "local", job.finished_at)
        return failure_list(found.told(None))

    def bulk(self, action: str, filter: str | dict, *, dry_run: bool = False, on_progress: Callable[[dict], None] | None = None) -> dict:
        """Retry or cancel all jobs that fit, as Client.bulk."""
        if action not in _ACTIONS:
            raise NotImplementedError(f"bulk {action!r} needs a broker: use the fixture greenroom_broker, or greenroom.testing_broker.LocalBroker")
        wanted = wanted_of(filter, self.now())
        states = _ACTIONS[action]
        ids = [job.id for job in self._fitting(wanted._replace(states=states if wanted.states is None else wanted.states & states))]
        outcomes = [] if dry_run else (self.retry if action == "retry" else self.cancel)(ids)
        refused = [outcome for outcome in outcomes if isinstance(outcome, GreenroomError)]
        sums = {"matched": len(ids), "done": len(outcomes) - len(refused), "refused": len(refused), "why": refused[0].message if refused else None,
                "exact": True, "scanned_to": 1}
        if on_progress is not None:
            on_progress(dict(sums))
        return sums

    def _ended(self, job_id: int, timeout: float | None) -> dict:
        """Return the view of a job as it is: nothing runs meanwhile."""
        return self.get([job_id])[0]

    def _fitting(self, wanted: Filter) -> list[LocalJob]:
        """Return the jobs that fit, newest first."""
        return [job for job in reversed(list(self.submitted)) if wanted.fits(_as_job(job))]


def wanted_of(filter: str | dict | None, now: float, **named: object) -> Filter:
    """Return a filter, and what was said by name beside it. Raises InvalidError."""
    given = filter_from_text(filter, now) if isinstance(filter, str) else dict(filter or {})
    return parse_filter({**given, **{name: value for name, value in named.items() if value is not None}})


def _as_job(local: LocalJob) -> Job:
    job = Job(local.id, local.option("queue"), local.task, local.option("priority"), local.payload, local.encoding == "raw", local.submitted_at)
    job.state, job.result, job.error, job.finished_at = STATE_BY_LABEL[local.state], local.result, local.error, local.finished_at
    job.worker = "local" if local.attempt else None
    return job
