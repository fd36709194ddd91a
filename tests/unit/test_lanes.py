"""One lane and its window: order, returned jobs, tails that go, and the budget over all lanes."""

from __future__ import annotations

import random

import pytest

from greenroom.job import Job, State, move, rank_of
from greenroom.lanes import ABOVE_ALL, SHRINK_JOBS, SLICE_BYTES, SLICE_ROWS, Lane, Window


class Shop:
    """A lane with jobs that are made as the engine makes them."""

    def __init__(self, max_jobs: int = 1000, max_bytes: int = 2**20) -> None:
        self.window = Window(max_jobs, max_bytes)
        self.totals = [0] * 7
        self.lane = self.new_lane("t")
        self.places = 0

    def new_lane(self, task: str) -> Lane:
        return Lane("q", task, self.window, self.totals)

    def add(self, priority: int = 5, payload: bytes = b"x", lane: Lane | None = None) -> Job:
        lane = lane or self.lane
        self.places += 1
        job = Job(self.places, "q", lane.task, priority, payload, False, 0.0)
        job.lane, job.place, job.rank = lane, self.places, rank_of(priority, self.places)
        if lane.may_hold(job.rank):
            lane.append(job)
        lane.count(State.QUEUED, 1)
        return job

    def take(self) -> Job:
        job, = self.lane.take(1, ABOVE_ALL, 0)
        move(job, State.RUNNING)
        job.attempt += 1
        return job

    def give_back(self, job: Job) -> None:
        is_held = self.lane.may_hold(job.rank)
        move(job, State.QUEUED)
        if is_held:
            self.lane.put_back(job)


def test_lower_priority_comes_first_and_within_one_the_first_in() -> None:
    shop = Shop()
    late = [shop.add(9) for _ in range(3)]
    early = [shop.add(1) for _ in range(3)]
    middle = [shop.add(5) for _ in range(3)]

    assert [shop.take() for _ in range(9)] == early + middle + late
    assert shop.lane.head() is None and shop.lane.in_memory == shop.window.jobs == shop.window.payload_bytes == 0


def test_a_job_that_comes_back_has_its_old_place() -> None:
    shop = Shop()
    jobs = [shop.add() for _ in range(4)]
    first, second, third = (shop.take() for _ in range(3))

    for job in (third, first, second):
        shop.give_back(job)

    assert [shop.take() for _ in range(4)] == jobs


def test_a_dropped_tail_lowers_the_edge_and_later_jobs_stay_out() -> None:
    shop = Shop()
    jobs = [shop.add() for _ in range(5)]

    dropped = shop.lane.drop_tail(2, keep=0)

    assert dropped == [jobs[4], jobs[3]]
    assert jobs[2].rank <= shop.lane.edge < jobs[3].rank
    assert shop.lane.in_store == 2
    shop.add()
    assert (shop.lane.in_memory, shop.lane.in_store) == (3, 3)
    better = shop.add(1)
    assert shop.lane.head() is better, "one before the edge belongs into memory"


def test_a_running_job_beyond_the_edge_goes_to_the_store_when_it_comes_back() -> None:
    shop = Shop()
    jobs = [shop.add() for _ in range(3)]
    shop.take(), shop.take()
    last = shop.take()
    shop.give_back(jobs[0])
    shop.give_back(jobs[1])
    shop.lane.drop_tail(1, keep=0)

    shop.give_back(last)

    assert shop.lane.queued_jobs() == [jobs[0]] and shop.lane.in_store == 2


def test_the_edge_is_forgotten_once_the_store_has_nothing_alone() -> None:
    shop = Shop()
    first, second = shop.add(), shop.add()
    shop.lane.drop_tail(1, keep=0)
    move(second, State.CANCELLED)

    third = shop.add()

    assert shop.lane.edge is None and shop.lane.queued_jobs() == [first, third]


def test_a_lane_competes_with_its_head_or_with_its_edge_while_only_the_store_has_jobs() -> None:
    shop = Shop()
    assert shop.lane.best_rank() is None
    first = shop.add()
    assert shop.lane.best_rank() == first.rank

    shop.lane.drop_tail(1, keep=0)

    assert shop.lane.head() is None and shop.lane.best_rank() == shop.lane.edge < first.rank


def test_a_job_taken_out_of_turn_is_never_the_head_and_its_traces_are_swept() -> None:
    shop = Shop()
    jobs = [shop.add() for _ in range(200)]

    for job in jobs[:150]:
        shop.lane.remove(job)
        move(job, State.CANCELLED)

    assert shop.lane.head() is jobs[150] and shop.lane.in_memory == 50
    assert sum(map(len, shop.lane._bands.values())) <= 2 * 64 + 50
    assert [shop.take() for _ in range(50)] == jobs[150:]


def test_the_largest_lanes_shrink_first_and_those_that_nobody_can_run_before_all() -> None:
    shop = Shop(max_jobs=100)
    small, large, idle = (shop.new_lane(name) for name in ("small", "large", "idle"))
    for lane, number in ((small, 20), (large, 50), (idle, 31)):
        lane.groups = [] if lane is idle else [object()]
        for _ in range(number):
            shop.add(lane=lane)

    dropped = shop.window.shrink([small, large, idle])
    assert len(dropped) == 11 and {job.lane for job in dropped} == {idle}

    for _ in range(50):
        shop.add(lane=large)
    dropped = shop.window.shrink([small, large, idle])
    assert {job.lane for job in dropped} == {idle, large}
    assert (idle.in_memory, small.in_memory) == (0, 20) and shop.window.jobs <= 90


def test_too_many_jobs_leave_some_at_a_time_until_a_tenth_of_the_budget_is_free() -> None:
    shop = Shop(max_jobs=20_000)
    other = shop.new_lane("other")
    for lane in (shop.lane, other):
        lane.groups = [object()]
        for _ in range(11_000):
            shop.add(lane=lane)

    steps = []
    while shop.window.is_over:
        steps.append(len(shop.window.shrink([shop.lane, other])))

    assert max(steps) <= SHRINK_JOBS and sum(steps) == 22_000 - 18_000
    assert sorted((shop.lane.in_memory, other.in_memory)) == [7_000, 11_000], "a lane gives up at most half of it at a time"


def test_a_lane_that_a_worker_can_run_keeps_its_head() -> None:
    shop = Shop(max_bytes=10)
    shop.lane.groups = [object()]
    head = shop.add(payload=bytes(50))

    for _ in range(5):
        shop.add(payload=bytes(50))
        shop.window.shrink([shop.lane])

    assert shop.lane.head() is head and shop.lane.in_memory == 1


def test_heads_beyond_the_budget_are_not_looked_through_again_before_more_jobs_came() -> None:
    shop = Shop(max_jobs=20)
    lanes = [shop.new_lane(f"t{number}") for number in range(30)]
    for lane in lanes:
        lane.groups = [object()]
        shop.add(lane=lane)
    assert shop.window.is_over and shop.window.shrink(lanes) == [] and not shop.window.is_over

    for lane in lanes[:3]:
        shop.add(lane=lane)

    assert shop.window.is_over and len(shop.window.shrink(lanes)) == 3


def test_payload_bytes_count_against_the_budget() -> None:
    shop = Shop(max_bytes=1000)
    for _ in range(10):
        shop.add(payload=bytes(100))
    assert not shop.window.is_over
    shop.add(payload=bytes(100))
    assert shop.window.is_over

    shop.window.shrink([shop.lane])

    assert shop.window.payload_bytes <= 900 == shop.lane.in_memory * 100


def test_a_slice_is_small_in_rows_in_bytes_and_against_the_budget() -> None:
    assert Window().slice_rows(100) == SLICE_ROWS
    assert Window().slice_rows(2**20) == SLICE_BYTES // 2**20
    assert Window(max_jobs=30).slice_rows(0) == 3
    assert Window(max_jobs=1, max_bytes=1).slice_rows(2**20) == 1


def test_only_the_first_payloads_that_lack_are_asked_for() -> None:
    shop = Shop(max_bytes=2**30)
    jobs = [shop.add(payload=bytes(2**20)) for _ in range(10)]
    for job in [shop.take() for _ in range(8)]:
        job.payload = None
        shop.give_back(job)

    assert shop.lane.unloaded() == [job.id for job in jobs[:4]]


@pytest.mark.parametrize("seed", range(5))
def test_any_mix_of_moves_keeps_order_and_counts(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    shop = Shop()
    running: list[Job] = []
    for _ in range(2000):
        step = rng.random()
        queued = shop.lane.queued_jobs()
        if step < 0.45:
            shop.add(rng.choice([1, 5, 10]))
        elif step < 0.7 and queued:
            assert shop.lane.head() is queued[0]
            running.append(shop.take())
        elif step < 0.85 and running:
            shop.give_back(running.pop(rng.randrange(len(running))))
        elif step < 0.93 and queued:
            gone = rng.choice(queued)
            shop.lane.remove(gone)
            move(gone, State.CANCELLED)
        elif queued:
            dropped = shop.lane.drop_tail(rng.randint(1, 5), keep=1)
            assert dropped == queued[::-1][:len(dropped)] and shop.lane.head() is queued[0]
        held = shop.lane.queued_jobs()
        assert shop.lane.in_memory == shop.window.jobs == len(held)
        assert shop.lane.in_store <= 0 or all(job.rank <= shop.lane.edge for job in held)


def test_a_run_ends_at_a_rival_at_the_limit_at_the_bytes_and_at_a_payload_that_is_not_there() -> None:
    shop = Shop()
    first, second, third, fourth = (shop.add(payload=b"four") for _ in range(4))

    assert shop.lane.take(9, second.rank, 2**20) == [first, second]
    for job in (first, second):
        move(job, State.RUNNING)
    shop.give_back(second)
    second.payload = None

    assert shop.lane.head() is second and not shop.lane.is_head_ready
    second.payload = b"four"
    assert shop.lane.take(9, ABOVE_ALL, 8) == [second, third]
    assert shop.lane.take(9, first.rank, 0) == [fourth], "the head comes whatever it has"
    assert (shop.lane.in_memory, shop.window.jobs, shop.window.payload_bytes) == (0, 0, 0)


def test_a_run_takes_what_came_back_at_its_place() -> None:
    shop = Shop()
    jobs = [shop.add() for _ in range(6)]
    taken = [shop.take() for _ in range(3)]
    shop.give_back(taken[1])

    assert shop.lane.take(3, ABOVE_ALL, 2**20) == [jobs[1], jobs[3], jobs[4]]
