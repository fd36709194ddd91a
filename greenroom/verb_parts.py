"""What handlers of verbs share: who asks, lists in parts, and the part of a request that had to wait for the store.

Must not know any verb.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from greenroom.batches import Budget, Peer
from greenroom.desk import Desk
from greenroom.errors import BusyError, GreenroomError, InternalError, StoreFullError
from greenroom.job import Job
from greenroom.protocol import Request, error_fields
from greenroom.records import Lost
from greenroom.sessions import Session
from greenroom.waits import Wait

log = logging.getLogger(__name__)

#: Items of a list handled between two looks at the time; each takes 2 to 8 µs.
STEP_ITEMS = 100


class Caller(Peer, Protocol):
    """Who asks: a connection with its session, or the web.

    Attributes:
        session: None for the web. is_open: False once nobody listens to answers any more. open_waits: its waits.
        deliveries_written: False while deliveries may not have reached the peer's kernel. takes_events: see subscriptions.Listener.
    """

    session: Session | None
    is_open: bool
    open_waits: set[Wait]
    deliveries_written: bool
    takes_events: bool


def later(desk: Desk, caller: Caller, request_id: int, work: Callable[[], None]) -> None:
    """Run the part of a handler that had to wait for the store; its errors are answered like those of the first part."""
    try:
        work()
    except GreenroomError as exc:
        desk.batches.hold(caller, request_id, exc)
    except Exception:
        # A bug of ours must cost this request only: we are inside the pump, where an error means that the store failed.
        log.exception("the late part of a request failed")
        desk.batches.hold(caller, request_id, InternalError("the broker met a bug of its own; it is in its log"))
    desk.after_call()
    caller.flush()


def check_store(desk: Desk) -> None:
    """Raise BusyError or StoreFullError while nothing more can be taken in."""
    desk.check_room()
    if desk.store_full:
        raise StoreFullError("the disk of the broker is nearly full", retry_after_s=10.0)


def parts(desk: Desk, items: list) -> Iterator[list]:
    """Cut a long list into parts that take a millisecond at most, and let the hub breathe between them."""
    if len(items) <= STEP_ITEMS:
        yield items
        return
    for first in range(0, len(items), STEP_ITEMS):
        if first:
            desk.breathe_if_due()
        yield items[first:first + STEP_ITEMS]


def load(desk: Desk, caller: Caller, request_id: int, missing: list[int], took: Callable[[dict[int, Job | Lost]], None],
          done: Callable[[], None], refuse: Callable[[int, dict], None] | None, budget: Budget | None = None) -> None:
    """Load jobs for a handler.

    Args:
        refuse: takes (job id, error map) of each missing job when too much is being loaded, for verbs that have done the others
            already; None: the whole request is refused with BusyError.
    """
    try:
        desk.load(missing, lambda jobs: later(desk, caller, request_id, lambda: took(jobs)),
                  lambda: later(desk, caller, request_id, done), budget)
    except BusyError as exc:
        if refuse is None:
            raise
        for job_id in missing:
            refuse(job_id, error_fields(exc))
        done()


def on_each(desk: Desk, caller: Caller, request_id: int, ids: list[int], act: Callable[[int, Job | Lost | None], object],
            answer: Callable[[dict[int, object]], dict]) -> None:
    """Do something to each job that a request names, and answer. Those that are not in memory are loaded first.

    Args:
        act: gets id, and the job as loaded or None; returns the outcome, None: load it and call again. What it raises is the outcome.
        answer: gets id -> outcome, errors as maps (BUSY: too much is being loaded, nothing was done to this one); returns the reply.
    """
    outcomes: dict[int, object] = {}

    def attempt(job_id: int, found: Job | Lost | None) -> None:
        try:
            outcomes[job_id] = act(job_id, found)
        except GreenroomError as exc:
            outcomes[job_id] = error_fields(exc)

    for part in parts(desk, list(dict.fromkeys(ids))):
        for job_id in part:
            attempt(job_id, None)
        desk.after_call()

    def took(jobs: dict[int, Job | Lost]) -> None:
        for job_id, job in jobs.items():
            attempt(job_id, job)
        desk.after_call()

    load(desk, caller, request_id, [job_id for job_id, outcome in outcomes.items() if outcome is None], took,
         lambda: desk.batches.hold(caller, request_id, answer(outcomes)),
         lambda job_id, error: outcomes.update({job_id: error}))


def each_job(desk: Desk, caller: Caller, request: Request, act: Callable[[int, Job | Lost | None], object]) -> None:
    """Do `on_each` for the field `jobs` of a request; the reply has `outcomes`, one per id in order."""
    ids = request.fields["jobs"]
    on_each(desk, caller, request.id, ids, act, lambda outcomes: {"outcomes": [outcomes[job_id] for job_id in ids]})
