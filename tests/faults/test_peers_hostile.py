"""Peers that attack the transport itself: KeyUpdate floods, thousands of silent ones, impossible lengths, viewers that stall.

More such peers: tests/integration/test_peers.py (never reading, slow frames, floods) and test_door.py (strangers, resets, drips).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from greenroom.protocol import encode_frame
from greenroom.tls import client_context
from greenroom.webui.live import MAX_VIEWERS
from tests.faults.tls_records import CIPHER, Sealer
from tests.processes import BrokerProcess, RawPeer, until

MIB = 2**20
SEED = 20_251_104
UPDATES = 20_000
HANDSHAKE_DEADLINE_S = 5.0  # docs/protocol_v1.md, "Deadlines"


def files(broker: BrokerProcess) -> int:
    return len(os.listdir(f"/proc/{broker.pid}/fd"))


def memory(broker: BrokerProcess) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{broker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Pinger:
    """Pings as fast as it can, in a greenlet, while a test does something.

    Attributes:
        times: how long each ping took, in seconds, sorted after the end.
    """

    def __init__(self, peer: RawPeer) -> None:
        self.times: list[float] = []
        self._peer = peer
        self._ended = False

    def __enter__(self) -> Pinger:
        self._greenlet = gevent.spawn(self._run)
        return self

    def _run(self) -> None:
        while not self._ended:
            began = time.perf_counter()
            assert "error" not in self._peer.call("ping")
            self.times.append(time.perf_counter() - began)
            gevent.sleep(0.002)

    def __exit__(self, *details: object) -> None:
        self._ended = True
        self._greenlet.get(timeout=30)
        self.times.sort()

    @property
    def p99_s(self) -> float:
        """The 99th percentile."""
        return self.times[len(self.times) * 99 // 100]

    def __str__(self) -> str:
        return f"{len(self.times)} pings: p99 {self.p99_s * 1000:.1f} ms, max {self.times[-1] * 1000:.1f} ms"


# -- KeyUpdate (F28, G8) ----------------------------------------------------------------------------------------------------


class Updater:
    """A connection whose sending half is ours.

    Attributes:
        sock: the TLS socket; only for reading. raw: the TCP socket below it, for what the sealer made.
    """

    def __init__(self, broker: BrokerProcess, folder: Path, *, say_hello: bool) -> None:
        context = client_context(broker.ca)
        context.keylog_filename = str(folder / "keys.log")
        plain = socket.create_connection((broker.host, broker.port), timeout=10)
        self.sock = context.wrap_socket(plain, server_hostname="localhost")
        assert self.sock.cipher()[0] == CIPHER
        if say_hello:
            self.sock.sendall(encode_frame({"verb": "hello", "id": 1, "version": 1, "role": "client"}))
            assert self.sock.recv(65536)
        self.sealer = Sealer(folder / "keys.log", records=int(say_hello))
        self.raw = socket.socket(fileno=os.dup(self.sock.fileno()))

    def close(self) -> None:
        """Close both."""
        self.raw.close()
        self.sock.close()


@pytest.mark.parametrize(("say_hello", "reads"), [(False, False), (True, True)], ids=["before hello, never reading",
                                                                                      "after hello, reading all answers away"])
def test_a_flood_of_key_updates_ends_its_connection_and_nobody_else_notices(
        broker: BrokerProcess, tmp_path: Path, say_hello: bool, reads: bool) -> None:
    friend = broker.connect()
    friend.call("ping")
    files_before = files(broker)
    updater = Updater(broker, tmp_path, say_hello=say_hello)
    flood = b"".join(updater.sealer.key_update() for _ in range(UPDATES))
    if not reads:
        updater.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def read_away() -> None:
        with contextlib.suppress(OSError):
            while updater.raw.recv(65536):
                pass

    reader = gevent.spawn(read_away) if reads else None
    with Pinger(friend) as pinger:
        gevent.sleep(0.05)
        with contextlib.suppress(OSError):
            updater.raw.sendall(flood)
        until(lambda: broker.stats()["connections"] == 1, "the flooding one is gone")
        until(lambda: files(broker) <= files_before, "its socket is closed")

    print(f"{UPDATES} KeyUpdates; beside them {pinger}")
    assert pinger.times[-1] < 1.0, "the hub was held"  # 0.2 ms each: 4 s if all were answered
    assert "Traceback" not in broker.output
    updater.close()
    if reader is not None:
        reader.join(10)


def test_a_flood_of_key_updates_while_much_is_unsent_leaves_no_greenlet(broker: BrokerProcess, tmp_path: Path) -> None:
    # Its answers fill the kernel's buffer, a writer waits, and then the reader has to answer as well.
    friend = broker.connect()
    files_before = files(broker)
    ids = friend.call("submit", jobs=[{"task": "t", "payload": os.urandom(MIB // 2)}] * 2)["jobs"]
    updater = Updater(broker, tmp_path, say_hello=True)
    updater.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    question = encode_frame({"verb": "get", "id": 2, "jobs": ids, "payload": True})

    updater.raw.sendall(b"".join(updater.sealer.seal(question) for _ in range(6)))  # 6 MiB of answers
    with contextlib.suppress(OSError):
        updater.raw.sendall(b"".join(updater.sealer.key_update() for _ in range(2000)))

    until(lambda: broker.stats()["connections"] == 1, "it is gone")
    until(lambda: files(broker) <= files_before, "its socket is closed")
    assert "Traceback" not in broker.output
    updater.close()


def test_a_peer_that_changes_its_keys_now_and_then_is_served(broker: BrokerProcess, tmp_path: Path) -> None:
    updater = Updater(broker, tmp_path, say_hello=True)

    for number in range(2, 12):
        update = updater.sealer.key_update() if number % 2 else b""
        updater.raw.sendall(update + updater.sealer.seal(encode_frame({"verb": "ping", "id": number})))
        assert b"now" in updater.sock.recv(65536)
    updater.close()


# -- thousands of silent ones (F22) -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def strangers(broker: BrokerProcess, count: int) -> Iterator[list[socket.socket]]:
    socks = [socket.create_connection((broker.host, broker.port), timeout=20) for _ in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def drip(sock: socket.socket) -> None:
    """Send a ClientHello byte by byte until the broker closes."""
    with contextlib.suppress(OSError):
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            sock.sendall(bytes([byte]))
            gevent.sleep(0.2)


def test_two_thousand_silent_and_dripping_strangers_hinder_nobody_and_are_closed_in_time(broker: BrokerProcess) -> None:
    friend = broker.connect()
    with Pinger(friend) as alone:
        gevent.sleep(0.5)
    files_before = files(broker)
    began = time.monotonic()
    connects: list[float] = []
    with strangers(broker, 2000) as socks:
        drips = [gevent.spawn(drip, sock) for sock in socks[::20]]
        with Pinger(friend) as among:
            while time.monotonic() - began < HANDSHAKE_DEADLINE_S - 1:
                asked = time.perf_counter()
                broker.connect().close()
                connects.append(time.perf_counter() - asked)
                gevent.sleep(0.05)
        until(lambda: broker.stats()["connections"] == 1 and files(broker) <= files_before, "all are closed",
              HANDSHAKE_DEADLINE_S + 10)
        closed_s = time.monotonic() - began
        gevent.killall(drips)

    connects.sort()
    print(f"alone {alone}; among 2,000 strangers {among}; {len(connects)} connects, slowest {connects[-1] * 1000:.0f} ms; "
          f"all closed after {closed_s:.1f} s")
    assert among.times[-1] < 1.0 and connects[-1] < 2.0
    rejected = broker.get("/api/security")[1]["rejected"]
    assert rejected["timeout"] >= 1900 and sum(rejected.values()) == 2000, rejected
    assert "Traceback" not in broker.output


# -- impossible frames (F26) ------------------------------------------------------------------------------------------------


def test_impossible_lengths_and_versions_are_refused_before_anything_is_kept(broker: BrokerProcess) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    broker.connect().close()
    before = memory(broker)
    lengths = [2**32 - 1, 2**31, 2**31 - 1, 4 * MIB + 1, 0]
    for number in range(200):
        peer = broker.connect(timeout=5.0) if number % 2 else RawPeer(broker, say_hello=False, timeout=5.0)
        length = lengths[number % len(lengths)]
        peer.sock.sendall(struct.pack(">I", length) + rng.randbytes(rng.choice((0, 1, 4000))))
        assert peer.closes(), f"length {length} was not refused"
        peer.close()
    for version in (0, -1, 2**63 - 1, "1"):
        peer = RawPeer(broker, say_hello=False, timeout=5.0)
        assert peer.call("hello", version=version, role="client")["error"]["code"] in ("VERSION", "INVALID")
        peer.close()

    until(lambda: broker.stats()["connections"] == 0, "all are gone")
    print(f"memory grew by {(memory(broker) - before) / MIB:.1f} MiB")
    assert memory(broker) - before < 10 * MIB
    assert "Traceback" not in broker.output


# -- hundreds of viewers that stall (F50) -----------------------------------------------------------------------------------


def watch(broker: BrokerProcess) -> tuple[socket.socket, bytes]:
    """Open the event stream and read no further than the status."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", broker.web_port))
    sock.sendall(f"GET /api/events HTTP/1.1\r\nHost: localhost:{broker.web_port}\r\n\r\n".encode())
    return sock, sock.recv(12)[-3:]


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(180)])])
def test_hundreds_of_viewers_that_stall_cost_little_and_hold_up_nobody(make_broker: Callable[..., BrokerProcess],
                                                                      seconds: float) -> None:
    broker = make_broker()
    friend = broker.connect()
    friend.call("submit", jobs=[{"task": "t", "payload": os.urandom(400)}] * 200)
    broker.get("/api/stats")
    files_before, memory_before = files(broker), memory(broker)
    opened = [watch(broker) for _ in range(MAX_VIEWERS + 36)]
    viewers = [sock for sock, _ in opened]
    assert Counter(status for _, status in opened) == {b"200": MAX_VIEWERS, b"429": 36}
    most = 0
    ends_at = time.monotonic() + seconds
    with Pinger(friend) as pinger:
        while time.monotonic() < ends_at:
            assert broker.get("/api/stats")[0] == 200
            friend_jobs = broker.connect()
            friend_jobs.call("submit", jobs=[{"task": "t", "payload": os.urandom(400)}] * 10)  # something to tell each second
            friend_jobs.close()
            most = max(most, memory(broker))
            gevent.sleep(0.1)
    for viewer in viewers:
        viewer.close()

    print(f"memory grew by {(most - memory_before) / MIB:.1f} MiB; beside them {pinger}")
    assert most - memory_before < 40 * MIB
    assert pinger.times[-1] < 1.0
    until(lambda: files(broker) <= files_before, "all their sockets are closed", 30)
    assert "Traceback" not in broker.output
