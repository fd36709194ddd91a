"""The verb that puts failed jobs together by how they failed: reads the newest of them page by page, and says how far it looked."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.desk import Desk
from greenroom.errors import BusyError, InvalidError
from greenroom.failures import Failures
from greenroom.job import FAILED
from greenroom.matching import filter_of, matching
from greenroom.protocol import Request
from greenroom.verb_parts import Caller

MAX_JOBS = 2000  # failed jobs of one answer
PAGE_JOBS = 100  # read at a time
MAX_S = 1.0  # after which the answer is what was found so far
MAX_GROUPINGS = 2  # at the same time, of all who ask


def _failures(desk: Desk, caller: Caller, request: Request) -> None:
    wanted = filter_of(request.fields)
    if wanted.states is not None and FAILED not in wanted.states:
        raise InvalidError("failures are of jobs that failed", field="state")
    wanted = wanted._replace(states=frozenset({FAILED}))
    if desk.groupings >= MAX_GROUPINGS:
        raise BusyError("failed jobs are being grouped for others", retry_after_s=1.0)
    found, before, until = Failures(), request.fields["before"], desk.now() + MAX_S
    desk.groupings += 1
    try:
        while True:
            jobs, before = matching(desk, wanted, before, min(PAGE_JOBS, MAX_JOBS - found.jobs))
            for job in jobs:
                desk.breathe_if_due()  # one takes 15 us, with a hostile text half a millisecond
                if job.damage is None:
                    found.add(job.id, job.task, job.error, job.worker, job.finished_at)
            if before is None or found.jobs >= MAX_JOBS or desk.now() > until:
                break
    finally:
        desk.groupings -= 1
    desk.breathe_if_due()
    desk.batches.hold(caller, request.id, found.told(before))


#: Verb -> handler.
HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {"failures": _failures}
