"""How many jobs a second a broker moves: submit, reserve, settle over TLS, each acknowledged one on disk, each one checked.

Starts a broker of its own with its shipped defaults. Producers and consumers are processes of their own that speak frames through
lean clients; what a worker does with a job is no part of it. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import (BenchError, Broker, Certificates, Loop, Peer, Report, check, percentile, positive, run)

import argparse
import multiprocessing
import os
import statistics
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from greenroom.endpoint import Endpoint

TASK = "bench.noop"
DEFAULT_BATCHES = (1, 10, 100)
DEFAULT_CONNECTIONS = (1, 16, 64)
DRAIN_FILL = {"batch": 100, "connections": 4}  # how the jobs of a drain get there
SAMPLE = 1000  # results that are read back
SAMPLE_EVERY_S = 0.05
GET_IDS = 250
NUMBER_BYTES = 8  # the job's number leads its payload, and is its result
FILLER = os.urandom(4096)
BUSY_PAUSE_S = 0.02
PAUSE_S = 0.0005
RESERVE_WAIT_S = 5.0

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Plan:
    """One measurement."""

    mode: str  # all, submit or drain
    batch: int
    connections: int  # that submit, and as many more that work
    payload: int  # bytes
    seconds: float
    jobs: int  # submit so many instead of for so long; 0: no
    pipeline: int  # submit frames that one connection has under way
    safe: bool  # with submission ids

    @property
    def ahead(self) -> int:
        """Jobs that producers may be ahead of consumers."""
        return max(5_000, 3 * self.batch * self.connections * self.pipeline)

    @property
    def params(self) -> dict[str, object]:
        """What is printed beside each result."""
        return {"mode": self.mode, "batch": self.batch, "connections": self.connections, "payload": self.payload}


@dataclass
class Outcome:
    """What a process found: numbers and ids of its jobs, in the same order, and when."""

    numbers: array = field(default_factory=lambda: array("Q"))
    ids: array = field(default_factory=lambda: array("Q"))
    began_at: float = 0.0
    ended_at: float = 0.0
    round_trips_ms: array = field(default_factory=lambda: array("f"))
    busy: int = 0  # frames that were refused and sent again
    error: str = ""


class Progress:
    """Counters in memory that the processes share: each is written by one process only."""

    def __init__(self) -> None:
        self._numbers = _fork.RawArray("q", 4)

    def __getitem__(self, place: int) -> int:
        return self._numbers[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._numbers[place] = value


SUBMITTED, SETTLED, ALL_SUBMITTED, GO = range(4)


def make_payload(number: int, size: int) -> bytes:
    """Return the payload of a job: unique by its number, and filled so that a mix-up shows."""
    start = number * 31 % 2048
    filler = FILLER[start:start + size - NUMBER_BYTES]
    return number.to_bytes(NUMBER_BYTES, "big") + filler.ljust(size - NUMBER_BYTES, b"\xa5")


# -- producing --------------------------------------------------------------------------------------------------------------


def produce(endpoint: Endpoint, plan: Plan, progress: Progress, pipe: Connection) -> None:
    """Submit until the time is over or the jobs are all there; the process's main."""
    outcome = Outcome()
    try:
        peers = [Peer(endpoint, "client", number).open() for number in range(plan.connections)]
        _wait_for_start(progress, pipe)
        _Producer(peers, plan, progress, outcome).run()
    except (BenchError, OSError) as exc:
        outcome.error = f"a producer failed: {exc}"
    progress[ALL_SUBMITTED] = 1
    pipe.send(outcome)


def _wait_for_start(progress: Progress, pipe: Connection) -> None:
    pipe.send("ready")
    while not progress[GO]:
        time.sleep(PAUSE_S)


class _Producer:
    """Keeps its connections busy with submits."""

    def __init__(self, peers: list[Peer], plan: Plan, progress: Progress, outcome: Outcome) -> None:
        self._peers = peers
        self._plan = plan
        self._progress = progress
        self._outcome = outcome
        self._next = 0
        self._acknowledged = 0
        self._loop = Loop()
        for peer in peers:
            self._loop.add(peer)

    def run(self) -> None:
        """Submit until the end of the plan, and wait for what is under way."""
        plan, outcome = self._plan, self._outcome
        outcome.began_at = time.monotonic()
        ends_at = outcome.began_at + plan.seconds
        idle = list(self._peers)
        is_held_back = False
        while True:
            is_over = self._next >= plan.jobs if plan.jobs else time.monotonic() >= ends_at
            if not is_over:
                while idle and (plan.mode != "all" or self._next - self._progress[SETTLED] < plan.ahead):
                    self._fill(idle.pop())
                is_held_back = bool(idle)
            elif not any(peer.in_flight for peer in self._peers):
                break
            for peer in self._loop.ready(PAUSE_S if is_held_back and not is_over else 0.05):
                for message in peer.receive():
                    self._take(peer, message)
                if len(peer.in_flight) < plan.pipeline and peer not in idle:
                    idle.append(peer)
        outcome.ended_at = time.monotonic()

    def _fill(self, peer: Peer) -> None:
        while len(peer.in_flight) < self._plan.pipeline:
            self._submit(peer, self._next)
            self._next += self._plan.batch
        self._loop.send(peer)

    def _submit(self, peer: Peer, first: int) -> None:
        size = self._plan.payload
        jobs = [{"task": TASK, "payload": make_payload(number, size), "encoding": "raw"}
                for number in range(first, first + self._plan.batch)]
        fields = {"submission": _submission_id()} if self._plan.safe else {}
        peer.in_flight[peer.ask("submit", jobs=jobs, **fields)] = (first, time.monotonic())

    def _take(self, peer: Peer, message: dict) -> None:
        first, asked_at = peer.in_flight.pop(message["id"])
        if message.get("error", {}).get("code") == "BUSY":
            self._outcome.busy += 1
            time.sleep(BUSY_PAUSE_S)
            self._submit(peer, first)
            self._loop.send(peer)
            return
        ids = check(message)["jobs"]
        if not all(type(job_id) is int for job_id in ids) or len(ids) != self._plan.batch:
            raise BenchError(f"a submit of {self._plan.batch} jobs was answered {ids[:3]}")
        outcome = self._outcome
        outcome.numbers.extend(range(first, first + len(ids)))
        outcome.ids.extend(ids)
        outcome.round_trips_ms.append((time.monotonic() - asked_at) * 1000)
        self._acknowledged += len(ids)
        self._progress[SUBMITTED] = self._acknowledged


def _submission_id() -> bytes:
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


# -- consuming --------------------------------------------------------------------------------------------------------------


def consume(endpoint: Endpoint, plan: Plan, progress: Progress, pipe: Connection) -> None:
    """Reserve and settle until everything submitted is settled; the process's main."""
    outcome = Outcome()
    try:
        peers = [Peer(endpoint, "worker", number).open() for number in range(plan.connections)]
        _wait_for_start(progress, pipe)
        _Consumer(peers, plan, progress, outcome).run()
    except (BenchError, OSError) as exc:
        outcome.error = f"a consumer failed: {exc}"
    pipe.send(outcome)


class _Consumer:
    """Keeps its connections reserving and settling: a settle and the next reserve leave in one write."""

    def __init__(self, peers: list[Peer], plan: Plan, progress: Progress, outcome: Outcome) -> None:
        self._peers = peers
        self._plan = plan
        self._progress = progress
        self._outcome = outcome
        self._settled = 0
        self._loop = Loop()
        for peer in peers:
            self._loop.add(peer)

    def run(self) -> None:
        """Work until producers are through and nothing is left."""
        self._outcome.began_at = time.monotonic()
        for peer in self._peers:
            self._reserve(peer)
            self._loop.send(peer)
        stalled_at = time.monotonic() + 30
        while not (self._progress[ALL_SUBMITTED] and self._settled >= self._progress[SUBMITTED]):
            before = self._settled
            for peer in self._loop.ready(0.02):
                for message in peer.receive():
                    self._take(peer, message)
                self._loop.send(peer)
            if self._settled != before:
                self._outcome.ended_at = time.monotonic()
                self._progress[SETTLED] = self._settled
                stalled_at = self._outcome.ended_at + 30
            elif time.monotonic() > stalled_at:
                raise BenchError(f"{self._progress[SUBMITTED] - self._settled} jobs never came, or their settles were not answered")

    def _reserve(self, peer: Peer) -> None:
        peer.in_flight[peer.ask("reserve", n=self._plan.batch, wait=RESERVE_WAIT_S)] = None

    def _take(self, peer: Peer, message: dict) -> None:
        leases = peer.in_flight.pop(message["id"])
        check(message)
        if leases is not None:
            if message["outcomes"] != ["OK"] * leases:
                raise BenchError(f"a settle was answered {[outcome for outcome in message['outcomes'] if outcome != 'OK'][:3]}")
            self._settled += leases
            return
        jobs = message["jobs"]
        if jobs:
            peer.in_flight[peer.ask("settle", leases=[self._work(delivery) for delivery in jobs])] = len(jobs)
        self._reserve(peer)

    def _work(self, delivery: list) -> list:
        job_id, fence, task, payload = delivery[:4]
        number = int.from_bytes(payload[:NUMBER_BYTES], "big")
        if task != TASK or payload != make_payload(number, self._plan.payload):
            raise BenchError(f"job {job_id} came with another payload than it was submitted with")
        self._outcome.numbers.append(number)
        self._outcome.ids.append(job_id)
        return [job_id, fence, "ack", payload[:NUMBER_BYTES], True]


# -- one measurement --------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What one measurement found."""

    jobs: int
    seconds: float
    commits: int
    commit_ms: list[float]
    round_trips_ms: array
    busy: int
    cpu_s: float  # that the broker used meanwhile
    memory: int  # the broker's, bytes, at the end
    waiting: int  # jobs

    @property
    def jobs_per_s(self) -> float:
        """Jobs that went the whole way of the plan, each second."""
        return self.jobs / self.seconds


def measure(certificates: Certificates, plan: Plan) -> Figures:
    """Start a broker, run the plan against it, check every job, stop the broker and count its store.

    Raises BenchError if anything was lost, doubled, changed or refused.
    """
    with Broker(certificates) as broker:
        submitted, settled, figures = (_drain if plan.mode == "drain" else _together)(broker, plan)
        if settled is not None:
            _check_pairs(submitted, settled)
            _check_results(broker, settled)
        broker.stop()
        stored = broker.count_stored()
    wanted = {"waiting": len(submitted.ids) if settled is None else 0, "completed": len(settled.ids) if settled is not None else 0,
              "other": 0}
    if stored != wanted:
        raise BenchError(f"the store holds {stored}, it should hold {wanted}")
    return figures


def _together(broker: Broker, plan: Plan) -> tuple[Outcome, Outcome | None, Figures]:
    progress = Progress()
    mains = [produce, consume] if plan.mode == "all" else [produce]
    outcomes, seen = _run_processes(broker, plan, progress, mains)
    submitted, settled = outcomes[0], outcomes[1] if len(outcomes) > 1 else None
    ended_at = (settled or submitted).ended_at
    figures = Figures(jobs=len(submitted.ids), seconds=ended_at - submitted.began_at, round_trips_ms=submitted.round_trips_ms,
                      busy=submitted.busy, waiting=0 if settled else len(submitted.ids), **seen)
    return submitted, settled, figures


def _drain(broker: Broker, plan: Plan) -> tuple[Outcome, Outcome, Figures]:
    fill = Plan("submit", DRAIN_FILL["batch"], DRAIN_FILL["connections"], plan.payload, plan.seconds, plan.jobs, 2, False)
    progress = Progress()
    submitted = _run_processes(broker, fill, progress, [produce])[0][0]
    progress[GO] = 0
    outcomes, seen = _run_processes(broker, plan, progress, [consume])
    settled = outcomes[0]
    figures = Figures(jobs=len(settled.ids), seconds=settled.ended_at - settled.began_at, round_trips_ms=array("f"), busy=0, waiting=0,
                      **seen)
    return submitted, settled, figures


def _run_processes(broker: Broker, plan: Plan, progress: Progress,
                   mains: list[Callable]) -> tuple[list[Outcome], dict[str, object]]:
    """Run these mains to their end; returns their outcomes and what was seen of the broker meanwhile (fields of Figures)."""
    processes, pipes = [], []
    for main in mains:
        pipe, its_pipe = _fork.Pipe()
        process = _fork.Process(target=main, args=(broker.endpoint, plan, progress, its_pipe), daemon=True)
        process.start()
        its_pipe.close()
        processes.append(process)
        pipes.append(pipe)
    try:
        for pipe in pipes:
            first = _receive(pipe)
            if first != "ready":
                raise BenchError(first.error)
        watcher = Peer(broker.endpoint).open()
        commits, cpu_s = watcher.call("stats")["store"]["commits"], broker.cpu()
        commit_ms: list[float] = []
        progress[GO] = 1
        while not pipes[-1].poll(SAMPLE_EVERY_S):
            commit_ms.append(watcher.call("stats")["store"]["commit_ms"])
        seen = {"commits": watcher.call("stats")["store"]["commits"] - commits, "cpu_s": broker.cpu() - cpu_s,
                "commit_ms": commit_ms, "memory": broker.memory()}
        watcher.close()
        outcomes = [_receive(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    for outcome in outcomes:
        if outcome.error:
            raise BenchError(outcome.error)
    return outcomes, seen


def _receive(pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise BenchError("a process of the benchmark died") from None


def _check_pairs(submitted: Outcome, settled: Outcome) -> None:
    """Each submitted job must have come once, under the id that its producer was told."""
    if len(settled.ids) != len(set(settled.ids)):
        raise BenchError(f"{len(settled.ids) - len(set(settled.ids))} jobs came more than once")
    if dict(zip(submitted.ids, submitted.numbers)) != dict(zip(settled.ids, settled.numbers)):
        raise BenchError("jobs that came are not those that were submitted")


def _check_results(broker: Broker, settled: Outcome) -> None:
    """Read back a sample over the whole run: its results must be those that were settled."""
    step = max(1, len(settled.ids) // SAMPLE)
    pairs = list(zip(settled.ids[::step], settled.numbers[::step]))[:SAMPLE]
    reader = Peer(broker.endpoint).open()
    views: list[dict] = []
    for first in range(0, len(pairs), GET_IDS):
        views += reader.call("get", jobs=[job_id for job_id, _ in pairs[first:first + GET_IDS]])["jobs"]
    reader.close()
    for (job_id, number), view in zip(pairs, views):
        if view.get("state") != "completed" or view["result"] != number.to_bytes(NUMBER_BYTES, "big"):
            raise BenchError(f"job {job_id} was settled, but its stored state and result are others: {view}")


# -- the script -------------------------------------------------------------------------------------------------------------


def print_figures(report: Report, plan: Plan, runs: list[Figures]) -> None:
    """Print one measurement's results: medians over the runs, and what spread there was."""
    rates = [figures.jobs_per_s for figures in runs]
    params = {**plan.params, "runs": len(runs), "min": round(min(rates)), "max": round(max(rates))}
    report.result("jobs", statistics.median(rates), "jobs/s", **params)
    report.result("fsyncs", statistics.median(figures.commits / figures.seconds for figures in runs), "fsyncs/s", **plan.params)
    report.result("jobs per fsync", statistics.median(figures.jobs / max(1, figures.commits) for figures in runs), "jobs", **plan.params)
    report.result("broker CPU per job", statistics.median(figures.cpu_s / figures.jobs for figures in runs) * 1e6, "us", **plan.params)
    commit_ms = [value for figures in runs for value in figures.commit_ms]
    trips = [value for figures in runs for value in figures.round_trips_ms]
    for percent in (50, 95, 99):
        report.result(f"commit p{percent}", percentile(commit_ms, percent), "ms", **plan.params)
    if trips:
        for percent in (50, 95, 99):
            report.result(f"submit acknowledged p{percent}", percentile(trips, percent), "ms", **plan.params)
    report.result("broker memory", statistics.median(figures.memory for figures in runs) / 2**20, "MiB", **plan.params,
                  waiting=runs[-1].waiting)
    report.result("refused as busy", sum(figures.busy for figures in runs), "frames", **plan.params)


def print_table(report: Report, rows: list[tuple[Plan, list[Figures]]]) -> None:
    """Print the short table of the default set."""
    report.say(f"\n{'batch':>6} {'connections':>12} {'jobs/s':>10} {'min':>9} {'max':>9} {'fsyncs/s':>9} {'ack p50 ms':>11} {'p99':>7}")
    for plan, runs in rows:
        rates = [figures.jobs_per_s for figures in runs]
        trips = [value for figures in runs for value in figures.round_trips_ms]
        fsyncs = statistics.median(figures.commits / figures.seconds for figures in runs)
        report.say(f"{plan.batch:>6} {plan.connections:>12} {statistics.median(rates):>10,.0f} {min(rates):>9,.0f} {max(rates):>9,.0f} "
                   f"{fsyncs:>9,.0f} {percentile(trips, 50):>11.2f} {percentile(trips, 99):>7.2f}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="throughput.py", description="Jobs a second: submit, reserve, settle.")
    parser.add_argument("--batch", type=positive, help="jobs in a frame (default: 1, 10 and 100)")
    parser.add_argument("--connections", type=positive, help="connections that submit, and as many that work (default: 1, 16 and 64)")
    parser.add_argument("--payload", type=positive, default=100, metavar="BYTES", help="bytes of a payload, at least 16 (default: 100)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to submit (default: 3)")
    parser.add_argument("--jobs", type=positive, default=None, help="submit so many jobs instead")
    parser.add_argument("--mode", choices=("all", "submit", "drain"), default="all",
                        help="all: submit, reserve and settle at once; submit: nobody works; drain: work off what waits")
    parser.add_argument("--pipeline", type=positive, default=1, help="submit frames that a connection has under way (default: 1)")
    parser.add_argument("--safe", action="store_true", help="submit with submission ids, as Client does")
    parser.add_argument("--runs", type=positive, default=1, help="measure so often and print medians (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if args.payload < 16 or not 0.1 <= args.seconds <= 600:
        raise BenchError("--payload must be at least 16 bytes, --seconds 0.1 to 600")
    plans = [Plan(args.mode, batch, connections, args.payload, args.seconds, args.jobs or 0, args.pipeline, args.safe)
             for batch in ((args.batch,) if args.batch else DEFAULT_BATCHES)
             for connections in ((args.connections,) if args.connections else DEFAULT_CONNECTIONS)]
    report = Report(is_json=args.json)
    rows: list[tuple[Plan, list[Figures]]] = []
    with Certificates() as certificates:
        report.head("Throughput", {key: value for key, value in vars(args).items() if key != "json"}, Broker(certificates).settings)
        for plan in plans:
            runs = [measure(certificates, plan) for _ in range(args.runs)]
            print_figures(report, plan, runs)
            report.say()
            rows.append((plan, runs))
    if len(rows) > 1:
        print_table(report, rows)
    return 0


if __name__ == "__main__":
    run(main)
