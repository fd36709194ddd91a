"""The seed corpus of each fuzz target, made from the test vectors and from the lists below; and inputs that failed once.

Generated, so that no blob lies in the repository and the seeds follow the protocol.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from greenroom.protocol import encode_frame, pack_value
from tests.fuzz.targets import VERBS

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "make_vectors.py"

#: Bodies that msgpack could take, but we must not; or that cost much to take. Also bombs.py's material, in small.
HOSTILE_BODIES = [
    b"\x90", b"\x05", b"\x81\x01\x01", b"\x81\xc0\x01", b"\x82\xa1a\x01\xa1a\x02", b"\x81\xa1a\xd4\x01\x00", b"\x81\xa1a\xc7\x00\x01",
    b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", b"\x81\xa1a\xa1\xff", b"\x81\xa1a\xa3\xed\xa0\x80", b"\x81\xa1a\xc1", b"\x80\x80",
    b"\x81\xa1a" + b"\x91" * 40 + b"\xc0", b"\x81\xa1a" * 20 + b"\xc0", b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\x81\xa1a\xdb\xff\xff\xff\xff", b"\x81\xa1a\xc6\xff\xff\xff\xff", b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\x81\xa1a\xcf" + b"\xff" * 8, b"\x81\xa1a\xdc\x00\x65" + b"\xc0" * 101, b"\x81\xa1a\x91\xdc\x00\x65" + b"\xc0" * 101,
]

TOML = """host = "::1"
port = 1234
lease_s = 2.5
window_bytes = 2_097_152
log_level = "debug"
client_ca = 'ca.crt'
"""
CONFIGURATIONS = [
    TOML, "port = 0x10\n", "[broker]\nport = 1\n", "lease_s = nan\n", "port = true\n", "data = \"\"\"\na\\u00e9\"\"\"\n", "lease_s = 2020-01-01\n",
    "history_count = [1]\n", "prot = 1\n", "\ufeff", "a.b.c = {d = 1}\n",
    "\0GREENROOM_PORT=80\nGREENROOM_LEASE_S=1e3\nGREENROOM_HOST=\nPATH=x",
    "\0\0--port\0" + "1_0", "\0\0--lease-s=inf", "\0\0--web-port\0-1", "\0\0--help", "\0\0--data\0\0--log-level=info", "\0\0greenroom://localhost:65432",
    "\0\0greenroom://[::1]:1/", "\0\0greenroom://a@b:0", "\0\0greenroom://[::1", "\0\0greenroom://a:99999",
]

HEADS = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2, "POST /api/submit HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\nHost: b\r\n\r\n",
    "GET /?a=%00 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 33\r\nExpect: 100-continue\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "get / http/1.1\r\n", "GET / HTTP/1.1\r\n: \r\n\r\n",
]

BODIES = [
    '{"task": "t", "payload": {"a": [1, 2.5, null, true, "x"]}, "priority": 1}', '{"a": 1, "a": 2}', '[{"$base64": "AP8="}]', '{"$base64": "a"}',
    "1e999", "NaN", "-0", "18446744073709551616", '"\\ud800"', '"\\u0000"', "[" * 70 + "]" * 70, "\ufeff{}", '{"\\u0061": 1, "a": 2}', "[,]",
]


def vectors() -> dict[str, bytes]:
    """Return the frames of the specification by name."""
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {name: encode_frame(message) for name, (_, message) in module.MESSAGES.items()}
    return made | {name: data for name, (data, _) in module.MALFORMED.items()}


def seeds(target: str) -> list[bytes]:
    """Return the seeds of a target."""
    frames = vectors()
    bodies = [frame[4:] for frame in frames.values()] + HOSTILE_BODIES
    if target == "frames":
        stream = frames["ping"] + frames["submit"] + frames["malformed_list"]
        return [b"\x00" + stream, b"\x06" + stream, *(b"\x03" + frame for frame in frames.values())]
    if target == "large_frames":
        return [b"\x02" + body for body in bodies]
    if target == "requests":
        return bodies
    if target == "answers":
        replies = [bytes([len(VERBS) * asked + VERBS.index(verb)]) + frames[f"{verb}_reply"][4:] for verb in VERBS for asked in (1, 4)]
        return replies + [b"\x00" + body for body in bodies]
    if target == "rest":
        return [text.encode() for text in BODIES] + [pack_value(value) for value in ([1, {"a": b"\xff"}], 2**63, float("nan"))]
    return [text.encode("latin-1" if target == "http_head" else "utf-8") for text in (HEADS if target == "http_head" else CONFIGURATIONS)]


def _asked(verb: str, reply: dict) -> bytes:
    return bytes([len(VERBS) + VERBS.index(verb)]) + pack_value({"id": 1, **reply})


#: What the fuzzer or a person found, and what it was. Each failed once; test_fuzz.py runs them all.
REGRESSIONS: list[tuple[str, bytes, str]] = [
    ("answers", _asked("stats", {"error": {"code": "BUSY", "message": "later", "retry_after_s": -0.1}}), "a pause of less than nothing"),
    ("answers", _asked("stats", {"error": {"code": "BUSY", "message": ["a"], "retry_after_s": "soon"}}), "a pause that is a text"),
    ("answers", _asked("get", {"jobs": [{"state": "failed", "error": None}]}), "a view without an id"),
    ("answers", _asked("get", {"jobs": 5}), "views that are a number"),
    ("configuration", b"lease_s = " + b"1" * 400, "a whole number beyond a double"),
    ("configuration", b"port = " + b"1" * 5000, "a number of 5,000 digits"),
    ("configuration", b"port = " + b"[" * 5000, "lists in lists in lists"),
]
