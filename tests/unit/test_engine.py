"""The rules about jobs that wait, one by one: order, windows, reserves, caps, due times. In virtual time, on a memory store."""

from __future__ import annotations

import time

import pytest

from greenroom.errors import DrainingError, FullError
from greenroom.job import SMALL_BYTES, State
from greenroom.leases import Caps
from greenroom.number_blocks import Numbers
from tests.core import Core, check, new_job, outcome, reserved, state, submitted


# -- order -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_jobs", [3, 10, 1000])
def test_jobs_come_by_priority_and_first_in_first_out_at_any_depth(max_jobs: int) -> None:
    core = Core(max_jobs=max_jobs)
    priorities = [5, 1, 9, 5, 1, 1, 9, 3] * 12
    ids = [job for priority in priorities for job in submitted(core, new_job(priority=priority))]
    worker = core.connect()

    got = [job for _ in range(len(ids)) for job in reserved(worker)]

    assert got == [job for _, job in sorted(zip(priorities, ids))]
    assert reserved(worker) == []
    check(core)


def test_order_survives_a_crash_and_a_window_that_then_begins_empty() -> None:
    core = Core(max_jobs=20)
    ids = submitted(core, *[new_job(priority=priority) for priority in (5, 2, 9) * 20])
    core.crash_and_restart()
    assert core.engine.window.jobs == 0, "a restart begins with nothing in memory"
    late = submitted(core, new_job(priority=2), new_job(priority=1))
    worker = core.connect()

    got = reserved(worker, 200)
    while len(got) < 62:
        got += reserved(worker, 200)

    order = {job: (priority, job) for job, priority in zip(ids + late, (5, 2, 9) * 20 + (2, 1))}
    assert got == sorted(order, key=order.__getitem__)


def test_jobs_that_came_back_have_their_old_place_even_after_a_restart() -> None:
    core = Core(max_jobs=4)
    ids = submitted(core, *[new_job() for _ in range(10)])
    worker = core.connect()
    first, second = reserved(worker, 1) + reserved(worker, 1)
    core.run()
    worker.settle("nack", second)
    worker.close()
    core.advance(1.0)
    core.crash_and_restart()

    again = core.connect()

    assert [job for _ in range(10) for job in reserved(again)] == ids and first == ids[0]


def test_a_submit_beyond_the_edge_is_in_the_store_alone() -> None:
    core = Core(max_jobs=5)
    ids = submitted(core, *[new_job() for _ in range(20)])

    late = submitted(core, new_job())[0]

    assert late not in core.engine.jobs and ids[0] in core.engine.jobs and core.engine.window.jobs <= 5
    assert core.store.committed(late) is not None


def test_lanes_that_nobody_can_run_become_mere_counters_and_block_nobody() -> None:
    core = Core(max_jobs=10)
    worker = core.connect()
    reserved(worker, 0, tasks=["mine"])
    mine = submitted(core, new_job("mine", priority=10))[0]
    for _ in range(5):
        submitted(core, *[new_job("nobody", priority=1) for _ in range(9)])
    lane = core.engine.lanes["q", "nobody"]
    assert lane.in_memory < 10 and lane.counts[State.QUEUED] == 45
    assert core.engine.lanes["q", "mine"].head().id == mine, "a lane that a worker can run keeps its head"

    assert reserved(worker, tasks=["mine"]) == [mine]


def test_a_reserve_that_does_not_wait_is_never_told_there_is_nothing_when_the_store_has_a_job() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    core.crash_and_restart()
    worker = core.connect()

    request_id = worker.reserve(wait=0)
    assert request_id not in worker.answers
    core.run()

    assert worker.ids(request_id) == [job]


def test_a_reserve_that_does_not_wait_is_answered_empty_when_the_stores_last_job_goes_meanwhile() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    core.crash_and_restart()
    worker = core.connect()
    request_id = worker.reserve(wait=0)
    core.engine.cancel(job, core.now, core.store.load([job])[job])
    core.batches.collect()

    core.run()

    assert worker.ids(request_id) == [] and state(core, job) is State.CANCELLED
    check(core)


def test_a_worse_job_in_memory_waits_for_a_better_one_in_the_store() -> None:
    core = Core()
    (best,) = submitted(core, new_job("a", priority=1))
    core.crash_and_restart()
    (worse,) = submitted(core, new_job("b", priority=5))
    worker = core.connect()

    assert core.engine.jobs.keys() == {worse}
    assert reserved(worker) == [best]


def test_a_group_that_waits_for_the_store_holds_up_no_other() -> None:
    core = Core()
    submitted(core, new_job("stored", priority=1))
    core.crash_and_restart()
    both, other = core.connect("both"), core.connect("other")
    waiting = both.reserve(tasks=["stored", "fresh"], wait=30)
    free = other.reserve(tasks=["fresh"], wait=30)

    client = core.connect("c", role="client")
    client.submit(new_job("fresh", priority=5))

    assert other.session.parked is None and both.session.parked is not None
    core.run()
    assert len(other.ids(free)) == len(both.ids(waiting)) == 1


def test_who_waits_for_the_store_gets_another_lanes_job_if_that_one_goes() -> None:
    core = Core()
    first, second = submitted(core, new_job("a", priority=1), new_job("b", priority=5))
    core.crash_and_restart()
    worker = core.connect()
    request_id = worker.reserve(wait=30)  # waits for the refill of lane a
    job = core.store.load([first])[first]
    core.engine.cancel(first, core.now, job)
    core.batches.collect()

    core.run()

    assert worker.ids(request_id) == [second]


@pytest.mark.parametrize("outcome", ["nack", "lost"])
def test_a_large_payload_is_let_go_with_its_delivery_and_read_again_before_the_next(outcome: str) -> None:
    core = Core()
    payload = bytes(range(256)) * 4
    (job,) = submitted(core, new_job(payload=payload))
    worker, other = core.connect(), core.connect()
    assert reserved(worker) == [job] and worker.payloads[job] == payload
    assert core.engine.jobs[job].payload is None
    if outcome == "nack":
        worker.settle("nack", job)
    else:
        worker.close()
        core.advance(0.6)
    check(core)

    assert reserved(other) == [job] and other.payloads[job] == payload
    check(core)


def test_a_small_payload_stays_in_memory() -> None:
    core = Core()
    (job,) = submitted(core, new_job(payload=bytes(SMALL_BYTES)))
    reserved(core.connect())

    assert core.engine.jobs[job].payload == bytes(SMALL_BYTES)


def test_payloads_that_are_read_again_come_in_slices_of_bounded_size() -> None:
    core = Core()
    jobs = submitted(core, *[new_job(payload=bytes(2**20)) for _ in range(20)])
    worker = core.connect()
    while len(worker.held) < 20:
        reserved(worker, 20)
    worker.close(bye=True)
    core.run()
    core.connect().reserve(wait=30)

    core.cycle()

    assert sum(core.engine.jobs[job].payload is not None for job in jobs) <= 4


def test_a_window_full_of_large_payloads_comes_to_rest() -> None:
    core = Core(max_bytes=20_000)
    ids = submitted(core, *[new_job(payload=bytes(3000)) for _ in range(50)])
    core.crash_and_restart()
    worker = core.connect()

    got = [job for _ in ids for job in reserved(worker)]

    assert got == ids and core.store.touches["take"] < 400
    assert core.engine.window.payload_bytes <= 20_000


# -- reserves --------------------------------------------------------------------------------------------------------------


def test_who_waits_longest_is_served_first_across_overlapping_filters() -> None:
    core = Core()
    peers = [core.connect(f"w{number}") for number in range(4)]
    filters = [{"tasks": ["t"]}, {}, {"queues": ["q"]}, {"tasks": ["t", "u"], "queues": ["q"]}]
    order = [2, 0, 3, 1]
    requests = {number: peers[number].reserve(wait=60, **filters[number]) for number in order}

    for expected in order:
        (job,) = submitted(core, new_job())
        assert peers[expected].ids(requests[expected]) == [job]
        check(core)


@pytest.mark.parametrize("end", ["nack", "lost", "expired", "bye", "due"])
def test_a_job_that_comes_back_or_falls_due_goes_to_who_waits_for_it(end: str) -> None:
    core = Core()
    (job,) = submitted(core, new_job(delay=5.0 if end == "due" else None))
    holder, waiter = core.connect(), core.connect()
    reserved(holder)
    waiting = waiter.reserve(wait=60)
    {"nack": lambda: holder.settle("nack", job), "bye": lambda: holder.close(bye=True), "lost": holder.close,
     "expired": lambda: None, "due": lambda: None}[end]()

    core.advance(15.0 if end == "expired" else 5.0)

    assert waiter.ids(waiting) == [job]


def test_a_newer_reserve_replaces_the_older_which_is_answered_empty() -> None:
    core = Core()
    worker = core.connect()
    older = worker.reserve(wait=60)
    newer = worker.reserve(3, wait=60)

    assert worker.ids(older) == [] and newer not in worker.answers and core.engine.parked == 1
    ids = submitted(core, new_job(), new_job())
    assert worker.ids(newer) == ids


def test_a_reserve_of_nothing_takes_the_open_one_back() -> None:
    core = Core()
    worker = core.connect()
    older = worker.reserve(wait=60)

    nothing = worker.reserve(0, tasks=["t"])

    assert worker.ids(older) == worker.ids(nothing) == [] and core.engine.parked == 0
    assert worker.session.tasks == {"t"}
    submitted(core, new_job())
    assert not worker.held


def test_a_reserve_is_answered_empty_at_its_deadline_and_not_before() -> None:
    core = Core()
    worker = core.connect()
    request_id = worker.reserve(wait=10)

    core.advance(9.99)
    assert request_id not in worker.answers
    core.advance(0.01)

    assert worker.ids(request_id) == [] and core.engine.parked == 0


def test_a_session_with_all_the_leases_it_may_hold_gets_more_after_a_settle() -> None:
    core = Core(caps=Caps(leases_per_session=2))
    worker = core.connect()
    ids = submitted(core, *[new_job() for _ in range(4)])
    assert reserved(worker, 10) == ids[:2]
    waiting = worker.reserve(10, wait=60)
    core.run()
    assert waiting not in worker.answers
    check(core)

    worker.settle("ack", ids[0])
    core.run()

    assert worker.ids(waiting) == [ids[2]]


def test_a_session_with_all_the_leases_it_may_hold_gets_more_after_one_was_taken_away() -> None:
    core = Core(caps=Caps(leases_per_session=1))
    worker = core.connect()
    first, second = submitted(core, new_job(priority=9), new_job())
    assert reserved(worker) == [second]
    waiting = worker.reserve(wait=60)
    worker.extend(second, 1.0)

    core.advance(1.0)

    assert worker.ids(waiting) == [second] and core.engine.jobs[second].crashes == 1
    check(core)


def test_a_session_with_all_the_leases_it_may_hold_is_answered_empty_at_its_deadline() -> None:
    core = Core(caps=Caps(leases_per_session=1))
    worker = core.connect()
    submitted(core, new_job(), new_job())
    reserved(worker)
    waiting = worker.reserve(wait=5)

    core.advance(5.0)

    assert worker.ids(waiting) == []


def test_a_delivery_is_bounded_in_bytes_but_the_first_job_always_fits() -> None:
    core = Core(caps=Caps(reserve_bytes=1000))
    ids = submitted(core, *[new_job(payload=bytes(size)) for size in (5000, 400, 600, 1)])
    worker = core.connect()

    assert [reserved(worker, 10) for _ in range(3)] == [[ids[0]], ids[1:3], [ids[3]]]


def test_too_many_open_reserves_are_refused_and_the_older_stays() -> None:
    core = Core(caps=Caps(parked=1))
    first, second = core.connect(), core.connect()
    first.reserve(wait=60)

    refused = second.reserve(wait=60)

    assert isinstance(second.answers[refused], FullError)
    assert first.session.parked is not None
    assert first.reserve(wait=60) not in first.answers, "replacing one's own is no new one"


def test_draining_answers_open_reserves_and_takes_nothing_new_but_settles() -> None:
    core = Core()
    worker, other = core.connect(), core.connect()
    (job,) = submitted(core, new_job())
    reserved(worker)
    waiting = other.reserve(wait=60)

    core.engine.drain()
    core.batches.collect()
    core.run()

    assert other.ids(waiting) == [] and job in core.store._leases
    assert isinstance(other.answers[other.reserve(wait=1)], DrainingError)
    assert isinstance(other.answers[other.submit(new_job())], DrainingError)
    assert outcome(worker, worker.settle("ack", job)) == "OK"


def test_a_session_that_was_replaced_gets_nothing_any_more() -> None:
    core = Core()
    old = core.connect(instance=bytes(range(16)))
    core.connect(instance=bytes(range(16)))
    submitted(core, new_job())

    assert reserved(old, wait=30) == [] and core.engine.leases == core.engine.parked == 0


def test_reserves_that_waited_for_numbers_are_answered_when_they_come() -> None:
    core = Core()
    ids = submitted(core, new_job())
    core.engine.fences = Numbers()  # as after very many grants without a commit
    patient, other = core.connect(), core.connect()
    requests = [patient.reserve(wait=60), other.reserve(wait=0)]
    core.tick()
    assert not patient.answers and not other.answers

    core.engine.add_numbers("fence", 10**6, 100, core.now)
    core.batches.collect()

    assert patient.ids(requests[0]) == ids and other.ids(requests[1]) == []


def test_lanes_that_come_next_are_refilled_together_when_they_outnumber_the_window() -> None:
    core = Core(max_jobs=100)
    ids = [job for _ in range(3) for job in submitted(core, *[new_job(f"t{number}") for number in range(200)])]
    worker = core.connect()

    answers = []
    while sum(map(len, answers)) < len(ids):
        answers.append(reserved(worker, 50, wait=1.0))
        worker.settle("ack", *answers[-1])
        core.run()

    assert [job for answer in answers for job in answer] == ids
    assert len(answers) <= 100, "each reserve got one job or two"


# -- caps ------------------------------------------------------------------------------------------------------------------


def test_full_means_that_nothing_was_stored() -> None:
    core = Core(caps=Caps(waiting_jobs=3, waiting_bytes=100))
    client = core.connect(role="client")
    submitted(core, new_job(payload=bytes(60)))

    for jobs in ([new_job()] * 3, [new_job(payload=bytes(41))]):
        assert isinstance(client.answers[client.submit(*jobs)], FullError)

    assert core.engine.waiting == 1 and len(core.newest()) == 1
    check(core)


def test_beyond_the_cap_on_lanes_idle_ones_are_forgotten_and_else_the_item_is_refused() -> None:
    core = Core(caps=Caps(lanes=2))
    worker = core.connect()
    a, b = submitted(core, new_job("a"), new_job("b"))
    core.run()
    client = core.connect(role="client")
    request_id = client.submit(new_job("c"), new_job("a"))
    core.run()
    refused, accepted = client.answers[request_id]["jobs"]
    assert isinstance(refused, FullError) and isinstance(accepted, int)

    assert reserved(worker, tasks=["b"]) == [b]
    core.run()
    worker.settle("ack", b)
    (c,) = submitted(core, new_job("c"))

    assert reserved(worker, tasks=["c"]) == [c] and core.engine.totals[State.COMPLETED] == 1


def test_lanes_that_ran_out_of_work_make_room_for_as_many_others_again_and_again() -> None:
    core = Core(caps=Caps(lanes=250))
    worker = core.connect()
    for begin in range(0, 1000, 250):
        jobs = submitted(core, *[new_job(f"t{number}") for number in range(begin, begin + 250)])
        assert all(isinstance(job, int) for job in jobs), "lanes without work use up the cap"
        worker.settle("ack", *reserved(worker, 250))
        core.run()

    assert core.engine.totals[State.COMPLETED] == 1000 and len(core.engine.lanes) == 250


def test_a_restart_keeps_no_more_lanes_without_work_than_the_cap_but_counts_their_jobs() -> None:
    core = Core(caps=Caps(lanes=3))
    worker = core.connect()
    for number in range(9):
        submitted(core, new_job(f"t{number}"))
        worker.settle("ack", *reserved(worker))
        core.run()
    submitted(core, new_job("last"))

    core.crash_and_restart()

    assert ("q", "last") in core.engine.lanes and len(core.engine.lanes) <= 4
    assert core.engine.totals[State.COMPLETED] == 9
    assert all(isinstance(job, int) for job in submitted(core, new_job("new"), new_job("newer")))


def test_a_frame_of_new_lanes_at_the_cap_is_refused_without_looking_at_all_lanes_for_each() -> None:
    core = Core()
    for begin in range(0, core.engine.caps.lanes, 1000):
        core.engine.submit([new_job(f"t{number}") for number in range(begin, begin + 1000)], 0.0)

    began = time.perf_counter()
    outcomes = core.engine.submit([new_job(f"other{number}") for number in range(1000)], 0.0)

    assert all(isinstance(outcome, FullError) for outcome in outcomes)
    assert time.perf_counter() - began < 1.5, "it took 8 s when each new lane looked at 20,000"


# -- scheduled -------------------------------------------------------------------------------------------------------------


def test_a_scheduled_job_is_delivered_when_due_and_takes_its_place_then() -> None:
    core = Core()
    (later,) = submitted(core, new_job(delay=10.0))
    (now,) = submitted(core, new_job())
    worker = core.connect()
    assert reserved(worker) == [now] and reserved(worker) == []
    waiting = worker.reserve(2, wait=60)

    core.advance(9.9)
    assert waiting not in worker.answers
    (early,) = submitted(core, new_job("else"))
    assert worker.ids(waiting) == [early]
    waiting = worker.reserve(2, wait=60)
    core.advance(0.1)

    assert worker.ids(waiting) == [later] and core.engine.jobs[later].place > core.engine.jobs[early].place


def test_a_run_at_that_is_past_or_no_delay_means_at_once() -> None:
    core = Core()
    ids = submitted(core, new_job(run_at=1.0), new_job(delay=0.0), new_job(run_at=core.now))

    assert reserved(core.connect(), 5) == ids


def test_scheduled_jobs_beyond_the_window_fall_due_in_order_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.scheduled.MAX_IN_MEMORY", 6)
    monkeypatch.setattr("greenroom.scheduled.REFILL_BELOW", 3)
    core = Core(max_jobs=1000)
    delays = [(number * 7) % 40 + 1.0 for number in range(40)]
    ids = [job for delay in delays for job in submitted(core, new_job(delay=delay))]
    assert core.engine.scheduled.in_store > 30
    check(core)
    worker = core.connect()
    got = []
    for second in range(41):
        if second == 20:
            core.crash_and_restart()
            worker = core.connect()
        core.advance(1.0)
        got += reserved(worker, 10)
        check(core)
        worker.settle("ack", *list(worker.held))
        core.run()

    assert got == [job for _, job in sorted(zip(delays, ids))]


def test_cancelling_all_scheduled_jobs_in_memory_brings_those_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.scheduled.MAX_IN_MEMORY", 4)
    core = Core()
    submitted(core, *[new_job(delay=10.0 + number) for number in range(8)])
    client = core.connect("c", role="client")
    for job in list(core.engine.jobs):
        client.cancel(job)
    core.run()

    assert core.engine.next_due() is not None
    core.advance(20.0)
    assert core.engine.scheduled.total == 0 and core.engine.totals[State.QUEUED] > 0
