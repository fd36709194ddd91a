"""What the client for users' tests knows of limits of queues. A part of LocalClient (greenroom/testing.py).

It judges as the broker does (greenroom/queue_limits.py). Nothing runs by itself here, so waiting for room would have no end: with
`on_full="wait"` a full queue raises at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from greenroom import views
from greenroom.errors import FullError, GreenroomError, InvalidError, TooLargeError
from greenroom.paces import Paces
from greenroom.protocol import VERBS, check_fields
from greenroom.queue_limits import LimitedQueue
from greenroom.records import QueueLimit

if TYPE_CHECKING:
    from greenroom.testing import LocalJob


class LocalLimits:
    """See the module.

    Attributes:
        dropped: jobs that were dropped so far, as Client.dropped.
    """

    dropped = 0
    submitted: list[LocalJob]
    now: Callable[[], float]
    _limits: dict[str, LimitedQueue]

    def limit(self, queue: str, *, jobs: int | None = None, bytes: int | None = None, urgent: int | None = None, extra: int | None = None,
              reason: str = "", by: str | None = None) -> dict:
        """Let no more than so much wait in a queue, as Client.limit."""
        fields = check_fields(VERBS["limit"], {"queue": queue, "jobs": jobs, "bytes": bytes, "urgent": urgent, "extra": extra, "reason": reason,
                                               "by": by})
        if jobs is None and bytes is None:
            raise InvalidError("a limit needs jobs, bytes or both", field="jobs")
        made = QueueLimit(queue, jobs, bytes, urgent, fields["extra"], self.now(), reason, by or "local")
        limited = self._limits.setdefault(queue, LimitedQueue(made))
        limited.limit = made
        return views.limit(self._counted(limited))

    def unlimit(self, queue: str) -> bool:
        """End the limit of a queue, as Client.unlimit."""
        return self._limits.pop(queue, None) is not None

    def limits(self) -> list[dict]:
        """Return all limits, as Client.limits."""
        return [views.limit(self._counted(limited)) for limited in self._limits.values()]

    def _no_room(self, queue: str, priority: int, size: int) -> GreenroomError | None:
        """Return why a queue does not take one new job, or None."""
        limited = self._limits.get(queue)
        if limited is None:
            return None
        (refusal,) = self._counted(limited).refusals(priority, [size], Paces(), self.now())
        return _told(refusal) if isinstance(refusal, FullError) else refusal

    def _no_room_for_more(self, queue: str, priority: int, jobs: int, size: int, payload_bytes: int) -> GreenroomError | None:
        """Return why no more jobs and bytes than it has may come into a queue by a retry or a change, or None; see LimitedQueue.check."""
        limited = self._limits.get(queue)
        try:
            if limited is not None:
                self._counted(limited).check(priority, jobs, size, payload_bytes, Paces(), self.now())
        except FullError as exc:
            return _told(exc)
        except TooLargeError as exc:
            return exc
        return None

    def _counted(self, limited: LimitedQueue) -> LimitedQueue:
        waiting = [job for job in list(self.submitted) if job.state in ("queued", "scheduled") and job.option("queue") == limited.limit.queue]
        limited.waiting, limited.waiting_bytes = len(waiting), sum(len(job.payload) for job in waiting)
        return limited


def _told(refusal: FullError) -> FullError:
    return FullError(f"{refusal.message}; nothing runs by itself here: run_due() makes room", field="queue", retry_after_s=refusal.retry_after_s)
