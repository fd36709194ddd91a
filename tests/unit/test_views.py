"""What is shown to people is what is there: views of jobs, queues, tasks, workers, counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from greenroom import views
from greenroom.filters import EVERY, Filter
from greenroom.job import SMALL_BYTES, Job
from greenroom.protocol import DEFAULT_LIMITS, FrameReader, encode_frame
from greenroom.sessions import Lease, Session
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
        "failures": 0, "cancel_requested": False, "payload_bytes": 3, "result_bytes": 0, "encoding": "msgpack", "error": None}

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


def tasks_of(core: Core) -> list[dict]:
    return views.tasks(core.engine, views.grouped_by("task", core.engine, nothing), nothing)


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
        {"name": "x", "scheduled": 1, "queued": 0, "running": 1, "completed": 0, "failed": 1, "cancelled": 0, "expired": 0, "requeued": 0,
         "workers": 2, "tasks": 2, "paused": None, "limit": None},
        {"name": "y", "scheduled": 0, "queued": 0, "running": 1, "completed": 0, "failed": 0, "cancelled": 0, "expired": 0, "requeued": 0,
         "workers": 1, "tasks": 1, "paused": None, "limit": None}]}
    assert [(entry["task"], entry["total"], entry["workers"]) for entry in tasks_of(core)] == [
        ("a", 2, 1), ("b", 2, 2)]
    counted = views.counts(core.engine, nothing)
    assert counted["states"] == {"scheduled": 1, "queued": 0, "running": 2, "completed": 0, "failed": 1, "cancelled": 0, "expired": 0}
    assert (counted["total"], counted["workers"], counted["idle"], counted["busy"]) == (4, 3, 1, 1)
    assert counted["connections"] == 3 and counted["memory"] == {"jobs": 0, "bytes": 0, "leases": 2}


def test_a_limit_is_shown_with_what_waits_also_before_the_first_job() -> None:
    core = Core()
    client = core.connect("c", role="client")
    client.limit("x", jobs=10, size=4, urgent=1, extra=25)
    client.limit("new", jobs=1)
    client.submit(new_job(queue="x", payload=b"1234"), new_job(queue="x", payload=b"5"), new_job(queue="y"))
    core.run()

    shown = {entry["name"]: entry["limit"] for entry in views.queues(core.engine, nothing)["queues"]}

    assert shown["y"] is None and (shown["new"]["waiting"], shown["new"]["full"]) == (0, None)
    assert shown["x"] == {"jobs": 10, "bytes": 4, "urgent": 1, "extra": 25, "most_jobs": 13, "most_bytes": 5, "set_at": core.now, "reason": "why",
                          "by": "me", "waiting": 1, "waiting_bytes": 4, "full": "ordinary", "refused": 1}
    assert views.limit(core.engine.limits.get("x")) == {"queue": "x", **shown["x"]}


def test_what_is_paused_is_shown_with_its_workers_also_before_its_first_job() -> None:
    core = Core()
    submitted(core, new_job("a", queue="x"))
    reserved(core.connect(), 0)
    client = core.connect("c", role="client")
    client.pause("queue", "x", seconds=5.0, reason="why", by="ann")
    client.pause("queue", "new")
    client.pause("task", "a", by="bob")
    held = {"paused_at": core.now, "until": core.now + 5.0, "reason": "why", "by": "ann"}

    new, old = views.queues(core.engine, nothing)["queues"]

    assert (new["name"], new["tasks"], new["workers"]) == ("new", 0, 0) and new["paused"]["by"] == "me"
    assert (old["name"], old["queued"], old["workers"], old["paused"]) == ("x", 1, 1, held)
    assert [(entry["task"], entry["paused"]["by"]) for entry in tasks_of(core)] == [("a", "bob")]
    assert views.pause(next(iter(core.engine.pauses))) == {"queue": "x", "task": None, **held}


def test_a_worker_is_shown_with_what_it_holds_and_asks_for() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(25)])
    worker = core.connect("alice")
    reserved(worker, 25, tasks=["t", "a"])
    worker.reserve(3, wait=60, tasks=["t", "a"])
    core.connect("c", role="client")

    told = views.workers(core.engine, nothing)

    assert told["total"] == 1
    (shown,) = told["workers"]
    assert (shown["name"], shown["status"], shown["running"], shown["free"]) == ("alice", "busy", 25, 3)
    assert [job["id"] for job in shown["jobs"]] == ids[:20]
    assert (shown["tasks"], shown["queues"], shown["last_seen_at"]) == (["a", "t"], None, core.now)
    assert (shown["tasks_total"], shown["queues_total"]) == (2, 0)


def test_a_list_of_workers_is_cut_and_tells_how_many_there_are() -> None:
    core = Core()
    for number in range(5):
        core.connect(f"w{number}")

    told = views.workers(core.engine, nothing, limit=2)

    assert ([shown["name"] for shown in told["workers"]], told["total"]) == (["w0", "w1"], 5)


@pytest.mark.parametrize("name", ["n" * 124, "n"])
def test_the_longest_answer_of_workers_fits_a_frame_and_says_what_it_cut(name: str) -> None:
    core = Core()
    names = [f"{name}{number:04}" for number in range(150)]
    for number in range(1000):
        worker = core.connect(f"{number:0128}")
        worker.session.software = "\N{GRINNING FACE}" * 128
        worker.session.tasks = worker.session.queues = frozenset(names)
        for job_id in range(25):
            job = Job(2**52 + job_id, "q", names[0] + "x" * (124 - len(name)), 5, b"", False, 0.0)
            worker.session.leases[job_id] = Lease(job, 2**52, worker.session, core.now)

    told = views.workers(core.engine, nothing)

    frame = encode_frame({"id": 2**32, **told})
    assert len(frame) <= DEFAULT_LIMITS.frame
    reader = FrameReader()
    assert len(reader.feed(frame)) == 1 and reader.failed is None
    assert len(told["workers"]) == 1000
    first, last = told["workers"][0], told["workers"][-1]
    assert (first["tasks"], first["tasks_total"], len(first["jobs"]), first["running"]) == (names[:100], 150, 20, 25)
    assert (last["tasks"], last["tasks_total"], last["queues_total"], last["jobs"], last["running"]) == ([], 150, 150, [], 25)


def test_running_jobs_are_paged_newest_first_whoever_holds_them() -> None:
    core = Core()
    ids = submitted(core, *[new_job(("a", "b")[number % 2]) for number in range(10)])
    for _ in range(5):
        reserved(core.connect(), 2)

    def pages(wanted: Filter, limit: int) -> list[int]:
        found, before = [], None
        while True:
            page, before = views.running_page(core.engine, wanted, before, limit, nothing)
            found.extend(job.id for job in page)
            if before is None:
                return found

    assert all(pages(EVERY, limit) == ids[::-1] for limit in (1, 3, 5, 10, 11))
    assert pages(Filter(task="b"), 2) == ids[1::2][::-1]


def test_a_job_that_ends_while_a_page_of_running_jobs_is_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SESSIONS_PER_BREATH", 1)
    core = Core()
    old, new = submitted(core, new_job(), new_job())
    first, second = core.connect(), core.connect()
    reserved(first)
    reserved(second)

    breaths = []

    def breathe() -> None:
        """Settle the old job once the page has it: after the producer and the first worker were looked at."""
        breaths.append(old in core.engine.jobs)
        if len(breaths) == 2:
            first.settle("ack", old)

    page, before = views.running_page(core.engine, EVERY, None, 5, breathe)

    assert ([job.id for job in page], before) == ([new], None)
    assert breaths == [True, True, False]


@pytest.mark.parametrize("ask", [
    lambda engine, breathe: views.workers(engine, breathe, limit=10),
    lambda engine, breathe: views.running_page(engine, EVERY, None, 50, breathe),
    views.counts,
])
def test_what_looks_at_ten_thousand_sessions_breathes_every_few_hundred(ask: Callable) -> None:
    core = Core()
    for number in range(10_000):
        core.engine.open_session(Session(number + 1, role="worker", name=f"w{number % 977}", instance=None, now=core.now), [], core.now)
    breaths = []

    ask(core.engine, lambda: breaths.append(1))

    assert len(breaths) >= 10_000 // views.SESSIONS_PER_BREATH


def test_workers_come_by_name_over_all_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SESSIONS_PER_BREATH", 2)
    core = Core()
    for name in ("d", "b", "e", "a", "c"):
        core.connect(name)

    assert [shown["name"] for shown in views.workers(core.engine, nothing)["workers"]] == ["a", "b", "c", "d", "e"]


def test_long_answers_let_others_breathe() -> None:
    core = Core()
    submitted(core, *[new_job(f"t{number}") for number in range(1000)])
    breaths = []

    views.queues(core.engine, lambda: breaths.append(1))

    assert len(breaths) >= 2
