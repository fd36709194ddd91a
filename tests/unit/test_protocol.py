"""Frames and messages: the same whatever the cuts, bounded whatever the peer sends, and every bad field named."""

from __future__ import annotations

import math
import random
import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import protocol
from greenroom.errors import (BusyError, InvalidError, LeaseLostError, ProtocolError, TooLargeError, UnknownVerbError,
                              VersionError, from_wire)
from greenroom.protocol import (MAX_INNER_ITEMS, MAX_REQUEST_VALUES, MAX_TEXT_BYTES, PIECE_BYTES, FrameEncoder, FrameReader, check_size, choose_version, encode_frame, error_fields, pack_value,
                                parse_request, parse_settle, unpack_value)
from greenroom.records import SettleItem

MESSAGES = [{"verb": "ping", "id": 1}, {}, {"verb": "submit", "id": 2, "jobs": [{"task": "t", "payload": bytes(300)}]},
            {"id": 3, "text": "äöü \U0001f600", "float": 1.5, "none": None, "list": [[1, 2], [True, {"a": -1}]]}]


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def fed(*chunks: bytes, max_frame: int = 4 * 2**20) -> tuple[list[dict], ProtocolError | None]:
    reader = FrameReader(max_frame, MAX_REQUEST_VALUES, MAX_INNER_ITEMS)
    messages = [message for chunk in chunks for message in reader.feed(chunk)]
    return messages, reader.failed


# -- frames ----------------------------------------------------------------------------------------------------------------


def test_whole_byte_by_byte_and_at_every_split_the_messages_are_the_same() -> None:
    stream = b"".join(map(encode_frame, MESSAGES))

    assert fed(stream) == (MESSAGES, None)
    assert fed(*[stream[place:place + 1] for place in range(len(stream))]) == (MESSAGES, None)
    for place in range(len(stream) + 1):
        assert fed(stream[:place], stream[place:]) == (MESSAGES, None)


def test_random_cuts_of_a_stream_with_a_bad_end_give_the_same_messages_and_the_same_failure() -> None:
    rng = random.Random(4)
    stream = b"".join(map(encode_frame, MESSAGES)) + framed(b"\x90") + encode_frame({"never": 1})
    whole, failed = fed(stream)
    assert whole == MESSAGES and failed is not None
    for _ in range(300):
        cuts = sorted(rng.choices(range(len(stream)), k=rng.randint(1, 8)))
        messages, other = fed(*[stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)])])
        assert messages == whole and other.message == failed.message


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_give_messages_or_a_failure_and_never_an_exception(chunks: list[bytes]) -> None:
    whole, failed = fed(b"".join(chunks), max_frame=1000)
    pieces, other = fed(*chunks, max_frame=1000)

    assert repr(whole) == repr(pieces) and (failed is None) == (other is None)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_any_body_is_one_map_or_a_failure_with_a_sentence(body: bytes) -> None:
    messages, failed = fed(framed(body))

    assert [type(message) for message in messages] == ([dict] if failed is None else [])
    assert failed is None or (failed.fatal and failed.message)


HOSTILE = {
    "no map": b"\x90", "a number": b"\x05", "a key that is a number": b"\x81\x01\x01", "a key that is nil": b"\x81\xc0\x01",
    "a key that is a list": b"\x81\x90\x01", "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a key twice further in": b"\x81\xa1m\x82\xa1a\x01\xa1a\x02", "an extension": b"\x81\xa1a\xd4\x01\x00",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    "bad UTF-8": b"\x81\xa1a\xa1\xff", "a bad UTF-8 key": b"\x81\xa1\xff\x01",
    "a surrogate": b"\x81\xa1a\xa3\xed\xa0\x80", "half a map": b"\x81\xa1a", "two values": b"\x80\x80",
    "the unused byte": b"\x81\xa1a\xc1",
    "deep lists": b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0", "deep maps": b"\x81\xa1a" * 5000 + b"\xc0",
    "a list of 1001": b"\x81\xa1a\xdc\x03\xe9" + b"\xc0" * 1001, "a list said to be huge": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of 33": b"\xde\x00\x21" + b"".join(b"\xa2%02d\xc0" % number for number in range(33)),
    "a map said to be huge": b"\xdf\xff\xff\xff\xff", "a bin said to be huge": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "a text said to be huge": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "a list of 101 further in": b"\x81\xa1a\x91\xdc\x00\x65" + b"\xc0" * 101,
    "a list of 101 further in, in a large body": b"\x82\xa1a\x91\xdc\x00\x65" + b"\xc0" * 101 + b"\xa1b\xc5\x50\x00" + bytes(0x5000),
    "a list of 101 in a map": b"\x81\xa1a\x81\xa1a\xdc\x00\x65" + b"\xc0" * 101,
    "a list of 1001 in a large body": b"\x81\xa1a\xdc\x03\xe9" + b"\xc4\x20" * 1 + bytes(32) * 1 + (b"\xc4\x20" + bytes(32)) * 1000,
    "a map of 33 in a large body": b"\xde\x00\x21" + b"".join(b"\xa2%02d\xc5\x10\x00" % number + bytes(4096) for number in range(33)),
    "a key twice in a large body": b"\x82\xa1a\xc5\x50\x00" + bytes(0x5000) + b"\xa1a\x01",
    "a binary key in a large body": b"\x81\xc4\x01a\xc5\x50\x00" + bytes(0x5000),
    "two values in a large body": b"\x81\xa1a\xc5\x50\x00" + bytes(0x5000) + b"\x80",
    "no map in a large body": b"\xc5\x50\x00" + bytes(0x5000), "half a large body": b"\x82\xa1a\xc5\x50\x00" + bytes(0x5000),
    "a text of more than 1 MiB": b"\x81\xa1a\xdb" + struct.pack(">I", MAX_TEXT_BYTES + 1) + b"a" * (MAX_TEXT_BYTES + 1),
    "a million texts in lists in lists": b"\x81\xa1a" + (b"\xdc\x03\xe8" + b"\xa2ab" * 999) * 1022 + b"\xc0",
    "very many empty lists": b"\x81\xa1a\xdc\x03\xe8" + (b"\xdc\x03\xe8" + b"\x90" * 1000) * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_ends_the_stream_after_the_good_frames_before_it(name: str) -> None:
    messages, failed = fed(encode_frame(MESSAGES[0]) + framed(HOSTILE[name]) + encode_frame(MESSAGES[1]))

    assert messages == [MESSAGES[0]] and failed.code == "PROTOCOL_ERROR"


@pytest.mark.parametrize("body", [b"\x81\xc4\x01a\x01", b"\x81\xa1a\x81\xc4\x01a\x01"])
def test_binary_keys_end_the_stream(body: bytes) -> None:
    assert fed(framed(body))[1] is not None


def test_the_bounds_on_lists_maps_and_values_can_be_reached() -> None:
    job = {"task": "t", "payload": b"", "encoding": "raw", "queue": "q", "priority": 1, "delay": 1, "unknown": 1}
    wide = {str(number): number for number in range(32)}

    assert fed(encode_frame({"verb": "submit", "id": 1, "jobs": [job] * 1000}) + encode_frame(wide))[1] is None


def test_a_peer_takes_an_answer_with_a_thousand_views_that_no_request_may_have() -> None:
    views = {"id": 1, "jobs": [{f"field{number}": number for number in range(20)}] * 1000}
    reader = FrameReader()

    assert reader.feed(encode_frame(views)) == [views] and fed(encode_frame(views))[1] is not None


def test_the_bounds_are_the_same_in_a_large_body() -> None:
    inner = [1] * MAX_INNER_ITEMS
    message = {"a": ["x"] * 1000, "b": [inner, {"c": inner}], "text": "ä" * (MAX_TEXT_BYTES // 2),
               **{str(number): {"d": [[]]} for number in range(29)}}

    assert fed(encode_frame(message)) == ([message], None)


def test_an_answer_may_have_long_lists_further_in() -> None:
    for filler in (b"", bytes(PIECE_BYTES)):
        message = {"workers": [{"tasks": ["t"] * 1000}], "filler": filler}
        assert FrameReader().feed(encode_frame(message)) == [message] and fed(encode_frame(message))[1] is not None


def test_a_large_message_comes_in_steps_and_small_ones_one_a_step() -> None:
    large = {"jobs": [{"payload": bytes(1000)}] * 100}
    reader = FrameReader(max_values=MAX_REQUEST_VALUES)

    steps = list(reader.messages(encode_frame(MESSAGES[0]) * 3 + encode_frame(large) + encode_frame(MESSAGES[0])))

    assert [step for step in steps if step is not None] == [MESSAGES[0]] * 3 + [large, MESSAGES[0]]
    assert steps.count(None) == -(-(len(encode_frame(large)) - 4) // PIECE_BYTES)


def test_a_bomb_is_refused_before_many_of_its_values_are_made() -> None:
    reader = FrameReader(max_values=MAX_REQUEST_VALUES, max_inner=MAX_INNER_ITEMS)

    steps = list(reader.messages(framed(HOSTILE["a million texts in lists in lists"])))

    assert reader.failed is not None and len(steps) <= 2  # of the 188 pieces that it has


@pytest.mark.parametrize("length, is_bad", [(0, True), (1001, True), (2**32 - 1, True), (1000, False)])
def test_a_length_is_judged_as_soon_as_it_is_there(length: int, is_bad: bool) -> None:
    reader = FrameReader(1000)

    reader.feed(struct.pack(">I", length))

    assert (reader.failed is not None) == is_bad and not (is_bad and reader.is_partial)


def test_after_a_failure_nothing_is_kept_or_returned() -> None:
    reader = FrameReader(1000)
    reader.feed(bytes(4))

    assert reader.feed(encode_frame({"a": 1})) == [] and not reader.is_partial


def test_a_reader_tells_whether_a_frame_has_begun() -> None:
    reader = FrameReader()
    frame = encode_frame({"a": 1})
    assert not reader.is_partial
    reader.feed(frame[:1])
    assert reader.is_partial
    reader.feed(frame[1:] + frame)
    assert not reader.is_partial


def test_the_limit_may_be_raised_after_the_greeting() -> None:
    reader = FrameReader(100)
    reader.feed(encode_frame({"a": 1}))
    reader.max_frame = 1000

    assert len(reader.feed(encode_frame({"a": bytes(500)}))) == 1


def test_both_encoders_agree_also_after_a_value_that_cannot_be_sent() -> None:
    encode = FrameEncoder()
    for message in MESSAGES:
        with pytest.raises(TypeError):
            encode({"some": "bytes before", "bad": object()})
        assert encode(message) == encode_frame(message)


def test_a_frame_over_the_peers_limit_is_not_sent() -> None:
    frame = encode_frame({"a": bytes(100)})

    assert check_size(frame, len(frame) - 4) is frame
    with pytest.raises(TooLargeError):
        check_size(frame, len(frame) - 5)


# -- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, -2**63, 2**64 - 1, 1.5, "ä", b"\x00", [1, [2]], {"a": {1: b"x"}}])
def test_a_value_comes_back_as_it_was(value: object) -> None:
    assert unpack_value(pack_value(value)) == value


@pytest.mark.parametrize("items", [[], [1], [{"a": bytes(1000)}] * 20, list(range(1000)), [bytes(5000)] * 3])
def test_a_list_packed_in_pieces_is_the_list_packed_at_once(items: list) -> None:
    pieces = list(protocol.pack_list(items, 4096))

    assert b"".join(pieces) == pack_value(items)
    assert all(len(piece) <= 4096 + 5010 for piece in pieces)


@pytest.mark.parametrize("value", [2**64, -2**63 - 1, {1, 2}, object(), "\ud800", [object()]])
def test_what_msgpack_cannot_carry_is_refused_with_a_sentence(value: object) -> None:
    with pytest.raises(ValueError, match="msgpack value|64 bits"):
        pack_value(value)


@pytest.mark.parametrize("data", [b"", b"\x91", b"\x01\x02", b"\xc1", b"\xa1\xff", b"\x91" * 5000])
def test_what_is_not_exactly_one_value_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match="msgpack value"):
        unpack_value(data)


# -- requests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [None, 0, -1, 2**53, True, "1", 1.0])
def test_a_request_without_a_usable_id_is_fatal(number: object) -> None:
    with pytest.raises(ProtocolError):
        parse_request({"verb": "ping", "id": number})
    assert parse_request({"verb": "ping", "id": 2**53 - 1}).id == 2**53 - 1


@pytest.mark.parametrize("verb", [None, 5, b"ping", ["ping"]])
def test_a_request_without_a_verb_is_fatal(verb: object) -> None:
    with pytest.raises(ProtocolError):
        parse_request({"verb": verb, "id": 1})


def test_an_unknown_verb_is_answered_and_its_name_is_cut() -> None:
    with pytest.raises(UnknownVerbError) as caught:
        parse_request({"verb": "x" * 10_000, "id": 1})
    assert not caught.value.fatal and len(caught.value.message) < 100


GOOD = {
    "hello": {"version": 1, "role": "worker", "name": "a", "software": "s" * 128, "instance": b"i" * 16, "leases": [[1, 2]],
              "tasks": [], "queues": ["q"]},
    "submit": {"jobs": [{}], "submission": bytes(16)},
    "cancel": {"jobs": [1, 2**53 - 1]},
    "retry": {"jobs": [1, 2**53 - 1]},
    "runs": {"job": 2**53 - 1},
    "logs": {"job": 1, "after": 0, "limit": 1000, "wait": 60},
    "report": {"leases": [[1, 1, 0.5, None, [[0, "x"]]]]},
    "get": {"jobs": [1] * 1000, "payload": True},
    "wait": {"jobs": [1], "wait": 60},
    "reserve": {"n": 1000, "queues": ["q"], "tasks": ["t"] * 1000, "wait": 0.5},
    "settle": {"leases": [[1, 1, "ack"]]},
    "heartbeat": {"leases": []},
    "extend": {"leases": [[1, 1, "more"]], "for": 86400},
    "jobs": {"filter": {}, "state": "queued", "queue": "q", "task": "t", "worker": "w", "before": 1, "limit": 1000, "payload": False},
    "failures": {"filter": {"task": "t*"}, "queue": "q", "task": "t", "before": 2**53},
    "queues": {}, "workers": {}, "stats": {}, "ping": {}, "bye": {}, "pauses": {}, "limits": {},
    "schedules": {"name": "n", "after": "m", "limit": 1000},
    "schedule_put": {"name": "n", "job": {}, "cron": "x" * 256, "every": "366d", "timezone": "z" * 64, "overlap": "replace", "missed": "all",
                     "missed_max": 100},
    "schedule_delete": {"name": "n"}, "schedule_pause": {"name": "n", "reason": "r" * 256}, "schedule_resume": {"name": "n"},
    "schedule_run": {"name": "n"},
    "pause": {"queue": "q", "task": "t", "for": 366 * 86400, "reason": "r" * 256, "by": "ann"},
    "resume": {"queue": "q", "task": "t"},
    "limit": {"queue": "q", "jobs": 1, "bytes": 2**53 - 1, "urgent": 10, "extra": 1000, "reason": "r" * 256, "by": "ann"}, "unlimit": {"queue": "q"},
    "change": {"jobs": [1], "priority": 10, "queue": "q", "run_at": 0, "delay": 1.5, "payload": b"", "encoding": "raw"},
    "purge": {"queue": "q", "task": "t", "before": 2**53},
    "delete": {"jobs": [2**53 - 1]},
    "bulk": {"action": "delete", "filter": {"task": "t*"}, "before": 2**53, "dry_run": True, "priority": 1, "queue": "q", "run_at": 0, "delay": 1},
    "explain": {"job": 2**53 - 1, "queue": "q"},
    "subscribe": {"queue": "q", "task": "t", "kinds": ["failed", "progress"], "boot": "b" * 32, "after": 0},
    "backup": {"step": "read", "backup": bytes(16), "offset": 2**53 - 1, "size": 2**20},
}

BAD = {
    "version": [0, "1", True, 1.0], "role": ["admin", 1, b"worker", ["worker"]], "name": ["", "a b", "x" * 129, b"a"],
    "software": ["s" * 129, b"s", 1], "instance": [bytes(16), b"i" * 15, b"i" * 17, "x" * 16],
    "leases": [{}, "ab", [[1]], [1], [[0, 1]], [[1, 0]], [[True, 1]], [[1, 2**53]], [[1, "1"]], [[1, 1]] * 1001],
    "tasks": ["t", [1], ["a b"], ["t"] * 1001], "queues": [{}, [None]], "jobs": [[], {}, None, [1] * 1001],
    "submission": [b"", bytes(17), "s"],
    "payload": [1, "yes"], "wait": [-0.1, 60.1, math.nan, math.inf, True, "1"], "n": [-1, 1001, None, 1.0, True],
    "for": [0.9, 86401, None, math.nan, "60"], "state": ["waiting", 2, b"queued"], "queue": ["", 5],
    "task": ["ä"], "worker": [[]],
    "before": [0, 2**53 + 1, "1"], "limit": [0, 1001, True],
    "step": ["start", None, 1, ["read"]], "backup": [None, b"", bytes(17), "../../../../etc/"],
    "by": ["b" * 129, b"ann"], "priority": [0, 11, True, "1"], "run_at": [-1, "now", math.nan],
    "delay": [-0.1, 31622401, True], "encoding": ["json", 1],
    ("logs", "after"): [-1, 2**53, "1", 0.5, True], ("pause", "for"): [0.9, 31622401, math.nan, "60"],
    "after": ["", 5], "job": [0, 2**53, None, True, "1", []], "cron": ["x" * 257, b"* * * * *", 5], "every": ["1" * 11, 10],
    "timezone": ["z" * 65, 1], "overlap": ["all", None, 1], "missed": ["never", ["skip"]], "missed_max": [0, 101, True, "1"],
    "reason": ["r" * 257, b"r"],
    "kinds": ["failed", ["born"], [1], {}], "boot": ["b" * 33, b"b", 1], ("subscribe", "after"): [-1, 2**53, "1", 0.5, True],
    ("limit", "jobs"): [0, 2**53, True, "1"], "bytes": [0, 2**53, 1.5], "urgent": [0, 11, True, "1"], "extra": [0, 1001, True],
    "filter": [[], "task:t", 1], "action": ["pause", "", 1], "dry_run": [1, "yes"],
    "offset": [-1, 2**53, 0.0, True, "0"], "size": [0, 2**20 + 1, True, "1"],
}


@pytest.mark.parametrize("verb", GOOD)
def test_every_verb_takes_its_fields_and_knows_no_others(verb: str) -> None:
    request = parse_request({"verb": verb, "id": 1, **GOOD[verb], "unknown": object()})

    assert request.fields.keys() == GOOD[verb].keys() == {field.name for field in protocol.VERBS[verb]}


@pytest.mark.parametrize("verb, field, value", [
    (verb, field, value) for verb, fields in GOOD.items() for field in fields for value in BAD.get((verb, field), BAD[field])
    if (value is not None or any(known.required for known in protocol.VERBS[verb] if known.name == field))
    and not (verb in ("settle", "report") and isinstance(value, list) and len(value) <= 1000)])  # its items are answered one by one
def test_a_bad_field_is_named_and_not_fatal(verb: str, field: str, value: object) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_request({"verb": verb, "id": 1, **GOOD[verb], field: value})

    assert caught.value.field == field and not caught.value.fatal


@pytest.mark.parametrize("verb", ["cancel", "retry", "get", "wait"])
@pytest.mark.parametrize("job", [0, 2**53, -1, True, "1", None, 1.0])
def test_job_ids_are_integers_in_their_range(verb: str, job: object) -> None:
    with pytest.raises(InvalidError):
        parse_request({"verb": verb, "id": 1, "jobs": [1, job]})


def test_verbs_of_workers_and_the_table_of_tests_are_complete() -> None:
    assert set(GOOD) == set(protocol.VERBS) and protocol.WORKER_VERBS == {"reserve", "settle", "heartbeat", "extend", "report"}


def test_a_field_that_is_nil_is_as_one_left_out() -> None:
    request = parse_request({"verb": "reserve", "id": 1, "n": 1, "wait": None, "queues": None})

    assert request.fields == {"n": 1, "queues": None, "tasks": None, "wait": 0.0}


def test_the_lower_version_is_spoken() -> None:
    assert choose_version(1) == choose_version(99) == 1
    with pytest.raises(VersionError):
        choose_version(0)


# -- settles and errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item, expected", [
    ([1, 2, "ack"], SettleItem(1, 2, "ack", None, False, None)),
    ([1, 2, "ack", b"r", True, "later"], SettleItem(1, 2, "ack", b"r", True, None)),
    ([1, 2, "nack"], SettleItem(1, 2, "nack", None, False, None)),
    ([1, 2, "nack", True], SettleItem(1, 2, "nack", None, False, None)),
    ([1, 2, "nack", False], SettleItem(1, 2, "unbegun", None, False, None)),
    ([1, 2, "crash", "ignored"], SettleItem(1, 2, "crash", None, False, None)),
    ([1, 2, "fail"], SettleItem(1, 2, "fail", None, False, {"name": "", "message": "", "traceback": ""})),
    ([1, 2, "fail", {"name": "E", "message": 5, "more": 1}],
     SettleItem(1, 2, "fail", None, False, {"name": "E", "message": "", "traceback": ""})),
    ([1, 2, "fail", {}, {"retry": False}], SettleItem(1, 2, "fail", None, False, {"name": "", "message": "", "traceback": ""}, False)),
    ([1, 2, "fail", {}, {"retry_at": 5}], SettleItem(1, 2, "fail", None, False, {"name": "", "message": "", "traceback": ""}, 5.0)),
    ([1, 2, "fail", {}, {}], SettleItem(1, 2, "fail", None, False, {"name": "", "message": "", "traceback": ""}, None)),
    ([1, 2, "snooze", 60], SettleItem(1, 2, "snooze", None, False, None, 60.0)),
])
def test_a_settle_is_read_with_its_defaults(item: list, expected: SettleItem) -> None:
    assert parse_settle(item, 10) == expected


@pytest.mark.parametrize("item", [None, {}, [], [1], [1, 2], [1, 2, "done"], [1, 2, b"ack"], [1, 2, ["ack"]], [0, 2, "ack"],
                                  [1, 2, "ack", "text"], [1, 2, "ack", b"", 1], [1, 2, "nack", 0]])
def test_a_bad_settle_is_invalid(item: object) -> None:
    with pytest.raises(InvalidError):
        parse_settle(item, 10)


def test_a_result_may_reach_the_limit_and_not_exceed_it() -> None:
    assert parse_settle([1, 2, "ack", bytes(10)], 10).result == bytes(10)
    with pytest.raises(TooLargeError):
        parse_settle([1, 2, "ack", bytes(11)], 10)


def test_a_long_error_is_cut_and_not_refused() -> None:
    error = parse_settle([1, 2, "fail", {"name": "n" * 200, "message": "m" * 5000, "traceback": "t" * 20000}], 10).error

    assert {key: len(text) for key, text in error.items()} == {"name": 128, "message": 4096, "traceback": 16384}


@pytest.mark.parametrize("error", [None, 5, {}, {"code": 5, "message": ["x"], "field": 1, "retry_after_s": "soon"}, {"retry_after_s": -1.0},
                                   {"retry_after_s": math.nan}, {"retry_after_s": math.inf}, {"retry_after_s": True}])
def test_an_error_that_makes_no_sense_is_still_one_that_can_be_shown_and_slept_for(error: object) -> None:
    exc = from_wire(error)

    assert (exc.code, exc.message, exc.field, exc.retry_after_s) == ("INTERNAL", "error without a message", None, None)


def test_an_error_crosses_the_wire_with_all_it_says() -> None:
    for exc in (BusyError("later", retry_after_s=0.5), InvalidError("n is bad", field="n"), LeaseLostError("gone")):
        back = from_wire(msgpack.unpackb(msgpack.packb(error_fields(exc))))
        assert (type(back), back.code, back.message, back.field, back.retry_after_s) == (
            type(exc), exc.code, exc.message, exc.field, exc.retry_after_s)
