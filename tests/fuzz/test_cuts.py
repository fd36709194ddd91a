"""Parsers get the same out of a stream whole, byte by byte and cut at every place (reliability T11): frames, TLS records, HTTP heads."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.protocol import PIECE_BYTES, FrameReader, encode_frame
from greenroom.webui.server import WebServer, serve
from tests.fuzz import seeds
from tests.fuzz.targets import SMALL_FRAME, frames, large_frames, reader
from tests.processes import BrokerProcess

PING = encode_frame({"verb": "ping", "id": 9})
VECTORS = seeds.vectors()
BAD = {name: data for name, data in VECTORS.items() if name.startswith("malformed")}


def taken(*chunks: bytes) -> tuple[str, str, bool]:
    """Return what a session's reader makes of chunks: messages, failure, whether a frame has begun."""
    frames = reader(SMALL_FRAME)
    messages = [message for chunk in chunks for message in frames.feed(chunk)]
    return repr(messages), repr(frames.failed), frames.is_partial


# -- frames ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_between_two_others_is_the_same_at_every_split(name: str) -> None:
    stream = PING + VECTORS[name] + PING
    whole = taken(stream)

    assert taken(*(stream[place:place + 1] for place in range(len(stream)))) == whole
    for place in range(len(stream) + 1):
        assert taken(stream[:place], stream[place:]) == whole


@pytest.mark.parametrize("body", seeds.HOSTILE_BODIES, ids=lambda body: body[:12].hex())
def test_a_hostile_body_is_the_same_at_every_split(body: bytes) -> None:
    stream = PING + len(body).to_bytes(4, "big") + body + PING
    whole = taken(stream)

    for place in range(len(stream) + 1):
        assert taken(stream[:place], stream[place:]) == whole
        assert taken(stream[:place], *(stream[at:at + 1] for at in range(place, len(stream)))) == whole


@pytest.mark.parametrize("name", [name for name in VECTORS if name not in ("malformed_empty", "malformed_too_long")])
def test_a_body_decoded_in_pieces_of_any_size_is_the_body_decoded_at_once(name: str) -> None:
    for size in range(32):
        large_frames(bytes([size]) + VECTORS[name][4:])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats() | st.text(max_size=10) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5), max_leaves=12)
MESSAGES = st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.integers(0, 255), st.binary(max_size=6))
def test_any_messages_then_any_bytes_are_the_same_however_they_are_cut(messages: list[dict], cut: int, rest: bytes) -> None:
    frames(bytes([cut]) + b"".join(map(encode_frame, messages)) + rest)
    for message in messages:
        large_frames(bytes([cut]) + encode_frame(message)[4:])
        large_frames(bytes([cut]) + encode_frame(message)[4:] + rest)


def test_a_large_frame_is_the_same_whole_and_in_cuts() -> None:
    seed = 20261125
    print(f"seed {seed}")
    rng = random.Random(seed)
    large = {"jobs": [{"task": "t", "payload": rng.randbytes(rng.randrange(300))} for _ in range(900)], "text": "ä" * PIECE_BYTES}
    stream = PING + encode_frame(large) + PING
    for _ in range(30):
        cuts = sorted(rng.choices(range(len(stream)), k=rng.randint(1, 20)))
        frames = FrameReader()
        told = [message for begin, end in zip([0, *cuts], [*cuts, len(stream)]) for message in frames.feed(stream[begin:end])]
        assert told == [{"verb": "ping", "id": 9}, large, {"verb": "ping", "id": 9}] and frames.failed is None


# -- TLS records -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, certificates: object) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path_factory.mktemp("cuts"), certificates, ("--data", "memory:"))
    broker.start()
    yield broker
    broker.end()


def test_requests_cut_into_two_records_at_every_place_are_answered_the_same(shared: BrokerProcess) -> None:
    peer = shared.connect(role="worker")
    requests = [{"verb": "get", "jobs": [2**52]}, {"verb": "nonsense"}, {"verb": "settle", "leases": [[1, 2, "ack", b"r"], [1]]}]

    def stream(first_id: int) -> bytes:
        return b"".join(encode_frame({**request, "id": first_id + number}) for number, request in enumerate(requests))

    def answers(first_id: int) -> list[dict]:
        return [peer.reply(first_id + number) | {"id": 0} for number in range(len(requests))]

    peer.sock.sendall(stream(1000))
    whole = answers(1000)
    for place in range(1, len(stream(1000))):
        first_id = 1000 + 10 * place
        peer.sock.sendall(stream(first_id)[:place])
        peer.sock.sendall(stream(first_id)[place:])
        assert answers(first_id) == whole
    peer.close()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_frame_ends_the_connection_with_the_same_words_at_every_split(shared: BrokerProcess, name: str) -> None:
    def told(*chunks: bytes) -> dict:
        peer = shared.connect()
        for chunk in chunks:
            peer.sock.sendall(chunk)
        assert "now" in peer.reply(9)
        error = peer.reply(0)["error"]
        assert peer.closes()
        return error

    stream = PING + BAD[name]
    whole = told(stream)

    assert whole["code"] == "PROTOCOL_ERROR" and whole["message"]
    for place in range(len(PING), len(stream)):
        assert told(stream[:place], stream[place:]) == whole


# -- HTTP heads ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    def app(environ: dict, start_response: object) -> list[bytes]:
        body = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode() + environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    server = serve(app, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop(0.1)


def http_answers(web: WebServer, *chunks: bytes) -> list[bytes]:
    """Return the answers to what is sent, without their dates."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=20.0) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for chunk in chunks:
            sock.sendall(chunk)
            if len(chunks) > 1:
                time.sleep(0.0005)  # the server is a greenlet of this process: let it read what has come so far
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return [line for line in answer.split(b"\r\n") if not line.startswith(b"Date:")]


@pytest.mark.parametrize("head", [head.encode("latin-1") for head in seeds.HEADS], ids=lambda head: repr(head[:24]))
def test_an_http_request_is_answered_the_same_at_every_split(web: WebServer, head: bytes) -> None:
    whole = http_answers(web, head)

    assert whole[0].startswith(b"HTTP/1.1 ")
    assert http_answers(web, *(head[place:place + 1] for place in range(len(head)))) == whole
    for place in range(1, len(head), 3 if len(head) > 100 else 1):
        assert http_answers(web, head[:place], head[place:]) == whole
