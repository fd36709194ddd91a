"""One connection's server side: greeting, then requests to their handlers until it ends. Thin: no rules, no verbs' meaning.

Runs in the connection's own greenlet. Answers are encoded here, when they leave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

import gevent

from greenroom import __version__
from greenroom.dispatch import Dispatch
from greenroom.errors import (
    BusyError, DeadlineError, DeniedError, GreenroomError, InternalError, InvalidError, ProtocolError)
from greenroom.protocol import (
    DEFAULT_LIMITS, HELLO_FRAME_BYTES, MAX_INNER_ITEMS, MAX_REQUEST_VALUES, WORKER_VERBS, FrameEncoder, FrameReader, Request,
    choose_version, error_fields, parse_request)
from greenroom.sessions import Session
from greenroom.stream import Stream
from greenroom.verbs import HANDLERS
from greenroom.waits import Wait

log = logging.getLogger(__name__)

HELLO_DEADLINE_S = 5.0
FRAME_DEADLINE_S = 10.0
IDLE_S = 60.0
#: Answered at once, so they work on while a slow disk holds back every other answer.
UNHELD_VERBS = frozenset({"heartbeat", "ping"})
#: After so many bugs of ours met on one connection it is closed: something is off with it.
MAX_INTERNAL_ERRORS = 3
#: Handle requests for so long, then let the hub look at its other sockets.
SLICE_S = 0.003
#: The last words to a peer that we close have so long to leave.
FAREWELL_S = 0.5

_encode = FrameEncoder()  # all sessions run in one thread


class Connection:
    """A peer of ours: what verbs answer to (Caller), and what the engine knows as `session.conn`.

    Attributes:
        session: the engine's record, None before hello. is_open: False once it is being closed.
        open_waits: its waits. opened_at, partial_since: for the deadlines that `Sessions.sweep` keeps.
    """

    __slots__ = ("session", "is_open", "open_waits", "held_deliveries", "opened_at", "partial_since", "stream", "address", "_dispatch",
                 "_frames", "_internal_errors", "_said_bye", "_owner")

    def __init__(self, owner: Sessions, dispatch: Dispatch, stream: Stream, address: str) -> None:
        self.session: Session | None = None
        self.is_open = True
        self.open_waits: set[Wait] = set()
        self.held_deliveries = 0
        self.opened_at = dispatch.now()
        self.partial_since: float | None = None
        self.stream = stream
        self.address = address
        self._owner = owner
        self._dispatch = dispatch
        self._frames = FrameReader(HELLO_FRAME_BYTES, MAX_REQUEST_VALUES, MAX_INNER_ITEMS)
        self._internal_errors = 0
        self._said_bye = False

    # -- what others call ---------------------------------------------------------------------------------------------------

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Queue the reply to a request; `flush` sends it."""
        if isinstance(answer, GreenroomError):
            self._dispatch.engine.tally.refuse(answer.code)
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

    def replaced(self) -> None:
        """The same worker process came back on another connection: this one ends."""
        self.stream.abort("the same worker connected again")

    # -- the connection's life ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until either side ends it. Never raises; the caller closes the stream."""
        try:
            while self.is_open:
                data = self.stream.read()
                if not data:
                    break
                self._take(data)
        except OSError as exc:
            log.debug("conn=%s ended: %s", self.address, exc)
        finally:
            self.is_open = False
            if self.session is not None:
                self._dispatch.engine.close_session(self.session, self._dispatch.now(), said_bye=self._said_bye)
                self._dispatch.waits.drop_peer(self)
                self._dispatch.backups.left(self, self._dispatch.now(), said_bye=self._said_bye)
                self._dispatch.after_call()
        self.stream.finish(FAREWELL_S)

    def _take(self, data: bytes) -> None:
        began = perf_counter()
        messages = self._frames.feed(data)
        if messages:
            self.partial_since = None  # a frame ended; what is partial now is another
        for message in messages:
            self._handle(message)
            if not self.is_open:
                break
            if perf_counter() - began > SLICE_S:
                self.flush()
                gevent.sleep(0.0005)
                began = perf_counter()
        if self._frames.failed is not None and self.is_open:
            self._owner.protocol_errors += 1
            self.answer(0, self._frames.failed)
        if not self._frames.is_partial:
            self.partial_since = None
        elif self.partial_since is None:
            self.partial_since = self._dispatch.now()
        self.flush()

    def _handle(self, message: dict) -> None:
        request_id = message.get("id") if type(message.get("id")) is int else 0
        try:
            request = parse_request(message)
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
            elif self._dispatch.batches.holds_too_much and request.verb not in UNHELD_VERBS:
                # Not held like other errors: that would be one answer more. It tells of nothing stored.
                self.answer(request.id, BusyError("too many answers wait for the disk", retry_after_s=0.5))
            else:
                HANDLERS[request.verb](self._dispatch, self, request)
        except GreenroomError as exc:
            if isinstance(exc, ProtocolError):
                self._owner.protocol_errors += 1
            if exc.fatal or self.session is None:
                # The connection ends now, so its last word cannot wait for a COMMIT; it tells of nothing stored.
                self.answer(request_id, exc)
                self.is_open = False
            else:
                self._dispatch.batches.hold(self, request_id, exc)
        except Exception:
            log.exception("conn=%s verb=%r failed", self.address, message.get("verb"))
            self._internal_errors += 1
            self.answer(request_id, InternalError("the broker met a bug of its own; it is in its log"))
            if self._internal_errors >= MAX_INTERNAL_ERRORS or self.session is None:
                self.is_open = False

    def _greet(self, request: Request) -> None:
        if request.verb != "hello":
            raise ProtocolError("the first request must be hello")
        fields, dispatch = request.fields, self._dispatch
        version = choose_version(fields["version"])
        session = self._owner.new_session(self, fields)
        outcomes = dispatch.engine.open_session(session, list(fields["leases"]), dispatch.now())
        self.session = session
        self._frames.max_frame = DEFAULT_LIMITS.frame
        timing = dispatch.engine.timing
        self.answer(request.id, {
            "version": version, "broker": f"greenroom/{__version__}", "name": session.name, "session": session.key,
            "now": dispatch.now(), "lease_s": timing.lease_s, "heartbeat_s": timing.heartbeat_s, "idle_s": IDLE_S,
            "limits": DEFAULT_LIMITS._asdict(),
            "leases": [error_fields(outcome) if isinstance(outcome, GreenroomError) else outcome for outcome in outcomes]})
        dispatch.after_call()


class Sessions:
    """All connections: makes them, sweeps away those that are too slow, tells them of the end."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._connections: dict[Connection, None] = {}
        self._count = 0
        self._sweeper: gevent.Greenlet | None = None
        self.protocol_errors = 0

    def start(self, on_death: Callable[[str], None]) -> None:
        """Start the sweeper."""
        self._sweeper = gevent.spawn(self._sweep_on)
        self._sweeper.link_exception(lambda greenlet: on_death(f"the sweeper died: {greenlet.exception!r}"))

    def serve(self, stream: Stream, address: tuple) -> None:
        """Serve one connection to its end; for the listener, in the connection's greenlet."""
        connection = Connection(self, self._dispatch, stream, f"{address[0]}:{address[1]}")
        self._connections[connection] = None
        try:
            connection.run()
        finally:
            del self._connections[connection]
            connection.session = None  # they refer to each other, and would wait for the collector, which seldom comes
            stream.close()

    def new_session(self, connection: Connection, fields: dict[str, object]) -> Session:
        """Make the engine's record for a connection that says hello."""
        self._count += 1
        session = Session(
            self._count, role=fields["role"], name=fields["name"] or f"{fields['role']}-{self._count}",
            instance=fields["instance"], now=self._dispatch.now(), conn=connection, software=fields["software"],
            address=connection.address)
        session.tasks = None if fields["tasks"] is None else frozenset(fields["tasks"])
        session.queues = None if fields["queues"] is None else frozenset(fields["queues"])
        return session

    def _sweep_on(self) -> None:
        while True:
            gevent.sleep(1.0)
            self.sweep()

    def sweep(self) -> None:
        """End connections whose deadline passed. One timer for all costs less than one a connection."""
        now = self._dispatch.now()
        for connection in list(self._connections):
            late = self._is_late(connection, now)
            if late is not None:
                if connection.is_open:
                    connection.answer(0, DeadlineError(late))
                    connection.flush()
                connection.stream.abort(late)

    @staticmethod
    def _is_late(connection: Connection, now: float) -> str | None:
        if connection.session is None and now - connection.opened_at > HELLO_DEADLINE_S:
            return "no hello in time"
        if connection.partial_since is not None and now - connection.partial_since > FRAME_DEADLINE_S:
            return "a frame took too long"
        if now - connection.stream.received_at > IDLE_S:
            return "nothing was received for too long"
        return None

    def announce_drain(self) -> None:
        """Tell every session that the broker is going away."""
        for connection in list(self._connections):
            if connection.session is not None:
                connection.notify({"notice": "drain", "reason": "broker"})
                connection.flush()

    def stop(self, within_s: float) -> None:
        """End all connections, giving what is unsent a moment. Switches."""
        if self._sweeper is not None:
            self._sweeper.kill()
        deadline = self._dispatch.now() + within_s
        for connection in list(self._connections):
            connection.stream.abort("the broker stops")
        while self._connections and self._dispatch.now() < deadline:
            gevent.sleep(0.005)
