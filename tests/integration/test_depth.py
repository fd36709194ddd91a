"""A deep queue over the wire: order at any depth, memory within the window's budget, lanes by the thousand and their cap.

The everyday run uses 200,000 jobs and a window of 2,000; a million and ten million are `./run test --long`.
"""

from __future__ import annotations

import heapq
import random
import shutil
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator

import msgpack
import pytest

from tests.processes import BrokerProcess, RawPeer, until

#: Some seconds each on a quiet machine; much more when others use it too.
pytestmark = pytest.mark.timeout(300)

FRAME = 1000  # jobs in a submit, a reserve, a settle
IN_FLIGHT = 8  # submits without an answer yet
TIMEOUT_S = 60.0
PRIORITIES = 10
RUN = 7  # jobs of one priority in a row: an edge that is off by one shows only between such
SAY_EVERY_S = 20.0

KIB, MIB = 1024, 2**20
#: What a broker may hold beside what it needs to start: the pages that SQLite keeps, jobs that finished lately (as text of their
#: own limits), two batches of jobs, and the lists that one answer and its frame take.
SQLITE_BYTES = (64 + 2 * 8) * MIB
RECENT_BYTES = 16 * MIB
BATCH_JOBS = 2 * 20_000
JOB_BYTES = KIB  # a job with a small payload, in the window or a batch
LANE_BYTES = 3 * KIB
SLACK_BYTES = 24 * MIB


class Deep:
    """A broker that is filled and drained, and what it must deliver next.

    Attributes:
        submitted: jobs so far; the payload of each is its number, its priority follows from that.
        peak_bytes: most memory that any start of the broker took. base_bytes: what it takes when it has just begun.
        max_lag_ms: the latest tick of the hub, over all starts.
    """

    def __init__(self, broker: BrokerProcess, count: int) -> None:
        self.broker = broker
        self.count = count
        self.submitted = 0
        self.ids = array("q")  # of the jobs, by number
        self._changed: set[int] = set()  # numbers of those that have another priority now
        self.taken = 0
        self.base_bytes = self.resident("VmRSS")
        self.peak_bytes = 0
        self.max_lag_ms = 0.0
        self.restarts_s: list[float] = []
        self._coming = _in_order(count)
        self._peeked: tuple[int, int] | None = None
        self._returned: list[tuple[int, int]] = []  # heap of (priority, number)
        self._said_at = time.monotonic()
        self.worker: RawPeer | None = None

    def resident(self, line: str) -> int:
        """Return VmRSS or VmHWM of the broker in bytes."""
        with open(f"/proc/{self.broker.pid}/status", encoding="ascii") as status:
            return next(int(text.split()[1]) * KIB for text in status if text.startswith(line))

    def say(self, what: str, done: int) -> None:
        """Print progress now and then: with ten million jobs this takes minutes."""
        if time.monotonic() - self._said_at >= SAY_EVERY_S:
            self._said_at = time.monotonic()
            print(f"{what} {done} of {self.count}, {self.resident('VmRSS') / MIB:.0f} MiB", flush=True)

    # -- filling ------------------------------------------------------------------------------------------------------------

    def fill(self, up_to: int) -> float:
        """Submit jobs until there were so many; returns how many a second."""
        began, first = time.monotonic(), self.submitted
        producer = self.broker.connect(timeout=TIMEOUT_S)
        open_frames: deque[int] = deque()
        last_id = 0
        while self.submitted < up_to or open_frames:
            if self.submitted < up_to and len(open_frames) < IN_FLIGHT:
                numbers = range(self.submitted, min(up_to, self.submitted + FRAME))
                open_frames.append(producer.send("submit", jobs=[_job(number) for number in numbers]))
                self.submitted = numbers.stop
                continue
            ids = producer.reply(open_frames.popleft())["jobs"]
            assert last_id < ids[0] and all(one < other for one, other in zip(ids, ids[1:])), "ids don't grow"
            last_id = ids[-1]
            self.ids.extend(ids)
            self.say("submitted", self.submitted)
        producer.close()
        return (self.submitted - first) / (time.monotonic() - began)

    def change_priorities(self, count: int) -> None:
        """Give jobs all over the queue, in memory and on disk, another priority, before any is taken."""
        rng = random.Random(count)
        client = self.broker.connect(timeout=TIMEOUT_S)
        self._changed = set(rng.sample(range(self.count), count))
        numbers: dict[int, list[int]] = {}
        for number in sorted(self._changed):
            priority = rng.randint(1, PRIORITIES)
            numbers.setdefault(priority, []).append(number)
            self.comes_back(priority, number)
        for priority, some in numbers.items():
            for begin in range(0, len(some), FRAME):
                ids = [self.ids[number] for number in some[begin:begin + FRAME]]
                assert client.call("change", jobs=ids, priority=priority)["outcomes"] == ["changed"] * len(ids)
        client.close()

    def add_urgent(self, count: int) -> None:
        """Submit jobs that come before all others that wait, but after urgent ones."""
        producer = self.broker.connect(timeout=TIMEOUT_S)
        numbers = range(self.count, self.count + count)
        producer.call("submit", jobs=[{**_job(number), "priority": 1} for number in numbers])
        producer.close()
        self.count += count
        for number in numbers:
            self.comes_back(1, number)

    # -- draining -----------------------------------------------------------------------------------------------------------

    def come(self, leases: list[tuple[int, int]] | None = None) -> list[object]:
        """Connect the one consumer, which presents these leases; returns what became of them."""
        self.worker = self.broker.connect(role="worker", name="consumer", instance=b"c" * 16, timeout=TIMEOUT_S,
                                          leases=leases or [])
        return self.worker.greeting["leases"]

    def comes_back(self, priority: int, number: int) -> None:
        """Note that a job waits again."""
        heapq.heappush(self._returned, (priority, number))

    def _next(self) -> tuple[int, int]:
        if self._peeked is None:
            self._peeked = next((entry for entry in self._coming if entry[1] not in self._changed), None)
        if self._returned and (self._peeked is None or self._returned[0] < self._peeked):
            return heapq.heappop(self._returned)
        following, self._peeked = self._peeked, None
        return following

    def take(self, peer: RawPeer, n: int) -> list[tuple[int, int, int, int]]:
        """Reserve n jobs and compare them with those that must come; returns (job, fence, priority, number) of each."""
        got = []
        while len(got) < n:
            jobs = peer.call("reserve", n=n - len(got), wait=10)["jobs"]
            assert jobs, f"answered empty with {self.count - self.taken - len(got)} jobs to come"
            for job_id, fence, _, payload, _, _, _, priority, *_ in jobs:
                number = msgpack.unpackb(payload)
                expected = self._next()
                assert (priority, number) == expected, f"job {number} of priority {priority} came, {expected} was next"
                got.append((job_id, fence, priority, number))
        return got

    def drain(self, up_to: int) -> float:
        """Let the consumer take and ack jobs until so many are done; returns how many a second."""
        began, first = time.monotonic(), self.taken
        settle: int | None = None
        while self.taken < up_to:
            got = self.take(self.worker, min(FRAME, up_to - self.taken))
            if settle is not None:
                assert set(self.worker.reply(settle)["outcomes"]) == {"OK"}
            settle = self.worker.send("settle", leases=[[job_id, fence, "ack"] for job_id, fence, *_ in got])
            self.taken += len(got)
            self.say("finished", self.taken)
        if settle is not None:
            assert set(self.worker.reply(settle)["outcomes"]) == {"OK"}
        return (self.taken - first) / (time.monotonic() - began)

    # -- what goes wrong ----------------------------------------------------------------------------------------------------

    def stats(self) -> dict:
        """Return the answer of the verb `stats`."""
        peer = self.broker.connect(timeout=TIMEOUT_S)
        try:
            return peer.call("stats")
        finally:
            peer.close()

    def note_health(self) -> dict:
        """Keep the worst figures of this start of the broker; returns its stats."""
        self.peak_bytes = max(self.peak_bytes, self.resident("VmHWM"))
        stats = self.stats()
        self.max_lag_ms = max(self.max_lag_ms, stats["hub"]["max_lag_ms"])
        return stats

    def restart(self, *, kill: bool) -> None:
        """Restart the broker; the consumer must `come` again."""
        self.note_health()
        began = time.monotonic()
        self.broker.restart(kill=kill)
        self.restarts_s.append(time.monotonic() - began)
        if self.worker is not None:
            self.worker.close()

    def lose_a_worker(self, n: int) -> None:
        """Another worker takes n jobs and vanishes; they come back to their places."""
        requeued = self.stats()["requeued"]
        lost = self.broker.connect(role="worker", name="lost", instance=b"l" * 16, timeout=TIMEOUT_S)
        for _, _, priority, number in self.take(lost, n):
            self.comes_back(priority, number)
        lost.close()
        until(lambda: self.stats()["requeued"] == requeued + n, "the lost worker's jobs are back", TIMEOUT_S)

    def nack(self, n: int) -> None:
        """The consumer gives n jobs back."""
        got = self.take(self.worker, n)
        self.worker.call("settle", leases=[[job_id, fence, "nack"] for job_id, fence, *_ in got])
        for _, _, priority, number in got:
            self.comes_back(priority, number)

    def restart_with_leases(self, n: int, *, kill: bool) -> int:
        """Restart the broker while the consumer holds n jobs; returns how many it kept. The others come back."""
        got = self.take(self.worker, n)
        self.restart(kill=kill)
        outcomes = self.come([(job_id, fence) for job_id, fence, *_ in got])
        kept = [lease for lease, outcome in zip(got, outcomes, strict=True) if outcome == "OK"]
        for (_, _, priority, number), outcome in zip(got, outcomes):
            if outcome != "OK":
                self.comes_back(priority, number)
        if kept:
            answer = self.worker.call("settle", leases=[[job_id, fence, "ack"] for job_id, fence, *_ in kept])
            assert set(answer["outcomes"]) == {"OK"}
        self.taken += len(kept)
        return len(kept)

    def bound(self, window_jobs: int, lanes: int = 1) -> int:
        """Return the memory that the broker may take."""
        return (self.base_bytes + SQLITE_BYTES + RECENT_BYTES + SLACK_BYTES + (window_jobs + BATCH_JOBS) * JOB_BYTES
                + lanes * LANE_BYTES)


def _in_order(count: int) -> Iterator[tuple[int, int]]:
    for priority in range(PRIORITIES):
        for begin in range(priority * RUN, count, PRIORITIES * RUN):
            for number in range(begin, min(begin + RUN, count)):
                yield priority + 1, number


def _job(number: int) -> dict:
    return {"task": "deep", "payload": msgpack.packb(number), "priority": 1 + number // RUN % PRIORITIES}


def _fill_and_drain(deep: Deep, *, window_jobs: int) -> None:
    """Fill, restart, drain with everything going wrong in between, and check what it took."""
    half, whole = deep.count // 2, deep.count
    rates = [deep.fill(half)]
    deep.restart(kill=True)
    rates.append(deep.fill(whole))
    stats = deep.note_health()
    assert stats["states"]["queued"] == whole and stats["memory"]["jobs"] <= window_jobs
    for kill in (False, True, True, True):  # again and again is the same as once
        deep.restart(kill=kill)
        assert deep.note_health()["states"] == stats["states"]

    deep.change_priorities(3 * FRAME)
    assert deep.note_health()["states"] == stats["states"]
    deep.restart(kill=True)
    deep.come()
    drained = [deep.drain(whole // 10)]
    deep.lose_a_worker(700)
    deep.drain(2 * whole // 10)
    deep.nack(FRAME)
    deep.drain(3 * whole // 10)
    kept = deep.restart_with_leases(FRAME, kill=False)
    assert kept == FRAME, "a broker that stops keeps the leases"
    deep.drain(5 * whole // 10)
    deep.restart_with_leases(FRAME, kill=True)
    deep.drain(6 * whole // 10)
    deep.add_urgent(FRAME)
    drained.append(deep.drain(deep.count))

    assert deep.worker.call("reserve", n=1, wait=0)["jobs"] == []
    stats = deep.note_health()
    assert stats["states"]["completed"] == deep.count and stats["total"] == deep.count
    bound = deep.bound(window_jobs)
    print(f"{deep.count} jobs: submitted {rates[0]:.0f} and {rates[1]:.0f}/s, drained {drained[0]:.0f} and {drained[1]:.0f}/s "
          f"by one consumer; memory {deep.base_bytes / MIB:.0f} MiB at first, {deep.peak_bytes / MIB:.0f} at most, bound "
          f"{bound / MIB:.0f}; restarts {', '.join(f'{took:.1f}' for took in deep.restarts_s)} s; hub lag up to "
          f"{deep.max_lag_ms:.0f} ms")
    assert deep.peak_bytes <= bound
    assert max(deep.restarts_s) < 30.0


def test_a_deep_queue_comes_in_order_across_window_edges_restarts_and_returns(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--window-jobs", "2000")

    _fill_and_drain(Deep(broker, 200_000), window_jobs=2000)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1_000_000, 10_000_000])
def test_millions_of_jobs_come_in_order_within_the_memory_of_the_window(make_broker: Callable[..., BrokerProcess],
                                                                        count: int) -> None:
    broker = make_broker()

    try:
        _fill_and_drain(Deep(broker, count), window_jobs=100_000)
    finally:
        broker.end()
        shutil.rmtree(broker.data)  # gigabytes, which pytest would keep for its next three runs


# -- lanes -------------------------------------------------------------------------------------------------------------------


def _submit(peer: RawPeer, tasks: list[str]) -> list[object]:
    """Submit a job for each task, payload its place in the list; returns the outcomes."""
    outcomes = []
    for begin in range(0, len(tasks), FRAME):
        jobs = [{"task": task, "payload": msgpack.packb(begin + place)} for place, task in enumerate(tasks[begin:begin + FRAME])]
        outcomes += peer.call("submit", jobs=jobs)["jobs"]
    return outcomes


def _finish(worker: RawPeer, count: int, n: int = FRAME, **reserve: object) -> list[int]:
    """Take and ack `count` jobs; returns their ids in the order in which they came."""
    came: list[int] = []
    while len(came) < count:
        jobs = worker.call("reserve", n=min(n, count - len(came)), wait=5, **reserve)["jobs"]
        assert jobs, f"answered empty with {count - len(came)} jobs to come"
        worker.call("settle", leases=[[job[0], job[1], "ack"] for job in jobs])
        came += [job[0] for job in jobs]
    return came


def test_lanes_beyond_the_window_that_nobody_can_run_hold_back_nobody(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--window-jobs", "2000")
    client = broker.connect(timeout=TIMEOUT_S)
    _submit(client, [f"nobody{number % 100}" for number in range(20_000)])
    good = _submit(client, ["good"] * 5000)
    _submit(client, [f"nobody{number % 100}" for number in range(5000)])

    worker = broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    assert _finish(worker, 2500, n=50, tasks=["good"]) == good[:2500]
    broker.restart(kill=True)
    client, worker = broker.connect(timeout=TIMEOUT_S), broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    assert _finish(worker, 2500, n=50, tasks=["good"]) == good[2500:]

    waits_s = []
    for _ in range(200):
        (job,) = _submit(client, ["good"])
        began = time.perf_counter()
        assert [job] == [got[0] for got in worker.call("reserve", n=1, wait=0, tasks=["good"])["jobs"]], "a false empty"
        waits_s.append(time.perf_counter() - began)
    stats = client.call("stats")
    waits_s.sort()
    print(f"a reserve beside 100 such lanes: p50 {waits_s[100] * 1000:.1f} ms, max {waits_s[-1] * 1000:.1f} ms; "
          f"hub lag up to {stats['hub']['max_lag_ms']:.0f} ms")
    assert stats["memory"]["jobs"] <= 2000 and stats["states"]["queued"] == 25_000
    assert waits_s[100] < 0.25, "the usual reserve has to wait for something"


@pytest.mark.parametrize(("lanes", "window_jobs"), [(10_000, 100_000), (400, 100)],
                         ids=["within the window", "more than it holds"])
def test_many_lanes_are_drained_in_one_order_also_after_a_restart(make_broker: Callable[..., BrokerProcess], lanes: int,
                                                                  window_jobs: int) -> None:
    broker = make_broker("--window-jobs", str(window_jobs))
    deep = Deep(broker, 0)
    client = broker.connect(timeout=TIMEOUT_S)
    ids = _submit(client, [f"t{number % lanes}" for number in range(3 * lanes)])

    worker = broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    came = _finish(worker, lanes)
    deep.restart(kill=True)
    worker = broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    came += _finish(worker, 2 * lanes)

    assert came == ids
    stats = deep.note_health()
    bound = deep.bound(window_jobs + lanes, lanes)  # a lane that somebody can run keeps its head
    print(f"{lanes} lanes: memory {deep.peak_bytes / MIB:.0f} MiB at most, bound {bound / MIB:.0f}; restart "
          f"{deep.restarts_s[0]:.1f} s; hub lag up to {deep.max_lag_ms:.0f} ms")
    assert deep.peak_bytes <= bound and stats["states"]["completed"] == 3 * lanes


def test_a_lane_per_job_is_taken_up_to_the_cap_then_refused_and_empty_lanes_make_room(broker: BrokerProcess) -> None:
    cap = 20_000
    deep = Deep(broker, 0)
    client = broker.connect(timeout=TIMEOUT_S)
    ids = _submit(client, [f"t{number}" for number in range(cap)])
    assert all(isinstance(job, int) for job in ids)

    refused = _submit(client, [f"more{number}" for number in range(FRAME)])
    assert {outcome["code"] for outcome in refused} == {"FULL"}
    assert refused[0]["message"] == f"{cap} queues and tasks have work, the cap"
    one, other = _submit(client, ["more", "t0"])
    assert one["code"] == "FULL" and isinstance(other, int), "who has a lane is still served"
    worker = broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    came = _finish(worker, 5000, n=500)
    for begin in range(0, 15_000, 5000):
        ids += _submit(client, [f"later{number}" for number in range(begin, begin + 4999)])
        came += _finish(worker, 5000, n=500)
    deep.restart(kill=True)
    worker = broker.connect(role="worker", name="w", timeout=TIMEOUT_S)
    ids += _submit(broker.connect(timeout=TIMEOUT_S), ["last"])
    came += _finish(worker, len(ids) + 1 - len(came))

    assert came == sorted([*ids, other]) and worker.call("reserve", n=1, wait=0)["jobs"] == []
    stats = deep.note_health()
    bound = deep.bound(cap, cap)
    print(f"{cap} lanes and {cap - 5000} more one after another: memory {deep.peak_bytes / MIB:.0f} MiB at most, bound "
          f"{bound / MIB:.0f}; restart {deep.restarts_s[0]:.1f} s; hub lag up to {deep.max_lag_ms:.0f} ms")
    assert deep.peak_bytes <= bound and stats["states"]["completed"] == len(came)
