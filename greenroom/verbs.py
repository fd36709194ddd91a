"""A table verb -> handler: what each request does. A handler checks items, makes one call of the engine, and answers.

Used by sessions and, inside the process, by the web. No queue rules here, no sockets; long answers breathe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from greenroom import bulk_verbs, control_verbs, event_verbs, failure_verbs, figures, log_verbs, schedule_verbs, views
from greenroom.batches import Budget
from greenroom.desk import Desk
from greenroom.engine import Engine
from greenroom.errors import (
    BusyError, DamagedError, DrainingError, FullError, GreenroomError, KeyConflictError, TooLargeError)
from greenroom.job import FINISHED_STATES, Job, NewJob, parse_new_job
from greenroom.key_holders import holders, run_or_load
from greenroom.matching import filter_of, matching
from greenroom.protocol import DEFAULT_LIMITS, Request, error_fields, pack_list, parse_settle
from greenroom.records import Lost, SettleItem, Submission
from greenroom.unique import Duplicate
from greenroom.verb_parts import STEP_ITEMS, Caller, check_store, each_job, later, load, parts
from greenroom.waits import ANSWER_BYTES, Wait, fitting

#: A wait is given so long to look its jobs up, also when it does not want to wait for them.
LOOK_UP_S = 5.0
#: Bytes packed and hashed between two looks: 0.5 ms.
HASH_BYTES = 256 * 1024


# -- producing --------------------------------------------------------------------------------------------------------------


def _submit(desk: Desk, caller: Caller, request: Request) -> None:
    items = request.fields["jobs"]
    submission_id = request.fields["submission"]
    if submission_id is None:
        check_store(desk)
    outcomes: list[object] = []
    accepted: list[NewJob] = []
    for part in parts(desk, items):
        for item in part:
            try:
                accepted.append(parse_new_job(item, DEFAULT_LIMITS.payload))
                outcomes.append(None)
            except GreenroomError as exc:
                outcomes.append(error_fields(exc))
    if submission_id is None:
        run_or_load(desk, caller, request.id, lambda: _storing(desk, caller, request.id, outcomes, accepted, None), len(accepted), None)
        return
    body_hash = _hash_of(desk, items)
    is_late = False

    def store() -> None:
        run_or_load(desk, caller, request.id, lambda: _storing(desk, caller, request.id, outcomes, accepted, (submission_id, body_hash)),
                    len(accepted), submission_id, is_late=is_late)

    def tell(known: Submission) -> None:
        if not known.outcome:
            raise DamagedError("what the disk has under this submission id is damaged: its jobs were stored, but it is not known "
                               "which", field="submission")
        if known.body_hash != body_hash:
            raise KeyConflictError("this submission id was used with other jobs", field="submission")
        desk.engine.tally.repeated_submits += 1
        desk.batches.hold(caller, request.id, {"jobs": json.loads(known.outcome), "repeated": True})

    def found(known: Submission | None) -> None:
        if known is not None:
            later(desk, caller, request.id, lambda: tell(known))
            return
        desk.batches.begin_submission(submission_id)
        if is_late and len(accepted) > STEP_ITEMS:
            desk.spawn_unit(lambda: later(desk, caller, request.id, store))  # we are inside the pump, which must not wait
        else:
            later(desk, caller, request.id, store)

    desk.batches.find_submission(submission_id, found)
    is_late = True  # from here on it is the pump that calls `found`


def _hash_of(desk: Desk, items: list[object]) -> bytes:
    """Return the hash by which a submit is known again: of the list, packed."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pack_list(items, HASH_BYTES):
        for begin in range(0, len(piece), HASH_BYTES):
            desk.breathe_if_due()
            digest.update(memoryview(piece)[begin:begin + HASH_BYTES])
    return digest.digest()


def _storing(desk: Desk, caller: Caller, request_id: int, outcomes: list[object], accepted: list[NewJob],
             submission: tuple[bytes, bytes] | None) -> Iterator[None]:
    """Accept the jobs, part by part; for run_unit. Refuses the whole only before the first: later it may be the rest, item by item.

    Raises NotLoaded while a job that has a key of these must be loaded first."""
    check_store(desk)
    engine, now = desk.engine, desk.now()
    size, has_keys, before = 0, False, None
    for options, payload in accepted:
        size += len(payload)
        if options is not before:  # neighbours mostly share them
            before = options
            has_keys = has_keys or (options.extras is not None and options.extras.unique_key is not None)
    engine.check_room(len(accepted), size)
    find = holders(desk, accepted) if has_keys else None
    places = [place for place, outcome in enumerate(outcomes) if outcome is None]
    for outcome in outcomes:
        if outcome is not None:
            engine.tally.refuse_job(outcome["code"])  # not before: a repeated submit is not refused again
    for first in range(0, len(accepted), STEP_ITEMS):
        if first:
            yield
        part = accepted[first:first + STEP_ITEMS]
        try:
            results = engine.submit(part, now, find)
        except GreenroomError as exc:  # meanwhile others took the room, or the broker drains
            results = [exc] * len(part)
        desk.batches.note_payloads(sum(len(item.payload) for item in part))
        desk.after_call()
        for place, result in zip(places[first:], results):
            outcomes[place] = result if type(result) is int else _told(desk, result)
    if submission is not None:
        desk.batches.remember(Submission(*submission, json.dumps(outcomes), now))
        desk.after_call()
    desk.batches.hold(caller, request_id, {"jobs": outcomes})


def _told(desk: Desk, outcome: Duplicate | GreenroomError) -> dict[str, object]:
    """Return the outcome of a job that was not accepted, as the wire has it."""
    if isinstance(outcome, Duplicate):
        return {"duplicate": outcome.job, "state": outcome.state, "replaced": outcome.replaced}
    desk.engine.tally.refuse_job(outcome.code)
    return error_fields(outcome)


def _cancel(desk: Desk, caller: Caller, request: Request) -> None:
    each_job(desk, caller, request, lambda job_id, found: bulk_verbs.cancel(desk, job_id, found))


def _retry(desk: Desk, caller: Caller, request: Request) -> None:
    check_store(desk)
    each_job(desk, caller, request, lambda job_id, found: bulk_verbs.retry(desk, job_id, found))


def _get(desk: Desk, caller: Caller, request: Request) -> None:
    ids, with_payload = request.fields["jobs"], request.fields["payload"]
    views_by_id: dict[int, dict] = {}
    missing: list[int] = []
    for part in parts(desk, list(dict.fromkeys(ids))):
        for job_id in part:
            job = desk.in_memory(job_id)
            if job is None or (with_payload and job.payload is None):
                missing.append(job_id)
            else:
                views_by_id[job_id] = views.view(job, with_payload=with_payload, with_result=True)
    desk.breathe_if_due()

    def took(jobs: dict[int, Job | Lost]) -> None:
        for job_id, job in jobs.items():
            views_by_id[job_id] = _view_or_error(job_id, desk.as_memory_knows(job), with_payload=with_payload)

    is_late = False

    def done() -> None:
        shown = [views_by_id[job_id] for job_id in ids]
        fit = len(fitting(shown))
        for place, shown_view in enumerate(shown):
            if place >= fit or _is_cut(shown_view, with_payload=with_payload):
                error = error_fields(TooLargeError("the answer is too large with this job: ask for it alone"))
                shown[place] = {"id": ids[place], "error": error}
        if not is_late:
            desk.breathe_if_due()  # encoding takes as long again
        desk.batches.hold(caller, request.id, {"jobs": shown})

    if not missing:
        done()
        return
    is_late = True  # it is the pump that calls `done`, which must not wait
    load(desk, caller, request.id, missing, took, done, None, Budget(ANSWER_BYTES, payload=with_payload))


def _is_cut(shown: dict, *, with_payload: bool) -> bool:
    """Tell whether a view lacks a result or payload that the job has."""
    if "error" in shown and "state" not in shown:
        return False
    return bool((shown["result_bytes"] and shown["result"] is None)
                or (with_payload and shown["payload_bytes"] and shown["payload"] is None))


def _view_or_error(job_id: int, found: Job | Lost, *, with_payload: bool = False) -> dict:
    try:
        Engine.check_there(job_id, found)
    except GreenroomError as exc:
        return {"id": job_id, "error": error_fields(exc)}
    return views.view(found, with_payload=with_payload, with_result=True)


def _wait(desk: Desk, caller: Caller, request: Request) -> None:
    if len(caller.open_waits) >= DEFAULT_LIMITS.waits:
        raise FullError(f"{len(caller.open_waits)} waits are open, the cap", retry_after_s=1.0)
    ids = list(dict.fromkeys(request.fields["jobs"]))
    known = {job_id: desk.in_memory(job_id) for job_id in ids}
    finished = [job for job in known.values() if job is not None and job.state in FINISHED_STATES]
    over = [views.view(job, with_result=True) for part in parts(desk, finished) for job in part]
    if over:
        desk.breathe_if_due()
        desk.batches.hold(caller, request.id, {"jobs": fitting(over)})
        return
    deadline = desk.now() + request.fields["wait"]
    # Open before anything is loaded: a job may finish while others are still being looked up.
    wait = Wait(caller, request.id, ids)
    desk.waits.add(wait, max(deadline, desk.now() + LOOK_UP_S))

    def took(jobs: dict[int, Job | Lost]) -> None:
        for job_id, job in jobs.items():
            found = desk.as_memory_knows(job)
            if isinstance(found, Lost) or found.damage is not None or found.state in FINISHED_STATES:
                over.append(_view_or_error(job_id, found))

    def done() -> None:
        if not wait.is_open:
            return
        shown = [shown for shown in over if not _is_cut(shown, with_payload=False)]
        if over or deadline <= desk.now():
            desk.batches.hold(*desk.waits.close(wait, shown or over[:1]))
        else:
            desk.waits.end_at(wait, deadline)

    try:
        load(desk, caller, request.id, [job_id for job_id, job in known.items() if job is None], took, done, None,
              Budget(ANSWER_BYTES, payload=False))
    except BusyError:
        desk.waits.close(wait, [])
        raise


# -- working ----------------------------------------------------------------------------------------------------------------


def _reserve(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    desk.engine.reserve(caller.session, request.id, fields["n"], fields["queues"], fields["tasks"], fields["wait"],
                            desk.now())
    desk.after_call()


def _settle(desk: Desk, caller: Caller, request: Request) -> None:
    desk.engine.saw(caller.session, desk.now())
    if desk.batches.is_overfull:
        raise BusyError("too much waits to be written", retry_after_s=0.1)
    outcomes: list[object] = []
    items: list[SettleItem] = []
    places: list[int] = []
    for part in parts(desk, request.fields["leases"]):
        begin = len(items)
        for item in part:
            try:
                items.append(parse_settle(item, DEFAULT_LIMITS.result))
                places.append(len(outcomes))
                outcomes.append(None)
            except GreenroomError as exc:
                outcomes.append(error_fields(exc))
        _apply_settles(desk, items[begin:], places[begin:], outcomes, {})
    missing: dict[int, list[tuple[SettleItem, int]]] = {}
    for item, place in zip(items, places):
        if outcomes[place] is None:
            missing.setdefault(item.job, []).append((item, place))

    def took(jobs: dict[int, Job | Lost]) -> None:
        pairs = [pair for job_id in jobs for pair in missing[job_id]]
        _apply_settles(desk, [item for item, _ in pairs], [place for _, place in pairs], outcomes, jobs)

    def refuse(job_id: int, error: dict) -> None:
        for _, place in missing[job_id]:
            outcomes[place] = error

    load(desk, caller, request.id, list(missing), took,
         lambda: desk.batches.hold(caller, request.id, {"outcomes": outcomes}), refuse)


def _apply_settles(desk: Desk, items: list[SettleItem], places: list[int], outcomes: list[object],
                   loaded: dict[int, Job | Lost]) -> None:
    results = desk.engine.settle(items, desk.now(), loaded)
    desk.batches.note_payloads(sum(len(item.result) for item in items if item.result))
    desk.after_call()
    for place, result in zip(places, results):
        outcomes[place] = error_fields(result) if isinstance(result, GreenroomError) else result


def _heartbeat(desk: Desk, caller: Caller, request: Request) -> None:
    lost, cancel = desk.engine.heartbeat(caller.session, request.fields["leases"], desk.now(),
                                             deliveries_written=caller.deliveries_written)
    desk.after_call()
    caller.answer(request.id, {"lost": lost, "cancel": cancel})


def _extend(desk: Desk, caller: Caller, request: Request) -> None:
    desk.engine.saw(caller.session, desk.now())
    outcomes = desk.engine.extend(request.fields["leases"], request.fields["for"], desk.now())
    desk.after_call()
    desk.batches.hold(caller, request.id, {"outcomes": [
        error_fields(outcome) if isinstance(outcome, GreenroomError) else outcome for outcome in outcomes]})


# -- watching ---------------------------------------------------------------------------------------------------------------


def _jobs(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    wanted = filter_of(fields)
    jobs, next_id = matching(desk, wanted, fields["before"], fields["limit"])
    shown = [views.small_view(job, with_payload=fields["payload"]) for part in parts(desk, jobs) for job in part]
    desk.breathe_if_due()
    fit = fitting(shown)  # errors may be long
    if len(fit) < len(shown):
        next_id = fit[-1]["id"]
    desk.breathe_if_due()
    desk.batches.hold(caller, request.id, {"jobs": fit, "next": next_id, "scanned_to": next_id or wanted.id_from or 1})


def _runs(desk: Desk, caller: Caller, request: Request) -> None:
    job_id = request.fields["job"]
    desk.wait_for_commit(5.0)
    runs = desk.read(lambda reader: reader.runs(job_id))
    desk.batches.hold(caller, request.id, {"runs": [run._asdict() for run in runs]})


def _queues(desk: Desk, caller: Caller, request: Request) -> None:
    desk.batches.hold(caller, request.id, views.queues(desk.engine, desk.breathe_if_due))


def _workers(desk: Desk, caller: Caller, request: Request) -> None:
    desk.batches.hold(caller, request.id, views.workers(desk.engine, desk.breathe_if_due))


def _stats(desk: Desk, caller: Caller, request: Request) -> None:
    desk.batches.hold(caller, request.id, figures.stats(desk))


def _backup(desk: Desk, caller: Caller, request: Request) -> None:
    fields, now = request.fields, desk.now()
    answer: dict[str, object] = {}
    if fields["step"] == "begin":
        if desk.engine.draining:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        answer = desk.backups.begin(fields["backup"], caller, now)
    elif fields["step"] == "read":
        answer = desk.backups.read(fields["backup"], fields["offset"], fields["size"], caller, now)
    else:
        desk.backups.end(fields["backup"])
    caller.answer(request.id, answer)  # it tells of nothing but what a COMMIT has written


def _ping(desk: Desk, caller: Caller, request: Request) -> None:
    caller.answer(request.id, {"now": desk.now()})


#: `hello` and `bye` belong to the connection and are in session.py.
HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {
    "submit": _submit, "cancel": _cancel, "retry": _retry, "runs": _runs, "get": _get, "wait": _wait, "reserve": _reserve, "settle": _settle,
    "heartbeat": _heartbeat, "extend": _extend, "jobs": _jobs, "queues": _queues, "workers": _workers, "stats": _stats,
    "backup": _backup, "ping": _ping, **control_verbs.HANDLERS, **bulk_verbs.HANDLERS, **failure_verbs.HANDLERS, **schedule_verbs.HANDLERS,
    **log_verbs.HANDLERS, **event_verbs.HANDLERS,
}
