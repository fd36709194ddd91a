"""What of the finished jobs in a SQLite store is beyond its time, found a slice at a time and deleted. Must not know the library.

Jobs that asked how long they are kept stand in a table of their own, in order of their time. The others have no such index, it would make
each finish dearer: sweeps go over their rows by id, one over failed jobs, one over all others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from greenroom.job import FAILED, SMALL_BYTES
from greenroom.keeping import COUNT_KEEPS_S
from greenroom.stores import Retention
from greenroom.stores.extras import keep_for, kept_line_bytes
from greenroom.stores.sqlite_reader import Query
from greenroom.stores.sqlite_rows import Deleted, Rows

log = logging.getLogger(__name__)

#: Runs a statement for each of many rows, in the open transaction.
ExecuteMany = Callable[[str, list[tuple]], object]

#: A sweep looks at so many rows for each that it may delete, stops after deleting so many bytes of payloads and results
#: (each 4 kB are a page to visit), and rests after its end so long that sweeping takes about 2 % of a core.
LOOK_FACTOR = 4
PRUNE_BYTES = 4 * 1024 * 1024
SWEEP_REST_S_PER_ROW = 10e-6

_LOOK = """SELECT count(*), max(id), min(CASE WHEN finished_at > :cutoff THEN finished_at END), total(finished_at <= :cutoff)
    FROM (SELECT id, CASE WHEN {which} AND id NOT IN (SELECT job FROM kept_jobs) THEN finished_at END AS finished_at
        FROM jobs {among} id > :cursor ORDER BY id LIMIT :rows)"""
_WHAT_GOES = "payload_bytes, result_bytes, attempt > 1 OR state != 4 OR crashes OR requeues, extras"
_DUE = f"""SELECT id, finished_at, {_WHAT_GOES} FROM jobs {{among}}
    id > ? AND id <= ? AND finished_at <= ? AND {{which}} AND id NOT IN (SELECT job FROM damaged) AND id NOT IN (SELECT job FROM kept_jobs)
    ORDER BY id LIMIT ?"""
_FAILED_ROWS = {"which": "state = 5", "among": "INDEXED BY jobs_not_completed WHERE state > 4 AND"}
_OTHER_ROWS = {"which": "state != 5", "among": "NOT INDEXED WHERE"}

_KEPT_DUE = f"""SELECT kept_jobs.job, kept_jobs.failed, finished_at, {_WHAT_GOES}
    FROM kept_jobs LEFT JOIN jobs ON jobs.id = kept_jobs.job WHERE until <= ? ORDER BY until, kept_jobs.job LIMIT ?"""
_OF_JOBS = """SELECT jobs.state, kept_jobs.job IS NOT NULL, CASE WHEN kept_jobs.job IS NOT NULL THEN jobs.extras END
    FROM json_each(?) AS ids JOIN jobs ON jobs.id = ids.value LEFT JOIN kept_jobs ON kept_jobs.job = ids.value"""


def count_of(query: Query, ids: list[int]) -> Deleted:
    """Count finished jobs that are about to be deleted because somebody wants that. Their rows must have been written."""
    failed = kept = kept_failed = long = 0
    for state, is_kept, extras in query(_OF_JOBS, (json.dumps(ids),)):
        failed += state == FAILED
        kept += is_kept
        kept_failed += is_kept and state == FAILED
        long += (keep_for(extras) or 0.0) > COUNT_KEEPS_S
    return Deleted(len(ids), failed, kept, kept_failed, long)


class _Going:
    """Jobs that are deleted together, with all that there is of them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int]] = []
        self._payloads: list[tuple[int]] = []
        self._results: list[tuple[int]] = []
        self._runs: list[tuple[int]] = []
        self._lines: list[tuple[int]] = []
        self._large_bytes = 0

    @property
    def is_full(self) -> bool:
        """True when no more should go at once."""
        return self._large_bytes > PRUNE_BYTES

    def add(self, job_id: int, payload_bytes: int, result_bytes: int, may_have_runs: int, extras: str | None) -> None:
        self.jobs.append((job_id,))
        if may_have_runs:
            self._runs.append((job_id,))
        if payload_bytes > SMALL_BYTES:
            self._payloads.append((job_id,))
            self._large_bytes += payload_bytes
        if result_bytes > SMALL_BYTES:
            self._results.append((job_id,))
            self._large_bytes += result_bytes
        line_bytes = kept_line_bytes(extras) if extras is not None else 0
        if line_bytes:
            self._lines.append((job_id,))
            self._large_bytes += line_bytes

    def delete(self, execute_many: ExecuteMany) -> None:
        for table, column, ids in (("jobs", "id", self.jobs), ("payloads", "job", self._payloads), ("results", "job", self._results),
                                   ("runs", "job", self._runs), ("log_lines", "job", self._lines)):
            if ids:
                execute_many(f"DELETE FROM {table} WHERE {column} = ?", ids)


class Pruning:
    """Finds what is due and deletes it. What it looks at must have been written; whoever calls counts what went (`Deleted`)."""

    def __init__(self, query: Query, execute_many: ExecuteMany, rows: Rows, retention: Retention) -> None:
        self._query = query
        self._execute_many = execute_many
        self._rows = rows
        self._others = _Sweeper(query, execute_many, _OTHER_ROWS, retention.age_s, retention.count)
        self._failed = _Sweeper(query, execute_many, _FAILED_ROWS, retention.failed_age_s, retention.failed_count)

    def history(self, now: float, limit: int) -> tuple[int, Deleted]:
        """Go one slice further with a sweep; return how many rows were looked at, 0: both rest, and what was deleted."""
        rows = self._rows
        failed = rows.failed - rows.kept_failed
        looked, gone = self._others.go_on(now, limit, rows.finished - rows.kept - failed)
        if looked:
            return looked, Deleted(gone)
        looked, gone = self._failed.go_on(now, limit, failed)
        return looked, Deleted(gone, gone)

    def was_deleted(self, deleted: Deleted) -> None:
        """Note that somebody deleted jobs: so many less are too many."""
        failed = deleted.failed - deleted.kept_failed
        self._failed.leave_out(failed)
        self._others.leave_out(deleted.jobs - deleted.kept - failed)

    def kept(self, now: float, limit: int) -> tuple[list[int], Deleted]:
        """Delete up to `limit` jobs that are kept no longer, as they asked; return their ids too."""
        going, failed, long, wrong = _Going(), 0, 0, []
        for job_id, has_failed, finished_at, *what_goes in self._query(_KEPT_DUE, (now, limit)):
            asked = keep_for(what_goes[-1])
            if finished_at is None or asked is None or finished_at + asked > now:
                wrong.append((job_id, None if finished_at is None or asked is None else finished_at + asked))
                continue
            failed += has_failed
            long += asked > COUNT_KEEPS_S
            going.add(job_id, *what_goes)
            if going.is_full:
                break
        for job_id, until in wrong:
            self._set_right(job_id, until)
        going.delete(self._execute_many)
        if going.jobs:
            self._execute_many("DELETE FROM kept_jobs WHERE job = ?", going.jobs)
        ids = [job_id for job_id, in going.jobs]
        return ids, Deleted(len(ids), failed, len(ids), failed, long)

    def _set_right(self, job_id: int, until: float | None) -> None:
        """Put right an entry that is not as its job's row says: a bit of it flipped on disk."""
        log.error("until when job %d is kept is damaged on disk: it is put right", job_id)
        if until is None:
            self._execute_many("DELETE FROM kept_jobs WHERE job = ?", [(job_id,)])
        else:
            self._execute_many("UPDATE kept_jobs SET until = ? WHERE job = ?", [(until, job_id)])


class _Sweeper:
    """Goes over finished jobs of a kind, again and again, and deletes what is older than an age, or too much and older than an hour."""

    def __init__(self, query: Query, execute_many: ExecuteMany, kind: dict[str, str], age_s: float, count: int) -> None:
        self._query = query
        self._execute_many = execute_many
        self._look, self._due = _LOOK.format(**kind), _DUE.format(**kind)
        self._age_s = age_s
        self._count = count
        self._sweep: _Sweep | None = None  # while one goes on
        self._next_at = 0.0  # the next one begins no sooner
        self._oldest = 0.0  # no job of the kind is older; 0: not known

    def go_on(self, now: float, limit: int, present: int) -> tuple[int, int]:
        """Go one slice further; return how many rows were looked at and how many were deleted, at most `limit`.

        Most that are due stand at the lowest ids, but jobs that wait long may stand before them; so sweeps go over the whole table, with
        a rest between.
        """
        sweep = self._sweep or self._begin(now, present)
        if sweep is None:
            return 0, 0
        rows = limit * LOOK_FACTOR
        (looked, last, oldest, due), = self._query(self._look, {"cutoff": sweep.cutoff, "cursor": sweep.cursor, "rows": rows})
        sweep.looked += looked
        if oldest is not None:
            sweep.oldest = min(sweep.oldest, oldest)
        gone, is_cut = self._delete_due(sweep, last, limit) if due else (0, False)
        if not is_cut:
            sweep.cursor = last
        if not is_cut and looked < rows:
            self._sweep = None
            self._oldest = sweep.oldest
            self._next_at = now + sweep.looked * SWEEP_REST_S_PER_ROW
        return looked, gone

    def leave_out(self, count: int) -> None:
        """Note that somebody deleted so many."""
        if self._sweep is not None:
            self._sweep.excess -= count

    def _begin(self, now: float, present: int) -> _Sweep | None:
        excess = present - self._count
        cutoff = now - (min(self._age_s, COUNT_KEEPS_S) if excess > 0 else self._age_s)
        if present == 0 or now < self._next_at or self._oldest > cutoff:
            return None
        self._sweep = _Sweep(cutoff, now - self._age_s, excess, now)
        return self._sweep

    def _delete_due(self, sweep: _Sweep, last: int, limit: int) -> tuple[int, bool]:
        """Delete up to `limit` due jobs from the sweep's place to id `last`; return how many, and True if stopped before that id: the
        cursor says where."""
        found = self._query(self._due, (sweep.cursor, last, sweep.cutoff, limit))
        going = _Going()
        for job_id, finished_at, *what_goes in found:
            sweep.cursor = job_id
            if finished_at > sweep.age_cutoff and sweep.excess <= 0:
                sweep.oldest = min(sweep.oldest, finished_at)
                continue
            sweep.excess -= 1
            going.add(job_id, *what_goes)
            if going.is_full:
                break
        going.delete(self._execute_many)
        return len(going.jobs), len(found) == limit or going.is_full


class _Sweep:
    """One pass over the jobs, by id."""

    __slots__ = ("cursor", "cutoff", "age_cutoff", "excess", "oldest", "looked")

    def __init__(self, cutoff: float, age_cutoff: float, excess: int, now: float) -> None:
        self.cursor = 0  # ids up to here are done
        self.cutoff = cutoff  # what finished later stays, whatever the count
        self.age_cutoff = age_cutoff  # what finished by then goes, whatever the count
        self.excess = excess  # how many between the two go, for the count
        self.oldest = now  # the earliest finish that stays; what is unfinished now finishes later
        self.looked = 0  # rows
