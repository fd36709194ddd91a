"""Pools: where tasks run. Threads of this process, or child processes, one job at a time in each.

A pool takes items and reports outcomes. It must not know the connection, leases' deadlines or what the broker does with an
outcome. It needs real threads: a process that gevent has patched can't use it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from greenroom.errors import BusyError, DrainingError, ProtocolError
from greenroom.protocol import FrameReader, encode_frame, pack_value, unpack_value
from greenroom.run_reports import ReportBox
from greenroom.task_outcomes import PermanentError, Snooze, TaskError, recorded_error, wish_of
from greenroom.tasks import BadPayloadError, CancelledTaskError, Context, Registry, describe_error, run_task

log = logging.getLogger(__name__)

DEFAULT_MAX_RESULT = 1024 * 1024

# Items that may wait beyond the slots. A session may hold 1,000 leases, so a worker that keeps to that never meets it.
MAX_WAITING = 1_000

# Both ends of the pipe are ours and what flows was bounded by the wire's limits before: this only stops garbage.
PIPE_FRAME_LIMIT = 1 << 30

READY_TIMEOUT_S = 60.0  # for importing the user's task modules in a fresh child
CANCEL_GRACE_S = 10.0  # a child whose job was cancelled has so long to end it by itself
TERMINATE_S = 2.0  # between SIGTERM and SIGKILL
RESPAWN_DELAY_S = (0.1, 5.0)  # first and longest pause after a child that ended before it was ready
DEATH_CHECK_S = 0.5  # a dead child's pipe stays open while a process that it started holds it


class ResultError(PermanentError):
    """Raised when a task's result is something that the wire can't carry."""


class ResultTooLargeError(PermanentError):
    """Raised when a packed result is over the limit."""


class ChildCrashError(TaskError):
    """Named in the outcome of a job whose child process died."""


class RunItem(NamedTuple):
    """One job to run."""

    job_id: int
    fence: int
    task: str
    payload: bytes
    encoding: str = "msgpack"  # "msgpack": the payload is one packed value; "raw": the task gets the bytes
    queue: str = "default"
    attempt: int = 1
    worker: str = ""


class Outcome(NamedTuple):
    """How one run ended."""

    job_id: int
    fence: int
    kind: str  # "ack" | "fail" | "snooze" | "crash": a crash is a child process that died, no fault the task reported itself
    result: bytes | None  # the packed result of an ack
    encoding: str  # of the result, always "msgpack" so far
    error: dict | None  # {"name", "message", "traceback"} of a fail or crash
    seconds: float  # how long the task ran
    wish: dict | None = None  # of a fail: {"retry": False} or {"retry_at": seconds since 1970}
    snooze_s: float | None = None  # of a snooze: seconds from now

    def settle_item(self) -> list:
        """Return it as the wire's settle has it."""
        lease = [self.job_id, self.fence]
        if self.kind == "ack":
            return [*lease, "ack", self.result, self.encoding == "raw"]
        if self.kind == "fail":
            return [*lease, "fail", self.error] if self.wish is None else [*lease, "fail", self.error, self.wish]
        if self.kind == "snooze":
            return [*lease, "snooze", self.snooze_s]
        return [*lease, "crash"]


class Run:
    """An item in a pool, with its context and how far it has come."""

    __slots__ = ("item", "key", "context", "is_begun", "is_withdrawn", "child", "stop_by")

    def __init__(self, item: RunItem, reports: ReportBox | None = None) -> None:
        self.item = item
        # Job and fence: a job whose lease was lost can come back while its old run still goes on.
        self.key = (item.job_id, item.fence)
        self.context = Context(job_id=item.job_id, fence=item.fence, attempt=item.attempt, task=item.task,
                               queue=item.queue, worker=item.worker, reports=reports)
        self.is_begun = False  # a slot has taken it
        self.is_withdrawn = False  # taken back before a slot took it
        self.child: Child | None = None  # the process that said it has begun it
        self.stop_by: float | None = None  # monotonic; set by a cancel: what can be killed is killed then

    @property
    def is_overdue(self) -> bool:
        """True when it was cancelled and did not end in time."""
        return self.stop_by is not None and time.monotonic() >= self.stop_by


def execute(registry: Registry, item: RunItem, context: Context, *, max_result: int) -> Outcome:
    """Run one item here and now. Never raises: whatever the task raises, SystemExit too, is a "fail"."""
    started = time.monotonic()
    try:
        result = call_task(registry, item, context, max_result=max_result)
    except BaseException as exc:
        return outcome_of(item, exc, time.monotonic() - started)
    return Outcome(item.job_id, item.fence, "ack", result, "msgpack", None, time.monotonic() - started)


def outcome_of(item: RunItem, exc: BaseException, seconds: float) -> Outcome:
    """Return how a run ended that raised: a "snooze" if it asked for that, else a "fail"."""
    if isinstance(exc, Snooze):
        return Outcome(item.job_id, item.fence, "snooze", None, "msgpack", None, seconds, snooze_s=exc.seconds)
    return _outcome(item, "fail", error=_described(exc), seconds=seconds, wish=wish_of(exc))


def _described(exc: BaseException) -> dict[str, str]:
    error = describe_error(recorded_error(exc))
    return error if recorded_error(exc) is exc else {**error, "traceback": describe_error(exc)["traceback"]}


def call_task(registry: Registry, item: RunItem, context: Context, *, max_result: int = DEFAULT_MAX_RESULT) -> bytes:
    """Run one item here and now, and return its packed result.

    Raises:
        CancelledTaskError: the job was cancelled before it began.
        BadPayloadError, ResultError, ResultTooLargeError: what goes in or comes out is not what the wire carries.
        BaseException: whatever the task raises.
    """
    if context.cancelled:
        raise CancelledTaskError("the job was cancelled before it began")
    payload: object = item.payload
    if item.encoding != "raw":
        try:
            payload = unpack_value(item.payload)
        except ValueError as exc:
            raise BadPayloadError(f"the payload can't be decoded: {exc}") from exc
    value = run_task(registry, item.task, payload, context)
    try:
        result = pack_value(value)
    except ValueError as exc:
        raise ResultError(f"the result of task {item.task} can't be sent: {exc}") from exc
    if len(result) > max_result:
        raise ResultTooLargeError(f"the result of task {item.task} has {len(result):,} bytes, more than the "
                                  f"{max_result:,} allowed")
    return result


def _outcome(item: RunItem, kind: str, *, result: bytes | None = None, error: dict | None = None,
             seconds: float = 0.0, wish: dict | None = None) -> Outcome:
    return Outcome(item.job_id, item.fence, kind, result, "msgpack", error, seconds, wish)


class Pool:
    """What thread and process pool share: the waiting line, the table of what is held, reports and stopping.

    `on_done(outcome)` is called once for each submitted item that stop() does not hand back, from a thread of the pool;
    what it raises is logged.

    Attributes:
        shares_process: True: a job that ends its process ends all that run beside it.
    """

    shares_process = True

    def __init__(self, size: int, on_done: Callable[[Outcome], None], *, name: str) -> None:
        if size < 1:
            raise ValueError("a pool needs at least one slot")
        self.size = size
        self.reports = ReportBox()  # what runs say of themselves; what a run said is in it before its outcome is reported
        self._on_done = on_done
        self._lock = threading.Lock()  # guards all below
        self._changed = threading.Condition(self._lock)  # told, while stopping, when an item was reported
        self._held: dict[tuple[int, int], Run] = {}  # submitted, neither reported nor handed back
        self._reporting = 0  # calls of on_done going on
        self._is_stopping = False
        self._line: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, name=f"greenroom-{name}-{slot + 1}", daemon=True)
                         for slot in range(size)]

    def start(self) -> None:
        """Start the slots. Returns at once."""
        for thread in self._threads:
            thread.start()

    def submit(self, item: RunItem, *, parked: bool = False) -> None:
        """Run the item as soon as a slot is free, first in first out; a parked one not before `release`.

        Raises:
            DrainingError: the pool is stopping.
            BusyError: 1,000 items wait already.
            ValueError: the pool holds this lease (job id and fence) already.
        """
        run = Run(item, self.reports)
        with self._lock:
            if self._is_stopping:
                raise DrainingError("the pool is stopping")
            if len(self._held) >= self.size + MAX_WAITING:
                raise BusyError(f"{MAX_WAITING:,} items wait in the pool already")
            if run.key in self._held:
                raise ValueError(f"the pool already holds job {item.job_id} with fence {item.fence}")
            self._held[run.key] = run
            if not parked:
                self._line.put(run)

    def release(self, job_id: int, fence: int) -> None:
        """Let a parked item begin, if it is still here."""
        with self._lock:
            run = self._held.get((job_id, fence))
            if run is not None and not self._is_stopping:
                self._line.put(run)

    def withdraw(self, job_id: int, fence: int) -> bool:
        """Take an item back that has not begun; False if it has, or is not here. Nothing is reported of what was taken back."""
        with self._lock:
            run = self._held.get((job_id, fence))
            if run is None or run.is_begun:
                return False
            run.is_withdrawn = True
            del self._held[run.key]
            return True

    def waiting_leases(self) -> set[tuple[int, int]]:
        """Return job id and fence of the items that wait for a free slot."""
        with self._lock:
            return {key for key, run in self._held.items() if not run.is_begun}

    def cancel(self, job_id: int, fence: int | None = None, *, is_forced: bool = True) -> bool:
        """Set Context.cancelled for a lease, or for all of a job; True if it was running or waiting. One that still waits will not begin: it
        fails with CancelledTaskError, as does one whose child process is killed because it did not end within CANCEL_GRACE_S
        (unless not `is_forced`: it may then take as long as it likes). Never blocks."""
        with self._lock:
            runs = [run for run in self._held.values() if run.item.job_id == job_id and fence in (None, run.item.fence)]
            for run in runs:
                if is_forced and run.stop_by is None:
                    run.stop_by = time.monotonic() + CANCEL_GRACE_S
                if not run.context.cancelled:
                    run.context.cancel()
                    self._tell_cancelled(run)
        return bool(runs)

    def running(self) -> int:
        """Return how many items are being run."""
        with self._lock:
            return sum(run.is_begun for run in self._held.values())

    def waiting(self) -> int:
        """Return how many items wait for a free slot."""
        with self._lock:
            return sum(not run.is_begun for run in self._held.values())

    def stop(self, grace_s: float) -> list[RunItem]:
        """Take nothing new, wait up to `grace_s` seconds for what runs, and return the rest.

        Returns:
            The items that never began or did not finish; nothing is reported of them any more, and their Context says
            cancelled. A second call returns an empty list.
        """
        with self._lock:
            if not self._is_stopping:
                self._is_stopping = True
                for _ in self._threads:
                    self._line.put(None)
            self._changed.wait_for(self._is_idle, timeout=grace_s)
            left = list(self._held.values())
            self._held.clear()
            for run in left:
                run.context.cancel()
        self._end(left)
        return [run.item for run in left]

    def _serve(self) -> None:
        """Serve one slot until the pool stops; the body of each thread."""
        raise NotImplementedError

    def _tell_cancelled(self, run: Run) -> None:
        """Pass a cancel on. Called with the lock held, so it must not block."""

    def _end(self, left: list[Run]) -> None:
        """End the slots at the end of stop(), also those that still run one of `left`."""
        raise NotImplementedError

    def _is_idle(self) -> bool:
        return self._reporting == 0 and not any(run.is_begun for run in self._held.values())

    def _next(self) -> Run | None:
        """Wait for an item; None when the pool stops."""
        while (run := self._line.get()) is not None:
            with self._lock:
                # Once stopping, what waits stays in the table, from which stop() hands it back.
                if not self._is_stopping and not run.is_withdrawn:
                    run.is_begun = True
                    return run
        return None

    def _report(self, run: Run, outcome: Outcome) -> None:
        with self._lock:
            if self._held.pop(run.key, None) is None:
                log.info("a result came after the pool had stopped; dropped job=%d", run.item.job_id)
                return
            self._reporting += 1
        try:
            self._on_done(outcome)
        except Exception:
            log.exception("the receiver of outcomes failed job=%d", run.item.job_id)
        finally:
            with self._lock:
                self._reporting -= 1
                if self._is_stopping:
                    self._changed.notify_all()

    def _join(self, threads: list[threading.Thread], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


class ThreadPool(Pool):
    """Runs tasks in daemon threads of this process.

    A thread can't be ended from outside: a task that outlives stop() runs on until it ends or the process does. Python code
    that holds the GIL for long (a bad regular expression) silences the whole process, heartbeats too; that is what
    ProcessPool is for.
    """

    def __init__(self, registry: Registry, size: int, on_done: Callable[[Outcome], None], *,
                 max_result: int = DEFAULT_MAX_RESULT) -> None:
        super().__init__(size, on_done, name="task")
        self._registry = registry
        self._max_result = max_result
        self._busy: set[threading.Thread] = set()

    def _serve(self) -> None:
        me = threading.current_thread()
        while (run := self._next()) is not None:
            self._busy.add(me)
            self._report(run, execute(self._registry, run.item, run.context, max_result=self._max_result))
            self._busy.discard(me)

    def _end(self, left: list[Run]) -> None:
        self._join([thread for thread in self._threads if thread not in self._busy], timeout_s=1.0)


class ProcessPool(Pool):
    """Runs tasks in child processes: fresh interpreters that import the same task modules and talk through pipes.

    A child that dies while it runs a job makes that job's outcome a "crash" and is replaced. The children see what their
    modules register when imported; what is registered or removed in this process while running is not mirrored.

    Args:
        task_specs: what load_tasks takes, one for each task module; the built-in tasks are always there.
        max_result: bytes that a packed result may have.
    """

    shares_process = False

    def __init__(self, task_specs: list[str], size: int, on_done: Callable[[Outcome], None], *,
                 max_result: int = DEFAULT_MAX_RESULT) -> None:
        super().__init__(size, on_done, name="child")
        self._options = {"specs": list(task_specs), "max_result": max_result}
        self._ending = threading.Event()
        self._children: set[Child] = set()

    def pids(self) -> list[int]:
        """Return the process ids of the children, those that are still starting included."""
        with self._lock:
            return sorted(child.pid for child in self._children)

    def stop(self, grace_s: float) -> list[RunItem]:
        """As Pool.stop; children that still run something after the grace get SIGTERM, two seconds later SIGKILL."""
        self._ending.set()  # no new child from here on
        return super().stop(grace_s)

    def _serve(self) -> None:
        child = None
        while True:
            # A child first, an item second: a slot that can't get a child must not sit on work.
            child = child or self._fresh_child()
            run = self._next() if child is not None else None
            if child is None or run is None:
                break
            child = self._run_in(child, run)
        if child is not None:
            with self._lock:
                child.hang_up()

    def _run_in(self, child: Child, run: Run) -> Child | None:
        """Run an item in a child and report it; return the child to use next, None for a fresh one.

        A child that had died before it began the item, while it was idle, is no crash of this job: a second child is tried.
        """
        for may_try_again in (True, False):
            started = time.monotonic()
            outcome = self._converse(child, run)
            if outcome is not None:
                self._report(run, outcome)
                return child
            has_begun = run.child is not None
            reason = self._bury(child, run)
            if has_begun or not may_try_again:
                break
            fresh = self._fresh_child()
            if fresh is None:
                self._give_back(run)
                return None
            child = fresh
        log.warning("%s task=%s job=%d attempt=%d", reason, run.item.task, run.item.job_id, run.item.attempt)
        if run.is_overdue:
            cancelled = CancelledTaskError(f"it was cancelled and did not end within {CANCEL_GRACE_S:g} s, so its process was killed")
            self._report(run, outcome_of(run.item, cancelled, time.monotonic() - started))
            return None
        error = {"name": "ChildCrashError", "message": f"{reason} while it ran task {run.item.task}", "traceback": ""}
        self._report(run, _outcome(run.item, "crash", error=error, seconds=time.monotonic() - started))
        return None

    def _give_back(self, run: Run) -> None:
        with self._lock:
            run.is_begun = False
            self._changed.notify_all()

    def _converse(self, child: Child, run: Run) -> Outcome | None:
        """Send an item and wait for its outcome; None if the child died."""
        if run.context.cancelled:
            error = describe_error(CancelledTaskError("the job was cancelled before it began"))
            return _outcome(run.item, "fail", error=error)
        try:
            child.send({"run": run.item._asdict()})
            for message in child.messages(is_over=lambda: run.is_overdue):
                if message.get("begun") == list(run.key):
                    self._mark_begun(child, run)
                elif "reports" in message:
                    self.reports.put(message["reports"])
                elif message.get("fence") == run.item.fence and message.get("job_id") == run.item.job_id:
                    with self._lock:
                        run.child = None
                    return Outcome(**message)
        except (OSError, ProtocolError) as exc:
            log.debug("talking to a child failed pid=%d: %s", child.pid, exc)
        except Exception:
            # A bug of ours costs a child and this run, never the slot: an item without an outcome would be held for ever.
            log.exception("talking to a child failed pid=%d job=%d", child.pid, run.item.job_id)
        return None

    def _mark_begun(self, child: Child, run: Run) -> None:
        with self._lock:
            run.child = child
            if run.context.cancelled:  # cancelled on the way
                child.send_cancel(run)

    def _tell_cancelled(self, run: Run) -> None:
        # Only a child that has read the whole item is told: the pipe is empty then, so a short write can't block.
        if run.child is not None:
            run.child.send_cancel(run)

    def _fresh_child(self) -> Child | None:
        """Start a child and wait until it is ready, however often that takes; None when the pool stops."""
        delay, longest = RESPAWN_DELAY_S
        while not self._ending.is_set():
            try:
                child = self._adopt(Child(self._options))
            except OSError as exc:
                reason = f"it could not be started: {exc}"
            else:
                # stop() ends the children that it sees; one that came too late for that is ended here.
                reason = None if self._ending.is_set() else child.wait_ready()
                if child.is_ready:
                    return child
                self._bury(child)
            if not self._ending.is_set():
                log.warning("a child process did not get ready, next try in %.1f s: %s", delay, reason)
            self._ending.wait(delay)
            delay = min(delay * 2, longest)
        return None

    def _adopt(self, child: Child) -> Child:
        with self._lock:
            self._children.add(child)
        return child

    def _bury(self, child: Child, run: Run | None = None) -> str:
        """End a child, forget it and return how it ended, as the start of a sentence."""
        with self._lock:
            if run is not None:
                run.child = None
            child.hang_up()
        reason = child.end()
        with self._lock:
            self._children.discard(child)
        return reason

    def _end(self, left: list[Run]) -> None:
        # Idle children leave because their slot closed their stdin; the others, and those still starting, are told to.
        busy = {run.child for run in left}
        with self._lock:
            children = list(self._children)
        for child in children:
            if child in busy or not child.is_ready:
                child.terminate()
        deadline = time.monotonic() + TERMINATE_S
        for child in children:
            child.end(deadline)
        self._join(self._threads, timeout_s=TERMINATE_S)
        with self._lock:
            self._children.clear()


# The child gets this process's module path: it must find the same modules, and -P keeps the current folder, where a user
# may have a queue.py, from coming first.
_BOOT = ("import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options['path']; "
         "from greenroom.pool_child import main; main(options)")


class Child:
    """A child process and our ends of its pipes. One thread sends items and reads; cancels may come from others."""

    def __init__(self, options: dict[str, object]) -> None:
        arguments = json.dumps({**options, "path": sys.path})
        self._process = subprocess.Popen([sys.executable, "-P", "-c", _BOOT, arguments], bufsize=0,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._reader = FrameReader(PIPE_FRAME_LIMIT)
        self.pid = self._process.pid
        self.is_ready = False

    def wait_ready(self) -> str | None:
        """Wait for the child's first message; return None if it is ready, else the reason why not."""
        try:
            for message in self.messages(READY_TIMEOUT_S):
                self.is_ready = "ready" in message
                return None if self.is_ready else str(message.get("failed"))
        except (OSError, ProtocolError) as exc:
            return f"its pipe failed: {exc}"
        return "it ended, or said nothing, before it was ready"

    def send(self, message: dict[str, object]) -> None:
        """Write one frame; blocks while the child does not read. Raises OSError if the child is gone."""
        view = memoryview(encode_frame(message))
        while view:
            view = view[os.write(self._stdin.fileno(), view):]

    def send_cancel(self, run: Run) -> None:
        """Tell the child that the job it runs was cancelled. A child that is gone needs no telling."""
        try:
            self.send({"cancel": list(run.key)})
        except (OSError, ValueError) as exc:
            log.debug("a cancel did not reach its child pid=%d: %s", self.pid, exc)

    def messages(self, timeout_s: float | None = None, *, is_over: Callable[[], bool] = lambda: False) -> Iterator[dict]:
        """Yield what the child says until it is gone, or silent for `timeout_s` (None: however long a job runs), or `is_over`.

        Raises OSError or ProtocolError if something else than our frames comes out of the pipe.
        """
        poller = select.poll()
        poller.register(self._stdout.fileno(), select.POLLIN)
        silent_until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if not poller.poll(DEATH_CHECK_S * 1000):
                if self._process.poll() is not None or (silent_until and time.monotonic() > silent_until) or is_over():
                    return
                continue
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                return
            yield from self._reader.feed(data)
            if self._reader.failed is not None:
                raise self._reader.failed

    def hang_up(self) -> None:
        """Close the pipes, which ends the child once it is idle. Only its own slot may do that: the slot reads them."""
        self._stdin.close()
        self._stdout.close()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def end(self, deadline: float | None = None) -> str:
        """See to it that the child is gone: SIGTERM at once unless a deadline (monotonic) says that it was told to go
        already, SIGKILL at the deadline. Returns how it ended, as the start of a sentence."""
        if deadline is None:
            self._wait(0.1)  # its pipe is closed, so it is most likely ending: let it keep its own exit code
            self._process.terminate()
            deadline = time.monotonic() + TERMINATE_S
        if not self._wait(deadline - time.monotonic()):
            self._process.kill()
            self._wait(TERMINATE_S)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"the child process {self.pid} was killed by {_signal_name(-code)}"
        return f"the child process {self.pid} ended with exit code {code}"

    def _wait(self, seconds: float) -> bool:
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
