"""The door: a gevent StreamServer with TLS that accepts, shakes hands under a gate and a deadline, and counts who it refused.

Hands finished connections to `serve(stream, address)`. Knows nothing of messages.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from time import perf_counter

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from gevent.server import StreamServer

from greenroom.accepts import CarefulAccept
from greenroom.stream import Stream, set_tcp_options
from greenroom.tls import check_alpn, rejection_reason
from greenroom.tls_pipe import TlsPipe

log = logging.getLogger(__name__)

HANDSHAKE_DEADLINE_S = 5.0
#: After so much handshaking in a row the hub is let look at its sockets (a P-256 handshake is 0.3 ms of it).
HANDSHAKE_SLICE_S = 0.002
HANDSHAKE_READ_BYTES = 4096
#: So many tell an HTTP request from other garbage.
FIRST_BYTES = 16
#: Connections that are shaking hands or waiting for their turn: beyond it the one that has waited longest is closed.
MAX_HANDSHAKES = 4096
#: A line about refused connections is printed at most this often; the next one says how many it stands for.
REJECTION_LINE_EVERY_S = 5.0
#: A peer that is refused for its certificate is left so long to read why.
ALERT_LINGER_S = 0.5
CERTIFICATE_REASONS = ("no_certificate", "unknown_ca", "bad_certificate")
#: File descriptors kept for the store, logs and the web.
SPARE_FILES = 128


class _MadeRoomError(OSError):
    """Thrown into a handshake whose peer is silent when a newer connection needs its place."""


class Gate:
    """Lets one handshake at a time do its work: those that have begun first, then whoever came last.

    When more come than can be served everybody has to wait, but nobody waits for ever: peers give up after some seconds and come
    again. In the order of their coming each would be served just when it gives up, and in the end nobody gets in.
    """

    def __init__(self) -> None:
        self._is_busy = False
        self._begun: deque[Event] = deque()
        self._new: list[Event] = []

    @contextmanager
    def passed(self, is_new: bool) -> Iterator[None]:
        """Wait for the turn, and pass it on at the end. Switches."""
        if self._is_busy:
            turn = Event()
            (self._new if is_new else self._begun).append(turn)
            try:
                turn.wait()
            except BaseException:
                self._withdraw(turn)
                raise
        self._is_busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _withdraw(self, turn: Event) -> None:
        if turn.is_set():
            self._pass_on()
            return
        (self._new if turn in self._new else self._begun).remove(turn)

    def _pass_on(self) -> None:
        """Hand the turn to the next; it stays taken in between, so that nobody overtakes."""
        if self._begun:
            self._begun.popleft().set()
        elif self._new:
            self._new.pop().set()
        else:
            self._is_busy = False


class Listener(CarefulAccept, StreamServer):
    """The TLS listener.

    Attributes:
        handshakes: finished ones. rejected: reason (tls.REJECTION_REASONS, and "too_many") -> connections.
        recent: the latest 20 refused: {"at", "peer", "reason"}.
        max_connections: how many there can be.
        open: connections that are being served or shaking hands. shaking: those that are shaking hands.
    """

    max_accept = 8  # accepts per wake-up: a storm must not keep the hub
    backlog = 2048

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, serve: Callable[[Stream, tuple], None],
                 clock: Callable[[], float], *, max_connections: int) -> None:
        super().__init__(address, self._shake_and_serve)
        self._context = context
        self._serve = serve
        self._clock = clock
        self._gate = Gate()
        self.max_connections = max_connections
        self._gate_busy_s = 0.0
        self._last_line_at = -REJECTION_LINE_EVERY_S
        self._unprinted = 0
        self._waiting: dict[gevent.Greenlet, None] = {}  # handshakes that wait for their peer or to begin, the longest wait first
        self.handshakes = 0
        self.shaking = 0
        self.open = 0
        self.rejected: Counter[str] = Counter()
        self.recent: deque[dict[str, object]] = deque(maxlen=20)

    # -- accepting ----------------------------------------------------------------------------------------------------------

    def do_read(self) -> tuple | None:
        """Accept one connection, if there is room; called by gevent on the hub."""
        accepted = super().do_read()
        if accepted is None:
            return None
        sock, address = accepted
        is_full = self.open >= self.max_connections or self.shaking >= MAX_HANDSHAKES
        if is_full and not self._make_room():
            sock.close()
            self._reject("too_many", address, "the broker has no room for more connections")
            return None
        try:
            set_tcp_options(sock)
            sock.settimeout(0.0)
        except OSError:
            sock.close()  # it is gone already (reset between its SYN and our accept)
            return None
        return sock, address

    def _make_room(self) -> bool:
        """End the handshake that has waited longest, so that silent peers, and those that gave up, shut nobody out.

        Returns False if none waits.
        """
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return False
        del self._waiting[oldest]  # it ends soon, so nobody else may count on its place
        oldest.kill(_MadeRoomError("a newer connection needed its place"), block=False)
        return True

    # -- one connection -----------------------------------------------------------------------------------------------------

    def _shake_and_serve(self, sock: socket.socket, address: tuple) -> None:
        """Own a connection from accept to close; runs in its own greenlet."""
        self.open += 1
        try:
            with closing(sock):
                tls = TlsPipe(self._context)
                if self._shake(sock, tls, address):
                    self._serve(Stream(sock, tls, self._clock), address)
        finally:
            self.open -= 1

    def _shake(self, sock: socket.socket, tls: TlsPipe, address: tuple) -> bool:
        first_bytes = bytearray()
        self.shaking += 1
        try:
            self._shake_hands(sock, tls, first_bytes)
        except _MadeRoomError as exc:
            self._reject("too_many", address, str(exc))
            return False
        except (OSError, ValueError) as exc:
            reason = rejection_reason(exc, bytes(first_bytes))
            self._reject(reason, address, str(exc))
            if reason in CERTIFICATE_REASONS:
                self._let_alert_arrive(sock)
            return False
        finally:
            self.shaking -= 1
        if not check_alpn(tls):
            self._reject("alpn", address, "the peer does not speak greenroom/1")
            return False
        self.handshakes += 1
        return True

    def _let_alert_arrive(self, sock: socket.socket) -> None:
        """Read away what the refused peer still sends: closing over unread bytes would reset the connection, alert and all."""
        left_s = ALERT_LINGER_S
        try:
            sock.shutdown(socket.SHUT_WR)
            while left_s > 0:
                left_s -= self._wait_for_peer(sock, 1, left_s)
                if not sock.recv(4096):
                    return
        except OSError:
            return

    def _shake_hands(self, sock: socket.socket, tls: TlsPipe, first_bytes: bytearray) -> None:
        """Do the handshake, noting its first bytes. The deadline counts only the time spent waiting for the peer."""
        left_s = HANDSHAKE_DEADLINE_S
        is_done, is_new = False, True
        while not is_done:
            left_s -= self._wait_for_peer(sock, 1, left_s)
            try:
                raw = sock.recv(HANDSHAKE_READ_BYTES)
            except BlockingIOError:
                continue
            first_bytes += raw[:FIRST_BYTES - len(first_bytes)]
            try:
                if is_new:
                    self._waiting[gevent.getcurrent()] = None  # one that gave up must not keep its place
                with self._gate.passed(is_new):
                    self._waiting.pop(gevent.getcurrent(), None)
                    if is_new and _has_gone(sock):
                        raise ConnectionResetError("the peer gave up while it waited for its turn")
                    is_done = self._step(tls, raw)
                is_new = False
            except ssl.SSLError:
                with suppress(OSError):
                    _send(sock, tls.outgoing())  # an alert that says why
                raise
            unsent = tls.outgoing()
            while unsent := unsent[_send(sock, unsent):]:
                left_s -= self._wait_for_peer(sock, 2, left_s)

    def _wait_for_peer(self, sock: socket.socket, events: int, within_s: float) -> float:
        """Wait until the socket can be read (1) or written (2); returns how long that took. Raises TimeoutError."""
        watcher = get_hub().loop.io(sock.fileno(), events)
        began = perf_counter()
        self._waiting[gevent.getcurrent()] = None
        try:
            with gevent.Timeout(within_s, TimeoutError("the handshake took too long")):
                get_hub().wait(watcher)
        finally:
            self._waiting.pop(gevent.getcurrent(), None)
            watcher.close()
        return perf_counter() - began

    def _step(self, tls: TlsPipe, raw: bytes) -> bool:
        """Work on the bytes that came; returns True when the handshake is done. Switches after each slice of work."""
        began = perf_counter()
        try:
            return tls.shake(raw)
        finally:
            self._gate_busy_s += perf_counter() - began
            if self._gate_busy_s >= HANDSHAKE_SLICE_S:
                self._gate_busy_s = 0.0
                gevent.sleep(0.0005)  # sleep(0) would run more handshakes before the hub looks at its sockets

    def _reject(self, reason: str, address: tuple, detail: str) -> None:
        self.rejected[reason] += 1
        now = self._clock()
        peer = f"{address[0]}:{address[1]}" if address else "unknown"
        self.recent.appendleft({"at": now, "peer": peer, "reason": reason})
        self._unprinted += 1
        if now - self._last_line_at >= REJECTION_LINE_EVERY_S:
            more = f" (and {self._unprinted - 1} more since the last such line)" if self._unprinted > 1 else ""
            log.warning("[Server] SSLError – rejected non-TLS connection: peer=%s reason=%s (%s)%s", peer, reason, detail, more)
            self._last_line_at = now
            self._unprinted = 0


def _has_gone(sock: socket.socket) -> bool:
    """Tell whether the peer has closed behind what it sent."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False


def _send(sock: socket.socket, data: bytes) -> int:
    """Send what the kernel takes at once; returns how much that was."""
    try:
        return sock.send(data) if data else 0
    except BlockingIOError:
        return 0
