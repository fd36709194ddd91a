"""What viewers of the live page cost: jobs a second with none and with many, and when each of them gets its events.

Starts brokers of its own with their shipped defaults: one without viewers, then one with them, and so on. A viewer is an open stream of
`GET /api/events`, as the page has it. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, HubLag, Peer, Report, percentile, positive, run
from crew import Crew, Member
from throughput import LEAST_PAYLOAD, Outcome, Plan, Progress, check_pairs, consume, make_filler, produce

import argparse
import json
import select
import socket
import time
from array import array
from dataclasses import dataclass, field

REQUEST = b"GET /api/events HTTP/1.1\r\nHost: localhost:%d\r\nAccept: text/event-stream\r\n\r\n"
SAMPLE_S = 0.1
WITHIN_S = 600.0
GREETED_WITHIN_S = 15.0


@dataclass
class Viewed:
    """What the viewers got.

    Attributes:
        events: of each viewer, overviews only.
        delays_ms: from the moment that an overview tells (`now` in it) until a viewer had it whole.
        size: bytes of the largest overview.
    """

    events: list[int] = field(default_factory=list)
    delays_ms: array = field(default_factory=lambda: array("d"))
    size: int = 0


@dataclass
class Figures:
    """One measurement."""

    jobs_per_s: float
    fsyncs_per_s: float
    cpu_us: float  # of the broker, a job
    busy: float  # the broker, percent of a core
    seconds: float
    hub_lag_ms: dict[str, float]
    viewed: Viewed | None


# -- viewing ----------------------------------------------------------------------------------------------------------------


class _Viewer:
    """One open stream."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=GREETED_WITHIN_S)
        self.sock.sendall(REQUEST % port)
        self.sock.setblocking(False)
        self.has_answer = False
        self.buffer = b""
        self.events = 0

    def take(self) -> list[bytes]:
        """Return the data of the overviews that are there whole. Raises BenchError for a refusal or an end of the stream."""
        try:
            data = self.sock.recv(2**20)
        except BlockingIOError:
            return []
        if not data:
            raise BenchError(f"a viewer's stream ended after {self.events} overviews")
        self.buffer += data
        if not self.has_answer:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return []
            if not head.startswith(b"HTTP/1.1 200"):
                raise BenchError(f"a viewer was answered {head.splitlines()[0].decode('ascii', 'replace')}")
            self.has_answer, self.buffer = True, rest
        *whole, self.buffer = self.buffer.split(b"\n\n")
        # Chunked: a size stands before each event, and the event's lines are whole in the chunk.
        found = [event.partition(b"event: overview\ndata: ")[2] for event in whole]
        found = [event for event in found if event]
        self.events += len(found)
        return found


def view(member: Member, port: int, count: int) -> Viewed:
    """Be so many viewers until told to end; each must get what the others get."""
    viewed, latest = Viewed(), (b"", 0.0)  # an overview, and the moment that it tells
    poll, viewers = select.poll(), {}
    for _ in range(count):
        viewer = _Viewer(port)
        viewers[viewer.sock.fileno()] = viewer
        poll.register(viewer.sock.fileno(), select.POLLIN)
    deadline = time.monotonic() + GREETED_WITHIN_S
    is_ready = False
    while not member.is_over:
        for number, _ in poll.poll(50):
            for event in viewers[number].take():
                now = time.time()
                if event != latest[0]:  # else the first of them has looked into it
                    latest = event, json.loads(event)["stats"]["now"]
                    viewed.size = max(viewed.size, len(event))
                if is_ready:
                    viewed.delays_ms.append((now - latest[1]) * 1000)
        if not is_ready and all(viewer.events for viewer in viewers.values()):
            member.ready()
            is_ready = True
            for viewer in viewers.values():
                viewer.events = 0
        if not is_ready and time.monotonic() > deadline:
            raise BenchError(f"{sum(not viewer.events for viewer in viewers.values())} viewers got no overview")
    viewed.events = [viewer.events for viewer in viewers.values()]
    return viewed


# -- one measurement --------------------------------------------------------------------------------------------------------


def measure(certificates: Certificates, plan: Plan, viewers: int) -> Figures:
    """Let jobs flow while so many watch. Raises BenchError if a check fails."""
    filler, progress = make_filler(plan.payload), Progress()
    with Broker(certificates) as broker, Crew() as watching, Crew() as crew:
        if viewers:
            watching.start(view, broker.web_port, viewers)
            watching.go(GREETED_WITHIN_S + 5)
        watcher = Peer(broker.endpoint).open()
        lag = HubLag(watcher)
        for main in (produce, consume):
            crew.start(main, broker.endpoint, plan, progress, filler)
        commits, cpu_s = watcher.call("stats")["store"]["commits"], broker.cpu()
        lag.begin()
        crew.go()
        while not crew.has_ended(SAMPLE_S):
            lag.sample()
        submitted, settled = crew.outcomes(WITHIN_S)
        cpu_s, hub_lag_ms = broker.cpu() - cpu_s, lag.end()
        commits = watcher.call("stats")["store"]["commits"] - commits
        watching.end()
        viewed = watching.outcomes(WITHIN_S)[0] if viewers else None
        watcher.close()
        check_pairs(submitted, settled)
        broker.stop()
        stored = broker.count_stored()
    return _figures(submitted, settled, stored, cpu_s, commits, hub_lag_ms, viewed)


def _figures(submitted: Outcome, settled: Outcome, stored: dict[str, int], cpu_s: float, commits: int, hub_lag_ms: dict[str, float],
             viewed: Viewed | None) -> Figures:
    jobs = len(settled.ids)
    if stored != {"waiting": 0, "completed": jobs, "other": 0}:
        raise BenchError(f"the store holds {stored}, {jobs} jobs were completed")
    if viewed is not None and not min(viewed.events):
        raise BenchError("a viewer got no overview while jobs flowed")
    seconds = settled.ended_at - submitted.began_at
    return Figures(jobs / seconds, commits / seconds, cpu_s / jobs * 1e6, cpu_s / seconds * 100, seconds, hub_lag_ms, viewed)


# -- the script -------------------------------------------------------------------------------------------------------------


def print_figures(report: Report, plan: Plan, viewers: int, runs: list[Figures]) -> None:
    """Print medians over the runs with so many viewers."""
    params = {**plan.params, "viewers": viewers}

    def median(name: str, unit: str, values: list[float]) -> None:
        report.result(name, percentile(values, 50), unit, **params, runs=len(runs), min=round(min(values), 2), max=round(max(values), 2))

    median("jobs", "jobs/s", [figures.jobs_per_s for figures in runs])
    median("fsyncs", "fsyncs/s", [figures.fsyncs_per_s for figures in runs])
    median("broker CPU per job", "us", [figures.cpu_us for figures in runs])
    median("broker busy", "% of core", [figures.busy for figures in runs])
    for name in ("p99", "max"):
        median(f"hub lag {name}", "ms", [figures.hub_lag_ms[name] for figures in runs])
    if viewers:
        median("overviews a viewer, least", "events/s", [min(figures.viewed.events) / figures.seconds for figures in runs])
        median("overviews a viewer, most", "events/s", [max(figures.viewed.events) / figures.seconds for figures in runs])
        median("an overview", "bytes", [figures.viewed.size for figures in runs])
        delays = [delay for figures in runs for delay in figures.viewed.delays_ms]
        for percent in (50, 99, 100):
            report.result(f"overview delay p{percent}", percentile(delays, percent), "ms", **params)
    report.say()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="fanout.py", description="Live viewers of the page while jobs flow.")
    parser.add_argument("--viewers", type=positive, default=200, help="streams open at once (default: 200)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to submit (default: 5)")
    parser.add_argument("--batch", type=positive, default=100, help="jobs in a frame (default: 100)")
    parser.add_argument("--connections", type=positive, default=4, help="connections that submit, and as many that work (default: 4)")
    parser.add_argument("--payload", type=positive, default=100, metavar="BYTES", help="bytes of a payload, at least 16 (default: 100)")
    parser.add_argument("--runs", type=positive, default=3, help="measure so often, without and with viewers in turn (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if args.payload < LEAST_PAYLOAD or not 1.5 <= args.seconds <= 600:
        raise BenchError(f"--payload must be at least {LEAST_PAYLOAD} bytes, --seconds 1.5 to 600 (an overview comes once a second)")
    plan = Plan("all", args.batch, args.connections, args.payload, args.seconds, 0, 1, False)
    runs: dict[int, list[Figures]] = {0: [], args.viewers: []}
    with Certificates() as certificates:
        report = Report.begin("Fan-out", args, Broker(certificates).settings)
        for _ in range(args.runs):
            for viewers, found in runs.items():
                found.append(measure(certificates, plan, viewers))
    for viewers, found in runs.items():
        print_figures(report, plan, viewers, found)
    rates = [percentile([figures.jobs_per_s for figures in found], 50) for found in runs.values()]
    report.result("jobs/s with viewers, of those without", rates[1] / rates[0] * 100, "%", viewers=args.viewers)
    return 0


if __name__ == "__main__":
    run(main)
