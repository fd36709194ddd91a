"""What sessions and the web ask of the broker, over engine, batches and store; and what a tick does. No hub, thread or clock of its own.

The pump on the hub (dispatch.py) builds on this class, and so does the simulator, which gives it virtual time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeVar

from greenroom.backups import Backups
from greenroom.batches import Batches, Budget
from greenroom.distributions import ROWS, SECONDS, Distribution
from greenroom.engine import Engine
from greenroom.errors import BusyError
from greenroom.job import Job
from greenroom.records import Lost, Restored
from greenroom.schedule_runs import ScheduleRuns
from greenroom.stores import Reader, Store
from greenroom.subscriptions import Subscriptions
from greenroom.waits import Waits

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: A tick that comes so much late means that the hub stood still; then workers were silent because we did not listen.
STALL_S = 0.5
#: Finished jobs remembered in memory, so that who asks right away need not go to the disk: between one and two times this.
RECENT_JOBS = 5_000
RECENT_BYTES = 8 * 2**20
#: Ids loaded in one look into the store.
LOAD_IDS = 100
#: Ids that wait to be looked up in the store, of all peers; beyond it BUSY.
MAX_LOADING_IDS = 20_000
#: So often rows that come while others are applied are applied in slices too, before the store is read.
MAX_FLUSHES = 5


class Step(Enum):
    """What a commit cycle asks of whoever drives it."""

    TURN = 1  # let others have their turn, a part is done
    COMMIT = 2  # run `store.commit`, in a thread if there is one; others may go on meanwhile


class Desk:
    """See the module.

    Attributes:
        engine, store, batches, waits: the rules, the rows, the commit rule, the open waits.
        now: returns the time, in seconds. wall: what the wall clock says, which may jump; only schedules go by it.
        schedules: what is submitted again and again. subscriptions: who is told what happens.
        backups: the one backup; who drives the desk brings the threads for it.
        store_full: True while the disk has too little room for new jobs.
        free_bytes: what the disk has left, None: unknown.
        lag: how late timers come; the more, the longer something held the hub.
        commit_time, batch_rows: how long COMMITs take, and how many rows are in one.
        groupings: how many requests put failed jobs together just now (failure_verbs.py).
        outside: set by the program: what only it knows of itself, for `stats`.
    """

    backups: Backups

    def __init__(self, engine: Engine, store: Store, now: Callable[[], float], wake: Callable[[], None],
                 wall: Callable[[], float] | None = None) -> None:
        self.engine = engine
        self.store = store
        self.now = now
        self.wall = now if wall is None else wall
        self.started_at = now()
        self.waits = Waits()
        self.batches = Batches(engine, store, self.waits, wake)
        self.batches.on_gone = self._forget_all
        self.schedules = ScheduleRuns(self)
        self.subscriptions = Subscriptions(engine, self.batches.events)
        self.store_full = False
        self.free_bytes: int | None = None
        self.lag = Distribution(SECONDS)
        self.commit_time = Distribution(SECONDS)
        self.batch_rows = Distribution(ROWS)
        self.outside: Callable[[], dict[str, object]] = dict
        self.commit_began: float | None = None
        self._recent: dict[int, Job] = {}  # id -> job finished lately
        self._recent_before: dict[int, Job] = {}  # the generation before; dropping a whole one is cheaper than one by one
        self._recent_bytes = 0
        self._loading_ids = 0
        self.groupings = 0
        self._waits_for_units = False  # the cycle wants to close the batch

    def restore(self, restored: Restored, grace_s: float) -> None:
        """Start from what the store found; leases hold for `grace_s` from now."""
        self.engine.restore(restored, self.now(), grace_s)
        self.schedules.restore(restored.schedules)

    # -- what the pump gives ------------------------------------------------------------------------------------------------

    def replan(self) -> None:
        """Look anew when the next tick is due."""
        raise NotImplementedError

    def read(self, ask: Callable[[Reader], Answer]) -> Answer:
        """Read what is committed: `ask` runs beside the store, perhaps in a thread. May switch; raises BusyError when too many
        wait for pages."""
        raise NotImplementedError

    def wait_for_commit(self, within_s: float) -> None:
        """Return when everything decided so far is on disk. May switch; raises DrainingError if the broker ends first."""
        raise NotImplementedError

    def breathe(self) -> None:
        """Let others have their turn in the middle of something long. May switch, so no change of state may be half done."""
        raise NotImplementedError

    def begin_turn(self) -> None:
        """Note that whoever runs has just been given its turn."""

    @property
    def is_breath_due(self) -> bool:
        """True when whoever runs has kept the others waiting for long enough."""
        return False

    def breathe_if_due(self) -> None:
        """Let others have their turn if it is time. Call it every millisecond or so. May switch."""
        if self.is_breath_due:
            self.breathe()

    def spawn_unit(self, work: Callable[[], None]) -> None:
        """Run a change that takes steps (`continue_unit`) soon; for those who are called by the pump, which must not wait for it."""
        work()

    # -- changes in steps ---------------------------------------------------------------------------------------------------

    def run_unit(self, steps: Iterator[None]) -> None:
        """Run the steps of a change that must be one transaction, with turns for others in between: the batch stays open as long.

        Once begun it is finished, also when the greenlet is killed meanwhile: half of it on disk would be a lie to those who ask again.
        May switch.
        """
        while self._waits_for_units:  # or those who come could keep the batch open for ever
            self.breathe()
        self.continue_unit(steps)

    def continue_unit(self, steps: Iterator[None]) -> None:
        """Do the same inside of `spawn_unit`, for which the batch waits already."""
        self.batches.units += 1
        try:
            for _ in steps:
                self.breathe_if_due()
        finally:
            for _ in steps:
                pass
            self.batches.units -= 1

    def _wait_for_units(self) -> Iterator[Step]:
        """Wait until no change is half done; new ones wait meanwhile. What follows must not switch."""
        self._waits_for_units = True
        while self.batches.units:
            yield Step.TURN
        self._waits_for_units = False

    # -- the cycle ----------------------------------------------------------------------------------------------------------

    def write(self) -> Iterator[Step]:
        """Go through a commit cycle (batches.py) up to its end, which is `committed`.

        After an error, also one of a COMMIT, the store is over: tell those who wait with `batches.failed`, and end.
        """
        batches = self.batches
        batches.look_up()
        yield from self._wait_for_units()
        batches.start()
        yield from self._apply()
        for _ in range(MAX_FLUSHES):
            if not batches.flush():
                break
            yield from self._apply()
        yield from self._wait_for_units()
        batches.fetch(self.now())
        if batches.needs_commit:
            self.commit_began = began = self.now()
            yield Step.COMMIT
            self.commit_began = None
            self.commit_time.add(self.now() - began, self.now())

    @property
    def committing_s(self) -> float:
        """How long the COMMIT that runs now has taken so far; 0: none runs."""
        return self.now() - self.commit_began if self.commit_began is not None else 0.0

    def _apply(self) -> Iterator[Step]:
        while not self.batches.apply_slice():
            yield Step.TURN

    def committed(self) -> None:
        """End the cycle: all is written, what waited for it leaves."""
        has_rows = self.batches.needs_commit
        self.batches.committed(self.now())
        if has_rows:
            self.batch_rows.add(self.batches.last_rows, self.now())
        self.replan()  # refills may have granted leases and brought scheduled jobs

    # -- time ---------------------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when `tick` should be called next, or None."""
        dues = (self.engine.next_due(), self.waits.next_due(), self.schedules.next_due())
        return min((at for at in dues if at is not None), default=None)

    def note_lag(self, late_s: float) -> bool:
        """Note how late a tick came. Returns True if that was a stall: let what was sent meanwhile be read, then tick."""
        self.lag.highest = max(self.lag.highest, late_s)
        if late_s <= STALL_S:
            return False
        log.warning("the hub stood still for %.1f s; leases get as much longer", late_s)
        self.engine.forgive(late_s)
        return True

    def tick(self) -> None:
        """Do what is due."""
        now = self.now()
        self.engine.tick(now)
        for peer, request_id, answer in self.waits.tick(now):
            self.batches.hold(peer, request_id, answer)
            peer.flush()
        self.schedules.tick()
        self.subscriptions.tick(now)
        self.after_call()

    # -- for sessions and the web -------------------------------------------------------------------------------------------

    def after_call(self) -> None:
        """Take up what an engine call wants done. Must follow each one. Never switches."""
        finished = self.engine.effects.finished
        if finished:
            self._remember(finished)
        self.batches.collect()
        self.replan()

    def _remember(self, jobs: list[Job]) -> None:
        recent, size = self._recent, 0
        for job in jobs:
            recent[job.id] = job
            size += job.payload_bytes
            if job.result is not None:
                size += len(job.result)
        self._recent_bytes += size
        if len(self._recent) > RECENT_JOBS or self._recent_bytes > RECENT_BYTES:
            self._recent_before, self._recent, self._recent_bytes = self._recent, {}, 0

    def in_memory(self, job_id: int) -> Job | None:
        """Return the job if memory knows it: unfinished and in a window or running, or finished lately."""
        return self.engine.jobs.get(job_id) or self._recent.get(job_id) or self._recent_before.get(job_id)

    def forget(self, job_id: int) -> None:
        """Forget that a job finished lately: it is unfinished again."""
        self._recent.pop(job_id, None)
        self._recent_before.pop(job_id, None)

    def _forget_all(self, ids: list[int]) -> None:
        for job_id in ids:
            self.forget(job_id)

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
        found.started_at, found.cancel_requested, found.report = present.started_at, present.cancel_requested, present.report
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


class _Loading:
    """One `Desk.load`. An object, not functions that name each other: those would be cycles, freed late by the collector."""

    __slots__ = ("_desk", "_ids", "_took", "_done", "_budget", "_at")

    def __init__(self, desk: Desk, ids: list[int], took: Callable[[dict[int, Job | Lost]], None], done: Callable[[], None],
                 budget: Budget | None) -> None:
        self._desk = desk
        self._ids = ids
        self._took = took
        self._done = done
        self._budget = budget
        self._at = 0

    def ask(self) -> None:
        self._desk.batches.load(self._ids[self._at:self._at + LOAD_IDS], self._took_some, self._budget)

    def _took_some(self, jobs: dict[int, Job | Lost]) -> None:
        self._took(jobs)
        self._at += LOAD_IDS
        if self._at < len(self._ids):
            self.ask()
        else:
            self._desk.loading_done(len(self._ids))  # only now: what was taken lies in memory until it is answered
            self._done()
