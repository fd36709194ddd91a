"""The servers that peers.py compares, each started as a child process on loopback with its data in a directory of its own.

What is not installed raises `NotHereError` with its reason. It must not know clients, jobs or figures.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

VENV = Path(__file__).resolve().parent / ".peers-venv"
START_WITHIN_S, STOP_WITHIN_S = 40.0, 10.0
_DEBIAN = ("/usr/sbin", "/usr/lib/rabbitmq/bin", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


class NotHereError(Exception):
    """Raised when a peer cannot be measured here; the message is the reason."""


def find(program: str, *first: Path) -> str:
    """Return a program's path: in `first`, on the path, or where Debian hides it. Raises NotHereError."""
    path = os.pathsep.join([*map(str, first), os.environ.get("PATH", ""), *_DEBIAN])
    found = shutil.which(program, path=path)
    if found is None:
        raise NotHereError(f"{program} is not installed")
    return found


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A server's processes and data. A context manager; ends what it started by process id.

    Attributes:
        port: where it listens, on 127.0.0.1. folder: its data.
    """

    #: What runs it where the benchmark itself runs as root; None: root may.
    user: str | None = None

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="greenroom-peer-"))
        self._children: list[subprocess.Popen] = []

    def __enter__(self) -> Server:
        try:
            self.start()
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        for child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(self.stop_signal)
                try:
                    child.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    stop_signal = signal.SIGTERM

    def start(self) -> None:
        """Start the processes; each server's own."""
        raise NotImplementedError

    def spawn(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        """Start a child in the server's directory, as its user."""
        environ = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        with (self.folder / "log").open("ab") as log:
            self._children.append(subprocess.Popen([*self._as_user(), *command], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                                                   stderr=log, env={**environ, "HOME": str(self.folder), **(env or {})}))

    def _as_user(self) -> list[str]:
        if self.user is None or os.getuid() != 0:
            return []
        try:
            entry = pwd.getpwnam(self.user)
        except KeyError:
            raise NotHereError(f"there is no user {self.user} to run it as") from None
        os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        return [find("setpriv"), f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]

    def finish(self, command: Sequence[str]) -> None:
        """Run a command as the server's user to its end. Raises NotHereError if it fails."""
        done = subprocess.run([*self._as_user(), *command], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=START_WITHIN_S)
        if done.returncode != 0:
            raise NotHereError(f"{Path(command[0]).name} failed: {_last_line(done.stderr)}")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while not self.is_ready():
            if any(child.poll() is not None for child in self._children) or time.monotonic() > deadline:
                raise NotHereError(f"it did not start: {_last_line((self.folder / 'log').read_text(errors='replace'))}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


class Beanstalkd(Server):
    """`fsync_ms`: 0 syncs before each answer, 50 is the default of `-b`."""

    def __init__(self, fsync_ms: int) -> None:
        super().__init__()
        self._fsync_ms = fsync_ms

    def start(self) -> None:
        self.spawn([find("beanstalkd"), "-l", "127.0.0.1", "-p", str(self.port), "-b", str(self.folder), f"-f{self._fsync_ms}"])


class Redis(Server):
    """`fsync`: what `appendfsync` says, always or everysec. No snapshots: they would only add work."""

    def __init__(self, fsync: str) -> None:
        super().__init__()
        self._fsync = fsync

    def start(self) -> None:
        self.spawn([find("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", "",
                    "--appendonly", "yes", "--appendfsync", self._fsync])


class Nats(Server):
    """`sync_interval`: always, or a time such as 2m, which is the default."""

    user = "nobody"

    def __init__(self, sync_interval: str) -> None:
        super().__init__()
        self._sync_interval = sync_interval

    def start(self) -> None:
        program = find("nats-server", VENV / "bin")
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout.rsplit("v", 1)[-1].strip()
        if tuple(map(int, version.split(".")[:2])) < (2, 10):
            raise NotHereError(f"nats-server {version} has no sync_interval, 2.10 has")
        config = self.folder / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self.folder}/js", '
                          f'sync_interval: {self._sync_interval} }}\n')
        # The program may lie where its user cannot look, so it runs from a copy.
        copy = self.folder / "nats-server"
        shutil.copy(program, copy)
        self.spawn([str(copy), "-c", str(config)])


class RabbitMq(Server):
    """A node of its own, with its own port mapper, since that would outlive it."""

    user = "rabbitmq"

    def start(self) -> None:
        program, mapper_port = find("rabbitmq-server", Path("/usr/lib/rabbitmq/bin")), free_port()
        mapper = {"ERL_EPMD_PORT": str(mapper_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\n"
                                                   "vm_memory_high_watermark.relative = 0.4\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        self.spawn([find("epmd"), "-port", str(mapper_port), "-address", "127.0.0.1"], mapper)
        self.spawn([program], {
            **mapper, "RABBITMQ_NODENAME": f"peer{self.port}@localhost", "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"), "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"), "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}"})


class Gearmand(Server):
    """`is_stored`: background jobs are kept in its SQLite queue, else all are in memory."""

    user = "nobody"

    def __init__(self, *, is_stored: bool) -> None:
        super().__init__()
        self._is_stored = is_stored

    def start(self) -> None:
        queue = ["-q", "libsqlite3", "--libsqlite3-db", str(self.folder / "queue.db")] if self._is_stored else []
        self.spawn([find("gearmand"), "-L", "127.0.0.1", "-p", str(self.port), "-l", "stderr", *queue])


class PostgreSql(Server):
    """As Debian ships it: fsync and synchronous_commit on. Database `postgres`, user `postgres`, no password."""

    user = "postgres"
    stop_signal = signal.SIGINT  # its fast shutdown

    def start(self) -> None:
        data = self.folder / "data"
        self.finish([find("initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C"])
        self.spawn([find("postgres"), "-D", str(data), "-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"])

    def is_ready(self) -> bool:
        return super().is_ready() and subprocess.run(
            [find("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"], timeout=10).returncode == 0
