"""Many jobs at once by a filter: slices, counts, what is refused, and what changes or fills up meanwhile. On a real pump, in memory."""

from __future__ import annotations

import pytest

from greenroom import bulk_verbs
from greenroom.dispatch import Dispatch
from greenroom.errors import FullError, InvalidError
from greenroom.leases import Caps
from tests.fuzz.test_turns import Caller, dispatch

__all__ = ["dispatch"]  # a fixture

NOTHING = {"done": 0, "refused": 0, "why": None, "exact": True}


def submitted(caller: Caller, count: int, task: str = "t") -> list[int]:
    return caller.call("submit", jobs=[{"task": task}] * count)["jobs"]


def states(caller: Caller, ids: list[int]) -> list[str]:
    return [view.get("state", "gone") for view in caller.call("get", jobs=ids)["jobs"]]


def test_slices_go_down_to_the_oldest_and_leave_what_comes_meanwhile(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_verbs, "BULK_JOBS", 3)
    caller = Caller(dispatch)
    ids, others = submitted(caller, 7), submitted(caller, 2, "u")

    for _ in range(2):
        counted = caller.call("bulk", action="cancel", filter={"task": "t"}, dry_run=True)
        assert counted == {**NOTHING, "matched": 7, "next": None, "scanned_to": 1}, "counting changes nothing"
    first = caller.call("bulk", action="cancel", filter={"task": "t"})
    assert first == {**NOTHING, "matched": 3, "done": 3, "next": ids[4], "scanned_to": ids[4]}
    late = submitted(caller, 1)
    second = caller.call("bulk", action="cancel", filter={"task": "t"}, before=first["next"])
    third = caller.call("bulk", action="cancel", filter={"task": "t"}, before=second["next"])

    assert (second["done"], third["done"], third["next"]) == (3, 1, None)
    assert states(caller, ids) == ["cancelled"] * 7 and states(caller, others + late) == ["queued"] * 3


def test_an_action_takes_only_jobs_in_the_states_that_it_is_for(dispatch: Dispatch) -> None:
    caller, worker = Caller(dispatch), Caller(dispatch, "worker")
    done, running, *queued = submitted(caller, 4)
    leases = [job[:2] for job in worker.call("reserve", n=2)["jobs"]]
    worker.call("settle", leases=[[*leases[0], "ack"]])

    def counted(action: str, **wanted: object) -> tuple[int, bool]:
        answer = caller.call("bulk", action=action, filter=wanted, dry_run=True)
        return answer["matched"], answer["exact"]

    assert [counted(action) for action in ("cancel", "delete", "retry")] == [(3, True), (1, True), (0, True)]
    assert counted("cancel", state="running") == (1, True) and counted("cancel", state=["running"], task="u") == (0, True)
    assert counted("cancel", state="queued") == (3, False), "the store has the running one as queued, and that is said"
    for action, wanted in (("retry", "completed"), ("cancel", ["failed", "expired"]), ("delete", "running")):
        refused = caller.call("bulk", action=action, filter={"state": wanted})
        assert isinstance(refused, InvalidError) and refused.field == "state"
    assert caller.call("bulk", action="cancel", filter={"state": "queued"})["done"] == 2
    assert states(caller, [done, running, *queued]) == ["completed", "running", "cancelled", "cancelled"]
    assert caller.call("bulk", action="delete", filter={})["done"] == 3
    assert states(caller, [done, running, *queued]) == ["gone", "running", "gone", "gone"]
    assert caller.call("bulk", action="cancel", filter={"worker": "peer", "state": "running"})["done"] == 1
    assert caller.call("get", jobs=[running])["jobs"][0]["cancel_requested"] is True


def test_what_waits_is_changed_and_what_was_said_by_mistake_is_named(dispatch: Dispatch) -> None:
    caller, worker = Caller(dispatch), Caller(dispatch, "worker")
    running, first, second = submitted(caller, 3)
    (other,) = submitted(caller, 1, "u")
    worker.call("reserve", n=1)

    counted = caller.call("bulk", action="change", filter={"task": "t"}, dry_run=True, priority=1)
    assert (counted["matched"], counted["exact"], counted["done"]) == (3, False, 0), "the store has the running one as queued"
    later = caller.call("bulk", action="change", filter={"task": "t"}, queue="slow", delay=60.0)
    now = caller.call("bulk", action="change", filter={"state": "scheduled", "queue": "slow"}, priority=1, delay=0.0)

    assert (later["matched"], later["done"], later["refused"]) == (now["matched"], now["done"], now["refused"]) == (2, 2, 0)
    shown = [(view["queue"], view["priority"], view["state"]) for view in caller.call("get", jobs=[running, first, second, other])["jobs"]]
    assert shown == [("default", 5, "running"), ("slow", 1, "queued"), ("slow", 1, "queued"), ("default", 5, "queued")]
    for fields, field in (({}, "action"), ({"delay": 1.0, "run_at": 5.0}, "delay"), ({"priority": 1, "filter": {"state": "failed"}}, "state")):
        refused = caller.call("bulk", **{"action": "change", "filter": {}, **fields})
        assert isinstance(refused, InvalidError) and refused.field == field
    refused = caller.call("bulk", action="cancel", filter={}, queue="slow")
    assert isinstance(refused, InvalidError) and refused.field == "queue"


@pytest.mark.parametrize("dispatch", [Caps(waiting_jobs=5)], indirect=True)
def test_when_the_broker_is_full_a_slice_ends_there_and_the_next_one_begins_there(dispatch: Dispatch) -> None:
    caller = Caller(dispatch)
    ids = submitted(caller, 5)
    assert caller.call("cancel", jobs=ids)["outcomes"] == ["cancelled"] * 5
    waiting = submitted(caller, 3)

    answer = caller.call("bulk", action="retry", filter={})
    assert (answer["done"], answer["refused"], answer["next"]) == (2, 0, ids[2] + 1)
    assert isinstance(caller.call("bulk", action="retry", filter={}, before=answer["next"]), FullError)
    caller.call("cancel", jobs=waiting)
    assert caller.call("bulk", action="retry", filter={}, before=answer["next"])["done"] == 3
    assert states(caller, ids) == ["queued"] * 5


def test_jobs_of_a_queue_at_its_limit_are_refused_and_hold_up_no_others(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_verbs, "BULK_JOBS", 2)
    caller = Caller(dispatch)
    ids = caller.call("submit", jobs=[{"task": "t", "queue": queue} for queue in ("other", "full", "full", "full", "other")])["jobs"]
    caller.call("cancel", jobs=ids)
    caller.call("limit", queue="full", jobs=1)

    answers = [caller.call("bulk", action="retry", filter={"task": "t"})]
    while answers[-1]["next"] is not None and len(answers) < 5:
        answers.append(caller.call("bulk", action="retry", filter={"task": "t"}, before=answers[-1]["next"]))

    assert [(answer["done"], answer["refused"]) for answer in answers] == [(2, 0), (0, 2), (1, 0)]
    assert answers[1]["why"] == "the queue full is full: 1 job waits, its limit is 1"
    assert states(caller, ids) == ["queued", "cancelled", "cancelled", "queued", "queued"]


def test_a_job_that_changed_since_it_was_found_is_left(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(dispatch)
    first, second, third = submitted(caller, 3)
    caller.call("cancel", jobs=[first, second, third])
    find = bulk_verbs.matching

    def find_and_turn(*args: object) -> object:
        found = find(*args)
        caller.call("retry", jobs=[second])
        caller.call("delete", jobs=[third])
        return found

    monkeypatch.setattr(bulk_verbs, "matching", find_and_turn)
    answer = caller.call("bulk", action="delete", filter={"state": "cancelled"})

    assert (answer["matched"], answer["done"], answer["refused"], answer["why"]) == (2, 1, 1, f"job {third} is no longer kept")
    assert states(caller, [first, second, third]) == ["gone", "queued", "gone"]
