"""Submits whose unique keys belong to jobs that only the store has: what they are told and do, over the real verb, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from greenroom.clock import FakeClock
from greenroom.desk import Desk, Step
from greenroom.engine import Engine
from greenroom.errors import BusyError, GreenroomError
from greenroom.job import Job, State
from greenroom.key_holders import MAX_ROUNDS
from greenroom.lanes import Window
from greenroom.protocol import Request
from greenroom.stores.memory import MemoryStore
from greenroom.verbs import HANDLERS


class House(Desk):
    """A desk with a window of ten jobs, whose cycles run when the test says so."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.spawned: list[Callable[[], None]] = []
        self.breaths: list[Callable[[], None]] = []  # done in the middle of a unit, one a breath
        self.is_in_pump = False
        store = MemoryStore()
        super().__init__(Engine(window=Window(10, 10_000_000)), store, self.clock.now, lambda: None)
        self.restore(store.open(), 60.0)
        self.run()

    def replan(self) -> None:
        """No tick is wanted here."""

    @property
    def is_breath_due(self) -> bool:
        """At each occasion."""
        return True

    def breathe(self) -> None:
        """Do what the test wants done meanwhile."""
        assert not self.is_in_pump, "the pump must not wait"
        if self.breaths:
            self.breaths.pop(0)()

    def spawn_unit(self, work: Callable[[], None]) -> None:
        """Leave it for `run`, as a greenlet would."""
        self.batches.units += 1
        self.spawned.append(work)

    def cycle(self) -> None:
        """One commit cycle, with what was spawned run where the hub would have its turn."""
        self.is_in_pump = True
        for step in self.write():
            if step is Step.COMMIT:
                self.store.commit()
            else:
                self._run_spawned()
            self.is_in_pump = True
        self.committed()
        self._run_spawned()

    def _run_spawned(self) -> None:
        self.is_in_pump = False
        while self.spawned:
            work = self.spawned.pop(0)
            try:
                work()
            finally:
                self.batches.units -= 1

    def run(self) -> None:
        """Cycles until there is nothing to do."""
        for _ in range(1000):
            if not self.batches.has_work and not self.spawned:
                return
            self.cycle()
        raise AssertionError("the pump never comes to rest")


class Caller:
    """Keeps what is answered."""

    session = None
    is_open = True
    deliveries_written = True
    takes_events = False

    def __init__(self, house: House) -> None:
        self.house = house
        self.asked = 0
        self.held_deliveries = 0
        self.open_waits: set = set()
        self.answers: dict[int, dict | GreenroomError] = {}

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Keep it."""
        self.answers[request_id] = answer

    def flush(self) -> None:
        """Nothing waits."""

    def ask(self, verb: str, **fields: object) -> int:
        """Ask, without waiting for the answer."""
        self.asked += 1
        HANDLERS[verb](self.house, self, Request(verb, self.asked, fields))
        return self.asked

    def submit(self, *jobs: dict, submission: bytes | None = None) -> int:
        """Submit, without waiting for the answer."""
        return self.ask("submit", jobs=[{"task": "t", **job} for job in jobs], submission=submission)

    def told(self, *jobs: dict, submission: bytes | None = None) -> list:
        """Submit and return the outcomes."""
        number = self.submit(*jobs, submission=submission)
        self.house.run()
        answer = self.answers[number]
        if isinstance(answer, GreenroomError):
            raise answer
        return answer["jobs"]


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def caller(house: House) -> Caller:
    return Caller(house)


def keyed(number: int, payload: bytes = b"old", **options: object) -> dict:
    return {"unique_key": f"k{number}", "payload": payload, **options}


def deep(caller: Caller, count: int = 40, **options: object) -> list[int]:
    """Submit jobs with the keys k0, k1 … of which most are on disk alone; returns their ids."""
    ids = caller.told(*[keyed(number, **options) for number in range(count)])
    caller.told(*[{"priority": 1} for _ in range(20)])  # they push out the others
    assert not any(job_id in caller.house.engine.jobs for job_id in ids[10:])
    return ids


def forget_scheduled(house: House) -> None:
    """Leave scheduled jobs to the store alone, as after a restart."""
    scheduled = house.engine.scheduled
    for job_id in list(scheduled._entries):
        del house.engine.jobs[job_id]
    total = scheduled.total
    scheduled.__init__()
    scheduled.total, scheduled.edge = total, (0.0, 0)


def payloads(house: House, ids: list[int]) -> list[bytes]:
    return [job.payload for job in house.store.load(ids).values()]


def test_a_duplicate_of_a_job_on_disk_is_told_its_state(house: House, caller: Caller) -> None:
    ids = deep(caller)
    assert caller.told(keyed(30), {}, keyed(99))[0] == {"duplicate": ids[30], "state": "queued", "replaced": False}
    house._recent.clear()
    caller.ask("cancel", jobs=[ids[31]])
    house.run()
    throttled = caller.told(keyed(50, unique_mode="throttle", unique_for=60.0))[0]
    caller.ask("cancel", jobs=[throttled])
    house.run()
    house._recent.clear()

    assert caller.told(keyed(50)) == [{"duplicate": throttled, "state": "cancelled", "replaced": False}]
    assert isinstance(caller.told(keyed(31))[0], int)
    caller.ask("delete", jobs=[throttled])
    house.run()
    assert caller.told(keyed(50)) == [{"duplicate": throttled, "state": None, "replaced": False}], "nothing is kept of it any more"


@pytest.mark.parametrize("count", [1, 20, 40])
@pytest.mark.parametrize("submission", [None, bytes(16)])
def test_the_payload_of_jobs_on_disk_is_replaced_in_the_transaction_of_the_rest(house: House, caller: Caller, count: int,
                                                                               submission: bytes | None) -> None:
    ids = deep(caller)
    chosen = range(40 - count, 40)
    jobs = [keyed(number, b"new", on_duplicate="replace") for number in chosen] + [{}] * (120 if count == 20 else 1)
    outcomes = caller.told(*jobs, submission=submission)

    assert outcomes[:count] == [{"duplicate": ids[number], "state": "queued", "replaced": True} for number in chosen]
    assert all(isinstance(outcome, int) for outcome in outcomes[count:])
    assert payloads(house, [ids[number] for number in chosen]) == [b"new"] * count
    assert house.batches._kept == {} and house._loading_ids == 0
    if submission is not None:
        assert caller.told(*jobs, submission=submission) == outcomes


def test_many_that_take_several_looks_into_the_store(house: House, caller: Caller) -> None:
    ids = deep(caller, 450)
    outcomes = caller.told(*[keyed(number, b"new", on_duplicate="replace") for number in range(450)])

    assert [outcome["duplicate"] for outcome in outcomes] == ids and all(outcome["replaced"] for outcome in outcomes)
    assert payloads(house, ids) == [b"new"] * 450
    assert house.batches._kept == {}


def test_a_job_on_disk_is_debounced(house: House, caller: Caller) -> None:
    options = {"unique_mode": "debounce", "unique_for": 100.0}
    first, *_ = caller.told(keyed(1, **options))
    forget_scheduled(house)
    house.clock.advance(30.0)

    assert caller.told(keyed(1, b"new", **options)) == [{"duplicate": first, "state": "scheduled", "replaced": True}]
    job = house.store.load([first])[first]
    assert (job.payload, job.run_at) == (b"new", house.now() + 100.0)


def test_two_that_load_the_same_job_at_once_act_on_one(house: House, caller: Caller) -> None:
    ids = deep(caller)
    one, two = Caller(house), Caller(house)
    one.submit(keyed(30, b"one", on_duplicate="replace"), *[keyed(number) for number in range(10, 29)])
    two.submit(keyed(30, b"two", on_duplicate="replace"))
    caller.ask("change", jobs=[ids[30]], priority=9, queue=None, run_at=None, delay=None, payload=None, encoding="msgpack")
    house.run()

    job = house.store.load([ids[30]])[ids[30]]
    assert (job.payload, job.priority) == (b"two", 9)
    assert house.batches._kept == {}


def changed_meanwhile(house: House, caller: Caller, ids: list[int]) -> Iterator[None]:
    """Between two looks into the store (100 jobs each): change, cancel and take jobs that were loaded in the first."""
    caller.ask("change", jobs=[ids[20]], priority=2, queue=None, run_at=None, delay=None, payload=None, encoding="msgpack")
    caller.ask("cancel", jobs=[ids[21]])
    yield


def test_jobs_that_are_changed_while_others_are_still_loaded_are_not_acted_on_as_they_were(house: House, caller: Caller) -> None:
    ids = deep(caller, 450)
    number = caller.submit(*[keyed(number, b"new", on_duplicate="replace") for number in range(450)])
    meanwhile = changed_meanwhile(house, Caller(house), ids)
    house.cycle()
    assert house.batches._kept and number not in caller.answers, "the first look has come, others have not"
    next(meanwhile)
    house.run()
    outcomes = caller.answers[number]["jobs"]
    changed, cancelled = house.store.load([ids[20], ids[21]]).values()

    assert (changed.priority, changed.payload, changed.state) == (2, b"new", State.QUEUED)
    assert (cancelled.state, cancelled.payload) == (State.CANCELLED, b"old")
    assert isinstance(outcomes[21], int) and outcomes[20]["replaced"], "the key of the cancelled one was free"
    lane = house.engine.lanes["default", "t"]
    assert lane.counts[State.QUEUED] == 470 and lane.waiting_bytes == sum(
        job.payload_bytes for job in house.store._jobs.values() if job.state is State.QUEUED)


def test_a_job_that_comes_into_memory_while_it_is_loaded_is_that_one(house: House, caller: Caller) -> None:
    ids = caller.told(*[keyed(number, delay=50.0) for number in range(450)])
    forget_scheduled(house)
    other = Caller(house)
    number = caller.submit(*[keyed(number, b"new", on_duplicate="replace") for number in range(450)])
    house.engine._ask_scheduled()  # they come before the jobs that are loaded for the submit
    house.after_call()
    house.cycle()
    assert ids[0] in house.engine.jobs and ids[0] in house.batches._kept and number not in caller.answers
    other.ask("change", jobs=[ids[0]], priority=2, queue=None, run_at=None, delay=None, payload=None, encoding="msgpack")
    house.cycle()
    forget_scheduled(house)
    assert number not in caller.answers
    house.run()
    job = house.store.load([ids[0]])[ids[0]]

    assert (job.priority, job.payload) == (2, b"new")


def test_a_job_that_leaves_memory_in_the_middle_of_a_submit_is_still_known(house: House, caller: Caller) -> None:
    [job_id] = caller.told(keyed(1))
    jobs = [{"priority": 1} for _ in range(150)] + [keyed(1, b"new", on_duplicate="replace")]
    house.breaths = [lambda: None] * 4
    outcomes = caller.told(*jobs)

    assert job_id not in house.engine.jobs
    assert outcomes[-1] == {"duplicate": job_id, "state": "queued", "replaced": True}
    assert payloads(house, [job_id]) == [b"new"]


def test_a_submit_that_is_refused_while_its_keys_are_looked_up_lets_go_of_all(house: House, caller: Caller) -> None:
    deep(caller)
    submission = bytes(16)
    number = caller.submit(keyed(30, on_duplicate="replace"), submission=submission)
    house.store_full = True
    house.run()

    assert caller.answers[number].code == "STORE_FULL"
    assert house.batches._kept == {} and house.batches._storing == {}
    house.store_full = False
    assert caller.told(keyed(30, on_duplicate="replace"), submission=submission)[0]["replaced"]


def test_whoever_looks_for_ever_is_told_to_come_again(house: House, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(caller)
    monkeypatch.setattr(house.batches, "known", lambda job_id: None)

    with pytest.raises(BusyError, match="change too fast"):
        caller.told(keyed(30))
    assert house.batches._kept == {} and MAX_ROUNDS == 5


def test_too_many_look_ups_refuse_the_whole(house: House, caller: Caller) -> None:
    deep(caller)
    house._loading_ids = 20_000

    with pytest.raises(BusyError, match="too many jobs are being looked up"):
        caller.told(keyed(30), {})
    assert house.batches._kept == {}


def test_a_damaged_job_is_a_duplicate_of_unknown_state(house: House, caller: Caller) -> None:
    ids = deep(caller)
    row: Job = house.store._jobs[ids[30]]
    row.damage = "row"

    assert caller.told(keyed(30, b"new", on_duplicate="replace")) == [{"duplicate": ids[30], "state": None, "replaced": False}]


def test_plain_submits_look_for_nobody(house: House, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.verbs.holders", lambda *_: pytest.fail("it has no keys"))

    assert all(isinstance(outcome, int) for outcome in caller.told({}, {"expires_in": 5.0}, {"delay": 1.0}))
