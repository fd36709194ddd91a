"""Many TLS connections at once: how fast they come, what each costs the broker, and how quick it is while all are held.

Starts a broker of its own with its shipped defaults. The connections are workers in a few client processes: each verified, greeted,
heartbeating, and in turn completing one job. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, Loop, Peer, Report, check, percentile, positive, raise_file_limit, run

import argparse
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from greenroom.endpoint import Endpoint

TASK = "bench.turn"
PROBE_TASK = "bench.probe"
PROCESSES = 2
SHAKING = 24  # handshakes that each process has under way
SPARE_FILES = 200  # the broker keeps 128 for store, logs and web
SETTLE_S = 2.0
HEARTBEAT_SLICES = 200  # a process sends its heartbeats in so many portions, evenly over the period
RESERVE_WAIT_S = 60.0
TURN_WITHIN_S = 30.0
ANSWER_WITHIN_S = 300.0

_fork = multiprocessing.get_context("fork")


# -- the client processes ---------------------------------------------------------------------------------------------------


def hold(endpoint: Endpoint, count: int, pipe: Connection) -> None:
    """Be `count` connections, and do what the parent says; the process's main.

    Commands: "work" (each connection completes one job, answered with how many did), "end". The first answer is "open".
    """
    try:
        holder = _Holder(endpoint, count)
        holder.open_all()
        pipe.send("open")
        holder.serve(pipe)
    except (BenchError, OSError) as exc:
        pipe.send(f"a client process failed: {exc}")


class _Holder:
    """The connections of one process."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self._endpoint = endpoint
        self._count = count
        self._loop = Loop()
        self._peers: list[Peer] = []  # greeted
        self._done: set[Peer] = set()
        self._next_beat = 0
        self._beat_at = time.monotonic()

    def open_all(self) -> None:
        """Open all connections, some at a time, heartbeating on those that are open."""
        begun = 0
        shaking: set[Peer] = set()
        while len(self._peers) < self._count:
            while begun < self._count and len(shaking) < SHAKING:
                peer = Peer(self._endpoint, "worker", begun).begin()
                self._loop.add(peer)
                shaking.add(peer)
                self._go_on(peer, shaking)
                begun += 1
            for peer in self._loop.ready(0.05):
                if peer in shaking:
                    self._go_on(peer, shaking)
                else:
                    self._take_all(peer)
            self._beat()

    def _go_on(self, peer: Peer, shaking: set[Peer]) -> None:
        events = peer.advance()
        if events == 0:
            shaking.discard(peer)
            self._peers.append(peer)
        else:
            self._loop.watch(peer, events)

    def serve(self, pipe: Connection) -> None:
        """Heartbeat and work until told to end."""
        is_working = False
        while True:
            if pipe.poll():
                command = pipe.recv()
                if command == "end":
                    return
                is_working = True
                for peer in self._peers:
                    self._reserve(peer)
            for peer in self._loop.ready(0.005):
                self._take_all(peer)
            self._beat()
            if is_working and len(self._done) == self._count:
                is_working = False
                pipe.send(len(self._done))

    def _beat(self) -> None:
        """Send the heartbeats that are due: a portion of the connections at a time, so that they spread evenly."""
        if not self._peers or time.monotonic() < self._beat_at:
            return
        self._beat_at += self._peers[0].greeting["heartbeat_s"] / HEARTBEAT_SLICES
        share = -(-len(self._peers) // HEARTBEAT_SLICES)
        for _ in range(share):
            peer = self._peers[self._next_beat % len(self._peers)]
            self._next_beat += 1
            # A job is settled as soon as it comes, so no lease is ever held when a heartbeat leaves.
            peer.in_flight[peer.ask("heartbeat", leases=[])] = "heartbeat"
            self._loop.send(peer)

    def _reserve(self, peer: Peer) -> None:
        peer.in_flight[peer.ask("reserve", n=1, tasks=[TASK], wait=RESERVE_WAIT_S)] = "reserve"
        self._loop.send(peer)

    def _take_all(self, peer: Peer) -> None:
        for message in peer.receive():
            kind = peer.in_flight.pop(message["id"])
            check(message)
            if kind == "settle":
                if message["outcomes"] != ["OK"]:
                    raise BenchError(f"a settle was answered {message['outcomes']}")
                self._done.add(peer)
            if kind == "reserve" and message["jobs"]:
                job_id, fence, _, payload = message["jobs"][0][:4]
                peer.in_flight[peer.ask("settle", leases=[[job_id, fence, "ack", payload[::-1], True]])] = "settle"
                self._loop.send(peer)
            elif kind == "reserve":
                self._reserve(peer)


# -- the parent -------------------------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """The client processes, seen from the parent."""

    processes: list[multiprocessing.Process]
    pipes: list[Connection]

    @classmethod
    def start(cls, endpoint: Endpoint, count: int, processes: int) -> Clients:
        """Start them; each begins to connect at once."""
        clients = cls([], [])
        for number in range(processes):
            share = count // processes + (number < count % processes)
            pipe, its_pipe = _fork.Pipe()
            process = _fork.Process(target=hold, args=(endpoint, share, its_pipe), daemon=True)
            process.start()
            its_pipe.close()
            clients.processes.append(process)
            clients.pipes.append(pipe)
        return clients

    def tell(self, command: str) -> None:
        """Send a command to all."""
        for pipe in self.pipes:
            pipe.send(command)

    def answers(self) -> list[object]:
        """Wait for one answer of each. Raises BenchError with the words of one that failed."""
        found = []
        for pipe in self.pipes:
            if not pipe.poll(ANSWER_WITHIN_S):
                raise BenchError(f"a client process did not answer within {ANSWER_WITHIN_S:g} s")
            try:
                found.append(pipe.recv())
            except EOFError:
                raise BenchError("a client process died") from None
            if isinstance(found[-1], str) and found[-1] != "open":
                raise BenchError(found[-1])
        return found

    def check(self) -> None:
        """Raise BenchError with the words of one that failed."""
        for pipe in self.pipes:
            if pipe.poll() and isinstance(words := pipe.recv(), str):
                raise BenchError(words)

    def end(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.join()


def turn(producer: Peer, task: str, number: int) -> float:
    """Submit a job and wait for its result; returns milliseconds from one to the other. Raises BenchError if it is wrong."""
    payload = number.to_bytes(8, "big") + bytes(92)
    began = time.perf_counter()
    job_id = producer.call("submit", jobs=[{"task": task, "payload": payload, "encoding": "raw"}])["jobs"][0]
    views = producer.call("wait", jobs=[job_id], wait=TURN_WITHIN_S)["jobs"]
    took_ms = (time.perf_counter() - began) * 1000
    if not views:
        raise BenchError(f"job {job_id} was not done within {TURN_WITHIN_S:g} s")
    if views[0]["state"] != "completed" or views[0]["result"] != payload[::-1]:
        raise BenchError(f"job {job_id} came back as {views[0]}")
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
        producer = Peer(endpoint).open()
        times = [turn(producer, PROBE_TASK, number) for number in range(jobs)]
        producer.close()
    finally:
        process.join(5)
        process.kill()
    return times


def measure_held(producer: Peer, clients: Clients, count: int) -> list[float]:
    """Let each connection complete one job, one after the other; returns how long each took."""
    clients.tell("work")
    times = []
    for number in range(count):
        try:
            times.append(turn(producer, TASK, number))
        except BenchError:
            clients.check()  # a client process that failed is the better explanation
            raise
    return times


def connect_all(report: Report, broker: Broker, count: int, processes: int) -> Clients:
    """Open all connections and print how fast that went and what each costs."""
    before = broker.memory()
    cpu_before, began = broker.cpu(), time.monotonic()
    clients = Clients.start(broker.endpoint, count, processes)
    try:
        clients.answers()
        took = time.monotonic() - began
        report.result("connect", count / took, "conn/s", connections=count)
        report.result("broker CPU per connect", (broker.cpu() - cpu_before) / count * 1000, "ms", connections=count)
        time.sleep(SETTLE_S)
        report.result("broker memory per connection", (broker.memory() - before) / count / 1024, "KiB", connections=count)
        report.result("broker memory", broker.memory() / 2**20, "MiB", connections=count)
    except BaseException:
        clients.end()
        raise
    return clients


def measure_idle(report: Report, broker: Broker, count: int, seconds: float) -> None:
    """Print the processor time that held connections with nothing but heartbeats cost."""
    cpu, began = broker.cpu(), time.monotonic()
    time.sleep(seconds)
    share = (broker.cpu() - cpu) / (time.monotonic() - began) * 100
    report.result("idle CPU", share, "% of core", connections=count, seconds=seconds)


def print_times(report: Report, name: str, times: list[float], connections: int) -> None:
    """Print the percentiles of some latencies."""
    for percent in (50, 99, 99.9):
        report.result(f"{name} p{percent:g}", percentile(times, percent), "ms", connections=connections, jobs=len(times))


def measure(report: Report, broker: Broker, args: argparse.Namespace) -> None:
    """Make all measurements against a started broker; raises BenchError if a check fails."""
    count, processes = args.connections, min(args.processes, args.connections)
    print_times(report, "submit to result, alone", measure_alone(broker.endpoint, args.probes), 1)
    clients = connect_all(report, broker, count, processes)
    try:
        measure_idle(report, broker, count, args.idle)
        producer = Peer(broker.endpoint).open()
        times = measure_held(producer, clients, count)
        done = sum(clients.answers())
        stats = producer.call("stats")
    finally:
        clients.end()
    if done != count or len(times) != count:
        raise BenchError(f"{done} of {count} connections completed a job, {len(times)} results came")
    if stats["states"]["completed"] != count + args.probes or stats["requeued"]:
        raise BenchError(f"the broker counts {stats['states']} and {stats['requeued']} requeued")
    print_times(report, "submit to result, all held", times, count)
    report.result("hub lag, longest", stats["hub"]["max_lag_ms"], "ms", connections=count)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="connections.py", description="Many TLS connections: rate, memory, idle CPU, latency.")
    parser.add_argument("--connections", type=positive, default=10_000, help="connections to hold (default: 10,000)")
    parser.add_argument("--processes", type=positive, default=PROCESSES, help=f"client processes (default: {PROCESSES})")
    parser.add_argument("--idle", type=float, default=15.0, metavar="SECONDS", help="how long to watch idle CPU (default: 15)")
    parser.add_argument("--probes", type=positive, default=1000, help="jobs with a single connection, before (default: 1,000)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    limit = raise_file_limit() - SPARE_FILES
    if args.connections > limit:
        raise BenchError(f"--connections may be at most {limit} here: the broker's file limit")
    if not 0.1 <= args.idle <= 600:
        raise BenchError("--idle must be 0.1 to 600 seconds")
    report = Report(is_json=args.json)
    with Certificates() as certificates, Broker(certificates) as broker:
        report.head("Connections", {key: value for key, value in vars(args).items() if key != "json"}, broker.settings)
        measure(report, broker, args)
        broker.stop()
        stored = broker.count_stored()
    if stored != {"waiting": 0, "completed": args.connections + args.probes, "other": 0}:
        raise BenchError(f"the store holds {stored}")
    report.result("jobs in the store", stored["completed"], "jobs", connections=args.connections)
    return 0


if __name__ == "__main__":
    run(main)
