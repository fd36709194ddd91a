"""Put a running broker and its workers under load: 100 TLS connections, all built-in tasks, random priorities, every result checked.

Uses the Client, as any user would. `--url` or GREENROOM_URL says where the broker is.
"""

from __future__ import annotations

from common import NO_CONNECTION, WRONG_RESULT, BenchError, Report, percentile, positive, run

import argparse
import random
import string
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from greenroom.client import Client
from greenroom.errors import ConnectError, GreenroomError, TlsError

FRAME = "=" * 50
LETTERS = string.ascii_letters + string.digits + " äöüß€Ωж漢字🙂"
CONNECT_WITHIN_S = 60.0
SHOWN_FAILURES = 5


@dataclass
class Job:
    """One job: what is submitted, and what must come back."""

    task: str
    payload: dict[str, object]
    priority: int
    expected: object


@dataclass
class Tally:
    """What all connections found; `lock` guards it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    latencies_ms: list[float] = field(default_factory=list)  # submit to result of each job that succeeded
    failures: list[str] = field(default_factory=list)


# -- jobs and what must come of them ----------------------------------------------------------------------------------------


def make_jobs(count: int, rng: random.Random) -> list[Job]:
    """Return so many random jobs; the five built-in tasks in turn, so that each is among them."""
    makers = (_reverse, _upper, _fibonacci, _prime, _slow)
    jobs = [makers[number % len(makers)](rng) for number in range(count)]
    rng.shuffle(jobs)
    return jobs


def _job(rng: random.Random, task: str, payload: dict[str, object], expected: object) -> Job:
    return Job(task, payload, rng.randint(1, 10), expected)


def _text(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(0, 200)))


def _reverse(rng: random.Random) -> Job:
    text = _text(rng)
    return _job(rng, "reverse_string", {"data": text}, text[::-1])


def _upper(rng: random.Random) -> Job:
    text = _text(rng)
    return _job(rng, "to_uppercase", {"data": text}, text.upper())


def _fibonacci(rng: random.Random) -> Job:
    n = rng.randint(0, 500)
    last, this = 0, 1
    for _ in range(n):
        last, this = this, last + this
    return _job(rng, "fibonacci", {"n": n}, last if last < 2**64 else str(last))


def _prime(rng: random.Random) -> Job:
    n = rng.randint(0, 10**6)
    is_prime = n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))
    return _job(rng, "is_prime", {"n": n}, is_prime)


def _slow(rng: random.Random) -> Job:
    seconds = round(rng.uniform(0, 0.02), 4)
    return _job(rng, "slow_task", {"seconds": seconds}, {"slept": seconds})


# -- running them -----------------------------------------------------------------------------------------------------------


def work(client: Client, jobs: list[Job], timeout_s: float, tally: Tally) -> None:
    """Submit the jobs over one connection, one after the other, and check each result."""
    for job in jobs:
        began = time.perf_counter()
        try:
            result = client.submit(job.task, job.payload, priority=job.priority, answer_timeout=timeout_s).result(timeout_s)
            failure = "" if result == job.expected else f"returned {result!r:.60} instead of {job.expected!r:.60}"
        except GreenroomError as exc:
            failure = f"{type(exc).__name__}: {exc}"
        took_ms = (time.perf_counter() - began) * 1000
        with tally.lock:
            if failure:
                tally.failures.append(f"{job.task} {job.payload!r:.60} {failure}")
            else:
                tally.latencies_ms.append(took_ms)


def connect_all(clients: list[Client]) -> None:
    """Open every client's connection. Raises BenchError if one cannot be opened."""
    failures: list[str] = []

    def connect(client: Client) -> None:
        try:
            client.ping()
        except GreenroomError as exc:
            failures.append(exc.message)

    _all_at_once([lambda client=client: connect(client) for client in clients])
    if failures:
        raise BenchError(f"{len(failures)} of {len(clients)} connections could not be opened: {failures[0]}")


def stress(clients: list[Client], jobs: list[Job], timeout_s: float) -> tuple[Tally, float]:
    """Run the jobs, spread over the connections; returns what came of them and the seconds that it took."""
    tally = Tally()
    began = time.perf_counter()
    _all_at_once([lambda client=client, share=jobs[number::len(clients)]: work(client, share, timeout_s, tally)
                  for number, client in enumerate(clients)])
    return tally, time.perf_counter() - began


def _all_at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- printing ---------------------------------------------------------------------------------------------------------------


def print_summary(report: Report, tally: Tally, took_s: float) -> None:
    """Print the framed summary, and percentiles below."""
    done, failed = len(tally.latencies_ms), len(tally.failures)
    mean_ms = sum(tally.latencies_ms) / done if done else 0.0
    lines = [("Total Jobs", f"{done + failed}"), ("Success", f"{done}"), ("Failed", f"{failed}"), ("Total Time", f"{took_s:.2f} s"),
             ("Avg Latency", f"{mean_ms:.2f} ms/job"), ("Throughput", f"{(done + failed) / took_s:.2f} jobs/sec")]
    report.say(FRAME)
    for label, value in lines:
        report.say(f"{label:<12}: {value}")
    report.say(FRAME)
    for percent in (50, 95, 99):
        report.say(f"{f'p{percent}':<12}: {percentile(tally.latencies_ms, percent):.2f} ms")
    for failure in tally.failures[:SHOWN_FAILURES]:
        report.say(f"failed: {failure}")


def print_json(report: Report, tally: Tally, took_s: float, params: dict[str, object]) -> None:
    """Print the results as objects."""
    done, failed = len(tally.latencies_ms), len(tally.failures)
    report.result("total jobs", done + failed, "jobs", **params)
    report.result("success", done, "jobs", **params)
    report.result("failed", failed, "jobs", **params)
    report.result("total time", took_s, "s", **params)
    report.result("throughput", (done + failed) / took_s, "jobs/s", **params)
    for percent in (50, 95, 99):
        report.result(f"submit to result p{percent}", percentile(tally.latencies_ms, percent), "ms", **params)


def why_nobody_works(client: Client, jobs: list[Job]) -> str | None:
    """Say what to start if no connected worker runs some of these jobs, else None."""
    wanted = {job.task for job in jobs}
    workers = client.workers()
    if not workers:
        return "no worker is connected to the broker: start one or more with `python worker.py`"
    for worker in workers:
        wanted -= wanted if worker["tasks"] is None else set(worker["tasks"])
    if wanted:
        return f"no connected worker runs {', '.join(sorted(wanted))}: start one with `python worker.py`"
    return None


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="stress.py", description="Stress a running broker and its workers; every result is checked.",
        epilog="exit codes: 0 all right; 1 a job failed; 2 wrong use or settings; 3 no broker or no worker")
    parser.add_argument("--url", help="greenroom://host[:port] (default: GREENROOM_URL, else greenroom://localhost:65432)")
    parser.add_argument("--jobs", type=positive, default=1000, help="jobs in all (default: 1,000)")
    parser.add_argument("--connections", type=positive, default=100, help="TLS connections at once (default: 100)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until a job counts as failed (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the random jobs; printed (default: another one each time)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Connect, run the jobs, print what came of them."""
    args = build_parser().parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    jobs = make_jobs(args.jobs, random.Random(seed))
    clients: list[Client] = []
    try:
        clients = [Client(args.url, name=f"stress-{number}", timeout=CONNECT_WITHIN_S)
                   for number in range(min(args.connections, args.jobs))]
        clients[0].ping()
        nobody = why_nobody_works(clients[0], jobs)
    except TlsError:
        raise
    except ConnectError as exc:
        nobody = exc.message
    if nobody is not None:
        sys.stderr.write(f"stress.py: {nobody}\n")
        return NO_CONNECTION
    report = Report(is_json=args.json)
    params = {"jobs": len(jobs), "connections": len(clients), "seed": seed}
    report.head("Stress", {**params, "workers": len(clients[0].workers()), "timeout": args.timeout})
    connect_all(clients)
    tally, took_s = stress(clients, jobs, args.timeout)
    print_summary(report, tally, took_s)
    if args.json:
        print_json(report, tally, took_s, params)
    for client in clients:
        client.close()
    return WRONG_RESULT if tally.failures else 0


if __name__ == "__main__":
    run(main)
