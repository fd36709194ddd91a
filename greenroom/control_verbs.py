"""The verbs for those who steer the broker: pause, resume, limit, change, purge, delete, explain. Checks, one call of the engine, answer.

What they do is in controls.py, what explanations say in gates.py.
"""

from __future__ import annotations

from collections.abc import Callable

from greenroom import views
from greenroom.desk import Desk
from greenroom.errors import InvalidError, TooLargeError
from greenroom.gates import explain_job, explain_queue
from greenroom.filters import Filter
from greenroom.job import QUEUED, SCHEDULED, Job, JobChange
from greenroom.protocol import DEFAULT_LIMITS, Request
from greenroom.records import Lost, Pause, QueueLimit
from greenroom.verb_parts import Caller, each_job, load, on_each

#: Jobs that one purge looks at; then its peer asks for more.
PURGE_JOBS = 1000
#: Bytes of new payloads in one change: each job's are written.
CHANGE_BYTES = 4 * 2**20
#: What may be changed of a job that waits.
CHANGES = ("priority", "queue", "run_at", "delay", "payload")


def _target(request: Request) -> tuple[str, str]:
    """Return ("queue" or "task", its name)."""
    queue, task = request.fields["queue"], request.fields["task"]
    if (queue is None) == (task is None):
        raise InvalidError("give queue or task, one of them", field="queue")
    return ("queue", queue) if queue is not None else ("task", task)


def _by(caller: Caller, request: Request) -> str:
    """Return who asks for it."""
    return request.fields["by"] or (caller.session.name if caller.session is not None else "web")


def _pause(desk: Desk, caller: Caller, request: Request) -> None:
    kind, name = _target(request)
    fields, now = request.fields, desk.now()
    pause = Pause(kind, name, now, None if fields["for"] is None else now + fields["for"], fields["reason"], _by(caller, request))
    desk.engine.pause(pause, now)
    desk.after_call()
    desk.batches.hold(caller, request.id, {"pause": views.pause(pause)})


def _resume(desk: Desk, caller: Caller, request: Request) -> None:
    resumed = desk.engine.resume(*_target(request), desk.now())
    desk.after_call()
    desk.batches.hold(caller, request.id, {"resumed": resumed})


def _pauses(desk: Desk, caller: Caller, request: Request) -> None:
    desk.batches.hold(caller, request.id, {"pauses": [views.pause(pause) for pause in desk.engine.pauses]})


def wanted_change(fields: dict[str, object], names: tuple[str, ...], subject: str) -> JobChange:
    """Return what a request wants of jobs that wait.

    Args:
        names: the fields that may say it. subject: the field that an error names if none of them does.

    Raises InvalidError.
    """
    if all(fields[name] is None for name in names):
        raise InvalidError(f"a change needs at least one of {', '.join(names)}", field=subject)
    if fields["delay"] is not None and fields["run_at"] is not None:
        raise InvalidError("delay and run_at exclude each other", field="delay")
    return JobChange(fields["priority"], fields["queue"], fields["run_at"], fields["delay"], fields.get("payload"), fields.get("encoding") == "raw")


def _limit(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    if fields["jobs"] is None and fields["bytes"] is None:
        raise InvalidError("a limit needs jobs, bytes or both", field="jobs")
    limit = QueueLimit(fields["queue"], fields["jobs"], fields["bytes"], fields["urgent"], fields["extra"], desk.now(), fields["reason"],
                       _by(caller, request))
    limited = desk.engine.limit(limit)
    desk.after_call()
    desk.batches.hold(caller, request.id, {"limit": views.limit(limited)})


def _unlimit(desk: Desk, caller: Caller, request: Request) -> None:
    removed = desk.engine.unlimit(request.fields["queue"], desk.now())
    desk.after_call()
    desk.batches.hold(caller, request.id, {"removed": removed})


def _limits(desk: Desk, caller: Caller, request: Request) -> None:
    desk.batches.hold(caller, request.id, {"limits": [views.limit(limited) for limited in desk.engine.limits]})


def _change(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    ids, payload = fields["jobs"], fields["payload"]
    change = wanted_change(fields, CHANGES, "jobs")
    if payload is not None and len(payload) > DEFAULT_LIMITS.payload:
        raise TooLargeError(f"payload has {len(payload)} bytes, the limit is {DEFAULT_LIMITS.payload}", field="payload")
    if payload is not None and len(payload) * len(ids) > CHANGE_BYTES:
        raise TooLargeError(f"{len(ids)} payloads have {len(payload) * len(ids)} bytes, the limit is {CHANGE_BYTES}", field="payload")
    desk.check_room()

    def act(job_id: int, found: Job | Lost | None) -> str | None:
        outcome = desk.engine.change(job_id, change, desk.now(), found)
        if outcome is not None and payload is not None:
            desk.batches.note_payloads(len(payload))
        return outcome

    each_job(desk, caller, request, act)


def _purge(desk: Desk, caller: Caller, request: Request) -> None:
    queue, task, before = (request.fields[name] for name in ("queue", "task", "before"))
    desk.check_room()
    desk.wait_for_commit(5.0)
    waiting = Filter(states=frozenset({QUEUED, SCHEDULED}), queue=queue, task=task)
    jobs, following = desk.read(lambda reader: reader.page(waiting, before=before, limit=PURGE_JOBS))
    ids = [job.id for job in jobs]

    def answer(outcomes: dict[int, object]) -> dict:
        is_busy = any(isinstance(outcome, dict) for outcome in outcomes.values())
        return {"purged": sum(outcome is True for outcome in outcomes.values()), "next": ids[0] + 1 if is_busy else following}

    on_each(desk, caller, request.id, ids, lambda job_id, found: desk.engine.purge(job_id, queue, task, desk.now(), found), answer)


def _delete(desk: Desk, caller: Caller, request: Request) -> None:
    each_job(desk, caller, request, lambda job_id, found: delete(desk, job_id, found))


def delete(desk: Desk, job_id: int, found: Job | Lost | None) -> str | None:
    """Delete a finished job, on disk and in memory; see Engine.delete."""
    outcome = desk.engine.delete(job_id, found)
    if outcome is not None:
        desk.forget(job_id)
    return outcome


def _explain(desk: Desk, caller: Caller, request: Request) -> None:
    job_id, queue = request.fields["job"], request.fields["queue"]
    if (job_id is None) == (queue is None):
        raise InvalidError("give job or queue, one of them", field="job")
    if queue is not None:
        desk.batches.hold(caller, request.id, explain_queue(desk.engine, queue, desk.now(), desk.breathe_if_due))
        return
    job = desk.in_memory(job_id)
    if job is not None:
        desk.batches.hold(caller, request.id, explain_job(desk.engine, job, desk.now()))
        return
    found: dict[int, Job | Lost] = {}

    def done() -> None:
        job = desk.as_memory_knows(found[job_id])
        if job_id not in desk.engine.aside:
            job = desk.engine.check_there(job_id, job)
        desk.batches.hold(caller, request.id, explain_job(desk.engine, job, desk.now()))

    load(desk, caller, request.id, [job_id], found.update, done, None)


HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {
    "pause": _pause, "resume": _resume, "pauses": _pauses, "limit": _limit, "unlimit": _unlimit, "limits": _limits,
    "change": _change, "purge": _purge, "delete": _delete, "explain": _explain,
}
