"""Events on a real broker: over the wire, to the Python client, on the command line, as Server-Sent Events; over a kill -9."""

from __future__ import annotations

import http.client
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom import client_events
from greenroom.client import Client
from greenroom.errors import InvalidError
from greenroom.subscriptions import MAX_SUBSCRIBERS
from tests.processes import DEADLINE_S, ROOT, BrokerProcess, RawPeer, until

EXAMPLE = ROOT / "docs" / "examples" / "watch.py"


def worker(broker: BrokerProcess) -> RawPeer:
    return broker.connect(role="worker", name="w1", instance=b"i" * 16)


def told(peer: RawPeer, count: int) -> list[dict]:
    """Return the next events of a subscriber."""
    events: list[dict] = []
    while len(events) < count:
        events += peer.notice()["events"]
    return events


def run_one(peer: RawPeer) -> int:
    (job,) = peer.call("reserve", n=1, wait=10)["jobs"]
    peer.call("settle", leases=[[job[0], job[1], "ack", b"", True]])
    return job[0]


def test_a_subscriber_is_told_and_comes_back_where_it_was(broker: BrokerProcess) -> None:
    peer, producer = broker.connect(), broker.connect()
    answer = peer.call("subscribe", queue="mail")
    assert answer["position"] == 0 and answer["gap"] is False and answer["boot"]
    producer.call("submit", jobs=[{"task": "t", "queue": "mail"}, {"task": "t", "queue": "other"}])
    producer.call("pause", queue="mail", reason="why", by="ann")
    submitted, paused = told(peer, 2)
    assert (submitted["kind"], submitted["job"], submitted["state"]) == ("submitted", 1, "queued")
    assert (paused["kind"], paused["queue"], paused["reason"]) == ("paused", "mail", "why")
    peer.close()

    producer.call("resume", queue="mail")
    run_one(worker(broker))
    again = broker.connect()
    answer = again.call("subscribe", queue="mail", boot=answer["boot"], after=paused["seq"])

    assert answer["gap"] is False
    assert [event["kind"] for event in told(again, 3)] == ["resumed", "started", "completed"]


def test_a_subscription_ends_when_it_is_asked_to_and_can_be_another(broker: BrokerProcess) -> None:
    peer, producer = broker.connect(), broker.connect()
    peer.call("subscribe")
    peer.call("subscribe", kinds=["cancelled"])
    producer.call("submit", jobs=[{"task": "t"}, {"task": "t"}])
    producer.call("cancel", jobs=[2])
    assert [event["kind"] for event in told(peer, 1)] == ["cancelled"]

    peer.call("subscribe", kinds=[])
    producer.call("cancel", jobs=[1])
    peer.call("subscribe")
    producer.call("submit", jobs=[{"task": "t"}])
    assert [event["job"] for event in told(peer, 1)] == [3]


def test_what_is_wrong_with_a_subscription_is_named(broker: BrokerProcess) -> None:
    peer = broker.connect()
    for fields, name in (({"kinds": ["done"]}, "kinds"), ({"after": 3}, "boot"), ({"boot": "b"}, "after"), ({"queue": "a b"}, "queue")):
        error = peer.call("subscribe", **fields)["error"]
        assert (error["code"], error["field"]) == ("INVALID", name)


def test_after_a_kill_the_gap_is_told(broker: BrokerProcess) -> None:
    peer = broker.connect()
    answer = peer.call("subscribe")
    broker.connect().call("submit", jobs=[{"task": "t"}])
    seq = told(peer, 1)[0]["seq"]

    broker.restart(kill=True)
    peer = broker.connect()
    again = peer.call("subscribe", boot=answer["boot"], after=seq)
    run_one(worker(broker))

    assert again["gap"] is True and again["boot"] != answer["boot"] and again["position"] == 0
    assert [event["kind"] for event in told(peer, 2)] == ["started", "completed"]


def test_a_subscriber_that_does_not_read_is_told_of_its_gap_and_holds_nobody_up(broker: BrokerProcess) -> None:
    slow, producer = broker.connect(), broker.connect()
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # or the kernel would take megabytes for it
    slow.call("subscribe")
    for _ in range(40):
        producer.call("submit", jobs=[{"task": "t", "queue": "q" * 100} for _ in range(1000)])

    seen = 0
    notices: list[dict] = []
    while seen < 40_000:
        notices.append(slow.notice())
        seen = notices[-1]["position"]

    gaps = [notice for notice in notices if notice["gap"]]
    lost = 40_000 - sum(len(notice["events"]) for notice in notices)
    assert gaps and lost > 0
    numbers = [event["seq"] for notice in notices for event in notice["events"]]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 40_000


# -- the Python client, its command line and the cookbook --------------------------------------------------------------------


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, name="ann") as made:
        yield made


def test_the_client_tells_events_and_comes_back_by_itself(broker: BrokerProcess, client: Client) -> None:
    with client.events(timeout=DEADLINE_S) as events:
        job = client.submit("t", queue="mail").id
        first = next(events)
        assert (first["kind"], first["job"], first["queue"]) == ("submitted", job, "mail")

        events._link.close()  # as a network that breaks: the broker lives on
        client.cancel([job])
        second = next(events)
        assert (second["kind"], second["seq"]) == ("cancelled", first["seq"] + 1)

        broker.restart(kill=True)
        assert next(events)["kind"] == "gap"
        client.submit("t")
        assert next(events)["kind"] == "submitted"

    assert [event["kind"] for event in client.events(after=second["position"], timeout=1.0)] == ["gap", "submitted"]


def test_a_reader_that_is_slow_loses_its_connection_and_nothing_else(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "MAX_NOTICES", 2)
    with client.events(timeout=2.0) as events:
        client.submit_many([("t", {}) for _ in range(2000)])
        until(lambda: not events._link.is_open, "too much waits to be read")

        assert [event["seq"] for event in events] == list(range(1, 2001))


def test_what_is_wrong_with_a_question_for_events_is_named_and_a_closed_client_ends_them(broker: BrokerProcess, client: Client) -> None:
    for wrong, field in (({"kinds": ["done"]}, "kinds"), ({"kinds": []}, "kinds"), ({"after": "nonsense"}, "after"), ({"after": 5}, "after")):
        with pytest.raises(InvalidError) as caught:
            client.events(**wrong)
        assert caught.value.field == field

    other = Client(broker.url, ca=broker.ca)
    events = other.events()
    other.close()
    assert list(events) == []


def test_the_command_line_prints_events(broker: BrokerProcess, client: Client) -> None:
    with client.events(timeout=DEADLINE_S) as events:  # so that nothing is missed until the other one listens
        client.submit("t", queue="mail")
        client.submit("t", queue="other")
        start = next(events)["position"].replace(":1", ":0")
    said = subprocess.run([sys.executable, str(ROOT / "client.py"), "events", "-q", "mail", "--after", start, "--timeout", "2"],
                          capture_output=True, text=True, timeout=60, env={**os.environ, **broker.client_env})

    assert [json.loads(line)["queue"] for line in said.stdout.splitlines()] == ["mail"] and said.returncode == 0, said.stderr


def test_the_example_of_the_cookbook_goes_on_where_it_was(broker: BrokerProcess, client: Client, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    text = EXAMPLE.read_text("utf-8")
    assert text.split("timeout=timeout) as events:")[1].split("\n\n")[0] in (ROOT / "docs" / "cookbook.md").read_text("utf-8")
    watch = runpy.run_path(str(EXAMPLE))["main"]
    place = tmp_path / "place"
    with client.events(timeout=DEADLINE_S) as events:
        first, second, third = (client.submit("charge", queue="orders").id for _ in range(3))
        place.write_text(next(events)["position"])
        client.cancel([first])
        watch(client, place, 2.0)
        client.cancel([second, third])
        watch(client, place, 2.0)

    assert capsys.readouterr().out.splitlines() == [f"job {job} (charge) cancelled" for job in (first, second, third)]


# -- Server-Sent Events --------------------------------------------------------------------------------------------------------


class Viewer:
    """One reader of the stream."""

    def __init__(self, broker: BrokerProcess, query: str = "", **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=DEADLINE_S)
        self.connection.request("GET", "/api/events/jobs" + query,
                                headers={name.replace("_", "-"): value for name, value in headers.items()})
        self.response = self.connection.getresponse()
        self.id = ""

    def next(self) -> dict:
        """Return the next event that has data."""
        while True:
            line = self.response.readline()
            assert line, "the stream ended"
            if line.startswith(b"id: "):
                self.id = line[4:].strip().decode()
            if line.startswith(b"data: "):
                return json.loads(line[6:])


def test_a_page_is_told_and_comes_back_with_the_last_id(broker: BrokerProcess, client: Client) -> None:
    viewer = Viewer(broker, "?queue=mail&kinds=submitted,cancelled")
    assert viewer.response.getheader("Content-Type") == "text/event-stream"
    viewer.response.readline()  # it listens
    job = client.submit("t", queue="mail").id
    client.submit("t", queue="other")
    event = viewer.next()
    assert (event["kind"], event["job"]) == ("submitted", job) and viewer.id.endswith(f":{event['seq']}")
    viewer.connection.close()

    client.cancel([job])
    again = Viewer(broker, "?queue=mail&kinds=submitted,cancelled", Last_Event_ID=viewer.id)
    assert again.next()["kind"] == "cancelled"
    strange = Viewer(broker, "?after=another:7")
    assert strange.next() == {"kind": "gap"} and strange.next()["kind"] == "submitted"


@pytest.mark.parametrize(("query", "field"), [
    ("?kinds=done", "kinds"), ("?after=7", "after"), ("?queue=a%20b", "queue"), ("?since=1", "since")])
def test_what_is_wrong_with_the_query_is_named(shared_broker: BrokerProcess, query: str, field: str) -> None:
    response = Viewer(shared_broker, query).response

    assert response.status == 400 and json.loads(response.read())["error"]["field"] == field


def test_a_place_is_free_again_when_a_viewer_leaves_and_the_broker_stops_with_viewers(broker: BrokerProcess, client: Client) -> None:
    viewers = [Viewer(broker) for _ in range(MAX_SUBSCRIBERS)]
    refused = Viewer(broker).response
    assert refused.status == 429 and json.loads(refused.read())["error"]["code"] == "FULL"
    assert broker.connect().call("subscribe")["error"]["code"] == "FULL"

    viewers[0].response.close()
    viewers[0].connection.close()

    def has_room() -> bool:
        client.submit("t")  # nobody notices that a viewer is gone until something is written to it
        return Viewer(broker).response.status == 200

    until(has_room, "there is room again")
    assert broker.terminate() == 0
