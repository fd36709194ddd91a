"""What users get: jobs through `Client.submit_many`, `worker.py` and `Client.wait`, all as shipped, every result checked.

Starts a broker and one worker of its own, with default settings; this process is the client. docs/benchmarks.md says how to read
the figures.
"""

from __future__ import annotations

from common import ROOT, STOP_WITHIN_S, BenchError, Broker, Certificates, Report, percentile, positive, run

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from greenroom.client import Client, Handle, decode_result

#: Task -> how many of its jobs are submitted: about two seconds of work.
JOBS = {"noop": 30_000, "cpu": 3_000, "sleep": 800}
POOLS = ("thread", "process")
PROBES = 500
PROBE_PAUSE_S = 0.002  # so that the worker's next reserve waits at the broker, as it does when there is little to do
WARM_UP = 50  # jobs: connections are open, children ready, and the worker knows how quick its jobs are
START_WITHIN_S = 30.0
FINISH_WITHIN_S = 120.0
FILLER = "x" * 80  # with the number and the keys a payload has about 100 bytes


class Worker:
    """`python worker.py` with default settings beside a broker. A context manager."""

    def __init__(self, broker: Broker, pool: str) -> None:
        endpoint = broker.endpoint
        self._command = [sys.executable, str(ROOT / "worker.py"), "--url", f"greenroom://{endpoint.host}:{endpoint.port}",
                         "--ca", endpoint.ca_file, "--tasks", str(ROOT / "bench" / "shipped_tasks.py"), "--pool", pool,
                         "--log-level", "warning"]
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Worker:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GREENROOM_")}
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ)
        return self

    def __exit__(self, *details: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def cpu(self) -> float:
        """Return the seconds of processor time of the worker and its children."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split() if thread.name != str(pid) else []
        return sum(_cpu_of(number) for number in [str(pid), *children])

    def stop(self) -> None:
        """SIGTERM, and wait for the drain. Raises BenchError if it does not end cleanly."""
        self._process.terminate()
        code = self._process.wait(STOP_WITHIN_S)
        if code != 0:
            raise BenchError(f"the worker ended with exit code {code}")


def _cpu_of(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """What one run found."""

    jobs: int
    seconds: float  # from the first submit until the client had the last result
    submit_s: float  # of that, until submit_many returned
    commits: int
    broker_cpu_s: float
    worker_cpu_s: float
    client_cpu_s: float


# -- one measurement --------------------------------------------------------------------------------------------------------


def measure(certificates: Certificates, task: str, pool: str, jobs: int) -> Figures:
    """Start broker and worker, move the jobs, check each result, stop both and count the store. Raises BenchError if one is wrong."""
    with Broker(certificates) as broker, Worker(broker, pool) as worker, _client(broker) as client:
        _warm_up(client)
        commits = client.stats()["store"]["commits"]
        cpu = broker.cpu(), worker.cpu(), time.process_time()
        began = time.perf_counter()
        handles = client.submit_many((f"bench.{task}", {"number": number, "filler": FILLER}) for number in range(jobs))
        submit_s = time.perf_counter() - began
        views = list(client.wait([handle.id for handle in handles], FINISH_WITHIN_S))
        seconds = time.perf_counter() - began
        figures = Figures(jobs, seconds, submit_s, client.stats()["store"]["commits"] - commits,
                          broker.cpu() - cpu[0], worker.cpu() - cpu[1], time.process_time() - cpu[2])
        _check_results(handles, views)
        worker.stop()
        broker.stop()
        _check_store(broker, jobs + WARM_UP)
    return figures


def probe(certificates: Certificates, probes: int) -> list[float]:
    """Submit jobs that do nothing one at a time, on an idle broker and worker; returns the milliseconds to each result."""
    latencies_ms = []
    with Broker(certificates) as broker, Worker(broker, "thread") as worker, _client(broker) as client:
        _warm_up(client)
        for number in range(probes):
            time.sleep(PROBE_PAUSE_S)
            began = time.perf_counter()
            found = client.submit("bench.noop", {"number": number, "filler": FILLER}).result(FINISH_WITHIN_S)
            latencies_ms.append((time.perf_counter() - began) * 1000)
            if found != number:
                raise BenchError(f"the result of job {number} is {found!r}")
        worker.stop()
        broker.stop()
        _check_store(broker, probes + WARM_UP)
    return latencies_ms


def _client(broker: Broker) -> Client:
    return Client(f"greenroom://{broker.endpoint.host}:{broker.endpoint.port}", ca=broker.endpoint.ca_file)


def _warm_up(client: Client) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while not client.workers():
        if time.monotonic() > deadline:
            raise BenchError("the worker did not connect")
        time.sleep(0.02)
    handles = client.submit_many([("bench.noop", {"number": number}) for number in range(WARM_UP)])
    for number, handle in enumerate(handles):
        if handle.result(START_WITHIN_S) != number:
            raise BenchError("the worker returned a wrong result")


def _check_results(handles: list[Handle], views: list[dict]) -> None:
    """Each job must have come back once, completed, with its own number."""
    results = {view["id"]: decode_result(view) for view in views}
    if len(views) != len(handles) or len(results) != len(handles):
        raise BenchError(f"{len(handles)} jobs were submitted, {len(views)} results came")
    for number, handle in enumerate(handles):
        if results[handle.id] != number:
            raise BenchError(f"the result of job {handle.id} is {results[handle.id]!r} instead of {number}")


def _check_store(broker: Broker, jobs: int) -> None:
    stored, wanted = broker.count_stored(), {"waiting": 0, "completed": jobs, "other": 0}
    if stored != wanted:
        raise BenchError(f"the store holds {stored}, it should hold {wanted}")


# -- the script -------------------------------------------------------------------------------------------------------------


def print_figures(report: Report, task: str, pool: str, runs: list[Figures]) -> None:
    """Print one measurement's results: medians over the runs, and what spread there was."""
    rates = [figures.jobs / figures.seconds for figures in runs]
    params = {"task": task, "pool": pool, "jobs": runs[0].jobs}
    report.result("jobs", statistics.median(rates), "jobs/s", **params, runs=len(runs), min=round(min(rates)), max=round(max(rates)))
    report.result("submit_many", statistics.median(figures.jobs / figures.submit_s for figures in runs), "jobs/s", **params)
    report.result("fsyncs", statistics.median(figures.commits / figures.seconds for figures in runs), "fsyncs/s", **params)
    for who in ("broker", "worker", "client"):
        used = [getattr(figures, f"{who}_cpu_s") / figures.jobs * 1e6 for figures in runs]
        report.result(f"{who} CPU per job", statistics.median(used), "us", **params)
    report.say()


def print_latency(report: Report, runs: list[list[float]]) -> None:
    """Print the latencies: medians of each run's percentiles."""
    for percent in (50, 95, 99):
        found = [percentile(latencies_ms, percent) for latencies_ms in runs]
        report.result(f"submit to result, idle p{percent}", statistics.median(found), "ms", probes=len(runs[0]), runs=len(runs),
                      min=round(min(found), 3), max=round(max(found), 3))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="shipped.py", description="Jobs through worker.py and Client, as shipped.")
    parser.add_argument("--part", choices=("all", "jobs", "latency"), default="all", help="what to measure (default: all)")
    parser.add_argument("--task", choices=tuple(JOBS), help="default: each")
    parser.add_argument("--pool", choices=POOLS, help="default: both")
    parser.add_argument("--jobs", type=positive, help="how many (default: %s)" % ", ".join(
        f"{count:,} {task}" for task, count in JOBS.items()))
    parser.add_argument("--probes", type=positive, default=PROBES, help="jobs of the latency part (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=3, help="measure so often and print medians (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    report = Report(is_json=args.json)
    with Certificates() as certificates:
        report.head("Shipped worker and client", {key: value for key, value in vars(args).items() if key != "json"},
                    Broker(certificates).settings)
        if args.part != "latency":
            for pool in (args.pool,) if args.pool else POOLS:
                for task in (args.task,) if args.task else JOBS:
                    print_figures(report, task, pool,
                                  [measure(certificates, task, pool, args.jobs or JOBS[task]) for _ in range(args.runs)])
        if args.part != "jobs":
            print_latency(report, [probe(certificates, args.probes) for _ in range(args.runs)])
    return 0


if __name__ == "__main__":
    run(main)
