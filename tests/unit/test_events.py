"""Events: who is told what when. Never before it is on disk, in order, and never silently less than all. In virtual time."""

from __future__ import annotations

import pytest

from greenroom import events, subscriptions
from greenroom.errors import FullError
from greenroom.events import KINDS, EventLog
from greenroom.job import MOVES, STATE_BY_LABEL
from greenroom.subscriptions import FRAME_EVENTS, LINGER_S, MAX_SUBSCRIBERS, QUIET_EVENTS, EventFilter, Subscriptions
from tests.core import Core, new_job, reserved, submitted

EVERYTHING = EventFilter(kinds=frozenset(KINDS))


class Ear:
    """A subscriber that notes what it is told."""

    def __init__(self) -> None:
        self.takes_events = True
        self.notices: list[dict] = []

    def notify(self, notice: dict) -> None:
        self.notices.append({**notice, "events": list(notice["events"])})

    def flush(self) -> None:
        """Nothing waits here."""

    @property
    def events(self) -> list[dict]:
        return [event for notice in self.notices for event in notice["events"]]

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    @property
    def position(self) -> int:
        return self.notices[-1]["position"]


class House:
    """A broker without its edges, and whoever listens."""

    def __init__(self) -> None:
        self.core = Core()
        self.log = self.core.batches.events
        self.subscriptions = Subscriptions(self.core.engine, self.log)

    def listen(self, wanted: EventFilter = EVERYTHING, after: int | None = None, boot: str | None = None) -> Ear:
        ear = Ear()
        self.answer = self.subscriptions.open(ear, wanted, self.log.boot if boot is None and after is not None else boot, after)
        return ear

    def tell(self) -> None:
        for _ in self.subscriptions.tell():
            pass


@pytest.fixture
def house() -> House:
    return House()


def states_of(ear: Ear, job_id: int) -> list[str]:
    return [event["state"] for event in ear.events if event.get("job") == job_id]


def test_the_life_of_a_job_is_told_in_order(house: House) -> None:
    ear, core = house.listen(), house.core
    (job,) = submitted(core, new_job(delay=5.0))
    core.advance(6)
    worker = core.connect("w1")
    reserved(worker)
    worker.settle("nack", job)
    core.run()
    reserved(worker)
    worker.settle("ack", job)
    core.run()
    house.tell()

    assert ear.kinds == ["submitted", "queued", "started", "requeued", "started", "completed"]
    assert [event["seq"] for event in ear.events] == [1, 2, 3, 4, 5, 6] and ear.position == 6
    first, started = ear.events[0], ear.events[2]
    assert first["state"] == "scheduled" and first["run_at"] == core.now - 6 + 5 and "worker" not in first
    assert (started["job"], started["queue"], started["task"], started["attempt"], started["worker"]) == (job, "q", "t", 1, "w1")
    assert ear.events[3]["reason"] == "nack"
    states = states_of(ear, job)
    assert all(STATE_BY_LABEL[later] in MOVES[STATE_BY_LABEL[state]] for state, later in zip(states, states[1:]))


def test_nothing_is_told_before_the_commit_that_holds_it(house: House) -> None:
    ear, core = house.listen(), house.core
    core.connect("c", role="client").submit(new_job())
    core.begin_cycle()
    house.tell()
    assert ear.events == []

    core.end_cycle()
    house.tell()
    assert ear.kinds == ["submitted"]


def test_what_a_store_that_fails_did_not_keep_is_never_told(house: House) -> None:
    ear, core = house.listen(), house.core
    core.connect("c", role="client").submit(new_job())
    core.begin_cycle()
    core.batches.failed()
    house.tell()

    assert ear.events == []


def test_failures_snoozes_retries_changes_pauses_and_limits_are_told(house: House) -> None:
    ear, core = house.listen(), house.core
    (job,) = submitted(core, new_job(attempts=2))
    worker, client = core.connect(), core.connect("c", role="client")
    reserved(worker)
    worker.settle("fail", job, wish=None)
    core.run()
    core.advance(3600)
    reserved(worker)
    worker.settle("fail", job, wish=None)
    core.run()
    client.retry(job)
    core.run()
    client.change(job, priority=1)
    core.run()
    client.pause("queue", "q", reason="why", by="ann")
    core.run()
    client.resume("queue", "q")
    client.limit("q", jobs=5, urgent=1)
    client.unlimit("q")
    core.run()
    house.tell()

    assert ear.kinds == ["submitted", "started", "scheduled", "queued", "started", "failed", "retried", "changed", "paused", "resumed",
                         "limited", "unlimited"]
    limited, unlimited = ear.events[-2:]
    assert (limited["queue"], limited["jobs"], limited["bytes"], limited["urgent"], limited["by"]) == ("q", 5, None, 1, "me")
    assert unlimited["queue"] == "q"
    put_off, failed, paused = ear.events[2], ear.events[5], ear.events[8]
    assert put_off["reason"] == "failed" and put_off["error"] == failed["error"] and put_off["run_at"] > put_off["at"]
    assert (paused["queue"], paused["reason"], paused["by"], paused["until"]) == ("q", "why", "ann", None) and "job" not in paused


def test_a_filter_lets_through_what_was_asked_for(house: House) -> None:
    by_queue, by_task = house.listen(EventFilter(queue="a")), house.listen(EventFilter(task="y"))
    by_kind = house.listen(EventFilter(kinds=frozenset({"cancelled"})))
    first, second = submitted(house.core, new_job(queue="a", task="x"), new_job(queue="b", task="y"))
    house.core.connect("c", role="client").cancel(second)
    house.core.run()
    house.tell()

    assert [event["job"] for event in by_queue.events] == [first]
    assert [event["job"] for event in by_task.events] == [second, second]
    assert by_kind.kinds == ["cancelled"] and by_kind.position == 3


def test_progress_is_told_to_those_who_name_it(house: House) -> None:
    usual, all_of_it = house.listen(EventFilter()), house.listen()
    (job,) = submitted(house.core, new_job())
    worker = house.core.connect()
    reserved(worker)
    worker.report(job, 0.5, "half")
    house.core.run()
    house.tell()

    assert usual.kinds == ["submitted", "started"] and all_of_it.kinds == ["submitted", "started", "progress"]
    assert all_of_it.events[-1]["fraction"] == 0.5 and all_of_it.events[-1]["text"] == "half"


def test_who_comes_back_goes_on_where_it_was(house: House) -> None:
    ear = house.listen()
    submitted(house.core, new_job())
    house.tell()
    house.subscriptions.close(ear, house.core.now)
    submitted(house.core, new_job())

    again = house.listen(after=ear.position)
    house.tell()

    assert house.answer["gap"] is False and house.answer["position"] == 1
    assert [event["seq"] for event in again.events] == [2]


def test_who_was_away_for_too_long_is_told_of_the_gap(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 3)
    ear = house.listen()
    submitted(house.core, new_job())
    house.tell()
    submitted(house.core, *[new_job() for _ in range(5)])

    again = house.listen(after=ear.position)
    house.tell()

    assert house.answer == {"boot": house.log.boot, "position": 3, "gap": True, "oldest": 4}
    assert [event["seq"] for event in again.events] == [4, 5, 6]


@pytest.mark.parametrize(("boot", "after"), [("another start", 0), (None, 99)])
def test_a_position_of_another_start_is_a_gap(house: House, boot: str | None, after: int) -> None:
    house.listen()
    submitted(house.core, new_job())

    ear = house.listen(after=after, boot=boot)
    house.tell()

    assert house.answer["gap"] is True and [event["seq"] for event in ear.events] == [1]


def test_a_slow_reader_costs_no_memory_and_is_told_of_its_gap(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 4)
    slow, quick = house.listen(), house.listen()
    slow.takes_events = False
    for _ in range(10):
        submitted(house.core, new_job())
        house.tell()
    assert house.subscriptions.are_behind and slow.notices == []

    slow.takes_events = True
    house.tell()

    assert not house.subscriptions.are_behind and len(quick.events) == 10
    assert [notice["gap"] for notice in slow.notices] == [True] and slow.notices[0]["oldest"] == 7
    assert [event["seq"] for event in slow.events] == [7, 8, 9, 10]


def test_many_events_share_frames_of_bounded_size(house: House) -> None:
    ear = house.listen()
    submitted(house.core, *[new_job() for _ in range(FRAME_EVENTS + 1)])
    house.tell()

    assert [len(notice["events"]) for notice in ear.notices] == [FRAME_EVENTS, 1]


def test_who_hears_nothing_learns_how_far_it_is(house: House) -> None:
    ear = house.listen(EventFilter(queue="other"))
    submitted(house.core, *[new_job() for _ in range(QUIET_EVENTS + 500)])
    house.tell()

    assert ear.events == [] and ear.position >= QUIET_EVENTS and not ear.notices[0]["gap"]


def test_nothing_is_noted_while_nobody_listens_and_that_is_a_gap(house: House) -> None:
    submitted(house.core, new_job())
    assert not house.core.engine.is_watched and house.log.last == 0

    ear = house.listen()
    submitted(house.core, new_job())
    house.tell()
    house.subscriptions.close(ear, house.core.now)
    house.subscriptions.tick(house.core.now + LINGER_S - 1)
    assert house.core.engine.is_watched

    house.subscriptions.tick(house.core.now + LINGER_S)
    submitted(house.core, new_job())
    again = house.listen(after=ear.position)
    submitted(house.core, new_job())
    house.tell()

    assert house.answer["gap"] is True and [event["job"] for event in again.events] == [4]


def test_subscribers_are_bounded_and_one_that_asks_anew_is_none_more(house: House) -> None:
    ears = [house.listen() for _ in range(MAX_SUBSCRIBERS)]
    with pytest.raises(FullError):
        house.listen()

    house.subscriptions.open(ears[0], EventFilter(queue="other"), None, None)
    house.subscriptions.close(ears[1], 0.0)
    house.listen()
    assert len(house.subscriptions) == MAX_SUBSCRIBERS


def test_a_subscriber_that_left_or_asked_anew_in_the_middle_gets_no_more_of_the_old(house: House) -> None:
    ear, leaver = house.listen(), house.listen()
    submitted(house.core, *[new_job() for _ in range(FRAME_EVENTS + 1)])
    telling = house.subscriptions.tell()
    next(telling)
    house.subscriptions.open(ear, EventFilter(queue="other"), None, None)
    house.subscriptions.close(leaver, 0.0)
    for _ in telling:
        pass

    assert len(ear.events) == FRAME_EVENTS and leaver.events == []


def test_what_is_noted_while_numbers_are_left_out_is_not_shown_late() -> None:
    log = EventLog("b")
    noted = log.note([{"kind": "submitted"}])
    log.pause()
    log.show(noted)

    assert log.after(log.oldest - 1, 10) == [] and not log.knows_since(0) and log.visible == log.last
    assert subscriptions.MAX_EVENTS == events.MAX_EVENTS
