"""How jobs, queues, workers and counts are shown to people: maps as docs/protocol_v1.md describes them. Pure, read-only.

Must not change what it shows, nor know who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import merge, nsmallest
from itertools import chain, islice
from typing import TypeVar

from greenroom.engine import Engine
from greenroom.filters import Filter
from greenroom.groups import Group
from greenroom.job import SMALL_BYTES, STATES, Job, State
from greenroom.lanes import Lane
from greenroom.queue_limits import LimitedQueue
from greenroom.records import Pause
from greenroom.sessions import Session

#: Entries in one answer of `queues` and `workers`; `total` tells the rest.
MAX_ENTRIES = 1000
MAX_TASKS = 100
#: What stands for all queues or tasks that are not shown one by one.
OTHER = "(other)"
#: About 1 ms of the hub each.
LANES_PER_BREATH = 250
SESSIONS_PER_BREATH = 250
NAMES_PER_BREATH = 5000
MAX_JOBS_OF_WORKER = 20
#: One answer of `workers` holds so many bytes of names of tasks and queues, and so many jobs: then lists are cut, so that it fits
#: a frame with a thousand workers of a hundred long names each.
WORKERS_NAME_BYTES = 2**20
NAME_COSTS = 8  # beside its bytes: the values in a frame are limited too
WORKERS_JOBS = 4000


def view(job: Job, *, with_payload: bool = False, with_result: bool = False) -> dict[str, object]:
    """Return the view of a job. Payload and result are included when asked for and known."""
    shown: dict[str, object] = {
        "id": job.id, "task": job.task, "queue": job.queue, "priority": job.priority, "state": job.state.label,
        "submitted_at": job.submitted_at, "run_at": job.run_at, "started_at": job.started_at,
        "finished_at": job.finished_at, "worker": job.worker, "attempt": job.attempt, "crashes": job.crashes,
        "requeues": job.requeues, "failures": job.failures, "cancel_requested": job.cancel_requested, "payload_bytes": job.payload_bytes,
        "result_bytes": len(job.result) if job.result is not None else job.result_bytes,
        "encoding": "raw" if job.raw else "msgpack", "error": job.error,
    }
    if job.extras is not None:
        shown["options"] = job.extras.asked()
    if job.report is not None:
        shown.update(job.report.shown())
    if job.damage is not None:
        shown["damaged"] = job.damage
    if with_payload:
        shown["payload"] = job.payload
    if with_result:
        shown["result"] = job.result
        shown["result_encoding"] = "raw" if job.result_raw else "msgpack"
    return shown


def small_view(job: Job, *, with_payload: bool) -> dict[str, object]:
    """Return the view for a list: payload and result only up to SMALL_BYTES."""
    shown = view(job, with_payload=with_payload, with_result=True)
    for key in ("payload", "result"):
        value = shown.get(key)
        if value is not None and len(value) > SMALL_BYTES:
            shown[key] = None
    return shown


class _Sums:
    """Counts over some lanes."""

    # Two objects that the garbage collector looks at, not four: there may be 20,000 of these.
    __slots__ = ("counts", "requeued", "lanes", "groups")

    def __init__(self) -> None:
        self.counts = [0] * STATES
        self.requeued = 0
        self.lanes = 0
        self.groups: set[Group] | None = None

    def add(self, lane: Lane, engine: Engine) -> None:
        counts = self.counts
        for state, count in enumerate(lane.counts):
            counts[state] += count
        self.requeued += lane.requeues
        self.lanes += 1
        groups = engine.groups.matching(lane) if lane.is_closed else lane.groups
        if groups:
            if self.groups is None:
                self.groups = set()
            self.groups.update(groups)

    @property
    def unfinished(self) -> int:
        """Jobs that wait or run."""
        return self.counts[State.SCHEDULED] + self.counts[State.QUEUED] + self.counts[State.RUNNING]

    def shown(self) -> dict[str, int]:
        return {**{state.label: self.counts[state] for state in State}, "requeued": self.requeued,
                "workers": sum(group.sessions for group in self.groups or ())}


Grouped = dict[str, _Sums]
Item = TypeVar("Item")


def grouped_by(attribute: str, engine: Engine, breathe: Callable[[], None]) -> Grouped:
    """Sum the lanes by "queue" or "task". Calls `breathe` now and then: with 20,000 lanes this takes a while."""
    sums: Grouped = {}
    for number, lane in enumerate(list(engine.lanes.values()), 1):
        name = getattr(lane, attribute)
        if name not in sums:
            sums[name] = _Sums()
        sums[name].add(lane, engine)
        if number % LANES_PER_BREATH == 0:
            breathe()
    for pause in engine.pauses:
        if pause.kind == attribute and pause.name not in sums:
            sums[pause.name] = _Sums()  # nobody should wonder why its first job does not run
    for limited in engine.limits if attribute == "queue" else ():
        if limited.limit.queue not in sums:
            sums[limited.limit.queue] = _Sums()
    return sums


def forget(grouped: Grouped, breathe: Callable[[], None]) -> None:
    """Let go of sums a few at a time: to free 20,000 of them at once takes 5 ms."""
    while grouped:
        for _ in range(min(len(grouped), 4 * LANES_PER_BREATH)):
            grouped.popitem()
        breathe()


def queues(engine: Engine, breathe: Callable[[], None]) -> dict[str, object]:
    """Return the answer of the verb `queues`."""
    grouped = grouped_by("queue", engine, breathe)
    entries = []
    for number, name in enumerate(_least(grouped, MAX_ENTRIES, breathe), 1):
        entries.append({"name": name, **grouped[name].shown(), "tasks": grouped[name].lanes,
                        "paused": _held(engine.pauses.get("queue", name)), "limit": _limited(engine.limits.get(name))})
        if number % LANES_PER_BREATH == 0:
            breathe()
    total = len(grouped)
    forget(grouped, breathe)
    return {"queues": entries, "total": total}


def _least(items: Iterable[Item], limit: int, breathe: Callable[[], None]) -> list[Item]:
    """Return the first `limit` of many items in order, looking at a few at a time."""
    least: list[Item] = []
    left = iter(items)
    while some := list(islice(left, LANES_PER_BREATH)):
        least = nsmallest(limit, chain(least, some))
        breathe()
    return least


def pause(record: Pause) -> dict[str, object]:
    """Return the view of a pause."""
    return {"queue": record.name if record.kind == "queue" else None, "task": record.name if record.kind == "task" else None,
            **_held(record)}


def limit(limited: LimitedQueue) -> dict[str, object]:
    """Return the view of a limit, and of what waits there."""
    return {"queue": limited.limit.queue, **_limited(limited)}


def _limited(limited: LimitedQueue | None) -> dict[str, object] | None:
    """Return what a list shows of the limit of one of its queues; None: it has none."""
    if limited is None:
        return None
    kept = limited.limit
    return {"jobs": kept.jobs, "bytes": kept.bytes, "urgent": kept.urgent, "extra": kept.extra, "most_jobs": kept.most_jobs,
            "most_bytes": kept.most_bytes, "set_at": kept.set_at, "reason": kept.reason, "by": kept.by, "waiting": limited.waiting,
            "waiting_bytes": limited.waiting_bytes, "full": limited.full, "refused": limited.refused}


def _held(record: Pause | None) -> dict[str, object] | None:
    """Return what a list shows of the pause of one of its entries; None: it is not paused."""
    if record is None:
        return None
    return {"paused_at": record.paused_at, "until": record.until, "reason": record.reason, "by": record.by}


def tasks(engine: Engine, grouped: Grouped, breathe: Callable[[], None]) -> list[dict[str, object]]:
    """Return the tasks with the most jobs, as in `stats`, of lanes grouped by task."""
    largest = _least(((-sum(sums.counts), name) for name, sums in grouped.items()), MAX_TASKS, breathe)
    return [{"task": name, **grouped[name].shown(), "total": -total, "paused": _held(engine.pauses.get("task", name))}
            for total, name in largest]


def busiest(engine: Engine, grouped: Grouped, limit: int, breathe: Callable[[], None]) -> list[tuple[str, int, int, int]]:
    """Return the queues or tasks with the most unfinished jobs: (name, scheduled, queued, running) each.

    Beyond `limit` the others come last, together, under the name `(other)`, which no queue or task can have.
    """
    kept = [name for _, name in _least(((-sums.unfinished, name) for name, sums in grouped.items()), limit, breathe)]
    shown = [(name, *_waiting(grouped[name].counts)) for name in kept]
    if len(grouped) > limit:
        seen = [sum(column) for column in zip(*(counts for _, *counts in shown))]
        # Jobs may have moved while we breathed.
        shown.append((OTHER, *(max(0, whole - part) for whole, part in zip(_waiting(engine.totals), seen))))
    return shown


def _waiting(counts: list[int]) -> list[int]:
    return [counts[State.SCHEDULED], counts[State.QUEUED], counts[State.RUNNING]]


def worker_sessions(engine: Engine, limit: int, breathe: Callable[[], None]) -> tuple[list[Session], int]:
    """Return the first sessions of workers by name, also those in their reconnect grace, and how many there are."""
    slices: list[list[Session]] = []
    sessions = list(engine.sessions.values())
    for first in range(0, len(sessions), SESSIONS_PER_BREATH):
        workers_of_slice = [session for session in sessions[first:first + SESSIONS_PER_BREATH] if session.role == "worker"]
        slices.append(sorted(workers_of_slice, key=_by_name))
        breathe()
    return list(islice(merge(*slices, key=_by_name), limit)), sum(map(len, slices))


def _by_name(session: Session) -> tuple[str, int]:
    return session.name, session.key


def workers(engine: Engine, breathe: Callable[[], None], limit: int = MAX_ENTRIES) -> dict[str, object]:
    """Return the answer of the verb `workers`. It fits a frame: in a long one, the lists of later workers are cut."""
    sessions, total = worker_sessions(engine, limit, breathe)
    room = _Room(WORKERS_NAME_BYTES, WORKERS_JOBS)
    shown = []
    looked_at = 0
    for session in sessions:
        shown.append(_worker(session, room))
        looked_at += 10 + _count(session.tasks) + _count(session.queues)
        if looked_at >= NAMES_PER_BREATH:
            looked_at = 0
            breathe()
    return {"workers": shown, "total": total}


class _Room:
    """What the lists of one answer of `workers` may still hold."""

    def __init__(self, name_bytes: int, jobs: int) -> None:
        self._name_bytes = name_bytes
        self._jobs = jobs

    def names(self, names: frozenset[str] | None) -> list[str] | None:
        """Return the first MAX_TASKS of the names, or fewer; None stays None: any."""
        if names is None:
            return None
        shown: list[str] = []
        for name in nsmallest(MAX_TASKS, names):
            size = len(name) + NAME_COSTS
            if size > self._name_bytes:
                break
            self._name_bytes -= size
            shown.append(name)
        return shown

    def jobs(self, session: Session) -> list[dict[str, object]]:
        """Return the session's first jobs."""
        shown = [{"id": lease.job.id, "fence": lease.fence, "task": lease.job.task, "started_at": lease.granted_at}
                 for lease in islice(session.leases.values(), min(MAX_JOBS_OF_WORKER, self._jobs))]
        self._jobs -= len(shown)
        return shown


def _worker(session: Session, room: _Room) -> dict[str, object]:
    return {
        "name": session.name, "session": session.key, "status": session.status, "jobs": room.jobs(session),
        "running": len(session.leases), "free": session.parked.n if session.parked is not None else 0,
        "tasks": room.names(session.tasks), "tasks_total": _count(session.tasks),
        "queues": room.names(session.queues), "queues_total": _count(session.queues),
        "connected_at": session.connected_at, "last_seen_at": session.last_seen, "done": session.done,
        "failed": session.failed, "lost": session.lost, "address": session.address, "software": session.software,
    }


def damaged(engine: Engine) -> dict[str, object]:
    """Return the jobs that do not match their checksums on disk: how many are known, and the first of them."""
    return {"total": len(engine.damaged), "jobs": list(islice(engine.damaged, MAX_JOBS_OF_WORKER))}


def _count(names: frozenset[str] | None) -> int:
    return 0 if names is None else len(names)


def running_page(engine: Engine, wanted: Filter, before: int | None, limit: int,
                 breathe: Callable[[], None]) -> tuple[list[Job], int | None]:
    """Return the newest running jobs that fit, below the id `before`, and the id that the next page is before or None.

    They are listed from memory: the store records them as queued.
    """
    newest: list[Job] = []
    looked_at = 0
    for session in list(engine.sessions.values()):
        below = [lease.job for lease in session.leases.values() if before is None or lease.job.id < before]
        newest.extend(job for job in below if wanted.fits(job))
        looked_at += 1 + len(session.leases)
        if looked_at >= SESSIONS_PER_BREATH:
            looked_at = 0
            newest = _newest(newest, limit + 1)
            breathe()
    newest = _newest(newest, limit + 1)
    page = [job for job in newest[:limit] if job.state is State.RUNNING]  # some may have ended meanwhile
    return page, newest[limit - 1].id if len(newest) > limit else None


def count_running(engine: Engine, wanted: Filter, before: int | None, breathe: Callable[[], None]) -> int:
    """Return how many running jobs fit, below the id `before`."""
    found = 0
    for session in list(engine.sessions.values()):
        found += sum(wanted.fits(lease.job) for lease in session.leases.values() if before is None or lease.job.id < before)
        breathe()
    return found


def _newest(jobs: Iterable[Job], limit: int) -> list[Job]:
    return nsmallest(limit, jobs, key=lambda job: -job.id)


def counts(engine: Engine, breathe: Callable[[], None]) -> dict[str, object]:
    """Return what `stats` says of jobs and sessions."""
    statuses = {"idle": 0, "busy": 0, "lost": 0}
    roles = {"client": 0, "worker": 0}
    for number, session in enumerate(list(engine.sessions.values()), 1):
        if session.role == "worker":
            statuses[session.status] += 1
        if session.conn is not None and session.grace_until is None:
            roles[session.role] += 1
        if number % SESSIONS_PER_BREATH == 0:
            breathe()
    return {
        "states": {state.label: engine.totals[state] for state in State}, "requeued": engine.requeues,
        "total": sum(engine.totals), "workers": sum(statuses.values()), "idle": statuses["idle"], "busy": statuses["busy"],
        "connections": sum(roles.values()), "clients": roles["client"],
        "memory": {"jobs": engine.window.jobs, "bytes": engine.window.payload_bytes, "leases": engine.leases},
    }
