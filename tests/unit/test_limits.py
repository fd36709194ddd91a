"""Jobs that must begin by a time, and runs that must end by one: in virtual time, over engine and memory store."""

from __future__ import annotations

import pytest

from greenroom.errors import InvalidError
from greenroom.job import State, parse_new_job
from tests.core import Core, check, new_job, reserved, submitted


def state_of(core: Core, job_id: int) -> State:
    return core.store.committed(job_id).state


# -- begin by ---------------------------------------------------------------------------------------------------------------


def test_a_job_that_nobody_began_in_time_is_expired_and_whoever_waits_is_told() -> None:
    core = Core()
    late, plain = submitted(core, new_job(expires_in=5.0), new_job())
    client = core.connect("c2", role="client")
    waits = client.wait(late, seconds=60.0)
    core.advance(4.9)
    assert state_of(core, late) is State.QUEUED
    core.advance(0.2)

    assert state_of(core, late) is State.EXPIRED and client.answers[waits]["jobs"][0]["state"] == "expired"
    assert reserved(core.connect("w"), 2) == [plain]
    check(core)


def test_one_that_was_begun_is_not_expired_however_long_it_takes_or_often_it_is_tried() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(expires_in=5.0, backoff="fixed", backoff_base=20.0))
    worker = core.connect("w")
    assert reserved(worker) == [job_id]
    for _ in range(6):
        worker.heartbeat(listed=False)
        core.advance(1.0)
    worker.settle("fail", job_id, wish=None)
    core.run()
    for _ in range(21):
        worker.heartbeat(listed=False)
        core.advance(1.0)

    assert reserved(worker) == [job_id]


def test_the_time_counts_from_when_it_may_run() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(delay=10.0, expires_in=5.0))
    core.advance(14.0)
    assert state_of(core, job_id) is State.QUEUED
    core.advance(1.1)
    assert state_of(core, job_id) is State.EXPIRED


def test_jobs_that_only_the_store_has_expire_too_and_after_a_restart() -> None:
    core = Core(max_jobs=4)
    ids = submitted(core, *[new_job(expires_in=5.0 + number / 100) for number in range(300)])
    core.crash_and_restart()
    core.advance(20.0)

    assert {state_of(core, job_id) for job_id in ids} == {State.EXPIRED} and core.engine.waiting == 0
    assert core.engine.totals[State.EXPIRED] == 300
    check(core)


def test_a_job_is_not_granted_late_even_if_nobody_has_looked_yet() -> None:
    core = Core()
    late, plain = submitted(core, new_job(expires_in=5.0), new_job())
    core.clock.advance(6.0)  # the hub stood still: no tick

    assert reserved(core.connect("w"), 2) == [plain] and state_of(core, late) is State.EXPIRED


def test_an_expired_job_can_be_retried_and_does_not_expire_again() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(expires_in=5.0))
    core.advance(6.0)
    client = core.connect("c2", role="client")
    request = client.retry(job_id)
    core.run()
    assert client.outcome(request) == "queued"
    core.advance(60.0)

    assert reserved(core.connect("w")) == [job_id]


def test_cancelled_and_finished_jobs_do_not_expire() -> None:
    core = Core()
    cancelled, done = submitted(core, new_job(expires_in=5.0), new_job(expires_in=5.0))
    client = core.connect("c2", role="client")
    client.cancel(cancelled)
    core.run()
    worker = core.connect("w")
    assert reserved(worker) == [done]
    worker.settle("ack", done)
    core.run()
    core.advance(10.0)

    assert (state_of(core, cancelled), state_of(core, done)) == (State.CANCELLED, State.COMPLETED)


# -- end by -----------------------------------------------------------------------------------------------------------------


def test_a_run_that_takes_too_long_has_failed_whatever_its_worker_says() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(timeout=8.0, attempts=2, backoff="fixed", backoff_base=1.0))
    worker = core.connect("w")
    assert reserved(worker) == [job_id]
    fence = worker.held[job_id]
    for _ in range(8):
        worker.heartbeat(listed=False)
        core.advance(1.0)

    assert worker.notices == [{"notice": "cancel", "leases": [(job_id, fence)]}]
    assert worker.outcome(worker.settle("ack", job_id)) == "LEASE_LOST"
    core.advance(1.0)
    assert reserved(worker) == [job_id], "a timeout is a failure like any other: it is tried again"
    for _ in range(8):
        worker.heartbeat(listed=False)
        core.advance(1.0)
    row = core.store.committed(job_id)
    assert row.state is State.FAILED and row.error["name"] == "TimeoutError" and row.failures == 2
    assert [run.outcome for run in core.store.reader().runs(job_id)] == ["failed", "failed"]
    check(core)


STOP = {"notice": "cancel", "reason": "soft_timeout"}


def test_a_run_over_its_soft_limit_is_told_once_and_ends_as_it_likes() -> None:
    core = Core()
    completed, failed, quick = submitted(core, *[new_job(soft_timeout=3.0, timeout=60.0, attempts=1) for _ in range(3)])
    worker = core.connect("w")
    reserved(worker, 3)
    held = dict(worker.held)
    worker.settle("ack", quick)
    core.advance(2.9)
    assert worker.notices == []
    core.advance(3.0)

    assert worker.notices == [{**STOP, "leases": [(job, held[job])]} for job in (completed, failed)]
    settles = worker.settle("ack", completed), worker.settle("fail", failed)
    core.run()
    assert [worker.outcome(settle) for settle in settles] == ["OK", "OK"]
    assert (state_of(core, completed), state_of(core, failed)) == (State.COMPLETED, State.FAILED), "nobody cancelled them"
    check(core)


def test_each_run_has_its_soft_limit_and_the_hard_one_holds_behind_it() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(soft_timeout=3.0, timeout=6.0, attempts=2, backoff="none"))
    worker = core.connect("w")
    for run in (1, 2):
        assert reserved(worker) == [job_id]
        core.advance(4.0)
        assert [notice.get("reason") for notice in worker.notices] == ["soft_timeout"], run
        core.advance(2.5)
        assert [notice.get("reason") for notice in worker.notices] == ["soft_timeout", None], run
        worker.notices.clear()

    assert state_of(core, job_id) is State.FAILED and core.store.committed(job_id).error["name"] == "TimeoutError"


def test_the_soft_limit_holds_after_a_restart_and_a_stall_puts_it_off() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(soft_timeout=10.0))
    worker = core.connect("w", instance=b"i" * 16)
    reserved(worker)
    core.advance(4.0)
    core.crash_and_restart()
    back = core.connect("w", instance=b"i" * 16, presented=[(job_id, worker.held[job_id])])
    core.advance(5.0)
    assert back.notices == []
    core.engine.forgive(2.0)
    core.advance(2.0)
    assert back.notices == []
    core.advance(1.5)

    assert back.notices == [{**STOP, "leases": [(job_id, worker.held[job_id])]}]


def test_a_worker_that_comes_back_with_its_lease_is_told_again() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(soft_timeout=3.0))
    worker = core.connect("w", instance=b"i" * 16)
    reserved(worker)
    core.advance(3.5)
    assert len(worker.notices) == 1
    worker.close()

    back = core.connect("w", instance=b"i" * 16, presented=[(job_id, worker.held[job_id])])
    core.advance(1.0)

    assert back.notices == [{**STOP, "leases": [(job_id, worker.held[job_id])]}], "the first may have been lost with the connection"
    check(core)


@pytest.mark.parametrize("timeout", [1.0, 2.0])
def test_a_soft_limit_that_could_never_come_is_refused(timeout: float) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_new_job({"task": "t", "soft_timeout": 2.0, "timeout": timeout}, 1000)

    assert caught.value.field == "soft_timeout"


def test_extending_the_lease_does_not_extend_the_run() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(timeout=8.0, attempts=1))
    worker = core.connect("w")
    reserved(worker)
    worker.extend(job_id, 600.0)
    core.advance(8.0)

    assert state_of(core, job_id) is State.FAILED


def test_a_run_that_ends_in_time_is_not_touched() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(timeout=8.0))
    worker = core.connect("w")
    reserved(worker)
    core.advance(7.0)
    worker.settle("ack", job_id)
    core.run()
    core.advance(5.0)

    assert state_of(core, job_id) is State.COMPLETED and worker.notices == []


def test_the_limit_holds_after_a_restart_and_for_whoever_takes_the_lease_over() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(timeout=30.0, attempts=1))
    worker = core.connect("w", instance=b"i" * 16)
    reserved(worker)
    for _ in range(5):
        worker.heartbeat(listed=False)
        core.advance(1.0)
    core.crash_and_restart()
    back = core.connect("w", instance=b"i" * 16, presented=[(job_id, worker.held[job_id])])
    back.held.update(worker.held)
    for _ in range(24):
        back.heartbeat(listed=False)
        core.advance(1.0)
    assert state_of(core, job_id) is State.QUEUED, "as a running one is recorded"
    for _ in range(2):
        back.heartbeat(listed=False)
        core.advance(1.0)

    assert state_of(core, job_id) is State.FAILED
