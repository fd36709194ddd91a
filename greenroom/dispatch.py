"""The pump on the hub: drives engine and batches with real time, real COMMITs and greenlets. No rules of its own.

Everybody who wants something of the engine comes through here: sessions, and the web by `call`. One greenlet runs commit cycles,
one the timer; COMMIT itself runs in a thread of its own, so that a slow disk never stops the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.event import AsyncResult, Event
from gevent.queue import Empty, Queue
from gevent.threadpool import ThreadPool

from greenroom import backups
from greenroom.backups import Backups
from greenroom.batches import Batches, Budget
from greenroom.clock import Clock
from greenroom.distributions import ROWS, SECONDS, Distribution
from greenroom.engine import Engine
from greenroom.errors import BusyError, DrainingError
from greenroom.job import Job
from greenroom.records import Lost
from greenroom.stores import Reader, Store
from greenroom.stores.disk_room import DiskRoom
from greenroom.waits import Waits

log = logging.getLogger(__name__)

#: The timer looks at least this often, for what nobody wakes it for: disk space, pruning.
TICK_AT_LEAST_S = 1.0
#: How late timers come is measured so often.
LAG_EVERY_S = 0.05
#: A tick that comes so much late means that the hub stood still; then workers were silent because we did not listen.
STALL_S = 0.5
#: Finished jobs remembered in memory, so that who asks right away need not go to the disk: between one and two times this.
RECENT_JOBS = 5_000
RECENT_BYTES = 8 * 2**20
#: Readers for pages of history: each one query at a time, in a thread.
READERS = 2
MAX_PAGE_QUEUE = 64
PAGE_DEADLINE_S = 15.0
#: So often rows that come while others are applied are applied in slices too, before the store is read.
MAX_FLUSHES = 5
#: Ids loaded in one look into the store.
LOAD_IDS = 200
#: Ids that wait to be looked up in the store, of all peers; beyond it BUSY.
MAX_LOADING_IDS = 20_000


class Dispatch:
    """See the module.

    Attributes:
        engine, batches, waits, backups: the rules, the commit rule, the open waits, the one backup.
        store_full: True while the disk has too little room for new jobs.
        free_bytes: what the disk has left, None: unknown.
        lag: how late timers come; the more, the longer something held the hub.
        commit_time, batch_rows: how long COMMITs take, and how many rows are in one.
        outside: set by the program: what only it knows of itself, for `stats`.
    """

    def __init__(self, engine: Engine, store: Store, clock: Clock, on_fatal: Callable[[str], None],
                 data_dir: str | None) -> None:
        self.engine = engine
        self.store = store
        self.clock = clock
        self.now = clock.now
        self.started_at = clock.now()
        self.waits = Waits()
        self._wake = Event()
        self.batches = Batches(engine, store, self.waits, self._wake.set)
        self._recent: dict[int, Job] = {}  # id -> job finished lately
        self._recent_before: dict[int, Job] = {}  # the generation before; dropping a whole one is cheaper than one by one
        self._recent_bytes = 0
        self.store_full = False
        self.free_bytes: int | None = None
        self.lag = Distribution(SECONDS)
        self.commit_time = Distribution(SECONDS)
        self.batch_rows = Distribution(ROWS)
        self.outside: Callable[[], dict[str, object]] = dict
        self._commit_began: float | None = None
        self._loading_ids = 0
        self._has_failed = False
        self._next_disk_look = 0.0
        self._room = None if data_dir is None else DiskRoom(data_dir)
        self._room_look: AsyncResult | None = None
        self._on_fatal = on_fatal
        self._timer_wake = Event()
        self._planned_at = 0.0
        self._commit_thread = ThreadPool(1)
        self._page_threads = ThreadPool(READERS)
        self._backup_threads = ThreadPool(backups.THREADS)
        self.backups = Backups(None if data_dir is None else Path(data_dir), self._backup_threads.spawn, self._in_backup_thread)
        self._room_thread = ThreadPool(1)
        self._readers: Queue[Reader] = Queue()
        self._pages_open = 0
        self._greenlets: list[gevent.Greenlet] = []

    # -- life ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fetch numbers, open the readers and start pumping. Does not switch for longer than a commit."""
        self.backups.remove_leftovers()
        self._cycle()
        for _ in range(READERS):
            self._readers.put(self.store.reader())
        for loop in (self._pump, self._timer, self._measure_lag):
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
        batches = self.batches
        try:
            batches.start()
            self._apply()
            for _ in range(MAX_FLUSHES):
                if not batches.flush():
                    break
                self._apply()
            batches.fetch(self.now())
            needs_commit = batches.needs_commit
            if needs_commit:
                self._commit()
        except Exception as exc:
            log.critical("the store failed: %s", exc, exc_info=True)
            self._has_failed = True
            batches.failed()
            self._on_fatal(f"the store failed: {exc}")
            raise
        batches.committed(self.now())
        if needs_commit:
            self.batch_rows.add(batches.last_rows, self.now())
        self._replan()  # refills may have granted leases and brought scheduled jobs
        return needs_commit

    def _commit(self) -> None:
        self._commit_began = began = self.now()
        self._commit_thread.spawn(self.store.commit).get()
        self._commit_began = None
        self.commit_time.add(self.now() - began, self.now())

    @property
    def committing_s(self) -> float:
        """How long the COMMIT that runs now has taken so far; 0: none runs."""
        return self.now() - self._commit_began if self._commit_began is not None else 0.0

    def _measure_lag(self) -> None:
        while True:
            due = self.now() + LAG_EVERY_S
            gevent.sleep(LAG_EVERY_S)
            now = self.now()
            self.lag.add(max(0.0, now - due), now)

    def _apply(self) -> None:
        while not self.batches.apply_slice():
            gevent.sleep(0.001)

    def _timer(self) -> None:
        # A draining broker ends no lease and forgets no worker: all of that is for the next start.
        while not self.engine.draining:
            now = self.now()
            due = min((at for at in (self.engine.next_due(), self.waits.next_due()) if at is not None), default=now + 1)
            self._planned_at = min(max(due, now), now + TICK_AT_LEAST_S)
            if self._planned_at > now:
                self._timer_wake.wait(self._planned_at - now)
            else:
                gevent.sleep(0.001)
            self._timer_wake.clear()
            self._tick()

    def _tick(self) -> None:
        late_s = self.now() - self._planned_at
        self.lag.highest = max(self.lag.highest, late_s)
        if late_s > STALL_S:
            log.warning("the hub stood still for %.1f s; leases get as much longer", late_s)
            self.engine.forgive(late_s)
            gevent.sleep(0.02)  # what workers sent meanwhile is read before anybody's silence is judged
        now = self.now()
        self.engine.tick(now)
        for peer, request_id, answer in self.waits.tick(now):
            self.batches.hold(peer, request_id, answer)
            peer.flush()
        self.after_call()
        self._look_at_disk(now)
        self.backups.tick(now)

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

    # -- for sessions and the web -------------------------------------------------------------------------------------------

    def after_call(self) -> None:
        """Take up what an engine call wants done. Must follow each one. Never switches."""
        finished = self.engine.effects.finished
        if finished:
            self._remember(finished)
        self.batches.collect()
        self._replan()

    def _replan(self) -> None:
        due = self.engine.next_due()
        if due is not None and due < self._planned_at:
            self._planned_at = due
            self._timer_wake.set()

    def _remember(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._recent[job.id] = job
            self._recent_bytes += job.payload_bytes
            if job.result is not None:
                self._recent_bytes += len(job.result)
        if len(self._recent) > RECENT_JOBS or self._recent_bytes > RECENT_BYTES:
            self._recent_before, self._recent, self._recent_bytes = self._recent, {}, 0

    def in_memory(self, job_id: int) -> Job | None:
        """Return the job if memory knows it: unfinished and in a window or running, or finished lately."""
        return self.engine.jobs.get(job_id) or self._recent.get(job_id) or self._recent_before.get(job_id)

    def as_memory_knows(self, found: Job | Lost) -> Job | Lost:
        """Return a job that was just loaded, with what memory knows better: a running one is recorded as queued."""
        if isinstance(found, Lost):
            return found
        present = self.in_memory(found.id)
        if present is None:
            return found
        if present.payload is not None or not found.payload_bytes:
            return present
        found.state, found.worker, found.fence, found.attempt = present.state, present.worker, present.fence, present.attempt
        found.started_at, found.cancel_requested = present.started_at, present.cancel_requested
        return found

    def check_room(self) -> None:
        """Raise BusyError while the batch that gathers takes no more submits."""
        if self.batches.is_full:
            raise BusyError("too much waits to be written", retry_after_s=0.1)

    def load(self, ids: list[int], took: Callable[[dict[int, Job | Lost]], None], done: Callable[[], None],
             budget: Budget | None = None) -> None:
        """Load jobs from the store, a few at a time, on the hub.

        Args:
            took: gets each few as soon as they are read, and acts on them at once: a commit later they may be out of date.
            done: called when all were taken; at once if there is nothing to load.
            budget: what large payloads and results may still be loaded; None: none.

        Raises BusyError while too many ids wait to be loaded.
        """
        if not ids:
            done()
            return
        if self._loading_ids + len(ids) > MAX_LOADING_IDS:
            raise BusyError("too many jobs are being looked up", retry_after_s=0.5)
        self._loading_ids += len(ids)
        _Loading(self, ids, took, done, budget).ask()

    def loading_done(self, count: int) -> None:
        """Note that so many ids are no longer being loaded."""
        self._loading_ids -= count

    def read_page(self, **query: object) -> tuple[list[Job], int | None]:
        """Read one page of jobs as committed. Switches until it is there; raises BusyError when too many wait for pages."""
        if self._pages_open >= MAX_PAGE_QUEUE:
            raise BusyError("too many pages are being read", retry_after_s=1.0)
        self._pages_open += 1
        try:
            reader = self._readers.get(timeout=PAGE_DEADLINE_S)
        except Empty:
            raise BusyError("too many pages are being read", retry_after_s=1.0) from None
        finally:
            self._pages_open -= 1
        page = self._page_threads.spawn(reader.page, **query)
        page.rawlink(lambda _: self._readers.put(reader))  # not when we stop waiting: the thread may still be at it
        return page.get()

    def _in_backup_thread(self, work: Callable[[], bytes]) -> bytes:
        result = self._backup_threads.spawn(work)
        result.wait(PAGE_DEADLINE_S)
        if not result.ready():
            raise BusyError("the disk is slow", retry_after_s=1.0)
        return result.get()

    def wait_for_commit(self, within_s: float) -> None:
        """Return when everything decided so far is on disk. Switches; raises DrainingError if the broker ends first."""
        done = Event()
        self.batches.after_commit(done.set)
        if not done.wait(within_s):
            raise DrainingError("the broker is stopping or its disk stands still")

    @staticmethod
    def breathe() -> None:
        """Let the hub look at its sockets in the middle of a long answer."""
        gevent.sleep(0.001)


class _Loading:
    """One `Dispatch.load`. An object, not functions that name each other: those would be cycles, freed late by the collector."""

    __slots__ = ("_dispatch", "_ids", "_took", "_done", "_budget", "_at")

    def __init__(self, dispatch: Dispatch, ids: list[int], took: Callable[[dict[int, Job | Lost]], None], done: Callable[[], None],
                 budget: Budget | None) -> None:
        self._dispatch = dispatch
        self._ids = ids
        self._took = took
        self._done = done
        self._budget = budget
        self._at = 0

    def ask(self) -> None:
        self._dispatch.batches.load(self._ids[self._at:self._at + LOAD_IDS], self._took_some, self._budget)

    def _took_some(self, jobs: dict[int, Job | Lost]) -> None:
        self._took(jobs)
        self._at += LOAD_IDS
        if self._at < len(self._ids):
            self.ask()
        else:
            self._dispatch.loading_done(len(self._ids))  # only now: what was taken lies in memory until it is answered
            self._done()
