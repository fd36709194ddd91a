"""Peers that really vanish: broker and peers in network namespaces of their own, and a cable between them that is pulled.

No FIN, no RST, nothing: what neither a kill nor a proxy in user space can do. Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.protocol import pack_value
from tests.conftest import skip_or_fail
from tests.faults.test_network import TASKS
from tests.processes import ROOT, BrokerProcess, RawPeer, WorkerProcess, until
from tests.scripted import make_certificates

BROKER_ADDRESS, FAR_ADDRESS = "10.213.77.1", "10.213.77.2"
LEASE_S = 4.0
HEARTBEAT_S = LEASE_S / 3
#: docs/protocol_v1.md, "Deadlines": a vanished peer is noticed by keepalive, or sooner by bytes that nobody confirms.
REAPED_WITHIN_S = 45.0
#: On a slow machine everything may take so much longer.
SLACK_S = 5.0
CLONE_NEWNET = 0x40000000

_numbers = itertools.count()

PRODUCER = '''
"""Submit and print ids until the input ends; each submit is printed with the seconds it took."""
import json, sys, threading, time
from greenroom.client import Client

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Client() as client:
    while not ended.is_set():
        began = time.monotonic()
        handles = client.submit_many([("reverse_string", {"data": "x"})] * 5)
        print(json.dumps([[handle.id for handle in handles], time.monotonic() - began]), flush=True)
        ended.wait(0.05)
'''


def ip(*arguments: str) -> None:
    """Run `ip`; CalledProcessError with its words if it fails."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def _enter(file: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Cable:
    """Two namespaces with a veth pair between them: `hub` for the broker, `far` for its peers."""

    def __init__(self) -> None:
        number = f"{os.getpid()}-{next(_numbers)}"
        self.hub, self.far = f"gr-hub-{number}", f"gr-far-{number}"

    def lay(self) -> None:
        """Make them."""
        for name in (self.hub, self.far):
            ip("netns", "add", name)
        ip("-n", self.hub, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.far)
        for name, address in ((self.hub, BROKER_ADDRESS), (self.far, FAR_ADDRESS)):
            ip("-n", name, "address", "add", f"{address}/30", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")

    def pull(self) -> None:
        """From now on nothing passes."""
        ip("-n", self.far, "link", "set", "cable", "down")

    def plug_in(self) -> None:
        """Everything passes again."""
        ip("-n", self.far, "link", "set", "cable", "up")

    def remove(self) -> None:
        """Take both namespaces away, whatever is left in them."""
        for name in (self.hub, self.far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Be in a namespace: sockets and processes made here stay in it. Not for waiting: other greenlets are in it too."""
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{name}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


class HubBroker(BrokerProcess):
    """A broker in the hub."""

    def __init__(self, cable: Cable, folder: Path, certificates: Path, flags: tuple[str, ...]) -> None:
        self._cable = cable
        with cable.inside(cable.hub):
            super().__init__(folder, certificates, ("--client-ca", str(certificates / "ca.crt"), *flags), host=BROKER_ADDRESS)

    @property
    def client_env(self) -> dict[str, str]:
        """With a client certificate: a broker that can be reached from elsewhere requires one."""
        pair = self.certificates / "test-client"
        return {**super().client_env, "GREENROOM_CERT": f"{pair}.crt", "GREENROOM_KEY": f"{pair}.key"}

    def spawn(self) -> None:
        """Start it in the hub."""
        with self._cable.inside(self._cable.hub):
            super().spawn()

    def get(self, path: str) -> tuple[int, dict]:
        """GET from the REST API, which listens on the hub's loopback."""
        with self._cable.inside(self._cable.hub):
            return super().get(path)


class PlacedWorker(WorkerProcess):
    """A worker in one of the namespaces."""

    def __init__(self, cable: Cable, place: str, broker: HubBroker, name: str, flags: tuple[str, ...], folder: Path) -> None:
        self._cable, self._place = cable, place
        super().__init__(broker, name, flags, folder)

    def spawn(self) -> None:
        """Start it there."""
        with self._cable.inside(self._place):
            super().spawn()


class Scene:
    """The broker, and who talks to it over the cable."""

    def __init__(self, cable: Cable, folder: Path) -> None:
        certificates = make_certificates(folder / "certs", names=(BROKER_ADDRESS,), clients=("test-client",))
        self.cable = cable
        self.broker = HubBroker(cable, folder / "broker", certificates, ("--lease-s", str(LEASE_S)))
        self.seen = folder / "seen.jsonl"
        self.seen.touch()
        self._folder = folder
        self._processes: list[WorkerProcess | subprocess.Popen] = []
        (folder / "recording.py").write_text(TASKS)

    def start_worker(self, place: str, name: str) -> PlacedWorker:
        """Start a worker in the hub or far from it."""
        flags = ("--tasks", str(self._folder / "recording.py"))
        worker = PlacedWorker(self.cable, place, self.broker, name, flags, self._folder)
        worker._env["HISTORY"] = str(self.seen)
        self._processes.append(worker)
        worker.start()
        return worker

    def start_producer(self) -> subprocess.Popen:
        """Start the script above, far from the broker."""
        with self.cable.inside(self.cable.far):
            producer = subprocess.Popen([sys.executable, "-c", PRODUCER], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **self.broker.client_env})
        self._processes.append(producer)
        return producer

    def peer(self, place: str, **hello: object) -> RawPeer:
        """Connect as a raw peer from there."""
        with self.cable.inside(place):
            return RawPeer(self.broker, **hello)

    def events(self, op: str) -> list[dict]:
        """Return what the tasks noted so far."""
        return [event for line in self.seen.read_text().splitlines() if (event := json.loads(line))["op"] == op]

    def end(self) -> None:
        """End all processes."""
        for process in self._processes:
            if isinstance(process, WorkerProcess):
                process.end()
            else:
                process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()
        self.broker.end()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        skip_or_fail("network namespaces need root and `ip` (Debian: iproute2)")
    cable = Cable()
    made: Scene | None = None
    try:
        try:
            cable.lay()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
            skip_or_fail(f"no network namespaces here: {exc} {exc.stderr}")
        made = Scene(cable, tmp_path)
        made.broker.start()
        yield made
    finally:
        if made is not None:
            made.end()
        cable.remove()


def submit(peer: RawPeer, *tasks: str) -> list[int]:
    """Submit a job for each task, its own name being its key."""
    payloads = {"hold": pack_value({"key": "hold"}), "record": pack_value({"key": "record", "seconds": 0.0})}
    return peer.call("submit", jobs=[{"task": task, "payload": payloads[task]} for task in tasks])["jobs"]


def test_a_worker_on_a_pulled_cable_stops_its_job_before_another_gets_it_and_comes_back(scene: Scene) -> None:
    far = scene.start_worker(scene.cable.far, "far")
    near = scene.peer(scene.cable.hub)
    submit(near, "hold")
    until(lambda: scene.events("reserve"), "the far worker runs it")
    scene.start_worker(scene.cable.hub, "heir")
    began = time.monotonic()

    scene.cable.pull()

    until(lambda: scene.events("stopped"), "the far worker told it to stop", LEASE_S + SLACK_S)
    stopped_s = time.monotonic() - began
    until(lambda: len(scene.events("reserve")) == 2, "the broker gave it to the heir", LEASE_S + SLACK_S)
    given_s = time.monotonic() - began
    until(lambda: "was silent" in far.output, "the far worker noticed", SLACK_S)
    noticed_s = time.monotonic() - began
    print(f"stopped after {stopped_s:.1f} s, given to another after {given_s:.1f} s, noticed after {noticed_s:.1f} s")
    assert scene.events("stopped")[0]["at"] < scene.events("reserve")[1]["at"], "two worked on one job"
    assert max(given_s, noticed_s) < 3 * HEARTBEAT_S + SLACK_S

    scene.cable.plug_in()
    until(lambda: "connected again" in far.output, "the far worker came back")
    assert submit(near, "record")
    until(lambda: scene.broker.stats()["states"]["completed"] == 1, "work goes on")
    until(lambda: [worker["name"] for worker in scene.broker.get("/api/workers")[1]["workers"]
                   if worker["status"] != "lost"] in (["far", "heir"], ["heir", "far"]), "it is there once")


def test_a_producer_on_a_pulled_cable_goes_on_when_it_is_plugged_in_and_stores_nothing_twice(scene: Scene) -> None:
    producer = scene.start_producer()
    scene.start_worker(scene.cable.hub, "near")
    lines = [json.loads(producer.stdout.readline()) for _ in range(5)]
    scene.cable.pull()
    stored = until(lambda: scene.broker.stats()["total"], "some are stored")

    time.sleep(1.5)  # the length of the outage is what is tested
    assert scene.broker.stats()["total"] <= stored + 5
    scene.cable.plug_in()

    lines += [json.loads(producer.stdout.readline()) for _ in range(5)]
    rest, _ = producer.communicate("", timeout=20)
    lines += [json.loads(line) for line in rest.splitlines()]
    ids = [job for jobs, _ in lines for job in jobs]
    print(f"{len(ids)} jobs, the slowest submit took {max(seconds for _, seconds in lines):.1f} s")
    assert max(seconds for _, seconds in lines) >= 1.0 and producer.returncode == 0
    until(lambda: scene.broker.stats()["states"]["completed"] == len(ids), "all ran")
    assert len(set(ids)) == len(ids) == scene.broker.stats()["total"]


def test_a_broker_that_vanished_with_its_host_is_found_again_when_it_is_back(scene: Scene) -> None:
    far = scene.start_worker(scene.cable.far, "far")
    scene.cable.pull()
    scene.broker.kill()  # its kernel's last word gets nowhere
    scene.broker.start()
    assert submit(scene.peer(scene.cable.hub), "record")
    scene.cable.plug_in()

    until(lambda: "connected again" in far.output, "the worker came back")
    until(lambda: scene.broker.stats()["states"]["completed"] == 1, "and works")


@pytest.mark.long
@pytest.mark.timeout(180)
def test_vanished_peers_are_reaped_in_time_and_their_jobs_go_back(scene: Scene) -> None:
    cable, broker = scene.cable, scene.broker
    near = scene.peer(cable.hub)
    submit(near, *["hold"] * 10)
    files = len(os.listdir(f"/proc/{broker.pid}/fd"))
    worker = scene.start_worker(cable.far, "far")
    idle = scene.peer(cable.far)
    parked = scene.peer(cable.far, role="worker", tasks=["nobody-has-this"])
    parked.send("reserve", n=1, wait=60)
    waiting = scene.peer(cable.far)
    waiting.send("wait", jobs=[1], wait=60)
    holding = scene.peer(cable.far, role="worker", tasks=["hold"])
    assert holding.call("reserve", n=3, wait=0)["jobs"]
    until(lambda: broker.stats()["states"]["running"] > 3, "jobs run on both workers")
    assert broker.stats()["connections"] == 6

    cable.pull()
    began = time.monotonic()
    worker.kill()
    for peer in (idle, parked, waiting, holding):
        peer.close()
    ip("netns", "delete", cable.far)

    def ping() -> dict:
        near.call("ping")  # a live peer beside them is not reaped
        return broker.stats()

    until(lambda: ping()["states"]["running"] == 0, "their leases went back", LEASE_S + SLACK_S)
    back_s = time.monotonic() - began
    until(lambda: ping()["connections"] == 1, "their connections are gone", REAPED_WITHIN_S + SLACK_S)
    print(f"leases back after {back_s:.1f} s, connections reaped after {time.monotonic() - began:.1f} s")
    until(lambda: len(os.listdir(f"/proc/{broker.pid}/fd")) <= files, "their files are closed")
    assert "Traceback" not in broker.output
