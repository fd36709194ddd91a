"""Limits of queues on a real broker: wire, client, command line, REST; over a kill -9; the cookbook's example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from greenroom.client import Client, SubmitError
from greenroom.errors import FullError, InvalidError
from tests.integration.test_client_worker_broker import command
from tests.integration.test_rest import ask
from tests.integration.test_watching import get
from tests.processes import ROOT, BrokerProcess, until
from tests.scripted import Background

EXAMPLE = ROOT / "docs" / "examples" / "limits.py"


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, name="ann") as made:
        yield made


def test_a_limit_holds_over_a_kill_with_what_waits_and_a_worker_makes_room_for_who_waits(broker: BrokerProcess, client: Client) -> None:
    made = client.limit("mail", jobs=3, bytes=1000, urgent=2, extra=50, reason="slow provider")
    assert (made["queue"], made["by"], made["most_jobs"], made["most_bytes"], made["waiting"]) == ("mail", "ann", 5, 1500, 0)
    with pytest.raises(SubmitError) as caught:
        client.submit_many([("t", {"n": n}) for n in range(5)], queue="mail")
    assert [isinstance(made, FullError) for made in caught.value.outcomes] == [False] * 3 + [True] * 2 and caught.value.code == "FULL"

    broker.restart(kill=True)

    (limit,) = client.limits()
    assert limit == {**made, "waiting": 3, "waiting_bytes": 12, "full": "ordinary"}
    with pytest.raises(FullError, match="the queue mail is full: 3 jobs wait, its limit is 3") as full:
        client.submit("t", queue="mail")
    assert full.value.field == "queue" and full.value.retry_after_s > 0
    assert client.submit("t", queue="mail", priority=2).id and client.submit("t").id
    assert client.submit("t", queue="mail", on_full="drop").is_dropped and client.dropped == 1
    assert [gate["code"] for gate in client.explain_queue("mail")["gates"]] == ["queue_full"]
    assert next(queue["limit"]["waiting"] for queue in client.queues() if queue["name"] == "mail") == 4
    assert (client.stats()["waiting"]["full_queues"], client.stats()["waiting"]["limit_refusals"]) == (1, 2)

    peer = broker.connect(role="worker", name="w1", instance=b"i" * 16)
    refused = client.limits()[0]["refused"]
    call = Background(client.submit_many, [("t", {"n": n}) for n in range(3)], queue="mail", on_full="wait", full_timeout=60)
    until(lambda: client.limits()[0]["refused"] >= refused + 3, "the producer was refused")
    jobs = peer.call("reserve", n=10, queues=["mail"])["jobs"]
    assert len(jobs) == 4 and len(call.result()) == 3
    assert peer.call("settle", leases=[[job[0], job[1], "nack"] for job in jobs])["outcomes"] == ["OK"] * 4
    assert client.limits()[0]["waiting"] == 7, "what comes back is never refused"
    assert client.unlimit("mail") is True and client.unlimit("mail") is False and client.limits() == []
    for bad in ({}, {"jobs": 0}, {"bytes": 0}, {"jobs": 1, "urgent": 11}, {"jobs": 1, "extra": 0}):
        with pytest.raises(InvalidError):
            client.limit("mail", **bad)


def test_rest_and_the_command_line_limit_queues_and_tell_producers(broker: BrokerProcess, client: Client) -> None:
    made = ask(broker, "POST", "/api/limit", {"queue": "mail", "jobs": 1, "reason": "why"})
    assert (made.status, made.json["limit"]["by"], made.json["limit"]["urgent"]) == (200, "web", None)
    assert ask(broker, "GET", "/api/limits").json == {"limits": [made.json["limit"]]}
    assert ask(broker, "POST", "/api/submit", {"task": "t", "queue": "mail"}).status == 201
    refused = ask(broker, "POST", "/api/submit", {"task": "t", "queue": "mail"})
    assert (refused.status, refused.json["error"]["code"], refused.json["error"]["field"]) == (429, "FULL", "queue")
    assert int(refused.headers["retry-after"]) >= 1
    (queue,) = ask(broker, "GET", "/api/queues").json["queues"]
    assert queue["limit"]["full"] == "all" and queue["limit"]["refused"] == 1
    metrics = get(broker, "/metrics")[2]
    assert 'greenroom_queue_fill_ratio{queue="mail"} 1.0' in metrics and "greenroom_limit_refusals_total 1.0" in metrics
    for path, body, field in (("/api/limit", {"jobs": 1}, "queue"), ("/api/limit", {"queue": "q"}, "jobs"), ("/api/unlimit", {}, "queue"),
                              ("/api/limit", {"queue": "q", "jobs": "1"}, "jobs"), ("/api/limit", {"queue": "q", "for": 1}, "for")):
        answer = ask(broker, "POST", path, body)
        assert (answer.status, answer.json["error"].get("field")) == (400, field), path
    assert ask(broker, "POST", "/api/unlimit", {"queue": "mail"}).json == {"removed": True}

    said = command(broker, "limit", "mail", "--jobs", "1", "--bytes", "2K", "--urgent", "3", "--extra", "100", "--name", "bob", "-o", "table")
    assert (said.returncode, said.stdout) == (0, "queue mail is limited: 1 of 1 jobs, 1 bytes of 2 KiB, full\n")
    (limit,) = [json.loads(line) for line in command(broker, "limits").stdout.splitlines()]
    assert (limit["jobs"], limit["bytes"], limit["urgent"], limit["extra"], limit["by"]) == (1, 2048, 3, 100, "bob")
    assert "1 of 1 jobs" in command(broker, "limits", "-o", "table").stdout and "1 of 1 jobs" in command(broker, "queues", "-o", "table").stdout
    full = command(broker, "submit", "t", "-q", "mail")
    assert full.returncode == 7 and "the queue mail is full" in full.stderr
    assert command(broker, "submit", "t", "-q", "mail", "--on-full", "wait", "--full-timeout", "0.2").returncode == 7
    dropped = command(broker, "submit", "t", "-q", "mail", "--on-full", "drop", "--wait")
    assert dropped.returncode == 0 and json.loads(dropped.stdout) == {"id": None, "dropped": True} and "was dropped" in dropped.stderr
    assert command(broker, "submit", "t", "-q", "mail", "-p", "3").returncode == 0
    assert command(broker, "limit", "mail", "--off", "-o", "table").stdout == "queue mail has no limit any more\n"
    for bad in (["limit", "mail"], ["limit"], ["limit", "mail", "--off", "--jobs", "1"], ["limit", "mail", "--bytes", "much"], ["limit", "mail", "--jobs", "0"],
                ["submit", "t", "--on-full", "ignore"]):
        assert command(broker, *bad).returncode in (2, 7), bad


def test_the_example_of_the_limits_in_the_cookbook_runs(broker: BrokerProcess) -> None:
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60,
                           env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "refused: the queue import is full: 10 jobs wait, its limit is 10; come back in 5 s", "dropped: True so far: 1",
        "urgent ones that got in: 2", "waiting: 13 of 1000, full: None, kept out: True"]
