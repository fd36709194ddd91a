"""Schedules in virtual time: policies, jumps of the clock, pauses, bounds; and that each run happens once, whenever the broker dies."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from greenroom import schedules as rules
from greenroom.clock import FakeClock
from greenroom.desk import Desk, Step
from greenroom.engine import Engine
from greenroom.errors import FullError, GreenroomError, InvalidError, NotFoundError, TooLargeError
from greenroom.job import State
from greenroom.leases import Caps
from greenroom.protocol import VERBS, check_fields, parse_request
from greenroom.records import SettleItem
from greenroom.sessions import Session
from greenroom.verbs import HANDLERS
from tests.crash_store import CrashStore

HOUR, DAY = 3600.0, 86400.0


class House(Desk):
    """A broker without edges, on a store that may crash; time moves by hand."""

    def __init__(self, begin: float = 1_000_000.0, caps: Caps = Caps()) -> None:
        self.clock = FakeClock(begin)
        self.disk = CrashStore()
        self.caps = caps
        self._open()

    def _open(self) -> None:
        super().__init__(Engine(self.caps), self.disk, self.clock.now, lambda: None, self.clock.wall)
        self.restore(self.disk.open(), 60.0)
        self.commit()

    def replan(self) -> None:
        """Time moves by hand."""

    def breathe(self) -> None:
        """Nobody else is there."""

    def commit(self, *, dies: str | None = None) -> None:
        """Run a cycle, or die "before" or "after" its COMMIT."""
        while self.batches.has_work:
            for step in self.write():
                if step is Step.COMMIT:
                    if dies != "before":
                        self.disk.commit()
                    if dies is not None:
                        return
            self.committed()

    def restart(self, *, down_s: float = 0.0, set_clock_by: float = 0.0) -> None:
        """Die with what was not committed, and start again."""
        self.disk.crash()
        self.clock.advance(down_s)
        self.clock.wall_is_ahead_s += set_clock_by
        self._open()

    def tick_all(self) -> None:
        """Tick until nothing is due, with a cycle after each."""
        for _ in range(1000):
            self.tick()
            self.commit()
            due = self.schedules.next_due()
            if due is None or due > self.now() + 1e-6:
                return
        raise AssertionError("it never comes to rest")

    def advance(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass."""
        until = self.now() + seconds
        while self.now() < until:
            self.clock.advance(min(step, until - self.now()))
            self.tick_all()

    def ask(self, verb: str, **fields: object) -> dict:
        """Ask as a peer does, and return the answer once it left; raises the error."""
        caller = Caller()
        HANDLERS[verb](self, caller, parse_request({"id": 1, "verb": verb, **fields}))
        self.commit()
        return caller.answers[0]

    def put(self, name: str = "s", job: dict | None = None, **fields: object) -> dict:
        """Put a schedule."""
        return self.ask("schedule_put", name=name, job=job or {"task": "t"}, **fields)["schedule"]

    def show(self, name: str = "s") -> dict:
        """Return a schedule as it is shown."""
        return self.ask("schedules", name=name)["schedules"][0]

    def jobs(self) -> list[int]:
        """Return the ids of all jobs on disk."""
        return sorted(self.disk._jobs)

    def states(self) -> list[str]:
        """Return the states of all jobs on disk."""
        return [self.disk._jobs[job].state.label for job in self.jobs()]

    def finish(self, job_id: int) -> None:
        """Have a worker do a job."""
        worker = Session(1, role="worker", name="w", instance=None, now=self.now(), conn=None)
        self.engine.open_session(worker, [], self.now())
        self.engine.reserve(worker, 1, 100, None, None, 0.0, self.now())
        lease = worker.leases[job_id]
        self.engine.settle([SettleItem(job_id, lease.fence, "ack", b"", False, None)], self.now(), {})
        self.engine.close_session(worker, self.now(), said_bye=True)
        self.after_call()
        self.commit()


class Caller:
    """Who asks."""

    held_deliveries = 0
    session = None

    def __init__(self) -> None:
        self.answers: list[dict] = []

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Keep it."""
        self.answers.append(answer)

    def flush(self) -> None:
        """Nothing waits."""


@pytest.fixture
def house() -> House:
    return House()


# -- runs --------------------------------------------------------------------------------------------------------------------


def test_an_interval_submits_its_job_each_time(house: House) -> None:
    shown = house.put(job={"task": "report", "queue": "r", "priority": 2, "payload": b"\x01"}, every="10s", overlap="queue")
    begin = house.now()
    assert shown["next_runs"] == [begin + 10 * number for number in range(1, 11)]

    house.advance(35)

    jobs = [house.disk._jobs[job] for job in house.jobs()]
    assert [job.submitted_at - begin for job in jobs] == [10, 20, 30]
    assert {(job.task, job.queue, job.priority, job.payload) for job in jobs} == {("report", "r", 2, b"\x01")}
    shown = house.show()
    assert (shown["runs"], shown["last_job"], shown["last_at"], shown["next_at"]) == (3, jobs[-1].id, begin + 30, begin + 40)


@pytest.mark.parametrize("zone, before, apart_s", [
    ("Europe/Berlin", "2026-03-28T12:00", DAY - HOUR), ("Europe/Berlin", "2026-10-24T12:00", DAY + HOUR),
    ("America/New_York", "2026-03-07T12:00", DAY - HOUR), ("America/New_York", "2026-10-31T12:00", DAY + HOUR)])
def test_cron_lines_mean_the_clock_of_their_zone_over_both_changes_of_it(zone: str, before: str, apart_s: float) -> None:
    house = House(datetime.fromisoformat(before).replace(tzinfo=ZoneInfo(zone)).timestamp())
    house.put(cron="30 1 * * *", timezone=zone, overlap="queue")

    house.advance(2 * DAY, step=300.0)

    ran = [house.disk._jobs[job].submitted_at for job in house.jobs()]
    assert [f"{datetime.fromtimestamp(at, ZoneInfo(zone)):%H:%M}" for at in ran] == ["01:30", "01:30"]
    assert ran[1] - ran[0] == apart_s


def test_many_that_are_due_at_once_all_run_a_few_in_each_tick(house: House) -> None:
    for number in range(100):
        house.put(f"s{number}", every="10s")
    house.clock.advance(10)

    house.tick()

    assert 0 < house.engine.totals[State.QUEUED] <= 20
    house.tick_all()
    assert len(house.jobs()) == 100


# -- once --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("fields", [{"every": "10s"}, {"cron": "* * * * *"}, {"every": "10s", "overlap": "replace"}])
def test_a_run_submits_once_whenever_the_broker_dies(house: House, dies: str, fields: dict) -> None:
    house.put(**fields)
    house.clock.advance(60)
    house.tick()
    assert house.engine.totals[State.QUEUED] == 1
    house.commit(dies=dies)

    house.restart()
    kept = len(house.jobs())
    house.tick_all()

    assert kept == (0 if dies == "before" else 1)
    assert len(house.jobs()) == 1 and house.show()["runs"] == 1 and house.show()["last_job"] == house.jobs()[0]


def test_what_was_not_committed_of_a_schedule_was_not_answered(house: House) -> None:
    caller = Caller()
    request = parse_request({"id": 1, "verb": "schedule_put", "name": "s", "job": {"task": "t"}, "every": "10s"})
    HANDLERS["schedule_put"](house, caller, request)

    assert caller.answers == []
    house.commit(dies="before")
    house.restart()
    with pytest.raises(NotFoundError):
        house.show()


def test_a_schedule_survives_a_restart_as_it_was(house: House) -> None:
    house.put("a", job={"task": "t", "payload": b"\xff", "encoding": "raw", "queue": "q"}, cron="*/5 * * * *", timezone="Asia/Kolkata",
              overlap="queue", missed="all", missed_max=3)
    house.put("b", every="1h")
    house.ask("schedule_pause", name="b", reason="why")
    house.advance(600, step=10.0)
    before = [house.show(name) for name in "ab"]

    house.restart()

    assert [house.show(name) for name in "ab"] == before
    assert before[0]["payload"] == b"\xff" and before[0]["runs"] == 2 and before[1]["reason"] == "why"


# -- overlap -----------------------------------------------------------------------------------------------------------------


def test_skip_leaves_runs_out_until_the_previous_job_is_finished(house: House) -> None:
    house.put(every="10s", overlap="skip")
    house.advance(40)
    assert len(house.jobs()) == 1 and house.show()["skipped"] == 3

    house.finish(house.jobs()[0])
    house.advance(10)

    assert house.states() == ["completed", "queued"]


def test_queue_submits_all_the_same(house: House) -> None:
    house.put(every="10s", overlap="queue")
    house.advance(30)
    assert house.states() == ["queued"] * 3 and house.show()["skipped"] == 0


def test_replace_cancels_the_previous_job(house: House) -> None:
    house.put(every="10s", overlap="replace")
    house.advance(30)
    assert house.states() == ["cancelled", "cancelled", "queued"]


@pytest.mark.parametrize("overlap, states", [("skip", ["queued"]), ("replace", ["cancelled", "queued"])])
def test_a_previous_job_that_only_the_disk_knows_is_looked_up(house: House, overlap: str, states: list[str]) -> None:
    house.put(every="10s", overlap=overlap)
    house.advance(10)
    house.restart()
    assert house.in_memory(house.jobs()[0]) is None

    house.advance(10)

    assert house.states() == states


@pytest.mark.parametrize("overlap", ["skip", "replace"])
def test_a_previous_job_that_finished_long_ago_or_is_damaged_or_pruned_holds_nothing_up(house: House, overlap: str) -> None:
    house.put(every="10s", overlap=overlap)
    house.advance(10)
    house.finish(house.jobs()[0])
    house.restart()
    house.advance(10)
    first, second = house.jobs()
    assert house.states() == ["completed", "queued"]
    house.disk._jobs[second].damage = "row"
    house.restart()
    house.advance(10)
    assert len(house.jobs()) == 3
    del house.disk._jobs[house.jobs()[-1]]  # as if it were pruned
    house.disk._queued.clear()
    house.restart()
    house.advance(10)
    assert house.show()["runs"] == 4


def test_a_schedule_that_changes_while_its_previous_job_is_looked_up_goes_by_what_it_is_then(house: House) -> None:
    for name in ("deleted", "paused", "replaced"):
        house.put(name, every="10s")
    house.advance(10)
    house.restart()
    house.clock.advance(10)
    while house.schedules.next_due() is not None:
        house.tick()
    assert house.batches.has_work  # all are being looked up now
    house.schedules.table.delete("deleted")
    house.batches.record_schedule("deleted", None)
    house.schedules.table.pause("paused", "", house.wall())
    fields = check_fields(VERBS["schedule_put"], {"name": "replaced", "job": {"task": "other"}, "every": "20s"})
    house.schedules.table.put("replaced", fields, house.wall())

    house.tick_all()

    assert len(house.jobs()) == 3
    house.advance(20)
    assert [house.disk._jobs[job].task for job in house.jobs()][3:] == []  # the previous one of "replaced" waits still
    assert house.show("replaced")["skipped"] == house.engine.tally.schedule_skips == 1


# -- missed ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed, jobs", [("skip", 0), ("once", 1), ("all", 3)])
def test_runs_in_a_downtime_are_dealt_with_as_the_policy_says(house: House, missed: str, jobs: int) -> None:
    house.put(every="1h", overlap="queue", missed=missed, missed_max=3)
    begin = house.now()

    house.restart(down_s=5.5 * HOUR)
    house.tick_all()

    assert len(house.jobs()) == jobs
    assert (house.engine.tally.schedule_misses, house.engine.tally.schedule_jobs) == (1, jobs)
    assert house.show()["next_at"] == begin + 6 * HOUR
    house.advance(HOUR, step=60.0)
    assert len(house.jobs()) == jobs + 1


def test_a_run_that_is_a_minute_late_is_on_time(house: House) -> None:
    house.put(every="1h", missed="skip")
    house.restart(down_s=HOUR + 59)
    house.tick_all()
    assert len(house.jobs()) == 1 and house.engine.tally.schedule_misses == 0


def test_after_years_of_downtime_no_more_is_caught_up_than_asked_for(house: House) -> None:
    house.put("a", every="1s", overlap="queue", missed="all", missed_max=100)
    house.put("b", cron="* * * * *", overlap="queue", missed="all", missed_max=7, job={"task": "cron"})

    house.restart(down_s=3 * 365 * DAY)
    house.tick_all()

    tasks = [house.disk._jobs[job].task for job in house.jobs()]
    assert (tasks.count("t"), tasks.count("cron")) == (100, 7)


# -- jumps of the wall clock -------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_forward_makes_runs_missed(house: House) -> None:
    house.put("skips", cron="0 * * * *", missed="skip", overlap="queue")
    house.put("once", cron="0 * * * *", overlap="queue", job={"task": "once"})
    house.clock.wall_is_ahead_s = 5 * HOUR + 600

    house.advance(1)

    assert [house.disk._jobs[job].task for job in house.jobs()] == ["once"]
    assert house.show("skips")["next_at"] == house.show("once")["next_at"] > house.wall()


def test_a_clock_that_is_set_back_a_little_runs_no_time_twice(house: House) -> None:
    house.put("cron", cron="0 * * * *", overlap="queue")
    house.put("every", every="10s", overlap="queue", job={"task": "every"})
    house.advance(HOUR, step=5.0)
    assert house.show("cron")["runs"] == 1
    following, count = house.show("cron")["next_at"], house.show("every")["runs"]

    house.clock.wall_is_ahead_s = -2 * HOUR
    house.advance(60, step=1.0)

    assert house.show("cron")["next_at"] == following and house.show("cron")["runs"] == 1
    assert house.show("every")["runs"] >= count + 5  # an interval is not held up


@pytest.mark.parametrize("restarts", [False, True])
def test_a_clock_that_is_set_back_by_much_plans_cron_lines_anew(house: House, restarts: bool) -> None:
    house.put(cron="0 * * * *", overlap="queue")
    house.advance(HOUR, step=60.0)
    if restarts:
        house.restart(set_clock_by=-30 * DAY)
    else:
        house.clock.wall_is_ahead_s = -30 * DAY

    house.advance(HOUR, step=60.0)

    assert house.show()["runs"] == 2 and 0 < house.show()["next_at"] - house.wall() <= HOUR


def test_the_steady_clock_alone_does_not_move_a_cron_line(house: House) -> None:
    house.clock.wall_is_ahead_s = 1800.0
    shown = house.put(cron="0 * * * *")
    assert shown["next_at"] % HOUR == 0 and 0 < shown["next_at"] - house.wall() <= HOUR
    house.advance(shown["next_at"] - house.wall() - 5, step=60.0)
    assert house.jobs() == []
    house.advance(6)
    assert len(house.jobs()) == 1


# -- what people do ----------------------------------------------------------------------------------------------------------


def test_a_paused_schedule_runs_nothing_and_what_it_left_out_was_not_missed(house: House) -> None:
    house.put(every="10s", overlap="queue", missed="all")
    house.advance(10)
    shown = house.ask("schedule_pause", name="s", reason="a reason")["schedule"]
    assert (shown["paused_at"], shown["reason"], shown["next_at"], shown["next_runs"]) == (house.now(), "a reason", None, [])
    house.advance(500, step=10.0)
    assert len(house.jobs()) == 1

    shown = house.ask("schedule_resume", name="s")["schedule"]

    assert (shown["paused_at"], shown["reason"], shown["next_at"]) == (None, "", house.now() + 10)
    house.advance(10)
    assert len(house.jobs()) == 2


def test_run_now_submits_at_once_also_in_a_pause_and_leaves_the_plan(house: House) -> None:
    following = house.put(every="1h")["next_at"]
    first = house.ask("schedule_run", name="s")["job"]
    house.ask("schedule_pause", name="s")
    second = house.ask("schedule_run", name="s")["job"]

    assert house.jobs() == [first, second] and house.show()["last_job"] == second
    house.ask("schedule_resume", name="s")
    assert house.show()["next_at"] == following


def test_putting_the_same_again_moves_nothing_and_another_time_plans_anew(house: House) -> None:
    house.put(every="1h", overlap="queue")
    house.advance(HOUR + 1800, step=600.0)
    before = house.show()

    again = house.ask("schedule_put", name="s", job={"task": "other"}, every="1h", overlap="queue")

    assert again["created"] is False
    assert {**again["schedule"], "job": None} == {**{name: value for name, value in before.items() if name != "payload"}, "job": None}
    assert house.put(every="2h")["next_at"] == house.now() + 2 * HOUR
    house.ask("schedule_pause", name="s", reason="still")
    assert house.put(every="3h")["reason"] == "still" and house.show()["next_at"] is None


def test_deleting_leaves_the_jobs(house: House) -> None:
    house.put(every="10s")
    house.advance(10)
    house.ask("schedule_delete", name="s")
    house.restart()
    house.advance(100, step=10.0)
    assert len(house.jobs()) == 1
    for verb in ("schedules", "schedule_delete", "schedule_pause", "schedule_resume", "schedule_run"):
        with pytest.raises(NotFoundError):
            house.ask(verb, name="s")


def test_pages_go_by_name(house: House) -> None:
    names = [f"s{number:02}" for number in range(25)]
    for name in reversed(names):
        house.put(name, every="1h")
    found: list[str] = []
    after = None
    while True:
        page = house.ask("schedules", limit=10, **({"after": after} if after else {}))
        found += [shown["name"] for shown in page["schedules"]]
        assert page["total"] == 25 and all("payload" not in shown for shown in page["schedules"])
        after = page["next"]
        if after is None:
            break
    assert found == names


# -- bounds and trouble ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, error, field", [
    ({"job": {"task": "t", "run_at": 5}, "every": "1h"}, InvalidError, "run_at"),
    ({"job": {"task": "t", "delay": 5}, "every": "1h"}, InvalidError, "delay"),
    ({"job": {}, "every": "1h"}, InvalidError, "task"), ({"job": {"task": "t", "priority": 11}, "every": "1h"}, InvalidError, "priority"),
    ({"job": {"task": "t", "payload": bytes(65537)}, "every": "1h"}, TooLargeError, "payload"),
    ({"job": {"task": "t"}}, InvalidError, "cron"),
    ({"job": {"task": "t"}, "every": "1h", "missed": "all"}, InvalidError, "missed"),
])
def test_what_cannot_run_is_refused_by_name_and_changes_nothing(house: House, fields: dict, error: type, field: str) -> None:
    with pytest.raises(error) as caught:
        house.ask("schedule_put", name="s", **fields)
    assert caught.value.field == field and not len(house.schedules.table) and not house.batches.has_work


def test_schedules_and_their_payloads_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_SCHEDULES", 3)
    monkeypatch.setattr(rules, "MAX_ALL_PAYLOAD_BYTES", 100)
    for name in "abc":
        house.put(name, job={"task": "t", "payload": bytes(30)}, every="1h")
    with pytest.raises(FullError) as caught:
        house.put("d", every="1h")
    assert caught.value.field == "name"
    with pytest.raises(FullError) as caught:
        house.put("a", job={"task": "t", "payload": bytes(41)}, every="1h")
    assert caught.value.field == "payload"
    house.put("a", job={"task": "t", "payload": bytes(40)}, every="1h")
    house.ask("schedule_delete", name="b")
    house.put("d", job={"task": "t", "payload": bytes(30)}, every="1h")


def test_a_run_without_room_waits_for_some_and_comes_once(house: House) -> None:
    house = House(caps=Caps(waiting_jobs=1))
    house.put(every="1h", overlap="queue")
    blocking = house.ask("submit", jobs=[{"task": "blocks"}])["jobs"][0]
    house.advance(HOUR + 30, step=10.0)
    assert house.jobs() == [blocking] and house.show()["runs"] == 0

    house.finish(blocking)
    house.advance(10)

    assert house.show()["runs"] == 1 and len(house.jobs()) == 2


def test_a_run_waits_while_its_queue_is_full_and_a_run_by_hand_is_refused(house: House) -> None:
    house.put(every="1h", overlap="queue")
    house.ask("limit", queue="default", jobs=1)
    blocking = house.ask("submit", jobs=[{"task": "blocks"}])["jobs"][0]
    house.advance(2 * HOUR + 30, step=10.0)
    assert house.jobs() == [blocking] and (house.show()["runs"], house.show()["skipped"]) == (0, 0)
    with pytest.raises(FullError, match="the queue default is full"):
        house.ask("schedule_run", name="s")

    house.finish(blocking)
    house.advance(31)

    assert (house.show()["runs"], house.show()["last_at"]) == (1, pytest.approx(house.now(), abs=31)), "one job for both runs, as missed says"
    assert len(house.jobs()) == 2


def test_of_several_runs_at_once_those_that_fit_into_the_queue_are_submitted_and_the_others_left_out(house: House) -> None:
    house.put(every="1h", overlap="queue", missed="all", missed_max=5)
    house.ask("limit", queue="default", jobs=2)

    house.restart(down_s=5.5 * HOUR)
    house.tick_all()

    assert len(house.jobs()) == 2 and (house.show()["runs"], house.show()["skipped"]) == (2, 3)
    assert (house.engine.tally.schedule_jobs, house.engine.tally.schedule_skips) == (2, 3)


def test_replace_cancels_nothing_while_there_is_no_room_for_the_next(house: House) -> None:
    house.put(every="1h", overlap="replace")
    house.advance(HOUR, step=60.0)
    (first,) = house.jobs()
    house.ask("submit", jobs=[{"task": "blocks"}])
    house.ask("limit", queue="default", jobs=1)
    house.advance(HOUR + 60, step=60.0)
    assert house.states() == ["queued", "queued"]

    house.ask("unlimit", queue="default")
    house.advance(31)

    assert house.states() == ["cancelled", "queued", "queued"] and house.show()["last_job"] != first


def test_replace_has_the_place_of_the_job_that_it_cancels(house: House) -> None:
    house.put(every="1h", overlap="replace", job={"task": "t", "payload": b"12345"})
    house.advance(HOUR, step=60.0)
    house.ask("limit", queue="default", jobs=1, bytes=5)

    house.advance(HOUR, step=60.0)

    assert house.states() == ["cancelled", "queued"] and house.show()["runs"] == 2
    house.ask("change", jobs=house.jobs()[1:], queue="other")
    house.ask("submit", jobs=[{"task": "blocks"}])
    house.advance(HOUR + 60, step=60.0)
    assert house.states() == ["cancelled", "queued", "queued"], "elsewhere it has no place to leave"


def test_a_full_disk_holds_schedules_back_too(house: House) -> None:
    house.put(every="10s", overlap="queue")
    house.store_full = True
    house.advance(30)
    assert house.jobs() == []
    with pytest.raises(GreenroomError) as caught:
        house.ask("schedule_run", name="s")
    assert caught.value.code == "STORE_FULL"
    house.store_full = False
    house.advance(11)
    assert len(house.jobs()) >= 1


def test_a_schedule_that_cannot_run_any_more_is_kept_and_says_why(house: House) -> None:
    house.put("damaged", every="10s")
    house.put("elsewhere", cron="* * * * *", timezone="Europe/Berlin")
    house.put("sound", every="10s")
    rows = house.disk._schedules
    rows["damaged"] = rows["damaged"]._replace(is_damaged=True)
    rows["elsewhere"] = rows["elsewhere"]._replace(definition=rows["elsewhere"].definition.replace("Berlin", "Atlantis"))

    house.restart()
    house.advance(60)

    assert "checksum" in house.show("damaged")["error"] and "timezone" in house.show("elsewhere")["error"]
    assert len(house.jobs()) == 1 and house.show("sound")["error"] is None
    for verb in ("schedule_run", "schedule_pause", "schedule_resume"):
        with pytest.raises(InvalidError):
            house.ask(verb, name="damaged")
    assert house.put("damaged", every="10s")["error"] is None
    house.ask("schedule_delete", name="elsewhere")
    house.restart()
    assert [shown["name"] for shown in house.ask("schedules")["schedules"]] == ["damaged", "sound"]


def test_a_bug_met_in_a_run_costs_that_schedule_a_minute_and_nobody_else(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.put("bad", every="10s")
    house.put("good", every="10s", overlap="queue", job={"task": "good"})
    broken = rules.Schedule.due
    monkeypatch.setattr(rules.Schedule, "due", lambda self, now: 1 // 0 if self.name == "bad" else broken(self, now))

    house.advance(30)

    assert house.show("good")["runs"] == 3 and house.show("bad")["runs"] == 0
    monkeypatch.setattr(rules.Schedule, "due", broken)
    house.advance(60)
    assert house.show("bad")["runs"] == 1


def test_old_entries_of_the_heap_do_not_pile_up(house: House) -> None:
    house.put(every="1h")
    for _ in range(2000):
        house.schedules.table.pause("s", "", house.wall())
        house.schedules.table.resume("s", house.wall())
    assert len(house.schedules.table._heap) < 100
