"""The history checker finds what it is there to find: each planted fault is named, and a good history has none."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import checker
from tests.checker import Report


class History:
    """Writes events as a test's processes would; each call of a method is a moment later."""

    def __init__(self) -> None:
        self.events: list[dict] = []

    def add(self, op: str, kind: str, call: str, by: str = "w1", **fields: object) -> None:
        self.events.append({"at": len(self.events) + 1, "by": by, "op": op, "type": kind, "call": call, **fields})

    def submit(self, call: str, *ids: int | None, priority: int = 5, answer: str = "ok") -> None:
        """Submit jobs with keys call/0, call/1 …"""
        self.add("submit", "invoke", call, jobs=[[f"{call}/{place}", f"d-{call}/{place}", priority] for place in range(len(ids))])
        if answer:
            self.add("submit", answer, call, ids=list(ids))

    def deliver(self, *jobs: tuple[int, int, str], by: str = "w1", digest: str | None = None) -> None:
        """Reserve and be given (id, fence, key) …"""
        call = f"r{len(self.events)}"
        self.add("reserve", "invoke", call, by)
        self.add("reserve", "ok", call, by, jobs=[[job, fence, key, digest or f"d-{key}"] for job, fence, key in jobs])

    def settle(self, job: int, fence: int, answer: str | None = "OK", outcome: str = "ack", by: str = "w1", call: str = "") -> None:
        """Settle one lease; `answer` None: none came."""
        call = call or f"s{len(self.events)}"
        self.add("settle", "invoke", call, by, leases=[[job, fence, outcome]])
        if answer is None:
            self.add("settle", "unknown", call, by)
        else:
            self.add("settle", "ok", call, by, outcomes=[answer])

    def report(self, *, one_consumer: bool = False, lease_s: float | None = None) -> Report:
        """Drain and judge."""
        return checker.check([*self.events, {"at": 10**18, "by": "w1", "op": "drain", "type": "ok"}], one_consumer=one_consumer,
                             lease_s=lease_s)


def faults_of(report: Report) -> dict[str, int]:
    names = ("lost", "unfinished", "unexpected", "duplicated", "fences", "order")
    return {name: len(getattr(report, name)) for name in names if getattr(report, name)}


@pytest.fixture
def history() -> History:
    return History()


def test_it_knows_nothing_of_the_broker() -> None:
    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_a_good_history_has_no_fault(history: History) -> None:
    history.submit("a", 1, 2)
    history.deliver((1, 10, "a/0"), (2, 11, "a/1"))
    history.settle(1, 10)
    history.settle(2, 11, outcome="nack")
    history.deliver((2, 12, "a/1"), by="w2")
    history.settle(2, 12, None, by="w2", call="again")
    history.settle(2, 12, "REPEATED", by="w2", call="again")

    report = history.report()

    assert report.faults == [] and report.recovered == []
    assert report.counts["submit ok"] == 1 and report.counts["settle unknown"] == 1


def test_nothing_is_said_before_a_drain(history: History) -> None:
    history.submit("a", 1)

    with pytest.raises(ValueError, match="drain"):
        checker.check(history.events)


def test_an_event_of_no_known_kind_is_refused(history: History) -> None:
    history.add("submitt", "ok", "a")

    with pytest.raises(ValueError, match="submitt"):
        history.report()


def test_an_acknowledged_job_that_never_came_out_is_lost(history: History) -> None:
    history.submit("a", 1, 2)
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10)

    report = history.report()

    assert faults_of(report) == {"lost": 1} and "job 2 " in report.lost[0]


def test_an_acknowledgement_that_came_at_a_second_try_counts(history: History) -> None:
    history.submit("a", 1, answer="unknown")
    history.submit("a", 1)

    assert faults_of(history.report()) == {"lost": 1}


@pytest.mark.parametrize("answer", ["unknown", "fail", ""])
def test_a_job_that_was_not_acknowledged_may_be_gone(history: History, answer: str) -> None:
    history.submit("a", 1, answer=answer)

    assert history.report().faults == []


def test_a_cancelled_job_is_not_lost(history: History) -> None:
    history.submit("a", 1)
    history.add("cancel", "ok", "c", ids=[1], outcomes=["cancelled"])

    assert history.report().faults == []


def test_an_unacknowledged_job_that_came_out_is_recovered(history: History) -> None:
    history.submit("a", 1, answer="unknown")
    history.deliver((1, 10, "a/0"))

    report = history.report()

    assert report.faults == [] and report.recovered == ["a/0"]


@pytest.mark.parametrize("answer", ["LEASE_LOST", None])
def test_a_job_that_nobody_could_finish_is_unfinished(history: History, answer: str | None) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10, answer)

    assert faults_of(history.report()) == {"unfinished": 1}


def test_a_job_that_nobody_submitted_is_unexpected(history: History) -> None:
    history.deliver((1, 10, "a/0"))

    assert faults_of(history.report()) == {"unexpected": 1}


def test_a_job_that_came_out_before_it_went_in_is_unexpected(history: History) -> None:
    history.deliver((1, 10, "a/0"))
    history.submit("a", 1)
    history.settle(1, 10)

    assert faults_of(history.report()) == {"unexpected": 1}


def test_another_payload_is_unexpected(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"), digest="other")
    history.settle(1, 10)

    assert faults_of(history.report()) == {"unexpected": 1}


def test_another_id_than_the_acknowledged_one_is_unexpected(history: History) -> None:
    history.submit("a", 1)
    history.deliver((2, 10, "a/0"))

    assert "unexpected" in faults_of(history.report())


def test_a_refused_job_that_came_out_is_unexpected(history: History) -> None:
    history.submit("a", 1, answer="fail")
    history.deliver((1, 10, "a/0"))

    assert faults_of(history.report()) == {"unexpected": 1}


def test_a_submit_that_was_stored_twice_is_duplicated(history: History) -> None:
    history.submit("a", 1, answer="unknown")
    history.deliver((1, 10, "a/0"), (2, 11, "a/0"))

    assert faults_of(history.report()) == {"duplicated": 1}


def test_a_resend_answered_with_other_ids_is_duplicated(history: History) -> None:
    history.submit("a", 1)
    history.submit("a", 2)
    history.deliver((1, 10, "a/0"), (2, 11, "a/0"))
    history.settle(1, 10)
    history.settle(2, 11)

    assert faults_of(history.report()) == {"duplicated": 2}


def test_a_delivery_after_an_accepted_finish_is_duplicated(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10)
    history.deliver((1, 11, "a/0"), by="w2")

    assert faults_of(history.report()) == {"duplicated": 1}


def test_a_lease_that_came_out_twice_is_duplicated(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10)

    assert faults_of(history.report()) == {"duplicated": 1}


def test_two_accepted_finishes_are_duplicated(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10)
    history.settle(1, 10)

    assert faults_of(history.report()) == {"duplicated": 1}


def delivered_twice(history: History, between: Callable[[], object], lease_s: float = 1.0) -> Report:
    """Deliver a job to w1, let something happen, deliver it to w2, who finishes it."""
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    between()
    history.deliver((1, 11, "a/0"), by="w2")
    history.settle(1, 11, by="w2")
    return history.report(lease_s=lease_s)


def test_a_job_that_comes_out_again_while_its_holder_lives_is_duplicated(history: History) -> None:
    report = delivered_twice(history, lambda: None)

    assert faults_of(report) == {"duplicated": 1} and "while w1 held it" in report.duplicated[0]


@pytest.mark.parametrize("who", ["w2", "p1"])
def test_the_end_of_somebody_else_frees_no_job(history: History, who: str) -> None:
    assert faults_of(delivered_twice(history, lambda: history.add("gone", "ok", "g", who))) == {"duplicated": 1}


@pytest.mark.parametrize("who", ["w1", "broker"])
def test_a_job_may_come_out_again_when_its_holder_or_the_broker_is_gone(history: History, who: str) -> None:
    assert faults_of(delivered_twice(history, lambda: history.add("gone", "ok", "g", who))) == {}


@pytest.mark.parametrize("answer", ["OK", None])
def test_a_job_may_come_out_again_when_it_was_given_back(history: History, answer: str | None) -> None:
    assert faults_of(delivered_twice(history, lambda: history.settle(1, 10, answer, "nack"))) == {}


def test_a_job_may_come_out_again_when_its_holder_was_silent_for_a_lease(history: History) -> None:
    assert faults_of(delivered_twice(history, lambda: None, lease_s=2e-9)) == {}


def test_a_job_that_its_dead_worker_may_have_finished_is_not_unfinished(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.settle(1, 10, None)
    history.add("gone", "ok", "g")

    assert faults_of(history.report(lease_s=1.0)) == {}


def given_up(history: History, *, is_gone: bool = True, answer: str | None = None) -> Report:
    """Deliver a job to w1, let it die or not, and have the broker give the job up."""
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    if answer is not None:
        history.settle(1, 10, answer)
    if is_gone:
        history.add("gone", "ok", "g")
    history.add("failed", "ok", "f", ids=[1])
    return history.report()


def test_a_job_whose_workers_die_again_and_again_may_be_given_up(history: History) -> None:
    assert faults_of(given_up(history)) == {}


def test_a_job_that_was_given_up_while_its_worker_lived_is_unfinished(history: History) -> None:
    assert faults_of(given_up(history, is_gone=False)) == {"unfinished": 1}


def test_a_job_that_was_given_up_after_it_was_finished_is_duplicated(history: History) -> None:
    assert faults_of(given_up(history, answer="OK")) == {"duplicated": 1}


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_job_that_nobody_saw_may_be_given_up_only_if_workers_died_before_they_could_read(history: History, is_gone: bool) -> None:
    history.submit("a", 1)
    if is_gone:
        history.add("gone", "ok", "g")
    history.add("failed", "ok", "f", ids=[1])

    assert faults_of(history.report()) == ({} if is_gone else {"unfinished": 1})


def test_a_delivery_after_a_cancel_is_duplicated(history: History) -> None:
    history.submit("a", 1)
    history.add("cancel", "ok", "c", ids=[1], outcomes=["cancelled"])
    history.deliver((1, 10, "a/0"))

    assert faults_of(history.report()) == {"duplicated": 1}


def test_a_fence_that_does_not_grow_is_found(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 11, "a/0"))
    history.deliver((1, 10, "a/0"), by="w2")
    history.settle(1, 11)

    report = history.report()

    assert faults_of(report) == {"fences": 1} and "10 after 11" in report.fences[0]


def test_a_stale_settle_that_was_accepted_is_found(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.deliver((1, 11, "a/0"), by="w2")
    history.settle(1, 10, by="w1")

    report = history.report()

    assert faults_of(report) == {"fences": 1} and "although fence 11 was out" in report.fences[0]


@pytest.mark.parametrize("by", ["w1", "w2"])
def test_a_settle_by_somebody_who_never_had_the_lease_is_found(history: History, by: str) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"), by="w3")
    history.settle(1, 10, by=by)

    assert faults_of(history.report()) == {"fences": 1}


def test_a_stale_settle_that_was_refused_is_right(history: History) -> None:
    history.submit("a", 1)
    history.deliver((1, 10, "a/0"))
    history.deliver((1, 11, "a/0"), by="w2")
    history.settle(1, 10, "LEASE_LOST", by="w1")
    history.settle(1, 11, by="w2")

    assert history.report().faults == []


@pytest.mark.parametrize("keys", [("b/0", "a/0"), ("b/1", "b/0")])
def test_an_answer_against_first_in_first_out_is_found(history: History, keys: tuple[str, str]) -> None:
    history.submit("a", 1)
    history.submit("b", 2, 3)
    ids = {"a/0": 1, "b/0": 2, "b/1": 3}
    history.deliver(*((ids[key], 10 + place, key) for place, key in enumerate(keys)))

    assert len(history.report().order) == 1


def test_an_answer_against_priority_is_found(history: History) -> None:
    history.submit("a", 1, priority=5)
    history.submit("b", 2, priority=1)
    history.deliver((1, 10, "a/0"), (2, 11, "b/0"))

    assert len(history.report().order) == 1


def test_who_was_first_among_overlapping_submits_is_open(history: History) -> None:
    history.submit("a", 1, answer="")
    history.submit("b", 2)
    history.add("submit", "ok", "a", ids=[1])
    history.deliver((2, 10, "b/0"), (1, 11, "a/0"))

    assert history.report(one_consumer=True).order == []


@pytest.mark.parametrize("priority", [1, 5])
def test_a_worse_job_in_an_earlier_answer_is_found_with_one_consumer(history: History, priority: int) -> None:
    history.submit("a", 1, priority=priority)
    history.submit("b", 2, priority=5)
    history.deliver((2, 10, "b/0"))
    history.deliver((1, 11, "a/0"))

    assert len(history.report(one_consumer=True).order) == 1 and history.report().order == []


def test_a_job_that_was_submitted_after_the_reserve_may_come_later(history: History) -> None:
    history.submit("b", 2, priority=5)
    history.add("reserve", "invoke", "r")
    history.submit("a", 1, priority=1)
    history.add("reserve", "ok", "r", jobs=[[2, 10, "b/0", "d-b/0"]])
    history.deliver((1, 11, "a/0"))

    assert history.report(one_consumer=True).order == []


def test_histories_are_merged_by_time_and_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps({"at": 3}) + "\n" + json.dumps({"at": 1}) + "\n")
    (tmp_path / "b").write_text(json.dumps({"at": 2}) + "\n" + '{"at": 4, "b')

    assert [event["at"] for event in checker.load([tmp_path / "a", tmp_path / "b"])] == [1, 2, 3]
