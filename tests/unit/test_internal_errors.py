"""A conversation meets a bug of ours: the request is answered, the peer goes on, and after three it is closed (reliability S22)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenroom import verbs
from greenroom.clock import Clock
from greenroom.conversation import MAX_INTERNAL_ERRORS, Conversation, Conversations
from greenroom.dispatch import Dispatch
from greenroom.engine import Engine
from greenroom.leases import Caps, Timing
from greenroom.protocol import FrameReader, encode_frame
from greenroom.stores import Retention
from greenroom.stores.memory import MemoryStore


class Outlet:
    """Keeps what the broker says."""

    unsent_bytes = 0
    received_at = 0.0

    def __init__(self) -> None:
        self.said: list[dict] = []

    def send(self, data: bytes) -> None:
        self.said += FrameReader().feed(data)

    def flush(self) -> None:
        pass

    def abort(self, why: str) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[Conversation]:
    store = MemoryStore(Retention())
    dispatch = Dispatch(Engine(Caps(), Timing()), store, Clock(), pytest.fail, None)
    dispatch.engine.restore(store.open(), dispatch.now(), 60.0)
    dispatch.start()
    conversation = Conversations(dispatch).open(Outlet(), "peer:1")
    conversation.take(encode_frame({"verb": "hello", "id": 1, "version": 1, "role": "client"}))
    yield conversation
    conversation.end()
    dispatch.stop(5.0)


def ask(peer: Conversation, number: int) -> dict:
    peer.take(encode_frame({"verb": "ping", "id": number}))
    return peer.stream.said[-1]


def test_a_bug_of_ours_ends_that_request_only_and_three_of_them_the_connection(
        peer: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    ping = verbs.HANDLERS["ping"]

    def broken(*args: object) -> None:
        raise KeyError("a bug, planted: /some/path")

    for number in range(2, 2 + MAX_INTERNAL_ERRORS):
        assert peer.is_open
        monkeypatch.setitem(verbs.HANDLERS, "ping", ping)
        assert "now" in ask(peer, 100 + number)
        monkeypatch.setitem(verbs.HANDLERS, "ping", broken)
        answer = ask(peer, number)
        assert (answer["id"], answer["error"]["code"]) == (number, "INTERNAL")
        assert "planted" not in answer["error"]["message"] and "\n" not in answer["error"]["message"]

    assert not peer.is_open and MAX_INTERNAL_ERRORS == 3


@pytest.mark.parametrize("data, code", [(bytes(4), "PROTOCOL_ERROR"), (encode_frame({"id": 2}), "PROTOCOL_ERROR"),
                                        (encode_frame({"verb": "ping"}), "PROTOCOL_ERROR")])
def test_what_is_no_message_is_told_once_and_nothing_behind_it_is_read(peer: Conversation, data: bytes, code: str) -> None:
    before = len(peer.stream.said)

    peer.take(data + encode_frame({"verb": "ping", "id": 9}))

    assert [said["error"]["code"] for said in peer.stream.said[before:]] == [code] and (data == bytes(4) or not peer.is_open)
