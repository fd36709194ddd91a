"""The web application: static files, checks that every request passes, headers that every answer gets. Must not know verbs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import bottle

from greenroom.errors import GreenroomError, InternalError
from greenroom.webui.answers import SECURITY_HEADERS, Refused, error_answer
from greenroom.webui.api import add_routes, refuse
from greenroom.webui.job_events import JobEvents
from greenroom.webui.live import Live

STATIC_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "static")

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".svg": "image/svg+xml", ".json": "application/json", ".txt": "text/plain; charset=utf-8"}


def make_app(call: Callable[[str, dict], dict], security: Callable[[], dict], live: Live,
             job_events: JobEvents, ready: Callable[[], str | None], metrics: Callable[[], bytes] = bytes,
             remarks: Callable[[], list[str]] = list) -> bottle.Bottle:
    """Build the WSGI application.

    Args:
        call: `call(verb, fields)` runs a protocol verb as a session would and returns the reply's fields (bytes are bytes, views
            are dicts); raises GreenroomError. It may switch greenlets and has its own deadline.
        security: returns the shape of `/api/security` (docs/rest.md); must not switch.
        live: the source of `/api/events`. job_events: that of `/api/events/jobs`.
        ready: returns None, or the reason why the broker is not ready.
        metrics: returns the body of `/metrics`; may switch.
        remarks: returns what a person should look at although the broker is ready.
    """
    app = _App()
    add_routes(app, call, security, live, job_events, ready, metrics, remarks)
    files = _read_static_files()
    app.route("/", "GET", lambda: _static(files, "index.html"))
    app.route("/favicon.ico", "GET", lambda: _static(files, "favicon.svg"))
    app.route("/static/<name:path>", "GET", lambda name: _static(files, name))
    return app


class _App(bottle.Bottle):
    """A bottle application that checks every request first and completes every answer's headers."""

    def wsgi(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request (WSGI)."""
        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable:
            names = {name.lower() for name, _ in headers}
            extra = [("Cache-Control", "no-store")] if "cache-control" not in names else []
            return start_response(status, [*headers, *extra, *SECURITY_HEADERS], exc_info)

        try:
            _check_request(environ)
        except Refused as refused:
            status, headers, body = error_answer(refused)
            start(status, [*headers, ("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        return super().wsgi(environ, start)

    def default_error_handler(self, res: bottle.HTTPError) -> bytes:
        """Give bottle's own errors, its router's above all, the contract's shape; headers such as Allow stay."""
        request = bottle.request
        known: dict[int, GreenroomError] = {
            404: Refused("NO_ROUTE", f"there is nothing at {request.path[:200]!r}; docs/rest.md lists the routes"),
            405: Refused("METHOD", f"{request.method} is not possible here; Allow lists what is"),
            400: Refused("BAD_REQUEST", "the request is malformed"),
        }
        return refuse(known.get(res.status_code) or InternalError("an unexpected error; the broker's log has the details"))


def _check_request(environ: dict) -> None:
    """Refuse what does not come from this page, a person or a local program.

    The Host list defeats DNS rebinding: a foreign name that was made to point here is not in it. The port is the listener's own
    word (SERVER_PORT), not the client's.
    """
    port = environ["SERVER_PORT"]
    host = environ.get("HTTP_HOST", "").lower()
    if host not in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        raise Refused("HOST", f"Host must be localhost, 127.0.0.1 or [::1] with port {port}")
    if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        return
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("same-origin", "none"):
        raise Refused("CROSS_SITE", "changes are accepted from this page only (Sec-Fetch-Site)")
    if environ.get("HTTP_ORIGIN", f"http://{host}").lower() != f"http://{host}":
        raise Refused("CROSS_SITE", "changes are accepted from this page only (Origin)")


class _File(NamedTuple):
    content: bytes
    type: str
    etag: str


def _read_static_files() -> dict[str, _File]:
    """Return name below static/ (with /) -> file. What is not in this table does not exist: no path is made from a URL."""
    files: dict[str, _File] = {}
    for folder, _, names in os.walk(STATIC_DIR):
        for name in names:
            path = os.path.join(folder, name)
            kind = TYPES.get(os.path.splitext(name)[1])
            if kind is None:
                continue
            with open(path, "rb") as file:
                content = file.read()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[os.path.relpath(path, STATIC_DIR).replace(os.sep, "/")] = _File(content, kind, etag)
    return files


def _static(files: dict[str, _File], name: str) -> bytes:
    file = files.get(name)
    if file is None:
        return refuse(Refused("NO_ROUTE", f"there is no file {name[:200]!r}"))
    response = bottle.response
    response.set_header("ETag", file.etag)
    response.set_header("Cache-Control", "no-cache")  # ask every time: a new version must not meet an old page
    if file.etag in bottle.request.get_header("If-None-Match", ""):
        response.status = 304
        return b""
    response.content_type = file.type
    return file.content
