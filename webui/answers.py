"""What every web answer has in common: status by error code, the JSON of an error, the security headers. Must not know routes."""

from __future__ import annotations

import json
import math

from greenroom.errors import GreenroomError

#: Error code -> HTTP status. A code that is missing here is a bug of ours and answered 500.
STATUS_BY_CODE = {
    "INVALID": 400, "BAD_JSON": 400, "BAD_REQUEST": 400, "CROSS_SITE": 403, "NOT_FOUND": 404, "NO_ROUTE": 404, "METHOD": 405,
    "DEADLINE": 408, "FINISHED": 409, "CONFLICT": 409, "KEY_CONFLICT": 409, "GONE": 410, "LENGTH_REQUIRED": 411, "TOO_LARGE": 413,
    "CONTENT_TYPE": 415, "HOST": 421, "BUSY": 429, "FULL": 429, "HEAD_TOO_LARGE": 431, "INTERNAL": 500, "DRAINING": 503,
    "STORE_FULL": 503, "UNKNOWN": 503, "NOT_READY": 503,
}

REASONS = {
    400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict",
    410: "Gone", 411: "Length Required", 413: "Content Too Large", 415: "Unsupported Media Type", 421: "Misdirected Request",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}

#: On every answer (reliability S31-S38). No inline script or style, nothing from another origin, no frame around the page.
SECURITY_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                                "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

JSON_TYPE = "application/json; charset=utf-8"


class Refused(GreenroomError):
    """Raised when a request is refused by the web side itself; `code` is one of STATUS_BY_CODE."""

    def __init__(self, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.code = code


def dump_json(value: object) -> bytes:
    """Return compact ASCII JSON: no line breaks, so it can be one line of an event."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def error_answer(error: GreenroomError) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status line, headers (without the security headers) and JSON body for an error."""
    fields: dict[str, object] = {"code": error.code, "message": error.message}
    if error.field is not None:
        fields["field"] = error.field
    headers = [("Content-Type", JSON_TYPE), ("Cache-Control", "no-store")]
    status = STATUS_BY_CODE.get(error.code, 500)
    if error.retry_after_s is not None or status == 429:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after_s or 1)))))
    return f"{status} {REASONS[status]}", headers, dump_json({"error": fields})
