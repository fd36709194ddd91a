"""For users' tests: a real broker and real workers as processes, with certificates and a store of their own, on free ports.

Must not know pytest (greenroom/pytest_plugin.py). Processes are ended by their ids. The broker is started by an entry of its own
(greenroom/testing_clock.py), so that the test can move its time.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from greenroom.client import Client
from greenroom.clock import Clock
from greenroom.errors import GreenroomError
from greenroom.job import YEAR_S

START_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0
MOVE_WITHIN_S = 60.0
MOST_MOVE_S = 100 * YEAR_S

#: What a process prints is quoted up to so many characters.
OUTPUT_CHARACTERS = 3_000

# The module path of the test, so that the same modules are found; -P: no file of the user's folder comes before Python's own.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from {module} import {function}; {function}()"


def make_certificates(folder: Path) -> Path:
    """Make a CA and a broker's certificate for this machine's loopback names; returns the folder. Takes some 0.2 s."""
    package = Path(__file__).resolve().parent
    script = package / "gen_certs.py"  # in the wheel
    if not script.exists():
        script = package.parent / "certs" / "gen_certs.py"
    done = subprocess.run([sys.executable, "-P", str(script), "--dir", str(folder), "--quiet"], capture_output=True, text=True,
                          timeout=START_WITHIN_S)
    if done.returncode != 0:
        raise RuntimeError(f"certificates could not be made: {done.stderr or done.stdout}")
    return folder


class Program:
    """A broker or worker as a process that writes into a file.

    Attributes:
        log: that file.
    """

    def __init__(self, program: str, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._program = program
        # Settings of the shell, such as a URL of a real broker, must not reach a test.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GREENROOM_")}
        self._environment = {**clean, **environment, "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """What it has printed, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def launch(self, flags: Sequence[str], is_ready: Callable[[], object], *, entry: tuple[str, str] | None = None,
               files: Sequence[int] = ()) -> None:
        """Start it and wait until it is ready.

        Args:
            entry: module and function that begin it, None: the ordinary ones. files: descriptors that it gets besides.

        Raises RuntimeError with what it printed if it ends, or takes longer than 30 s.
        """
        module, function = entry or ("greenroom.run", self._program)
        command = [sys.executable, "-P", "-c", _BOOT.format(module=module, function=function), json.dumps(sys.path), *flags]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                             env=self._environment, pass_fds=files)
        deadline = time.monotonic() + START_WITHIN_S
        while not is_ready():
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the {self._program} did not start; it said:\n{self.output[-OUTPUT_CHARACTERS:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 10 s. May be called twice."""
        if not self.is_running:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for its end: what a test of a crash wants."""
        if self.is_running:
            self._process.kill()
            self._process.wait(STOP_WITHIN_S)


class BrokerClock:
    """The time of a LocalBroker, moved from the test. Clients and workers keep the real time: what falls due runs as soon as they get it.

    A worker that is connected keeps what it holds, however far time is moved: it counts as heard all the while. What ends by time alone does
    end: delays, pauses for a time, `expires_in`, run limits (`timeout`), leases that were given a deadline (`extend`), and the graces of
    a worker that is gone or a broker that was started again.
    """

    def __init__(self) -> None:
        self.moved_s = 0.0
        self._clock = Clock()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # one advance at a time

    def now(self) -> float:
        """Return the broker's time, in seconds since 1970: the real one, and what was added to it."""
        return self._clock.now() + self.moved_s

    def advance(self, seconds: float, *, silent: bool = False) -> None:
        """Let time pass, and return when the broker has done what is due by then.

        Args:
            silent: no worker is heard meanwhile: leases end as if it had stood still.

        Raises:
            ValueError: a negative number, for time never steps back, or more than a hundred years.
            RuntimeError: the broker does not run, or does not answer within 60 s.
        """
        if not 0 <= seconds <= MOST_MOVE_S:
            raise ValueError("time never steps back" if seconds < 0 else "a clock is moved by at most a hundred years")
        with self._lock:
            if self._socket is None:
                raise RuntimeError("the broker does not run")
            try:
                self._socket.sendall(json.dumps({"seconds": float(seconds), "silent": silent}).encode() + b"\n")
                told = b""
                while not told.endswith(b"\n"):
                    told += self._socket.recv(4096) or _raise_gone()
            except OSError as exc:
                raise RuntimeError(f"the broker did not move its clock: {exc}") from exc
            self.moved_s = json.loads(told)["moved_s"]

    def set_time(self, at: float | datetime) -> None:
        """Let it be this time, Unix seconds or a datetime, as `advance` would."""
        self.advance((at.timestamp() if isinstance(at, datetime) else at) - self.now())

    def connect(self) -> socket.socket:
        """Make both ends of a new connection and return the broker's."""
        self.close()
        self._socket, other = socket.socketpair()
        self._socket.settimeout(MOVE_WITHIN_S)
        return other

    def close(self) -> None:
        """Let go of the broker."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _raise_gone() -> bytes:
    raise ConnectionError("it has ended")


class LocalBroker(Program):
    """A broker of a test's own. `with LocalBroker(folder) as broker:` starts it, and stops it with its workers.

    Args:
        folder: where store, certificates and logs go; made if missing.
        flags: more settings, `--lease-s 2` as ("--lease-s", "2").
        certificates: a folder that make_certificates has filled; None: one is made.

    Attributes:
        client: a Client of it. url, ca: for clients of your own. page: address of dashboard and REST API.
        clock: moves its time.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = (), *, certificates: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__("broker", folder / "broker.log", {})
        self._folder = folder
        self._flags = list(flags)
        self._certificates = certificates or make_certificates(folder / "certs")
        self._workers: list[Program] = []
        self._numbers = itertools.count(1)
        self._ports = ("0", "0")  # jobs and web: any; after the first start those
        self.ca = str(self._certificates / "ca.crt")
        self.url = self.page = ""
        self.client: Client | None = None
        self.clock = BrokerClock()

    def __enter__(self) -> LocalBroker:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, or start it again on the same ports and store, and wait until it answers. Raises RuntimeError if it does not."""
        pair = self._certificates
        flags = ["--port", self._ports[0], "--web-port", self._ports[1], "--data", str(self._folder / "store"),
                 "--cert", str(pair / "server.crt"), "--key", str(pair / "server.key"), *self._flags]
        printed = len(self.output)
        with self.clock.connect() as end:
            self.launch([str(end.fileno()), repr(self.clock.moved_s), *flags], lambda: self._answers(printed),
                        entry=("greenroom.testing_clock", "main"), files=(end.fileno(),))

    def _answers(self, printed: int) -> bool:
        found = re.search(r"jobs: greenroom://\S+:(\d+).*?dashboard: (http://\S+:(\d+)/)", self.output[printed:], re.DOTALL)
        if found is None:
            return False
        if self.client is None:
            self._ports = (found[1], found[3])
            self.url, self.page = f"greenroom://localhost:{found[1]}", found[2]
            self.client = Client(self.url, ca=self.ca)
        try:
            self.client.ping()
        except GreenroomError:
            return False
        return True

    def start_worker(self, *tasks: str, name: str | None = None, concurrency: int = 4, pool: str = "thread",
                     flags: Sequence[str] = ()) -> Program:
        """Start a worker and wait until the broker knows it; it is stopped with the broker, or before by its `stop` or `kill`.

        Args:
            tasks: task modules, each a name or the path of a .py file (`__file__`); the built-in tasks are always there.
            name: None: w1, w2 …; pool: thread or process; flags: more of the worker's flags.

        Raises:
            RuntimeError: it did not start; the text has what it printed.
        """
        name = name or f"w{next(self._numbers)}"
        worker = Program("worker", self._folder / f"{name}.log", {"GREENROOM_URL": self.url, "GREENROOM_CA": self.ca})
        self._workers.append(worker)
        chosen = [flag for spec in tasks for flag in ("--tasks", str(spec))]
        worker.launch(["--name", name, "--concurrency", str(concurrency), "--pool", pool, *chosen, *flags],
                      lambda: any(known["name"] == name for known in self.client.workers()))
        return worker

    def close(self) -> None:
        """Stop the workers, then the broker, and close the client."""
        for worker in reversed(self._workers):
            worker.stop()
        if self.client is not None:
            self.client.close()
        self.stop()
        self.clock.close()
