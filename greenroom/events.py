"""What happens to jobs, as it is told to those who subscribe: the kinds of events, and the latest of them with their numbers.

Pure: no clock, no peers. It must not know who listens (subscriptions.py). Events are made only while somebody does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from greenroom.job import RUNNING, SCHEDULED, Job
from greenroom.records import Pause, QueueLimit

#: What an event may be, in the order of the documentation: of jobs, then of what is paused or limited.
KINDS = ("submitted", "queued", "started", "requeued", "scheduled", "changed", "retried", "completed", "failed", "cancelled", "expired",
         "progress", "paused", "resumed", "limited", "unlimited")
#: Told to those who name no kinds: progress may come once a second from every run.
USUAL_KINDS = frozenset(KINDS) - {"progress"}

#: Events that are kept for those who come back or are slow; each takes about 400 bytes.
MAX_EVENTS = 10_000

#: The text that tells one start of the broker from another.
MAX_BOOT_CHARACTERS = 32

Event = dict[str, object]


def job_event(kind: str, job: Job, now: float, **more: object) -> Event:
    """Return an event of a job as the job is now; `more` are fields of its own."""
    event: Event = {"kind": kind, "at": now, "job": job.id, "queue": job.queue, "task": job.task, "state": job.state.label}
    if job.attempt:
        event["attempt"] = job.attempt
        event["worker"] = job.worker
    if job.state is SCHEDULED:
        event["run_at"] = job.run_at
    event.update(more)
    return event


def finished_event(job: Job) -> Event:
    """Return the event of a job that has just been finished."""
    event = job_event(job.state.label, job, job.finished_at)
    if job.error is not None:
        event["error"] = job.error["name"]
    return event


def progress_event(job: Job, now: float) -> Event:
    """Return the event of what a run told of itself."""
    assert job.state is RUNNING
    return job_event("progress", job, now, fraction=job.report.fraction, text=job.report.text)


def pause_event(pause: Pause) -> Event:
    """Return the event of a queue or task that is held back from now on."""
    return {"kind": "paused", "at": pause.paused_at, pause.kind: pause.name, "reason": pause.reason, "by": pause.by, "until": pause.until}


def resume_event(pause: Pause, now: float) -> Event:
    """Return the event of a pause that is over."""
    return {"kind": "resumed", "at": now, pause.kind: pause.name}


def limit_event(limit: QueueLimit) -> Event:
    """Return the event of a queue that has a limit, or another one, from now on."""
    return {"kind": "limited", "at": limit.set_at, "queue": limit.queue, "jobs": limit.jobs, "bytes": limit.bytes, "urgent": limit.urgent,
            "extra": limit.extra, "reason": limit.reason, "by": limit.by}


def unlimit_event(limit: QueueLimit, now: float) -> Event:
    """Return the event of a limit that is over."""
    return {"kind": "unlimited", "at": now, "queue": limit.queue}


def position_text(boot: str, seq: int) -> str:
    """Return a position in the events of one start of the broker as a text, for clients and the web."""
    return f"{boot}:{seq}"


def parse_position(text: str) -> tuple[str, int]:
    """Return boot and number of a position; raises ValueError."""
    boot, _, seq = text.rpartition(":")
    if not boot or len(boot) > MAX_BOOT_CHARACTERS or not seq.isascii() or not seq.isdigit() or len(seq) > 15:
        raise ValueError("not a position")
    return boot, int(seq)


class EventLog:
    """The latest events, numbered from 1. What was noted is told only once it is shown: when it is on disk.

    Attributes:
        boot: tells these numbers from those of another start of the broker. last: the number of the latest event that was noted.
        visible: the highest number that may be told. oldest: the lowest number that is still there, or would be.
        on_news: called when more may be told.
    """

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.last = 0
        self.visible = 0
        self.oldest = 1
        self.on_news: Callable[[], None] = _ignore
        self._events: deque[Event] = deque()

    def note(self, events: Iterable[Event]) -> int:
        """Number and keep events; returns the number of the last of them, for `show`."""
        for event in events:
            self.last += 1
            event["seq"] = self.last
            self._events.append(event)
        while len(self._events) > MAX_EVENTS:
            self._events.popleft()
            self.oldest += 1
        return self.last

    def show(self, seq: int) -> None:
        """Let events up to this number be told."""
        if seq > self.visible:
            self.visible = seq
            self.on_news()

    def pause(self) -> None:
        """Forget all: from now on nothing is noted for a while. A number is left out, so that nobody goes on as if nothing was missing."""
        self._events.clear()
        self.last += 1
        self.visible = self.last
        self.oldest = self.last + 1

    def knows_since(self, seq: int) -> bool:
        """Tell whether all that came after this number is still there."""
        return self.oldest - 1 <= seq <= self.last

    def after(self, seq: int, limit: int) -> list[Event]:
        """Return up to `limit` events that may be told, after this number, which must be one that `knows_since`."""
        skipped = seq + 1 - self.oldest
        return list(islice(self._events, skipped, skipped + min(limit, max(0, self.visible - seq))))


def _ignore() -> None:
    """Nobody listens yet."""
