"""How many jobs a second a broker moves: submit, reserve, settle over TLS, each acknowledged one on disk, each one checked.

Starts a broker of its own with its shipped defaults. Producers and consumers are processes of their own that speak frames through
lean clients; what a worker does with a job is no part of it. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, Loop, Peer, Report, check, pack_request, percentile, positive, run
from crew import Crew, Member

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from greenroom.endpoint import Endpoint

TASK = "bench.noop"
#: (mode, batch, connections) of the default set.
DEFAULT_CELLS = (("all", 1, 1), ("all", 1, 64), ("all", 10, 64), ("all", 100, 4), ("submit", 100, 4), ("drain", 100, 4))
DEFAULT_BATCHES = (1, 10, 100)
DEFAULT_CONNECTIONS = (1, 16, 64)
DRAIN_FILL = {"batch": 100, "connections": 4}  # how the jobs of a drain get there
SAMPLE = 1000  # results that are read back over the wire; all are read from the stopped store
GET_IDS = 250
NUMBER_BYTES = 8  # the job's number begins and ends its payload, and is its result
LEAST_PAYLOAD = 2 * NUMBER_BYTES
BUSY_PAUSE_S = 0.02
PAUSE_S = 0.001
RESERVE_WAIT_S = 5.0
STALL_S = 30.0
WITHIN_S = 900.0

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
    ordered: bool = False  # to each connection that works, jobs must come in the order of their ids

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


class Progress:
    """Counters in memory that the processes share: each is written by one process only."""

    def __init__(self) -> None:
        self._numbers = _fork.RawArray("q", 3)

    def __getitem__(self, place: int) -> int:
        return self._numbers[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._numbers[place] = value


SUBMITTED, SETTLED, ALL_SUBMITTED = range(3)


def make_filler(size: int) -> bytes:
    """Return what stands between the numbers of a payload: random, the same for all jobs of this process and its children."""
    return os.urandom(size - LEAST_PAYLOAD)


def pack_numbers(numbers: array) -> bytes:
    """Return the numbers as in payloads: NUMBER_BYTES each, most significant first."""
    swapped = array("Q", numbers)
    swapped.byteswap()
    return swapped.tobytes()


def unpack_numbers(data: bytes) -> array:
    """Return the numbers that `pack_numbers` packed."""
    numbers = array("Q", data)
    numbers.byteswap()
    return numbers


class SubmitFrame:
    """A submit of so many jobs, packed once: only the numbers of its jobs, and its ids, are written anew each time.

    Packing it each time costs the producer more than the broker takes to accept it, and both share the processors.
    """

    def __init__(self, batch: int, filler: bytes, *, safe: bool) -> None:
        mark = b"\x00number\xff"  # stands nowhere else in the frame but by chance of the filler, which `find` never reaches
        job = {"task": TASK, "encoding": "raw", "payload": mark + filler + mark}
        fields = {"submission": bytes(16)} if safe else {}
        self.frame, self._id_at = pack_request("submit", **fields, jobs=[job] * batch)
        self._submission_at = self.frame.find(bytes(16)) if safe else 0
        self._first = self.frame.find(mark)
        self._second = self._first + NUMBER_BYTES + len(filler)
        self._step = (self.frame.find(mark, self._second + NUMBER_BYTES) - self._first) if batch > 1 else len(self.frame)

    def ask(self, peer: Peer, numbers: array) -> int:
        """Queue a submit of jobs with these numbers; returns the request's id."""
        packed, frame, step, first, second = pack_numbers(numbers), self.frame, self._step, self._first, self._second
        if len(numbers) == 1:
            frame[first:first + NUMBER_BYTES] = frame[second:second + NUMBER_BYTES] = packed
        else:
            for place in range(NUMBER_BYTES):  # column by column, all jobs at once
                frame[first + place::step] = frame[second + place::step] = packed[place::NUMBER_BYTES]
        if self._submission_at:
            frame[self._submission_at:self._submission_at + 16] = submission_id()
        return peer.ask_packed(frame, self._id_at)


def submission_id() -> bytes:
    """Return a submission id as clients make them: time-ordered, otherwise random."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


# -- producing --------------------------------------------------------------------------------------------------------------


def produce(member: Member, endpoint: Endpoint, plan: Plan, progress: Progress, filler: bytes) -> Outcome:
    """Submit until the time is over or the jobs are all there."""
    peers = [Peer(endpoint, "client", number).open() for number in range(plan.connections)]
    member.ready()
    producer = Producer(peers, plan, progress, filler)
    try:
        producer.run()
    finally:
        progress[ALL_SUBMITTED] = 1
    return producer.outcome


class Producer:
    """Keeps its connections busy with submits."""

    def __init__(self, peers: list[Peer], plan: Plan, progress: Progress, filler: bytes) -> None:
        self.outcome = Outcome()
        self._peers = peers
        self._plan = plan
        self._progress = progress
        self._frame = SubmitFrame(plan.batch, filler, safe=plan.safe)
        self._next = 0
        self._last = plan.jobs or sys.maxsize
        self._acknowledged = 0
        self._loop = Loop()
        for peer in peers:
            self._loop.add(peer)

    def run(self) -> None:
        """Submit until the end of the plan, and wait for what is under way."""
        plan, outcome = self._plan, self.outcome
        outcome.began_at = time.monotonic()
        ends_at = outcome.began_at + plan.seconds
        ahead = plan.ahead if plan.mode == "all" else sys.maxsize
        idle = list(self._peers)
        while True:
            is_over = self._next >= self._last if plan.jobs else time.monotonic() >= ends_at
            if not is_over:
                while idle and self._next - self._progress[SETTLED] < ahead:
                    self._fill(idle.pop())
            elif not any(peer.in_flight for peer in self._peers):
                break
            for peer in self._loop.ready(PAUSE_S if idle and not is_over else 0.05):
                was_full = len(peer.in_flight) == plan.pipeline
                for message in peer.receive():
                    self._take(peer, message)
                if was_full and len(peer.in_flight) < plan.pipeline:
                    idle.append(peer)
        outcome.ended_at = time.monotonic()

    def _fill(self, peer: Peer) -> None:
        while len(peer.in_flight) < self._plan.pipeline and self._next < self._last:
            self._submit(peer, array("Q", range(self._next, self._next + self._plan.batch)))
            self._next += self._plan.batch
        self._loop.send(peer)

    def _submit(self, peer: Peer, numbers: array) -> None:
        peer.in_flight[self._frame.ask(peer, numbers)] = (numbers, time.monotonic())

    def _take(self, peer: Peer, message: dict) -> None:
        numbers, asked_at = peer.in_flight.pop(message["id"])
        outcome = self.outcome
        if message.get("error", {}).get("code") == "BUSY":
            outcome.busy += 1
            time.sleep(BUSY_PAUSE_S)
            self._submit(peer, numbers)
            self._loop.send(peer)
            return
        try:
            ids = array("Q", check(message)["jobs"])
        except TypeError:  # an error in place of an id
            raise BenchError(f"a submit was answered {message['jobs'][:3]}") from None
        if len(ids) != len(numbers):
            raise BenchError(f"a submit of {len(numbers)} jobs was answered with {len(ids)} ids")
        outcome.numbers.extend(numbers)
        outcome.ids.extend(ids)
        outcome.round_trips_ms.append((time.monotonic() - asked_at) * 1000)
        self._acknowledged += len(ids)
        self._progress[SUBMITTED] = self._acknowledged


# -- consuming --------------------------------------------------------------------------------------------------------------


def consume(member: Member, endpoint: Endpoint, plan: Plan, progress: Progress, filler: bytes) -> Outcome:
    """Reserve and settle until everything submitted is settled."""
    peers = [Peer(endpoint, "worker", number).open() for number in range(plan.connections)]
    member.ready()
    consumer = Consumer(peers, plan, progress, filler)
    consumer.run()
    return consumer.outcome


class Consumer:
    """Keeps its connections reserving and settling: a settle and the next reserve leave in one write."""

    def __init__(self, peers: list[Peer], plan: Plan, progress: Progress, filler: bytes) -> None:
        self.outcome = Outcome()
        self._peers = peers
        self._progress = progress
        self._filler = filler
        self._settled = 0
        self._latest: dict[Peer, int] | None = dict.fromkeys(peers, 0) if plan.ordered else None
        self._reserve_frame, self._id_at = pack_request("reserve", n=plan.batch, wait=RESERVE_WAIT_S)
        self._loop = Loop()
        for peer in peers:
            self._loop.add(peer)

    def run(self) -> None:
        """Work until producers are through and nothing is left."""
        progress, outcome = self._progress, self.outcome
        outcome.began_at = time.monotonic()
        for peer in self._peers:
            self._reserve(peer)
            self._loop.send(peer)
        stalled_at = time.monotonic() + STALL_S
        while not (progress[ALL_SUBMITTED] and self._settled >= progress[SUBMITTED]):
            before = self._settled
            for peer in self._loop.ready(0.02):
                for message in peer.receive():
                    self._take(peer, message)
                self._loop.send(peer)
            if self._settled != before:
                progress[SETTLED] = self._settled
                outcome.ended_at = time.monotonic()
                stalled_at = outcome.ended_at + STALL_S
            elif time.monotonic() > stalled_at:
                raise BenchError(f"{progress[SUBMITTED] - self._settled} jobs never came, or their settles were not answered")

    def _reserve(self, peer: Peer) -> None:
        peer.in_flight[peer.ask_packed(self._reserve_frame, self._id_at)] = 0

    def _take(self, peer: Peer, message: dict) -> None:
        leases = peer.in_flight.pop(message["id"])
        check(message)
        if leases:
            if message["outcomes"] != ["OK"] * leases:
                raise BenchError(f"a settle was answered {[outcome for outcome in message['outcomes'] if outcome != 'OK'][:3]}")
            self._settled += leases
            return
        jobs = message["jobs"]
        if jobs:
            peer.in_flight[peer.ask("settle", leases=self._work(peer, jobs))] = len(jobs)
        self._reserve(peer)

    def _work(self, peer: Peer, jobs: list[list]) -> list[list]:
        """Check the jobs that came to a connection and return their acks."""
        ids = [job[0] for job in jobs]
        if self._latest is not None:
            if [self._latest[peer], *ids] != sorted([self._latest[peer], *ids]):
                raise BenchError(f"after job {self._latest[peer]} the jobs {ids} came out of their order")
            self._latest[peer] = ids[-1]
        payloads = [job[3] for job in jobs]
        results = [payload[:NUMBER_BYTES] for payload in payloads]
        filler = self._filler
        if payloads != [result + filler + result for result in results] or any(job[2] != TASK for job in jobs):
            raise BenchError(f"one of the jobs {ids} came with another payload than it was submitted with")
        self.outcome.numbers.extend(unpack_numbers(b"".join(results)))
        self.outcome.ids.extend(ids)
        return [[job[0], job[1], "ack", result, True] for job, result in zip(jobs, results)]


WHO = {produce: "producer", consume: "consumer"}  # as printed


# -- one measurement --------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What one measurement found."""

    jobs: int
    seconds: float
    round_trips_ms: array
    busy: int
    waiting: int  # jobs, at the end
    commits: int
    store: dict  # of `stats`, at the end
    hub: dict
    memory: int  # the broker's, bytes, at the end
    cpu_s: dict[str, float]  # that broker, producer and consumer used meanwhile

    @property
    def jobs_per_s(self) -> float:
        """Jobs that went the whole way of the plan, each second."""
        return self.jobs / self.seconds


def measure(certificates: Certificates, plan: Plan) -> Figures:
    """Start a broker, run the plan against it, check every job, stop the broker, count its store and check every result in it.

    Raises BenchError if anything was lost, doubled, changed or refused.
    """
    with Broker(certificates) as broker:
        submitted, settled, figures = (_drain if plan.mode == "drain" else _together)(broker, plan)
        if settled is not None:
            check_pairs(submitted, settled)
            _check_sample(broker, settled)
        broker.stop()
        done = len(settled.ids) if settled is not None else 0
        stored, wanted = broker.count_stored(), {"waiting": len(submitted.ids) - done, "completed": done, "other": 0}
        if stored != wanted:
            raise BenchError(f"the store holds {stored}, it should hold {wanted}")
        if settled is not None:
            _check_results(broker, settled)
    return figures


def _together(broker: Broker, plan: Plan) -> tuple[Outcome, Outcome | None, Figures]:
    mains = [produce, consume] if plan.mode == "all" else [produce]
    outcomes, seen = run_processes(broker, plan, Progress(), mains, make_filler(plan.payload))
    submitted, settled = outcomes[0], outcomes[1] if len(outcomes) > 1 else None
    ended_at = (settled or submitted).ended_at
    figures = Figures(jobs=len(submitted.ids), seconds=ended_at - submitted.began_at, round_trips_ms=submitted.round_trips_ms,
                      busy=submitted.busy, waiting=0 if settled else len(submitted.ids), **seen)
    return submitted, settled, figures


def _drain(broker: Broker, plan: Plan) -> tuple[Outcome, Outcome, Figures]:
    fill = Plan("submit", DRAIN_FILL["batch"], DRAIN_FILL["connections"], plan.payload, plan.seconds, plan.jobs, 2, False)
    progress, filler = Progress(), make_filler(plan.payload)
    submitted = run_processes(broker, fill, progress, [produce], filler)[0][0]
    (settled,), seen = run_processes(broker, plan, progress, [consume], filler)
    figures = Figures(jobs=len(settled.ids), seconds=settled.ended_at - settled.began_at, round_trips_ms=array("f"), busy=0, waiting=0,
                      **seen)
    return submitted, settled, figures


def run_processes(broker: Broker, plan: Plan, progress: Progress, mains: list, filler: bytes) -> tuple[list[Outcome], dict]:
    """Run these mains to their end; returns their outcomes and what was seen of the broker meanwhile (fields of Figures)."""
    with Crew() as crew:
        for main in mains:
            crew.start(main, broker.endpoint, plan, progress, filler)
        watcher = Peer(broker.endpoint).open()
        commits, cpu_s = watcher.call("stats")["store"]["commits"], broker.cpu()
        crew.go()
        outcomes = crew.outcomes(WITHIN_S)
        used_s = {"broker": broker.cpu() - cpu_s, **{WHO[main]: used for main, used in zip(mains, crew.cpu_s)}}
        stats = watcher.call("stats")
        watcher.close()
    return outcomes, {"commits": stats["store"]["commits"] - commits, "store": stats["store"], "hub": stats["hub"],
                      "memory": broker.memory(), "cpu_s": used_s}


def check_pairs(submitted: Outcome, settled: Outcome) -> None:
    """Each submitted job must have come once, under the id that its producer was told."""
    if len(settled.ids) != len(set(settled.ids)):
        raise BenchError(f"{len(settled.ids) - len(set(settled.ids))} jobs came more than once")
    if dict(zip(submitted.ids, submitted.numbers)) != dict(zip(settled.ids, settled.numbers)):
        raise BenchError("jobs that came are not those that were submitted")


def _check_sample(broker: Broker, settled: Outcome) -> None:
    """Read back a sample over the whole run as a client would: its results must be those that were settled."""
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


def _check_results(broker: Broker, settled: Outcome) -> None:
    """Compare every result in the stopped broker's store with what was settled."""
    numbers = dict(zip(settled.ids, settled.numbers))
    for job_id, result in broker.stored_results():
        number = numbers.pop(job_id, None)
        if number is None or result != number.to_bytes(NUMBER_BYTES, "big"):
            raise BenchError(f"job {job_id} was settled with {number}, the store has {result!r}")
    if numbers:
        raise BenchError(f"{len(numbers)} results are not in the store")


# -- the script -------------------------------------------------------------------------------------------------------------


def print_figures(report: Report, plan: Plan, runs: list[Figures]) -> None:
    """Print one measurement's results: medians over the runs, and what spread there was."""
    def median(name: str, unit: str, value: Callable[[Figures], float], **params: object) -> None:
        report.result(name, statistics.median(map(value, runs)), unit, **plan.params, **params)

    rates = [figures.jobs_per_s for figures in runs]
    median("jobs", "jobs/s", lambda figures: figures.jobs_per_s, runs=len(runs), min=round(min(rates)), max=round(max(rates)))
    median("fsyncs", "fsyncs/s", lambda figures: figures.commits / figures.seconds)
    median("jobs per fsync", "jobs", lambda figures: figures.jobs / max(1, figures.commits))
    for who in runs[0].cpu_s:
        # Who comes near to a whole core bounds the rate; that must not be a generator.
        median(f"{who} CPU per job", "us", lambda figures: figures.cpu_s[who] / figures.jobs * 1e6)
        median(f"{who} busy", "% of core", lambda figures: figures.cpu_s[who] / figures.seconds * 100)
    trips = [value for figures in runs for value in figures.round_trips_ms]
    for percent in (50, 95, 99) if trips else ():
        report.result(f"submit acknowledged p{percent}", percentile(trips, percent), "ms", **plan.params)
    median("commit p50", "ms", lambda figures: figures.store["commit_p50_ms"] or 0.0)
    median("commit p99", "ms", lambda figures: figures.store["commit_p99_ms"] or 0.0)
    median("hub lag p99", "ms", lambda figures: figures.hub["lag_p99_ms"] or 0.0)
    report.result("hub lag max", max(figures.hub["max_lag_ms"] for figures in runs), "ms", **plan.params)
    median("broker memory", "MiB", lambda figures: figures.memory / 2**20, waiting=runs[-1].waiting)
    report.result("refused as busy", sum(figures.busy for figures in runs), "frames", **plan.params)


def print_table(report: Report, rows: list[tuple[Plan, list[Figures]]]) -> None:
    """Print the short table of a set."""
    report.say(f"\n{'mode':>6} {'batch':>6} {'connections':>12} {'jobs/s':>10} {'min':>9} {'max':>9} {'fsyncs/s':>9} "
               f"{'ack p50 ms':>11} {'p95':>7} {'p99':>7}")
    for plan, runs in rows:
        rates = [figures.jobs_per_s for figures in runs]
        trips = [value for figures in runs for value in figures.round_trips_ms]
        fsyncs = statistics.median(figures.commits / figures.seconds for figures in runs)
        report.say(f"{plan.mode:>6} {plan.batch:>6} {plan.connections:>12} {statistics.median(rates):>10,.0f} {min(rates):>9,.0f} "
                   f"{max(rates):>9,.0f} {fsyncs:>9,.0f} {percentile(trips, 50):>11.2f} {percentile(trips, 95):>7.2f} "
                   f"{percentile(trips, 99):>7.2f}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="throughput.py", description="Jobs a second: submit, reserve, settle.",
        epilog="Without --mode, --batch and --connections: a set of cells that shows each bound. "
               "With one of them: all combinations of the values given and the defaults of the others.")
    parser.add_argument("--batch", type=positive, help="jobs in a frame (default: 1, 10 and 100)")
    parser.add_argument("--connections", type=positive, help="connections that submit, and as many that work (default: 1, 16 and 64)")
    parser.add_argument("--payload", type=positive, default=100, metavar="BYTES", help="bytes of a payload, at least 16 (default: 100)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to submit (default: 3)")
    parser.add_argument("--jobs", type=positive, default=None, help="submit so many jobs instead")
    parser.add_argument("--mode", choices=("all", "submit", "drain"), default=None,
                        help="all: submit, reserve and settle at once (default); submit: nobody works; drain: work off what waits")
    parser.add_argument("--pipeline", type=positive, default=1, help="submit frames that a connection has under way (default: 1)")
    parser.add_argument("--safe", action="store_true", help="submit with submission ids, as Client does")
    parser.add_argument("--runs", type=positive, default=1, help="measure so often and print medians (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def chosen_cells(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Return (mode, batch, connections) of each measurement that the command line asks for."""
    if args.mode is None and args.batch is None and args.connections is None:
        return list(DEFAULT_CELLS)
    return [(args.mode or "all", batch, connections) for batch in ((args.batch,) if args.batch else DEFAULT_BATCHES)
            for connections in ((args.connections,) if args.connections else DEFAULT_CONNECTIONS)]


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if args.payload < LEAST_PAYLOAD or not 0.1 <= args.seconds <= 600:
        raise BenchError(f"--payload must be at least {LEAST_PAYLOAD} bytes, --seconds 0.1 to 600")
    plans = [Plan(mode, batch, connections, args.payload, args.seconds, args.jobs or 0, args.pipeline, args.safe)
             for mode, batch, connections in chosen_cells(args)]
    rows: list[tuple[Plan, list[Figures]]] = []
    with Certificates() as certificates:
        report = Report.begin("Throughput", args, Broker(certificates).settings)
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
