"""A submit with unique keys: the jobs that have them are found first, and loaded where only the store has them.

For it alone: a submit without keys does not come here. The rules for duplicates are in duplicates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from greenroom.desk import Desk
from greenroom.duplicates import Find
from greenroom.errors import BusyError
from greenroom.job import Job, NewJob
from greenroom.records import Lost
from greenroom.verb_parts import STEP_ITEMS, Caller, later

#: So often those who have the keys are looked for anew, if others took them while they were being loaded.
MAX_ROUNDS = 5


class NotLoaded(Exception):
    """Raised before a submit has changed anything: these jobs must be loaded first."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(ids)
        self.ids = ids


def holders(desk: Desk, accepted: list[NewJob]) -> Find:
    """Return what knows the jobs that have the keys of these, until the unit (`Desk.run_unit`) that calls this is over.

    While a unit is open nothing is loaded, so a job that leaves memory meanwhile has no other object than the one found here.

    Raises NotLoaded.
    """
    now, taken_at = desk.now(), desk.engine.keys.find
    known: dict[int, Job | Lost] = {}
    missing: dict[int, None] = {}
    for item in accepted:
        extras = item.options.extras
        taken = taken_at(extras.unique_key, now) if extras is not None and extras.unique_key is not None else None
        if taken is None or taken.job in known:
            continue
        job = _known(desk, taken.job)
        if job is None:
            missing[taken.job] = None
        else:
            known[taken.job] = job
    if missing:
        raise NotLoaded(list(missing))
    return lambda job_id: _known(desk, job_id) or known.get(job_id)


def _known(desk: Desk, job_id: int) -> Job | Lost | None:
    return desk.in_memory(job_id) or desk.batches.known(job_id)


def run_or_load(desk: Desk, caller: Caller, request_id: int, steps: Callable[[], Iterator[None]], count: int,
                submission_id: bytes | None, *, is_late: bool = False) -> None:
    """Run the unit of a submit: now, or as soon as the jobs are loaded that have its keys. May switch; raises what refuses the whole.

    Args:
        steps: makes the steps of the unit anew; the first of them raises NotLoaded, or nothing is missing. count: jobs in it.
        submission_id: if it has one, `Batches.end_submission` follows when it is over, whatever came of it.
        is_late: the open batch waits for it already, or it is the pump that calls.
    """
    try:
        (desk.continue_unit if is_late else desk.run_unit)(steps())
    except NotLoaded as exc:
        _LateSubmit(desk, caller, request_id, steps, count, submission_id).load(exc.ids)
        return
    except BaseException:
        _end(desk, submission_id)
        raise
    _end(desk, submission_id)


def _end(desk: Desk, submission_id: bytes | None) -> None:
    if submission_id is not None:
        desk.batches.end_submission(submission_id)


class _LateSubmit:
    """A submit that is stored as soon as the jobs are loaded that have its keys; see run_or_load."""

    def __init__(self, desk: Desk, caller: Caller, request_id: int, steps: Callable[[], Iterator[None]], count: int,
                 submission_id: bytes | None) -> None:
        self._desk = desk
        self._caller = caller
        self._request_id = request_id
        self._steps = steps
        self._count = count
        self._submission_id = submission_id
        self._kept: list[int] = []
        self._rounds = 0

    def load(self, ids: list[int]) -> None:
        """Load these, and go on from there. Raises BusyError: it is over."""
        self._rounds += 1
        try:
            if self._rounds > MAX_ROUNDS:
                raise BusyError("the jobs that have its unique keys change too fast", retry_after_s=0.1)
            self._desk.load(ids, self._took, self._go_on)
        except BusyError:
            self._over()
            raise

    def _took(self, jobs: dict[int, Job | Lost]) -> None:
        # Some may have come into memory since they were asked for: then it is those that move.
        self._desk.batches.keep({job_id: self._desk.in_memory(job_id) or job for job_id, job in jobs.items()})
        self._kept += jobs

    def _go_on(self) -> None:
        if self._count > STEP_ITEMS:  # it takes several steps, and we are inside the pump, which must not wait
            self._desk.spawn_unit(self._store_late)
        else:
            self._store_late()

    def _store_late(self) -> None:
        later(self._desk, self._caller, self._request_id, self._store)

    def _store(self) -> None:
        try:
            self._desk.continue_unit(self._steps())
        except NotLoaded as exc:
            self.load(exc.ids)
            return
        except BaseException:
            self._over()
            raise
        self._over()

    def _over(self) -> None:
        self._desk.batches.release(self._kept)
        _end(self._desk, self._submission_id)
