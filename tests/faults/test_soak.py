"""A mixed load for as long as one likes, and what it leaves behind in the broker: memory, descriptors and threads must stay flat.

`./run test --long` runs it for half an hour, or for SOAK_SECONDS; everybody else gets a few seconds of it. Once a minute it
prints a line, at the end a summary. How flatness is judged: see `Samples`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import apsw
import gevent
import gevent.event
import pytest

from greenroom.client import Client
from tests.processes import BrokerProcess, RawPeer, WorkerProcess, until

MIB = 2**20
RESET = struct.pack("ii", 1, 0)
SEED = 20_251_106
SHORT_S = 8.0
LONG_S = float(os.environ.get("SOAK_SECONDS", "1800"))
#: What fills in the beginning and is bounded: 10,000 recently finished jobs, SQLite's page cache (64 MiB, some 8 minutes). In less
#: time all is warm-up.
WARM_UP_S = 500.0
SHORTEST_JUDGED_S = 2 * WARM_UP_S
#: Jobs of all producers together, at most so many a second: a soak is long, not hard.
JOBS_PER_S = 150
PARTS = ("produce", "produce_slow", "cancel", "browse", "watch", "stall", "churn", "visit")

MakeBroker = Callable[..., BrokerProcess]


class Vitals:
    """What /proc says of a process."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def memory(self) -> int:
        """Resident bytes."""
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """Open descriptors."""
        return len(os.listdir(self._proc / "fd"))

    def threads(self) -> int:
        """OS threads."""
        return len(os.listdir(self._proc / "task"))


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through (x, y)."""
    mean_x, mean_y = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Samples:
    """One sample a second; judged from the end of the warm-up on.

    Flat means: the least-squares line through memory rises by no more than 5 % of its mean (3 MiB if that is more) between the
    end of the warm-up and the end, the one through descriptors, connections being subtracted, by no more than 3, threads by none.
    """

    def __init__(self, broker: BrokerProcess) -> None:
        self.began = time.monotonic()
        self.memory: list[tuple[float, float]] = []
        self.files: list[tuple[float, float]] = []
        self.threads: list[tuple[float, float]] = []
        self.lags_ms: list[float] = []
        self.pings_ms: list[float] = []
        self._broker, self._vitals = broker, Vitals(broker.pid)
        self._friend = broker.connect()

    def take(self) -> dict:
        """Take one; returns the broker's stats."""
        asked = time.perf_counter()
        stats = self._friend.call("stats")
        self.pings_ms.append((time.perf_counter() - asked) * 1000)
        now = time.monotonic() - self.began
        self.memory.append((now, self._vitals.memory()))
        self.files.append((now, self._vitals.files() - stats["connections"]))
        self.threads.append((now, self._vitals.threads()))
        self.lags_ms.append(stats["hub"]["lag_ms"])
        return stats

    def close(self) -> None:
        """End the connection that asks."""
        self._friend.close()

    def line(self, stats: dict) -> str:
        """Return the figures of now."""
        states = stats["states"]
        return (f"soak {self.memory[-1][0]:5.0f} s: {self.memory[-1][1] / MIB:.1f} MiB, {self.files[-1][1]:.0f} files beside "
                f"{stats['connections']} connections, {self.threads[-1][1]:.0f} threads, lag {self.lags_ms[-1]:.1f} ms; "
                f"{states['completed']} completed, {states['cancelled']} cancelled, {stats['requeued']} came back")

    def summary(self) -> str:
        """Return how flat it was."""
        return (f"soak of {self.memory[-1][0]:.0f} s: memory {self._rise(self.memory) / MIB:+.2f} MiB of "
                f"{self._mean(self.memory) / MIB:.1f} after a warm-up of {self.warm_up_s:.0f} s, files "
                f"{self._rise(self.files):+.2f}, threads {self._rise(self.threads):+.2f}; hub lag p50 "
                f"{_percentile(self.lags_ms, 50):.1f} p99 {_percentile(self.lags_ms, 99):.1f} max {max(self.lags_ms):.1f} ms; "
                f"stats answered p99 {_percentile(self.pings_ms, 99):.1f} ms")

    @property
    def warm_up_s(self) -> float:
        """How long the warm-up was."""
        return min(WARM_UP_S, 0.5 * self.memory[-1][0])

    def _warm(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [point for point in points if point[0] >= self.warm_up_s]

    def _mean(self, points: list[tuple[float, float]]) -> float:
        return statistics.fmean(y for _, y in self._warm(points))

    def _rise(self, points: list[tuple[float, float]]) -> float:
        """Return how much the line through the points rises from the end of the warm-up to the end."""
        warm = self._warm(points)
        return slope(warm) * (warm[-1][0] - warm[0][0])

    def faults(self) -> list[str]:
        """Return what was not flat."""
        found = []
        if self._rise(self.memory) > max(3 * MIB, 0.05 * self._mean(self.memory)):
            found.append("memory grows")
        if self._rise(self.files) > 3:
            found.append("descriptors grow")
        if self._rise(self.threads) > 0.5:
            found.append("threads grow")
        return found


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


class Load:
    """Everything that uses the broker, each part a greenlet that does one thing again and again until the end.

    Attributes:
        done: what was done how often. errors: what went wrong; must stay empty.
    """

    def __init__(self, broker: BrokerProcess) -> None:
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._broker = broker
        self._ended = gevent.event.Event()
        self._client = Client(broker.url, ca=broker.ca)
        rng = random.Random(SEED)
        self._greenlets = [
            gevent.spawn(self._again, part, random.Random(rng.random()), pause_s)
            for part, pause_s in ((self._produce, 0.15), (self._produce, 0.15), (self._produce_slow, 0.5), (self._cancel, 0.3),
                                  (self._browse, 0.2), (self._watch, 0.1), (self._stall, 1.0), (self._churn, 0.05),
                                  (self._visit, 0.3))]

    def _again(self, part: Callable[[random.Random], None], rng: random.Random, pause_s: float) -> None:
        while not self._ended.is_set():
            try:
                part(rng)
                self.done[part.__name__.strip("_")] += 1
            except Exception as exc:
                self.errors.append(f"{part.__name__}: {type(exc).__name__}: {exc}")
                if len(self.errors) > 20:
                    return
            self._ended.wait(pause_s * rng.uniform(0.5, 1.5))

    def _produce(self, rng: random.Random) -> None:
        """Quick jobs in a batch, and their results."""
        texts = ["x" * rng.choice((1, 20, 20, 20, 3000)) + str(number) for number in range(int(JOBS_PER_S * 0.05))]
        handles = self._client.submit_many((("reverse_string", {"data": text}) for text in texts), priority=rng.randint(1, 10))
        for text, handle in zip(texts, handles, strict=True):
            assert handle.result(60) == text[::-1]
        self.done["results"] += len(handles)

    def _produce_slow(self, rng: random.Random) -> None:
        """A few that take a while, come later, or are large."""
        self._client.submit("slow_task", {"seconds": 0.2}, delay=rng.choice((None, 0.3))).result(60)
        large = os.urandom(50_000).hex()
        assert self._client.submit("to_uppercase", {"data": large}).result(60) == large.upper()

    def _cancel(self, rng: random.Random) -> None:
        """Jobs that nobody runs, cancelled again while somebody waits for them."""
        jobs = [("nobody-has-this", {"n": number}) for number in range(5)]
        handles = self._client.submit_many(jobs, delay=rng.choice((None, 100)))
        assert self._client.cancel([handle.id for handle in handles]) == ["cancelled"] * 5
        assert {view["state"] for view in self._client.wait([handle.id for handle in handles], 30)} == {"cancelled"}

    def _browse(self, rng: random.Random) -> None:
        path = rng.choice(("/", "/api/stats", "/api/jobs?limit=50", "/api/workers", "/api/queues", "/api/jobs/1"))
        connection = http.client.HTTPConnection("127.0.0.1", self._broker.web_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status in (200, 404, 410), f"{path}: {response.status}"

    def _watch(self, rng: random.Random) -> None:
        """Follow live events for a while."""
        with self._event_stream() as sock:
            ends_at, latest = time.monotonic() + rng.uniform(0.5, 4.0), b""
            while time.monotonic() < ends_at and not self._ended.is_set():
                data = sock.recv(65536)
                assert data, f"the stream of events ended after {latest[-200:]}"
                latest = data

    def _stall(self, rng: random.Random) -> None:
        """Open the stream of events and never read."""
        with self._event_stream():
            self._ended.wait(rng.uniform(1.0, 15.0))

    @contextlib.contextmanager
    def _event_stream(self) -> socket.socket:
        with socket.create_connection(("127.0.0.1", self._broker.web_port), timeout=30) as sock:
            sock.sendall(f"GET /api/events HTTP/1.1\r\nHost: localhost:{self._broker.web_port}\r\n\r\n".encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
            yield sock

    def _churn(self, rng: random.Random) -> None:
        """Connect, get to some point, and vanish."""
        point = rng.randrange(6)
        if point == 0:
            sock = socket.create_connection((self._broker.host, self._broker.port), timeout=30)
            sock.sendall(rng.choice((b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n")))
        else:
            role = rng.choice(("worker", "client")) if point < 4 else "worker"
            peer = RawPeer(self._broker, role=role, tasks=["nobody-has-that"], timeout=30.0)
            sock = peer.sock
            if point == 2:
                sock.sendall(b"\x00\x00\x10\x00 the beginning of a frame")
            elif point == 3:
                peer.send("wait", jobs=[1, 2, 3], wait=60)
            elif point == 4:
                peer.send("reserve", n=5, wait=60, tasks=["nobody-has-that"])
            elif point == 5:
                peer.call("bye")
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()

    def _visit(self, rng: random.Random) -> None:
        """A client of its own that comes, asks and goes."""
        with Client(self._broker.url, ca=self._broker.ca) as client:
            client.stats()
            client.queues()
            list(client.jobs(limit=20))

    def end(self) -> None:
        """Stop all parts, each at the end of what it does."""
        self._ended.set()
        gevent.joinall(self._greenlets, timeout=90)
        assert all(greenlet.dead for greenlet in self._greenlets), "a part of the load hangs"
        self._client.close()


def integrity(broker: BrokerProcess) -> str:
    """Ask the store of a broker that was stopped."""
    db = apsw.Connection(str(broker.data / "greenroom.db"), flags=apsw.SQLITE_OPEN_READWRITE)
    answer = db.pragma("integrity_check")
    db.close()
    return answer


FOR_LONG = pytest.param(LONG_S, marks=[pytest.mark.long, pytest.mark.timeout(LONG_S + 300)])


@pytest.mark.parametrize("seconds", [SHORT_S, FOR_LONG])
def test_a_mixed_load_leaves_memory_descriptors_and_threads_flat(
        make_broker: MakeBroker, start_worker: Callable[..., WorkerProcess], capsys: pytest.CaptureFixture,
        seconds: float) -> None:
    print("seed", SEED)
    broker = make_broker()
    for number, pool in enumerate(("thread", "process")):
        start_worker("--pool", pool, "--concurrency", "2", to=broker, name=f"{pool}-{number}")
    vitals = Vitals(broker.pid)
    files_before = vitals.files() - broker.stats()["connections"]
    samples, load = Samples(broker), Load(broker)
    try:
        next_line_at = 60.0
        while time.monotonic() - samples.began < seconds and not load.errors:
            gevent.sleep(1.0)
            stats = samples.take()
            if samples.memory[-1][0] >= next_line_at:
                next_line_at += 60.0
                with capsys.disabled():
                    print("\n" + samples.line(stats), end="", flush=True)
    finally:
        load.end()
    with capsys.disabled():
        print(f"\n{samples.line(samples.take())}\n{samples.summary()}; {dict(load.done)}", flush=True)

    assert load.errors == []
    assert min(load.done[part] for part in PARTS) > 0
    if seconds >= SHORTEST_JUDGED_S:
        assert samples.faults() == []
    samples.close()
    until(lambda: broker.stats()["connections"] == 2, "only the two workers are connected")
    until(lambda: vitals.files() - 2 <= files_before + 2, "all files are closed")  # a page reader's and a browser's may linger
    _assert_sound_at_the_end(broker, load)


def _assert_sound_at_the_end(broker: BrokerProcess, load: Load) -> None:
    """Every job is accounted for, and the broker stops cleanly over a sound store."""
    until(lambda: broker.stats()["states"]["running"] == 0, "what runs ends")
    stats = broker.stats()
    assert stats["states"]["completed"] >= load.done["results"]
    assert sum(stats["states"].values()) == stats["total"], stats
    assert "Traceback" not in broker.output and "ERROR" not in broker.output
    assert broker.terminate() == 0
    assert integrity(broker) == "ok"


@pytest.mark.parametrize("cycles", [600, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_connecting_and_leaving_thousands_of_times_leaves_nothing_behind(broker: BrokerProcess, cycles: int) -> None:
    vitals = Vitals(broker.pid)

    def cycle(number: int) -> None:
        peer = RawPeer(broker, role="worker" if number % 2 else "client")
        if number % 3 == 0:
            peer.call("bye")
        peer.close()

    def all_gone() -> None:
        until(lambda: broker.stats()["connections"] == 0, "all are forgotten")

    for number in range(200):
        cycle(number)  # what is made once is made
    all_gone()
    before = vitals.files(), vitals.threads(), vitals.memory()

    for number in range(cycles):
        cycle(number)
    all_gone()

    until(lambda: vitals.files() <= before[0], "all files are closed")
    grown = vitals.memory() - before[2]
    print(f"{cycles} connections: memory {grown / MIB:+.2f} MiB of {before[2] / MIB:.1f}, files {vitals.files() - before[0]:+d}, "
          f"threads {vitals.threads() - before[1]:+d}")
    assert vitals.threads() <= before[1]
    assert grown <= 0.02 * before[2], "memory grew by more than 2 %"
    assert "Traceback" not in broker.output
