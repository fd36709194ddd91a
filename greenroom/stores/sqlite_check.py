"""Whether a SQLite store is whole: its pages, its schema, its counters, its numbers, every row's checksum. Changes nothing.

`greenroom.stores.sqlite` runs the first of these at each start, for a bounded time; `broker.py --check` runs all of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import apsw

from greenroom.errors import StoreError
from greenroom.keeping import COUNT_KEEPS_S
from greenroom.stores.sqlite_log import count_valid, look_behind, valid_frames
from greenroom.stores.sqlite_opening import (
    BACKUP_ID, BUSY_TIMEOUT_MS, DATABASE, LOCK, MIGRATIONS, check_header, run_migration, sentence)
from greenroom.stores.sqlite_reader import JOB_COLUMNS, JOBS_AND_LANES, WHOLE_PAYLOAD, WHOLE_RESULT, Query, job_from_row, schedules, unique_keys
from greenroom.stores.sums import record_sum, run_sum


class MissingStore(StoreError):
    """Raised when there is no store to check."""


#: Findings of one kind that are told one by one.
MAX_TOLD = 20
ROWS_PER_QUERY = 500

#: The numbers in `meta`: what is handed out next, and counts.
NUMBERS = ("next_job", "next_fence", "pruned", "pruned_failed", "keeping")

_WHOLE = JOB_COLUMNS.replace("jobs.payload,", f"{WHOLE_PAYLOAD},").replace("jobs.result,", f"{WHOLE_RESULT},")
_ROWS = f"SELECT {_WHOLE} FROM {JOBS_AND_LANES} WHERE jobs.id > ? ORDER BY jobs.id LIMIT {ROWS_PER_QUERY}"

_LANES = """SELECT lanes.id, queue, task, scheduled, queued, waiting_bytes, completed + failed + cancelled + expired, failed,
    ifnull(found.s, 0), ifnull(found.q, 0), ifnull(found.b, 0), ifnull(found.f, 0), ifnull(found.e, 0)
    FROM lanes LEFT JOIN (SELECT lane, sum(state = 1) s, sum(state = 2) q, sum(state > 3) f, sum(state = 5) e,
        sum(CASE WHEN state < 4 THEN payload_bytes ELSE 0 END) b
        FROM jobs WHERE id NOT IN (SELECT job FROM damaged) GROUP BY lane) found
    ON found.lane = lanes.id"""


_KEEP_FOR = "CASE WHEN json_valid(jobs.extras) THEN jobs.extras ->> '$.keep_for' END"
# SQLite may read the decimals of a time a bit differently than they were written.
_WRONGLY_KEPT = f"""SELECT kept_jobs.job, kept_jobs.until FROM kept_jobs LEFT JOIN jobs ON jobs.id = kept_jobs.job
    WHERE (abs(kept_jobs.until - jobs.finished_at - {_KEEP_FOR}) < 0.001 AND kept_jobs.failed = (jobs.state = 5)) IS NOT TRUE
    UNION ALL SELECT jobs.id, NULL FROM jobs WHERE jobs.state > 3 AND jobs.extras IS NOT NULL AND {_KEEP_FOR} IS NOT NULL
    AND jobs.id NOT IN (SELECT job FROM kept_jobs)"""


def pages(query: Query) -> Iterator[str]:
    """Check the pages and indexes: SQLite's own check, which finds what it can't read, not what reads as something else."""
    for message, in query(f"PRAGMA integrity_check({MAX_TOLD})", ()):
        if message != "ok":
            yield message


def schema(query: Query) -> Iterator[str]:
    """Check that the tables are those that this version made: a flipped bit in their text changes what statements mean."""
    found = query("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name", ())
    if found != _expected_schema(query("PRAGMA user_version", ())[0][0]):
        yield "the text of the tables is not what this version wrote"


@lru_cache(maxsize=8)
def _expected_schema(version: int) -> list[tuple]:
    db = apsw.Connection(":memory:")
    try:
        for name in MIGRATIONS[:version]:
            run_migration(db, name)
        return list(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"))
    finally:
        db.close()


def counters(query: Query) -> Iterator[str]:
    """Check the lanes' counters against the rows."""
    has_damaged = bool(query("SELECT 1 FROM damaged LIMIT 1", ()))
    ever = ever_failed = rows = failed_rows = 0
    for (_, queue, task, scheduled, queued, size, finished, failed,
         has_scheduled, has_queued, has_size, has_finished, has_failed) in query(_LANES, ()):
        if (scheduled, queued) != (has_scheduled, has_queued) or (size != has_size and not has_damaged):
            yield (f"queue {queue}, task {task}: {scheduled} scheduled and {queued} queued jobs of {size} bytes are counted, "
                   f"the rows say {has_scheduled} and {has_queued} of {has_size}")
        ever += finished
        rows += has_finished
        ever_failed += failed
        failed_rows += has_failed
        if has_finished > finished:
            yield f"queue {queue}, task {task}: {finished} finished jobs are counted, but {has_finished} are there"
    pruned = query("SELECT value FROM meta WHERE name = 'pruned'", ())
    if pruned and ever - pruned[0][0] != rows and not has_damaged:
        yield f"{ever} finished jobs are counted of which {pruned[0][0]} were deleted, but {rows} are there"
    pruned = query("SELECT value FROM meta WHERE name = 'pruned_failed'", ())
    if pruned and ever_failed - pruned[0][0] != failed_rows and not has_damaged:
        yield f"{ever_failed} failed jobs are counted of which {pruned[0][0]} were deleted, but {failed_rows} are there"
    lost = query("SELECT count(*) FROM jobs WHERE lane NOT IN (SELECT id FROM lanes)", ())[0][0]
    if lost:
        yield f"{lost} jobs belong to no queue"


def numbers(query: Query) -> Iterator[str]:
    """Check that no number that is in use was not handed out, and the sums of the numbers themselves."""
    found = {name: (value, expected) for name, value, expected in query("SELECT name, value, sum FROM meta", ())}
    for name in NUMBERS if _has(query, "kept_jobs") else NUMBERS[:3]:
        value, expected = found.get(name, (0, 0))
        if expected not in (None, record_sum(name, value)):
            yield f"the number {name} does not match its checksum"
    highest = query("SELECT ifnull(max(id), 0), ifnull(max(place), 0), ifnull(max(fence), 0) FROM jobs", ())[0]
    if max(highest[:2]) >= found.get("next_job", (0, 0))[0]:
        yield f"job number {max(highest[:2])} is in use, but not handed out yet"
    if max(highest[2], query("SELECT ifnull(max(fence), 0) FROM leases", ())[0][0]) >= found.get("next_fence", (0, 0))[0]:
        yield f"fence {highest[2]} is in use, but not handed out yet"


def sums(query: Query) -> Iterator[str]:
    """Check every row against its checksum."""
    for name, columns in (("lanes", "id, queue, task"), ("leases", "job, fence, instance, CAST(worker AS BLOB), granted_at"),
                          ("runs", "job, attempt, worker, started_at, ended_at, outcome, error"),
                          ("log_lines", "job, seq, at, attempt, text"), ("pauses", "kind, name, paused_at, until, reason, paused_by"),
                          ("queue_limits", "queue, max_jobs, max_bytes, urgent, extra, set_at, reason, set_by")):
        if not _has(query, name):
            continue
        sum_of = run_sum if name == "runs" else record_sum
        for *values, expected in query(f"SELECT {columns}, sum FROM {name}", ()):
            if expected not in (None, sum_of(*values)):
                yield f"{name}: the row of {values[0]} does not match its checksum"
    last = 0
    while rows := query(_ROWS, (last,)):
        last = rows[-1][0]
        for row in rows:
            job = job_from_row(row)
            if job.damage is None and job.payload is None:
                job.damage = "payload"
            if job.damage is None and job.result is None and job.result_bytes:
                job.damage = "result"
            if job.damage is not None:
                yield f"job {job.id}: its {job.damage} does not match the checksum"
    for *values, expected in query("SELECT id, body_hash, CAST(outcome AS BLOB), created_at, sum FROM submissions", ()):
        values[2] = values[2].decode("utf-8", "replace")
        if expected not in (None, record_sum(*values)):
            yield f"submissions: the row of {values[0].hex()} does not match its checksum"
    if _has(query, "unique_keys"):
        for _, taken, is_sound in unique_keys(query):
            if not is_sound:
                yield f"unique_keys: the row of job {taken.job} does not match its checksum"
    if _has(query, "schedules"):
        for record in schedules(query):
            if record.is_damaged:
                yield f"schedules: the row of {record.name!r} does not match its checksum"


def kept(query: Query) -> Iterator[str]:
    """Check what is noted of jobs that ask how long they are kept against their rows."""
    if not _has(query, "kept_jobs"):
        return
    for job_id, until in query(_WRONGLY_KEPT, ()):
        yield f"job {job_id} is noted to be kept until {until}, its row says something else" if until is not None else (
            f"job {job_id} asked how long it is kept, and that is not noted")
    noted = query("SELECT value FROM meta WHERE name = 'keeping'", ())
    found = query(f"SELECT count(*) FROM jobs WHERE extras IS NOT NULL AND {_KEEP_FOR} > {COUNT_KEEPS_S:g}", ())[0][0]
    if noted and noted[0][0] != found:
        yield f"{noted[0][0]} jobs that ask to be kept for long are counted, but {found} are there"


def _has(query: Query, table: str) -> bool:
    """Tell whether the store has a table yet: one of an older schema is checked before it is brought to this one."""
    return bool(query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)))


CHECKS: dict[str, Callable[[Query], Iterator[str]]] = {
    "pages and indexes": pages, "tables": schema, "counters": counters, "numbers": numbers, "kept jobs": kept,
    "checksums of all rows": sums}


def findings(query: Query, check: Callable[[Query], Iterator[str]]) -> list[str]:
    """Run one check; what can't even be read is a finding too."""
    found: list[str] = []
    try:
        for finding in check(query):
            if len(found) == MAX_TOLD:
                return [*found, "and more"]
            found.append(finding)
    except apsw.InterruptError:
        raise
    except (StoreError, TypeError, ValueError) as exc:  # values of a kind that no store writes
        found.append(str(exc))
    return found


def check_at_start(db: apsw.Connection, path: Path, checks: Iterable[Callable[[Query], Iterator[str]]], until: float) -> bool:
    """Run checks up to a monotonic time, so that a store of gigabytes still opens soon; False: there was not time for all.

    What this misses is met when a row is read: by its checksum, or as StoreError. Raises StoreError for what it finds.
    """
    db.set_progress_handler(lambda: time.monotonic() > until, 100)
    try:
        for check in checks:
            found = findings(query_on(db, path), check)
            if found:
                raise StoreError(f"{path} is damaged: {found[0]}; nothing was changed. `broker.py --check` says more, "
                                 "docs/operations.md (Damage) what to do")
    except apsw.InterruptError:
        return False
    finally:
        db.set_progress_handler(None)
    return True


def log_rest(folder: Path, *, is_open: bool) -> str:
    """Say what is behind the end of a store's log; empty: nothing. Raises StoreError for damage.

    Args:
        is_open: this process has just opened the store and SQLite has read its log.
    """
    log = folder / f"{DATABASE}-wal"
    try:
        if not log.stat().st_size:
            return ""
        rest = look_behind(log, valid_frames(folder / f"{DATABASE}-shm") if is_open else count_valid(log))
    except FileNotFoundError:
        return ""
    if rest.damage:
        raise StoreError(f"{log} is damaged: {rest.damage}; nothing was changed. docs/operations.md (Damage) says what to do")
    return (f"the log ends with {rest.frames} pages of a transaction that was not finished, and so not acknowledged: it is dropped"
            if rest.frames else "")


@contextmanager
def opened_for_check(folder: Path) -> Iterator[tuple[Query, str]]:
    """Open a store without changing a byte of it; yields how to ask it, and a sentence about its state. Raises StoreError.

    Beside a running broker: one more reader. Else nobody is let in meanwhile, and a log that was left behind is only read.
    """
    path = folder / DATABASE
    if not path.exists():
        raise MissingStore(f"there is none in {folder} yet: the first start makes it")
    lock = _try_lock(folder)
    log = path.with_name(f"{DATABASE}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    try:
        check_header(path)
        if lock is None:
            state, db = "a broker is running on it", apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        elif has_log:
            state = "it was not stopped cleanly: its log is read too"
            db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            db.pragma("locking_mode", "exclusive")  # with the log's index in memory, no file for it
        else:
            state = "it is stopped"
            db = apsw.Connection(f"file:{_quoted(path)}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    except (apsw.Error, OSError) as exc:
        raise StoreError(f"{path}: {sentence(exc)}") from exc
    try:
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.pragma("query_only", 1)
        if db.pragma("application_id") == BACKUP_ID:
            state = "it is a backup: the first start on it skips numbers"
        yield query_on(db, path), state
    except apsw.Error as exc:
        raise StoreError(f"{path}: {sentence(exc)}") from exc
    finally:
        db.close()
        if lock is not None:
            os.close(lock)


def query_on(db: apsw.Connection, path: Path) -> Query:
    def query(sql: str, bindings: tuple | dict) -> list[tuple]:
        try:
            return list(db.execute(sql, bindings))
        except apsw.InterruptError:
            raise
        except (apsw.Error, UnicodeDecodeError) as exc:
            raise StoreError(f"{path}: {sentence(exc)}") from exc
    return query


def _try_lock(folder: Path) -> int | None:
    """Take the store's lock if nobody has it; None: somebody has. Makes no file: without one the directory stands for it."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


