"""For users' tests: a client without a broker. It runs jobs at once (inline) or when told to (capture), and remembers them.

What goes in and comes out is packed and unpacked as on the way through a broker, and a task is called as a worker calls it. Pauses,
changes, logs and explanations are in testing_steering.py, filters in testing_bulk.py, groups of failures in testing_failures.py, unique
keys in testing_unique.py. Must not know pytest (greenroom/pytest_plugin.py). What only the broker knows (schedules, hard time limits) is
not imitated here: greenroom/testing_broker.py starts a real one.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from greenroom.client import DroppedHandle, Handle, handle_of, handles_of
from greenroom.client_jobs import wire_copy, wire_job
from greenroom.client_submits import reading_failed
from greenroom.clock import Clock
from greenroom.errors import FinishedError, GreenroomError, TooLargeError, WaitTimeoutError
from greenroom.job import OPTIONS, Extras, parse_new_job
from greenroom.pools import Outcome, RunItem, call_task, outcome_of
from greenroom.protocol import DEFAULT_LIMITS, pack_value, unpack_value
from greenroom.retries import next_try
from greenroom.submit_options import check_names, wire_options
from greenroom.task_functions import TaskFunction
from greenroom.task_outcomes import Retry, Snooze
from greenroom.tasks import Context, Registry, default_registry
from greenroom.testing_bulk import LocalBulk
from greenroom.testing_failures import LocalFailures
from greenroom.testing_limits import SoftLimits
from greenroom.queue_limits import LimitedQueue
from greenroom.testing_queue_limits import LocalLimits
from greenroom.testing_steering import WAITING, LocalReports, LocalSteering
from greenroom.testing_unique import LocalKeys
from greenroom.unique import Duplicate
from greenroom.when_full import WhenFull, when_full

#: Runs of one run_due. A task that enqueues itself would go on for ever.
MOST_RUNS = 100_000

#: A job that asked how long it is kept is gone so long after its time, as with a broker.
GONE_AFTER_S = 2.0

#: Jobs listed in a failed assertion, and characters of a value.
MOST_SHOWN = 20
VALUE_CHARACTERS = 120


@dataclass(slots=True)
class LocalJob:
    """A job that was submitted here."""

    id: int
    task: str
    payload: bytes
    encoding: str  # "msgpack" or "raw"
    options: dict[str, object]  # what was said, as the wire has it
    submitted_at: float
    run_at: float | None  # Unix seconds by this client's clock; None: at once
    state: str = "queued"
    attempt: int = 0
    result: bytes | None = None
    error: dict | None = None
    started_at: float | None = None
    finished_at: float | None = None
    failures: int = 0  # since it was submitted or retried by hand
    failed_since: float | None = None
    expires_at: float | None = None  # not begun by then: expired
    progress: tuple[float | None, str | None] | None = None
    lines: list[dict] = field(default_factory=list)  # of its log, as Client.logs has them
    runs: list[dict] = field(default_factory=list)  # those that did not complete it, as Client.runs has them

    @property
    def arguments(self) -> object:
        """The payload, as the task gets it."""
        return self.payload if self.encoding == "raw" else unpack_value(self.payload)

    def option(self, name: str) -> object:
        """Return an option, its default if it was not said."""
        return self.options.get(name, OPTIONS[name].default)

    def view(self, *, payload: bool = False) -> dict:
        """Return what `get` shows of a job (docs/protocol_v1.md)."""
        view = {"id": self.id, "task": self.task, "queue": self.option("queue"), "priority": self.option("priority"),
                "state": self.state, "submitted_at": self.submitted_at, "run_at": self.run_at, "started_at": self.started_at,
                "finished_at": self.finished_at, "worker": "local" if self.attempt else None, "attempt": self.attempt, "crashes": 0,
                "requeues": 0, "failures": self.failures, "cancel_requested": False, "payload_bytes": len(self.payload),
                "result_bytes": len(self.result or b""), "encoding": self.encoding, "result": self.result,
                "result_encoding": None if self.result is None else "msgpack", "error": self.error}
        rare = {name: value for name, value in self.options.items() if name in Extras._fields}
        if rare:
            view["options"] = rare
        if self.progress is not None:
            view["progress"], view["progress_text"] = self.progress
        return {**view, "payload": self.payload} if payload else view


class LocalClient(LocalBulk, LocalFailures, LocalLimits, LocalSteering, LocalKeys):
    """Stands where a Client would. Safe in any thread; tasks run in the thread that submits, or calls run_due or advance.

    Args:
        inline: run each job as soon as it is due, within `submit`; else nothing runs before `run_due`.
        raise_errors: let what a task raises leave `submit` or `run_due`, too; else the job is failed, as with a worker.
        retries: try a job that failed again later, as its options say, with the longest pauses that they allow; `advance` to get there.
            Errors leave only when no try is left. Else the first failure is the last.
        registry: whose tasks are run.

    Attributes:
        submitted: all jobs, in order, also those that were deleted.
    """

    def __init__(self, *, inline: bool, raise_errors: bool = True, retries: bool = False,
                 registry: Registry = default_registry) -> None:
        self.inline = inline
        self.raise_errors = raise_errors
        self.retries = retries
        self.submitted: list[LocalJob] = []
        self._deleted: set[int] = set()
        self._registry = registry
        self._clock = Clock()
        self._moved_s = 0.0
        self._lock = threading.Lock()  # guards `submitted`, the states in it and the two heaps
        self._queued: list[tuple[int, int]] = []  # priority and id
        self._scheduled: list[tuple[float, int]] = []  # run_at and id
        self._fences = itertools.count(1)
        self._soft_limits = SoftLimits(self.now)
        self._keys: dict[str, LocalJob] = {}  # unique key -> the job that took it last
        self._pauses: dict[tuple[str, str], dict] = {}  # (kind, name) -> as Client.pause has it
        self._limits: dict[str, LimitedQueue] = {}

    # What a Client has.

    def submit(self, task: str, payload: object = None, *, raw: bool = False, answer_timeout: float | None = None,
               on_full: str | None = None, full_timeout: float | None = None, **options: object) -> Handle:
        """Take one job, as Client.submit. Inline it is run before this returns, unless it is for later."""
        check_names(options, "submit")
        full = when_full(on_full, full_timeout)
        return self._submit_one(wire_job({**options, "task": task, "payload": payload, "raw": raw}), full)

    def resubmit(self, job_id: int, payload: object = None, *, raw: bool = False, answer_timeout: float | None = None,
                 on_full: str | None = None, full_timeout: float | None = None, **options: object) -> Handle:
        """Take a copy of a job, as Client.resubmit. Inline it is run before this returns."""
        check_names(options, "resubmit")
        full = when_full(on_full, full_timeout)
        return self._submit_one(wire_copy(self._there(job_id).view(payload=True), payload, raw, options), full)

    def _submit_one(self, job: dict | GreenroomError, full: WhenFull) -> Handle:
        handle = handle_of(self, self._take(job), full)
        self._run_inline()
        return handle

    def submit_many(self, jobs: Iterable[dict | tuple], *, answer_timeout: float | None = None, on_full: str | None = None,
                    full_timeout: float | None = None, **options: object) -> list[Handle]:
        """Take many jobs, as Client.submit_many. Inline they are run once all are taken."""
        check_names(options, "submit_many")
        full = when_full(on_full, full_timeout)
        defaults = wire_options(options)
        outcomes, failure = [], None
        try:
            for job in jobs:
                outcomes.append(self._take(wire_job(job, defaults)))
        except Exception as exc:
            failure = reading_failed(exc)
        self._run_inline()
        return handles_of(self, outcomes, failure, full)

    def handle(self, job_id: int) -> Handle:
        """Return a handle for a job."""
        return Handle(self, job_id)

    def get(self, ids: Iterable[int], *, payload: bool = False) -> list[dict]:
        """Return the jobs' views, in order; `{"id", "error"}` for those that are not there."""
        return [self._view(job_id, payload) for job_id in ids]

    def wait(self, ids: Iterable[int], timeout: float | None = None) -> Iterator[dict]:
        """Yield the views of jobs that have ended; WaitTimeoutError at once for one that has not, as nobody else would run it."""
        for job_id in ids:
            view = self._view(job_id, False)
            if view.get("state") in ("queued", "scheduled", "running"):
                raise WaitTimeoutError(f"job {job_id} ({view['task']}) is {view['state']}, and nothing runs by itself here: "
                                       "call run_due(), or advance(seconds) for a job that is for later")
            yield view

    def cancel(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Cancel jobs; for each, in order, "cancelled", "requested" (it is running) or the error."""
        return [self._cancel(job_id) for job_id in ids]

    def close(self) -> None:
        """Do nothing: there is no connection."""

    # Time and running.

    def now(self) -> float:
        """Return the time by which jobs fall due: the real one, and what was added to it."""
        return self._clock.now() + self._moved_s

    def advance(self, seconds: float) -> None:
        """Let time pass. Inline, what falls due is run. Raises ValueError for a negative number: time never steps back."""
        if seconds < 0:
            raise ValueError("time never steps back")
        self._moved_s += seconds
        self._soft_limits.time_was_moved()
        self._run_inline()

    def set_time(self, at: float | datetime) -> None:
        """Let it be this time, Unix seconds or a datetime, as `advance` would."""
        self.advance((at.timestamp() if isinstance(at, datetime) else at) - self.now())

    def run_due(self) -> int:
        """Run all that is due, by priority and then in order, also what is enqueued meanwhile; return how many runs that were.

        Raises:
            RuntimeError: 100,000 runs were not enough; a task that enqueues itself?
            Exception: what a task raised, if raise_errors is set.
        """
        for runs in range(MOST_RUNS):
            job = self._next_due()
            if job is None:
                return runs
            self._run(job)
        raise RuntimeError(f"{MOST_RUNS} runs, and there are still jobs that are due")

    # Assertions.

    def assert_enqueued(self, task: TaskFunction | str, /, *, count: int | None = None, options: Mapping[str, object] | None = None,
                        **arguments: object) -> list[LocalJob]:
        """Check that jobs of a task were enqueued, with these arguments among others, and return them.

        Args:
            count: so many; None: at least one.
            options: what they were submitted with, such as {"queue": "mail"}; an option that was not said has its default.

        Raises:
            AssertionError: with a list of what was enqueued.
            TypeError: the task has no such parameter, or there is no such option.
        """
        __tracebackhide__ = True
        found = self._matching(task, options, arguments)
        if (count is None and not found) or (count is not None and len(found) != count):
            number = "no job" if not found else "1 job" if len(found) == 1 else f"{len(found)} jobs"
            wanted = "at least one was expected" if count is None else f"{count} expected"
            raise AssertionError(f"{number} of {_told(task, options, arguments)} enqueued, {wanted}{self._listed()}")
        return found

    def assert_not_enqueued(self, task: TaskFunction | str | None = None, /, *, options: Mapping[str, object] | None = None,
                            **arguments: object) -> None:
        """Check that no job like this was enqueued, without a task: none at all. Raises as assert_enqueued."""
        __tracebackhide__ = True
        found = self._matching(task, options, arguments)
        if found:
            raise AssertionError(f"{len(found)} of {_told(task, options, arguments)} enqueued, none expected{self._listed()}")

    def _take(self, job: dict | GreenroomError) -> int | Duplicate | GreenroomError:
        if isinstance(job, GreenroomError):
            return job
        options = {name: value for name, value in job.items() if name not in ("task", "payload", "encoding")}
        payload = job.get("payload", OPTIONS["payload"].default)
        if len(payload) > DEFAULT_LIMITS.payload:
            return TooLargeError(f"payload has {len(payload)} bytes, the limit is {DEFAULT_LIMITS.payload}", field="payload")
        now = self.now()
        delay = job["unique_for"] if job.get("unique_mode") == "debounce" else job.get("delay")
        run_at = job.get("run_at") if delay is None else now + delay
        with self._lock:
            duplicate = self._duplicate(job, payload)
            if duplicate is not None:
                return duplicate
            no_room = self._no_room(options.get("queue", OPTIONS["queue"].default), options.get("priority", OPTIONS["priority"].default), len(payload))
            if no_room is not None:
                return no_room
            taken = LocalJob(len(self.submitted) + 1, job["task"], payload, job.get("encoding", "msgpack"), options, now, run_at)
            if "expires_in" in job:
                taken.expires_at = max(now, run_at or now) + job["expires_in"]
            self.submitted.append(taken)
            self._claim(taken)
            self._line_up(taken)
        return taken.id

    def _dropped(self, why: GreenroomError) -> DroppedHandle:
        self.dropped += 1
        return DroppedHandle(self, why)

    def _find(self, job_id: int) -> LocalJob | None:
        with self._lock:
            job = self.submitted[job_id - 1] if 1 <= job_id <= len(self.submitted) and job_id not in self._deleted else None
            if job is not None:
                self._expire(job)
                if self._is_past(job):
                    self._deleted.add(job_id)
                    return None
            return job

    def _is_past(self, job: LocalJob) -> bool:
        """Tell whether a job asked to be kept no longer than until now."""
        keep_for = job.option("keep_for")
        return keep_for is not None and job.finished_at is not None and self.now() >= job.finished_at + keep_for + GONE_AFTER_S

    def _view(self, job_id: int, payload: bool) -> dict:
        job = self._find(job_id)
        if job is None:
            missing = self._missing(job_id)
            return {"id": job_id, "error": {"code": missing.code, "message": missing.message}}
        return job.view(payload=payload)

    def _cancel(self, job_id: int) -> str | GreenroomError:
        job = self._find(job_id)
        if job is None:
            return self._missing(job_id)
        with self._lock:
            if job.state == "running":
                return "requested"
            if job.state not in ("queued", "scheduled"):
                return FinishedError(f"job {job_id} is {job.state}")
            job.state, job.finished_at = "cancelled", self.now()
        return "cancelled"

    def _run_inline(self) -> None:
        if self.inline:
            self.run_due()

    def _line_up(self, job: LocalJob) -> None:
        if job.run_at is None or job.run_at <= self.now():
            job.state = "queued"
            heapq.heappush(self._queued, (job.option("priority"), job.id))
        else:
            job.state = "scheduled"
            heapq.heappush(self._scheduled, (job.run_at, job.id))

    def _next_due(self) -> LocalJob | None:
        now = self.now()
        held: list[tuple[int, int]] = []
        with self._lock:
            while self._scheduled and self._scheduled[0][0] <= now:
                job = self.submitted[heapq.heappop(self._scheduled)[1] - 1]
                if job.state == "scheduled":
                    self._line_up(job)
            found = None
            while self._queued and found is None:
                entry = heapq.heappop(self._queued)
                job = self.submitted[entry[1] - 1]
                self._expire(job)
                if job.state != "queued" or entry[0] != job.option("priority"):
                    continue  # it ended meanwhile, or has another place
                if self._pauses_of(job):
                    held.append(entry)
                else:
                    found = job
            for entry in held:
                heapq.heappush(self._queued, entry)
            if found is not None:
                found.state, found.started_at = "running", now
                found.attempt += 1
            return found

    def _expire(self, job: LocalJob) -> None:
        """End a job that was not begun in time."""
        if job.state in WAITING and not job.attempt and job.expires_at is not None and job.expires_at <= self.now():
            job.state, job.finished_at = "expired", job.expires_at

    def _run(self, job: LocalJob) -> None:
        item = RunItem(job.id, next(self._fences), job.task, job.payload, job.encoding, job.option("queue"), job.attempt, "local")
        context = Context(job_id=job.id, fence=item.fence, attempt=job.attempt, task=job.task, queue=item.queue, worker=item.worker,
                          reports=LocalReports(job, self.now))
        try:
            with self._soft_limits.watch(context, job.option("soft_timeout")):
                job.result = call_task(self._registry, item, context)
        except (Exception, SystemExit) as exc:
            if isinstance(exc, (Snooze, Retry)):
                self._later(job, exc)
                return
            outcome = outcome_of(item, exc, 0.0)
            if self.retries and self._try_again(job, outcome):
                return
            self._end(job, "failed", outcome.error)
            if self.raise_errors:
                raise
        except BaseException:  # a test that fails, or Ctrl-C: not the task's doing
            self._end(job, "failed")
            raise
        else:
            self._end(job, "completed")

    def _try_again(self, job: LocalJob, outcome: Outcome) -> bool:
        """Put a failed job off to its next try; False: there is none."""
        now, wish = self.now(), outcome.wish or {}
        job.failures += 1
        job.failed_since = now if job.failed_since is None else job.failed_since
        extras = parse_new_job({"task": job.task, **job.options}, DEFAULT_LIMITS.payload).options.extras
        asked = False if wish.get("retry") is False else wish.get("retry_at")
        at = next_try(extras, job.failures, job.failed_since, outcome.error["name"], asked, now, 1.0)
        if at is None:
            return False
        self._note_run(job, "failed", outcome.error)
        with self._lock:
            job.error, job.run_at = outcome.error, at
            self._line_up(job)
        return True

    def _later(self, job: LocalJob, exc: Snooze | Retry) -> None:
        """Let a job run again at a time that its task chose."""
        after_s = exc.seconds if isinstance(exc, Snooze) else exc.in_s
        self._note_run(job, "snoozed" if isinstance(exc, Snooze) else "failed", None)
        with self._lock:
            job.run_at = self.now() + after_s if after_s is not None else exc.at
            self._line_up(job)

    def _end(self, job: LocalJob, state: str, error: dict | None = None) -> None:
        if state != "completed":
            self._note_run(job, state, error)
        job.error, job.finished_at = error, self.now()
        job.state = state

    def _note_run(self, job: LocalJob, outcome: str, error: dict | None) -> None:
        job.runs.append({"attempt": job.attempt, "worker": "local", "started_at": job.started_at, "ended_at": self.now(),
                         "outcome": outcome, "error": error})

    def _matching(self, task: TaskFunction | str | None, options: Mapping[str, object] | None,
                  arguments: Mapping[str, object]) -> list[LocalJob]:
        check_names(options or {}, "a job")
        wanted = wire_options(options or {})
        defaults = _defaults(task, arguments)
        expected = {name: _as_carried(value) for name, value in arguments.items()}
        name = task.name if isinstance(task, TaskFunction) else task
        with self._lock:
            jobs = list(self.submitted)
        return [job for job in jobs if name in (None, job.task)
                and all(job.option(option) == value for option, value in wanted.items())
                and (not expected or _fits(job.arguments, expected, defaults))]

    def _listed(self) -> str:
        with self._lock:
            jobs = list(self.submitted)
        if not jobs:
            return "; nothing was enqueued at all"
        lines = [f"  job {job.id}: {_told(job.task, job.options, job.arguments)}, {job.state}" for job in jobs[:MOST_SHOWN]]
        more = [f"  … and {len(jobs) - MOST_SHOWN} more"] if len(jobs) > MOST_SHOWN else []
        return "\n".join(["; enqueued were:", *lines, *more])


def _defaults(task: TaskFunction | str | None, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the defaults of a task's parameters. Raises TypeError for an argument that no job of it can have: a typing error would
    make assert_not_enqueued true for ever."""
    if not isinstance(task, TaskFunction):
        return {}
    known = task.parameters()
    for name in arguments:
        if known is not None and name not in known:
            raise TypeError(f"task {task.name} has no parameter {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    return {name: _as_carried(parameter.default) for name, parameter in inspect.signature(task).parameters.items()
            if parameter.default is not parameter.empty}


def _as_carried(value: object) -> object:
    """Return a value as it comes out at the worker (tuples are lists there); what compares itself (mock.ANY) as it is."""
    try:
        return unpack_value(pack_value(value))
    except ValueError:
        return value


def _fits(payload: object, expected: Mapping[str, object], defaults: Mapping[str, object]) -> bool:
    if not isinstance(payload, dict):
        return False
    return all((name in payload or name in defaults) and payload.get(name, defaults.get(name)) == value
               for name, value in expected.items())


def _told(task: TaskFunction | str | None, options: Mapping[str, object] | None, arguments: object) -> str:
    name = "any task" if task is None else task.name if isinstance(task, TaskFunction) else task
    shown = (", ".join(f"{key}={_short(value)}" for key, value in arguments.items()) if isinstance(arguments, Mapping)
             else _short(arguments))
    chosen = ", ".join(f"{key}={_short(value)}" for key, value in (options or {}).items())
    return f"{name}({shown})" + (f" with {chosen}" if chosen else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS else text[:VALUE_CHARACTERS - 1] + "…"
