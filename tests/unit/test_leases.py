"""The rules about jobs that run: settles, heartbeats, lost workers, reconnects, cancels, restarts. In virtual time."""

from __future__ import annotations

import pytest

from greenroom.job import State
from greenroom.leases import MAX_CRASHES
from tests.core import Core, Peer, check, check_at_rest, new_job, outcome, reserved, state, submitted

ONE, TWO = b"1" * 16, b"2" * 16


def one_running(core: Core, instance: bytes | None = None) -> tuple[Peer, int]:
    """Return a worker and the job that it holds."""
    (job,) = submitted(core, new_job())
    worker = core.connect(instance=instance)
    assert reserved(worker) == [job]
    return worker, job


def test_a_stale_settle_changes_nothing_and_a_new_lease_has_a_higher_fence() -> None:
    core = Core()
    worker, job = one_running(core)
    stale = worker.held[job]
    worker.settle("nack", job)
    other = core.connect("other")
    assert reserved(other) == [job] and other.held[job] > stale

    for kind in ("ack", "fail", "nack", "crash"):
        assert outcome(worker, worker.settle(kind, job, fence=stale)) == "LEASE_LOST"

    assert state(core, job) is State.RUNNING and core.engine.jobs[job].crashes == 0
    assert outcome(other, other.settle("ack", job)) == "OK"
    for kind in ("ack", "fail", "nack", "crash"):
        assert outcome(worker, worker.settle(kind, job, fence=stale)) == "LEASE_LOST"
    assert state(core, job) is State.COMPLETED


@pytest.mark.parametrize("kind", ["ack", "fail", "nack", "crash"])
def test_repeating_a_settle_is_repeated_also_after_a_restart_and_has_no_second_effect(kind: str) -> None:
    core = Core()
    worker, job = one_running(core)
    fence = worker.held[job]
    assert outcome(worker, worker.settle(kind, job)) == "OK"
    before = core.newest()[job]
    told = (before.state, before.requeues, before.crashes)

    assert outcome(worker, worker.settle(kind, job, fence=fence)) == "REPEATED"
    core.crash_and_restart()
    again = core.connect()
    assert outcome(again, again.settle(kind, job, fence=fence)) == "REPEATED"

    after = core.newest()[job]
    assert (after.state, after.requeues, after.crashes) == told
    check(core)


def test_settles_of_jobs_that_are_not_there_say_whether_they_ever_were() -> None:
    core = Core()
    worker, job = one_running(core)

    assert outcome(worker, worker.settle("ack", job + 10**6, fence=1)) == "NOT_FOUND"
    assert outcome(worker, worker.settle("ack", job + 100, fence=1)) == "GONE"


@pytest.mark.parametrize("kind, expected", [("ack", State.COMPLETED), ("fail", State.FAILED)])
def test_a_late_settle_is_accepted_while_nobody_else_got_the_job(kind: str, expected: State) -> None:
    core = Core()
    worker, job = one_running(core)
    core.advance(15.1)
    assert state(core, job) is State.QUEUED and core.engine.jobs[job].crashes == 1

    assert outcome(worker, worker.settle(kind, job)) == "OK"

    assert state(core, job) is expected
    assert reserved(core.connect()) == []
    check(core)


def test_a_late_settle_is_refused_once_somebody_else_had_the_job_even_if_it_came_back() -> None:
    core = Core()
    worker, job = one_running(core)
    core.advance(15.1)
    other = core.connect()
    reserved(other)
    other.settle("nack", job)

    assert outcome(worker, worker.settle("ack", job)) == "LEASE_LOST"
    assert state(core, job) is State.QUEUED


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_late_settle_is_refused_after_a_restart(in_memory: bool) -> None:
    core = Core()
    first, second = submitted(core, new_job(), new_job())
    worker = core.connect()
    assert reserved(worker, 2) == [first, second]
    fence = worker.held[second]
    core.advance(15.1)
    core.crash_and_restart()
    worker = core.connect()
    if in_memory:
        assert reserved(worker) == [first] and second in core.engine.jobs

    assert outcome(worker, worker.settle("ack", second, fence=fence)) == "LEASE_LOST"
    assert reserved(worker) == [second if in_memory else first]


def test_who_gave_a_job_back_cannot_finish_it_any_more() -> None:
    core = Core()
    worker, job = one_running(core)
    fence = worker.held[job]
    worker.settle("nack", job)

    assert outcome(worker, worker.settle("ack", job, fence=fence)) == "LEASE_LOST"
    assert state(core, job) is State.QUEUED


def test_heartbeats_keep_a_lease_for_ever_and_silence_ends_it_after_lease_s() -> None:
    core = Core()
    worker, job = one_running(core)
    for _ in range(20):
        core.advance(14.9)
        assert worker.heartbeat() == ([], [])
    core.advance(14.9)
    assert state(core, job) is State.RUNNING

    core.advance(0.1)

    assert state(core, job) is State.QUEUED
    assert (core.engine.jobs[job].crashes, core.engine.jobs[job].requeues, worker.session.lost) == (1, 1, 1)
    assert worker.heartbeat()[0] == [(job, worker.held[job])]


@pytest.mark.parametrize("sign", ["reserve", "settle", "heartbeat"])
def test_reserve_and_settle_are_signs_of_life_too(sign: str) -> None:
    core = Core()
    worker, job = one_running(core)
    core.advance(10.0)
    {"reserve": worker.reserve, "settle": lambda: worker.settle("ack", 10**6, fence=1),
     "heartbeat": lambda: worker.heartbeat(listed=False)}[sign]()

    core.advance(14.9)
    assert state(core, job) is State.RUNNING
    core.advance(0.1)
    assert state(core, job) is State.QUEUED


def test_a_worker_that_waited_in_silence_holds_what_it_gets_as_long_as_any() -> None:
    core = Core()
    worker = core.connect()
    worker.reserve(wait=60)
    core.advance(50.0)
    (job,) = submitted(core, new_job())

    core.advance(14.9)
    assert state(core, job) is State.RUNNING
    core.advance(0.1)
    assert state(core, job) is State.QUEUED


def test_jobs_lost_in_silence_are_not_given_to_the_silent_worker_again() -> None:
    core = Core()
    worker, job = one_running(core)
    parked = worker.reserve(wait=60)
    core.advance(15.0)

    assert state(core, job) is State.QUEUED and worker.ids(parked) == []
    other = core.connect("other")
    assert reserved(other) == [job]


def test_a_connection_that_ends_before_its_worker_spoke_does_not_shorten_the_restart_grace() -> None:
    core = Core()
    worker, job = one_running(core, ONE)
    lease = (job, worker.held[job])
    core.advance(2.0)
    core.crash_and_restart()
    for _ in range(3):  # it gives up before the overloaded broker's greeting arrives
        core.connect(instance=ONE, presented=[lease]).close()
        core.advance(5.0)

    back = core.connect(instance=ONE, presented=[lease])
    assert back.presented == ["OK"] and state(core, job) is State.RUNNING
    back.heartbeat()
    back.close()
    core.advance(0.6)
    assert state(core, job) is State.QUEUED


def test_an_extended_lease_has_a_deadline_that_neither_silence_nor_heartbeats_move() -> None:
    core = Core()
    worker, job = one_running(core)
    assert worker.extend(job, 40.0) == "OK"

    core.advance(39.0)
    worker.heartbeat()
    assert state(core, job) is State.RUNNING
    core.advance(1.0)

    assert state(core, job) is State.QUEUED
    assert worker.extend(job, 40.0).code == "LEASE_LOST"


def test_a_stall_of_the_broker_ends_no_lease() -> None:
    core = Core()
    worker = core.connect()
    worker.reserve(wait=60)
    core.advance(14.0)
    (job,) = submitted(core, new_job())  # granted long after the worker's last sign of life
    core.clock.advance(20.0)
    core.engine.forgive(20.0)

    core.tick()

    assert state(core, job) is State.RUNNING


def test_a_sign_of_life_after_a_forgiven_stall_never_shortens_a_lease_below_what_is_watched() -> None:
    core = Core()
    submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    core.clock.advance(2.0)
    worker.heartbeat()  # read before the late tick, which then forgives the silence all the same

    core.engine.forgive(2.0)
    core.tick()
    worker.heartbeat()

    check(core)  # a timer stands for when the lease ends
    core.clock.advance(core.engine.timing.lease_s + 2.0)
    core.tick()
    assert core.engine.leases == 0


def test_a_stall_of_the_broker_also_moves_a_deadline_that_an_earlier_connection_set() -> None:
    core = Core()
    worker = core.connect(instance=b"i" * 16)
    (job,) = submitted(core, new_job())
    reserved(worker)
    assert worker.extend(job, 40.0) == "OK"
    again = core.connect(instance=b"i" * 16, presented=list(worker.held.items()))
    core.clock.advance(50.0)
    core.engine.forgive(50.0)

    core.tick()

    assert state(core, job) is State.RUNNING
    again.heartbeat()
    core.advance(41.0)
    assert state(core, job) is State.QUEUED


def test_a_lease_that_two_beats_miss_a_second_apart_goes_back_counted_as_nothing() -> None:
    core = Core()
    worker, job = one_running(core)
    del worker.held[job]

    worker.heartbeat(deliveries_written=False)
    core.advance(2.0)
    worker.heartbeat()
    core.advance(0.9)
    worker.heartbeat()
    assert state(core, job) is State.RUNNING, "beats before the delivery was written, or close together, prove nothing"
    core.advance(0.1)
    worker.heartbeat(deliveries_written=False)
    worker.heartbeat(listed=False)
    assert state(core, job) is State.RUNNING
    worker.heartbeat()

    assert state(core, job) is State.QUEUED
    assert (core.engine.jobs[job].crashes, core.engine.jobs[job].requeues, core.engine.requeued_by["never arrived"]) == (0, 0, 1)


def test_a_lease_that_is_listed_again_is_not_missed() -> None:
    core = Core()
    worker, job = one_running(core)
    fence = worker.held.pop(job)
    worker.heartbeat()
    worker.held[job] = fence
    core.advance(5.0)
    worker.heartbeat()
    del worker.held[job]
    core.advance(5.0)

    worker.heartbeat()

    assert state(core, job) is State.RUNNING


def test_after_five_crashes_a_job_is_failed_as_a_crash_loop() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    for number in range(MAX_CRASHES):
        assert state(core, job) is State.QUEUED
        worker = core.connect(f"w{number}")
        assert reserved(worker) == [job]
        if number % 2:
            worker.settle("crash", job)
        else:
            worker.close()
        core.advance(0.5)

    row = core.newest()[job]
    assert (row.state, row.crashes, row.attempt, row.requeues) == (State.FAILED, 5, 5, 4)
    assert row.error["name"] == "CrashLoop" and "w4" in row.error["message"]
    assert reserved(core.connect()) == []


def test_nacks_are_counted_as_nothing_and_never_fail_a_job() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker = core.connect()
    for number in range(10):
        assert reserved(worker) == [job]
        assert core.engine.jobs[job].attempt == number + 1
        worker.settle("nack", job)

    assert (core.engine.jobs[job].crashes, core.engine.jobs[job].requeues) == (0, 10)


def test_a_job_given_back_before_it_began_is_not_counted_as_requeued() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    fence = worker.held[job]

    assert outcome(worker, worker.settle("unbegun", job)) == "OK"
    assert outcome(worker, worker.settle("unbegun", job, fence=fence)) == "REPEATED"

    assert (core.engine.jobs[job].requeues, core.engine.jobs[job].crashes, core.engine.jobs[job].attempt) == (0, 0, 1)
    assert (core.engine.requeues, core.engine.requeued_by) == (0, {"unbegun": 1})
    assert reserved(worker) == [job]
    core.crash_and_restart()
    again = core.connect()
    assert outcome(again, again.settle("unbegun", job, fence=fence)) == "REPEATED"
    check_at_rest(core)


# -- connections -----------------------------------------------------------------------------------------------------------


def test_a_broken_connection_gives_its_jobs_back_after_the_reconnect_grace() -> None:
    core = Core()
    worker, job = one_running(core)
    worker.close()

    core.advance(0.49)
    assert state(core, job) is State.RUNNING and worker.session.status == "lost"
    core.advance(0.01)

    assert state(core, job) is State.QUEUED and core.engine.jobs[job].crashes == 1
    assert worker.session.key not in core.engine.sessions


def test_the_same_instance_comes_back_and_keeps_what_it_presents() -> None:
    core = Core()
    first, second = submitted(core, new_job(), new_job())
    worker = core.connect(instance=ONE)
    reserved(worker, 2)
    fences = dict(worker.held)
    worker.close()
    core.advance(0.4)

    again = core.connect(instance=ONE, presented=[(second, fences[second]), (first, fences[first] + 1)])

    assert again.presented[0] == "OK" and again.presented[1].code == "LEASE_LOST"
    assert state(core, first) is State.QUEUED and core.engine.jobs[first].crashes == 0, "not presented: back at once"
    core.advance(10.0)
    assert outcome(again, again.settle("ack", second)) == "OK"
    check(core)


@pytest.mark.parametrize("instance", [TWO, None])
def test_another_instance_cannot_take_leases_over(instance: bytes | None) -> None:
    core = Core()
    worker, job = one_running(core, ONE)
    worker.close()

    thief = core.connect(instance=instance, presented=[(job, worker.held[job])])

    assert thief.presented[0].code == "LEASE_LOST" and state(core, job) is State.RUNNING


def test_a_takeover_closes_a_connection_that_still_looks_alive_and_its_late_end_changes_nothing() -> None:
    core = Core()
    old, job = one_running(core, ONE)

    new = core.connect(instance=ONE, presented=[(job, old.held[job])])
    core.run()
    assert old.is_replaced
    old.close()
    core.advance(5.0)

    assert new.presented == ["OK"] and state(core, job) is State.RUNNING
    assert core.engine.sessions.get(old.session.key) is None
    check(core)


def test_bye_gives_leases_back_at_once_counted_as_nothing() -> None:
    core = Core()
    worker, job = one_running(core)

    worker.close(bye=True)

    assert state(core, job) is State.QUEUED
    assert (core.engine.jobs[job].crashes, core.engine.requeued_by["bye"]) == (0, 1)


def test_a_closed_connection_takes_its_open_reserve_with_it() -> None:
    core = Core()
    worker = core.connect()
    worker.reserve(wait=60)

    worker.close()

    assert core.engine.parked == 0 and not list(core.engine.groups)
    (job,) = submitted(core, new_job())
    assert state(core, job) is State.QUEUED


# -- cancel ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 10.0])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_job_that_waits_is_cancelled_at_once_wherever_it_is(delay: float | None, in_memory: bool,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.scheduled.MAX_IN_MEMORY", 4)
    monkeypatch.setattr("greenroom.scheduled.REFILL_BELOW", 1)
    core = Core(max_jobs=4)
    ids = submitted(core, *[new_job(delay=delay) for _ in range(5)])
    job = ids[0] if in_memory else ids[4]
    assert (job in core.engine.jobs) == in_memory
    client = core.connect("c", role="client")

    assert outcome(client, client.cancel(job)) == "cancelled"

    assert state(core, job) is State.CANCELLED
    assert outcome(client, client.cancel(job)) == "FINISHED"
    core.advance(20.0)
    worker = core.connect()
    assert [taken for _ in range(5) for taken in reserved(worker)] == [other for other in ids if other != job]
    check(core)
    check_at_rest(core)


def test_cancelling_what_is_not_there_says_whether_it_ever_was() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    client = core.connect("c", role="client")

    assert outcome(client, client.cancel(job + 10**6)) == "NOT_FOUND"
    assert outcome(client, client.cancel(job + 1)) == "GONE"


@pytest.mark.parametrize("end, expected", [
    ("ack", State.COMPLETED), ("fail", State.CANCELLED), ("nack", State.CANCELLED), ("crash", State.CANCELLED),
    ("lost", State.CANCELLED), ("silence", State.CANCELLED)])
def test_cancelling_a_running_job_is_a_request_and_only_an_ack_wins_over_it(end: str, expected: State) -> None:
    core = Core()
    worker, job = one_running(core)
    client = core.connect("c", role="client")
    assert outcome(client, client.cancel(job)) == "requested"
    assert outcome(client, client.cancel(job)) == "requested"
    lease = (job, worker.held[job])
    assert worker.notices == [{"notice": "cancel", "leases": [lease]}]
    assert worker.heartbeat() == ([], [lease])

    if end == "lost":
        worker.close()
        core.advance(0.5)
    elif end == "silence":
        core.advance(15.0)
    else:
        assert outcome(worker, worker.settle(end, job)) == "OK"

    assert state(core, job) is expected
    assert reserved(core.connect()) == []
    check(core)


def test_a_restart_cancels_a_job_with_the_flag_and_no_lease_on_disk() -> None:
    core = Core()
    _, job = one_running(core)
    client = core.connect("c", role="client")
    outcome(client, client.cancel(job))

    core.crash_and_restart()

    assert state(core, job) is State.CANCELLED
    check_at_rest(core)


def test_a_restart_keeps_the_flag_of_a_job_with_a_lease_on_disk() -> None:
    core = Core()
    worker, job = one_running(core, ONE)
    core.advance(1.0)
    client = core.connect("c", role="client")
    outcome(client, client.cancel(job))
    lease = (job, worker.held[job])
    core.crash_and_restart()
    worker = core.connect(instance=ONE, presented=[lease])
    assert worker.presented == ["OK"] and worker.heartbeat() == ([], [lease])

    worker.settle("nack", job)

    assert state(core, job) is State.CANCELLED


# -- restarts --------------------------------------------------------------------------------------------------------------


def test_a_lease_reaches_the_disk_after_a_second_and_not_before() -> None:
    core = Core()
    _, job = one_running(core)

    core.advance(0.99)
    assert job not in core.store._leases
    core.advance(0.01)

    assert job in core.store._leases


def test_many_leases_granted_one_by_one_are_looked_at_in_few_steps() -> None:
    core = Core()
    submitted(core, *[new_job() for _ in range(300)])
    worker = core.connect()
    for _ in range(300):
        core.clock.advance(0.001)
        worker.reserve()
    looks = 0
    until = core.now + 2.0
    while (due := core.engine.next_due()) is not None and due < until:
        core.clock.advance(max(0.0, due - core.now))
        core.tick()
        looks += 1

    assert all(job.checkpoint for job in core.engine.jobs.values()) and looks < 20


def test_leases_on_disk_hold_for_a_minute_after_a_restart_then_their_jobs_go_back() -> None:
    core = Core()
    (back, gone) = submitted(core, new_job(), new_job())
    one, two = core.connect(instance=ONE), core.connect(instance=TWO)
    assert reserved(one) == [back] and reserved(two) == [gone]
    core.advance(1.0)
    lease = (back, one.held[back])
    core.crash_and_restart()
    check(core)

    core.advance(59.0)
    again = core.connect(instance=ONE, presented=[lease])
    assert again.presented == ["OK"] and state(core, gone) is State.RUNNING
    core.advance(1.0)

    assert state(core, gone) is State.QUEUED and core.engine.jobs[gone].crashes == 1
    assert outcome(again, again.settle("ack", back)) == "OK"
    check_at_rest(core)


def test_leases_of_workers_without_an_instance_are_each_on_their_own_after_a_restart() -> None:
    core = Core()
    jobs = submitted(core, *[new_job() for _ in range(3)])
    names = ["a", "b", "b"]
    held = {}
    for name in names:
        worker = core.connect(name)
        reserved(worker)
        held.update(worker.held)
    core.advance(1.0)
    for _ in range(2):
        core.crash_and_restart()
        check(core)
        assert [core.engine.jobs[job].lease.worker for job in jobs] == names
        assert len({core.engine.jobs[job].lease.session for job in jobs}) == 3

    other = core.connect("c")
    assert outcome(other, other.settle("ack", jobs[0], fence=held[jobs[0]])) == "OK"  # job and fence name a lease, not a session
    core.advance(60.0)

    assert [state(core, job) for job in jobs[1:]] == [State.QUEUED, State.QUEUED]
    assert not [session for session in core.engine.sessions.values() if session.key < 0]
    check_at_rest(core)


def test_a_lease_that_never_reached_the_disk_is_lost_with_a_restart_and_the_job_runs_again() -> None:
    core = Core()
    worker, job = one_running(core, ONE)
    fence = worker.held[job]
    core.crash_and_restart()

    again = core.connect(instance=ONE, presented=[(job, fence)])

    assert again.presented[0].code == "LEASE_LOST"
    assert outcome(again, again.settle("ack", job, fence=fence)) == "LEASE_LOST"
    assert reserved(again) == [job] and again.held[job] > fence


def test_restarting_again_and_again_is_as_restarting_once() -> None:
    core = Core(max_jobs=5)
    ids = submitted(core, *[new_job(delay=5.0 if number % 5 == 4 else None) for number in range(20)])
    worker = core.connect(instance=ONE)
    reserved(worker, 3)
    core.advance(1.0)
    worker.settle("ack", ids[0])
    core.run()
    before = {job_id: job.state for job_id, job in core.newest().items()}

    for _ in range(4):
        core.crash_and_restart()

    assert {job_id: job.state for job_id, job in core.newest().items()} == before
    check(core)
    check_at_rest(core)
