"""The fault proxy itself: each fault does what it says and nothing else, or no test that uses it proves anything."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import CHUNK_BYTES, Passage, Proxy
from tests.processes import until

SEED = 20_251_101


class Pair:
    """A client of the proxy, and the server's end of the same connection."""

    def __init__(self, proxy: Proxy, listener: socket.socket) -> None:
        self.client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        self.server, _ = listener.accept()
        self.server.settimeout(10)
        self.passage: Passage = proxy.passages[-1]

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self.server.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy(listener.getsockname()[:2]) as made:
        yield made


@pytest.fixture
def pair(proxy: Proxy, listener: socket.socket) -> Iterator[Pair]:
    made = Pair(proxy, listener)
    yield made
    made.close()


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the end came too early"
        data += piece
    return data


def is_silent(sock: socket.socket, seconds: float = 0.3) -> bool:
    """True if nothing at all comes for so long, no end either."""
    before = sock.gettimeout()
    sock.settimeout(seconds)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(before)
    return False


def was_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_what_goes_in_comes_out_unchanged_in_both_directions(pair: Pair) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    up, down = rng.randbytes(3_000_000), rng.randbytes(2_000_000)
    senders = [threading.Thread(target=sock.sendall, args=(data,)) for sock, data in ((pair.client, up), (pair.server, down))]
    for sender in senders:
        sender.start()

    got_down: list[bytes] = []
    reader = threading.Thread(target=lambda: got_down.append(read(pair.client, len(down))))
    reader.start()
    assert read(pair.server, len(up)) == up
    for thread in (*senders, reader):
        thread.join(10)

    assert got_down == [down]
    assert (pair.passage.passed_up, pair.passage.passed_down) == (len(up), len(down))


def test_an_end_is_passed_on_and_the_other_direction_stays_open(pair: Pair) -> None:
    pair.client.sendall(b"last words")
    pair.client.shutdown(socket.SHUT_WR)

    assert read(pair.server, 10) == b"last words" and pair.server.recv(1) == b""
    pair.server.sendall(b"still here")
    assert read(pair.client, 10) == b"still here"
    pair.server.close()
    assert pair.client.recv(1) == b""
    until(lambda: not pair.passage.is_open, "both ends are closed")


def test_a_delay_holds_bytes_back(pair: Pair) -> None:
    pair.passage.down.delay_s = 0.3
    began = time.monotonic()
    pair.client.sendall(b"ping")
    read(pair.server, 4)
    up_s = time.monotonic() - began
    pair.server.sendall(b"pong")
    read(pair.client, 4)

    assert time.monotonic() - began - up_s >= 0.29


def test_a_drip_lets_so_many_bytes_a_second_through(pair: Pair) -> None:
    pair.passage.up.bytes_per_s = 1000.0
    began = time.monotonic()
    pair.client.sendall(bytes(500))
    read(pair.server, 500)
    took_s = time.monotonic() - began

    assert took_s >= 0.4
    pair.passage.heal()
    pair.client.sendall(bytes(500_000))  # would take eight minutes
    read(pair.server, 500_000)


def test_a_half_cut_stops_one_direction_alone_and_healing_lets_everything_through(pair: Pair) -> None:
    pair.passage.cut(down=False)
    pair.client.sendall(b"kept")
    pair.server.sendall(b"passes")

    assert read(pair.client, 6) == b"passes" and is_silent(pair.server)
    pair.passage.heal()
    assert read(pair.server, 4) == b"kept"


def test_a_full_cut_tells_nobody_anything_not_even_that_an_end_closed(pair: Pair) -> None:
    pair.passage.cut()
    pair.server.sendall(b"x")
    pair.client.close()

    assert is_silent(pair.server, 0.5) and pair.passage.is_open
    pair.passage.heal()
    assert pair.server.recv(1) == b""


def test_a_reset_reaches_both_ends(pair: Pair) -> None:
    pair.passage.reset()

    assert was_reset(pair.client) and was_reset(pair.server)
    assert not pair.passage.is_open


@pytest.mark.parametrize("after", [0, 1, 4321, CHUNK_BYTES + 1])
def test_a_reset_comes_at_exactly_the_byte_it_was_set_for(proxy: Proxy, listener: socket.socket, after: int) -> None:
    proxy.up.reset_after = after
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    server, _ = listener.accept()
    server.settimeout(10)
    with client, server:
        passage = (proxy.passages or [None])[-1]
        try:
            client.sendall(bytes(CHUNK_BYTES * 3))
        except OSError:
            pass  # it came while we sent

        assert was_reset(server)
        assert passage is None or passage.passed_up == after


def test_the_end_of_one_side_by_reset_is_a_reset_for_the_other(pair: Pair) -> None:
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.client.close()

    assert was_reset(pair.server)


def test_new_connections_get_the_proxy_s_rules_and_old_ones_keep_theirs(pair: Pair, proxy: Proxy,
                                                                        listener: socket.socket) -> None:
    proxy.up.is_cut = True
    second = Pair(proxy, listener)
    for one in (pair, second):
        one.client.sendall(b"x")

    assert read(pair.server, 1) == b"x" and is_silent(second.server)
    proxy.heal()
    assert read(second.server, 1) == b"x"
    second.close()


def test_refused_connections_are_reset(proxy: Proxy) -> None:
    proxy.refuses = True
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock:
        assert was_reset(sock)
    assert proxy.passages == []


def test_a_target_that_is_not_there_is_a_reset(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with Proxy(("127.0.0.1", port)) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock:
        assert was_reset(sock)


def test_the_proxy_itself_keeps_little_while_a_reader_is_slow(pair: Pair) -> None:
    pair.client.settimeout(1.0)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100_000_000:
            sent += pair.client.send(bytes(65536))

    assert len(pair.passage._ways[0].chunk) <= CHUNK_BYTES


def test_closing_ends_every_connection(proxy: Proxy, pair: Pair) -> None:
    proxy.close()

    assert was_reset(pair.client) and was_reset(pair.server)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=2)
