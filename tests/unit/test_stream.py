"""What greenroom.stream promises of one connection, over real TLS on a socket pair."""

from __future__ import annotations

import gc
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import gevent.event
import pytest

from greenroom import stream as stream_module
from greenroom.stream import MAX_UNSENT_BYTES, Stream
from greenroom.tls import client_context, server_context
from greenroom.tls_pipe import TlsPipe

DEADLINE_S = 10.0


class Wire:
    """A Stream owned by a greenlet of its own that collects what it reads, and the peer at the other end.

    Attributes:
        stream: under test. peer: the other end, a blocking socket. owner: the greenlet. received: what it read.
        error: what ended its reading, or None at the end of the stream.
    """

    def __init__(self, near: socket.socket, tls: TlsPipe, peer: ssl.SSLSocket) -> None:
        self.peer = peer
        self.received = bytearray()
        self.error: BaseException | None = None
        self.fd = near.fileno()
        self._made = gevent.event.AsyncResult()
        self.owner = gevent.spawn(self._own, near, tls)
        self.stream: Stream = self._made.get(timeout=DEADLINE_S)

    def _own(self, near: socket.socket, tls: TlsPipe) -> None:
        stream = Stream(near, tls, lambda: 0.0)
        self._made.set(stream)
        try:
            while data := stream.read():
                self.received += data
            stream.finish(1.0)
        except (OSError, gevent.GreenletExit) as exc:
            self.error = exc
        finally:
            stream.close()

    def send(self, data: bytes) -> None:
        """Send as a session does."""
        self.stream.send(data)
        self.stream.flush()

    def ends(self) -> bool:
        """Say whether the owner ended in time."""
        self.owner.join(DEADLINE_S)
        return self.owner.dead


def shake(context: ssl.SSLContext, near: socket.socket) -> TlsPipe:
    """Shake hands as the server, as the listener does."""
    tls = TlsPipe(context)
    while not tls.shake(near.recv(4096)):
        near.sendall(tls.outgoing())
    near.sendall(tls.outgoing())
    near.settimeout(0.0)
    return tls


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, giving the hub its turns."""
    with gevent.Timeout(DEADLINE_S, AssertionError(what)):
        while not condition():
            gevent.sleep(0.001)


@pytest.fixture
def make_wire(certificates: Path) -> Iterator[Callable[..., Wire]]:
    """Make connected pairs; `small=True` gives the kernel little room."""
    made: list[Wire] = []
    server = server_context(certificates / "server.crt", certificates / "server.key")
    client = client_context(certificates / "ca.crt")

    def make(*, small: bool = False) -> Wire:
        raw_near, raw_peer = socket.socketpair()
        if small:
            for sock, option in ((raw_near, socket.SO_SNDBUF), (raw_peer, socket.SO_RCVBUF)):
                sock.setsockopt(socket.SOL_SOCKET, option, 8192)
        shaking = gevent.spawn(shake, server, raw_near)
        raw_peer.settimeout(DEADLINE_S)
        peer = client.wrap_socket(raw_peer, server_hostname="localhost")
        wire = Wire(raw_near, shaking.get(timeout=DEADLINE_S), peer)
        made.append(wire)
        return wire

    yield make
    for wire in made:
        wire.peer.close()
        assert wire.ends()


def read_exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    """Read so many bytes."""
    got = bytearray()
    while len(got) < size:
        piece = sock.recv(65536)
        assert piece, f"the stream ended after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


def test_bytes_of_every_size_arrive_in_both_directions(make_wire: Callable[..., Wire]) -> None:
    rng = random.Random(1)
    wire = make_wire()
    sizes = [1, 16383, 16384, 16385, 65536, 65537, 300_000]
    data = rng.randbytes(sum(sizes))

    sender = gevent.spawn(wire.peer.sendall, data)
    until(lambda: len(wire.received) == len(data), "all was received")
    sender.join()
    position = 0
    for size in sizes:
        wire.send(data[position:position + size])
        position += size

    assert bytes(wire.received) == data
    assert read_exactly(wire.peer, len(data)) == data


def test_a_refused_record_is_written_again_in_a_longer_buffer(make_wire: Callable[..., Wire]) -> None:
    # OpenSSL refuses a retry with other bytes or fewer; ours is joined with what was queued meanwhile.
    seed = 2
    rng = random.Random(seed)
    wire = make_wire(small=True)
    pieces = [rng.randbytes(rng.choice((1, 5, 100, 5000, 16384, 40_000))) for _ in range(300)]
    expected = b"".join(pieces)
    reader = gevent.spawn(read_exactly, wire.peer, len(expected))

    for piece in pieces:
        wire.send(piece)
        gevent.sleep(rng.choice((0, 0, 0.0003)))

    assert reader.get(timeout=DEADLINE_S) == expected, f"seed {seed}"
    until(lambda: wire.stream.unsent_bytes == 0, "nothing is counted as unsent")


def test_a_turn_of_writing_is_bounded(make_wire: Callable[..., Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WRITE_BYTES", 50_000)
    wire = make_wire()
    data = random.Random(3).randbytes(180_000)

    wire.stream.send(data[:100_000])
    for start in range(100_000, 180_000, 1000):
        wire.stream.send(data[start:start + 1000])
    wire.stream.flush()
    left = wire.stream.unsent_bytes

    assert 100_000 < left < len(data)
    assert read_exactly(wire.peer, len(data)) == data


def test_a_peer_that_never_reads_is_dropped_at_the_bound_while_the_writer_waits(make_wire: Callable[..., Wire]) -> None:
    wire = make_wire(small=True)
    piece = bytes(2**20)
    most = 0

    for _ in range(50):
        wire.send(piece)
        most = max(most, wire.stream.unsent_bytes)
        gevent.sleep(0)  # the writer is there, and stays refused
        if wire.stream.closed_because:
            break

    assert wire.stream.closed_because == "the peer reads too slowly"
    assert most <= MAX_UNSENT_BYTES + len(piece)
    assert wire.ends() and isinstance(wire.error, gevent.GreenletExit)
    assert wire.stream.unsent_bytes == 0


def test_an_owner_that_drops_its_own_peer_does_not_read_on(certificates: Path, make_wire: Callable[..., Wire]) -> None:
    # The owner isn't killed by itself, and the peer sends nothing more: only `read` can end it.
    wire = make_wire(small=True)
    original = wire.stream._clock

    def flood() -> float:
        wire.stream.send(bytes(MAX_UNSENT_BYTES + 2**20))
        wire.stream.flush()
        return original()

    wire.stream._clock = flood  # runs in the owner, after it received something
    wire.peer.sendall(b"x")

    assert wire.ends()
    assert isinstance(wire.error, ConnectionAbortedError) and "too slowly" in str(wire.error)


def test_the_write_deadline_ends_a_peer_that_stopped_reading(make_wire: Callable[..., Wire],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WRITE_DEADLINE_S", 0.1)
    wire = make_wire(small=True)

    wire.send(bytes(2**20))

    assert wire.ends()
    assert wire.stream.closed_because == "the peer reads too slowly"


def test_what_arrived_before_a_reset_is_read_first(certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw_peer = socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)
        raw_near, _ = listener.accept()
    server = server_context(certificates / "server.crt", certificates / "server.key")
    shaking = gevent.spawn(shake, server, raw_near)
    peer = client_context(certificates / "ca.crt").wrap_socket(raw_peer, server_hostname="localhost")
    tls = shaking.get(timeout=DEADLINE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    peer.sendall(b"the last words")
    peer.close()  # a reset
    wire = Wire(raw_near, tls, peer)

    assert wire.ends()
    assert bytes(wire.received) == b"the last words"


def test_a_peer_that_only_says_close_notify_ends_the_stream_though_tcp_stays_open(make_wire: Callable[..., Wire]) -> None:
    wire = make_wire()
    wire.peer.sendall(b"bye")
    wire.peer.settimeout(0.0)

    with pytest.raises(ssl.SSLWantReadError):
        wire.peer.unwrap()  # sends close_notify in the same burst, and waits for ours

    assert wire.ends() and wire.error is None
    assert bytes(wire.received) == b"bye"


def test_garbage_in_place_of_a_record_ends_the_stream(make_wire: Callable[..., Wire]) -> None:
    wire = make_wire()
    wire.peer.sendall(b"good")
    raw = socket.socket(fileno=wire.peer.detach())

    raw.sendall(b"\x17\x03\x03\x00\x40" + bytes(0x40))

    assert wire.ends()
    assert bytes(wire.received) == b"good"
    assert isinstance(wire.error, ConnectionAbortedError)
    raw.close()


def test_aborting_from_another_greenlet_ends_owner_and_writer(make_wire: Callable[..., Wire]) -> None:
    wire = make_wire(small=True)
    wire.send(bytes(2**20))
    writer = wire.stream._writer
    assert writer is not None

    gevent.spawn(wire.stream.abort, "because").join()

    assert wire.ends() and isinstance(wire.error, gevent.GreenletExit)
    writer.join(DEADLINE_S)
    assert writer.dead
    assert wire.stream.closed_because == "because"
    wire.stream.abort("again")
    assert wire.stream.closed_because == "because"


@pytest.mark.parametrize("started", [True, False], ids=["a writer that waits", "a writer that has not begun"])
def test_closing_takes_the_writer_along(make_wire: Callable[..., Wire], started: bool) -> None:
    wire = make_wire(small=True)
    wire.send(bytes(2**20))
    writer = wire.stream._writer
    if started:
        gevent.sleep(0)

    wire.owner.kill()

    until(lambda: writer.dead, "the writer is gone")
    assert writer.exception is None
    wire.send(b"more")  # a session that has not noticed yet
    assert wire.stream.unsent_bytes == 0


def test_finish_waits_for_what_is_unsent_but_not_for_ever(make_wire: Callable[..., Wire]) -> None:
    patient, stuck = make_wire(small=True), make_wire(small=True)
    data = random.Random(4).randbytes(500_000)
    for wire in (patient, stuck):
        wire.send(data)
        wire.peer.settimeout(0.0)
        with pytest.raises(ssl.SSLWantReadError):
            wire.peer.unwrap()  # the owner's read ends, so it finishes
    raw = socket.socket(fileno=stuck.peer.detach())

    assert stuck.ends()

    assert stuck.error is None and patient.error is None
    raw.close()


def test_many_ends_in_the_middle_leave_no_greenlet_and_no_file(make_wire: Callable[..., Wire]) -> None:
    seed = 5
    rng = random.Random(seed)
    gc.collect()
    before = sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())
    noises: list[tuple] = []
    old_print = gevent.get_hub().print_exception
    gevent.get_hub().print_exception = lambda *args: noises.append(args)
    try:
        for _ in range(60):
            wire = make_wire(small=rng.random() < 0.7)
            wire.send(bytes(rng.choice((10, 100_000, 2**20))))
            ends = [wire.peer.close, lambda wire=wire: wire.stream.abort("x"), lambda wire=wire: wire.owner.kill(block=False)]
            for end in rng.sample(ends, 2):
                end()
                gevent.sleep(rng.choice((0, 0.001)))
            assert wire.ends(), f"seed {seed}"
    finally:
        gevent.get_hub().print_exception = old_print
    gevent.sleep(0.01)
    after = sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())

    assert after <= before
    assert not noises
