"""Strict reading of an HTTP/1.x request head: what is ambiguous is refused, not repaired. Lines in, fields out; no sockets, no clock.

RFC 9112 with the choices that leave no room for request smuggling: no bare LF, no folded lines, one Host, one Content-Length
of plain digits, no Transfer-Encoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from greenroom.webui.answers import Refused

MAX_LINE_BYTES = 4096  # request line or one header
MAX_HEADERS = 64
MAX_HEAD_BYTES = 16384
MAX_BODY_BYTES = 1_500_000  # a payload of 1 MiB as JSON, most of the time; docs/rest.md tells it

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t !-~\x80-\xff]*)\r\n")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Head(NamedTuple):
    """A checked request head."""

    method: str
    target: str  # path and query as sent
    version: str  # HTTP/1.0 or HTTP/1.1
    lines: list[bytes]  # the header lines with their CRLF
    body_bytes: int
    keep_alive: bool
    expects_continue: bool


def read_request_line(readline: Callable[[int], bytes]) -> bytes | None:
    """Read and check the first line; None where the peer ended instead of asking anything more.

    Args:
        readline: returns the next line with its end, or as many bytes as it is given, or what is left, b"" at the end.

    Raises Refused, as parse_request_line does.
    """
    line = readline(MAX_LINE_BYTES + 1)
    if not line:
        return None
    parse_request_line(_bounded(line))
    return line


def read_header_lines(readline: Callable[[int], bytes]) -> list[bytes]:
    """Read up to the empty line, which is left out. Raises Refused for what is too long, too much or ends too early."""
    lines: list[bytes] = []
    total_bytes = 0
    while True:
        line = _bounded(readline(MAX_LINE_BYTES + 1))
        if line == b"\r\n":
            return lines
        lines.append(line)
        total_bytes += len(line)
        if len(lines) > MAX_HEADERS or total_bytes > MAX_HEAD_BYTES:
            raise Refused("HEAD_TOO_LARGE", f"at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes of them are read")


def _bounded(line: bytes) -> bytes:
    if len(line) > MAX_LINE_BYTES:
        raise Refused("HEAD_TOO_LARGE", f"the request line and each header may have {MAX_LINE_BYTES} bytes")
    if not line:
        raise Refused("BAD_REQUEST", "the request head ends in the middle")
    return line


def parse_request_line(line: bytes) -> tuple[str, str, str]:
    """Return method, target and minor version. Raises Refused: what speaks another protocol is told at its first line."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused("BAD_REQUEST", "this is not an HTTP/1.1 request line")
    return match[1].decode(), match[2].decode(), match[3].decode()


def parse_head(request_line: bytes, lines: list[bytes]) -> Head:
    """Check a request line and its header lines.

    Args:
        request_line, lines: as read, each with its line end, without the empty line.

    Raises:
        Refused: the peer's fault; the connection must be closed, for nobody knows where the next request would begin.
    """
    method, target, minor = parse_request_line(request_line)
    headers = _collect(lines)
    if len(headers.get("host", ())) != 1:
        raise Refused("BAD_REQUEST", "a request must have exactly one Host header")
    connection = ",".join(headers.get("connection", ())).lower()
    keep_alive = "close" not in connection if minor == "1" else "keep-alive" in connection
    return Head(method, target, f"HTTP/1.{minor}", lines, _body_bytes(method, headers), keep_alive,
                headers.get("expect") == ["100-continue"])


def _collect(lines: list[bytes]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Refused("BAD_REQUEST", "a header line is malformed")
        headers.setdefault(match[1].decode().lower(), []).append(match[2].decode("latin-1").strip(" \t"))
    return headers


def _body_bytes(method: str, headers: dict[str, list[str]]) -> int:
    lengths = headers.get("content-length", [])
    if "transfer-encoding" in headers:
        if lengths:
            raise Refused("BAD_REQUEST", "Transfer-Encoding and Content-Length exclude each other")
        raise Refused("LENGTH_REQUIRED", "send the body with Content-Length, not with Transfer-Encoding")
    if not lengths:
        if method in _WITH_BODY:
            raise Refused("LENGTH_REQUIRED", f"a {method} needs a Content-Length")
        return 0
    if len(lengths) > 1 or re.fullmatch(r"[0-9]{1,19}", lengths[0]) is None:
        raise Refused("BAD_REQUEST", "Content-Length must be one number of plain digits")
    length = int(lengths[0])
    if length > MAX_BODY_BYTES:
        raise Refused("TOO_LARGE", f"the body has {length} bytes, the limit is {MAX_BODY_BYTES}")
    return length
