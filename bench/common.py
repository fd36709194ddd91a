"""What the benchmarks share: a broker of their own, a lean client, percentiles, the facts of the machine, and how results are printed.

Imported first by each script: it puts the checkout's root on the path. It measures nothing and knows no script.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from greenroom.needs import require

require("gevent", "bottle", "msgpack", "apsw", "cryptography")

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import resource
import select
import shutil
import socket
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import msgpack

from greenroom import config
from greenroom.endpoint import Endpoint, find_endpoint
from greenroom.errors import ConfigError, GreenroomError
from greenroom.protocol import DEFAULT_LIMITS, HEADER, FrameEncoder
from greenroom.tls import check_alpn

#: Exit codes of the scripts: a result was wrong; wrong use or settings; nobody to connect to.
WRONG_RESULT, USAGE, NO_CONNECTION = 1, 2, 3

START_WITHIN_S = 20.0
STOP_WITHIN_S = 60.0
ANSWER_WITHIN_S = 60.0

ID_BYTES = 8  # of a request's id in a packed frame
RECORD_BYTES = 16 * 1024  # a full TLS record

_encode = FrameEncoder()  # each process of a benchmark has one thread


class BenchError(Exception):
    """Raised when a measurement cannot be made or a check failed; the message is one sentence for a person."""


def run(main: Callable[[], int]) -> None:
    """Run a script's main and exit with its code; what goes wrong as it may is told in one line."""
    raise_file_limit()
    try:
        sys.exit(main())
    except (BenchError, GreenroomError, OSError) as exc:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {exc}\n")
        sys.exit(USAGE if isinstance(exc, ConfigError) else WRONG_RESULT)
    except KeyboardInterrupt:
        sys.exit(130)


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def positive(text: str) -> int:
    """Return the integer of an argument, at least 1; for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


# -- a broker of its own ----------------------------------------------------------------------------------------------------


class Certificates:
    """A directory that lasts as long as the script, with certificates made for it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="greenroom-bench-"))
        spec = importlib.util.spec_from_file_location("gen_certs", ROOT / "certs" / "gen_certs.py")
        gen_certs = importlib.util.module_from_spec(spec)
        sys.modules["gen_certs"] = gen_certs
        spec.loader.exec_module(gen_certs)
        gen_certs.generate(self.directory)

    def __enter__(self) -> Certificates:
        return self

    def __exit__(self, *details: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class Broker:
    """`python broker.py` as a process with an empty store in a directory of its own and its shipped defaults. A context manager.

    Attributes:
        endpoint: where it listens, the same after a restart. web_port: of its page. pid: its process.
    """

    def __init__(self, certificates: Certificates) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="broker-", dir=certificates.directory))
        self._data, self._log = self._folder / "data", self._folder / "broker.log"
        port, self.web_port = _free_port(), _free_port()
        self._flags = ["--port", str(port), "--web-port", str(self.web_port), "--data", str(self._data),
                       "--cert", str(certificates.directory / "server.crt"), "--key", str(certificates.directory / "server.key")]
        self.endpoint = find_endpoint(f"greenroom://localhost:{port}", ca=str(certificates.directory / "ca.crt"), environ={})
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def data(self) -> Path:
        """The directory of its store, made at its first start."""
        return self._data

    @property
    def settings(self) -> dict[str, object]:
        """What it runs with, without the paths."""
        effective = dataclasses.asdict(config.load(self._flags, {}))
        return {name: value for name, value in effective.items() if name not in ("data", "cert", "key")}

    def start(self) -> None:
        """Start it and return when it greets. Raises BenchError with its last words if it does not."""
        self.spawn()
        self.wait_until_it_greets().close()

    def spawn(self) -> None:
        """Start it and return at once."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GREENROOM_")}
        with self._log.open("ab") as out:
            self._process = subprocess.Popen([sys.executable, str(ROOT / "broker.py"), *self._flags], stdout=out, stderr=out,
                                             stdin=subprocess.DEVNULL, env=environ, cwd=self._folder)

    def wait_until_it_greets(self, role: str = "client", within_s: float = START_WITHIN_S) -> Peer:
        """Return a greeted connection as soon as there is one. Raises BenchError with the broker's last words if none comes."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return Peer(self.endpoint, role).open()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    words = self._log.read_text(errors="replace").strip().splitlines()
                    raise BenchError(f"the broker did not start: {words[-1] if words else 'it said nothing'}") from None
                time.sleep(0.005)

    def stop(self) -> None:
        """SIGTERM, and wait for the end. Raises BenchError if it is not a clean one."""
        self._process.terminate()
        code = self._process.wait(STOP_WITHIN_S)
        if code != 0:
            raise BenchError(f"the broker ended with exit code {code}")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait(STOP_WITHIN_S)

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        return self._status("VmRSS:")

    def peak_memory(self) -> int:
        """Return the most that its resident memory ever was since its start, in bytes."""
        return self._status("VmHWM:")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise BenchError("the broker is gone")

    def disk(self) -> int:
        """Return what its store takes on the disk, in bytes."""
        return sum(path.stat().st_blocks * 512 for path in self._data.iterdir() if path.name.startswith("greenroom.db"))

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def count_stored(self) -> dict[str, int]:
        """Count the stopped broker's jobs with the standard library's SQLite, which shares no code with it.

        Returns:
            `waiting` (scheduled, queued or leased), `completed`, `other`; finished jobs that were pruned count as completed.
        """
        connection = sqlite3.connect(self._data / "greenroom.db")
        try:
            rows = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
            pruned = connection.execute("SELECT value FROM meta WHERE name = 'pruned'").fetchone()[0]
        finally:
            connection.close()
        counts = {"waiting": rows.pop(1, 0) + rows.pop(2, 0), "completed": rows.pop(4, 0) + pruned}
        return {**counts, "other": sum(rows.values())}

    def stored_results(self) -> Iterator[tuple[int, bytes]]:
        """Yield id and result of each completed job of the stopped broker, read as `count_stored` does; results up to 512 bytes."""
        connection = sqlite3.connect(self._data / "greenroom.db")
        try:
            yield from connection.execute("SELECT id, result FROM jobs WHERE state = 4")
        finally:
            connection.close()


_given: set[int] = set()  # ports that this process has, though nobody listens there yet


def _free_port() -> int:
    # Below the range that the kernel takes for outgoing connections: one of those might have it when the broker comes back. Above those
    # that tests/processes.py takes.
    while True:
        port = random.SystemRandom().randrange(30_000, 32_768)
        if port in _given:
            continue
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


# -- a lean client ----------------------------------------------------------------------------------------------------------


class Peer:
    """One verified TLS connection that speaks frames, non-blocking, for a single thread: `Loop` drives many of them.

    Attributes:
        greeting: the broker's, {} before. number: what the script calls it.
        in_flight: request id -> whatever the script keeps for the reply.
    """

    def __init__(self, endpoint: Endpoint, role: str = "client", number: int = 0, name: str | None = None,
                 hello: dict[str, object] | None = None) -> None:
        self.number = number
        self.greeting: dict = {}
        self.in_flight: dict[int, object] = {}
        self._endpoint = endpoint
        self._hello = {"version": 1, "role": role, **({"name": name} if name else {}), **(hello or {})}
        self._partial = b""  # of a frame that is not there whole
        self._next_id = 0
        self._outgoing = bytearray()
        self._has_shaken_hands = False
        self.sock: ssl.SSLSocket | None = None

    def begin(self) -> Peer:
        """Start to connect."""
        # Blocking, because loopback connects or refuses at once.
        plain = socket.create_connection(("127.0.0.1", self._endpoint.port), timeout=ANSWER_WITHIN_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setblocking(False)
        self.sock = self._endpoint.context.wrap_socket(plain, server_hostname=self._endpoint.host, do_handshake_on_connect=False)
        return self

    def advance(self) -> int:
        """Go on with handshake and greeting as far as it goes; returns the poll events to wait for, 0 once greeted.

        Raises OSError (the certificate was refused, say) or BenchError.
        """
        if not self._has_shaken_hands:
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                return select.EPOLLIN
            except ssl.SSLWantWriteError:
                return select.EPOLLOUT
            if not check_alpn(self.sock):
                raise BenchError("the server does not speak greenroom/1")
            self._has_shaken_hands = True
            self.ask("hello", **self._hello)
            self.flush()
        for message in self.receive():
            if "error" in message:
                raise BenchError(f"the broker refused hello: {message['error']}")
            self.greeting = message
        return 0 if self.greeting else select.EPOLLIN

    def open(self) -> Peer:
        """Connect and greet, waiting. Raises OSError or BenchError."""
        self.begin()
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while events := self.advance():
            self._wait(events, deadline)
        return self

    def ask(self, verb: str, **fields: object) -> int:
        """Queue a request for the next flush; returns its id."""
        self._next_id += 1
        self._outgoing += _encode({"verb": verb, "id": self._next_id, **fields})
        return self._next_id

    def ask_packed(self, frame: bytes | bytearray, id_at: int) -> int:
        """Queue a request that was packed before (`pack_request`); its id is written at `id_at`. Returns the id."""
        self._next_id += 1
        frame[id_at:id_at + ID_BYTES] = self._next_id.to_bytes(ID_BYTES, "big")
        self._outgoing += frame
        return self._next_id

    def flush(self) -> bool:
        """Write what is queued as far as the socket takes it; returns whether all is written."""
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            del self._outgoing[:sent]
        return True

    def receive(self) -> list[dict]:
        """Return the messages that are there. Raises ConnectionError at the end of the stream, BenchError for bad frames.

        It decodes with bare msgpack: the load generator shares the cores with what it measures, and the checks by which
        `FrameReader` protects itself from hostile peers cost as much as the decoding. What messages hold is checked by the scripts.
        """
        buffer = self._partial
        while True:
            try:
                data = self.sock.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                raise ConnectionError("the broker closed the connection")
            buffer = buffer + data if buffer else data
            # A record that is not full was the last for now; if not, the socket is still readable. Saves a system call and an exception.
            if len(data) < RECORD_BYTES and not self.sock.pending():
                break
        messages: list[dict] = []
        position, end = 0, len(buffer)
        while end - position >= HEADER.size:
            begin = position + HEADER.size
            length = HEADER.unpack_from(buffer, position)[0]
            if not 0 < length <= DEFAULT_LIMITS.frame:
                raise BenchError(f"the broker sent a frame of {length} bytes")
            if end - begin < length:
                break
            position = begin + length
            messages.append(_decode(buffer[begin:position]))
        self._partial = buffer[position:]
        return messages

    def call(self, verb: str, **fields: object) -> dict:
        """Ask and wait for the reply, dropping what else comes. Raises BenchError if it is an error."""
        number = self.ask(verb, **fields)
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while True:
            self._wait(select.EPOLLIN if self.flush() else select.EPOLLIN | select.EPOLLOUT, deadline)
            for message in self.receive():
                if message.get("id") == number:
                    return check(message)

    def receive_within(self, seconds: float) -> list[dict]:
        """Wait for messages so long at most, in whole milliseconds, and return those that came."""
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLIN)
        return self.receive() if poller.poll(max(1, int(seconds * 1000))) else []

    def close(self) -> None:
        """Just close, without a bye."""
        if self.sock is not None:
            self.sock.close()

    def _wait(self, events: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(self.sock.fileno(), events)
        poller.poll(max(1, int((deadline - time.monotonic()) * 1000)))
        if time.monotonic() > deadline:
            raise BenchError(f"the broker did not answer within {ANSWER_WITHIN_S:g} s")


def _decode(body: bytes) -> dict:
    try:
        message = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as exc:
        raise BenchError(f"the broker sent a body that is not msgpack: {exc!r}") from None
    if type(message) is not dict:
        raise BenchError("the broker sent a body that is not a map")
    return message


def pack_request(verb: str, **fields: object) -> tuple[bytearray, int]:
    """Return the frame of a request and the place of its id in it, for `Peer.ask_packed`."""
    # An id above 2^32 takes nine bytes in msgpack, whatever it is; it is the frame's second value.
    frame = bytearray(_encode({"id": 2**63, "verb": verb, **fields}))
    return frame, HEADER.size + len(msgpack.packb("id")) + 2


def check(message: dict) -> dict:
    """Return a reply, or raise BenchError if it is an error."""
    if "error" in message:
        raise BenchError(f"the broker answered {message['error'].get('code')}: {message['error'].get('message')}")
    return message


class Loop:
    """Waits for many peers at once."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._writing: set[int] = set()

    def add(self, peer: Peer) -> None:
        """Watch a peer that has begun to connect."""
        self._peers[peer.sock.fileno()] = peer
        self._poll.register(peer.sock.fileno(), select.EPOLLIN)

    def forget(self, peer: Peer) -> None:
        """Watch a peer no more; before it is closed."""
        del self._peers[peer.sock.fileno()]
        self._writing.discard(peer.sock.fileno())
        self._poll.unregister(peer.sock.fileno())

    def watch(self, peer: Peer, events: int) -> None:
        """Wait for other events of a peer."""
        self._poll.modify(peer.sock.fileno(), events)

    def send(self, peer: Peer) -> None:
        """Write what the peer has queued; the rest as soon as it goes."""
        number = peer.sock.fileno()
        if not peer.flush():
            if number not in self._writing:
                self._writing.add(number)
                self._poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        elif number in self._writing:
            self._writing.discard(number)
            self._poll.modify(number, select.EPOLLIN)

    def ready_until(self, at: float) -> list[Peer]:
        """Do what `ready` does, waiting up to a monotonic time; right to a tenth of a millisecond, where `ready` has whole ones."""
        select.select([self._poll], [], [], max(0.0, at - time.monotonic()))
        return self.ready(0.0)

    def ready(self, timeout_s: float) -> list[Peer]:
        """Wait and return the peers whose sockets have something."""
        peers = [self._peers[number] for number, _ in self._poll.poll(max(0.0, timeout_s), 1024)]
        for peer in peers:
            if peer.sock.fileno() in self._writing:
                self.send(peer)
        return peers


class HubLag:
    """How late the timers of the broker's hub came during a step, from its `stats`: whoever watches samples, ten times a second say."""

    def __init__(self, watcher: Peer) -> None:
        self._watcher = watcher
        self._samples: list[float] = []
        self._highest = 0.0  # since the broker's start, before the step

    def begin(self) -> None:
        """Begin a step."""
        self._samples = []
        self._highest = self._watcher.call("stats")["hub"]["max_lag_ms"]

    def sample(self) -> None:
        """Note how late the latest timer came."""
        self._samples.append(self._watcher.call("stats")["hub"]["lag_ms"])

    def end(self) -> dict[str, float]:
        """Return milliseconds: `p99` of the samples, and `max`, which is the broker's own unless an earlier step had a higher one."""
        hub = self._watcher.call("stats")["hub"]
        self._samples.append(hub["lag_ms"])
        highest = hub["max_lag_ms"]
        return {"p99": percentile(self._samples, 99), "max": highest if highest > self._highest else max(self._samples)}


# -- printing ---------------------------------------------------------------------------------------------------------------


class Report:
    """Prints results: lines for people, or with `json` one object a line (then people's lines go to stderr)."""

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json

    @classmethod
    def begin(cls, title: str, args: argparse.Namespace, settings: dict[str, object] | None = None) -> Report:
        """Return a report as `args.json` says, with its head printed; the other arguments are its parameters."""
        report = cls(is_json=args.json)
        report.head(title, {key: value for key, value in vars(args).items() if key != "json"}, settings)
        return report

    def say(self, text: str = "") -> None:
        """Print a line for people."""
        print(text, file=sys.stderr if self._is_json else sys.stdout, flush=True)

    def result(self, name: str, value: float, unit: str, **params: object) -> None:
        """Print one result; `params` is what it was measured with."""
        shown = round(value, 4) if isinstance(value, float) else value
        if self._is_json:
            print(json.dumps({"name": name, "value": shown, "unit": unit, "params": params}), flush=True)
            return
        text = f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.2f}"
        given = "  ".join(f"{key}={item}" for key, item in params.items())
        print(f"{name:<34}{text:>12} {unit:<10} {given}".rstrip(), flush=True)

    def head(self, title: str, params: dict[str, object], settings: dict[str, object] | None = None) -> None:
        """Print what a figure is worth nothing without: machine, versions, commit, settings, parameters."""
        facts = machine()
        self.say(f"{title}\n{'-' * len(title)}")
        for key, value in facts.items():
            self.say(f"{key:<10}{value}")
        if settings is not None:
            self.say("broker    " + " ".join(f"{key}={value}" for key, value in settings.items() if value != ""))
        self.say("params    " + " ".join(f"{key}={value}" for key, value in params.items()) + "\n")
        if self._is_json:
            print(json.dumps({"name": "machine", "value": os.cpu_count(), "unit": "cores",
                              "params": {**facts, "broker_settings": settings, **params}}), flush=True)


def machine() -> dict[str, str]:
    """Return the facts about machine and software that go with every figure."""
    packages = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("gevent", "msgpack", "apsw", "cryptography"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "machine": f"{os.cpu_count()} x {_processor()}, {memory:.0f} GiB, {platform.system()} {platform.release()}, load {load}",
        "versions": f"Python {platform.python_version()}, {packages}, {ssl.OPENSSL_VERSION}",
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
