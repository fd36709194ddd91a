"""The client: submit jobs, wait for their results, look at the broker; for threads and greenlets alike. And its command line.

Must not know how jobs are checked (greenroom/client_jobs.py) and cut into frames (greenroom/client_submits.py), how waits are shared
(greenroom/client_waits.py) or how things are printed (greenroom/client_cli.py). It imports no gevent and patches nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Generic, NoReturn, TypeVar, cast

if __name__ == "__main__":
    from greenroom.needs import require
    require("msgpack")

from greenroom import __version__
from greenroom.client_backup import Backup, Progress, fetch_backup
from greenroom.client_controls import Controls
from greenroom.client_events import EventStream, wanted_fields
from greenroom.client_failures import FailureCalls
from greenroom.client_jobs import pack_payload, wire_change, wire_copy, wire_job
from greenroom.client_filters import bulk, wire_filter
from greenroom.client_logs import MOST_WAIT_S, read_lines
from greenroom.client_schedules import ScheduleCalls
from greenroom.client_submits import RESEND_S, Submits
from greenroom.client_waits import SharedWaits
from greenroom.default_client import set_default_client as set_default_client
from greenroom.endpoint import find_endpoint
from greenroom.errors import (BusyError, ConfigError, ConnectError, DrainingError, GreenroomError, JobFailedError,
                              TlsError, UnknownOutcomeError, from_wire)
from greenroom.link import CONNECT_TIMEOUT_S, Backoff, Link
from greenroom.protocol import VERSION, unpack_value
from greenroom.submit_options import check_names, wire_options
from greenroom.unique import Duplicate
from greenroom.when_full import FULL_ERRORS, WhenFull, when_full

#: What a job's task returns.
Result = TypeVar("Result", covariant=True)


class SubmitError(GreenroomError):
    """Raised by `submit_many` when not every job was accepted; its code is that of the first refusal.

    Attributes:
        outcomes: for each job, in order, its Handle or the error that refused it; shorter than what was given if the end
            was not reached.
        handles: the Handles of the accepted jobs.
    """

    def __init__(self, message: str, outcomes: list[Handle | GreenroomError]) -> None:
        super().__init__(message)
        self.outcomes = outcomes
        self.handles = [outcome for outcome in outcomes if isinstance(outcome, Handle)]


class Handle(Generic[Result]):
    """A job that the broker has accepted.

    Attributes:
        id: the job's number.
        is_duplicate: the submit made no new job: this one has its unique key.
        is_replaced: … and has the payload of this submit now.
        is_dropped: there is no job, see DroppedHandle.
    """

    is_dropped = False

    __slots__ = ("id", "is_duplicate", "is_replaced", "_client")

    def __init__(self, client: Client, job_id: int, *, is_duplicate: bool = False, is_replaced: bool = False) -> None:
        self.id = job_id
        self.is_duplicate = is_duplicate
        self.is_replaced = is_replaced
        self._client = client

    def __repr__(self) -> str:
        return f"<Handle of job {self.id}>"

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the job and return what its task returned; bytes if the result is raw.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            JobFailedError: the job failed or was cancelled; `job` is its view, with `job["error"]`.
            WaitTimeoutError: it is not finished yet. Asking again is fine.
            NotFoundError, GoneError: the broker does not have the job, or not any more.
            ConnectError: the broker was away for longer than the client's timeout.
        """
        view = next(self._client.wait([self.id], timeout))
        if "error" in view and "state" not in view:
            raise from_wire(view["error"])
        return cast(Result, decode_result(view))

    def status(self) -> dict:
        """Return the job's view as it is now (docs/protocol_v1.md, `get`). Raises NotFoundError or GoneError."""
        view = self._client.get([self.id])[0]
        if "state" not in view:
            raise from_wire(view["error"])
        return view

    def cancel(self) -> str:
        """Cancel the job: "cancelled", or "requested" if it is running. Raises FinishedError, NotFoundError or GoneError."""
        outcome = self._client.cancel([self.id])[0]
        if isinstance(outcome, GreenroomError):
            raise outcome
        return outcome

    def change(self, **changes: object) -> None:
        """Change the job while it waits, see `Client.change`. Raises ConflictError, FinishedError, NotFoundError or GoneError."""
        outcome = self._client.change([self.id], **changes)[0]
        if isinstance(outcome, GreenroomError):
            raise outcome

    def explain(self) -> dict:
        """Return why the job does not run, see `Client.explain`."""
        return self._client.explain(self.id)


class DroppedHandle(Handle[Result]):
    """Stands for a job that was not submitted, as the broker had no room for it and that was to be dropped (`on_full="drop"`).

    Attributes:
        id: 0, which no job has. why: the refusal; whatever is asked of this handle raises it.
    """

    is_dropped = True

    __slots__ = ("why",)

    def __init__(self, client: Client, why: GreenroomError) -> None:
        super().__init__(client, 0)
        self.why = why

    def __repr__(self) -> str:
        return f"<DroppedHandle: {self.why.message}>"

    def _refuse(self, *args: object, **named: object) -> NoReturn:
        raise self.why

    result = status = cancel = change = explain = _refuse


def _handle(client: Client, outcome: int | Duplicate) -> Handle:
    if isinstance(outcome, int):
        return Handle(client, outcome)
    return Handle(client, outcome.job, is_duplicate=True, is_replaced=outcome.replaced)


class Client(Controls, ScheduleCalls, FailureCalls):
    """A connection to a broker, made at the first use and made again when it is lost. Share one among threads or greenlets.

    The first connection must succeed at once, so that a wrong address is told and not waited for. Later a broker that
    is away is tried again, at once and then after random pauses of up to 5 s, for as long as the call's timeout allows.

    In a forked child the client makes a connection of its own at the next use; don't fork while another thread is inside
    one of its methods. Under gevent, patch before this module is imported.

    Args:
        url: `greenroom://host[:port]`; None: GREENROOM_URL, else greenroom://localhost:65432.
        ca, cert, key: PEM files, see greenroom.endpoint.find_endpoint for the defaults.
        name: shown on the broker's pages; letters, digits and . _ : -
        timeout: seconds for an answer of the broker, reconnecting included. Waiting for jobs has its own.
        on_full, full_timeout: what submits do that do not say it themselves, see `submit`.

    Attributes:
        dropped: jobs that were dropped so far, because the broker had no room for them.

    Raises:
        ConfigError: a bad URL, or certificate files that are missing or unusable. ValueError: there is no such `on_full`.
    """

    def __init__(self, url: str | None = None, *, ca: str | None = None, cert: str | None = None, key: str | None = None,
                 name: str | None = None, timeout: float = 30.0, on_full: str = "raise", full_timeout: float | None = None) -> None:
        if not timeout > 0:
            raise ConfigError("timeout must be more than 0 seconds")
        self.timeout = timeout
        self.dropped = 0
        self._full = when_full(on_full, full_timeout)
        self.endpoint = find_endpoint(url, ca=ca, cert=cert, key=key)
        self._hello: dict = {"version": VERSION, "role": "client", "software": f"greenroom-python/{__version__}"}
        if name is not None:
            self._hello["name"] = name
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held by the one thread that connects
        self._count_lock = threading.Lock()  # guards `dropped`
        self._link: Link | None = None
        self._was_connected = False
        self._waits = SharedWaits(self._connected, self.timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def submit(self, task: str, payload: object = None, *, raw: bool = False, answer_timeout: float | None = None,
               on_full: str | None = None, full_timeout: float | None = None, **options: object) -> Handle:
        """Hand in one job and return its handle once the broker has it on disk.

        It is sent again, safely, when the answer is lost or the broker is busy.

        Args:
            task: the function that a worker runs.
            payload: a map of arguments (anything msgpack can carry; integers outside 64 bits become decimal strings); None:
                an empty map. With `raw`: bytes.
            answer_timeout: seconds until giving up; None: 300, and no more than that.
            on_full: what to do if the broker has no room (its queue is at its limit, a cap is reached, the disk is full): "raise"
                FullError; "wait" for room, for `full_timeout` seconds (None: 300), and raise it then; "drop" the job: a DroppedHandle is
                returned and counted in `dropped`. None: what the client was made with, by default "raise".
            options: those of the table in greenroom/job.py (docs/tasks.md has them all), such as queue, priority (1 runs
                first, 10 last), delay in seconds or run_at, Unix seconds or a datetime, before which the job does not run.

        Raises:
            TypeError: there is no such option. ValueError: there is no such `on_full`.
            InvalidError, TooLargeError: the job is refused.
            FullError, StoreFullError, BusyError: the broker takes nothing (more); nothing was stored.
            ConnectError: no broker; nothing was stored.
            UnknownOutcomeError: it was sent and no answer came: it may or may not be stored.
        """
        check_names(options, "submit")
        full = when_full(on_full, full_timeout, self._full)
        return self._submit_one(wire_job({**options, "task": task, "payload": payload, "raw": raw}), answer_timeout, full)

    def _submit_one(self, job: dict | GreenroomError, answer_timeout: float | None, full: WhenFull) -> Handle:
        submits = Submits(self._connected, [job], RESEND_S if answer_timeout is None else answer_timeout, full)
        submits.run()
        return handle_of(self, submits.outcomes[0] if submits.outcomes else submits.failure, full)

    def resubmit(self, job_id: int, payload: object = None, *, raw: bool = False, answer_timeout: float | None = None,
                 on_full: str | None = None, full_timeout: float | None = None, **options: object) -> Handle:
        """Hand in a copy of a job, of any state, and return the copy's handle; the job itself stays as it is.

        Args:
            payload: None: the same. options: what is to be different; None takes an option away. Its time to run is not copied.
            raw, answer_timeout, on_full, full_timeout: as in `submit`.

        Raises:
            NotFoundError, GoneError: there is no such job (any more). ConflictError: its payload is lost.
            TypeError, GreenroomError: as `submit`.
        """
        check_names(options, "resubmit")
        full = when_full(on_full, full_timeout, self._full)
        (view,) = self.get([job_id], payload=True)
        if "error" in view and "state" not in view:
            raise from_wire(view["error"])
        return self._submit_one(wire_copy(view, payload, raw, options), answer_timeout, full)

    def submit_many(self, jobs: Iterable[dict | tuple], *, answer_timeout: float | None = None, on_full: str | None = None,
                    full_timeout: float | None = None, **options: object) -> list[Handle]:
        """Hand in many jobs, up to 1,000 a frame and a few frames at a time; the iterable is read as they are sent.

        Args:
            jobs: `(task, payload)` tuples, or dicts with `task` and any of `payload`, `raw` and the options of `submit`.
            answer_timeout: seconds for each frame, as in `submit`.
            on_full, full_timeout: as in `submit`. While it waits for room nothing more is read; it gives up once no job got in for that long.
            options: for jobs that do not say themselves.

        Returns:
            One handle for each job, in order.

        Raises:
            TypeError: there is no such option.
            SubmitError: some were refused; it holds the outcome of each, and the handles of the accepted ones.
            GreenroomError: as `submit`, if one error refused them all.
        """
        check_names(options, "submit_many")
        full = when_full(on_full, full_timeout, self._full)
        defaults = wire_options(options)
        submits = Submits(self._connected, (wire_job(job, defaults) for job in jobs),
                          RESEND_S if answer_timeout is None else answer_timeout, full)
        submits.run()
        return handles_of(self, submits.outcomes, submits.failure, full)

    def handle(self, job_id: int) -> Handle:
        """Return a handle for a job that was submitted elsewhere. Does not ask the broker."""
        return Handle(self, job_id)

    def get(self, ids: Iterable[int], *, payload: bool = False) -> list[dict]:
        """Return the jobs' views, in order (docs/protocol_v1.md, `get`); `{"id", "error"}` for those that are not there."""
        wanted = list(ids)
        views: list[dict] = []
        while len(views) < len(wanted):
            part = wanted[len(views):len(views) + self._list_limit()]
            answer = self._call({"verb": "get", "jobs": part, "payload": payload})["jobs"]
            # What did not fit into the answer is asked for again; a job that does not even fit alone keeps its error.
            fitting = next((place for place, view in enumerate(answer) if place and _is_too_large(view)), len(answer))
            views += answer[:fitting]
        return views

    def wait(self, ids: Iterable[int], timeout: float | None = None) -> Iterator[dict]:
        """Yield each job's view as soon as it is finished, in the order of finishing; `{"id", "error"}` if it is not there.

        Any number of threads may wait for any number of jobs: together they keep few requests open.

        Raises:
            WaitTimeoutError: some were not finished within `timeout` seconds (None: however long it takes).
            ConnectError: the broker was away for longer than the client's timeout.
        """
        self._check_process()
        return self._waits.wait(ids, timeout)

    def cancel(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Cancel jobs; for each, in order, "cancelled", "requested" (it is running) or the error (not raised)."""
        return self._on_each({"verb": "cancel"}, ids)

    def retry(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Let jobs that failed, were cancelled or expired run again; for each, in order, "queued" or the error (not raised)."""
        return self._on_each({"verb": "retry"}, ids)

    def delete(self, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Delete finished jobs with all that is kept of them; for each, in order, "deleted" or the error (not raised): ConflictError for one
        that is not finished. A deletion that is asked for again, after a lost connection, is answered GoneError."""
        return self._on_each({"verb": "delete"}, ids)

    def bulk(self, action: str, filter: str | dict, *, dry_run: bool = False, on_progress: Callable[[dict], None] | None = None,
             priority: int | None = None, queue: str | None = None, delay: float | None = None, run_at: float | datetime | None = None) -> dict:
        """Retry, cancel, delete or change all jobs that fit a filter, slice by slice at the broker; or only count them.

        What was done is done, also if this call ends with an error. Jobs that are submitted meanwhile stay as they are.

        Args:
            action: "retry", "cancel", "delete" or "change". filter: as in `jobs`; jobs in a state that the action is not for do not fit.
            dry_run: only count.
            on_progress: called after each slice with what there is so far.
            priority, queue, delay, run_at: for "change", at least one of them, as in `change`.

        Returns:
            `matched`, `done`, `refused` (int), `why` (why the first was refused, or None), `exact` (False: queued and running ones were
            counted together), `scanned_to` (all jobs from this id up were looked at).

        Raises InvalidError; FullError, StoreFullError or BusyError if the broker takes no more.
        """
        return bulk(self._call, action, filter, dry_run=dry_run, on_progress=on_progress, changes=wire_change(priority, queue, delay, run_at))

    def change(self, ids: Iterable[int], *, priority: int | None = None, queue: str | None = None, delay: float | None = None,
               run_at: float | datetime | None = None, payload: object = None, raw: bool = False) -> list[str | GreenroomError]:
        """Change jobs that wait; for each, in order, "changed" or the error (not raised): ConflictError, FinishedError …

        Args:
            priority: each keeps its place among those of its new priority. queue: it goes to the end of that one.
            delay, run_at: when it may run; `delay=0` is now.
            payload: as in `submit`; one change writes at most 4 MiB of them. The rest stays as it is.

        Raises InvalidError or TooLargeError.
        """
        changes = wire_change(priority, queue, delay, run_at)
        if payload is not None:
            changes["payload"] = payload if raw else pack_payload(payload)
            changes["encoding"] = "raw" if raw else "msgpack"
        return self._on_each({"verb": "change", **changes}, ids)

    def _on_each(self, message: dict, ids: Iterable[int]) -> list[str | GreenroomError]:
        """Send a verb with `jobs` for as many at once as the broker takes; return all outcomes."""
        wanted = list(ids)
        outcomes: list[str | GreenroomError] = []
        while len(outcomes) < len(wanted):
            part = wanted[len(outcomes):len(outcomes) + self._list_limit()]
            answer = self._call({**message, "jobs": part})["outcomes"]
            outcomes += [outcome if isinstance(outcome, str) else from_wire(outcome) for outcome in answer]
        return outcomes

    def runs(self, job_id: int) -> list[dict]:
        """Return the runs of a job that ended without completing it, oldest first (docs/protocol_v1.md, `runs`)."""
        return self._call({"verb": "runs", "job": job_id})["runs"]

    def logs(self, job_id: int, *, after: int = 0, follow: bool = False) -> Iterator[dict]:
        """Yield the lines of a job's log: maps `seq`, `at` (seconds since 1970), `attempt`, `text` (docs/protocol_v1.md, `logs`).

        Args:
            after: only lines with a higher `seq`.
            follow: wait for more, at the broker, until the job is finished.

        Raises:
            NotFoundError, GoneError: the broker does not have the job, or not any more.
            ConnectError: the broker was away for longer than the client's timeout.
        """
        return read_lines(self._call, job_id, after, wait_s=min(MOST_WAIT_S, self.timeout / 2) if follow else 0.0)

    def events(self, *, queue: str | None = None, task: str | None = None, kinds: Iterable[str] | None = None, after: str | None = None,
               timeout: float | None = None) -> EventStream:
        """Return an iterator over what happens from now on (docs/protocol_v1.md, `subscribe`): a map each, with `kind`, `seq`, `at` and so on.

        It has a connection of its own, which is made again when it is lost and goes on where it was. Where events were lost it yields
        `{"kind": "gap", "position": …}`. It can be closed, also by `with`; `close` of the client ends it too.

        Args:
            queue, task: only events of these. kinds: only those; None: all but "progress".
            after: only what came after the event that had this `position`; None: what comes from now on.
            timeout: the iteration ends when so many seconds bring no event; None: never.

        Raises:
            InvalidError: there is no such kind, or no such position.
            FullError: the broker has as many subscribers as it takes.
            ConnectError: the broker was away for longer than the client's timeout.
        """
        self._check_process()
        return EventStream(self._connect, wanted_fields(queue, task, kinds), after, timeout, self.timeout, lambda: self._is_closed)

    def jobs(self, filter: str | dict | None = None, *, state: str | None = None, queue: str | None = None, task: str | None = None,
             worker: str | None = None, limit: int | None = None, payload: bool = False) -> Iterator[dict]:
        """Yield views of jobs that meet all conditions, newest first, page by page; `limit` ends it after so many.

        Args:
            filter: as people write it (docs/clients.md, section 2), `'state:failed finished>-2h "no answer"'`, or a map as on the wire.

        Raises InvalidError for a filter that cannot be meant; `field` names the condition.
        """
        filters = {"filter": wire_filter(filter), "state": state, "queue": queue, "task": task, "worker": worker}
        message = {"verb": "jobs", "payload": payload, **{key: value for key, value in filters.items() if value is not None}}
        before: int | None = None
        left = limit if limit is not None else float("inf")
        while left > 0:
            page = self._call({**message, "limit": int(min(left, 200)), **({"before": before} if before else {})})
            yield from page["jobs"]
            left -= len(page["jobs"])
            before = page.get("next")
            if before is None:
                return

    def queues(self) -> list[dict]:
        """Return the queues with their counts (docs/protocol_v1.md, section 9)."""
        return self._call({"verb": "queues"})["queues"]

    def workers(self) -> list[dict]:
        """Return the connected workers and what they run (docs/protocol_v1.md, section 9)."""
        return self._call({"verb": "workers"})["workers"]

    def schedule(self, name: str, task: str, payload: object = None, *, cron: str | None = None, every: str | None = None,
                 timezone: str | None = None, overlap: str | None = None, missed: str | None = None, missed_max: int | None = None,
                 **options: object) -> dict:
        """Make a schedule, or replace the one of this name, and return it (docs/protocol_v1.md, `schedules`).

        Putting the same again changes nothing, so a program may do it at each start.

        Args:
            task, payload, options: the job to submit, as in `submit`; without `delay` and `run_at`.
            cron: "minute hour day month weekday", in the time zone (an IANA name; None: UTC), or every: "10s", "5m", "2h", "1d".
            overlap: while the previous job is unfinished: "skip" the run (the default), "queue" the job all the same, or "replace"
                (cancel the previous one).
            missed: of runs that fell into a time when the broker was down: "skip" all, run "once" (the default), or "all", that is
                the last `missed_max` (10).

        Raises InvalidError, TooLargeError, FullError.
        """
        job = wire_job({"task": task, "payload": payload, **options})
        if isinstance(job, GreenroomError):
            raise job
        fields = {"cron": cron, "every": every, "timezone": timezone, "overlap": overlap, "missed": missed, "missed_max": missed_max}
        given = {key: value for key, value in fields.items() if value is not None}
        return self._call({"verb": "schedule_put", "name": name, "job": job, **given})["schedule"]

    def run_schedule(self, name: str) -> Handle:
        """Submit a schedule's job once, now, whatever its plan says and whether it is paused.

        Raises:
            NotFoundError: no such schedule.
            UnknownOutcomeError: it was sent and no answer came: the job may or may not be stored.
        """
        return Handle(self, self._run_schedule(name))

    def stats(self) -> dict:
        """Return the broker's counts (docs/protocol_v1.md, section 9)."""
        stats = self._call({"verb": "stats"})
        stats.pop("id", None)
        return stats

    def ping(self) -> float:
        """Ask the broker for a sign of life and return the seconds that it took."""
        started = time.monotonic()
        self._call({"verb": "ping"})
        return time.monotonic() - started

    def backup(self, path: str | os.PathLike[str], *, force: bool = False, on_progress: Progress | None = None) -> Backup:
        """Let the broker copy its store while it runs, and receive the copy into a file (mode 0600, whole or not at all).

        A connection that is lost on the way is made again. The file is received as `path`.part beside it.

        Args:
            force: replace a file that is there.
            on_progress: called with "making" or "receiving", bytes done, bytes in all.

        Raises:
            ConfigError: the file is there already, or its folder is not.
            BackupError (greenroom.client_backup): the file cannot be written, or is not what the broker sent.
            BusyError, StoreFullError: the broker makes another backup, or has no room for it.
            InvalidError: the broker keeps its jobs in memory only.
            ConnectError: the broker was away for longer than the client's timeout.
        """
        return fetch_backup(self._call, path, force=force, on_progress=on_progress)

    def close(self) -> None:
        """End the connection; calls that wait for an answer get ConnectError. The client can't be used any more."""
        self._check_process()
        self._is_closed = True
        link = self._link
        if link is None or not link.is_open:
            return
        try:
            link.request({"verb": "bye"}, lambda answer: None)
        except GreenroomError:
            pass  # it ends either way
        link.close()

    def _list_limit(self) -> int:
        return self._connected(time.monotonic() + self.timeout).limits.list

    def _call(self, message: dict) -> dict:
        """Ask something that may be asked twice, again after a lost connection, until the timeout is over."""
        deadline = time.monotonic() + self.timeout
        backoff = Backoff()
        while True:
            link = self._connected(deadline)
            try:
                return link.call(message, max(0.001, deadline - time.monotonic()))
            except (ConnectError, BusyError, DrainingError) as exc:
                pause_s = exc.retry_after_s if exc.retry_after_s is not None else backoff.next()
                if isinstance(exc, TlsError) or time.monotonic() + pause_s >= deadline:
                    raise
                time.sleep(pause_s)

    def _call_once(self, message: dict) -> dict:
        """Ask something that must not be asked twice."""
        deadline = time.monotonic() + self.timeout
        link = self._connected(deadline)
        try:
            return link.call(message, max(0.001, deadline - time.monotonic()))
        except ConnectError as exc:
            raise UnknownOutcomeError(f"{message['verb']} was sent and no answer came: {exc.message}") from exc

    def _connected(self, deadline: float) -> Link:
        """Return the open link, connecting first if there is none. Raises ConnectError, at the latest at `deadline`."""
        link = self._link
        if link is not None and link.is_open and self._pid == os.getpid() and not self._is_closed:
            return link
        self._check_process()
        if not self._lock.acquire(timeout=max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))):
            raise ConnectError(f"no connection to the broker at {self.endpoint.address} in time")
        try:
            if self._link is None or not self._link.is_open:
                self._link = self._connect(deadline)
            return self._link
        finally:
            self._lock.release()

    def _connect(self, deadline: float, on_notice: Callable[[dict], None] | None = None,
                 on_close: Callable[[GreenroomError], None] | None = None) -> Link:
        backoff = Backoff()
        pause_s = backoff.next()
        while True:
            if self._is_closed:
                raise ConnectError("this client was closed")
            link = Link(self.endpoint, on_notice=on_notice, on_close=on_close)
            try:
                link.connect(self._hello, max(0.001, min(CONNECT_TIMEOUT_S, deadline - time.monotonic())))
            except (ConnectError, BusyError, DrainingError) as exc:
                pause_s = backoff.next()
                if isinstance(exc, TlsError) or not self._was_connected or time.monotonic() + pause_s >= deadline:
                    raise
                time.sleep(pause_s)
                continue
            link.start()
            self._was_connected = True
            return link

    def _dropped(self, why: GreenroomError) -> DroppedHandle:
        with self._count_lock:
            self.dropped += 1
        return DroppedHandle(self, why)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            if self._link is not None:
                self._link.abandon()
            self._begin()


def handle_of(client: Client, outcome: int | Duplicate | GreenroomError, full: WhenFull) -> Handle:
    """Return the handle of a submit, or raise its error."""
    made = _made_of(client, outcome, full)
    if isinstance(made, GreenroomError):
        raise made
    return made


def _made_of(client: Client, outcome: int | Duplicate | GreenroomError, full: WhenFull) -> Handle | GreenroomError:
    if not isinstance(outcome, GreenroomError):
        return _handle(client, outcome)
    return client._dropped(outcome) if full.way == "drop" and isinstance(outcome, FULL_ERRORS) else outcome


def handles_of(client: Client, outcomes: list[int | Duplicate | GreenroomError], failure: GreenroomError | None, full: WhenFull) -> list[Handle]:
    """Return the handles of a submit_many (greenroom/client_submits.py has its outcomes and failure), or raise what it raises."""
    made = [_made_of(client, outcome, full) for outcome in outcomes]
    errors = [outcome for outcome in made if isinstance(outcome, GreenroomError)]
    first = failure or (errors[0] if errors else None)
    if first is None:
        return made
    if failure is not None and all(outcome is first for outcome in made):
        raise first
    error = SubmitError(f"{len(errors)} of {len(made)} jobs were not accepted; the first: {first.message}", made)
    error.code = first.code
    raise error from first


def decode_result(view: dict) -> object:
    """Return the result of a finished job's view. Raises JobFailedError unless it is completed, ValueError if a result that
    should be one msgpack value is not."""
    if view["state"] != "completed":
        error = view.get("error") or {}
        why = f": {error.get('name')}: {error.get('message')}" if error else ""
        raise JobFailedError(f"job {view['id']} ended {view['state']}{why}", job=view)
    result = view.get("result")
    if result is None or view.get("result_encoding") == "raw":
        return result
    return unpack_value(result)


def _is_too_large(view: dict) -> bool:
    return "state" not in view and view["error"].get("code") == "TOO_LARGE"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (`python client.py`, `greenroom`) and return its exit code."""
    # Not above: the command line stands on this module.
    from greenroom.client_cli import run
    return run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
