"""The largest requests are handled in steps with looks at the clock between them, and are whole all the same (reliability G13, S26)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import gevent
import pytest

from greenroom import dispatch as dispatch_module
from greenroom import verbs, views
from greenroom.clock import Clock
from greenroom.dispatch import Dispatch
from greenroom.engine import Engine
from greenroom.errors import GreenroomError
from greenroom.job import SMALL_BYTES, parse_new_job
from greenroom.lanes import Lane, Window
from greenroom.leases import Caps, Timing
from greenroom.protocol import parse_request
from greenroom.sessions import Session
from greenroom.stores import Retention
from greenroom.stores.memory import MemoryStore

DEADLINE_S = 20.0
SUBMISSION = b"s" * 16


class Caller:
    """A connection without a socket: it records its answers."""

    keys = count(1)

    def __init__(self, dispatch: Dispatch, role: str = "client") -> None:
        self.session = Session(next(self.keys), role=role, name="peer", instance=None, now=dispatch.now(), conn=self)
        self.is_open = True
        self.open_waits: set = set()
        self.held_deliveries = 0
        self.deliveries_written = True
        self.answers: dict[int, dict | GreenroomError] = {}
        self._dispatch = dispatch
        self._ids = count(1)
        dispatch.engine.open_session(self.session, [], dispatch.now())
        dispatch.after_call()

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        assert request_id not in self.answers
        self.answers[request_id] = answer

    def notify(self, notice: dict) -> None:
        pass

    def flush(self) -> None:
        pass

    def ask(self, verb: str, **fields: object) -> int:
        """Run a request's handler in this greenlet."""
        request = parse_request({"verb": verb, "id": next(self._ids), **fields})
        self._dispatch.begin_turn()
        try:
            verbs.HANDLERS[verb](self._dispatch, self, request)
        except GreenroomError as exc:
            self.answer(request.id, exc)
        return request.id

    def call(self, verb: str, **fields: object) -> dict | GreenroomError:
        """Run a request and return its answer."""
        number = self.ask(verb, **fields)
        until(lambda: number in self.answers)
        return self.answers[number]


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(DEADLINE_S, AssertionError("not in time")):
        while not condition():
            gevent.sleep(0.001)


def make_dispatch(caps: Caps = Caps()) -> Dispatch:
    store = MemoryStore(Retention())
    engine = Engine(caps, Timing(), Window())
    dispatch = Dispatch(engine, store, Clock(), pytest.fail, None)
    engine.restore(store.open(), dispatch.now(), 60.0)
    dispatch.start()
    return dispatch


@pytest.fixture
def dispatch(request: pytest.FixtureRequest) -> Iterator[Dispatch]:
    made = make_dispatch(getattr(request, "param", Caps()))
    yield made
    made.stop(5.0)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody lets the others have the hub at every look."""
    monkeypatch.setattr(dispatch_module, "TURN_S", -1.0)


class Meter:
    """Counts items between two looks at the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.items = self.most = self.looks = 0
        monkeypatch.setattr(Dispatch, "breathe_if_due", lambda dispatch: self.look())

    def look(self) -> None:
        self.looks += 1
        self.items = 0

    def count(self, owner: object, name: str, size: Callable[..., int] = lambda *args: 1) -> None:
        function = getattr(owner, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.items += size(*args)
            self.most = max(self.most, self.items)
            return function(*args, **kwargs)
        self._patch.setattr(owner, name, counted)


def job(queue: str = "q", **fields: object) -> dict:
    return {"task": "t", "queue": queue, "payload": b"x", **fields}


def held(dispatch: Dispatch, worker: Caller, queue: str) -> list[list[int]]:
    """Submit and reserve 1,000 jobs; returns their leases."""
    Caller(dispatch).call("submit", jobs=[job(queue)] * 1000)
    leases: list[list[int]] = []
    while len(leases) < 1000:
        leases += [delivery[:2] for delivery in worker.call("reserve", n=1000, queues=[queue])["jobs"]]
    return leases


def test_a_thousand_of_anything_are_handled_a_hundred_between_two_looks(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    client, worker = Caller(dispatch), Caller(dispatch, "worker")
    ids = client.call("submit", jobs=[job()] * 1000)["jobs"]
    leases = held(dispatch, worker, "held")
    meter = Meter(monkeypatch)
    for owner, name in ((verbs, "parse_new_job"), (verbs, "parse_settle"), (views, "view"), (views, "_worker")):
        meter.count(owner, name)
    fetch = dispatch.batches.fetch
    monkeypatch.setattr(dispatch.batches, "fetch", lambda now: (meter.look(), fetch(now)))  # the pump breathes after each
    meter.count(dispatch.engine, "submit", lambda items, now, find: len(items))
    meter.count(dispatch.engine, "settle", lambda items, now, loaded: len(items))
    asked = [("submit", client, {"jobs": [job()] * 1000}), ("submit", client, {"jobs": [job()] * 1000, "submission": SUBMISSION}),
             ("submit", client, {"jobs": [{}] * 1000}), ("get", client, {"jobs": ids, "payload": True}),
             ("settle", worker, {"leases": [[*lease, "ack", b"r"] for lease in leases]}), ("settle", worker, {"leases": [[]] * 1000}),
             ("wait", client, {"jobs": [number for number, _ in leases]}), ("jobs", client, {"limit": 1000}),
             ("cancel", client, {"jobs": ids}), ("cancel", client, {"jobs": list(range(2**50, 2**50 + 1000))})]

    for verb, caller, fields in asked:
        meter.items = meter.most = meter.looks = 0
        answer = caller.call(verb, **fields)
        print(f"{verb}: {meter.looks} looks, {meter.most} items between two")
        assert not isinstance(answer, GreenroomError)
        # Two kinds of work may share a turn (a job is checked, then accepted), and `took` handles what the pump loaded.
        assert meter.looks >= 9 and meter.most <= 2 * verbs.STEP_ITEMS, (verb, meter.looks, meter.most)


def test_one_delivery_has_a_bounded_number_of_jobs(dispatch: Dispatch) -> None:
    client, worker = Caller(dispatch), Caller(dispatch, "worker")
    waiting = worker.ask("reserve", n=1000, queues=["parked"], wait=60)
    client.call("submit", jobs=[job("parked")] * 1000)
    until(lambda: waiting in worker.answers)

    first = len(worker.answers[waiting]["jobs"])
    second = len(worker.call("reserve", n=1000, queues=["parked"])["jobs"])

    assert 0 < first <= second == dispatch.engine.caps.reserve_jobs


def test_a_submit_of_a_thousand_is_one_transaction_however_often_it_breathes(dispatch: Dispatch, restless: None) -> None:
    before = dispatch.batches.rows
    others = [gevent.spawn(Caller(dispatch).call, "submit", jobs=[job("other")]) for _ in range(20)]
    large = gevent.spawn(Caller(dispatch).call, "submit", jobs=[job("large")] * 1000, submission=SUBMISSION)
    seen: set[int] = set()
    while not large.ready():
        seen.add(_stored(dispatch, "large"))
        gevent.sleep(0)
    gevent.joinall([*others, large], timeout=DEADLINE_S)
    until(lambda: dispatch.batches.is_idle)

    assert seen | {_stored(dispatch, "large")} <= {0, 1000} and len(large.value["jobs"]) == 1000
    assert dispatch.batches.rows - before == 1000 + 1 + 20


def _stored(dispatch: Dispatch, queue: str) -> int:
    """Count the committed jobs of a queue, as a reader of the store sees them."""
    # The counters are put in place as a whole when a commit is over; its rows one by one, in another thread.
    return sum(lane.queued for lane in dispatch.store._seen_counts if lane.queue == queue)


def test_a_submit_whose_connection_dies_in_the_middle_is_stored_whole_and_remembered(dispatch: Dispatch, restless: None) -> None:
    jobs = [job()] * 1000
    dying = gevent.spawn(Caller(dispatch).ask, "submit", jobs=jobs, submission=SUBMISSION)
    until(lambda: dispatch.batches.units)
    dying.kill()

    answer = Caller(dispatch).call("submit", jobs=jobs, submission=SUBMISSION)

    assert answer["repeated"] is True and len(set(answer["jobs"])) == 1000 and dispatch.engine.waiting == 1000
    assert dispatch.batches.units == 0


def test_the_same_submission_at_the_same_time_is_stored_once(dispatch: Dispatch, restless: None) -> None:
    jobs = [job()] * 1000
    asking = [gevent.spawn(Caller(dispatch).call, "submit", jobs=jobs, submission=SUBMISSION) for _ in range(5)]
    asking.append(gevent.spawn(Caller(dispatch).call, "submit", jobs=jobs[:999], submission=SUBMISSION))
    gevent.joinall(asking, timeout=DEADLINE_S, raise_error=True)

    answers = [greenlet.value for greenlet in asking]
    stored = [answer for answer in answers if not isinstance(answer, GreenroomError)]
    assert sum("repeated" not in answer for answer in stored) == 1 and len({tuple(answer["jobs"]) for answer in stored}) == 1
    assert [answer.code for answer in answers if isinstance(answer, GreenroomError)] in (["KEY_CONFLICT"], ["KEY_CONFLICT"] * 5)
    assert dispatch.engine.waiting == len(stored[0]["jobs"])


@pytest.mark.parametrize("dispatch", [Caps(waiting_jobs=1500)], indirect=True)
def test_a_submit_that_loses_its_room_in_the_middle_is_refused_item_by_item_from_there(dispatch: Dispatch, restless: None) -> None:
    large = gevent.spawn(Caller(dispatch).call, "submit", jobs=[job()] * 1000)
    until(lambda: dispatch.batches.units)
    dispatch.engine.submit([parse_new_job(job("other"), 100)] * 800, dispatch.now())
    dispatch.after_call()
    large.join(DEADLINE_S)

    outcomes = large.value["jobs"]
    accepted = [outcome for outcome in outcomes if type(outcome) is int]
    assert 0 < len(accepted) <= 700 and outcomes[:len(accepted)] == accepted
    assert {outcome["code"] for outcome in outcomes[len(accepted):]} == {"FULL"}
    refused = Caller(dispatch).call("submit", jobs=[job()] * 1000)
    assert refused.code == "FULL" and dispatch.engine.waiting == 800 + len(accepted)


def test_large_submits_without_end_let_small_ones_commit(dispatch: Dispatch, restless: None) -> None:
    going = True

    def flood() -> None:
        caller = Caller(dispatch)
        while going:
            caller.call("submit", jobs=[job("flood")] * 300)

    floods = [gevent.spawn(flood) for _ in range(4)]
    until(lambda: dispatch.batches.units)
    for _ in range(5):
        assert Caller(dispatch).call("submit", jobs=[job("small")])["jobs"]
    going = False
    gevent.joinall(floods, timeout=DEADLINE_S, raise_error=True)


def test_at_the_cap_of_lanes_a_submit_for_new_ones_does_not_look_at_all_lanes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = make_dispatch(Caps(lanes=500))
    client = Caller(dispatch)
    client.call("submit", jobs=[job(f"q{number}") for number in range(500)])
    looked = []
    is_idle = Lane.is_idle
    monkeypatch.setattr(Lane, "is_idle", property(lambda lane: (looked.append(1), is_idle.fget(lane))[1]))

    outcomes = client.call("submit", jobs=[job(f"new{number}") for number in range(1000)])["jobs"]

    assert {outcome["code"] for outcome in outcomes} == {"FULL"} and len(looked) <= 500
    [first] = [found for found in dispatch.engine.jobs.values() if found.queue == "q0"]
    assert client.call("cancel", jobs=[first.id])["outcomes"] == ["cancelled"]
    assert type(client.call("submit", jobs=[job("new")])["jobs"][0]) is int  # its lane made room
    dispatch.stop(5.0)


def test_rows_are_written_in_slices_of_bounded_bytes(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    slices: list[int] = []
    apply = dispatch.store.apply

    def noted(jobs: list, submissions: list) -> None:
        slices.append(sum(len(found.payload or b"") for found in jobs))
        apply(jobs, submissions)
    monkeypatch.setattr(dispatch.store, "apply", noted)

    Caller(dispatch).call("submit", jobs=[job(payload=bytes(100_000))] * 40)

    assert SMALL_BYTES < max(slices) < 400_000 and sum(slices) == 4_000_000
