"""The broker's door: who is turned away, why, how that is counted and said, and that nobody else notices."""

from __future__ import annotations

import contextlib
import datetime
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.processes import ROOT, BrokerProcess, make_certificates, until

MakeBroker = Callable[..., BrokerProcess]
REJECTION = "[Server] SSLError – rejected non-TLS connection: "
CLIENT_HELLO_START = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
RESET = struct.pack("ii", 1, 0)


def rejected(broker: BrokerProcess) -> dict[str, int]:
    return broker.get("/api/security")[1]["rejected"]


def dial(broker: BrokerProcess, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection((broker.host, broker.port), timeout=timeout)


def is_closed(sock: socket.socket) -> bool:
    """Read to the end, which a reset also is; False if it doesn't come within the socket's timeout."""
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def trusting(ca: Path, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A careful client's context, not made by our code, that offers what it is told to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.set_alpn_protocols(["greenroom/1"])
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def attempt(broker: BrokerProcess, context: ssl.SSLContext) -> None:
    """Shake hands and read until the broker closes; fails if it doesn't."""
    with dial(broker) as raw, contextlib.suppress(ssl.SSLError, ConnectionError):
        with context.wrap_socket(raw, server_hostname="localhost") as sock:
            assert is_closed(sock)


def assert_serves(broker: BrokerProcess) -> None:
    peer = broker.connect()
    assert "error" not in peer.call("ping")
    peer.close()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of somebody else's CA."""
    return make_certificates(tmp_path_factory.mktemp("foreign"))


def send(data: bytes) -> Callable[[BrokerProcess], None]:
    def approach(broker: BrokerProcess) -> None:
        with dial(broker) as sock:
            sock.sendall(data)
            assert is_closed(sock), "the broker kept the connection"
    return approach


def old_tls(broker: BrokerProcess) -> None:
    context = trusting(Path(broker.ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    attempt(broker, context)


def without_alpn(broker: BrokerProcess) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(broker.ca)
    attempt(broker, context)


def with_wrong_alpn(broker: BrokerProcess) -> None:
    context = trusting(Path(broker.ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    attempt(broker, context)


def say_nothing_and_leave(broker: BrokerProcess) -> None:
    dial(broker).close()


def reset_at_once(broker: BrokerProcess) -> None:
    sock = dial(broker)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.sendall(b"\x16")
    sock.close()


APPROACHES: list[tuple[str, str, Callable[[BrokerProcess], None]]] = [
    ("plain HTTP", "plain_http", send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    ("an HTTP method that OpenSSL does not know", "plain_http", send(b"PATCH /jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    ("plain TCP", "plain_tcp", send(b"\x00\x00\x00\x10hello, are you there?")),
    ("garbage", "plain_tcp", send(bytes(range(255, 0, -1)) * 40)),
    ("TLS 1.2 at most", "old_tls", old_tls),
    ("TLS without ALPN", "alpn", without_alpn),
    ("TLS with a foreign ALPN", "alpn", with_wrong_alpn),
    ("a silent visit", "closed", say_nothing_and_leave),
]


def test_every_stranger_is_closed_and_counted_by_reason_and_the_broker_serves_on(broker: BrokerProcess, foreign: Path) -> None:
    friend = broker.connect()
    approaches = [*APPROACHES, ("a client that trusts another CA", "peer_refused_us",
                                lambda broker: attempt(broker, trusting(foreign / "ca.crt")))]
    for what, reason, approach in approaches:
        before = rejected(broker)

        approach(broker)

        until(lambda: rejected(broker) != before, f"{what} is counted")
        assert rejected(broker) == {**before, reason: before.get(reason, 0) + 1}, what
        assert "error" not in friend.call("ping")

    security = broker.get("/api/security")[1]
    assert security["rejected_total"] == len(approaches)
    assert [entry["reason"] for entry in security["recent"]] == [reason for _, reason, _ in reversed(approaches)]
    assert all(entry["peer"].startswith("127.0.0.1:") and abs(entry["at"] - time.time()) < 60 for entry in security["recent"])
    assert "Traceback" not in broker.output
    assert_serves(broker)


def test_refused_connections_make_one_line_in_five_seconds_that_says_how_many(broker: BrokerProcess) -> None:
    began = time.monotonic()
    for _ in range(200):
        reset_at_once(broker)
        send(b"GET / HTTP/1.0\r\n\r\n")(broker)
    until(lambda: broker.get("/api/security")[1]["rejected_total"] == 400, "they are counted")
    took_s = time.monotonic() - began

    first = broker.output.count(REJECTION)
    assert 1 <= first <= 1 + took_s / 5
    time.sleep(max(0.0, 5.1 - (time.monotonic() - began)))  # the limit's own length: nothing to wait on
    send(b"GET / HTTP/1.0\r\n\r\n")(broker)
    until(lambda: broker.output.count(REJECTION) > first, "the next line")

    lines = [line for line in broker.output.splitlines() if REJECTION in line]
    told = sum(1 + (int(line.rsplit("(and ", 1)[1].split()[0]) if "(and " in line else 0) for line in lines)
    assert told == broker.get("/api/security")[1]["rejected_total"]
    assert "peer=127.0.0.1:" in lines[0] and "reason=" in lines[0] and "WARNING" in lines[0]
    assert "Traceback" not in broker.output


def test_what_arrives_before_or_with_a_reset_leaves_no_traceback(broker: BrokerProcess) -> None:
    friend = broker.connect()
    slowest_s = 0.0
    for number in range(600):
        sock = dial(broker)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if number % 3:
            sock.sendall(CLIENT_HELLO_START if number % 3 == 1 else b"x")
        sock.close()
        if number % 20 == 0:
            began = time.perf_counter()
            friend.call("ping")
            broker.connect().close()
            slowest_s = max(slowest_s, time.perf_counter() - began)

    assert slowest_s < 1.0, "accepting stopped for a while"
    until(lambda: sum(rejected(broker).values()) == 600, f"they are counted: {rejected(broker)}")
    assert set(rejected(broker)) <= {"closed", "plain_tcp"}
    assert "Traceback" not in broker.output
    assert_serves(broker)


# -- client certificates ----------------------------------------------------------------------------------------------------


def client_pair(ca: Path, into: Path, *, not_after: datetime.datetime) -> tuple[Path, Path]:
    """Sign a client certificate with a validity of its own."""
    authority = x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    model = x509.load_pem_x509_certificate((ca / "test-client.crt").read_bytes())
    builder = (x509.CertificateBuilder().subject_name(model.subject).issuer_name(authority.subject)
               .public_key(model.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(not_after - datetime.timedelta(days=2)).not_valid_after(not_after))
    for extension in model.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path = into / "made.crt"
    path.write_bytes(builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path, ca / "test-client.key"


def test_with_a_client_ca_only_its_client_certificates_get_in(make_broker: MakeBroker, certificates: Path, foreign: Path,
                                                              tmp_path: Path) -> None:
    broker = make_broker("--client-ca", str(certificates / "ca.crt"))
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    pairs = [
        ("no certificate", "no_certificate", None),
        ("one of another CA", "unknown_ca", (foreign / "test-client.crt", foreign / "test-client.key")),
        ("an expired one", "bad_certificate", client_pair(certificates, tmp_path, not_after=yesterday)),
        ("a server's", "bad_certificate", (certificates / "server.crt", certificates / "server.key"))]

    for what, reason, pair in pairs:
        before = rejected(broker)
        attempt(broker, trusting(Path(broker.ca), pair))
        until(lambda: rejected(broker) != before, f"{what} is counted")
        assert rejected(broker) == {**before, reason: before.get(reason, 0) + 1}, what

    assert broker.get("/api/security")[1]["client_certificates"] == "required"
    assert "Traceback" not in broker.output
    assert_serves(broker)  # with its own client certificate


# -- deadlines and places ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent(broker: BrokerProcess, count: int) -> Iterator[list[socket.socket]]:
    socks = [dial(broker) for _ in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def test_silent_and_dripping_peers_are_closed_at_the_total_deadline_while_others_are_served(broker: BrokerProcess) -> None:
    began = time.monotonic()
    drip_ended: list[float] = []

    def drip() -> None:
        with dial(broker) as sock, contextlib.suppress(OSError):
            for byte in CLIENT_HELLO_START + bytes(100):
                sock.sendall(bytes([byte]))
                time.sleep(0.3)
        drip_ended.append(time.monotonic() - began)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with silent(broker, 500) as socks:
        slowest_s = 0.0
        while time.monotonic() - began < 4.0:
            asked = time.perf_counter()
            assert_serves(broker)
            slowest_s = max(slowest_s, time.perf_counter() - asked)
            time.sleep(0.05)
        for sock in socks:
            assert is_closed(sock)
        took_s = time.monotonic() - began
        dripping.join(10)

    print(f"slowest connect and ping {slowest_s * 1000:.1f} ms, silent peers closed after {took_s:.2f} s, drip {drip_ended}")
    assert slowest_s < 1.0
    assert 4.5 < took_s < 8.0
    assert drip_ended and 4.0 < drip_ended[0] < 8.0
    until(lambda: rejected(broker) == {"timeout": 501}, "all are counted")


def test_silent_peers_give_way_to_those_who_come_after_them(make_broker: MakeBroker) -> None:
    broker = make_broker("--max-connections", "30")
    with silent(broker, 60) as socks:
        began = time.monotonic()

        peers = [broker.connect() for _ in range(25)]

        assert time.monotonic() - began < 4.0, "they waited for the silent ones' deadline"
        assert all("error" not in peer.call("ping") for peer in peers)
        # On a slow machine some meet the deadline of their handshake first.
        until(lambda: sum(rejected(broker).values()) >= 55, "each that had to go is counted")
        assert is_closed(socks[0])
    for peer in peers:
        peer.close()


def test_beyond_the_cap_connections_are_closed_and_counted_and_room_is_used_again(make_broker: MakeBroker) -> None:
    broker = make_broker("--max-connections", "20")
    peers = [broker.connect() for _ in range(20)]

    for number in range(5):
        with dial(broker) as sock:
            assert is_closed(sock)
        until(lambda: rejected(broker).get("too_many") == number + 1, "it is counted")
    assert all("error" not in peer.call("ping") for peer in peers)
    assert broker.stats()["connections"] == 20

    peers.pop().close()
    until(lambda: broker.stats()["connections"] == 19, "the broker noticed")
    peers.append(broker.connect())
    for peer in peers:
        peer.close()


def test_a_broker_out_of_files_serves_on_and_accepts_again(make_broker: MakeBroker) -> None:
    broker = make_broker("--max-connections", "1000")
    friend = broker.connect()
    files = len(list(Path(f"/proc/{broker.pid}/fd").iterdir()))
    soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (files + 10, hard))

    with silent(broker, 40) as socks:
        until(lambda: re.search(r"cannot accept on port \d+: Too many open files", broker.output), "the broker says so")
        assert "error" not in friend.call("ping")
        assert "error" not in friend.call("submit", jobs=[{"task": "x"}])["jobs"]
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert_serves(broker)
        for sock in socks:
            assert is_closed(sock)

    assert broker.output.count("cannot accept") <= 3
    assert "Traceback" not in broker.output and broker.process.poll() is None


STORM = '''
"""Shake hands 300 times at once; print how many succeeded and the longest time."""
import asyncio, ssl, sys, time

async def one(context, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    return writer

async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(sys.argv[2])
    context.set_alpn_protocols(["greenroom/1"])
    began = time.perf_counter()
    done = await asyncio.gather(*(one(context, int(sys.argv[1])) for _ in range(300)), return_exceptions=True)
    print(sum(not isinstance(item, Exception) for item in done), round(time.perf_counter() - began, 3), flush=True)

asyncio.run(main())
'''


def test_a_storm_of_handshakes_succeeds_while_a_connected_peer_is_served(broker: BrokerProcess) -> None:
    friend = broker.connect()
    friend.call("ping")
    storm = subprocess.Popen([sys.executable, "-c", STORM, str(broker.port), broker.ca], stdout=subprocess.PIPE, text=True,
                             cwd=ROOT)
    pings: list[float] = []
    with storm:
        while storm.poll() is None:
            began = time.perf_counter()
            friend.call("ping")
            pings.append(time.perf_counter() - began)
        succeeded, took_s = storm.stdout.read().split()

    pings.sort()
    print(f"300 handshakes in {took_s} s; {len(pings)} pings beside them: p50 {pings[len(pings) // 2] * 1000:.2f} ms, "
          f"p99 {pings[len(pings) * 99 // 100] * 1000:.1f} ms, max {pings[-1] * 1000:.1f} ms")
    assert succeeded == "300"
    assert pings[-1] < 1.0
    assert broker.get("/api/security")[1]["handshakes"] >= 301
