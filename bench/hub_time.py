"""How long the largest requests that are accepted, and bombs that are refused, keep the broker's hub: `python bench/hub_time.py`.

Runs dispatch, sessions and a SQLite store in this process, with a stream that is no socket, and measures from one switch of greenlets
to the next, in processor time, which other programs on the machine disturb least. The worst turn of each request counts; printed are
the median and the most of some repetitions; --json has the least too, which says best what the code itself costs.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import common

import argparse
import gc
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count

import gevent
import greenlet

from greenroom.clock import Clock
from greenroom.dispatch import Dispatch
from greenroom.engine import Engine
from greenroom.lanes import Window
from greenroom.leases import Caps, Timing
from greenroom.protocol import FrameReader, encode_frame
from greenroom.session import Connection, Sessions
from greenroom.stores import Retention, open_store

GOAL_MS = 5.0
READ_BYTES = 64 * 1024  # what a stream reads in one turn
ANSWER_WITHIN_S = 60.0
LIST = b"\xdc\x03\xe8"  # the head of a list of 1,000
JOB = {"task": "t", "queue": "q", "payload": b"x" * 20}
LONG_ERROR = {"name": "E" * 120, "message": "m" * 1000, "traceback": "é" * 1400}

BOMBS = {
    "a million texts in lists in lists": b"\x81\xa1a" + (LIST + b"\xa2ab" * 999) * 1022 + b"\xc0",
    "lists of 100 in lists": b"\x81\xa1a" + LIST + (b"\xdc\x00\x64" + b"\xa2ab" * 99) * 1020 + b"\xc0",
    "maps in maps": b"\x81\xa1a" + (b"\xde\x00\x20" + b"".join(b"\xa2%02d\xa3abc" % key for key in range(31)) + b"\xa2xx") * 1000 + b"\xc0",
    "empty maps": b"\x81\xa1a" + LIST + (b"\xdc\x00\x64" + b"\x80" * 100) * 1000,
    "four texts of 1 MiB": b"\x84" + b"".join(b"\xa1%d\xdb" % key + struct.pack(">I", 2**20 - 64) + "\U0001f600".encode() * (2**18 - 16)
                                             for key in range(4)),
}


class Stream:
    """What a connection writes to."""

    unsent_bytes = 0
    closed_because: str | None = None

    def __init__(self) -> None:
        self.received_at = 0.0
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Keep it."""
        self.sent.append(data)

    def flush(self) -> None:
        """Nothing waits."""

    def abort(self, reason: str) -> None:
        """End the connection."""
        self.closed_because = reason


class Peer:
    """A connection, and its greenlet's part."""

    def __init__(self, bench: Bench, role: str = "client", **hello: object) -> None:
        self._bench = bench
        self.stream = Stream()
        self.connection = Connection(bench.sessions, bench.dispatch, self.stream, "bench:1")
        self.call("hello", version=1, role=role, **hello)

    def feed(self, data: bytes) -> None:
        """Let the broker read bytes."""
        for begin in range(0, len(data), READ_BYTES):
            self.connection.take(data[begin:begin + READ_BYTES])
            gevent.sleep(0)

    def call(self, verb: str, **fields: object) -> dict:
        """Send a request and return its answer."""
        known = len(self.stream.sent)
        self.feed(self._bench.frame(verb, **fields))
        with gevent.Timeout(ANSWER_WITHIN_S, common.BenchError(f"no answer to {verb}")):
            while len(self.stream.sent) == known:
                gevent.sleep(0.001)
        return FrameReader().feed(self.stream.sent[-1])[0]

    def take(self, queue: str) -> list[list]:
        """Reserve 1,000 jobs."""
        jobs: list[list] = []
        while len(jobs) < 1000:
            jobs += self.call("reserve", n=1000, queues=[queue])["jobs"]
        return jobs


class Bench:
    """A broker without sockets, and the longest turn on its hub."""

    def __init__(self, folder: str) -> None:
        self._ids = count(1)
        self.names = count(1)
        clock = Clock()
        engine = Engine(Caps(), Timing(), Window())
        self.dispatch = Dispatch(engine, open_store(folder, Retention()), clock, sys.exit, None)
        engine.restore(self.dispatch.store.open(), clock.now(), 60.0)
        self.dispatch.start()
        self.sessions = Sessions(self.dispatch)
        self.client = Peer(self)
        self._hub = gevent.get_hub()
        self._turn_began = self._worst_s = 0.0

    def frame(self, verb: str, **fields: object) -> bytes:
        """Return a request."""
        return encode_frame({"verb": verb, "id": next(self._ids), **fields})

    def submitted(self, queue: str, jobs: int = 1000, **fields: object) -> list[int]:
        """Submit jobs and return their ids."""
        return self.client.call("submit", jobs=[{**JOB, "queue": queue, **fields}] * jobs)["jobs"]

    def worst_ms(self, peer: Peer, data: bytes) -> float:
        """Feed bytes and return the longest turn until everything that they caused is done."""
        feeding = gevent.spawn(peer.feed, data)
        known = len(peer.stream.sent)
        self._worst_s, self._turn_began = 0.0, time.thread_time()
        greenlet.settrace(self._switched)
        try:
            feeding.join(ANSWER_WITHIN_S)
            with gevent.Timeout(ANSWER_WITHIN_S, common.BenchError("no answer")):
                while len(peer.stream.sent) == known or not self.dispatch.batches.is_idle:
                    gevent.sleep(0.002)
        finally:
            greenlet.settrace(None)
        return self._worst_s * 1000

    def _switched(self, event: str, between: tuple[object, object]) -> None:
        now = time.thread_time()
        if between[0] is not self._hub:
            self._worst_s = max(self._worst_s, now - self._turn_began)
        self._turn_began = time.thread_time()


Case = Callable[[Bench], tuple[Peer, bytes]]


def _request(verb: str, **fields: object) -> Case:
    return lambda bench: (bench.client, bench.frame(verb, **fields))


def _of_jobs(verb: str, **fields: object) -> Case:
    return lambda bench: (bench.client, bench.frame(verb, jobs=bench.submitted("of"), **fields))


def _settle(*outcome: object) -> Case:
    def make(bench: Bench) -> tuple[Peer, bytes]:
        bench.submitted("settle")
        worker = Peer(bench, "worker")
        return worker, bench.frame("settle", leases=[[*job[:2], *outcome] for job in worker.take("settle")])
    return make


def _held(verb: str, **fields: object) -> Case:
    def make(bench: Bench) -> tuple[Peer, bytes]:
        bench.submitted("held")
        worker = Peer(bench, "worker")
        return worker, bench.frame(verb, leases=[job[:2] for job in worker.take("held")], **fields)
    return make


def _to_parked(bench: Bench) -> tuple[Peer, bytes]:
    queue = f"parked{next(bench.names)}"
    gevent.spawn(Peer(bench, "worker").feed, bench.frame("reserve", n=1000, queues=[queue], wait=30)).join()
    return bench.client, bench.frame("submit", jobs=[{**JOB, "queue": queue}] * 1000)


def _names(bench: Bench) -> tuple[Peer, bytes]:
    queues, tasks = ([f"{'n' * 100}{next(bench.names)}" for _ in range(1000)] for _ in range(2))
    return Peer(bench, "worker"), bench.frame("reserve", n=1, queues=queues, tasks=tasks)


def _lanes(bench: Bench) -> tuple[Peer, bytes]:
    return bench.client, bench.frame("submit", jobs=[{**JOB, "queue": f"lane{next(bench.names)}"} for _ in range(1000)])


def _bomb(body: bytes) -> Case:
    return lambda bench: (Peer(bench), struct.pack(">I", len(body)) + body)


def _ignored(item: bytes, count: int) -> Case:
    """A ping with a field that nobody knows: a list of lists of 100."""
    field = b"\xa1a" + struct.pack(">BH", 0xDC, count) + (b"\xdc\x00\x64" + item * 100) * count
    return lambda bench: (bench.client, struct.pack(">I", 15 + len(field)) + b"\x83\xa4verb\xa4ping\xa2id\x01" + field)


UNKNOWN = list(range(2**50, 2**50 + 1000))
CASES: dict[str, Case] = {
    "submit 1,000": _request("submit", jobs=[JOB] * 1000),
    "submit 1,000 of 4 kB, submission": lambda bench: (bench.client, bench.frame(
        "submit", jobs=[{**JOB, "queue": "large", "payload": bytes(4000)}] * 1000, submission=os.urandom(16))),
    "submit 4 of 1 MiB, submission": lambda bench: (bench.client, bench.frame(
        "submit", jobs=[{**JOB, "queue": "large", "payload": bytes(2**20 - 200)}] * 4, submission=os.urandom(16))),
    "submit 1,000 that are refused": _request("submit", jobs=[{"task": "no name"}] * 1000),
    "submit 1,000 to new queues": _lanes, "submit 1,000 to a waiting reserve": _to_parked,
    "cancel 1,000": _of_jobs("cancel"), "get 1,000": _of_jobs("get", payload=True), "wait for 1,000": _of_jobs("wait", wait=0.01),
    "cancel 1,000 unknown": _request("cancel", jobs=UNKNOWN), "get 1,000 unknown": _request("get", jobs=UNKNOWN),
    "wait for 1,000 unknown": _request("wait", jobs=UNKNOWN),
    "reserve 1,000": lambda bench: (Peer(bench, "worker"), bench.submitted("r") and bench.frame("reserve", n=1000, queues=["r"])),
    "reserve of 2,000 new names": _names, "settle 1,000 ack": _settle("ack", b"r" * 20), "settle 1,000 ack of 4 kB": _settle("ack", bytes(4000)),
    "settle 1,000 fail, long errors": _settle("fail", LONG_ERROR), "settle 1,000 nack": _settle("nack"),
    "heartbeat of 1,000": _held("heartbeat"), "extend 1,000": _held("extend", **{"for": 60}),
    "jobs, a page of 1,000": _request("jobs", limit=1000, payload=True), "queues": _request("queues"), "stats": _request("stats"),
    "workers": _request("workers"),
    "15,400 empty maps": _ignored(b"\x80", 154), "5,200 maps of one": _ignored(b"\x81\xa0\xc0", 52),
    "13,000 frames of one byte": lambda bench: (Peer(bench), (struct.pack(">I", 1) + b"\x80") * 13_000),
    **{f"bomb: {name}": _bomb(body) for name, body in BOMBS.items()},
}


def main() -> int:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=common.positive, default=7, metavar="N", help="repetitions of each (default: 7)")
    parser.add_argument("--json", action="store_true", help="one object a result")
    given = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="greenroom-bench-")
    try:
        bench = Bench(folder)
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 10, 10_000)  # as broker.py does
        for name, case in CASES.items():
            worst = sorted(bench.worst_ms(*case(bench)) for _ in range(given.repeat))
            median = worst[len(worst) // 2]
            if given.json:
                print(json.dumps({"name": name, "value": round(median, 3), "unit": "ms", "params": {"least": round(worst[0], 3), "most": round(worst[-1], 3)}}))
            else:
                print(f"{name:36} {median:7.2f} ms, at most {worst[-1]:7.2f}{'' if median <= GOAL_MS else '   over ' + str(GOAL_MS)}",
                      flush=True)
        bench.dispatch.stop(5.0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    common.run(main)
