"""What a job is: the table of moves, rank, and the checks of a submit's fields."""

from __future__ import annotations

import math

import pytest

from greenroom.errors import InvalidError, TooLargeError
from greenroom.job import FINISHED_STATES, MOVES, NUMBER_LIMIT, OPTIONS, RETRYABLE_STATES, STATES, Job, State, move, parse_new_job, rank_of
from greenroom.lanes import Lane, Window


def make_job(state: State = State.QUEUED) -> Job:
    job = Job(1, "q", "t", 5, b"x", False, 0.0)
    job.lane = Lane("q", "t", Window(), [0] * STATES)
    job.state = state
    job.lane.count(state, 1)
    return job


def test_a_finished_job_moves_only_when_it_is_retried_and_a_completed_one_never() -> None:
    assert FINISHED_STATES == {State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED}
    assert all(MOVES[state] == ({State.QUEUED} if state in RETRYABLE_STATES else set()) for state in FINISHED_STATES)
    assert RETRYABLE_STATES == FINISHED_STATES - {State.COMPLETED}


@pytest.mark.parametrize("start", State)
@pytest.mark.parametrize("end", State)
def test_a_move_is_made_and_counted_if_the_table_has_it_and_changes_nothing_else(start: State, end: State) -> None:
    job = make_job(start)

    if end in MOVES[start]:
        move(job, end)
        assert job.state is end
    else:
        with pytest.raises(AssertionError, match="cannot go"):
            move(job, end)
        assert job.state is start

    assert job.lane.counts[job.state] == job.lane.totals[job.state] == 1
    assert sum(job.lane.counts) == sum(job.lane.totals) == 1


def test_rank_sorts_by_priority_and_then_by_place() -> None:
    places = [1, 2, NUMBER_LIMIT - 1]
    pairs = [(priority, place) for priority in (-1000, -1, 0, 1, 10, 1000) for place in places]

    assert sorted(pairs) == sorted(pairs, key=lambda pair: rank_of(*pair))


def test_only_the_task_is_required_and_the_rest_has_the_documented_defaults() -> None:
    for item in ({"task": "t"}, {"task": "t", "queue": "default"}, {"task": "t"}):  # the third is known by then
        options, payload = parse_new_job(item, 10)

        assert payload == b"\x80"
        assert (options.task, options.raw, options.queue, options.priority, options.run_at, options.delay) == (
            "t", False, "default", 5, None, None)


def test_a_field_that_is_nil_counts_as_left_out() -> None:
    item = {"task": "t", "payload": None, "encoding": None, "queue": None, "priority": None, "delay": None, "run_at": None}

    assert parse_new_job(item, 10) == parse_new_job({"task": "t"}, 10)


def test_unknown_fields_are_ignored() -> None:
    assert parse_new_job({"task": "t", "colour": "red"}, 10).options.task == "t"


BAD = {
    "task": [None, 5, b"t", "", "a b", "ä", "x" * 129, "a\n", "a/b"],
    "queue": ["", "a b", 1, ["q"]],
    "payload": ["text", 5, [1]],
    "encoding": ["json", 1, b"raw", ["raw"]],
    "priority": [0, 11, True, 5.0, "5"],
    "delay": [-1, 366 * 86400 + 1, math.nan, math.inf, True, "1"],
    "run_at": [-1, 253402300800, math.nan, -math.inf, False, "now"],
    "attempts": [0, 1001, True, 5.0, "5"],
    "retry_for": [0, 366 * 86400 + 1, math.nan, True, "1"],
    "backoff": ["", "Linear", 1, ["fixed"], b"none"],
    "backoff_base": [-1, 86401, math.inf, True, "1"],
    "backoff_cap": [-1, 366 * 86400 + 1, math.inf, True, "1"],
    "jitter": [0, 1, "true"],
    "retry_on": ["OSError", [1], [""], ["x" * 129], ["E"] * 21, {"E": 1}],
    "expires_in": [0, -1, 366 * 86400 + 1, math.nan, True, "1"],
    "timeout": [0, -1, 366 * 86400 + 1, math.nan, True, "1"],
    "soft_timeout": [0, -1, 366 * 86400 + 1, math.nan, True, "1"],
    "unique_key": ["", "x" * 257, 1, b"key", ["key"]],
    "unique_for": [0, -1, 366 * 86400 + 1, math.nan, True, "1"],
    "keep_for": [-0.001, 366 * 86400 + 1, math.nan, math.inf, True, "1"],
    "unique_mode": ["", "debounced", 1, ["throttle"]],
    "on_duplicate": ["", "drop", True, ["replace"]],
    "debounce_max": [0, -1, 366 * 86400 + 1, math.nan, True, "1"],
    "retry_never": ["OSError", [1], [""], ["x" * 129], ["E"] * 21, {"E": 1}],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_field_is_named(field: str, value: object) -> None:
    good = {"task": "t", "queue": "q", "payload": b"p", "encoding": "raw", "priority": 1}
    parse_new_job(good, 10)  # what is like a job that was checked before is checked all the same
    item = {**good, field: value}

    with pytest.raises(InvalidError) as caught:
        parse_new_job(item, 10)

    assert caught.value.field == field and field in caught.value.message


DEBOUNCED = {"unique_key": "k", "unique_mode": "debounce", "unique_for": 5}


@pytest.mark.parametrize("field, item", [
    ("unique_mode", {"unique_mode": "debounce"}), ("on_duplicate", {"on_duplicate": "keep"}), ("debounce_max", {"debounce_max": 5}),
    ("unique_for", {"unique_key": "k", "unique_mode": "debounce"}), ("debounce_max", {"unique_key": "k", "debounce_max": 5}),
    ("debounce_max", {**DEBOUNCED, "debounce_max": 4}), ("on_duplicate", {**DEBOUNCED, "on_duplicate": "keep"}),
    ("delay", {**DEBOUNCED, "delay": 0}), ("run_at", {**DEBOUNCED, "run_at": 0}),
])
def test_options_of_uniqueness_that_do_not_go_together_are_refused_by_name(field: str, item: dict) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_new_job({"task": "t", **item}, 10)

    assert caught.value.field == field and field in caught.value.message


def test_the_delay_of_a_debounced_job_is_its_quiet_time() -> None:
    options = parse_new_job({"task": "t", **DEBOUNCED, "debounce_max": 5, "on_duplicate": "replace"}, 10).options

    assert (options.delay, options.extras.unique_for, options.extras.debounce_max) == (5.0, 5.0, 5.0)


def test_every_option_has_a_test_of_bad_values() -> None:
    assert set(BAD) == set(OPTIONS)


@pytest.mark.parametrize("item", [None, [], "job", 5, {}])
def test_what_is_no_job_is_refused(item: object) -> None:
    with pytest.raises(InvalidError):
        parse_new_job(item, 10)


def test_the_payload_may_reach_the_limit_and_not_exceed_it() -> None:
    assert len(parse_new_job({"task": "t", "payload": bytes(10)}, 10).payload) == 10
    with pytest.raises(TooLargeError):
        parse_new_job({"task": "t", "payload": bytes(11)}, 10)


def test_delay_and_run_at_exclude_each_other() -> None:
    with pytest.raises(InvalidError, match="exclude"):
        parse_new_job({"task": "t", "delay": 1, "run_at": 5}, 10)
    assert parse_new_job({"task": "t", "delay": 1}, 10).options.delay == 1.0
    assert parse_new_job({"task": "t", "run_at": 5}, 10).options.run_at == 5.0
