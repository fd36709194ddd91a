"""Failed jobs by how they failed, on a real broker: over the wire, from Python, the command line and REST; one tried first, then the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from greenroom.client import Client
from tests.integration.test_client_worker_broker import command
from tests.integration.test_dashboard import FLAKY_TASK
from tests.integration.test_rest import ask
from tests.processes import ROOT, BrokerProcess

EXAMPLE = ROOT / "docs" / "examples" / "triage.py"


def test_failures_are_grouped_at_each_door_and_a_group_is_retried_one_first(broker: BrokerProcess, start_worker: object, tmp_path: Path) -> None:
    tasks, healed = tmp_path / "flaky_tasks.py", tmp_path / "healed"
    tasks.write_text(FLAKY_TASK, encoding="utf-8")
    start_worker(tasks=tasks, name="w1")
    with Client(broker.url, ca=broker.ca) as client:
        flaky = [client.submit("flaky", {"file": str(healed), "host": n}, attempts=1).id for n in range(1, 5)]
        bad = [client.submit("fibonacci", {"n": -n}, attempts=1).id for n in (1, 2)]
        assert {view["state"] for view in client.wait([*flaky, *bad], 60)} == {"failed"}

        # The same at each door.
        found = client.failures()
        first, second = found.groups
        assert (first.count, first.task, first.error, first.message, first.workers) == (4, "flaky", "TimeoutError", "no answer from host 4", ["w1"])
        assert first.place.endswith("flaky_tasks.py in flaky") and first.jobs == flaky[::-1] and first.first_at <= first.last_at
        assert (second.task, second.jobs, found.looked_at, found.next, found.groups_total) == ("fibonacci", bad[::-1], 6, None, 2)
        wire = broker.connect().call("failures")
        assert {name: value for name, value in wire.items() if name != "id"} == ask(broker, "GET", "/api/failures").json
        assert wire["groups"] == [group._asdict() for group in found.groups]
        listed = command(broker, "failures", "-o", "jsonl")
        assert listed.returncode == 0 and [json.loads(line) for line in listed.stdout.splitlines()] == wire["groups"]
        table = command(broker, "failures", "--task", "flaky", "-o", "table").stdout
        assert first.fingerprint in table and "no answer from host 4" in table and second.fingerprint not in table
        line = f"/api/failures?q=fingerprint:{second.fingerprint}"
        assert [group["jobs"] for group in ask(broker, "GET", line).json["groups"]] == [bad[::-1]]

        # The jobs of one.
        members = command(broker, "failures", first.fingerprint, "-n", "3", "-o", "jsonl")
        assert members.returncode == 0 and [json.loads(line)["id"] for line in members.stdout.splitlines()] == flaky[:0:-1]
        assert [view["id"] for view in client.jobs(f"fingerprint:{first.fingerprint} id<{flaky[2]}")] == flaky[1::-1]
        assert command(broker, "failures", "0" * 16).returncode == 5 and command(broker, "failures", "none").returncode == 2

        # It survives a kill, and the others wait for the first.
        broker.restart(kill=True)
        assert client.failures() == found
        told = command(broker, "retry", "--group", first.fingerprint)
        assert told.returncode == 2 and "4 jobs" in told.stderr and "--yes" in told.stderr
        again = command(broker, "retry", "--group", second.fingerprint, "--canary", "-o", "table")
        assert again.returncode == 1 and f"job {bad[1]} failed again (BadPayloadError: " in again.stdout and "were not retried" in again.stdout
        assert [view["attempt"] for view in client.get(bad)] == [1, 2]
        client.pause(task="flaky")
        late = client.retry_group(first.fingerprint, timeout=0.5)
        assert (late.outcome, late.state, late.canary) == ("timeout", "queued", flaky[3])
        healed.touch()
        client.resume(task="flaky")
        assert next(client.wait([flaky[3]], 60))["state"] == "completed"

        ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120,
                               env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == f"retried: job {flaky[2]} completed, 2 others retried"
        assert {view["state"] for view in client.wait(flaky, 60)} == {"completed"}
        assert command(broker, "retry", "--group", second.fingerprint, "--yes", "-o", "json").returncode == 0
        assert {view["state"] for view in client.wait(bad, 60)} == {"failed"}
    recipe = (ROOT / "docs" / "cookbook.md").read_text().split("## What failed")[1]
    quoted = recipe.split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text() for line in quoted.splitlines())
