"""The REST routes about schedules: check a request, run one verb, shape its reply. docs/rest.md is the contract."""

from __future__ import annotations

from collections.abc import Callable

import bottle

from greenroom.clock import Clock
from greenroom.recurrence import Recurrence, parse_recurrence
from greenroom.webui import shapes
from greenroom.webui.answers import Refused

MAX_PAGE = 200
PREVIEWED_RUNS = 10
PREVIEWED_S = 20 * 366 * 86400  # ahead and no further: to look through a year takes some 0.1 ms of the hub
#: Fields of a body that makes a schedule.
PUT_FIELDS = ("job", "cron", "every", "timezone", "overlap", "missed", "missed_max", "keep_payload")


class ScheduleRoutes:
    """The routes; `call`, `query`, `body` and `integer` are those of api.py."""

    def __init__(self, call: Callable[[str, dict], dict], query: Callable[..., dict[str, str]], body: Callable[..., dict[str, object]],
                 integer: Callable[[str, str | int, int], int], job_fields: tuple[str, ...]) -> None:
        self._call = call
        self._query = query
        self._body = body
        self._integer = integer
        self._job_fields = job_fields

    def add(self, route: Callable[..., None]) -> None:
        """Add them with `route(path, handler, method)`."""
        route("/api/schedules", self.list)
        route("/api/recurrence", self.recurrence)
        route("/api/schedules/<name>", self.show)
        route("/api/schedules/<name>", self.put, "POST")
        for word, handler in (("delete", self.delete), ("pause", self.pause), ("resume", self.resume), ("run", self.run)):
            route(f"/api/schedules/<name>/{word}", handler, "POST")

    def list(self) -> dict:
        fields: dict[str, object] = {"limit": 50, **self._query("after", "limit")}
        fields["limit"] = self._integer("limit", fields["limit"], MAX_PAGE)
        reply = self._call("schedules", fields)
        return {"schedules": reply["schedules"], "next": reply["next"], "total": reply["total"]}

    def show(self, name: str) -> dict:
        self._query()
        return {"schedule": shapes.schedule(self._call("schedules", {"name": name})["schedules"][0])}

    def recurrence(self) -> dict:
        query = self._query("cron", "every", "timezone")
        now = Clock.wall()
        when = parse_recurrence(query.get("cron"), query.get("every"), query.get("timezone"), now)
        return {"next_runs": _next_runs(when, now)}

    def put(self, name: str) -> dict:
        body = self._body(*PUT_FIELDS)
        keeps = body.pop("keep_payload", False)
        if keeps not in (True, False):
            raise Refused("INVALID", "keep_payload must be true or false", field="keep_payload")
        if "job" in body:
            body["job"] = shapes.job_fields(body["job"], self._job_fields)
            if keeps:
                body["job"].update(self._payload_of(name))
        reply = self._call("schedule_put", {**body, "name": name})
        bottle.response.status = 201 if reply["created"] else 200
        return {"schedule": reply["schedule"], "created": reply["created"]}

    def _payload_of(self, name: str) -> dict:
        """Return payload and encoding that a schedule has: a page can't show, and so not send back, every payload exactly."""
        view = self._call("schedules", {"name": name})["schedules"][0]
        return {"payload": view["payload"], "encoding": view["job"].get("encoding")} if view["error"] is None else {}

    def delete(self, name: str) -> dict:
        self._body()
        self._call("schedule_delete", {"name": name})
        return {"name": name, "deleted": True}

    def pause(self, name: str) -> dict:
        return {"schedule": self._call("schedule_pause", {**self._body("reason"), "name": name})["schedule"]}

    def resume(self, name: str) -> dict:
        self._body()
        return {"schedule": self._call("schedule_resume", {"name": name})["schedule"]}

    def run(self, name: str) -> dict:
        self._body()
        job = self._call("schedule_run", {"name": name})["job"]
        bottle.response.status = 201
        bottle.response.set_header("Location", f"/api/jobs/{job}")
        return {"id": job}


def _next_runs(when: Recurrence, now: float) -> list[float]:
    """Return the next times, fewer if they are rare."""
    runs: list[float] = []
    following = when.next_after(now)
    while following is not None:
        runs.append(following)
        if len(runs) == PREVIEWED_RUNS or following > now + PREVIEWED_S:
            break
        following = when.next_after(following)
    return runs
