"""A TCP proxy on loopback that hurts what passes: delay, drip, cut, reset; per connection and direction, changed while it runs.

One thread (a greenlet where gevent has patched) and one poll carry all connections. It knows nothing of TLS or of frames, and
does only what a network can do to TCP: bytes come late, in pieces, or not at all; never twice and never in another order.
"""

from __future__ import annotations

import dataclasses
import select
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

#: Bytes of one direction that the proxy itself holds.
CHUNK_BYTES = 16 * 1024
#: Changed rules take effect within this.
TURN_S = 0.02
#: A drip is cut into so many pieces a second.
DRIPS_PER_S = 20
#: Connections at once; a further one is reset.
MAX_PASSAGES = 256
CONNECT_WITHIN_S = 2.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on with 0 s: close sends RST


@dataclass(slots=True)
class Rules:
    """What happens to the bytes of one direction. Fields may be changed at any time."""

    delay_s: float = 0.0  #: each chunk is held back for so long
    bytes_per_s: float = 0.0  #: no faster than this; 0: as fast as it goes
    is_cut: bool = False  #: nothing passes, not even the end; the sender's kernel keeps it, and it passes when that is over
    reset_after: int | None = None  #: the connection is reset when so many bytes have passed


@dataclass(slots=True)
class _Way:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    rules: Rules
    chunk: bytes = b""
    due_at: float = 0.0  # before it the chunk does not go on
    passed: int = 0
    has_ended: bool = False  # the source said so, and the sink was told


@dataclass(eq=False, slots=True)
class Passage:
    """One connection through the proxy.

    Attributes:
        up, down: the rules of what the client sends, and of what the server sends.
        is_open: False once both ends are closed.
    """

    up: Rules
    down: Rules
    is_open: bool = True
    _ways: tuple[_Way, ...] = field(default=(), repr=False)
    _must_reset: bool = field(default=False, repr=False)

    @property
    def passed_up(self) -> int:
        """Bytes that went to the server."""
        return self._ways[0].passed

    @property
    def passed_down(self) -> int:
        """Bytes that went to the client."""
        return self._ways[1].passed

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Let nothing pass any more in these directions; both ends stay open and are told nothing."""
        self.up.is_cut, self.down.is_cut = up, down

    def heal(self) -> None:
        """Let everything pass at full speed from now on."""
        for way in self._ways:
            way.due_at = 0.0
        for rules in (self.up, self.down):
            rules.delay_s, rules.bytes_per_s, rules.is_cut, rules.reset_after = 0.0, 0.0, False, None

    def reset(self) -> None:
        """Send RST to both ends, within TURN_S."""
        self._must_reset = True


class Proxy:
    """Listens on a free loopback port and passes each connection on to `target`.

    Attributes:
        port: where it listens.
        up, down: the rules that new connections begin with; each gets a copy.
        refuses: new connections are reset at once.
        accepted: how many connections there ever were, refused ones included.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.up = Rules()
        self.down = Rules()
        self.refuses = False
        self.accepted = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._passages: list[Passage] = []
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    @property
    def passages(self) -> list[Passage]:
        """The open connections, oldest first."""
        return list(self._passages)

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Cut all connections, and those to come."""
        for rules, is_cut in ((self.up, up), (self.down, down)):
            rules.is_cut = is_cut
        for passage in self.passages:
            passage.cut(up=up, down=down)

    def heal(self) -> None:
        """Hurt nobody any more."""
        self.up, self.down, self.refuses = Rules(), Rules(), False
        for passage in self.passages:
            passage.heal()

    def reset(self) -> None:
        """Reset all connections that are open now."""
        for passage in self.passages:
            passage.reset()

    def close(self) -> None:
        """End all connections and stop. May be called twice."""
        self._has_ended = True
        self._thread.join(5)

    # -- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._has_ended:
                self._turn()
        finally:
            self._listener.close()
            for passage in self._passages:
                self._close(passage, with_reset=True)

    def _turn(self) -> None:
        now = time.monotonic()
        events = Counter({self._listener.fileno(): select.POLLIN})
        wake_at = now + TURN_S
        for passage in self._passages:
            for way in passage._ways:
                wake_at = min(wake_at, max(now, self._watch(way, events, now)))
        poller = select.poll()
        for number, wanted in events.items():
            poller.register(number, wanted)
        ready = {number for number, _ in poller.poll(int((wake_at - now) * 1000) + 1)}
        now = time.monotonic()
        for passage in self._passages:
            self._serve(passage, ready, now)
        self._passages = [passage for passage in self._passages if passage.is_open]
        if self._listener.fileno() in ready:
            self._accept()

    @staticmethod
    def _watch(way: _Way, events: Counter[int], now: float) -> float:
        """Add what this direction waits for; returns when it wants to go on by itself."""
        if way.rules.is_cut or way.has_ended:
            return now + TURN_S
        if not way.chunk:
            events[way.source.fileno()] |= select.POLLIN
        elif way.due_at <= now:
            events[way.sink.fileno()] |= select.POLLOUT  # which may be the source of the other direction
        else:
            return way.due_at
        return now + TURN_S

    def _serve(self, passage: Passage, ready: set[int], now: float) -> None:
        try:
            for way in passage._ways:
                if way.rules.is_cut or way.has_ended:
                    continue
                if way.chunk:
                    if way.due_at <= now and way.sink.fileno() in ready:
                        self._send(way, now)
                elif way.source.fileno() in ready:
                    self._take(way, now)
                if way.rules.reset_after is not None and way.passed >= way.rules.reset_after:
                    passage.reset()
        except OSError:
            passage.reset()  # one end broke: the other is told so
        if passage._must_reset or all(way.has_ended for way in passage._ways):
            self._close(passage, with_reset=passage._must_reset)

    @staticmethod
    def _take(way: _Way, now: float) -> None:
        try:
            way.chunk = way.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return  # the poll was for the other direction
        way.due_at = now + way.rules.delay_s
        if not way.chunk:
            way.sink.shutdown(socket.SHUT_WR)
            way.has_ended = True

    @staticmethod
    def _send(way: _Way, now: float) -> None:
        rules, size = way.rules, len(way.chunk)
        if rules.bytes_per_s:
            size = min(size, max(1, int(rules.bytes_per_s / DRIPS_PER_S)))
        if rules.reset_after is not None:
            size = min(size, max(0, rules.reset_after - way.passed))
        try:
            sent = way.sink.send(way.chunk[:size])
        except BlockingIOError:
            return
        way.chunk = way.chunk[sent:]
        way.passed += sent
        if rules.bytes_per_s:
            way.due_at = now + sent / rules.bytes_per_s

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it is gone again
        self.accepted += 1
        if self.refuses or len(self._passages) >= MAX_PASSAGES:
            _reset(client)
            return
        try:
            server = socket.create_connection(self._target, timeout=CONNECT_WITHIN_S)
        except OSError:
            _reset(client)
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        passage = Passage(dataclasses.replace(self.up), dataclasses.replace(self.down))
        passage._ways = (_Way(client, server, passage.up), _Way(server, client, passage.down))
        self._passages.append(passage)

    @staticmethod
    def _close(passage: Passage, *, with_reset: bool) -> None:
        passage.is_open = False
        for way in passage._ways:
            (_reset if with_reset else socket.socket.close)(way.source)


def _reset(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # gone already
    sock.close()
