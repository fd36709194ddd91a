"""Progress and log lines of running jobs, through real brokers and workers: wire, both pools, client, command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.client import Client
from greenroom.errors import NotFoundError
from tests.processes import DEADLINE_S, ROOT, BrokerProcess, RawPeer, WorkerProcess, database, until

TASKS = '''
import os
from greenroom.tasks import Context, task

@task
def talk(gate: str, context: Context, lines: int = 3) -> str:
    context.log("begun")
    context.progress(0.5, "half way")
    while not os.path.exists(gate):
        context.wait(0.02)
    for number in range(lines):
        context.log(f"line {number}")
    context.progress(1, "done")
    return "r"

@task
def flood(count: int, context: Context) -> int:
    for number in range(count):
        context.log(f"{number:06d}")
        context.progress(number / count)
    return count

@task
def die(context: Context) -> None:
    context.log("the last words")
    context.wait(1.0)
    os._exit(1)
'''

both_pools = pytest.mark.parametrize("pool", ["thread", "process"])


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "talking.py"
    path.write_text(TASKS)
    return path


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca) as made:
        yield made


def begun(broker: BrokerProcess, **fields: object) -> tuple[RawPeer, RawPeer, int, int]:
    """Return a producer, a worker that has begun a job, the job and its fence."""
    producer, worker = broker.connect(), broker.connect(role="worker", instance=b"i" * 16)
    [job] = producer.call("submit", jobs=[{"task": "t", **fields}])["jobs"]
    [[_, fence, *_]] = worker.call("reserve", n=1, wait=5)["jobs"]
    return producer, worker, job, fence


def texts(peer: RawPeer, job: int, **fields: object) -> list[str]:
    return [line[3] for line in peer.call("logs", job=job, **fields)["lines"]]


# -- the wire ---------------------------------------------------------------------------------------------------------------


def test_a_report_is_seen_by_those_who_ask(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)

    outcomes = worker.call("report", leases=[
        [job, fence, 0.25, "page 1", [[1000.5, "one"], [1001, "two"]]], [job, fence + 1, 0.5, None], [job, fence, 2], "nonsense"])["outcomes"]

    assert outcomes[0] == "OK" and [outcome["code"] for outcome in outcomes[1:]] == ["LEASE_LOST", "INVALID", "INVALID"]
    [view] = producer.call("get", jobs=[job])["jobs"]
    assert (view["progress"], view["progress_text"]) == (0.25, "page 1")
    answer = producer.call("logs", job=job)
    assert answer == {"id": answer["id"], "lines": [[1, 1000.5, 1, "one"], [2, 1001.0, 1, "two"]], "next": 2, "dropped": 0, "finished": False}
    assert texts(producer, job, after=1) == ["two"] and texts(producer, job, limit=1) == ["one"] and texts(producer, job, after=2) == []

    worker.call("settle", leases=[[job, fence, "ack"]])
    first = producer.call("logs", job=job, limit=2)
    assert (len(first["lines"]), first["finished"]) == (2, False), "there may be more"
    assert producer.call("logs", job=job, after=2, wait=30)["finished"] is True
    assert producer.call("logs", job=job)["finished"] is True
    assert producer.call("get", jobs=[job])["jobs"][0]["progress"] == 0.25
    assert producer.call("report", leases=[[job, fence]])["error"]["code"] == "DENIED"
    assert producer.call("logs", job=10**9)["error"]["code"] == "NOT_FOUND"


def test_who_waits_at_the_broker_is_answered_by_a_line_and_by_the_end(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)
    waiting, other = producer.send("logs", job=job, wait=30), producer.send("ping")
    assert "now" in producer.reply(other)

    worker.call("report", leases=[[job, fence, None, None, [[1, "news"]]]])
    assert producer.reply(waiting)["lines"] == [[1, 1.0, 1, "news"]]

    waiting = producer.send("logs", job=job, after=1, wait=30)
    worker.call("settle", leases=[[job, fence, "fail", {}, {"retry": False}]])
    answer = producer.reply(waiting)
    assert (answer["lines"], answer["next"], answer["finished"]) == ([], 1, True)

    [queued] = producer.call("submit", jobs=[{"task": "nobody"}])["jobs"]
    began = time.monotonic()
    answer = producer.call("logs", job=queued, wait=0.3)
    assert (answer["lines"], answer["finished"]) == ([], False) and time.monotonic() - began >= 0.3


def test_a_thousand_lines_in_one_frame_and_a_job_that_never_stops_writing(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)
    for part in range(4):
        item = [job, fence, None, None, [[part, "x" * 100] for _ in range(100)]]
        assert worker.call("report", leases=[item] * 10)["outcomes"] == ["OK"] * 10

    answer = producer.call("logs", job=job)
    assert 500 <= len(answer["lines"]) <= 1000 and answer["next"] == 4000 and answer["dropped"] == 4000 - len(answer["lines"])


def test_what_was_acknowledged_is_there_after_kill_9_and_the_lease_goes_on(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker()
    producer, worker, job, fence = begun(broker)
    time.sleep(1.5)  # the lease is on disk
    worker.call("report", leases=[[job, fence, 0.5, "half", [[1, "one"], [2, "two"]]]])

    broker.kill()
    broker.restart()

    producer = broker.connect()
    worker = broker.connect(role="worker", instance=b"i" * 16, leases=[[job, fence]])
    assert worker.greeting["leases"] == ["OK"] and texts(producer, job) == ["one", "two"]
    [view] = producer.call("get", jobs=[job])["jobs"]
    assert (view["state"], view["progress"], view["progress_text"]) == ("running", 0.5, "half")
    worker.call("report", leases=[[job, fence, None, None, [[3, "three"]]]])
    worker.call("settle", leases=[[job, fence, "ack"]])
    broker.restart()
    answer = broker.connect().call("logs", job=job)
    assert ([line[0] for line in answer["lines"]], answer["finished"]) == ([1, 2, 3], True)


def test_a_damaged_line_is_left_out(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)
    worker.call("report", leases=[[job, fence, None, None, [[1, "one"], [2, "two"], [3, "three"]]]])
    broker.terminate()
    with database(broker) as db:
        db.execute("UPDATE log_lines SET text = 'other' WHERE seq = 2")
    broker.restart()

    assert texts(broker.connect(), job) == ["one", "three"]
    check = subprocess.run([sys.executable, str(ROOT / "broker.py"), "--check", "--data", str(broker.data)], capture_output=True, text=True)
    assert "log_lines: the row of" in check.stdout + check.stderr


# -- workers ----------------------------------------------------------------------------------------------------------------


@both_pools
def test_a_task_is_heard_while_it_runs_and_to_the_end(broker: BrokerProcess, start_worker: Callable[..., WorkerProcess], client: Client,
                                                      tasks: Path, tmp_path: Path, pool: str) -> None:
    start_worker("--pool", pool, tasks=tasks)
    gate = tmp_path / "gate"
    handle = client.submit("talk", {"gate": str(gate)})
    following = client.logs(handle.id, follow=True)

    first = next(following)
    assert (first["seq"], first["attempt"], first["text"]) == (1, 1, "begun") and abs(first["at"] - time.time()) < DEADLINE_S
    view = until(lambda: (view := handle.status()).get("progress") and view, "it is half way")
    assert (view["progress"], view["progress_text"]) == (0.5, "half way")
    gate.touch()

    assert [line["text"] for line in following] == ["line 0", "line 1", "line 2"]
    view = handle.status()
    assert (view["state"], view["progress"], view["progress_text"]) == ("completed", 1.0, "done")
    assert [line["seq"] for line in client.logs(handle.id, after=2)] == [3, 4]


@both_pools
def test_a_task_that_writes_faster_than_anybody_reads_is_not_held_up(start_worker: Callable[..., WorkerProcess], client: Client, tasks: Path,
                                                                     pool: str) -> None:
    start_worker("--pool", pool, tasks=tasks)
    handle = client.submit("flood", {"count": 20_000})

    assert handle.result(60) == 20_000
    lines = [line["text"] for line in client.logs(handle.id)]
    assert 500 <= len(lines) <= 1000 and handle.status()["progress"] > 0.99
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == sorted(numbers) and (lines[-1] == "019999" or "left out" in lines[-1])


def test_a_child_that_dies_has_said_what_it_said(start_worker: Callable[..., WorkerProcess], client: Client, tasks: Path) -> None:
    start_worker("--pool", "process", tasks=tasks)
    handle = client.submit("die", attempts=1)

    line = next(client.logs(handle.id, follow=True))

    assert (line["attempt"], line["text"]) == (1, "the last words")


def test_a_worker_reports_on_when_its_broker_came_back(broker: BrokerProcess, start_worker: Callable[..., WorkerProcess], client: Client,
                                                       tasks: Path, tmp_path: Path) -> None:
    start_worker(tasks=tasks)
    gate = tmp_path / "gate"
    handle = client.submit("talk", {"gate": str(gate)})
    until(lambda: list(client.logs(handle.id)), "its first line is there")
    time.sleep(1.5)  # the lease is on disk

    broker.kill()
    gate.touch()  # it writes the rest while the broker is away
    time.sleep(0.3)
    broker.restart()

    assert handle.result(30) == "r"
    assert [line["text"] for line in client.logs(handle.id)] == ["begun", "line 0", "line 1", "line 2"]


# -- command line --------------------------------------------------------------------------------------------------


def command(broker: BrokerProcess, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "client.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **broker.client_env})


def test_the_command_line_follows_a_job_to_its_end(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)
    worker.call("report", leases=[[job, fence, None, None, [[1, "one \x1b[31m"]]]])
    child = command(broker, "logs", "-f", str(job), "-o", "table")
    try:
        assert child.stdout.readline().rstrip("\n").endswith("  one \\x1b[31m")
        worker.call("report", leases=[[job, fence, None, None, [[2, "two"]]]])
        assert child.stdout.readline().endswith("  two\n")
        worker.call("settle", leases=[[job, fence, "ack"]])
        assert child.wait(DEADLINE_S) == 0 and child.stdout.read() == ""
    finally:
        child.kill()
        child.communicate()


def test_the_command_line_prints_what_there_is_and_ends(broker: BrokerProcess) -> None:
    producer, worker, job, fence = begun(broker)
    worker.call("report", leases=[[job, fence, None, None, [[1, "one"], [2, "two"]]]])

    printed, errors = (child := command(broker, "logs", str(job))).communicate(timeout=DEADLINE_S)
    assert (child.returncode, [json.loads(line)["text"] for line in printed.splitlines()]) == (0, ["one", "two"]), errors
    missing = command(broker, "logs", "999999999")
    assert missing.communicate(timeout=DEADLINE_S)[0] == "" and missing.returncode == 5
    following = command(broker, "logs", "--follow", str(job))
    assert "one" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.wait(DEADLINE_S) == 130
    following.communicate()


def test_a_job_that_is_not_there_has_no_log(client: Client) -> None:
    with pytest.raises(NotFoundError):
        next(client.logs(10**9))
