"""For users' tests: a real broker and real workers as processes, with certificates and a store of their own, on free ports.

Must not know pytest (greenroom/pytest_plugin.py). Processes are ended by their ids.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from greenroom.client import Client
from greenroom.errors import GreenroomError

START_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0

#: What a process prints is quoted up to so many characters.
OUTPUT_CHARACTERS = 3_000

# The module path of the test, so that the same modules are found; -P: no file of the user's folder comes before Python's own.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from greenroom.run import {program}; {program}()"


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

    def launch(self, flags: Sequence[str], is_ready: Callable[[], object]) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with what it printed if it ends, or takes longer than 30 s."""
        command = [sys.executable, "-P", "-c", _BOOT.format(program=self._program), json.dumps(sys.path), *flags]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                             env=self._environment)
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


class LocalBroker(Program):
    """A broker of a test's own. `with LocalBroker(folder) as broker:` starts it, and stops it with its workers.

    Args:
        folder: where store, certificates and logs go; made if missing.
        flags: more settings, `--lease-s 2` as ("--lease-s", "2").
        certificates: a folder that make_certificates has filled; None: one is made.

    Attributes:
        client: a Client of it. url, ca: for clients of your own. page: address of dashboard and REST API.
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
        self.launch(flags, lambda: self._answers(printed))

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
