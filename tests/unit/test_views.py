"""What is shown to people is what is there: views of jobs, queues, tasks, workers, counts."""

from __future__ import annotations

from greenroom import views
from greenroom.job import SMALL_BYTES
from tests.core import Core, new_job, reserved, submitted


def nothing() -> None:
    """Breathe."""


def test_a_job_is_shown_with_every_field_of_the_specification() -> None:
    core = Core()
    (job_id,) = submitted(core, new_job(payload=b"abc"))
    worker = core.connect("alice")
    reserved(worker)
    job = core.engine.jobs[job_id]
    assert views.view(job) == {
        "id": job_id, "task": "t", "queue": "q", "priority": 5, "state": "running", "submitted_at": core.now, "run_at": None,
        "started_at": core.now, "finished_at": None, "worker": "alice", "attempt": 1, "crashes": 0, "requeues": 0,
        "cancel_requested": False, "payload_bytes": 3, "result_bytes": 0, "encoding": "msgpack", "error": None}

    core.clock.advance(2.0)
    worker.settle("ack", job_id, result=b"12345")

    shown = views.view(job, with_payload=True, with_result=True)
    assert (shown["state"], shown["finished_at"], shown["result"], shown["result_bytes"], shown["result_encoding"],
            shown["payload"]) == ("completed", core.now, b"12345", 5, "msgpack", b"abc")


def test_a_list_shows_payloads_and_results_only_while_they_are_small() -> None:
    core = Core()
    ids = submitted(core, new_job(payload=bytes(SMALL_BYTES)), new_job(payload=bytes(SMALL_BYTES + 1)))
    small, large = (core.engine.jobs[job_id] for job_id in ids)

    assert views.small_view(small, with_payload=True)["payload"] == bytes(SMALL_BYTES)
    assert views.small_view(large, with_payload=True)["payload"] is None
    assert views.small_view(large, with_payload=True)["payload_bytes"] == SMALL_BYTES + 1
    assert "payload" not in views.small_view(small, with_payload=False)


def test_queues_tasks_and_counts_add_up() -> None:
    core = Core()
    submitted(core, new_job("a", queue="x"), new_job("a", queue="y"), new_job("b", queue="x"), new_job("b", queue="x", delay=9.0))
    busy, idle, lost = core.connect("busy"), core.connect("idle"), core.connect("lost")
    reserved(idle, 0)
    (failed,) = reserved(busy, tasks=["a"], queues=["x"])
    busy.settle("fail", failed)
    reserved(busy, tasks=["b"])
    reserved(lost, tasks=["a"])
    lost.close()

    assert views.queues(core.engine, nothing) == {"total": 2, "queues": [
        {"name": "x", "scheduled": 1, "queued": 0, "running": 1, "completed": 0, "failed": 1, "cancelled": 0, "requeued": 0,
         "workers": 2, "tasks": 2},
        {"name": "y", "scheduled": 0, "queued": 0, "running": 1, "completed": 0, "failed": 0, "cancelled": 0, "requeued": 0,
         "workers": 1, "tasks": 1}]}
    assert [(entry["task"], entry["total"], entry["workers"]) for entry in views.tasks(core.engine, nothing)] == [
        ("a", 2, 1), ("b", 2, 2)]
    counted = views.counts(core.engine, nothing)
    assert counted["states"] == {"scheduled": 1, "queued": 0, "running": 2, "completed": 0, "failed": 1, "cancelled": 0}
    assert (counted["total"], counted["workers"], counted["idle"], counted["busy"]) == (4, 3, 1, 1)
    assert counted["connections"] == 3 and counted["memory"] == {"jobs": 0, "bytes": 0, "leases": 2}


def test_a_worker_is_shown_with_what_it_holds_and_asks_for() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(25)])
    worker = core.connect("alice")
    reserved(worker, 25, tasks=["t", "a"])
    worker.reserve(3, wait=60, tasks=["t", "a"])
    core.connect("c", role="client")

    told = views.workers(core.engine)

    assert told["total"] == 1
    (shown,) = told["workers"]
    assert (shown["name"], shown["status"], shown["running"], shown["free"]) == ("alice", "busy", 25, 3)
    assert [job["id"] for job in shown["jobs"]] == ids[:20]
    assert (shown["tasks"], shown["queues"], shown["last_seen_at"]) == (["a", "t"], None, core.now)


def test_a_list_of_workers_is_cut_and_tells_how_many_there_are() -> None:
    core = Core()
    for number in range(5):
        core.connect(f"w{number}")

    told = views.workers(core.engine, limit=2)

    assert ([shown["name"] for shown in told["workers"]], told["total"]) == (["w0", "w1"], 5)


def test_long_answers_let_others_breathe() -> None:
    core = Core()
    submitted(core, *[new_job(f"t{number}") for number in range(1000)])
    breaths = []

    views.queues(core.engine, lambda: breaths.append(1))

    assert len(breaths) == 2
