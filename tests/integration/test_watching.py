"""Watching a real broker: /metrics, the figures of `stats`, readiness that changes with the disk, files and connections."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import DEADLINE_S, ROOT, BrokerProcess, until

BROKEN = ROOT / "tests/broken_broker.py"


def get(broker: BrokerProcess, path: str, headers: dict | None = None) -> tuple[int, str, str]:
    """GET; returns (status, content type, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read().decode()
    finally:
        connection.close()


def scrape(broker: BrokerProcess) -> dict[str, float]:
    """Return all samples by their name with labels, as in `greenroom_jobs{state="queued"}`."""
    status, kind, body = get(broker, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def readiness(broker: BrokerProcess) -> tuple[int, str]:
    status, _, body = get(broker, "/readyz")
    answer = json.loads(body)
    return status, answer.get("status") or answer["error"]["message"]


def test_metrics_and_stats_tell_what_was_done(broker: BrokerProcess) -> None:
    producer, worker = broker.connect(), broker.connect(role="worker")
    body = {"submission": bytes(range(16)), "jobs": [{"task": "t", "queue": "q"}] * 7 + [{"task": "bad name"}]}
    for _ in range(2):
        assert len(producer.call("submit", **body)["jobs"]) == 8
    assert producer.call("submit", jobs="nonsense")["error"]["code"] == "INVALID"
    jobs = worker.call("reserve", n=5, tasks=["t"])["jobs"]
    leases = [[job, fence] for job, fence, *_ in jobs]
    worker.call("settle", leases=[[*leases[0], "ack"], [*leases[1], "nack"], [*leases[2], "nack", False], [leases[3][0], 1, "ack"]])
    worker.call("settle", leases=[[*leases[0], "ack"]])
    with socket.create_connection((broker.host, broker.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        until(lambda: broker.stats()["rejected"], "the plain connection was counted")

    until(lambda: "greenroom_disk_free_bytes" in scrape(broker), "the disk was looked at")

    shown, stats = scrape(broker), broker.stats()

    expected = {
        "greenroom_jobs_accepted_total": 7, 'greenroom_jobs_finished_total{state="completed"}': 1, 'greenroom_jobs{state="running"}': 2,
        'greenroom_queue_jobs{queue="q",state="queued"}': 4, 'greenroom_task_jobs{state="running",task="t"}': 2,
        "greenroom_grants_total": 5, "greenroom_grants_after_refill_total": 0, "greenroom_leases": 2, 'greenroom_requeues_total{reason="nack"}': 1,
        'greenroom_returns_total{reason="unbegun"}': 1, "greenroom_stale_settles_total": 1, "greenroom_repeated_settles_total": 1,
        "greenroom_repeated_submits_total": 1, 'greenroom_refused_requests_total{code="INVALID"}': 1,
        'greenroom_refused_jobs_total{code="INVALID"}': 1, 'greenroom_rejected_handshakes_total{reason="plain_http"}': 1,
        "greenroom_handshakes_total": 2, "greenroom_connections": 2, 'greenroom_sessions{role="client"}': 1,
        'greenroom_sessions{role="worker"}': 1, 'greenroom_workers{status="busy"}': 1, "greenroom_ready": 1, "greenroom_store_full": 0,
        "greenroom_internal_errors_total": 0, "greenroom_commit_running_seconds": 0, "greenroom_lanes": 1}
    assert {name: shown[name] for name in expected} == expected
    assert shown["greenroom_commit_seconds_count"] == shown["greenroom_commits_total"] >= 3
    assert shown["greenroom_batch_rows_sum"] == shown["greenroom_rows_total"] >= 8
    assert 0 < shown["greenroom_commit_latest_seconds"] <= shown["greenroom_commit_max_seconds"]
    assert shown["greenroom_disk_free_bytes"] > 0 and shown["greenroom_resident_memory_bytes"] > 10**7
    assert shown["greenroom_cpu_seconds_total"] > 0 and shown["greenroom_max_files"] > shown["greenroom_connections_max"]
    assert (stats["requeued"], stats["returned"], stats["requeued_by"]) == (1, 1, {"nack": 1, "unbegun": 1})
    assert stats["settles"] == {"late": 0, "stale": 1, "repeated": 1} and stats["rejected"] == {"plain_http": 1}
    assert stats["store"]["commit_p50_ms"] <= stats["store"]["commit_p99_ms"] <= stats["store"]["commit_max_ms"]


def test_hub_lag_is_measured_while_nothing_happens(broker: BrokerProcess) -> None:
    until(lambda: scrape(broker)["greenroom_hub_lag_seconds_count"] >= 10, "ten timers came")

    shown = scrape(broker)

    assert 0 <= shown['greenroom_hub_lag_last_minute_seconds{percentile="50"}'] <= shown["greenroom_hub_lag_max_seconds"]
    assert shown['greenroom_hub_lag_seconds_bucket{le="+Inf"}'] == shown["greenroom_hub_lag_seconds_count"]


def test_metrics_keep_to_the_rules_of_the_web(broker: BrokerProcess) -> None:
    assert get(broker, "/metrics", {"Host": "evil.example"})[0] == 421
    assert get(broker, "/metrics?module=x")[0] == 200  # scrapers add parameters of their own
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
    connection.request("POST", "/metrics", b"{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status == 405
    connection.close()


def test_twenty_thousand_lanes_make_a_short_answer_that_holds_up_nobody(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--data", "memory:")
    producer, watcher = broker.connect(), broker.connect()
    for first in range(0, 20_000, 1000):
        outcomes = producer.call("submit", jobs=[{"task": f"t{n % 4000}", "queue": f"q{n}"} for n in range(first, first + 1000)])["jobs"]
        assert all(type(outcome) is int for outcome in outcomes)
    scraped: list[dict[str, float]] = []

    def scrape_on() -> None:
        for _ in range(2):
            scraped.append(scrape(broker))

    thread = threading.Thread(target=scrape_on)
    began_scraping = time.monotonic()
    thread.start()
    pings = []
    while thread.is_alive():
        began = time.monotonic()
        watcher.call("ping")
        pings.append(time.monotonic() - began)
    thread.join()

    pings.sort()
    print(f"{len(pings)} pings beside 2 scrapes of {(time.monotonic() - began_scraping) / 2 * 1000:.0f} ms each: p50 {pings[len(pings) // 2] * 1000:.1f} ms, longest {pings[-1] * 1000:.1f} ms")
    shown = scraped[-1]
    assert len(scraped) == 2 and len(shown) < 1000
    assert shown["greenroom_lanes"] == 20_000
    assert sum(value for name, value in shown.items() if name.startswith("greenroom_queue_jobs")) == 20_000
    assert sum(value for name, value in shown.items() if name.startswith("greenroom_task_jobs")) == 20_000
    assert len(pings) > 30  # a scrape takes a hundred milliseconds or more; in one piece, hardly any would be answered meanwhile
    assert pings[len(pings) // 2] < 0.05


@pytest.fixture
def hanging(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> Iterator[tuple[BrokerProcess, Path]]:
    """A broker whose disk stands still while a file is there."""
    trigger = tmp_path / "hang"
    yield make_broker(program=BROKEN, env={"BREAK": f"hang-sync:{trigger}"}), trigger
    trigger.unlink(missing_ok=True)


def test_a_disk_that_hangs_is_seen_and_when_it_comes_back_too(hanging: tuple[BrokerProcess, Path]) -> None:
    broker, trigger = hanging
    producer = broker.connect()
    trigger.touch()
    request = producer.send("submit", jobs=[{"task": "t"}])

    until(lambda: readiness(broker)[0] == 503, "the broker is not ready")
    status, reason = readiness(broker)
    shown = scrape(broker)

    assert (status, reason.startswith("the disk has not answered for")) == (503, True)
    assert shown["greenroom_ready"] == 0 and shown["greenroom_commit_running_seconds"] > 3
    assert shown["greenroom_held_answers"] >= 1 and shown["greenroom_held_answer_bytes"] > 0
    assert get(broker, "/healthz")[0] == 200
    trigger.unlink()
    assert len(producer.reply(request)["jobs"]) == 1
    until(lambda: readiness(broker) == (200, "ready"), "the broker is ready again")
    assert scrape(broker)["greenroom_commit_max_seconds"] > 3


def test_requests_that_wait_for_a_hanging_disk_leave_room_for_liveness(hanging: tuple[BrokerProcess, Path]) -> None:
    broker, trigger = hanging
    producer = broker.connect()
    trigger.touch()
    producer.send("submit", jobs=[{"task": "t"}])
    until(lambda: scrape(broker)["greenroom_commit_running_seconds"] > 0, "the COMMIT hangs")
    waiting = []
    for _ in range(140):
        sock = socket.create_connection(("127.0.0.1", broker.web_port), timeout=DEADLINE_S)
        sock.sendall(b"GET /api/stats HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % broker.web_port)
        waiting.append(sock)

    refused = 'greenroom_refused_requests_total{code="BUSY"}'
    until(lambda: scrape(broker)[refused] == 12, "those beyond 128 are refused")

    assert get(broker, "/healthz")[0] == 200
    for sock in waiting:
        sock.close()


def test_a_broker_without_room_for_connections_is_not_ready_until_one_ends(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--max-connections", "2")
    first, second = broker.connect(), broker.connect()

    assert readiness(broker) == (503, "there is no room for more connections")
    second.close()
    until(lambda: readiness(broker)[0] == 200, "the broker is ready again")
    assert first.call("ping")


def test_a_broker_without_files_is_not_ready_until_some_are_free(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker(prefix=["prlimit", "--nofile=48:48"])
    asked = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)

    def answer() -> tuple[int, bytes]:
        asked.request("GET", "/readyz")
        response = asked.getresponse()
        return response.status, response.read()

    assert answer()[0] == 200
    taken = [socket.create_connection(("127.0.0.1", broker.web_port), timeout=DEADLINE_S) for _ in range(40)]

    assert until(lambda: answer()[0] == 503 and answer()[1], "the broker is not ready").count(b"no file descriptors are left")
    for sock in taken:
        sock.close()
    until(lambda: get(broker, "/readyz")[0] == 200, "the broker is ready again")
    asked.close()
