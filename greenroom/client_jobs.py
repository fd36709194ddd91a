"""Jobs as a caller gives them become jobs as the wire has them, checked before anything is sent.

Must not know connections, frames or handles.
"""

from __future__ import annotations

from datetime import datetime

from greenroom.errors import GreenroomError, InvalidError
from greenroom.job import parse_new_job
from greenroom.protocol import pack_value
from greenroom.submit_options import is_option, kept_options, merge, option_names, wire_options

#: What a job given as a dict may have.
_KNOWN = frozenset(["task", "payload", "raw", *option_names()])


def wire_job(given: dict | tuple, defaults: dict | None = None) -> dict | GreenroomError:
    """Turn what the caller gave into a job as the wire has it; or return the error that refuses it.

    Args:
        given: a `(task, payload)` tuple, or a dict with task, payload, raw and options.
        defaults: options, as the wire has them, for a job that does not say them itself.
    """
    raw = False
    try:
        if isinstance(given, tuple) and len(given) == 2:
            job = {**defaults, "task": given[0]} if defaults else {"task": given[0]}
            payload = given[1]
        else:
            own, payload, raw = _taken_apart(given)
            job = merge(defaults, own) if defaults else wire_options(own)
        if raw:
            job["encoding"] = "raw"
            job["payload"] = b"" if payload is None else payload
        elif payload is not None:
            job["payload"] = pack_payload(payload)
        parse_new_job(job, 2**32)
    except (ValueError, OverflowError) as exc:
        return InvalidError(f"payload: {exc}", field="payload")
    except GreenroomError as exc:
        return exc
    return job


def wire_copy(view: dict, payload: object, raw: bool, options: dict) -> dict | GreenroomError:
    """Return a copy of a job that was shown with its payload, as the wire has it; or the error that refuses it.

    Args:
        payload: None: the same. options: what is to be different; None takes an option away.

    Raises:
        ConflictError: its payload is not there any more.
    """
    job = wire_job({**options, "task": view["task"], "payload": payload, "raw": raw}, kept_options(view, options))
    if payload is None and not isinstance(job, GreenroomError):
        job.update(payload=view["payload"], encoding=view["encoding"])
    return job


def wire_change(priority: int | None, queue: str | None, delay: float | None, run_at: float | datetime | None) -> dict[str, object]:
    """Return what shall change of waiting jobs as the wire has it; the broker checks it."""
    given = {"priority": priority, "queue": queue, "delay": delay, "run_at": run_at.timestamp() if isinstance(run_at, datetime) else run_at}
    return {name: value for name, value in given.items() if value is not None}


def _taken_apart(given: object) -> tuple[dict, object, object]:
    """Return a job's task and options, its payload and whether that is raw. Raises InvalidError."""
    if not isinstance(given, dict) or "task" not in given:
        raise InvalidError("a job is a (task, payload) tuple or a dict with the key task", field="jobs")
    for name in given:
        if name not in _KNOWN and not is_option(name):
            raise InvalidError(f"a job has no option {str(name)!r}; it has {', '.join(sorted(_KNOWN))}", field=str(name)[:128])
    own = dict(given)
    return own, own.pop("payload", None), own.pop("raw", False)


def pack_payload(payload: object) -> bytes:
    """Pack a payload; integers that msgpack cannot hold become decimal strings. Raises ValueError with a sentence."""
    try:
        return pack_value(payload)
    except ValueError:
        return pack_value(_shrink(payload, 0))


def _shrink(value: object, depth: int) -> object:
    if depth > 100:
        return value  # the packer says what is wrong
    if type(value) is int and not -2**63 <= value < 2**64:
        return str(value)
    if isinstance(value, dict):
        return {key: _shrink(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shrink(item, depth + 1) for item in value]
    return value
