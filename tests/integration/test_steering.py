"""Pause, resume, change, purge and explain on a real broker: wire, client, command line, REST; over a kill -9; the cookbook's example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from greenroom.client import Client
from greenroom.errors import FinishedError, InvalidError, NotFoundError, ConflictError, TooLargeError
from tests.integration.test_client_worker_broker import command
from tests.integration.test_rest import ask
from tests.processes import ROOT, BrokerProcess, RawPeer, until

EXAMPLE = ROOT / "docs" / "examples" / "steer.py"


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, name="ann") as made:
        yield made


def worker(broker: BrokerProcess) -> RawPeer:
    return broker.connect(role="worker", name="w1", instance=b"i" * 16)


def got(peer: RawPeer, n: int = 10, wait: float = 0.0) -> list[int]:
    return [job[0] for job in peer.call("reserve", n=n, wait=wait)["jobs"]]


@pytest.mark.parametrize("kill", [True, False])
def test_a_pause_holds_over_a_restart_until_it_is_resumed(broker: BrokerProcess, client: Client, kill: bool) -> None:
    held, free = client.submit("t", queue="mail").id, client.submit("t").id
    made = client.pause("mail", seconds=600, reason="provider is down")
    client.pause(task="other", by="bob")
    assert (made["queue"], made["task"], made["by"], made["reason"]) == ("mail", None, "ann", "provider is down")
    assert made["until"] == pytest.approx(made["paused_at"] + 600)

    broker.restart(kill=kill)

    assert client.pauses()[0] == made and len(client.pauses()) == 2
    peer = worker(broker)
    assert got(peer) == [free] and got(peer) == []
    request = peer.send("reserve", n=1, wait=20)
    assert client.resume("mail") is True and client.resume("mail") is False
    assert [job[0] for job in peer.reply(request)["jobs"]] == [held]


def test_a_pause_for_a_time_ends_by_itself(broker: BrokerProcess, client: Client) -> None:
    job = client.submit("t", queue="mail").id
    client.pause("mail", seconds=1)
    peer = worker(broker)
    assert got(peer) == []
    assert got(peer, wait=10.0) == [job] and client.pauses() == []


def test_lists_and_stats_show_what_is_paused(broker: BrokerProcess, client: Client) -> None:
    client.submit("t", queue="mail")
    client.pause("mail", reason="why")
    client.pause(task="t", by="bob")

    (queue,) = client.queues()
    assert (queue["name"], queue["paused"]["by"], queue["paused"]["reason"]) == ("mail", "ann", "why")
    stats = ask(broker, "GET", "/api/stats").json
    assert stats["paused"] == {"queue": 1, "task": 1} and stats["tasks"][0]["paused"]["by"] == "bob"
    assert ask(broker, "GET", "/api/queues").json["queues"] == [queue]


def test_changed_jobs_come_in_their_new_order_also_after_a_kill(broker: BrokerProcess, client: Client) -> None:
    ids = [handle.id for handle in client.submit_many([("t", {"n": number}) for number in range(6)])]
    elsewhere, later = client.submit("t", queue="z").id, client.submit("t", delay=3600)

    assert client.change([ids[4], ids[2]], priority=1) == ["changed", "changed"]
    assert client.change([ids[0]], queue="z") == ["changed"] and client.change([ids[1]], payload={"n": "x" * 2000}) == ["changed"]
    later.change(delay=0)
    client.handle(ids[5]).change(delay=3600)
    broker.restart(kill=True)

    peer = worker(broker)
    assert [job[0] for job in peer.call("reserve", n=9, queues=["z"])["jobs"]] == [elsewhere, ids[0]]
    jobs = {job[0]: job for job in peer.call("reserve", n=9)["jobs"]}
    assert list(jobs) == [ids[2], ids[4], ids[1], ids[3], later.id] and b"x" * 2000 in jobs[ids[1]][3]
    assert client.handle(ids[5]).status()["state"] == "scheduled"
    running, unknown = client.change([ids[0], 2**40], priority=2)
    assert isinstance(running, ConflictError) and isinstance(unknown, NotFoundError)
    with pytest.raises(ConflictError):
        client.handle(ids[0]).change(priority=2)


def test_a_bad_change_is_refused_by_name(client: Client) -> None:
    job = client.submit("t").id
    for changes, field in (({}, "jobs"), ({"priority": 11}, "priority"), ({"queue": "a b"}, "queue"), ({"delay": 1, "run_at": 5}, "delay")):
        with pytest.raises(InvalidError) as caught:
            client.change([job], **changes)
        assert caught.value.field == field
    with pytest.raises(TooLargeError, match="5 payloads"):
        client.change([job] * 5, payload=b"x" * 1_000_000, raw=True)
    with pytest.raises(InvalidError, match="one of them"):
        client.pause("q", task="t")
    with pytest.raises(InvalidError, match="one of them"):
        client._call({"verb": "explain"})


def test_a_purge_of_thousands_in_memory_and_on_disk_leaves_what_runs_and_other_queues(make_broker: object) -> None:
    broker = make_broker("--window-jobs", "500")
    with Client(broker.url, ca=broker.ca) as client:
        client.submit_many((("a" if number % 2 else "b", {}) for number in range(4000)), queue="mail")
        client.submit_many((("a", {}) for _ in range(1500)), queue="mail", delay=3600)
        other = client.submit("a", queue="other").id
        peer = worker(broker)
        running = got(peer, 10)

        assert client.purge("mail", task="b") == 2000 - sum(view["task"] == "b" for view in client.get(running))
        assert client.purge("mail") == 2000 - sum(view["task"] == "a" for view in client.get(running)) + 1500

        broker.restart(kill=True)
        states = broker.stats()["states"]
        assert (states["cancelled"], states["scheduled"]) == (5490, 0) and states["queued"] + states["running"] == 11
        assert client.handle(other).status()["state"] == "queued"


def test_explain_tells_each_reason_by_every_door(broker: BrokerProcess, client: Client) -> None:
    job = client.submit("resize", queue="images")
    client.submit("resize", queue="images", priority=1)
    client.pause("images", reason="disk is replaced")

    shown = job.explain()
    assert [gate["code"] for gate in shown["gates"]] == ["queue_paused", "no_worker", "behind"] and shown["ahead"] == 1
    rest = ask(broker, "GET", f"/api/jobs/{job.id}/explain").json
    assert [gate["code"] for gate in rest["gates"]] == ["queue_paused", "no_worker", "behind"]
    said = command(broker, "explain", str(job.id), "-o", "table").stdout
    assert "the queue images is paused by ann (disk is replaced); opens with: resume queue images" in said
    said = command(broker, "explain", "--queue", "images", "-o", "table").stdout
    assert "queue images: 2 queued, 0 scheduled, 0 running" in said and "no connected worker has the task resize" in said
    queue = ask(broker, "GET", "/api/queues/images/explain").json
    assert (queue["queued"], queue["tasks"][0]["task"], queue["gates"][0]["code"]) == (2, "resize", "queue_paused")
    assert queue == {**client.explain_queue("images"), "gates": queue["gates"], "tasks": queue["tasks"]}
    with pytest.raises(NotFoundError):
        client.explain(2**40)
    broker.restart(kill=True)
    assert [gate["code"] for gate in job.explain()["gates"]][:2] == ["queue_paused", "no_worker"], "it is on disk alone now"


def test_rest_pauses_changes_and_purges_with_the_guards_of_every_change(broker: BrokerProcess) -> None:
    numbers = [ask(broker, "POST", "/api/submit", {"task": "t", "queue": "mail"}).json["id"] for _ in range(3)]

    paused = ask(broker, "POST", "/api/pause", {"queue": "mail", "for": 60, "reason": "why"})
    assert (paused.status, paused.json["pause"]["by"], paused.json["pause"]["queue"]) == (200, "web", "mail")
    assert ask(broker, "GET", "/api/pauses").json == {"pauses": [paused.json["pause"]]}
    changed = ask(broker, "POST", f"/api/jobs/{numbers[0]}/change", {"priority": 9, "payload": {"n": 2}})
    assert changed.json == {"id": numbers[0], "outcome": "changed"}
    shown = ask(broker, "GET", f"/api/jobs/{numbers[0]}").json["job"]
    assert (shown["priority"], shown["payload"]) == (9, {"preview": {"n": 2}})
    assert ask(broker, "POST", "/api/queues/mail/purge", {}).json == {"purged": 3, "next": None}
    assert ask(broker, "POST", "/api/resume", {"queue": "mail"}).json == {"resumed": True}

    refused = ask(broker, "POST", f"/api/jobs/{numbers[0]}/change", {"priority": 1})
    assert (refused.status, refused.json["error"]["code"]) == (409, "FINISHED")
    for path, body, field in (("/api/pause", {}, "queue"), ("/api/pause", {"queue": "a b"}, "queue"), ("/api/pause", {"x": 1}, "x"),
                              ("/api/resume", {"queue": "a", "task": "b"}, "queue"), ("/api/queues/mail/purge", {"before": 0}, "before"),
                              (f"/api/jobs/{numbers[1]}/change", {"priority": 0}, "priority"), ("/api/pause", {"queue": "a", "for": 0}, "for")):
        answer = ask(broker, "POST", path, body)
        assert (answer.status, answer.json["error"].get("field")) == (400, field), path
    assert ask(broker, "GET", "/api/pause").status == 405 and ask(broker, "POST", "/api/queues/a/explain", {}).status == 405
    assert ask(broker, "GET", f"/api/jobs/{2**40}/explain").status == 404


def test_the_command_line_pauses_changes_and_purges(broker: BrokerProcess, client: Client) -> None:
    job, other = client.submit("t", queue="mail").id, client.submit("t", queue="mail").id

    said = command(broker, "pause", "mail", "--for", "10m", "--reason", "down", "-o", "table")
    assert said.returncode == 0 and said.stdout.startswith("queue mail is paused by ") and said.stdout.endswith(": down\n"), said
    assert command(broker, "pause", "--task", "t", "--name", "bob").returncode == 0
    listed = [json.loads(line) for line in command(broker, "pauses").stdout.splitlines()]
    assert [(pause["queue"], pause["task"]) for pause in listed] == [("mail", None), (None, "t")] and listed[1]["by"] == "bob"
    assert "down" in command(broker, "queues", "-o", "table").stdout
    assert json.loads(command(broker, "change", str(job), "--priority", "1").stdout) == {"id": job, "outcome": "changed"}
    assert command(broker, "change", str(job)).returncode == 2 and command(broker, "change", str(2**40), "-p", "1").returncode == 5
    asked = command(broker, "purge", "mail")
    assert asked.returncode == 2 and "2 jobs wait there" in asked.stderr and client.handle(other).status()["state"] == "queued"
    assert json.loads(command(broker, "purge", "mail", "--yes").stdout) == {"purged": 2}
    assert command(broker, "change", str(job), "--delay", "0").returncode == 7
    assert command(broker, "resume", "mail", "-o", "table").stdout == "queue mail is resumed\n"
    assert json.loads(command(broker, "resume", "--task", "t").stdout) == {"resumed": True}
    for bad in (["pause"], ["pause", "mail", "--task", "t"], ["pause", "mail", "--for", "soon"], ["explain"], ["explain", "1", "-q", "a"]):
        assert command(broker, *bad).returncode == 2, bad


def test_a_purge_goes_on_where_one_that_was_interrupted_ended(broker: BrokerProcess, client: Client) -> None:
    client.submit_many((("t", {}) for _ in range(2500)), queue="mail")
    first = client._call({"verb": "purge", "queue": "mail"})
    assert first["purged"] == 1000 and first["next"] is not None
    broker.restart(kill=True)
    assert broker.stats()["states"]["cancelled"] == 1000

    assert client.purge("mail") == 1500
    finished = client.submit("t", queue="mail")
    assert finished.cancel() == "cancelled"
    with pytest.raises(FinishedError):
        finished.change(priority=1)


def test_the_example_of_the_cookbook_runs(broker: BrokerProcess) -> None:
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60,
                           env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("queue_paused: the queue newsletter is paused by ann for another 10 min (the provider is down); opens with")
    assert lines[-2:] == ["jobs ahead of the last one now: 0", "purged: 5"]
    until(lambda: broker.stats()["states"]["cancelled"] == 5, "all are cancelled")
    recipe = (ROOT / "docs" / "cookbook.md").read_text().split("## Hold a queue")[1]
    quoted = recipe.split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text() for line in quoted.splitlines())
