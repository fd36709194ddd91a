"""The pump on the hub: drives the desk with real time, real COMMITs and greenlets. No rules of its own.

One greenlet runs commit cycles, one the timer; COMMIT itself runs in a thread of its own, so that a slow disk never stops the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import gevent
from gevent.event import AsyncResult, Event
from gevent.queue import Empty, Queue
from gevent.threadpool import ThreadPool

from greenroom import backups
from greenroom.backups import Backups
from greenroom.clock import Clock
from greenroom.desk import Desk, Step
from greenroom.engine import Engine
from greenroom.errors import BusyError, DrainingError
from greenroom.stores import Reader, Store
from greenroom.stores.disk_room import DiskRoom

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: The timer looks at least this often, for what nobody wakes it for: disk space, pruning.
TICK_AT_LEAST_S = 1.0
#: How late timers come is measured so often.
LAG_EVERY_S = 0.05
#: Readers for pages of history: each one query at a time, in a thread.
READERS = 2
MAX_PAGE_QUEUE = 64
PAGE_DEADLINE_S = 15.0
#: Events are told so much apart, so that many go in a frame.
TELL_EVERY_S = 0.02
#: Whoever has much to do looks up after so long and lets the others have the hub. With the step that was begun it stays below 5 ms.
TURN_S = 0.002


class Dispatch(Desk):
    """See the module. What it does for sessions and the web is the desk's."""

    def __init__(self, engine: Engine, store: Store, clock: Clock, on_fatal: Callable[[str], None],
                 data_dir: str | None) -> None:
        self._wake = Event()
        super().__init__(engine, store, clock.now, self._wake.set, clock.wall)
        self.clock = clock
        self._has_failed = False
        self._next_disk_look = 0.0
        self._room = None if data_dir is None else DiskRoom(data_dir)
        self._room_look: AsyncResult | None = None
        self._on_fatal = on_fatal
        self._timer_wake = Event()
        self._news = Event()
        self.batches.events.on_news = self._news.set
        self._planned_at = 0.0
        self._commit_thread = ThreadPool(1)
        self._page_threads = ThreadPool(READERS)
        self._backup_threads = ThreadPool(backups.THREADS)
        self.backups = Backups(None if data_dir is None else Path(data_dir), self._backup_threads.spawn, self._in_backup_thread)
        self._room_thread = ThreadPool(1)
        self._readers: Queue[Reader] = Queue()
        self._pages_open = 0
        self._greenlets: list[gevent.Greenlet] = []
        self._turn_began = 0.0
        self._units: set[gevent.Greenlet] = set()

    # -- life ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fetch numbers, open the readers and start pumping. Does not switch for longer than a commit."""
        self.backups.remove_leftovers()
        self._cycle()
        for _ in range(READERS):
            self._readers.put(self.store.reader())
        for loop in (self._pump, self._timer, self._measure_lag, self._tell):
            greenlet = gevent.spawn(loop)
            greenlet.link_exception(self._died)
            self._greenlets.append(greenlet)

    def _died(self, greenlet: gevent.Greenlet) -> None:
        self._on_fatal(f"{greenlet.name} died: {greenlet.exception!r}")

    def drain(self) -> None:
        """Take no new work, and put every lease on disk."""
        self.engine.drain()
        self.after_call()

    def stop(self, within_s: float) -> None:
        """Commit what is pending and close the store. Safe to call after a failure."""
        deadline = self.now() + within_s
        self.backups.stop()
        while not self.batches.is_idle and not self._has_failed and self.now() < deadline:
            gevent.sleep(0.005)
        gevent.killall(self._greenlets, block=True, timeout=within_s)
        while not self._readers.empty():
            self._readers.get().close()
        if self.batches.is_idle or self._has_failed:
            self.store.close()
        # Else a COMMIT hangs in its thread, and nobody may touch the store beside it; the end of the process lets go of it.

    # -- the pump -----------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self.batches.has_work:
                if not self._cycle():
                    gevent.sleep(0.001)  # reads alone don't wait for a disk, so let the hub look at its sockets

    def _cycle(self) -> bool:
        """Run one commit cycle; returns whether there was a COMMIT. Any failure of the store is the end."""
        has_committed = False
        try:
            for step in self.write():
                if step is Step.COMMIT:
                    self._commit_thread.spawn(self.store.commit).get()
                    has_committed = True
                else:
                    gevent.sleep(0.001)
        except Exception as exc:
            log.critical("the store failed: %s", exc, exc_info=True)
            self._has_failed = True
            self.batches.failed()
            self._on_fatal(f"the store failed: {exc}")
            raise
        self.committed()
        return has_committed

    def _measure_lag(self) -> None:
        while True:
            due = self.now() + LAG_EVERY_S
            gevent.sleep(LAG_EVERY_S)
            now = self.now()
            self.lag.add(max(0.0, now - due), now)

    def _tell(self) -> None:
        """Tell subscribers what happened; those who are slow again and again."""
        while True:
            self._news.wait()
            self._news.clear()
            self.begin_turn()
            for _ in self.subscriptions.tell():
                self.breathe_if_due()
            gevent.sleep(TELL_EVERY_S)
            if self.subscriptions.are_behind:
                self._news.set()

    def _timer(self) -> None:
        # A draining broker ends no lease and forgets no worker: all of that is for the next start.
        while not self.engine.draining:
            now = self.now()
            due = self.next_due()
            if due is None:
                due = now + TICK_AT_LEAST_S
            self._planned_at = min(max(due, now), now + TICK_AT_LEAST_S)
            if self._planned_at > now:
                self._timer_wake.wait(self._planned_at - now)
            else:
                gevent.sleep(0.001)
            self._timer_wake.clear()
            self._tick()

    def _tick(self) -> None:
        if self.note_lag(self.now() - self._planned_at):
            gevent.sleep(0.02)  # what workers sent meanwhile is read before anybody's silence is judged
        self.tick()
        self._look_at_disk(self.now())
        self.backups.tick(self.now())

    def _look_at_disk(self, now: float) -> None:
        if now < self._next_disk_look:
            return
        self._next_disk_look = now + TICK_AT_LEAST_S
        self.batches.prune_soon(now)
        if self._room is not None and (self._room_look is None or self._room_look.ready()):
            self._room_look = self._room_thread.spawn(self._room.look)  # a disk that hangs must not hold up the hub
            self._room_look.rawlink(self._looked_at_disk)

    def _looked_at_disk(self, look: AsyncResult) -> None:
        if not look.successful():
            log.error("the free disk space is not known: %s", look.exception)
            return
        self.free_bytes = self._room.free_bytes
        if look.value != self.store_full:
            self.store_full = look.value
            log.error("disk space is %s: %d MiB are free", "short, new jobs are refused" if self.store_full else "back",
                      self._room.free_bytes // 2**20)

    # -- what the desk leaves to the pump -----------------------------------------------------------------------------------

    def look_now(self) -> None:
        """Let the timer look at once, and not be late: the clock was moved, nothing stood still."""
        self._planned_at = self.now()
        self._timer_wake.set()

    def replan(self) -> None:
        """See Desk."""
        due = self.engine.next_due()
        if due is not None and due < self._planned_at:
            self._planned_at = due
            self._timer_wake.set()

    def read(self, ask: Callable[[Reader], Answer]) -> Answer:
        """See Desk. Switches until the answer is there."""
        if self._pages_open >= MAX_PAGE_QUEUE:
            raise BusyError("too many pages are being read", retry_after_s=1.0)
        self._pages_open += 1
        try:
            reader = self._readers.get(timeout=PAGE_DEADLINE_S)
        except Empty:
            raise BusyError("too many pages are being read", retry_after_s=1.0) from None
        finally:
            self._pages_open -= 1
        page = self._page_threads.spawn(ask, reader)
        page.rawlink(lambda _: self._readers.put(reader))  # not when we stop waiting: the thread may still be at it
        return page.get()

    def _in_backup_thread(self, work: Callable[[], bytes]) -> bytes:
        result = self._backup_threads.spawn(work)
        result.wait(PAGE_DEADLINE_S)
        if not result.ready():
            raise BusyError("the disk is slow", retry_after_s=1.0)
        return result.get()

    def wait_for_commit(self, within_s: float) -> None:
        """See Desk. Switches."""
        done = Event()
        self.batches.after_commit(done.set)
        if not done.wait(within_s):
            raise DrainingError("the broker is stopping or its disk stands still")

    def breathe(self) -> None:
        """See Desk. Switches."""
        gevent.sleep(0.0005)
        self.begin_turn()

    def begin_turn(self) -> None:
        """See Desk."""
        self._turn_began = perf_counter()

    @property
    def is_breath_due(self) -> bool:
        """See Desk."""
        return perf_counter() - self._turn_began > TURN_S

    def spawn_unit(self, work: Callable[[], None]) -> None:
        """See Desk. In a greenlet of its own; the open batch waits for it from now on."""
        self.batches.units += 1
        greenlet = gevent.spawn(self._run_spawned, work)
        self._units.add(greenlet)
        greenlet.link(self._units.discard)

    def _run_spawned(self, work: Callable[[], None]) -> None:
        try:
            self.begin_turn()
            work()
        finally:
            self.batches.units -= 1
