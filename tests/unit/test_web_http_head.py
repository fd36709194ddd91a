"""The strict request head: everything ambiguous is refused (the corpus of reliability 5.2)."""

from __future__ import annotations

import pytest

from greenroom.webui.answers import Refused
from greenroom.webui.http_head import MAX_BODY_BYTES, parse_head

GET = b"GET /api/stats?a=b HTTP/1.1\r\n"
POST = b"POST /api/submit HTTP/1.1\r\n"
HOST = b"Host: localhost:8080\r\n"


def test_a_plain_request_is_understood() -> None:
    head = parse_head(POST, [HOST, b"Content-Length: 12\r\n", b"Expect: 100-continue\r\n"])

    assert (head.method, head.target, head.version) == ("POST", "/api/submit", "HTTP/1.1")
    assert (head.body_bytes, head.keep_alive, head.expects_continue) == (12, True, True)


def test_only_http_1_1_keeps_the_connection_by_default() -> None:
    assert not parse_head(b"GET / HTTP/1.0\r\n", [HOST]).keep_alive
    assert not parse_head(GET, [HOST, b"Connection: close\r\n"]).keep_alive


@pytest.mark.parametrize("line", [
    b"GET /\r\n", b"GET / HTTP/1.1\n", b"GET / HTTP/2.0\r\n", b"G\x00T / HTTP/1.1\r\n", b"get / HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n",
    b"GET\x0b/ HTTP/1.1\r\n", b"GET http://evil/ HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\r\n", b"\r\n",
])
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_head(line, [HOST])

    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize("lines", [
    [], [HOST, HOST], [HOST, b"no colon\r\n"], [HOST, b"X: nul\x00\r\n"], [HOST, b"X: a\r\n", b" folded\r\n"], [HOST, b"X: bare\n"],
    [HOST, b"Content-Length : 3\r\n"], [HOST, b"X: a\rb\r\n"], [HOST, b": empty\r\n"],
])
def test_malformed_headers_are_refused(lines: list[bytes]) -> None:
    with pytest.raises(Refused) as caught:
        parse_head(GET, lines)

    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize(("lines", "code"), [
    ([], "LENGTH_REQUIRED"),
    ([b"Transfer-Encoding: chunked\r\n"], "LENGTH_REQUIRED"),
    ([b"Transfer-Encoding: gzip, chunked\r\n"], "LENGTH_REQUIRED"),
    ([b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n"], "BAD_REQUEST"),
    ([b"Transfer-Encoding: xchunked\r\n", b"Content-Length: 3\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: 3\r\n", b"Content-Length: 3\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: 3\r\n", b"Content-Length: 33\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: +3\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: 1_0\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: -1\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: 0x10\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: 3, 3\r\n"], "BAD_REQUEST"),
    ([b"Content-Length: %d\r\n" % (MAX_BODY_BYTES + 1)], "TOO_LARGE"),
    ([b"Content-Length: 1000000000000000\r\n"], "TOO_LARGE"),
])
def test_a_body_needs_exactly_one_plain_length(lines: list[bytes], code: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_head(POST, [HOST, *lines])

    assert caught.value.code == code
