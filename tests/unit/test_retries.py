"""Failed runs are tried again: how often, after which pauses, after which errors; in virtual time, over engine and memory store."""

from __future__ import annotations

import pytest

from greenroom.errors import ConflictError
from greenroom.job import Extras, Run, State
from greenroom.retries import next_try, pause_s
from tests.core import NAMELESS, Core, Peer, check, new_job, reserved, submitted


@pytest.mark.parametrize("policy, pauses", [
    (Extras(), [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]),
    (Extras(backoff="linear", backoff_base=3.0, backoff_cap=8.0), [3, 6, 8, 8]),
    (Extras(backoff="fixed", backoff_base=7.0), [7, 7, 7]),
    (Extras(backoff="none"), [0, 0]),
    (Extras(backoff_cap=0.0), [0, 0]),
])
def test_pauses_grow_as_asked_up_to_their_cap(policy: Extras, pauses: list[float]) -> None:
    assert [pause_s(policy, failures, 1.0) for failures in range(1, len(pauses) + 1)] == pauses


def test_jitter_takes_a_part_of_the_pause_but_of_a_fixed_one_only_if_asked() -> None:
    assert pause_s(Extras(), 2, 0.25) == 5.0 and pause_s(Extras(jitter=False), 2, 0.25) == 20.0
    assert pause_s(Extras(backoff="fixed"), 2, 0.25) == 10.0 and pause_s(Extras(backoff="fixed", jitter=True), 2, 0.25) == 2.5


def test_a_pause_after_very_many_failures_is_the_cap() -> None:
    assert pause_s(Extras(attempts=1000), 1000, 1.0) == 3600.0


def tried(extras: Extras | None = None, failures: int = 1, *, since: float = 0.0, name: str = "E", wish: object = None,
          now: float = 100.0) -> float | None:
    return next_try(extras, failures, since, name, wish, now, 1.0)


def test_the_count_of_failures_ends_the_tries() -> None:
    assert [tried(failures=failures) is None for failures in range(1, 6)] == [False] * 4 + [True]
    assert tried(Extras(attempts=1)) is None and tried(Extras(attempts=2)) == 110.0


def test_a_budget_of_time_ends_them_instead() -> None:
    assert tried(Extras(retry_for=200.0), failures=50, since=0.0, now=100.0) is None, "the next try would be too late"
    assert tried(Extras(retry_for=200.0), failures=3, since=0.0, now=100.0) == 140.0


def test_the_name_of_the_error_decides() -> None:
    assert tried(Extras(retry_on=("A",)), name="A") == 110.0 and tried(Extras(retry_on=("A",)), name="B") is None
    assert tried(Extras(retry_never=("A",)), name="A") is None and tried(Extras(retry_never=("A",)), name="B") == 110.0


def test_the_task_decides_when_and_whether_but_not_how_often() -> None:
    assert tried(wish=False) is None and tried(wish=500.0) == 500.0 and tried(wish=5.0) == 100.0
    assert tried(wish=500.0, failures=5) is None


# -- in the engine ----------------------------------------------------------------------------------------------------------


def worker_with(core: Core, *jobs: object) -> tuple[Peer, list[int]]:
    """Submit jobs, and return a worker that holds them all."""
    ids = submitted(core, *jobs)
    worker = core.connect("w")
    assert reserved(worker, len(ids)) == ids
    return worker, ids


def beat_for(core: Core, worker: Peer, seconds: int) -> None:
    """Let time pass for a worker that lives."""
    for _ in range(seconds):
        worker.heartbeat(listed=False)
        core.advance(1.0)


def test_a_failed_job_waits_for_its_next_try_and_ends_after_the_last() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(attempts=3, backoff_base=5.0))

    for pause in (5, 10):
        worker.settle("fail", job_id, wish=None)
        core.run()
        job = core.engine.jobs[job_id]
        assert job.state is State.SCHEDULED and job.run_at == core.now + pause and job.error == NAMELESS
        beat_for(core, worker, pause - 1)
        assert reserved(worker) == []
        beat_for(core, worker, 1)
        assert reserved(worker) == [job_id]
    worker.settle("fail", job_id, wish=None)
    core.run()

    row = core.store.committed(job_id)
    assert (row.state, row.failures, row.attempt) == (State.FAILED, 3, 3)
    runs = core.store.reader().runs(job_id)
    assert [(run.attempt, run.outcome, run.worker, run.error) for run in runs] == [
        (number, "failed", "w", NAMELESS) for number in (1, 2, 3)]
    check(core)


def test_a_job_that_completes_after_failures_has_no_error_but_its_history() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(backoff="none"))
    worker.settle("fail", job_id, wish=None)
    core.advance(0.0)
    core.run()
    assert reserved(worker) == [job_id]
    worker.settle("ack", job_id)
    core.run()

    row = core.store.committed(job_id)
    assert (row.state, row.error, row.failures) == (State.COMPLETED, None, 1)
    assert [run.outcome for run in core.store.reader().runs(job_id)] == ["failed"]


def test_a_retried_job_stands_behind_those_that_came_meanwhile() -> None:
    core = Core()
    worker, (first,) = worker_with(core, new_job(backoff="fixed", backoff_base=2.0))
    worker.settle("fail", first, wish=None)
    core.run()
    (second,) = submitted(core, new_job())
    beat_for(core, worker, 2)

    assert reserved(worker, 2) == [second, first]


def test_a_large_payload_is_there_again_for_the_next_try() -> None:
    core = Core()
    payload = bytes(range(256)) * 8
    worker, (job_id,) = worker_with(core, new_job(payload=payload, backoff="fixed", backoff_base=1.0))
    worker.payloads.clear()
    worker.settle("fail", job_id, wish=None)
    core.run()
    beat_for(core, worker, 1)

    assert reserved(worker) == [job_id] and worker.payloads[job_id] == payload


def test_a_snooze_counts_as_nothing_and_a_crash_is_no_failure() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(attempts=1))
    worker.settle("snooze", job_id, wish=3.0)
    core.run()
    beat_for(core, worker, 3)
    assert reserved(worker) == [job_id]
    worker.settle("crash", job_id)
    core.run()
    assert reserved(worker) == [job_id]
    worker.settle("ack", job_id)
    core.run()

    row = core.store.committed(job_id)
    assert (row.state, row.failures, row.crashes, row.attempt) == (State.COMPLETED, 0, 1, 3)
    assert [run.outcome for run in core.store.reader().runs(job_id)] == ["snoozed", "crash"]


def test_a_failure_told_again_is_repeated_also_after_a_restart_and_changes_nothing() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job())
    fence = worker.held[job_id]
    worker.settle("fail", job_id, wish=None)
    core.run()
    assert worker.outcome(worker.settle("fail", job_id, fence=fence, wish=None)) == "REPEATED"
    core.crash_and_restart()
    worker = core.connect("w")
    again = worker.settle("fail", job_id, fence=fence, wish=None)
    core.run()

    assert worker.outcome(again) == "REPEATED" and core.store.committed(job_id).failures == 1
    assert worker.outcome(worker.settle("ack", job_id, fence=fence)) == "LEASE_LOST"


def test_tries_go_on_after_a_restart() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(attempts=2))
    worker.settle("fail", job_id, wish=None)
    core.run()
    core.crash_and_restart()
    core.advance(10.0)
    worker = core.connect("w")
    assert reserved(worker) == [job_id]
    worker.settle("fail", job_id, wish=None)
    core.run()

    assert core.store.committed(job_id).state is State.FAILED


def test_a_late_failure_counts_and_the_job_keeps_its_place() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(attempts=2))
    fence = worker.held[job_id]
    worker.close()
    core.advance(0.5)
    late = core.connect("w2")
    late.settle("fail", job_id, fence=fence, wish=None)
    core.run()
    job = core.engine.jobs[job_id]
    assert (job.state, job.failures, job.crashes) == (State.QUEUED, 1, 1)
    assert [run.outcome for run in core.store.reader().runs(job_id)] == ["failed"], "which says more than that the worker was lost"
    assert reserved(late) == [job_id]
    late.settle("fail", job_id, wish=None)
    core.run()
    assert core.store.committed(job_id).state is State.FAILED


def test_a_cancel_that_was_asked_for_wins_over_the_next_try() -> None:
    core = Core()
    worker, (failed, snoozed) = worker_with(core, new_job(), new_job())
    for job_id in (failed, snoozed):
        worker.cancel(job_id)
    worker.settle("fail", failed, wish=None)
    worker.settle("snooze", snoozed, wish=9.0)
    core.run()

    assert {core.store.committed(job_id).state for job_id in (failed, snoozed)} == {State.CANCELLED}


# -- the verb retry ---------------------------------------------------------------------------------------------------------


def test_a_failed_job_can_be_retried_by_hand_and_begins_anew() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job(payload=b"p" * 1000, attempts=1))
    worker.settle("fail", job_id, wish=None)
    core.run()
    (other,) = submitted(core, new_job())
    request = worker.retry(job_id)
    core.run()

    assert worker.outcome(request) == "queued"
    assert reserved(worker) + reserved(worker) == [other, job_id] and worker.payloads[job_id] == b"p" * 1000
    row = core.engine.jobs[job_id]
    assert (row.failures, row.crashes, row.error, row.finished_at) == (0, 0, None, None)
    assert core.engine.totals[State.FAILED] == 0
    worker.settle("ack", job_id)
    core.run()
    assert core.store.committed(job_id).state is State.COMPLETED
    check(core)


def test_what_is_not_failed_cannot_be_retried() -> None:
    core = Core()
    worker, (running, completed) = worker_with(core, new_job(), new_job())
    (queued,) = submitted(core, new_job())
    worker.settle("ack", completed)
    core.run()

    for job_id in (running, completed, queued):
        request = worker.retry(job_id)
        core.run()
        assert worker.outcome(request) == ConflictError.code
    unknown = worker.retry(10**6)
    core.run()
    assert worker.outcome(unknown) == "NOT_FOUND"


def test_a_retried_job_is_not_pruned_in_the_gap_in_which_it_was_loaded() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job())
    worker.settle("fail", job_id)
    core.run()
    core.clock.advance(30 * 86400.0)
    worker = core.connect("w2")
    request = worker.retry(job_id)
    core.batches.prune_soon(core.now)
    core.run()

    assert worker.outcome(request) == "queued" and core.store.committed(job_id).state is State.QUEUED


def test_a_run_of_the_history_says_when_and_where() -> None:
    core = Core()
    worker, (job_id,) = worker_with(core, new_job())
    began = core.now
    beat_for(core, worker, 2)
    worker.settle("fail", job_id, wish=None)
    core.run()

    assert core.store.reader().runs(job_id) == [Run(1, "w", began, began + 2, "failed", NAMELESS)]
