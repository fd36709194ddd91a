"""greenroom/tls_pipe.py against the standard library's client, both without sockets: any cut of the bytes, and what is refused."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest

from greenroom.tls import client_context, rejection_reason, server_context
from greenroom.tls_pipe import BYTES_PER_EMPTY_RECORD, MAX_EMPTY_RECORDS, MAX_HANDSHAKE_BYTES, TlsPipe
from tests.faults.tls_records import CIPHER, Sealer

SEED = 20_251_103


class Both:
    """A client and the pipe under test, with what passed between them.

    Attributes:
        pipe: the server's side. sealer: makes the client's records after the handshake.
    """

    def __init__(self, certificates: Path, folder: Path, *, piece: int = 10**9) -> None:
        context = client_context(certificates / "ca.crt")
        context.keylog_filename = str(folder / "keys.log")
        self.pipe = TlsPipe(server_context(certificates / "server.crt", certificates / "server.key"))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        is_done = False
        while not is_done:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            flight = self._out.read()
            for start in range(0, len(flight), piece):
                is_done = self.pipe.shake(flight[start:start + piece])
            self._in.write(self.pipe.outgoing())
        assert self.client.cipher()[0] == CIPHER and self.pipe.selected_alpn_protocol() == "greenroom/1"
        self.sealer = Sealer(folder / "keys.log")

    def sent(self, data: bytes) -> bytes:
        """Return what the client sends for this."""
        self.client.write(data)
        return self._out.read()

    def read(self, sealed: bytes) -> bytes:
        """Return what the client reads from this."""
        self._in.write(sealed)
        data = b""
        while self._in.pending or data == b"":
            data += self.client.read(65536)
        return data


@pytest.fixture
def both(certificates: Path, tmp_path: Path) -> Both:
    return Both(certificates, tmp_path)


def opened(pipe: TlsPipe, raw: bytes) -> bytes:
    pieces: list[bytes] = []
    pipe.open(raw, pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_a_handshake_may_come_in_any_pieces(certificates: Path, tmp_path: Path, piece: int) -> None:
    both = Both(certificates, tmp_path, piece=piece)

    assert opened(both.pipe, both.sent(b"hello")) == b"hello"
    assert both.read(both.pipe.seal(b"welcome")) == b"welcome"


def test_data_may_come_in_any_pieces_and_whatever_is_whole_comes_out(both: Both) -> None:
    rng = random.Random(SEED)
    data = rng.randbytes(100_000)
    raw = b"".join(both.sent(data[start:start + 700]) for start in range(0, 50_000, 700)) + both.sent(data[50_400:])
    got, position = b"", 0
    while position < len(raw):
        size = rng.choice((1, 2, 5, 22, 700, 20_000))
        got += opened(both.pipe, raw[position:position + size])
        position += size

    assert got == data, f"seed {SEED}"


def test_data_that_came_together_with_the_end_of_the_handshake_is_not_lost(certificates: Path) -> None:
    pipe = TlsPipe(server_context(certificates / "server.crt", certificates / "server.key"))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(certificates / "ca.crt").wrap_bio(to_client, to_server, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    assert not pipe.shake(to_server.read())
    to_client.write(pipe.outgoing())
    client.do_handshake()
    client.write(b"early")

    assert pipe.shake(to_server.read()) and pipe.has_more
    assert opened(pipe, b"") == b"early" and not pipe.has_more


def test_close_notify_ends_it_and_what_came_before_is_read(both: Both) -> None:
    raw = both.sent(b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        both.client.unwrap()

    assert opened(both.pipe, raw + both._out.read()) == b"bye" and both.pipe.ended


def test_some_key_updates_are_answered_and_change_nothing(both: Both) -> None:
    raw = b"".join(both.sealer.key_update() + both.sealer.seal(b"%d " % number) for number in range(MAX_EMPTY_RECORDS))

    assert opened(both.pipe, raw) == b"".join(b"%d " % number for number in range(MAX_EMPTY_RECORDS))
    assert both.read(both.pipe.outgoing() + both.pipe.seal(b"still here")) == b"still here"


@pytest.mark.parametrize("between", [b"", b"x"], ids=["nothing but key updates", "a byte of data between them"])
def test_more_key_updates_than_data_deserves_end_it(both: Both, between: bytes) -> None:
    raw = b"".join(both.sealer.key_update() + (both.sealer.seal(between) if between else b"") for _ in range(MAX_EMPTY_RECORDS + 1))
    pieces: list[bytes] = []

    with pytest.raises(ConnectionAbortedError, match="without data"):
        both.pipe.open(raw, pieces)

    assert b"".join(pieces) == between * MAX_EMPTY_RECORDS


def test_empty_records_count_like_key_updates_and_data_earns_more_of_them(both: Both) -> None:
    empty = b"".join(both.sealer.seal(b"") for _ in range(MAX_EMPTY_RECORDS))
    assert opened(both.pipe, empty) == b""
    data = b"".join(both.sealer.seal(bytes(16_000)) for _ in range(1 + BYTES_PER_EMPTY_RECORD // 16_000))
    opened(both.pipe, data)

    assert opened(both.pipe, both.sealer.key_update()) == b""
    with pytest.raises(ConnectionAbortedError):
        opened(both.pipe, both.sealer.key_update())


@pytest.mark.parametrize("raw", [b"\x17\x03\x03\x00\x40" + bytes(0x40), b"\x17\x03\x03\xff\xff" + bytes(10), b"garbage"])
def test_what_is_no_record_is_refused_after_the_good_ones_before_it(both: Both, raw: bytes) -> None:
    pieces: list[bytes] = []

    with pytest.raises(ssl.SSLError):
        both.pipe.open(both.sent(b"good") + raw, pieces)

    assert pieces == [b"good"]


def test_a_handshake_without_end_is_refused(certificates: Path) -> None:
    pipe = TlsPipe(server_context(certificates / "server.crt", certificates / "server.key"))
    piece = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(0x4000 - 4)  # the beginning of a ClientHello of 64 KiB

    with pytest.raises(ssl.SSLError):
        for _ in range(2 + MAX_HANDSHAKE_BYTES // len(piece)):
            pipe.shake(piece)


def test_the_end_in_the_middle_of_a_handshake_is_an_error(certificates: Path) -> None:
    pipe = TlsPipe(server_context(certificates / "server.crt", certificates / "server.key"))
    assert not pipe.shake(b"\x16\x03\x01\x02\x00\x01")

    with pytest.raises(ssl.SSLError) as caught:  # which one it is depends on Python's version
        pipe.shake(b"")
    assert rejection_reason(caught.value) == "closed"
