"""The client without a broker that users' tests get: inline, captured, moved in time."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from unittest.mock import ANY

import pytest

from greenroom import tasks
from greenroom.client import SubmitError
from greenroom.default_client import set_default_client
from greenroom.errors import FinishedError, InvalidError, JobFailedError, NotFoundError, TooLargeError, WaitTimeoutError
from greenroom.tasks import Context, DontRetry, Registry, Retry, UnknownTaskError, task
from greenroom.testing import LocalClient


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(tasks, "default_registry", registry)
    return registry


@pytest.fixture
def inline(registry: Registry) -> Iterator[LocalClient]:
    yield from _installed(LocalClient(inline=True, registry=registry))


@pytest.fixture
def capture(registry: Registry) -> Iterator[LocalClient]:
    yield from _installed(LocalClient(inline=False, registry=registry))


def _installed(client: LocalClient) -> Iterator[LocalClient]:
    before = set_default_client(client)
    yield client
    set_default_client(before)


def resize(path: str, width: int = 800) -> list:
    return [path, width]


# Inline.

def test_inline_a_job_is_done_when_enqueue_returns_and_its_values_went_through_the_wires_form(inline: LocalClient) -> None:
    @task
    def show(value: object, context: Context) -> tuple:
        return value, context.attempt, context.task

    handle = show.enqueue((1, 2**70))

    assert handle.result() == [[1, str(2**70)], 1, "show"]
    view = handle.status()
    assert (view["state"], view["queue"], view["priority"], view["worker"]) == ("completed", "default", 5, "local")


def test_inline_what_a_task_raises_leaves_enqueue_and_the_job_is_failed(inline: LocalClient) -> None:
    @task
    def boom() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        boom.enqueue()

    assert inline.submitted[0].error["name"] == "LookupError"
    with pytest.raises(JobFailedError, match="job 1 ended failed: LookupError: nothing here"):
        inline.handle(1).result()


def test_inline_without_raising_a_failure_is_told_by_the_handle(inline: LocalClient) -> None:
    inline.raise_errors = False

    @task
    def boom() -> None:
        raise DontRetry() from LookupError("nothing here")

    with pytest.raises(JobFailedError, match="LookupError: nothing here"):
        boom.enqueue().result()


def test_inline_a_result_that_cannot_be_sent_and_a_task_that_is_not_there_are_errors(inline: LocalClient) -> None:
    with pytest.raises(Exception, match="the result of task bad can't be sent"):
        task(name="bad")(lambda: {1, 2}).enqueue()
    with pytest.raises(UnknownTaskError):
        inline.submit("nowhere", {})


def test_inline_tasks_enqueue_others_and_map_runs_all(inline: LocalClient) -> None:
    seen: list[int] = []

    @task
    def leaf(number: int) -> int:
        seen.append(number)
        return number * 2

    @task
    def root(numbers: list) -> list:
        return [handle.result() for handle in leaf.map(numbers)]

    assert root.enqueue([1, 2, 3]).result() == [2, 4, 6] and seen == [1, 2, 3]


def test_a_test_that_fails_inside_a_task_fails_also_when_errors_are_kept(inline: LocalClient) -> None:
    inline.raise_errors = False
    with pytest.raises(pytest.fail.Exception):
        task(name="t")(lambda: pytest.fail("inside")).enqueue()


def test_bad_submits_are_refused_as_by_a_client(inline: LocalClient) -> None:
    made = task(name="t")(resize)
    for error, options in ((InvalidError, {"priority": 0}), (TypeError, {"colour": 1})):
        with pytest.raises(error):
            inline.submit("t", {"path": "a"}, **options)
    with pytest.raises(InvalidError, match="payload"):
        made.enqueue({1, 2})
    with pytest.raises(TooLargeError):
        made.enqueue("x" * 2**20)
    with pytest.raises(SubmitError) as caught:
        made.map([("a",), ("b", 1, 2), ("c",)])

    assert [handle.id for handle in caught.value.handles] == [1] and isinstance(caught.value.__cause__.__cause__, TypeError)
    assert inline.submitted[0].state == "completed" and len(inline.submitted) == 1


# Time.

def test_a_job_for_later_runs_when_time_has_come(inline: LocalClient) -> None:
    handle = task(name="t")(resize).using(delay=60).enqueue("a.png")

    inline.advance(59)
    assert handle.status()["state"] == "scheduled"
    inline.advance(1)
    assert handle.result() == ["a.png", 800]
    with pytest.raises(ValueError, match="never steps back"):
        inline.advance(-1)


def test_time_can_be_set(inline: LocalClient) -> None:
    moment = datetime(2100, 1, 1, tzinfo=timezone.utc)
    handle = task(name="t")(resize).using(run_at=moment).enqueue("a.png")

    inline.set_time(4102444799)
    assert handle.status()["state"] == "scheduled" and 0 <= inline.now() - 4102444799 < 1
    inline.set_time(moment)
    assert handle.status()["state"] == "completed"


def test_snooze_and_retry_let_a_job_run_again_when_its_task_said(inline: LocalClient) -> None:
    attempts: list[int] = []

    @task
    def stubborn(context: Context) -> str:
        attempts.append(context.attempt)
        if context.attempt == 1:
            context.snooze(30)
        if context.attempt == 2:
            raise Retry(in_=60)
        return "done"

    handle = stubborn.enqueue()
    assert attempts == [1] and handle.status()["state"] == "scheduled"
    inline.advance(30)
    inline.advance(59)
    assert attempts == [1, 2]
    inline.advance(1)
    assert attempts == [1, 2, 3] and handle.result() == "done"


# Capture.

def test_captured_jobs_run_when_told_by_priority_and_in_order(capture: LocalClient) -> None:
    seen: list[str] = []
    made = task(name="t")(lambda name: seen.append(name))
    made.map(["a", "b"])
    made.using(priority=1).enqueue("urgent")
    handle = made.using(delay=5).enqueue("late")

    with pytest.raises(WaitTimeoutError, match="job 1 \\(t\\) is queued, and nothing runs by itself here: call run_due"):
        capture.handle(1).result()
    assert seen == [] and capture.run_due() == 3 and seen == ["urgent", "a", "b"]
    capture.advance(5)
    assert handle.status()["state"] == "scheduled" and capture.run_due() == 1 and handle.result() is None


def test_a_captured_job_can_be_cancelled_once(capture: LocalClient) -> None:
    handle = task(name="t")(resize).enqueue("a")

    assert handle.cancel() == "cancelled" and capture.run_due() == 0
    with pytest.raises(FinishedError):
        handle.cancel()
    with pytest.raises(NotFoundError):
        capture.handle(9).cancel()
    with pytest.raises(NotFoundError):
        capture.handle(9).status()


def test_a_run_over_its_soft_limit_is_told_as_time_passes_or_is_moved(inline: LocalClient) -> None:
    @task(name="patient", soft_timeout=0.01)
    def patient(context: Context, moves: float = 0) -> list:
        before = context.cancelled
        inline.advance(moves)
        return [before, context.cancelled, context.wait(20)]

    assert patient.enqueue().result()[2] is True
    assert patient.using(soft_timeout=60).enqueue(moves=60).result() == [False, True, True]


def test_the_cookbooks_task_notes_how_far_it_is_and_goes_on(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("two words\n" * 30)
    runpy.run_path(str(Path(__file__).parents[2] / "docs/examples/in_time.py"))
    client = LocalClient(inline=True, registry=registry)

    handle = client.submit("count_words", {"path": str(tmp_path / "text")}, soft_timeout=0.1)
    assert handle.status()["state"] == "scheduled"
    while handle.status()["state"] == "scheduled":
        client.advance(1)

    assert handle.result() == {"lines": 30, "words": 60} and not (tmp_path / "text.place").exists()


def test_an_endless_chain_of_jobs_is_ended(capture: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.testing.MOST_RUNS", 20)

    @task
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(RuntimeError, match="20 runs, and there are still jobs that are due"):
        capture.run_due()


def test_threads_submit_at_once(capture: LocalClient) -> None:
    made = task(name="t")(resize)
    threads = [threading.Thread(target=lambda: made.map(["x"] * 200)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert [job.id for job in capture.submitted] == list(range(1, 801)) and capture.run_due() == 800


# Assertions.

def test_enqueued_jobs_are_found_by_task_arguments_and_options(capture: LocalClient) -> None:
    made = task(name="resize", queue="images")(resize)
    made.enqueue("a.png")
    made.using(priority=1).enqueue("b.png", width=100)
    capture.submit("other", {"path": ("a", "b")})

    assert [job.id for job in capture.assert_enqueued(made)] == [1, 2]
    assert capture.assert_enqueued("resize", count=2, options={"queue": "images"})[1].arguments == {"path": "b.png", "width": 100}
    capture.assert_enqueued(made, count=1, path="a.png", width=800)  # its default
    capture.assert_enqueued(made, count=1, options={"priority": 1}, path=ANY)
    capture.assert_enqueued("other", path=("a", "b"), count=1)
    capture.assert_enqueued(made, count=0, path="c.png")
    capture.assert_not_enqueued(made, path="c.png")
    capture.assert_not_enqueued("nobody")


def test_a_failed_assertion_lists_what_was_enqueued(capture: LocalClient) -> None:
    made = task(name="resize")(resize)
    with pytest.raises(AssertionError) as nothing:
        capture.assert_enqueued(made, path="c.png", options={"queue": "images"})
    made.using(queue="images").enqueue("a.png" + "x" * 500)
    made.map(["m"] * 30)

    with pytest.raises(AssertionError) as other:
        capture.assert_enqueued(made, path="c.png")
    with pytest.raises(AssertionError) as number:
        capture.assert_enqueued(made, count=1, path="m")
    with pytest.raises(AssertionError) as some:
        capture.assert_not_enqueued()

    assert str(nothing.value) == ("no job of resize(path='c.png') with queue='images' enqueued, at least one was expected; "
                                  "nothing was enqueued at all")
    lines = str(other.value).splitlines()
    assert lines[0] == "no job of resize(path='c.png') enqueued, at least one was expected; enqueued were:"
    assert lines[1].startswith("  job 1: resize(path='a.pngxxx") and lines[1].endswith("…) with queue='images', queued")
    assert lines[2] == "  job 2: resize(path='m'), queued" and len(lines) == 22 and lines[-1] == "  … and 11 more"
    assert str(number.value).startswith("30 jobs of resize(path='m') enqueued, 1 expected")
    assert str(some.value).startswith("31 of any task() enqueued, none expected")


def test_an_assertion_that_could_never_be_wrong_is_refused(capture: LocalClient) -> None:
    made = task(name="resize")(resize)

    with pytest.raises(TypeError, match="task resize has no parameter 'pth'; it has path, width"):
        capture.assert_not_enqueued(made, pth="a")
    with pytest.raises(TypeError, match="a job has no option 'que'"):
        capture.assert_not_enqueued(made, options={"que": "a"})
