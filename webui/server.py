"""The WSGI server: the only file that knows which one it is (gevent's pywsgi). Must not know routes or jobs.

pywsgi by itself accepts ambiguous requests and waits for ever for slow ones (reliability 5.2), so a request is read here, strictly
and with deadlines, body included, before pywsgi or the application see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
from types import TracebackType

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer, headers_factory

from greenroom.accepts import CarefulAccept
from greenroom.errors import GreenroomError, InternalError
from greenroom.webui.answers import SECURITY_HEADERS, Refused, error_answer
from greenroom.webui.http_head import Head, parse_head, read_header_lines, read_request_line

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256  # open at once, viewers of live events included; more wait in the listen backlog
MAX_REQUESTS = 100  # on one connection, then it is closed, so that no peer keeps a place for ever
IDLE_S = 15.0  # for the next request line
HEAD_S = 5.0  # from the request line to the empty line
BODY_S = 10.0
WRITE_S = 10.0  # a peer that takes nothing for so long is dropped
LINGER_S = 1.0  # what a refused peer still sends is read so long, or its kernel would throw the answer away


class WebServer:
    """A WSGI application on a listener."""

    def __init__(self, app: Callable, host: str, port: int) -> None:
        self._server = _Server((host, port), app, handler_class=_Handler, spawn=Pool(MAX_CONNECTIONS), log=None,
                               error_log=None, environ={"SERVER_NAME": host})

    @property
    def port(self) -> int:
        """The port listened on; after start() the real one, also if 0 was asked for."""
        return self._server.server_port

    def start(self) -> None:
        """Bind and accept; returns at once. Raises OSError when the address is taken or not ours."""
        self._server.start()

    def why_deaf(self) -> str | None:
        """Return why the started server hears nobody any more, or None."""
        return self._server.why_deaf()

    @property
    def is_short_of_files(self) -> bool:
        """True while nobody can be accepted for want of file descriptors."""
        return self._server.is_short_of_files

    def stop(self, grace_s: float) -> None:
        """Stop accepting, wait up to `grace_s` for answers under way, close every connection. May be called twice. Switches.

        Streams of live events count as under way: stop their source (Live.stop) first.
        """
        self._server.stop_listening()
        self._server.quiet.wait(grace_s)
        self._server.stop(timeout=0)


def serve(app: Callable, host: str, port: int) -> WebServer:
    """Return a server for `app`, not started yet; port 0 takes a free one."""
    return WebServer(app, host, port)


class _Server(CarefulAccept, WSGIServer):
    """pywsgi's server with a count of the requests being answered."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.quiet = Event()  # set while no request is being answered
        self.quiet.set()
        self._busy = 0

    def count_busy(self, change: int) -> None:
        """Note that an answer began (+1) or ended (-1)."""
        self._busy += change
        if self._busy:
            self.quiet.clear()
        else:
            self.quiet.set()


class _Handler(WSGIHandler):
    """One connection: reads whole requests under deadlines, then uses pywsgi to answer them."""

    _requests = 0
    _body = b""

    def handle(self) -> None:
        """Serve the connection until it ends."""
        self.socket.settimeout(WRITE_S + IDLE_S)  # a last resort for reads; writes get WRITE_S in _sendall
        super().handle()

    def handle_one_request(self) -> bool | None:
        """Read one request and answer it. True: go on with the next; None: close."""
        try:
            head = self._read_head()
            if head is None:
                return None
            self._body = self._read_body(head)
        except Refused as refused:
            return self._refuse(refused)
        except OSError:
            return None
        self._requests += 1
        self._adopt(head)
        self.environ = self.get_environ()
        self.application = self.server.application
        self.server.count_busy(+1)
        try:
            self.handle_one_response()
        finally:
            self.server.count_busy(-1)
        return None if self.close_connection else True

    def _read_head(self) -> Head | None:
        with gevent.Timeout(IDLE_S, False):
            request_line = read_request_line(self.rfile.readline)
            if request_line is None:
                return None
            with gevent.Timeout(HEAD_S, Refused("DEADLINE", f"the request head was not complete after {HEAD_S:g} s")):
                return parse_head(request_line, read_header_lines(self.rfile.readline))
        return None

    def _read_body(self, head: Head) -> bytes:
        if not head.body_bytes:
            return b""
        with gevent.Timeout(BODY_S, Refused("DEADLINE", f"the body was not complete after {BODY_S:g} s")):
            if head.expects_continue:
                self._sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = self.rfile.read(head.body_bytes)
        if len(body) < head.body_bytes:
            raise Refused("BAD_REQUEST", "the body ends in the middle")
        return body

    def _adopt(self, head: Head) -> None:
        """Set what pywsgi's own parser would have set."""
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.requestline = f"{head.method} {head.target} {head.version}"
        self.headers = headers_factory(BytesIO(b"".join(head.lines) + b"\r\n"))
        self.content_length = head.body_bytes
        self.close_connection = not head.keep_alive or self._requests >= MAX_REQUESTS

    def get_environ(self) -> dict:
        """Return the WSGI environment with the body that was read already."""
        environ = super().get_environ()
        environ["wsgi.input"] = BytesIO(self._body)
        environ.pop("HTTP_EXPECT", None)
        self.wsgi_input = Input(BytesIO(), 0)  # nothing is left for pywsgi to discard
        return environ

    def finalize_headers(self) -> None:
        """Tell the peer when the connection ends with this answer, so that it does not send another request into it."""
        super().finalize_headers()
        if self.close_connection:
            self.response_headers.append((b"Connection", b"close"))

    def _sendall(self, data: bytes) -> None:
        self.socket.settimeout(WRITE_S)
        super()._sendall(data)
        self.socket.settimeout(WRITE_S + IDLE_S)

    def _refuse(self, error: GreenroomError) -> None:
        """Answer an error outside the application, and close."""
        log.debug("web request refused peer=%s code=%s: %s", self.client_address, error.code, error.message)
        status, headers, body = error_answer(error)
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in (*headers, *SECURITY_HEADERS)),
                 f"Content-Length: {len(body)}", "Connection: close", "", ""]
        self.close_connection = True
        with gevent.Timeout(LINGER_S, False):
            try:
                self.socket.sendall("\r\n".join(lines).encode("latin-1") + body)
                self.socket.shutdown(1)
                while self.socket.recv(65536):
                    pass
            except OSError:
                pass  # gone already

    def handle_error(self, kind: type[BaseException], value: BaseException, traceback: TracebackType) -> None:
        """End a failed answer: quietly if the peer is gone, with a log entry and INTERNAL if it is our bug."""
        self.close_connection = True
        if isinstance(value, (OSError, gevent.GreenletExit)):
            return
        log.error("a web request failed path=%s", self.path, exc_info=(kind, value, traceback))
        if not self.headers_sent:
            self._refuse(InternalError("an unexpected error; the broker's log has the details"))

    def log_request(self) -> None:
        """Write no line per request."""
