"""One TLS connection to a broker: connect, greet, send requests, match replies, say when it ended. For clients and workers.

Must not know what a verb means (besides hello and ping), nor reconnect: who owns a link makes a new one. It imports no gevent
and works unchanged in a process that gevent has patched, where its thread is a greenlet.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from greenroom.endpoint import Endpoint
from greenroom.errors import BusyError, ConnectError, GreenroomError, ProtocolError, TlsError, from_wire
from greenroom.protocol import DEFAULT_LIMITS, HELLO_FRAME_BYTES, FrameReader, Limits, check_size, encode_frame
from greenroom.replies import check_notice, check_reply
from greenroom.tls import check_alpn, rejection_reason

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0

#: Bytes that may wait to be sent. Beyond it `request` waits or raises BusyError; one frame always fits into an empty outbox.
OUTBOX_BYTES = 8 * 2**20

#: A write that has begun must be repeated with the same bytes until OpenSSL has taken them, so they are cut off in pieces.
PIECE_BYTES = 256 * 1024

#: Records of 16 KiB taken in one turn, so that a flood of replies does not keep requests from being sent.
READS_PER_TURN = 64

#: How long the broker may leave a ping or heartbeat unanswered, and send nothing else, before the connection counts as dead.
#: For a worker two heartbeats if that is less, so that it notices a dead link within three.
SILENCE_S = 15.0
SILENT_BEATS = 2
MIN_SILENCE_S = 2.0

#: Seconds up to which a reconnect waits, at random (full jitter): first at once, then these, the last again and again.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 5.0)

#: What `request` gives to its `on_reply`: the reply, or the error in it, or the ConnectError that ended the connection.
Answer = dict | GreenroomError


class Backoff:
    """How long to wait before each next attempt to connect."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._uniform = (rng or random).uniform  # not a generator each: seeding one takes 10 us
        self._attempts = 0

    def next(self) -> float:
        """Return seconds to wait now: 0 the first time, then random ones up to 5."""
        longest = BACKOFF_S[min(self._attempts, len(BACKOFF_S) - 1)]
        self._attempts += 1
        return self._uniform(0.0, longest)


class Waker:
    """Wakes the one thread that waits in `wait` or in a link's `pump`. `wake` is safe in threads and signal handlers."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)
        self._is_woken = False  # since the latest `clear`

    def wake(self) -> None:
        """Let the current or the next wait end at once."""
        if self._is_woken:
            return  # one byte is enough, and each costs a system call in which another thread takes the interpreter lock: 10 us
        self._is_woken = True
        try:
            self._sender.send(b"\0")
        except OSError:
            pass  # full: it is about to wake up anyway; closed: nobody waits any more

    def wait(self, timeout_s: float) -> None:
        """Wait until woken, at most `timeout_s` seconds."""
        _poll([(self.receiver, False)], timeout_s)
        self.clear()

    def clear(self) -> None:
        """Forget the wake-ups so far. Whoever waited looks at what it was woken for after this, never before."""
        self._is_woken = False  # before the bytes are taken: a wake-up from here on leaves one of its own
        try:
            while len(self.receiver.recv(4096)) == 4096:
                pass
        except OSError:
            pass

    def close(self) -> None:
        """Close both sockets."""
        self.receiver.close()
        self._sender.close()


class Link:
    """One connection. A single thread owns it: the one that calls `connect` and `pump`, or the one that `start` makes.

    The owner alone reads, and closes. Other threads put frames into a bounded outbox and write it out themselves if the owner is not
    at it, which saves waking it (0.12 ms of a ping's 0.55); what the socket does not take at once is left to the owner.
    `request`, `call` and `close` may be called by any thread, and what `on_reply`, `on_notice` and `on_close` run is run by
    the owner and must not block.

    Attributes:
        greeting: the broker's reply to hello, {} before.
        limits: the greeting's limits.
        closed_by: why the connection ended, None while it has not.
        was_silent: True if it ended because nothing was heard of the broker any more: that may live on and not know of the end.
    """

    def __init__(self, endpoint: Endpoint, *, waker: Waker | None = None,
                 on_notice: Callable[[dict], None] | None = None,
                 on_close: Callable[[GreenroomError], None] | None = None) -> None:
        self.greeting: dict = {}
        self.limits = DEFAULT_LIMITS._replace(frame=HELLO_FRAME_BYTES)
        self.closed_by: GreenroomError | None = None
        self.was_silent = False
        self._endpoint = endpoint
        self._owns_waker = waker is None
        self._waker = waker or Waker()
        self._on_notice = on_notice
        self._on_close = on_close
        self._sock: ssl.SSLSocket | None = None
        self._reader = FrameReader()
        self._tls = threading.Lock()  # held while OpenSSL is at work, and to close: it bears one thread at a time; guards _piece
        self._changed = threading.Condition()  # guards the next five; told when the outbox was emptied or the link ended
        self._outbox = bytearray()
        self._pending: dict[int, tuple[Callable[[Answer], None], str, int]] = {}  # on_reply; verb and items of the request
        self._next_id = 1
        self._is_closing = False
        self._owner = 0
        self._piece = b""  # what is being written
        self._sent_at = self._received_at = time.monotonic()
        self._asked_at: float | None = None  # when the oldest ping or heartbeat without a sign of life since was sent
        self._ping_after_s = 20.0
        self._silence_s = SILENCE_S
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """True from a successful `connect` until the connection ends."""
        return self._sock is not None and self.closed_by is None

    def connect(self, hello: dict, timeout_s: float = CONNECT_TIMEOUT_S) -> dict:
        """Open the connection, greet and return the broker's greeting.

        Args:
            hello: the fields of the greeting besides verb and id.
            timeout_s: for all of it; resolving a host name can take longer, that is the system's.

        Raises:
            ConnectError: nobody there, or no greeting in time.
            TlsError: the broker or its certificate was refused, or ours was; trying again does not help.
            GreenroomError: what the broker answered to hello (VERSION, INVALID, BUSY, DRAINING …).
        """
        deadline = time.monotonic() + timeout_s
        self._owner = threading.get_ident()
        try:
            self._sock = self._open(deadline)
            greeting = self._greet(hello, deadline)
        except GreenroomError as exc:
            self._end(exc)
            raise
        self.greeting = greeting
        told = greeting.get("limits") or {}
        self.limits = Limits(**{key: told[key] for key in Limits._fields if type(told.get(key)) is int and told[key] > 0})
        self._reader.max_frame = self.limits.frame
        self._ping_after_s = min(max(0.05, (greeting.get("idle_s") or 60.0) / 3), 3600.0)
        heartbeat_s = greeting.get("heartbeat_s")
        if hello.get("role") == "worker" and heartbeat_s is not None:
            self._silence_s = min(SILENCE_S, max(MIN_SILENCE_S, SILENT_BEATS * heartbeat_s))
        return greeting

    def start(self) -> None:
        """Hand the open link to a thread of its own, which pumps it until it ends."""
        self._thread = threading.Thread(target=self._run, name="greenroom-link", daemon=True)
        self._owner = 0
        self._thread.start()

    def request(self, message: dict, on_reply: Callable[[Answer], None], *, timeout_s: float = 0.0) -> int:
        """Send a request without waiting for its reply.

        Args:
            message: verb and fields; the id is added.
            on_reply: called exactly once, by the owner, with the reply or an error (not raised).
            timeout_s: how long to wait for room in the outbox. Only 0 for the owner.

        Returns:
            The request's id.

        Raises:
            ConnectError: the connection has ended; `on_reply` is not called.
            TooLargeError: the frame is over the broker's limit; nothing was sent.
            BusyError: no room in the outbox for so long; nothing was sent.
        """
        with self._changed:
            number = self._next_id
            self._next_id += 1
        frame = check_size(encode_frame({**message, "id": number}), self.limits.frame)
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(frame) or self.closed_by is not None, timeout=timeout_s)
            if self.closed_by is not None or self._is_closing:
                raise ConnectError(self.closed_by.message if self.closed_by else "the connection is being closed")
            if not self._has_room(frame):
                raise BusyError(f"{len(self._outbox)} bytes wait to be sent already", retry_after_s=1.0)
            must_wake = not self._outbox and self._owner != threading.get_ident()
            self._outbox += frame
            items = message.get("jobs") or message.get("leases") or ()
            self._pending[number] = (on_reply, message["verb"], 0 if isinstance(items, int) else len(items))  # of a limit they are a number
        is_asking = message["verb"] in ("ping", "heartbeat") and self._asked_at is None
        if is_asking:
            self._asked_at = time.monotonic()  # from here on the owner watches for silence
        if must_wake and (not self._send_at_once() or is_asking):
            self._waker.wake()
        return number

    def call(self, message: dict, timeout_s: float) -> dict:
        """Send a request and wait for its reply. Not for the owner.

        Raises:
            ConnectError: the connection ended, or no answer came in time. The request may have had its effect.
            GreenroomError: the error that the broker answered, by its class.
        """
        answers: list[Answer] = []
        is_done = threading.Event()

        def take(answer: Answer) -> None:
            answers.append(answer)
            is_done.set()

        deadline = time.monotonic() + timeout_s
        number = self.request(message, take, timeout_s=timeout_s)
        if not is_done.wait(max(0.0, deadline - time.monotonic())):
            with self._changed:
                if number in self._pending:
                    self._pending[number] = (_ignore, *self._pending[number][1:])
            raise ConnectError(f"the broker at {self._endpoint.address} did not answer {message['verb']} in time")
        if isinstance(answers[0], GreenroomError):
            raise answers[0]
        return answers[0]

    def pump(self, timeout_s: float) -> bool:
        """Do one turn: send, wait up to `timeout_s` for bytes or a wake-up, hand out what came, send what that caused.

        Only the owner calls it. Returns False once the connection has ended.
        """
        if not self.is_open:
            return False
        try:
            self._flush()
            self._wait(timeout_s)
            self._receive()
            self._flush()
            self._keep_alive()
        except OSError as exc:
            self._end(self._explain(exc))
        if self._is_closing:
            self._end(ConnectError("the connection was closed by this side"))
        return self.is_open

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is in the outbox if that goes at once, and end the connection. May be called twice."""
        with self._changed:
            self._is_closing = True
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            self._finish()
            return
        self._waker.wake()
        thread.join(timeout_s)

    def abandon(self) -> None:
        """Close the file descriptors and nothing else: in a forked child, where the connection is still the parent's."""
        self.closed_by = ConnectError("the connection belongs to the process that this one was forked from")
        if self._sock is not None:
            self._sock.close()
        self._waker.close()

    def _run(self) -> None:
        self._owner = threading.get_ident()
        try:
            while self.pump(self._ping_after_s):
                pass
        except Exception as exc:
            log.exception("the connection's thread failed")
            self._end(ConnectError(f"the connection's thread failed: {exc}"))

    def _finish(self) -> None:
        if self.is_open:
            try:
                self._flush()
            except OSError as exc:
                log.debug("the last bytes were not sent: %s", exc)
        self._end(ConnectError("the connection was closed by this side"))

    def _has_room(self, frame: bytes) -> bool:
        return not self._outbox or len(self._outbox) + len(frame) <= OUTBOX_BYTES

    def _open(self, deadline: float) -> ssl.SSLSocket:
        plain = _open_tcp(self._endpoint, deadline)
        sock: ssl.SSLSocket | None = None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = self._endpoint.context.wrap_socket(plain, server_hostname=self._endpoint.host,
                                                      do_handshake_on_connect=False)
            sock.settimeout(_remaining(deadline))
            sock.do_handshake()
            if not check_alpn(sock):
                raise TlsError(f"{self._endpoint.address} speaks TLS, but not greenroom/1: is it a broker's job port?")
            sock.setblocking(False)
        except OSError as exc:
            (sock or plain).close()
            raise self._explain(exc, is_handshake=True) from exc
        except TlsError:
            sock.close()
            raise
        return sock

    def _greet(self, hello: dict, deadline: float) -> dict:
        answers: list[Answer] = []
        self.request({"verb": "hello", **hello}, answers.append)
        while not answers:
            if deadline <= time.monotonic():
                raise ConnectError(f"the broker at {self._endpoint.address} did not greet in time")
            self.pump(_remaining(deadline))
        if isinstance(answers[0], GreenroomError):
            raise answers[0]
        return answers[0]

    def _send_at_once(self) -> bool:
        """Write what waits in the caller's thread while the owner sleeps; returns False if the owner must go on."""
        if not self._tls.acquire(blocking=False):
            return False
        try:
            if self.is_open:
                self._write()
            return not self._piece
        except OSError:
            return False
        finally:
            self._tls.release()

    def _flush(self) -> None:
        """Write what waits, until it is all written or the socket takes no more."""
        if self._piece or self._outbox:
            with self._tls:
                self._write()

    def _write(self) -> None:
        while self._piece or self._outbox:
            if not self._piece:
                with self._changed:
                    self._piece = bytes(self._outbox[:PIECE_BYTES])
                    del self._outbox[:PIECE_BYTES]
                    self._changed.notify_all()
            try:
                sent = self._sock.send(self._piece)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                return
            self._piece = self._piece[sent:]
            self._sent_at = time.monotonic()

    def _wait(self, timeout_s: float) -> None:
        now = time.monotonic()
        due_at = self._sent_at + self._ping_after_s
        if self._asked_at is not None:
            due_at = min(due_at, max(self._asked_at, self._received_at) + self._silence_s)
        timeout_s = max(0.0, min(timeout_s, due_at - now))
        if self._sock.pending() or self._is_closing:
            timeout_s = 0.0
        _poll([(self._waker.receiver, False), (self._sock, bool(self._piece))], timeout_s)
        self._waker.clear()

    def _receive(self) -> None:
        chunks: list[bytes] = []
        has_ended = False
        with self._tls:
            for _ in range(READS_PER_TURN):
                try:
                    data = self._sock.recv(65536)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                    break
                if not data:
                    has_ended = True
                    break
                chunks.append(data)
        if chunks:
            self._received_at = time.monotonic()
            self._asked_at = None
            try:
                self._hand_out(self._reader.feed(b"".join(chunks)))
            except ProtocolError as exc:
                self._end(ConnectError(f"{self._endpoint.address} sent what is not the protocol: {exc.message}"))
        if has_ended:
            self._end(self._closed_by_peer())

    def _closed_by_peer(self) -> ConnectError:
        sentence = f"the broker at {self._endpoint.address} closed the connection"
        if not self.greeting:
            sentence += " before it greeted (if it requires client certificates: give --cert and --key)"
        return ConnectError(sentence)

    def _hand_out(self, messages: list[dict]) -> None:
        """Give replies and notices to those who wait for them. Raises ProtocolError for what is none, after the good ones before it."""
        for message in messages:
            if "notice" in message:
                self._call_out(self._on_notice, check_notice(message))
                continue
            number = message.get("id")
            error = from_wire(message["error"]) if "error" in message else None
            if number == 0 and error is not None:  # the broker could not even read our request; it closes now
                self._end(ConnectError(f"the broker at {self._endpoint.address} refused our bytes: {error.message}"))
                return
            with self._changed:
                on_reply, verb, asked = self._pending.get(number if type(number) is int else 0, (None, "", 0))
            # Not taken out before: if this is no usable answer, the request fails with the connection.
            answer = error if error is not None else check_reply(verb, asked, message)
            with self._changed:
                self._pending.pop(number, None)
            self._call_out(on_reply, answer)
        if self._reader.failed is not None:
            raise self._reader.failed

    def _keep_alive(self) -> None:
        if not self.is_open:
            return
        now = time.monotonic()
        if self._asked_at is not None and now - max(self._asked_at, self._received_at) >= self._silence_s:
            self.was_silent = True
            self._end(ConnectError(f"the broker at {self._endpoint.address} was silent for {self._silence_s:g} s"))
        elif now - self._sent_at >= self._ping_after_s and not self._piece and not self._outbox:
            self._sent_at = now
            self.request({"verb": "ping"}, _ignore)
            self._flush()

    def _end(self, exc: GreenroomError) -> None:
        """Close, once: every request that has no reply yet is completed with a ConnectError."""
        with self._changed:
            if self.closed_by is not None:
                return
            self.closed_by = exc
            pending, self._pending = self._pending, {}
            self._outbox.clear()
            self._changed.notify_all()
        if self._sock is not None:
            with self._tls:
                self._sock.close()
        if self._owns_waker:
            self._waker.close()
        for on_reply, _, _ in pending.values():
            # An own object each: several threads may raise them at the same time.
            self._call_out(on_reply, type(exc)(exc.message) if isinstance(exc, ConnectError) else ConnectError(exc.message))
        self._call_out(self._on_close, exc)

    def _call_out(self, function: Callable | None, argument: object) -> None:
        if function is None:
            return
        try:
            function(argument)
        except Exception:
            log.exception("a receiver of replies or notices failed")

    def _explain(self, exc: OSError, *, is_handshake: bool = False) -> ConnectError:
        """Turn what the socket raised into an error whose sentence says what to do."""
        where, ca_file = self._endpoint.address, self._endpoint.ca_file
        reason = rejection_reason(exc)
        if reason == "unknown_ca":
            return TlsError(f"the broker at {where} has a certificate that the CA in {ca_file} did not sign: "
                            "give that broker's ca.crt with --ca or GREENROOM_CA")
        if reason == "bad_certificate":
            why = getattr(exc, "verify_message", "") or str(exc)
            return TlsError(f"the certificate of the broker at {where} was refused ({why.rstrip('.')}): connect to a name that "
                            "it holds, or make it anew with `python certs/gen_certs.py --name NAME`")
        if reason == "no_certificate":
            return TlsError(f"the broker at {where} requires a client certificate: give --cert and --key (made with "
                            "`python certs/gen_certs.py --client NAME`)")
        if reason in ("plain_http", "plain_tcp"):
            return TlsError(f"what listens at {where} does not speak TLS: is it a broker's job port?")
        if reason == "old_tls":
            return TlsError(f"the server at {where} does not speak TLS 1.3: is it a Greenroom broker?")
        if reason == "alpn":
            return TlsError(f"{where} speaks TLS, but not greenroom/1: is it a broker's job port?")
        if reason == "peer_refused_us":
            return TlsError(f"the broker at {where} refused our client certificate ({_short(exc)}): it must be signed by a CA "
                            "that the broker trusts, and not be expired")
        if reason == "timeout":
            return ConnectError(f"{where} did not finish the TLS handshake in time: is it a broker's job port?")
        if reason == "closed" and not is_handshake:
            return self._closed_by_peer()
        if reason == "closed":
            return ConnectError(f"{where} closed the connection during the TLS handshake")
        return ConnectError(f"the connection to the broker at {where} failed: {_short(exc)}")


def _open_tcp(endpoint: Endpoint, deadline: float) -> socket.socket:
    """Try each address of the host until one answers."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ConnectError(f"the host name {endpoint.host!r} cannot be resolved: {_short(exc)}") from exc
    failures: list[str] = []
    for position, (family, kind, proto, _, address) in enumerate(found):
        sock = socket.socket(family, kind, proto)
        try:
            # Its share of what is left: a first address that swallows packets must leave time for the others.
            sock.settimeout(_remaining(deadline) / (len(found) - position))
            sock.connect(address)
            return sock
        except OSError as exc:
            sock.close()
            failures.append("it took too long" if isinstance(exc, TimeoutError) else _short(exc))
    why = " and ".join(dict.fromkeys(failures))
    raise ConnectError(f"cannot connect to a broker at {endpoint.address} ({why}): is it running? `python broker.py` starts one")


def _poll(sockets: list[tuple[socket.socket, bool]], timeout_s: float) -> None:
    """Wait until one of the sockets can be read, or written where the flag says so."""
    if hasattr(select, "poll"):
        poller = select.poll()
        for sock, is_writing in sockets:
            poller.register(sock.fileno(), select.POLLIN | (select.POLLOUT if is_writing else 0))
        # Rounded up: a timeout of 0 would spin for the last millisecond before something is due.
        poller.poll(int(timeout_s * 1000) + 1 if timeout_s > 0 else 0)
    else:
        select.select([sock for sock, _ in sockets], [sock for sock, is_writing in sockets if is_writing], [], timeout_s)


def _remaining(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _short(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__


def _ignore(answer: Answer) -> None:
    """For replies that nobody waits for."""
