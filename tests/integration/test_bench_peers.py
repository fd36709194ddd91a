"""The peers' benchmark, run for seconds as a user would run it. No peer needs to be installed, no times are judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT, until

WITHIN_S = 100


def peers(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "bench" / "peers.py"), *arguments], capture_output=True, text=True,
                          timeout=WITHIN_S, env={"PATH": "/usr/bin:/bin"}, cwd=cwd)


def test_peers_measures_greenroom_and_whoever_is_installed(tmp_path: Path) -> None:
    done = peers("--jobs", "300", "--rounds", "1", "--only", "beanstalkd,redis lists,huey", "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    rates = {(item["params"]["group"], item["params"]["peer"]): item for item in found if item["name"] == "peer jobs"}
    missing = {(item["params"]["group"], item["params"]["peer"]): item for item in found if item["name"] == "peer left out"}
    assert rates["brokers", "Greenroom"]["value"] > 0 and rates["frameworks", "Greenroom"]["value"] > 0
    assert len(rates) + len(missing) == 8 and not rates.keys() & missing.keys()
    assert all(item["params"]["reason"] and "failed" not in item["params"]["reason"] for item in missing.values())
    assert all(item["params"]["can_lose"] for item in rates.values())


def test_peers_lists_whom_it_would_measure(tmp_path: Path) -> None:
    done = peers("--list", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    for name in ("beanstalkd -f0", "Redis lists, always", "RabbitMQ, confirms", "NATS JetStream, always", "gearmand", "Celery + Redis",
                 "RQ + Redis", "Dramatiq + RabbitMQ", "Huey + Redis", "Procrastinate + PostgreSQL"):
        assert name in done.stdout, done.stdout


def test_whoever_stops_peers_leaves_none_of_its_processes_behind(tmp_path: Path) -> None:
    def alive() -> dict[int, str]:
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"HOME={tmp_path}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
        return found

    running = subprocess.Popen([sys.executable, str(ROOT / "bench" / "peers.py"), "--group", "frameworks", "--only", "none",
                                "--rounds", "50"], env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, cwd=tmp_path,
                               stdout=subprocess.DEVNULL)
    try:
        until(lambda: any("worker.py" in line for line in alive().values()), "the worker runs")
        running.terminate()

        assert running.wait(20) == 143
        until(lambda: not alive(), "all have ended", 10)
    finally:
        for pid in alive():
            os.kill(pid, signal.SIGKILL)
        running.wait(10)
