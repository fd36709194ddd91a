"""Peers that behave badly, and the others who must not notice: slow, silent, greedy, gone in the middle of anything."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.protocol import encode_frame
from tests.processes import ROOT, BrokerProcess, RawPeer, until

BROKEN = ROOT / "tests/broken_broker.py"
MIB = 2**20
RESET = struct.pack("ii", 1, 0)


def files(broker: BrokerProcess) -> int:
    return len(os.listdir(f"/proc/{broker.pid}/fd"))


def memory(broker: BrokerProcess) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{broker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ping_s(peer: RawPeer) -> float:
    began = time.perf_counter()
    assert "error" not in peer.call("ping")
    return time.perf_counter() - began


def finished_jobs(broker: BrokerProcess, count: int, result: bytes) -> list[int]:
    """Jobs that are completed with this result."""
    client, worker = broker.connect(), broker.connect(role="worker", tasks=["t"])
    ids = client.call("submit", jobs=[{"task": "t", "payload": b""} for _ in range(count)])["jobs"]
    for _ in ids:
        job, fence = worker.call("reserve", n=1, wait=5)["jobs"][0][:2]
        assert "error" not in worker.call("settle", leases=[[job, fence, "ack", result]])
    for peer in (client, worker):
        peer.call("bye")
        peer.close()
    return ids


# -- peers that don't read --------------------------------------------------------------------------------------------------


def test_a_peer_that_never_reads_is_dropped_with_its_buffers_bounded(broker: BrokerProcess) -> None:
    ids = finished_jobs(broker, 4, os.urandom(MIB))
    friend = broker.connect()
    ping_s(friend)
    files_before, memory_before = files(broker), memory(broker)
    greedy = broker.connect()
    most, slowest_s = memory_before, 0.0

    with contextlib.suppress(OSError):
        for number in range(400):  # 800 MiB of answers
            greedy.send("get", jobs=ids[:2])
            if number % 4 == 0:
                slowest_s = max(slowest_s, ping_s(friend))
                most = max(most, memory(broker))

    until(lambda: broker.stats()["connections"] == 1, "the greedy one is gone")
    print(f"memory grew by {(most - memory_before) / MIB:.1f} MiB, slowest ping of another {slowest_s * 1000:.1f} ms")
    assert most - memory_before < 100 * MIB
    assert slowest_s < 1.0
    greedy.close()
    until(lambda: files(broker) == files_before, "its socket is closed")
    assert "Traceback" not in broker.output


def test_a_peer_that_asks_for_much_in_one_burst_and_stops_is_gone_too(broker: BrokerProcess) -> None:
    # Its own greenlet finds that the bound is passed, and nothing more arrives that could wake it.
    ids = finished_jobs(broker, 2, os.urandom(MIB))
    greedy = broker.connect()

    greedy.sock.sendall(b"".join(encode_frame({"verb": "get", "id": number, "jobs": ids}) for number in range(2, 40)))

    until(lambda: broker.stats()["connections"] == 0, "the greedy one is gone", 15)
    greedy.close()


def test_a_slow_reader_who_keeps_reading_gets_everything(broker: BrokerProcess) -> None:
    result = os.urandom(MIB)
    ids = finished_jobs(broker, 1, result)
    slow = broker.connect()
    numbers = [slow.send("get", jobs=ids) for _ in range(6)]

    for number in numbers:
        while not any(message.get("id") == number for message in slow.messages):
            slow.messages += slow.frames.feed(slow.sock.recv(8192))
            time.sleep(0.0005)  # the reader's slowness is what is tested
        assert slow.reply(number)["jobs"][0]["result"] == result
    slow.close()


# -- deadlines --------------------------------------------------------------------------------------------------------------


class Sender(threading.Thread):
    """Sends bytes from a function until the broker closes.

    Attributes:
        ended_s: when that was, after the start; None if it didn't happen.
    """

    def __init__(self, peer: RawPeer, piece: Callable[[], bytes], pause_s: float, within_s: float) -> None:
        super().__init__()
        self._peer, self._piece, self._pause_s, self._within_s = peer, piece, pause_s, within_s
        self.ended_s: float | None = None
        self.start()

    def run(self) -> None:
        """Send, and look whether the broker closed."""
        began = time.monotonic()
        self._peer.sock.settimeout(self._pause_s)
        while time.monotonic() - began < self._within_s:
            try:
                self._peer.sock.sendall(self._piece())
                while self._peer.sock.recv(65536):
                    pass
            except TimeoutError:
                continue
            except OSError:
                pass
            self.ended_s = time.monotonic() - began
            return


def nothing() -> bytes:
    return b""


def test_each_deadline_ends_those_who_are_late_and_nobody_else(broker: BrokerProcess) -> None:
    silent = Sender(RawPeer(broker, say_hello=False), nothing, 0.1, 14)
    half = broker.connect()
    half.sock.sendall(b"\x00\x00\x01\x00half")
    half_frame = Sender(half, nothing, 0.1, 14)
    slow_peer = broker.connect()
    slow_peer.sock.sendall(b"\x00\x00\x10\x00")
    ten_bytes_a_second = Sender(slow_peer, lambda: b"x", 0.1, 14)

    # Never a moment in which no frame is partial, but each frame comes quickly.
    stream = encode_frame({"verb": "ping", "id": 1}) * 2000
    position = 3
    busy_peer = broker.connect()
    busy_peer.sock.sendall(stream[:position])

    def next_piece() -> bytes:
        nonlocal position
        size = len(stream) // 2000
        position += size
        return stream[position - size:position]

    streaming = Sender(busy_peer, next_piece, 0.05, 12.5)
    for sender in (silent, half_frame, ten_bytes_a_second, streaming):
        sender.join(20)
        sender._peer.close()

    assert silent.ended_s is not None and 4.5 < silent.ended_s < 9.0, "a peer that never greeted"
    assert half_frame.ended_s is not None and 9.0 < half_frame.ended_s < 14.0, "half a frame"
    assert ten_bytes_a_second.ended_s is not None and 9.0 < ten_bytes_a_second.ended_s < 14.0, "ten bytes a second"
    assert streaming.ended_s is None, "a peer whose frames come quickly was ended"


@pytest.mark.long
def test_an_idle_peer_is_ended_after_a_minute(broker: BrokerProcess) -> None:
    peer = broker.connect(timeout=90.0)
    began = time.monotonic()

    assert peer.closes()

    assert 59 < time.monotonic() - began < 65


def test_a_fatal_error_that_waits_for_a_commit_still_closes(broker: BrokerProcess) -> None:
    for _ in range(20):
        peer = broker.connect(timeout=5.0)

        peer.sock.sendall(encode_frame({"verb": "submit", "id": 2, "jobs": [{"task": "t", "payload": b""}] * 500})
                          + encode_frame({"verb": 5, "id": 3}))

        assert peer.closes(), "the connection stays open after a fatal error"
        peer.close()
    assert broker.stats()["connections"] == 0


def test_a_refused_greeting_is_answered_also_while_the_broker_commits(broker: BrokerProcess) -> None:
    flood = Flood(broker.connect(), SUBMITS)
    try:
        until(lambda: flood.bursts > 3, "the broker is busy")
        for _ in range(20):
            peer = RawPeer(broker, say_hello=False)
            assert peer.call("hello", version=1, role="king")["error"]["code"] == "INVALID"
            assert peer.closes()
            peer.close()
    finally:
        flood.stop()


# -- peers that go away -----------------------------------------------------------------------------------------------------


def leave_in_the_middle(broker: BrokerProcess, rng: random.Random, number: int) -> None:
    """Connect, get to some point, and vanish, politely or with a reset."""
    point = number % 8
    if point < 2:
        sock = socket.create_connection((broker.host, broker.port), timeout=10)
        sock.sendall(b"" if point else b"\x16\x03\x01\x02\x00\x01")
        peer = None
    else:
        peer = RawPeer(broker, say_hello=False)
        sock = peer.sock
        role = "worker" if point in (4, 6, 7) else "client"
        if point == 2:
            sock.sendall(encode_frame({"verb": "hello", "id": 1, "version": 1, "role": "client"})[:rng.randrange(1, 20)])
        else:
            peer.call("hello", version=1, role=role, tasks=["t"], instance=rng.randbytes(16))
        if point == 3:
            sock.sendall(encode_frame({"verb": "submit", "id": 9, "jobs": [{"task": "never", "payload": bytes(5000)}]})[:3000])
        elif point == 4:
            peer.send("reserve", n=5, wait=60, tasks=["nobody-has-this"])
        elif point == 5:
            peer.send("wait", jobs=[1], wait=60)
        elif point == 6:
            peer.call("reserve", n=1, wait=0)
        elif point == 7:
            peer.send("jobs", limit=1000)
    if rng.random() < 0.5:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def test_five_hundred_peers_that_leave_in_the_middle_leave_nothing_behind(make_broker: Callable[..., BrokerProcess]) -> None:
    seed = 6
    rng = random.Random(seed)
    broker = make_broker("--reconnect-grace-s", "0.05")
    friend = broker.connect()
    friend.call("submit", jobs=[{"task": "t", "payload": b"x"}] * 50)
    for number in range(60):
        leave_in_the_middle(broker, rng, number)  # what is made once is made
    until(lambda: broker.stats()["connections"] == 1, "only the friend is there")
    files_before, memory_before = files(broker), memory(broker)

    for number in range(500):
        leave_in_the_middle(broker, rng, number)

    until(lambda: broker.stats()["connections"] == 1, f"all are forgotten (seed {seed})")
    until(lambda: files(broker) <= files_before, f"all files are closed (seed {seed})")
    # A job whose holder vanished five times is failed as a crash loop; none may stay running.
    until(lambda: broker.stats()["states"]["queued"] + broker.stats()["states"]["failed"] == 50, "no lease is left")
    grown = memory(broker) - memory_before
    print(f"memory grew by {grown / 1024:.0f} KiB over 500 peers")
    assert grown < 20 * MIB
    assert "Traceback" not in broker.output and "Error" not in broker.output.replace("SSLError", "")
    assert "error" not in friend.call("ping")


def test_waits_of_connections_that_ended_are_forgotten(broker: BrokerProcess) -> None:
    friend = broker.connect()
    ids = friend.call("submit", jobs=[{"task": "nobody", "payload": b""}] * 1000)["jobs"]

    waits = b"".join(encode_frame({"verb": "wait", "id": number, "jobs": ids, "wait": 60}) for number in range(2, 42))

    def open_and_leave(count: int) -> None:
        for _ in range(count):
            peer = broker.connect()
            peer.sock.sendall(waits)
            peer.call("ping")
            peer.close()
        until(lambda: broker.stats()["connections"] == 1, "they are gone")

    open_and_leave(5)
    before = memory(broker)
    open_and_leave(25)  # a thousand waits for a thousand jobs: 50 MiB if they stayed

    grown = memory(broker) - before
    print(f"memory grew by {grown / MIB:.1f} MiB over 1,000 waits")
    assert grown < 20 * MIB


def test_a_worker_that_connects_again_replaces_its_old_connection(broker: BrokerProcess) -> None:
    instance = bytes(range(16))
    first = broker.connect(role="worker", tasks=["t"], instance=instance, timeout=5.0)

    for _ in range(20):
        second = broker.connect(role="worker", tasks=["t"], instance=instance, timeout=5.0)
        assert first.closes(), "the old connection stays"
        first.close()
        first = second

    assert "error" not in first.call("ping")
    until(lambda: broker.stats()["connections"] == 1, "only the last is there")
    first.close()


def test_being_replaced_while_a_page_is_read_harms_nobody(broker: BrokerProcess) -> None:
    friend = broker.connect()
    for _ in range(5):
        friend.call("submit", jobs=[{"task": "t", "payload": bytes(400)}] * 1000)
    instance = bytes(range(16))
    first = broker.connect(role="worker", instance=instance)

    for _ in range(15):
        for _ in range(3):
            first.send("jobs", limit=1000)
        asked = [friend.send("jobs", limit=1000) for _ in range(3)]
        second = broker.connect(role="worker", instance=instance)
        first.close()
        first = second
        pages = [friend.reply(number) for number in asked]
        assert not [page["error"] for page in pages if "error" in page]

    assert "Traceback" not in broker.output
    assert broker.get("/api/jobs?limit=10")[0] == 200
    first.close()


# -- greedy peers -----------------------------------------------------------------------------------------------------------


class Flood(threading.Thread):
    """Sends one burst of frames after the other and reads away the answers, until told to stop."""

    def __init__(self, peer: RawPeer, burst: bytes) -> None:
        super().__init__()
        self._peer, self._burst = peer, burst
        self.ended = threading.Event()
        self.bursts = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.start()

    def run(self) -> None:
        """Send."""
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                self._peer.sock.sendall(self._burst)
                self.bursts += 1

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._peer.sock.recv(MIB):
                pass

    def stop(self) -> None:
        """Stop and wait for both threads."""
        self.ended.set()
        with contextlib.suppress(OSError):
            self._peer.sock.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._reader.join(10)
        self._peer.close()


PINGS = encode_frame({"verb": "ping", "id": 1}) * 3000
SUBMITS = b"".join(encode_frame({"verb": "submit", "id": number, "jobs": [{"task": "t", "payload": bytes(100)}] * 50})
                   for number in range(1, 12))


@pytest.mark.parametrize("burst", [PINGS, SUBMITS], ids=["pings", "submits"])
def test_a_peer_that_floods_does_not_starve_another(broker: BrokerProcess, burst: bytes) -> None:
    friend = broker.connect()
    ping_s(friend)
    flood = Flood(broker.connect(), burst)
    pings = []
    try:
        until(lambda: flood.bursts > 3, "the flood has begun")
        ends_at = time.monotonic() + 2.0
        while time.monotonic() < ends_at:
            pings.append(ping_s(friend))
    finally:
        flood.stop()

    pings.sort()
    print(f"{flood.bursts} bursts; {len(pings)} pings beside them: p50 {pings[len(pings) // 2] * 1000:.1f} ms, "
          f"p99 {pings[len(pings) * 99 // 100] * 1000:.1f} ms, max {pings[-1] * 1000:.1f} ms")
    assert len(pings) > 5 and pings[-1] < 1.0
    assert "Traceback" not in broker.output


def test_questions_about_jobs_on_disk_do_not_pile_up_without_bound(broker: BrokerProcess) -> None:
    friend = broker.connect()
    friend.call("submit", jobs=[{"task": "t", "payload": b""}])
    before = memory(broker)
    absent = list(range(10_000, 11_000))
    flood = Flood(broker.connect(), encode_frame({"verb": "get", "id": 1, "jobs": absent}) * 20)
    most, slowest_s = before, 0.0
    try:
        ends_at = time.monotonic() + 4.0
        while time.monotonic() < ends_at:
            slowest_s = max(slowest_s, ping_s(friend))
            most = max(most, memory(broker))
    finally:
        flood.stop()

    print(f"{flood.bursts} bursts; memory grew by {(most - before) / MIB:.1f} MiB, slowest ping {slowest_s * 1000:.1f} ms")
    assert most - before < 150 * MIB
    assert slowest_s < 1.0


def test_answers_that_wait_for_a_hanging_disk_do_not_pile_up_without_bound(make_broker: Callable[..., BrokerProcess],
                                                                           tmp_path: Path) -> None:
    broker = make_broker(env={"BREAK": f"hang-sync:{tmp_path / 'now'}"}, program=BROKEN)
    peer, worker = broker.connect(), broker.connect(role="worker", tasks=["t0"])
    peer.call("submit", jobs=[{"task": "t0", "queue": f"q{number}", "payload": b""} for number in range(1000)])
    lease = worker.call("reserve", n=1)["jobs"][0][:2]
    (tmp_path / "now").touch()
    peer.send("submit", jobs=[{"task": "t0", "payload": b""}])
    until(lambda: "the disk hangs" in broker.output, "a COMMIT hangs")
    before = memory(broker)

    refused = None
    for _ in range(200):  # each answer tells of 1,000 queues
        request = peer.send("queues")
        peer.call("ping")
        refused = next((message for message in peer.messages if message["id"] == request), None)
        if refused is not None:
            break

    print(f"memory grew by {(memory(broker) - before) / MIB:.1f} MiB")
    assert refused is not None and refused["error"]["code"] == "BUSY"
    assert memory(broker) - before < 256 * MIB
    assert peer.call("stats")["error"]["code"] == "BUSY"
    assert worker.call("heartbeat", leases=[lease]) == {"id": worker._next_id, "lost": [], "cancel": []}
