"""`keep_for` on a real broker, at each door and over a kill -9; results come by push; the cookbook's example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from greenroom.client import Client
from tests.integration.test_client_worker_broker import command
from tests.integration.test_rest import ask
from tests.processes import ROOT, BrokerProcess, RawPeer, until

EXAMPLE = ROOT / "docs" / "examples" / "keep.py"


def ended(worker: RawPeer, *jobs: int) -> None:
    """Let these jobs, which are next, run and complete."""
    leases = [[job[0], job[1], "ack", b"\xc3"] for job in worker.call("reserve", n=len(jobs), wait=5.0)["jobs"]]
    assert [lease[0] for lease in leases] == list(jobs)
    assert worker.call("settle", leases=leases)["outcomes"] == ["OK"] * len(jobs)


def code(broker: BrokerProcess, job: int) -> str:
    """Return the state of a job, or the code of the error."""
    shown = broker.connect().call("get", jobs=[job])["jobs"][0]
    return shown.get("state") or shown["error"]["code"]


def test_each_door_takes_it_and_a_kill_changes_nothing(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--max-kept-jobs", "2", "--history-age-s", "60", "--history-count", "0", "--history-failed-age-s", "60")
    peer, worker = broker.connect(), broker.connect(role="worker", name="w1", instance=b"i" * 16)
    (long,) = peer.call("submit", jobs=[{"task": "t", "keep_for": 7200}])["jobs"]
    short = ask(broker, "POST", "/api/submit", {"task": "t", "payload": {}, "keep_for": 3}).json["id"]
    told = json.loads(command(broker, "submit", "t", "{}", "--keep-for", "7200").stdout)
    with Client(broker.url, ca=broker.ca) as client:
        unkept = client.submit("t", {}, keep_for=0).id
    refused = peer.call("submit", jobs=[{"task": "t", "keep_for": -1}, {"task": "t", "keep_for": 3601}, {"task": "t", "keep_for": 3600}])["jobs"]
    assert [(job["code"], job["field"]) for job in refused[:2]] == [("INVALID", "keep_for"), ("FULL", "keep_for")]
    assert ask(broker, "POST", "/api/submit", {"task": "t", "keep_for": "1"}).json["error"]["field"] == "keep_for"

    by_wire = peer.send("wait", jobs=[unkept], wait=30.0)
    ended(worker, long, short, told["id"], unkept, refused[2])
    shown = peer.reply(by_wire)["jobs"][0]
    assert (shown["id"], shown["state"], shown["result"]) == (unkept, "completed", b"\xc3"), "it is sent when the job ends, kept or not"
    assert ask(broker, "GET", f"/api/jobs/{long}").json["job"]["options"] == {"keep_for": 7200.0}
    until(lambda: code(broker, unkept) == "GONE", "the job that is not kept is gone")
    assert ask(broker, "GET", f"/api/jobs/{unkept}").status == 410 and code(broker, long) == "completed"

    broker.restart(kill=True)

    until(lambda: code(broker, short) == "GONE", "the job that is kept for 3 s is gone")
    assert [code(broker, job) for job in (long, told["id"], refused[2])] == ["completed"] * 3
    peer = broker.connect()
    assert peer.call("submit", jobs=[{"task": "t", "keep_for": 3601}])["jobs"][0]["code"] == "FULL", "the count is on disk"
    assert peer.call("delete", jobs=[long])["outcomes"] == ["deleted"]
    assert isinstance(peer.call("submit", jobs=[{"task": "t", "keep_for": 3601}])["jobs"][0], int)


def test_the_example_of_the_cookbook_runs(broker: BrokerProcess, start_worker: Callable[..., object]) -> None:
    start_worker()
    ran = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60,
                         env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})

    assert ran.returncode == 0, ran.stderr
    told, results, gone, report = ran.stdout.splitlines()
    assert (told, results) == ("told to who waits: ecno", "report: 12586269025 preview: weiverp")
    assert gone.startswith("afterwards: ") and "no longer kept" in gone and report == "the report goes in 30 days"
    recipe = (ROOT / "docs" / "cookbook.md").read_text().split("## Keep a result")[1]
    quoted = recipe.split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text() for line in quoted.splitlines())
