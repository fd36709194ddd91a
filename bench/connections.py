"""Many TLS connections at once: how fast they come, what each costs the broker, how quick it is while all are held, and a reconnect storm.

Starts a broker of its own with its shipped defaults. The connections are workers in a few client processes (holder.py): each verified,
greeted, heartbeating, and in turn completing one job. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, HubLag, Peer, Report, check, percentile, positive, raise_file_limit, run

import argparse
import multiprocessing
import random
import select
import socket
import time
from collections import Counter
from contextlib import closing
from multiprocessing.connection import Connection

from greenroom.endpoint import Endpoint
from holder import TASK, Holders

PROBE_TASK = "bench.probe"
PROCESSES = 2
SPARE_FILES = 200  # the broker keeps 128 for store, logs and web
SETTLE_S = 2.0
TURN_WITHIN_S = 30.0
ANSWER_WITHIN_S = 300.0
STORM_WITHIN_S = 120.0
WARM_UP_S = 1.0
#: A lease of this age is on disk (the broker writes those older than a second), so it survives a kill.
ON_DISK_S = 2.5
#: A broker closes silent connections after 5 s, and those that read too slowly after 10 s.
HOSTILE_WITHIN_S = 20.0
#: A slow reader asks so often for a job of this size, through a small window: more than the broker's kernel takes for it.
LARGE_BYTES, LARGE_ANSWERS, WINDOW_BYTES = 256 * 1024, 40, 4096

_fork = multiprocessing.get_context("fork")


class Phase:
    """A part of the run, from now on, and what the broker's hub does in it; watched over a connection of its own."""

    def __init__(self, broker: Broker) -> None:
        self._peer = open_in_a_storm(broker.endpoint)
        self._lag = HubLag(self._peer)
        self._lag.begin()
        self.sample = self._lag.sample

    def end(self, report: Report, name: str, **params: object) -> None:
        """Print the hub's lag."""
        for which, lag_ms in self._lag.end().items():
            report.result(f"hub lag, {name} {which}", lag_ms, "ms", **params)
        self._peer.close()


def open_in_a_storm(endpoint: Endpoint) -> Peer:
    """Connect and greet, again and again: while more shake hands than the broker has places for, it closes some."""
    deadline = time.monotonic() + STORM_WITHIN_S
    while True:
        try:
            return Peer(endpoint).open()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# -- one job at a time ------------------------------------------------------------------------------------------------------


def make_payload(number: int) -> bytes:
    """Return 100 bytes that no other number has; a worker turns them round."""
    return number.to_bytes(8, "big") + bytes(92)


def submit(producer: Peer, task: str, numbers: range) -> list[int]:
    """Submit a job for each number; returns their ids."""
    jobs = [{"task": task, "payload": make_payload(number), "encoding": "raw"} for number in numbers]
    return producer.call("submit", jobs=jobs)["jobs"]


def check_view(view: dict, number: int) -> None:
    """Raise BenchError if a job did not come back as it should."""
    if view["state"] != "completed" or view["result"] != make_payload(number)[::-1]:
        raise BenchError(f"job {number} came back as {view}")


def turn(producer: Peer, task: str, number: int) -> float:
    """Submit a job and wait for its result; returns milliseconds from one to the other. Raises BenchError if it is wrong."""
    began = time.perf_counter()
    job_ids = submit(producer, task, range(number, number + 1))
    views = producer.call("wait", jobs=job_ids, wait=TURN_WITHIN_S)["jobs"]
    took_ms = (time.perf_counter() - began) * 1000
    if not views:
        raise BenchError(f"job {job_ids[0]} was not done within {TURN_WITHIN_S:g} s")
    check_view(views[0], number)
    return took_ms


def probe(endpoint: Endpoint, jobs: int, pipe: Connection) -> None:
    """Be one worker that completes so many jobs; the process's main."""
    worker = Peer(endpoint, "worker", name="probe").open()
    pipe.send("open")
    done = 0
    while done < jobs:
        for job_id, fence, _, payload, *_ in worker.call("reserve", n=1, tasks=[PROBE_TASK], wait=5)["jobs"]:
            check(worker.call("settle", leases=[[job_id, fence, "ack", payload[::-1], True]]))
            done += 1


def measure_alone(endpoint: Endpoint, jobs: int) -> list[float]:
    """Return how long each of so many jobs took, one at a time, with a single worker connected."""
    pipe, its_pipe = _fork.Pipe()
    process = _fork.Process(target=probe, args=(endpoint, jobs, its_pipe), daemon=True)
    process.start()
    try:
        pipe.recv()
        with closing(Peer(endpoint).open()) as producer:
            return [turn(producer, PROBE_TASK, number) for number in range(jobs)]
    finally:
        process.join(5)
        process.kill()


# -- an open loop -----------------------------------------------------------------------------------------------------------


def produce(endpoint: Endpoint, rate: float, seconds: float, seed: int, pipe: Connection) -> None:
    """Submit at random moments, whatever the answers do, and send how long each job took from the moment it was meant to
    leave (so that a stall counts for all that it delayed); the process's main."""
    try:
        pipe.send(_produce(endpoint, rate, seconds, seed))
    except (BenchError, OSError) as exc:
        pipe.send(f"the producer failed: {exc}")


def _produce(endpoint: Endpoint, rate: float, seconds: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    peer = Peer(endpoint).open()
    poller = select.poll()
    poller.register(peer.sock.fileno(), select.POLLIN)
    due = began = time.perf_counter()
    number = 0
    times: list[float] = []
    waiting: dict[int, tuple[str, int, float]] = {}  # request id -> what it is, the job's number, when it was meant to leave
    while waiting or due < began + seconds:
        now = time.perf_counter()
        while due <= now and due < began + seconds:
            job = {"task": TASK, "payload": make_payload(number), "encoding": "raw"}
            waiting[peer.ask("submit", jobs=[job])] = "submit", number, due
            number += 1
            due += rng.expovariate(rate)
        peer.flush()
        if not poller.poll(min(max(0, int((due - now) * 1000)), 100) if due < began + seconds else 100):
            if now > began + seconds + TURN_WITHIN_S:
                raise BenchError(f"{len(waiting)} answers are missing")
            continue
        for message in peer.receive():
            verb, job, at = waiting.pop(check(message)["id"])
            if verb == "submit":
                waiting[peer.ask("wait", jobs=message["jobs"], wait=TURN_WITHIN_S)] = "wait", job, at
            elif message["jobs"]:
                check_view(message["jobs"][0], job)
                if at > began + WARM_UP_S:
                    times.append((time.perf_counter() - at) * 1000)
            else:
                raise BenchError(f"job {job} was not done in time")
    return [*times, float(number)]


def measure_load(broker: Broker, phase: Phase, rate: float, seconds: float, seed: int) -> tuple[list[float], int]:
    """Run a producer; returns what each job took in milliseconds, without those of the warm-up, and how many jobs there were."""
    pipe, its_pipe = _fork.Pipe()
    process = _fork.Process(target=produce, args=(broker.endpoint, rate, seconds + WARM_UP_S, seed, its_pipe), daemon=True)
    process.start()
    try:
        while not pipe.poll(0.1):
            phase.sample()
        outcome = pipe.recv()
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, str):
        raise BenchError(outcome)
    return outcome[:-1], int(outcome[-1])


# -- the hostile ------------------------------------------------------------------------------------------------------------


class Hostile:
    """Connections that say nothing, not even a handshake, and peers that ask for much and read nothing."""

    def __init__(self, endpoint: Endpoint, silent: int, slow: int, large_job: int) -> None:
        self._silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(silent)]
        self._slow = [Peer(endpoint).open() for _ in range(slow)]
        for peer in self._slow:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
            for _ in range(LARGE_ANSWERS):
                peer.ask("get", jobs=[large_job], payload=True)
            peer.flush()
        self._began = time.monotonic()

    def wait_for_end(self, watcher: Peer, others: int) -> float:
        """Wait until the broker has only so many other connections left; returns the seconds since these began. Nothing is read: to
        see what was sent would be to read. Raises BenchError if it does not close them."""
        while watcher.call("stats")["door"]["open"] > others:
            if time.monotonic() > self._began + HOSTILE_WITHIN_S:
                raise BenchError("silent or slow peers are not closed")
            time.sleep(0.1)
        for peer in (*self._silent, *self._slow):
            peer.close()
        return time.monotonic() - self._began


# -- the phases -------------------------------------------------------------------------------------------------------------


class Measurement:
    """All phases against one broker.

    Attributes:
        jobs: how many were submitted and acknowledged so far. cancelled: those of them that were cancelled.
    """

    def __init__(self, report: Report, broker: Broker, args: argparse.Namespace) -> None:
        self._report = report
        self._broker = broker
        self._args = args
        self._count = args.connections
        self._holders: Holders | None = None
        self.jobs = 0
        self.cancelled = 0

    def run(self) -> None:
        """Make all measurements; raises BenchError if a check fails."""
        args = self._args
        self._print_times("submit to result, alone", measure_alone(self._broker.endpoint, args.probes), connections=1)
        self.jobs += args.probes
        self._connect()
        try:
            self._idle()
            self._turns()
            self._work("working")
            self._work_among_hostile_peers()
            if args.leased:
                self._storm()
        finally:
            self._holders.end()

    def _connect(self) -> None:
        """Open all connections; print how fast that went and what each costs on both sides."""
        count, report, broker = self._count, self._report, self._broker
        memory, cpu_s, began = broker.memory(), broker.cpu(), time.monotonic()
        phase = Phase(broker)
        self._holders = Holders(broker.endpoint, count, min(self._args.processes, count))
        try:
            self._holders.answers(ANSWER_WITHIN_S, phase.sample)
            took_s = time.monotonic() - began
            report.result("connect", count / took_s, "conn/s", connections=count)
            report.result("broker CPU per connect", (broker.cpu() - cpu_s) / count * 1000, "ms", connections=count)
            report.result("client CPU per connect", self._holders.cpu_s / count * 1000, "ms", connections=count)
            phase.end(report, "connecting", connections=count)
            time.sleep(SETTLE_S)
            report.result("broker memory per connection", (broker.memory() - memory) / count / 1024, "KiB", connections=count)
            report.result("broker memory", broker.memory() / 2**20, "MiB", connections=count)
        except BaseException:
            self._holders.end()
            raise

    def _idle(self) -> None:
        """Print the processor time that held connections with nothing but heartbeats cost."""
        phase = Phase(self._broker)
        cpu_s, began = self._broker.cpu(), time.monotonic()
        time.sleep(self._args.idle)
        share = (self._broker.cpu() - cpu_s) / (time.monotonic() - began) * 100
        self._report.result("idle CPU", share, "% of core", connections=self._count, seconds=self._args.idle)
        phase.end(self._report, "idle", connections=self._count)

    def _turns(self) -> None:
        """Let each connection complete one job, one after the other."""
        phase = Phase(self._broker)
        self._holders.tell("turns")
        times: list[float] = []
        sample_at = time.monotonic()
        with closing(Peer(self._broker.endpoint).open()) as producer:
            for number in range(self._count):
                try:
                    times.append(turn(producer, TASK, number))
                except BenchError:
                    self._holders.check()  # a client process that failed is the better explanation
                    raise
                if time.monotonic() >= sample_at:  # by time: a connection that says nothing for a minute is closed
                    sample_at = time.monotonic() + 0.1
                    phase.sample()
        if sum(self._holders.answers(ANSWER_WITHIN_S)) != self._count:
            raise BenchError("not every connection completed a job")
        self.jobs += self._count
        self._print_times("submit to result, all held", times, connections=self._count)
        phase.end(self._report, "in turn", connections=self._count)

    def _work(self, name: str, **params: object) -> None:
        """Let some of the connections work, at a rate that does not depend on how quick they are."""
        working = min(self._args.working, self._count)
        self._holders.tell("work", working)
        self._holders.answers(ANSWER_WITHIN_S)
        phase = Phase(self._broker)
        cpu_s, began = self._broker.cpu(), time.monotonic()
        times, jobs = measure_load(self._broker, phase, self._args.rate, self._args.seconds, self.jobs)
        share = (self._broker.cpu() - cpu_s) / (time.monotonic() - began) * 100
        params = {"connections": self._count, "working": working, "rate": self._args.rate, **params}
        self._print_times(f"submit to result, {name}", times, **params)
        self._report.result(f"broker CPU, {name}", share, "% of core", **params)
        phase.end(self._report, name, **params)
        self._holders.tell("rest")
        self._holders.answers(ANSWER_WITHIN_S)
        self.jobs += jobs

    def _work_among_hostile_peers(self) -> None:
        silent, slow = self._args.silent, self._args.slow
        with closing(Peer(self._broker.endpoint).open()) as producer:
            large = [{"task": PROBE_TASK, "payload": bytes(LARGE_BYTES), "encoding": "raw"}]
            large_job = producer.call("submit", jobs=large)["jobs"][0]
            others = producer.call("stats")["door"]["open"]
            hostile = Hostile(self._broker.endpoint, silent, slow, large_job)
            self._work("with hostile peers", silent=silent, slow=slow)
            self._report.result("hostile peers closed after", hostile.wait_for_end(producer, others), "s", silent=silent, slow=slow)
            producer.call("cancel", jobs=[large_job])
        self.jobs += 1
        self.cancelled += 1

    def _storm(self) -> None:
        """Kill the broker while jobs are leased and wait, start it again, and see everybody come back."""
        broker, report, count, leased = self._broker, self._report, self._count, min(self._args.leased, self._count)
        with closing(Peer(broker.endpoint).open()) as producer:
            first = submit(producer, TASK, range(leased))
            self._holders.tell("lease", leased)
            self._holders.answers(ANSWER_WITHIN_S)
            waiting = submit(producer, PROBE_TASK, range(leased, 2 * leased))
            time.sleep(ON_DISK_S)
        self.jobs += 2 * leased
        self._holders.tell("expect loss")
        self._holders.answers(ANSWER_WITHIN_S)
        clients_cpu_s, began = self._holders.cpu_s, time.monotonic()
        broker.kill()
        self._holders.tell("come back")
        broker.start()
        serving_s = time.monotonic() - began
        phase = Phase(broker)
        answers = self._holders.answers(STORM_WITHIN_S, phase.sample)
        met: Counter[str] = Counter()
        for _, found in answers:
            met.update(found)
        report.result("storm, serving again after", serving_s, "s", connections=count)
        report.result("storm, all back after", max(at for at, _ in answers) - began, "s", connections=count)
        report.result("storm, broker CPU per connection", broker.cpu() / count * 1000, "ms", connections=count)
        report.result("storm, client CPU per connection", (self._holders.cpu_s - clients_cpu_s) / count * 1000, "ms", connections=count)
        for name in ("leases kept", "leases lost", "attempts failed", "attempts given up"):
            report.result(f"storm, {name}", met[name], "", connections=count, leased=leased)
        phase.end(report, "storm", connections=count)
        self._check_nothing_lost(first, waiting, met)

    def _check_nothing_lost(self, first: list[int], waiting: list[int], met: Counter[str]) -> None:
        self._holders.tell("settle")
        settled = sum(self._holders.answers(ANSWER_WITHIN_S))
        if settled != len(first) or met["leases lost"]:
            raise BenchError(f"{settled} of {len(first)} leases survived")
        with closing(Peer(self._broker.endpoint).open()) as producer:
            for number, view in enumerate(check(producer.call("wait", jobs=first, wait=TURN_WITHIN_S))["jobs"]):
                check_view(view, number)
            states = Counter(view["state"] for view in producer.call("get", jobs=waiting)["jobs"])
            if states != {"queued": len(waiting)}:
                raise BenchError(f"of {len(waiting)} jobs that waited there are {dict(states)}")
            producer.call("cancel", jobs=waiting)
        self.cancelled += len(waiting)

    def _print_times(self, name: str, times: list[float], **params: object) -> None:
        for percent in (50, 99, 99.9):
            self._report.result(f"{name} p{percent:g}", percentile(times, percent), "ms", jobs=len(times), **params)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="connections.py", description="Many TLS connections: rate, memory, idle CPU, latency, a storm.")
    parser.add_argument("--connections", type=positive, default=10_000, help="connections to hold (default: 10,000)")
    parser.add_argument("--processes", type=positive, default=PROCESSES, help=f"client processes (default: {PROCESSES})")
    parser.add_argument("--idle", type=float, default=15.0, metavar="SECONDS", help="how long to watch idle CPU (default: 15)")
    parser.add_argument("--probes", type=positive, default=1000, help="jobs with a single connection, before (default: 1,000)")
    parser.add_argument("--working", type=positive, default=1000, help="connections that work while all are held (default: 1,000)")
    parser.add_argument("--rate", type=float, default=500.0, help="jobs a second for them (default: 500)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long they work (default: 10)")
    parser.add_argument("--silent", type=int, default=500, help="connections that never say a word (default: 500)")
    parser.add_argument("--slow", type=int, default=20, help="peers that ask for much and read nothing (default: 20)")
    parser.add_argument("--leased", type=int, default=500, metavar="JOBS",
                        help="jobs that are leased when the broker is killed, and as many that wait; 0: no kill (default: 500)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    limit = raise_file_limit() - SPARE_FILES
    if args.connections > limit:
        raise BenchError(f"--connections may be at most {limit} here: the broker's file limit")
    if not 0.1 <= args.idle <= 600 or not 0.1 <= args.seconds <= 600 or not 1 <= args.rate <= 100_000:
        raise BenchError("--idle and --seconds must be 0.1 to 600 seconds, --rate 1 to 100,000 jobs/s")
    if not 0 <= args.leased <= 1000 or not 0 <= args.silent <= 4000 or not 0 <= args.slow <= 100:
        raise BenchError("--leased may be 0 to 1,000, --silent 0 to 4,000, --slow 0 to 100")
    report = Report(is_json=args.json)
    with Certificates() as certificates, Broker(certificates) as broker:
        report.head("Connections", {key: value for key, value in vars(args).items() if key != "json"}, broker.settings)
        measurement = Measurement(report, broker, args)
        measurement.run()
        broker.stop()
        stored = broker.count_stored()
    completed = measurement.jobs - measurement.cancelled
    if stored != {"waiting": 0, "completed": completed, "other": measurement.cancelled}:
        raise BenchError(f"the store holds {stored} of {completed} jobs that were completed and {measurement.cancelled} cancelled")
    report.result("jobs in the store", measurement.jobs, "jobs", connections=args.connections)
    return 0


if __name__ == "__main__":
    run(main)
