"""The REST API of a real broker with real workers: what docs/rest.md promises, end to end."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.processes import BrokerProcess, WorkerProcess

DEADLINE_S = 20.0
FIBONACCI_100 = "354224848179261915075"
MERSENNE_89 = str(2**89 - 1)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # lower-case names
    json: dict


def ask(broker: object, method: str, path: str, body: dict | None = None) -> Answer:
    """Make one request of the broker's web listener."""
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
    try:
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(response.read()))
    finally:
        connection.close()


def submit(broker: object, task: str, payload: object = None, **options: object) -> int:
    """Submit a job; return its id."""
    answer = ask(broker, "POST", "/api/submit", {"task": task, "payload": {} if payload is None else payload, **options})
    assert answer.status == 201, answer
    return answer.json["id"]


def wait_for_job(broker: object, number: int, *states: str) -> dict:
    """Return the job as soon as it is in one of the states."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        job = ask(broker, "GET", f"/api/jobs/{number}").json["job"]
        if job["state"] in states:
            return job
        time.sleep(0.02)
    raise AssertionError(f"job {number} is {job['state']}, not {states}, after {DEADLINE_S} s")


@pytest.fixture(scope="module")
def served_broker(shared_broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """The shared broker, with a worker."""
    worker = WorkerProcess(shared_broker, "shared", (), tmp_path_factory.mktemp("worker"))
    try:
        worker.start()
        yield shared_broker
    finally:
        worker.end()


@pytest.mark.parametrize(("task", "payload", "result"), [
    ("fibonacci", {"n": 100}, FIBONACCI_100), ("fibonacci", {"n": 90}, str(2880067194370816120)), ("fibonacci", {"n": 10}, 55),
    ("is_prime", {"n": MERSENNE_89}, True), ("is_prime", {"n": str(2**89 - 3)}, False), ("reverse_string", {"data": "stressed"}, "desserts"),
    ("to_uppercase", {"data": "grün"}, "GRÜN"),
])
def test_a_job_submitted_by_rest_comes_back_exact(served_broker: object, task: str, payload: dict, result: object) -> None:
    job = wait_for_job(served_broker, submit(served_broker, task, payload, priority=2), "completed", "failed")

    is_large = isinstance(result, str) and result.isdecimal() and len(result) < 20  # an integer that JSON readers cannot hold
    shown = {"preview": result, "inexact": True} if is_large else {"preview": result}
    assert (job["state"], job["result"], job["error"]) == ("completed", shown, None)
    assert job["payload"] == {"preview": payload}
    assert (job["priority"], job["queue"], job["attempt"], job["requeues"]) == (2, "default", 1, 0)
    assert job["submitted_at"] <= job["started_at"] <= job["finished_at"]


def test_a_failed_job_shows_its_error(broker: object, start_worker: object) -> None:
    start_worker()

    job = wait_for_job(broker, submit(broker, "fibonacci", {"n": -1}), "failed", "completed")

    assert job["state"] == "failed"
    assert job["error"]["name"] and job["error"]["message"]


def test_without_a_worker_a_job_is_accepted_with_a_warning(broker: object) -> None:
    answer = ask(broker, "POST", "/api/submit", {"task": "fibonacci", "payload": {"n": 10}, "priority": 2})

    assert answer.status == 201
    assert answer.json["state"] == "queued"
    assert "no connected worker" in answer.json["warning"]


def test_a_delayed_job_is_scheduled(broker: object) -> None:
    number = submit(broker, "fibonacci", {"n": 1}, delay=3600)

    job = ask(broker, "GET", f"/api/jobs/{number}").json["job"]
    assert job["state"] == "scheduled"
    assert ask(broker, "GET", "/api/stats").json["queue_size"] == 1


@pytest.mark.parametrize(("body", "field"), [
    ({"payload": {}}, "task"), ({"task": "no spaces"}, "task"), ({"task": "t", "priority": 0}, "priority"), ({"task": "t", "priority": "5"}, "priority"),
    ({"task": "t", "queue": 7}, "queue"), ({"task": "t", "delay": "1"}, "delay"), ({"task": "t", "payload": 2**70}, "payload"), ({"task": "t", "x": 1}, "x"),
])
def test_a_bad_submit_names_its_field(shared_broker: object, body: dict, field: str) -> None:
    answer = ask(shared_broker, "POST", "/api/submit", body)

    assert (answer.status, answer.json["error"]["code"], answer.json["error"]["field"]) == (400, "INVALID", field)


def test_too_large_a_payload_is_413(shared_broker: object) -> None:
    answer = ask(shared_broker, "POST", "/api/submit", {"task": "t", "payload": {"data": "x" * 1_100_000}})

    assert (answer.status, answer.json["error"]["code"]) == (413, "TOO_LARGE")


def test_a_large_payload_is_left_out_of_lists_and_cut_in_its_own_page(broker: object) -> None:
    number = submit(broker, "reverse_string", {"data": "x" * 1_000_000})

    [row] = ask(broker, "GET", "/api/jobs").json["jobs"]
    detail = ask(broker, "GET", f"/api/jobs/{number}").json["job"]

    assert row["payload"] is None and row["payload_bytes"] > 1_000_000
    assert detail["payload"]["cut"] is True


def test_a_queued_job_is_cancelled_once(broker: object) -> None:
    number = submit(broker, "slow_task", {"seconds": 60})

    assert ask(broker, "POST", f"/api/jobs/{number}/cancel", {}).json == {"id": number, "outcome": "cancelled"}
    again = ask(broker, "POST", f"/api/jobs/{number}/cancel", {})

    assert (again.status, again.json["error"]["code"]) == (409, "FINISHED")
    assert ask(broker, "GET", f"/api/jobs/{number}").json["job"]["state"] == "cancelled"


def test_a_running_job_is_asked_to_stop(broker: object, start_worker: object) -> None:
    start_worker()
    number = submit(broker, "slow_task", {"seconds": 2})
    wait_for_job(broker, number, "running")

    assert ask(broker, "POST", f"/api/jobs/{number}/cancel", {}).json == {"id": number, "outcome": "requested"}
    assert ask(broker, "GET", f"/api/jobs/{number}").json["job"]["cancel_requested"] is True


def test_a_job_that_never_was_is_404(shared_broker: object) -> None:
    answer = ask(shared_broker, "GET", f"/api/jobs/{2**52}")

    assert (answer.status, answer.json["error"]["code"]) == (404, "NOT_FOUND")


def test_pages_of_jobs_are_complete_newest_first_and_filtered(broker: object) -> None:
    numbers = [submit(broker, "to_uppercase" if i % 3 else "fibonacci", {"data": "a"}, queue=f"q{i % 2}") for i in range(25)]

    seen: list[int] = []
    path = "/api/jobs?limit=10"
    while True:
        page = ask(broker, "GET", path).json
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        path = f"/api/jobs?limit=10&before={page['next']}"

    assert seen == sorted(numbers, reverse=True)
    filtered = ask(broker, "GET", "/api/jobs?task=fibonacci&queue=q0&state=queued").json["jobs"]
    assert [job["id"] for job in filtered] == [numbers[i] for i in (24, 18, 12, 6, 0)]
    assert ask(broker, "GET", "/api/jobs?state=failed").json["jobs"] == []


def test_many_jobs_are_cancelled_and_retried_at_once(broker: object) -> None:
    numbers = [submit(broker, "slow_task", {"seconds": 60}) for _ in range(5)]

    cancelled = ask(broker, "POST", "/api/jobs/cancel", {"ids": [*numbers, 2**52]}).json["outcomes"]
    retried = ask(broker, "POST", "/api/jobs/retry", {"ids": numbers[:3]}).json["outcomes"]
    again = ask(broker, "POST", "/api/jobs/retry", {"ids": numbers}).json["outcomes"]

    assert cancelled[:5] == [{"id": number, "outcome": "cancelled"} for number in numbers]
    assert (cancelled[5]["id"], cancelled[5]["error"]["code"]) == (2**52, "NOT_FOUND")
    assert retried == [{"id": number, "outcome": "queued"} for number in numbers[:3]]
    assert [outcome.get("outcome") or outcome["error"]["code"] for outcome in again] == ["CONFLICT"] * 3 + ["queued"] * 2


def test_a_copy_of_a_job_has_what_was_changed_and_leaves_the_job_alone(broker: object) -> None:
    number = submit(broker, "fibonacci", {"n": -1}, queue="q", priority=3, attempts=2, unique_key="k")
    ask(broker, "POST", f"/api/jobs/{number}/cancel", {})

    path = f"/api/jobs/{number}/resubmit"
    same, other = ask(broker, "POST", path, {}), ask(broker, "POST", path, {"payload": {"n": 10}, "priority": 1, "unique_key": None})
    again = ask(broker, "POST", path, {})

    assert (same.status, other.status) == (201, 201) and same.headers["location"] == f"/api/jobs/{same.json['id']}"
    assert (again.status, again.json["duplicate"], again.json["id"]) == (200, True, same.json["id"])
    jobs = [ask(broker, "GET", f"/api/jobs/{answer.json['id']}").json["job"] for answer in (same, other)]
    assert [(job["task"], job["queue"], job["priority"], job["payload"]["preview"], job["options"]) for job in jobs] == [
        ("fibonacci", "q", 3, {"n": -1}, {"attempts": 2, "unique_key": "k"}), ("fibonacci", "q", 1, {"n": 10}, {"attempts": 2})]
    assert ask(broker, "GET", f"/api/jobs/{number}").json["job"]["state"] == "cancelled"
    refusals = [ask(broker, "POST", path, body) for body in ({"task": "t"}, {"priority": 11}, {"payload": {"$base64": "?"}})]
    assert [(answer.status, answer.json["error"].get("field")) for answer in refusals] == [(400, "task"), (400, "priority"), (400, "payload")]
    assert ask(broker, "POST", f"/api/jobs/{2**52}/resubmit", {}).status == 404


def test_failed_jobs_are_grouped_by_how_they_failed(broker: object, start_worker: object) -> None:
    start_worker()
    numbers = [submit(broker, "fibonacci", {"n": -n}, attempts=1) for n in (1, 20, 300)]
    other = submit(broker, "reverse_string", {"data": 5}, attempts=1, queue="other")
    for number in (*numbers, other):
        wait_for_job(broker, number, "failed")

    answer = ask(broker, "GET", "/api/failures").json

    first, second = answer["groups"]
    assert (first["task"], first["count"], sorted(first["jobs"]), first["newest"]) == ("fibonacci", 3, numbers, numbers[-1])
    assert first["place"].endswith(" in fibonacci") and first["error"] == "BadPayloadError" and first["workers_total"] == 1
    assert (second["task"], second["jobs"]) == ("reverse_string", [other])
    assert answer["scanned"] == {"jobs": 4, "newest": other, "oldest": numbers[0]} and answer["next"] is None
    assert [group["jobs"] for group in ask(broker, "GET", "/api/failures?queue=other").json["groups"]] == [[other]]
    assert ask(broker, "GET", f"/api/failures?before={numbers[0]}").json["groups"] == []


def test_stats_workers_and_queues_agree(broker: object, start_worker: object) -> None:
    start_worker()
    busy = submit(broker, "slow_task", {"seconds": 3})
    wait_for_job(broker, busy, "running")

    stats = ask(broker, "GET", "/api/stats").json
    [worker] = ask(broker, "GET", "/api/workers").json["workers"]
    [queue] = ask(broker, "GET", "/api/queues").json["queues"]

    assert (stats["workers"], stats["busy"], stats["idle"], stats["running"], stats["total"]) == (1, 1, 0, 1, 1)
    assert (worker["status"], worker["jobs"][0]["id"], worker["jobs"][0]["task"]) == ("busy", busy, "slow_task")
    assert worker["last_seen_at"] <= stats["now"] + DEADLINE_S
    assert (worker["done"], worker["failed"], worker["lost"]) == (0, 0, 0)
    assert (queue["name"], queue["running"]) == ("default", 1)
    assert stats["tasks"][0]["task"] == "slow_task"


def test_security_tells_the_live_truth_and_counts_plain_tcp(broker: object) -> None:
    before = ask(broker, "GET", "/api/security").json
    with socket.create_connection(("127.0.0.1", broker.port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass  # closed with our bytes unread: as good

    deadline = time.monotonic() + DEADLINE_S
    while (after := ask(broker, "GET", "/api/security").json)["rejected_total"] == before["rejected_total"]:
        assert time.monotonic() < deadline, "the rejected connection was never counted"
        time.sleep(0.02)

    assert (after["tls"], after["protocol"], after["alpn"], after["port"]) == (True, "TLSv1.3", "greenroom/1", broker.port)
    assert after["rejected_total"] == sum(after["rejected"].values()) == before["rejected_total"] + 1
    assert after["certificate"]["days_left"] > 0 and "localhost" in after["certificate"]["sans"]
    assert after["web"]["port"] == broker.web_port


def test_ready_and_healthy(broker: object) -> None:
    assert ask(broker, "GET", "/healthz").json == {"status": "ok"}
    assert ask(broker, "GET", "/readyz").json == {"status": "ready"}


def test_an_event_follows_a_submit_within_parts_seconds(broker: object) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
    connection.request("GET", "/api/events")
    response = connection.getresponse()

    def next_overview() -> dict:
        while True:
            line = response.readline()
            assert line, "the stream ended"
            if line == b"event: overview\n":
                return json.loads(response.readline().removeprefix(b"data: "))

    assert next_overview()["jobs"] == []
    begun = time.monotonic()
    number = submit(broker, "fibonacci", {"n": 5})
    while not any(job["id"] == number for job in next_overview()["jobs"]):
        assert time.monotonic() - begun < DEADLINE_S, "the job never came"
    connection.close()


def test_a_job_survives_a_kill_with_its_payload(broker: object, start_worker: object) -> None:
    number = submit(broker, "fibonacci", {"n": 100}, priority=1)

    broker.kill()
    broker.restart()
    start_worker()

    assert wait_for_job(broker, number, "completed")["result"] == {"preview": FIBONACCI_100}


def test_a_running_job_shows_its_progress_and_its_log(broker: object) -> None:
    worker = broker.connect(role="worker")
    job = submit(broker, "t")
    [[_, fence, *_]] = worker.call("reserve", n=1, wait=5)["jobs"]
    worker.call("report", leases=[[job, fence, 0.5, "half", [[1.5, "<b>one</b>"], [2, "two"]]]])

    status, shown = broker.get(f"/api/jobs/{job}")
    assert (status, shown["job"]["progress"], shown["job"]["progress_text"]) == (200, 0.5, "half")
    assert broker.get(f"/api/jobs/{job}/logs?after=0&limit=1") == (200, {
        "lines": [{"seq": 1, "at": 1.5, "attempt": 1, "text": "<b>one</b>"}], "next": 1, "dropped": 0, "finished": False})
    assert [line["text"] for line in broker.get(f"/api/jobs/{job}/logs?after=1")[1]["lines"]] == ["two"]


@pytest.mark.parametrize(("query", "status", "field"), [
    ("after=-1", 400, "after"), ("after=x", 400, "after"), ("limit=0", 400, "limit"), ("limit=1001", 400, "limit"), ("wait=1", 400, "wait")])
def test_a_bad_query_of_a_log_is_refused_by_name(shared_broker: object, query: str, status: int, field: str) -> None:
    answer = shared_broker.get(f"/api/jobs/1/logs?{query}")

    assert (answer[0], answer[1]["error"]["field"]) == (status, field)


def test_a_job_that_is_not_there_has_no_log(shared_broker: object) -> None:
    assert shared_broker.get("/api/jobs/999999999/logs")[0] == 404
