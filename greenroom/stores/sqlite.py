"""The store in one SQLite file (WAL, synchronous=FULL): opening and checking it, writing batches.

The only module that knows the library apsw. Must not decide anything about jobs, or know sessions and wires.

The data directory holds `greenroom.db`, SQLite's own `-wal` and `-shm` beside it, and `greenroom.lock`. One connection
writes. Two threads use it, never at once: statements run on the caller's, commit() may run on another.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import apsw

from greenroom.errors import StoreError
from greenroom.job import Job, State
from greenroom.records import Damaged, Gone, LaneCounts, LogLine, Lost, Pause, QueueLimit, Restored, StoredLease, StoredSchedule, Submission
from greenroom.stores import SUBMISSION_KEPT_S, Retention
from greenroom.stores.sqlite_check import NUMBERS, check_at_start, counters, log_rest, pages, schema
from greenroom.stores.sqlite_opening import (
    BACKUP_ID, BUSY_TIMEOUT_MS, DATABASE, OLDEST_SQLITE, check_header, check_version, lock, make_folder, migrate, sentence,
    set_pragmas, skip_numbers, sync_folder)
from greenroom.stores.sqlite_pruning import Pruning, count_of
from greenroom.stores.sqlite_reader import (
    JOB_COLUMNS, JOB_COLUMNS_WHOLE_PAYLOAD, JOBS_AND_LANES, Query, SqliteReader, job_from_row, jobs_by_id, lane_counts,
    next_number, number, payloads_by_id, schedules, unique_keys, with_payload)
from greenroom.stores.sqlite_rows import Deleted, Rows
from greenroom.stores.sums import record_sum
from greenroom.unique import Taken

log = logging.getLogger(__name__)

#: Writer's settings, each read back. 64 MiB of pages; the log's file is cut to 64 MiB; checkpoints are ours, see commit().
PRAGMAS: dict[str, object] = {
    "journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "checkpoint_fullfsync": 1, "cache_size": -65536,
    "wal_autocheckpoint": 0, "journal_size_limit": 67108864, "temp_store": 2,
}

#: The log is copied into the database when it has so many pages: 16 MiB.
CHECKPOINT_PAGES = 4096

#: 8 MiB of pages for each reader.
READER_PRAGMAS: dict[str, object] = {"query_only": 1, "cache_size": -8192}

#: The check at open stops after so long: a store of gigabytes must still open soon.
CHECK_S = 2.0

_TAKE = f"""SELECT {JOB_COLUMNS_WHOLE_PAYLOAD} FROM {JOBS_AND_LANES}
    WHERE jobs.lane = ? AND jobs.state = 2 AND jobs.rank > ? AND jobs.id NOT IN (SELECT job FROM damaged)
    ORDER BY jobs.rank LIMIT ?"""
_TAKE_SCHEDULED = f"""SELECT {JOB_COLUMNS_WHOLE_PAYLOAD} FROM {JOBS_AND_LANES}
    WHERE jobs.state = 1 AND (jobs.run_at, jobs.id) > (?, ?) AND jobs.id NOT IN (SELECT job FROM damaged)
    ORDER BY jobs.run_at, jobs.id LIMIT ?"""
_EXPIRING = "jobs.state < 3 AND jobs.attempt = 0 AND jobs.extras IS NOT NULL"
_EXPIRES_AT = "CASE WHEN json_valid(jobs.extras) THEN jobs.extras ->> '$.expires_at' END"
_TAKE_EXPIRED = f"""SELECT {JOB_COLUMNS} FROM jobs INDEXED BY jobs_expiring LEFT JOIN lanes ON lanes.id = jobs.lane
    WHERE {_EXPIRING} AND {_EXPIRES_AT} <= ? AND jobs.id NOT IN (SELECT job FROM damaged) ORDER BY {_EXPIRES_AT} LIMIT ?"""
_NEXT_EXPIRY = f"""SELECT {_EXPIRES_AT} FROM jobs INDEXED BY jobs_expiring WHERE {_EXPIRING} AND {_EXPIRES_AT} IS NOT NULL
    ORDER BY {_EXPIRES_AT} LIMIT 1"""
_LEASES = f"""SELECT leases.job, leases.fence, leases.instance, CAST(leases.worker AS BLOB), leases.granted_at, leases.sum,
    {JOB_COLUMNS}
    FROM leases LEFT JOIN jobs ON jobs.id = leases.job LEFT JOIN lanes ON lanes.id = jobs.lane ORDER BY leases.job"""
_CANCELLED = f"""SELECT {JOB_COLUMNS} FROM {JOBS_AND_LANES} WHERE jobs.cancel_requested = 1 AND jobs.state < 4
    AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.job = jobs.id) ORDER BY jobs.id"""

_PAUSES = """SELECT kind, name, paused_at, until, reason, paused_by, sum FROM pauses ORDER BY paused_at, kind, name"""
_LIMITS = "SELECT queue, max_jobs, max_bytes, urgent, extra, set_at, reason, set_by, sum FROM queue_limits ORDER BY queue"
_KEEP_LIMIT = """INSERT OR REPLACE INTO queue_limits (queue, max_jobs, max_bytes, urgent, extra, set_at, reason, set_by, sum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_KEEP_PAUSE = "INSERT OR REPLACE INTO pauses (kind, name, paused_at, until, reason, paused_by, sum) VALUES (?, ?, ?, ?, ?, ?, ?)"

_SET_ASIDE = """UPDATE lanes SET scheduled = max(0, scheduled - ?), queued = max(0, queued - ?),
    waiting_bytes = max(0, waiting_bytes - ?)
    WHERE id = ?"""

Function = TypeVar("Function", bound=Callable)
Kept = TypeVar("Kept", Pause, QueueLimit)


def _guarded(method: Function) -> Function:
    """Turn what SQLite raises into StoreError, and end the store: after a failed write nothing more may be committed."""
    @functools.wraps(method)
    def guarded(self: SqliteStore, *args: object, **kwargs: object) -> object:
        if self._db is None:
            raise StoreError(f"store {self._folder} is not open, or failed before")
        try:
            return method(self, *args, **kwargs)
        except apsw.Error as exc:
            self._abandon()
            raise StoreError(f"store {self._folder}: {sentence(exc)}") from exc
        except StoreError:
            self._abandon()
            raise
    return guarded


class SqliteStore:
    """The writer's side; see greenroom.stores.Store for the contract of each method."""

    def __init__(self, folder: str | os.PathLike[str], retention: Retention = Retention(), *, vfs: str | None = None) -> None:
        """Say where it is; open() does the rest.

        Args:
            folder: the data directory, made if it is not there.
            vfs: name of a registered SQLite VFS, for tests; None: the system's.
        """
        self._folder = Path(folder)
        self._path = self._folder / DATABASE
        self._retention = retention
        self._vfs = vfs
        self._db: apsw.Connection | None = None
        self._lock_file = -1
        self._query: Query  # set by open
        self._rows = Rows()
        self._log_pages = 0  # in the log after the latest COMMIT
        self._pruning: Pruning  # set by open
        self._numbers: dict[str, int] = {}  # those of NUMBERS beside the blocks', as on disk

    def open(self) -> Restored:
        """Open or create the store, check it, and return what a restart needs; StoreError leaves all as it was."""
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SQLITE:
            raise StoreError(f"SQLite {apsw.sqlite_lib_version()} is too old: install apsw 3.51.3 or newer")
        make_folder(self._folder)
        self._lock_file = lock(self._folder)
        try:
            check_header(self._path)
            self._db = self._connect()
            restored = self._restore()
            if self._db.in_transaction:  # sums that were missing, damaged leases that went
                self._db.execute("COMMIT")
            return restored
        except (apsw.Error, OSError) as exc:
            self._abandon()
            raise StoreError(f"store {self._folder}: {sentence(exc)}") from exc
        except StoreError:
            self._abandon()
            raise

    @_guarded
    def block(self, name: str, count: int) -> int:
        """Hand out `count` new numbers of this kind, "job" or "fence"; return the first."""
        self._begin()
        first = next_number(self._query, name)
        self._set_number(f"next_{name}", first + count)
        return first

    @_guarded
    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """Note what to write of these jobs and submissions."""
        self._rows.add(jobs)
        self._rows.add_submissions(submissions)

    @_guarded
    def apply_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """Note what to write of these schedules; None: there is none of that name any more."""
        self._rows.add_schedules(changes)

    def unwritten(self) -> int:
        """Jobs applied whose statements have not run."""
        return self._rows.count

    @_guarded
    def write(self) -> None:
        """Run the statements of what was applied."""
        self._write()

    def _write(self) -> None:
        if self._rows:
            self._begin()
            self._rows.write(self._db.execute)
            self._note_number("keeping", self._rows.keeping)

    def _write_all(self) -> None:
        self._write()
        if self._rows.has_lines:
            self._begin()
            self._rows.write_lines(self._db.execute)

    @_guarded
    def commit(self) -> None:
        """Make everything applied durable; returns after the fsync."""
        self._write_all()
        if self._db.in_transaction:
            self._db.execute("COMMIT")
            if self._log_pages >= CHECKPOINT_PAGES:
                self._checkpoint()

    def _checkpoint(self) -> None:
        """Copy the log into the database. SQLite would do that by itself, but say nothing when the disk fails at it: the log then
        grows until the disk is full, and a failed sync is tried again as if nothing had happened."""
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            pass  # a person's sqlite3 shell is at it

    def _note_log(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    @_guarded
    def take(self, queue: str, task: str, after_rank: int, limit: int) -> list[Job]:
        """Return up to `limit` jobs queued in this lane, with payloads, by rank from `after_rank` (not included)."""
        self._write()
        lane = self._rows.lanes.get((queue, task))
        return [] if lane is None else [with_payload(row) for row in self._query(_TAKE, (lane, after_rank, limit))]

    @_guarded
    def take_scheduled(self, after: tuple[float, int], limit: int) -> list[Job]:
        """Return up to `limit` scheduled jobs, with payloads, by (run_at, id) from `after` (not included)."""
        self._write()
        return [with_payload(row) for row in self._query(_TAKE_SCHEDULED, (*after, limit))]

    @_guarded
    def take_expired(self, now: float, limit: int) -> list[Job]:
        """Return up to `limit` waiting jobs that should have begun by `now`, soonest first."""
        self._write()
        return [job_from_row(row) for row in self._query(_TAKE_EXPIRED, (now, limit))]

    @_guarded
    def next_expiry(self) -> float | None:
        """Return the first time by which a waiting job must have begun, or None."""
        self._write()
        rows = self._query(_NEXT_EXPIRY, ())
        return rows[0][0] if rows else None

    @_guarded
    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """Return each job, with what was applied, or Lost; whole, or without large payloads and results."""
        self._write()
        found = jobs_by_id(self._query, ids, payload=True, small=small)
        for job_id, fence in self._query("SELECT job, fence FROM leases WHERE job IN (SELECT value FROM json_each(?))",
                                         (json.dumps(ids),)):
            found[job_id].stored_lease = fence
        return found

    @_guarded
    def payloads(self, ids: list[int]) -> dict[int, bytes]:
        """Return the payloads of these jobs; those without a row, or that do not match their sum, are left out."""
        self._write()
        return payloads_by_id(self._query, ids)

    @_guarded
    def submission(self, submission_id: bytes) -> Submission | None:
        """Return what was recorded under this id, or None; with an empty outcome if it does not match its sum."""
        self._write()
        rows = self._query("SELECT id, body_hash, CAST(outcome AS BLOB), created_at, sum FROM submissions WHERE id = ?",
                           (submission_id,))
        if not rows:
            return None
        *fields, expected = rows[0]
        fields[2] = fields[2].decode("utf-8", "replace")
        return Submission(*fields) if expected in (None, record_sum(*fields)) else Submission(fields[0], b"", "", 0.0)

    @_guarded
    def set_aside(self, damaged: list[Damaged]) -> None:
        """Record that these waiting jobs are damaged; their rows stay as they are."""
        self._write()
        self._begin()
        for record in damaged:
            self._db.execute("INSERT OR IGNORE INTO damaged (job, what, seen_at) VALUES (?, ?, ?)", record[:3])
            if self._db.changes():
                self._db.execute("DELETE FROM leases WHERE job = ?", (record.job,))
                self._db.execute(_SET_ASIDE, (record.state == State.SCHEDULED, record.state == State.QUEUED, record.payload_bytes,
                                              self._rows.lanes[record.queue, record.task]))

    @_guarded
    def keep_pauses(self, pauses: dict[tuple[str, str], Pause | None]) -> None:
        """Keep these pauses; None: forget it."""
        self._begin()
        for key, pause in pauses.items():
            if pause is None:
                self._db.execute("DELETE FROM pauses WHERE kind = ? AND name = ?", key)
            else:
                self._db.execute(_KEEP_PAUSE, (*pause, record_sum(*pause)))

    @_guarded
    def keep_limits(self, limits: dict[str, QueueLimit | None]) -> None:
        """Keep these limits; None: forget it."""
        self._begin()
        for queue, limit in limits.items():
            if limit is None:
                self._db.execute("DELETE FROM queue_limits WHERE queue = ?", (queue,))
            else:
                self._db.execute(_KEEP_LIMIT, (*limit, record_sum(*limit)))

    def add_lines(self, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        """Note log lines to write, and from which on they are kept."""
        self._rows.add_lines(lines, first_lines)

    @_guarded
    def delete(self, ids: list[int]) -> None:
        """Note that these finished jobs go, with their runs and log lines."""
        self._begin()
        deleted = count_of(self._query, ids)
        self._rows.delete(ids)
        self._count_gone(deleted)
        self._pruning.was_deleted(deleted)

    def _count_gone(self, deleted: Deleted) -> None:
        self._rows.count_gone(deleted)
        self._note_number("pruned", self._numbers["pruned"] + deleted.jobs)
        self._note_number("pruned_failed", self._numbers["pruned_failed"] + deleted.failed)
        self._note_number("keeping", self._rows.keeping)

    @_guarded
    def prune_kept(self, now: float, limit: int) -> Gone:
        """Delete jobs that are kept no longer, as they asked."""
        self._write_all()
        ids, deleted = self._pruning.kept(now, limit)
        self._count_gone(deleted)
        return Gone(ids, deleted.long)

    @_guarded
    def prune(self, now: float, limit: int) -> int:
        """Delete what is beyond retention, a slice a call; 0 when there is nothing more to do now."""
        self._write_all()
        looked, deleted = self._pruning.history(now, limit)
        self._count_gone(deleted)
        return self._prune_submissions(now, limit) + self._prune_keys(now, limit) + looked

    def reader(self) -> SqliteReader:
        """Open another read-only connection."""
        try:
            db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY, vfs=self._vfs)
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            set_pragmas(db, READER_PRAGMAS)
        except apsw.Error as exc:
            raise StoreError(f"store {self._folder}: {sentence(exc)}") from exc
        return SqliteReader(self._query_on(db), functools.partial(_close_quietly, db))

    def close(self) -> None:
        """Commit what was applied, unless the store failed, and release the lock. Safe to call twice."""
        if self._db is not None:
            self.commit()
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._abandon()

    def _connect(self) -> apsw.Connection:
        is_new = not self._path.exists()
        if is_new:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite gives its own files the same
            sync_folder(self._folder)
        db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._vfs)
        try:
            # Only close() copies the log into the file: not a refusal, and not after the disk failed.
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            check_version(db.pragma("user_version"), self._path)
            until = time.monotonic() + CHECK_S
            is_whole = check_at_start(db, self._path, (pages, schema), until)
            rest = log_rest(self._folder, is_open=True)
            if rest:
                log.warning("%s: %s", self._path, rest)
            if db.pragma("application_id") == BACKUP_ID:
                skip_numbers(db, self._path)
            migrate(db)
            set_pragmas(db, PRAGMAS)
            db.set_wal_hook(self._note_log)
            if not check_at_start(db, self._path, (counters,), until) or not is_whole:
                log.warning("%s: the check at start was cut off after %g s; `broker.py --check` does all of it", self._path,
                            CHECK_S)
        except BaseException:
            db.close()
            raise
        return db

    def _restore(self) -> Restored:
        self._query = self._query_on(self._db)
        self._restore_lanes()
        lanes = lane_counts(self._query)
        self._restore_numbers()
        self._restore_counts(lanes)
        self._pruning = Pruning(self._query, self._execute_many, self._rows, self._retention)
        damaged = dict(self._query("SELECT job, what FROM damaged", ()))
        cancelled = [job for job in map(job_from_row, self._query(_CANCELLED, ())) if not job.damage and job.id not in damaged]
        return Restored(lanes, self._restore_leases(), cancelled, damaged, self._restore_keys(), schedules(self._query),
                        self._restore_kept(_PAUSES, Pause, lambda pause: f"the pause of {pause.kind} {pause.name}"),
                        self._restore_kept(_LIMITS, QueueLimit, lambda limit: f"the limit of queue {limit.queue}"), self._numbers["keeping"])

    def _restore_counts(self, lanes: list[LaneCounts]) -> None:
        """Count the finished jobs that are there: those that ever were, less those that were pruned."""
        rows, numbers = self._rows, self._numbers
        rows.finished = sum(lane.completed + lane.failed + lane.cancelled + lane.expired for lane in lanes) - numbers["pruned"]
        rows.failed = sum(lane.failed for lane in lanes) - numbers["pruned_failed"]
        rows.keeping = numbers["keeping"]
        (rows.kept, rows.kept_failed), = self._query("SELECT count(*), ifnull(sum(failed), 0) FROM kept_jobs", ())

    def _restore_kept(self, query: str, made: type[Kept], told: Callable[[Kept], str]) -> list[Kept]:
        """Return the pauses or limits that are kept. A damaged one ends the start: nobody knows what it holds back, and it may be for a reason."""
        kept = []
        for *fields, expected in self._query(query, ()):
            kept.append(made(*fields))
            if expected != record_sum(*fields):
                raise StoreError(f"{self._path} is damaged: {told(kept[-1])}; nothing was changed")
        return kept

    def _restore_numbers(self) -> None:
        """Check the numbers that must survive: a damaged one ends the start here."""
        for name in NUMBERS:
            value = number(self._query, name)
            if self._query("SELECT sum FROM meta WHERE name = ?", (name,)) == [(None,)]:  # from schema 1, or from a migration
                self._begin()
                self._set_number(name, value)
        self._numbers = {name: number(self._query, name) for name in NUMBERS[2:]}

    def _restore_lanes(self) -> None:
        """Learn the lanes' ids; a lane whose name was changed by a flipped bit would hand its jobs to the wrong task."""
        self._rows = Rows()
        for lane, queue, task, expected in self._query("SELECT id, queue, task, sum FROM lanes", ()):
            if expected is None:  # from schema 1
                self._begin()
                self._db.execute("UPDATE lanes SET sum = ? WHERE id = ?", (record_sum(lane, queue, task), lane))
            elif expected != record_sum(lane, queue, task):
                raise StoreError(f"{self._path} is damaged: the name of lane {lane}; nothing was changed")
            self._rows.lanes[queue, task] = lane
            self._rows.last_lane = max(self._rows.last_lane, lane)

    def _restore_leases(self) -> list[StoredLease]:
        leases = []
        for job_id, fence, instance, worker, granted_at, expected, *row in self._query(_LEASES, ()):
            job = job_from_row(tuple(row)) if row[0] is not None else None
            if job is None or job.damage == "row" or job.fence != fence or job.state != State.QUEUED or (
                    expected not in (None, record_sum(job_id, fence, instance, worker, granted_at))):
                log.error("the lease of job %d on disk is damaged: the job waits again, or is set aside when its turn comes",
                          job_id)
                self._begin()
                self._db.execute("DELETE FROM leases WHERE job = ?", (job_id,))
                continue
            if job.damage == "payload":  # its worker has it; if the job comes back, the payload is asked for and found damaged
                job.payload = job.damage = None
            job.stored_lease = fence
            leases.append(StoredLease(job, fence, instance, worker.decode(), granted_at))
        return leases

    def _restore_keys(self) -> list[tuple[str, Taken]]:
        keys = []
        for key, taken, is_sound in unique_keys(self._query):
            if is_sound:
                keys.append((key, taken))
            else:
                log.error("a unique key of job %d on disk is damaged: it is free now", taken.job)
        return keys

    def _query_on(self, db: apsw.Connection) -> Query:
        def query(sql: str, bindings: tuple | dict) -> list[tuple]:
            try:
                return list(db.execute(sql, bindings))
            except apsw.Error as exc:
                raise StoreError(f"store {self._folder}: {sentence(exc)}") from exc
            except UnicodeDecodeError as exc:
                raise StoreError(f"store {self._folder}: the database is damaged ({exc})") from exc
        return query

    def _abandon(self) -> None:
        """Close without a commit: what was not committed is gone."""
        if self._db is not None:
            _close_quietly(self._db)
            self._db = None
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    def _execute_many(self, sql: str, rows: list[tuple]) -> None:
        self._begin()
        self._db.executemany(sql, rows)

    def _note_number(self, name: str, value: int) -> None:
        """Set one of the numbers that are not handed out, if it is another than on disk."""
        if self._numbers[name] != value:
            self._begin()
            self._numbers[name] = value
            self._set_number(name, value)

    def _set_number(self, name: str, value: int) -> None:
        self._db.execute("UPDATE meta SET value = ?, sum = ? WHERE name = ?", (value, record_sum(name, value), name))

    def _prune_submissions(self, now: float, limit: int) -> int:
        old = self._query("SELECT id FROM submissions WHERE created_at <= ? ORDER BY created_at LIMIT ?",
                          (now - SUBMISSION_KEPT_S, limit))
        if old:
            self._begin()
            self._db.executemany("DELETE FROM submissions WHERE id = ?", old)
        return len(old)

    def _prune_keys(self, now: float, limit: int) -> int:
        old = self._query("SELECT key FROM unique_keys WHERE until <= ? LIMIT ?", (now, limit))
        if old:
            self._begin()
            self._db.executemany("DELETE FROM unique_keys WHERE key = ?", old)
        return len(old)


def _close_quietly(db: apsw.Connection) -> None:
    """Close a connection; on a disk that fails that may fail too, and what went wrong before says more."""
    with contextlib.suppress(apsw.Error):
        db.close()
