"""The shape of what a broker answers, for those who ask: which fields a reply must have for us to use it. No IO.

A broker is trusted with jobs, not with our process: an answer that is not of this protocol must be an error of ours, not a KeyError in
a user's program. What a reply means is known to those who asked.
"""

from __future__ import annotations

from collections.abc import Callable

from greenroom.errors import ProtocolError
from greenroom.job import NUMBER_LIMIT, is_number
from greenroom.protocol import check_lease

Check = Callable[[object], bool]


def check_reply(verb: str, asked: int, reply: dict) -> dict:
    """Return a reply that has its verb's shape; raises ProtocolError (the broker's fault).

    Args:
        asked: items in the list of the request, 0 if it had none: outcomes and views come one for each.
    """
    for name, check in REPLIES.get(verb, {}).items():
        value = reply.get(name)
        if not check(value):
            raise ProtocolError(f"the answer to {verb} has no usable {name}")
        if verb in _ONE_EACH and len(value) != asked:
            raise ProtocolError(f"the answer to {verb} has {len(value)} {name}, not {asked}")
    return reply


def check_notice(notice: dict) -> dict:
    """Return a notice that can be used; raises ProtocolError. One that is not known is for whoever gets it to ignore."""
    kind = notice["notice"]
    if not isinstance(kind, str) or not all(check(notice.get(name)) for name, check in NOTICES.get(kind, {}).items()):
        raise ProtocolError("a notice that is none")
    return notice


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _left_out_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 < value < NUMBER_LIMIT


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_map(value: object) -> bool:
    return isinstance(value, dict)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_schedule(value: object) -> bool:
    return (isinstance(value, dict) and _is_text(value.get("name")) and isinstance(value.get("job"), dict | None)
            and isinstance(value.get("payload"), bytes | None))


def _is_outcome(value: object) -> bool:
    return isinstance(value, (str, dict))


def _is_accepted(value: object) -> bool:
    return _is_number(value) or isinstance(value, dict)


def _is_view(value: object) -> bool:
    if not isinstance(value, dict) or not _is_number(value.get("id")):
        return False
    if "state" not in value:
        return isinstance(value.get("error"), dict)
    return (isinstance(value["state"], str) and isinstance(value.get("error"), dict | None)
            and isinstance(value.get("result"), bytes | None) and isinstance(value.get("payload"), bytes | None))


def _is_group(value: object) -> bool:
    return (isinstance(value, dict) and all(_is_text(value.get(name)) for name in ("fingerprint", "task", "error", "place", "message"))
            and all(_is_number(value.get(name)) for name in ("count", "newest")) and _is_size(value.get("workers_total"))
            and isinstance(value.get("workers"), list) and isinstance(value.get("jobs"), list))


def _is_scanned(value: object) -> bool:
    return isinstance(value, dict) and _is_size(value.get("jobs"))


def _is_delivery(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 8:
        return False
    job, fence, task, payload, raw, queue, attempt, priority, *more = value
    return (_is_number(job) and _is_number(fence) and isinstance(task, str) and isinstance(payload, bytes) and type(raw) is bool
            and isinstance(queue, str) and type(attempt) is int and type(priority) is int and (not more or _is_size(more[0])))


def _is_line(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 4:
        return False
    seq, at, attempt, text = value[:4]
    return _is_number(seq) and is_number(at) and type(attempt) is int and isinstance(text, str)


def _is_lease(value: object) -> bool:
    try:
        check_lease(value)
    except ValueError:
        return False
    return True


_are_leases = _each(_is_lease)


def _is_event(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and _is_number(value.get("seq"))


#: Notice -> field -> whether its value can be used.
NOTICES: dict[str, dict[str, Check]] = {
    "cancel": {"leases": _are_leases},
    "events": {"events": _each(_is_event), "position": _is_size, "gap": lambda value: type(value) is bool, "oldest": _is_size},
}


#: Verb -> field -> whether its value can be used.
REPLIES: dict[str, dict[str, Check]] = {
    "hello": {"leases": _left_out_or(_each(_is_outcome)), "limits": _left_out_or(_is_map), "heartbeat_s": _left_out_or(is_number),
              "idle_s": _left_out_or(is_number)},
    "submit": {"jobs": _each(_is_accepted)},
    "cancel": {"outcomes": _each(_is_outcome)},
    "retry": {"outcomes": _each(_is_outcome)},
    "runs": {"runs": _each(_is_map)},
    "logs": {"lines": _each(_is_line), "next": _is_size, "finished": lambda value: type(value) is bool},
    "get": {"jobs": _each(_is_view)},
    "wait": {"jobs": _each(_is_view)},
    "reserve": {"jobs": _each(_is_delivery)},
    "settle": {"outcomes": _each(_is_outcome)},
    "heartbeat": {"lost": _are_leases, "cancel": _are_leases},
    "report": {"outcomes": _each(_is_outcome)},
    "extend": {"outcomes": _each(_is_outcome)},
    "jobs": {"jobs": _each(_is_view), "next": _left_out_or(_is_number)},
    "failures": {"groups": _each(_is_group), "groups_total": _is_size, "scanned": _is_scanned, "next": _left_out_or(_is_number)},
    "queues": {"queues": _each(_is_map)},
    "workers": {"workers": _each(_is_map)},
    "stats": {},
    "backup": {"ready": _left_out_or(lambda value: type(value) is bool), "made": _left_out_or(_is_size),
               "total": _left_out_or(_is_size), "sha256": _left_out_or(_is_bytes), "data": _left_out_or(_is_bytes)},
    "pause": {"pause": _is_map},
    "resume": {"resumed": lambda value: type(value) is bool},
    "limit": {"limit": _is_map},
    "unlimit": {"removed": lambda value: type(value) is bool},
    "limits": {"limits": _each(_is_map)},
    "pauses": {"pauses": _each(_is_map)},
    "change": {"outcomes": _each(_is_outcome)},
    "purge": {"purged": _is_size, "next": _left_out_or(_is_number)},
    "delete": {"outcomes": _each(_is_outcome)},
    "bulk": {"matched": _is_size, "done": _is_size, "refused": _is_size, "why": _left_out_or(_is_text), "next": _left_out_or(_is_number),
             "exact": lambda value: type(value) is bool, "scanned_to": _is_number},
    "explain": {"gates": _each(_is_map)},
    "schedules": {"schedules": _each(_is_schedule), "next": _left_out_or(_is_text)},
    "schedule_put": {"schedule": _is_schedule},
    "schedule_delete": {},
    "schedule_pause": {"schedule": _is_schedule},
    "schedule_resume": {"schedule": _is_schedule},
    "schedule_run": {"job": _is_number},
    "ping": {},
    "subscribe": {"boot": _is_text, "position": _is_size, "gap": lambda value: type(value) is bool, "oldest": _is_size},
    "bye": {},
}
_ONE_EACH = frozenset({"submit", "cancel", "retry", "delete", "change", "get", "settle", "extend", "report"})
