"""One TLS connection on the hub: bytes in, bytes out, never blocking anybody but its own reader. Knows no messages.

The socket stays non-blocking, and the TLS is beside it (tls_pipe.py). One greenlet, the owner, reads; anybody may send: what the
kernel takes at once goes out on the spot, the rest is drained by a writer greenlet that lives only as long as there is something to
send. Only the owner closes the socket; others `abort`, which makes the owner's read end. (reliability.md G7, G8, G12, G20)
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import gevent
from gevent.hub import get_hub

from greenroom.tls_pipe import TlsPipe

#: A peer that leaves more than this unread is too slow; the protocol says so.
MAX_UNSENT_BYTES = 8 * 2**20
WRITE_DEADLINE_S = 10.0
#: Read so much before going back to the hub, so that one fast peer doesn't keep it.
READ_BYTES = 64 * 1024
#: Write so much before going back to the hub: a millisecond of encryption.
WRITE_BYTES = 2**20
#: Seal so much before the kernel is asked whether it takes it.
SEAL_BYTES = 64 * 1024


class Stream:
    """A handshaken TLS connection.

    Attributes:
        received_at: when bytes last arrived, by the clock given.
        closed_because: why it was aborted, or None.
        unsent_bytes: what the kernel has not taken yet.
        wait_turn: called before bytes that came are read, and may switch; None: they are read at once. is_in_line: it was called.
    """

    __slots__ = ("received_at", "closed_because", "unsent_bytes", "wait_turn", "is_in_line", "_sock", "_tls", "_clock", "_readable", "_out", "_sealed",
                 "_writer", "_owner", "_ended")

    def __init__(self, sock: socket.socket, tls: TlsPipe, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._tls: TlsPipe | None = tls
        self._clock = clock
        self.received_at = clock()
        self.closed_because: str | None = None
        self.unsent_bytes = 0
        self.wait_turn: Callable[[], None] | None = None
        self.is_in_line = False
        self._readable = get_hub().loop.io(sock.fileno(), 1)
        self._out: list[bytes | memoryview] = []  # not sealed yet
        self._sealed = b""  # records that the kernel has not taken yet; they go before all else
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
            if not self._tls.has_more:
                get_hub().wait(self._readable)
                if self.wait_turn is not None:
                    self.is_in_line = True
                    self.wait_turn()
                    self.is_in_line = False
            data = self._read_some()
            if data:
                self.received_at = self._clock()
                return data

    def _read_some(self) -> bytes:
        """Take what is there, READ_BYTES at most: the watcher sees the rest."""
        pieces: list[bytes] = []
        try:
            self._open(pieces)
        except BlockingIOError:
            pass
        except OSError as exc:
            self.abort(f"receiving failed: {exc}")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open(self, pieces: list[bytes]) -> None:
        raw = b""
        if not self._tls.has_more:
            raw = self._sock.recv(READ_BYTES)
            if not raw:
                self._ended = True
                return
        self._tls.open(raw, pieces)
        self._ended = self._tls.ended
        answers = self._tls.outgoing()  # to a KeyUpdate
        if answers and self.closed_because is None:
            self._sealed += answers
            self.unsent_bytes += len(answers)
            self.flush()

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
        if not self.unsent_bytes:
            return
        if self._writer is None and not self._write_some():
            self._writer = gevent.spawn(self._drain)
        if self.unsent_bytes > MAX_UNSENT_BYTES:
            self.abort("the peer reads too slowly")

    def _write_some(self) -> bool:
        """Write until the kernel takes no more, or a turn's share; returns True if nothing is left (or all is lost)."""
        share = 0
        try:
            while share < WRITE_BYTES:
                if not self._sealed and not self._seal_some():
                    return True
                sent = self._sock.send(self._sealed)
                self._sealed = self._sealed[sent:]
                self.unsent_bytes -= sent
                share += sent
        except BlockingIOError:
            pass
        except (OSError, ValueError) as exc:
            self.abort(f"sending failed: {exc}")
            return True
        return not self.unsent_bytes

    def _seal_some(self) -> bool:
        """Seal the next SEAL_BYTES of what waits, small pieces together; returns False if there is nothing."""
        out = self._out
        if not out:
            return False
        count = size = 0
        while count < len(out) and size < SEAL_BYTES:
            size += len(out[count])
            count += 1
        data = out[0] if count == 1 else b"".join(out[:count])
        del out[:count]
        if size > SEAL_BYTES:
            view = memoryview(data)
            data = view[:SEAL_BYTES]
            out.insert(0, view[SEAL_BYTES:])
        self._sealed = self._tls.seal(data)
        self.unsent_bytes += len(self._sealed) - len(data)
        return True

    def _drain(self) -> None:
        watcher = get_hub().loop.io(self._sock.fileno(), 2)
        try:
            while self.unsent_bytes:
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
        self._sealed = b""
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
        self._tls = None  # 16 KiB, which are not to wait for the collector of whatever still refers to this stream


def set_tcp_options(sock: socket.socket) -> None:
    """Small frames leave at once, and a peer that vanished without a word is noticed within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        option = getattr(socket, name, None)  # Linux has them all
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
