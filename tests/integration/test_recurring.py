"""Schedules of a real broker: over the wire, from the command line, by REST, over restarts and a kill -9; and the cookbook's example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from greenroom.client import Client
from greenroom.errors import InvalidError, NotFoundError
from tests.integration.test_rest import Answer, ask
from tests.processes import ROOT, BrokerProcess, until

EXAMPLE = ROOT / "docs" / "examples" / "schedules.py"


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, timeout=20.0) as made:
        yield made


def command(broker: BrokerProcess, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "client.py"), *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **broker.client_env})


def test_a_schedule_runs_its_task_again_and_again(broker: BrokerProcess, client: Client, start_worker: Callable) -> None:
    start_worker()
    made = client.schedule("beat", "reverse_string", {"data": "stressed"}, every="1s", priority=1, overlap="queue")
    begun = time.time()
    assert made["job"] == {"task": "reverse_string", "priority": 1} and len(made["next_runs"]) == 10

    shown = until(lambda: (found := client.get_schedule("beat"))["runs"] >= 3 and found, "it ran three times")

    assert time.time() - begun > 2.5
    assert client.handle(shown["last_job"]).result(10) == "desserts"
    submitted = [job["submitted_at"] for job in client.jobs(task="reverse_string")]
    assert submitted == sorted(set(submitted), reverse=True)  # how far apart is for tests in virtual time: this machine may be busy
    client.delete_schedule("beat")
    runs = len(submitted)
    time.sleep(1.5)
    assert len(list(client.jobs(task="reverse_string"))) <= runs + 1


def test_the_client_lists_pauses_resumes_and_runs(client: Client) -> None:
    for number in range(205):
        client.schedule(f"s{number:03}", "t", cron="0 3 * * *", timezone="Europe/Berlin")
    assert [shown["name"] for shown in client.schedules()] == [f"s{number:03}" for number in range(205)]

    assert client.pause_schedule("s000", "why not")["reason"] == "why not" and client.get_schedule("s000")["next_at"] is None
    assert client.resume_schedule("s000")["next_at"] > time.time()
    assert client.run_schedule("s000").status()["task"] == "t"
    with pytest.raises(InvalidError) as caught:
        client.schedule("bad", "t", cron="61 * * * *")
    assert caught.value.field == "cron"
    with pytest.raises(InvalidError, match="no option"):
        client.schedule("bad", "t", every="1s", colour="red")
    for call in (client.get_schedule, client.delete_schedule, client.pause_schedule, client.resume_schedule, client.run_schedule):
        with pytest.raises(NotFoundError):
            call("none")


def test_schedules_survive_a_restart_and_a_kill_and_each_planned_time_ran_once(broker: BrokerProcess, client: Client) -> None:
    client.schedule("all", "all", every="1s", overlap="queue", missed="all", missed_max=100)
    first = client.get_schedule("all")["next_at"]
    for kill in (True, False, True):
        until(lambda: client.get_schedule("all")["runs"] >= 1, "it ran")
        time.sleep(0.7)
        broker.restart(kill=kill)
    time.sleep(1.2)
    client.pause_schedule("all", "counting")

    shown = client.get_schedule("all")
    jobs = list(client.jobs(task="all"))

    assert len(jobs) == shown["runs"] >= 4 and max(job["id"] for job in jobs) == shown["last_job"]
    # As many as there were planned times until it was paused: none was lost, none came twice.
    planned = int(shown["paused_at"] - first) + 1
    assert planned - 1 <= shown["runs"] <= planned


def test_the_command_line_makes_shows_changes_and_deletes(broker: BrokerProcess) -> None:
    made = command(broker, "schedule", "night", '{"n": 10}', "--task", "fibonacci", "--cron", "30 2 * * MON-FRI", "--tz", "Europe/Berlin", "-q", "q")
    assert made.returncode == 0, made.stderr
    shown = json.loads(command(broker, "schedule", "night").stdout)
    assert (shown["cron"], shown["timezone"], shown["payload"], shown["job"]["queue"]) == ("30 2 * * MON-FRI", "Europe/Berlin", {"n": 10}, "q")
    assert len(shown["next_runs"]) == 10

    assert command(broker, "schedule", "tick", "--task", "t", "--every", "5m", "--overlap", "queue", "--missed", "all", "--missed-max", "5").returncode == 0
    rows = [json.loads(line) for line in command(broker, "schedules").stdout.splitlines()]
    assert [row["name"] for row in rows] == ["night", "tick"] and rows[1]["missed_max"] == 5
    assert json.loads(command(broker, "schedule", "night", "--pause", "holiday").stdout)["reason"] == "holiday"
    table = command(broker, "schedules", "-o", "table").stdout
    assert "paused: holiday" in table and "every 5m" in table and "30 2 * * MON-FRI Europe/Berlin" in table
    assert json.loads(command(broker, "schedule", "night", "--resume").stdout)["paused_at"] is None
    job = json.loads(command(broker, "schedule", "night", "--run").stdout)["id"]
    assert json.loads(command(broker, "get", str(job)).stdout)["task"] == "fibonacci"
    lines = command(broker, "schedule", "night", "-o", "table").stdout.splitlines()
    assert len([line for line in lines if line.split()[0] == "run"]) == 10 and any(line.split() == ["job.queue", "q"] for line in lines)
    assert command(broker, "schedule", "night", "--delete").returncode == 0

    for arguments, code in ((("schedule", "night"), 5), (("schedule", "night", "--delete"), 5), (("schedule", "x", "--task", "t"), 2),
                            (("schedule", "x", "--every", "5m"), 2), (("schedule", "x", "--task", "t", "--every", "5x"), 2),
                            (("schedule", "x", "--task", "t", "--cron", "* * *", "--every", "5m"), 2),
                            (("schedule", "tick", "--run", "--task", "t"), 2), (("schedule", "no spaces"), 2)):
        ended = command(broker, *arguments)
        assert ended.returncode == code and ended.stderr and "Traceback" not in ended.stderr, arguments


def test_rest_does_the_same(broker: BrokerProcess) -> None:
    body = {"job": {"task": "t", "payload": {"n": 1, "b": {"$base64": "AAE="}}, "queue": "q"}, "cron": "*/5 * * * *", "timezone": "UTC"}
    made = ask(broker, "POST", "/api/schedules/five", body)
    assert (made.status, made.json["created"]) == (201, True) and made.json["schedule"]["next_at"] % 300 == 0
    assert ask(broker, "POST", "/api/schedules/five", body).status == 200

    listed = ask(broker, "GET", "/api/schedules?limit=10").json
    assert ([shown["name"] for shown in listed["schedules"]], listed["next"], listed["total"]) == (["five"], None, 1)
    shown = ask(broker, "GET", "/api/schedules/five").json["schedule"]
    assert shown["payload"] == {"preview": {"n": 1, "b": {"$base64": "AAE="}}} and len(shown["next_runs"]) == 10
    assert ask(broker, "POST", "/api/schedules/five/pause", {"reason": "r"}).json["schedule"]["reason"] == "r"
    assert ask(broker, "POST", "/api/schedules/five/resume", {}).json["schedule"]["paused_at"] is None
    ran = ask(broker, "POST", "/api/schedules/five/run", {})
    assert ran.status == 201 and ran.headers["location"] == f"/api/jobs/{ran.json['id']}"
    assert ask(broker, "GET", f"/api/jobs/{ran.json['id']}").json["job"]["payload"] == shown["payload"]
    body = {"job": {"task": "other", "payload": 1}, "every": "1h", "keep_payload": True}
    assert ask(broker, "POST", "/api/schedules/five", body).json["schedule"]["job"]["task"] == "other"
    assert ask(broker, "GET", "/api/schedules/five").json["schedule"]["payload"] == shown["payload"]
    assert ask(broker, "POST", "/api/schedules/new", body).status == 404
    assert ask(broker, "POST", "/api/schedules/five/delete", {}).json == {"name": "five", "deleted": True}
    assert ask(broker, "GET", "/api/schedules/five").status == 404


@pytest.mark.parametrize("body, field", [
    ({"every": "1h"}, "job"), ({"job": [], "every": "1h"}, "job"), ({"job": {"task": "t", "colour": 1}, "every": "1h"}, "colour"),
    ({"job": {"task": "t", "payload": 2**70}, "every": "1h"}, "payload"), ({"job": {"task": "t"}, "cron": "bad"}, "cron"),
    ({"job": {"task": "t"}, "every": "1h", "overlap": "never"}, "overlap"), ({"job": {"task": "t"}, "every": "1h", "name": "x"}, "name"),
    ({"job": {"task": "t", "run_at": 1}, "every": "1h"}, "run_at"), ({"job": {"task": "t"}, "every": 5}, "every"),
])
def test_a_bad_schedule_by_rest_names_its_field(shared_broker: BrokerProcess, body: dict, field: str) -> None:
    answer = ask(shared_broker, "POST", "/api/schedules/s", body)
    assert (answer.status, answer.json["error"]["code"], answer.json["error"]["field"]) == (400, "INVALID", field)


def test_rest_guards_schedules_as_it_guards_submits(shared_broker: BrokerProcess) -> None:
    def code(method: str, path: str, body: dict | None = None) -> tuple[int, str]:
        answer: Answer = ask(shared_broker, method, path, body)
        return answer.status, answer.json["error"]["code"]

    assert code("POST", "/api/schedules/a%20b", {"job": {"task": "t"}, "every": "1h"}) == (400, "INVALID")
    assert code("PUT", "/api/schedules/a", {}) == (405, "METHOD")
    assert code("GET", "/api/schedules?colour=red") == (400, "INVALID")
    assert code("GET", "/api/schedules?limit=1000") == (400, "INVALID")
    for word in ("run", "pause", "resume", "delete"):
        assert code("POST", f"/api/schedules/none/{word}", {}) == (404, "NOT_FOUND")
        assert code("GET", f"/api/schedules/none/{word}") == (405, "METHOD")
        assert code("POST", f"/api/schedules/none/{word}", {"colour": "red"}) == (400, "INVALID")


def test_the_next_runs_of_a_rule_are_told_before_anything_is_made(broker: BrokerProcess) -> None:
    before = time.time()
    [first, *_, last] = runs = ask(broker, "GET", "/api/recurrence?every=2h").json["next_runs"]
    assert len(runs) == 10 and last - first == 9 * 7200 and abs(first - before - 7200) < 60
    nights = ask(broker, "GET", "/api/recurrence?cron=30+2+*+*+*&timezone=Asia/Kolkata").json["next_runs"]
    assert {at % 86400 for at in nights} == {21 * 3600}  # half past two there
    assert len(ask(broker, "GET", "/api/recurrence?cron=0+0+29+2+*").json["next_runs"]) in (6, 7)  # twenty years, and the one behind

    for query, field in (("", "cron"), ("cron=61+*+*+*+*", "cron"), ("every=0s", "every"), ("every=1h&timezone=UTC", "timezone"),
                         ("cron=0+3+*+*+*&timezone=Mars", "timezone"), ("at=1", "at")):
        answer = ask(broker, "GET", f"/api/recurrence?{query}")
        assert (answer.status, answer.json["error"]["field"]) == (400, field), query
    assert ask(broker, "GET", "/api/schedules").json["total"] == 0


def test_the_example_of_the_cookbook_runs(broker: BrokerProcess, client: Client, start_worker: Callable) -> None:
    start_worker(tasks=EXAMPLE)
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60,
                           env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["night-report", "pulse"]

    shown = until(lambda: (found := client.get_schedule("pulse"))["runs"] and found, "it ran")
    assert client.handle(shown["last_job"]).result(10)["kind"] == "short"
    assert client.run_schedule("night-report").result(10)["kind"] == "full"
    quoted = (ROOT / "docs" / "cookbook.md").read_text().split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text() for line in quoted.splitlines())
