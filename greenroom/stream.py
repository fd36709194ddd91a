"""One TLS connection on the hub: bytes in, bytes out, never blocking anybody but its own reader. Knows no messages.

The socket stays non-blocking. One greenlet, the owner, reads; anybody may send: what the kernel takes at once goes out on the
spot, the rest is drained by a writer greenlet that lives only as long as there is something to send. Only the owner closes
the socket; others `abort`, which makes the owner's read end. (reliability.md G7, G8, G12, G20)
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

import gevent
from gevent.hub import get_hub

#: A peer that leaves more than this unread is too slow; the protocol says so.
MAX_UNSENT_BYTES = 8 * 2**20
WRITE_DEADLINE_S = 10.0
#: Read so much before going back to the hub, so that one fast peer doesn't keep it.
READ_BYTES = 64 * 1024
#: Write so much before going back to the hub: a millisecond of encryption.
WRITE_BYTES = 2**20
#: OpenSSL writes one record at a time and returns.
RECORD_BYTES = 16 * 1024


class Stream:
    """A handshaken TLS socket.

    Attributes:
        received_at: when bytes last arrived, by the clock given.
        closed_because: why it was aborted, or None.
        unsent_bytes: what the kernel has not taken yet.
    """

    __slots__ = ("received_at", "closed_because", "unsent_bytes", "_sock", "_clock", "_readable", "_out", "_writer",
                 "_owner", "_ended")

    def __init__(self, sock: ssl.SSLSocket, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._clock = clock
        self.received_at = clock()
        self.closed_because: str | None = None
        self.unsent_bytes = 0
        self._readable = get_hub().loop.io(sock.fileno(), 1)
        self._out: list[bytes] = []
        self._writer: gevent.Greenlet | None = None
        self._owner = gevent.getcurrent()
        self._ended = False  # the peer said that no more comes

    # -- reading, for the owner ---------------------------------------------------------------------------------------------

    def read(self) -> bytes:
        """Return some bytes, b"" at the end of the stream. Switches.

        Raises ConnectionAbortedError when it broke or was aborted; what arrived before a break is returned first.
        """
        while True:
            if self.closed_because is not None:
                raise ConnectionAbortedError(self.closed_because)
            if self._ended:
                return b""
            get_hub().wait(self._readable)
            data = self._read_some()
            if data:
                self.received_at = self._clock()
                return data

    def _read_some(self) -> bytes:
        """Take what is there. Each recv empties OpenSSL's buffer, as a record has 16 KiB at most: the watcher sees the rest."""
        pieces: list[bytes] = []
        size = 0
        try:
            while size < READ_BYTES:
                try:
                    piece = self._sock.recv(READ_BYTES)
                except ssl.SSLWantWriteError:
                    # The peer made us answer (KeyUpdate) and does not read: that is its problem, with the write deadline.
                    self._wait_writable()
                    continue
                if not piece:
                    self._ended = True
                    break
                pieces.append(piece)
                size += len(piece)
        except ssl.SSLWantReadError:
            pass
        except OSError as exc:
            self.abort(f"receiving failed: {exc}")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wait_writable(self) -> None:
        watcher = get_hub().loop.io(self._sock.fileno(), 2)
        try:
            with gevent.Timeout(WRITE_DEADLINE_S, OSError("the peer does not read")):
                get_hub().wait(watcher)
        finally:
            watcher.close()

    # -- writing, for anybody -----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Queue bytes; `flush` sends them. Never switches."""
        if self.closed_because is None:
            self._out.append(data)
            self.unsent_bytes += len(data)

    def flush(self) -> None:
        """Send what the kernel takes now; the rest follows by itself. Drops a peer that lets too much pile up.

        Never switches, never raises.
        """
        if not self._out:
            return
        if self._writer is None and not self._write_some():
            self._writer = gevent.spawn(self._drain)
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            self.abort("the peer reads too slowly")

    def _write_some(self) -> bool:
        """Write until the kernel takes no more, or a turn's share; returns True if nothing is left (or all is lost)."""
        count = share = 0
        while count < len(self._out) and share < WRITE_BYTES:
            share += len(self._out[count])
            count += 1
        data = self._out[0] if count == 1 else b"".join(self._out[:count])
        sent = 0
        view = memoryview(data)
        try:
            while sent < min(len(data), WRITE_BYTES):
                taken = self._sock.send(view[sent:sent + RECORD_BYTES])
                if not taken:  # the kernel is full
                    break
                sent += taken
        except (OSError, ValueError) as exc:
            self.abort(f"sending failed: {exc}")
            return True
        # OpenSSL wants to see the same bytes again after it was refused, in a buffer at least as long: the rest stays in front.
        self._out[:count] = [data[sent:]] if sent < len(data) else []
        self.unsent_bytes -= sent
        return not self._out

    def _drain(self) -> None:
        watcher = get_hub().loop.io(self._sock.fileno(), 2)
        try:
            while self._out:
                with gevent.Timeout(WRITE_DEADLINE_S, False) as deadline:
                    get_hub().wait(watcher)
                    deadline.cancel()
                    self._write_some()
                    continue
                self.abort("the peer reads too slowly")
        finally:
            watcher.close()
            self._writer = None

    # -- the end ------------------------------------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """End the connection from anywhere: the owner's wait ends with GreenletExit, its next read with an error; it closes."""
        if self.closed_because is None:
            self.closed_because = reason
            self._forget_unsent()
            if self._owner is not gevent.getcurrent():
                self._owner.kill(block=False)

    def finish(self, within_s: float) -> None:
        """Give what is unsent a moment to leave. Switches. For the owner, before `close`."""
        self.flush()
        if self._writer is not None and self.closed_because is None:
            self._writer.join(within_s)

    def _forget_unsent(self) -> None:
        self._out = []
        self.unsent_bytes = 0

    def close(self) -> None:
        """Close the socket; only the owner may. Never switches."""
        if self.closed_because is None:
            self.closed_because = "closed"
        self._forget_unsent()
        if self._writer is not None:
            self._writer.kill(block=False)
        self._readable.close()
        self._sock.close()


def set_tcp_options(sock: socket.socket) -> None:
    """Small frames leave at once, and a peer that vanished without a word is noticed within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        option = getattr(socket, name, None)  # Linux has them all
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
