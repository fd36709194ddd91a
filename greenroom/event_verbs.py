"""The verb for those who want to be told what happens: subscribe. Checks, one call, answer; what is told then is in subscriptions.py."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.desk import Desk
from greenroom.errors import InvalidError
from greenroom.protocol import Request
from greenroom.subscriptions import EventFilter
from greenroom.verb_parts import Caller


def _subscribe(desk: Desk, caller: Caller, request: Request) -> None:
    fields = request.fields
    kinds, boot, after = fields["kinds"], fields["boot"], fields["after"]
    if (boot is None) != (after is None):
        raise InvalidError("boot and after name a position together", field="after" if after is None else "boot")
    if kinds is not None and not kinds:
        answer = desk.subscriptions.close(caller, desk.now())
    else:
        wanted = EventFilter(fields["queue"], fields["task"], None if kinds is None else frozenset(kinds))
        answer = desk.subscriptions.open(caller, wanted, boot, after)
    caller.answer(request.id, answer)  # it tells of nothing but what is on disk, and must come before the events


#: Verb -> handler.
HANDLERS: dict[str, Callable[[Desk, Caller, Request], None]] = {"subscribe": _subscribe}
