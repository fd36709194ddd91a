"""The store in memory: nothing survives the process. The plain reference for what a store does, and quick for tests.

Must not decide anything about jobs. It keeps copies: a job handed in or out is never the one it holds.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from greenroom.filters import EVERY, Filter
from greenroom.job import NUMBER_LIMIT, SMALL_BYTES, STATES, Job, Rewrite, Run, State
from greenroom.keeping import COUNT_KEEPS_S, asks_for_long, kept_until
from greenroom.records import Damaged, Gone, LaneCounts, LogLine, Lost, Pause, QueueLimit, Restored, StoredLease, StoredSchedule, Submission
from greenroom.stores import SUBMISSION_KEPT_S, Retention
from greenroom.unique import Taken, is_claim_over, taken_by

_PAGE_SCAN_ROWS = 20_000
_FIRST_FINISHED = State.COMPLETED
_COPIED = [name for name in Job.__slots__ if name not in ("lane", "lease", "late_fence", "checkpoint", "rewrite")]


class MemoryStore:
    """The writer's side; see greenroom.stores.Store for the contract of each method."""

    def __init__(self, retention: Retention = Retention()) -> None:
        self._retention = retention
        self._jobs: dict[int, Job] = {}  # as applied
        self._leases: dict[int, tuple[int, bytes, str, float]] = {}  # job -> fence, instance, worker, granted_at
        self._queued: dict[tuple[str, str], list[tuple[int, int]]] = {}  # lane -> (rank, id), sorted
        self._scheduled: list[tuple[float, int]] = []  # (run_at, id), sorted
        self._expiring: dict[int, float] = {}  # job -> by when it must have begun
        self._finished: list[tuple[float, int]] = []  # (finished_at, id), sorted; not those in the next two
        self._failed: list[tuple[float, int]] = []  # … of failed ones
        self._kept: list[tuple[float, int]] = []  # (until when, id), sorted, of those that asked for it
        self._counts: dict[tuple[str, str], list[int]] = {}  # lane -> by state (3: requeues), last waiting_bytes
        self._submissions: dict[bytes, Submission] = {}  # oldest first
        self._keys: dict[str, Taken] = {}  # unique key -> who has it
        self._runs: dict[int, list[Run]] = {}  # job -> those that did not complete it, oldest first
        self._schedules: dict[str, StoredSchedule] = {}
        self._pauses: dict[tuple[str, str], Pause] = {}
        self._limits: dict[str, QueueLimit] = {}  # by queue
        self._lines: dict[int, list[LogLine]] = {}  # job -> in order, as applied
        self._next = {"job": 1, "fence": 1}
        self._touched: set[int] = set()  # jobs that differ from what readers see
        self._touched_lines: set[int] = set()
        # What readers see; they may be on other threads.
        self._lock = threading.Lock()
        self._seen: dict[int, Job] = {}
        self._seen_ids: list[int] = []  # sorted
        self._seen_lines: dict[int, list[LogLine]] = {}
        self._seen_counts: list[LaneCounts] = []
        self._seen_next = 1

    def open(self) -> Restored:
        """Return what was recorded since this object was made."""
        leases = []
        for job_id, (fence, *holder) in sorted(self._leases.items()):
            leases.append(StoredLease(_copy(self._jobs[job_id], small=True), fence, *holder))
        cancelled = [_copy(job, small=True) for job_id, job in sorted(self._jobs.items())
                     if job.cancel_requested and job.state < _FIRST_FINISHED and job_id not in self._leases]
        return Restored(self._lane_counts(), leases, cancelled, keys=list(self._keys.items()),
                        schedules=[self._schedules[name] for name in sorted(self._schedules)], pauses=list(self._pauses.values()),
                        limits=[self._limits[queue] for queue in sorted(self._limits)],
                        keeping=sum(asks_for_long(job.extras) for job in self._jobs.values()))

    def block(self, name: str, count: int) -> int:
        """Hand out `count` new numbers of this kind, "job" or "fence"; return the first."""
        first = self._next[name]
        self._next[name] = first + count
        return first

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """Take these jobs and submissions in; readers see them after commit."""
        for job in jobs:
            if job.runs:
                with self._lock:
                    known = {run.attempt: run for run in self._runs.get(job.id, ())}
                    known.update((run.attempt, run) for run in job.runs)
                    self._runs[job.id] = list(known.values())
                job.runs = None
            rewrite, job.rewrite = job.rewrite, None
            if rewrite is not None:
                self._move_counts(job, rewrite)
            self._record_key(job)
            self._count(job)
            self._record_lease(job)
            row = _copy(job)
            before = self._jobs.get(job.id)
            if before is not None:
                self._unlist(before)
                if rewrite is None or not rewrite.has_payload:
                    row.payload = before.payload
                    row.payload_bytes = before.payload_bytes
            self._jobs[job.id] = row
            self._list(row)
            self._touched.add(job.id)
        for submission in submissions:
            self._submissions.pop(submission.id, None)
            self._submissions[submission.id] = submission

    def apply_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """Take these schedules in; None: there is none of that name any more."""
        for name, schedule in changes.items():
            self._schedules.pop(name, None)
            if schedule is not None:
                self._schedules[name] = schedule

    def unwritten(self) -> int:
        """Nothing: there are no statements."""
        return 0

    def write(self) -> None:
        """Do nothing: `apply` has done it."""

    def commit(self) -> None:
        """Show readers what was applied."""
        with self._lock:
            for job_id in self._touched:
                job = self._jobs.get(job_id)
                if job is None:
                    if self._seen.pop(job_id, None) is not None:
                        del self._seen_ids[bisect_left(self._seen_ids, job_id)]
                    continue
                if job_id not in self._seen:
                    insort(self._seen_ids, job_id)
                self._seen[job_id] = job
            self._touched.clear()
            for job_id in self._touched_lines:
                self._seen_lines.pop(job_id, None)
                if job_id in self._lines:
                    self._seen_lines[job_id] = self._lines[job_id][:]
            self._touched_lines.clear()
            self._seen_counts = self._lane_counts()
            self._seen_next = self._next["job"]

    def take(self, queue: str, task: str, after_rank: int, limit: int) -> list[Job]:
        """Return up to `limit` jobs queued in this lane, with payloads, by rank from `after_rank` (not included)."""
        lane = self._queued.get((queue, task), [])
        start = bisect_right(lane, (after_rank, NUMBER_LIMIT))
        return [_copy(self._jobs[job_id]) for _, job_id in lane[start:start + limit]]

    def take_scheduled(self, after: tuple[float, int], limit: int) -> list[Job]:
        """Return up to `limit` scheduled jobs, with payloads, by (run_at, id) from `after` (not included)."""
        start = bisect_right(self._scheduled, after)
        return [_copy(self._jobs[job_id]) for _, job_id in self._scheduled[start:start + limit]]

    def take_expired(self, now: float, limit: int) -> list[Job]:
        """Return up to `limit` waiting jobs that should have begun by `now`, soonest first."""
        late = sorted((at, job_id) for job_id, at in self._expiring.items() if at <= now)
        return [_copy(self._jobs[job_id], small=True) for _, job_id in late[:limit]]

    def next_expiry(self) -> float | None:
        """Return the first time by which a waiting job must have begun, or None."""
        return min(self._expiring.values(), default=None)

    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """Return each job, with what was applied, or Lost; whole, or without large payloads and results."""
        found = _find(self._jobs, ids, self._next["job"])
        return {job_id: _copy(job, small=True) if small and isinstance(job, Job) else job for job_id, job in found.items()}

    def payloads(self, ids: list[int]) -> dict[int, bytes]:
        """Return the payloads of these jobs; ids without a row are left out."""
        return {job_id: self._jobs[job_id].payload for job_id in ids if job_id in self._jobs}

    def submission(self, submission_id: bytes) -> Submission | None:
        """Return what was recorded under this id, or None."""
        return self._submissions.get(submission_id)

    def set_aside(self, damaged: list[Damaged]) -> None:
        """Take these jobs out of their windows and counters. Memory damages nothing by itself; tests do."""
        for record in damaged:
            row = self._jobs.get(record.job)
            if row is None or row.damage is not None:
                continue
            self._unlist(row)
            self._leases.pop(row.id, None)
            counts = self._counts[row.queue, row.task]
            counts[record.state] -= 1
            counts[STATES] -= record.payload_bytes
            row.damage = record.what

    def keep_pauses(self, pauses: dict[tuple[str, str], Pause | None]) -> None:
        """Keep these pauses; None: forget it."""
        for key, pause in pauses.items():
            self._pauses.pop(key, None)
            if pause is not None:
                self._pauses[key] = pause

    def keep_limits(self, limits: dict[str, QueueLimit | None]) -> None:
        """Keep these limits; None: forget it."""
        for queue, limit in limits.items():
            if limit is None:
                self._limits.pop(queue, None)
            else:
                self._limits[queue] = limit

    def add_lines(self, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        """Take log lines in, and let go of older ones."""
        for line in lines:
            self._lines.setdefault(line.job, []).append(line)
            self._touched_lines.add(line.job)
        for job_id, first in first_lines.items():
            self._lines[job_id] = [line for line in self._lines[job_id] if line.seq >= first]

    def delete(self, ids: list[int]) -> None:
        """Delete these finished jobs, with their runs and lines."""
        for job_id in ids:
            _remove(*self._place_of(self._jobs[job_id]))
            self._let_go(job_id)

    def _let_go(self, job_id: int) -> None:
        """Drop a job's row, runs and lines; readers see that after commit."""
        self._jobs.pop(job_id)
        self._runs.pop(job_id, None)
        if self._lines.pop(job_id, None) is not None:
            self._touched_lines.add(job_id)
        self._touched.add(job_id)

    def prune(self, now: float, limit: int) -> int:
        """Delete what is beyond retention, oldest first; return how many rows went."""
        age_s, count, failed_age_s, failed_count = self._retention
        gone = self._prune(self._finished, age_s, count, now, limit) + self._prune(self._failed, failed_age_s, failed_count, now, limit)
        old = []
        for submission in self._submissions.values():
            if submission.created_at > now - SUBMISSION_KEPT_S or len(old) == limit:
                break
            old.append(submission.id)
        for submission_id in old:
            del self._submissions[submission_id]
        free = [key for key, taken in self._keys.items() if taken.until is not None and taken.until <= now]
        for key in free:
            del self._keys[key]
        return gone + len(old) + len(free)

    def _prune(self, finished: list[tuple[float, int]], age_s: float, count: int, now: float, limit: int) -> int:
        gone = 0
        for finished_at, job_id in finished[:limit]:
            is_excess = len(finished) - gone > count and finished_at <= now - COUNT_KEEPS_S
            if finished_at > now - age_s and not is_excess:
                break
            gone += 1
            self._let_go(job_id)
        del finished[:gone]
        return gone

    def prune_kept(self, now: float, limit: int) -> Gone:
        """Delete jobs that are kept no longer, as they asked."""
        ids = [job_id for _, job_id in self._kept[:min(limit, bisect_right(self._kept, (now, NUMBER_LIMIT)))]]
        long = sum(asks_for_long(self._jobs[job_id].extras) for job_id in ids)
        for job_id in ids:
            self._let_go(job_id)
        del self._kept[:len(ids)]
        return Gone(ids, long)

    def reader(self) -> MemoryReader:
        """Open a view of what was committed."""
        return MemoryReader(self)

    def close(self) -> None:
        """Commit what was applied. Safe to call twice."""
        self.commit()

    def _count(self, job: Job) -> None:
        """Move the lane's counters from what was recorded to what will be, and note it in the job."""
        counts = self._counts.setdefault((job.queue, job.task), [0] * (STATES + 1))
        recorded = _recorded(job.state)
        counts[job.stored_state] -= 1
        counts[recorded] += 1
        counts[3] += job.requeues - job.stored_requeues
        was_waiting, is_waiting = 0 < job.stored_state < _FIRST_FINISHED, recorded < _FIRST_FINISHED
        counts[STATES] += job.payload_bytes * (is_waiting - was_waiting)
        job.stored_state = int(recorded)
        job.stored_requeues = job.requeues
        job.result_bytes = 0 if job.result is None else len(job.result)

    def _record_key(self, job: Job) -> None:
        if job.extras is None or job.extras.unique_key is None:
            return
        key = job.extras.unique_key
        if is_claim_over(job):
            if key in self._keys and self._keys[key].job == job.id:
                del self._keys[key]
        elif not job.stored_state or job.stored_state >= _FIRST_FINISHED > job.state:
            self._keys[key] = taken_by(job)

    def _move_counts(self, job: Job, rewrite: Rewrite) -> None:
        """Move what is counted of a changed job's row to the lane where it is now."""
        before = self._counts[rewrite.queue, job.task]
        after = self._counts.setdefault((job.queue, job.task), [0] * (STATES + 1))
        for counts, sign, size in ((before, -1, rewrite.payload_bytes), (after, +1, job.payload_bytes)):
            counts[job.stored_state] += sign
            if job.stored_state < _FIRST_FINISHED:  # else it was retried, and its row counts as finished
                counts[STATES] += sign * size
        if rewrite.queue != job.queue:
            before[3] += rewrite.requeues - job.stored_requeues
            job.stored_requeues = rewrite.requeues

    def _record_lease(self, job: Job) -> None:
        lease = job.lease if job.state == State.RUNNING else None
        if lease is not None and job.checkpoint:
            self._leases[job.id] = (lease.fence, lease.instance, lease.worker, lease.granted_at)
            job.stored_lease = lease.fence
        elif job.stored_lease and (lease is None or lease.fence != job.stored_lease):
            del self._leases[job.id]
            job.stored_lease = 0

    def _list(self, row: Job) -> None:
        if row.expires_at is not None and row.state < _FIRST_FINISHED and not row.attempt:
            self._expiring[row.id] = row.expires_at
        if row.state == State.QUEUED:
            insort(self._queued.setdefault((row.queue, row.task), []), (row.rank, row.id))
        elif row.state == State.SCHEDULED:
            insort(self._scheduled, (row.run_at, row.id))
        else:
            insort(*self._place_of(row))

    def _unlist(self, row: Job) -> None:
        self._expiring.pop(row.id, None)
        if row.state == State.QUEUED:
            _remove(self._queued[row.queue, row.task], (row.rank, row.id))
        elif row.state == State.SCHEDULED:
            _remove(self._scheduled, (row.run_at, row.id))
        else:
            _remove(*self._place_of(row))

    def _place_of(self, row: Job) -> tuple[list[tuple[float, int]], tuple[float, int]]:
        """Return among which finished jobs a row is, and what it is there."""
        until = kept_until(row)
        if until is not None:
            return self._kept, (until, row.id)
        return self._failed if row.state == State.FAILED else self._finished, (row.finished_at, row.id)

    def _lane_counts(self) -> list[LaneCounts]:
        return [LaneCounts(*lane, *counts[1:3], *counts[4:STATES], counts[3], counts[STATES]) for lane, counts in self._counts.items()]


class MemoryReader:
    """What was committed; see greenroom.stores.Reader."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def jobs(self, ids: list[int], *, payload: bool = False) -> dict[int, Job | Lost]:
        """Return these jobs as committed, with results, and with payloads if asked for."""
        with self._store._lock:
            found = _find(self._store._seen, ids, self._store._seen_next)
        for job in found.values():
            if not payload and isinstance(job, Job):
                job.payload = None
        return found

    def page(self, wanted: Filter = EVERY, *, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """Return jobs newest first, and where the next page begins; see greenroom.stores.Reader."""
        found: list[Job] = []
        following = None
        with self._store._lock:
            for job, following in self._fitting(wanted, before):
                if job is None:
                    break
                if len(found) == limit:
                    return found, found[-1].id
                found.append(_copy(job, small=True))
        return found, following

    def count(self, wanted: Filter, before: int | None) -> tuple[int, int | None]:
        """Return how many jobs fit, and before which id nothing was looked at; see greenroom.stores.Reader."""
        found, following = 0, None
        with self._store._lock:
            for job, following in self._fitting(wanted, before):
                found += job is not None
        return found, following

    def _fitting(self, wanted: Filter, before: int | None) -> Iterator[tuple[Job | None, int | None]]:
        """Yield the jobs that fit, newest first, each with None; at last None with the id before which nothing was looked at, if any."""
        if wanted.states is not None:
            wanted = wanted._replace(states=frozenset(map(_recorded, wanted.states)))
        ids = self._store._seen_ids
        end = len(ids) if before is None else bisect_left(ids, before)
        stop = max(0, end - _PAGE_SCAN_ROWS)
        for place in range(end - 1, stop - 1, -1):
            job = self._store._seen[ids[place]]
            if wanted.fits(job):
                yield job, None
        yield None, ids[stop] if stop else None

    def runs(self, job_id: int) -> list[Run]:
        """Return the runs of a job that did not complete it, oldest first."""
        with self._store._lock:
            return self._store._runs.get(job_id, [])[-100:]

    def lines(self, job_id: int, after: int, limit: int) -> list[LogLine]:
        """Return up to `limit` log lines of a job with numbers above `after`."""
        with self._store._lock:
            return [line for line in self._store._seen_lines.get(job_id, ()) if line.seq > after][:limit]

    def counts(self) -> list[LaneCounts]:
        """Return the counters of all lanes, as committed."""
        with self._store._lock:
            return list(self._store._seen_counts)

    def close(self) -> None:
        """Nothing to release."""


def _copy(job: Job, *, small: bool = False) -> Job:
    """Return a job as a store records it; `small`: without a payload or result above SMALL_BYTES."""
    copy = Job.__new__(Job)
    for name in _COPIED:
        setattr(copy, name, getattr(job, name))
    copy.state = _recorded(job.state)
    copy.error = None if job.error is None else dict(job.error)
    copy.lane = copy.lease = copy.rewrite = None
    copy.late_fence = 0
    copy.checkpoint = False
    if small and job.payload_bytes > SMALL_BYTES:
        copy.payload = None
    if small and job.result_bytes > SMALL_BYTES:
        copy.result = None
    return copy


def _recorded(state: State) -> State:
    return State.QUEUED if state == State.RUNNING else state


def _find(jobs: dict[int, Job], ids: Iterable[int], next_id: int) -> dict[int, Job | Lost]:
    return {job_id: _copy(jobs[job_id]) if job_id in jobs else Lost(0 < job_id < next_id) for job_id in ids}


def _remove(items: list[tuple[float, int]], item: tuple[float, int]) -> None:
    place = bisect_left(items, item)
    assert items[place] == item
    del items[place]
