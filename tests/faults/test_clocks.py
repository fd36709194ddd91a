"""A wall clock that jumps while the real broker runs or between two runs, and a monotonic clock that begins anew, as after a boot."""

from __future__ import annotations

import glob
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.processes import DEADLINE_S, BrokerProcess, RawPeer, until

YEAR_S = 365 * 86400
HOUR_S = 3600
INSTANCE = bytes(range(16))

MakeBroker = Callable[..., BrokerProcess]


class WallClock:
    """The wall clock of programs that are started with `env`: `jump` moves it while they run. Monotonic clocks stay."""

    def __init__(self, folder: Path) -> None:
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            skip_or_fail("faketime is not installed: as root, apt-get install faketime")
        self._offset = folder / "wall-clock"
        self.jump(0)
        self.env = {"LD_PRELOAD": libraries[0], "FAKETIME_TIMESTAMP_FILE": str(self._offset), "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def jump(self, seconds: int) -> None:
        """Set it so far off the real time."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._offset)


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


def submit(peer: RawPeer, *jobs: dict) -> list[int]:
    return peer.call("submit", jobs=[{"task": "t", **job} for job in jobs])["jobs"]


def year_logged(broker: BrokerProcess) -> int:
    """Have the broker log a line, and return the year that it wrote there."""
    before = len(broker.output)
    with socket.create_connection(("127.0.0.1", broker.port)) as knock:
        knock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    return int(until(lambda: re.search(r"^(\d{4})-.*rejected", broker.output[before:], re.MULTILINE), "a line is logged")[1])


def test_wall_clock_jumps_end_no_lease_early_let_none_live_longer_and_change_no_order(
        make_broker: MakeBroker, wall_clock: WallClock) -> None:
    broker = make_broker("--lease-s", "2", env=wall_clock.env)
    producer, beating, silent = broker.connect(), broker.connect(role="worker"), broker.connect(role="worker")
    submit(producer, {}, {"task": "held"})
    ((held, fence, *_),) = beating.call("reserve", n=1, wait=10.0, tasks=["held"])["jobs"]
    expected: list[int] = []
    real_year = time.gmtime().tm_year

    for jump in (HOUR_S, 10 * YEAR_S, -HOUR_S):
        wall_clock.jump(jump)
        expected += submit(producer, {"task": "later", "delay": 0.2})
        granted_at = time.monotonic()
        ((job, *_),) = silent.call("reserve", n=1, wait=10.0, tasks=["t"])["jobs"]
        until(lambda: beating.call("heartbeat", leases=[[held, fence]])["lost"] == []
              and producer.call("get", jobs=[job])["jobs"][0]["state"] == "queued", "the silent worker's lease ends")
        assert time.monotonic() - granted_at >= 2.0, f"too early after a jump by {jump} s"
        if jump == 10 * YEAR_S:
            assert year_logged(broker) >= real_year + 9, "the clock did not jump"

    delivered = silent.call("reserve", n=10, wait=10.0, tasks=["later"])["jobs"]
    assert [delivery[0] for delivery in delivered] == expected
    assert beating.call("settle", leases=[[held, fence, "ack"]])["outcomes"] == ["OK"]
    (view,) = producer.call("get", jobs=[held])["jobs"]
    assert (view["attempt"], view["crashes"]) == (1, 0)


@pytest.mark.parametrize("jump", [10 * YEAR_S, -HOUR_S])
def test_leases_on_disk_hold_for_the_grace_after_a_restart_with_a_moved_wall_clock(
        make_broker: MakeBroker, wall_clock: WallClock, jump: int) -> None:
    broker = make_broker("--restart-grace-s", "3", env=wall_clock.env)
    leases = leave_two_leases(broker)

    wall_clock.jump(jump)
    broker.restart()

    check_grace(broker, leases, grace_s=3.0)


def test_leases_on_disk_hold_for_the_grace_after_a_boot(make_broker: MakeBroker) -> None:
    """Its monotonic clock runs on from a year ahead, then begins anew: no value of one boot is meant in another."""
    ahead = ["unshare", "--time", "--monotonic", str(YEAR_S), "--boottime", str(YEAR_S), "--fork", "--kill-child", "--"]
    if shutil.which("unshare") is None or subprocess.run([*ahead, "true"], capture_output=True, timeout=DEADLINE_S).returncode:
        skip_or_fail("clocks of its own need root and a kernel with time namespaces: unshare --time")
    broker = make_broker("--restart-grace-s", "3", prefix=ahead)
    leases = leave_two_leases(broker)

    inner = re.search(r"pid (\d+)", broker.output)[1]
    broker.kill()
    until(lambda: not Path(f"/proc/{inner}").exists(), "the broker inside has ended")
    broker.prefix = []
    broker.start()

    check_grace(broker, leases, grace_s=3.0)


def leave_two_leases(broker: BrokerProcess) -> list[list[int]]:
    """Let one worker hold two jobs until their leases are on disk."""
    worker = broker.connect(role="worker", instance=INSTANCE)
    submit(broker.connect(), {}, {})
    rows = broker.stats()["store"]["rows"]
    leases = [job[:2] for job in worker.call("reserve", n=2, wait=10.0)["jobs"]]
    until(lambda: broker.stats()["store"]["rows"] >= rows + 2, "the leases are written")
    return leases


def check_grace(broker: BrokerProcess, leases: list[list[int]], grace_s: float) -> None:
    """One lease is presented in time and holds; the other, given back by that, is delivered anew, both with what was counted."""
    assert broker.stats()["states"]["running"] == 2
    (held, fence), (given_back, _) = leases
    other = broker.connect(role="worker")
    waiting = other.send("reserve", n=1, wait=10.0)
    began = time.monotonic()
    again = broker.connect(role="worker", instance=INSTANCE, leases=[[held, fence]])
    assert again.greeting["leases"] == ["OK"]
    assert [job[0] for job in other.reply(waiting)["jobs"]] == [given_back] and time.monotonic() - began < grace_s
    assert again.call("settle", leases=[[held, fence, "ack"]])["outcomes"] == ["OK"]
