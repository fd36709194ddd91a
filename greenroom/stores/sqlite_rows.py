"""Rows on their way into the SQLite store: made of jobs on the hub, written later, many to a statement, wherever COMMIT runs.

Must not decide anything, run a transaction, or know the library: `write` gets what executes one statement.

Many rows to a statement: it takes a third less time, and it gives up the interpreter's lock once, not once a row. In a thread beside a
busy hub each row would else wait for the lock again, and the statements could not run there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from greenroom.job import COMPLETED, FAILED, QUEUED, RUNNING, SMALL_BYTES, STATES, Job
from greenroom.keeping import asks_for_long, kept_until
from greenroom.records import LogLine, StoredSchedule, Submission
from greenroom.stores.extras import pack_extras
from greenroom.stores.sums import data_sum, lane_seed, record_sum, row_sum, row_sum_of_new, run_sum, schedule_sum
from greenroom.unique import is_claim_over, taken_by

#: Runs one SQL statement with its bindings.
Execute = Callable[[str, "list | tuple"], object]

#: Rows of one statement: the largest, and its halves for what is left. apsw keeps no statement prepared whose text is above 16 KiB.
MOST_ROWS = 256
#: Bytes of payloads, results or errors of one statement, unless it has a single row: they are copied with the interpreter's lock held.
STATEMENT_BYTES = 2**20

_RECORDED = tuple(int(QUEUED) if state == RUNNING else state for state in range(STATES))  # state -> on disk
_FIRST_FINISHED = int(COMPLETED)
_REQUEUED, _WAITING_BYTES = 3, STATES  # places in a lane's changes: state 3 is never recorded, the other is no state

_INSERT = ("""INSERT INTO jobs (id, lane, state, finished_at, worker, rank, priority, place, raw, submitted_at, run_at,
    started_at, fence, attempt, payload_bytes, payload, extras, row_sum, payload_sum) VALUES """, 19, "")

# All that may change, for every kind of change.
_UPDATE = ("WITH new (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u) AS (VALUES ", 21, """)
    UPDATE jobs SET state = a, finished_at = b, worker = c, rank = d, priority = e, place = f, cancel_requested = g,
    run_at = h, started_at = i, fence = j, attempt = k, crashes = l, requeues = m, result_bytes = n, result_raw = o,
    result = p, error = q, extras = r, row_sum = s, result_sum = t FROM new WHERE id = u""")

# The same for what completed and was never anything but queued and run: a third of the values are known, which saves a microsecond a job.
_COMPLETE = ("WITH new (a, b, c, d, e, f, g, h, i, j, k, l, m, n) AS (VALUES ", 14, """)
    UPDATE jobs SET state = 4, finished_at = a, worker = b, rank = c, priority = d, place = e, cancel_requested = 0, run_at = NULL,
    started_at = f, fence = g, attempt = h, crashes = 0, requeues = 0, result_bytes = i, result_raw = j, result = k, error = NULL,
    extras = NULL, row_sum = l, result_sum = m FROM new WHERE id = n""")

_MOVE = "UPDATE jobs SET lane = ? WHERE id = ?"
_NEW_PAYLOAD = "UPDATE jobs SET raw = ?, payload_bytes = ?, payload = ?, payload_sum = ? WHERE id = ?"

#: What has rows of jobs, all but leases, which finished ones have none of; and the column with the job.
_TABLES_OF_JOBS = (("jobs", "id"), ("payloads", "job"), ("results", "job"), ("runs", "job"), ("log_lines", "job"), ("kept_jobs", "job"))

_ERROR = 16  # its place in a row of _UPDATE

_COUNT = """UPDATE lanes SET scheduled = scheduled + ?, queued = queued + ?, requeued = requeued + ?,
    completed = completed + ?, failed = failed + ?, cancelled = cancelled + ?, expired = expired + ?, waiting_bytes = waiting_bytes + ?
    WHERE id = ?"""


class Deleted(NamedTuple):
    """How many finished jobs were deleted, for the counts of those that are there."""

    jobs: int = 0
    failed: int = 0
    kept: int = 0  # had asked how long they are kept
    kept_failed: int = 0  # … and failed
    long: int = 0  # had asked for long


class Rows:
    """What was applied and is not written yet.

    Attributes:
        lanes: (queue, task) -> id in the table, also of those whose row is among these. last_lane: the highest of them.
        finished: finished jobs on disk, these too. kept, kept_failed: those that asked how long they are kept; failed ones among them.
        failed: failed ones on disk, without these. keeping: jobs that ask to be kept for long, finished or not, these too.
        count: rows of jobs.
    """

    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], int] = {}
        self.last_lane = 0
        self.finished = self.failed = self.kept = self.kept_failed = self.keeping = 0
        self._lines: list[LogLine] = []
        self._first_lines: dict[int, int] = {}  # job -> lines below go
        self.clear()

    @property
    def has_lines(self) -> bool:
        """True if there are log lines to write."""
        return bool(self._lines)

    def clear(self) -> None:
        """Forget what is not written, but for log lines."""
        self.count = 0
        self._new_lanes: list[object] = []
        self._inserts: list[object] = []  # the rows' values, one after the other
        self._updates: dict[int, tuple] = {}  # job -> its row: a statement must not have a job twice
        self._completed: dict[int, tuple] = {}  # … of jobs for which _COMPLETE is enough; written later than those
        self._payloads: list[object] = []
        self._moves: dict[int, int] = {}  # job -> its new lane
        self._new_payloads: dict[int, tuple[bool, bytes]] = {}  # job -> raw, payload
        self._results: list[object] = []
        self._held: dict[int, tuple] = {}  # job -> row of its lease
        self._gone: dict[int, None] = {}  # jobs whose lease ended
        self._runs: list[object] = []
        self._keys: dict[str, tuple] = {}  # unique key -> its row
        self._freed: list[tuple[str, int]] = []  # … and those of finished jobs
        self._kept: dict[int, tuple] = {}  # finished job that asked how long it is kept -> its row
        self._kept_no_more: list[object] = []  # … and those that were retried
        self._submissions: list[object] = []
        self._schedules: dict[str, StoredSchedule | None] = {}  # None: deleted
        self._deleted: list[object] = []  # finished jobs whose rows were written before
        self._changes: dict[int, list[int]] = {}  # lane -> by state, how many more; at 3 requeues, last waiting_bytes

    def __bool__(self) -> bool:
        return bool(self.count or self._submissions or self._changes or self._schedules)

    # -- gathering ----------------------------------------------------------------------------------------------------------

    def add(self, jobs: Iterable[Job]) -> None:
        """Take the present state of these jobs, and note in them what the store has then."""
        queue = task = None
        for job in jobs:
            if job.queue is not queue or job.task is not task:
                queue, task = job.queue, job.task
                lane, changes, seed = self._lane(queue, task)
            stored, recorded = job.stored_state, _RECORDED[job.state]
            if stored:
                if job.rewrite is not None:
                    self._rewrite(job, lane, changes)
                self._update(job, recorded)
            else:
                self._insert(job, recorded, lane, seed)
                if recorded >= _FIRST_FINISHED or job.crashes or job.requeues or job.cancel_requested or job.settled_fence:
                    self._update(job, recorded)  # else all that a new job has is in its INSERT
            changes[stored] -= 1
            changes[recorded] += 1
            if job.requeues != job.stored_requeues:
                changes[_REQUEUED] += job.requeues - job.stored_requeues
                job.stored_requeues = job.requeues
            if recorded >= _FIRST_FINISHED:
                if 0 < stored < _FIRST_FINISHED:
                    changes[_WAITING_BYTES] -= job.payload_bytes
                if stored < _FIRST_FINISHED:  # else written again: it finished while a batch that it was in was being applied
                    self.finished += 1
            elif not stored:
                changes[_WAITING_BYTES] += job.payload_bytes
            elif stored >= _FIRST_FINISHED:  # retried
                changes[_WAITING_BYTES] += job.payload_bytes
                self.finished -= 1
            job.stored_state = recorded
            if job.checkpoint or job.stored_lease:
                self._note_lease(job)
            if job.runs:
                self._note_runs(job)
            if job.extras is not None:
                if job.extras.unique_key is not None:
                    self._note_key(job, stored)
                if job.extras.keep_for is not None:
                    self._note_kept(job, stored, recorded)
            self.count += 1

    def _lane(self, queue: str, task: str) -> tuple[int, list[int], int]:
        lane = self.lanes.get((queue, task))
        if lane is None:
            self.last_lane += 1
            lane = self.lanes[queue, task] = self.last_lane
            self._new_lanes += (lane, queue, task, record_sum(lane, queue, task))
        changes = self._changes.get(lane)
        if changes is None:
            changes = self._changes[lane] = [0] * (STATES + 1)
        return lane, changes, lane_seed(queue, task)

    def _insert(self, job: Job, recorded: int, lane: int, seed: int) -> None:
        payload = job.payload
        payload_sum = data_sum(job.id, payload)
        if job.payload_bytes > SMALL_BYTES:
            self._payloads += (job.id, payload)
            payload = None
        extras = pack_extras(job) if job.extras is not None or job.settled_fence else None
        is_new = not job.fence and extras is None and recorded == QUEUED and job.run_at is None and not job.cancel_requested
        self._inserts += (
            job.id, lane, recorded, job.finished_at, job.worker, job.rank, job.priority, job.place, job.raw, job.submitted_at,
            job.run_at, job.started_at, job.fence, job.attempt, job.payload_bytes, payload, extras,
            row_sum_of_new(job, seed) if is_new else row_sum(job, recorded, None, extras), payload_sum)

    def _update(self, job: Job, recorded: int) -> None:
        result = job.result
        result_sum = None
        job.result_bytes = 0
        if result is not None:
            result_sum = data_sum(job.id, result)
            job.result_bytes = len(result)
            if job.result_bytes > SMALL_BYTES:
                self._results += (job.id, result)
                result = None
        has_extras = job.extras is not None or job.settled_fence or job.report is not None
        if recorded == _FIRST_FINISHED and not (has_extras or job.error is not None or job.run_at is not None or job.crashes or job.requeues
                                                or job.cancel_requested):
            self._completed[job.id] = (
                job.finished_at, job.worker, job.rank, job.priority, job.place, job.started_at, job.fence, job.attempt, job.result_bytes,
                job.result_raw, result, row_sum(job, recorded, None, None), result_sum, job.id)
            return
        self._completed.pop(job.id, None)
        error = None if job.error is None else json.dumps(job.error)
        extras = pack_extras(job) if has_extras else None
        self._updates[job.id] = (
            recorded, job.finished_at, job.worker, job.rank, job.priority, job.place, job.cancel_requested, job.run_at,
            job.started_at, job.fence, job.attempt, job.crashes, job.requeues, job.result_bytes, job.result_raw, result, error,
            extras, row_sum(job, recorded, error, extras), result_sum, job.id)

    def _rewrite(self, job: Job, lane: int, changes: list[int]) -> None:
        """Take what somebody changed of a waiting job, and move what is counted of its row to the lane where it is now."""
        rewrite, job.rewrite = job.rewrite, None
        _, old_changes, _ = self._lane(rewrite.queue, job.task)
        old_changes[job.stored_state] -= 1
        changes[job.stored_state] += 1
        if job.stored_state < _FIRST_FINISHED:  # else it was retried, and its row counts as finished
            old_changes[_WAITING_BYTES] -= rewrite.payload_bytes
            changes[_WAITING_BYTES] += job.payload_bytes
        if rewrite.queue != job.queue:
            old_changes[_REQUEUED] += rewrite.requeues - job.stored_requeues
            job.stored_requeues = rewrite.requeues
            self._moves[job.id] = lane
        if rewrite.has_payload:
            self._new_payloads[job.id] = (job.raw, job.payload)

    def _note_lease(self, job: Job) -> None:
        lease = job.lease if job.state == RUNNING else None
        if lease is not None and job.checkpoint:
            row = (job.id, lease.fence, lease.instance, lease.worker.encode(), lease.granted_at)
            self._held[job.id] = (*row[:3], lease.worker, lease.granted_at, record_sum(*row))
            self._gone.pop(job.id, None)
            job.stored_lease = lease.fence
        elif job.stored_lease and (lease is None or lease.fence != job.stored_lease):
            self._held.pop(job.id, None)
            self._gone[job.id] = None
            job.stored_lease = 0

    def _note_key(self, job: Job, stored: int) -> None:
        """A key is taken by a job that is new or retried, and freed by one whose claim to it is over."""
        key = job.extras.unique_key
        if is_claim_over(job):
            self._freed.append((key, job.id))
            if self._keys.get(key, (None, None))[1] == job.id:
                del self._keys[key]
        elif not stored or stored >= _FIRST_FINISHED > job.state:
            row = (key, *taken_by(job))
            self._keys[key] = (*row, record_sum(*row))

    def _note_kept(self, job: Job, stored: int, recorded: int) -> None:
        """A job that asked how long it is kept has a row from its end on, until it is retried."""
        is_over, was_over = recorded >= _FIRST_FINISHED, stored >= _FIRST_FINISHED
        if not stored:
            self.keeping += asks_for_long(job.extras)
        if is_over:
            self._kept[job.id] = (job.id, kept_until(job), recorded == FAILED)
        elif was_over:
            self._kept.pop(job.id, None)
            self._kept_no_more.append(job.id)
        self.kept += is_over - was_over
        self.kept_failed += (recorded == FAILED) - (stored == FAILED)

    def _note_runs(self, job: Job) -> None:
        for run in job.runs:
            if run.error is None:
                error = None
            else:  # mostly it is the job's own, whose text is in its row: twice 20 kB of it would take the hub 0.1 ms
                error = self._updates[job.id][_ERROR] if run.error is job.error and job.id in self._updates else json.dumps(run.error)
            row = (job.id, *run[:-1], error)
            self._runs += (*row, run_sum(*row))
        job.runs = None

    def add_submissions(self, submissions: Iterable[Submission]) -> None:
        """Take the outcomes of submits."""
        for submission in submissions:
            self._submissions += (*submission, record_sum(*submission))

    def add_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """Take schedules as they are now; None: there is none of that name any more."""
        self._schedules.update(changes)

    def add_lines(self, lines: Iterable[LogLine], first_lines: dict[int, int]) -> None:
        """Take log lines, and from which on they are kept."""
        self._lines += lines
        self._first_lines.update(first_lines)

    def delete(self, ids: list[int]) -> None:
        """Take finished jobs that go, with all that is kept of them. Their rows must have been written; lines may not have been."""
        self._deleted += ids
        self.count += len(ids)
        gone = set(ids)
        self._lines = [line for line in self._lines if line.job not in gone]
        for job_id in gone:
            self._first_lines.pop(job_id, None)

    def count_gone(self, deleted: Deleted) -> None:
        """Note that finished jobs were deleted, or are about to be."""
        self.finished -= deleted.jobs
        self.failed -= deleted.failed
        self.kept -= deleted.kept
        self.kept_failed -= deleted.kept_failed
        self.keeping -= deleted.long

    # -- writing ------------------------------------------------------------------------------------------------------------

    def write(self, execute: Execute) -> None:
        """Write everything into the open transaction, in an order in which each row finds what it needs."""
        _write(execute, "INSERT INTO lanes (id, queue, task, sum) VALUES ", 4, "", self._new_lanes)
        _write(execute, *_INSERT, self._inserts)
        _write(execute, "INSERT INTO payloads (job, data) VALUES ", 2, "", self._payloads, heavy=1)
        for job_id, lane in self._moves.items():
            execute(_MOVE, (lane, job_id))
        for job_id, (raw, payload) in self._new_payloads.items():
            is_small = len(payload) <= SMALL_BYTES
            execute(_NEW_PAYLOAD, (raw, len(payload), payload if is_small else None, data_sum(job_id, payload), job_id))
            execute("DELETE FROM payloads WHERE job = ?", (job_id,))
            if not is_small:
                execute("INSERT INTO payloads (job, data) VALUES (?, ?)", (job_id, payload))
        _write(execute, *_UPDATE, list(chain.from_iterable(self._updates.values())), heavy=_ERROR)
        _write(execute, *_COMPLETE, list(chain.from_iterable(self._completed.values())))
        _write(execute, "INSERT OR REPLACE INTO results (job, data) VALUES ", 2, "", self._results, heavy=1)
        _write(execute, "INSERT OR REPLACE INTO leases (job, fence, instance, worker, granted_at, sum) VALUES ", 6, "",
               list(chain.from_iterable(self._held.values())))
        _write(execute, "DELETE FROM leases WHERE job IN (VALUES ", 1, ")", list(self._gone))
        _write(execute, "INSERT OR REPLACE INTO runs (job, attempt, worker, started_at, ended_at, outcome, error, sum) VALUES ", 8, "",
               self._runs, heavy=6)
        for freed in self._freed:
            execute("DELETE FROM unique_keys WHERE key = ? AND job = ?", freed)
        _write(execute, "INSERT OR REPLACE INTO unique_keys (key, job, until, until_done, sum) VALUES ", 5, "",
               list(chain.from_iterable(self._keys.values())))
        _write(execute, "DELETE FROM kept_jobs WHERE job IN (VALUES ", 1, ")", self._kept_no_more)
        _write(execute, "INSERT OR REPLACE INTO kept_jobs (job, until, failed) VALUES ", 3, "", list(chain.from_iterable(self._kept.values())))
        _write(execute, "INSERT OR REPLACE INTO submissions (id, body_hash, outcome, created_at, sum) VALUES ", 5, "",
               self._submissions)
        if self._schedules:
            self._write_schedules(execute)
        for lane, changes in self._changes.items():
            if any(changes[1:]):
                execute(_COUNT, (*changes[1:], lane))
                self.failed += changes[FAILED]
        for table, key in _TABLES_OF_JOBS:
            _write(execute, f"DELETE FROM {table} WHERE {key} IN (VALUES ", 1, ")", self._deleted)
        self.clear()

    def _write_schedules(self, execute: Execute) -> None:
        # The payload is written again with each run: the run's job has the same payload to write, so that is twice, not more.
        rows = [(*schedule[:11], schedule_sum(schedule)) for schedule in self._schedules.values() if schedule is not None]
        _write(execute, """INSERT OR REPLACE INTO schedules (name, definition, payload, next_at, planned_at, last_at, last_job, runs, skipped,
            paused_at, reason, sum) VALUES """, 12, "", list(chain.from_iterable(rows)), heavy=2)
        gone = [name for name, schedule in self._schedules.items() if schedule is None]
        _write(execute, "DELETE FROM schedules WHERE name IN (VALUES ", 1, ")", gone)

    def write_lines(self, execute: Execute) -> None:
        """Write the log lines, which nobody reads before the COMMIT. Their sums are made here too, off the hub."""
        lines, first_lines = self._lines, self._first_lines
        self._lines, self._first_lines = [], {}
        for begin in range(0, len(lines), MOST_ROWS):
            values = [value for line in lines[begin:begin + MOST_ROWS] for value in (*line, record_sum(*line))]
            _write(execute, "INSERT OR REPLACE INTO log_lines (job, seq, at, attempt, text, sum) VALUES ", 6, "", values, heavy=4)
        for job_id, first in first_lines.items():
            execute("DELETE FROM log_lines WHERE job = ? AND seq < ?", (job_id, first))


def _write(execute: Execute, begin: str, columns: int, end: str, values: list[object], *, heavy: int | None = None) -> None:
    """Run one statement for as many rows as it takes, as often as needed.

    Args:
        begin, end: the statement before and behind its rows. values: the rows', `columns` each.
        heavy: place in a row of what may be large, bytes or text or None; None: nothing is.
    """
    place, size = 0, MOST_ROWS
    while place < len(values):
        while size * columns > len(values) - place:
            size //= 2
        now = size
        if heavy is not None:
            while now > 1 and sum(map(_size, values[place + heavy:place + now * columns:columns])) > STATEMENT_BYTES:
                now //= 2
        execute(_statement(begin, columns, end, now), values[place:place + now * columns])
        place += now * columns


def _size(value: bytes | str | None) -> int:
    return 0 if value is None else len(value)


_statements: dict[tuple[str, int], str] = {}


def _statement(begin: str, columns: int, end: str, rows: int) -> str:
    statement = _statements.get((begin, rows))
    if statement is None:
        row = f"({','.join('?' * columns)})"
        statement = _statements[begin, rows] = begin + ",".join([row] * rows) + end
    return statement
