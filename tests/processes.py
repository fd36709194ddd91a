"""Real brokers and workers as child processes of a test, and plain ways to talk to them. No pytest, no mocks."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apsw

from greenroom.protocol import FrameReader, encode_frame
from greenroom.tls import client_context
from tests import checker

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 20.0


def make_certificates(directory: Path) -> Path:
    """Make a CA, a server pair and a client pair `test-client`, valid for loopback addresses including 127.0.0.2."""
    spec = importlib.util.spec_from_file_location("gen_certs", ROOT / "certs/gen_certs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_certs"] = module
    spec.loader.exec_module(module)
    module.generate(directory, names=("127.0.0.2",), clients=("test-client",))
    return directory


def until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> object:
    """Return the first true answer of `condition`, looked at every few milliseconds; fails after a deadline."""
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.01)


def _ports() -> Iterator[int]:
    """Yield ports from below the range that the kernel takes for outgoing connections, or one of those might have it a moment later.

    Each part of in_parts.py has a thousand of its own: a broker that is being restarted must not find another test's on its port.
    """
    first = 17_000 + 1000 * int(os.environ.get("TEST_PART", "0"))
    place = random.SystemRandom().randrange(1000)
    while True:
        place = (place + 1) % 1000
        yield first + place


_next_ports = _ports()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free, for processes that must come back on the same one."""
    while True:
        port = next(_next_ports)
        with socket.socket() as sock:
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port


class Process:
    """A child whose output goes to a file.

    Attributes:
        prefix: a command that runs it, such as strace with its options; looked at by each spawn.
    """

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self._command = list(command)
        self.prefix = list(prefix)
        self._env = {**{key: value for key, value in os.environ.items() if not key.startswith("GREENROOM_")},
                     "PYTHONUNBUFFERED": "1", **(env or {})}
        self.log = log
        self.process: subprocess.Popen | None = None

    def spawn(self) -> None:
        """Start it. Its log is appended to."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen([*self.prefix, *self._command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            env=self._env, cwd=self.log.parent)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed so far, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def terminate(self, within_s: float = DEADLINE_S) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(within_s)

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(DEADLINE_S)


class BrokerProcess(Process):
    """`python broker.py` on ports of its own.

    Attributes:
        host, port, web_port: where it listens, the same after a restart. url: for clients. ca: path of the CA certificate.
        data: its directory.
    """

    def __init__(self, folder: Path, certificates: Path, flags: Sequence[str] = (), *, host: str = "127.0.0.1",
                 env: dict[str, str] | None = None, prefix: Sequence[str] = (), program: Path = ROOT / "broker.py") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.host = host
        self.port = free_port(host)
        self.web_port = free_port()
        self.data = folder / "data"
        self.certificates = certificates
        self.ca = str(certificates / "ca.crt")
        command = [sys.executable, str(program), "--host", host, "--port", str(self.port),
                   "--web-port", str(self.web_port), "--data", str(self.data), "--cert", str(certificates / "server.crt"),
                   "--key", str(certificates / "server.key"), *flags]
        super().__init__(command, folder / "broker.log", env, prefix)

    @property
    def url(self) -> str:
        """Its greenroom:// address."""
        return f"greenroom://{'localhost' if self.host == '127.0.0.1' else self.host}:{self.port}"

    @property
    def client_env(self) -> dict[str, str]:
        """Environment for client.py, worker.py and benches."""
        return {"GREENROOM_URL": self.url, "GREENROOM_CA": self.ca}

    def start(self, within_s: float = DEADLINE_S) -> None:
        """Start it and wait until it is ready."""
        self.spawn()
        until(self._is_ready, f"the broker is ready; it said: {self.output[-2000:]}", within_s)

    def start_broken(self, how: str) -> None:
        """Start it once as tests/broken_broker.py, with BREAK in its environment."""
        command, env = self._command, self._env
        self._command = [command[0], str(ROOT / "tests/broken_broker.py"), *command[2:]]
        self._env = {**env, "BREAK": how}
        try:
            self.start()
        finally:
            self._command, self._env = command, env

    def comes_up(self, within_s: float = DEADLINE_S) -> bool:
        """Start it and wait until it is ready (True) or has ended (False)."""
        self.spawn()
        until(lambda: self.process.poll() is not None or self._is_ready(), f"it is ready or ends; it said: {self.output[-2000:]}",
              within_s)
        return self.process.poll() is None

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the broker ended with {self.process.returncode}: {self.output[-2000:]}")
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def restart(self, *, kill: bool = False) -> None:
        """Stop it (SIGTERM, or SIGKILL) and start it again on the same ports and store."""
        self.kill() if kill else self.terminate()
        self.start()

    def get(self, path: str) -> tuple[int, dict]:
        """GET from the REST API; returns (status, JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.web_port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def stats(self) -> dict:
        """Return /api/stats."""
        return self.get("/api/stats")[1]

    def connect(self, **hello: object) -> RawPeer:
        """Connect as a raw peer that has said hello (as a client unless `role` is given)."""
        return RawPeer(self, **hello)


class WorkerProcess(Process):
    """`python worker.py` of a broker."""

    def __init__(self, broker: BrokerProcess, name: str, flags: Sequence[str], folder: Path) -> None:
        self.name = name
        self._broker = broker
        command = [sys.executable, str(ROOT / "worker.py"), "--name", name, *flags]
        super().__init__(command, folder / f"{name}.log", broker.client_env)

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until the broker knows it."""
        self.spawn()
        if wait:
            until(self._is_connected, f"worker {self.name} is connected; it said: {self.output[-2000:]}")

    def _is_connected(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.output[-2000:]}")
        return any(worker["name"] == self.name for worker in self._broker.get("/api/workers")[1]["workers"])


class RawPeer:
    """A peer that speaks frames itself, one request at a time or pipelined."""

    def __init__(self, broker: BrokerProcess, *, timeout: float = DEADLINE_S, say_hello: bool = True, **hello: object) -> None:
        pair = broker.certificates
        context = client_context(broker.ca, pair / "test-client.crt", pair / "test-client.key")
        raw = socket.create_connection((broker.host, broker.port), timeout=timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(raw, server_hostname=broker.host)
        self.frames = FrameReader()
        self.messages: list[dict] = []
        self.notices: list[dict] = []
        self._next_id = 0
        self.greeting: dict = {}
        if say_hello:
            self.greeting = self.call("hello", **{"version": 1, "role": "client", **hello})

    def send(self, verb: str, **fields: object) -> int:
        """Send a request; returns its id."""
        self._next_id += 1
        self.sock.sendall(encode_frame({"verb": verb, "id": self._next_id, **fields}))
        return self._next_id

    def reply(self, request_id: int) -> dict:
        """Return the reply to a request, keeping what else comes. Raises ConnectionError at the end of the stream."""
        while True:
            for place, message in enumerate(self.messages):
                if message.get("id") == request_id:
                    return self.messages.pop(place)
            self._receive()

    def notice(self) -> dict:
        """Return the next notice."""
        while not self.notices:
            self._receive()
        return self.notices.pop(0)

    def _receive(self) -> None:
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the broker closed the connection")
        for message in self.frames.feed(data):
            (self.notices if "notice" in message else self.messages).append(message)
        if self.frames.failed is not None:
            raise self.frames.failed

    def call(self, verb: str, **fields: object) -> dict:
        """Send a request and return its reply."""
        return self.reply(self.send(verb, **fields))

    def closes(self) -> bool:
        """Read to the end of the stream; returns True when it comes, within the socket's timeout."""
        try:
            while True:
                self._receive()
        except (ConnectionError, OSError) as exc:
            return not isinstance(exc, TimeoutError)

    def close(self) -> None:
        """Just close, without a bye."""
        self.sock.close()


class LoadProcess:
    """tests/load_process.py as a child, told what to do. What it sees is a history for tests/checker.py.

    Attributes:
        figures: what it counted over the whole run, after `drained`.
    """

    SEED = 20_250_701
    IN_FLIGHT = 1000  # requests without an answer when it kills
    LEASE_S = 5.0  # of the brokers that it loads
    DRAIN_S = 60.0  # what is left after some kills is drained within; each kill leaves a second's work more

    def __init__(self, broker: BrokerProcess, history: Path, *, producers: int = 4, workers: int = 2, prefix: str = "w") -> None:
        self.history = history
        self.broker = broker
        self.figures: dict = {}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/load_process.py"), str(broker.port), broker.ca, str(history), str(self.SEED),
             str(producers), str(workers), prefix],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def do(self, what: str, **more: object) -> dict:
        """Give a command; returns its figures. A pipe gevent reads: the child's own deadlines bound the wait."""
        print(json.dumps({"do": what, **more}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the load process ended with {self._process.poll()}"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer

    def until_killed(self, rng: random.Random, number: int = signal.SIGKILL, *, held_s: float = 0.0) -> dict:
        """Load the broker for a random number of answers (and until a lease is so old), until it is killed with many requests in
        flight."""
        answer = self.do("load", pid=self.broker.pid, kill_after=rng.randint(100, 1000), in_flight=self.IN_FLIGHT, number=number,
                         seconds=0.0, held_s=held_s)
        assert self.broker.process.wait(DEADLINE_S) == (-number if number == signal.SIGKILL else 0)
        return answer

    def drained(self, kills: int = 0) -> checker.Report:
        """Drain what so many kills left, and judge all that was seen."""
        self.figures = self.do("drain", seconds=self.DRAIN_S + 2.0 * kills)
        return checker.check(checker.load([self.history]), lease_s=self.LEASE_S)

    def end(self) -> None:
        """Close its input, which ends it."""
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def database(broker: BrokerProcess) -> apsw.Connection:
    """Open the store of a broker that does not run."""
    return apsw.Connection(str(broker.data / "greenroom.db"), flags=apsw.SQLITE_OPEN_READWRITE)


def integrity(broker: BrokerProcess) -> str:
    """Return what SQLite finds when it checks the store of a broker that does not run: "ok". Leaves the log as it is."""
    with database(broker) as db:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        answer = db.pragma("integrity_check")
    db.close()
    return answer


def last_line(text: str) -> str:
    """Return the last line that is not empty, for messages of scripts that failed."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1] if lines else ""
