"""A broker that is killed with thousands of workers connected, each in the middle of a job: all come back and keep it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import apsw
import pytest

from tests.conftest import skip_or_fail
from tests.processes import ROOT, BrokerProcess, RawPeer, until

SEED = 20_251_105
PROCESSES = 2
SPARE_FILES = 400
#: All must be back in so many seconds, however many they are (reliability.md F31).
BACK_WITHIN_S = 60.0
#: What the hub may be late meanwhile, on a machine on which the clients have a core and others the rest.
MOST_LAG_MS = 1000.0


class Crowds:
    """tests/faults/reconnecting_process.py as children."""

    def __init__(self, broker: BrokerProcess, count: int) -> None:
        self._processes = [
            subprocess.Popen([sys.executable, str(ROOT / "tests/faults/reconnecting_process.py"), str(broker.port), broker.ca,
                              str(count // PROCESSES), str(SEED + number)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for number in range(PROCESSES)]

    def tell(self, command: str) -> None:
        """Give all a command."""
        for process in self._processes:
            process.stdin.write(command + "\n")
            process.stdin.flush()

    def answers(self) -> list[dict]:
        """Wait for an answer of each; the children's own deadlines bound it."""
        lines = [process.stdout.readline() for process in self._processes]
        assert all(lines), "a child process ended"
        answers = [json.loads(line) for line in lines]
        assert not [answer for answer in answers if "error" in answer], answers
        return answers

    def end(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def stored_leases(broker: BrokerProcess) -> int:
    db = apsw.Connection(str(broker.data / "greenroom.db"), flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(5000)
    ((count,),) = db.execute("SELECT count(*) FROM leases")
    db.close()
    return count


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_all_workers_come_back_after_a_kill_and_keep_their_jobs(make_broker: Callable[..., BrokerProcess], count: int) -> None:
    print("seed", SEED)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + SPARE_FILES:
        skip_or_fail(f"{count} connections need a file limit of {count + SPARE_FILES}; here it is {hard}")
    broker = make_broker()
    producer = broker.connect()
    for _ in range(0, count, 1000):
        producer.call("submit", jobs=[{"task": "storm.hold"}] * min(1000, count))
    crowds = Crowds(broker, count)
    try:
        began = time.monotonic()
        crowds.tell("open")
        crowds.answers()
        opened_s, first_lag_ms = time.monotonic() - began, producer.call("stats")["hub"]["max_lag_ms"]
        until(lambda: stored_leases(broker) == count, "all leases are on disk", 60)

        crowds.tell("wait")
        broker.kill()
        broker.start(BACK_WITHIN_S)
        up_at = time.monotonic()
        answers = crowds.answers()

        back_s = max(answer["last_at"] for answer in answers) - up_at
        stats = RawPeer(broker).call("stats")
        lag_ms = stats["hub"]["max_lag_ms"]
        print(f"{count} workers: connected in {opened_s:.1f} s (hub lag {first_lag_ms:.0f} ms), all back {back_s:.1f} s after "
              f"the restart (hub lag {lag_ms:.0f} ms, {sum(answer['attempts'] for answer in answers)} attempts); "
              f"{sum(answer['adopted'] for answer in answers)} leases kept; given up: "
              f"{broker.get('/api/security')[1]['rejected']}")
        assert back_s < BACK_WITHIN_S
        assert sum(answer["adopted"] for answer in answers) == count and not any(answer["refused"] for answer in answers)
        assert stats["requeued"] == 0 and stats["states"]["running"] == count
        assert lag_ms < MOST_LAG_MS
        crowds.tell("settle")
        crowds.answers()
    finally:
        crowds.end()
    until(lambda: broker.stats()["states"]["completed"] == count, "all are done")
    assert broker.stats()["requeued"] == 0 and "Traceback" not in broker.output
