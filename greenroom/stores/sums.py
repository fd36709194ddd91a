"""Checksums of rows: what is written is summed with its key fields, so that a flipped bit is met as damage, never as another job.

Pure. SQLite keeps none for the pages of its file. CRC-32: it finds every single flip, and any other damage but for one in
4 billion; it is no defence against who may write the file. About half a microsecond for a job that was just submitted.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, error as StructError
from zlib import crc32

from greenroom.job import NUMBER_LIMIT, Job
from greenroom.records import StoredSchedule

_pack_fresh = Struct("<qqdq").pack
_pack_whole = Struct("<12q4d").pack
_QUEUED = 2


@lru_cache(maxsize=20_000)
def lane_seed(queue: str, task: str) -> int:
    """Return what the sums of a lane's jobs begin with: so that a job under another lane's name is damaged."""
    return crc32(f"{queue}\0{task}".encode())


def row_sum(job: Job, recorded: int, error: str | None, extras: str | None) -> int:
    """Return the sum over all of a job's row but payload and result.

    Args:
        recorded: the state as on disk.
        error, extras: as on disk.
    """
    run_at, started_at, finished_at = job.run_at, job.started_at, job.finished_at
    if (recorded == _QUEUED and error is None and extras is None and run_at is None and started_at is None and finished_at is None
            and job.worker is None and job.rank == job.priority * NUMBER_LIMIT + job.place
            and not (job.attempt or job.fence or job.crashes or job.requeues or job.cancel_requested or job.result_bytes
                     or job.result_raw)):
        # As it was submitted: these fields say all, and take half the time.
        return row_sum_of_new(job, lane_seed(job.queue, job.task))
    total = crc32(_pack_whole(
        job.id, recorded, job.rank, job.priority, job.place, job.payload_bytes << 1 | job.raw, job.cancel_requested, job.fence,
        job.attempt, job.crashes, job.requeues, job.result_bytes << 1 | job.result_raw, job.submitted_at,
        -1.0 if run_at is None else run_at, -1.0 if started_at is None else started_at,
        -1.0 if finished_at is None else finished_at), lane_seed(job.queue, job.task))
    if job.worker is not None:
        total = crc32(job.worker.encode(), total)
    if error is not None:
        total = crc32(error.encode(), total)
    return total if extras is None else crc32(b"\0" + extras.encode(), total)


def row_sum_of_new(job: Job, seed: int) -> int:
    """Return `row_sum` of a job as it was submitted: queued at once, never leased, never cancelled.

    Args:
        seed: the `lane_seed` of its lane.
    """
    return crc32(_pack_fresh(job.id, job.rank, job.submitted_at, job.payload_bytes << 1 | job.raw), seed)


def data_sum(job_id: int, data: bytes) -> int:
    """Return the sum of a payload or result; with the id, so that another job's is damaged."""
    return crc32(data, job_id & 0xFFFFFFFF)


def schedule_sum(schedule: StoredSchedule) -> int:
    """Return the sum of a schedule, its payload's included."""
    name, definition, payload, *rest = schedule[:11]
    return record_sum(name, definition, crc32(payload), *rest)


def record_sum(*values: int | float | str | bytes | None) -> int:
    """Return the sum of a small record: a lane's names, a number, a lease, a submission."""
    return crc32(repr(values).encode())


def run_sum(*values: int | float | str | None) -> int:
    """Return the sum of a run that did not complete its job. The last value is its error, as text: up to 20 kB, so not by repr."""
    *others, error = values
    total = record_sum(*others)
    return total if error is None else crc32(error.encode(), total)


__all__ = ["StructError", "data_sum", "lane_seed", "record_sum", "row_sum", "row_sum_of_new", "run_sum", "schedule_sum"]
