"""Limits of queues: who is refused when, and that nothing that was accepted ever is. In virtual time, over engine and memory store."""

from __future__ import annotations

import pytest

from greenroom.errors import FullError, GreenroomError
from greenroom.job import NewJob, State
from greenroom.leases import Caps
from greenroom.queue_limits import LATEST_S, MAX_LIMITS, SOONEST_S, UNKNOWN_S
from greenroom.records import QueueLimit
from greenroom.unique import Duplicate
from tests.core import Core, Peer, check, check_at_rest, new_job, outcome, reserved, state, submitted


def admin(core: Core) -> Peer:
    return core.connect("c", role="client")


def limited(**limit: int) -> Core:
    core = Core()
    admin(core).limit("q", **limit)
    core.run()
    return core


def outcomes(core: Core, *jobs: NewJob) -> list[object]:
    """Submit jobs; for each "in", the code of its error, or a Duplicate."""
    client = core.connect("c", role="client")
    request_id = client.submit(*jobs)
    core.run()
    check(core)
    return ["in" if isinstance(made, int) else made.code if isinstance(made, GreenroomError) else made
            for made in client.answers[request_id]["jobs"]]


def refusal(core: Core, job: NewJob | None = None) -> FullError:
    (error,) = core.engine.submit([job or new_job()], core.now)
    assert isinstance(error, FullError)
    return error


def test_a_queue_takes_jobs_up_to_its_limit_and_the_rest_of_a_submit_gets_full_one_by_one() -> None:
    core = limited(jobs=3)

    assert outcomes(core, *[new_job("a"), new_job("b")] * 2) == ["in", "in", "in", "FULL"]
    assert outcomes(core, new_job(queue="other"), new_job()) == ["in", "FULL"]
    error = refusal(core)

    assert error.message == "the queue q is full: 3 jobs wait, its limit is 3" and error.field == "queue"
    assert error.retry_after_s == UNKNOWN_S
    assert (core.engine.limits.get("q").refused, core.engine.limits.refused) == (3, 3)


def test_urgent_jobs_pass_the_soft_limit_until_the_hard_one_and_scheduled_ones_count_too() -> None:
    core = limited(jobs=10, urgent=2, extra=15)
    full = core.engine.limits.get("q")
    assert outcomes(core, *[new_job(delay=60.0 if n % 2 else None) for n in range(11)])[9:] == ["in", "FULL"]
    assert full.full == "ordinary"

    assert outcomes(core, new_job(priority=3), new_job(priority=2), new_job(priority=1), new_job(priority=2)) == ["FULL", "in", "in", "FULL"]

    assert full.full == "all" and full.waiting == 12
    assert refusal(core, new_job(priority=1)).message == "the queue q is full: 12 jobs wait, its limit is 12"


def test_without_urgent_every_priority_stops_at_the_limit() -> None:
    core = limited(jobs=1)

    assert outcomes(core, new_job(priority=1), new_job(priority=1)) == ["in", "FULL"]
    assert core.engine.limits.get("q").full == "all"


def test_bytes_are_limited_a_smaller_job_may_fit_where_a_larger_did_not_and_what_can_never_fit_is_too_large() -> None:
    core = limited(size=100, urgent=1, extra=10)

    assert outcomes(core, new_job(payload=bytes(80)), new_job(payload=bytes(30)), new_job(payload=bytes(20)), new_job(payload=b"")) == [
        "in", "FULL", "in", "in"]
    assert outcomes(core, new_job(payload=bytes(101)), new_job(payload=bytes(11), priority=1), new_job(payload=bytes(10), priority=1)) == [
        "TOO_LARGE", "FULL", "in"]
    assert refusal(core).message == "the queue q is full: payloads of 110 bytes wait, its limit is 100"


def test_who_is_refused_is_told_what_waits_with_the_jobs_of_the_same_submit_and_that_only_this_one_does_not_fit() -> None:
    core = limited(jobs=3, size=100)

    refused = core.engine.submit([new_job(payload=bytes(60)), new_job(payload=bytes(50))], core.now)[1]
    assert refused.message == "the queue q is full: 1 job waits, its limit is 3; payloads of 60 bytes wait, its limit is 100, this one does not fit"
    refused = core.engine.submit([new_job(payload=b"")] * 3, core.now)[2]
    assert refused.message == "the queue q is full: 3 jobs wait, its limit is 3; payloads of 60 bytes wait, its limit is 100"


def test_a_payload_that_can_never_fit_is_too_large_for_a_change_and_a_retry_and_a_smaller_one_is_always_taken() -> None:
    core = Core()
    here, there, over = submitted(core, new_job(payload=bytes(200)), new_job(queue="other", payload=bytes(120)), new_job(payload=bytes(120)))
    client = admin(core)
    client.cancel(over)
    client.limit("q", size=100)

    assert outcome(client, client.change(here, payload=bytes(201))) == "TOO_LARGE"
    assert outcome(client, client.change(there, queue="q")) == "TOO_LARGE"
    assert outcome(client, client.retry(over)) == "TOO_LARGE"
    assert outcome(client, client.change(here, payload=bytes(150))) == "changed", "smaller, though still over the limit"
    assert outcome(client, client.change(there, queue="q", payload=bytes(50))) == "FULL", "it will fit when the other is done"
    check(core)


def test_what_begins_makes_room_and_what_comes_back_is_never_refused() -> None:
    core = limited(jobs=2)
    jobs = [new_job(), new_job()]
    assert outcomes(core, *jobs) == ["in", "in"]
    worker = core.connect()
    first, second = reserved(worker, 2)

    assert outcomes(core, *jobs) == ["in", "in"]
    worker.settle("nack", first)
    worker.settle("fail", second, wish=None)
    core.run()

    full = core.engine.limits.get("q")
    assert (full.waiting, state(core, first), state(core, second)) == (4, State.QUEUED, State.SCHEDULED)
    check(core)
    assert outcomes(core, new_job()) == ["FULL"]


def test_lost_leases_and_snoozes_come_back_into_a_full_queue() -> None:
    core = limited(jobs=1)
    submitted(core, new_job())
    worker = core.connect()
    (job,) = reserved(worker)
    submitted(core, new_job())

    core.advance(16.0)  # silent for too long
    assert state(core, job) is State.QUEUED and core.engine.limits.get("q").waiting == 2
    (again,) = reserved(worker)
    worker.settle("snooze", again, wish=1.0)
    core.run()

    assert state(core, again) is State.SCHEDULED and core.engine.limits.get("q").waiting == 2
    check(core)


def test_a_limit_below_what_waits_loses_nothing_and_a_higher_one_or_none_lets_in_again() -> None:
    core = Core()
    ids = submitted(core, *[new_job(str(n % 3)) for n in range(6)])
    client = admin(core)
    client.limit("q", jobs=2)

    assert outcomes(core, new_job()) == ["FULL"]
    client.limit("q", jobs=7)
    assert outcomes(core, new_job(), new_job()) == ["in", "FULL"]
    ended, again = client.unlimit("q"), client.unlimit("q")
    assert outcomes(core, new_job("new"), new_job()) == ["in", "in"]

    assert [client.answers[request_id]["removed"] for request_id in (ended, again)] == [True, False]
    assert reserved(core.connect(), 6, tasks=["0", "1", "2"]) == ids and core.engine.limits.refused == 2
    assert not core.store.committed_limits()
    check(core)


def test_a_duplicate_is_answered_as_one_also_in_a_full_queue() -> None:
    core = limited(jobs=1)
    first = new_job(unique_key="k")
    (job,) = submitted(core, first)

    assert outcomes(core, first, new_job(unique_key="other")) == [Duplicate(job, "queued"), "FULL"]
    assert reserved(core.connect()) == [job] and outcomes(core, new_job(unique_key="other")) == ["in"]


def test_a_retry_by_hand_and_a_change_of_queue_ask_for_room_and_change_nothing_without() -> None:
    core = limited(jobs=1, size=1000, urgent=1, extra=100)
    worker, client = core.connect(), admin(core)
    (job,) = submitted(core, new_job())
    reserved(worker)
    worker.settle("fail", job)
    inside, outside = submitted(core, new_job(), new_job(queue="other"))

    assert outcome(client, client.retry(job)) == "FULL" and state(core, job) is State.FAILED
    assert outcome(client, client.change(outside, queue="q")) == "FULL"
    assert outcome(client, client.change(inside, payload=bytes(1001))) == "TOO_LARGE"
    assert outcome(client, client.change(inside, priority=9, payload=bytes(1000))) == "changed"
    assert outcome(client, client.change(outside, queue="q", priority=1)) == "changed", "an urgent one passes"
    check(core)
    assert outcome(client, client.change(inside, queue="other")) == "changed"
    client.cancel(outside)
    core.run()
    assert outcome(client, client.retry(job)) == "queued"
    check(core)
    check_at_rest(core)


def test_the_limit_and_what_waits_are_known_after_a_crash_also_of_jobs_that_memory_does_not_hold() -> None:
    core = Core(max_jobs=10)
    client = admin(core)
    client.limit("q", jobs=40, size=10_000, urgent=3, extra=50)
    client.limit("gone", jobs=1)
    client.unlimit("gone")
    submitted(core, *[new_job(payload=bytes(10), delay=99.0 if n % 4 == 0 else None) for n in range(40)])
    reserved(core.connect(), 4)

    core.crash_and_restart()

    (full,) = core.engine.limits
    assert full.limit == QueueLimit("q", 40, 10_000, 3, 50, full.limit.set_at, "why", "me")
    assert (full.waiting, full.waiting_bytes) == (40, 400), "a grant that was not written yet is a queued job again"
    assert outcomes(core, new_job(), new_job(priority=3)) == ["FULL", "in"]


def test_who_finds_it_full_is_told_to_come_back_when_a_tenth_is_free() -> None:
    core = limited(jobs=100)
    submitted(core, *[new_job()] * 100)
    worker = core.connect()
    for _ in range(30):  # four jobs a second are done, and four more come
        for _ in range(4):
            worker.settle("ack", *reserved(worker))
        submitted(core, *[new_job()] * 4)
        core.advance(1.0)

    assert refusal(core).retry_after_s == pytest.approx(10 / 4, rel=0.3)
    core.engine.limits.get("q").limit = QueueLimit("q", 90, None, None, 10, 0.0, "", "")
    assert refusal(core).retry_after_s == pytest.approx((100 - 81) / 4, rel=0.3)
    core.engine.limits.get("q").limit = QueueLimit("q", 1, None, None, 10, 0.0, "", "")
    assert refusal(core).retry_after_s == LATEST_S
    core.advance(30.0)

    assert refusal(core).retry_after_s == LATEST_S, "nothing gets done any more"
    assert SOONEST_S < UNKNOWN_S < LATEST_S


def test_refused_submits_of_many_tasks_leave_no_lanes_behind() -> None:
    core = Core(caps=Caps(lanes=20))
    admin(core).limit("q", jobs=1)
    submitted(core, new_job("0"))

    for n in range(1, 60):
        assert outcomes(core, new_job(str(n)), new_job(str(n), unique_key="k")) == ["FULL", "FULL"]

    assert len(core.engine.lanes) <= 20 and outcomes(core, new_job(queue="other")) == ["in"]


def test_nor_do_duplicates_and_jobs_beyond_the_cap_of_unique_keys() -> None:
    core = Core(caps=Caps(lanes=20))
    (first,) = submitted(core, new_job(unique_key="k"))
    core.engine.keys.cap = 1

    for n in range(60):
        assert outcomes(core, new_job(str(n), unique_key="k"), new_job(f"other{n}", unique_key="l")) == [Duplicate(first, "queued"), "FULL"]

    assert len(core.engine.lanes) <= 20 and outcomes(core, new_job("last")) == ["in"]


def test_there_is_a_cap_and_a_limit_that_is_there_can_be_replaced_beyond_it() -> None:
    core = Core()
    for number in range(MAX_LIMITS):
        core.engine.limit(QueueLimit(f"q{number}", 1, None, None, 10, core.now, "", ""))

    with pytest.raises(FullError, match="have a limit"):
        core.engine.limit(QueueLimit("one more", 1, None, None, 10, core.now, "", ""))
    core.engine.limit(QueueLimit("q7", 5, None, None, 10, core.now, "", ""))
    assert core.engine.limits.get("q7").limit.jobs == 5 and len(core.engine.limits) == MAX_LIMITS
