"""Reads of the SQLite store: how a row becomes a job, and the pages' read-only view. Must not write, or know the library.

It gets a `Query`, which runs one statement and turns the library's errors into StoreError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from greenroom.errors import StoreError
from greenroom.filters import EVERY, Filter
from greenroom.job import Job, Run, State
from greenroom.records import LaneCounts, LogLine, Lost, StoredSchedule
from greenroom.stores.extras import take_extras
from greenroom.stores.sqlite_search import SCAN_S, WHOLE_PAYLOAD, WHOLE_RESULT, Query, Search
from greenroom.stores.sums import StructError, data_sum, record_sum, row_sum, run_sum, schedule_sum
from greenroom.unique import Taken

#: What job_from_row expects, in this order.
JOB_COLUMNS = """
    jobs.id, lanes.queue, lanes.task, jobs.priority, jobs.payload, jobs.raw, jobs.submitted_at, jobs.state, jobs.place,
    jobs.rank, jobs.payload_bytes, jobs.run_at, jobs.started_at, jobs.finished_at, CAST(jobs.worker AS BLOB), jobs.fence,
    jobs.attempt, jobs.crashes, jobs.requeues, jobs.cancel_requested, jobs.result, jobs.result_bytes, jobs.result_raw,
    CAST(jobs.error AS BLOB), CAST(jobs.extras AS BLOB), jobs.row_sum, jobs.payload_sum, jobs.result_sum
"""

# The jobs lead, each looks up its lane; one whose lane is damaged is not lost that way.
JOBS_AND_LANES = "jobs LEFT JOIN lanes ON lanes.id = jobs.lane"

JOB_COLUMNS_WHOLE_PAYLOAD = JOB_COLUMNS.replace("jobs.payload,", f"{WHOLE_PAYLOAD},")

#: Ids bound by one statement's list; longer lists are asked for in pieces.
IDS_PER_QUERY = 500

#: Rows looked at between two looks at the time, to find those that failed alike, and jobs counted in one look, for they lie in memory.
ALIKE_ROWS = 100
ALIKE_COUNTED = 200

#: The latest runs of a job that are shown.
MOST_RUNS = 100
_RUNS = "SELECT job, attempt, worker, started_at, ended_at, outcome, error, sum FROM runs WHERE job = ? ORDER BY attempt DESC LIMIT ?"

_LINES = "SELECT job, seq, at, attempt, CAST(text AS BLOB), sum FROM log_lines WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?"

_STATES = {int(state): state for state in State}

_COUNTS = """SELECT queue, task, scheduled, queued, completed, failed, cancelled, expired, requeued, waiting_bytes
    FROM lanes ORDER BY id"""

_SCHEDULES = """SELECT CAST(name AS BLOB), CAST(definition AS BLOB), payload, next_at, planned_at, last_at, last_job, runs, skipped,
    paused_at, CAST(reason AS BLOB), sum FROM schedules ORDER BY name"""

def job_from_row(row: tuple) -> Job:
    """Make a job of a row of JOB_COLUMNS; `stored_lease` stays 0. One that does not match its sums has `damage` set."""
    try:
        return _job_from_row(row)
    except (KeyError, TypeError, ValueError, AttributeError, StructError):  # values of no job at all
        job = Job(row[0], row[1] or "", row[2] or "", 0, row[4] if isinstance(row[4], bytes) else None, False, 0.0)
        job.damage = "row"
        return job


def _job_from_row(row: tuple) -> Job:
    (job_id, queue, task, priority, payload, raw, submitted_at, state, place, rank, payload_bytes, run_at, started_at,
     finished_at, worker, fence, attempt, crashes, requeues, cancel_requested, result, result_bytes, result_raw, error, extras,
     expected_row, expected_payload, expected_result) = row
    job = Job(job_id, queue, task, priority, payload, raw == 1, submitted_at)
    job.place = place
    job.rank = rank
    job.state = _STATES[state]
    job.payload_bytes = payload_bytes
    job.run_at = run_at
    job.started_at = started_at
    job.finished_at = finished_at
    job.worker = None if worker is None else worker.decode()
    job.fence = fence
    job.attempt = attempt
    job.crashes = crashes
    job.requeues = requeues
    job.cancel_requested = cancel_requested == 1
    job.result = result
    job.result_bytes = result_bytes
    job.result_raw = result_raw == 1
    job.stored_state = state
    job.stored_requeues = requeues
    error = None if error is None else error.decode()
    extras = None if extras is None else extras.decode()
    take_extras(job, extras)
    if expected_row is not None and expected_row != row_sum(job, state, error, extras):
        job.damage = "row"
        return job
    job.error = None if error is None else json.loads(error)
    if payload is not None and (len(payload) != payload_bytes or expected_payload not in (None, data_sum(job_id, payload))):
        job.damage = "payload"
    elif result is not None and (len(result) != result_bytes or expected_result not in (None, data_sum(job_id, result))):
        job.damage = "result"
    return job


def with_payload(row: tuple) -> Job:
    """Make a job of a row of JOB_COLUMNS_WHOLE_PAYLOAD: one whose payload is not there is damaged."""
    job = job_from_row(row)
    if job.payload is None and job.damage is None:
        job.damage = "payload"
    return job


def jobs_by_id(query: Query, ids: list[int], *, payload: bool, small: bool = False) -> dict[int, Job | Lost]:
    """Return each of these jobs with its result, whatever its size, or Lost.

    Args:
        payload: fetch the payloads too, whatever their size; without it they are None.
        small: leave payloads and results above SMALL_BYTES None.
    """
    columns = JOB_COLUMNS
    if not small:
        columns = columns.replace("jobs.payload,", f"{WHOLE_PAYLOAD if payload else 'NULL'},")
        columns = columns.replace("jobs.result,", f"{WHOLE_RESULT},")
    found: dict[int, Job | Lost] = {}
    for some, text in _in_pieces(ids):
        rows = query(f"SELECT {columns} FROM {JOBS_AND_LANES} WHERE jobs.id IN (SELECT value FROM json_each(?))", (text,))
        jobs = {row[0]: with_payload(row) if payload and not small else job_from_row(row) for row in rows}
        for job in jobs.values():
            if not small and job.result is None and job.result_bytes and job.damage is None:
                job.damage = "result"
        next_id = next_number(query, "job") if len(jobs) < len(set(some)) else 0
        for job_id in some:
            found[job_id] = jobs.get(job_id) or Lost(0 < job_id < next_id)
    return found


def payloads_by_id(query: Query, ids: list[int]) -> dict[int, bytes]:
    """Return the payloads of those of these jobs that have one that matches its sum."""
    found: dict[int, bytes] = {}
    for _, text in _in_pieces(ids):
        rows = query(f"SELECT id, {WHOLE_PAYLOAD}, payload_sum FROM jobs WHERE id IN (SELECT value FROM json_each(?))", (text,))
        found.update((job_id, data) for job_id, data, expected in rows
                     if data is not None and expected in (None, data_sum(job_id, data)))
    return found


def unique_keys(query: Query) -> Iterator[tuple[str, Taken, bool]]:
    """Yield each unique key, who has it, and whether its row matches its checksum."""
    for key, job, until, until_done, expected in query("SELECT CAST(key AS BLOB), job, until, until_done, sum FROM unique_keys", ()):
        name, taken = key.decode("utf-8", "replace"), Taken(job, until, until_done == 1)
        yield name, taken, expected == record_sum(name, *taken)


def next_number(query: Query, name: str) -> int:
    """Return the first number of this kind, "job" or "fence", that was never handed out."""
    return number(query, f"next_{name}")


def number(query: Query, name: str) -> int:
    """Return a number that survives, by name. Raises StoreError when it does not match its sum: ids might come twice."""
    rows = query("SELECT value, sum FROM meta WHERE name = ?", (name,))
    if not rows or rows[0][1] not in (None, record_sum(name, rows[0][0])):
        raise StoreError(f"the database is damaged (the number {name})")
    return rows[0][0]


def lane_counts(query: Query) -> list[LaneCounts]:
    """Return the counters of all lanes, oldest lane first."""
    return [LaneCounts(*row) for row in query(_COUNTS, ())]


def schedules(query: Query) -> list[StoredSchedule]:
    """Return all schedules by name; those that do not match their sum are marked as damaged."""
    found = []
    for name, definition, payload, *rest, reason, expected in query(_SCHEDULES, ()):
        texts = [text.decode("utf-8", "replace") for text in (name, definition, reason)]
        record = StoredSchedule(texts[0], texts[1], payload, *rest, texts[2])
        found.append(record if expected == schedule_sum(record) else record._replace(is_damaged=True))
    return found


def _in_pieces(ids: list[int]) -> Iterator[tuple[list[int], str]]:
    for start in range(0, len(ids), IDS_PER_QUERY):
        some = ids[start:start + IDS_PER_QUERY]
        yield some, json.dumps(some)


class SqliteReader:
    """One read-only connection; see greenroom.stores.Reader."""

    def __init__(self, query: Query, close: Callable[[], None]) -> None:
        self._query = query
        self._close = close

    def jobs(self, ids: list[int], *, payload: bool = False) -> dict[int, Job | Lost]:
        """Return these jobs as committed, with results, and with payloads if asked for."""
        return jobs_by_id(self._query, ids, payload=payload)

    def page(self, wanted: Filter = EVERY, *, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """Return jobs newest first, and where the next page begins; see greenroom.stores.Reader."""
        if wanted.fingerprint is not None:
            return self._alike(wanted, before, limit)
        rows, following = Search(self._query, wanted, before).page(JOB_COLUMNS, limit)
        return [job_from_row(row) for row in rows], following

    def _alike(self, wanted: Filter, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """Return a page of jobs that failed alike: which ones did is no question for SQL, so rows with an error come out, a few at a time."""
        found: list[Job] = []
        began = time.perf_counter()
        while True:
            rows, before = Search(self._query, wanted, before).page(JOB_COLUMNS, ALIKE_ROWS)
            for row in rows:
                job = job_from_row(row)
                if wanted.is_alike(job):
                    found.append(job)
                    if len(found) == limit:
                        return found, job.id
            if before is None or time.perf_counter() - began > SCAN_S:
                return found, before

    def count(self, wanted: Filter, before: int | None) -> tuple[int, int | None]:
        """Return how many jobs fit, and before which id nothing was looked at; see greenroom.stores.Reader."""
        if wanted.fingerprint is not None:
            found, following = self._alike(wanted, before, ALIKE_COUNTED)
            return len(found), following
        return Search(self._query, wanted, before).count()

    def runs(self, job_id: int) -> list[Run]:
        """Return the runs of a job that did not complete it, oldest first; one that does not match its checksum is left out."""
        found = []
        for *values, error, expected in self._query(_RUNS, (job_id, MOST_RUNS)):
            if expected == run_sum(*values, error):
                found.append(Run(*values[1:], None if error is None else json.loads(error)))
        return found[::-1]

    def lines(self, job_id: int, after: int, limit: int) -> list[LogLine]:
        """Return up to `limit` log lines of a job with numbers above `after`; one that does not match its checksum is left out."""
        rows = self._query(_LINES, (job_id, after, limit))
        lines = ((LogLine(*values, text.decode("utf-8", "replace")), expected) for *values, text, expected in rows)
        return [line for line, expected in lines if expected == record_sum(*line)]

    def counts(self) -> list[LaneCounts]:
        """Return the counters of all lanes, as committed."""
        return lane_counts(self._query)

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._close()
