"""Finished jobs are deleted, and nothing else; what is told of that holds over a crash. In virtual time."""

from __future__ import annotations

from greenroom.job import State
from tests.core import Core, check, new_job, outcome, reserved, state, submitted


def deleted(core: Core, *ids: int) -> list[object]:
    """Delete jobs, one after the other; return the outcomes once they are on disk."""
    client = core.connect("c", role="client")
    return [outcome(client, client.delete(job_id)) for job_id in ids]


def test_only_what_is_finished_is_deleted_and_only_once() -> None:
    core = Core()
    done, failed, cancelled, running, queued, later = submitted(core, *[new_job() for _ in range(5)], new_job(delay=50.0))
    worker = core.connect()
    reserved(worker, 2)
    worker.settle("ack", done)
    worker.settle("fail", failed)
    core.connect("c", role="client").cancel(cancelled)
    core.run()
    assert reserved(worker, 1) == [running]

    assert deleted(core, done, failed, cancelled) == ["deleted"] * 3
    assert deleted(core, running, queued, later, done, 2**50) == ["CONFLICT", "CONFLICT", "CONFLICT", "GONE", "NOT_FOUND"]
    check(core)
    core.crash_and_restart()

    assert deleted(core, done, failed, cancelled) == ["GONE"] * 3
    assert [state(core, job) for job in (running, queued, later)] == [State.QUEUED, State.QUEUED, State.SCHEDULED]


def test_what_was_just_deleted_can_be_neither_retried_nor_settled_again() -> None:
    core = Core()
    failed, done = submitted(core, new_job(), new_job())
    worker, client = core.connect(), core.connect("c", role="client")
    reserved(worker, 2)
    worker.settle("fail", failed)
    worker.settle("ack", done)
    core.run()

    both = client.delete(failed), client.retry(failed)
    fence = core.finished_under[done]
    again = worker.settle("ack", done, fence=fence), client.delete(done), worker.settle("ack", done, fence=fence)
    core.run()

    assert [client.outcome(asked) for asked in both] == ["deleted", "GONE"]
    assert client.outcome(again[1]) == "deleted" and worker.outcome(again[0]) in ("REPEATED", "GONE")
    assert worker.outcome(again[2]) in ("REPEATED", "GONE")
    check(core)
    core.crash_and_restart()
    assert deleted(core, failed, done) == ["GONE", "GONE"]
