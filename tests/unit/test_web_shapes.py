"""The REST shapes: hostile task values become bounded plain JSON; request bodies are read strictly."""

from __future__ import annotations

import json
import random

import pytest

from greenroom.protocol import pack_value
from greenroom.webui import shapes
from greenroom.webui.answers import Refused, dump_json

VIEW = {"id": 1, "task": "t", "state": "completed", "encoding": "msgpack", "result_encoding": "msgpack", "error": None}


def shown_result(data: bytes, *, detail: bool = True, encoding: str = "msgpack") -> dict | None:
    view = {**VIEW, "result": data, "result_encoding": encoding}
    job = shapes.job_detail(view) if detail else shapes.job_row(view)
    return json.loads(dump_json(job))["result"]


@pytest.mark.parametrize(("value", "shown"), [
    (None, None), (True, True), ("text", "text"), (1.5, 1.5), ([1, [2]], [1, [2]]), ({"a": {"b": 1}}, {"a": {"b": 1}}),
    (2**53 - 1, 2**53 - 1), (-(2**53) + 1, -(2**53) + 1), (b"\x00\xff", {"$base64": "AP8="}), ("<script>\u202e\x00\ud7ff", "<script>\u202e\x00\ud7ff"),
])
def test_a_decoded_value_is_shown_exactly(value: object, shown: object) -> None:
    assert shown_result(pack_value(value)) == {"preview": shown}


@pytest.mark.parametrize(("value", "shown"), [
    (2**53, "9007199254740992"), (-(2**53), "-9007199254740992"), (2**64 - 1, "18446744073709551615"), (float("nan"), "nan"),
    (float("inf"), "inf"), ({1: "a", None: "b"}, {"1": "a", "None": "b"}), ({"deep": [2**60]}, {"deep": [str(2**60)]}),
])
def test_what_json_cannot_carry_is_shown_as_text_and_marked(value: object, shown: object) -> None:
    assert shown_result(pack_value(value)) == {"preview": shown, "inexact": True}


def test_a_value_of_a_thousand_levels_is_cut_not_crashed() -> None:
    shown = shown_result(b"\x91" * 1000 + b"\xc0")

    assert shown["cut"] is True
    assert json.dumps(shown["preview"]).count("[") == shapes.MAX_SHOWN_DEPTH


def test_a_wide_value_is_cut_at_the_budget_and_says_so() -> None:
    shown = shown_result(pack_value(list(range(100))), detail=False)

    assert shown["cut"] is True
    assert shown["preview"][:3] == [0, 1, 2]
    assert shown["preview"][-1] == "…"
    assert len(shown["preview"]) <= shapes.ROW_VALUES + 1


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81", b"\x01\x02", b"\xd6\xff\x00\x00\x00\x01", b"\xd4\x05a"])
def test_what_is_not_one_plain_msgpack_value_still_has_a_preview(data: bytes) -> None:
    assert shown_result(data) is not None


def test_a_large_value_is_shown_as_its_beginning() -> None:
    shown = shown_result(pack_value("x" * 100_000))

    assert shown["cut"] is True
    assert len(shown["text"]) < 10_000


def test_raw_bytes_are_shown_as_text() -> None:
    assert shown_result("grün".encode(), encoding="raw") == {"text": "grün"}
    assert shown_result(b"\xff\x00a", encoding="raw") == {"text": "\\xff\x00a"}


def test_a_value_that_was_left_out_is_null() -> None:
    assert shapes.job_row(VIEW)["payload"] is None


def test_a_row_has_the_error_without_its_traceback_and_the_detail_has_it() -> None:
    view = {**VIEW, "state": "failed", "error": {"name": "ValueError", "message": "m" * 4096, "traceback": "t"}}

    assert shapes.job_row(view)["error"] == {"name": "ValueError", "message": "m" * 512}
    assert shapes.job_detail(view)["error"]["traceback"] == "t"


def test_any_bytes_as_payload_give_bounded_json() -> None:
    seed = 20261124
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(2000):
        data = bytes(rng.choice((rng.randrange(256), 0x91, 0x81, 0xA1, 0xC4)) for _ in range(rng.randrange(0, 60)))
        row = shapes.job_row({**VIEW, "payload": data, "result": data, "encoding": rng.choice(("raw", "msgpack"))})
        assert len(dump_json(row)) < 3000


@pytest.mark.parametrize(("body", "said"), [
    (b"", "not JSON"), (b"{", "not JSON"), (b'{"a": 1, "a": 2}', "there twice"), (b'{"a": {"b": 1, "b": 1}}', "there twice"),
    (b'{"a": NaN}', "NaN"), (b'{"a": -Infinity}', "Infinity"), (b'{"a": 1e999}', "beyond a double"), (b"\xff", "not UTF-8"),
    (b"[" * 10_000, "levels"), (b"{} {}", "not JSON"), (b"1" * 5000, "not acceptable"),
])
def test_a_body_that_two_readers_could_understand_differently_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        shapes.load_json(body)

    assert caught.value.code == "BAD_JSON"


@pytest.mark.parametrize("body", [b"[" + b"1," * 16_001 + b"1]", b"[" * 100_000, b'{"a":[' + b"{}," * 500_000 + b"1]}"])
def test_a_body_of_too_many_values_is_refused_before_it_is_read(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        shapes.load_json(body)

    assert caught.value.code == "TOO_LARGE"


def test_a_long_text_full_of_commas_is_one_value() -> None:
    text = ',[{\\"' * 100_000

    assert shapes.load_json(json.dumps({"a": text}).encode()) == {"a": text}


def test_base64_in_a_payload_becomes_bytes_and_back() -> None:
    value = shapes.payload_value({"a": {"$base64": "AP8="}, "b": [{"$base64": ""}], "c": {"$base64": "AP8=", "d": 1}})

    assert value == {"a": b"\x00\xff", "b": [b""], "c": {"$base64": "AP8=", "d": 1}}
    assert shown_result(pack_value(value["a"])) == {"preview": {"$base64": "AP8="}}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {"n": [2**70]}, {"$base64": "a"}, {"$base64": 5}, {"$base64": "ä==="}])
def test_a_payload_that_msgpack_cannot_carry_is_refused_at_its_field(value: object) -> None:
    with pytest.raises(Refused) as caught:
        shapes.payload_value(value)

    assert (caught.value.code, caught.value.field) == ("INVALID", "payload")


def test_a_payload_of_too_many_levels_is_refused() -> None:
    value: object = 1
    for _ in range(shapes.MAX_JSON_DEPTH + 1):
        value = [value]

    with pytest.raises(Refused, match="levels"):
        shapes.payload_value(value)
