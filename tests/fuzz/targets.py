"""What is fuzzed: one function a parser. Bytes in; an AssertionError or any undeclared exception out is a bug.

No atheris and no pytest here: fuzz_child.py runs these under atheris, the tests run them on seeds and on inputs that once failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgpack

from greenroom import config
from greenroom.client import decode_result
from greenroom.endpoint import parse_url
from greenroom.errors import WIRE_ERRORS, ConfigError, GreenroomError, JobFailedError, ProtocolError, from_wire
from greenroom.job import parse_new_job
from greenroom.protocol import (
    DEFAULT_LIMITS, HEADER, MAX_INNER_ITEMS, MAX_REQUEST_VALUES, FrameReader, encode_frame, error_fields, pack_value, parse_request,
    parse_settle)
from greenroom.replies import REPLIES, check_notice, check_reply
from greenroom.webui import shapes
from greenroom.webui.answers import STATUS_BY_CODE, Refused, dump_json
from greenroom.webui.http_head import MAX_BODY_BYTES, parse_head, read_header_lines, read_request_line

#: Small, so that the fuzzer finds the edges of payloads and results without megabytes.
MAX_PAYLOAD, MAX_RESULT = 64, 64
MAX_MESSAGE = 1000  # characters of an error; what it quotes of the input is cut
SMALL_FRAME = 1000
VERBS = sorted(REPLIES)


def reader(max_frame: int = DEFAULT_LIMITS.frame) -> FrameReader:
    """Return a reader as a broker's session has one."""
    return FrameReader(max_frame, MAX_REQUEST_VALUES, MAX_INNER_ITEMS)


def check_error(exc: GreenroomError, codes: object = WIRE_ERRORS) -> None:
    """An error is a known code and one sentence, and can be sent."""
    assert exc.code in codes, exc.code
    assert 0 < len(exc.message) <= MAX_MESSAGE and exc.message.isprintable(), exc.message
    assert "Traceback" not in exc.message and "0x7f" not in exc.message, exc.message
    encode_frame({"id": 1, "error": error_fields(exc)})


# -- the wire --------------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """Any stream gives the same messages and the same failure, whole and cut anywhere; and nothing is kept that is not needed."""
    if not data:
        return
    cut, stream = 1 + data[0], data[1:]
    whole, pieces = reader(SMALL_FRAME), reader(SMALL_FRAME)
    messages = whole.feed(stream)
    told = [message for begin in range(0, len(stream), cut) for message in pieces.feed(stream[begin:begin + cut])]
    assert repr(told) == repr(messages)  # repr: nan is not equal to itself
    assert repr(whole.failed) == repr(pieces.failed) and whole.is_partial == pieces.is_partial
    if whole.failed is not None:
        assert type(whole.failed) is ProtocolError and whole.failed.fatal and not whole.is_partial
        check_error(whole.failed)
        assert whole.feed(encode_frame({"a": 1})) == []
    for message in messages:
        assert type(message) is dict
        assert repr(FrameReader().feed(encode_frame(message))) == repr([message])


def large_frames(data: bytes) -> None:
    """A body is decoded at once and in pieces to the same message, or refused by both."""
    if not data:
        return
    size, body = 1 + data[0] % 32, data[1:]
    outcomes = []
    for decode in (lambda reader: reader._decode(body), lambda reader: _exhausted(reader._decode_in_pieces(memoryview(body), size))):
        try:
            outcomes.append(repr(decode(reader())))
        except Exception as exc:
            assert _is_refusal(exc), repr(exc)
            outcomes.append(None)
    assert outcomes[0] == outcomes[1], outcomes


def _exhausted(steps: object) -> object:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _is_refusal(exc: Exception) -> bool:
    """What FrameReader takes for a bad body. A list of its own, so that a wider one there is noticed."""
    return isinstance(exc, (ValueError, TypeError, msgpack.UnpackException)) and not isinstance(exc, msgpack.BufferFull)


def requests(data: bytes) -> None:
    """Any body of a frame is a checked request or an error of the declared classes; so is each item of a submit and settle."""
    for message in reader().feed(HEADER.pack(len(data)) + data):
        try:
            request = parse_request(message)
        except GreenroomError as exc:
            check_error(exc)
            continue
        for item in request.fields["jobs"] if request.verb == "submit" else ():
            with _answered():
                job = parse_new_job(item, MAX_PAYLOAD)
                assert type(job.payload) is bytes and len(job.payload) <= MAX_PAYLOAD and 1 <= job.options.priority <= 10
                assert job.options.delay is None or job.options.run_at is None
        for item in request.fields["leases"] if request.verb == "settle" else ():
            with _answered():
                settle = parse_settle(item, MAX_RESULT)
                assert settle.result is None or len(settle.result) <= MAX_RESULT
                assert 0 < settle.job < 2**53 and 0 < settle.fence < 2**53


@contextlib.contextmanager
def _answered() -> object:
    try:
        yield
    except GreenroomError as exc:
        check_error(exc)


def answers(data: bytes) -> None:
    """Whatever a broker answers, the client's end has a value or an error of its own kind. The first byte chooses the verb asked."""
    if not data:
        return
    verb, asked, body = VERBS[data[0] % len(VERBS)], data[0] // len(VERBS), data[1:]
    for message in FrameReader().feed(HEADER.pack(len(body)) + body):
        if "error" in message:
            _check_foreign_error(message["error"])
            continue
        try:
            reply = check_notice(message) if "notice" in message else check_reply(verb, asked, message)
        except ProtocolError as exc:
            check_error(exc)
            continue
        for item in reply["outcomes"] if verb in ("cancel", "settle", "extend") and "notice" not in reply else ():
            if not isinstance(item, str):
                _check_foreign_error(item)
        for view in reply["jobs"] if verb in ("get", "wait", "jobs") and "notice" not in reply else ():
            with contextlib.suppress(JobFailedError, ValueError):
                decode_result(view) if "state" in view else _check_foreign_error(view["error"])


def _check_foreign_error(error: object) -> None:
    exc = from_wire(error)
    assert isinstance(exc, GreenroomError) and type(exc.message) is str and type(exc.code) is str
    assert exc.retry_after_s is None or 0 <= exc.retry_after_s < float("inf")
    assert exc.field is None or type(exc.field) is str


# -- configuration ---------------------------------------------------------------------------------------------------------


def configuration(data: bytes) -> None:
    """A file, an environment and flags give a configuration or one sentence; parts are separated by a zero byte.

    The file, then `NAME=value` lines of the environment, then a flag each; the last flag is read as a broker's URL, too.
    """
    table, environment, *flags = [*data.split(b"\0"), b""] if b"\0" in data else [data, b""]
    environ = dict(line.split("=", 1) for line in os.fsdecode(environment).split("\n") if "=" in line)
    environ.pop("GREENROOM_CONFIG", None)  # only our own file is opened
    argv = [os.fsdecode(flag) for flag in flags if not flag.startswith((b"--c", b"@"))]
    path = _scratch_file()
    path.write_bytes(table)
    for sources in (["--config", str(path)], {}), (argv, environ):
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                loaded = config.load(*sources)
        except ConfigError as exc:
            assert exc.message and "\n" not in exc.message and exc.code == "CONFIG"
        except SystemExit as end:
            assert end.code in (0, 2)
        else:
            for setting in config.fields(loaded):
                low, high = setting.metadata["low"], setting.metadata["high"]
                assert low is None or low <= getattr(loaded, setting.name) <= high
    try:
        host, port = parse_url(os.fsdecode(flags[-1]) if flags else "")
        assert host and 1 <= port <= 65535
    except ConfigError as exc:
        assert exc.message and exc.message.isprintable()


_scratch: list[Path] = []


def _scratch_file() -> Path:
    if not _scratch:
        _scratch.append(Path(tempfile.mkdtemp(prefix="greenroom-fuzz-")) / "broker.toml")
    return _scratch[0]


# -- the web ---------------------------------------------------------------------------------------------------------------


def http_head(data: bytes) -> None:
    """Any stream gives request heads that have one reading only, until one is refused; then nothing more is read."""
    stream = io.BytesIO(data)
    while True:
        try:
            line = read_request_line(stream.readline)
            if line is None:
                return
            head = parse_head(line, read_header_lines(stream.readline))
        except Refused as refused:
            assert refused.code in ("BAD_REQUEST", "HEAD_TOO_LARGE", "LENGTH_REQUIRED", "TOO_LARGE")
            check_error(refused, STATUS_BY_CODE)
            return
        raw = b"".join(head.lines).lower()
        assert 0 <= head.body_bytes <= MAX_BODY_BYTES and head.target.startswith("/") and head.target.isascii()
        assert b"transfer-encoding" not in {line.split(b":")[0] for line in raw.split(b"\r\n")}
        assert raw.count(b"\r") == raw.count(b"\n") == len(head.lines) and b"\0" not in raw
        body = stream.read(head.body_bytes)
        if len(body) < head.body_bytes or not head.keep_alive:
            return


def rest(data: bytes) -> None:
    """Any body is plain values that can be packed as a payload, or refused; any payload can be shown as bounded JSON."""
    view = {"id": 1, "task": "t", "state": "failed", "encoding": "msgpack", "result_encoding": "raw", "payload": data, "result": data,
            "error": {"name": "E", "message": data.decode("latin-1"), "traceback": ""}}
    assert len(dump_json(shapes.job_row(view))) <= 12 * (2 * shapes.ROW_BYTES + shapes.ROW_VALUES) + 10_000
    dump_json(shapes.job_detail(view))
    try:
        value = shapes.load_json(data)
        packed = pack_value(shapes.payload_value(value))
    except Refused as refused:
        assert refused.code in ("BAD_JSON", "TOO_LARGE", "INVALID")
        check_error(refused, STATUS_BY_CODE)
    except ValueError as exc:
        assert str(exc)
    else:
        assert json.loads(dump_json(value)) == value and packed


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames, "requests": requests, "configuration": configuration, "large_frames": large_frames, "answers": answers,
    "http_head": http_head, "rest": rest,
}
