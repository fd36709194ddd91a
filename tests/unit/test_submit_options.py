"""Job options as Python callers write them, and jobs as the wire has them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from greenroom.client_jobs import wire_copy, wire_job
from greenroom.errors import ConflictError, InvalidError
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


SHOWN = {"id": 7, "task": "t", "queue": "q", "priority": 3, "state": "failed", "run_at": 5.0, "payload": b"\x81\xa1n\x01", "encoding": "msgpack",
         "options": {"attempts": 2, "backoff": "fixed", "unique_key": "k"}}


def test_a_copy_is_like_the_job_but_for_what_is_changed_and_for_when_it_ran() -> None:
    same = {"task": "t", "queue": "q", "priority": 3, "payload": b"\x81\xa1n\x01", "encoding": "msgpack", **SHOWN["options"]}

    assert wire_copy(SHOWN, None, False, {}) == wire_copy(SHOWN, None, True, {}) == same
    assert wire_copy(SHOWN, {"n": 2}, False, {"priority": 1, "retries": 0, "unique_key": None, "delay": 5}) == {
        "task": "t", "queue": "q", "priority": 1, "payload": b"\x81\xa1n\x02", "attempts": 1, "backoff": "fixed", "delay": 5}
    assert wire_copy(SHOWN, b"raw", True, {"retry_for": 60}) == {
        **{name: value for name, value in same.items() if name != "attempts"}, "payload": b"raw", "encoding": "raw", "retry_for": 60}
    throttled = {**SHOWN, "options": {"unique_key": "k", "unique_for": 60, "unique_mode": "throttle"}}
    throttled["options"]["on_duplicate"] = "replace"
    assert not {"unique_key", "unique_for", "unique_mode", "on_duplicate"} & wire_copy(throttled, None, False, {"unique_key": None}).keys()
    assert wire_copy({**SHOWN, "encoding": "raw", "payload": b"ab"}, None, False, {})["encoding"] == "raw"


def test_a_copy_that_cannot_be_is_an_error_and_never_a_job_without_its_payload() -> None:
    with pytest.raises(ConflictError, match="job 7 has no payload"):
        wire_copy({**SHOWN, "payload": None}, None, False, {})
    refused = wire_copy(SHOWN, {"n": object()}, False, {}), wire_copy(SHOWN, "text", True, {}), wire_copy(SHOWN, None, False, {"priority": 11})
    assert [(type(error), error.field) for error in refused] == [(InvalidError, "payload"), (InvalidError, "payload"), (InvalidError, "priority")]
