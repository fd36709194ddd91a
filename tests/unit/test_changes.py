"""Jobs that wait are changed, or purged, wherever they lie: priority, queue, time, payload. In virtual time."""

from __future__ import annotations

import random

import pytest

from greenroom.errors import FullError
from greenroom.job import SMALL_BYTES, JobChange, State
from greenroom.lanes import Lane, Window
from greenroom.leases import Caps
from tests.core import Core, check, check_at_rest, new_job, outcome, reserved, state, submitted

LARGE = b"L" * (SMALL_BYTES + 1)


def changed(core: Core, job_id: int, **changes: object) -> object:
    """Change a job; return the outcome once it is on disk."""
    client = core.connect("c", role="client")
    return outcome(client, client.change(job_id, **changes))


def drained(core: Core, **options: object) -> list[int]:
    """Return all that can be had, in order."""
    worker = core.connect("w")
    got: list[int] = []
    while some := reserved(worker, 100, **options):
        got += some
        worker.settle("ack", *some)
        core.run()
    return got


@pytest.mark.parametrize("max_jobs", [4, 1000])
def test_a_new_priority_leaves_a_job_its_place_among_those_of_that_priority(max_jobs: int) -> None:
    core = Core(max_jobs=max_jobs)
    ids = submitted(core, *[new_job(priority=priority) for priority in (5, 5, 1, 1, 5, 1, 9, 5, 5, 1)])
    reserved(core.connect(), 0)

    assert changed(core, ids[4], priority=1) == "changed" and changed(core, ids[2], priority=5) == "changed"
    check(core)

    assert drained(core) == [ids[place] for place in (3, 4, 5, 9, 0, 1, 2, 7, 8, 6)]
    check_at_rest(core)


def test_a_new_priority_survives_a_crash() -> None:
    core = Core()
    ids = submitted(core, new_job(), new_job())
    changed(core, ids[1], priority=2)
    core.crash_and_restart()

    assert drained(core) == [ids[1], ids[0]]


@pytest.mark.parametrize("max_jobs", [5, 1000])
def test_another_queue_gives_a_job_the_last_place_there(max_jobs: int) -> None:
    core = Core(max_jobs=max_jobs)
    first = submitted(core, *[new_job(queue="a") for _ in range(8)])
    second = submitted(core, *[new_job(queue="b") for _ in range(8)])

    assert changed(core, first[1], queue="b") == "changed" and changed(core, first[7], queue="b", priority=1) == "changed"
    check(core)
    core.crash_and_restart()

    assert drained(core, queues=["b"]) == [first[7], *second, first[1]]
    assert drained(core) == [first[place] for place in (0, 2, 3, 4, 5, 6)]
    check_at_rest(core)


def test_a_job_can_go_to_a_queue_that_is_new_and_leave_one_that_is_then_idle() -> None:
    core = Core(caps=Caps(lanes=2))
    (job,) = submitted(core, new_job(queue="a"))
    assert changed(core, job, queue="b") == "changed"

    assert changed(core, job, queue="c") == "changed", "the lane that it left makes room"

    assert core.engine.lanes["c", "t"].counts[State.QUEUED] == 1 and ("a", "t") not in core.engine.lanes
    assert drained(core, queues=["c"]) == [job]


def test_no_room_for_another_queue_leaves_the_job_as_it_was() -> None:
    core = Core(caps=Caps(lanes=1))
    first, second = submitted(core, new_job(queue="a"), new_job(queue="a"))

    assert changed(core, second, queue="b", priority=1) == "FULL"

    check(core)
    assert drained(core) == [first, second]


def test_a_waiting_job_can_be_given_a_time_and_then_comes_last() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(3)])

    assert changed(core, ids[0], delay=10.0) == "changed"
    assert state(core, ids[0]) is State.SCHEDULED
    check(core)
    core.crash_and_restart()
    late = submitted(core, new_job())
    core.advance(11.0)

    assert drained(core) == [*ids[1:], *late, ids[0]]
    check_at_rest(core)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_scheduled_job_can_be_run_now_or_at_another_time(is_kept: bool) -> None:
    core = Core()
    now, later, other = submitted(core, new_job(delay=500.0), new_job(delay=500.0, payload=LARGE), new_job(delay=5.0))
    if not is_kept:
        core.crash_and_restart()
        core.engine.scheduled.is_filling = True  # none of them is in memory
    waiting = submitted(core, new_job())

    assert changed(core, now, delay=0.0) == "changed" and changed(core, later, run_at=core.now + 7.0) == "changed"
    assert changed(core, other, run_at=core.now + 9.0) == "changed"
    core.engine.scheduled.is_filling = False
    assert core.newest()[now].run_at == core.now

    assert drained(core) == [*waiting, now]
    core.advance(8.0)
    worker = core.connect()
    assert reserved(worker, 9) == [later] and worker.payloads[later] == LARGE
    core.advance(2.0)
    assert reserved(worker, 9) == [other]
    check(core)


@pytest.mark.parametrize("is_restarted", [True, False])
@pytest.mark.parametrize("max_jobs", [1, 1000])
def test_the_time_by_which_a_job_must_begin_counts_from_its_new_time(max_jobs: int, is_restarted: bool) -> None:
    core = Core(max_jobs=max_jobs)
    delays = (60.0, 10.0, 0.0, 10.0, 10.0)
    earlier, later, queued, kept, other = submitted(core, *[new_job(delay=delay, expires_in=5.0) for delay in delays])
    assert changed(core, earlier, delay=0.0) == changed(core, later, delay=40.0) == changed(core, queued, delay=20.0) == "changed"
    assert changed(core, other, priority=1) == changed(core, kept, run_at=core.now + 10.0) == "changed"
    if is_restarted:
        core.crash_and_restart()

    expired_after = {}
    for second in range(1, 51):
        core.advance(1.0)
        for job_id in (earlier, later, queued, kept, other):
            if job_id not in expired_after and state(core, job_id) is State.EXPIRED:
                expired_after[job_id] = second
    assert {job_id: second // 5 * 5 for job_id, second in expired_after.items()} == {
        earlier: 5, kept: 15, other: 15, queued: 25, later: 45}
    check(core)


def test_a_job_that_was_begun_in_time_does_not_expire_when_its_time_is_changed_later() -> None:
    core = Core()
    worker = core.connect("w")
    job_id = submitted(core, new_job(expires_in=5.0, backoff="fixed", backoff_base=20.0))[0]
    reserved(worker)
    worker.settle("fail", job_id, wish=None)
    core.run()
    assert state(core, job_id) is State.SCHEDULED and changed(core, job_id, delay=3.0) == "changed"
    core.advance(30.0)

    assert state(core, job_id) is State.QUEUED
    check(core)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(("before", "after"), [(b"small", b"other"), (b"small", LARGE), (LARGE, b"small"), (LARGE, b"M" * 4000)])
def test_another_payload_is_what_the_worker_gets_also_after_a_crash(before: bytes, after: bytes, is_kept: bool) -> None:
    core = Core()
    first, second = submitted(core, new_job(payload=before), new_job(payload=before))
    if not is_kept:
        core.crash_and_restart()

    assert changed(core, first, payload=after, raw=True) == "changed" and changed(core, second, payload=after, queue="z") == "changed"
    check(core)
    core.crash_and_restart()
    worker = core.connect()

    assert reserved(worker, 5) == [first, second]
    assert worker.payloads == {first: after, second: after} and core.engine.jobs[first].raw and not core.engine.jobs[second].raw
    check(core)


def test_a_job_changed_and_delivered_before_its_row_is_written_keeps_its_new_payload() -> None:
    core = Core()
    (job,) = submitted(core, new_job(payload=b"old"))
    worker, client = core.connect(), core.connect("c", role="client")
    request_id = worker.reserve(wait=60, tasks=["t"], queues=["elsewhere"])

    client.change(job, payload=LARGE, queue="elsewhere")
    core.run()
    assert worker.ids(request_id) == [job] and worker.payloads[job] == LARGE
    worker.settle("nack", job)
    core.run()

    assert reserved(worker) == [job] and worker.payloads[job] == LARGE
    assert core.store.load([job])[job].queue == "elsewhere"


def test_a_job_that_is_still_being_written_can_be_changed() -> None:
    core = Core()
    client, worker = core.connect("c", role="client"), core.connect()
    request_id = client.submit(new_job(queue="a"))
    core.begin_cycle()
    (job,) = [job.id for job in core.engine.lanes["a", "t"].queued_jobs()]

    client.change(job, queue="b", priority=1, payload=LARGE)
    core.end_cycle()
    core.run()

    assert client.ids(request_id) == [job]
    check(core)
    core.crash_and_restart()
    assert reserved(worker := core.connect(), queues=["b"]) == [job] and worker.payloads[job] == LARGE


def test_running_finished_and_unknown_jobs_are_refused_by_their_codes() -> None:
    core = Core()
    running, done = submitted(core, new_job(), new_job())
    worker = core.connect()
    reserved(worker, 2)
    worker.settle("ack", done)
    core.run()

    codes = [changed(core, job, priority=1) for job in (running, done, 2**40)]

    assert codes == ["CONFLICT", "FINISHED", "NOT_FOUND"]
    assert core.engine.jobs[running].priority == 5


def test_a_payload_beyond_the_cap_of_waiting_bytes_is_refused_and_a_smaller_one_never() -> None:
    core = Core(caps=Caps(waiting_bytes=100))
    (job,) = submitted(core, new_job(payload=b"x" * 90))
    core.engine.caps = Caps(waiting_bytes=50)

    with pytest.raises(FullError):
        core.engine.change(job, JobChange(payload=b"x" * 95), core.now)

    assert changed(core, job, payload=b"x" * 80) == "changed"
    check(core)


def test_a_change_of_priority_moves_the_head_of_a_queue_that_somebody_waits_for() -> None:
    core = Core()
    (job,) = submitted(core, new_job(queue="a"))
    worker = core.connect()
    request_id = worker.reserve(queues=["b"], wait=60)
    core.run()

    changed(core, job, queue="b")

    assert worker.ids(request_id) == [job]


def test_a_late_result_of_the_old_payload_is_not_taken() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    fence = worker.held[job]
    worker.close()
    core.advance(1.0)
    changed(core, job, payload=b"new")
    other = core.connect("other")

    assert outcome(other, other.settle("ack", job, fence=fence)) == "LEASE_LOST"
    assert reserved(other) == [job]


@pytest.mark.parametrize("max_jobs", [3, 12, 1000])
def test_jobs_that_are_changed_all_the_time_come_in_order(max_jobs: int) -> None:
    core = Core(max_jobs=max_jobs)
    rng = random.Random(max_jobs)
    worker = core.connect()
    reserved(worker, 0)
    ranks = {job: [5, job] for _ in range(4) for job in submitted(core, *[new_job(payload=LARGE) for _ in range(10)])}
    for step in range(150):
        job = rng.choice(sorted(ranks))
        ranks[job][0] = rng.randint(1, 9)
        assert changed(core, job, priority=ranks[job][0]) == "changed"
        if step % 10 == 0:
            check(core)
            if step % 50 == 0:
                core.crash_and_restart()

    assert drained(core) == sorted(ranks, key=ranks.__getitem__)
    check_at_rest(core)


def test_a_job_pulled_out_of_a_lane_leaves_the_others_in_order() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(200)])
    lane: Lane = core.engine.lanes["q", "t"]
    reserved(worker := core.connect(), 3)
    worker.settle("nack", *ids[:3])
    core.run()
    for job in (ids[1], ids[100], ids[199]):
        lane.pull(core.engine.jobs[job])

    assert [job.id for job in lane.queued_jobs()] == [job for job in ids if job not in (ids[1], ids[100], ids[199])]
    assert lane.in_memory == 197 and isinstance(lane.window, Window) and lane.window.jobs == 197


def test_a_purge_cancels_what_waits_in_the_queue_wherever_it_lies_and_nothing_else() -> None:
    core = Core(max_jobs=4)
    waiting = submitted(core, *[new_job() for _ in range(8)], new_job(delay=100.0), new_job("u"))
    (elsewhere,) = submitted(core, new_job(queue="other"))
    worker, client = core.connect(), core.connect("c", role="client")
    (running,) = reserved(worker, tasks=["t"])

    told = [outcome(client, client.purge(job, "q", "t")) for job in (*waiting, elsewhere, 2**40)]

    assert told == [False, *[True] * 8, False, False, False]
    assert state(core, running) is State.RUNNING and state(core, elsewhere) is State.QUEUED and state(core, waiting[9]) is State.QUEUED
    check(core)
    core.crash_and_restart()
    assert {job for job in waiting if state(core, job) is State.CANCELLED} == set(waiting[1:9])
