"""What the client for users' tests knows of jobs that failed alike. A part of LocalClient (greenroom/testing.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from greenroom.client_failures import FailureCalls, FailureList, failure_list
from greenroom.failures import Failures

if TYPE_CHECKING:
    from greenroom.testing import LocalJob


class LocalFailures(FailureCalls):
    """See the module."""

    _select: Callable[..., list[LocalJob]]

    def failures(self, filter: str | dict | None = None, *, queue: str | None = None, task: str | None = None,
                 before: int | None = None) -> FailureList:
        """Return failed jobs grouped by how they failed, as Client.failures; all of them are looked at."""
        found = Failures()
        for job in self._select(filter, queue=queue, task=task, state="failed"):
            if before is None or job.id < before:
                found.add(job.id, job.task, job.error, "local", job.finished_at)
        return failure_list(found.told(None))

    def _ended(self, job_id: int, timeout: float | None) -> dict:
        """Return the view of a job as it is: nothing runs meanwhile."""
        return self.get([job_id])[0]
