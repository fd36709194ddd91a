"""The peers' benchmark, run for seconds as a user would run it. No peer needs to be installed, no times are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

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
