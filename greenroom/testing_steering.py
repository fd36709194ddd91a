"""What the client for users' tests knows of those who steer and watch: pauses, changes, retries by hand, logs, why a job waits.

A part of LocalClient (greenroom/testing.py). What only a broker knows raises NotImplementedError, which says what to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greenroom.client import Client
from greenroom.client_jobs import wire_job
from greenroom.errors import ConflictError, FinishedError, GreenroomError, InvalidError
from greenroom.job import RETRYABLE_STATES
from greenroom.job_log import LINE_CHARACTERS, TEXT_CHARACTERS
from greenroom.run_reports import sendable

if TYPE_CHECKING:
    from greenroom.testing import LocalJob

WAITING = ("queued", "scheduled")
RETRYABLE = tuple(state.label for state in RETRYABLE_STATES)


class LocalSteering:
    """See the module."""

    submitted: list[LocalJob]
    _pauses: dict[tuple[str, str], dict]
    _lock: Any
    now: Callable[[], float]
    _no_room_for_more: Callable[[str, int, int, int, int], GreenroomError | None]
    _find: Callable[[int], LocalJob | None]
    _line_up: Callable[[LocalJob], None]
    _run_inline: Callable[[], None]
    _missing: Callable[[int], GreenroomError]
    _claim: Callable[[LocalJob], None]

    def __getattr__(self, name: str) -> object:
        """Stand for what a Client has and this one has not: an error that says so, when it is called."""
        if name.startswith("_") or not hasattr(Client, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def missing(*args: object, **named: object) -> object:
            raise NotImplementedError(f"{name} needs a broker: use the fixture greenroom_broker, or greenroom.testing_broker.LocalBroker")
        return missing

    # -- pauses -------------------------------------------------------------------------------------------------------------

    def pause(self, queue: str | None = None, *, task: str | None = None, seconds: float | None = None, reason: str = "",
              by: str | None = None) -> dict:
        """Hold back the jobs of a queue or of a task, as Client.pause; `advance` ends a pause for a time."""
        kind, name = _target(queue, task)
        now = self.now()
        made = {"queue": queue, "task": task, "paused_at": now, "until": None if seconds is None else now + seconds, "reason": reason,
                "by": by or "local"}
        self._pauses[kind, name] = made
        return dict(made)

    def resume(self, queue: str | None = None, *, task: str | None = None) -> bool:
        """End a pause, as Client.resume. Inline, what waited runs."""
        was_paused = _target(queue, task) in {key for key, _ in self._held()}
        self._pauses.pop(_target(queue, task), None)
        self._run_inline()
        return was_paused

    def pauses(self) -> list[dict]:
        """Return all pauses, as Client.pauses."""
        return [dict(pause) for _, pause in self._held()]

    def _held(self) -> list[tuple[tuple[str, str], dict]]:
        now = self.now()
        return [(key, pause) for key, pause in list(self._pauses.items()) if pause["until"] is None or pause["until"] > now]

    def _pauses_of(self, job: LocalJob) -> list[dict]:
        return [pause for key, pause in self._held() if key in (("queue", job.option("queue")), ("task", job.task))]

    # -- single jobs --------------------------------------------------------------------------------------------------------

    def change(self, ids: Iterable[int], *, priority: int | None = None, queue: str | None = None, delay: float | None = None,
               run_at: float | datetime | None = None, payload: object = None, raw: bool = False) -> list[str | GreenroomError]:
        """Change jobs that wait, as Client.change."""
        given = {"priority": priority, "queue": queue, "delay": delay, "run_at": run_at}
        changes = {name: value for name, value in given.items() if value is not None}
        if payload is not None:
            changes |= {"payload": payload, "raw": raw}
        if not changes:
            raise InvalidError("a change needs at least one of priority, queue, run_at, delay, payload", field="jobs")
        checked = wire_job({"task": "any", **changes})
        if isinstance(checked, GreenroomError):
            raise checked
        outcomes = [self._change(job_id, checked) for job_id in ids]
        self._run_inline()
        return outcomes

    def _change(self, job_id: int, changes: dict) -> str | GreenroomError:
        job = self._find(job_id)
        if job is None:
            return self._missing(job_id)
        with self._lock:
            if job.state == "running":
                return ConflictError(f"job {job_id} is running: only a job that waits can be changed")
            if job.state not in WAITING:
                return FinishedError(f"job {job_id} is already {job.state}")
            queue, priority = (changes.get(name, job.option(name)) for name in ("queue", "priority"))
            size, is_moved = len(changes.get("payload", job.payload)), queue != job.option("queue")
            no_room = self._no_room_for_more(queue, priority, int(is_moved), size if is_moved else size - len(job.payload), size)
            if no_room is not None:
                return no_room
            job.options |= {name: changes[name] for name in ("priority", "queue") if name in changes}
            if "payload" in changes:
                job.payload, job.encoding = changes["payload"], changes.get("encoding", "msgpack")
            if "delay" in changes or "run_at" in changes:
                job.run_at = self.now() + changes["delay"] if "delay" in changes else changes["run_at"]
            self._line_up(job)
        return "changed"

    def retry(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Let jobs that failed, were cancelled or expired run again, as Client.retry. Inline they run before this returns."""
        outcomes = [self._retry(job_id) for job_id in ids]
        self._run_inline()
        return outcomes

    def _retry(self, job_id: int) -> str | GreenroomError:
        job = self._find(job_id)
        if job is None:
            return self._missing(job_id)
        with self._lock:
            if job.state not in RETRYABLE:
                return ConflictError(f"job {job_id} is {job.state}: only what failed, was cancelled or expired can be retried")
            no_room = self._no_room_for_more(job.option("queue"), job.option("priority"), 1, len(job.payload), len(job.payload))
            if no_room is not None:
                return no_room
            try:
                self._claim(job)
            except ConflictError as exc:
                return exc
            job.failures = 0
            job.failed_since = job.error = job.finished_at = job.run_at = job.expires_at = None
            self._line_up(job)
        return "queued"

    # -- watching -----------------------------------------------------------------------------------------------------------

    def logs(self, job_id: int, *, after: int = 0, follow: bool = False) -> Iterator[dict]:
        """Yield the lines of a job's log that there are, as Client.logs; with `follow` too: nothing runs meanwhile."""
        yield from [line for line in self._there(job_id).lines if line["seq"] > after]

    def runs(self, job_id: int) -> list[dict]:
        """Return the runs of a job that ended without completing it, as Client.runs."""
        return list(self._there(job_id).runs)

    def explain(self, job_id: int) -> dict:
        """Return why a job does not run, as Client.explain: the gates that there are without workers."""
        job = self._there(job_id)
        gates: list[tuple[str, str, str, float | None]] = []
        if job.state == "scheduled":
            gates.append(("not_due", f"its time comes in {job.run_at - self.now():.3g} s", "its run_at", job.run_at))
        for pause in self._pauses_of(job) if job.state in WAITING else ():
            kind = "queue" if pause["queue"] is not None else "task"
            gates.append((f"{kind}_paused", f"the {kind} {pause[kind]} is paused by {pause['by']} ({pause['reason'] or 'no reason given'})",
                          f"resume {kind} {pause[kind]}", pause["until"]))
        ahead = sum(other.state == "queued" and (other.option("priority"), other.id) < (job.option("priority"), job.id)
                    for other in list(self.submitted)) if job.state == "queued" else None
        if job.state == "queued" and not gates:
            gates.append(("no_worker", "nothing runs by itself here", "run_due()", None))
        elif job.state not in WAITING:
            is_running = job.state == "running"
            gates.append(("running", "it is running", "", None) if is_running else
                         ("finished", f"it is over: {job.state}", "retry" if job.state in RETRYABLE else "nothing", None))
        return {"job": job.id, "state": job.state, "queue": job.option("queue"), "task": job.task, "ahead": ahead, "ahead_exact": True,
                "starts_at": job.run_at if job.state == "scheduled" else None,
                "gates": [dict(zip(("code", "text", "opens", "at"), gate)) for gate in gates]}

    def _there(self, job_id: int) -> LocalJob:
        job = self._find(job_id)
        if job is None:
            raise self._missing(job_id)
        return job


class LocalReports:
    """Takes what a run says of itself; a Context knows it as its ReportBox."""

    def __init__(self, job: LocalJob, now: Callable[[], float]) -> None:
        self._job = job
        self._now = now

    def set_progress(self, key: tuple[int, int], fraction: float | None, text: str | None) -> None:
        """Keep how far the run is."""
        self._job.progress = (fraction, None if text is None else sendable(text, TEXT_CHARACTERS))

    def add_lines(self, key: tuple[int, int], lines: list[str]) -> None:
        """Keep lines of its log."""
        for text in lines:
            self._job.lines.append({"seq": len(self._job.lines) + 1, "at": self._now(), "attempt": self._job.attempt,
                                    "text": sendable(text, LINE_CHARACTERS)})


def _target(queue: str | None, task: str | None) -> tuple[str, str]:
    if (queue is None) == (task is None):
        raise InvalidError("give queue or task, one of them", field="queue")
    return ("queue", queue) if queue is not None else ("task", task)
