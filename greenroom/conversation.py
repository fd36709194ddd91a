"""One connection's server side: greeting, then requests to their handlers, bytes in and answers out. No hub, no socket, no verbs' meaning.

session.py runs it in a greenlet of the connection's own, the simulator in virtual time. Answers are encoded here, when they leave.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

from greenroom import __version__
from greenroom.desk import STALL_S, Desk
from greenroom.errors import (
    BusyError, DeadlineError, DeniedError, GreenroomError, InternalError, InvalidError, ProtocolError)
from greenroom.protocol import (
    DEFAULT_LIMITS, HELLO_FRAME_BYTES, MAX_INNER_ITEMS, MAX_REQUEST_VALUES, WORKER_VERBS, FrameEncoder, FrameReader, Request,
    choose_version, error_fields, parse_request)
from greenroom.sessions import Session
from greenroom.verbs import HANDLERS
from greenroom.waits import Wait

log = logging.getLogger(__name__)

HELLO_DEADLINE_S = 5.0
FRAME_DEADLINE_S = 10.0
IDLE_S = 60.0
#: How often these are looked at.
SWEEP_S = 1.0
#: Answered at once, so they work on while a slow disk holds back every other answer.
UNHELD_VERBS = frozenset({"heartbeat", "ping"})
#: A peer that has not read so much is told of no more events until it has.
EVENTS_UNSENT_BYTES = 256 * 1024
#: After so many bugs of ours met on one connection it is closed: something is off with it.
MAX_INTERNAL_ERRORS = 3

_encode = FrameEncoder()  # all conversations run in one thread


class Outlet(Protocol):
    """Where a conversation's bytes go: a stream.

    Attributes:
        unsent_bytes: what the peer's kernel does not have yet. received_at: when the peer was last heard.
    """

    unsent_bytes: int
    received_at: float

    def send(self, data: bytes) -> None:
        """Queue bytes."""

    def flush(self) -> None:
        """Send what is queued."""

    def abort(self, why: str) -> None:
        """End the connection now."""


class Conversation:
    """A peer of ours: what verbs answer to (Caller), and what the engine knows as `session.conn`.

    Attributes:
        session: the engine's record, None before hello. is_open: False once it is being closed.
        open_waits: its waits. opened_at, partial_since: for the deadlines that `Conversations.sweep` keeps.
    """

    __slots__ = ("session", "is_open", "open_waits", "held_deliveries", "opened_at", "partial_since", "stream", "address", "desk",
                 "_frames", "_internal_errors", "_said_bye", "_owner")

    def __init__(self, owner: Conversations, desk: Desk, stream: Outlet, address: str) -> None:
        self.session: Session | None = None
        self.is_open = True
        self.open_waits: set[Wait] = set()
        self.held_deliveries = 0
        self.opened_at = desk.now()
        self.partial_since: float | None = None
        self.stream = stream
        self.address = address
        self._owner = owner
        self.desk = desk
        self._frames = FrameReader(HELLO_FRAME_BYTES, MAX_REQUEST_VALUES, MAX_INNER_ITEMS)
        self._internal_errors = 0
        self._said_bye = False

    # -- what others call ---------------------------------------------------------------------------------------------------

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Queue the reply to a request; `flush` sends it."""
        if isinstance(answer, GreenroomError):
            self.desk.engine.tally.refuse(answer.code)
            self.stream.send(_encode({"id": request_id, "error": error_fields(answer)}))
            if answer.fatal:
                self.is_open = False
        else:
            self.stream.send(_encode({"id": request_id, **answer}))

    def notify(self, notice: dict) -> None:
        """Queue a notice; `flush` sends it."""
        self.stream.send(_encode(notice))

    def flush(self) -> None:
        """Send what is queued."""
        self.stream.flush()

    @property
    def deliveries_written(self) -> bool:
        """True when the peer's kernel has every delivery that was decided."""
        return not self.held_deliveries and self.stream.unsent_bytes == 0

    @property
    def takes_events(self) -> bool:
        """False while the peer is slow to read."""
        return self.is_open and self.stream.unsent_bytes < EVENTS_UNSENT_BYTES

    def replaced(self) -> None:
        """The same worker process came back on another connection: this one ends."""
        self.stream.abort("the same worker connected again")

    # -- what the peer sends ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Tell the engine that the connection is over, whoever ended it."""
        self.is_open = False
        if self.session is not None:
            self.desk.engine.close_session(self.session, self.desk.now(), said_bye=self._said_bye)
            self.desk.waits.drop_peer(self)
            self.desk.subscriptions.close(self, self.desk.now())
            self.desk.backups.left(self, self.desk.now(), said_bye=self._said_bye)
            self.desk.after_call()

    def take(self, data: bytes) -> None:
        """Take bytes of the peer, act on the requests that they complete, and send what can be answered. May switch."""
        self.desk.begin_turn()
        for message in self._frames.messages(data):
            self.partial_since = None  # a frame ended; what is partial now is another
            if message is not None:
                self._handle(message)
                if not self.is_open:
                    break
            if self.desk.is_breath_due:
                self.flush()
                self.desk.breathe()
        if self._frames.failed is not None and self.is_open:
            self._owner.protocol_errors += 1
            self.answer(0, self._frames.failed)
        if not self._frames.is_partial:
            self.partial_since = None
        elif self.partial_since is None:
            self.partial_since = self.desk.now()
        self.flush()

    def _handle(self, message: dict) -> None:
        request_id = message.get("id") if type(message.get("id")) is int else 0
        try:
            request = parse_request(message)
            self.desk.breathe_if_due()
            if self.session is None:
                self._greet(request)
            elif request.verb == "bye":
                self._said_bye = True
                self.is_open = False
                self.answer(request.id, {})
            elif request.verb in WORKER_VERBS and self.session.role != "worker":
                raise DeniedError(f"{request.verb} is for sessions with the role worker", field="verb")
            elif request.verb == "hello":
                raise InvalidError("hello was said already", field="verb")
            elif self.desk.batches.holds_too_much and request.verb not in UNHELD_VERBS:
                # Not held like other errors: that would be one answer more. It tells of nothing stored.
                self.answer(request.id, BusyError("too many answers wait for the disk", retry_after_s=0.5))
            else:
                HANDLERS[request.verb](self.desk, self, request)
        except GreenroomError as exc:
            if isinstance(exc, ProtocolError):
                self._owner.protocol_errors += 1
            if exc.fatal or self.session is None:
                # The connection ends now, so its last word cannot wait for a COMMIT; it tells of nothing stored.
                self.answer(request_id, exc)
                self.is_open = False
            else:
                self.desk.batches.hold(self, request_id, exc)
        except Exception:
            log.exception("conn=%s verb=%r failed", self.address, message.get("verb"))
            self._internal_errors += 1
            self.answer(request_id, InternalError("the broker met a bug of its own; it is in its log"))
            if self._internal_errors >= MAX_INTERNAL_ERRORS or self.session is None:
                self.is_open = False

    def _greet(self, request: Request) -> None:
        if request.verb != "hello":
            raise ProtocolError("the first request must be hello")
        fields, desk = request.fields, self.desk
        version = choose_version(fields["version"])
        session = self._owner.new_session(self, fields)
        outcomes = desk.engine.open_session(session, list(fields["leases"]), desk.now())
        self.session = session
        self._frames.max_frame = DEFAULT_LIMITS.frame
        timing = desk.engine.timing
        self.answer(request.id, {
            "version": version, "broker": f"greenroom/{__version__}", "name": session.name, "session": session.key,
            "now": desk.now(), "lease_s": timing.lease_s, "heartbeat_s": timing.heartbeat_s, "idle_s": IDLE_S,
            "limits": DEFAULT_LIMITS._asdict(),
            "leases": [error_fields(outcome) if isinstance(outcome, GreenroomError) else outcome for outcome in outcomes]})
        desk.after_call()


class Conversations:
    """All of them: opens them, sweeps away those that are too slow, tells them of the end.

    Attributes:
        kind: the class of a new one. protocol_errors: so far.
    """

    kind: type[Conversation] = Conversation

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._conversations: dict[Conversation, None] = {}
        self._count = 0
        self._swept_at: float | None = None
        self.protocol_errors = 0

    def open(self, stream: Outlet, address: str) -> Conversation:
        """Begin the conversation with a peer that connected."""
        conversation = self.kind(self, self.desk, stream, address)
        self._conversations[conversation] = None
        return conversation

    def __iter__(self) -> Iterator[Conversation]:
        return iter(list(self._conversations))

    def forget(self, conversation: Conversation) -> None:
        """Take out one that is over."""
        del self._conversations[conversation]
        conversation.session = None  # they refer to each other, and would wait for the collector, which seldom comes

    def new_session(self, conversation: Conversation, fields: dict[str, object]) -> Session:
        """Make the engine's record for a peer that says hello."""
        self._count += 1
        session = Session(
            self._count, role=fields["role"], name=fields["name"] or f"{fields['role']}-{self._count}",
            instance=fields["instance"], now=self.desk.now(), conn=conversation, software=fields["software"],
            address=conversation.address)
        session.tasks = None if fields["tasks"] is None else frozenset(fields["tasks"])
        session.queues = None if fields["queues"] is None else frozenset(fields["queues"])
        return session

    def sweep(self) -> None:
        """End those whose deadline passed. One timer for all costs less than one a conversation. Call it each SWEEP_S."""
        now = self.desk.now()
        swept_at, self._swept_at = self._swept_at, now
        if swept_at is not None and now - swept_at > SWEEP_S + STALL_S:
            return  # the hub stood still: what peers sent meanwhile is read first, before the next sweep
        for conversation in self:
            late = self._is_late(conversation, now)
            if late is not None:
                if conversation.is_open:
                    conversation.answer(0, DeadlineError(late))
                    conversation.flush()
                conversation.stream.abort(late)

    @staticmethod
    def _is_late(conversation: Conversation, now: float) -> str | None:
        if conversation.session is None and now - conversation.opened_at > HELLO_DEADLINE_S:
            return "no hello in time"
        if conversation.partial_since is not None and now - conversation.partial_since > FRAME_DEADLINE_S:
            return "a frame took too long"
        if now - conversation.stream.received_at > IDLE_S:
            return "nothing was received for too long"
        return None

    def announce_drain(self) -> None:
        """Tell every session that the broker is going away."""
        for conversation in self:
            if conversation.session is not None:
                conversation.notify({"notice": "drain", "reason": "broker"})
                conversation.flush()
