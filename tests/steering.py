"""What a Peer of tests/core.py asks for to steer the broker: cancel, change, purge, delete, pause, resume, limit. Knows the engine, not frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from greenroom.errors import GreenroomError
from greenroom.job import Job, JobChange
from greenroom.records import Lost, Pause, QueueLimit

if TYPE_CHECKING:
    from tests.core import Core


class Steering:
    """A part of Peer."""

    core: Core

    def _send(self, verb: str, body: object) -> int:
        raise NotImplementedError

    def cancel(self, job_id: int) -> int:
        """Cancel one job."""
        engine = self.core.engine
        return self._act("cancel", job_id, job_id, lambda found: engine.cancel(job_id, self.core.now, found))

    def retry(self, job_id: int) -> int:
        """Retry one job."""
        def act(found: Job | Lost | None) -> str | None:
            outcome = self.core.engine.retry(job_id, self.core.now, found)
            if outcome is not None:
                self.core.retried.add(job_id)
            return outcome

        return self._act("retry", job_id, job_id, act)

    def change(self, job_id: int, **changes: object) -> int:
        """Change one job that waits."""
        engine, change = self.core.engine, JobChange(**changes)
        return self._act("change", (job_id, change), job_id, lambda found: engine.change(job_id, change, self.core.now, found))

    def purge(self, job_id: int, queue: str, task: str | None = None) -> int:
        """Cancel one job if it waits in this queue."""
        engine = self.core.engine
        return self._act("purge", job_id, job_id, lambda found: engine.purge(job_id, queue, task, self.core.now, found))

    def delete(self, job_id: int) -> int:
        """Delete one finished job."""
        return self._act("delete", job_id, job_id, lambda found: self.core.engine.delete(job_id, found))

    def _act(self, verb: str, body: object, job_id: int, act: Callable[[Job | Lost | None], object]) -> int:
        """Do something to one job, which may have to be loaded first."""
        request_id = self._send(verb, body)
        self._try(request_id, job_id, act, None)
        return request_id

    def _try(self, request_id: int, job_id: int, act: Callable[[Job | Lost | None], object], found: Job | Lost | None) -> None:
        core = self.core
        try:
            outcome: object = act(found)
        except GreenroomError as exc:
            outcome = exc
        core.batches.collect()
        if outcome is None:
            core.batches.load([job_id], lambda jobs: self._try(request_id, job_id, act, jobs[job_id]))
        else:
            core.batches.hold(self, request_id, {"outcomes": [outcome]})

    def pause(self, kind: str, name: str, *, seconds: float | None = None, reason: str = "", by: str = "me") -> int:
        """Pause a queue or task."""
        request_id = self._send("pause", (kind, name))
        core = self.core
        until = None if seconds is None else core.now + seconds
        core.engine.pause(Pause(kind, name, core.now, until, reason, by), core.now)
        core.batches.collect()
        core.batches.hold(self, request_id, {})
        return request_id

    def resume(self, kind: str, name: str) -> int:
        """Resume it."""
        request_id = self._send("resume", (kind, name))
        core = self.core
        resumed = core.engine.resume(kind, name, core.now)
        core.batches.collect()
        core.batches.hold(self, request_id, {"resumed": resumed})
        return request_id

    def limit(self, queue: str, *, jobs: int | None = None, size: int | None = None, urgent: int | None = None, extra: int = 10) -> int:
        """Limit a queue; `size`: bytes of payloads."""
        request_id = self._send("limit", queue)
        core = self.core
        core.engine.limit(QueueLimit(queue, jobs, size, urgent, extra, core.now, "why", "me"))
        core.batches.collect()
        core.batches.hold(self, request_id, {})
        return request_id

    def unlimit(self, queue: str) -> int:
        """End its limit."""
        request_id = self._send("unlimit", queue)
        core = self.core
        ended = core.engine.unlimit(queue, core.now)
        core.batches.collect()
        core.batches.hold(self, request_id, {"removed": ended})
        return request_id
