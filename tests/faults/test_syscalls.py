"""System calls of the real broker that fail, hang or are its last: strace does it, tests/checker.py judges what clients saw."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.tracing import Tracer, need_strace
from tests.processes import DEADLINE_S, BrokerProcess, LoadProcess, integrity, until

#: Leases of before a kill that nobody presents hold for so long; the load's last reserve waits longer.
FLAGS = ("--restart-grace-s", "1", "--lease-s", "5")
DATABASE, LOG, JOURNAL = "greenroom.db", "greenroom.db-wal", "greenroom.db-journal"

MakeBroker = Callable[..., BrokerProcess]
MakeLoad = Callable[[BrokerProcess], LoadProcess]


@pytest.fixture
def tracer(tmp_path: Path) -> Tracer:
    need_strace()
    return Tracer(tmp_path)


@pytest.fixture
def new_broker(tmp_path: Path, certificates: Path) -> object:
    """A broker that has not been started yet."""
    broker = BrokerProcess(tmp_path / "broker", certificates, FLAGS)
    yield broker
    broker.end()


def fill_log(broker: BrokerProcess) -> None:
    """Have a broker's log nearly as long as it gets before a checkpoint, and the broker killed. Its jobs stay out of the load's way."""
    broker.prefix = []
    broker.start()
    broker.terminate()  # which copies the log that there was
    broker.start()
    peer = broker.connect()
    for number in range(15):
        job = {"task": "later", "delay": 3600.0, "encoding": "raw", "payload": bytes([number]) * 2**20}
        assert "error" not in peer.call("submit", jobs=[job])
    broker.kill()


class Sweep:
    """Kills one broker at one system call after the other, on one store and under one load, and counts where it was hit."""

    def __init__(self, broker: BrokerProcess, tracer: Tracer, load: LoadProcess) -> None:
        self.places: Counter[tuple[str, str]] = Counter()
        self.while_starting = 0
        self._broker = broker
        self._tracer = tracer
        self._load = load

    def kill_at(self, call: str, number: int, file: str | None = None, *, window: int = 350) -> None:
        """Run the broker until the call of this number kills it; the store must be sound then."""
        broker = self._broker
        broker.prefix = self._tracer.prefix(call, f"signal=SIGKILL:when={number}", broker.data / file if file else None)
        if broker.comes_up():
            self._load.do("load_until_ended", seconds=60, window=window)
        else:
            self.while_starting += 1
        assert broker.process.wait(DEADLINE_S) == -9, broker.output
        self.places[self._tracer.calls()[-1]] += 1
        if (broker.data / DATABASE).exists():
            assert integrity(broker) == "ok"

    def judge(self) -> None:
        """Start it once more, drain, and let the checker look at all that was seen."""
        self._broker.prefix = []
        self._broker.start()
        report = self._load.drained()
        assert self._broker.terminate() == 0
        print(f"kills={self.places.total()} while starting={self.while_starting} {dict(self.places)}")
        print(f"{self._load.figures} {dict(report.counts)}")
        assert report.faults == []
        assert integrity(self._broker) == "ok"
        assert self._load.figures["repeated"] > 0 and report.counts["submit unknown"] > 0


def test_a_kill_at_any_sync_or_write_loses_nothing(new_broker: BrokerProcess, tracer: Tracer, make_load: MakeLoad) -> None:
    sweep = Sweep(new_broker, tracer, make_load(new_broker))

    for number in range(1, 10):  # an empty store is made, then opened half made
        sweep.kill_at("fdatasync", number, window=50)
    for number in (1, 4, 8, 60):  # the last while it works: what was left to make of the store took some 40
        sweep.kill_at("fdatasync", number, window=50)
    for number in (1, 10, 60, 250):
        sweep.kill_at("pwrite64", number, window=50)
    fill_log(new_broker)
    for call, number in (("pwrite64", 1), ("pwrite64", 100), ("fdatasync", 1)):  # the log is copied into the database
        sweep.kill_at(call, number, DATABASE)

    sweep.judge()
    assert sweep.places.total() == 20 and sweep.while_starting >= 5
    assert {("fdatasync", JOURNAL), ("fdatasync", LOG), ("fdatasync", DATABASE), ("pwrite64", LOG),
            ("pwrite64", DATABASE)} <= set(sweep.places)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_kill_at_each_of_300_syncs_loses_nothing(new_broker: BrokerProcess, tracer: Tracer, make_load: MakeLoad) -> None:
    sweep = Sweep(new_broker, tracer, make_load(new_broker))

    for number in range(1, 301):
        sweep.kill_at("fdatasync", number, window=4)

    sweep.judge()
    assert sweep.places.total() == 300


# -- calls that fail --------------------------------------------------------------------------------------------------------


FAILURES = {
    # fault -> (call, error, file, number, what the log says)
    "a sync fails": ("fdatasync", "EIO", LOG, 5, "the disk does not work"),
    "a write to the log fails": ("pwrite64", "EIO", LOG, 20, "the disk does not work"),
    "a write of a checkpoint fails": ("pwrite64", "EIO", DATABASE, 3, "the disk does not work"),
    "the disk is full": ("pwrite64", "ENOSPC", LOG, 20, "the disk is full"),
    "the disk is full in a checkpoint": ("pwrite64", "ENOSPC", DATABASE, 3, "the disk is full"),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_a_call_that_fails_leaves_the_fate_of_what_waits_unknown_and_ends_the_process(
        new_broker: BrokerProcess, tracer: Tracer, make_load: MakeLoad, fault: str) -> None:
    """Only from that call on: the disk works again when the broker is restarted."""
    call, error, file, number, sentence = FAILURES[fault]
    broker, load = new_broker, make_load(new_broker)
    if file == DATABASE:
        fill_log(broker)
    broker.prefix = tracer.prefix(call, f"error={error}:when={number}+", broker.data / file)
    broker.start()

    figures = load.do("load_until_ended", seconds=60, window=350)

    assert broker.process.wait(DEADLINE_S) == 1
    assert sentence in broker.output and "the store failed" in broker.output
    assert broker.output.splitlines()[-1].endswith("[Server] stopped")
    assert figures["unknown"] > 0 and figures["answered"] > 0
    assert integrity(broker) == "ok"
    broker.prefix = []
    broker.start()
    report = load.drained()
    print(fault, tracer.calls()[-1], load.figures, dict(report.counts))
    assert report.faults == []


# -- calls that take long ---------------------------------------------------------------------------------------------------


def test_while_each_sync_takes_longer_than_a_lease_all_else_is_prompt_and_no_lease_ends(
        tmp_path: Path, certificates: Path, tracer: Tracer) -> None:
    broker = BrokerProcess(tmp_path / "broker", certificates, ["--lease-s", "1.5"])
    broker.prefix = tracer.prefix("fdatasync", "delay_enter=2500000:when=5+", broker.data / LOG)
    slowest: dict[str, float] = {}

    def timed(what: str, ask: Callable[[], object]) -> object:
        asked = time.monotonic()
        answer = ask()
        slowest[what] = max(slowest.get(what, 0.0), time.monotonic() - asked)
        return answer

    try:
        broker.start()
        producer, silent, worker, watcher = (broker.connect(role=role) for role in ("client", "worker", "worker", "client"))
        until(lambda: _takes_s(lambda: producer.call("submit", jobs=[{"task": "first"}])) > 2.0, "syncs are slow")
        producer.call("submit", jobs=[{"task": "held"}])
        ((held, fence, *_),) = worker.call("reserve", n=1, wait=10.0, tasks=["held"])["jobs"]
        waiting = silent.send("reserve", n=1, wait=30.0, tasks=["slow"])  # it says no more until it is answered
        requests = [producer.send("submit", jobs=[{"task": "slow"}])]
        began = time.monotonic()
        while not select.select([silent.sock], [], [], 0.1)[0]:
            assert time.monotonic() - began < DEADLINE_S
            requests.append(producer.send("submit", jobs=[{"task": "other"}]))
            assert timed("heartbeat", lambda: worker.call("heartbeat", leases=[[held, fence]]))["lost"] == []
            assert timed("ping", lambda: watcher.call("ping"))
            assert timed("/healthz", lambda: broker.get("/healthz"))[0] == 200
        assert time.monotonic() - began > 1.5, "no delivery had to wait for longer than a lease"
        ((slow, slow_fence, *_),) = silent.reply(waiting)["jobs"]

        settles = [(peer, peer.send("settle", leases=[[*lease, "ack"]]))
                   for peer, lease in ((silent, (slow, slow_fence)), (worker, (held, fence)))]

        assert [peer.reply(request)["outcomes"] for peer, request in settles] == [["OK"], ["OK"]]
        views = producer.call("get", jobs=[slow, held])["jobs"]
        print(slowest)
        assert [(view["attempt"], view["crashes"], view["requeues"]) for view in views] == [(1, 0, 0)] * 2
        assert all("error" not in producer.reply(request) for request in requests)
        assert max(slowest.values()) < 1.5
    finally:
        broker.end()


def _takes_s(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began
