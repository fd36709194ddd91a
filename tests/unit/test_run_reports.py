"""The box between tasks and whoever sends on what they say: nothing waits, nothing grows without bound, nothing is lost unsaid."""

from __future__ import annotations

import threading

import pytest

from greenroom.context import Context
from greenroom.job_log import LINE_CHARACTERS, TEXT_CHARACTERS
from greenroom.protocol import parse_report
from greenroom.run_reports import ITEM_LINES, TAKEN_LINES, WAITING_CHARACTERS, WAITING_LINES, ReportBox

KEY = (7, 12)


def context(box: ReportBox | None, job_id: int = 7) -> Context:
    return Context(job_id=job_id, fence=12, attempt=1, task="t", queue="q", worker="w", reports=box)


def all_lines(box: ReportBox) -> list[str]:
    lines = []
    while items := box.take():
        assert all(len(item[4]) <= ITEM_LINES for item in items) and sum(len(item[4]) for item in items) <= TAKEN_LINES + ITEM_LINES
        assert all(parse_report(item) for item in items), "the wire takes it"
        lines += [line[1] for item in items for line in item[4]]
    return lines


def test_what_a_task_says_is_taken_once_as_the_wire_has_it() -> None:
    box = ReportBox()
    task = context(box)
    task.progress(0.25, "first")
    task.progress(0.5)
    task.log("one\ntwo")
    task.log("")

    [[job, fence, fraction, text, lines]] = box.take()

    assert (job, fence, fraction, text, [line[1] for line in lines]) == (7, 12, 0.5, None, ["one", "two", ""])
    assert lines[0][0] > 1.7e9 and not box and box.take() == []


def test_news_are_told_once_until_they_are_taken() -> None:
    box, told = ReportBox(), []
    box.on_news = lambda: told.append(1)
    task = context(box)
    for _ in range(3):
        task.log("x")
        task.progress(0.5)
    assert len(told) == 1
    box.take()
    task.progress(0.6)
    assert len(told) == 2


@pytest.mark.parametrize("fraction, taken", [(-1, 0.0), (1.0000001, 1.0), (True, 1.0), (0, 0.0), (float("inf"), 1.0)])
def test_a_fraction_beside_the_range_is_taken_for_its_end(fraction: float, taken: float) -> None:
    box = ReportBox()
    context(box).progress(fraction)

    assert box.take() == [[7, 12, taken, None, []]]


@pytest.mark.parametrize("arguments, error", [(("0.5",), ValueError), ((float("nan"),), ValueError), ((None,), ValueError), ((0.5, 5), TypeError)])
def test_a_progress_that_is_none_is_an_error_of_the_task(arguments: tuple, error: type) -> None:
    with pytest.raises(error):
        context(ReportBox()).progress(*arguments)
    with pytest.raises(TypeError):
        context(ReportBox()).log(5)


def test_long_texts_are_cut_and_lone_surrogates_can_be_sent() -> None:
    box = ReportBox()
    task = context(box)
    task.progress(None, "t" * 999)
    task.log("ä\ud800" * 2000)

    [[_, _, fraction, text, [[_, line]]]] = box.take()

    assert fraction is None and len(text) == TEXT_CHARACTERS and len(line) == LINE_CHARACTERS and line.startswith("ä\\ud800ä")


def test_without_anybody_who_listens_a_task_may_say_all_the_same() -> None:
    context(None).progress(0.5)
    context(None).log("x")


def test_a_task_that_writes_too_fast_is_told_of_in_its_log() -> None:
    box = ReportBox()
    task = context(box)
    for number in range(WAITING_LINES + 250):
        task.log(str(number))

    lines = all_lines(box)

    assert lines[:WAITING_LINES] == [str(number) for number in range(WAITING_LINES)]
    assert len(lines) == WAITING_LINES + 1 and "250 lines were left out" in lines[-1]
    task.log("again")
    assert all_lines(box) == ["again"]


def test_all_runs_together_keep_no_more_than_the_bound() -> None:
    box = ReportBox()
    for job_id in range(1, 40):
        for _ in range(200):
            context(box, job_id).log("x" * 2000)
    kept = sum(len(line) for line in all_lines(box) if line.startswith("x"))

    assert WAITING_CHARACTERS <= kept <= WAITING_CHARACTERS + 2000


def test_what_did_not_get_through_comes_before_what_was_said_since() -> None:
    box = ReportBox()
    task = context(box)
    task.progress(0.1, "old")
    task.log("one")
    taken = box.take()
    task.progress(0.2, "new")
    task.log("two")

    box.put_back(taken)

    [[_, _, fraction, text, lines]] = box.take()
    assert (fraction, text, [line[1] for line in lines]) == (0.2, "new", ["one", "two"])


def test_a_box_passes_on_what_another_gave_out() -> None:
    child, worker = ReportBox(), ReportBox()
    task = context(child)
    task.progress(0.5, "half")
    task.log("one")
    items = child.take()

    worker.put(items)

    assert worker.take() == items


def test_what_nobody_wants_to_hear_any_more_is_forgotten() -> None:
    box = ReportBox()
    context(box).log("x")
    box.forget(KEY)
    box.forget(KEY)

    assert not box and box._characters == 0


def test_many_threads_lose_nothing() -> None:
    box, seen = ReportBox(), []

    def write(job_id: int) -> None:
        for number in range(300):
            context(box, job_id).log(f"{job_id}.{number}")

    threads = [threading.Thread(target=write, args=(job_id,)) for job_id in range(1, 9)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or box:
        seen += [line[1] for item in box.take() for line in item[4]]
    assert len(seen) == 2400 and box._characters == 0
    for job_id in range(1, 9):
        assert [line for line in seen if line.startswith(f"{job_id}.")] == [f"{job_id}.{number}" for number in range(300)]
