"""Filters: what is accepted, by name refused, and what a text of a person means."""

from __future__ import annotations

import random

import pytest

from greenroom.errors import InvalidError
from greenroom.failures import fingerprint
from greenroom.filter_text import filter_from_text
from greenroom.filters import CHECKS, EVERY, Filter, parse_filter
from greenroom.job import Job, State

NOW = 1_795_560_405.5


@pytest.mark.parametrize(("given", "wanted"), [
    ({}, EVERY),
    ({"state": "failed"}, Filter(states=frozenset({State.FAILED}))),
    ({"state": ["failed", "expired"], "queue": None}, Filter(states=frozenset({State.FAILED, State.EXPIRED}))),
    ({"task": "mail.*", "queue": "q", "worker": "w"}, Filter(task="mail.*", queue="q", worker="w")),
    ({"created_after": 5, "finished_before": 6.5}, Filter(created_after=5.0, finished_before=6.5)),
    ({"fingerprint": "0123456789abcdef"}, Filter(fingerprint="0123456789abcdef")),
    ({"id_from": 3, "id_to": 2**53 - 1, "text": "No Answer", "error": "E"}, Filter(id_from=3, id_to=2**53 - 1, text="No Answer", error="E")),
])
def test_a_map_of_conditions_becomes_a_filter(given: dict, wanted: Filter) -> None:
    assert parse_filter(given) == wanted


@pytest.mark.parametrize(("name", "values"), [
    ("state", ["lost", [], [1], ["failed", "lost"], 4, {}, True]), ("queue", ["", "a b", 1, "q*"]), ("task", ["*", "**", "a*b", "a b*", 3]),
    ("worker", ["w*", ""]), ("error", ["", "x" * 129, 1, "a\0", "\ud800"]), ("text", ["", "x" * 201, b"x", "\udfff"]),
    ("fingerprint", ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef\n", b"0123456789abcdef", 1]),
    *((name, ["1", -1, float("nan"), True, 1e300]) for name in ("created_after", "created_before", "finished_after", "finished_before")),
    *((name, [0, 2**53, "1", 1.0, True]) for name in ("id_from", "id_to")), ("states", ["failed"]), ("limit", [5]), ("x" * 500, [1]),
])
def test_a_bad_condition_is_refused_by_name(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(InvalidError) as refused:
            parse_filter({"queue": "q", name: value})
        assert refused.value.field == name[:128] and refused.value.code == "INVALID"
    assert name in CHECKS or name not in Filter._fields or name == "states"


@pytest.mark.parametrize(("text", "wanted"), [
    ("", {}), ("   ", {}),
    ('state:failed task:mail.* error:TimeoutError finished>-2h "no answer"',
     {"state": ["failed"], "task": "mail.*", "error": "TimeoutError", "finished_after": NOW - 7200, "text": "no answer"}),
    ("state:failed,expired queue:q worker:w-1", {"state": ["failed", "expired"], "queue": "q", "worker": "w-1"}),
    ("no answer at all", {"text": "no answer at all"}), ("a:b", None), (":b", {"text": ":b"}), ("http://x", None), ('"a:b"', {"text": "a:b"}),
    (r'text:"say \"a\\b\""', {"text": 'say "a\\b"'}), ('error:"Some Error" x', {"error": "Some Error", "text": "x"}),
    ("state:failed fingerprint:0123456789abcdef", {"state": ["failed"], "fingerprint": "0123456789abcdef"}),
    ("id:7", {"id_from": 7, "id_to": 7}), ("id:7-9", {"id_from": 7, "id_to": 9}), ("id>7", {"id_from": 8}), ("id<7", {"id_to": 6}),
    ("id>5 id<9", {"id_from": 6, "id_to": 8}),
    ("created>1795560000 created<1795560400.5", {"created_after": 1795560000.0, "created_before": 1795560400.5}),
    ("created>-1.5d finished<-10s", {"created_after": NOW - 129600, "finished_before": NOW - 10}), ("created>-999999999d", {"created_after": 0.0}),
    ("created>2030-01-31", {"created_after": 1896048000.0}), ("created>2030-01-31T01:00+01:00", {"created_after": 1896048000.0}),
    ("created>2030-01-31T00:00:00Z", {"created_after": 1896048000.0}),
])
def test_what_people_write_becomes_a_map(text: str, wanted: dict | None) -> None:
    if wanted is None:
        with pytest.raises(InvalidError, match="no condition"):
            filter_from_text(text, NOW)
    else:
        assert filter_from_text(text, NOW) == wanted


@pytest.mark.parametrize(("text", "field"), [
    ("state:lost", "state"), ("state:", "state"), ("queue:", "queue"), ("id:", "id"), ("created>", "created"), ("task:*", "task"), ("queue:a queue:b", "queue"), ('x text:"y"', "text"), ("id:x", "id"), ("fingerprint:x", "fingerprint"), ("fingerprint>0", "fingerprint"),
    ("id>1-2", "id"), ("id<1", "id"), ("id:0", "id_from"), ("id:5 id>2", "id_from"), ("created:5", "created"), ("created>soon", "created"),
    ("finished<-5", "finished"), ("finished>-5w", "finished"), ("created>99999999999999", "created"), ("created>999999999999", "created_after"),
    ("state>failed", "state"), ('"open', "filter"), ('a"b"', "filter"), ("colour:red", "colour"), ("x" * 1001, "filter"), ("x" * 300, "text"),
    ("created>2030-13-01", "created"), ("text:\"\"", "text"), ('"\ud800"', "text"),
])
def test_what_cannot_be_meant_is_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        filter_from_text(text, NOW)
    assert refused.value.field == field


def test_any_text_is_a_filter_or_refused() -> None:
    rng = random.Random(5)
    parts = ["state:", "failed", "id:", ">", "<", "-2h", '"', "\\", " ", "finished", "created>", "5", "\n", "é", "*", "task:a", ",", "\0", "٣"]
    accepted = 0
    for _ in range(20_000):
        try:
            parse_filter(filter_from_text("".join(rng.choices(parts, k=rng.randint(1, 7))), NOW))
            accepted += 1
        except InvalidError:
            pass
    assert accepted > 500


def test_a_job_fits_the_fingerprint_of_its_latest_error_whatever_its_state() -> None:
    job = Job(5, "q", "t", 5, b"", False, 100.0)
    wanted = Filter(fingerprint=fingerprint("t", {"name": "E", "message": "no. 7"}))

    assert not wanted.fits(job)
    job.error = {"name": "E", "message": "no. 12"}
    assert wanted.fits(job) and wanted.fits(job, looks_for_text=False) and not wanted._replace(task="u").fits(job)
    job.error = {"name": "E", "message": "none"}
    assert not wanted.fits(job)


def test_times_are_from_and_before_and_a_job_without_one_fits_none() -> None:
    job = Job(5, "q", "t", 5, b"Payload", False, 100.0)

    assert Filter(created_after=100.0, created_before=100.5).fits(job) and not Filter(created_before=100.0).fits(job)
    assert not Filter(finished_after=0.0).fits(job) and not Filter(finished_before=1e9).fits(job)
    assert Filter(id_from=5, id_to=5).fits(job) and not Filter(id_from=6).fits(job) and not Filter(id_to=4).fits(job)
    assert Filter(text="pAYL").fits(job) and not Filter(text="other").fits(job) and Filter(text="other").fits(job, looks_for_text=False)
