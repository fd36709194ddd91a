"""One seed, one run: who takes part, what goes wrong and how often, then everything heals and must come to an end.

Which faults a run has is drawn from its seed too (a swarm): a run with all of them at once would rarely come far with any.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.core import check, check_at_rest
from tests.simulation.actors import QUEUES, STEERER_PAUSE_S, TASKS, Actor, Admin, Producer, Steerer
from tests.simulation.blame import POISONED_EVERY
from tests.simulation.history import History, Spec
from tests.simulation.house import POINTS, Alarm, House
from tests.simulation.keyed import KEYED_EVERY, KeyedProducer
from tests.simulation.limiter import LIMITED_EVERY, Limiter
from tests.simulation.network import Wire
from tests.simulation.planner import PLANNED_EVERY, Planner
from tests.simulation.stores import SimStore, TwinStore
from tests.simulation.subscriber import FEW_EVENTS, SUBSCRIBED_EVERY, Subscriber
from tests.simulation.workers import Habits, Worker
from tests.simulation.world import Violation, World
from greenroom import batches, clock, desk, engine, events, lanes, leases, scheduled, suspects
from greenroom.lanes import Window
from greenroom.leases import Caps, Timing
from greenroom.stores import Retention

#: Faults that a run may have, each with even odds.
FAULTS = ("broker dies", "store fails", "wall clock jumps", "hub stalls", "connections break", "half-open", "half-closed",
          "stuck receivers", "splits", "workers crash", "zombies", "slow commits", "disk fills", "broker stops", "duplicates", "cancels",
          "schedules")
#: Each n-th seed runs on the real SQLite store, and submits by the thousand.
SQLITE_EVERY = 12
FLOOD_EVERY = 100
#: Each n-th job says how long it is kept: for so long. By number, without a draw.
KEPT_EVERY = 7
KEPT_S = (0.0, 2.0, 30.0, 7200.0)
#: In each n-th somebody pauses, changes and purges. A draw of its own, so that the other seeds stay the runs that they were.
STEERED_EVERY = 4
KINDS = {
    "honest": Habits("honest"),
    "quick": Habits("quick", slots=10, job_s=0.02, odd=0.02),
    "slow": Habits("slow", slots=3, job_s=6.0, odd=0.05),
    "silent": Habits("silent", slots=1, job_s=2.0, beats=False, extends=0.5),
    "forgetful": Habits("forgetful", lists=0.5, odd=0.3, has_instance=False),
}
#: How long faults are about, in virtual seconds; a fifth more or less.
TROUBLE_S = 17.0
#: A suspect waits so long for its neighbours.
SUSPECT_WAIT_S = 2.0
#: The longest stall of the hub, in leases.
STALLS = 1.5


class Numbers(NamedTuple):
    """Bounds of the broker that a run makes so small that a few jobs reach them."""

    scheduled: int
    scheduled_refill: int
    block: int
    refill_below: int
    refill_to: int
    slice_jobs: int
    batch_jobs: int


class Result(NamedTuple):
    """What a run was."""

    seed: int
    counts: Counter[str]
    events: int


class Failed(Exception):
    """A run found that a promise is broken. The text says which, how to repeat it, and what happened last."""


def simulate(seed: int) -> Result:
    """Run one seed. Raises Failed."""
    run = Run(seed)
    try:
        with run.in_place():
            run.go()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise Failed(f"{_short(exc)}\n\nThe last events of seed {seed} (faults: {', '.join(sorted(run.faults))}):\n"
                     f"{run.world.story()}\n\nseed {seed}: {_short(exc)}\n"
                     f"Again with: ./run simulate --seed {seed}") from exc
    return Result(seed, run.world.counts, run.world.events)


def _short(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:400]


class Run:
    """See the module.

    Attributes:
        pace_s: mean time between two things that a producer does. duplicates, resends, cancels, stops: how likely these are.
        slowness_s: what a COMMIT may take, so much more patience everybody needs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed)
        rng = self.world.rng
        self.faults = {fault for fault in FAULTS if rng.random() < 0.5}
        self.is_flood = seed % FLOOD_EVERY == 7
        self.uses_sqlite = seed % SQLITE_EVERY == 5 and not self.is_flood
        self.pace_s = rng.choice([0.3, 0.6, 1.0])
        self.is_keyed = self.seed % KEYED_EVERY == 0 and not self.is_flood
        self.duplicates = 0.3 if "duplicates" in self.faults else 0.0
        self.resends = 0.005 if self.is_flood else 0.05
        self.cancels = 0.3 if "cancels" in self.faults else 0.03
        self.stops = 0.15 if "broker stops" in self.faults else 0.0
        self.slow_s = rng.choice([0.05, 0.5, 3.0]) if "slow commits" in self.faults else 0.0
        self.slowness_s = 2 * self.slow_s
        self.timing = Timing(lease_s=rng.choice([3.0, 6.0]), heartbeat_s=1.5, reconnect_grace_s=0.5,
                             restart_grace_s=rng.choice([2.0, 8.0]))
        self.delay_s = rng.choice([0.0005, 0.005, 0.1])
        self.numbers = self._numbers()
        self._kept_events = FEW_EVENTS if seed % (2 * SUBSCRIBED_EVERY) == 2 else events.MAX_EVENTS
        self.subscriber: Subscriber | None = None
        self.limiter: Limiter | None = None
        self.is_healed = False
        self.actors: list[Actor] = []
        self.wires: list[Wire] = []
        self._payloads = 0
        self._folder: Path | None = None

    def _numbers(self) -> Numbers:
        rng = self.world.rng
        if self.is_flood:
            return Numbers(10_000, 1000, 20_000, 1000, 3000, rng.choice([100, 400]), 20_000)
        return Numbers(rng.choice([4, 8, 100]), 3, rng.choice([60, 200, 2000]), rng.choice([2, 3, 6]), rng.choice([4, 6, 20]),
                       rng.choice([1, 3, 400]), rng.choice([6, 20, 20_000]))

    def limits(self) -> tuple[Caps, Timing, Window]:
        """Return what a broker of this run is made with."""
        window = (2500, 2**20) if self.is_flood else self._window
        caps = Caps(leases_per_session=1000 if self.is_flood else 6, reserve_bytes=2**20 if self.is_flood else 3000)
        return caps, self.timing, Window(*window)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the small bounds and the virtual clocks where the product looks for them, and hear what it logs."""
        numbers = self.numbers
        kept = [(module, name, getattr(module, name), value) for module, name, value in (
            (scheduled, "MAX_IN_MEMORY", numbers.scheduled), (scheduled, "REFILL_BELOW", numbers.scheduled_refill),
            (batches, "BLOCK_NUMBERS", numbers.block), (batches, "SLICE_JOBS", numbers.slice_jobs),
            (batches, "MAX_BATCH_JOBS", numbers.batch_jobs), (lanes, "REFILL_BELOW", numbers.refill_below),
            # One job a look and a gap, so that the jobs that a submit has to load come in several.
            (desk, "LOAD_IDS", 1 if self.is_keyed else desk.LOAD_IDS), (batches, "LOAD_COST", 8 if self.is_keyed else batches.LOAD_COST),
            (engine, "REFILL_TO", numbers.refill_to), (events, "MAX_EVENTS", self._kept_events), (clock, "time", self.world),
            (suspects, "SUSPECT_WAIT_S", SUSPECT_WAIT_S), (leases, "SUSPECT_WAIT_S", SUSPECT_WAIT_S))]
        logger, alarm = logging.getLogger("greenroom"), Alarm()
        was_loud, logger.propagate = logger.propagate, False
        logger.addHandler(alarm)
        try:
            for module, name, _, value in kept:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value, _ in kept:
                setattr(module, name, value)
            logger.removeHandler(alarm)
            logger.propagate = was_loud
            if self._folder is not None:
                self.store.discard()
                shutil.rmtree(self._folder, ignore_errors=True)

    def _make_store(self) -> SimStore:
        if not self.uses_sqlite:
            return SimStore(self.world, Retention())
        self._folder = Path(tempfile.mkdtemp(prefix="greenroom-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        return TwinStore(self.world, Retention(), self._folder)

    # -- the run ------------------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Trouble, then peace, then everything must be over."""
        rng = self.world.rng
        self._window = (rng.choice([8, 12, 40]), rng.choice([2000, 8000]))
        self.store = self._make_store()
        self.house = House(self.world, self.store, self.limits, self._commit_s, 100 if self.is_flood else 12)
        self.history = self.house.history = History(self.world, self.house, self.timing)
        self.house.restart_after_s = lambda: rng.choice([0.05, 0.5, 3.0])
        self.house.start()
        self._hire()
        for actor in self.actors:
            actor.begin()
        self._plan_trouble()
        self.world.run(TROUBLE_S * (0.8 + 0.4 * rng.random()))
        self._heal()
        self._check_end()

    def _hire(self) -> None:
        rng = self.world.rng
        submits = 3 if self.is_flood else rng.choice([4, 8, 12])
        producers = 1 if self.is_flood else rng.choice([1, 2, 2, 3])
        self.producers = [Producer(self, f"p{number}", submits) for number in range(producers)]
        kinds = ["quick", "quick"] if self.is_flood else rng.choices(list(KINDS), k=rng.choice([1, 2, 3, 4]))
        self.workers = []
        for number, kind in enumerate(kinds):
            habits = KINDS[kind]
            if "workers crash" in self.faults:
                habits = habits._replace(crash_every_s=rng.choice([4.0, 15.0]))
            if "zombies" in self.faults and rng.random() < 0.6:
                habits = habits._replace(kind="zombie", pause_every_s=rng.choice([5.0, 12.0]), pause_s=1.5 * self.timing.lease_s)
            if self.is_flood:
                habits = habits._replace(slots=1000, job_s=0.2)
            self.workers.append(Worker(self, f"w{number}-{habits.kind}", habits))
        self.admin = Admin(self, "admin")
        if self.is_keyed:
            self.producers.append(KeyedProducer(self, "keyed", 25))
        self.actors = [*self.producers, *self.workers, self.admin]
        if self.seed % PLANNED_EVERY == 1 and not self.is_flood:
            self.history.planner = Planner(self, "planner")
            self.actors.append(self.history.planner)
        if self.seed % STEERED_EVERY == 1 and not self.is_flood:
            self.actors.append(Steerer(self, "steerer"))
        if self.seed % LIMITED_EVERY == 3 and not self.is_flood:
            self.limiter = Limiter(self, "limiter")
            self.actors.append(self.limiter)
        if self.seed % SUBSCRIBED_EVERY == 2:
            self.subscriber = Subscriber(self, "subscriber")
            self.actors.append(self.subscriber)

    def new_payload(self, dots: int) -> bytes:
        """Return a payload that no other job has."""
        self._payloads += 1
        return b"%d:" % self._payloads + b"." * dots

    def new_items(self) -> list[dict]:
        """Return the jobs of a submit, and tell the history of them."""
        rng = self.world.rng
        count = rng.choice([300, 1000]) if self.is_flood else rng.choice([1, 1, 1, 2, 3, 6])
        items = []
        for _ in range(count):
            payload = self.new_payload(rng.choice([0, 20] if self.is_flood else [0, 20, 90, 513, 900]))
            item: dict[str, object] = {"task": rng.choice(TASKS), "queue": rng.choice(QUEUES), "payload": payload,
                                       "encoding": "raw", "priority": rng.choice([1, 5, 5, 10])}
            run_at = delay = None
            if "schedules" in self.faults and rng.random() < 0.4:
                if rng.random() < 0.5:
                    delay = item["delay"] = rng.uniform(0.0, 8.0)
                else:
                    run_at = item["run_at"] = self.house.now + rng.uniform(-2.0, 8.0)
            attempts = rng.choice([1, 2, 5, 5])
            if attempts < 5:
                item.update(attempts=attempts, backoff="fixed", backoff_base=rng.choice([0.0, 0.5, 2.0]))
            if not self.is_flood and rng.random() < 0.1:
                item["unique_key"] = rng.choice("abcdef")
            if rng.random() < 0.1:
                item["expires_in"] = rng.choice([0.5, 4.0])
            if rng.random() < 0.1:
                item["timeout"] = rng.choice([1.0, 6.0])
            if rng.random() < 0.1:
                item["soft_timeout"] = rng.choice([0.2, 0.8])
            if self._payloads % KEPT_EVERY == 3:
                item["keep_for"] = KEPT_S[self._payloads // KEPT_EVERY % len(KEPT_S)]
            self.history.attempted[payload] = Spec(item["task"], item["queue"], item["priority"], run_at, delay, attempts,
                                                   item.get("soft_timeout"), item.get("keep_for"))
            if self.seed % POISONED_EVERY == 7 and not self.is_flood:
                self.history.blame.submits(payload)
            items.append(item)
        return items

    def connect(self, actor: Actor) -> Wire | None:
        """Connect an actor to the broker, or refuse."""
        wire = Wire(self.world, actor, self.delay_s, splits="splits" in self.faults)
        if not self.house.accept(wire):
            return None
        self.wires = [other for other in self.wires if not other.up.is_closed] + [wire]
        return wire

    def _commit_s(self) -> float:
        rng = self.world.rng
        if self.slow_s and not self.is_healed and rng.random() < 0.3:
            return rng.uniform(0.0, self.slow_s)
        return rng.choice([0.0002, 0.001, 0.004])

    # -- trouble ------------------------------------------------------------------------------------------------------------

    def _plan_trouble(self) -> None:
        for fault, mean_s, call in (
                ("broker dies", 5.0, self.let_broker_die), ("store fails", 9.0, self._let_store_fail),
                ("wall clock jumps", 4.0, self._jump), ("hub stalls", 6.0, self._stall), ("connections break", 1.5, self._cut),
                ("half-open", 5.0, self._lose_direction), ("half-closed", 4.0, self._half_close),
                ("stuck receivers", 3.0, self._stick), ("disk fills", 4.0, self._fill_disk), ("duplicates", 2.5, self._come_again)):
            if fault in self.faults:
                self._plan(mean_s * self.world.rng.choice([0.5, 1.0, 2.0]), call)

    def _plan(self, mean_s: float, call: object) -> None:
        self.world.after(self.world.rng.expovariate(1 / mean_s), self._trouble, mean_s, call)

    def _trouble(self, mean_s: float, call: object) -> None:
        if not self.is_healed:
            call()
            self._plan(mean_s, call)

    def let_broker_die(self) -> None:
        """The broker dies, now or at a point of a cycle to come; if that is among the faults of this run."""
        house, rng = self.house, self.world.rng
        if not house.is_up or self.is_healed or "broker dies" not in self.faults:
            return
        if rng.random() < 0.2:
            house.crash("any time", may_keep=self.store.is_committing)
        else:
            house.crash_at = {rng.choice(POINTS): rng.choice([1, 1, 2, 4])}

    def _let_store_fail(self) -> None:
        if self.house.is_up:
            which = self.world.rng.choice(["fail_apply", "fail_commit"])
            setattr(self.store, which, True)

    def _jump(self) -> None:
        """The machine's wall clock is set; now and then the machine starts anew, and its monotonic clock with it."""
        rng = self.world.rng
        self.world.wall_s += rng.choice([-3600.0, -5.0, 1.0, 7.0, 3600.0])
        self.world.counts["wall clock jumps"] += 1
        if rng.random() < 0.2 and self.house.is_up:
            self.house.crash("the machine", may_keep=self.store.is_committing)
            self.world.monotonic_s = rng.uniform(0.0, 100.0) - self.world.now

    def _stall(self) -> None:
        if self.house.is_up:
            self.world.note("the hub stands still")
            self.house.sleep.begin(self.world.rng.choice([0.1, 0.7, 2.0, STALLS * self.timing.lease_s]))

    def _fill_disk(self) -> None:
        if self.house.is_up:
            self.house.desk.store_full = True
            self.world.after(self.world.rng.uniform(0.2, 2.0), self._free_disk)

    def _free_disk(self) -> None:
        if self.house.is_up:
            self.house.desk.store_full = False

    def _some_wire(self) -> Wire | None:
        open_wires = [wire for wire in self.wires if not wire.up.is_closed]
        return self.world.rng.choice(open_wires) if open_wires else None

    def _cut(self) -> None:
        wire = self._some_wire()
        if wire is not None:
            self.world.note("a connection breaks", wire.client.name)
            wire.cut()

    def _lose_direction(self) -> None:
        wire = self._some_wire()
        if wire is not None:
            self.world.counts["half-open connection"] += 1
            (wire.up if self.world.chance(0.5) else wire.down).is_lost = True

    def _half_close(self) -> None:
        wire = self._some_wire()
        if wire is not None:
            self.world.counts["half-closed connection"] += 1
            wire.half_close(up=self.world.chance(0.5))

    def _stick(self) -> None:
        wire = self._some_wire()
        if wire is not None:
            wire.down.stuck_until = self.world.now + self.world.rng.uniform(0.2, 4.0)

    def _come_again(self) -> None:
        self.world.rng.choice(self.workers).come_again()

    # -- peace --------------------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """No more faults; producers learn their outcomes, workers leave, and an honest one does what is left (L1)."""
        world, house = self.world, self.house
        world.note("everything heals")
        self.is_healed = True
        self.stops = 0.0
        house.crash_at.clear()
        house.desk.store_full = False
        self.store.fail_apply = self.store.fail_commit = False
        for wire in self.wires:
            if wire.up.is_lost or wire.down.is_lost:
                wire.client.ended(wire)
                wire.up.is_lost = wire.down.is_lost = False
                wire.cut()
        for worker in self.workers:
            worker.sleep.end()
            worker.leave()
        self._end_limits()
        world.run(world.now + 60.0, done=lambda: all(producer.is_done for producer in self.producers))
        self._end_schedules()
        for actor in self.actors:
            if isinstance(actor, (Admin, Steerer)):
                actor.is_over = True
        late = [producer.name for producer in self.producers if not producer.is_done]
        if late:
            raise Violation(f"L1: {late} do not learn what became of their submits")
        for producer in self.producers:
            producer.is_over = True
        self._set_clock_right()
        last = Worker(self, "last", Habits("last", slots=1000 if self.is_flood else 6, job_s=0.05, odd=0.0))
        last.queues = last.tasks = None
        last.begin()
        bound_s = self._bound_s()
        world.run(world.now + bound_s, done=house.is_done)
        if not house.is_done():
            raise Violation(f"L1: {house.engine.waiting} jobs wait and {house.engine.leases} run {bound_s:.0f} s after it healed")

    def _end_limits(self) -> None:
        if self.limiter is not None:
            self.limiter.end()
            self.world.run(self.world.now + 60.0, done=lambda: self.limiter.is_done)
            if not self.limiter.is_done:
                raise Violation("L1: the limits can't be ended")
            self.limiter.is_over = True

    def _end_schedules(self) -> None:
        planner = self.history.planner
        if planner is not None:
            planner.end()
            self.world.run(self.world.now + 60.0, done=lambda: planner.is_done)
            if not planner.is_done:
                raise Violation("L1: the schedules can't be paused")
            planner.is_over = True

    def _set_clock_right(self) -> None:
        """A wall clock that was set back would have scheduled jobs wait for an hour more: set it forward, and start on that."""
        self.world.run(self.world.now + 30.0, done=lambda: self.house.is_up and not self.house.is_stopping)
        self.world.wall_s += max(0.0, self.history.latest_now - self.world.time())
        if self.house.now < self.history.latest_now - 1.0:
            self.house.stop()

    def _bound_s(self) -> float:
        """Return how long the rest may take: graces, leases, the longest stall that was forgiven, the last schedule, the work."""
        timing = self.timing
        now = self.house.now
        jobs = self.house.newest().values()
        schedule_s = max((job.run_at - now for job in jobs if job.run_at is not None), default=0.0)
        deaths_s = 8.0 * len(self.history.blame.poison)  # each kills up to five times, then a grace, then somebody connects
        return (10.0 + STEERER_PAUSE_S + timing.restart_grace_s + (1.0 + STALLS) * timing.lease_s + max(0.0, schedule_s) + 0.2 * len(jobs)
                + deaths_s)

    def _check_end(self) -> None:
        self.house.batches.prune_soon(self.house.now)
        self.world.run(self.world.now + 2.0)
        self.house.finish_cycles()
        check(self.house)
        check_at_rest(self.house)
        self.history.at_the_end()
        if self.subscriber is not None:
            self.subscriber.check_end()
        if self.uses_sqlite:
            self.store.check_integrity()
