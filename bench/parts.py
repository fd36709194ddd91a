"""What each part costs by itself: engine, batches and store, codec, TLS. In this process, without sockets; microseconds an operation.

So that a change shows where it lands. Figures of parts don't add up to a job: caches, the hub and system calls come on top.
"""

from __future__ import annotations

from common import BenchError, Certificates, Report, percentile, positive, run

import argparse
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from greenroom import tls
from greenroom.batches import Batches
from greenroom.effects import Delivery, Effects
from greenroom.engine import Engine
from greenroom.job import NewJob, State, parse_new_job
from greenroom.lanes import Window
from greenroom.leases import Caps, Timing
from greenroom.protocol import (DEFAULT_LIMITS, MAX_INNER_ITEMS, MAX_REQUEST_VALUES, FrameEncoder, FrameReader, parse_request,
                                parse_settle)
from greenroom.records import SettleItem
from greenroom.sessions import Session
from greenroom.stores import Store
from greenroom.stores.memory import MemoryStore
from greenroom.stores.sqlite import SqliteStore
from greenroom.tls_pipe import TlsPipe
from greenroom.waits import Waits

TASK = "bench.noop"
BATCHES = (1, 10, 100)
BLOCK = 10**9  # numbers, so that none are fetched meanwhile
LEASES = 1000  # that a session may hold
NOW = 1_800_000_000.0
PAYLOAD = bytes(100)
RESULT = bytes(8)
TLS_BYTES = (150, 1_500, 16_384)

_encode = FrameEncoder()


class Timer:
    """Times steps by name, repeat by repeat, and prints the median of each.

    A step is called with inputs made beforehand, so that only the step itself is timed.
    """

    def __init__(self, report: Report, repeats: int) -> None:
        self._report = report
        self.repeats = repeats
        self._spent: dict[tuple[str, int], list[float]] = {}

    def time(self, name: str, batch: int, operations: int, step: Callable[[], object]) -> object:
        """Run a step once; it does `operations` operations. Returns what it returns."""
        began = time.perf_counter()
        outcome = step()
        took = time.perf_counter() - began
        self._spent.setdefault((name, batch), []).append(took / operations * 1e6)
        return outcome

    def print(self, size: str = "batch") -> None:
        """Print the medians so far, in the order in which steps first ran, and forget them. `size`: what the batches are."""
        for (name, batch), spent in self._spent.items():
            self._report.result(name, percentile(spent, 50), "us", **{size: batch}, repeats=len(spent), min=round(min(spent), 2),
                                p99=round(percentile(spent, 99), 2))
        self._spent = {}


# -- the engine -------------------------------------------------------------------------------------------------------------


def make_engine() -> tuple[Engine, Session]:
    """Return an engine that has all numbers it needs, with one worker."""
    engine = Engine(Caps(), Timing(), Window())
    for kind in ("job", "fence"):
        engine.add_numbers(kind, 1, BLOCK, NOW)
    session = Session(1, role="worker", name="w", instance=None, now=NOW, conn=None)
    engine.open_session(session, [], NOW)
    return engine, session


def new_jobs(count: int) -> list[NewJob]:
    """Return so many checked jobs."""
    return [parse_new_job({"task": TASK, "payload": PAYLOAD, "encoding": "raw"}, DEFAULT_LIMITS.payload) for _ in range(count)]


def reserve(engine: Engine, session: Session, batch: int, rounds: int) -> None:
    """Reserve so many jobs so often; the deliveries are among the engine's effects."""
    for number in range(rounds):
        engine.reserve(session, number + 1, batch, None, None, 0.0, NOW)


def settles_of(deliveries: list[Delivery]) -> list[list[SettleItem]]:
    """Return the acks of each delivery."""
    return [[SettleItem(job.id, job.fence, "ack", RESULT, True, None) for job in delivery.jobs] for delivery in deliveries]


def time_engine(timer: Timer, jobs: int) -> None:
    """Submit, reserve and settle with nothing below: what the engine wants done is thrown away."""
    for batch in BATCHES:
        for _ in range(timer.repeats):
            engine, session = make_engine()
            news = [new_jobs(batch) for _ in range(jobs // batch)]
            timer.time("engine submit", batch, jobs, lambda: [engine.submit(some, NOW) for some in news])
            for first in range(0, jobs, LEASES):
                count = min(LEASES, jobs - first)
                engine.effects = Effects()
                timer.time("engine reserve", batch, count, lambda: reserve(engine, session, batch, count // batch))
                items = settles_of(engine.effects.deliveries)
                outcomes = timer.time("engine settle", batch, count, lambda: [engine.settle(some, NOW, {}) for some in items])
                if outcomes != [["OK"] * batch] * (count // batch):
                    raise BenchError("a settle was refused, or a job did not come")
    timer.print()


# -- batches and stores -----------------------------------------------------------------------------------------------------


def time_store(timer: Timer, jobs: int, name: str, make_store: Callable[[], Store]) -> None:
    """The same through batches and a store: rows made (apply), written (statements) and committed; batch: rows a COMMIT.

    Statements of few rows are run by `apply` already, as in the broker.
    """
    for batch in BATCHES:
        for _ in range(timer.repeats):
            store = make_store()
            engine, session = make_engine()
            engine.restore(store.open(), NOW, 0.0)
            batches = Batches(engine, store, Waits(), lambda: None)
            for first in range(0, jobs, batch):
                engine.submit(new_jobs(batch), NOW)
                _timed_cycle(timer, batches, f"{name} submit", batch)
            for first in range(0, jobs, batch):
                reserve(engine, session, batch, 1)
                (items,) = settles_of(engine.effects.deliveries)
                if engine.settle(items, NOW, {}) != ["OK"] * batch:
                    raise BenchError("a settle was refused")
                _timed_cycle(timer, batches, f"{name} settle", batch)
            stored = sum(job.state is State.COMPLETED for job in store.load(list(range(1, jobs + 1))).values())
            store.close()
            if stored != jobs:
                raise BenchError(f"{name} holds {stored} completed jobs of {jobs}")
    timer.print()


def _timed_cycle(timer: Timer, batches: Batches, name: str, batch: int) -> None:
    def apply() -> None:
        batches.start()
        while not batches.apply_slice():
            pass

    timer.time(f"{name}: collect", batch, batch, batches.collect)
    timer.time(f"{name}: apply", batch, batch, apply)
    timer.time(f"{name}: statements", batch, batch, batches.store.write)
    timer.time(f"{name}: COMMIT", batch, 1, batches.store.commit)
    timer.time(f"{name}: committed", batch, batch, lambda: batches.committed(NOW))


# -- the codec --------------------------------------------------------------------------------------------------------------


def time_codec(timer: Timer, jobs: int) -> None:
    """Decode and check requests as the broker does, encode its answers, and the client's half of both; microseconds a job."""
    for batch in BATCHES:
        rounds = range(max(1, jobs // batch // 10))
        frames = {name: _encode({"verb": name, "id": 7, **fields}) for name, fields in _requests(batch).items()}
        for _ in range(timer.repeats):
            reader = FrameReader(DEFAULT_LIMITS.frame, MAX_REQUEST_VALUES, MAX_INNER_ITEMS)
            for name, frame in frames.items():
                messages = timer.time(f"decode {name}", batch, batch * len(rounds), lambda: [reader.feed(frame)[0] for _ in rounds])
                requests = timer.time(f"check {name}", batch, batch * len(rounds), lambda: [parse_request(item) for item in messages])
                if name == "submit":
                    lists = [request.fields["jobs"] for request in requests]
                    timer.time("check jobs of a submit", batch, batch * len(rounds),
                               lambda: [[parse_new_job(item, DEFAULT_LIMITS.payload) for item in items] for items in lists])
                if name == "settle":
                    lists = [request.fields["leases"] for request in requests]
                    timer.time("check leases of a settle", batch, batch * len(rounds),
                               lambda: [[parse_settle(item, DEFAULT_LIMITS.result) for item in items] for items in lists])
            for name, answer in _answers(batch).items():
                frame = timer.time(f"encode answer to {name}", batch, batch * len(rounds), lambda: [_encode(answer) for _ in rounds])[0]
                client = FrameReader(DEFAULT_LIMITS.frame)
                timer.time(f"decode answer to {name} (client)", batch, batch * len(rounds), lambda: [client.feed(frame) for _ in rounds])
    timer.print()


def _requests(batch: int) -> dict[str, dict]:
    return {"submit": {"jobs": [{"task": TASK, "payload": PAYLOAD, "encoding": "raw"}] * batch},
            "reserve": {"n": batch, "wait": 5.0},
            "settle": {"leases": [[10**6 + place, 2 * 10**6 + place, "ack", RESULT, True] for place in range(batch)]}}


def _answers(batch: int) -> dict[str, dict]:
    ids = range(10**6, 10**6 + batch)
    return {"submit": {"id": 7, "jobs": list(ids)},
            "reserve": {"id": 7, "jobs": [[job_id, job_id, TASK, PAYLOAD, True, "default", 1, 5] for job_id in ids]},
            "settle": {"id": 7, "outcomes": ["OK"] * batch}}


# -- TLS --------------------------------------------------------------------------------------------------------------------


def time_tls(timer: Timer, certificates: Certificates, rounds: int) -> None:
    """Seal and open records of typical sizes with the broker's side of a connection."""
    server_context = tls.server_context(certificates.directory / "server.crt", certificates.directory / "server.key")
    client_context = tls.client_context(certificates.directory / "ca.crt")
    for repeat in range(timer.repeats):
        pipe, client, to_server, to_client = timer.time("TLS handshake (both sides)", 0, 1, lambda: _shake(server_context, client_context))
        for size in TLS_BYTES:
            data = bytes([repeat % 256]) * size
            sealed = timer.time("TLS seal", size, rounds, lambda: [pipe.seal(data) for _ in range(rounds)])
            for record in sealed:
                to_client.write(record)
                if client.read(size) != data:
                    raise BenchError("what was sealed is not what was opened")
            records = []
            for _ in range(rounds):
                client.write(data)
                records.append(to_server.read())
            pieces: list[bytes] = []
            timer.time("TLS open", size, rounds, lambda: [pipe.open(record, pieces) for record in records])
            if b"".join(pieces) != data * rounds:
                raise BenchError("what was opened is not what was sealed")
    timer.print("bytes")


def _shake(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> tuple[TlsPipe, ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """Return a broker's end and a client's, the latter with its outgoing and incoming bytes."""
    pipe = TlsPipe(server_context)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    is_client_done = is_done = False
    while not (is_done and is_client_done):
        if not is_client_done:
            try:
                client.do_handshake()
                is_client_done = True
            except ssl.SSLWantReadError:
                pass
        if not is_done and to_server.pending:
            is_done = pipe.shake(to_server.read())
        to_client.write(pipe.outgoing())
    return pipe, client, to_server, to_client


# -- the script -------------------------------------------------------------------------------------------------------------


def stores(folder: Path) -> Iterator[tuple[str, Callable[[], Store]]]:
    """Yield name and maker of each store; each store is empty."""
    yield "memory", MemoryStore

    def make_sqlite() -> Store:
        return SqliteStore(tempfile.mkdtemp(dir=folder))

    yield "SQLite", make_sqlite


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="parts.py", description="Engine, store, codec and TLS alone: microseconds an operation.")
    parser.add_argument("--repeats", type=positive, default=7, help="measure each so often and print the median (default: 7)")
    parser.add_argument("--jobs", type=positive, default=10_000, help="jobs of a repeat, a multiple of 100 (default: 10,000)")
    parser.add_argument("--only", choices=("engine", "store", "codec", "tls"), help="measure this part alone")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if args.jobs % max(BATCHES):
        raise BenchError(f"--jobs must be a multiple of {max(BATCHES)}")
    report = Report.begin("Parts", args)
    timer = Timer(report, args.repeats)
    sys.setswitchinterval(1.0)  # one thread
    with Certificates() as certificates:
        if args.only in (None, "engine"):
            time_engine(timer, args.jobs)
        if args.only in (None, "store"):
            for name, make_store in stores(certificates.directory):
                time_store(timer, min(args.jobs, 1000), name, make_store)
        if args.only in (None, "codec"):
            time_codec(timer, args.jobs)
        if args.only in (None, "tls"):
            time_tls(timer, certificates, 200)
    return 0


if __name__ == "__main__":
    run(main)
