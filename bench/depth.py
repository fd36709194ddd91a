"""What a deep queue costs: rates of filling and draining it, memory, disk, and the time to restart, from a thousand jobs to ten million.

Starts a broker of its own for each depth, with its shipped defaults. All jobs are submitted over the wire, and come in the order in
which they were submitted. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, Report, check, percentile, positive, run
from throughput import LEAST_PAYLOAD, Outcome, Plan, Progress, consume, make_filler, produce, run_processes

import argparse
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

DEFAULT_DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 100
PIPELINE = 8  # submit frames under way: on one connection, so that jobs are queued in the order of their numbers
WORKERS = 4  # connections that drain
#: A small depth is filled and drained so often that this many jobs are measured: a thousand jobs take 20 ms.
AT_LEAST = 100_000
#: How far a job may come from its place: what is under way on all connections at once.
DISORDER = 2 * BATCH * WORKERS
RESERVE_WAIT_S = 60.0
RESTART_WITHIN_S = 300.0

#: What the system measures processor time in: 200 jobs may take less, and no ratio of that is a figure.
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Phase:
    """Filling, or draining, over all rounds of a depth."""

    jobs: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0  # of the broker
    commits: int = 0

    def add(self, outcome: Outcome, seen: dict) -> None:
        """Count one round."""
        self.jobs += len(outcome.ids)
        self.seconds += outcome.ended_at - outcome.began_at
        self.cpu_s += seen["cpu_s"]["broker"]
        self.commits += seen["commits"]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def cost_us(self) -> float:
        """The broker's processor time for a job."""
        return max(self.cpu_s, TICK_S) / self.jobs * 1e6


@dataclass
class Depth:
    """What was found at one depth: bytes, and milliseconds of restarts."""

    submit: Phase = field(default_factory=Phase)
    drain: Phase = field(default_factory=Phase)
    memory: dict[str, int] = field(default_factory=dict)  # when -> resident bytes
    disk: int = 0
    restarts_ms: dict[str, tuple[float, float]] = field(default_factory=dict)  # how it ended -> until it greeted, until a job came
    hub_lag_max_ms: float = 0.0


# -- one depth --------------------------------------------------------------------------------------------------------------


def measure(certificates: Certificates, jobs: int, payload: int, at_least: int) -> Depth:
    """Fill and drain a broker, and restart it while it is full. Raises BenchError if a job was lost, doubled, changed or late."""
    found = Depth()
    rounds = max(1, at_least // jobs)
    plans = [Plan("submit", BATCH, 1, payload, 0.0, jobs, PIPELINE, False),
             Plan("drain", BATCH, WORKERS, payload, 0.0, jobs, 1, False, ordered=True)]
    with Broker(certificates) as broker:
        found.memory["empty"] = broker.memory()
        for number in range(rounds):
            progress, filler = Progress(), make_filler(payload)
            (submitted,), seen = run_processes(broker, plans[0], progress, [produce], filler)
            found.submit.add(submitted, seen)
            if number == rounds - 1:
                _look_at_full(broker, found, seen, filler)
            (settled,), seen = run_processes(broker, plans[1], progress, [consume], filler)
            found.drain.add(settled, seen)
            found.hub_lag_max_ms = max(found.hub_lag_max_ms, seen["hub"]["max_lag_ms"])
            _check_round(jobs, submitted, settled)
        found.memory["drained"] = broker.memory()
        found.memory["drain, peak"] = broker.peak_memory()
        broker.stop()
        stored = broker.count_stored()
    if stored != {"waiting": 0, "completed": rounds * jobs, "other": 0}:
        raise BenchError(f"the store holds {stored}, it should hold {rounds * jobs} completed jobs")
    return found


def _look_at_full(broker: Broker, found: Depth, seen: dict, filler: bytes) -> None:
    found.memory["full"] = broker.memory()
    found.memory["fill, peak"] = broker.peak_memory()
    found.disk = broker.disk()
    found.hub_lag_max_ms = seen["hub"]["max_lag_ms"]
    broker.kill()
    found.restarts_ms["kill -9"] = _restart(broker, filler)
    broker.stop()
    found.restarts_ms["SIGTERM"] = _restart(broker, filler)
    found.memory["restarted"] = broker.memory()


def _restart(broker: Broker, filler: bytes) -> tuple[float, float]:
    """Start the broker and return the milliseconds from there until it greeted, and until it gave out the first job."""
    began = time.monotonic()
    broker.spawn()
    peer = broker.wait_until_it_greets("worker", RESTART_WITHIN_S)
    greeted = time.monotonic()
    jobs = peer.call("reserve", n=1, wait=RESERVE_WAIT_S)["jobs"]
    reserved = time.monotonic()
    if len(jobs) != 1 or jobs[0][3] != bytes(8) + filler + bytes(8):
        raise BenchError(f"after a restart the first job was {jobs}")
    # Back to its place, as if nothing had been.
    check(peer.call("settle", leases=[[jobs[0][0], jobs[0][1], "nack", False]]))
    peer.call("bye")
    peer.close()
    return (greeted - began) * 1000, (reserved - began) * 1000


def _check_round(jobs: int, submitted: Outcome, settled: Outcome) -> None:
    """Each job must have come once, under the id that its producer was told, about when it was its turn."""
    ids = submitted.ids
    if len(ids) != jobs:
        raise BenchError(f"{len(ids)} jobs were submitted instead of {jobs}")
    if submitted.numbers != array("Q", range(jobs)):
        raise BenchError("submits of one connection were acknowledged out of their order")
    seen = bytearray(len(ids))
    for place, (number, job_id) in enumerate(zip(settled.numbers, settled.ids)):
        if number >= len(ids) or ids[number] != job_id or seen[number]:
            raise BenchError(f"job {job_id} with number {number} came twice, or was submitted under another id")
        if abs(number - place) > DISORDER:
            raise BenchError(f"job number {number} came as number {place}")
        seen[number] = 1
    if not all(seen):
        raise BenchError(f"{seen.count(0)} jobs never came")


# -- the script -------------------------------------------------------------------------------------------------------------


def print_depth(report: Report, jobs: int, runs: list[Depth]) -> None:
    """Print what was found at one depth: medians of its runs."""
    def median(values: Iterator[float]) -> float:
        return percentile(list(values), 50)

    for name in ("submit", "drain"):
        phases = [getattr(found, name) for found in runs]
        rates = [phase.rate for phase in phases]
        report.result(name, median(iter(rates)), "jobs/s", depth=jobs, runs=len(runs), min=round(min(rates)), max=round(max(rates)))
        report.result(f"{name} fsyncs", median(phase.commits / phase.seconds for phase in phases), "fsyncs/s", depth=jobs)
        report.result(f"{name} broker CPU per job", median(phase.cost_us for phase in phases), "us", depth=jobs)
    for when in runs[0].memory:
        report.result(f"broker memory, {when}", median(found.memory[when] / 2**20 for found in runs), "MiB", depth=jobs)
    report.result("store on disk, full", median(found.disk / 2**20 for found in runs), "MiB", depth=jobs)
    for end in runs[0].restarts_ms:
        greeted, reserved = (sorted(found.restarts_ms[end][place] for found in runs) for place in (0, 1))
        for what, values in (("hello", greeted), ("first job", reserved)):
            report.result(f"start after {end} until {what}", percentile(values, 50), "ms", depth=jobs, max=round(values[-1]))
    report.result("hub lag max", max(found.hub_lag_max_ms for found in runs), "ms", depth=jobs)


def print_slowdowns(report: Report, depths: dict[int, list[Depth]]) -> None:
    """Print what a job costs more at each depth than at the least one, and than at the quickest."""
    report.say()
    for name in ("submit", "drain"):
        rates = {jobs: percentile([getattr(found, name).rate for found in runs], 50) for jobs, runs in depths.items()}
        costs = {jobs: percentile([getattr(found, name).cost_us for found in runs], 50) for jobs, runs in depths.items()}
        for jobs in rates:
            report.result(f"{name} slowdown", rates[min(rates)] / rates[jobs], "times", depth=jobs, against=min(rates),
                          against_quickest=round(max(rates.values()) / rates[jobs], 2))
            report.result(f"{name} CPU growth", costs[jobs] / costs[min(costs)], "times", depth=jobs, against=min(costs))


@contextmanager
def _timed(report: Report, jobs: int) -> Iterator[None]:
    began = time.monotonic()
    yield
    report.say(f"({jobs:,} jobs: {time.monotonic() - began:.0f} s)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="depth.py", description="A deep queue: rates, memory, restart.")
    parser.add_argument("--depths", type=positive, nargs="+", default=list(DEFAULT_DEPTHS), metavar="JOBS",
                        help="waiting jobs, multiples of 100 (default: 1000 10000 100000 1000000)")
    parser.add_argument("--at-least", type=positive, default=AT_LEAST, metavar="JOBS",
                        help="fill and drain small depths again and again, for so many jobs in all (default: 100,000)")
    parser.add_argument("--payload", type=positive, default=100, metavar="BYTES", help="bytes of a payload, at least 16 (default: 100)")
    parser.add_argument("--runs", type=positive, default=1, help="measure each depth so often and print medians (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if args.payload < LEAST_PAYLOAD or any(jobs % BATCH for jobs in args.depths):
        raise BenchError(f"--payload must be at least {LEAST_PAYLOAD} bytes, --depths multiples of {BATCH}")
    depths: dict[int, list[Depth]] = {}
    with Certificates() as certificates:
        report = Report.begin("Depth", args, Broker(certificates).settings)
        for jobs in sorted(set(args.depths)):
            with _timed(report, jobs):
                depths[jobs] = [measure(certificates, jobs, args.payload, args.at_least) for _ in range(args.runs)]
                print_depth(report, jobs, depths[jobs])
    print_slowdowns(report, depths)
    return 0


if __name__ == "__main__":
    run(main)
