"""A conversation's deadlines, without a hub."""

from __future__ import annotations

from greenroom.clock import FakeClock
from greenroom.conversation import FRAME_DEADLINE_S, HELLO_DEADLINE_S, SWEEP_S, Conversations
from greenroom.desk import Desk
from greenroom.engine import Engine
from greenroom.protocol import encode_frame
from greenroom.stores.memory import MemoryStore

HELLO = encode_frame({"id": 1, "verb": "hello", "version": 1, "role": "client"})


class QuietDesk(Desk):
    """A desk that nobody drives."""

    def replan(self) -> None:
        """No tick is wanted here."""


class Outlet:
    """Keeps what is said."""

    def __init__(self, clock: FakeClock) -> None:
        self.received_at = clock.now()
        self.unsent_bytes = 0
        self.said: list[bytes] = []
        self.aborted: str | None = None

    def send(self, data: bytes) -> None:
        """Keep it."""
        self.said.append(data)

    def flush(self) -> None:
        """Nothing waits."""

    def abort(self, why: str) -> None:
        """Note why."""
        self.aborted = why


def opened() -> tuple[FakeClock, Conversations, Outlet]:
    """Return a conversation that has just begun."""
    clock = FakeClock()
    conversations = Conversations(QuietDesk(Engine(), MemoryStore(), clock.now, lambda: None))
    outlet = Outlet(clock)
    return clock, conversations, outlet


def swept(clock: FakeClock, conversations: Conversations, seconds: float) -> None:
    """Let time pass, sweeping as often as the hub does."""
    for _ in range(int(seconds / SWEEP_S)):
        clock.advance(SWEEP_S)
        conversations.sweep()


def test_a_peer_that_says_no_hello_is_told_so_and_closed() -> None:
    clock, conversations, outlet = opened()
    conversations.open(outlet, "peer")

    swept(clock, conversations, HELLO_DEADLINE_S)
    assert outlet.aborted is None
    swept(clock, conversations, 1.0)

    assert outlet.aborted == "no hello in time" and b"DEADLINE" in outlet.said[0]


def test_a_frame_that_takes_too_long_closes_the_connection() -> None:
    clock, conversations, outlet = opened()
    conversation = conversations.open(outlet, "peer")
    conversation.take(HELLO + b"\0\0")

    swept(clock, conversations, FRAME_DEADLINE_S + 1.0)

    assert outlet.aborted == "a frame took too long"


def test_who_said_hello_while_the_hub_stood_still_is_not_swept_away_unheard() -> None:
    clock, conversations, outlet = opened()
    conversation = conversations.open(outlet, "peer")
    swept(clock, conversations, 1.0)

    clock.advance(30.0)  # the hello lies in the kernel meanwhile
    conversations.sweep()
    assert outlet.aborted is None
    conversation.take(HELLO)
    swept(clock, conversations, 2.0)

    assert outlet.aborted is None and conversation.session is not None


def test_a_silent_peer_does_not_outlive_a_stall_by_more_than_a_sweep() -> None:
    clock, conversations, outlet = opened()
    conversations.open(outlet, "peer")
    swept(clock, conversations, 1.0)

    clock.advance(30.0)
    conversations.sweep()
    swept(clock, conversations, 1.0)

    assert outlet.aborted == "no hello in time"
