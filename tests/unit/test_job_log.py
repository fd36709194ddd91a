"""What running jobs tell of themselves: in virtual time, over engine, commit rule, waits and memory store."""

from __future__ import annotations

import pytest

from greenroom.errors import InvalidError
from greenroom.job import Job
from greenroom.job_log import HALF_BYTES, HALF_LINES, LINE_CHARACTERS, TEXT_CHARACTERS, Report, take_lines
from greenroom.leases import CHECKPOINT_AFTER_S
from greenroom.protocol import parse_report
from greenroom.records import ReportItem
from greenroom.views import view
from tests.core import Core, Peer, check, new_job, reserved, submitted


def running(core: Core, **options: object) -> tuple[Peer, int]:
    """Return a worker that has begun a job, and the job's id."""
    worker = core.connect("w", instance=b"i" * 16)
    [job_id] = submitted(core, new_job(**options))
    assert reserved(worker) == [job_id]
    return worker, job_id


def texts(core: Core, job_id: int, after: int = 0, limit: int = 1000) -> list[str]:
    return [line.text for line in core.store.reader().lines(job_id, after, limit)]


# -- which lines are kept ---------------------------------------------------------------------------------------------------


def kept(lines: list[str]) -> tuple[int, int, Report]:
    """Write lines one by one; return the first and last number that is kept, and what the job notes."""
    job = Job(1, "q", "t", 5, b"", False, 0.0)
    for text in lines:
        take_lines(job, [(0.0, text)])
    return job.report.first, job.report.last, job.report


@pytest.mark.parametrize("count, first", [(1, 1), (2 * HALF_LINES, 1), (2 * HALF_LINES + 1, HALF_LINES + 1), (5 * HALF_LINES, 3 * HALF_LINES + 1)])
def test_the_latest_lines_are_kept_between_one_half_and_two(count: int, first: int) -> None:
    assert kept(["x"] * count)[:2] == (first, count)


def test_bytes_bound_them_too_and_a_line_is_never_too_long_to_be_kept() -> None:
    long = "ä" * 2000
    first, last, report = kept([long] * 200)

    assert (last - first + 1) * len(long.encode()) <= report.kept_bytes <= 2 * (HALF_BYTES + HALF_LINES)
    assert (last - first + 1) * len(long.encode()) > HALF_BYTES - len(long.encode())


# -- the wire's items -------------------------------------------------------------------------------------------------------


def test_a_report_is_read_with_its_defaults_and_long_texts_are_cut() -> None:
    assert parse_report([7, 2]) == ReportItem(7, 2, None, None, [])
    assert parse_report([7, 2, 1, None, None, "more"]) == ReportItem(7, 2, 1.0, None, [])
    item = parse_report([7, 2, 0.5, "t" * 999, [[3, "l" * 9999]]])
    assert (len(item.text), len(item.lines[0][1]), item.lines[0][0]) == (TEXT_CHARACTERS, LINE_CHARACTERS, 3.0)


@pytest.mark.parametrize("item, field", [
    ({}, "leases"), ([7], "leases"), ([0, 1], "leases"), ([7, 2, 1.01], "fraction"), ([7, 2, -0.1], "fraction"), ([7, 2, "1"], "fraction"),
    ([7, 2, True], "fraction"), ([7, 2, float("nan")], "fraction"), ([7, 2, None, 5], "text"), ([7, 2, None, b"t"], "text"),
    ([7, 2, None, None, "line"], "lines"), ([7, 2, None, None, ["line"]], "lines"), ([7, 2, None, None, [["1", "line"]]], "lines"),
    ([7, 2, None, None, [[1, b"line"]]], "lines"), ([7, 2, None, None, [[-1, "line"]]], "lines"), ([7, 2, None, None, [[1, "line", 3]]], "lines"),
])
def test_a_bad_report_is_refused_by_the_name_of_its_field(item: object, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_report(item)
    assert caught.value.field == field


# -- in the broker ----------------------------------------------------------------------------------------------------------


def test_progress_is_shown_at_once_and_costs_no_row_of_its_own() -> None:
    core = Core()
    worker, job_id = running(core)
    commits = core.batches.commits

    told = worker.report(job_id, 0.25, "page 1 of 4")

    assert worker.outcome(told) == "OK" and core.batches.commits == commits and not core.batches.has_work
    shown = view(core.engine.jobs[job_id])
    assert (shown["progress"], shown["progress_text"]) == (0.25, "page 1 of 4")
    worker.report(job_id, None, "nearly")
    shown = view(core.engine.jobs[job_id])
    assert "progress" not in shown and shown["progress_text"] == "nearly"


def test_a_job_that_says_nothing_shows_nothing() -> None:
    core = Core()
    _, job_id = running(core)

    assert not {"progress", "progress_text"} & view(core.engine.jobs[job_id]).keys() and core.engine.jobs[job_id].report is None


def test_lines_are_answered_when_they_are_on_disk() -> None:
    core = Core()
    worker, job_id = running(core)
    core.begin_cycle()

    told = worker.report(job_id, None, None, "one", "two")
    assert told not in worker.answers
    core.end_cycle()
    assert told not in worker.answers and texts(core, job_id) == []
    core.run()

    assert worker.outcome(told) == "OK" and texts(core, job_id) == ["one", "two"]
    line, = core.store.reader().lines(job_id, 1, 10)
    assert (line.job, line.seq, line.attempt) == (job_id, 2, 1)


def test_a_stale_lease_reports_nothing() -> None:
    core = Core()
    worker, job_id = running(core)
    fence = worker.held[job_id]
    core.advance(16.0)  # silent for a lease time
    core.run()

    told = worker.report(job_id, 0.5, None, "late", fence=fence)
    core.run()

    assert worker.outcome(told) == "LEASE_LOST" and texts(core, job_id) == [] and core.engine.jobs[job_id].report is None


def test_a_report_is_a_sign_of_life() -> None:
    core = Core()
    worker, job_id = running(core)
    for step in range(4):
        core.advance(10.0)
        assert worker.outcome(worker.report(job_id, step / 4)) == "OK"


def test_what_was_acknowledged_survives_a_crash_and_numbers_go_on() -> None:
    core = Core()
    worker, job_id = running(core)
    core.advance(CHECKPOINT_AFTER_S + 0.1)
    core.run()
    worker.report(job_id, 0.5, "half", "one", "two")
    core.run()
    worker.report(job_id, 0.75, "more")
    worker.report(job_id, None, None, "never acknowledged")

    core.crash_and_restart()
    worker = core.connect("w", instance=b"i" * 16, presented=[(job_id, worker.held[job_id])])

    assert worker.presented == ["OK"] and texts(core, job_id) == ["one", "two"]
    shown = view(core.engine.jobs[job_id])
    assert (shown["progress"], shown["progress_text"]) == (0.5, "half"), "as of the latest row"
    worker.report(job_id, None, None, "three")
    core.run()
    assert [line.seq for line in core.store.reader().lines(job_id, 0, 10)] == [1, 2, 3]
    check(core)


def test_a_run_that_ends_the_job_leaves_its_progress_and_one_that_does_not_leaves_its_lines() -> None:
    core = Core()
    worker, job_id = running(core)
    worker.report(job_id, 0.5, "half", "first run")
    worker.settle("nack", job_id)
    core.run()
    assert "progress" not in view(core.engine.jobs[job_id])

    assert reserved(worker) == [job_id]
    worker.report(job_id, 0.75, None, "second run")
    worker.settle("ack", job_id)
    core.run()

    assert view(core.store.load([job_id])[job_id])["progress"] == 0.75
    assert [(line.seq, line.attempt, line.text) for line in core.store.reader().lines(job_id, 0, 10)] == [
        (1, 1, "first run"), (2, 2, "second run")]


def test_a_job_that_writes_without_end_keeps_a_bounded_number_of_lines() -> None:
    core = Core()
    worker, job_id = running(core)
    for step in range(30):
        worker.report(job_id, None, None, *(f"{step}.{line}" for line in range(100)))
        if step % 3:
            core.run()
    core.run()

    lines = core.store.reader().lines(job_id, 0, 5000)
    assert HALF_LINES <= len(lines) <= 2 * HALF_LINES and lines[-1].text == "29.99" and lines[-1].seq == 3000
    assert [line.seq for line in lines] == list(range(3001 - len(lines), 3001))


# -- waiting for lines ------------------------------------------------------------------------------------------------------


def test_who_follows_gets_new_lines_with_their_commit_and_is_told_the_end() -> None:
    core = Core()
    worker, job_id = running(core)
    viewer = core.connect("v", role="client")
    first = viewer.follow(job_id)
    worker.report(job_id, 0.5)
    core.run()
    assert first not in viewer.answers, "progress is no line"

    worker.report(job_id, None, None, "one", "two")
    assert first not in viewer.answers, "not before the disk has it"
    core.run()
    answer = viewer.answers[first]
    assert ([line[3] for line in answer["lines"]], answer["next"], answer["dropped"], answer["finished"]) == (["one", "two"], 2, 0, False)

    second = viewer.follow(job_id, answer["next"])
    worker.settle("ack", job_id)
    assert second not in viewer.answers
    core.run()
    assert viewer.answers[second] == {"lines": [], "next": 2, "dropped": 0, "finished": True}
    assert not core.waits.open and not core.waits._by_job


def test_a_follower_that_hears_nothing_is_answered_in_time_and_one_that_left_is_forgotten() -> None:
    core = Core()
    worker, job_id = running(core)
    viewer, gone = core.connect("v", role="client"), core.connect("g", role="client")
    waiting = viewer.follow(job_id, 7, seconds=5.0)
    gone.follow(job_id)
    gone.close()

    core.advance(4.9)
    assert waiting not in viewer.answers
    core.advance(0.2)
    assert viewer.answers[waiting] == {"lines": [], "next": 7, "dropped": 0, "finished": False}
    worker.report(job_id, None, None, "nobody listens")
    core.run()
    assert core.waits.open == 0


def test_a_follower_gets_no_more_than_it_asked_for_and_nothing_twice() -> None:
    core = Core()
    worker, job_id = running(core)
    viewer = core.connect("v", role="client")
    waiting = viewer.follow(job_id, 1, limit=2)

    worker.report(job_id, None, None, "a", "b", "c", "d")
    core.run()

    answer = viewer.answers[waiting]
    assert ([line[:1] for line in answer["lines"]], answer["next"]) == ([[2], [3]], 3)
