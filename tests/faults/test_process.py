"""Bad surroundings of the real broker: no file descriptors, no memory, output that nobody takes, parts that are taken away.

What dies by itself and a few more of these are in tests/integration/test_start_stop.py.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.client import Client
from tests.processes import DEADLINE_S, ROOT, BrokerProcess, RawPeer, WorkerProcess, until

BROKEN = ROOT / "tests/broken_broker.py"
MIB = 2**20

MakeBroker = Callable[..., BrokerProcess]


def submit(peer: RawPeer, **job: object) -> dict:
    """Submit one job of task t and return the reply."""
    return peer.call("submit", jobs=[{"task": "t", "encoding": "raw", **job}])


# -- output that nobody takes -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["a pipe that nobody reads", "a disk that is full"])
def bad_output(request: pytest.FixtureRequest) -> Iterator[int]:
    """A file descriptor that takes nothing."""
    if request.param == "a disk that is full":
        writing = os.open("/dev/full", os.O_WRONLY)
        yield writing
        os.close(writing)
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


def test_output_that_is_not_taken_stops_neither_the_work_nor_the_end(tmp_path: Path, certificates: Path, bad_output: int) -> None:
    """With the buffers that Python has when its output is no terminal."""
    broker = BrokerProcess(tmp_path / "broker", certificates, ["--log-level", "debug"], env={"PYTHONUNBUFFERED": ""})
    broker.process = subprocess.Popen(broker._command, stdout=bad_output, stderr=bad_output, stdin=subprocess.DEVNULL,
                                      env=broker._env, cwd=tmp_path)
    try:
        until(broker._is_ready, "the broker is ready")
        peer = broker.connect()
        began = time.monotonic()
        while time.monotonic() - began < 2.0:
            socket.create_connection(("127.0.0.1", broker.port)).close()  # a line of the log each
            assert "error" not in submit(peer)
        stats = broker.stats()
        assert broker.terminate() == 0
    finally:
        broker.end()

    assert stats["states"]["queued"] > 0


# -- alive means useful -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["close:web", "close:store", "die:watcher"])
def test_what_a_broker_cannot_serve_without_ends_it_when_it_goes(make_broker: MakeBroker, what: str) -> None:
    broker = make_broker(env={"BREAK": what}, program=BROKEN)
    peer = broker.connect()

    try:
        for _ in range(400):  # something must touch the store
            submit(peer)
            time.sleep(0.05)
    except OSError:
        pass

    assert broker.process.wait(DEADLINE_S) == 1
    assert "stopping:" in broker.output


def test_a_disk_that_stands_still_makes_the_broker_unready_in_time(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker(env={"BREAK": f"hang-sync:{tmp_path / 'now'}"}, program=BROKEN)
    peer, other = broker.connect(), broker.connect()
    assert broker.get("/readyz")[0] == 200
    (tmp_path / "now").touch()
    peer.send("submit", jobs=[{"task": "t"}])
    until(lambda: "the disk hangs" in broker.output, "a COMMIT hangs")
    began = time.monotonic()

    until(lambda: broker.get("/readyz")[0] == 503, "readiness fails", within_s=5.0)

    print(f"unready after {time.monotonic() - began:.1f} s")
    assert "has not answered" in broker.get("/readyz")[1]["error"]["message"]
    assert broker.get("/healthz")[0] == 200 and "error" not in other.call("ping")


# -- no file descriptors ----------------------------------------------------------------------------------------------------


def test_a_running_broker_without_file_descriptors_says_so_works_on_and_recovers(make_broker: MakeBroker) -> None:
    broker = make_broker()
    peer = broker.connect()
    probe = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
    idle: list[socket.socket] = []

    def readiness() -> tuple[int, dict]:
        probe.request("GET", "/readyz")
        answer = probe.getresponse()
        return answer.status, json.loads(answer.read())

    try:
        assert readiness()[0] == 200
        limits = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (64, limits[1]))
        idle += [socket.create_connection(("127.0.0.1", broker.port), timeout=5) for _ in range(64)]
        answer = until(lambda: (told := readiness())[0] == 503 and told[1], "it says so to who is connected")
        assert "no file descriptors" in answer["error"]["message"]
        for _ in range(20):
            assert "error" not in submit(peer)
    finally:
        for connection in idle:
            connection.close()
        probe.close()

    until(lambda: broker.get("/readyz")[0] == 200, "new connections are taken and it is ready")
    assert "error" not in submit(broker.connect())
    assert 1 <= broker.output.count("cannot accept") <= 4 and "Traceback" not in broker.output
    assert broker.terminate() == 0


# -- jobs that do harm ------------------------------------------------------------------------------------------------------


HARMFUL_TASKS = '''
import os, time
from greenroom.tasks import task

@task
def deadly() -> None:
    """End the whole worker process."""
    os._exit(9)

@task
def slow(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)

@task
def huge(mib: int) -> str:
    """Return more than a result may have."""
    return "x" * (mib * 2**20)
'''


@pytest.fixture
def harmful(tmp_path: Path) -> str:
    """A task module for workers."""
    (tmp_path / "harmful.py").write_text(HARMFUL_TASKS)
    return str(tmp_path / "harmful.py")


def test_a_job_that_kills_each_worker_is_failed_with_a_reason_while_others_flow(
        broker: BrokerProcess, harmful: str, tmp_path: Path) -> None:
    """The workers' supervisor starts each anew; a job has five lives."""
    worker = WorkerProcess(broker, "victim", ["--concurrency", "1", "--tasks", harmful], tmp_path)
    deaths = 0
    try:
        with Client(broker.url, ca=broker.ca) as client:
            poison = client.submit("deadly", {}, priority=1)
            others = client.submit_many([("to_uppercase", {"data": "a"})] * 20)
            asks = broker.connect()
            while asks.call("get", jobs=[poison.id])["jobs"][0]["state"] != "failed":
                time.sleep(0.05)
                if worker.process is None or worker.process.poll() is not None:
                    deaths += worker.process is not None
                    assert deaths <= 6
                    worker.spawn()
            results = [other.result(DEADLINE_S) for other in others]
            (view,) = asks.call("get", jobs=[poison.id])["jobs"]
    finally:
        worker.end()

    assert results == ["A"] * 20
    assert (view["state"], view["error"]["name"], view["crashes"], view["attempt"]) == ("failed", "CrashLoop", 5, 5)


def test_a_job_that_kills_its_worker_takes_each_neighbour_with_it_once_at_most(make_broker: MakeBroker, harmful: str,
                                                                               tmp_path: Path) -> None:
    """Four slots, a poison job among good ones; beside it, what happens where suspects are not kept apart."""
    broker = make_broker("--reconnect-grace-s", "0.1")
    ends = {how: _with_a_poison_job(broker, how, harmful, tmp_path) for how in ("together", "alone")}

    print(ends)
    assert ends["together"]["poison"] == ends["alone"]["poison"] == ("failed", 5)
    # The poison job and its first neighbours come back to the head of the queue, together, each time.
    assert Counter(ends["together"]["good"])["failed", 5] == 3
    assert {state for state, _ in ends["alone"]["good"]} == {"completed"}
    assert 1 <= sum(crashes for _, crashes in ends["alone"]["good"]) <= 3 and max(crashes for _, crashes in ends["alone"]["good"]) == 1


def _with_a_poison_job(broker: BrokerProcess, how: str, harmful: str, folder: Path) -> dict[str, object]:
    """Run a poison job, the second of twelve, in workers that are started anew as they die; return states and crashes."""
    worker = WorkerProcess(broker, f"w-{how}", ["--tasks", harmful, "--queues", how, "--suspects", how], folder)
    try:
        with Client(broker.url, ca=broker.ca) as client:
            jobs = [client.submit(*(("deadly", {}) if number == 1 else ("slow", {"seconds": 0.2})), queue=how) for number in range(12)]
            ids = [job.id for job in jobs]
            deadline = time.monotonic() + 60.0
            while (views := client.get(ids)) and any(view["state"] in ("queued", "running") for view in views):
                assert time.monotonic() < deadline, views
                if worker.process is None or worker.process.poll() is not None:
                    worker.spawn()
                time.sleep(0.05)
    finally:
        worker.end()
    ends = [(view["state"], view["crashes"]) for view in views]
    return {"poison": ends[1], "good": ends[:1] + ends[2:]}


@pytest.mark.parametrize("mib", [2, 64])
def test_a_result_that_is_too_large_fails_its_job_and_no_other(broker: BrokerProcess, harmful: str, tmp_path: Path, mib: int) -> None:
    worker = WorkerProcess(broker, "w", ["--concurrency", "2", "--tasks", harmful], tmp_path)
    try:
        worker.start()
        with Client(broker.url, ca=broker.ca) as client:
            huge = client.submit("huge", {"mib": mib})
            assert client.submit("to_uppercase", {"data": "a"}).result(DEADLINE_S) == "A"
            (view,) = broker.connect().call("wait", jobs=[huge.id], wait=20.0)["jobs"]
            assert client.submit("to_uppercase", {"data": "b"}).result(DEADLINE_S) == "B"
        assert worker.process.poll() is None
    finally:
        worker.end()

    print(view["error"])
    assert (view["state"], view["attempt"], view["crashes"]) == ("failed", 1, 0)
    assert "bytes" in view["error"]["message"]


# -- no memory --------------------------------------------------------------------------------------------------------------


def test_a_flood_of_payloads_stays_within_the_memory_that_there_is(make_broker: MakeBroker) -> None:
    """Address space for what is bounded, not for the flood: each answer is OK or BUSY, and none is missing."""
    broker = make_broker("--window-bytes", str(16 * MIB))
    room = 400 * MIB  # what is bounded takes 210 to 300 of them, as threads and batches happen to meet
    limit = _memory(broker, "VmSize") + room
    resource.prlimit(broker.pid, resource.RLIMIT_AS, (limit, limit))
    floods = [RawPeer(broker, role="client") for _ in range(5)]
    outcomes: Counter[str] = Counter()

    for number in range(450):
        peer = floods[number % 5]
        peer.send("submit", jobs=[{"task": "t", "encoding": "raw", "payload": os.urandom(1024) * 1024}])
        if number >= 100:
            reply = peer.reply((number - 100) // 5 + 2)
            outcomes[reply["error"]["code"] if "error" in reply else "OK"] += 1

    print(outcomes, f"peak {_memory(broker, 'VmPeak') // MIB} MiB of {limit // MIB}, resident {_memory(broker, 'VmHWM') // MIB}")
    assert set(outcomes) <= {"OK", "BUSY"} and outcomes["OK"] > 0
    assert broker.get("/healthz")[0] == 200 and "error" not in submit(broker.connect())
    assert "MemoryError" not in broker.output and "Traceback" not in broker.output


def _memory(broker: BrokerProcess, name: str) -> int:
    """Return a figure of /proc/PID/status in bytes."""
    line = next(line for line in Path(f"/proc/{broker.pid}/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
