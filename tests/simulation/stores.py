"""Stores that crash: the memory store of tests/core.py that fails when told, and the real SQLite store with that one as its twin.

The twin gets every call too, and both must answer the same. After a power cut it follows what the disk kept, which must be the
transaction as a whole or nothing of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from tests.crash_store import CrashStore
from tests.simulation.world import Violation, World
from tests.stores.power_vfs import PowerDisk, Replay, lay_out
from greenroom.errors import StoreError
from greenroom.job import Job, State
from greenroom.records import Gone, LogLine, Lost, Pause, QueueLimit, Restored, StoredSchedule, Submission
from greenroom.stores import Retention
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_reader import schedules

#: The store's own notes in a job; both stores must find them as they were.
NOTES = ("stored_state", "stored_requeues", "stored_lease", "result_bytes", "rewrite")
COMPARED = ("id", "queue", "task", "priority", "place", "rank", "state", "payload", "payload_bytes", "raw", "submitted_at",
            "run_at", "started_at", "finished_at", "worker", "fence", "attempt", "crashes", "requeues", "cancel_requested",
            "result", "result_bytes", "result_raw", "error", "stored_state", "stored_requeues", "report")


KEPT = ("state", "fence", "requeues", "crashes", "cancel_requested", "place", "priority", "queue", "run_at")

_disk_numbers = itertools.count(1)


class SimStore(CrashStore):
    """A memory store that fails when it is told to.

    Attributes:
        fail_apply, fail_commit: the next statement, or COMMIT, raises StoreError. A failed COMMIT may be on disk all the same.
        on_pruned: called with the time, jobs that went because they asked to be kept no longer, and whether those are all.
    """

    def __init__(self, world: World, retention: Retention) -> None:
        super().__init__(retention)
        self.world = world
        self.fail_apply = False
        self.fail_commit = False
        self.on_pruned: Callable[[float, list[Job], bool], None] = _nobody_looks

    def prune_kept(self, now: float, limit: int) -> Gone:
        """See Store."""
        before = dict(self._jobs)
        gone = super().prune_kept(now, limit)
        self.on_pruned(now, [before[job_id] for job_id in gone.ids], len(gone.ids) < limit)
        return gone

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """See Store."""
        if self.fail_apply:
            raise StoreError("planned: a statement fails")
        super().apply(jobs, submissions)

    def commit(self) -> None:
        """See Store."""
        if self.fail_commit:
            if self.world.chance(0.5):
                super().commit()  # the disk had it, only its answer was bad
                self.world.counts["a failed COMMIT is on disk"] += 1
            raise StoreError("planned: an fsync fails")
        super().commit()

    def crash(self, *, may_keep: bool = False) -> None:
        """End without a word. With `may_keep` the open transaction may have reached the disk, as a COMMIT was running."""
        if may_keep and self._saved is not None and self.world.chance(0.5):
            self.is_committing = False
            CrashStore.commit(self)
            self.world.counts["a crash in a COMMIT that is on disk"] += 1
        self.fail_apply = self.fail_commit = False
        super().crash()

    def shut(self) -> None:
        """Close in order."""
        self.close()

    def discard(self) -> None:
        """Forget everything, the run is over."""


class TwinStore(SimStore):
    """The real SQLite store on a real file, and its twin in memory."""

    def __init__(self, world: World, retention: Retention, folder: Path) -> None:
        super().__init__(world, retention)
        self._folder = folder
        self._kept_retention = retention
        self._disk = PowerDisk(f"simulation-{next(_disk_numbers)}")
        self._laid_out: dict[str, bytes] = {}
        self._real = SqliteStore(folder / "data", retention, vfs=self._disk.name)

    def open(self) -> Restored:
        """See Store."""
        restored = self._real.open()
        twin = super().open()
        _same("lanes", sorted(restored.lanes), sorted(counts for counts in twin.lanes))
        _same("leases", [lease[1:] for lease in restored.leases], [lease[1:] for lease in twin.leases])
        _same("schedules", restored.schedules, twin.schedules)
        _same("pauses", sorted(restored.pauses), sorted(twin.pauses))
        _same("limits", restored.limits, twin.limits)
        _same("unique keys", sorted(restored.keys), sorted(twin.keys))
        _same("jobs that ask to be kept", restored.keeping, twin.keeping)
        _same("cancelled", [job.id for job in restored.cancelled], [job.id for job in twin.cancelled])
        return restored

    def block(self, name: str, count: int) -> int:
        """See Store."""
        return _same(f"block {name}", self._real.block(name, count), super().block(name, count))

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """See Store."""
        notes = [[getattr(job, name) for name in NOTES] for job in jobs]
        self._real.apply(jobs, submissions)
        left = [[getattr(job, name) for name in NOTES] for job in jobs]
        for job, values in zip(jobs, notes):
            for name, value in zip(NOTES, values):
                setattr(job, name, value)
        super().apply(jobs, submissions)
        _same("notes", left, [[getattr(job, name) for name in NOTES] for job in jobs])

    def add_lines(self, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        """See Store."""
        self._real.add_lines(lines, first_lines)
        super().add_lines(lines, first_lines)

    def delete(self, ids: list[int]) -> None:
        """See Store."""
        self._real.delete(ids)
        super().delete(ids)

    def commit(self) -> None:
        """See Store."""
        fails = self.fail_commit
        if not fails or self.world.chance(0.5):
            self._real.commit()
        self.fail_commit = False
        if fails:
            raise StoreError("planned: an fsync fails")
        super().commit()

    def apply_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """See Store."""
        self._real.apply_schedules(changes)
        super().apply_schedules(changes)

    def take(self, queue: str, task: str, after_rank: int, limit: int) -> list[Job]:
        """See Store."""
        return self._same_jobs(self._real.take(queue, task, after_rank, limit), super().take(queue, task, after_rank, limit))

    def take_scheduled(self, after: tuple[float, int], limit: int) -> list[Job]:
        """See Store."""
        return self._same_jobs(self._real.take_scheduled(after, limit), super().take_scheduled(after, limit))

    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """See Store."""
        real, twin = self._real.load(ids, small=small), super().load(ids, small=small)
        for job_id in ids:
            if isinstance(real[job_id], Lost) or isinstance(twin[job_id], Lost):
                _same(f"load {job_id}", real[job_id], twin[job_id])
            else:
                self._same_jobs([real[job_id]], [twin[job_id]])
        return real

    def payloads(self, ids: list[int]) -> dict[int, bytes]:
        """See Store."""
        return _same("payloads", self._real.payloads(ids), super().payloads(ids))

    def submission(self, submission_id: bytes) -> Submission | None:
        """See Store."""
        return _same("submission", self._real.submission(submission_id), super().submission(submission_id))

    def keep_pauses(self, pauses: dict[tuple[str, str], Pause | None]) -> None:
        """See Store."""
        self._real.keep_pauses(pauses)
        super().keep_pauses(pauses)

    def keep_limits(self, limits: dict[str, QueueLimit | None]) -> None:
        """See Store."""
        self._real.keep_limits(limits)
        super().keep_limits(limits)

    def prune_kept(self, now: float, limit: int) -> Gone:
        """See Store."""
        return _same("jobs that are kept no longer", self._real.prune_kept(now, limit), super().prune_kept(now, limit))

    def prune(self, now: float, limit: int) -> int:
        """See Store: which rows go when differs between stores, so only submissions are pruned here, which do not."""
        return 0

    def crash(self, *, may_keep: bool = False) -> None:
        """The power goes, in the middle of a COMMIT if one runs: what was not synced is there, is not, or is torn."""
        events = self._disk.events
        cut = len(events)
        if may_keep and self.world.chance(0.7):
            self._real.commit()
            cut = self.world.rng.randint(cut, len(events))
        replay = Replay()
        replay.synced.update(self._laid_out)
        for event in events[:cut]:
            replay.step(event)
        self._real._abandon()
        self._disk.events = []
        mode = self.world.rng.choice(["drop", "all", "prefix", "sectors"])
        self.world.counts["power cut: " + mode] += 1
        self._laid_out = replay.image(self.world.rng, mode)
        lay_out(self._folder / "data", self._laid_out)
        self._real = SqliteStore(self._folder / "data", self._kept_retention, vfs=self._disk.name)
        self._follow()

    def _follow(self) -> None:
        """Let the twin be as the disk is: the latest transaction is there, or it is not."""
        probe = SqliteStore(self._folder / "data", self._kept_retention, vfs=self._disk.name)
        probe.open()
        found = _contents(probe, [*self._jobs.keys() | ({} if self._saved is None else self._saved["_jobs"]).keys()])
        probe._abandon()
        self.is_committing = False
        self.fail_apply = self.fail_commit = False
        if found == self._contents():
            self.world.counts["SQLite kept the open transaction"] += self._saved is not None
            CrashStore.commit(self)
        CrashStore.crash(self)
        if found != self._contents():
            raise Violation(f"I1: SQLite kept half a transaction: {found} is not {self._contents()}")

    def _contents(self) -> list[object]:
        leases = sorted((job_id, lease[0]) for job_id, lease in self._leases.items())
        return [{job.id: _row(job) for job in self._jobs.values()}, leases, self._next["job"], self._next["fence"],
                len(self._submissions), [self._schedules[name] for name in sorted(self._schedules)], sorted(self._pauses.values()),
                sorted(self._limits.values()), sorted(line for lines in self._lines.values() for line in lines)]

    def shut(self) -> None:
        """Close in order."""
        self._real.close()
        CrashStore.commit(self)

    def check_integrity(self) -> None:
        """SQLite finds nothing wrong with its file, and its counters are the twin's."""
        _same("integrity_check", self._real._db.pragma("integrity_check"), "ok")
        reader = self._real.reader()
        try:
            _same("counters", sorted(reader.counts()), sorted(self._lane_counts()))
        finally:
            reader.close()

    def discard(self) -> None:
        """Close without a word, the run is over."""
        self._real._abandon()
        self._disk.unregister()

    @staticmethod
    def _same_jobs(real: list[Job], twin: list[Job]) -> list[Job]:
        _same("ids", [job.id for job in real], [job.id for job in twin])
        for one, other in zip(real, twin):
            _same(f"job {one.id}", _row(one, COMPARED), _row(other, COMPARED))
        return real


def _nobody_looks(now: float, gone: list[Job], is_all: bool) -> None:
    pass


def _contents(store: SqliteStore, ids: list[int]) -> list[object]:
    rows = {job.id: _row(job) for job in store.load(ids).values() if isinstance(job, Job)}
    numbers = dict(store._query("SELECT name, value FROM meta WHERE name IN ('next_job', 'next_fence')", ()))
    return [rows, store._query("SELECT job, fence FROM leases ORDER BY job", ()), numbers["next_job"], numbers["next_fence"],
            store._query("SELECT count(*) FROM submissions", ())[0][0], schedules(store._query),
            store._query("SELECT kind, name, paused_at, until, reason, paused_by FROM pauses ORDER BY kind, name", ()),
            store._query("SELECT queue, max_jobs, max_bytes, urgent, extra, set_at, reason, set_by FROM queue_limits ORDER BY queue", ()),
            store._query("SELECT job, seq, at, attempt, text FROM log_lines ORDER BY job, seq", ())]


def _row(job: Job, names: tuple[str, ...] = KEPT) -> list[object]:
    values = [getattr(job, name) for name in names]
    return [int(value) if isinstance(value, (State, bool)) else value for value in values]


def _same(what: str, real: object, twin: object) -> object:
    if real != twin:
        raise Violation(f"the stores differ in {what}: SQLite has {real!r}, memory has {twin!r}")
    return real
