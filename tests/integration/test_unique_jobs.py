"""Unique jobs on a real broker: wire, client, command line, REST; over a kill -9; the cookbook's example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from greenroom.client import Client
from greenroom.protocol import pack_value
from tests.integration.test_client_worker_broker import command
from tests.integration.test_rest import ask
from tests.processes import ROOT, BrokerProcess, until

EXAMPLE = ROOT / "docs" / "examples" / "debounce.py"
DEBOUNCED = {"unique_key": "d", "unique_mode": "debounce", "unique_for": 600}


def test_duplicates_by_every_door_and_over_a_kill(broker: BrokerProcess) -> None:
    with Client(broker.url, ca=broker.ca) as client:
        first = client.submit("t", {"n": 1}, unique_key="k")
        assert (first.is_duplicate, first.is_replaced) == (False, False)
        late = client.submit("t", {"n": 1}, **DEBOUNCED)
        broker.restart(kill=True)  # nothing is in memory now

        kept = client.submit("t", {"n": 2}, unique_key="k")
        assert (kept.id, kept.is_duplicate, kept.is_replaced) == (first.id, True, False)
        asked = ask(broker, "POST", "/api/submit", {"task": "t", "payload": {"n": 3}, "unique_key": "k", "on_duplicate": "replace"})
        assert (asked.status, asked.json) == (200, {"id": first.id, "state": "queued", "duplicate": True, "replaced": True})
        said = command(broker, "submit", "t", '{"n": 4}', "--unique-key", "k", "--on-duplicate", "replace")
        assert json.loads(said.stdout) == {"id": first.id} and "it has the new payload" in said.stderr
        before = late.status()["run_at"]
        said = command(broker, "submit", "t", '{"n": 5}', "--unique-key", "d", "--unique-mode", "debounce", "--unique-for", "900",
                       "--debounce-max", "1000")
        assert "it has the new payload" in said.stderr

        peer = broker.connect()
        submit = {"jobs": [{"task": "t", "payload": pack_value({"n": 6}), **DEBOUNCED, "unique_for": 1200}], "submission": os.urandom(16)}
        outcome = peer.call("submit", **submit)["jobs"]
        assert outcome == [{"duplicate": late.id, "state": "scheduled", "replaced": True}]
        broker.restart(kill=True)
        peer = broker.connect()
        again = peer.call("submit", **submit)
        assert (again["jobs"], again["repeated"]) == (outcome, True)
        shown, debounced = client.get([first.id, late.id], payload=True)
        assert (shown["payload"], debounced["payload"]) == (pack_value({"n": 4}), pack_value({"n": 6}))
        assert debounced["run_at"] > before + 590 and debounced["options"] == DEBOUNCED

        for body, field in (({"on_duplicate": "replace"}, "on_duplicate"), ({**DEBOUNCED, "delay": 1}, "delay"),
                            ({**DEBOUNCED, "debounce_max": 1}, "debounce_max")):
            refused = ask(broker, "POST", "/api/submit", {"task": "t", **body})
            assert (refused.status, refused.json["error"]["field"]) == (400, field)
        refused = ask(broker, "POST", "/api/schedules/s", {"job": {"task": "t", **DEBOUNCED}, "every": "1m"})
        assert (refused.status, refused.json["error"]["field"]) == (400, "unique_mode")


def test_the_example_of_the_cookbook_runs(broker: BrokerProcess, start_worker: Callable) -> None:
    start_worker(tasks=EXAMPLE)
    until(lambda: broker.stats()["workers"], "the worker is there")
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120,
                           env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "version 1: index job new, page job new"
    assert lines[-2:] == ["page 7 is indexed as of version 5", "page 7 is published as of version 5"]
    recipe = (ROOT / "docs" / "cookbook.md").read_text("utf-8").split("## Many events, one job")[1]
    quoted = recipe.split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text("utf-8") for line in quoted.splitlines())
