"""The verbs about schedules: check, one call, answer. What a schedule does is in schedules.py and schedule_runs.py."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.batches import Peer
from greenroom.desk import Desk
from greenroom.protocol import Request
from greenroom.schedules import Schedule


def _schedules(desk: Desk, caller: Peer, request: Request) -> None:
    table, fields = desk.schedules.table, request.fields
    if fields["name"] is not None:
        found, following = [table.get(fields["name"])], None
    else:
        found, following = table.page(fields["after"], fields["limit"])
    views = [_view(desk, schedule, with_payload=fields["name"] is not None) for schedule in found]
    desk.breathe_if_due()
    desk.batches.hold(caller, request.id, {"schedules": views, "next": following, "total": len(table)})


def _view(desk: Desk, schedule: Schedule, *, with_payload: bool = False) -> dict[str, object]:
    desk.breathe_if_due()
    return schedule.view(schedule.next_runs(desk.breathe_if_due), with_payload=with_payload)


def _put(desk: Desk, caller: Peer, request: Request) -> None:
    desk.schedules.check_open()
    schedule, is_new = desk.schedules.table.put(request.fields["name"], request.fields, desk.wall())
    _answer(desk, caller, request, schedule, created=is_new)


def _pause(desk: Desk, caller: Peer, request: Request) -> None:
    desk.schedules.check_open()
    _answer(desk, caller, request, desk.schedules.table.pause(request.fields["name"], request.fields["reason"], desk.wall()))


def _resume(desk: Desk, caller: Peer, request: Request) -> None:
    desk.schedules.check_open()
    _answer(desk, caller, request, desk.schedules.table.resume(request.fields["name"], desk.wall()))


def _answer(desk: Desk, caller: Peer, request: Request, schedule: Schedule, **more: bool) -> None:
    """Have a changed schedule written, and answer with it as it is then."""
    desk.schedules.changed(schedule)
    desk.batches.hold(caller, request.id, {"schedule": _view(desk, schedule), **more})


def _delete(desk: Desk, caller: Peer, request: Request) -> None:
    desk.schedules.table.delete(request.fields["name"])
    desk.batches.record_schedule(request.fields["name"], None)
    desk.batches.hold(caller, request.id, {})


def _run(desk: Desk, caller: Peer, request: Request) -> None:
    job_id = desk.schedules.run_now(desk.schedules.table.sound(request.fields["name"]))
    desk.batches.hold(caller, request.id, {"job": job_id})


HANDLERS: dict[str, Callable[[Desk, Peer, Request], None]] = {
    "schedules": _schedules, "schedule_put": _put, "schedule_delete": _delete, "schedule_pause": _pause, "schedule_resume": _resume,
    "schedule_run": _run,
}
