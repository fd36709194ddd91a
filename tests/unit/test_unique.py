"""Unique keys: who has one, until when, across restarts; in virtual time, over engine and memory store."""

from __future__ import annotations

from greenroom.errors import FullError
from greenroom.job import State
from greenroom.unique import Duplicate
from tests.core import Core, check, new_job, reserved, state, submitted


def submit_one(core: Core, **extras: object) -> object:
    return submitted(core, new_job(**extras))[0]


def outcome_of(core: Core, **extras: object) -> object:
    """Submit one job with a key; returns its outcome as the engine told it."""
    client = core.connect("c", role="client")
    request = client.submit(new_job(**extras))
    core.run()
    return client.answers[request]["jobs"][0]


def test_a_key_is_taken_until_its_job_is_finished() -> None:
    core = Core()
    first = submit_one(core, unique_key="k")
    assert outcome_of(core, unique_key="k") == Duplicate(first, "queued")
    worker = core.connect("w")
    reserved(worker)
    assert outcome_of(core, unique_key="k") == Duplicate(first, "running")
    assert isinstance(outcome_of(core, unique_key="other"), int)
    worker.settle("fail", first, wish=None)
    core.run()
    assert outcome_of(core, unique_key="k") == Duplicate(first, "scheduled"), "it is tried again: not finished"
    worker.cancel(first)
    core.run()

    assert isinstance(outcome_of(core, unique_key="k"), int)
    check(core)


def test_two_with_the_same_key_in_one_submit_are_one_job() -> None:
    core = Core()
    client = core.connect("c", role="client")
    request = client.submit(new_job(unique_key="k"), new_job(), new_job(unique_key="k"))
    core.run()
    first, plain, second = client.answers[request]["jobs"]

    assert isinstance(plain, int) and second == Duplicate(first, "queued")
    assert len(core.store._jobs) == 2


def test_a_throttle_holds_for_its_time_whatever_becomes_of_the_job() -> None:
    core = Core()
    first = submit_one(core, unique_key="k", unique_mode="throttle", unique_for=60.0)
    worker = core.connect("w")
    reserved(worker)
    worker.settle("ack", first)
    core.run()
    assert outcome_of(core, unique_key="k") == Duplicate(first, None)
    core.advance(60.0)

    second = outcome_of(core, unique_key="k")
    assert isinstance(second, int) and second != first


def test_until_done_may_have_an_end_as_well() -> None:
    core = Core()
    first = submit_one(core, unique_key="k", unique_for=60.0)
    core.advance(59.0)
    assert outcome_of(core, unique_key="k") == Duplicate(first, "queued")
    core.advance(1.0)
    assert isinstance(outcome_of(core, unique_key="k"), int)


def test_keys_hold_after_a_restart_and_those_that_were_freed_stay_free() -> None:
    core = Core()
    held = submit_one(core, unique_key="held")
    thrown = submit_one(core, unique_key="thrown", unique_mode="throttle", unique_for=600.0)
    freed = submit_one(core, unique_key="freed")
    worker = core.connect("w")
    reserved(worker, 3)
    worker.settle("ack", freed, thrown)
    core.run()
    core.crash_and_restart()

    assert outcome_of(core, unique_key="held") == Duplicate(held, "queued") or core.engine.jobs == {}
    assert outcome_of(core, unique_key="held").job == held
    assert outcome_of(core, unique_key="thrown") == Duplicate(thrown, None)
    assert isinstance(outcome_of(core, unique_key="freed"), int)


def test_what_was_not_committed_took_no_key() -> None:
    core = Core()
    client = core.connect("c", role="client")
    client.submit(new_job(unique_key="k"))
    core.crash_and_restart()

    assert isinstance(outcome_of(core, unique_key="k"), int)


def test_keys_have_a_cap_and_those_that_ran_out_make_room() -> None:
    core = Core()
    core.engine.keys.cap = 2
    for key in ("a", "b"):
        submit_one(core, unique_key=key, unique_mode="throttle", unique_for=10.0)
    refused = outcome_of(core, unique_key="c")
    assert isinstance(refused, FullError) and refused.field == "unique_key"
    core.advance(10.0)

    assert isinstance(outcome_of(core, unique_key="c"), int) and len(core.engine.keys) == 1


def test_a_retried_job_takes_its_key_again_unless_another_has_it() -> None:
    core = Core()
    first = submit_one(core, unique_key="k")
    client = core.connect("c2", role="client")
    client.cancel(first)
    core.run()
    second = submit_one(core, unique_key="k")
    request = client.retry(first)
    core.run()
    assert client.outcome(request) == "CONFLICT"
    client.cancel(second)
    core.run()
    request = client.retry(first)
    core.run()

    assert client.outcome(request) == "queued" and outcome_of(core, unique_key="k").job == first
    assert core.store.committed(first).state is State.QUEUED


def test_a_job_that_was_to_be_cancelled_when_the_broker_died_leaves_its_key() -> None:
    core = Core()
    first = submit_one(core, unique_key="k")
    assert reserved(core.connect("w")) == [first]
    core.connect("c", role="client").cancel(first)
    core.run()

    core.crash_and_restart()

    assert state(core, first) is State.CANCELLED
    assert isinstance(outcome_of(core, unique_key="k"), int)
    core.crash_and_restart()
    assert isinstance(outcome_of(core, unique_key="k"), Duplicate)
