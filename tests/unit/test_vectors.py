"""The test vectors: files, specification and code say the same bytes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from greenroom.job import STATE_BY_LABEL
from greenroom.protocol import MAX_REQUEST_VALUES, VERBS, FrameReader, encode_frame, parse_request

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
SPECIFICATION = Path(__file__).resolve().parents[2] / "docs" / "protocol_v1.md"

_spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make_vectors.py")
make_vectors = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_vectors)

MESSAGES, MALFORMED = make_vectors.MESSAGES, make_vectors.MALFORMED
REQUESTS = [name for name, (_, message) in MESSAGES.items() if "verb" in message]


def read(name: str) -> bytes:
    lines = (VECTORS / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line.split("#")[0] for line in lines))


def test_files_and_specification_are_what_the_list_makes() -> None:
    files = {path.name: path.read_text() for path in VECTORS.glob("*.hex")}

    assert files == make_vectors.vectors()
    assert make_vectors.section() in SPECIFICATION.read_text()


@pytest.mark.parametrize("name", MESSAGES)
def test_a_vector_decodes_to_its_message_and_is_encoded_to_the_same_bytes(name: str) -> None:
    reader = FrameReader(max_values=MAX_REQUEST_VALUES)
    message = MESSAGES[name][1]

    assert reader.feed(read(name)) == [message] and reader.failed is None
    assert encode_frame(message) == read(name)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_vector_that_is_a_request_is_accepted(name: str) -> None:
    request = parse_request(MESSAGES[name][1])

    assert request.verb == MESSAGES[name][1]["verb"]


def test_every_verb_and_its_reply_and_every_notice_has_a_vector() -> None:
    assert {MESSAGES[name][1]["verb"] for name in REQUESTS} == set(VERBS)
    assert {f"{verb}_reply" for verb in VERBS} <= set(MESSAGES)
    notices = [message for _, message in MESSAGES.values() if "notice" in message]
    assert {(notice["notice"], notice.get("reason")) for notice in notices} == {
        ("cancel", None), ("cancel", "soft_timeout"), ("drain", "broker"), ("drain", "worker"), ("events", None)}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_vector_ends_the_stream(name: str) -> None:
    reader = FrameReader()

    assert reader.feed(read(name)) == [] and reader.failed.code == "PROTOCOL_ERROR"


def test_the_view_in_the_vectors_has_the_states_word_and_all_fields_of_the_specification() -> None:
    table = SPECIFICATION.read_text().split("A view is a map")[1].split("### wait")[0]
    # The first column only: names in backticks, before the second bar.
    fields = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])}

    assert fields - {"payload", "options", "progress", "progress_text"} == set(make_vectors.VIEW)
    assert make_vectors.VIEW["state"] in STATE_BY_LABEL
