"""The worker: reserves jobs for its free slots, runs them in a pool, keeps their leases alive, settles, reconnects, drains.

One thread, the one that calls `Worker.run`, keeps the connection and all of the state here; the pool's threads only hand over
outcomes. Must not know how a task is run (greenroom/pools.py) or a frame sent (greenroom/link.py). Nothing is patched.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

if __name__ == "__main__":
    from greenroom.needs import require
    require("msgpack")

from greenroom import __version__, logs
from greenroom.endpoint import Endpoint, find_endpoint
from greenroom.errors import ConfigError, ConnectError, GreenroomError, TlsError, TooLargeError, VersionError, from_wire
from greenroom.job import NAME_PATTERN
from greenroom.lease_watch import LeaseWatch
from greenroom.link import Answer, Backoff, Link, Waker
from greenroom.look_ahead import LookAhead
from greenroom.pools import Outcome, Pool, ProcessPool, RunItem, ThreadPool
from greenroom.protocol import HELLO_FRAME_BYTES, VERSION, encode_frame
from greenroom.report_sender import ReportSender
from greenroom.suspects import Step, Suspects
from greenroom.tables import escape
from greenroom.tasks import BUILTINS, Registry, default_registry, load_tasks
from greenroom.worker_options import build_parser, default_name

log = logging.getLogger("greenroom.worker")

#: Total seconds for connecting and greeting. Signals wait so long at most.
CONNECT_TIMEOUT_S = 5.0

#: What was reserved ahead and has not begun by then goes back: somebody else may have a free slot.
AHEAD_S = 0.05

#: A reserve younger than this isn't replaced by a larger one: its answer may be on the way.
REPLACE_AFTER_S = 0.02

#: A reserve that came back empty at once is not repeated sooner.
EMPTY_PAUSE_S = 0.2

#: A settle that was refused as a whole so often is given up.
MOST_REFUSALS = 5

#: Seconds for the last settles and the good-bye after the drain's grace.
FAREWELL_S = 5.0

Lease = tuple[int, int]  # job id and fence


class Held:
    """A lease that this worker holds, and how far its job is."""

    __slots__ = ("item", "stage", "settle", "begin_by", "refusals", "is_told_to_stop")

    def __init__(self, item: RunItem, begin_by: float) -> None:
        self.item = item
        self.stage = "in pool"  # in pool → finished → settling; only the pool knows whether it has begun
        self.settle: list | None = None  # what the broker is to be told, from `finished` on
        self.begin_by = begin_by  # monotonic; see AHEAD_S
        self.refusals = 0  # settles refused as a whole
        self.is_told_to_stop = False  # by us, because its lease runs out; nobody wants the job itself cancelled

    @property
    def lease(self) -> Lease:
        """Job id and fence."""
        return self.item.job_id, self.item.fence


class Reserve(NamedTuple):
    """The open reserve."""

    serial: int
    n: int
    tasks: tuple[str, ...]
    sent_at: float


class Worker:
    """One worker process's side of the protocol (docs/protocol_v1.md, section 8).

    Args:
        make_pool: gets the function that takes outcomes, returns a pool that is not started.
        queues: names to take jobs from; None: any.
        grace_s: how long a drain waits for running jobs.
        connect_timeout_s: give up if the first connection takes longer; None: never.
        isolates: run a job that crashed before alone, if the pool's jobs share a process (greenroom/suspects.py).
    """

    def __init__(self, endpoint: Endpoint, registry: Registry, make_pool: Callable[[Callable[[Outcome], None]], Pool], *,
                 concurrency: int, name: str, queues: list[str] | None = None, grace_s: float = 30.0,
                 connect_timeout_s: float | None = None, isolates: bool = True) -> None:
        self.endpoint = endpoint
        self.registry = registry
        self.name = name
        self.queues = queues
        self.grace_s = grace_s
        self._concurrency = concurrency
        self._connect_timeout_s = connect_timeout_s
        self._pool = make_pool(self._on_outcome)
        self._waker = Waker()
        self._pool.reports.on_news = self._waker.wake
        self._reports = ReportSender(self._pool.reports, is_held=lambda lease: lease in self._held)
        self._instance = os.urandom(16)
        self._drains_asked = 0  # by signals; written by their handlers, read by run
        self._have_tasks_changed = False
        self._outcomes: deque[Outcome] = deque()  # from the pool's threads; at most one for each lease held
        self._held: dict[Lease, Held] = {}
        self._late: deque[Held] = deque()  # what may have to go back by its `begin_by`, soonest first
        self._in_pool: set[Lease] = set()  # what runs or waits for a slot, also when its lease was lost
        self._unsettled: deque[Held] = deque()  # of stage `finished`
        self._is_settling = False
        self._settle_after = 0.0
        self._look_ahead = LookAhead(concurrency)
        self._suspects = Suspects(are_kept_apart=isolates and self._pool.shares_process)
        self._link: Link | None = None
        self._has_connected = False
        self._outage_since: float | None = None
        self._told_outage_at = 0.0
        self._reserve: Reserve | None = None
        self._reserves = 0
        self._reserve_after = 0.0
        self._told_tasks: tuple[str, ...] | None = None  # by the latest reserve of this connection
        self._beat_s = 5.0
        self._beat_at = 0.0
        self._watch = LeaseWatch()
        self._is_broker_draining = False
        self._drain_until: float | None = None  # None: not draining
        self._is_given_up = False  # the grace is over, what ran was given back
        self._is_done = False

    def drain(self) -> None:
        """Take nothing new, finish what runs within the grace, then let `run` return. A second call ends the grace now.

        Safe in any thread and in signal handlers.
        """
        self._drains_asked += 1
        self._waker.wake()

    def run(self) -> int:
        """Work until drained. Returns the process's exit code: 0 drained, 3 never connected in time, 4 TLS refused."""
        self._pool.start()
        self.registry.on_change.append(self._on_tasks_changed)
        try:
            while not self._is_done:
                code = self._connect()
                if code is not None:
                    return code
                self._stay()
            return 0
        finally:
            self.registry.on_change.remove(self._on_tasks_changed)
            self._pool.stop(0.0)
            if self._link is not None:
                self._link.close()

    def _on_outcome(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._waker.wake()

    def _on_tasks_changed(self) -> None:
        self._have_tasks_changed = True
        self._waker.wake()

    def _connect(self) -> int | None:
        """Try until there is a connection (None) or a reason to end (the exit code)."""
        backoff = Backoff()
        started = time.monotonic()
        while True:
            if self._may_end_offline():
                return 0
            link = Link(self.endpoint, waker=self._waker, on_notice=self._on_notice)
            hello, presented = self._hello()
            began = time.monotonic()
            try:
                greeting = link.connect(hello, max(0.5, self._watch.left_s(began, CONNECT_TIMEOUT_S)))
            except GreenroomError as exc:
                if not self._has_connected:
                    if isinstance(exc, (TlsError, VersionError)):
                        log.error("%s", exc.message)
                        return 4 if isinstance(exc, TlsError) else 3
                    if self._connect_timeout_s is not None and time.monotonic() - started >= self._connect_timeout_s:
                        log.error("gave up after %g s: %s", self._connect_timeout_s, exc.message)
                        return 3
                self._tell_outage(exc)
                self._pause(backoff.next())
            else:
                self._watch.begin(float(greeting.get("lease_s") or 15.0), began)
                self._welcome(link, greeting, presented)
                return None

    def _hello(self) -> tuple[dict, list[Held]]:
        waiting = self._pool.waiting_leases()
        presented = sorted(self._held.values(), key=lambda held: held.lease in waiting)
        hello = {"version": VERSION, "role": "worker", "name": self.name, "software": f"greenroom-python/{__version__}",
                 "instance": self._instance, "tasks": self.registry.list_tasks(), "queues": self.queues,
                 "leases": [list(held.lease) for held in presented]}
        # The broker keeps little of a peer that it does not know yet. Tasks and queues are told by the first reserve anyway.
        if len(encode_frame({**hello, "verb": "hello", "id": 1})) > HELLO_FRAME_BYTES:
            del hello["tasks"], hello["queues"]
        while len(encode_frame({**hello, "verb": "hello", "id": 1})) > HELLO_FRAME_BYTES:
            del presented[-10:], hello["leases"][-10:]
        return hello, presented

    def _welcome(self, link: Link, greeting: dict, presented: list[Held]) -> None:
        now = time.monotonic()
        self._link = link
        self._reserve = self._told_tasks = None
        self._reserve_after = self._settle_after = 0.0
        self._is_broker_draining = False
        self._beat_s = float(greeting.get("heartbeat_s") or 5.0)
        self._beat_at = now + self._beat_s
        again = "" if self._outage_since is None or not self._has_connected else f" again after {now - self._outage_since:.1f} s"
        log.info("connected%s to %s at %s (%s)", again, greeting.get("broker"), self.endpoint.address,
                 f"{len(presented)} leases presented" if presented else "no leases held")
        self._has_connected = True
        self._outage_since = None
        kept = {held.lease for held, outcome in zip(presented, greeting.get("leases", ())) if outcome == "OK"}
        for held in list(self._held.values()):
            # What is finished is settled all the same: a late settle is accepted if nobody else got the job.
            if held.lease not in kept and held.stage == "in pool":
                self._drop(held, "the broker did not keep its lease")

    def _tell_outage(self, exc: GreenroomError) -> None:
        now = time.monotonic()
        if self._outage_since is None:
            self._outage_since = now
        elif self._has_connected or now - self._told_outage_at < 60.0:
            return
        self._told_outage_at = now
        log.warning("%s; trying again until it works", exc.message)

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt to connect; running jobs go on."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 and not self._may_end_offline():
            self._waker.wait(self._watch.left_s(time.monotonic(), left_s))
            self._collect()

    def _may_end_offline(self) -> bool:
        """Without a connection a drain waits for the broker only while there is something to tell it."""
        self._check_leases()
        self._collect()
        self._check_drain()
        if self._drain_until is None:
            return False
        if self._held and time.monotonic() < self._drain_until:
            return False
        if self._held:
            log.warning("no broker: %d jobs are left to its lease timeout", len(self._held))
        return True

    def _stay(self) -> None:
        """Work on the connection until it ends or the worker is done."""
        while not self._is_done and self._link.is_open:
            self._link.pump(self._turn())
        if self._is_done:
            return
        self._is_settling = False
        self._reserve = None
        if not self._link.was_silent:
            self._watch.broker_ended()
        if self._outage_since is None:
            self._outage_since = time.monotonic()
            log.warning("%s; %d leases held", self._link.closed_by.message, len(self._held))

    def _turn(self) -> float:
        """Do what is due and return the seconds until the next thing is."""
        now = time.monotonic()
        self._check_leases()
        self._collect()
        self._give_back_late(now)
        self._tend_suspect(now)
        self._check_drain()
        if self._drain_until is not None:
            self._drain_step(now)
            if self._is_done:
                return 0.0
        self._reports.send(self._link, now, before_settle=bool(self._unsettled) and not self._is_settling)
        self._settle(now)
        self._beat(now)
        self._ask_for_jobs(now)
        due = [self._beat_at, self._settle_after, self._reserve_after, self._reports.due_at]
        if self._drain_until is not None:
            due.append(self._drain_until)
        if self._reserve is not None and self._wanted() > self._reserve.n:
            due.append(self._reserve.sent_at + REPLACE_AFTER_S)
        if self._late:
            due.append(self._late[0].begin_by)
        due += [at for at in (self._watch.until, self._suspects.due_at) if at is not None]
        return max(0.0, min(at for at in due if at > now) - now)

    def _collect(self) -> None:
        """Take what the pool finished."""
        if not self._outcomes:
            return
        count = len(self._outcomes)
        self._look_ahead.ended(count, time.monotonic())
        for _ in range(count):
            outcome = self._outcomes.popleft()
            lease = (outcome.job_id, outcome.fence)
            self._in_pool.discard(lease)
            held = self._held.get(lease)
            if held is None:
                log.warning("a late result of job %d was dropped: its lease is lost", outcome.job_id)
                continue
            if outcome.kind == "fail":
                log.info("job %d failed: %s: %s", outcome.job_id, outcome.error["name"], escape(outcome.error["message"][:200]))
            is_stopped = held.is_told_to_stop and outcome.kind == "fail"
            self._finish(held, [*held.lease, "nack"] if is_stopped else outcome.settle_item())

    def _finish(self, held: Held, settle: list) -> None:
        held.stage = "finished"
        held.settle = settle
        self._unsettled.append(held)

    def _nack(self, held: Held, *, has_begun: bool) -> None:
        self._finish(held, [*held.lease, "nack", has_begun])

    def _take_back(self, held: Held) -> bool:
        """Nack a job if it has not begun; returns whether it had not."""
        if held.stage != "in pool" or not self._pool.withdraw(*held.lease):
            return False
        self._in_pool.discard(held.lease)
        self._nack(held, has_begun=False)
        return True

    def _check_leases(self) -> None:
        """Tell what runs to stop when nothing was heard of the broker for nearly a lease: it may give our jobs to others."""
        if not self._watch.is_over(time.monotonic()):
            return
        left = [held for held in self._held.values() if held.stage == "in pool"]
        for held in left:
            if not self._take_back(held):
                held.is_told_to_stop = True
                self._pool.cancel(*held.lease)
        if left:
            log.warning("nothing heard of the broker for %.1f s: %d jobs are told to stop, their leases run out",
                        self._watch.patience_s, len(left))

    def _give_back_late(self, now: float) -> None:
        gave_back = False
        while self._late and (self._late[0].stage != "in pool" or (
                self._late[0].begin_by <= now and len(self._in_pool) > self._concurrency)):
            gave_back = self._take_back(self._late.popleft()) or gave_back
        if gave_back:
            self._look_ahead.gave_back()

    def _tend_suspect(self, now: float) -> None:
        """Let a job that crashed before begin when nobody is left beside it, or give it back when that takes too long."""
        lease = self._suspects.lease
        if lease is None:
            return
        step = self._suspects.step(self._held.keys(), now, may_get_more=self._reserve is not None)
        if step is None or self._held[lease].stage != "in pool":
            return  # a cancel or a drain may have taken it back before
        if step is Step.BEGIN:
            log.info("job %d crashed before: nothing new is taken until it ends", lease[0])
            self._pool.release(*lease)
        else:
            log.info("job %d crashed before, and its neighbours take long: given back", lease[0])
            self._take_back(self._held[lease])

    def _drop(self, held: Held, why: str) -> None:
        """Forget a lease that is not ours any more; what runs of it is told to stop."""
        self._held.pop(held.lease, None)
        log.warning("job %d dropped: %s", held.item.job_id, why)
        if held.stage == "in pool":
            if self._pool.withdraw(*held.lease):
                self._in_pool.discard(held.lease)
            else:
                self._pool.cancel(*held.lease)
        held.stage = "dropped"

    def _settle(self, now: float) -> None:
        if self._is_settling or not self._unsettled or now < self._settle_after:
            return
        limits = self._link.limits
        batch: list[Held] = []
        left_bytes = limits.frame - 1024
        while self._unsettled and len(batch) < limits.list:
            held = self._unsettled[0]
            left_bytes -= _settle_bytes(held.settle)
            if batch and left_bytes < 0:
                break
            batch.append(self._unsettled.popleft())
        try:
            self._link.request({"verb": "settle", "leases": [held.settle for held in batch]},
                               lambda answer: self._on_settled(batch, answer))
        except TooLargeError as exc:
            for held in batch:
                self._finish(held, _failure(held, exc))
            return
        except GreenroomError as exc:
            self._settle_again(batch, exc)
            return
        self._is_settling = True
        for held in batch:
            held.stage = "settling"

    def _on_settled(self, batch: list[Held], answer: Answer) -> None:
        self._is_settling = False
        if isinstance(answer, GreenroomError):
            self._settle_again(batch, answer)
            return
        for held, outcome in zip(batch, answer["outcomes"]):
            if outcome in ("OK", "REPEATED"):
                self._held.pop(held.lease, None)
                continue
            exc = from_wire(outcome)
            if exc.code in ("TOO_LARGE", "INVALID") and held.settle[2] == "ack":
                self._finish(held, _failure(held, exc))
            else:
                self._drop(held, f"{held.settle[2]} refused: {exc.message}")

    def _settle_again(self, batch: list[Held], exc: GreenroomError) -> None:
        """Keep what the broker did not take, in its old order, for the next turn or connection."""
        is_refused = not isinstance(exc, ConnectError)
        if is_refused:
            self._settle_after = time.monotonic() + (exc.retry_after_s or 0.5)
        for held in reversed(batch):
            held.refusals += is_refused and exc.code not in ("BUSY", "UNKNOWN")
            if held.refusals >= MOST_REFUSALS:
                self._drop(held, f"settle refused: {exc.message}")
                continue
            held.stage = "finished"
            self._unsettled.appendleft(held)

    def _beat(self, now: float) -> None:
        if now < self._beat_at:
            return
        self._beat_at = now + self._beat_s
        listed = [list(lease) for lease in self._held]
        try:
            self._link.request({"verb": "heartbeat", "leases": listed}, lambda answer: self._on_beat(now, answer))
        except GreenroomError as exc:
            log.debug("a heartbeat was not sent: %s", exc)

    def _on_beat(self, sent_at: float, answer: Answer) -> None:
        if isinstance(answer, GreenroomError):
            if not isinstance(answer, ConnectError):
                log.warning("a heartbeat was refused: %s", answer.message)
            return
        self._watch.heard(sent_at)
        for job, fence, *_ in answer.get("lost", ()):
            held = self._held.get((job, fence))
            # What is being settled gets its own answer, which may just be behind this one.
            if held is not None and held.stage == "in pool":
                self._drop(held, "its lease is lost")
        self._cancel(answer.get("cancel", ()))

    def _on_notice(self, notice: dict) -> None:
        if notice["notice"] == "cancel":
            self._cancel(notice.get("leases", ()), is_forced=notice.get("reason") != "soft_timeout")
        elif notice["notice"] == "drain" and notice.get("reason") == "broker":
            log.info("the broker is going away: keeping %d jobs, coming back", len(self._held))
            self._is_broker_draining = True
            self._watch.broker_ended()
        elif notice["notice"] == "drain" and self._drain_until is None:
            self._begin_drain("the broker asked for it")

    def _cancel(self, leases: list, *, is_forced: bool = True) -> None:
        for job, fence, *_ in leases:
            held = self._held.get((job, fence))
            if held is not None and held.stage == "in pool" and not self._take_back(held):
                log.debug("job %d is to stop", job)
                self._pool.cancel(job, fence, is_forced=is_forced)

    def _wanted(self) -> int:
        """Return how many jobs to ask for: the free slots, and some ahead while jobs are quick."""
        if self._drain_until is not None or self._is_broker_draining:
            return 0
        room = self._concurrency + self._look_ahead.jobs
        free = min(room - len(self._in_pool), self._link.limits.leases - len(self._held), self._link.limits.list)
        # With all slots busy not for a few: every reserve is a frame, and a turn of both sides.
        return self._suspects.most(free) if free > 0 and (len(self._in_pool) < self._concurrency or 2 * free >= room) else 0

    def _ask_for_jobs(self, now: float) -> None:
        """Keep one reserve open that asks for what is wanted and tells the present tasks."""
        wanted = self._wanted()
        if self._have_tasks_changed:
            self._have_tasks_changed = False
            log.info("tasks: %s", " ".join(self.registry.list_tasks()) or "none")
            self._told_tasks = None
        opened = self._reserve
        is_news = self._told_tasks is None and not self._is_broker_draining
        if opened is None:
            is_due = is_news or (wanted > 0 and now >= self._reserve_after)
        else:
            is_due = is_news or (wanted == 0 < opened.n and self._takes_nothing()) or (
                wanted > opened.n and now >= opened.sent_at + REPLACE_AFTER_S)
        if is_due:
            self._send_reserve(wanted, now)

    def _takes_nothing(self) -> bool:
        return self._drain_until is not None or self._suspects.lease is not None

    def _send_reserve(self, n: int, now: float) -> None:
        tasks = tuple(self.registry.list_tasks())
        message = {"verb": "reserve", "n": n, "tasks": list(tasks), "wait": self._link.limits.wait if n else 0}
        if self.queues is not None:
            message["queues"] = self.queues
        self._reserves += 1
        opened = Reserve(self._reserves, n, tasks, now)
        try:
            self._link.request(message, lambda answer: self._on_reserved(opened, answer))
        except GreenroomError as exc:
            log.debug("a reserve was not sent: %s", exc)
            self._reserve_after = now + 1.0
            return
        self._reserve, self._told_tasks = opened, tasks

    def _on_reserved(self, opened: Reserve, answer: Answer) -> None:
        now = time.monotonic()
        is_latest = self._reserve is opened
        if is_latest:
            self._reserve = None
        if isinstance(answer, GreenroomError):
            if not isinstance(answer, ConnectError):
                log.log(logging.DEBUG if answer.code == "DRAINING" else logging.WARNING, "a reserve was refused: %s", answer.message)
                self._reserve_after = now + (answer.retry_after_s or random.uniform(0.2, 1.0))
            return
        jobs = answer["jobs"]
        if is_latest and opened.n and not jobs and now - opened.sent_at < EMPTY_PAUSE_S:
            self._reserve_after = now + EMPTY_PAUSE_S
        for job, fence, task, payload, raw, queue, attempt, _, *crashes in jobs:
            item = RunItem(job, fence, task, payload, "raw" if raw else "msgpack", queue, attempt, self.name)
            held = self._held[job, fence] = Held(item, now + AHEAD_S)
            if self._drain_until is not None or not self._suspects.admit(held.lease, crashes[0] if crashes else 0, now):
                self._nack(held, has_begun=False)
                continue
            self._hand_to_pool(held, now)

    def _hand_to_pool(self, held: Held, now: float) -> None:
        if held.lease == self._suspects.lease:
            for other in list(self._held.values()):
                self._take_back(other)  # what was reserved ahead and has not begun; the suspect is not in the pool yet
            self._pool.submit(held.item, parked=True)
        else:
            if not self._in_pool:
                self._look_ahead.began(now)
            self._late.append(held)
            self._pool.submit(held.item)
        self._in_pool.add(held.lease)

    def _check_drain(self) -> None:
        if self._drains_asked and self._drain_until is None:
            self._begin_drain("asked to stop")
        if self._drains_asked > 1 and self._drain_until is not None:
            self._drain_until = min(self._drain_until, time.monotonic())

    def _begin_drain(self, why: str) -> None:
        self._drain_until = time.monotonic() + self.grace_s
        for held in list(self._held.values()):
            self._take_back(held)
        log.info("draining (%s): %d jobs run, at most %g s", why, len(self._in_pool), self.grace_s)

    def _drain_step(self, now: float) -> None:
        if self._in_pool and not self._is_given_up and now >= self._drain_until:
            self._give_up()
        is_told = not self._held and not self._unsettled
        if is_told and (self._is_given_up or not self._in_pool):
            self._say_bye()
        elif self._is_given_up and now >= self._drain_until:
            log.warning("%d leases could not be settled in time", len(self._held))
            self._say_bye()

    def _give_up(self) -> None:
        """End the grace: stop the pool, give back what it has not finished."""
        self._is_given_up = True
        # Stopped first, given back second: a child process must not run on while somebody else begins the same job.
        self._pool.stop(0.0)
        self._collect()
        left = [held for held in self._held.values() if held.stage == "in pool"]
        for held in left:
            self._nack(held, has_begun=True)
        self._in_pool.clear()
        self._drain_until = time.monotonic() + FAREWELL_S
        log.info("gave back %d jobs that were still running", len(left))

    def _say_bye(self) -> None:
        answers: list[Answer] = []
        try:
            self._link.request({"verb": "bye"}, answers.append)
            until = time.monotonic() + 1.0
            while not answers and time.monotonic() < until and self._link.pump(max(0.0, until - time.monotonic())):
                pass
        except GreenroomError as exc:
            log.debug("no good-bye: %s", exc)
        self._is_done = True
        log.info("stopped")


def _failure(held: Held, exc: GreenroomError) -> list:
    name = "ResultTooLargeError" if exc.code == "TOO_LARGE" else "ResultError"
    return [*held.lease, "fail", {"name": name, "message": f"the broker refused the result: {exc.message}", "traceback": ""},
            {"retry": False}]


def _settle_bytes(settle: list) -> int:
    """Return an upper bound of what a settle item adds to a frame."""
    body = settle[3] if len(settle) > 3 else None
    if isinstance(body, dict):
        return 128 + 4 * sum(len(text) for text in body.values())  # characters of up to 4 bytes
    return 64 + (len(body) if isinstance(body, bytes) else 0)


def main(arguments: list[str] | None = None) -> int:
    """Run a worker (`python worker.py`, `greenroom-worker`) and return its exit code."""
    args = build_parser().parse_args(arguments)
    try:
        worker = make_worker(args)
    except ConfigError as exc:
        sys.stderr.write(f"worker: {exc.message}\n")
        return 2
    # A task that enqueues jobs, in a child process too, does so at this worker's broker.
    given = {"GREENROOM_URL": args.url, "GREENROOM_CA": args.ca, "GREENROOM_CERT": args.cert, "GREENROOM_KEY": args.key}
    os.environ.update({variable: value for variable, value in given.items() if value})
    # Lines are written by a thread of their own: a pipe that nobody reads must not stop the heartbeats.
    lines = logs.set_up(args.log_level)
    lines.begin_with(f"[Worker {worker.name}] ")
    writing = threading.Thread(target=lines.run, name="greenroom-log", daemon=True)
    writing.start()
    log.info("started: pid %d, %d slots (%s), queues %s, tasks %s", os.getpid(), args.concurrency, args.pool,
             " ".join(worker.queues) if worker.queues else "any", " ".join(worker.registry.list_tasks()))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.drain())
    try:
        return worker.run()
    finally:
        lines.finish()
        writing.join(2.0)


def make_worker(args: argparse.Namespace) -> Worker:
    """Check the settings, load the task modules and return a worker that is not running. Raises ConfigError."""
    name = args.name or default_name()
    queues = args.queues.split(",") if args.queues is not None else None
    for what, given in [("name", name)] + [("queue", queue) for queue in queues or []]:
        if not NAME_PATTERN.fullmatch(given):
            raise ConfigError(f"the {what} {given!r} must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -")
    endpoint = find_endpoint(args.url, ca=args.ca, cert=args.cert, key=args.key)
    if args.no_builtins:
        for task in BUILTINS:
            default_registry.unregister_task(task)
    for spec in args.tasks:
        load_tasks(spec)
    if not default_registry.list_tasks():
        raise ConfigError("no tasks to offer: give --tasks MODULE, or leave out --no-builtins")

    def make_pool(on_done: Callable[[Outcome], None]) -> Pool:
        if args.pool == "process":
            return ProcessPool(args.tasks, args.concurrency, on_done)
        return ThreadPool(default_registry, args.concurrency, on_done)

    return Worker(endpoint, default_registry, make_pool, concurrency=args.concurrency, name=name, queues=queues,
                  grace_s=args.grace, connect_timeout_s=args.connect_timeout, isolates=args.suspects == "alone")


if __name__ == "__main__":
    raise SystemExit(main())
