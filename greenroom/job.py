"""What a job is: its fields, its states and the table of legal moves, and the options that a submit may set.

Pure records and checks. Must not know queues' order (lanes), leases' rules (engine), disks or wires.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from greenroom.errors import InvalidError, TooLargeError

if TYPE_CHECKING:
    from greenroom.job_log import Report
    from greenroom.lanes import Lane

#: Job ids, places and fences stay below this: a double, and so every JSON reader, holds them exactly.
NUMBER_LIMIT = 2**53

#: The longest time that something may be put off, and the latest time there is: the end of the year 9999.
YEAR_S = 366 * 86400
MOST_TIME = 253402300799

#: Names of queues, tasks and workers. No character that needs escaping in a URL, a log line or a page.
NAME_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_NAME_RULE = "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -"

#: A delivered job keeps its payload in memory up to this size; the store keeps larger ones in a table of their own.
SMALL_BYTES = 512


class State(IntEnum):
    """Where a job is in its life. The numbers are on disk and never change; the lower-case names are on the wire."""

    SCHEDULED = 1  # waits for its run_at
    QUEUED = 2  # waits for a worker
    RUNNING = 3  # a worker holds its lease
    COMPLETED = 4  # acked: done, for good
    FAILED = 5  # failed, or crashed too often: done, kept for a person
    CANCELLED = 6  # taken back before it ran, or ended after a cancel
    EXPIRED = 7  # not begun in time, and so never run

    @property
    def label(self) -> str:
        """The word for people and wire, as in `queued`."""
        return self.name.lower()


#: The states by themselves, for the modules that look at one a dozen times a job: `State.QUEUED` takes 15 times as long (Python 3.11).
SCHEDULED, QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED, EXPIRED = State

#: State -> states that a job may go to from it. A finished job never moves by itself (reliability I6); one that did not complete runs
#: again when a person asks for that (the verb `retry`).
MOVES: dict[State, frozenset[State]] = {
    SCHEDULED: frozenset({QUEUED, CANCELLED, EXPIRED}),
    # Queued jobs finish without running again when the settle of a lease that ran out arrives before anyone else got them.
    # … and go back to scheduled when somebody gives them a time.
    QUEUED: frozenset({SCHEDULED, RUNNING, COMPLETED, FAILED, CANCELLED, EXPIRED}),
    # To scheduled: a failed run that is tried again later, or one that asked to be put off.
    RUNNING: frozenset({QUEUED, SCHEDULED, COMPLETED, FAILED, CANCELLED}),
    COMPLETED: frozenset(),
    FAILED: frozenset({QUEUED}),
    CANCELLED: frozenset({QUEUED}),
    EXPIRED: frozenset({QUEUED}),
}

STATE_BY_LABEL: dict[str, State] = {state.label: state for state in State}
FINISHED_STATES = frozenset({COMPLETED, FAILED, CANCELLED, EXPIRED})
RETRYABLE_STATES = FINISHED_STATES - {COMPLETED}

#: Places in a list of counts by state: as long as so.
STATES = max(State) + 1


class Run(NamedTuple):
    """One run of a job that ended without completing it: a line of its history."""

    attempt: int  # which lease of the job it was, from 1
    worker: str
    started_at: float | None
    ended_at: float
    outcome: str  # a word of RUN_OUTCOMES
    error: dict[str, str] | None  # of a failed one


#: Reasons for which a job is requeued, and with them how else a run can end that does not complete its job.
REQUEUES = ("lost", "expired", "crash", "nack", "bye", "not presented")
RUN_OUTCOMES = ("failed", "snoozed", *REQUEUES)


class Rewrite(NamedTuple):
    """What the store must write of a waiting job beside what may always change: it was changed by somebody since its row was written."""

    queue: str  # as in its row
    payload_bytes: int  # as in its row
    requeues: int  # when the queue changed: those belong to the lane in its row
    has_payload: bool  # the payload is another


class Job:
    """One unit of work. The engine moves it; the store writes what it finds here when a batch is flushed."""

    __slots__ = (
        "id", "queue", "task", "lane", "priority", "place", "rank", "state", "payload", "payload_bytes", "raw",
        "submitted_at", "run_at", "started_at", "finished_at", "worker", "fence", "attempt", "crashes", "requeues",
        "cancel_requested", "result", "result_bytes", "result_raw", "error", "lease", "late_fence",
        "stored_state", "stored_requeues", "stored_lease", "checkpoint", "rewrite", "damage",
        "extras", "failures", "failed_since", "settled_fence", "expires_at", "runs", "report",
    )

    def __init__(self, job_id: int, queue: str, task: str, priority: int, payload: bytes | None, raw: bool,
                 submitted_at: float) -> None:
        self.id = job_id
        self.queue = queue
        self.task = task
        self.lane: Lane | None = None  # set by the engine
        self.priority = priority  # -1000 … 1000; the doors let 1 … 10 through
        self.place = 0  # order within a priority, 0 until first queued
        self.rank = 0  # priority and place in one integer, see rank_of
        self.state = QUEUED
        self.payload = payload  # None while only the store has it
        self.payload_bytes = len(payload) if payload is not None else 0  # size, also while payload is None
        self.raw = raw  # True: payload is bytes without a convention; False: one msgpack value
        self.submitted_at = submitted_at  # _at: seconds since 1970
        self.run_at: float | None = None  # not before, or None: at once
        self.started_at: float | None = None  # when the latest lease was granted
        self.finished_at: float | None = None
        self.worker: str | None = None  # name of the latest holder
        self.fence = 0  # fence of the latest lease, 0: never leased
        self.attempt = 0  # leases granted so far
        self.crashes = 0  # leases that ended by a lost worker or a silent one
        self.requeues = 0  # times it came back to its queue
        self.cancel_requested = False
        self.result: bytes | None = None
        self.result_bytes = 0  # size as stored, also while result is None
        self.result_raw = False
        self.error: dict[str, str] | None = None  # {"name", "message", "traceback"}
        self.lease: object | None = None  # the engine's Lease while running
        self.late_fence = 0  # fence whose late settle is still accepted, 0: none
        self.stored_state = 0  # State on disk, 0: no row yet (the store's own note, as are the next two)
        self.stored_requeues = 0
        self.stored_lease = 0  # fence of the lease on disk, 0: none
        self.checkpoint = False  # the engine wants the lease on disk
        self.rewrite: Rewrite | None = None  # taken by the store when it writes the job
        self.damage: str | None = None  # what does not match its checksum on disk: "row", "payload" or "result"
        self.extras: Extras | None = None  # options that few jobs have; None: all are at their defaults
        self.failures = 0  # runs that failed, since it was submitted or retried by hand
        self.failed_since: float | None = None  # when the first of them did
        self.settled_fence = 0  # fence under which a failure or a snooze was accepted last, 0: none
        self.expires_at: float | None = None  # not begun by then: expired
        self.runs: list[Run] | None = None  # runs that ended and are not on disk yet
        self.report: Report | None = None  # what its runs told of themselves, None: nothing

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.queue}/{self.task} {self.state.label}>"


def rank_of(priority: int, place: int) -> int:
    """Return the one integer that jobs are sorted by: lower priority first, then lower place."""
    return priority * NUMBER_LIMIT + place


def move(job: Job, to: State) -> None:
    """Move a job to another state and keep the counters of its lane. Beside `move_all` the only place that changes `state`.

    Raises AssertionError for a move that the table does not have: a bug of the caller.
    """
    assert to in MOVES[job.state], f"job {job.id} cannot go from {job.state.label} to {to.label}"
    counts, totals = job.lane.counts, job.lane.totals
    counts[job.state] -= 1
    totals[job.state] -= 1
    counts[to] += 1
    totals[to] += 1
    job.state = to


def move_all(jobs: list[Job], lane: Lane, to: State) -> None:
    """Do what `move` does for jobs of one lane that are in the same state: the counters move once."""
    state = jobs[0].state
    assert to in MOVES[state], f"job {jobs[0].id} cannot go from {state.label} to {to.label}"
    for counts in (lane.counts, lane.totals):
        counts[state] -= len(jobs)
        counts[to] += len(jobs)
    for job in jobs:
        assert job.state is state
        job.state = to


class Extras(NamedTuple):
    """Options that few jobs have, checked; the fields are those of OPTIONS. The store keeps those that differ from the default."""

    attempts: int = 5
    retry_for: float | None = None
    backoff: str = "exponential"
    backoff_base: float = 10.0
    backoff_cap: float = 3600.0
    jitter: bool | None = None  # None: unless the backoff is fixed
    retry_on: tuple[str, ...] = ()
    retry_never: tuple[str, ...] = ()
    expires_in: float | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    unique_key: str | None = None
    unique_for: float | None = None
    unique_mode: str = "until_done"
    on_duplicate: str = "keep"
    debounce_max: float | None = None
    keep_for: float | None = None

    @property
    def limits_run(self) -> bool:
        """True if a run of the job may not take any time it likes."""
        return self.timeout is not None or self.soft_timeout is not None

    def asked(self) -> dict[str, object]:
        """Return the options that are not at their default, by name."""
        return {name: value for name, value in self._asdict().items() if value != getattr(USUAL, name)}


#: What jobs have that ask for none of them.
USUAL = Extras()


class JobOptions(NamedTuple):
    """What a submit asks of a job, checked: all but its payload. Jobs that ask for the same mostly share one."""

    task: str
    raw: bool
    queue: str
    priority: int
    run_at: float | None = None  # seconds since 1970, None: at once
    delay: float | None = None  # seconds from acceptance, None: not given; never together with run_at
    extras: Extras | None = None


class NewJob(NamedTuple):
    """A job of a submit, checked."""

    options: JobOptions
    payload: bytes


class JobChange(NamedTuple):
    """What somebody wants changed of a job that waits, checked; None: as it is."""

    priority: int | None = None
    queue: str | None = None
    run_at: float | None = None
    delay: float | None = None  # never together with run_at
    payload: bytes | None = None
    raw: bool = False  # of the payload


class Option(NamedTuple):
    """One field of a job in a submit: the wire's check, the documentation and the command line come from here."""

    name: str
    kind: str  # as the specification calls it: name, bytes, word, int, seconds, time
    check: Callable[[object], object]  # the value, or raises ValueError with the end of the sentence
    default: object
    doc: str


#: Names that were checked before; a few are used again and again, and the pattern costs more than the rest of a small job.
_known_names: set[str] = set()
_MAX_KNOWN_NAMES = 10_000


def check_name(value: object) -> str:
    """Return a queue, task or worker name, or raise ValueError."""
    if not isinstance(value, str):
        raise ValueError(_NAME_RULE)
    if value not in _known_names:
        if NAME_PATTERN.fullmatch(value) is None:
            raise ValueError(_NAME_RULE)
        if len(_known_names) < _MAX_KNOWN_NAMES:
            _known_names.add(value)
    return value


def _check_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("must be binary")
    return value


def _check_encoding(value: object) -> str:
    if value not in ("msgpack", "raw"):
        raise ValueError("must be \"msgpack\" or \"raw\"")
    return value


def _check_priority(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 10:
        raise ValueError("must be an integer from 1 (first) to 10 (last)")
    return value


def is_number(value: object) -> bool:
    """Tell whether a value is an int or a finite float; booleans are not numbers."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _check_delay(value: object) -> float:
    if not is_number(value) or not 0 <= value <= YEAR_S:
        raise ValueError("must be a number of seconds from 0 to 31622400 (366 days)")
    return float(value)


def _check_run_at(value: object) -> float:
    if not is_number(value) or not 0 <= value <= MOST_TIME:
        raise ValueError("must be a time in seconds since 1970")
    return float(value)


def seconds_between(low: float, high: float) -> Callable[[object], float]:
    """Return the check of a number of seconds in a range; both ends are allowed."""
    def check(value: object) -> float:
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:.0f}")
        return float(value)
    return check


def _check_attempts(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 1000:
        raise ValueError("must be an integer from 1 to 1000")
    return value


def check_flag(value: object) -> bool:
    """Return a bool, or raise ValueError."""
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _check_error_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > 20 or not all(
            isinstance(name, str) and 1 <= len(name) <= 128 for name in value):
        raise ValueError("must be a list of at most 20 names of errors, each of 1 to 128 characters")
    return tuple(value)


def _check_key(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise ValueError("must be a text of 1 to 256 characters")
    return value


def one_of(*words: str) -> Callable[[object], str]:
    """Return the check of a word."""
    def check(value: object) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return value
    return check


BACKOFFS = ("none", "fixed", "linear", "exponential")
#: The options of a job, in the order of the documentation. `task` alone is required.
OPTIONS: dict[str, Option] = {option.name: option for option in (
    Option("task", "name", check_name, None, "the function that a worker runs; required"),
    Option("payload", "bytes", _check_bytes, b"\x80", "opaque input of the task; by default an empty msgpack map"),
    Option("encoding", "word", _check_encoding, "msgpack", "what the payload is: `msgpack` (one value) or `raw` bytes"),
    Option("queue", "name", check_name, "default", "the queue that the job waits in; made on first use"),
    Option("priority", "int", _check_priority, 5, "1 … 10, lower runs first"),
    Option("delay", "seconds", _check_delay, None, "not before so many seconds from now; 0 … 31622400"),
    Option("run_at", "time", _check_run_at, None, "not before this time; one that is past means at once"),
    Option("attempts", "int", _check_attempts, 5, "runs that may fail before the job is failed for good; 1 … 1000"),
    Option("retry_for", "seconds", seconds_between(1, YEAR_S), None, "instead of `attempts`: retried for so long after the first failure"),
    Option("backoff", "word", one_of(*BACKOFFS), "exponential",
           "how the pauses between tries grow: `none`, `fixed`, `linear` or `exponential`"),
    Option("backoff_base", "seconds", seconds_between(0, 86400), 10.0, "the first pause; 0 … 86400"),
    Option("backoff_cap", "seconds", seconds_between(0, YEAR_S), 3600.0, "the longest pause"),
    Option("jitter", "bool", check_flag, None, "a pause is a random part of what it would be; left out: unless the backoff is `fixed`"),
    Option("retry_on", "list of texts", _check_error_names, (), "names of errors after which alone it is retried; empty: any"),
    Option("retry_never", "list of texts", _check_error_names, (), "names of errors after which it is never retried"),
    Option("expires_in", "seconds", seconds_between(0.001, YEAR_S), None,
           "expired, and never run, if not begun within so long from when it may run"),
    Option("timeout", "seconds", seconds_between(0.001, YEAR_S), None, "a run that takes longer has failed, whatever its worker says"),
    Option("soft_timeout", "seconds", seconds_between(0.001, YEAR_S), None, "a run that takes longer is told to stop, as by a cancel, and goes on"),
    Option("unique_key", "text", _check_key, None, "a submit is a duplicate while a job with this key is there; 1 to 256 characters"),
    Option("unique_for", "seconds", seconds_between(0.001, YEAR_S), None,
           "the key is free again after so long, at the latest; in the mode `debounce`: the quiet time"),
    Option("unique_mode", "word", one_of("until_done", "throttle", "debounce"), "until_done",
           "`until_done`: the key is free when its job is finished; `throttle`: only after `unique_for`; `debounce`: each submit replaces "
           "the payload of the job and puts it off until `unique_for` after, and the key is free once a worker has the job"),
    Option("on_duplicate", "word", one_of("keep", "replace"), "keep",
           "what a duplicate does to the job that has the key, if it waits: `keep` nothing, `replace` gives it the new payload"),
    Option("debounce_max", "seconds", seconds_between(0.001, YEAR_S), None,
           "a debounced job is put off until so long after its first submit at most; left out: for as long as submits come"),
    Option("keep_for", "seconds", seconds_between(0, YEAR_S), None,
           "kept for so long once it is finished, then deleted; left out: as the broker's settings say"),
)}

#: Those that most jobs have; the others are kept together (Extras).
PLAIN_OPTIONS = frozenset(OPTIONS) - frozenset(Extras._fields)
_is_plain = PLAIN_OPTIONS.issuperset

# What the check of a job needs of each option, as tuples.
_CHECKS = tuple((name, OPTIONS[name].check, OPTIONS[name].default) for name in OPTIONS if name in PLAIN_OPTIONS)
_EXTRA_CHECKS = tuple((option.name, option.check) for option in OPTIONS.values() if option.name not in PLAIN_OPTIONS)


#: Makes a record without the Python function that its class would call: half the time.
_new_tuple = tuple.__new__

#: Options that were checked before, by their values in the submit. Most submits ask for the same again and again, and one look-up
#: costs a fifth of the checks. Times differ from job to job, so jobs that have one are not kept here.
_known_options: dict[tuple, JobOptions] = {}
_MAX_KNOWN_OPTIONS = 10_000


def parse_new_job(item: object, max_payload_bytes: int) -> NewJob:
    """Check one job of a submit.

    Args:
        item: the decoded map; fields without meaning here are ignored.
        max_payload_bytes: the broker's limit.

    Raises:
        InvalidError: a field is missing, of a wrong type or out of range; `field` names it.
        TooLargeError: the payload is over the limit.
    """
    if not isinstance(item, dict):
        raise InvalidError("a job must be a map", field="jobs")
    get = item.get
    priority = get("priority")
    # With its type: 1, 1.0 and true are the same key.
    key = (get("task"), get("queue"), priority, type(priority), get("encoding"), get("delay"), get("run_at"))
    try:
        options = _known_options.get(key)
    except TypeError:  # a list or map among them, which the checks refuse
        options = None
    payload = get("payload")
    if options is None or type(payload) is not bytes or not _is_plain(item):
        options, payload = _check_new_job(get)
        if options.run_at is None and options.delay is None and options.extras is None and len(_known_options) < _MAX_KNOWN_OPTIONS:
            _known_options[key] = options
    if len(payload) > max_payload_bytes:
        raise TooLargeError(f"payload has {len(payload)} bytes, the limit is {max_payload_bytes}", field="payload")
    return _new_tuple(NewJob, (options, payload))


def _check_new_job(get: Callable[[str], object]) -> tuple[JobOptions, bytes]:
    values: list[object] = []
    try:
        for name, check, default in _CHECKS:
            value = get(name)
            values.append(default if value is None else check(value))
        asked = {}
        for name, check in _EXTRA_CHECKS:
            value = get(name)
            if value is not None:
                asked[name] = check(value)
    except ValueError as exc:
        raise InvalidError(f"{name} {exc}", field=name) from None
    task, payload, encoding, queue, priority, delay, run_at = values
    if task is None:
        raise InvalidError("task is required", field="task")
    if delay is not None and run_at is not None:
        raise InvalidError("delay and run_at exclude each other", field="delay")
    if "attempts" in asked and "retry_for" in asked:
        raise InvalidError("attempts and retry_for exclude each other", field="retry_for")
    if "soft_timeout" in asked and asked["soft_timeout"] >= asked.get("timeout", math.inf):
        raise InvalidError("soft_timeout must be less than timeout", field="soft_timeout")
    extras = Extras(**asked) if asked else None
    if asked:
        delay = _check_unique(asked, delay, run_at)
    return JobOptions(task, encoding == "raw", queue, priority, run_at, delay, None if extras == USUAL else extras), payload


def _check_unique(asked: dict[str, object], delay: float | None, run_at: float | None) -> float | None:
    """Check what is said of a unique key as a whole; returns the delay of the job, which in the mode debounce is the quiet time."""
    mode = asked.get("unique_mode", "until_done")
    if "unique_key" not in asked:
        for name in ("unique_for", "unique_mode", "on_duplicate", "debounce_max"):
            if name in asked:
                raise InvalidError(f"{name} needs a unique_key", field=name)
    if mode != "until_done" and "unique_for" not in asked:
        raise InvalidError(f"the unique_mode {mode} needs unique_for", field="unique_for")
    if mode != "debounce":
        if "debounce_max" in asked:
            raise InvalidError("debounce_max needs the unique_mode debounce", field="debounce_max")
        return delay
    if delay is not None or run_at is not None:
        name = "delay" if delay is not None else "run_at"
        raise InvalidError(f"{name} and the unique_mode debounce exclude each other: unique_for says when the job runs", field=name)
    if asked.get("on_duplicate") == "keep":
        raise InvalidError("on_duplicate keep and the unique_mode debounce exclude each other", field="on_duplicate")
    if asked.get("debounce_max", math.inf) < asked["unique_for"]:
        raise InvalidError("debounce_max must be unique_for at least", field="debounce_max")
    return asked["unique_for"]
