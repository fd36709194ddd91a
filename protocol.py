"""The wire: frames, messages, limits and errors, as docs/protocol_v1.md says. Bytes in, messages out; no IO, no clock.

Both ends use the same code. It knows the shape of a request (which verb has which fields, of which type and range) but not
what a verb does. The only module that knows msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import msgpack

from greenroom.errors import (GreenroomError, InvalidError, ProtocolError, TooLargeError, UnknownVerbError, VersionError)
from greenroom.events import KINDS, MAX_BOOT_CHARACTERS
from greenroom.job import (
    MOST_TIME, NUMBER_LIMIT, OPTIONS, STATE_BY_LABEL, YEAR_S, check_flag, check_name, is_number, seconds_between)
from greenroom.job_log import LINE_CHARACTERS, TEXT_CHARACTERS
from greenroom.records import ReportItem, SettleItem
from greenroom.schedule_limits import (DEFAULT_MISSED, MAX_CRON_CHARACTERS, MAX_EVERY_CHARACTERS, MAX_MISSED, MAX_REASON_CHARACTERS,
                                       MAX_ZONE_CHARACTERS, MISSED, OVERLAPS)

VERSION = 1
DEFAULT_PORT = 65432

HEADER = struct.Struct(">I")

_new_tuple = tuple.__new__  # makes a record without the Python function that its class would call: half the time

#: Before the greeting nobody may make us keep more than this. A worker that comes back with 1,000 leases needs 20 kB.
HELLO_FRAME_BYTES = 64 * 1024

#: A request may hold so many values in its lists and maps: a submit of 1,000 jobs with all the usual options has 9,000. Without it a frame of
#: empty lists costs the broker's hub 200 ms.
MAX_REQUEST_VALUES = 16_000
#: An answer may hold more: 1,000 views have 25,000.
MAX_ANSWER_VALUES = 250_000
MAX_MAP_ENTRIES = 32
#: The largest piece of a backup in one answer: a millisecond of encryption.
BACKUP_PIECE_BYTES = 2**20
#: Items of a list that is not itself a field of the request. A frame of lists in lists of 1,000 would hold a million values before the
#: first list ends and can be counted: 160 ms of the broker's hub to decode, and 20 ms to throw away.
MAX_INNER_ITEMS = 100
#: Decoding 1 MiB of text takes 2.5 ms. Longer is no text of this protocol, but one that is only to be cut (ERROR_LIMITS) must not be refused.
MAX_TEXT_BYTES = 2**20
#: Larger bodies are decoded in pieces of so much, each 2 ms at the very most.
PIECE_BYTES = 16 * 1024


class Limits(NamedTuple):
    """What the broker tells in its greeting; the keys of `limits` there."""

    frame: int = 4 * 2**20  # bytes of a body
    payload: int = 2**20  # bytes of one payload
    result: int = 2**20  # bytes of one result
    list: int = 1000  # items in a list
    leases: int = 1000  # leases of one session
    reserve: int = 2**20  # payload bytes in one answer to a reserve
    wait: int = 60  # seconds a reserve or wait may stay
    waits: int = 256  # open waits of one session


DEFAULT_LIMITS = Limits()


def pack_value(value: object) -> bytes:
    """Encode one value (a payload's map, a result) as msgpack.

    Raises ValueError with a sentence for what msgpack cannot carry: objects, sets, integers outside 64 bits, deep nesting.
    """
    try:
        return msgpack.packb(value)
    except OverflowError:
        raise ValueError("an integer is outside 64 bits: send it as a decimal string") from None
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"not a msgpack value: {exc}") from None


def pack_list(items: list[object], piece_bytes: int) -> Iterator[bytes]:
    """Yield what `pack_value` returns for a list in pieces of about so many bytes, an item at least."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(len(items))
    for item in items:
        packer.pack(item)
        if packer.getbuffer().nbytes >= piece_bytes:
            yield packer.bytes()
            packer.reset()
    yield packer.bytes()


def unpack_value(data: bytes) -> object:
    """Decode one msgpack value (maps may have any keys). Raises ValueError with a sentence if it is not exactly one."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except msgpack.ExtraData:
        raise ValueError("more than one msgpack value") from None
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as exc:
        raise ValueError(f"not a msgpack value: {str(exc) or type(exc).__name__}") from None


def encode_frame(message: dict) -> bytes:
    """Encode a message as one frame. Safe in any thread."""
    body = msgpack.packb(message)
    return HEADER.pack(len(body)) + body


class FrameEncoder:
    """`encode_frame` for a single thread: keeps its packer, which halves the cost of a small message."""

    def __init__(self) -> None:
        self._pack = msgpack.Packer(autoreset=True).pack

    def __call__(self, message: dict) -> bytes:
        """Encode a message as one frame."""
        body = self._pack(message)
        return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes into messages. After an error it is spent.

    Attributes:
        max_frame: bytes of a body that are accepted; may be raised after the greeting.
        max_values, max_inner: values in a body that are accepted, and items of lists further in; the broker reads requests,
            everybody else answers.
        failed: the ProtocolError that ended the stream, or None. Messages before the bad frame are still returned.
    """

    __slots__ = ("max_frame", "max_values", "max_inner", "failed", "_buffer", "_need", "_values_left", "_long_lists")

    def __init__(self, max_frame: int = DEFAULT_LIMITS.frame, max_values: int = MAX_ANSWER_VALUES,
                 max_inner: int = DEFAULT_LIMITS.list) -> None:
        self.max_frame = max_frame
        self.max_values = max_values
        self.max_inner = max_inner
        self.failed: ProtocolError | None = None
        self._buffer = b""
        self._need = 4  # bytes in the buffer without which parsing again makes no sense
        self._values_left = 0
        self._long_lists = 0

    @property
    def is_partial(self) -> bool:
        """True while a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[dict]:
        """Take bytes from the peer and return the messages that they complete.

        Never raises for what the peer sent: see `failed`.
        """
        return [message for message in self.messages(data) if message is not None]

    def messages(self, data: bytes) -> Iterator[dict | None]:
        """Do what `feed` does, message by message, for those who must not be held up: each step takes 2 ms at most.

        Yields None after a part of a large message. Either exhaust it before the next bytes come, or leave the reader alone for good.
        """
        if self.failed is not None:
            return
        if self._buffer:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
            if len(self._buffer) < self._need:
                return
            data = self._buffer  # not copied: it may have megabytes
        position, end = 0, len(data)
        self._need = 4
        while end - position >= 4:
            length = HEADER.unpack_from(data, position)[0]
            if not 0 < length <= self.max_frame:
                self._fail(f"a frame of {length} bytes; 1 to {self.max_frame} are allowed")
                return
            if end - position - 4 < length:
                self._need = 4 + length
                break
            begin, position = position + 4, position + 4 + length
            try:
                if length <= PIECE_BYTES:
                    message = self._decode(data[begin:position])
                else:
                    message = yield from self._decode_in_pieces(memoryview(data)[begin:position])
            except (ValueError, TypeError, msgpack.UnpackException) as exc:
                self._fail(f"a body that is not an allowed msgpack map: {str(exc) or type(exc).__name__}")
                return
            yield message
        self._buffer = data[position:]

    def _fail(self, sentence: str) -> None:
        self.failed = ProtocolError(sentence)
        self._buffer = b""

    def _decode(self, body: bytes) -> dict:
        self._values_left = self.max_values
        self._long_lists = 0
        # A body that has fewer bytes than values are allowed needs no count of them: a third of the time.
        map_hook = _map_of if len(body) <= self.max_values else self._take_map
        message = msgpack.unpackb(
            body, strict_map_key=True, max_array_len=DEFAULT_LIMITS.list, max_map_len=MAX_MAP_ENTRIES, max_ext_len=0,
            max_str_len=MAX_TEXT_BYTES, ext_hook=_refuse_extension, object_pairs_hook=map_hook, list_hook=self._take_list)
        if type(message) is not dict:
            raise ValueError("the body is not a map")
        if self._long_lists and self._long_lists > sum(
                type(value) is list and len(value) > self.max_inner for value in message.values()):
            raise ValueError(f"a list further in has more than {self.max_inner} items")
        return message

    def _decode_in_pieces(self, body: memoryview, piece_bytes: int = PIECE_BYTES) -> Generator[None, None, dict]:
        """Decode a large body, by the same rules. The lists that are fields of the message are read item by item: only so can those
        further in have another bound."""
        self._values_left = self.max_values
        unpacker = msgpack.Unpacker(
            max_buffer_size=len(body), strict_map_key=True, max_array_len=self.max_inner, max_map_len=MAX_MAP_ENTRIES, max_ext_len=0,
            max_str_len=MAX_TEXT_BYTES, max_bin_len=len(body), ext_hook=_refuse_extension, object_pairs_hook=self._take_map,
            list_hook=self._take_list)
        pieces = (body[begin:begin + piece_bytes] for begin in range(0, len(body), piece_bytes))
        pairs: list[tuple[str, object]] = []
        for _ in range((yield from _in_pieces(unpacker, pieces, unpacker.read_map_header))):
            if len(pairs) == MAX_MAP_ENTRIES:
                raise ValueError(f"a map of more than {MAX_MAP_ENTRIES} entries")
            key = yield from _in_pieces(unpacker, pieces, unpacker.unpack)
            at = unpacker.tell()
            if at < len(body) and (body[at] & 0xF0 == 0x90 or body[at] in (0xDC, 0xDD)):
                value: object = yield from self._read_list(unpacker, pieces)
            else:
                value = yield from _in_pieces(unpacker, pieces, unpacker.unpack)
            pairs.append((key, value))
        if unpacker.tell() != len(body):
            raise ValueError("more than one value")
        return self._take_map(pairs)

    def _read_list(self, unpacker: msgpack.Unpacker, pieces: Iterator[memoryview]) -> Generator[None, None, list]:
        count = yield from _in_pieces(unpacker, pieces, unpacker.read_array_header)
        if count > DEFAULT_LIMITS.list:
            raise ValueError(f"a list of more than {DEFAULT_LIMITS.list} items")
        items: list[object] = []
        while len(items) < count:
            try:  # not by _in_pieces: a generator each would double the cost
                items.append(unpacker.unpack())
            except msgpack.OutOfData:
                _feed_next(unpacker, pieces)
                yield None
        return self._take_list(items)

    def _take_map(self, pairs: list[tuple[str, object]]) -> dict:
        self._values_left -= len(pairs) + 1
        if self._values_left < 0:
            raise ValueError(f"more than {self.max_values} values")
        return _map_of(pairs)

    def _take_list(self, items: list) -> list:
        self._values_left -= len(items) + 1
        if self._values_left < 0:
            raise ValueError(f"more than {self.max_values} values")
        if len(items) > self.max_inner:
            self._long_lists += 1
        return items


def _map_of(pairs: list[tuple[str, object]]) -> dict:
    if not pairs:
        return {}  # a byte each: all the rest would make 16,000 of them cost 10 ms in one step
    taken = dict(pairs)
    if len(taken) != len(pairs):
        raise ValueError("a key stands twice in a map")
    "".join(taken)  # raises TypeError for a binary key; the quickest look at all keys there is
    return taken


def _in_pieces(unpacker: msgpack.Unpacker, pieces: Iterator[memoryview], read: Callable[[], object]) -> Generator[None, None, object]:
    """Return what `read` reads, feeding the unpacker (which goes on in the middle of a value) as often as it takes."""
    while True:
        try:
            return read()
        except msgpack.OutOfData:
            _feed_next(unpacker, pieces)
            yield None


def _feed_next(unpacker: msgpack.Unpacker, pieces: Iterator[memoryview]) -> None:
    piece = next(pieces, None)
    if piece is None:
        raise ValueError("it ends in the middle")
    unpacker.feed(piece)


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


class Field(NamedTuple):
    """One field of a request. `check` returns the value or raises ValueError with the end of the sentence."""

    name: str
    check: Callable[[object], object]
    default: object = None
    required: bool = False


class Request(NamedTuple):
    """A checked request. `fields` has every field of the verb, with its default where the peer left it out."""

    verb: str
    id: int
    fields: dict[str, object]


def _integer(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return value
    return check


def _text(limit: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise ValueError(f"must be a text of at most {limit} characters")
        return value
    return check


def _word(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return value
    return check


def _items(low: int) -> Callable[[object], list]:
    def check(value: object) -> list:
        if not isinstance(value, list) or not low <= len(value) <= DEFAULT_LIMITS.list:
            raise ValueError(f"must be a list of {low} to {DEFAULT_LIMITS.list} items")
        return value
    return check


def _ids(value: object) -> list[int]:
    ids = _items(1)(value)
    for item in ids:
        if type(item) is not int or not 1 <= item < NUMBER_LIMIT:
            raise ValueError("must hold job ids: integers from 1 to 2^53-1")
    return ids


def _leases(low: int) -> Callable[[object], list]:
    def check(value: object) -> list[tuple[int, int]]:
        return [check_lease(item) for item in _items(low)(value)]
    return check


def check_lease(item: object) -> tuple[int, int]:
    """Return (job id, fence) from the first two places of a list, or raise ValueError."""
    if not isinstance(item, list) or len(item) < 2:
        raise ValueError("must hold leases: lists of job id and fence")
    job, fence = item[0], item[1]
    if type(job) is not int or type(fence) is not int or not 0 < job < NUMBER_LIMIT or not 0 < fence < NUMBER_LIMIT:
        raise ValueError("must hold leases: two integers from 1 to 2^53-1")
    return job, fence


def _names(value: object) -> list[str]:
    return [check_name(item) for item in _items(0)(value)]


def _kinds(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > len(KINDS) or not all(isinstance(kind, str) and kind in KINDS for kind in value):
        raise ValueError("must be a list of kinds of events: " + ", ".join(KINDS))
    return value


def _sixteen(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise ValueError("must be 16 bytes")
    return value


def _instance(value: object) -> bytes:
    if not any(_sixteen(value)):
        raise ValueError("must not be all zeros: in the store they stand for a worker that gave none")
    return value


def _map(value: object) -> dict:
    if not isinstance(value, dict):
        raise ValueError("must be a map")
    return value


def _option(name: str) -> Field:
    """Return the field by which a verb takes an option of a job; left out: nil."""
    return Field(name, OPTIONS[name].check)


_WAIT = Field("wait", seconds_between(0, DEFAULT_LIMITS.wait), 0.0)
_JOB_IDS = Field("jobs", _ids, required=True)
_QUEUE = Field("queue", check_name, required=True)
_SCHEDULE = Field("name", check_name, required=True)

#: Verb -> its fields. The specification's tables say the same; a test compares them.
VERBS: dict[str, tuple[Field, ...]] = {
    "hello": (
        Field("version", _integer(1, 2**31), required=True),
        Field("role", _word("client", "worker"), required=True),
        Field("name", check_name),
        Field("software", _text(128), ""),
        Field("instance", _instance),
        Field("leases", _leases(0), ()),
        Field("tasks", _names),
        Field("queues", _names),
    ),
    "submit": (Field("jobs", _items(1), required=True), Field("submission", _sixteen)),
    "cancel": (_JOB_IDS,),
    "retry": (_JOB_IDS,),
    "delete": (_JOB_IDS,),
    "runs": (Field("job", _integer(1, NUMBER_LIMIT - 1), required=True),),
    "logs": (
        Field("job", _integer(1, NUMBER_LIMIT - 1), required=True), Field("after", _integer(0, NUMBER_LIMIT - 1), 0),
        Field("limit", _integer(1, 1000), 1000), _WAIT),
    "get": (_JOB_IDS, Field("payload", check_flag, False)),
    "wait": (_JOB_IDS, _WAIT),
    "reserve": (
        Field("n", _integer(0, 1000), required=True), Field("queues", _names), Field("tasks", _names), _WAIT),
    "settle": (Field("leases", _items(1), required=True),),
    "heartbeat": (Field("leases", _leases(0)),),
    "report": (Field("leases", _items(1), required=True),),
    "extend": (Field("leases", _leases(1), required=True), Field("for", seconds_between(1, 86400), required=True)),
    "jobs": (
        Field("filter", _map), Field("state", _word(*STATE_BY_LABEL)), Field("queue", check_name), Field("task", check_name),
        Field("worker", check_name), Field("before", _integer(1, NUMBER_LIMIT)), Field("limit", _integer(1, 1000), 50),
        Field("payload", check_flag, False)),
    "failures": (Field("filter", _map), Field("queue", check_name), Field("task", check_name), Field("before", _integer(1, NUMBER_LIMIT))),
    "queues": (),
    "workers": (),
    "stats": (),
    "backup": (
        Field("step", _word("begin", "read", "end"), required=True), Field("backup", _sixteen, required=True),
        Field("offset", _integer(0, NUMBER_LIMIT - 1), 0), Field("size", _integer(1, BACKUP_PIECE_BYTES), BACKUP_PIECE_BYTES)),
    "schedules": (
        Field("name", check_name), Field("after", check_name), Field("limit", _integer(1, 1000), 100)),
    "schedule_put": (
        _SCHEDULE, Field("job", _map, required=True), Field("cron", _text(MAX_CRON_CHARACTERS)), Field("every", _text(MAX_EVERY_CHARACTERS)),
        Field("timezone", _text(MAX_ZONE_CHARACTERS)), Field("overlap", _word(*OVERLAPS), OVERLAPS[0]),
        Field("missed", _word(*MISSED), MISSED[0]), Field("missed_max", _integer(1, MAX_MISSED), DEFAULT_MISSED)),
    "schedule_delete": (_SCHEDULE,),
    "schedule_pause": (_SCHEDULE, Field("reason", _text(MAX_REASON_CHARACTERS), "")),
    "schedule_resume": (_SCHEDULE,),
    "schedule_run": (_SCHEDULE,),
    "ping": (),
    "pause": (
        Field("queue", check_name), Field("task", check_name), Field("for", seconds_between(1, YEAR_S)), Field("reason", _text(256), ""),
        Field("by", _text(128))),
    "resume": (Field("queue", check_name), Field("task", check_name)),
    "pauses": (),
    "limit": (
        _QUEUE, Field("jobs", _integer(1, NUMBER_LIMIT - 1)), Field("bytes", _integer(1, NUMBER_LIMIT - 1)),
        Field("urgent", OPTIONS["priority"].check), Field("extra", _integer(1, 1000), 10), Field("reason", _text(256), ""),
        Field("by", _text(128))),
    "unlimit": (_QUEUE,),
    "limits": (),
    "change": (_JOB_IDS, *map(_option, ("priority", "queue", "run_at", "delay", "payload", "encoding"))),
    "purge": (_QUEUE, Field("task", check_name), Field("before", _integer(1, NUMBER_LIMIT))),
    "bulk": (
        Field("action", _word("retry", "cancel", "delete", "change"), required=True), Field("filter", _map, required=True),
        Field("before", _integer(1, NUMBER_LIMIT)), Field("dry_run", check_flag, False), *map(_option, ("priority", "queue", "run_at", "delay"))),
    "explain": (Field("job", _integer(1, NUMBER_LIMIT - 1)), Field("queue", check_name)),
    "subscribe": (
        Field("queue", check_name), Field("task", check_name), Field("kinds", _kinds), Field("boot", _text(MAX_BOOT_CHARACTERS)),
        Field("after", _integer(0, NUMBER_LIMIT - 1))),
    "bye": (),
}

#: Verbs that only a session with the role `worker` may use.
WORKER_VERBS = frozenset({"reserve", "settle", "heartbeat", "extend", "report"})


def request_id(message: dict) -> int:
    """Return the id of a request, or raise ProtocolError: without one no answer can be sent."""
    value = message.get("id")
    if type(value) is not int or not 1 <= value < NUMBER_LIMIT:
        raise ProtocolError("a request without a usable id (an integer from 1 to 2^53-1)")
    return value


def parse_request(message: dict) -> Request:
    """Check a message as a request: verb, id, and the type and range of each field.

    What lies inside the lists of `submit`, `settle` and `report` is left to their handlers, which answer each item by itself.

    Raises:
        ProtocolError: no usable id or verb (the peer's fault; closes).
        UnknownVerbError, InvalidError: the peer's fault, answered under the request's id.
    """
    number = request_id(message)
    verb = message.get("verb")
    if not isinstance(verb, str):
        raise ProtocolError("a request without a verb")
    fields = VERBS.get(verb)
    if fields is None:
        raise UnknownVerbError(f"no verb {verb[:40]!r}")
    return Request(verb, number, check_fields(fields, message))


def check_fields(fields: tuple[Field, ...], message: dict) -> dict[str, object]:
    """Return the values of these fields, with defaults; raises InvalidError that names the first bad one."""
    values: dict[str, object] = {}
    for field in fields:
        value = message.get(field.name)
        if value is None:
            if field.required:
                raise InvalidError(f"{field.name} is required", field=field.name)
            values[field.name] = field.default
            continue
        try:
            values[field.name] = field.check(value)
        except ValueError as exc:
            raise InvalidError(f"{field.name} {exc}", field=field.name) from None
    return values


def choose_version(offered: int) -> int:
    """Return the version to speak with a peer whose highest is `offered`; raises VersionError if there is none."""
    if offered < VERSION:
        raise VersionError(f"this broker speaks version {VERSION}, not {offered}")
    return VERSION


def parse_settle(item: object, max_result_bytes: int) -> SettleItem:
    """Check one lease of a settle. Raises InvalidError or TooLargeError (the peer's fault; answered for this item)."""
    if type(item) is list and len(item) == 5 and item[2] == "ack":
        # The usual settle, looked at as a whole; what is wrong with another is found below. Saves half of the time.
        job, fence, _, result, raw = item
        if (type(job) is int and type(fence) is int and 0 < job < NUMBER_LIMIT and 0 < fence < NUMBER_LIMIT
                and type(result) is bytes and len(result) <= max_result_bytes and type(raw) is bool):
            return _new_tuple(SettleItem, (job, fence, "ack", result, raw, None, None))
    try:
        job, fence = check_lease(item)
    except ValueError as exc:
        raise InvalidError(f"leases {exc}", field="leases") from None
    outcome = item[2] if len(item) > 2 else None
    if outcome == "ack":
        result = item[3] if len(item) > 3 else None
        raw = item[4] if len(item) > 4 else False
        if not (result is None or isinstance(result, bytes)) or type(raw) is not bool:
            raise InvalidError("an ack is followed by its result (binary or nil) and raw (true or false)", field="leases")
        if result is not None and len(result) > max_result_bytes:
            raise TooLargeError(f"result has {len(result)} bytes, the limit is {max_result_bytes}", field="result")
        return SettleItem(job, fence, "ack", result, raw, None)
    if outcome == "fail":
        return SettleItem(job, fence, "fail", None, False, _parse_error(item[3] if len(item) > 3 else None), _parse_wish(item))
    if outcome == "snooze":
        seconds = item[3] if len(item) > 3 else None
        if not is_number(seconds) or not 0 <= seconds <= YEAR_S:
            raise InvalidError(f"a snooze is followed by seconds from 0 to {YEAR_S}", field="leases")
        return SettleItem(job, fence, "snooze", None, False, None, float(seconds))
    if outcome == "nack":
        begun = item[3] if len(item) > 3 else True
        if type(begun) is not bool:
            raise InvalidError("a nack may be followed by begun (true or false)", field="leases")
        return SettleItem(job, fence, "nack" if begun else "unbegun", None, False, None)
    if outcome == "crash":
        return SettleItem(job, fence, "crash", None, False, None)
    raise InvalidError("a settle needs an outcome: ack, fail, snooze, nack or crash", field="leases")


#: Longer texts of an error are cut, never refused: a failure must not be lost because it is long.
ERROR_LIMITS = {"name": 128, "message": 4096, "traceback": 16384}


def _parse_wish(item: list) -> float | bool | None:
    """Return what a fail asks for: False, when to try again, or None: nothing."""
    given = item[4] if len(item) > 4 else None
    if given is None:
        return None
    if isinstance(given, dict):
        if given.get("retry") is False:
            return False
        at = given.get("retry_at")
        if given.get("retry") in (None, True) and (at is None or is_number(at) and 0 <= at <= MOST_TIME):
            return None if at is None else float(at)
    raise InvalidError("a fail may be followed by a map: retry false, or retry_at a time in seconds since 1970", field="leases")


def _parse_error(error: object) -> dict[str, str]:
    given = error if isinstance(error, dict) else {}
    cut: dict[str, str] = {}
    for key, limit in ERROR_LIMITS.items():
        value = given.get(key)
        cut[key] = value[:limit] if isinstance(value, str) else ""
    return cut


def parse_report(item: object) -> ReportItem:
    """Check one lease of a report. Raises InvalidError (the peer's fault; answered for this item)."""
    try:
        job, fence = check_lease(item)
    except ValueError as exc:
        raise InvalidError(f"leases {exc}", field="leases") from None
    fraction, text, lines = (*item[2:5], None, None, None)[:3]
    if fraction is not None and not (is_number(fraction) and 0 <= fraction <= 1):
        raise InvalidError("a report's fraction must be a number from 0 to 1, or nil", field="fraction")
    if not isinstance(text, str | None):
        raise InvalidError("a report's text must be a text, or nil", field="text")
    if not isinstance(lines, list | None):
        raise InvalidError("a report's lines must be a list", field="lines")
    checked = []
    for line in lines or ():
        if not (isinstance(line, list) and len(line) == 2 and is_number(line[0]) and 0 <= line[0] <= MOST_TIME and isinstance(line[1], str)):
            raise InvalidError("a report's lines must be lists of a time (seconds since 1970) and a text", field="lines")
        checked.append((float(line[0]), line[1][:LINE_CHARACTERS]))
    return ReportItem(job, fence, None if fraction is None else float(fraction), None if text is None else text[:TEXT_CHARACTERS], checked)


def error_fields(exc: GreenroomError) -> dict[str, object]:
    """Return the `error` map of a reply."""
    fields: dict[str, object] = {"code": exc.code, "message": exc.message}
    if exc.field is not None:
        fields["field"] = exc.field
    if exc.retry_after_s is not None:
        fields["retry_after_s"] = exc.retry_after_s
    return fields


def check_size(frame: bytes, limit: int) -> bytes:
    """Return the frame, or raise TooLargeError if its body is over the limit that the peer told."""
    if len(frame) - 4 > limit:
        raise TooLargeError(f"a frame of {len(frame) - 4} bytes, the limit is {limit}")
    return frame
