"""Small records that pass between engine, store and edges. Plain data, no rules."""

from __future__ import annotations

from typing import NamedTuple

from greenroom.job import Job
from greenroom.unique import Taken


class LaneCounts(NamedTuple):
    """One lane, as counted on disk. A leased job counts as queued there; finished counts include pruned jobs."""

    queue: str
    task: str
    scheduled: int
    queued: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    requeued: int  # how often jobs of the lane came back
    waiting_bytes: int = 0  # payloads of the scheduled and queued ones


class StoredLease(NamedTuple):
    """A lease that was on disk when the store was opened."""

    job: Job  # with payload (None when above SMALL_BYTES), state QUEUED, stored_lease = fence
    fence: int
    instance: bytes  # 16 bytes: the worker process that holds it
    worker: str
    granted_at: float


class Damaged(NamedTuple):
    """A waiting job that does not match its checksum: set aside, never delivered, never deleted."""

    job: int
    what: str  # row or payload
    seen_at: float
    queue: str = ""  # of the lane that counted it
    task: str = ""
    state: int = 0  # greenroom.job.State under which the lane counted it
    payload_bytes: int = 0  # … and its payload


class StoredSchedule(NamedTuple):
    """A schedule as on disk; greenroom.schedules.Schedule says what the fields mean."""

    name: str
    definition: str  # JSON
    payload: bytes
    next_at: float | None
    planned_at: float | None
    last_at: float | None
    last_job: int | None
    runs: int
    skipped: int
    paused_at: float | None
    reason: str
    is_damaged: bool = False  # does not match its checksum: nothing but the name means anything


class Pause(NamedTuple):
    """Somebody holds back all jobs of a queue or of a task: they wait, those that run go on."""

    kind: str  # queue or task
    name: str
    paused_at: float
    until: float | None  # when it ends by itself; None: when somebody resumes it
    reason: str
    by: str  # who paused it


class QueueLimit(NamedTuple):
    """How much may wait in a queue; beyond it new jobs get FULL."""

    queue: str
    jobs: int | None  # scheduled and queued ones; None: any number
    bytes: int | None  # their payloads
    urgent: int | None  # jobs of this priority and of lower numbers may go beyond both …
    extra: int  # … by so many per cent, rounded up
    set_at: float
    reason: str
    by: str  # who set it

    @property
    def most_jobs(self) -> int | None:
        """Jobs beyond which urgent ones are refused too."""
        return _with_extra(self.jobs, self)

    @property
    def most_bytes(self) -> int | None:
        """The same of payloads."""
        return _with_extra(self.bytes, self)


def _with_extra(number: int | None, limit: QueueLimit) -> int | None:
    return number if number is None or limit.urgent is None else number + -(-number * limit.extra // 100)


class Restored(NamedTuple):
    """What a restart starts from. Queued and scheduled jobs are not in it: the engine asks for them in windows."""

    lanes: list[LaneCounts]
    leases: list[StoredLease]
    cancelled: list[Job]  # unfinished jobs without a lease whose cancel was requested
    damaged: dict[int, str] = {}  # id -> what, of jobs that were set aside before
    keys: list[tuple[str, Taken]] = []  # unique keys that are taken
    schedules: list[StoredSchedule] = []  # all of them, by name
    pauses: list[Pause] = []
    limits: list[QueueLimit] = []
    keeping: int = 0  # jobs that ask to be kept for long (greenroom.keeping), finished or not


class Submission(NamedTuple):
    """The outcome of one submit frame, kept 10 minutes under the id that its client gave it."""

    id: bytes  # 16 bytes
    body_hash: bytes  # 16 bytes
    outcome: str  # JSON; empty: it does not match its checksum
    created_at: float


class Lost(NamedTuple):
    """Stands for a job id that has no row."""

    handed_out: bool  # True: the id was handed out once, so the job is pruned or was never used; False: never existed


class Gone(NamedTuple):
    """Jobs that were deleted because the time was over for which they asked to be kept."""

    ids: list[int]
    long: int  # so many of them had asked for long


class LogLine(NamedTuple):
    """A line of text that a run of a job wrote."""

    job: int
    seq: int  # 1, 2 … in the job, over all its runs
    at: float  # by the worker's clock
    attempt: int  # of the run
    text: str


class ReportItem(NamedTuple):
    """One checked lease of a report."""

    job: int
    fence: int
    fraction: float | None  # None with text None: nothing new of that
    text: str | None
    lines: list[tuple[float, str]]  # time by the worker's clock, text


class SettleItem(NamedTuple):
    """One checked lease of a settle."""

    job: int
    fence: int
    outcome: str  # ack, fail, snooze, crash, nack, or unbegun: a nack of a job that its worker had not begun
    result: bytes | None  # ack only
    raw: bool
    error: dict[str, str] | None  # fail only: name, message, traceback
    wish: float | bool | None = None  # fail: False: try it no more; a time: try it again then. snooze: for so many seconds
