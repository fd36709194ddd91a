"""The verbs by which running jobs tell of themselves, and by which that is read: report and logs. Checks, one call of the engine, answer."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.desk import Desk
from greenroom.engine import Engine
from greenroom.errors import BusyError, FullError, GreenroomError, StoreFullError
from greenroom.job import FINISHED_STATES, Job
from greenroom.protocol import DEFAULT_LIMITS, Request, error_fields, parse_report
from greenroom.records import LogLine, Lost, ReportItem
from greenroom.stores import Reader
from greenroom.verb_parts import STEP_ITEMS, Caller
from greenroom.waits import LinesWait, lines_answer

#: Log lines taken between two looks at the time: half a millisecond.
STEP_LINES = 200
#: What a log line takes beside its text while it waits for the disk, roughly.
LINE_COSTS = 200
#: So often lines that have just come are looked for before `logs` is answered without any.
LINE_LOOKS = 4


def _report(desk: Desk, caller: Caller, request: Request) -> None:
    desk.engine.saw(caller.session, desk.now())
    if desk.batches.takes_no_lines:
        raise BusyError("too much waits to be written", retry_after_s=0.5)
    outcomes: list[object] = []
    items: list[ReportItem] = []
    places: list[int] = []
    lines = 0

    def apply() -> None:
        for place, outcome in zip(places, desk.engine.report(items, desk.now())):
            outcomes[place] = error_fields(outcome) if isinstance(outcome, GreenroomError) else outcome
        desk.batches.note_payloads(sum(len(text) + LINE_COSTS for item in items for _, text in item.lines))
        desk.batches.changes += 1  # progress has no row, and the page shows it all the same
        desk.after_call()
        items.clear()
        places.clear()

    for item in request.fields["leases"]:
        try:
            checked = parse_report(item)
            if checked.lines and desk.store_full:
                raise StoreFullError("the disk of the broker is nearly full", retry_after_s=10.0)
            items.append(checked)
            places.append(len(outcomes))
            lines += len(checked.lines)
            outcomes.append(None)
        except GreenroomError as exc:
            outcomes.append(error_fields(exc))
        if lines >= STEP_LINES or len(outcomes) % STEP_ITEMS == 0:
            apply()
            lines = 0
            desk.breathe_if_due()
    apply()
    desk.batches.hold(caller, request.id, {"outcomes": outcomes})


def _logs(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    job_id, after, limit, wait_s = fields["job"], fields["after"], fields["limit"], fields["wait"]
    if wait_s and len(caller.open_waits) >= DEFAULT_LIMITS.waits:
        raise FullError(f"{len(caller.open_waits)} waits are open, the cap", retry_after_s=1.0)
    deadline = desk.now() + wait_s
    for _ in range(LINE_LOOKS):
        is_over, last = _lines_known(desk, job_id)
        if last is None or last > after:
            desk.wait_for_commit(5.0)
            found, lines = desk.read(lambda reader: _read_lines(reader, job_id, after, limit, with_job=last is None))
            if found is not None:
                is_over = Engine.check_there(job_id, found).state in FINISHED_STATES
            if lines:
                is_over = is_over and len(lines) < limit
                desk.batches.hold(caller, request.id, lines_answer(lines, after, is_finished=is_over))
                return
            after = max(after, last or 0)  # what is damaged there is left out
        if is_over or not wait_s:
            break
        is_over, last = _lines_known(desk, job_id)  # others had their turn meanwhile; from here on nobody has
        if not is_over and (last is None or last <= after):
            desk.waits.add(LinesWait(caller, request.id, job_id, after, limit), deadline)
            desk.replan()
            return
    desk.batches.hold(caller, request.id, lines_answer([], after, is_finished=is_over))


def _lines_known(desk: Desk, job_id: int) -> tuple[bool, int | None]:
    """Return whether memory knows that the job is finished, and the number of its latest line, None: it does not know."""
    job = desk.in_memory(job_id)
    if job is None:
        return False, None
    return job.state in FINISHED_STATES, 0 if job.report is None else job.report.last


def _read_lines(reader: Reader, job_id: int, after: int, limit: int, *, with_job: bool) -> tuple[Job | Lost | None, list[LogLine]]:
    found = reader.jobs([job_id])[job_id] if with_job else None  # first: of a finished job no line comes any more
    return found, reader.lines(job_id, after, limit)


#: Verb -> handler.
HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {"report": _report, "logs": _logs}
