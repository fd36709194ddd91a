"""A memory store that crashes, for tests that drive the broker in virtual time."""

from __future__ import annotations

from collections import Counter

from greenroom.job import Job
from greenroom.records import Gone, LogLine, Lost, Pause, QueueLimit, StoredSchedule, Submission
from greenroom.stores import Retention
from greenroom.stores.memory import MemoryStore


class CrashStore(MemoryStore):
    """A memory store that forgets what was not committed when it crashes, and that nobody may touch during a COMMIT."""

    _KEPT = ("_jobs", "_leases", "_queued", "_scheduled", "_finished", "_failed", "_kept", "_counts", "_submissions", "_schedules", "_next", "_runs",
             "_expiring", "_keys", "_pauses", "_limits", "_lines")
    _WITH_LISTS = ("_queued", "_counts", "_runs", "_lines")

    def __init__(self, retention: Retention = Retention()) -> None:
        super().__init__(retention)
        self.is_committing = False
        self.touches = Counter()  # method -> calls
        self._saved: dict[str, object] | None = None

    def _touch(self, name: str, *, writes: bool = False) -> None:
        assert not self.is_committing, f"{name} while a COMMIT runs"
        self.touches[name] += 1
        if writes and self._saved is None:
            self._saved = {kept: getattr(self, kept).copy() for kept in self._KEPT}
            for kept in self._WITH_LISTS:
                self._saved[kept] = {key: items[:] for key, items in getattr(self, kept).items()}

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """See Store."""
        self._touch("apply", writes=True)
        super().apply(jobs, submissions)

    def apply_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """See Store."""
        self._touch("apply_schedules", writes=True)
        super().apply_schedules(changes)

    def block(self, name: str, count: int) -> int:
        """See Store."""
        self._touch("block", writes=True)
        return super().block(name, count)

    def keep_pauses(self, pauses: dict[tuple[str, str], Pause | None]) -> None:
        """See Store."""
        self._touch("keep_pauses", writes=True)
        super().keep_pauses(pauses)

    def keep_limits(self, limits: dict[str, QueueLimit | None]) -> None:
        """See Store."""
        self._touch("keep_limits", writes=True)
        super().keep_limits(limits)

    def committed_limits(self) -> dict[str, QueueLimit]:
        """Return the limits as a crash would leave them."""
        return self._limits if self._saved is None else self._saved["_limits"]

    def committed_pauses(self) -> dict[tuple[str, str], Pause]:
        """Return the pauses as a crash would leave them."""
        return self._pauses if self._saved is None else self._saved["_pauses"]

    def delete(self, ids: list[int]) -> None:
        """See Store."""
        self._touch("delete", writes=True)
        super().delete(ids)

    def prune_kept(self, now: float, limit: int) -> Gone:
        """See Store."""
        self._touch("prune_kept", writes=True)
        return super().prune_kept(now, limit)

    def prune(self, now: float, limit: int) -> int:
        """See Store."""
        self._touch("prune", writes=True)
        return super().prune(now, limit)

    def add_lines(self, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        """See Store."""
        self._touch("add_lines", writes=True)
        super().add_lines(lines, first_lines)

    def take(self, queue: str, task: str, after_rank: int, limit: int) -> list[Job]:
        """See Store."""
        self._touch("take")
        return super().take(queue, task, after_rank, limit)

    def take_scheduled(self, after: tuple[float, int], limit: int) -> list[Job]:
        """See Store."""
        self._touch("take_scheduled")
        return super().take_scheduled(after, limit)

    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """See Store."""
        self._touch("load")
        return super().load(ids, small=small)

    def payloads(self, ids: list[int]) -> dict[int, bytes]:
        """See Store."""
        self._touch("payloads")
        return super().payloads(ids)

    def submission(self, submission_id: bytes) -> Submission | None:
        """See Store."""
        self._touch("submission")
        return super().submission(submission_id)

    def commit(self) -> None:
        """Make what was applied survive `crash`."""
        super().commit()
        self._saved = None

    def crash(self) -> None:
        """Go back to the latest commit."""
        self.is_committing = False
        if self._saved is not None:
            self.__dict__.update(self._saved)
            self._saved = None
        self._touched.clear()
        self._touched_lines.clear()

    def committed(self, job_id: int) -> Job | None:
        """Return the job as a crash would leave it."""
        return self._seen.get(job_id)
