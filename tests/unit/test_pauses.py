"""Paused queues and tasks: nobody gets their jobs, all others get theirs, and all goes on when they are resumed. In virtual time."""

from __future__ import annotations

import pytest

from greenroom.errors import FullError
from greenroom.job import State
from greenroom.leases import Caps
from greenroom.pauses import MAX_PAUSES, Pauses
from greenroom.records import Pause
from tests.core import Core, Peer, check, new_job, reserved, state, submitted


def admin(core: Core) -> Peer:
    return core.connect("c", role="client")


def test_nobody_gets_jobs_of_a_paused_queue_and_others_are_not_held_up() -> None:
    core = Core()
    held, other = submitted(core, new_job(priority=1, queue="mail"), new_job(priority=9, queue="web"))
    worker = core.connect()

    admin(core).pause("queue", "mail", reason="provider is down", by="ann")
    core.run()

    assert reserved(worker, 5) == [other] and reserved(worker, 5) == []
    assert state(core, held) is State.QUEUED
    check(core)


@pytest.mark.parametrize(("kind", "name"), [("queue", "q"), ("task", "t")])
def test_who_waits_gets_the_jobs_in_order_when_it_is_resumed(kind: str, name: str) -> None:
    core = Core()
    admin(core).pause(kind, name)
    core.run()
    ids = submitted(core, *[new_job(priority=priority) for priority in (5, 1, 9)])
    worker = core.connect()
    request_id = worker.reserve(3, wait=60)
    core.run()
    assert request_id not in worker.answers

    admin(core).resume(kind, name)
    core.run()

    assert worker.ids(request_id) == [ids[1], ids[0], ids[2]]
    check(core)


def test_a_lane_that_two_pauses_hold_back_waits_for_the_end_of_both() -> None:
    core = Core()
    ids = submitted(core, new_job())
    worker, client = core.connect(), admin(core)
    client.pause("queue", "q")
    client.pause("task", "t")
    core.run()

    client.resume("queue", "q")
    assert reserved(worker) == []
    client.resume("task", "t")

    assert reserved(worker) == ids


def test_a_pause_for_a_time_ends_by_itself_and_a_later_one_replaces_it() -> None:
    core = Core()
    ids = submitted(core, new_job())
    worker, client = core.connect(), admin(core)
    client.pause("queue", "q", seconds=10)
    client.pause("queue", "q", seconds=30)
    core.run()
    request_id = worker.reserve(wait=60)
    core.advance(29.0)
    worker.heartbeat()
    assert request_id not in worker.answers and len(core.engine.pauses) == 1

    core.advance(2.0)

    assert worker.ids(request_id) == ids and not core.engine.pauses and not core.store.committed_pauses()


def test_a_running_job_goes_on_and_one_that_comes_back_waits() -> None:
    core = Core()
    first, second = submitted(core, new_job(), new_job())
    worker = core.connect()
    assert reserved(worker, 2) == [first, second]

    admin(core).pause("queue", "q")
    done = worker.settle("ack", first)
    worker.settle("nack", second)
    core.run()

    assert worker.outcome(done) == "OK" and state(core, second) is State.QUEUED
    assert reserved(worker) == []
    admin(core).resume("queue", "q")
    assert reserved(worker) == [second]
    check(core)


@pytest.mark.parametrize("seconds", [None, 300.0])
def test_a_pause_holds_after_a_crash_from_before_the_first_reserve(seconds: float | None) -> None:
    core = Core()
    ids = submitted(core, new_job(), new_job("u"))
    admin(core).pause("task", "t", seconds=seconds, reason="why", by="ann")
    core.run()

    core.crash_and_restart()
    worker = core.connect()

    assert reserved(worker, 5) == ids[1:]
    (pause,) = core.engine.pauses
    assert (pause.kind, pause.name, pause.reason, pause.by) == ("task", "t", "why", "ann")
    admin(core).resume("task", "t")
    assert reserved(worker, 5) == ids[:1]


def test_what_was_paused_for_a_time_that_passed_while_the_broker_was_down_is_resumed() -> None:
    core = Core()
    ids = submitted(core, new_job())
    admin(core).pause("queue", "q", seconds=5.0)
    core.run()
    core.store.crash()
    core.clock.advance(60.0)
    core.crash_and_restart()
    core.tick()

    assert reserved(core.connect()) == ids


def test_a_reserve_that_waits_for_a_paused_lane_to_be_read_gets_what_others_have() -> None:
    core = Core()
    (better,) = submitted(core, new_job("a", priority=1, queue="mail"))
    core.crash_and_restart()
    worker = core.connect()
    (worse,) = submitted(core, new_job("b", priority=9, queue="web"))
    patient = worker.reserve(wait=60)
    hasty = core.connect("hasty")
    at_once = hasty.reserve(wait=0)
    core.tick()
    assert patient not in worker.answers and at_once not in hasty.answers, "both wait for the store"

    admin(core).pause("queue", "mail")
    core.run()

    assert worker.ids(patient) == [worse] and hasty.ids(at_once) == []
    assert state(core, better) is State.QUEUED
    check(core)


def test_a_paused_lane_of_which_memory_holds_nothing_is_read_again_in_order() -> None:
    core = Core(max_jobs=10)
    held = submitted(core, *[new_job(queue="held") for _ in range(9)])
    worker = core.connect()
    reserved(worker, 0)
    admin(core).pause("queue", "held")
    others = [job for _ in range(4) for job in submitted(core, *[new_job(queue="open") for _ in range(9)])]
    assert core.engine.lanes["held", "t"].in_memory < 9, "what nobody can run leaves memory first"

    got = [job for _ in range(60) for job in reserved(worker)]
    assert got == others
    admin(core).resume("queue", "held")

    assert [job for _ in range(12) for job in reserved(worker)] == held
    check(core)


def test_a_lane_made_while_its_queue_is_paused_is_closed_and_a_new_group_does_not_get_it() -> None:
    core = Core(caps=Caps(lanes=1))
    admin(core).pause("queue", "q")
    core.run()
    ids = submitted(core, new_job())

    assert core.engine.lanes["q", "t"].is_closed
    assert reserved(core.connect(), tasks=["t"]) == [] and reserved(core.connect(), queues=["q"]) == []
    assert [group.matches(core.engine.lanes["q", "t"]) for group in core.engine.groups] == [True, True]
    check(core)
    admin(core).resume("queue", "q")
    assert reserved(core.connect(), tasks=["t"]) == ids


def test_what_is_not_paused_cannot_be_resumed_and_there_is_a_cap() -> None:
    core = Core()
    client = admin(core)
    request_id = client.resume("queue", "q")
    assert client.answers[request_id] == {"resumed": False}
    for number in range(MAX_PAUSES):
        core.engine.pause(Pause("queue", f"q{number}", core.now, None, "", "me"), core.now)

    with pytest.raises(FullError, match="are paused"):
        core.engine.pause(Pause("queue", "one more", core.now, None, "", "me"), core.now)
    core.engine.pause(Pause("queue", "q7", core.now, core.now + 9, "", "me"), core.now)
    assert core.engine.pauses.get("queue", "q7").until == core.now + 9


def test_the_next_end_is_that_of_the_first_pause_that_ends() -> None:
    pauses = Pauses()
    pauses.restore([Pause("queue", "a", 1.0, None, "", ""), Pause("queue", "b", 1.0, 50.0, "", ""), Pause("task", "b", 1.0, 9.0, "", "")])
    assert pauses.next_end == 9.0 and [pause.name for pause in pauses.over(9.0)] == ["b"]

    assert pauses.end("task", "b") is not None and pauses.end("task", "b") is None

    assert pauses.next_end == 50.0 and [pause.name for pause in pauses.of("b", "b")] == ["b"] and pauses.of("x", "a") == []
