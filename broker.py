"""The broker program: configuration, store, TLS listener, web page, all on one gevent hub; signals, drain, exit codes.

Puts the parts together and ends the process when one of them dies. No rules here. Exit codes: 0 stopped, 1 a part failed,
2 configuration or start refused; those of --check are in greenroom/checkup.py.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Run as `python broker.py`: say in one line what is missing, then patch before anything else is imported (bottle mixes up requests
    # when it is imported first). Imported as a module (the console script patches by itself) nothing happens here.
    import os as _os
    import sys as _sys

    _sys.path.insert(0, _os.path.dirname(_os.path.abspath(__file__)))
    from greenroom.needs import require

    require("gevent", "bottle", "msgpack", "apsw", "cryptography", "prometheus_client", "cronsim")
    from greenroom.patching import patch_all

    patch_all()

import gc
import logging
import os
import random
import resource
import signal
import ssl
import sys
from collections.abc import Callable

import gevent
from gevent.event import AsyncResult, Event
from gevent.threadpool import ThreadPool

from greenroom import __version__, checkup, config, logs, metrics, own_process
from greenroom.clock import Clock
from greenroom.config import BrokerConfig
from greenroom.dispatch import Dispatch
from greenroom.engine import Engine
from greenroom.errors import BusyError, ConfigError, DrainingError, GreenroomError, StoreError
from greenroom.figures import figures
from greenroom.lanes import Window
from greenroom.leases import Caps, Timing
from greenroom.listener import SPARE_FILES, Listener
from greenroom.protocol import parse_request
from greenroom.session import Sessions
from greenroom.stores import Retention, open_store
from greenroom.stores.disk_room import DiskRoom
from greenroom.tls import ALPN, days_left, describe_certificate, server_context
from greenroom.verbs import HANDLERS
from greenroom.webui.app import make_app
from greenroom.webui.job_events import JobEvents
from greenroom.webui.live import Live
from greenroom.webui.server import serve

log = logging.getLogger("greenroom.broker")

WEB_HOST = "127.0.0.1"
#: A stopping broker ends within this, whatever peers and disks do.
STOP_WITHIN_S = 10.0
CALL_DEADLINE_S = 30.0
#: Calls of the web that wait for their answers: fewer than its connections, so that /healthz and /metrics answer while a disk hangs.
MAX_CALLS = 128
#: A COMMIT that takes longer than this makes the broker not ready; it is ready again when it returns.
COMMIT_STALLED_S = 3.0
SWITCH_INTERVAL_S = 0.0005
#: Certificates that end sooner are warned about at start.
WARN_DAYS = 14


class LocalCaller:
    """Calls verbs from inside the process, for the web: what a Connection is for a peer."""

    session = None
    deliveries_written = True
    takes_events = False  # one answer is all it takes

    def __init__(self) -> None:
        self.is_open = True
        self.open_waits: set = set()
        self.held_deliveries = 0
        self._answer: AsyncResult = AsyncResult()

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Take the reply."""
        if isinstance(answer, GreenroomError):
            self._answer.set_exception(answer)
        else:
            self._answer.set(answer)

    def notify(self, notice: dict) -> None:
        """Nothing is noticed here."""

    def flush(self) -> None:
        """Nothing is queued here."""

    def wait(self) -> dict:
        """Return the reply. Switches; raises its error, or DrainingError when none comes in time."""
        try:
            return self._answer.get(timeout=CALL_DEADLINE_S)
        except gevent.Timeout:
            raise DrainingError("the broker did not answer in time: it is stopping, or its disk stands still") from None


class Broker:
    """All parts of a running broker."""

    def __init__(self, settings: BrokerConfig, clock: Clock, log_writer: logs.LineWriter | None = None) -> None:
        self.settings = settings
        self.clock = clock
        self._log_writer = log_writer
        self._calls = 0  # of the web, that are being answered
        self.ended = Event()  # set when the process should end
        self.exit_code = 0
        self._stopping = False
        self._watcher: gevent.Greenlet | None = None
        self.context = server_context(settings.cert, settings.key, settings.client_ca or None)
        # The standard library's SSLContext would block the whole hub at the first idle peer.
        assert type(self.context).__module__.startswith("gevent."), "the standard library is not patched"
        self.certificate = describe_certificate(settings.cert)
        is_memory = settings.data == "memory:"
        self.store = open_store(settings.data, Retention(
            settings.history_age_s, settings.history_count,
            max(settings.history_age_s, settings.history_failed_age_s), settings.history_failed_count))
        self.engine = Engine(
            Caps(waiting_jobs=settings.max_waiting_jobs, waiting_bytes=settings.max_waiting_bytes, kept_jobs=settings.max_kept_jobs),
            Timing(lease_s=settings.lease_s, heartbeat_s=settings.lease_s / 3,
                   reconnect_grace_s=settings.reconnect_grace_s, restart_grace_s=settings.restart_grace_s),
            Window(settings.window_jobs, settings.window_bytes), random.random)
        self.dispatch = Dispatch(self.engine, self.store, clock, self.fail, None if is_memory else settings.data)
        self.sessions = Sessions(self.dispatch)
        self.listener = Listener(
            (settings.host, settings.port), self.context, self.sessions.serve, clock.now,
            max_connections=_connection_limit(settings.max_connections))
        self.web = None
        self.live = Live(self.call, self.security, lambda: self.dispatch.batches.changes)
        subscriptions = self.dispatch.subscriptions
        self.job_events = JobEvents(subscriptions.open, lambda viewer: subscriptions.close(viewer, clock.now()))
        self.dispatch.outside = self.outside

    def fail(self, reason: str) -> None:
        """A part died: end the process non-zero rather than live on deaf."""
        if not self.ended.is_set():
            log.critical("[Server] stopping: %s", reason)
            self.exit_code = 1
            self.ended.set()

    # -- for the web --------------------------------------------------------------------------------------------------------

    def call(self, verb: str, fields: dict) -> dict:
        """Run a verb as a session would; returns the reply's fields, raises its error. Switches."""
        try:
            if self._calls >= MAX_CALLS:
                raise BusyError("too many requests of the web wait for their answers", retry_after_s=1.0)
            self._calls += 1
            try:
                caller = LocalCaller()
                HANDLERS[verb](self.dispatch, caller, parse_request({"id": 1, "verb": verb, **fields}))
                return caller.wait()
            finally:
                self._calls -= 1
        except GreenroomError as exc:
            self.engine.tally.refuse(exc.code)
            raise

    def ready(self) -> str | None:
        """Return why the broker takes no jobs, or None. Cheap; asks nobody."""
        if self._stopping or self.ended.is_set():
            return "the broker is stopping"
        if self.dispatch.committing_s > COMMIT_STALLED_S:
            return f"the disk has not answered for {self.dispatch.committing_s:.0f} s"
        if self.dispatch.store_full:
            return "the disk is nearly full"
        if self.listener.is_short_of_files or (self.web is not None and self.web.is_short_of_files):
            return "no file descriptors are left"
        if self.listener.open - self.listener.shaking >= self.listener.max_connections:
            return "there is no room for more connections"
        return None

    def remarks(self) -> list[str]:
        """Return what a person should look at although the broker takes jobs."""
        damaged = len(self.engine.damaged)
        return [f"jobs whose row on disk is damaged: {damaged} (docs/operations.md, Damage)"] if damaged else []

    def outside(self) -> dict[str, object]:
        """Return what of `stats` only the program knows: its door and its process."""
        listener = self.listener
        return {
            "door": {"open": listener.open, "shaking": listener.shaking, "max": listener.max_connections,
                     "handshakes": listener.handshakes, "protocol_errors": self.sessions.protocol_errors},
            "rejected": dict(listener.rejected),
            "process": {"resident_bytes": own_process.resident_bytes(), "cpu_s": own_process.cpu_s(),
                        "open_files": own_process.open_files(), "max_files": own_process.max_files(),
                        "viewers": self.live.viewers,
                        "log_lines_dropped": self._log_writer.dropped if self._log_writer is not None else 0},
        }

    def metrics(self) -> bytes:
        """Return the body of /metrics. Unlike `stats` it waits for no COMMIT: it must tell of a disk that hangs."""
        return metrics.exposition(figures(self.dispatch, self.ready()), self.dispatch.breathe)

    def security(self) -> dict:
        """Return what `/api/security` shows: read from the live context, listener and certificate."""
        info, listener = self.certificate, self.listener
        requires = self.context.verify_mode == ssl.CERT_REQUIRED
        return {
            "tls": True, "protocol": self.context.minimum_version.name.replace("_", "."),
            "ciphers": [cipher["name"] for cipher in self.context.get_ciphers() if cipher["protocol"] == "TLSv1.3"],
            "alpn": ALPN, "host": self.settings.host, "port": listener.server_port,
            "client_certificates": "required" if requires else "not required",
            "certificate": {
                "file": _shown_path(self.settings.cert), "subject": info.subject, "issuer": info.issuer, "sans": list(info.sans),
                "sha256": info.sha256, "key_type": info.key_type, "not_before": info.not_before, "not_after": info.not_after,
                "days_left": days_left(info, self.clock.now())},
            "policy": "connections that are not TLS 1.3 are closed and counted; the broker serves on",
            "handshakes": listener.handshakes, "rejected": dict(listener.rejected),
            "rejected_total": sum(listener.rejected.values()), "recent": list(listener.recent),
            "web": {"host": WEB_HOST, "port": self.web.port if self.web is not None else self.settings.web_port},
        }

    # -- life ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open everything. Raises StoreError, or OSError from a port, with what was opened closed again."""
        if self.settings.data != "memory:":
            DiskRoom(self.settings.data).release_if_short()
        restored = self.store.open()
        try:
            self.dispatch.restore(restored, self.settings.restart_grace_s)
            self.dispatch.start()
            self.sessions.start(self.fail)
            self._bind(self.listener.start, self.settings.host, self.settings.port, "--port")
            app = make_app(self.call, self.security, self.live, self.job_events, self.ready, self.metrics, self.remarks)
            self.web = serve(app, WEB_HOST, self.settings.web_port)
            self._bind(self.web.start, WEB_HOST, self.settings.web_port, "--web-port")
        except BaseException:
            self.listener.stop_listening()
            self.dispatch.stop(1.0)
            raise
        self._watcher = gevent.spawn(self._watch_listeners)
        self._watcher.link_exception(lambda greenlet: self.fail(f"the watcher died: {greenlet.exception!r}"))
        self._say_where(len(restored.leases))

    def _watch_listeners(self) -> None:
        """End the process when it has gone deaf; it looks fine otherwise."""
        while True:
            gevent.sleep(1.0)
            for name, server in (("jobs", self.listener), ("web", self.web)):
                reason = server.why_deaf()
                if reason is not None:
                    self.fail(f"the {name} listener is broken: {reason}")
                    return

    @staticmethod
    def _bind(start: Callable[[], None], host: str, port: int, flag: str) -> None:
        try:
            start()
        except OSError as exc:
            why = os.strerror(exc.errno) if exc.errno else str(exc)
            raise ConfigError(f"cannot listen on {host}:{port}: {why}; choose another with {flag}") from None

    def _say_where(self, leases: int) -> None:
        states = self.engine.totals
        log.info("[Server] greenroom %s, pid %d", __version__, os.getpid())
        log.info("[Server] jobs: greenroom://%s:%d (TLS 1.3, client certificates %s)", self.settings.host,
                 self.listener.server_port, "required" if self.settings.client_ca else "not required")
        log.info("[Server] dashboard: http://%s:%d/", WEB_HOST, self.web.port)
        log.info("[Server] store: %s (%d jobs wait, %d leases hold for %g s)", self.settings.data
                 if self.settings.data == "memory:" else os.path.abspath(self.settings.data), sum(states[1:3]), leases,
                 self.settings.restart_grace_s)
        left = days_left(self.certificate, self.clock.now())
        if left <= 0:
            log.error("[Server] the certificate %s ended %.1f days ago, clients and workers refuse it: python certs/gen_certs.py renews "
                      "it, then restart", self.settings.cert, -left)
        elif left < WARN_DAYS:
            log.warning("[Server] the certificate %s ends in %.1f days: python certs/gen_certs.py renews it",
                        self.settings.cert, left)

    def stop(self) -> None:
        """Drain and close: accept nobody, tell workers, commit, close. Ends within STOP_WITHIN_S."""
        self._stopping = True
        log.info("[Server] stopping: %d leases are kept for the next start", self.engine.leases)
        self._watcher.kill()
        self.listener.stop_listening()
        with gevent.Timeout(STOP_WITHIN_S, False):
            if self.exit_code == 0:
                self.dispatch.drain()
                self.sessions.announce_drain()
            self.live.stop()
            self.job_events.stop()
            if self.web is not None:
                self.web.stop(1.0)
            if self.exit_code == 0:
                self._wait_for_commits()
            self.sessions.stop(2.0)
            self.dispatch.stop(2.0)
        log.info("[Server] stopped")

    def _wait_for_commits(self) -> None:
        try:
            self.dispatch.wait_for_commit(5.0)
        except DrainingError as exc:
            log.error("[Server] %s", exc)
            self.exit_code = 1


def _shown_path(path: str) -> str:
    """Return a path as a person would type it: relative to the checkout if it lies there."""
    full = os.path.abspath(path)
    inside = os.path.join(str(config.CHECKOUT), "")
    return full[len(inside):] if full.startswith(inside) else path


def _connection_limit(wanted: int) -> int:
    """Return how many connections to take: what the file limit allows, or less if so configured."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(16, soft - SPARE_FILES)
    return min(wanted, possible) if wanted else possible


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as exc:
            log.warning("[Server] the file limit stays at %d: %s", soft, exc)


def _watch_signals(broker: Broker) -> None:
    """SIGTERM and SIGINT: the first drains, the second ends at once, leaving leases to the restart grace."""
    def on_signal() -> None:
        if broker.ended.is_set():
            os._exit(1)
        broker.ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, on_signal)


def _tune_interpreter() -> None:
    """Settings for the whole process, made once it serves."""
    # The commit thread asks for the GIL some five times a COMMIT; a busy hub lets it wait for this long each time (5 ms by
    # default: 26 ms a commit instead of 2). Nobody else asks, so the hub loses nothing in between.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _tune_garbage_collection()


def _tune_garbage_collection() -> None:
    """Keep what exists out of later collections, which are for young objects only: jobs and connections are freed by reference counts.

    Each collection looks at as many objects as the first threshold says, each tenth at all since the tenth before; 10,000 objects take
    2 to 3 ms of the hub. The oldest, a million with many connections, are not looked at in practice: that takes 0.2 s and finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 10_000)


MakeBroker = Callable[[BrokerConfig, Clock, logs.LineWriter], Broker]


def main(argv: list[str] | None = None, make: MakeBroker = Broker) -> int:
    """Run a broker until it is told to stop, or only look (--check); returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if "--check" in argv:
        return checkup.check(argv, os.environ, print)
    try:
        settings = config.load(argv, os.environ)
    except ConfigError as exc:
        sys.stderr.write(f"broker.py: {exc}\n")
        return 2
    os.umask(0o077)
    writer = logs.set_up(settings.log_level)
    gevent.get_hub().exception_stream = logs.ErrorStream()
    writing = ThreadPool(1).spawn(writer.run)
    try:
        return _run(settings, writer, make)
    finally:
        writer.finish()
        writing.wait(2.0)


def _run(settings: BrokerConfig, writer: logs.LineWriter, make: MakeBroker) -> int:
    _raise_file_limit()
    try:
        broker = make(settings, Clock(), writer)
        broker.start()
    except (ConfigError, StoreError) as exc:
        sys.stderr.write(f"broker.py: {exc}\n")
        return 2
    _watch_signals(broker)
    _tune_interpreter()
    broker.ended.wait()
    broker.stop()
    return broker.exit_code


def exit_from(code: int) -> None:
    """End the process at once: threads may still wait on a disk or a pipe, and everything that must be on disk is.

    Nothing is flushed: log lines are when they are written, and a pipe that nobody reads would keep us for ever.
    """
    os._exit(code)


if __name__ == "__main__":
    exit_from(main())
