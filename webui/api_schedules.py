"""The REST routes about schedules: check a request, run one verb, shape its reply. docs/rest.md is the contract."""

from __future__ import annotations

from collections.abc import Callable

import bottle

from greenroom.webui import shapes

MAX_PAGE = 200
#: Fields of a body that makes a schedule.
PUT_FIELDS = ("job", "cron", "every", "timezone", "overlap", "missed", "missed_max")


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

    def put(self, name: str) -> dict:
        body = self._body(*PUT_FIELDS)
        if "job" in body:
            body["job"] = shapes.job_fields(body["job"], self._job_fields)
        reply = self._call("schedule_put", {**body, "name": name})
        bottle.response.status = 201 if reply["created"] else 200
        return {"schedule": reply["schedule"], "created": reply["created"]}

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
