"""Filters on a real broker: search, delete and bulk verbs over the wire, from Python, the command line and REST."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from greenroom.client import Client
from greenroom.errors import InvalidError
from tests.integration.test_client_worker_broker import command
from tests.integration.test_rest import ask
from tests.processes import ROOT, BrokerProcess, RawPeer

EXAMPLE = ROOT / "docs" / "examples" / "clean_up.py"
ERROR = {"name": "TimeoutError", "message": "No answer from 10.0.0.7", "traceback": "File \"a.py\", line 3"}


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, name="ann") as made:
        yield made


@pytest.fixture
def worker(broker: BrokerProcess) -> RawPeer:
    return broker.connect(role="worker", name="w1", instance=b"i" * 16)


def reserved(worker: RawPeer, n: int = 1) -> list[tuple[int, int]]:
    """Reserve the next jobs; return their leases."""
    return [tuple(job[:2]) for job in worker.call("reserve", n=n, wait=5.0)["jobs"]]


def ran(worker: RawPeer, *outcome: object) -> int:
    """Let the next job end so; return its id."""
    [(job, fence)] = reserved(worker)
    assert worker.call("settle", leases=[[job, fence, *outcome]])["outcomes"] == ["OK"]
    return job


def test_jobs_are_found_by_each_condition_at_each_door(broker: BrokerProcess, client: Client, worker: RawPeer) -> None:
    slow = client.submit("mail.send", {"to": "Bob@example.org"}, attempts=1).id
    done = client.submit("mail.receipt", {"to": "eve"}).id
    client.submit("report")
    assert ran(worker, "fail", ERROR) == slow and ran(worker, "ack", b"\xa7Shipped") == done
    [(running, _)] = reserved(worker)
    waiting = client.submit("report", queue="night").id

    def found(written: str) -> list[int]:
        ids = [view["id"] for view in client.jobs(written)]
        rest = ask(broker, "GET", "/api/jobs?q=" + "".join(f"%{byte:02x}" for byte in written.encode())).json
        assert ([job["id"] for job in rest["jobs"]], rest["next"]) == (ids, None)
        return ids

    assert found("") == [waiting, running, done, slow]
    assert found('state:failed task:mail.* error:TimeoutError finished>-2h "no ANSWER"') == [slow]
    assert found("task:mail.*") == [done, slow] and found("bob@") == [slow] and found("shipped") == [done] and found("line 3") == [slow]
    assert found("state:running") == [running] and found("state:queued") == [waiting] and found("state:queued,running") == [waiting, running]
    assert found("state:running queue:night") == [] and found("worker:w1 state:completed") == [done] and found("queue:night") == [waiting]
    assert found(f"id:{slow}-{done}") == [done, slow] and found("finished<-1h") == found("created>2090-01-01") == found("error:Timeout") == []
    assert [view["id"] for view in client.jobs({"task": "report"}, queue="night")] == [waiting]
    listed = command(broker, "jobs", "task:mail.* state:completed", "-o", "jsonl")
    assert listed.returncode == 0 and [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [done]
    with pytest.raises(InvalidError, match="task"):
        list(client.jobs({"task": "a b"}))


def test_a_bad_filter_is_refused_by_name_and_a_page_says_how_far_it_looked(broker: BrokerProcess, client: Client) -> None:
    ids = [client.submit("t").id for _ in range(3)]
    peer = broker.connect()

    for given, field in (({"task": "a b"}, "task"), ({"colour": 1}, "colour"), ({"queue": "x"}, "queue"), (7, "filter")):
        refused = peer.call("jobs", filter=given, **({"queue": "y"} if field == "queue" else {}))["error"]
        assert (refused["code"], refused["field"]) == ("INVALID", field)
    page = peer.call("jobs", filter={"task": "t"}, limit=2)
    assert ([job["id"] for job in page["jobs"]], page["next"], page["scanned_to"]) == (ids[:0:-1], ids[1], ids[1])
    page = peer.call("jobs", filter={"task": "t"}, limit=2, before=page["next"])
    assert ([job["id"] for job in page["jobs"]], page["next"], page["scanned_to"]) == (ids[:1], None, 1)
    answer = ask(broker, "GET", "/api/jobs?q=created%3Esoon")
    assert (answer.status, answer.json["error"]["field"]) == (400, "created")


@pytest.mark.parametrize("kill", [True, False])
def test_deleted_jobs_are_gone_at_each_door_also_after_a_restart(broker: BrokerProcess, client: Client, worker: RawPeer, kill: bool) -> None:
    gone = [client.submit("t", {"n": number}).id for number in range(4)]
    for job in gone:
        assert ran(worker, "ack", bytes(3000)) == job
    kept, alive = client.submit("t").id, client.submit("t").id
    assert ran(worker, "fail", ERROR, {"retry": False}) == kept

    refused = client.delete([gone[0], alive, 2**40])
    assert refused[0] == "deleted" and [error.code for error in refused[1:]] == ["CONFLICT", "NOT_FOUND"]
    assert ask(broker, "POST", f"/api/jobs/{gone[1]}/delete", {}).json == {"id": gone[1], "outcome": "deleted"}
    assert ask(broker, "POST", f"/api/jobs/{alive}/delete", {}).status == 409
    many = ask(broker, "POST", "/api/jobs/delete", {"ids": [gone[2], gone[1]]}).json["outcomes"]
    assert [outcome.get("outcome") or outcome["error"]["code"] for outcome in many] == ["deleted", "GONE"]
    assert command(broker, "delete", str(gone[3])).returncode == 0 and command(broker, "delete", str(alive)).returncode == 7

    for _ in range(2):
        assert [view["error"]["code"] for view in client.get(gone)] == ["GONE"] * 4
        assert [view["id"] for view in client.jobs()] == [alive, kept]
        assert ask(broker, "GET", f"/api/jobs/{gone[0]}").status == 410
        assert client.stats()["states"]["completed"] == 4
        broker.restart(kill=kill)


def test_all_that_fit_are_retried_cancelled_and_deleted_at_each_door(broker: BrokerProcess, client: Client, worker: RawPeer) -> None:
    ids = [handle.id for handle in client.submit_many([("mail.send", {"n": number}) for number in range(450)], attempts=1)]
    leases = reserved(worker, 500)
    worker.call("settle", leases=[[*lease, "fail", ERROR if lease[0] % 2 else {"name": "KeyError", "message": "k"}] for lease in leases])
    some = sum(job % 2 for job in ids)
    progress = []

    counted = client.bulk("retry", "error:TimeoutError", dry_run=True)
    assert (counted["matched"], counted["done"]) == (some, 0) and not list(client.jobs(state="queued"))
    told = command(broker, "retry", "--filter", "error:TimeoutError")
    assert told.returncode == 2 and f"{some} jobs" in told.stderr and "--yes" in told.stderr
    done = client.bulk("retry", 'error:TimeoutError "no answer"', on_progress=progress.append)
    assert (done["matched"], done["done"], done["refused"], done["why"]) == (some, some, 0, None)
    assert [sums["done"] for sums in progress] == [200, some] and progress[-1] == done

    assert client.bulk("change", "queue:default state:queued", delay=3600)["done"] == some
    shown = command(broker, "change", "--filter", "task:mail.*", "--priority", "1", "--queue", "slow", "--yes", "-o", "json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["done"] == some
    answer = ask(broker, "POST", "/api/jobs/bulk", {"action": "change", "q": "queue:slow", "delay": 0, "queue": "fast"}).json
    broker.restart(kill=True)
    moved = list(client.jobs(queue="fast"))
    assert len(moved) == answer["done"] == 200 and {(view["priority"], view["state"]) for view in moved} == {(1, "queued")}
    assert len(list(client.jobs("state:scheduled queue:slow"))) == some - 200

    shown = command(broker, "cancel", "--filter", "task:mail.*", "--yes", "-o", "json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["done"] == some
    counted = command(broker, "delete", "--filter", "state:failed error:KeyError", "--dry-run", "-o", "json")
    assert counted.returncode == 0 and json.loads(counted.stdout)["matched"] == 450 - some
    before, deleted = None, 0
    while before is not None or not deleted:
        answer = ask(broker, "POST", "/api/jobs/bulk", {"action": "delete", "q": "error:KeyError", **({"before": before} if before else {})}).json
        before, deleted = answer["next"], deleted + answer["done"]
    assert deleted == 450 - some
    assert {view["state"] for view in client.jobs()} == {"cancelled"}
    broker.restart(kill=True)
    assert client.bulk("delete", {})["done"] == some and not list(client.jobs())


def test_bulk_requests_that_cannot_be_meant_are_refused_by_name(broker: BrokerProcess, client: Client) -> None:
    peer = broker.connect()

    for fields, field in (({"action": "purge", "filter": {}}, "action"), ({"action": "retry"}, "filter"), ({"action": "retry", "filter": {"x": 1}}, "x"),
                          ({"action": "delete", "filter": {"state": "queued"}}, "state"), ({"action": "retry", "filter": {}, "dry_run": 1}, "dry_run"),
                          ({"action": "change", "filter": {}, "priority": 11}, "priority")):
        refused = peer.call("bulk", **fields)["error"]
        assert (refused["code"], refused["field"]) == ("INVALID", field)
    for body, field in (({"action": "retry"}, "filter"), ({"action": "retry", "q": "", "filter": {}}, "filter"), ({"action": "retry", "q": 1}, "q"),
                        ({"action": "retry", "q": "a:b"}, "a"), ({"action": "fly", "q": ""}, "action"), ({"verb": 1}, "verb")):
        answer = ask(broker, "POST", "/api/jobs/bulk", body)
        assert (answer.status, answer.json["error"]["field"]) == (400, field)
    for arguments in (["cancel"], ["delete", "5", "--filter", ""], ["retry", "--yes", "5"], ["retry", "--failed", "--filter", ""], ["retry", "5", "--queue", "q"],
                      ["delete", "--filter", "a:b"], ["change", "5"], ["change", "--filter", "", "--payload", "{}", "--yes"], ["change", "5", "--filter", "", "-p", "1"]):
        assert command(broker, *arguments).returncode == 2, arguments


def test_the_example_of_the_cookbook_runs(broker: BrokerProcess) -> None:
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60,
                           env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "found: send_mail b'user7@example.org'", "would be cancelled: 30", "cancelled: 30", "run again: 11", "go first now: 11", "… so far 19", "deleted: 19",
        "left: ['queued', 'queued', 'queued']"]
    recipe = (ROOT / "docs" / "cookbook.md").read_text().split("## Find jobs")[1]
    quoted = recipe.split("```python\n")[1].split("```")[0]
    assert all(line in EXAMPLE.read_text() for line in quoted.splitlines())
