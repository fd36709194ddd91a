"""The protocol over real connections: every verb, every error code that a peer can provoke, and the life of sessions and leases."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from greenroom.protocol import DEFAULT_LIMITS, FrameReader, encode_frame
from tests.processes import ROOT, BrokerProcess, RawPeer, until

INSTANCE = b"i" * 16


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, certificates: object) -> Iterator[BrokerProcess]:
    """One broker for the tests that need none of their own; each uses a queue of its own."""
    broker = BrokerProcess(tmp_path_factory.mktemp("wire"), certificates, ("--lease-s", "3"))
    broker.start()
    yield broker
    broker.end()


@pytest.fixture(scope="module", autouse=True)
def slow_peers(shared: BrokerProcess) -> tuple[RawPeer, RawPeer]:
    """One that never says hello and one that leaves a frame half sent: made first, so that their deadlines pass during other tests."""
    silent, halting = RawPeer(shared, say_hello=False), shared.connect()
    halting.sock.sendall(encode_frame({"verb": "ping", "id": 1})[:6])
    return silent, halting


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    return "q" + str(abs(hash(request.node.name)) % 10**9)


@pytest.fixture
def producer(shared: BrokerProcess) -> Iterator[RawPeer]:
    peer = shared.connect()
    yield peer
    peer.close()


@pytest.fixture
def worker(shared: BrokerProcess) -> Iterator[RawPeer]:
    peer = shared.connect(role="worker")
    yield peer
    peer.close()


def submit(peer: RawPeer, queue: str, count: int = 1, **fields: object) -> list[int]:
    return peer.call("submit", jobs=[{"task": "t", "queue": queue, **fields}] * count)["jobs"]


def take(peer: RawPeer, queue: str, n: int = 1, wait: float = 5.0) -> list[list]:
    return peer.call("reserve", n=n, queues=[queue], wait=wait)["jobs"]


def state(peer: RawPeer, job: int) -> dict:
    return peer.call("get", jobs=[job])["jobs"][0]


def test_the_greeting_tells_everything_that_a_peer_must_know(shared: BrokerProcess) -> None:
    greeting = shared.connect(role="worker", name="someone", version=7).greeting

    assert greeting["version"] == 1 and greeting["name"] == "someone" and greeting["lease_s"] == 3.0 and greeting["heartbeat_s"] == 1.0
    assert set(greeting["limits"]) == {"frame", "payload", "result", "list", "leases", "reserve", "wait", "waits"}


def test_a_job_goes_its_way(producer: RawPeer, worker: RawPeer, queue: str) -> None:
    waiting = worker.send("reserve", n=5, queues=[queue], wait=30)
    [job] = submit(producer, queue, payload=b"\x01", priority=3)

    [[number, fence, task, payload, raw, where, attempt, priority]] = worker.reply(waiting)["jobs"]
    assert (number, task, payload, raw, where, attempt, priority) == (job, "t", b"\x01", False, queue, 1, 3)
    assert state(producer, job)["state"] == "running"
    answer = producer.send("wait", jobs=[job], wait=30)
    assert worker.call("settle", leases=[[job, fence, "ack", b"\x02"]])["outcomes"] == ["OK"]
    [view] = producer.reply(answer)["jobs"]
    assert (view["id"], view["state"], view["result"]) == (job, "completed", b"\x02")
    assert worker.call("settle", leases=[[job, fence, "ack", b"\x02"]])["outcomes"] == ["REPEATED"]


@pytest.mark.parametrize(("verb", "fields", "code", "field"), [
    ("submit", {}, "INVALID", "jobs"), ("submit", {"jobs": []}, "INVALID", "jobs"),
    ("submit", {"jobs": [{}], "submission": b"short"}, "INVALID", "submission"), ("wait", {"jobs": [1], "wait": 61}, "INVALID", "wait"),
    ("get", {"jobs": ["1"]}, "INVALID", "jobs"), ("jobs", {"state": "lost"}, "INVALID", "state"), ("hello", {"version": 1,
     "role": "client"}, "INVALID", "verb"), ("nonsense", {}, "UNKNOWN_VERB", None), ("reserve", {"n": 1}, "DENIED", "verb"),
    ("settle", {"leases": [[1, 1, "ack"]]}, "DENIED", "verb"), ("heartbeat", {}, "DENIED", "verb"),
])
def test_a_bad_request_is_answered_with_its_code_and_the_connection_lives(producer: RawPeer, verb: str, fields: dict, code: str,
                                                                         field: str | None) -> None:
    error = producer.call(verb, **fields)["error"]

    assert (error["code"], error.get("field")) == (code, field) and error["message"]
    assert "now" in producer.call("ping")


def test_each_job_of_a_submit_has_an_outcome_of_its_own(producer: RawPeer, queue: str) -> None:
    good = {"task": "t", "queue": queue}
    first, low, large, both, last = producer.call("submit", jobs=[
        good, {**good, "priority": 0}, {**good, "payload": bytes(2**20 + 1)}, {**good, "delay": 1, "run_at": 1}, good])["jobs"]

    assert (low["code"], low["field"]) == ("INVALID", "priority") and (both["code"], both["field"]) == ("INVALID", "delay")
    assert large["code"] == "TOO_LARGE" and first < last
    assert producer.call("jobs", queue=queue)["jobs"][0]["id"] == last


def test_ids_that_never_were_and_jobs_that_are_over_have_codes(producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    assert producer.call("cancel", jobs=[job, job, 2**52])["outcomes"][0] == "cancelled"

    again, never = producer.call("cancel", jobs=[job, 2**52])["outcomes"]
    assert (again["code"], never["code"]) == ("FINISHED", "NOT_FOUND")
    assert producer.call("get", jobs=[2**52])["jobs"] == [{"id": 2**52, "error": {"code": "NOT_FOUND", "message": f"no job {2**52}"}}]
    assert producer.call("wait", jobs=[2**52, job], wait=5)["jobs"]


def test_a_submission_is_answered_again_elsewhere_and_after_a_kill(make_broker: object) -> None:
    broker = make_broker()
    jobs = [{"task": "t", "payload": b"\x01"}, {"task": "bad name"}]
    first = broker.connect().call("submit", jobs=jobs, submission=INSTANCE)
    assert broker.connect().call("submit", jobs=jobs, submission=INSTANCE)["jobs"] == first["jobs"]

    broker.restart(kill=True)

    again = broker.connect().call("submit", jobs=jobs, submission=INSTANCE)
    assert again["jobs"] == first["jobs"] and again["repeated"] is True
    assert broker.connect().call("submit", jobs=jobs[:1], submission=INSTANCE)["error"]["code"] == "KEY_CONFLICT"
    assert broker.stats()["queued"] == 1


def test_a_thousand_requests_in_one_write_are_all_answered(producer: RawPeer) -> None:
    frames = b"".join(encode_frame({"verb": "ping", "id": number}) for number in range(1001, 2001))
    producer.sock.sendall(frames)

    assert all("now" in producer.reply(number) for number in range(2000, 1000, -1))


def test_a_frame_may_come_byte_by_byte(producer: RawPeer) -> None:
    for byte in encode_frame({"verb": "ping", "id": 99}):
        producer.sock.sendall(bytes([byte]))

    assert "now" in producer.reply(99)


@pytest.mark.parametrize("data", [bytes(4), b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\x90", encode_frame({"verb": "ping"}),
                                  encode_frame({"id": 1})])
def test_what_is_not_the_protocol_is_told_and_closed(shared: BrokerProcess, data: bytes) -> None:
    peer = shared.connect()
    peer.sock.sendall(data)

    assert peer.reply(1 if data == encode_frame({"id": 1}) else 0)["error"]["code"] == "PROTOCOL_ERROR"
    assert peer.closes()


def test_nothing_but_hello_comes_first_and_not_a_large_one(shared: BrokerProcess) -> None:
    rude, large, stale = (RawPeer(shared, say_hello=False) for _ in range(3))

    assert rude.call("ping")["error"]["code"] == "PROTOCOL_ERROR" and rude.closes()
    large.sock.sendall((64 * 1024 + 1).to_bytes(4, "big"))
    assert large.reply(0)["error"]["code"] == "PROTOCOL_ERROR" and large.closes()
    assert stale.call("hello", version=0, role="client")["error"]["code"] == "INVALID" and stale.closes()


def test_a_newer_reserve_replaces_the_older_and_none_takes_it_back(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    older = worker.send("reserve", n=1, queues=[queue], wait=60)
    newer = worker.send("reserve", n=1, queues=[queue], wait=60)
    assert worker.reply(older)["jobs"] == []

    assert worker.call("reserve", n=0)["jobs"] == [] and worker.reply(newer)["jobs"] == []
    submit(producer, queue)
    assert len(take(worker, queue, wait=0)) == 1 and take(worker, queue, wait=0) == []


def test_a_job_can_be_given_back_failed_crashed_and_lost(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    for given, crashes, requeues in ((["nack", False], 0, 0), (["nack", True], 0, 1), (["nack"], 0, 2), (["crash"], 1, 3)):
        [[_, fence, *_]] = take(worker, queue)
        assert worker.call("settle", leases=[[job, fence, *given]])["outcomes"] == ["OK"]
        assert (state(producer, job)["crashes"], state(producer, job)["requeues"]) == (crashes, requeues)
    [[_, fence, *_]] = take(worker, queue)

    stale, bad, ok = worker.call("settle", leases=[[job, fence - 1, "ack"], [job, fence, "maybe"],
                                                   [job, fence, "fail", {"name": "E", "message": "m" * 5000}, {"retry": False}]])["outcomes"]

    assert (stale["code"], bad["code"], ok) == ("LEASE_LOST", "INVALID", "OK")
    view = state(producer, job)
    assert (view["state"], view["attempt"], view["requeues"], len(view["error"]["message"])) == ("failed", 5, 3, 4096)


def test_silence_loses_a_lease_and_heartbeats_or_extend_keep_it(shared: BrokerProcess, producer: RawPeer, queue: str) -> None:
    beating, extended, silent = (shared.connect(role="worker") for _ in range(3))
    jobs = submit(producer, queue, 3)
    leases = [take(peer, queue)[0][:2] for peer in (beating, extended, silent)]
    assert extended.call("extend", **{"leases": [leases[1]], "for": 30})["outcomes"] == ["OK"]

    until(lambda: beating.call("heartbeat", leases=[leases[0]]) and state(producer, jobs[2])["state"] == "queued", "the lease ran out", 10)

    assert [state(producer, job)["state"] for job in jobs] == ["running", "running", "queued"]
    assert silent.call("heartbeat", leases=[leases[2]])["lost"] == [leases[2]]
    assert silent.call("settle", leases=[[*leases[2], "ack"]])["outcomes"] == ["OK"]  # late, but nobody else got it


def test_a_delivery_that_two_heartbeats_do_not_list_goes_back(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    take(worker, queue)

    until(lambda: worker.call("heartbeat", leases=[]) and state(producer, job)["state"] == "queued", "it went back", 10)

    assert state(producer, job)["crashes"] == 0


def test_a_worker_that_comes_back_keeps_what_it_presents(shared: BrokerProcess, producer: RawPeer, queue: str) -> None:
    instance = os.urandom(16)
    peer = shared.connect(role="worker", instance=instance)
    kept, left = submit(producer, queue, 2)
    leases = [delivery[:2] for delivery in take(peer, queue, 2)]
    peer.close()

    back = shared.connect(role="worker", instance=instance, leases=[leases[0], [left, 1]])

    assert back.greeting["leases"][0] == "OK" and back.greeting["leases"][1]["code"] == "LEASE_LOST"
    assert state(producer, left) | {"worker": None} == state(producer, left) | {"worker": None, "state": "queued", "crashes": 0}
    assert back.call("settle", leases=[[*leases[0], "ack"]])["outcomes"] == ["OK"] and state(producer, kept)["attempt"] == 1


def test_a_lost_connection_costs_a_crash_after_the_grace_and_bye_costs_nothing(shared: BrokerProcess, producer: RawPeer, queue: str) -> None:
    gone, polite = shared.connect(role="worker"), shared.connect(role="worker")
    first, second = submit(producer, queue, 2)
    take(gone, queue), take(polite, queue)

    gone.close()
    assert "error" not in polite.call("bye") and polite.closes()

    until(lambda: state(producer, first)["state"] == "queued", "the grace is over")
    assert state(producer, first)["crashes"] == 1
    assert state(producer, second)["state"] == "queued" and state(producer, second)["crashes"] == 0


def test_a_running_job_is_cancelled_by_notice_unless_it_is_acked(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    acked, nacked = submit(producer, queue, 2)
    leases = {job: fence for job, fence, *_ in take(worker, queue, 2)}
    assert producer.call("cancel", jobs=[acked, nacked])["outcomes"] == ["requested", "requested"]

    noticed = [lease for _ in range(2) for lease in worker.notice()["leases"]]

    assert sorted(noticed) == sorted([job, fence] for job, fence in leases.items())
    assert sorted(worker.call("heartbeat", leases=noticed)["cancel"]) == sorted(noticed)
    worker.call("settle", leases=[[acked, leases[acked], "ack"], [nacked, leases[nacked], "nack"]])
    assert [state(producer, job)["state"] for job in (acked, nacked)] == ["completed", "cancelled"]


def test_a_scheduled_job_waits_for_its_time(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    began = time.time()
    [job] = submit(producer, queue, delay=0.5)
    assert state(producer, job)["state"] == "scheduled"

    assert take(worker, queue)[0][0] == job
    assert time.time() - began >= 0.5


def test_full_caps_are_told_and_nothing_is_stored(make_broker: object) -> None:
    broker = make_broker("--max-waiting-jobs", "5")
    peer = broker.connect()
    assert all(type(job) is int for job in submit(peer, "q", 5))

    error = peer.call("submit", jobs=[{"task": "t"}])["error"]

    assert error["code"] == "FULL" and error["retry_after_s"] > 0 and broker.stats()["total"] == 5


def test_a_stopping_broker_says_so_and_keeps_leases(make_broker: object) -> None:
    broker = make_broker()
    producer, worker = broker.connect(), broker.connect(role="worker", instance=INSTANCE)
    [job] = submit(producer, "q")
    lease = take(worker, "q")[0][:2]

    broker.signal(signal.SIGTERM)
    assert worker.notice() == {"notice": "drain", "reason": "broker"} and producer.closes()
    broker.process.wait(20)
    broker.start()

    back = broker.connect(role="worker", instance=INSTANCE, leases=[lease])
    assert back.greeting["leases"] == ["OK"] and back.call("settle", leases=[[*lease, "ack"]])["outcomes"] == ["OK"]
    broker.restart()
    assert broker.connect(role="worker").call("settle", leases=[[*lease, "ack"]])["outcomes"] == ["REPEATED"]


def test_pages_queues_workers_and_stats_agree(make_broker: object) -> None:
    broker = make_broker()
    producer, worker = broker.connect(), broker.connect(role="worker", name="w")
    jobs = submit(producer, "a", 5) + submit(producer, "b", 2)
    [[job, *_]] = take(worker, "b")

    page = producer.call("jobs", limit=4)
    rest = producer.call("jobs", limit=4, before=page["next"])
    assert [view["id"] for view in page["jobs"] + rest["jobs"]] == sorted(jobs, reverse=True) and rest["next"] is None
    assert [view["id"] for view in producer.call("jobs", state="running")["jobs"]] == [job]
    assert job not in [view["id"] for view in producer.call("jobs", state="queued")["jobs"]]
    assert {entry["name"]: (entry["queued"], entry["running"]) for entry in producer.call("queues")["queues"]} == {"a": (5, 0), "b": (1, 1)}
    [shown] = producer.call("workers")["workers"]
    assert (shown["name"], shown["status"], shown["jobs"][0]["id"], shown["queues"]) == ("w", "busy", job, ["b"])
    stats = producer.call("stats")
    assert (stats["states"]["queued"], stats["states"]["running"], stats["total"], stats["busy"]) == (6, 1, 7, 1)


def test_an_answer_to_a_thousand_ids_can_be_read(producer: RawPeer, queue: str) -> None:
    jobs = submit(producer, queue, 1000)
    producer.call("cancel", jobs=jobs)

    assert len(producer.call("wait", jobs=jobs, wait=5)["jobs"]) == 1000
    assert isinstance(producer.frames, FrameReader) and producer.frames.failed is None


def test_jobs_that_only_the_store_has_are_cancelled_once_however_many_ask(make_broker: object) -> None:
    broker = make_broker("--window-jobs", "200")
    producer, other = broker.connect(), broker.connect()
    jobs = [job for _ in range(3) for job in submit(producer, "q", 1000)]

    asked = [(peer, peer.send("cancel", jobs=jobs[first:first + 1000])) for first in (1000, 2000) for peer in (producer, other)]
    outcomes = [outcome for peer, number in asked for outcome in peer.reply(number)["outcomes"]]

    refused = [outcome["code"] for outcome in outcomes if outcome != "cancelled"]
    assert outcomes.count("cancelled") == 2000 and refused == ["FINISHED"] * 2000
    stats = broker.stats()
    assert (stats["queued"], stats["cancelled"]) == (1000, 2000)
    broker.restart()
    assert (broker.stats()["queued"], broker.stats()["cancelled"]) == (1000, 2000)


def test_looking_at_jobs_does_not_bring_their_payloads_into_memory(make_broker: object) -> None:
    broker = make_broker("--window-bytes", str(4 * 2**20), "--window-jobs", "100")
    producer = broker.connect()
    jobs = [job for _ in range(50) for job in submit(producer, "q", 3, payload=bytes(2**20))]
    before = memory_kib(broker)

    assert producer.call("wait", jobs=jobs)["jobs"] == []
    assert [view["payload_bytes"] for view in producer.call("get", jobs=jobs)["jobs"]] == [2**20] * 150
    whole = producer.call("get", jobs=jobs, payload=True)["jobs"]

    assert len([view for view in whole if "state" in view]) in (1, 2)
    assert {view["error"]["code"] for view in whole if "state" not in view} == {"TOO_LARGE"}
    assert memory_kib(broker) - before < 60 * 1024


def memory_kib(broker: BrokerProcess) -> int:
    with open(f"/proc/{broker.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def test_a_result_of_a_thousand_is_found_in_time_also_from_the_store(make_broker: object) -> None:
    broker = make_broker("--window-jobs", "200")
    producer, worker = broker.connect(), broker.connect(role="worker")
    jobs = submit(producer, "q", 1000)
    waiting = producer.send("wait", jobs=jobs[500:], wait=30)

    while taken := take(worker, "q", 300, wait=0):
        worker.call("settle", leases=[[job, fence, "ack", b"\x01"] for job, fence, *_ in taken])

    assert producer.reply(waiting)["jobs"]
    broker.restart()
    assert len(broker.connect().call("wait", jobs=jobs, wait=30)["jobs"]) == 1000


def shape(value: object) -> object:
    """Return what keys a message has, down to the maps in its lists (of which the first speaks for all)."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [shape(value[0])]
    return None


def test_answers_have_the_fields_that_the_vectors_show(make_broker: object) -> None:
    vectors = runpy.run_path(str(ROOT / "tests" / "vectors" / "make_vectors.py"))["MESSAGES"]
    broker = make_broker()
    producer, worker = broker.connect(), broker.connect(role="worker", tasks=["t"])
    ended, job = submit(producer, "q", 2)
    [first] = take(worker, "q")
    worker.call("settle", leases=[[ended, first[1], "ack", b"\x01"]])
    reserved = worker.call("reserve", n=1, tasks=["t"], wait=5)
    lease = reserved["jobs"][0][:2]
    producer.call("cancel", jobs=[job])
    answers = {
        "hello": broker.connect(instance=INSTANCE, leases=[[1, 1]]).greeting | {"leases": ["OK"]}, "reserve": reserved,
        "get": producer.call("get", jobs=[ended]), "heartbeat": worker.call("heartbeat", leases=[lease]), "ping": producer.call("ping"),
        "extend": worker.call("extend", **{"leases": [lease], "for": 1}), "queues": producer.call("queues"),
        "workers": producer.call("workers"), "stats": producer.call("stats"), "subscribe": producer.call("subscribe"), "bye": worker.call("bye")}

    for verb, answer in answers.items():
        assert shape(answer) == shape(vectors[f"{verb}_reply"][1]), verb
    assert shape(producer.call("jobs", limit=1)) | {"jobs": None} == shape(vectors["jobs_reply"][1])
    assert shape(producer.call("submit", jobs=[{"task": "t"}])) == shape(vectors["submit_reply"][1])


@pytest.mark.parametrize(("verb", "fields", "field"), [
    ("cancel", {"jobs": [0]}, "jobs"), ("cancel", {"jobs": [2**53]}, "jobs"), ("get", {"jobs": [1], "payload": 1}, "payload"),
    ("wait", {"jobs": [1], "wait": True}, "wait"), ("wait", {"jobs": [1], "wait": float("nan")}, "wait"),
    ("wait", {"jobs": [1], "wait": -1}, "wait"), ("reserve", {}, "n"), ("reserve", {"n": 1001}, "n"), ("reserve", {"n": -1}, "n"),
    ("reserve", {"n": 1, "tasks": ["a b"]}, "tasks"), ("reserve", {"n": 1, "queues": "q"}, "queues"),
    ("reserve", {"n": 1, "wait": 60.5}, "wait"), ("settle", {"leases": []}, "leases"), ("heartbeat", {"leases": [[1]]}, "leases"),
    ("heartbeat", {"leases": [[0, 1]]}, "leases"), ("extend", {"leases": [[1, 1]]}, "for"), ("extend", {"leases": [], "for": 1}, "leases"),
    ("extend", {"leases": [[1, 1]], "for": 0.5}, "for"), ("extend", {"leases": [[1, 1]], "for": 86401}, "for"),
    ("jobs", {"limit": 0}, "limit"), ("jobs", {"before": 0}, "before"), ("jobs", {"worker": ""}, "worker"),
])
def test_the_bad_field_is_named(worker: RawPeer, verb: str, fields: dict, field: str) -> None:
    error = worker.call(verb, **fields)["error"]

    assert (error["code"], error["field"]) == ("INVALID", field) and error["message"].startswith(field)


@pytest.mark.parametrize(("item", "field"), [
    ({}, "task"), ({"task": "t", "payload": "text"}, "payload"), ({"task": "t", "encoding": "json"}, "encoding"),
    ({"task": "t", "queue": ""}, "queue"), ({"task": "t", "priority": 11}, "priority"), ({"task": "t", "priority": 5.0}, "priority"),
    ({"task": "t", "priority": True}, "priority"), ({"task": "t", "delay": -1}, "delay"), ({"task": "t", "delay": 31622401}, "delay"),
    ({"task": "t", "run_at": -1}, "run_at"), (["t"], "jobs"),
])
def test_the_bad_field_of_a_job_is_named_in_its_outcome(producer: RawPeer, item: object, field: str) -> None:
    [outcome] = producer.call("submit", jobs=[item])["jobs"]

    assert (outcome["code"], outcome["field"]) == ("INVALID", field)


@pytest.mark.parametrize(("verb", "fields", "code"), [
    ("nonsense", {}, "UNKNOWN_VERB"), ("hello", {"role": "client"}, "INVALID"), ("hello", {"version": 1, "role": "boss"}, "INVALID"),
    ("hello", {"version": 1, "role": "worker", "instance": bytes(16)}, "INVALID"), ("submit", {"jobs": [{"task": "t"}]}, "PROTOCOL_ERROR"),
])
def test_any_error_before_the_greeting_ends_the_connection(shared: BrokerProcess, verb: str, fields: dict, code: str) -> None:
    peer = RawPeer(shared, say_hello=False)

    assert peer.call(verb, **fields)["error"]["code"] == code and peer.closes()


def test_a_field_that_is_nil_or_unknown_changes_nothing(producer: RawPeer, queue: str) -> None:
    [job] = producer.call("submit", jobs=[{"task": "t", "queue": queue, "priority": None, "later": [1]}], submission=None, more={"a": 1})["jobs"]

    assert state(producer, job)["priority"] == 5


def test_a_frame_may_be_cut_anywhere(producer: RawPeer) -> None:
    frames = encode_frame({"verb": "ping", "id": 1}) + encode_frame({"verb": "ping", "id": 2})
    for cut in range(1, len(frames)):
        producer.sock.sendall(frames[:cut])
        producer.sock.sendall(frames[cut:])

        assert "now" in producer.reply(2) and "now" in producer.reply(1)


def test_a_later_request_may_be_answered_first(producer: RawPeer, worker: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    waiting = producer.send("wait", jobs=[job], wait=30)

    assert "now" in producer.call("ping") and not producer.messages

    [[_, fence, *_]] = take(worker, queue)
    worker.call("settle", leases=[[job, fence, "ack"]])
    assert producer.reply(waiting)["jobs"][0]["result"] is None


def test_a_wait_is_empty_at_its_end_and_may_name_a_job_twice(producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)

    assert producer.call("wait", jobs=[job, job], wait=0)["jobs"] == []
    began = time.monotonic()
    assert producer.call("wait", jobs=[job, job], wait=0.3)["jobs"] == []
    assert time.monotonic() - began >= 0.3
    waiting = producer.send("wait", jobs=[job, job], wait=30)
    producer.call("cancel", jobs=[job])
    assert [view["state"] for view in producer.reply(waiting)["jobs"]] == ["cancelled"]


def test_more_waits_than_told_are_full_and_the_others_go_on(shared: BrokerProcess, queue: str) -> None:
    peer = shared.connect()
    [job] = submit(peer, queue)
    open_waits = [peer.send("wait", jobs=[job], wait=30) for _ in range(DEFAULT_LIMITS.waits)]

    error = peer.call("wait", jobs=[job], wait=30)["error"]

    assert error["code"] == "FULL" and error["retry_after_s"] > 0
    peer.call("cancel", jobs=[job])
    assert all(peer.reply(number)["jobs"][0]["id"] == job for number in open_waits)


def test_too_many_look_ups_are_busy_and_the_connection_lives(shared: BrokerProcess) -> None:
    peer = shared.connect()
    frames = [encode_frame({"verb": "get", "id": number, "jobs": list(range(number * 10**9, number * 10**9 + 1000))})
              for number in range(101, 131)]
    peer.sock.sendall(b"".join(frames))

    answers = [peer.reply(number) for number in range(101, 131)]

    refused = [answer["error"] for answer in answers if "error" in answer]
    assert refused and all(error["code"] == "BUSY" and error["retry_after_s"] > 0 for error in refused)
    assert "now" in peer.call("ping")


def test_an_id_from_a_block_that_was_handed_out_is_gone(producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)

    [view] = producer.call("get", jobs=[job + 1])["jobs"]

    assert (view["id"], view["error"]["code"]) == (job + 1, "GONE")
    assert producer.call("cancel", jobs=[job + 1])["outcomes"][0]["code"] == "GONE"


def test_a_settle_answers_each_item_by_itself(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    jobs = submit(producer, queue, 3)
    (first, one, *_), (second, two, *_), (third, three, *_) = take(worker, queue, 3)

    outcomes = worker.call("settle", leases=[
        [first, one, "ack", bytes(DEFAULT_LIMITS.result + 1)], [second, two, "ack", None, None], [third, three, "ack"], [third, three],
        "no lease", [2**52, 1, "ack"], [first, one, "fail", None, {"retry": False}]])["outcomes"]

    assert [outcome if isinstance(outcome, str) else outcome["code"] for outcome in outcomes] == [
        "TOO_LARGE", "INVALID", "OK", "INVALID", "INVALID", "NOT_FOUND", "OK"]
    assert [state(producer, job)["state"] for job in jobs] == ["failed", "running", "completed"]
    assert state(producer, first)["error"] == {"name": "", "message": "", "traceback": ""}


def test_a_lease_that_is_not_held_can_be_neither_extended_nor_kept(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    [[_, fence, *_]] = take(worker, queue)

    kept, wrong, never = worker.call("extend", **{"leases": [[job, fence], [job, fence + 1], [2**52, 1]], "for": 60})["outcomes"]

    assert (kept, wrong["code"], never["code"]) == ("OK", "LEASE_LOST", "LEASE_LOST")
    assert worker.call("heartbeat", leases=[[job, fence], [job, fence + 1]])["lost"] == [[job, fence + 1]]


def test_a_lease_ends_at_its_own_deadline_whatever_heartbeats_say(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    lease = take(worker, queue)[0][:2]
    worker.call("extend", **{"leases": [lease], "for": 1})

    until(lambda: worker.call("heartbeat", leases=[lease]) and state(producer, job)["state"] == "queued", "its deadline passed", 10)

    assert state(producer, job)["crashes"] == 1


def test_the_fifth_crash_fails_a_job(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    for _ in range(5):
        [[_, fence, *_]] = take(worker, queue)
        worker.call("settle", leases=[[job, fence, "crash"]])

    view = state(producer, job)
    assert (view["state"], view["crashes"], view["error"]["name"]) == ("failed", 5, "CrashLoop")


def test_an_empty_list_of_queues_or_tasks_means_none(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    submit(producer, queue)

    assert worker.call("reserve", n=1, queues=[])["jobs"] == [] and worker.call("reserve", n=1, queues=[queue], tasks=[])["jobs"] == []
    assert len(take(worker, queue, wait=0)) == 1


def test_a_reserve_waits_as_long_as_it_says_and_gives_what_is_there(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    began = time.monotonic()
    assert take(worker, queue, wait=0.3) == [] and time.monotonic() - began >= 0.3
    jobs = submit(producer, queue, 3)

    assert [delivery[0] for delivery in take(worker, queue, 1000)] == jobs


def test_a_reserve_gives_better_priorities_first_and_no_more_bytes_than_told(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    late, early = submit(producer, queue, priority=10), submit(producer, queue, priority=1)
    large = submit(producer, queue, 2, payload=bytes(DEFAULT_LIMITS.reserve), priority=1)

    assert [[delivery[0] for delivery in take(worker, queue, 10)] for _ in range(3)] == [early, large[:1], [large[1]]]
    assert take(worker, queue, 10)[0][0] == late[0]


def test_the_same_instance_on_a_second_connection_ends_the_first(shared: BrokerProcess, producer: RawPeer, queue: str) -> None:
    instance = os.urandom(16)
    first = shared.connect(role="worker", instance=instance)
    [job] = submit(producer, queue)
    lease = take(first, queue)[0][:2]

    second = shared.connect(role="worker", instance=instance, leases=[lease])

    assert second.greeting["leases"] == ["OK"] and first.closes() and not first.messages
    assert second.call("settle", leases=[[*lease, "ack"]])["outcomes"] == ["OK"] and state(producer, job)["attempt"] == 1


def test_another_instance_cannot_take_a_lease_over(shared: BrokerProcess, producer: RawPeer, queue: str) -> None:
    holder = shared.connect(role="worker", instance=os.urandom(16))
    [job] = submit(producer, queue)
    lease = take(holder, queue)[0][:2]

    thief = shared.connect(role="worker", instance=os.urandom(16), leases=[lease])

    assert thief.greeting["leases"][0]["code"] == "LEASE_LOST"
    assert holder.call("settle", leases=[[*lease, "ack"]])["outcomes"] == ["OK"] and state(producer, job)["worker"] != thief.greeting["name"]


def test_a_worker_without_an_instance_can_still_settle_after_a_restart(make_broker: object) -> None:
    broker = make_broker()
    submit(broker.connect(), "q")
    lease = take(broker.connect(role="worker"), "q")[0][:2]

    broker.restart()

    assert broker.connect(role="worker").call("settle", leases=[[*lease, "ack"]])["outcomes"] == ["OK"]


def test_a_late_nack_is_repeated_and_what_was_given_back_cannot_be_acked(worker: RawPeer, producer: RawPeer, queue: str) -> None:
    [job] = submit(producer, queue)
    [[_, fence, *_]] = take(worker, queue)
    assert worker.call("settle", leases=[[job, fence, "nack"]])["outcomes"] == ["OK"]

    again, late = worker.call("settle", leases=[[job, fence, "nack"], [job, fence, "ack"]])["outcomes"]

    assert again == "REPEATED" and late["code"] == "LEASE_LOST" and state(producer, job)["requeues"] == 1


def test_requests_before_a_bye_are_done_though_their_replies_may_not_come(make_broker: object) -> None:
    broker = make_broker()
    peer = broker.connect()
    frames = [encode_frame({"verb": "submit", "id": number, "jobs": [{"task": "t"}]}) for number in (101, 102)]
    peer.sock.sendall(b"".join([*frames, encode_frame({"verb": "bye", "id": 103})]))

    assert peer.reply(103) == {"id": 103} and peer.closes()

    until(lambda: broker.stats()["queued"] == 2, "both are stored")


def test_who_ends_its_side_gets_no_more_replies(shared: BrokerProcess) -> None:
    peer = shared.connect()
    peer.send("wait", jobs=submit(peer, "half"), wait=30)

    socket.socket.shutdown(peer.sock, socket.SHUT_WR)

    assert peer.closes() and not peer.messages


def test_a_draining_broker_answers_open_reserves_with_nothing(make_broker: object) -> None:
    broker = make_broker()
    worker = broker.connect(role="worker")
    parked = worker.send("reserve", n=1, wait=60)

    broker.signal(signal.SIGTERM)

    assert worker.reply(parked)["jobs"] == [] and worker.notice() == {"notice": "drain", "reason": "broker"} and worker.closes()


@pytest.mark.parametrize("verb", ["get", "wait", "jobs"])
def test_an_answer_full_of_long_errors_keeps_to_the_frame_limit(make_broker: object, verb: str) -> None:
    broker = make_broker()
    producer, worker = broker.connect(), broker.connect(role="worker")
    jobs = submit(producer, "q", 300)
    for job, fence, *_ in take(worker, "q", 300):
        worker.call("settle", leases=[[job, fence, "fail", {"name": "E", "message": "m", "traceback": "t" * 16384}, {"retry": False}]])

    answer = producer.call(verb, limit=1000) if verb == "jobs" else producer.call(verb, jobs=jobs)

    assert 1 <= len([view for view in answer["jobs"] if "state" in view]) < 300
    assert len(encode_frame(answer)) - 4 <= producer.greeting["limits"]["frame"]
    assert verb != "jobs" or answer["next"] == answer["jobs"][-1]["id"]


def test_who_says_no_hello_or_half_a_frame_is_told_and_closed(slow_peers: tuple[RawPeer, RawPeer]) -> None:
    for peer in slow_peers:
        error = peer.reply(0)["error"]
        assert error["code"] == "DEADLINE" and error["message"] and peer.closes()
