"""What the Client promises, against a scripted broker: safe resend, sharing, typed errors, waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

import pytest

from greenroom.client import Client, DroppedHandle, SubmitError
from greenroom.errors import (BusyError, ConfigError, ConnectError, FinishedError, FullError, InvalidError, JobFailedError,
                              NotFoundError, StoreFullError, TooLargeError, UnknownOutcomeError, WaitTimeoutError)
from greenroom.job import OPTIONS, Option
from greenroom.protocol import MAX_REQUEST_VALUES, FrameReader, encode_frame, pack_value, unpack_value
from greenroom.task_functions import TaskFunction
from tests.scripted import Background, Peer, Program, ScriptedBroker


@pytest.fixture
def broker(certificates: Path) -> Iterator[ScriptedBroker]:
    scripted = ScriptedBroker(certificates)
    yield scripted
    scripted.close()


@pytest.fixture
def client(broker: ScriptedBroker) -> Iterator[Client]:
    with Client(broker.url, ca=broker.ca, timeout=10.0) as made:
        yield made


def view(job: int, state: str = "completed", **fields: object) -> dict:
    return {"id": job, "task": "t", "queue": "default", "priority": 5, "state": state, "result": pack_value(job * 2),
            "result_encoding": "msgpack", "error": None, **fields}


def submitting(broker: ScriptedBroker, client: Client, *arguments: object, **options: object) -> tuple[Background, Peer, dict]:
    call = Background(client.submit, *arguments, **options)
    peer = broker.greeted()
    return call, peer, peer.expect("submit")


def test_a_submit_carries_every_option_and_returns_a_handle(broker: ScriptedBroker, client: Client) -> None:
    call, peer, request = submitting(broker, client, "t", {"n": 1}, queue="q", priority=2, delay=1.5)
    assert request["jobs"] == [{"task": "t", "payload": pack_value({"n": 1}), "queue": "q", "priority": 2, "delay": 1.5}]
    assert len(request["submission"]) == 16
    peer.reply(request, jobs=[17])
    assert call.result().id == 17


def test_a_datetime_raw_bytes_and_huge_integers_become_what_the_wire_has(broker: ScriptedBroker, client: Client) -> None:
    call, peer, request = submitting(broker, client, "t", b"\xff", raw=True, run_at=datetime(2030, 1, 1, tzinfo=timezone.utc))
    assert request["jobs"] == [{"task": "t", "payload": b"\xff", "encoding": "raw", "run_at": 1893456000.0}]
    peer.reply(request, jobs=[1])
    call.result()
    call = Background(client.submit, "t", {"n": [2**89 - 1], "m": 2**64 - 1})
    request = peer.expect("submit")
    assert unpack_value(request["jobs"][0]["payload"]) == {"n": [str(2**89 - 1)], "m": 2**64 - 1}
    peer.reply(request, jobs=[2])
    call.result()


@pytest.mark.parametrize("options", [{"priority": 0}, {"priority": "1"}, {"queue": "a b"}, {"delay": -1}, {"payload": {1, 2}},
                                     {"payload": "text", "raw": True}, {"delay": 1, "run_at": 1}])
def test_a_bad_job_is_refused_here_and_nothing_is_sent(broker: ScriptedBroker, client: Client, options: dict) -> None:
    call = Background(client.submit, "t", **options)
    broker.greeted()
    with pytest.raises(InvalidError):
        call.result()


def test_a_lost_answer_is_asked_for_again_under_the_same_submission(broker: ScriptedBroker, client: Client) -> None:
    call, peer, first = submitting(broker, client, "t")
    peer.close()
    peer = broker.greeted()
    second = peer.expect("submit")
    assert (second["submission"], second["jobs"]) == (first["submission"], first["jobs"])
    peer.reply(second, jobs=[5], repeated=True)
    assert call.result().id == 5


def test_busy_and_unknown_are_tried_again_and_the_refused_frame_keeps_its_submission(broker: ScriptedBroker,
                                                                                     client: Client) -> None:
    call, peer, first = submitting(broker, client, "t")
    peer.refuse(first, "BUSY", retry_after_s=0.01)
    second = peer.expect("submit")
    peer.refuse(second, "UNKNOWN")
    third = peer.expect("submit")
    assert first["submission"] == second["submission"] == third["submission"]
    peer.reply(third, jobs=[5])
    assert call.result().id == 5


def test_an_answer_that_never_comes_is_an_unknown_outcome_and_endless_busy_is_busy(broker: ScriptedBroker,
                                                                                   client: Client) -> None:
    call, peer, request = submitting(broker, client, "t", answer_timeout=0.3)
    with pytest.raises(UnknownOutcomeError):
        call.result()
    call = Background(client.submit, "t", answer_timeout=0.3)
    request = peer.expect("submit")
    peer.refuse(request, "BUSY", retry_after_s=60)
    with pytest.raises(BusyError):
        call.result()


def test_a_schedule_is_never_run_twice_for_a_lost_answer(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.run_schedule, "night")
    peer = broker.greeted()
    peer.expect("schedule_run")
    peer.close()
    with pytest.raises(UnknownOutcomeError):
        call.result()

    call = Background(client.pause_schedule, "night", "why")  # what may be asked twice is
    peer = broker.greeted()
    peer.expect("schedule_pause")
    peer.close()
    peer = broker.greeted()
    peer.reply(peer.expect("schedule_pause"), schedule={"name": "night"})
    assert call.result() == {"name": "night"}


def test_full_is_told_at_once(broker: ScriptedBroker, client: Client) -> None:
    call, peer, request = submitting(broker, client, "t")
    peer.refuse(request, "FULL")
    with pytest.raises(FullError):
        call.result()


def full(**more: object) -> dict:
    return {"code": "FULL", "message": "the queue q is full", "field": "queue", "retry_after_s": 0.01, **more}


def test_what_finds_a_queue_full_waits_in_a_frame_of_its_own_and_nothing_more_is_read_meanwhile(broker: ScriptedBroker, client: Client) -> None:
    read: list[int] = []

    def jobs() -> Iterator[tuple[str, dict]]:
        for number in range(9000):
            read.append(number)
            yield "t", {"n": number}

    call = Background(client.submit_many, jobs(), on_full="wait")
    peer = broker.greeted()
    frames = [peer.expect("submit") for _ in range(4)]
    peer.reply(frames[0], jobs=[full(), *range(2, 1000), full()])
    again = peer.expect("submit")
    assert [unpack_value(job["payload"])["n"] for job in again["jobs"]] == [0, 999] and again["submission"] != frames[0]["submission"]
    peer.refuse(again, "FULL", retry_after_s=0.01)
    third = peer.expect("submit")
    assert third["jobs"] == again["jobs"] and len(read) <= 5000
    peer.reply(third, jobs=[1, 1000])
    first = 1001
    for frame in chain(frames[1:], (peer.expect("submit") for _ in range(5))):
        peer.reply(frame, jobs=list(range(first, first + len(frame["jobs"]))))
        first += len(frame["jobs"])
    assert [handle.id for handle in call.result()] == list(range(1, 9001)) and client.dropped == 0


def test_who_waited_long_enough_for_room_gets_full_and_the_rest_is_not_read(broker: ScriptedBroker, client: Client) -> None:
    call, peer, request = submitting(broker, client, "t", on_full="wait", full_timeout=0.1)
    peer.reply(request, jobs=[full(retry_after_s=60)])
    peer.reply(peer.expect("submit"), jobs=[full()])  # the last try, when its time is over
    with pytest.raises(FullError, match="the queue q is full"):
        call.result()

    read: list[int] = []
    call = Background(client.submit_many, (read.append(number) or ("t", None) for number in range(9000)), on_full="wait", full_timeout=0)
    peer.reply(peer.expect("submit"), jobs=[*range(1, 1000), full()])
    for _ in range(3):
        peer.reply(peer.expect("submit"), jobs=[full()] * 1000)
    with pytest.raises(SubmitError) as caught:
        call.result()
    assert (caught.value.code, len(caught.value.handles), len(caught.value.outcomes)) == ("FULL", 999, 4000)


def test_a_job_that_is_to_be_dropped_has_a_handle_that_says_so_and_is_counted(broker: ScriptedBroker, client: Client) -> None:
    call, peer, request = submitting(broker, client, "t", on_full="drop")
    peer.refuse(request, "STORE_FULL", retry_after_s=10.0)
    handle = call.result()
    assert isinstance(handle, DroppedHandle) and handle.is_dropped and handle.id == 0 and client.dropped == 1
    for ask in (handle.result, handle.status, handle.cancel, handle.explain, lambda: handle.change(priority=1)):
        with pytest.raises(StoreFullError):
            ask()

    call = Background(client.submit_many, [("t", None)] * 3, on_full="drop")
    peer.reply(peer.expect("submit"), jobs=[7, full(), 8])
    assert [(made.id, made.is_dropped) for made in call.result()] == [(7, False), (0, True), (8, False)] and client.dropped == 2
    call = Background(client.submit, "t", on_full="drop")
    peer.reply(peer.expect("submit"), jobs=[{"code": "INVALID", "message": "no"}])
    with pytest.raises(InvalidError):
        call.result()


def test_a_client_has_a_way_for_all_its_submits_and_a_task_one_of_its_own(broker: ScriptedBroker) -> None:
    greet = TaskFunction(lambda name: name, "greet", context=None, options={})
    with Client(broker.url, ca=broker.ca, on_full="drop") as client:
        call = Background(greet.using(client=client).enqueue, "Ann")
        peer = broker.greeted()
        peer.reply(peer.expect("submit"), jobs=[full()])
        assert call.result().is_dropped
        call = Background(greet.using(client=client, on_full="wait", full_timeout=5.0).map, ["Bob", "Cid"])
        peer.reply(peer.expect("submit"), jobs=[full(), 7])
        peer.reply(peer.expect("submit"), jobs=[8])
        assert [handle.id for handle in call.result()] == [8, 7]
        call = Background(client.submit, "t", on_full="raise")
        peer.reply(peer.expect("submit"), jobs=[full()])
        with pytest.raises(FullError):
            call.result()
    for bad in (lambda: Client(broker.url, ca=broker.ca, on_full="ignore"), lambda: greet.using(on_full="ignore"),
                lambda: client.submit("t", on_full="no"), lambda: client.submit("t", full_timeout=-1), lambda: client.submit_many([], on_full=1)):
        with pytest.raises(ValueError):
            bad()


def test_full_after_a_lost_answer_is_asked_again_under_the_same_submission(broker: ScriptedBroker, client: Client) -> None:
    call, peer, first = submitting(broker, client, "t", on_full="wait")
    peer.close()
    peer = broker.greeted()
    second = peer.expect("submit")
    peer.refuse(second, "FULL", retry_after_s=0.01)
    third = peer.expect("submit")
    assert first["submission"] == second["submission"] == third["submission"]
    peer.reply(third, jobs=[5])
    assert call.result().id == 5


def test_many_jobs_go_in_several_frames_that_do_not_wait_for_each_other(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.submit_many, (("t", {"n": number}) for number in range(2500)), priority=3)
    peer = broker.greeted()
    requests = [peer.expect("submit") for _ in range(3)]  # none is answered yet
    assert [len(request["jobs"]) for request in requests] == [1000, 1000, 500]
    assert len({request["submission"] for request in requests}) == 3
    assert requests == sorted(requests, key=lambda request: request["submission"][:6])
    assert all(job["priority"] == 3 for request in requests for job in request["jobs"])
    for base, request in reversed(list(zip((0, 1000, 2000), requests))):
        peer.reply(request, jobs=list(range(base + 1, base + 1 + len(request["jobs"]))))
    assert [handle.id for handle in call.result()] == list(range(1, 2501))


def test_frames_are_cut_by_bytes_too(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.submit_many, [{"task": "t", "payload": bytes(400_000), "raw": True}] * 5)
    peer = broker.greeted()
    sizes = []
    while sum(sizes) < 5:
        request = peer.expect("submit")
        sizes.append(len(request["jobs"]))
        peer.reply(request, jobs=list(range(1, sizes[-1] + 1)))
    assert sizes == [2, 2, 1]
    assert len(call.result()) == 5


def test_frames_are_cut_by_long_options_too(broker: ScriptedBroker, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "retry_on", Option("retry_on", "list", lambda value: value, None, ""))
    names = [f"{number:0>128}" for number in range(20)]
    call = Background(client.submit_many, [("t", None)] * 1000, retry_on=names)
    peer = broker.greeted()
    sizes = []
    while sum(sizes) < 1000:
        request = peer.expect("submit")
        sizes.append(len(request["jobs"]))
        peer.reply(request, jobs=list(range(1, sizes[-1] + 1)))
    assert sizes == [335, 335, 330] and request["jobs"][0] == {"task": "t", "retry_on": names}
    assert len(call.result()) == 1000


def test_jobs_with_many_options_come_in_frames_that_a_broker_takes(broker: ScriptedBroker, client: Client) -> None:
    options = {"attempts": 3, "backoff": "fixed", "backoff_base": 1, "backoff_cap": 9, "jitter": False, "retry_on": ["A", "B", "C"],
               "retry_never": ["D"], "expires_in": 5, "timeout": 5, "soft_timeout": 4, "unique_for": 5, "queue": "q", "priority": 1, "delay": 1}
    call = Background(client.submit_many, [{"task": "t", "payload": {}, "unique_key": str(number)} for number in range(2000)], **options)
    peer = broker.greeted()
    sizes = []
    while sum(sizes) < 2000:
        request = peer.expect("submit")
        sizes.append(len(request["jobs"]))
        reader = FrameReader(max_values=MAX_REQUEST_VALUES)
        assert reader.feed(encode_frame(request)) and reader.failed is None
        peer.reply(request, jobs=list(range(1, sizes[-1] + 1)))
    assert len(sizes) == 4 and len(call.result()) == 2000


def test_an_option_that_does_not_exist_is_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match="submit has no option 'colour'"):
        client.submit("t", {}, colour="red")
    with pytest.raises(TypeError, match="submit_many has no option 'colour'"):
        client.submit_many([], colour="red")


def test_refused_jobs_do_not_cost_the_accepted_handles(broker: ScriptedBroker, client: Client) -> None:
    jobs = [("t", {}), {"task": "t", "priority": 99}, ("t", {}), {"task": "t", "payload": bytes(2**20 + 1), "raw": True}, ("t", {})]
    call = Background(client.submit_many, jobs)
    peer = broker.greeted()
    request = peer.expect("submit")
    assert len(request["jobs"]) == 3
    peer.reply(request, jobs=[7, {"code": "FULL", "message": "no"}, 9])
    with pytest.raises(SubmitError) as caught:
        call.result()
    shapes = [getattr(outcome, "id", type(outcome)) for outcome in caught.value.outcomes]
    assert shapes == [7, InvalidError, FullError, TooLargeError, 9]
    assert [handle.id for handle in caught.value.handles] == [7, 9]


def test_a_frame_that_fails_ends_it_and_keeps_what_was_accepted(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.submit_many, (("t", {}) for _ in range(10_000)))
    peer = broker.greeted()
    requests = [peer.expect("submit") for _ in range(4)]
    peer.refuse(requests[1], "STORE_FULL")
    peer.reply(requests[0], jobs=list(range(1, 1001)))
    for request in requests[2:]:
        peer.refuse(request, "STORE_FULL")
    with pytest.raises(SubmitError) as caught:
        call.result()
    assert caught.value.code == "STORE_FULL"
    assert [handle.id for handle in caught.value.handles] == list(range(1, 1001))
    assert len(caught.value.outcomes) == 4000


def test_an_iterable_that_breaks_keeps_what_was_accepted(broker: ScriptedBroker, client: Client) -> None:
    def jobs() -> Iterator[tuple]:
        yield "t", {}
        raise KeyError("mine")
    call = Background(client.submit_many, jobs())
    peer = broker.greeted()
    peer.reply(peer.expect("submit"), jobs=[4])
    with pytest.raises(SubmitError, match="KeyError") as caught:
        call.result()
    assert [handle.id for handle in caught.value.handles] == [4]


def test_result_waits_at_the_broker_and_decodes(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.handle(21).result, 5.0)
    peer = broker.greeted()
    request = peer.expect("wait")
    assert request["jobs"] == [21] and request["wait"] == 60
    peer.reply(request, jobs=[])
    peer.reply(peer.expect("wait"), jobs=[view(21)])
    assert call.result() == 42


def test_results_that_are_no_result_are_typed_errors(broker: ScriptedBroker, client: Client) -> None:
    failed = view(1, "failed", result=None, error={"name": "ValueError", "message": "bad", "traceback": "Trace"})
    answers = [(failed, JobFailedError), (view(1, "cancelled", result=None), JobFailedError),
               ({"id": 1, "error": {"code": "NOT_FOUND", "message": "no"}}, NotFoundError)]
    peer = None
    for answer, error_class in answers:
        call = Background(client.handle(1).result, 5.0)
        peer = peer or broker.greeted()
        peer.reply(peer.expect("wait"), jobs=[answer])
        with pytest.raises(error_class) as caught:
            call.result()
        if answer is failed:
            assert caught.value.job["error"]["traceback"] == "Trace" and "ValueError: bad" in caught.value.message
    call = Background(client.handle(1).result, 0.2)
    peer.expect("wait")
    with pytest.raises(WaitTimeoutError):
        call.result()


def test_raw_results_stay_bytes(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.handle(1).result, 5.0)
    peer = broker.greeted()
    peer.reply(peer.expect("wait"), jobs=[view(1, result=b"\xff", result_encoding="raw")])
    assert call.result() == b"\xff"


def serve_waits(peer: Peer, finished: set[int], stop: threading.Event, most_open: list[int]) -> None:
    """Answer wait requests for finished ids, ten at a time."""
    opened: list[dict] = []
    while not stop.is_set():
        try:
            message = peer.next(0.02)
        except AssertionError:
            message = {}
        if message is None:
            return
        if message.get("verb") == "wait":
            opened.append(message)
        most_open.append(len(opened))
        for request in list(opened):
            ready = [job for job in request["jobs"] if job in finished][:10]
            if ready:
                opened.remove(request)
                peer.reply(request, jobs=[view(job) for job in ready])
            elif request["wait"] < 1:
                opened.remove(request)
                peer.reply(request, jobs=[])


def test_hundreds_of_threads_wait_with_few_open_requests(broker: ScriptedBroker, client: Client) -> None:
    calls = [Background(client.handle(number).result, 20.0) for number in range(1, 301)]
    peer = broker.greeted()
    stop, most_open = threading.Event(), [0]
    finished = set(range(201, 301))  # those that came last, behind 200 that stay unfinished
    serving = Background(serve_waits, peer, finished, stop, most_open)
    assert [call.result(20.0) for call in calls[200:]] == [number * 2 for number in range(201, 301)]
    finished.update(range(1, 201))
    assert [call.result(20.0) for call in calls[:200]] == [number * 2 for number in range(1, 201)]
    assert max(most_open) <= 64
    stop.set()
    serving.result()


def test_thousands_of_ids_are_yielded_as_they_finish(broker: ScriptedBroker, client: Client) -> None:
    call = Background(lambda: [found["id"] for found in client.wait(range(1, 4701), 20.0)])
    peer = broker.greeted()
    first = [peer.expect("wait") for _ in range(34)]  # the oldest in small requests, the others in few
    assert [len(request["jobs"]) for request in first] == [100] * 32 + [1000, 500]
    peer.reply(first[33], jobs=[view(job) for job in first[33]["jobs"]])
    peer.reply(first[0], jobs=[view(job) for job in first[0]["jobs"][:60]])
    rest = peer.expect("wait")
    assert rest["jobs"] == first[0]["jobs"][60:]
    for request in (rest, *first[1:33]):
        peer.reply(request, jobs=[view(job) for job in request["jobs"]])
    assert sorted(call.result()) == list(range(1, 4701))


def test_waiting_survives_a_lost_connection(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.handle(3).result, 10.0)
    peer = broker.greeted()
    peer.expect("wait")
    peer.close()
    peer = broker.greeted()
    peer.reply(peer.expect("wait"), jobs=[view(3)])
    assert call.result() == 6


def test_reads_survive_a_lost_connection_and_raise_typed_errors(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.stats)
    broker.greeted().close()
    peer = broker.greeted()
    peer.reply(peer.expect("stats"), workers=2)
    assert call.result() == {"workers": 2}
    call = Background(client.queues)
    peer.refuse(peer.expect("queues"), "INVALID", field="x")
    with pytest.raises(InvalidError):
        call.result()


def test_status_get_and_cancel_have_an_outcome_for_each_job(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.get, [1, 2, 3])
    peer = broker.greeted()
    too_large = {"id": 2, "error": {"code": "TOO_LARGE", "message": "alone"}}
    peer.reply(peer.expect("get"), jobs=[view(1), too_large, {"id": 3, "error": {"code": "TOO_LARGE", "message": "alone"}}])
    request = peer.expect("get")
    assert request["jobs"] == [2, 3]
    peer.reply(request, jobs=[view(2), {"id": 3, "error": {"code": "GONE", "message": "pruned"}}])
    found = call.result()
    assert [item["id"] for item in found] == [1, 2, 3] and found[2]["error"]["code"] == "GONE"

    call = Background(client.handle(9).status)
    peer.reply(peer.expect("get"), jobs=[{"id": 9, "error": {"code": "NOT_FOUND", "message": "no"}}])
    with pytest.raises(NotFoundError):
        call.result()

    call = Background(client.cancel, [1, 2])
    peer.reply(peer.expect("cancel"), outcomes=["requested", {"code": "FINISHED", "message": "late"}])
    first, second = call.result()
    assert first == "requested" and isinstance(second, FinishedError)


def test_jobs_are_listed_page_by_page(broker: ScriptedBroker, client: Client) -> None:
    call = Background(lambda: [found["id"] for found in client.jobs(state="completed", queue="q", limit=250)])
    peer = broker.greeted()
    request = peer.expect("jobs")
    assert (request["state"], request["queue"], request["limit"], request.get("before")) == ("completed", "q", 200, None)
    peer.reply(request, jobs=[], next=900)  # a page may be empty and still have a next
    request = peer.expect("jobs")
    assert request["before"] == 900
    peer.reply(request, jobs=[view(job) for job in range(899, 699, -1)], next=700)
    request = peer.expect("jobs")
    assert request["limit"] == 50
    peer.reply(request, jobs=[view(699)], next=None)
    assert call.result() == list(range(899, 698, -1))


def test_the_first_connection_fails_at_once_and_later_outages_are_ridden_out(certificates: Path) -> None:
    broker = ScriptedBroker(certificates)
    with Client(broker.url, ca=broker.ca, timeout=10.0) as client:
        call = Background(client.ping)
        peer = broker.greeted()
        peer.reply(peer.next(), now=1.0)
        call.result()
        broker.close()
        call = Background(client.stats)
        again = ScriptedBroker(certificates, port=broker.port)
        peer = again.greeted()
        peer.reply(peer.expect("stats"), workers=0)
        assert call.result() == {"workers": 0}
        again.close()
        with Client(broker.url, ca=broker.ca) as other, pytest.raises(ConnectError):
            Background(other.stats).result(5.0)


def test_closing_says_bye_and_ends_waiting_calls(broker: ScriptedBroker, client: Client) -> None:
    call = Background(client.stats)
    peer = broker.greeted()
    peer.expect("stats")
    client.close()
    assert peer.expect("bye")
    with pytest.raises(ConnectError):
        call.result()
    with pytest.raises(ConnectError, match="closed"):
        client.stats()


def test_bad_settings_are_sentences(certificates: Path) -> None:
    for options in ({"url": "http://x"}, {"ca": "/nowhere/ca.crt"}, {"timeout": 0}, {"cert": str(certificates / "ca.crt")}):
        with pytest.raises(ConfigError):
            Client(**{"url": "greenroom://h", "ca": str(certificates / "ca.crt"), **options})


FORKING = """
import os, sys
from greenroom.client import Client
client = Client(sys.argv[1], ca=sys.argv[2])
client.ping()
child = os.fork()
if child == 0:
    client.ping()
    os._exit(0)
code = os.waitpid(child, 0)[1]
client.ping()
print("parent and child done", code, flush=True)
"""


def test_a_forked_child_makes_a_connection_of_its_own(broker: ScriptedBroker) -> None:
    program = Program("-c", FORKING, broker.url, broker.ca)
    try:
        parent = broker.greeted()
        parent.reply(parent.next(), now=1.0)
        child = broker.greeted()
        child.reply(child.next(), now=1.0)
        parent.reply(parent.next(), now=1.0)  # the child has not disturbed it
        program.line_with("parent and child done 0")
        assert program.end() == 0
    finally:
        program.kill()
