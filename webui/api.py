"""The REST routes: check a request, run one protocol verb, shape its reply. No rule of the queue lives here.

docs/rest.md is the contract. Cross-cutting checks (host, cross-site) and headers are in app.py.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl

import bottle

from greenroom.clock import Clock
from greenroom.errors import GreenroomError, InternalError, from_wire
from greenroom.filter_text import filter_from_text
from greenroom.job import NUMBER_LIMIT, OPTIONS, STATE_BY_LABEL
from greenroom.submit_options import kept_options, merge
from greenroom.webui import shapes
from greenroom.webui.api_schedules import ScheduleRoutes
from greenroom.webui.answers import JSON_TYPE, Refused, dump_json, error_answer
from greenroom.webui.http_head import MAX_BODY_BYTES
from greenroom.webui.job_events import JobEvents
from greenroom.webui.live import Live

log = logging.getLogger(__name__)

MAX_PAGE = 200
MAX_LINES = 1000
MAX_IDS = 1000  # of one request about many jobs; a list of the protocol holds no more
SUBMIT_FIELDS = tuple(name for name in OPTIONS if name != "encoding")
RESUBMIT_FIELDS = tuple(name for name in SUBMIT_FIELDS if name != "task")
CHANGE_FIELDS = ("priority", "queue", "delay", "run_at", "payload")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COVERAGE_S = 1.0  # how long the answer to "who can run this task" is kept: a warning may be that old

Call = Callable[[str, dict], dict]


def add_routes(app: bottle.Bottle, call: Call, security: Callable[[], dict], live: Live,
               job_events: JobEvents, ready: Callable[[], str | None], metrics: Callable[[], bytes],
               remarks: Callable[[], list[str]]) -> None:
    """Add the routes of docs/rest.md to a bottle application; the arguments are those of app.make_app."""
    api = _Api(call, security)

    def route(path: str, handler: Callable[..., dict], method: str = "GET") -> None:
        app.route(path, method, _answered(handler))

    route("/api/stats", api.stats)
    route("/api/workers", api.workers)
    route("/api/queues", api.queues)
    route("/api/jobs", api.jobs)
    route("/api/jobs/cancel", lambda: api.do_many("cancel"), "POST")
    route("/api/jobs/retry", lambda: api.do_many("retry"), "POST")
    route("/api/jobs/delete", lambda: api.do_many("delete"), "POST")
    route("/api/jobs/bulk", api.bulk, "POST")
    route("/api/jobs/<number>", api.job)
    route("/api/submit", api.submit, "POST")
    route("/api/jobs/<number>/cancel", api.cancel, "POST")
    route("/api/jobs/<number>/retry", api.retry, "POST")
    route("/api/jobs/<number>/delete", api.delete, "POST")
    route("/api/jobs/<number>/resubmit", api.resubmit, "POST")
    route("/api/jobs/<number>/runs", api.runs)
    route("/api/failures", api.failures)
    ScheduleRoutes(call, _query, _body, _integer, SUBMIT_FIELDS).add(route)
    route("/api/jobs/<number>/change", api.change, "POST")
    route("/api/jobs/<number>/explain", api.explain_job)
    route("/api/queues/<name>/explain", api.explain_queue)
    route("/api/queues/<name>/purge", api.purge, "POST")
    route("/api/pauses", api.pauses)
    route("/api/pause", api.pause, "POST")
    route("/api/resume", api.resume, "POST")
    route("/api/limits", api.limits)
    route("/api/limit", api.limit, "POST")
    route("/api/unlimit", api.unlimit, "POST")
    route("/api/jobs/<number>/logs", api.logs)
    route("/api/security", api.security)
    route("/api/events", lambda: _events(live))
    route("/api/events/jobs", lambda: _job_events(job_events))
    route("/healthz", lambda: {"status": "ok"})
    route("/readyz", lambda: _readiness(ready, remarks))
    route("/metrics", lambda: _metrics(metrics))


def _answered(handler: Callable[..., dict]) -> Callable[..., bytes | Iterator[bytes]]:
    """Make a bottle handler that answers a dict as JSON and every exception as an error of the contract."""
    def answer(**parts: str) -> bytes | Iterator[bytes]:
        try:
            result = handler(**parts)
        except GreenroomError as exc:
            return refuse(exc)
        except Exception:
            log.exception("a web request failed path=%r", bottle.request.path)
            return refuse(InternalError("an unexpected error; the broker's log has the details"))
        if not isinstance(result, dict):
            return result
        bottle.response.content_type = JSON_TYPE
        return dump_json(result)
    return answer


def refuse(error: GreenroomError) -> bytes:
    """Set the current bottle response to an error and return its body."""
    status, headers, body = error_answer(error)
    bottle.response.status = status
    for name, value in headers:
        bottle.response.set_header(name, value)
    return body


class _Api:
    """The routes that run verbs."""

    def __init__(self, call: Call, security: Callable[[], dict]) -> None:
        self._call = call
        self._security = security
        self._covered: list[tuple[frozenset | None, frozenset | None]] | None = []  # tasks, queues of each worker; None: too many
        self._covered_at = float("-inf")  # monotonic

    def stats(self) -> dict:
        _no_query()
        return shapes.stats(self._call("stats", {}))

    def workers(self) -> dict:
        _no_query()
        reply = self._call("workers", {})
        return {"workers": reply["workers"], "total": reply["total"]}

    def security(self) -> dict:
        _no_query()
        return self._security()

    def queues(self) -> dict:
        _no_query()
        reply = self._call("queues", {})
        return {"queues": reply["queues"], "total": reply["total"]}

    def jobs(self) -> dict:
        fields: dict[str, object] = {"limit": 50, **_query("q", "state", "queue", "task", "worker", "before", "limit"), "payload": True}
        if fields.get("state", "queued") not in STATE_BY_LABEL:
            raise Refused("INVALID", f"state must be one of {', '.join(STATE_BY_LABEL)}", field="state")
        fields["limit"] = _integer("limit", fields["limit"], MAX_PAGE)
        if "before" in fields:
            fields["before"] = _integer("before", fields["before"], NUMBER_LIMIT - 1)
        if "q" in fields:
            fields["filter"] = filter_from_text(fields.pop("q"), Clock().now())
        reply = self._call("jobs", fields)
        return {"jobs": [shapes.job_row(view) for view in reply["jobs"]], "next": reply["next"], "scanned_to": reply["scanned_to"]}

    def job(self, number: str) -> dict:
        _no_query()
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        return {"job": shapes.job_detail(self._view(job_id))}

    def submit(self) -> dict:
        return self._submit(shapes.job_fields(_body(*SUBMIT_FIELDS), SUBMIT_FIELDS))

    def resubmit(self, number: str) -> dict:
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        changes = shapes.job_fields(_body(*RESUBMIT_FIELDS), RESUBMIT_FIELDS)
        view = self._view(job_id)
        kept = kept_options(view, changes)
        payload, encoding = (changes.pop("payload"), "msgpack") if "payload" in changes else (view["payload"], view["encoding"])
        return self._submit({**merge(kept, changes), "task": view["task"], "payload": payload, "encoding": encoding})

    def _view(self, job_id: int) -> dict:
        view = self._call("get", {"jobs": [job_id], "payload": True})["jobs"][0]
        if "state" not in view:
            raise from_wire(view["error"])
        return view

    def _submit(self, body: dict) -> dict:
        outcome = self._call("submit", {"jobs": [body]})["jobs"][0]
        if isinstance(outcome, dict) and "duplicate" in outcome:
            return {"id": outcome["duplicate"], "state": outcome["state"], "duplicate": True, "replaced": outcome["replaced"]}
        if isinstance(outcome, dict):
            raise from_wire(outcome.get("error", outcome))
        bottle.response.status = 201
        bottle.response.set_header("Location", f"/api/jobs/{outcome}")
        return {"id": outcome, **self._after_submit(outcome, body["task"], body.get("queue", "default"))}

    def _after_submit(self, job_id: int, task: str, queue: str) -> dict:
        """Return what is nice to know about a stored job. The job is stored: nothing here may turn that into an error."""
        try:
            known = {"state": self._call("get", {"jobs": [job_id]})["jobs"][0].get("state", "queued")}
            if not self._is_covered(task, queue):
                known["warning"] = f"no connected worker has the task {task} for the queue {queue}; the job waits for one"
        except GreenroomError:
            return {"state": "queued"}
        return known

    def _is_covered(self, task: str, queue: str) -> bool:
        if time.monotonic() - self._covered_at > COVERAGE_S:
            reply = self._call("workers", {})
            self._covered = None if reply["total"] > len(reply["workers"]) else [
                (_name_set(worker, "tasks"), _name_set(worker, "queues")) for worker in reply["workers"]
                if worker["status"] != "lost"]
            self._covered_at = time.monotonic()
        return self._covered is None or any((tasks is None or task in tasks) and (queues is None or queue in queues)
                                            for tasks, queues in self._covered)

    def cancel(self, number: str) -> dict:
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        _body()
        return self._do("cancel", job_id)

    def retry(self, number: str) -> dict:
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        _body()
        return self._do("retry", job_id)

    def delete(self, number: str) -> dict:
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        _body()
        return self._do("delete", job_id)

    def _do(self, verb: str, job_id: int) -> dict:
        outcome = self._call(verb, {"jobs": [job_id]})["outcomes"][0]
        if isinstance(outcome, dict):
            raise from_wire(outcome.get("error", outcome))
        return {"id": job_id, "outcome": outcome}

    def do_many(self, verb: str) -> dict:
        ids = _ids(_body("ids"))
        outcomes = self._call(verb, {"jobs": ids})["outcomes"]
        return {"outcomes": [
            {"id": job_id, "error": outcome.get("error", outcome)} if isinstance(outcome, dict) else {"id": job_id, "outcome": outcome}
            for job_id, outcome in zip(ids, outcomes)]}

    def bulk(self) -> dict:
        body = _body("action", "q", "filter", "before", "dry_run", "priority", "queue", "run_at", "delay")
        if ("q" in body) == ("filter" in body):
            raise Refused("INVALID", "give q or filter, one of them", field="filter")
        if "q" in body:
            if not isinstance(body["q"], str):
                raise Refused("INVALID", "q must be a text", field="q")
            body["filter"] = filter_from_text(body.pop("q"), Clock().now())
        return _without_id(self._call("bulk", body))

    def failures(self) -> dict:
        fields: dict[str, object] = dict(_query("q", "task", "queue", "before"))
        if "before" in fields:
            fields["before"] = _integer("before", fields["before"], NUMBER_LIMIT - 1)
        if "q" in fields:
            fields["filter"] = filter_from_text(fields.pop("q"), Clock().now())
        return _without_id(self._call("failures", fields))

    def runs(self, number: str) -> dict:
        _no_query()
        return {"runs": self._call("runs", {"job": _integer("id", number, NUMBER_LIMIT - 1)})["runs"]}

    def logs(self, number: str) -> dict:
        fields: dict[str, object] = {"limit": MAX_LINES, **_query("after", "limit")}
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        fields["limit"] = _integer("limit", fields["limit"], MAX_LINES)
        if "after" in fields:
            fields["after"] = _integer("after", fields["after"], NUMBER_LIMIT - 1, least=0)
        reply = self._call("logs", {"job": job_id, **fields})
        return {"lines": [dict(zip(("seq", "at", "attempt", "text"), line)) for line in reply["lines"]],
                **{name: reply[name] for name in ("next", "dropped", "finished")}}

    def change(self, number: str) -> dict:
        job_id = _integer("id", number, NUMBER_LIMIT - 1)
        change = shapes.job_fields(_body(*CHANGE_FIELDS), CHANGE_FIELDS)
        outcome = self._call("change", {**change, "jobs": [job_id]})["outcomes"][0]
        if isinstance(outcome, dict):
            raise from_wire(outcome.get("error", outcome))
        return {"id": job_id, "outcome": outcome}

    def explain_job(self, number: str) -> dict:
        _no_query()
        return _without_id(self._call("explain", {"job": _integer("id", number, NUMBER_LIMIT - 1)}))

    def explain_queue(self, name: str) -> dict:
        _no_query()
        return _without_id(self._call("explain", {"queue": name}))

    def purge(self, name: str) -> dict:
        return _without_id(self._call("purge", {**_body("task", "before"), "queue": name}))

    def pauses(self) -> dict:
        _no_query()
        return _without_id(self._call("pauses", {}))

    def pause(self) -> dict:
        return _without_id(self._call("pause", _body("queue", "task", "for", "reason", "by")))

    def resume(self) -> dict:
        return _without_id(self._call("resume", _body("queue", "task")))

    def limits(self) -> dict:
        _no_query()
        return _without_id(self._call("limits", {}))

    def limit(self) -> dict:
        return _without_id(self._call("limit", _body("queue", "jobs", "bytes", "urgent", "extra", "reason", "by")))

    def unlimit(self) -> dict:
        return _without_id(self._call("unlimit", _body("queue")))


def _without_id(reply: dict) -> dict:
    return {name: value for name, value in reply.items() if name != "id"}


def _name_set(worker: dict, kind: str) -> frozenset | None:
    """Return the names that a worker takes; None: any, or more than the list holds."""
    names = worker[kind]
    return None if names is None or len(names) < worker[f"{kind}_total"] else frozenset(names)


def _events(live: Live) -> Iterator[bytes]:
    _no_query()
    return _event_stream(live.watch())


def _job_events(job_events: JobEvents) -> Iterator[bytes]:
    query = _query("queue", "task", "kinds", "after")
    after = bottle.request.get_header("Last-Event-ID") or query.get("after")  # who comes back knows it better than its URL
    return _event_stream(job_events.watch(query.get("queue"), query.get("task"), query.get("kinds"), after))


def _event_stream(stream: Iterator[bytes]) -> Iterator[bytes]:
    bottle.response.content_type = "text/event-stream"
    bottle.response.set_header("Cache-Control", "no-store")
    bottle.response.set_header("X-Accel-Buffering", "no")
    return stream


def _metrics(metrics: Callable[[], bytes]) -> bytes:
    # No check of the query: scrapers add parameters of their own.
    bottle.response.content_type = METRICS_TYPE
    return metrics()


def _readiness(ready: Callable[[], str | None], remarks: Callable[[], list[str]]) -> dict:
    reason = ready()
    if reason is not None:
        raise Refused("NOT_READY", reason)
    said = remarks()
    return {"status": "ready", "remarks": said} if said else {"status": "ready"}


def _query(*allowed: str) -> dict[str, str]:
    """Return the query's parameters; unknown and repeated ones are refused by name."""
    try:
        pairs = parse_qsl(bottle.request.environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="strict",
                          max_num_fields=len(allowed) + 8)
    except ValueError:
        raise Refused("INVALID", "the query is not UTF-8, or has too many parameters") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise Refused("INVALID", f"there is no parameter {name[:100]!r} here", field=name[:100])
        if name in found:
            raise Refused("INVALID", f"{name} is there twice", field=name)
        found[name] = value
    return found


def _no_query() -> None:
    _query()


def _integer(name: str, text: str | int, limit: int, *, least: int = 1) -> int:
    if not re.fullmatch(r"[0-9]{1,16}", str(text)) or not least <= int(text) <= limit:
        raise Refused("INVALID", f"{name} must be an integer from {least} to {limit}", field=name)
    return int(text)


def _ids(body: dict[str, object]) -> list[int]:
    """Return the field `ids` of a body: 1 to MAX_IDS numbers of jobs."""
    ids = body.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS:
        raise Refused("INVALID", f"ids must be a list of 1 to {MAX_IDS} numbers of jobs", field="ids")
    for job_id in ids:
        if type(job_id) is not int or not 1 <= job_id < NUMBER_LIMIT:
            raise Refused("INVALID", f"ids must hold integers from 1 to {NUMBER_LIMIT - 1}", field="ids")
    return ids


def _body(*allowed: str) -> dict[str, object]:
    """Return the JSON object in the body; nothing at all counts as an empty one. Unknown fields are refused by name."""
    _no_query()
    environ = bottle.request.environ
    if environ.get("CONTENT_TYPE", "").split(";")[0].strip().lower() != "application/json":
        raise Refused("CONTENT_TYPE", "a change must be sent as application/json")
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        raise Refused("TOO_LARGE", f"the body has {length} bytes, the limit is {MAX_BODY_BYTES}")
    body = shapes.load_json(environ["wsgi.input"].read(length)) if length else {}
    if not isinstance(body, dict):
        raise Refused("INVALID", "the body must be a JSON object")
    for name in body:
        if name not in allowed:
            raise Refused("INVALID", f"there is no field {name[:100]!r} here", field=name[:100])
    return body
