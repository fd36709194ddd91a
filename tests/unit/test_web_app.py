"""Routes, checks, headers, errors and deadlines of the web side, over a real web server and in-memory verbs."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from greenroom.errors import BusyError, DrainingError, FullError, StoreFullError, UnknownOutcomeError
from greenroom.job import parse_new_job
from greenroom.protocol import pack_value, unpack_value
from greenroom.webui import server as web_server
from greenroom.webui.app import make_app
from greenroom.webui.job_events import JobEvents
from greenroom.webui.live import Live
from greenroom.webui.server import serve

JSON = {"Content-Type": "application/json"}
STATES = {"scheduled": 1, "queued": 2, "running": 3, "completed": 4, "failed": 5, "cancelled": 6}
STATS = {"states": STATES, "requeued": 7, "total": 21, "workers": 2, "idle": 1, "busy": 1, "connections": 3, "now": 1.0,
         "started_at": 0.5, "version": "0", "tasks": [], "memory": {}, "store": {}}


class Verbs:
    """Just enough of a broker: keeps submitted jobs, records calls, raises what a test planted."""

    def __init__(self) -> None:
        self.jobs: dict[int, dict] = {}
        self.calls: list[tuple[str, dict]] = []
        self.planted: dict[str, Exception] = {}
        self.not_ready: str | None = None
        self.tasks_total = 1

    def call(self, verb: str, fields: dict) -> dict:
        self.calls.append((verb, fields))
        if verb in self.planted:
            raise self.planted[verb]
        return getattr(self, f"verb_{verb}")(fields)

    def verb_stats(self, fields: dict) -> dict:
        return STATS

    def verb_workers(self, fields: dict) -> dict:
        worker = {"name": "w", "status": "idle", "tasks": ["fibonacci"], "tasks_total": self.tasks_total, "queues": ["default"],
                  "queues_total": 1, "jobs": []}
        return {"workers": [worker], "total": 1}

    def verb_queues(self, fields: dict) -> dict:
        return {"queues": [{"name": "default"}], "total": 1}

    def verb_jobs(self, fields: dict) -> dict:
        return {"jobs": list(self.jobs.values())[::-1][:fields["limit"]], "next": 7, "scanned_to": 7}

    def verb_get(self, fields: dict) -> dict:
        missing = {"code": "NOT_FOUND", "message": "there is no such job"}
        return {"jobs": [self.jobs.get(number) or {"id": number, "error": missing} for number in fields["jobs"]]}

    def verb_submit(self, fields: dict) -> dict:
        numbers = []
        for item in fields["jobs"]:
            new, payload = parse_new_job(item, 1 << 20)
            number = len(self.jobs) + 1
            self.jobs[number] = {
                "id": number, "task": new.task, "queue": new.queue, "priority": new.priority, "error": None,
                "state": "queued" if new.delay is None else "scheduled", "encoding": "msgpack", "payload": payload}
            numbers.append(number)
        return {"jobs": numbers}

    def verb_cancel(self, fields: dict) -> dict:
        finished = {"code": "FINISHED", "message": "the job is finished already"}
        return {"outcomes": ["cancelled" if number in self.jobs else finished for number in fields["jobs"]]}


class Answer(SimpleNamespace):
    """status, headers (dict with lower-case names), body (bytes)."""

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


class Web:
    """A running web server over Verbs."""

    def __init__(self) -> None:
        self.verbs = Verbs()
        self.live = Live(self.verbs.call, lambda: {"tls": True}, lambda: 1)
        self.events = JobEvents(lambda *_: {}, lambda _: None)
        app = make_app(self.verbs.call, lambda: {"tls": True}, self.live, self.events, lambda: self.verbs.not_ready)
        self.server = serve(app, "127.0.0.1", 0)
        self.server.start()

    def ask(self, method: str, path: str, body: object = None, headers: dict | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, path, body, {**(JSON if body is not None else {}), **(headers or {})})
            response = connection.getresponse()
            return Answer(status=response.status, headers={name.lower(): value for name, value in response.getheaders()},
                          body=response.read())
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """Send bytes and return everything until the server closes."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as sock:
            sock.sendall(data)
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
            return received

    def host(self) -> bytes:
        return b"Host: localhost:%d\r\n" % self.server.port


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.live.stop()
    web.server.stop(1.0)


def test_stats_are_flattened_for_the_cards(web: Web) -> None:
    stats = web.ask("GET", "/api/stats").json

    assert stats["queue_size"] == 3
    assert (stats["running"], stats["requeued"], stats["total"], stats["states"]) == (3, 7, 21, STATES)


def test_a_submitted_payload_reaches_the_task_as_the_same_value(web: Web) -> None:
    payload = {"n": 10, "big": 2**63, "text": "grün", "nested": [None, True, 1.5], "bytes": {"$base64": "AP8="}}

    answer = web.ask("POST", "/api/submit", {"task": "fibonacci", "payload": payload, "priority": 2})

    assert (answer.status, answer.json) == (201, {"id": 1, "state": "queued"})
    assert answer.headers["location"] == "/api/jobs/1"
    assert unpack_value(web.verbs.jobs[1]["payload"]) == {**payload, "bytes": b"\x00\xff"}
    assert web.verbs.jobs[1]["priority"] == 2


def test_a_job_is_shown_with_integers_that_every_reader_holds(web: Web) -> None:
    web.ask("POST", "/api/submit", {"task": "fibonacci", "payload": {"n": 2**63}})

    assert web.ask("GET", "/api/jobs/1").json["job"]["payload"] == {"preview": {"n": "9223372036854775808"}, "inexact": True}


@pytest.mark.parametrize("body", [{"task": "nobody_has_it"}, {"task": "fibonacci", "queue": "elsewhere"}])
def test_a_job_that_no_worker_can_run_is_accepted_with_a_warning(web: Web, body: dict) -> None:
    answer = web.ask("POST", "/api/submit", body)

    assert answer.status == 201
    assert "no connected worker" in answer.json["warning"]


def test_there_is_no_such_warning_while_a_workers_list_of_tasks_is_cut(web: Web) -> None:
    web.verbs.tasks_total = 2

    answer = web.ask("POST", "/api/submit", {"task": "nobody_has_it"})

    assert answer.status == 201 and "warning" not in answer.json


def test_a_stored_job_is_201_even_if_what_is_asked_afterwards_fails(web: Web) -> None:
    web.verbs.planted["get"] = DrainingError("the broker is stopping")

    assert web.ask("POST", "/api/submit", {"task": "fibonacci"}).json == {"id": 1, "state": "queued"}


@pytest.mark.parametrize(("body", "field"), [
    ({"payload": {}}, "task"), ({"task": 5}, "task"), ({"task": "a b"}, "task"), ({"task": None}, "task"),
    ({"task": "t", "priority": 0}, "priority"), ({"task": "t", "priority": 11}, "priority"), ({"task": "t", "priority": "1"}, "priority"),
    ({"task": "t", "priority": True}, "priority"), ({"task": "t", "priority": 1.0}, "priority"), ({"task": "t", "queue": ""}, "queue"),
    ({"task": "t", "delay": -1}, "delay"), ({"task": "t", "delay": 1, "run_at": 5}, "delay"), ({"task": "t", "prio": 1}, "prio"),
    ({"task": "t", "payload": 2**64}, "payload"), ({"task": "t", "payload": "\ud800"}, "payload"), ({"task": "t", "encoding": "raw"}, "encoding"),
])
def test_a_bad_field_is_named(web: Web, body: dict, field: str) -> None:
    answer = web.ask("POST", "/api/submit", body)

    assert (answer.status, answer.code, answer.json["error"]["field"]) == (400, "INVALID", field)
    assert not web.verbs.jobs


@pytest.mark.parametrize("body", [b"{", b'{"task":"t","task":"t"}', b'{"task":"t","payload":NaN}', b"\xff\xfe", b"[" * 5000])
def test_bad_json_is_400(web: Web, body: bytes) -> None:
    answer = web.ask("POST", "/api/submit", body)

    assert (answer.status, answer.code) == (400, "BAD_JSON")


def test_a_body_must_be_an_object(web: Web) -> None:
    assert web.ask("POST", "/api/submit", [1]).code == "INVALID"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_a_change_must_be_application_json(web: Web, kind: str) -> None:
    answer = web.ask("POST", "/api/submit", b'{"task":"t"}', {"Content-Type": kind})

    assert (answer.status, answer.code) == (415, "CONTENT_TYPE")


def test_json_with_a_charset_is_accepted(web: Web) -> None:
    assert web.ask("POST", "/api/submit", {"task": "t"}, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 201


def test_too_large_a_body_is_413_although_the_client_is_still_sending(web: Web) -> None:
    answer = web.ask("POST", "/api/submit", b'"' + b"x" * 3_000_000 + b'"')

    assert (answer.status, answer.code) == (413, "TOO_LARGE")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
                                     {"Origin": "null"}, {"Origin": "https://localhost"}])
def test_a_change_from_another_site_is_refused(web: Web, headers: dict) -> None:
    answer = web.ask("POST", "/api/submit", {"task": "t"}, headers)

    assert (answer.status, answer.code) == (403, "CROSS_SITE")
    assert not web.verbs.calls


def test_a_change_from_the_page_itself_is_accepted(web: Web) -> None:
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{web.server.port}"}

    assert web.ask("POST", "/api/submit", {"task": "t"}, headers).status == 201


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost", "localhost:1", "127.0.0.1.evil.example:{port}", ""])
def test_a_foreign_host_is_misdirected(web: Web, host: str) -> None:
    for path in ("/", "/api/stats", "/healthz", "/nowhere"):
        answer = web.ask("GET", path, headers={"Host": host.format(port=web.server.port)})
        assert (answer.status, answer.code) == (421, "HOST")


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_every_loopback_name_is_a_host(web: Web, host: str) -> None:
    assert web.ask("GET", "/healthz", headers={"Host": host.format(port=web.server.port)}).status == 200


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/nowhere", 404, "NO_ROUTE"), ("GET", "/api", 404, "NO_ROUTE"), ("GET", "/static/../app.py", 404, "NO_ROUTE"),
    ("GET", "/static/%2e%2e/app.py", 404, "NO_ROUTE"), ("GET", "/static//etc/passwd", 404, "NO_ROUTE"), ("GET", "/%ff%00", 404, "NO_ROUTE"),
    ("GET", "/api/submit", 405, "METHOD"), ("DELETE", "/api/jobs/1", 405, "METHOD"), ("POST", "/api/stats", 405, "METHOD"),
    ("OPTIONS", "/api/submit", 405, "METHOD"), ("GET", "/api/jobs/1", 404, "NOT_FOUND"), ("GET", "/api/jobs/0", 400, "INVALID"),
    ("GET", "/api/jobs/abc", 400, "INVALID"), ("GET", "/api/jobs/-1", 400, "INVALID"), ("GET", "/api/jobs/99999999999999999", 400, "INVALID"),
    ("GET", "/api/jobs?state=gone", 400, "INVALID"), ("GET", "/api/jobs?limit=201", 400, "INVALID"), ("GET", "/api/jobs?limit=0", 400, "INVALID"),
    ("GET", "/api/jobs?limit=x", 400, "INVALID"), ("GET", "/api/jobs?before=-5", 400, "INVALID"), ("GET", "/api/jobs?page=2", 400, "INVALID"),
    ("GET", "/api/jobs?limit=1&limit=2", 400, "INVALID"), ("GET", "/api/jobs?" + "limit=1&" * 50, 400, "INVALID"),
    ("GET", "/api/stats?x=1", 400, "INVALID"), ("GET", "/api/jobs?queue=%ff", 400, "INVALID"), ("POST", "/api/jobs/9/cancel", 409, "FINISHED"),
])
def test_a_wrong_request_has_a_defined_answer(web: Web, method: str, path: str, status: int, code: str) -> None:
    answer = web.ask(method, path, {} if method == "POST" else None)

    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["message"]
    assert status != 405 or answer.headers["allow"]


@pytest.mark.parametrize(("error", "status"), [
    (BusyError("too much in flight", retry_after_s=0.2), 429), (FullError("full"), 429), (StoreFullError("the disk is nearly full"), 503),
    (DrainingError("the broker is stopping"), 503), (UnknownOutcomeError("the commit failed"), 503),
])
def test_an_error_of_the_broker_keeps_its_code(web: Web, error: Exception, status: int) -> None:
    web.verbs.planted["submit"] = error

    answer = web.ask("POST", "/api/submit", {"task": "t"})

    assert (answer.status, answer.code) == (status, error.code)
    assert ("retry-after" in answer.headers) == (status == 429)


def test_an_error_of_one_job_is_the_answer_to_its_submit(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.verbs, "verb_submit", lambda fields: {"jobs": [{"error": {"code": "FULL", "message": "full"}}]})

    assert web.ask("POST", "/api/submit", {"task": "t"}).code == "FULL"


def test_a_bug_is_logged_and_never_shown(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    web.verbs.planted["stats"] = RuntimeError("secret detail")

    with caplog.at_level(logging.ERROR):
        answer = web.ask("GET", "/api/stats")

    assert (answer.status, answer.code) == (500, "INTERNAL")
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    assert "secret detail" in caplog.text


def test_cancel_answers_the_outcome(web: Web) -> None:
    web.ask("POST", "/api/submit", {"task": "t"})

    assert web.ask("POST", "/api/jobs/1/cancel", {}).json == {"id": 1, "outcome": "cancelled"}


def test_many_jobs_are_answered_one_by_one(web: Web) -> None:
    web.ask("POST", "/api/submit", {"task": "t"})

    answer = web.ask("POST", "/api/jobs/cancel", {"ids": [9, 1]})

    assert answer.status == 200
    assert answer.json["outcomes"] == [
        {"id": 9, "error": {"code": "FINISHED", "message": "the job is finished already"}}, {"id": 1, "outcome": "cancelled"}]
    assert web.verbs.calls[-1] == ("cancel", {"jobs": [9, 1]})


@pytest.mark.parametrize("ids", [None, [], 7, "7", [True], ["7"], [0], [1.5], [2**53], list(range(1, 1002))])
def test_bad_ids_are_refused_by_name(web: Web, ids: object) -> None:
    answer = web.ask("POST", "/api/jobs/retry", {} if ids is None else {"ids": ids})

    assert (answer.status, answer.code, answer.json["error"]["field"]) == (400, "INVALID", "ids")
    assert not web.verbs.calls


def test_filters_reach_the_verb(web: Web) -> None:
    answer = web.ask("GET", "/api/jobs?state=failed&queue=q&task=t&worker=w&before=9&limit=3")

    assert answer.json == {"jobs": [], "next": 7, "scanned_to": 7}
    assert web.verbs.calls[-1] == ("jobs", {"limit": 3, "state": "failed", "queue": "q", "task": "t", "worker": "w", "before": 9,
                                            "payload": True})


def test_a_filter_as_people_write_it_reaches_the_verb_as_a_map(web: Web) -> None:
    assert web.ask("GET", "/api/jobs?q=task:mail.*+id%3C9+%22no+answer%22&limit=3").status == 200

    assert web.verbs.calls[-1] == ("jobs", {"limit": 3, "filter": {"task": "mail.*", "id_to": 8, "text": "no answer"}, "payload": True})
    for query, field in (("state:lost", "state"), ("colour:red", "colour"), ("created%3Esoon", "created")):
        answer = web.ask("GET", f"/api/jobs?q={query}")
        assert (answer.status, answer.code, answer.json["error"]["field"]) == (400, "INVALID", field)


def test_health_and_readiness_tell_apart(web: Web) -> None:
    assert web.ask("GET", "/readyz").json == {"status": "ready"}

    web.verbs.not_ready = "the broker is draining"

    assert web.ask("GET", "/healthz").status == 200
    answer = web.ask("GET", "/readyz")
    assert (answer.status, answer.code) == (503, "NOT_READY")


@pytest.mark.parametrize(("method", "path", "headers"), [
    ("GET", "/", {}), ("GET", "/static/js/main.js", {}), ("GET", "/favicon.ico", {}), ("GET", "/api/stats", {}), ("GET", "/nowhere", {}),
    ("PUT", "/api/stats", {"Content-Length": "0"}), ("GET", "/", {"Host": "evil"}), ("POST", "/api/submit", {"Transfer-Encoding": "chunked"}),
])
def test_every_answer_has_the_security_headers(web: Web, method: str, path: str, headers: dict) -> None:
    answer = web.ask(method, path, headers=headers)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] in ("no-store", "no-cache")
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_a_file_that_did_not_change_is_304(web: Web) -> None:
    first = web.ask("GET", "/static/style.css")

    again = web.ask("GET", "/static/style.css", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["content-type"] == "text/css; charset=utf-8"
    assert (again.status, again.body) == (304, b"")


def test_head_has_the_headers_without_the_body(web: Web) -> None:
    for path in ("/", "/api/stats", "/api/events", "/nowhere"):
        assert web.ask("HEAD", path).body == b""
    assert web.live.viewers == 0


@pytest.mark.parametrize("request_head", [
    b"POST /api/submit HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 33\r\n\r\nabcGET /api/stats HTTP/1.1\r\n{host}\r\n",
    b"POST /api/submit HTTP/1.1\r\n{host}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/stats HTTP/1.1\r\n{host}\r\n",
    b"GET /api/stats HTTP/1.1\n{host}\n", b"GET /api/stats\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n{host}\r\n", b"GET / HTTP/1.1\r\n{host}" + b"X: y\r\n" * 100 + b"\r\n",
    b"GET / HTTP/1.1\r\n{host}X: " + b"y" * 10_000 + b"\r\n\r\n",
])
def test_an_ambiguous_request_is_refused_once_and_closed(web: Web, request_head: bytes) -> None:
    received = web.raw(request_head.replace(b"{host}", web.host()))

    assert received.startswith(b"HTTP/1.1 4")
    assert len(re.findall(rb"HTTP/1\.1 \d\d\d ", received)) == 1
    assert not web.verbs.calls


def test_two_requests_on_one_connection_are_both_answered(web: Web) -> None:
    request = b"GET /healthz HTTP/1.1\r\n" + web.host()

    received = web.raw(request + b"\r\n" + request + b"Connection: close\r\n\r\n")

    assert received.count(b"HTTP/1.1 200") == 2


def test_a_connection_is_closed_after_its_share_of_requests_and_says_so(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_REQUESTS", 3)

    received = web.raw((b"GET /healthz HTTP/1.1\r\n" + web.host() + b"\r\n") * 5)

    assert received.count(b"HTTP/1.1 200") == 3
    assert received.count(b"Connection: close") == 1


@pytest.mark.parametrize("part", [b"GET /healthz HTTP/1.1\r\nHost: lo", b"GET /healthz HTTP/1.1\r\n",
                                  b"POST /api/submit HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"])
def test_half_a_request_meets_a_deadline(web: Web, part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_S", 0.2)
    monkeypatch.setattr(web_server, "BODY_S", 0.2)

    assert web.raw(part.replace(b"{host}", web.host())).startswith(b"HTTP/1.1 408")


def test_a_silent_connection_is_closed(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "IDLE_S", 0.2)

    assert web.raw(b"") == b""


def test_a_client_that_waits_for_100_continue_gets_it(web: Web) -> None:
    head = b"POST /api/submit HTTP/1.1\r\n" + web.host() + b"Content-Type: application/json\r\nConnection: close\r\n"

    received = web.raw(head + b'Content-Length: 12\r\nExpect: 100-continue\r\n\r\n{"task":"t"}')

    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")


def test_events_come_at_once_and_stopping_ends_the_stream(web: Web) -> None:
    web.verbs.jobs[1] = {"id": 1, "task": "t", "state": "queued", "payload": pack_value({"n": 2**60}), "encoding": "msgpack", "error": None}
    connection = http.client.HTTPConnection("127.0.0.1", web.server.port, timeout=20)
    connection.request("GET", "/api/events")
    response = connection.getresponse()

    lines = [response.readline() for _ in range(8)]
    web.live.stop()
    rest = response.read()

    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    assert lines[0] == b"retry: 1000\n"
    assert lines[2] == b"event: overview\n"
    overview = json.loads(lines[3].removeprefix(b"data: "))
    assert overview["jobs"][0]["payload"] == {"preview": {"n": str(2**60)}, "inexact": True}
    assert overview["stats"]["queue_size"] == 3 and overview["workers_total"] == 1
    assert lines[5:7] == [b"event: security\n", b'data: {"tls":true}\n']
    assert rest == b""
    connection.close()


def test_a_taken_port_is_an_error_at_start(web: Web) -> None:
    with pytest.raises(OSError):
        serve(lambda environ, start: [], "127.0.0.1", web.server.port).start()


def test_stop_waits_for_an_answer_under_way() -> None:
    import gevent

    begun = gevent.event.Event()

    def slow_app(environ: dict, start_response: object) -> list[bytes]:
        begun.set()
        gevent.sleep(0.3)
        start_response("200 OK", [])
        return [b"done"]

    server = serve(slow_app, "127.0.0.1", 0)
    server.start()
    port = server.port

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
            return received

    client = gevent.spawn(ask)
    begun.wait(10)
    server.stop(10.0)
    server.stop(10.0)

    assert client.get(timeout=10).endswith(b"done")
