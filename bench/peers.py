"""The same 100-byte no-op job through Greenroom and its peers, side by side in one run: jobs a second, ratios, and what can be lost.

Two groups. Brokers: a lean client on each one's wire (peer_brokers.py), 4 connections a side, 100 jobs in a write. Frameworks: each
one's own worker and client (peer_frameworks.py). One process submits, one works, in both. Every job must come once, unchanged, and
bring its result where there are results. What is not installed is left out and named. bench/README.md says how to install the peers.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, Report, positive, run

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import select
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from peer_brokers import BATCH, CONNECTIONS, PROTOCOLS, Link, PeerError, Work, connect, drive
from peer_payload import WARM_UP, Arrivals
from peer_servers import (VENV, Beanstalkd, Gearmand, Nats, NotHereError, PostgreSql, RabbitMq, Redis, Server, find)

BENCH = Path(__file__).resolve().parent
MEASURE_WITHIN_S = 60.0  # a contender that takes longer is reported as failed
WORKER_WITHIN_S = 30.0
WARM_UP_JOBS = 4
PAUSE_S = 0.002

#: What a power cut takes of what was acknowledged. The first is what Greenroom does, and what "equal durability" means.
SYNCED, FIFTY_MS, A_SECOND, TWO_MINUTES, ALL = ("nothing", "the last 50 ms", "the last second or two", "up to 2 minutes", "everything")

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Contender:
    """One row: a broker or framework with one setting."""

    name: str
    group: str  # brokers or frameworks
    can_lose: str  # one of the five above
    jobs: int  # about two seconds of them
    server: Callable[[], Server] | None  # None: Greenroom's own broker
    how: str  # the settings, for the reader
    protocol: str = ""  # of peer_brokers, or the name in peer_frameworks
    worker: tuple[str, ...] = ()  # what starts a framework's worker: a program of the peers' environment and its arguments
    env: dict[str, str] = field(default_factory=dict)
    versions: tuple[str, ...] = ()  # the Python packages that matter

    @property
    def is_ours(self) -> bool:
        """Whether it is Greenroom."""
        return self.server is None


def _broker(name: str, can_lose: str, jobs: int, server: Callable[[], Server] | None, protocol: str, how: str) -> Contender:
    return Contender(name, "brokers", can_lose, jobs, server, how, protocol)


def _framework(name: str, can_lose: str, jobs: int, server: Callable[[], Server] | None, protocol: str, worker: str, how: str, *,
               env: dict[str, str] | None = None, versions: str = "") -> Contender:
    return Contender(name, "frameworks", can_lose, jobs, server, how, protocol, tuple(worker.split()), env or {},
                     tuple(versions.split()))


BROKERS = (
    _broker("Greenroom", SYNCED, 60_000, None, "greenroom", "TLS 1.3; submit frames of 100; reserve 100; settles with results"),
    _broker("beanstalkd -f0", SYNCED, 4_000, lambda: Beanstalkd(0), "beanstalkd",
            "put, reserve, delete pipelined; fsync each write; no results"),
    _broker("beanstalkd", FIFTY_MS, 60_000, lambda: Beanstalkd(50), "beanstalkd",
            "put, reserve, delete pipelined; fsync every 50 ms (its default); no results"),
    _broker("Redis lists, always", SYNCED, 60_000, lambda: Redis("always"), "redis list",
            "RPUSH of 100, LMOVE pipelined to a list of the worker's, LREM pipelined; appendfsync always; no results"),
    _broker("Redis lists, everysec", A_SECOND, 60_000, lambda: Redis("everysec"), "redis list", 
            "RPUSH of 100, LMOVE pipelined to a list of the worker's, LREM pipelined; appendfsync everysec; no results"),
    _broker("Redis stream, always", SYNCED, 60_000, lambda: Redis("always"), "redis stream",
            "XADD pipelined, XREADGROUP COUNT 100, one XACK and XDEL for 100; appendfsync always; no results"),
    _broker("RabbitMQ, confirms", SYNCED, 20_000, RabbitMq, "rabbitmq",
            "durable classic queue, persistent, confirms; prefetch 200, one ack for up to 100; no results"),
    _broker("NATS JetStream, always", SYNCED, 3_000, lambda: Nats("always"), "nats",
            "file store, sync_interval always; publishes acknowledged; pull of 100; no results"),
    _broker("NATS JetStream", TWO_MINUTES, 60_000, lambda: Nats("2m"), "nats",
            "file store, sync_interval 2m (its default); publishes acknowledged; pull of 100; no results"),
    _broker("gearmand, SQLite queue", SYNCED, 600, lambda: Gearmand(is_stored=True), "gearmand background",
            "background jobs in its SQLite queue; no results"),
    _broker("gearmand", ALL, 100_000, lambda: Gearmand(is_stored=False), "gearmand", "foreground jobs in memory; results come back"),
)

_CELERY = "celery -A peer_frameworks:app worker -l WARNING"
_CELERY_BEST = _CELERY + " -P solo --without-gossip --without-mingle --without-heartbeat"
_CELERY_BEST_HOW = "solo pool, prefetch 128, no gossip, mingle or heartbeat; delay() one by one; results"
_RQ = "rq worker peers -q"
_DRAMATIQ = "dramatiq peer_frameworks:app -p 1 -t 8"
_HUEY = "huey_consumer peer_frameworks.app -q"
_PROCRASTINATE = "procrastinate --app=peer_frameworks.app worker"


def _everysec() -> Server:
    return Redis("everysec")


def _always() -> Server:
    return Redis("always")


FRAMEWORKS = (
    _framework("Greenroom", SYNCED, 10_000, None, "greenroom", "worker.py",
               "TLS 1.3; worker.py as shipped (4 threads), submit_many; results"),
    _framework("Celery + Redis", A_SECOND, 1_200, _everysec, "celery", _CELERY + " -c 1",
               "prefork with one child; delay() one by one; results", versions="celery kombu redis"),
    _framework("Celery + Redis, best found", A_SECOND, 1_600, _everysec, "celery", _CELERY_BEST, _CELERY_BEST_HOW,
               env={"PEER_PREFETCH": "128"}, versions="celery kombu redis"),
    _framework("Celery + Redis always, best found", SYNCED, 1_600, _always, "celery", _CELERY_BEST, _CELERY_BEST_HOW,
               env={"PEER_PREFETCH": "128"}, versions="celery kombu redis"),
    _framework("RQ + Redis", A_SECOND, 100, _everysec, "rq", _RQ, "forks for each job; enqueue_many; results", versions="rq redis"),
    _framework("RQ + Redis, best found", A_SECOND, 500, _everysec, "rq", _RQ + " -w rq.SimpleWorker",
               "SimpleWorker (no fork); enqueue_many; results", versions="rq redis"),
    _framework("RQ + Redis always, best found", SYNCED, 500, _always, "rq", _RQ + " -w rq.SimpleWorker",
               "SimpleWorker (no fork); enqueue_many; results", versions="rq redis"),
    _framework("Dramatiq + Redis", A_SECOND, 4_000, _everysec, "dramatiq redis", _DRAMATIQ,
               "8 threads (its default); send() one by one; results", versions="dramatiq redis"),
    _framework("Dramatiq + Redis always", SYNCED, 4_000, _always, "dramatiq redis", _DRAMATIQ,
               "8 threads (its default); send() one by one; results", versions="dramatiq redis"),
    _framework("Dramatiq + RabbitMQ, confirms", SYNCED, 2_000, RabbitMq, "dramatiq rabbitmq", _DRAMATIQ,
               "8 threads (its default); durable queue, confirm_delivery; no results", versions="dramatiq pika"),
    _framework("Huey + Redis", A_SECOND, 4_000, _everysec, "huey", _HUEY, "one thread (its default); results", versions="huey redis"),
    _framework("Huey + Redis always", SYNCED, 4_000, _always, "huey", _HUEY, "one thread (its default); results",
               versions="huey redis"),
    _framework("Procrastinate + PostgreSQL", SYNCED, 800, PostgreSql, "procrastinate", _PROCRASTINATE,
               "concurrency 1 (its default); batch_defer of 1,000; no results", versions="procrastinate psycopg"),
    _framework("Procrastinate + PostgreSQL, best found", SYNCED, 800, PostgreSql, "procrastinate", _PROCRASTINATE + " -c 10",
               "concurrency 10; batch_defer of 1,000; no results", versions="procrastinate psycopg"),
)


@dataclass
class Rates:
    """What one measurement found, jobs a second."""

    submit: float  # until the last was acknowledged
    whole: float  # from the first submit to the end of the last job


# -- brokers ------------------------------------------------------------------------------------------------------------------


def measure_broker(contender: Contender, jobs: int, certificates: Certificates) -> Rates:
    """Start the server, submit and work through lean clients, check every job. Raises NotHereError, PeerError or BenchError."""
    put, take, set_up = PROTOCOLS[contender.protocol]
    with _started(contender, certificates) as server:
        if set_up is not None:
            set_up(server.port)
        dial = (lambda: _dial_greenroom(server)) if contender.is_ours else (lambda: connect(server.port))
        start = _fork.Event()
        sides = [_Side(put, jobs, dial, start, is_taker=False), _Side(take, jobs, dial, start, is_taker=True)]
        try:
            for side in sides:
                side.receive("ready")
            start.set()
            submitted, taken = (side.receive("done") for side in sides)
        finally:
            for side in sides:
                side.end()
        if contender.is_ours:
            server.stop()
            stored = server.count_stored()
            if stored != {"waiting": 0, "completed": jobs, "other": 0}:
                raise PeerError(f"the store holds {stored} after {jobs} jobs")
    _check_numbers(taken[2], jobs)
    return Rates(jobs / (submitted[1] - submitted[0]), jobs / (taken[1] - submitted[0]))


@contextlib.contextmanager
def _started(contender: Contender, certificates: Certificates) -> Iterator[Server | Broker]:
    with (Broker(certificates) if contender.server is None else contender.server()) as server:
        yield server


def _dial_greenroom(broker: Broker) -> Link:
    endpoint = broker.endpoint
    plain = connect(endpoint.port).sock
    plain.setblocking(True)
    return Link(endpoint.context.wrap_socket(plain, server_hostname=endpoint.host))


class _Side:
    """A process that submits or takes, and what it has to say."""

    def __init__(self, dialogue: Callable, jobs: int, dial: Callable[[], Link], start: object, *, is_taker: bool) -> None:
        self._pipe, its_pipe = _fork.Pipe()
        self._process = _fork.Process(target=_run_side, args=(dialogue, jobs, dial, start, is_taker, its_pipe), daemon=True)
        self._process.start()
        its_pipe.close()

    def receive(self, kind: str) -> tuple:
        """Return what it says next, which must be of this kind. Raises PeerError with its error, or when it takes too long."""
        try:
            if not self._pipe.poll(MEASURE_WITHIN_S):
                raise PeerError(f"it was not through after {MEASURE_WITHIN_S:g} s")
            said, *rest = self._pipe.recv()
        except EOFError:
            raise PeerError("a process of the benchmark died") from None
        if said != kind:
            raise PeerError(rest[0])
        return tuple(rest)

    def end(self) -> None:
        """See that it is gone."""
        self._process.join(0.5)
        self._process.kill()
        self._process.join()


def _run_side(dialogue: Callable, jobs: int, dial: Callable[[], Link], start: object, is_taker: bool, pipe: Connection) -> None:
    try:
        work = Work(jobs)
        links = [dial() for _ in range(CONNECTIONS)]
        pipe.send(("ready",))
        start.wait(MEASURE_WITHIN_S)
        work.began_at = time.monotonic()
        drive([(link, dialogue(link, work)) for link in links], (lambda: work.is_over) if is_taker else (lambda: False))
        pipe.send(("done", work.began_at, work.ended_at, work.numbers))
    except (PeerError, OSError, ssl.SSLError, ValueError, IndexError) as exc:
        pipe.send(("failed", f"{type(exc).__name__}: {exc}"))


def _check_numbers(numbers: object, jobs: int) -> None:
    if len(numbers) != jobs or set(numbers) != set(range(jobs)):
        raise PeerError(f"{len(numbers)} jobs came, {len(set(numbers) & set(range(jobs)))} different ones of {jobs}")


# -- frameworks ---------------------------------------------------------------------------------------------------------------


def measure_framework(contender: Contender, jobs: int, certificates: Certificates) -> Rates:
    """Start server, producer and worker, run the jobs, check payloads and results. Raises NotHereError, PeerError or BenchError."""
    command = _worker_command(contender)
    with _started(contender, certificates) as server, tempfile.TemporaryDirectory(prefix="greenroom-peer-") as name:
        folder = Path(name)
        arrivals = Arrivals(folder / "arrivals")
        env = _environment(contender, server, arrivals, certificates)
        python = sys.executable if contender.is_ours else str(VENV / "bin" / "python")
        with _Child([python, str(BENCH / "peer_frameworks.py")], env, folder) as producer:
            producer.answer(WORKER_WITHIN_S)
            url = ("-u", f"redis://127.0.0.1:{server.port}") if contender.protocol == "rq" else ()
            with _Child([*command, *url], env, folder) as worker:
                producer.order(submit=[WARM_UP, WARM_UP_JOBS])
                _wait_for(arrivals, WARM_UP_JOBS, WORKER_WITHIN_S, worker)
                told = producer.order(submit=[0, jobs])
                _wait_for(arrivals, WARM_UP_JOBS + jobs, MEASURE_WITHIN_S, worker)
                checked = producer.order(check=True)
                time.sleep(0.2)  # a job that came twice would show now
        try:
            numbers, last_at = arrivals.read()
        except ValueError as exc:
            raise PeerError(str(exc)) from None
    _check_numbers(numbers, jobs)
    if not checked["right"]:
        raise PeerError("a job got a wrong result")
    return Rates(jobs / (told["ended_at"] - told["began_at"]), jobs / (last_at - told["began_at"]))


def _worker_command(contender: Contender) -> list[str]:
    program, *arguments = contender.worker
    if contender.is_ours:
        return [sys.executable, str(BENCH.parent / "worker.py"), "--tasks", str(BENCH / "peer_frameworks.py"), *arguments]
    if not (VENV / "bin" / program).exists():
        raise NotHereError(f"{program} is not in bench/{VENV.name}")
    return [find(program, VENV / "bin"), *arguments]


def _environment(contender: Contender, server: Server | Broker, arrivals: Arrivals, certificates: Certificates) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")}
    env |= {"PEER": contender.protocol, "PEER_ARRIVALS": str(arrivals.path), "PYTHONPATH": str(BENCH), **contender.env}
    if contender.is_ours:
        port = server.endpoint.port
        env |= {"GREENROOM_URL": f"greenroom://localhost:{port}", "GREENROOM_CA": str(certificates.directory / "ca.crt")}
    else:
        port = server.port
    return {**env, "PEER_PORT": str(port)}


class _Child:
    """A producer or worker process; its words go to a log, a producer's answers come from stdout. A context manager."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        self._command, self._env, self._folder = command, env, folder
        self._log = folder / f"{Path(command[0]).name}-{len(list(folder.iterdir()))}.log"

    def __enter__(self) -> _Child:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._env, cwd=self._folder, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE if "peer_frameworks.py" in self._command[-1] else log, stderr=log,
                                             start_new_session=True)
        return self

    def __exit__(self, *details: object) -> None:
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)  # a worker's own children; the group is this child's alone

    def order(self, **order: object) -> dict:
        """Give the producer an order and return its answer. Raises PeerError."""
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self.answer(MEASURE_WITHIN_S)

    def answer(self, within_s: float) -> dict:
        """Return the producer's next answer. Raises PeerError."""
        if not select.select([self._process.stdout], [], [], within_s)[0]:
            raise PeerError(f"its producer said nothing for {within_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"its producer died: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


def _wait_for(arrivals: Arrivals, count: int, within_s: float, worker: _Child) -> None:
    deadline = time.monotonic() + within_s
    while arrivals.count() < count:
        if not worker.is_running:
            raise PeerError(f"its worker died: {worker.last_words()}")
        if time.monotonic() > deadline:
            raise PeerError(f"{arrivals.count()} of {count} jobs had arrived after {within_s:g} s")
        time.sleep(PAUSE_S)


# -- rounds -------------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A contender's measurements, one a round; `reason` says why it has none."""

    contender: Contender
    rates: list[Rates] = field(default_factory=list)
    reason: str = ""
    is_wrong: bool = False  # it was there, and a check failed


def run_rounds(report: Report, contenders: list[Contender], args: argparse.Namespace, certificates: Certificates) -> list[Row]:
    """Measure everybody once a round, in turn, so that a slow minute of the machine meets all of them."""
    rows = [Row(contender) for contender in contenders]
    ends_at = time.monotonic() + args.within
    for number in range(args.rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            if time.monotonic() > ends_at:
                report.say(f"{args.within:g} s are over: the rest of the rounds is left out")
                return rows
            if not row.reason:
                _measure(report, row, number, args.jobs, certificates)
    return rows


def _measure(report: Report, row: Row, number: int, most_jobs: int | None, certificates: Certificates) -> None:
    contender = row.contender
    jobs = min(contender.jobs, most_jobs or contender.jobs)
    try:
        rates = (measure_broker if contender.group == "brokers" else measure_framework)(contender, jobs, certificates)
    except NotHereError as exc:
        row.reason = str(exc)
    except (PeerError, BenchError, OSError, subprocess.SubprocessError) as exc:
        row.reason, row.is_wrong = f"failed: {exc}", True
    else:
        row.rates.append(rates)
        report.say(f"round {number + 1}  {contender.group:<11}{contender.name:<40}{rates.submit:>10,.0f} submitted/s "
                   f"{rates.whole:>10,.0f} jobs/s")
        return
    report.say(f"round {number + 1}  {contender.group:<11}{contender.name:<40}left out: {row.reason}")


def ratios(row: Row, ours: Row | None) -> list[float]:
    """Return how many times faster Greenroom was in each round that has both; nothing for itself."""
    if ours is None or row is ours:
        return []
    return [mine.whole / theirs.whole for mine, theirs in zip(ours.rates, row.rates)]


# -- the script ---------------------------------------------------------------------------------------------------------------


def print_results(report: Report, rows: list[Row]) -> None:
    """Print a table a group, and who is next."""
    for group in ("brokers", "frameworks"):
        those = [row for row in rows if row.contender.group == group]
        ours = _find_ours(rows, group)
        if those:
            title = "Brokers, lean client" if group == "brokers" else "Frameworks, shipped worker and client"
            report.say(f"\n{title}\n{'':<40}{'jobs/s':>10} {'min':>9} {'max':>9} {'submit/s':>10} {'Greenroom is':>13}  a power cut takes")
        for row in those:
            _print_row(report, row, ratios(row, ours))
        if (nearest := find_next(those, ours)) is not None:
            report.say(f"next at equal durability: {nearest.contender.name}; Greenroom does "
                       f"{statistics.median(ratios(nearest, ours)):.2f} times its jobs")


def _print_row(report: Report, row: Row, times: list[float]) -> None:
    if not row.rates:
        report.say(f"{row.contender.name:<40}left out: {row.reason or 'no time was left'}")
        return
    whole = [rates.whole for rates in row.rates]
    factor = f"{statistics.median(times):.2f} x" if times else ""
    report.say(f"{row.contender.name:<40}{statistics.median(whole):>10,.0f} {min(whole):>9,.0f} {max(whole):>9,.0f} "
               f"{statistics.median(rates.submit for rates in row.rates):>10,.0f} {factor:>13}  {row.contender.can_lose}")


def print_json(report: Report, rows: list[Row]) -> None:
    """Print what report.py reads: for each contender its rates and ratio, or why it has none."""
    for row in rows:
        contender = row.contender
        params = {"group": contender.group, "peer": contender.name, "ours": contender.is_ours, "can_lose": contender.can_lose,
                  "fsync_before_answer": contender.can_lose == SYNCED, "how": contender.how, "versions": _versions(contender)}
        if row.reason:
            report.result("peer left out", 0, "jobs/s", **params, reason=row.reason)
        ours = _find_ours(rows, contender.group)
        for name, unit, values in (("peer jobs", "jobs/s", [rates.whole for rates in row.rates]),
                                   ("peer submits", "jobs/s", [rates.submit for rates in row.rates]),
                                   ("peer ratio", "x", ratios(row, ours))):
            if values:
                report.result(name, statistics.median(values), unit, **params, **_spread(values))


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "max": round(max(values), 3), "runs": len(values)}


def _find_ours(rows: list[Row], group: str) -> Row | None:
    return next((row for row in rows if row.contender.is_ours and row.contender.group == group), None)


def find_next(rows: list[Row], ours: Row | None) -> Row | None:
    """Return the peer of one group that comes nearest to Greenroom among those that also sync before they answer."""
    equal = [row for row in rows if row.contender.can_lose == SYNCED and ratios(row, ours)]
    return min(equal, key=lambda row: statistics.median(ratios(row, ours)), default=None)


def _versions(contender: Contender) -> str:
    """Return the versions of a framework's packages, as far as they are installed for the peers."""
    site = next(VENV.glob("lib/python3*/site-packages"), None)
    if site is None:
        return ""
    found = {item.name.lower(): item.version for item in importlib.metadata.distributions(path=[str(site)])}
    return ", ".join(f"{name} {found[name]}" for name in contender.versions if name in found)


def server_versions() -> dict[str, str]:
    """Return the version that each installed server tells."""
    asks = {"beanstalkd": "-v", "redis-server": "--version", "nats-server": "--version", "gearmand": "--version", "postgres": "--version"}
    versions = {}
    for program, argument in asks.items():
        with contextlib.suppress(NotHereError):
            done = subprocess.run([find(program, VENV / "bin"), argument], capture_output=True, text=True, timeout=10, cwd="/")
            number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
            versions[program] = number[0] if number else "unknown"
    # RabbitMQ tells its version only of a running node; the name of its folder has it.
    versions |= {"rabbitmq-server": path.name.rsplit("-", 1)[1] for path in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")}
    return versions


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="peers.py", description="The same job through Greenroom and its peers, side by side.")
    parser.add_argument("--rounds", type=positive, default=3, help="measure everybody so often, in turn (default: 3)")
    parser.add_argument("--jobs", type=positive, help="at most so many jobs a measurement (default: two seconds' worth)")
    parser.add_argument("--within", type=float, default=1800.0, metavar="SECONDS",
                        help="begin nothing after so long, and print what there is (default: 1,800)")
    parser.add_argument("--only", metavar="A,B", help="those whose names contain one of these, and Greenroom")
    parser.add_argument("--group", choices=("brokers", "frameworks"), help="only this group")
    parser.add_argument("--list", action="store_true", help="name the contenders and end")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for; 1 if somebody was there and a check failed."""
    args = build_parser().parse_args()
    wanted = [part.strip().lower() for part in (args.only or "").split(",") if part.strip()]
    contenders = [contender for contender in (*BROKERS, *FRAMEWORKS)
                  if (not args.group or contender.group == args.group)
                  and (not wanted or contender.is_ours or any(part in contender.name.lower() for part in wanted))]
    report = Report(is_json=args.json)
    if args.list:
        for contender in contenders:
            report.say(f"{contender.group:<11}{contender.name:<40}loses {contender.can_lose}; {contender.how}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever stops it leaves no server behind
    with Certificates() as certificates:
        params = {"rounds": args.rounds, "connections": CONNECTIONS, "batch": BATCH, "payload": 100, "servers": server_versions()}
        report.head("Peers", params, Broker(certificates).settings)
        rows = run_rounds(report, contenders, args, certificates)
    print_results(report, rows)
    if args.json:
        print_json(report, rows)
    return 1 if any(row.is_wrong for row in rows) else 0


if __name__ == "__main__":
    run(main)
