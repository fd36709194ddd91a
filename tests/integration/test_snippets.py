"""The snippets of the documentation, run as they are against a real broker."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.protocol import unpack_value
from tests.processes import ROOT, BrokerProcess, Process, RawPeer, free_port, until

SNIPPETS = ROOT / "docs" / "snippets"


class Snippet(Process):
    """A snippet as a process."""

    def __init__(self, broker: BrokerProcess, folder: Path, name: str, *arguments: str) -> None:
        super().__init__([sys.executable, str(SNIPPETS / name), "localhost", str(broker.port), broker.ca, *arguments],
                         folder / f"{name}.log")


@pytest.fixture
def snippet_worker(broker: BrokerProcess, tmp_path: Path) -> Iterator[Snippet]:
    worker = Snippet(broker, tmp_path, "worker.py")
    worker.spawn()
    until(lambda: broker.stats()["workers"] == 1, "the snippet is connected: " + worker.output)
    yield worker
    worker.end()


def produce(broker: BrokerProcess, task: str, payload: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SNIPPETS / "producer.py"), "localhost", str(broker.port), broker.ca, task, payload],
                          capture_output=True, text=True, timeout=60)


def submit(peer: RawPeer, task: str, payload: bytes) -> int:
    return peer.call("submit", jobs=[{"task": task, "payload": payload}])["jobs"][0]


def view(peer: RawPeer, job: int) -> dict:
    return peer.call("get", jobs=[job])["jobs"][0]


@pytest.mark.parametrize("name", ["producer.py", "worker.py"])
def test_a_snippet_is_short_and_needs_only_msgpack(name: str) -> None:
    text = (SNIPPETS / name).read_text()
    imported = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}

    assert len(text.splitlines()) <= 60
    assert imported - set(sys.stdlib_module_names) == {"msgpack"}


def test_producer_and_worker_bring_a_result_back(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    done = produce(broker, "reverse_string", '{"data": "stressed"}')

    assert (done.returncode, done.stdout) == (0, "desserts\n"), done.stderr


def test_a_task_that_raises_is_a_failed_job(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    done = produce(broker, "reverse_string", '{"wrong": 1}')

    assert done.returncode == 0 and "'state': 'failed'" in done.stdout and "KeyError" in done.stdout


def test_a_payload_of_a_mebibyte_goes_there_and_back(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    peer = broker.connect()
    data = b"x" * (2**20 - 11)
    job = submit(peer, "reverse_string", b"\x81\xa4data\xdb" + len(data).to_bytes(4, "big") + data)

    shown = peer.call("wait", jobs=[job], wait=20)["jobs"][0]

    assert (shown["state"], shown["payload_bytes"], shown["result_bytes"]) == ("completed", 2**20, 2**20 - 6)


def test_a_refused_job_is_told(broker: BrokerProcess) -> None:
    done = produce(broker, "no such name", "{}")

    assert done.returncode == 1 and "the job was refused: task must be" in done.stderr


def test_the_worker_comes_back_after_a_restart_of_the_broker(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    broker.restart(kill=True)

    assert produce(broker, "reverse_string", '{"data": "niaga"}').stdout == "again\n"


def test_the_producer_waits_over_a_restart_and_stores_its_job_once(broker: BrokerProcess, tmp_path: Path) -> None:
    producer = Snippet(broker, tmp_path, "producer.py", "t", "{}")
    producer.spawn()
    until(lambda: broker.stats()["queued"] == 1, "the job is stored: " + producer.output)
    broker.restart(kill=True)

    worker = broker.connect(role="worker")
    [[job, fence, *_]] = worker.call("reserve", n=5, wait=20)["jobs"]
    worker.call("settle", leases=[[job, fence, "ack", b"\x07"]])

    assert producer.process.wait(20) == 0 and producer.output == "7\n" and broker.stats()["total"] == 1


def test_the_worker_keeps_a_job_longer_than_a_lease_by_heartbeats(make_broker: object, tmp_path: Path) -> None:
    broker = make_broker("--lease-s", "1")
    worker = Snippet(broker, tmp_path, "worker.py")
    worker.spawn()
    try:
        peer = broker.connect()
        job = submit(peer, "slow_task", b"\x81\xa7seconds\x03")
        shown = peer.call("wait", jobs=[job], wait=20)["jobs"][0]
    finally:
        worker.end()

    assert (shown["state"], shown["attempt"], unpack_value(shown["result"])) == ("completed", 1, "slept")


def test_the_worker_keeps_its_job_and_result_while_the_broker_restarts(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    job = submit(broker.connect(), "slow_task", b"\x81\xa7seconds\x02")
    until(lambda: view(broker.connect(), job)["state"] == "running", "it runs")

    broker.signal(signal.SIGTERM)  # the leases are put on disk
    broker.process.wait(20)
    broker.start()

    shown = broker.connect().call("wait", jobs=[job], wait=20)["jobs"][0]
    assert (shown["state"], shown["attempt"], unpack_value(shown["result"])) == ("completed", 1, "slept")


def test_the_worker_stops_a_job_that_someone_cancels(broker: BrokerProcess, snippet_worker: Snippet) -> None:
    peer = broker.connect()
    job = submit(peer, "slow_task", b"\x81\xa7seconds\x7f")
    until(lambda: view(peer, job)["state"] == "running", "it runs")

    assert peer.call("cancel", jobs=[job])["outcomes"] == ["requested"]

    shown = peer.call("wait", jobs=[job], wait=20)["jobs"][0]
    assert (shown["state"], unpack_value(shown["result"])) == ("completed", "stopped")  # an ack wins


def test_the_snippets_work_with_our_own_counterparts(broker: BrokerProcess, start_worker: object) -> None:
    start_worker()

    assert produce(broker, "fibonacci", '{"n": 100}').stdout == "354224848179261915075\n"


def test_the_producer_gives_up_after_its_time_and_says_that_the_outcome_is_unknown(certificates: Path, tmp_path: Path) -> None:
    impatient = tmp_path / "producer.py"
    text = (SNIPPETS / "producer.py").read_text()
    impatient.write_text(text.replace("RESEND_S = 300 ", "RESEND_S = 1 "))
    assert impatient.read_text() != text

    done = subprocess.run([sys.executable, str(impatient), "localhost", str(free_port()), str(certificates / "ca.crt"), "t", "{}"],
                          capture_output=True, text=True, timeout=60)

    assert done.returncode == 1 and done.stderr.startswith("UNKNOWN: the job may or may not be stored")
