"""What every store must do, run against each of them. Knows the contract in greenroom.stores, and no store's inside."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from greenroom.job import Job, State, rank_of
from greenroom.records import Damaged, Lost, Submission
from greenroom.stores import Retention, Store, open_store

NOW = 1_000_000.0
HOUR = 3600.0
FINISHED = (State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED)


class House:
    """A store and short words for what an engine does with it."""

    def __init__(self, url: str, retention: Retention = Retention()) -> None:
        self.url = url
        self.retention = retention
        self.store = open_store(url, retention)
        self.restored = self.store.open()

    def reopen(self) -> None:
        """Restart: a new object on the same directory; the memory store has only its own object."""
        self.store.close()
        if self.url != "memory:":
            self.store = open_store(self.url, self.retention)
        self.restored = self.store.open()

    def new(self, *, priority: int = 5, queue: str = "default", task: str = "t", payload: bytes = b"p", raw: bool = False,
            run_at: float | None = None) -> Job:
        job = Job(self.store.block("job", 1), queue, task, priority, payload, raw, NOW)
        if run_at is not None:
            job.run_at = run_at
            job.state = State.SCHEDULED
        else:
            job.place = job.id
        job.rank = rank_of(priority, job.place)
        return job

    def save(self, *jobs: Job) -> None:
        self.store.apply(list(jobs), [])
        self.store.commit()

    def saved(self, **fields: object) -> Job:
        job = self.new(**fields)
        self.save(job)
        return job

    def loaded(self, job: Job) -> Job | Lost:
        return self.store.load([job.id])[job.id]

    def seen(self, job: Job, *, payload: bool = False) -> Job | Lost:
        reader = self.store.reader()
        try:
            return reader.jobs([job.id], payload=payload)[job.id]
        finally:
            reader.close()


def grant(job: Job, fence: int, *, checkpoint: bool = False, worker: str = "w1") -> None:
    job.state = State.RUNNING
    job.started_at = NOW + 1
    job.worker = worker
    job.fence = fence
    job.attempt += 1
    job.lease = SimpleNamespace(fence=fence, instance=b"i" * 16, worker=worker, granted_at=NOW + 1)
    job.checkpoint = checkpoint


def requeue(job: Job) -> None:
    job.state = State.QUEUED
    job.lease = None
    job.checkpoint = False
    job.requeues += 1


def finish(job: Job, *, state: State = State.COMPLETED, at: float = NOW + 2, result: bytes | None = b"r") -> Job:
    job.state = state
    job.finished_at = at
    job.result = result
    job.lease = None
    job.checkpoint = False
    return job


def ids(jobs: list[Job]) -> list[int]:
    return [job.id for job in jobs]


@pytest.fixture(params=["memory", "sqlite"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Build houses; all are closed at the end."""
    houses = []

    def make(retention: Retention = Retention()) -> House:
        url = "memory:" if request.param == "memory" else str(tmp_path / f"data{len(houses)}")
        houses.append(House(url, retention))
        return houses[-1]

    yield make
    for house in houses:
        house.store.close()


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


def test_a_new_store_is_empty(house: House) -> None:
    assert house.restored == ([], [], [], {}, [], [], [], [], 0)
    assert house.store.take("default", "t", -2**63, 10) == []
    assert house.store.prune(NOW, 100) == 0


def test_take_goes_by_priority_then_place_also_after_a_restart(house: House) -> None:
    jobs = [house.new(priority=priority) for priority in (5, 1, 5, 10, 1, -1000, 1000)]
    house.save(*jobs)
    expected = [jobs[place].id for place in (5, 1, 4, 0, 2, 3, 6)]

    assert ids(house.store.take("default", "t", -2**63, 100)) == expected
    house.reopen()
    assert ids(house.store.take("default", "t", -2**63, 100)) == expected


def test_windows_join_without_gap_or_overlap(house: House) -> None:
    rng = random.Random(7)
    jobs = [house.new(priority=rng.randint(1, 10)) for _ in range(503)]
    house.save(*jobs)

    taken, after = [], -2**63
    while window := house.store.take("default", "t", after, 50):
        taken += window
        after = window[-1].rank

    assert ids(taken) == ids(sorted(jobs, key=lambda job: job.rank))


def test_lanes_are_apart(house: House) -> None:
    first, second, third = house.new(), house.new(task="u"), house.new(queue="q")
    house.save(first, second, third)

    assert ids(house.store.take("default", "t", -2**63, 10)) == [first.id]
    assert ids(house.store.take("default", "u", -2**63, 10)) == [second.id]
    assert ids(house.store.take("q", "t", -2**63, 10)) == [third.id]
    assert house.store.take("q", "u", -2**63, 10) == []


def test_take_leaves_out_what_is_finished_or_scheduled_and_keeps_what_is_leased(house: House) -> None:
    waiting, running, done, later = house.new(), house.new(), house.new(), house.new(run_at=NOW + 9)
    house.save(waiting, running, done, later)
    grant(running, 1, checkpoint=True)
    house.save(running, finish(done))

    taken = house.store.take("default", "t", -2**63, 10)

    assert ids(taken) == [waiting.id, running.id]
    assert {job.state for job in taken} == {State.QUEUED}


def test_scheduled_jobs_come_by_due_time_then_id_in_windows(house: House) -> None:
    jobs = [house.new(run_at=NOW + delay) for delay in (3, 1, 2, 1, 1)]
    house.save(*jobs)

    first = house.store.take_scheduled((0.0, 0), 3)
    rest = house.store.take_scheduled((first[-1].run_at, first[-1].id), 3)

    assert ids(first) == [jobs[place].id for place in (1, 3, 4)]
    assert ids(rest) == [jobs[place].id for place in (2, 0)]


def test_a_scheduled_job_that_falls_due_moves_to_its_lane(house: House) -> None:
    job = house.saved(run_at=NOW + 5, priority=2)
    job.state = State.QUEUED
    job.place = house.store.block("job", 1)
    job.rank = rank_of(2, job.place)
    house.save(job)

    assert house.store.take_scheduled((0.0, 0), 10) == []
    taken, = house.store.take("default", "t", -2**63, 10)
    assert (taken.id, taken.place, taken.rank, taken.run_at) == (job.id, job.place, job.rank, NOW + 5)


FIELDS = [name for name in Job.__slots__ if name not in ("lane", "lease", "late_fence", "checkpoint", "state")]


def test_every_field_of_a_job_comes_back_through_its_life(house: House) -> None:
    job = house.new(priority=3, payload=b"\x00\xff", raw=True)

    def check(state: State) -> None:
        house.reopen()
        found = house.loaded(job)
        assert {name: getattr(found, name) for name in FIELDS} == {name: getattr(job, name) for name in FIELDS}
        assert (found.state, found.stored_state, found.lane, found.lease) == (state, state, None, None)
        assert type(found.state) is State and type(found.raw) is bool and type(found.cancel_requested) is bool

    house.save(job)
    check(State.QUEUED)
    grant(job, 7)
    job.cancel_requested = True
    house.save(job)
    check(State.QUEUED)
    requeue(job)
    job.crashes = 1
    house.save(job)
    check(State.QUEUED)
    grant(job, 8, worker="w2")
    house.save(finish(job, state=State.FAILED, result=None))
    check(State.FAILED)


def test_a_scheduled_job_that_falls_due_and_finishes_in_one_batch_has_its_place(house: House) -> None:
    job = house.saved(run_at=NOW + 5)
    job.place = house.store.block("job", 1)
    job.rank = rank_of(5, job.place)
    house.save(finish(job))

    found = house.loaded(job)
    assert (found.place, found.rank, found.state) == (job.place, job.rank, State.COMPLETED)


def test_a_job_submitted_and_finished_in_one_batch_is_whole(house: House) -> None:
    job = house.new()
    grant(job, 3)
    job.requeues = job.crashes = 2
    job.attempt = 3
    job.error = {"name": "E", "message": "m \u2603", "traceback": ""}
    house.save(finish(job, state=State.FAILED, result=b""))

    found = house.loaded(job)

    assert (found.state, found.attempt, found.crashes, found.requeues, found.fence) == (State.FAILED, 3, 2, 2, 3)
    assert (found.result, found.result_bytes, found.error) == (b"", 0, job.error)
    assert [count[2:] for count in house.store.reader().counts()] == [(0, 0, 0, 1, 0, 0, 2, 0)]


@pytest.mark.parametrize("size", [10, 600])
@pytest.mark.parametrize("in_one_transaction", [True, False])
def test_a_finished_job_that_is_written_again_counts_once(house: House, size: int, in_one_transaction: bool) -> None:
    """A job that finishes while a batch that it is in is being applied is written as finished there and in the next."""
    other, job = house.saved(payload=b"o" * 5), house.saved(payload=b"p" * size)
    finish(job, result=b"r" * size)
    house.store.apply([job], [])
    if not in_one_transaction:
        house.store.commit()

    house.save(job)
    house.reopen()

    (lane,) = house.restored.lanes
    assert (lane.queued, lane.completed, lane.waiting_bytes) == (1, 1, 5)
    assert house.loaded(job).result == b"r" * size
    assert ids(house.store.take("default", "t", -2**63, 10)) == [other.id]


@pytest.mark.parametrize("is_read_between", [True, False])
def test_what_is_applied_again_and_again_before_its_commit_is_stored_as_it_was_last(house: House, is_read_between: bool) -> None:
    jobs = [house.new(payload=bytes([number % 256]) * number) for number in range(255, 1030)]

    def apply() -> None:
        house.store.apply(jobs, [])
        assert not is_read_between or house.store.load([1]) and house.store.unwritten() == 0

    apply()
    for job in jobs:
        grant(job, job.id, checkpoint=True)
    apply()
    for job in jobs:
        requeue(job)
    apply()
    for job in jobs:
        if job.id % 3 == 1:
            grant(job, job.id + 10_000, checkpoint=True, worker="w2")
        elif job.id % 3 == 2:
            finish(job, result=job.payload[::-1] + b"r")
    apply()
    house.store.commit()
    assert house.store.unwritten() == 0
    house.reopen()

    assert {lease.job.id: (lease.fence, lease.worker) for lease in house.restored.leases} == {
        job.id: (job.id + 10_000, "w2") for job in jobs if job.id % 3 == 1}
    for job, there in zip(jobs, house.store.load(ids(jobs)).values()):
        assert (there.payload, there.requeues, there.damage) == (job.payload, 1, None)
        assert (there.state, there.result) == ((State.COMPLETED, job.payload[::-1] + b"r") if job.id % 3 == 2 else (State.QUEUED, None))
    (lane,) = house.restored.lanes
    waiting = [job.payload_bytes for job in jobs if job.id % 3 != 2]
    assert (lane.queued, lane.waiting_bytes, lane.requeued) == (len(waiting), sum(waiting), len(jobs))


@pytest.mark.parametrize("size", [0, 1, 512, 513, 1024 * 1024])
def test_payloads_and_results_of_any_size_come_back(house: House, size: int) -> None:
    payload, result = b"p" * size, b"r" * size
    job = house.saved(payload=payload)

    assert house.store.take("default", "t", -2**63, 1)[0].payload == payload
    assert house.store.payloads([job.id, 999]) == {job.id: payload}
    job.payload = None  # as after a delivery
    job.result_raw = True
    house.save(finish(job, result=result))
    house.reopen()

    found, seen = house.loaded(job), house.seen(job, payload=True)
    assert (found.payload, found.result) == (seen.payload, seen.result) == (payload, result)
    assert (seen.payload_bytes, seen.result_bytes, seen.result_raw) == (size, size, True)
    assert house.seen(job).payload is None
    (paged,), _ = house.store.reader().page(before=None, limit=1)
    kept = size <= 512
    assert (paged.payload, paged.result) == ((payload, result) if kept else (None, None))
    assert (paged.payload_bytes, paged.result_bytes) == (size, size)


def test_no_result_is_not_an_empty_result(house: House) -> None:
    with_none, with_empty = house.saved(), house.saved()
    house.save(finish(with_none, result=None), finish(with_empty, result=b""))

    assert (house.loaded(with_none).result, house.loaded(with_empty).result) == (None, b"")


def test_what_is_handed_out_does_not_change_what_is_stored(house: House) -> None:
    job = house.saved()
    job.priority = 9
    house.loaded(job).worker = "changed"
    house.seen(job).worker = "changed"

    assert (house.loaded(job).priority, house.loaded(job).worker, house.seen(job).worker) == (5, None, None)


def test_only_a_checkpointed_lease_is_on_disk_and_a_finish_takes_it_off(house: House) -> None:
    short, long = house.saved(), house.saved(payload=b"x" * 600)
    grant(short, 1)
    grant(long, 2, checkpoint=True, worker="w2")
    house.save(short, long)
    house.reopen()

    lease, = house.restored.leases
    assert lease[1:] == (2, b"i" * 16, "w2", NOW + 1)
    assert (lease.job.id, lease.job.state, lease.job.stored_lease, lease.job.payload) == (long.id, State.QUEUED, 2, None)
    assert (long.stored_lease, short.stored_lease, house.loaded(long).stored_lease) == (2, 0, 2)

    house.save(finish(long))
    house.reopen()
    assert house.restored.leases == [] and long.stored_lease == 0


def test_a_requeue_takes_the_lease_off_and_a_new_fence_replaces_it(house: House) -> None:
    given_back, granted_anew, checkpointed_anew, kept = jobs = [house.saved() for _ in range(4)]
    for fence, job in enumerate(jobs, start=1):
        grant(job, fence, checkpoint=True)
    house.save(*jobs)

    requeue(given_back)
    grant(granted_anew, 12)
    grant(checkpointed_anew, 13, checkpoint=True)
    kept.checkpoint = False
    house.save(*jobs)
    house.reopen()

    assert [(lease.job.id, lease.fence) for lease in house.restored.leases] == [(checkpointed_anew.id, 13), (kept.id, 4)]


def test_unfinished_jobs_with_a_cancel_and_no_lease_are_told_at_open(house: House) -> None:
    unleased, leased, done, plain = jobs = [house.saved() for _ in range(4)]
    grant(leased, 1, checkpoint=True)
    for job in (unleased, leased, done):
        job.cancel_requested = True
    finish(done, state=State.CANCELLED)
    house.save(*jobs)
    house.reopen()

    assert ids(house.restored.cancelled) == [unleased.id]
    assert house.restored.cancelled[0].cancel_requested


def test_numbers_grow_and_are_never_handed_out_twice(house: House) -> None:
    first = house.store.block("job", 100)
    second = house.store.block("job", 1)
    fence = house.store.block("fence", 10)
    house.store.commit()
    house.reopen()

    assert (first, second, fence) == (1, 101, 1)
    assert (house.store.block("job", 5), house.store.block("fence", 5)) == (102, 11)


def test_an_id_without_a_row_was_handed_out_or_never_existed(house: House) -> None:
    house.saved()
    house.store.block("job", 10)
    house.store.commit()
    wanted = [0, -1, 2, 11, 12, 2**53 - 1]
    expected = {0: Lost(False), -1: Lost(False), 2: Lost(True), 11: Lost(True), 12: Lost(False), 2**53 - 1: Lost(False)}

    assert house.store.load(wanted) == expected
    reader = house.store.reader()
    assert reader.jobs(wanted) == expected
    reader.close()


def test_load_and_take_see_what_was_applied_and_readers_only_what_was_committed(house: House) -> None:
    old = house.saved()
    reader = house.store.reader()
    new = house.new()
    house.store.apply([new, finish(old)], [])

    assert house.loaded(old).state == State.COMPLETED and house.loaded(new).state == State.QUEUED
    assert ids(house.store.take("default", "t", -2**63, 10)) == [new.id]
    assert reader.jobs([old.id, new.id])[old.id].state == State.QUEUED
    assert reader.jobs([new.id]) == {new.id: Lost(False)}
    assert ids(reader.page(before=None, limit=10)[0]) == [old.id]
    assert reader.counts()[0].queued == 1 and reader.counts()[0].completed == 0

    house.store.commit()
    assert ids(reader.page(before=None, limit=10)[0]) == [new.id, old.id]
    assert reader.counts()[0].queued == 1 and reader.counts()[0].completed == 1
    reader.close()
    reader.close()


def test_many_ids_are_answered_in_one_call(house: House) -> None:
    jobs = [house.new(payload=b"%d" % number) for number in range(1_200)]
    house.save(*jobs)

    assert sorted(house.store.load(ids(jobs))) == ids(jobs)
    assert house.store.payloads(ids(jobs)) == {job.id: job.payload for job in jobs}
    assert house.store.load([]) == {} and house.store.payloads([]) == {}


def test_submissions_are_remembered_and_can_be_written_again(house: House) -> None:
    first = Submission(b"s" * 16, b"h" * 16, '{"ids": [1]}', NOW)
    house.store.apply([], [first])
    assert house.store.submission(b"s" * 16) == first
    house.store.commit()
    house.reopen()

    assert house.store.submission(b"s" * 16) == first
    assert house.store.submission(b"t" * 16) is None
    house.store.apply([], [first._replace(outcome="{}")])
    assert house.store.submission(b"s" * 16).outcome == "{}"


def prune_all(house: House, now: float, limit: int = 100) -> None:
    for _ in range(1_000):
        if not house.store.prune(now, limit):
            house.store.commit()
            return
        house.store.commit()
    raise AssertionError("prune never came to an end")


def present(house: House, jobs: list[Job]) -> list[int]:
    return [job_id for job_id, found in house.store.load(ids(jobs)).items() if isinstance(found, Job)]


def test_prune_removes_submissions_after_ten_minutes(house: House) -> None:
    house.store.apply([], [Submission(bytes([number]) * 16, b"h" * 16, "{}", NOW + number) for number in range(100)])

    prune_all(house, NOW + 600 + 49, limit=7)

    left = [number for number in range(100) if house.store.submission(bytes([number]) * 16)]
    assert left == list(range(50, 100))


def test_prune_by_age_leaves_what_is_young_or_unfinished(build: Callable[..., House]) -> None:
    house = build(Retention(age_s=60.0))
    jobs = [house.new(payload=b"p" * 600) for _ in range(30)]
    house.save(*jobs)
    house.save(*[finish(job, at=NOW + job.id, result=b"r" * 600) for job in jobs[:20]])

    prune_all(house, NOW + 60 + jobs[9].id)

    assert present(house, jobs) == ids(jobs[10:])
    assert house.store.load([jobs[0].id]) == {jobs[0].id: Lost(True)}
    assert house.store.payloads(ids(jobs[:10])) == {}
    assert house.store.reader().counts()[0][2:] == (0, 10, 20, 0, 0, 0, 0, 6_000), "counts keep what was pruned"
    house.reopen()
    prune_all(house, NOW + 60 + jobs[14].id)
    assert present(house, jobs) == ids(jobs[15:])


def test_prune_by_count_removes_the_oldest_but_none_younger_than_an_hour(build: Callable[..., House]) -> None:
    house = build(Retention(count=10))
    jobs = [house.new() for _ in range(50)]
    house.save(*jobs)
    house.save(*[finish(job, at=NOW + job.id) for job in jobs])

    prune_all(house, NOW + HOUR - 1)
    assert present(house, jobs) == ids(jobs)
    prune_all(house, NOW + HOUR + jobs[19].id)
    assert present(house, jobs) == ids(jobs[20:])
    prune_all(house, NOW + 9 * HOUR)
    assert present(house, jobs) == ids(jobs[40:])


def test_prune_goes_in_slices_past_jobs_that_wait(build: Callable[..., House]) -> None:
    house = build(Retention(age_s=60.0))
    waiting = [house.new() for _ in range(500)]
    done = [house.new() for _ in range(100)]
    house.save(*waiting, *done)
    house.save(*[finish(job) for job in done])
    left = 100

    for _ in range(200):
        more = house.store.prune(NOW + 1_000, 10)
        now_left = len(present(house, done))
        assert left - now_left <= 10
        left = now_left
        if not more:
            break

    assert left == 0 and not more
    assert present(house, waiting) == ids(waiting)


def test_prune_comes_back_for_jobs_that_finish_later(build: Callable[..., House]) -> None:
    house = build(Retention(age_s=60.0))
    jobs = [house.new() for _ in range(40)]
    house.save(*jobs)
    for round_ in range(4):
        now = NOW + 1_000 * round_
        house.save(*[finish(job, at=now) for job in jobs[round_ * 10:round_ * 10 + 10]])
        prune_all(house, now + 30)
        assert len(present(house, jobs)) == 40 - 10 * round_
        prune_all(house, now + 100)
        assert len(present(house, jobs)) == 30 - 10 * round_


def recount(jobs: dict[int, Job]) -> dict[tuple[str, str], Counter]:
    found: dict[tuple[str, str], Counter] = {}
    for job in jobs.values():
        count = found.setdefault((job.queue, job.task), Counter())
        count["queued" if job.state == State.RUNNING else job.state.label] += 1
        count["requeued"] += job.requeues
        count["waiting_bytes"] += 0 if job.state in FINISHED else job.payload_bytes
    return found


def random_step(rng: random.Random, house: House, jobs: dict[int, Job]) -> Job:
    """Make a job or move one as an engine would."""
    job = jobs[rng.choice(list(jobs))] if jobs and rng.random() < 0.75 else None
    if job is None or job.state in FINISHED:
        job = house.new(queue=rng.choice("ab"), task=rng.choice("tu"), priority=rng.randint(1, 10),
                        payload=b"p" * rng.choice([0, 10, 600]), run_at=rng.choice([None, None, NOW + rng.randint(1, 50)]))
        jobs[job.id] = job
    elif job.state == State.SCHEDULED:
        job.state = State.QUEUED
        job.place = house.store.block("job", 1)
        job.rank = rank_of(job.priority, job.place)
    elif job.state == State.QUEUED:
        grant(job, house.store.block("fence", 1), checkpoint=rng.random() < 0.5)
    elif rng.random() < 0.4:
        requeue(job)
    else:
        finish(job, state=rng.choice(FINISHED), result=rng.choice([None, b"", b"r" * 600]))
    return job


@pytest.mark.parametrize("seed", [1, 2])
def test_counters_leases_and_windows_equal_a_recount_after_a_random_walk(house: House, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    jobs: dict[int, Job] = {}
    for _ in range(600):
        batch = {job.id: job for job in (random_step(rng, house, jobs) for _ in range(rng.randint(1, 8)))}
        house.store.apply(list(batch.values()), [])
        if rng.random() < 0.7:
            house.store.commit()
        if rng.random() < 0.02:
            house.reopen()
    house.reopen()

    for lane in house.restored.lanes:
        wanted = recount(jobs)[lane.queue, lane.task]
        assert {name: getattr(lane, name) for name in lane._fields[2:]} == {name: wanted[name] for name in lane._fields[2:]}
    assert {lease.job.id: lease.fence for lease in house.restored.leases} == {
        job.id: job.stored_lease for job in jobs.values() if job.stored_lease}
    waiting = (State.QUEUED, State.RUNNING)
    for queue, task in recount(jobs):
        lane = [job for job in jobs.values() if (job.queue, job.task) == (queue, task) and job.state in waiting]
        taken = house.store.take(queue, task, -2**63, 10_000)
        assert ids(taken) == ids(sorted(lane, key=lambda job: job.rank))
    scheduled = [job for job in jobs.values() if job.state == State.SCHEDULED]
    assert ids(house.store.take_scheduled((0.0, 0), 10_000)) == ids(sorted(scheduled, key=lambda job: (job.run_at, job.id)))


def test_close_commits_and_may_be_called_twice(house: House) -> None:
    job = house.new()
    house.store.apply([job], [])
    house.store.close()
    house.store.close()
    house.reopen()

    assert isinstance(house.loaded(job), Job)


def test_commit_without_anything_applied_does_nothing(house: House) -> None:
    house.store.commit()
    house.store.apply([], [])
    house.store.commit()
    assert house.store.reader().page(before=None, limit=5) == ([], None)


def test_an_unknown_scheme_is_refused() -> None:
    from greenroom.errors import ConfigError
    for url in ("postgres://host/db", "memory:x", "memory"):
        with pytest.raises(ConfigError):
            open_store(url)


def test_the_stores_have_the_contract_s_methods(house: House) -> None:
    names = [name for name in vars(Store) if not name.startswith("_")]
    assert [name for name in names if not callable(getattr(house.store, name, None))] == []


def test_a_job_that_is_set_aside_is_in_no_window_and_no_counter_and_keeps_its_row(house: House) -> None:
    first, second, later = house.new(), house.new(), house.new(run_at=NOW + 60)
    house.save(first, second, later)
    aside = [Damaged(first.id, "row", NOW, "default", "t", State.QUEUED, 1), Damaged(later.id, "payload", NOW, "default", "t", State.SCHEDULED, 1)]

    for _ in range(2):  # again changes nothing
        house.store.set_aside(aside)
        house.store.commit()

    assert ids(house.store.take("default", "t", -2**63, 10)) == [second.id] and house.store.take_scheduled((0.0, 0), 10) == []
    counts, = house.store.reader().counts()
    assert (counts.queued, counts.scheduled, counts.waiting_bytes) == (1, 0, 1)
    assert house.loaded(first).id == first.id and house.loaded(later).id == later.id
