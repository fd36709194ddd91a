"""Processes that are stopped, continued and told to end while others work: real brokers, real workers, signals."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.client import Client
from tests.processes import DEADLINE_S, BrokerProcess, LoadProcess, WorkerProcess, integrity, until

MakeBroker = Callable[..., BrokerProcess]

TASKS = '''
import time
from greenroom.tasks import Context, task

@task
def named(seconds: float, context: Context) -> str:
    """Take a while, then say who did it."""
    time.sleep(seconds)
    return context.worker
'''


@pytest.mark.parametrize("takes_s", [1.0, 30.0])
def test_a_worker_that_wakes_up_after_its_lease_changes_nothing(make_broker: MakeBroker, tmp_path: Path, takes_s: float) -> None:
    """Its job is done again by another; the zombie wakes up with a job that is done, or still runs."""
    (tmp_path / "named.py").write_text(TASKS)
    broker = make_broker("--lease-s", "1")
    zombie, other = (WorkerProcess(broker, name, ["--tasks", str(tmp_path / "named.py"), "--concurrency", "2"], tmp_path)
                     for name in ("zombie", "other"))
    try:
        with Client(broker.url, ca=broker.ca) as client:
            zombie.start()
            handle = client.submit("named", {"seconds": takes_s})
            until(lambda: broker.stats()["states"]["running"] == 1, "the job runs")
            zombie.signal(signal.SIGSTOP)
            until(lambda: broker.stats()["requeued"] == 1, "the lease ended")
            if takes_s > 10:
                second = broker.connect(role="worker", name="other")
                ((job, fence, *_),) = second.call("reserve", n=1, wait=10.0)["jobs"]
                assert second.call("settle", leases=[[job, fence, "ack", b"\xa5other"]])["outcomes"] == ["OK"]
            else:
                other.start()
            assert handle.result(DEADLINE_S) == "other"
            zombie.signal(signal.SIGCONT)
            until(lambda: any(words in zombie.output for words in ("is not held under fence", "its lease is lost")), "it is told")
            view = next(iter(client.wait([handle.id], 1.0)))
            more = client.submit("named", {"seconds": 0.0})
            assert more.result(DEADLINE_S) in ("zombie", "other"), "and works on"
    finally:
        zombie.end()
        other.end()

    assert (view["state"], view["worker"], view["attempt"], view["crashes"]) == ("completed", "other", 2, 1)


def test_a_broker_that_was_stopped_for_longer_than_a_lease_takes_no_job_away(make_broker: MakeBroker) -> None:
    broker = make_broker("--lease-s", "1")
    producer, beating, silent = broker.connect(), broker.connect(role="worker"), broker.connect(role="worker")
    producer.call("submit", jobs=[{"task": "t"}] * 2)
    leases = [peer.call("reserve", n=1, wait=10.0)["jobs"][0][:2] for peer in (beating, silent)]

    broker.signal(signal.SIGSTOP)
    beats = []
    for _ in range(8):
        beats.append(beating.send("heartbeat", leases=[leases[0]]))
        time.sleep(0.4)  # the stop itself, more than three leases long
    broker.signal(signal.SIGCONT)

    assert all(beating.reply(beat)["lost"] == [] for beat in beats)
    outcomes = [peer.call("settle", leases=[[*lease, "ack"]])["outcomes"] for peer, lease in zip((silent, beating), leases[::-1])]
    assert outcomes == [["OK"], ["OK"]] and broker.stats()["requeued"] == 0
    assert "stood still" in broker.output


def test_a_broker_told_twice_to_stop_under_load_loses_nothing(
        make_broker: MakeBroker, make_load: Callable[[BrokerProcess], LoadProcess]) -> None:
    rng = random.Random(LoadProcess.SEED)
    broker = make_broker("--restart-grace-s", "1", "--lease-s", "5")
    load = make_load(broker)
    codes = []

    for _ in range(3):
        figures = load.do("load", pid=broker.pid, kill_after=rng.randint(100, 1000), in_flight=LoadProcess.IN_FLIGHT,
                          number=signal.SIGTERM, seconds=0.0, times=2)
        assert figures["in_flight"] >= LoadProcess.IN_FLIGHT
        codes.append(broker.process.wait(DEADLINE_S))
        assert integrity(broker) == "ok"
        broker.start()
    report = load.drained()

    print(codes, load.figures)
    assert set(codes) <= {0, 1} and report.faults == [] and report.counts["submit ok"] > 0
    assert "Traceback" not in broker.output
