"""Job options as Python callers write them, and jobs as the wire has them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from greenroom.client_jobs import wire_job
from greenroom.errors import InvalidError
from greenroom.job import OPTIONS, Option
from greenroom.submit_options import check_names, merge, option_names, wire_options

MOMENT = datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of every kind, should the table not have them."""
    for name, kind in (("attempts", "int"), ("expires_at", "time")):
        if name not in OPTIONS:
            monkeypatch.setitem(OPTIONS, name, Option(name, kind, lambda value: value, None, ""))


def test_every_option_of_the_table_but_the_jobs_own_fields_can_be_given() -> None:
    known = {name: None for name in OPTIONS if name not in ("task", "payload", "encoding")}

    check_names(known, "submit")
    assert wire_job({"task": "t", **known}) == {"task": "t"} and set(option_names()) - {"retries"} == set(known)


@pytest.mark.parametrize("name", ["colour", "task", "payload", "encoding"])
def test_a_name_that_is_no_option_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(TypeError, match=f"submit has no option '{name}'; it has queue, priority, delay, run_at"):
        check_names([name], "submit")


def test_every_option_of_kind_time_takes_a_datetime() -> None:
    assert wire_options({"run_at": MOMENT, "expires_at": MOMENT, "queue": None}) == {"run_at": 1893456000.0, "expires_at": 1893456000.0}
    with pytest.raises(InvalidError, match="run_at must be a time that this machine can express") as caught:
        wire_options({"run_at": datetime(1, 1, 1)})
    assert caught.value.field == "run_at"


def test_retries_is_the_friendly_word_for_one_attempt_more() -> None:
    assert wire_options({"retries": 0}) == {"attempts": 1} and wire_job({"task": "t", "retries": 4}) == {"task": "t", "attempts": 5}
    assert option_names().index("retries") == option_names().index("attempts") + 1
    for bad in (-1, 1000, True, "3", 1.0):
        with pytest.raises(InvalidError, match="retries must be an integer from 0 to 999"):
            wire_options({"retries": bad})
    with pytest.raises(InvalidError, match="retries and attempts exclude each other"):
        wire_options({"retries": 1, "attempts": 2})


def test_newer_options_replace_older_ones_that_mean_the_same() -> None:
    assert merge({"delay": 5, "queue": "q"}, {"run_at": MOMENT}) == {"run_at": 1893456000.0, "queue": "q"}
    assert merge({"run_at": 5.0}, {"delay": 1}) == {"delay": 1}
    assert merge({"attempts": 3}, {"retry_for": 60}) == {"retry_for": 60} and merge({"retry_for": 60}, {"retries": 1}) == {"attempts": 2}
    assert merge({"attempts": 3}, {"retries": 0}) == {"attempts": 1} and merge({"attempts": 3}, {"retries": None}) == {}
    assert merge({}, {"retries": None, "attempts": 4}) == {"attempts": 4}
    assert merge({}, {"delay": 1, "run_at": 5}) == {"delay": 1, "run_at": 5}  # for the check to refuse


def test_a_jobs_own_options_win_over_those_for_all() -> None:
    defaults = {"priority": 2, "delay": 60, "attempts": 3}

    assert wire_job(("t", None), defaults) == {"task": "t", **defaults}
    assert wire_job({"task": "t", "run_at": MOMENT, "retries": 0, "priority": None}, defaults) == {
        "task": "t", "run_at": 1893456000.0, "attempts": 1}


@pytest.mark.parametrize("given, field", [("t", "jobs"), ({"payload": {}}, "jobs"), ({"task": "t", "colour": 1}, "colour"),
                                          ({"task": "t", 5: 1}, "5"), ({"task": "t", "priority": 0}, "priority"),
                                          ({"task": "t", "payload": {1, 2}}, "payload"), ({"task": "t", "encoding": "raw"}, "encoding")])
def test_a_bad_job_is_an_error_that_names_what_is_wrong(given: object, field: str) -> None:
    error = wire_job(given)

    assert isinstance(error, InvalidError) and error.field == field
