"""What `@task` makes of a function: the function, its options, its calls bound at enqueue time; and how a task ends a run its own way."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from greenroom import tasks
from greenroom.clock import Clock
from greenroom.default_client import default_client, set_default_client
from greenroom.errors import ConfigError, InvalidError
from greenroom.job import OPTIONS, Option
from greenroom.pools import RunItem, outcome_of
from greenroom.task_functions import TaskFunction
from greenroom.tasks import Context, DontRetry, Retry, Snooze, task
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `@task` of a test register in a registry of its own."""
    monkeypatch.setattr(tasks, "default_registry", tasks.Registry())


@pytest.fixture
def all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options that retries and unique jobs need, should the table not have them."""
    for name, kind in (("attempts", "int"), ("unique_key", "text")):
        if name not in OPTIONS:
            monkeypatch.setitem(OPTIONS, name, Option(name, kind, lambda value: value, None, ""))


class Taken:
    """Stands where a client would, and keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[dict] = []

    def submit(self, task: str, payload: object, **options: object) -> int:
        self.jobs.append({"task": task, "payload": payload, **options})
        return len(self.jobs)

    def submit_many(self, jobs: object) -> list[int]:
        return [self.submit(**job) for job in jobs]


@pytest.fixture
def taken() -> Iterator[Taken]:
    taken = Taken()
    before = set_default_client(taken)
    yield taken
    set_default_client(before)


def add(a: int, b: int = 2, *, context: Context | None = None) -> int:
    """Add."""
    return a + b


@task
def module_level(a: int) -> int:
    return a * 3


# Still a function.

def test_a_task_is_called_described_and_inspected_like_its_function() -> None:
    made = task(name="sum", queue="q")(add)

    assert made(1) == 3 and made(1, b=5) == 6
    assert (made.__name__, made.__doc__, made.__module__, made.name) == ("add", "Add.", __name__, "sum")
    assert inspect.signature(made) == inspect.signature(add) and inspect.unwrap(made) is add
    assert tasks.list_tasks() == ["sum"] and repr(made) == "<task sum>"


def test_a_task_is_wrapped_copied_and_pickled_like_its_function() -> None:
    @functools.wraps(module_level)
    def around(a: int) -> int:
        return module_level(a)

    assert around.__name__ == "module_level" and around(2) == 6
    assert copy.deepcopy(module_level) is module_level
    assert pickle.loads(pickle.dumps(module_level)) is module_level


def test_a_copy_with_other_options_is_pickled_with_them_but_not_with_a_client(taken: Taken) -> None:
    again = pickle.loads(pickle.dumps(module_level.using(priority=2).using(queue="mail")))

    assert (again(2), again.options) == (6, {"priority": 2, "queue": "mail"})
    with pytest.raises(TypeError, match="client of its own can't be pickled"):
        pickle.dumps(module_level.using(client=taken))


def test_a_task_of_a_task_and_a_bare_decorator_are_fine() -> None:
    other = task(name="other")(module_level)

    assert isinstance(module_level, TaskFunction) and other.name == "other" and other(1) == 3 and module_level.name == "module_level"


@pytest.mark.parametrize("options, error, words", [
    ({"colour": "red"}, TypeError, "task has no option 'colour'; it has queue, priority, delay"),
    ({"payload": b""}, TypeError, "no option 'payload'"),
    ({"encoding": "raw"}, TypeError, "no option 'encoding'"),
    ({"priority": 11}, InvalidError, "priority must be an integer from 1"),
    ({"queue": "a b"}, InvalidError, "queue must be"),
    ({"delay": 1, "run_at": 5}, InvalidError, "exclude each other"),
    ({"name": "a b"}, ValueError, "is not a task name"),
])
def test_a_bad_option_is_refused_at_the_decorator_and_nothing_is_registered(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        task(**options)(add)
    assert tasks.list_tasks() == []


# Enqueueing.

def test_enqueue_and_its_synonyms_bind_the_call_and_leave_defaults_and_context_to_the_worker(taken: Taken) -> None:
    made = task(add)

    made.enqueue(1)
    made.delay(1, 5)
    made.send(a=1, b=2)

    assert taken.jobs == [{"task": "add", "payload": {"a": 1}}, {"task": "add", "payload": {"a": 1, "b": 5}},
                          {"task": "add", "payload": {"a": 1, "b": 2}}]


@pytest.mark.parametrize("args, kwargs, words", [
    ((), {}, "task add: missing a required argument: 'a'"),
    ((1, 2, 3), {}, "task add: too many positional arguments"),
    ((1,), {"c": 1}, "task add: got an unexpected keyword argument 'c'"),
    ((1,), {"context": None}, "unexpected keyword argument 'context'"),
    ((1,), {"a": 2}, "multiple values for argument 'a'"),
])
def test_a_call_that_does_not_fit_is_a_type_error_here_and_nothing_is_submitted(taken: Taken, args: tuple, kwargs: dict,
                                                                              words: str) -> None:
    with pytest.raises(TypeError, match=words):
        task(add).enqueue(*args, **kwargs)
    assert taken.jobs == []


def test_keyword_catchers_take_any_name_and_star_args_none(taken: Taken) -> None:
    def collect(first: int, *rest: int, **more: int) -> None:
        pass

    made = task(collect)
    made.enqueue(1, x=2, first_of=3)

    assert taken.jobs[0]["payload"] == {"first": 1, "x": 2, "first_of": 3}
    with pytest.raises(TypeError, match="too many positional"):
        made.enqueue(1, 2)


def test_options_come_from_the_decorator_and_using_lays_others_over_them(taken: Taken) -> None:
    made = task(queue="mail", priority=3, delay=60)(add)
    moment = datetime(2030, 1, 1, tzinfo=timezone.utc)

    made.enqueue(1)
    made.using(priority=1, run_at=moment).enqueue(1)
    made.using(queue=None, delay=None).enqueue(1)

    options = [{name: value for name, value in job.items() if name not in ("task", "payload")} for job in taken.jobs]
    assert options == [{"queue": "mail", "priority": 3, "delay": 60}, {"queue": "mail", "priority": 1, "run_at": 1893456000.0},
                       {"priority": 3}]
    assert made.options == {"queue": "mail", "priority": 3, "delay": 60}
    with pytest.raises(TypeError, match="no option 'prority'"):
        made.using(prority=1)
    with pytest.raises(InvalidError, match="priority must be"):
        made.using(priority=0)


def test_using_names_a_client(taken: Taken) -> None:
    other = Taken()

    module_level.using(client=other).using(priority=2).enqueue(1)

    assert taken.jobs == [] and other.jobs == [{"task": "module_level", "payload": {"a": 1}, "priority": 2}]


def test_map_takes_tuples_dicts_and_single_values_as_calls(taken: Taken) -> None:
    assert task(priority=7)(add).map([(1, 2), {"a": 3, "b": 4}, 5]) == [1, 2, 3]

    assert [job["payload"] for job in taken.jobs] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5}]
    assert {job["priority"] for job in taken.jobs} == {7}


def test_the_default_client_is_made_once_from_the_environment(monkeypatch: pytest.MonkeyPatch, certificates: object) -> None:
    before = set_default_client(None)
    try:
        monkeypatch.setenv("GREENROOM_URL", "greenroom://localhost:1")
        monkeypatch.setenv("GREENROOM_CA", "nowhere.crt")
        with pytest.raises(ConfigError, match="nowhere.crt"):
            default_client()
        monkeypatch.setenv("GREENROOM_CA", str(certificates / "ca.crt"))

        assert default_client() is default_client() and default_client().endpoint.address == "localhost:1"
    finally:
        set_default_client(before)


def test_threads_that_enqueue_first_at_the_same_time_share_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Slow:
        def __init__(self) -> None:
            made.append(self)
            time.sleep(0.05)

    monkeypatch.setattr("greenroom.client.Client", Slow)
    before = set_default_client(None)
    got: list[object] = []
    try:
        threads = [threading.Thread(target=lambda: got.append(default_client())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        set_default_client(before)

    assert len(made) == 1 and got == made * 8


FORK = """
import os, threading
from greenroom import default_client

held, forked = threading.Event(), threading.Event()

def hold():
    with default_client._lock:
        held.set()
        forked.wait(20)

thread = threading.Thread(target=hold)
thread.start()
held.wait(20)
child = os.fork()
if child == 0:
    default_client.set_default_client("the child's")
    os._exit(0 if default_client.default_client() == "the child's" else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
forked.set()
thread.join()
"""


def test_a_child_forked_while_another_thread_makes_the_client_is_not_stuck() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


# Options.

@pytest.mark.usefixtures("all_options")
def test_retries_and_attempts_of_a_task_are_one_option(taken: Taken) -> None:
    task(retries=0)(add).enqueue(1)
    task(attempts=5)(add).using(retries=2).enqueue(1)

    assert [job["attempts"] for job in taken.jobs] == [1, 3]


# Unique keys.

@pytest.mark.usefixtures("all_options")
def test_unique_true_makes_the_key_of_task_and_arguments_however_they_are_given(taken: Taken) -> None:
    made = task(unique=True)(add)

    made.enqueue(1)
    made.enqueue(b=2, a=1)
    made.enqueue(1, 3)
    made.enqueue(1.0)
    task(name="other", unique=True)(add).enqueue(1)

    keys = [job["unique_key"] for job in taken.jobs]
    assert keys[0] == keys[1] and len(set(keys)) == 4 and keys[0].startswith("add:") and all(len(key) <= 256 for key in keys)
    assert taken.jobs[0]["payload"] == {"a": 1}


@pytest.mark.usefixtures("all_options")
def test_equal_payloads_have_equal_keys_and_types_are_told_apart(taken: Taken) -> None:
    def anything(value: object) -> None:
        pass

    made = task(unique=True)(anything)

    for value in ({"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": 1}, {"a": 1, "b": [1, "2"]}, b"x", "x", True, 1, None, 10**5000, "\ud800"):
        made.enqueue(value)

    keys = [job["unique_key"] for job in taken.jobs]
    assert keys[0] == keys[1] and len(set(keys[1:])) == len(keys) - 1
    with pytest.raises(TypeError, match="a set can't be in a payload"):
        made.enqueue({1})


@pytest.mark.usefixtures("all_options")
def test_what_goes_with_a_key_goes_with_unique(taken: Taken) -> None:
    task(unique="sum {a}", unique_mode="debounce", unique_for=5, debounce_max=9)(add).enqueue(1)
    [job] = taken.jobs
    assert (job["unique_key"], job["unique_mode"], job["debounce_max"]) == ("sum 1", "debounce", 9)
    with pytest.raises(InvalidError, match="unique_for needs a unique_key"):
        task(unique_for=5)(add)
    with pytest.raises(InvalidError, match="delay and the unique_mode debounce exclude each other"):
        task(unique=True, unique_mode="debounce", unique_for=5, delay=1)(add)


def test_unique_may_be_a_format_string_or_a_function_of_the_arguments(taken: Taken) -> None:
    task(unique="sum {a}-{b}")(add).enqueue(1)
    task(unique=lambda a, **others: f"a{a}")(add).enqueue(7)
    task(unique=True)(add).using(unique_key="mine").enqueue(1)
    task(unique=True)(add).using(unique=False).enqueue(1)

    assert [job.get("unique_key") for job in taken.jobs] == ["sum 1-2", "a7", "mine", None]
    with pytest.raises(ValueError, match="unique='{c}' names 'c', which is none of its parameters"):
        task(unique="{c}")(add)
    with pytest.raises(TypeError, match="unique must be True, a format string or a function"):
        task(unique=5)(add)
    with pytest.raises(TypeError, match="what unique returns must be text, not int"):
        task(unique=lambda a, b: 5)(add).enqueue(1)


# Ending a run in a way of its own.

ITEM = RunItem(7, 9, "t", b"\x80")


def test_the_ways_to_end_a_run_become_settle_items() -> None:
    def settle(exc: BaseException) -> list:
        return outcome_of(ITEM, exc, 0.5).settle_item()

    assert settle(Snooze(30)) == [7, 9, "snooze", 30.0]
    assert settle(Retry(at=1893456000))[2:] == ["fail", settle(Retry(at=1893456000))[3], {"retry_at": 1893456000.0}]
    assert settle(Retry(at=datetime(2030, 1, 1, tzinfo=timezone.utc)))[4] == {"retry_at": 1893456000.0}
    assert settle(DontRetry("bad address"))[4] == {"retry": False} and settle(DontRetry("bad address"))[3]["message"] == "bad address"
    assert len(settle(ValueError("x"))) == 4


def test_retry_in_is_counted_from_now() -> None:
    before = Clock().now()

    at = Retry(in_=60).at

    assert before + 60 <= at <= Clock().now() + 60


def test_a_retry_without_a_text_records_its_cause() -> None:
    def failed_with(text: tuple[str, ...]) -> dict:
        try:
            try:
                raise KeyError("gone")
            except KeyError as exc:
                raise Retry(*text, in_=1) from exc
        except Retry as exc:
            return outcome_of(ITEM, exc, 0.0).error

    assert (failed_with(())["name"], failed_with(())["message"]) == ("KeyError", "'gone'")
    assert (failed_with(("later",))["name"], failed_with(("later",))["message"]) == ("Retry", "later")
    assert "KeyError" in failed_with(("later",))["traceback"] and "Retry" in failed_with(())["traceback"]


@pytest.mark.parametrize("make", [lambda: Snooze(-1), lambda: Snooze("5"), lambda: Snooze(float("nan")), lambda: Snooze(4e7), Retry,
                                  lambda: Retry(at=1, in_=1), lambda: Retry(in_=True), lambda: Retry(at="soon"), lambda: Retry(at=-1)])
def test_a_time_that_is_none_is_a_value_error(make: object) -> None:
    with pytest.raises(ValueError):
        make()


def test_the_context_snoozes() -> None:
    context = Context(job_id=1, fence=1, attempt=1, task="t", queue="q", worker="w")

    with pytest.raises(Snooze) as caught:
        context.snooze(12)
    assert caught.value.seconds == 12.0
