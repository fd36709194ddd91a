"""Answers are used only if they have their verb's shape: greenroom.replies against the test vectors."""

from __future__ import annotations

import pytest

from greenroom.errors import ProtocolError
from greenroom.protocol import VERBS
from greenroom.replies import REPLIES, check_notice, check_reply
from tests.unit.test_vectors import MESSAGES

GOOD = {verb: MESSAGES[f"{verb}_reply"][1] for verb in VERBS}
ASKED = {verb: next((len(items) for items in map(MESSAGES[verb][1].get, ("jobs", "leases")) if isinstance(items, list)), 0) for verb in VERBS}
WRONG = [5, True, "text", b"bytes", {"a": 1}, [5], ["text"], [[1]], [{"id": 0, "state": "queued"}], [{"id": 1}], [[1, 2]], [None]]
OPTIONAL = {("jobs", "next"), ("purge", "next"), ("schedules", "next"), ("bulk", "next"), ("bulk", "why"), ("failures", "next"), *((verb, field) for verb in ("hello", "backup") for field in REPLIES[verb])}


def test_every_verb_has_a_shape_and_its_vector_has_that_shape() -> None:
    assert set(REPLIES) == set(VERBS)
    for verb, reply in GOOD.items():
        assert check_reply(verb, ASKED[verb], reply) is reply


@pytest.mark.parametrize("verb, field", [(verb, field) for verb, fields in REPLIES.items() for field in fields])
def test_a_field_that_is_missing_or_of_another_type_is_not_used(verb: str, field: str) -> None:
    refused = 0
    for value in [None, *WRONG]:
        try:
            check_reply(verb, ASKED[verb], {**GOOD[verb], field: value})
        except ProtocolError as exc:
            assert verb in exc.message and field in exc.message
            refused += 1
        else:
            assert value is not None or (verb, field) in OPTIONAL
    assert refused >= len(WRONG) - 4


@pytest.mark.parametrize("verb", ["submit", "cancel", "get", "settle", "extend"])
def test_outcomes_come_one_for_each_that_was_asked_for(verb: str) -> None:
    for asked in (0, ASKED[verb] + 1):
        with pytest.raises(ProtocolError):
            check_reply(verb, asked, GOOD[verb])


@pytest.mark.parametrize("place, value", [(0, "7"), (1, 0), (2, b"task"), (3, "text"), (4, 1), (5, None), (6, 1.0), (7, "1")])
def test_a_delivery_has_each_place_of_its_type(place: int, value: object) -> None:
    delivery = [*GOOD["reserve"]["jobs"][0], 2, "a later version's"]
    assert check_reply("reserve", 0, {"jobs": [delivery]})
    delivery[place] = value

    for bad in (delivery, delivery[:7]):
        with pytest.raises(ProtocolError):
            check_reply("reserve", 0, {"jobs": [bad]})


@pytest.mark.parametrize("field, value", [("error", "text"), ("result", "text"), ("payload", 5), ("state", None), ("id", "7")])
def test_a_view_has_what_a_client_reads_of_its_type(field: str, value: object) -> None:
    with pytest.raises(ProtocolError):
        check_reply("wait", 0, {"jobs": [{**GOOD["wait"]["jobs"][0], field: value}]})


def test_an_unknown_notice_passes_and_a_bad_one_does_not() -> None:
    assert check_notice({"notice": "unheard", "leases": 5}) and check_notice({"notice": "cancel", "leases": [[1, 2]]})
    for bad in ({"notice": None}, {"notice": "cancel", "leases": None}, {"notice": "cancel", "leases": [[0, 1]]}):
        with pytest.raises(ProtocolError):
            check_notice(bad)
