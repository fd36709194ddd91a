"""A broker whose every word is written by the test: real sockets, real TLS, the real frames; for clients and workers.

Runs in the test's own process, patched by gevent or not; what it talks to may be a thread or another process.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from greenroom.protocol import FrameReader, encode_frame
from greenroom.tls import server_context

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 10.0

GREETING = {"version": 1, "broker": "scripted/1", "name": "peer", "session": 1, "now": 1e9, "lease_s": 15.0, "heartbeat_s": 5.0,
            "idle_s": 60.0, "leases": [],
            "limits": {"frame": 4194304, "payload": 1048576, "result": 1048576, "list": 1000, "leases": 1000,
                       "reserve": 1048576, "wait": 60, "waits": 256}}


def make_certificates(directory: Path, **options: object) -> Path:
    """Make a CA and a server certificate (and clients) in `directory` and return it."""
    spec = importlib.util.spec_from_file_location("gen_certs_for_scripted", ROOT / "certs" / "gen_certs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(directory, **options)
    return directory


class Peer:
    """One accepted connection; the test speaks the broker's part."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._inbox: deque[dict] = deque()
        self.silent_verbs: set[str] = set()  # heartbeats and pings are answered by themselves, except these

    def greet(self, **fields: object) -> dict:
        """Take the hello, answer it, and return it."""
        hello = self.expect("hello")
        self.send({**GREETING, **fields, "id": hello["id"]})
        return hello

    def send(self, *messages: dict) -> None:
        """Send messages in one write."""
        self._sock.sendall(b"".join(encode_frame(message) for message in messages))

    def reply(self, request: dict, **fields: object) -> None:
        """Answer a request."""
        self.send({**fields, "id": request["id"]})

    def refuse(self, request: dict, code: str, **fields: object) -> None:
        """Answer a request with an error."""
        self.send({"id": request["id"], "error": {"code": code, "message": f"scripted {code}", **fields}})

    def next(self, timeout_s: float = DEADLINE_S) -> dict | None:
        """Return the next message, None at the end of the connection; AssertionError if none comes in time."""
        deadline = time.monotonic() + timeout_s
        while not self._inbox:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no message within {timeout_s} s"
            self._sock.settimeout(left_s)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return None
            finally:
                self._sock.settimeout(DEADLINE_S)
            if not data:
                return None
            self._inbox.extend(self._reader.feed(data))
            assert self._reader.failed is None, self._reader.failed
        return self._inbox.popleft()

    def expect(self, verb: str, timeout_s: float = DEADLINE_S) -> dict:
        """Return the next request, which must be of this verb; heartbeats and pings before it are answered."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.next(max(0.001, deadline - time.monotonic()))
            assert message is not None, f"the connection ended before {verb}"
            if message["verb"] == verb:
                return message
            assert message["verb"] in ("heartbeat", "ping"), f"{message} instead of {verb}"
            if message["verb"] not in self.silent_verbs:
                self.reply(message, **({"lost": [], "cancel": []} if message["verb"] == "heartbeat" else {"now": 1e9}))

    def expect_end(self) -> None:
        """Read until the peer ends the connection."""
        while self.next() is not None:
            pass

    def close(self) -> None:
        """End the connection without a word."""
        self._sock.close()


class ScriptedBroker:
    """A listening TLS socket on a free loopback port."""

    def __init__(self, certificates: Path, *, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._context = context or server_context(certificates / "server.crt", certificates / "server.key")
        self._listener = socket.create_server(("127.0.0.1", port))
        self._peers: list[Peer] = []
        self.port = self._listener.getsockname()[1]
        self.ca = str(certificates / "ca.crt")
        self.url = f"greenroom://localhost:{self.port}"

    def accept(self, timeout_s: float = DEADLINE_S) -> Peer:
        """Wait for the next connection and finish its handshake."""
        self._listener.settimeout(timeout_s)
        plain, _ = self._listener.accept()
        plain.settimeout(DEADLINE_S)
        peer = Peer(self._context.wrap_socket(plain, server_side=True))
        self._peers.append(peer)
        return peer

    def greeted(self, **fields: object) -> Peer:
        """Wait for the next connection and greet it."""
        peer = self.accept()
        peer.greet(**fields)
        return peer

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._listener.close()
        for peer in self._peers:
            peer.close()


class Background:
    """A function running in a thread (or greenlet) of its own; `result` returns or raises what it did."""

    def __init__(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        self._value: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, args, kwargs), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., object], args: tuple, kwargs: dict) -> None:
        try:
            self._value = function(*args, **kwargs)
        except BaseException as exc:
            self._error = exc

    def result(self, timeout_s: float = DEADLINE_S) -> object:
        """Wait for the end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"not finished within {timeout_s} s"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> object:
    """Wait until the condition is true and return what it returned; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)
    return value


class Program:
    """A script of ours in a process of its own, unpatched, with its output collected."""

    def __init__(self, *arguments: str, cwd: Path | None = None, environ: dict[str, str] | None = None) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("GREENROOM_")}
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | (environ or {})
        self._process = subprocess.Popen([sys.executable, *arguments], cwd=cwd or ROOT, env=env, text=True,
                                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                         for pair in ((self._process.stdout, self.lines), (self._process.stderr, self.errors))]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))

    def line_with(self, text: str, timeout_s: float = DEADLINE_S) -> str:
        """Wait for a line of standard output that contains `text`."""
        try:
            return until(lambda: next((line for line in list(self.lines) if text in line), None), timeout_s)
        except AssertionError:
            raise AssertionError(f"no line with {text!r} in {self.lines} {self.errors}") from None

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for the exit code; the process is killed at the deadline."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"still running after {timeout_s} s: {self.lines} {self.errors}") from None
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def kill(self) -> None:
        """End it now, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
