"""Failed jobs by how they failed, and a group of them retried, one first. A part of Client, see client.py.

Must not know connections: it asks through `_call`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from greenroom.client_filters import wire_filter
from greenroom.errors import GreenroomError, NotFoundError

#: How long the one that is tried first may take, unless it is said.
CANARY_S = 300.0
#: The broker answers a wait at once when the job is finished; so often we look whether a run of it failed and it waits for the next.
LOOK_S = 1.0

UNFINISHED = ("scheduled", "queued", "running")


class FailureGroup(NamedTuple):
    """Failed jobs that failed the same way."""

    fingerprint: str  # 16 hexadecimal characters
    task: str
    error: str  # the error's name
    place: str  # file and function of the traceback's last line; "": not known
    message: str  # of the newest, at most 300 characters
    count: int
    first_at: float | None  # when they failed, seconds since 1970
    last_at: float | None
    workers: list[str]  # at most 20
    workers_total: int
    newest: int  # id
    jobs: list[int]  # ids, newest first, at most 1,000


class FailureList(NamedTuple):
    """Groups of failed jobs, and what was looked at for them."""

    groups: list[FailureGroup]  # the largest 200, largest first
    groups_total: int
    looked_at: int  # failed jobs
    next: int | None  # older jobs than this id were not looked at; None: all were


class GroupRetry(NamedTuple):
    """What became of a group that was retried."""

    fingerprint: str
    outcome: str  # "retried"; or the others were not: "failed" (the canary did, or was cancelled), "timeout" (it has not ended)
    canary: int | None  # id of the job that was tried first; None: none was
    state: str | None  # of the canary, when it was looked at last
    retried: int  # jobs, with the canary
    refused: int  # jobs that could not be retried
    message: str  # the same in a sentence


class FailureCalls:
    """See the module."""

    _call: Callable[[dict], dict]
    retry: Callable[[Iterable[int]], list[str | GreenroomError]]
    get: Callable[[Iterable[int]], list[dict]]
    jobs: Callable[..., Iterator[dict]]
    bulk: Callable[..., dict]

    def failures(self, filter: str | dict | None = None, *, queue: str | None = None, task: str | None = None,
                 before: int | None = None) -> FailureList:
        """Return failed jobs grouped by how they failed: the newest 2,000 that fit, or as many as the broker finds in a second.

        Args:
            filter: as in `jobs`. before: only jobs with lower ids; pass `next` to go on with older ones.

        Raises InvalidError; BusyError if the broker does this for others, for as long as the client's timeout.
        """
        asked = {"filter": wire_filter(filter), "queue": queue, "task": task, "before": before}
        answer = self._call({"verb": "failures", **{name: value for name, value in asked.items() if value is not None}})
        return failure_list(answer)

    def retry_group(self, fingerprint: str, *, canary: bool = True, timeout: float | None = CANARY_S) -> GroupRetry:
        """Retry all failed jobs with this fingerprint; with `canary` the newest first, and the others only once it has completed.

        Waits for the canary at the broker. Whatever comes of it is returned, not raised; what was retried is retried.

        Args:
            timeout: seconds that the canary may take; None: however long.

        Raises:
            InvalidError: it is no fingerprint. NotFoundError: no failed job has it.
            FullError, StoreFullError, BusyError: the broker takes no more.
        """
        wanted: dict[str, object] = {"state": "failed", "fingerprint": fingerprint}
        newest = next(self.jobs(wanted, limit=1), None)
        if newest is None:
            raise NotFoundError(f"no failed job has the fingerprint {fingerprint}")
        # So told the broker finds them without looking at every failed job.
        wanted["task"] = newest["task"]
        if (newest.get("error") or {}).get("name"):
            wanted["error"] = newest["error"]["name"]
        first = None
        if canary:
            first = newest["id"]
            [outcome] = self.retry([first])
            if isinstance(outcome, GreenroomError):
                raise outcome
            view = self._ended(first, timeout)
            if view.get("state") != "completed":
                return _left(fingerprint, first, view)
        return _done(fingerprint, first, self.bulk("retry", wanted))

    def _ended(self, job_id: int, timeout: float | None) -> dict:
        """Return the view of a retried job once it is finished or a run of it failed, or as it is when the time is up."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            found = self._call({"verb": "wait", "jobs": [job_id], "wait": max(0.0, min(LOOK_S, left))})["jobs"]
            view = found[0] if found else self.get([job_id])[0]
            if found or left <= 0 or view.get("state") not in UNFINISHED or view.get("failures"):
                return view


def failure_list(answer: dict) -> FailureList:
    """Return the answer of the verb `failures` as a record."""
    groups = [FailureGroup(*(group.get(name) for name in FailureGroup._fields)) for group in answer["groups"]]
    return FailureList(groups, answer["groups_total"], answer["scanned"]["jobs"], answer["next"])


def _done(fingerprint: str, canary: int | None, sums: dict) -> GroupRetry:
    retried = sums["done"] + (canary is not None)
    said = f"{retried} retried" if canary is None else f"job {canary} completed, {sums['done']} others retried"
    if sums["refused"]:
        said += f"; {sums['refused']} not possible, such as: {sums['why']}"
    return GroupRetry(fingerprint, "retried", canary, None if canary is None else "completed", retried, sums["refused"], said)


def _left(fingerprint: str, canary: int, view: dict) -> GroupRetry:
    """Return what became of a group whose canary, of which this is the view, has not completed."""
    state, error = view.get("state", "gone"), view.get("error") or {}
    why = f" ({error.get('name')}: {error.get('message')})" if error else ""
    if state in UNFINISHED and not view.get("failures"):
        return GroupRetry(fingerprint, "timeout", canary, state, 1, 0, f"job {canary} is still {state}: the others were not retried")
    became = "failed again" if state == "failed" else "failed again and is tried once more later" if state in UNFINISHED else f"is {state}"
    return GroupRetry(fingerprint, "failed", canary, state, 1, 0, f"job {canary} {became}{why}: the others were not retried")
