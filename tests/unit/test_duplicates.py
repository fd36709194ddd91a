"""What becomes of the job that has a unique key when another submit comes with it; in virtual time, over engine and memory store."""

from __future__ import annotations

import pytest

from greenroom.errors import FullError
from greenroom.job import State
from greenroom.leases import Caps
from greenroom.unique import Duplicate
from tests.core import Core, Peer, check, new_job, reserved, state, submitted
from tests.unit.test_unique import outcome_of, submit_one

LARGE = b"l" * 3000


def debounced(core: Core, payload: bytes, quiet: float = 10.0, **extras: object) -> object:
    """Submit one job in the mode debounce; the door makes its delay of `unique_for`."""
    return outcome_of(core, payload=payload, delay=quiet, unique_key="k", unique_mode="debounce", unique_for=quiet, **extras)


def delivered(core: Core, worker: Peer) -> tuple[int, bytes] | None:
    """Reserve one job; returns its id and payload, None: there is none."""
    ids = reserved(worker)
    return (ids[0], worker.payloads[ids[0]]) if ids else None


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("payload", [b"new", LARGE])
@pytest.mark.parametrize("delay", [None, 5.0])
def test_a_duplicate_may_replace_the_payload_of_a_job_that_waits(delay: float | None, payload: bytes, is_restarted: bool) -> None:
    core = Core()
    first = submit_one(core, unique_key="k", delay=delay)
    others = submitted(core, new_job(), new_job())
    waits = "queued" if delay is None else "scheduled"

    assert outcome_of(core, payload=payload, unique_key="k", on_duplicate="replace") == Duplicate(first, waits, replaced=True)
    check(core)
    if is_restarted:
        core.crash_and_restart()
    core.advance(delay or 0.0)
    core.run()
    worker = core.connect("w")
    order = [delivered(core, worker) for _ in range(3)]

    assert dict(order)[first] == payload and len(order) == 3
    assert delay is not None or order[0][0] == first, "it keeps its place"
    assert sorted(job for job, _ in order) == [first, *others]


def test_a_duplicate_that_keeps_changes_nothing() -> None:
    core = Core()
    first = submit_one(core, unique_key="k", payload=b"old")

    assert outcome_of(core, payload=b"new", unique_key="k") == Duplicate(first, "queued", replaced=False)
    assert delivered(core, core.connect("w")) == (first, b"old")


@pytest.mark.parametrize("mode", [{}, {"unique_mode": "throttle", "unique_for": 60.0}])
def test_the_payload_of_a_job_that_runs_or_ran_stays(mode: dict) -> None:
    core = Core()
    first = submit_one(core, unique_key="k", payload=b"old", **mode)
    worker = core.connect("w")
    reserved(worker)

    assert outcome_of(core, payload=b"new", unique_key="k", on_duplicate="replace", **mode) == Duplicate(first, "running", replaced=False)
    worker.settle("fail", first, wish=None)
    core.run()
    again = outcome_of(core, payload=b"newer", unique_key="k", on_duplicate="replace", **mode)
    assert again == Duplicate(first, "scheduled", replaced=True), "it waits again, for its next try"
    core.advance(20.0)
    assert delivered(core, worker) == (first, b"newer")
    worker.settle("ack", first)
    core.run()
    last = outcome_of(core, payload=b"last", unique_key="k", on_duplicate="replace", **mode)
    assert isinstance(last, Duplicate) is bool(mode) and not getattr(last, "replaced", False)


def test_a_job_of_another_task_keeps_its_payload() -> None:
    core = Core()
    first = submit_one(core, unique_key="k", payload=b"old")

    assert outcome_of(core, task="other", payload=b"new", unique_key="k", on_duplicate="replace") == Duplicate(first, "queued", replaced=False)


def test_a_payload_that_has_no_room_is_refused_and_the_old_one_stays() -> None:
    core = Core(caps=Caps(waiting_bytes=100))
    first = submit_one(core, unique_key="k", payload=b"a" * 10)
    submit_one(core, payload=b"b" * 60)
    client = core.connect("c", role="client")
    client.submit(new_job(payload=b"c" * 30, unique_key="k", on_duplicate="replace"))  # as many as there is room for, and then more
    core.run()
    request = client.submit(new_job(payload=b"d" * 20, unique_key="k", on_duplicate="replace"))

    assert isinstance(client.answers[request], FullError)
    assert core.newest()[first].payload == b"c" * 30
    check(core)


def test_the_last_of_several_in_one_submit_wins() -> None:
    core = Core()
    client = core.connect("c", role="client")
    request = client.submit(*[new_job(payload=b"%d" % number, unique_key="k", on_duplicate="replace") for number in range(4)])
    core.run()
    first, *others = client.answers[request]["jobs"]

    assert others == [Duplicate(first, "queued", replaced=True)] * 3
    assert delivered(core, core.connect("w")) == (first, b"3")


def test_a_lane_in_which_nothing_was_accepted_is_not_made() -> None:
    core = Core()
    submit_one(core, unique_key="k")
    outcome_of(core, queue="nowhere", unique_key="k")

    assert ("nowhere", "t") not in core.engine.lanes


def test_those_who_watch_are_told_that_the_job_was_changed() -> None:
    core = Core()
    core.engine.is_watched = True
    first = submit_one(core, unique_key="k")
    since = core.batches.events.last
    outcome_of(core, payload=b"new", unique_key="k", on_duplicate="replace")
    outcome_of(core, payload=b"kept", unique_key="k")

    told = core.batches.events.after(since, 100)
    assert [(event["kind"], event["job"]) for event in told] == [("changed", first)]


# Debounce.


def test_a_debounced_job_runs_once_when_it_has_been_quiet_with_the_last_payload() -> None:
    core = Core()
    worker = core.connect("w")
    first = debounced(core, b"1")
    for payload in (b"2", b"3"):
        core.advance(9.0)
        assert debounced(core, payload) == Duplicate(first, "scheduled", replaced=True)
        check(core)
    core.advance(9.9)
    assert delivered(core, worker) is None
    core.advance(0.1)

    assert delivered(core, worker) == (first, b"3") and delivered(core, worker) is None


def test_the_quiet_time_is_that_of_the_latest_submit() -> None:
    core = Core()
    first = debounced(core, b"1", 10.0)
    debounced(core, b"2", 3.0)
    assert core.newest()[first].run_at == core.now + 3.0
    debounced(core, b"2", 30.0)
    assert core.newest()[first].run_at == core.now + 30.0


def test_a_stream_that_never_ends_puts_it_off_until_its_bound() -> None:
    core = Core()
    worker = core.connect("w")
    first = debounced(core, b"0", debounce_max=25.0)
    for number in range(1, 5):
        core.advance(6.0)
        assert debounced(core, b"%d" % number, debounce_max=500.0) == Duplicate(first, "scheduled", replaced=True)
    core.advance(1.0)

    assert state(core, first) is State.QUEUED, "25 s after the first"
    assert debounced(core, b"5") == Duplicate(first, "queued", replaced=True), "its bound is over: it stays where it waits"
    assert delivered(core, worker) == (first, b"5")


def test_a_job_that_fell_due_and_has_no_worker_is_put_off_again() -> None:
    core = Core()
    first = debounced(core, b"1")
    core.advance(12.0)
    assert state(core, first) is State.QUEUED
    assert debounced(core, b"2") == Duplicate(first, "scheduled", replaced=True)
    check(core)
    worker = core.connect("w")
    assert delivered(core, worker) is None
    core.advance(10.0)

    assert delivered(core, worker) == (first, b"2")


@pytest.mark.parametrize("outcome", ["nothing", "ack", "fail", "nack", "unbegun"])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_key_is_free_once_a_worker_has_the_job(outcome: str, is_restarted: bool) -> None:
    core = Core()
    worker = core.connect("w")
    first = debounced(core, b"1")
    core.advance(10.0)
    assert delivered(core, worker) == (first, b"1")
    if outcome != "nothing":
        worker.settle(outcome, first, wish=None)
        core.run()
    if is_restarted:
        core.crash_and_restart()

    second = debounced(core, b"2")
    assert isinstance(second, int) and second != first
    assert debounced(core, b"3") == Duplicate(second, "scheduled", replaced=True)
    if is_restarted:
        core.crash_and_restart()
        assert debounced(core, b"3").job == second
    check(core)


def test_a_first_run_that_ends_later_does_not_free_the_key_of_the_second_job() -> None:
    core = Core()
    worker = core.connect("w")
    first = debounced(core, b"1")
    core.advance(10.0)
    delivered(core, worker)
    second = debounced(core, b"2")
    worker.settle("ack", first)
    core.run()

    assert debounced(core, b"3") == Duplicate(second, "scheduled", replaced=True)
    core.crash_and_restart()
    assert debounced(core, b"4").job == second


def test_a_pushed_time_and_the_payload_survive_a_crash() -> None:
    core = Core()
    first = debounced(core, b"1")
    core.advance(8.0)
    debounced(core, LARGE)
    core.crash_and_restart()
    worker = core.connect("w")
    core.advance(9.9)
    assert delivered(core, worker) is None
    core.advance(0.1)

    assert delivered(core, worker) == (first, LARGE)


def test_a_debounced_job_that_is_cancelled_frees_its_key() -> None:
    core = Core()
    first = debounced(core, b"1")
    client = core.connect("c2", role="client")
    client.cancel(first)
    core.run()
    second = debounced(core, b"2")
    assert isinstance(second, int)
    request = client.retry(first)
    core.run()

    assert client.outcome(request) == "CONFLICT", "it was never begun, and another waits with its key"


def test_one_that_failed_is_retried_by_hand_beside_the_one_that_has_its_key() -> None:
    core = Core()
    worker = core.connect("w")
    first = debounced(core, b"1")
    core.advance(10.0)
    delivered(core, worker)
    worker.settle("fail", first)
    core.run()
    second = debounced(core, b"2")
    request = worker.retry(first)
    core.run()

    assert worker.outcome(request) == "queued"
    core.crash_and_restart()
    assert debounced(core, b"3").job == second


def test_a_job_of_another_mode_gets_the_payload_and_keeps_its_time() -> None:
    core = Core()
    first = submit_one(core, unique_key="k", delay=2.0, payload=b"1")
    assert debounced(core, b"2") == Duplicate(first, "scheduled", replaced=True)
    core.advance(2.0)

    assert delivered(core, core.connect("w")) == (first, b"2")


def test_the_time_to_begin_moves_with_it() -> None:
    core = Core()
    first = debounced(core, b"1", expires_in=5.0)
    core.advance(9.0)
    debounced(core, b"2", expires_in=5.0)
    core.advance(14.0)
    assert state(core, first) is State.QUEUED
    core.advance(2.0)
    assert state(core, first) is State.EXPIRED


def test_jobs_that_are_put_off_again_and_again_leave_no_entries_behind() -> None:
    core = Core()
    jobs = [new_job(delay=10.0, unique_key=f"{number}", unique_mode="debounce", unique_for=10.0) for number in range(300)]
    ids = submitted(core, *jobs)
    client = core.connect("c2", role="client")
    for _ in range(20):
        core.advance(1.0)
        client.submit(*jobs)
        core.run()

    assert len(core.engine.scheduled._heap) <= 2 * len(ids) + 64 and core.engine.scheduled.in_memory == len(ids)
    check(core)
