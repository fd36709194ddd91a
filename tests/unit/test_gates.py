"""Why a job, or a queue, does not run: each reason alone, then several together. In virtual time."""

from __future__ import annotations

import pytest

from greenroom.gates import explain_job, explain_queue, span
from greenroom.job import Job
from greenroom.paces import ROUND_S
from tests.core import Core, new_job, reserved, submitted


def explained(core: Core, job_id: int) -> dict:
    job: Job = core.engine.jobs.get(job_id) or core.store.load([job_id])[job_id]
    return explain_job(core.engine, job, core.now)


def codes(shown: dict) -> list[str]:
    return [gate["code"] for gate in shown["gates"]]


def of_queue(core: Core, queue: str = "q") -> dict:
    return explain_queue(core.engine, queue, core.now, lambda: None)


def busy_worker(core: Core, name: str = "w1", **options: object) -> None:
    """Connect a worker that has no free slot."""
    reserved(core.connect(name), 0, **options)


def test_a_job_before_its_time_says_when_it_comes() -> None:
    core = Core()
    (job,) = submitted(core, new_job(delay=130.0))
    busy_worker(core)
    gate = explained(core, job)["gates"][0]

    assert (gate["code"], gate["at"], gate["text"]) == ("not_due", core.now + 130.0, "its time comes in 2 min 10 s")


def test_a_job_that_failed_and_waits_for_its_next_try_says_so() -> None:
    core = Core()
    (job,) = submitted(core, new_job(attempts=3, backoff="fixed", backoff_base=3.0))
    worker = core.connect("w")
    texts = []
    for name in ("", "KeyError"):
        assert reserved(worker) == [job]
        worker.settle("fail", job, wish=None)
        core.run()
        core.engine.jobs[job].error = {"name": name}
        texts.append(explained(core, job)["gates"][0]["text"])
        worker.heartbeat(listed=False)
        core.advance(3.0)

    assert texts == ["it failed once, the last time with no error name; its next try comes in 3 s",
                     "it failed 2 times, the last time with KeyError; its next try comes in 3 s"]


def test_a_task_that_nobody_has_names_who_had_it_last() -> None:
    core = Core()
    (job,) = submitted(core, new_job("resize"))
    assert explained(core, job)["gates"][0]["text"] == (
        "no connected worker has the task resize; none has had it since the broker started")
    worker = core.connect("w7")
    reserved(worker, 0, tasks=["resize"])
    assert "no_worker" not in codes(explained(core, job))
    worker.close(bye=True)
    core.advance(60.0)

    gate = explained(core, job)["gates"][0]

    assert (gate["code"], gate["text"]) == ("no_worker", "no connected worker has the task resize; w7 had it last, 1 min ago")
    assert gate["opens"] == "a worker with the task resize connects"


def test_workers_that_do_not_take_from_the_queue_are_told_apart_from_busy_ones() -> None:
    core = Core()
    (job,) = submitted(core, new_job(queue="reports"))
    busy_worker(core, "w1", tasks=["t"], queues=["mail"])
    assert codes(explained(core, job)) == ["filtered"]

    busy_worker(core, "w2", queues=["reports"])

    shown = explained(core, job)
    assert codes(shown) == ["no_free_slot"] and shown["gates"][0]["text"] == "1 worker can run it, none has a free slot"


def test_a_paused_job_says_by_whom_why_and_until_when_and_what_else_holds_it() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    client = core.connect("c", role="client")
    client.pause("queue", "q", seconds=600.0, reason="the provider is down", by="ann")
    client.pause("task", "t", by="bob")
    core.run()

    first, second, third = explained(core, job)["gates"]

    assert (first["code"], first["at"]) == ("queue_paused", core.now + 600.0)
    assert first["text"] == "the queue q is paused by ann for another 10 min (the provider is down)"
    assert (second["code"], second["text"], second["opens"]) == ("task_paused", "the task t is paused by bob", "resume task t")
    assert third["code"] == "no_worker"


def test_the_place_in_line_counts_all_jobs_that_the_same_workers_run() -> None:
    core = Core()
    submitted(core, *[new_job("a", priority=9) for _ in range(4)], *[new_job("b", priority=1) for _ in range(3)],
              new_job("elsewhere", priority=1))
    *_, job = submitted(core, new_job("a", priority=5), new_job("a", priority=5))
    busy_worker(core, tasks=["a", "b"])

    shown = explained(core, job)

    assert (shown["ahead"], shown["ahead_exact"]) == (4, True)
    assert shown["gates"][-1]["text"] == "4 jobs come before it"


def test_with_part_of_the_line_on_disk_the_place_is_at_least() -> None:
    core = Core(max_jobs=10)
    ids = [job for _ in range(5) for job in submitted(core, *[new_job() for _ in range(9)])]
    busy_worker(core)
    in_memory = core.engine.lanes["q", "t"].in_memory

    shown = explained(core, ids[-1])

    assert (shown["ahead"], shown["ahead_exact"]) == (in_memory, False)
    assert shown["gates"][-1]["text"] == f"at least {in_memory} jobs come before it"
    first = explained(core, ids[1])
    assert (first["ahead"], first["ahead_exact"]) == (1, True)


def test_the_start_is_estimated_from_how_fast_jobs_ended_lately() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(90)])
    worker = core.connect()
    core.tick()
    for _ in range(40):  # two jobs a second
        worker.settle("ack", *reserved(worker, 2))
        core.advance(1.0)
        core.tick()

    shown = explained(core, ids[-1])

    assert shown["ahead"] == 9 and shown["starts_at"] == pytest.approx(core.now + 4.5, rel=0.2)
    assert "end 2 a second: its turn comes in about 4 s" in shown["gates"][-1]["text"] or "about 5 s" in shown["gates"][-1]["text"]
    core.connect("c", role="client").pause("queue", "q")
    assert explained(core, ids[-1])["starts_at"] is None, "who knows when it is resumed"
    assert ROUND_S < 40


def test_running_finished_damaged_jobs_and_a_broker_that_stops_say_so() -> None:
    core = Core()
    running, limited, done, asked, waiting = submitted(core, new_job(), new_job(soft_timeout=10.0), new_job(), new_job(), new_job())
    worker = core.connect("w1")
    reserved(worker, 4)
    worker.settle("ack", done)
    core.run()
    core.connect("c", role="client").cancel(asked)
    core.advance(12.0)
    core.engine.drain()

    gate = explained(core, running)["gates"][0]
    assert (gate["text"], gate["opens"]) == ("it is running: w1 has had it for 12 s", "")
    assert explained(core, asked)["gates"][0]["text"] == (
        "it is running: w1 has had it for 12 s; its cancel was asked for: it ends as cancelled unless it completes")
    assert explained(core, limited)["gates"][0]["text"] == "it is running: w1 has had it for 12 s; it is over its soft limit, and the worker was told"
    assert explained(core, done)["gates"][0]["text"] == "it is over: completed 12 s ago"
    assert codes(explained(core, waiting))[0] == "draining"
    core.engine.aside[waiting] = "payload"
    assert codes(explained(core, waiting)) == ["damaged"]


def test_a_job_that_is_being_read_from_the_disk_is_next() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    core.crash_and_restart()
    core.connect().reserve(wait=60)

    assert codes(explained(core, job)) == ["loading"]


def test_a_queue_tells_of_each_of_its_tasks_what_holds_it() -> None:
    core = Core()
    submitted(core, *[new_job("a") for _ in range(3)], new_job("b"), new_job("c", delay=9.0), new_job("a", queue="first", priority=1))
    worker = core.connect()
    reserved(worker, 1, tasks=["a"], queues=["q"])
    busy_worker(core, tasks=["a"])
    core.connect("c", role="client").pause("task", "b", by="ann")

    shown = of_queue(core)

    assert {key: shown[key] for key in ("queued", "scheduled", "running", "workers", "asking", "tasks_total", "gates")} == {
        "queued": 3, "scheduled": 1, "running": 1, "workers": 2, "asking": 0, "tasks_total": 3, "gates": []}
    by_task = {task["task"]: task for task in shown["tasks"]}
    assert list(by_task) == ["a", "b", "c"]
    assert codes(by_task["a"]) == ["no_free_slot", "behind"] and codes(by_task["b"]) == ["task_paused", "no_worker"]
    assert by_task["a"]["gates"][1]["text"] == "1 job of other tasks and queues, that the same workers run, comes before its first"
    assert codes(by_task["c"]) == [], "nothing of it is queued"


def test_an_empty_or_paused_queue_says_so() -> None:
    core = Core()
    assert codes(of_queue(core, "never")) == ["empty"]
    submitted(core, new_job(delay=60.0))
    core.connect("c", role="client").pause("queue", "q")

    shown = of_queue(core)

    assert codes(shown) == ["queue_paused", "empty"] and shown["gates"][1]["text"] == "no job is queued in q; 1 wait for their time"


def test_a_full_queue_says_so_to_producers_and_a_job_that_could_be_retried_into_it() -> None:
    core = Core()
    client, worker = core.connect("c", role="client"), core.connect("w1")
    (failed,) = submitted(core, new_job())
    reserved(worker)
    worker.settle("fail", failed)
    client.limit("q", jobs=2, urgent=3)
    (waits, later) = submitted(core, new_job(), new_job(delay=9.0))

    shown = of_queue(core)

    assert codes(shown) == ["queue_full"] and shown["gates"][0]["at"] is None
    assert shown["gates"][0]["text"] == ("the queue q is full for new jobs: 2 jobs wait, its limit is 2; priorities up to 3 still get in; "
                                         "set by me (why)")
    assert codes(explained(core, failed)) == ["finished", "queue_full"]
    assert codes(explained(core, waits))[-1] == codes(explained(core, later))[-1] == "queue_full"
    client.cancel(later)
    core.run()
    assert codes(of_queue(core)) == [] and codes(explained(core, failed)) == ["finished"]


def test_a_full_queue_that_gets_done_says_when_there_will_be_room() -> None:
    core = Core()
    core.connect("c", role="client").limit("q", jobs=20)
    submitted(core, *[new_job()] * 20)
    worker = core.connect("w1")
    for _ in range(int(ROUND_S) * 2):
        worker.settle("ack", *reserved(worker))
        submitted(core, new_job())
        core.advance(1.0)

    (gate,) = of_queue(core)["gates"]

    assert gate["code"] == "queue_full" and gate["at"] == pytest.approx(core.now + 2.0, abs=0.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (93600, "1 d 2 h"), (-3, "0 s")])
def test_a_time_is_told_as_people_say_it(seconds: float, text: str) -> None:
    assert span(seconds) == text
