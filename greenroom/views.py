"""How jobs, queues, workers and counts are shown to people: maps as docs/protocol_v1.md describes them. Pure, read-only.

Must not change what it shows, nor know who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from greenroom.engine import Engine
from greenroom.groups import Group
from greenroom.job import SMALL_BYTES, Job, State
from greenroom.lanes import Lane
from greenroom.sessions import Session

#: Entries in one answer of `queues` and `workers`; `total` tells the rest.
MAX_ENTRIES = 1000
MAX_TASKS = 100
#: About 1 ms of the hub.
LANES_PER_BREATH = 500
MAX_JOBS_OF_WORKER = 20


def view(job: Job, *, with_payload: bool = False, with_result: bool = False) -> dict[str, object]:
    """Return the view of a job. Payload and result are included when asked for and known."""
    shown: dict[str, object] = {
        "id": job.id, "task": job.task, "queue": job.queue, "priority": job.priority, "state": job.state.label,
        "submitted_at": job.submitted_at, "run_at": job.run_at, "started_at": job.started_at,
        "finished_at": job.finished_at, "worker": job.worker, "attempt": job.attempt, "crashes": job.crashes,
        "requeues": job.requeues, "cancel_requested": job.cancel_requested, "payload_bytes": job.payload_bytes,
        "result_bytes": len(job.result) if job.result is not None else job.result_bytes,
        "encoding": "raw" if job.raw else "msgpack", "error": job.error,
    }
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

    def __init__(self) -> None:
        self.counts = [0] * (max(State) + 1)
        self.requeued = 0
        self.lanes = 0
        self.groups: set[Group] = set()

    def add(self, lane: Lane) -> None:
        for state in State:
            self.counts[state] += lane.counts[state]
        self.requeued += lane.requeues
        self.lanes += 1
        self.groups.update(lane.groups)

    def shown(self) -> dict[str, int]:
        return {**{state.label: self.counts[state] for state in State}, "requeued": self.requeued,
                "workers": sum(group.sessions for group in self.groups)}


def _grouped(engine: Engine, attribute: str, breathe: Callable[[], None]) -> dict[str, _Sums]:
    """Sum the lanes by queue or task. Calls `breathe` now and then: with 20,000 lanes this takes a while."""
    sums: dict[str, _Sums] = {}
    for number, lane in enumerate(list(engine.lanes.values()), 1):
        name = getattr(lane, attribute)
        if name not in sums:
            sums[name] = _Sums()
        sums[name].add(lane)
        if number % LANES_PER_BREATH == 0:
            breathe()
    return sums


def queues(engine: Engine, breathe: Callable[[], None]) -> dict[str, object]:
    """Return the answer of the verb `queues`."""
    grouped = _grouped(engine, "queue", breathe)
    entries = [{"name": name, **sums.shown(), "tasks": sums.lanes} for name, sums in sorted(grouped.items())[:MAX_ENTRIES]]
    return {"queues": entries, "total": len(grouped)}


def tasks(engine: Engine, breathe: Callable[[], None]) -> list[dict[str, object]]:
    """Return the tasks with the most jobs, as in `stats`."""
    entries = [{"task": name, **sums.shown(), "total": sum(sums.counts)}
               for name, sums in _grouped(engine, "task", breathe).items()]
    entries.sort(key=lambda entry: (-entry["total"], entry["task"]))
    return entries[:MAX_TASKS]


def worker_sessions(engine: Engine) -> list[Session]:
    """Return the sessions of workers, also those in their reconnect grace, by name."""
    return sorted((session for session in engine.sessions.values() if session.role == "worker"),
                  key=lambda session: (session.name, session.key))


def workers(engine: Engine, limit: int = MAX_ENTRIES) -> dict[str, object]:
    """Return the answer of the verb `workers`."""
    sessions = worker_sessions(engine)
    return {"workers": [_worker(session) for session in sessions[:limit]], "total": len(sessions)}


def _worker(session: Session) -> dict[str, object]:
    jobs = []
    for lease in list(session.leases.values())[:MAX_JOBS_OF_WORKER]:
        jobs.append({"id": lease.job.id, "fence": lease.fence, "task": lease.job.task, "started_at": lease.granted_at})
    return {
        "name": session.name, "session": session.key, "status": session.status, "jobs": jobs,
        "running": len(session.leases), "free": session.parked.n if session.parked is not None else 0,
        "tasks": None if session.tasks is None else sorted(session.tasks)[:MAX_TASKS],
        "queues": None if session.queues is None else sorted(session.queues)[:MAX_TASKS],
        "connected_at": session.connected_at, "last_seen_at": session.last_seen, "done": session.done,
        "failed": session.failed, "lost": session.lost, "address": session.address, "software": session.software,
    }


def damaged(engine: Engine) -> dict[str, object]:
    """Return the jobs that do not match their checksums on disk: how many are known, and the first of them."""
    return {"total": len(engine.damaged), "jobs": list(islice(engine.damaged, MAX_JOBS_OF_WORKER))}


def counts(engine: Engine, breathe: Callable[[], None]) -> dict[str, object]:
    """Return what `stats` says of jobs and workers."""
    statuses = [session.status for session in engine.sessions.values() if session.role == "worker"]
    return {
        "states": {state.label: engine.totals[state] for state in State}, "requeued": engine.requeues,
        "total": sum(engine.totals), "workers": len(statuses), "idle": statuses.count("idle"), "busy": statuses.count("busy"),
        "connections": sum(session.conn is not None and session.grace_until is None
                           for session in engine.sessions.values()),
        "tasks": tasks(engine, breathe),
        "memory": {"jobs": engine.window.jobs, "bytes": engine.window.payload_bytes, "leases": engine.leases},
    }
