"""How long a job takes from submit to its start and to its result: idle, and at parts of the capacity, which is measured first.

Starts a broker of its own with its shipped defaults. Under load, arrivals are an open loop: when each job is to be submitted is fixed
before the first one is, and latency counts from then, also if the generator itself comes late (no coordinated omission).
docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import (BenchError, Broker, Certificates, HubLag, Loop, Peer, Report, check, pack_request, percentile,
                    positive, raise_file_limit, run)
from crew import Crew, Member

import argparse
import math
import os
import random
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from greenroom.endpoint import Endpoint

TASK = "bench.noop"
PERCENTS = (50, 90, 99, 99.9)
#: Parts of the capacity, in percent.
DEFAULT_LOADS = (10, 50, 80)
PRODUCERS = 32  # connections that submit and wait
WORKERS = 32  # connections that work, a job at a time
WAITS = 200  # open waits of a connection; the broker takes 256
CAPACITY_IN_FLIGHT = 256  # jobs, while capacity is measured
PAUSE_S = 0.005  # between two jobs of the idle step
LATE_MS = 1.0  # an arrival that the generator sent later than this is counted as late
NUMBER_BYTES = 8
FILLER = os.urandom(100 - NUMBER_BYTES)
RESERVE_WAIT_S = 30.0
RESULT_WITHIN_S = 30.0
SAMPLE_S = 0.1
HOLDERS = 2  # processes that hold the connections of --held
SHAKING = 24  # handshakes that each of them has under way
HEARTBEAT_SLICES = 200  # heartbeats leave in so many portions, evenly over the period
SPARE_FILES = 400


@dataclass
class Times:
    """What a step found, in milliseconds, in the order in which results came; `late_ms` in the order of arrivals."""

    ids: array = field(default_factory=lambda: array("Q"))
    start_ms: array = field(default_factory=lambda: array("d"))
    result_ms: array = field(default_factory=lambda: array("d"))
    late_ms: array = field(default_factory=lambda: array("d"))
    took_s: float = 0.0


# -- working ----------------------------------------------------------------------------------------------------------------


def work(member: Member, endpoint: Endpoint) -> None:
    """Be WORKERS workers that complete each job at once; its result is its number and when it started."""
    frame, id_at = pack_request("reserve", n=1, wait=RESERVE_WAIT_S)
    loop = Loop()
    peers = [Peer(endpoint, "worker", number).open() for number in range(WORKERS)]
    member.ready()
    for peer in peers:
        loop.add(peer)
        peer.in_flight[peer.ask_packed(frame, id_at)] = "reserve"
        loop.send(peer)
    while not member.is_over:
        for peer in loop.ready(0.05):
            for message in peer.receive():
                if peer.in_flight.pop(check(message)["id"]) == "settle":
                    if message["outcomes"] != ["OK"]:
                        raise BenchError(f"a settle was answered {message['outcomes']}")
                    continue
                for job_id, fence, _, payload, *_ in message["jobs"]:
                    started = time.monotonic_ns()  # here a task would begin
                    if payload[NUMBER_BYTES:] != FILLER:
                        raise BenchError(f"job {job_id} came with another payload than it was submitted with")
                    result = payload[:NUMBER_BYTES] + started.to_bytes(8, "big")
                    peer.in_flight[peer.ask("settle", leases=[[job_id, fence, "ack", result, True]])] = "settle"
                peer.in_flight[peer.ask_packed(frame, id_at)] = "reserve"
            loop.send(peer)


# -- submitting -------------------------------------------------------------------------------------------------------------


def submit(member: Member, endpoint: Endpoint, first: int, arrivals: array | None, in_flight: int, seconds: float) -> Times:
    """Submit jobs one by one and wait for each one's result.

    Args:
        first: number of the first job; each job of a broker has another.
        arrivals: when each is to be submitted, in seconds from the start; None: a closed loop that keeps `in_flight` jobs under way
            for so many seconds.
    """
    peers = [Peer(endpoint, "client", number).open() for number in range(PRODUCERS)]
    member.ready()
    generator = _Generator(peers, first)
    if arrivals is not None:
        generator.open_loop(arrivals)
    else:
        generator.closed_loop(in_flight, seconds)
    return generator.times


class _Generator:
    """Submits and waits over some connections in turn."""

    def __init__(self, peers: list[Peer], first: int) -> None:
        self.times = Times()
        self._peers = peers
        self._next = first  # number of the next job
        self._submitted = 0
        self._due: dict[int, float] = {}  # number -> when the job was to be submitted, monotonic
        self._unasked: deque[tuple[int, int]] = deque()  # (id, number) of jobs without a wait yet
        self._waits = dict.fromkeys(peers, 0)
        self._loop = Loop()
        for peer in peers:
            self._loop.add(peer)

    def open_loop(self, arrivals: array) -> None:
        """Submit at these times, whatever comes back."""
        began = time.monotonic()
        place = 0
        while place < len(arrivals) or self._due:
            now = time.monotonic()
            while place < len(arrivals) and began + arrivals[place] <= now:
                self.times.late_ms.append((now - began - arrivals[place]) * 1000)
                self._submit(began + arrivals[place])
                place += 1
                now = time.monotonic()
            self._turn(began + arrivals[place] if place < len(arrivals) else now + 0.05)
        self.times.took_s = time.monotonic() - began

    def closed_loop(self, in_flight: int, seconds: float) -> None:
        """Keep so many jobs under way for so long."""
        began = time.monotonic()
        is_over = False
        while not is_over or self._due:
            now = time.monotonic()
            is_over = now - began >= seconds
            while not is_over and len(self._due) < in_flight:
                self._submit(now)
            self._turn(now + 0.05)
        self.times.took_s = time.monotonic() - began

    def idle_loop(self, jobs: int) -> None:
        """One job at a time, with a pause after each."""
        for _ in range(jobs):
            self._submit(time.monotonic())
            while self._due:
                self._turn(time.monotonic() + 0.05)
            time.sleep(PAUSE_S)

    def _submit(self, due: float) -> None:
        number, self._next = self._next, self._next + 1
        self._due[number] = due
        peer = self._peers[number % len(self._peers)]
        job = {"task": TASK, "payload": number.to_bytes(NUMBER_BYTES, "big") + FILLER, "encoding": "raw"}
        peer.in_flight[peer.ask("submit", jobs=[job])] = (0, number)
        self._loop.send(peer)

    def _turn(self, until: float) -> None:
        """Take what comes, waiting for it up to this time at most."""
        for peer in self._loop.ready_until(until):
            for message in peer.receive():
                job_id, number = peer.in_flight.pop(check(message)["id"])
                if not job_id:
                    self._unasked.append((message["jobs"][0], number))
                    continue
                self._waits[peer] -= 1
                if message["jobs"]:
                    self._take(job_id, number, message["jobs"][0])
                elif time.monotonic() > self._due[number] + RESULT_WITHIN_S:
                    raise BenchError(f"job {job_id} was not done within {RESULT_WITHIN_S:g} s")
                else:
                    self._unasked.append((job_id, number))
            self._ask_waits(peer)

    def _ask_waits(self, peer: Peer) -> None:
        while self._unasked and self._waits[peer] < WAITS:
            job_id, number = self._unasked.popleft()
            if type(job_id) is not int:
                raise BenchError(f"a submit was answered {job_id}")
            self._waits[peer] += 1
            peer.in_flight[peer.ask("wait", jobs=[job_id], wait=RESULT_WITHIN_S)] = (job_id, number)
        self._loop.send(peer)

    def _take(self, job_id: int, number: int, view: dict) -> None:
        now = time.monotonic()
        result = view.get("result") or b""
        if view.get("state") != "completed" or result[:NUMBER_BYTES] != number.to_bytes(NUMBER_BYTES, "big") or len(result) != 16:
            raise BenchError(f"job {job_id} came back as {view}")
        due = self._due.pop(number)
        started = int.from_bytes(result[NUMBER_BYTES:], "big") / 1e9
        self.times.ids.append(job_id)
        self.times.start_ms.append((started - due) * 1000)
        self.times.result_ms.append((now - due) * 1000)


def submit_idle(member: Member, endpoint: Endpoint, first: int, jobs: int) -> Times:
    """Submit so many jobs, one at a time over one connection."""
    peer = Peer(endpoint).open()
    member.ready()
    generator = _Generator([peer], first)
    generator.idle_loop(jobs)
    return generator.times


def make_arrivals(rate: float, seconds: float, seed: int) -> array:
    """Return when jobs arrive, in seconds from the start: as independent clients would submit them (a Poisson process)."""
    rng = random.Random(seed)
    arrivals, at = array("d"), rng.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += rng.expovariate(rate)
    return arrivals


# -- connections that are only held -----------------------------------------------------------------------------------------


def hold(member: Member, endpoint: Endpoint, count: int) -> None:
    """Be `count` workers that heartbeat and nothing else."""
    loop, held = Loop(), deque()
    beats = _beats(loop, held)
    shaking: set[Peer] = set()
    begun = 0
    is_ready = False

    def go_on(peer: Peer) -> None:
        if peer.advance() == 0:
            shaking.discard(peer)
            held.append(peer)

    while not member.is_over:
        while begun < count and len(shaking) < SHAKING:
            peer = Peer(endpoint, "worker", begun).begin()
            loop.add(peer)
            shaking.add(peer)
            begun += 1
            go_on(peer)  # all of it may be over at once, and then the socket has nothing more to say
        for peer in loop.ready(0.01):
            if peer not in shaking:
                for message in peer.receive():
                    check(message)
            else:
                go_on(peer)
        next(beats)
        if not is_ready and len(held) == count:
            member.ready()
            is_ready = True


def _beats(loop: Loop, peers: deque[Peer]) -> Iterator[None]:
    """Send the heartbeats that are due, a portion of the connections at a time, so that they spread evenly."""
    frame, id_at = pack_request("heartbeat", leases=[])
    due = time.monotonic()
    while True:
        while peers and time.monotonic() >= due:
            due += peers[0].greeting["heartbeat_s"] / HEARTBEAT_SLICES
            for _ in range(math.ceil(len(peers) / HEARTBEAT_SLICES)):
                peers[0].ask_packed(frame, id_at)
                loop.send(peers[0])
                peers.rotate(-1)
        yield


# -- the steps --------------------------------------------------------------------------------------------------------------


class Bench:
    """One broker and the steps that are measured against it."""

    def __init__(self, report: Report, broker: Broker, args: argparse.Namespace) -> None:
        self._report = report
        self._broker = broker
        self._args = args
        self._watcher = Peer(broker.endpoint).open()
        self._lag = HubLag(self._watcher)
        self._jobs = 0
        self._ids: set[int] = set()
        self._busy: dict[str, float] = {}  # percent of a core, in the latest step
        self._fsyncs_per_s = 0.0  # in the latest step

    @property
    def jobs(self) -> int:
        """How many were completed so far."""
        return self._jobs

    def measure(self) -> None:
        """Make all steps; raises BenchError if a check fails."""
        args = self._args
        self._print("idle", self._step(submit_idle, args.idle), jobs_per_s=0)
        rates = []
        for _ in range(args.runs):
            times = self._step(submit, None, CAPACITY_IN_FLIGHT, args.seconds)
            rates.append(len(times.ids) / times.took_s)
        capacity = percentile(rates, 50)
        self._report.result("capacity", capacity, "jobs/s", held=args.held, runs=len(rates), min=round(min(rates)),
                            max=round(max(rates)), fsyncs_per_s=round(self._fsyncs_per_s), **{f"{who}_busy_percent": round(share) for who, share in self._busy.items()})
        for load in args.loads:
            rate = capacity * load / 100
            self._print(f"{load} %", self._step(submit, make_arrivals(rate, args.seconds, args.seed + load), 0, 0.0),
                        jobs_per_s=round(rate))

    def _step(self, main: object, *arguments: object) -> Times:
        with Crew() as crew:
            crew.start(main, self._broker.endpoint, self._jobs, *arguments)
            crew.go()
            self._lag.begin()
            cpu_s, commits, began = self._broker.cpu(), self._watcher.call("stats")["store"]["commits"], time.monotonic()
            while not crew.has_ended(SAMPLE_S):
                self._lag.sample()
            times = crew.outcomes(RESULT_WITHIN_S)[0]
        took_s = time.monotonic() - began
        self._fsyncs_per_s = (self._watcher.call("stats")["store"]["commits"] - commits) / took_s
        self._busy = {"broker": (self._broker.cpu() - cpu_s) / took_s * 100, "generator": crew.cpu_s[0] / took_s * 100}
        self._jobs += len(times.ids)
        self._ids.update(times.ids)
        if len(self._ids) != self._jobs:
            raise BenchError("an id was given to two jobs")
        return times

    def _print(self, step: str, times: Times, **params: object) -> None:
        params = {"load": step, "held": self._args.held, **params, "jobs": len(times.ids)}
        for name, values in (("submit to start", times.start_ms), ("submit to result", times.result_ms)):
            for percent in PERCENTS:
                self._report.result(f"{name} p{percent:g}", percentile(values, percent), "ms", **params)
        if times.late_ms:
            late = sum(value > LATE_MS for value in times.late_ms)
            self._report.result(f"arrivals sent over {LATE_MS:g} ms late", late, "jobs", **params,
                                share_percent=round(100 * late / len(times.late_ms), 2), p99_ms=round(percentile(times.late_ms, 99), 2))
        for name, value in self._lag.end().items():
            self._report.result(f"hub lag {name}", value, "ms", **params)
        self._report.result("fsyncs", self._fsyncs_per_s, "fsyncs/s", **params)
        for who, share in self._busy.items():
            self._report.result(f"{who} busy", share, "% of core", **params)
        self._report.say()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="latency.py", description="Latency: idle, and at parts of the capacity with an open loop.")
    parser.add_argument("--held", type=int, default=0, metavar="N", help="hold N idle, heartbeating connections meanwhile (default: 0)")
    parser.add_argument("--loads", type=positive, nargs="+", default=list(DEFAULT_LOADS), metavar="PERCENT",
                        help="parts of the capacity (default: 10 50 80)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each step arrives (default: 10)")
    parser.add_argument("--idle", type=positive, default=1000, metavar="JOBS", help="jobs of the idle step (default: 1,000)")
    parser.add_argument("--runs", type=positive, default=1, help="measure capacity so often and take the median (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    limit = raise_file_limit() - SPARE_FILES
    if not 0 <= args.held <= limit or not 0.1 <= args.seconds <= 600:
        raise BenchError(f"--held must be 0 to {limit} here (the broker's file limit), --seconds 0.1 to 600")
    with Certificates() as certificates, Broker(certificates) as broker, Crew() as crew:
        report = Report.begin("Latency", args, broker.settings)
        for number in range(HOLDERS if args.held else 0):
            crew.start(hold, broker.endpoint, args.held // HOLDERS + (number < args.held % HOLDERS))
        crew.start(work, broker.endpoint)
        crew.go(120 + args.held / 100)
        bench = Bench(report, broker, args)
        bench.measure()
        crew.end()
        crew.outcomes(RESULT_WITHIN_S)
        broker.stop()
        stored = broker.count_stored()
    if stored != {"waiting": 0, "completed": bench.jobs, "other": 0}:
        raise BenchError(f"the store holds {stored}, {bench.jobs} jobs were completed")
    report.result("jobs in the store", stored["completed"], "jobs", held=args.held)
    return 0


if __name__ == "__main__":
    run(main)
