"""The verb for many jobs at once: retry, cancel, delete or change what a filter lets through, a slice a request. Checks, the engine's calls, the answer."""

from __future__ import annotations

from collections.abc import Callable

from greenroom import control_verbs, views
from greenroom.desk import Desk
from greenroom.errors import InvalidError, from_wire
from greenroom.filters import ACTION_STATES, Filter, parse_filter
from greenroom.job import QUEUED, RUNNING, Job
from greenroom.matching import matching, only_running
from greenroom.protocol import Request
from greenroom.records import Lost
from greenroom.verb_parts import Caller, check_store, on_each

#: Jobs of one slice; then its peer asks for more. Their rows take the thread of the COMMIT some milliseconds.
BULK_JOBS = 200
#: Errors that pass: the slice ends before the first such job, and the next one begins with it.
PASSING = frozenset({"BUSY", "FULL", "STORE_FULL", "DRAINING"})

Act = Callable[[Desk, int, "Job | Lost | None"], "str | None"]


def cancel(desk: Desk, job_id: int, found: Job | Lost | None) -> str | None:
    """Cancel one job; see Engine.cancel."""
    return desk.engine.cancel(job_id, desk.now(), found)


def retry(desk: Desk, job_id: int, found: Job | Lost | None) -> str | None:
    """Retry one job, on disk and in memory; see Engine.retry."""
    outcome = desk.engine.retry(job_id, desk.now(), found)
    if outcome is not None:
        desk.forget(job_id)
    return outcome


def _changing(fields: dict[str, object]) -> Act:
    """Return what changes one job as the request says; see Engine.change. Raises InvalidError if it says nothing."""
    wanted = control_verbs.wanted_change(fields, CHANGES, "action")
    return lambda desk, job_id, found: desk.engine.change(job_id, wanted, desk.now(), found)


#: What may be changed of all jobs that fit. No payload: one for all of them is a mistake.
CHANGES = ("priority", "queue", "run_at", "delay")
#: Action without further fields -> what does it to one job.
ACTS: dict[str, Act] = {"retry": retry, "cancel": cancel, "delete": control_verbs.delete}


def _act(fields: dict[str, object]) -> Act:
    if fields["action"] == "change":
        return _changing(fields)
    for name in CHANGES:
        if fields[name] is not None:
            raise InvalidError(f"{name} goes with the action change, not with {fields['action']}", field=name)
    return ACTS[fields["action"]]


def _bulk(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    action, before = fields["action"], fields["before"]
    act, states = _act(fields), ACTION_STATES[action]
    wanted = parse_filter(fields["filter"])
    wanted = wanted._replace(states=states if wanted.states is None else wanted.states & states)
    if not wanted.states:
        raise InvalidError(f"{action} is for jobs that are {', '.join(state.label for state in sorted(states))}", field="state")
    if fields["dry_run"]:
        _count(desk, caller, request.id, wanted, before)
        return
    if action == "retry":
        check_store(desk)
    desk.check_room()
    jobs, following = matching(desk, wanted, before, BULK_JOBS)
    ended = {job.id: job.finished_at for job in jobs}
    but_alike = wanted._replace(fingerprint=None)

    def attempt(job_id: int, found: Job | Lost | None) -> str | bool | None:
        job = desk.engine.jobs.get(job_id) or found
        if isinstance(job, Job) and job.damage is None:
            # How it failed is not worked out again unless it has run since: of a hundred at once that may take the hub 50 ms.
            is_same = job.finished_at is not None and job.finished_at == ended[job_id]
            if (but_alike if is_same else wanted).fits(job, looks_for_text=False):
                return act(desk, job_id, found)
            return False  # since it was looked for, others had their turn
        return act(desk, job_id, found)

    on_each(desk, caller, request.id, [job.id for job in jobs], attempt, lambda outcomes: _answer(outcomes, following, wanted))


def _answer(outcomes: dict[int, object], following: int | None, wanted: Filter) -> dict:
    """Return what became of a slice. Raises what kept all of it from being done, if that passes."""
    refused = {job_id: outcome for job_id, outcome in outcomes.items() if isinstance(outcome, dict)}
    # A queue at its limit may be full for hours, and the jobs of other queues shall not wait for it.
    passing = [job_id for job_id, error in refused.items() if error["code"] in PASSING and error.get("field") != "queue"]
    if passing:
        if len(passing) == len(outcomes):
            raise from_wire(refused[passing[0]])
        following = max(passing) + 1
    final = [error for job_id, error in refused.items() if job_id not in passing]
    done = sum(isinstance(outcome, str) for outcome in outcomes.values())
    return {"matched": done + len(final), "exact": True, "done": done, "refused": len(final), "why": final[0]["message"] if final else None,
            **_place(following, wanted)}


def _place(following: int | None, wanted: Filter) -> dict:
    return {"next": following, "scanned_to": following or wanted.id_from or 1}


def _count(desk: Desk, caller: Caller, request_id: int, wanted: Filter, before: int | None) -> None:
    """Answer how many jobs there are to do it to. The store counts running ones as queued."""
    if only_running(wanted):
        found, following = views.count_running(desk.engine, wanted, before, desk.breathe_if_due), None
        is_exact = True
    else:
        desk.wait_for_commit(5.0)
        found, following = desk.read(lambda reader: reader.count(wanted, before))
        is_exact = len(wanted.states & {QUEUED, RUNNING}) != 1
    desk.batches.hold(caller, request_id, {"matched": found, "exact": is_exact, "done": 0, "refused": 0, "why": None, **_place(following, wanted)})


#: Verb -> handler.
HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {"bulk": _bulk}
