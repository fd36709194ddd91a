"""Jobs that crashed before: the worker's rule that they run alone, and what the broker tells of them, in virtual time."""

from __future__ import annotations

import pytest

from greenroom.job import State
from greenroom.suspects import SUSPECT_WAIT_S, Step, Suspects
from tests.core import Core, Peer, check, new_job, reserved, submitted

A, B, C = (1, 11), (2, 12), (3, 13)


@pytest.fixture
def suspects() -> Suspects:
    return Suspects(are_kept_apart=True)


# -- the worker's rule ------------------------------------------------------------------------------------------------------


def test_a_suspect_begins_when_nobody_is_left_beside_it_and_nobody_can_come(suspects: Suspects) -> None:
    assert suspects.admit(A, 0, 0.0) and suspects.admit(B, 1, 0.0) and not suspects.admit(C, 0, 0.0)
    assert suspects.step({A, B, C}, 0.1, may_get_more=False) is None  # C is being given back
    assert suspects.step({A, B}, 0.2, may_get_more=False) is None
    assert suspects.step({B}, 0.3, may_get_more=True) is None

    assert suspects.step({B}, 0.4, may_get_more=False) is Step.BEGIN
    assert suspects.step({B}, 99.0, may_get_more=False) is None and suspects.due_at is None


def test_nothing_is_taken_until_it_is_settled_and_then_one_job_at_a_time_until_one_has_not_crashed(suspects: Suspects) -> None:
    assert suspects.most(8) == 8
    suspects.admit(A, 2, 0.0)
    suspects.step({A}, 0.0, may_get_more=False)
    assert suspects.most(8) == 0 and not suspects.admit(B, 5, 1.0)

    assert suspects.step(set(), 2.0, may_get_more=False) is None and suspects.most(8) == 1
    assert suspects.admit(B, 1, 2.0) and suspects.step({B}, 2.0, may_get_more=False) is Step.BEGIN
    suspects.step(set(), 3.0, may_get_more=False)
    assert suspects.admit(C, 0, 3.0) and suspects.most(8) == 8 and suspects.most(0) == 0


def test_neighbours_that_take_long_send_it_back_once_and_are_not_waited_for_again(suspects: Suspects) -> None:
    suspects.admit(A, 0, 0.0)
    suspects.admit(B, 1, 5.0)
    assert suspects.due_at == 5.0 + SUSPECT_WAIT_S
    assert suspects.step({A, B}, suspects.due_at - 0.1, may_get_more=False) is None
    assert suspects.step({A, B}, suspects.due_at, may_get_more=False) is Step.GIVE_BACK
    assert suspects.step({A, B}, 15.5, may_get_more=False) is None and suspects.due_at is None, "its way back takes a while"
    assert suspects.most(3) == 0
    assert suspects.step({A}, 16.0, may_get_more=False) is None and suspects.most(3) == 1  # it has gone

    again = (B[0], B[1] + 10)
    suspects.admit(again, 1, 17.0)
    assert suspects.step({A, again}, 17.0, may_get_more=False) is Step.BEGIN  # nobody else wanted it
    suspects.step({A}, 18.0, may_get_more=False)
    suspects.admit(C, 0, 18.0)
    suspects.admit(again, 1, 19.0)
    assert suspects.step({A, C, again}, 19.0, may_get_more=False) is None  # C is waited for


def test_one_that_is_lost_or_given_back_while_it_waits_or_runs_is_waited_for_no_longer(suspects: Suspects) -> None:
    suspects.admit(A, 1, 0.0)
    assert suspects.step({B}, 1.0, may_get_more=False) is None
    assert suspects.lease is None and suspects.due_at is None

    suspects.admit(A, 1, 2.0)
    suspects.step({A}, 2.0, may_get_more=False)
    suspects.step({B}, 3.0, may_get_more=False)
    assert suspects.lease is None and suspects.admit(C, 0, 3.0)


def test_where_each_job_has_a_process_there_are_no_suspects() -> None:
    suspects = Suspects(are_kept_apart=False)

    assert suspects.admit(A, 3, 0.0) and suspects.admit(B, 0, 0.0) and suspects.lease is None and suspects.most(5) == 5


# -- what the broker tells --------------------------------------------------------------------------------------------------


def delivered(worker: Peer, n: int = 10) -> dict[int, list]:
    """Reserve jobs and return their deliveries after the first eight places, by job."""
    request = worker.reserve(n)
    worker.core.run()
    return {delivery[0]: delivery[8:] for delivery in worker.answers[request]["jobs"]}


def test_a_delivery_tells_how_often_its_job_crashed_also_after_a_restart() -> None:
    core = Core()
    first, second = submitted(core, new_job(), new_job())
    worker = core.connect("w")
    assert delivered(worker) == {first: [], second: []}
    worker.settle("crash", first)
    worker.settle("nack", second)
    core.run()

    assert delivered(worker) == {first: [1], second: []}
    worker.settle("crash", first)
    worker.settle("nack", second)
    core.run()
    core.crash_and_restart()
    again = core.connect("w2")
    assert delivered(again) == {first: [2], second: []}
    again.settle("fail", first)
    core.run()
    core.connect("c", role="client").retry(first)
    core.run()
    assert delivered(again) == {first: []}, "who retries it by hand vouches for it"
    check(core)


def test_the_run_limits_of_a_suspect_leave_it_the_time_to_wait_in_its_worker() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(soft_timeout=4.0, timeout=8.0, attempts=1))
    worker = core.connect("w")
    assert reserved(worker) == [job_id]
    worker.settle("crash", job_id)
    core.run()
    assert reserved(worker) == [job_id]
    for _ in range(9):
        worker.heartbeat(listed=False)
        core.advance(1.0)
    assert core.engine.jobs[job_id].state is State.RUNNING and worker.notices == []
    for _ in range(9):
        worker.heartbeat(listed=False)
        core.advance(SUSPECT_WAIT_S / 9)

    assert [notice.get("reason") for notice in worker.notices] == ["soft_timeout", None]
    assert core.store.committed(job_id).state is State.FAILED
