"""The REST route that groups failed jobs: reads them page by page with the verb `jobs`. docs/rest.md is the contract."""

from __future__ import annotations

import time
from collections.abc import Callable

from greenroom.errors import BusyError
from greenroom.job import NUMBER_LIMIT
from greenroom.webui.failures import Failures

MAX_JOBS = 2000  # failed jobs of one answer
PAGE_JOBS = 100  # read at a time: to group them takes less than a millisecond of the hub, and `call` lets others have their turn
MAX_PAGES = 200  # read for one answer: among few failed jobs a page looks at 20,000 others
MAX_S = 3.0  # after which the answer is what was found so far
MAX_SCANS = 2  # at the same time, of all who ask


class FailureRoutes:
    """The route; `call`, `query` and `integer` are those of api.py."""

    def __init__(self, call: Callable[[str, dict], dict], query: Callable[..., dict[str, str]],
                 integer: Callable[[str, str | int, int], int]) -> None:
        self._call = call
        self._query = query
        self._integer = integer
        self._scans = 0

    def add(self, route: Callable[..., None]) -> None:
        """Add it with `route(path, handler)`."""
        route("/api/failures", self.failures)

    def failures(self) -> dict:
        fields: dict[str, object] = dict(self._query("task", "queue", "before"))
        if "before" in fields:
            fields["before"] = self._integer("before", fields["before"], NUMBER_LIMIT - 1)
        if self._scans >= MAX_SCANS:
            raise BusyError("failed jobs are being grouped for others", retry_after_s=1.0)
        self._scans += 1
        try:
            return self._scan({**fields, "state": "failed"})
        finally:
            self._scans -= 1

    def _scan(self, fields: dict[str, object]) -> dict:
        found = Failures()
        until = time.monotonic() + MAX_S
        newest = oldest = None
        for _ in range(MAX_PAGES):
            reply = self._call("jobs", {**fields, "limit": min(PAGE_JOBS, MAX_JOBS - found.jobs)})
            for job in reply["jobs"]:
                found.add(job)
                newest, oldest = newest or job["id"], job["id"]
            fields["before"] = reply.get("next")
            if fields["before"] is None or found.jobs >= MAX_JOBS or time.monotonic() > until:
                break
        return {**found.shown(), "scanned": {"jobs": found.jobs, "newest": newest, "oldest": oldest}, "next": fields["before"]}
