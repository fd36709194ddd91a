"""Job options as Python callers write them: which names there are, and what they become on the wire.

Everything comes from the table in greenroom/job.py: an option that is added there can be given here. Must not know clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from greenroom.errors import ConflictError, InvalidError
from greenroom.job import OPTIONS

#: Fields of a job that are no options to a Python caller: they are arguments of their own.
_ARGUMENTS = ("task", "payload", "encoding")

#: Of these a caller means the one that was said last.
_EITHER = {"delay": "run_at", "run_at": "delay", "attempts": "retry_for", "retry_for": "attempts"}

#: These say nothing without a `unique_key`, so whoever takes that from a copy takes them too.
_OF_THE_KEY = ("unique_for", "unique_mode", "on_duplicate", "debounce_max")


def option_names() -> list[str]:
    """Return the names of all options, in the order of the table; `retries` stands after `attempts`."""
    names: list[str] = []
    for name in OPTIONS:
        if name not in _ARGUMENTS:
            names.append(name)
            if name == "attempts":
                names.append("retries")
    return names


def is_option(name: object) -> bool:
    """Tell whether a caller may give this option."""
    return (name in OPTIONS and name not in _ARGUMENTS) or (name == "retries" and "attempts" in OPTIONS)


def check_names(names: Iterable[str], where: str) -> None:
    """Raise TypeError, as Python does for a keyword that a function does not have, if a name is no option."""
    for name in names:
        if not is_option(name):
            raise TypeError(f"{where} has no option {name!r}; it has {', '.join(option_names())}")


def merge(options: Mapping[str, object], newer: Mapping[str, object]) -> dict[str, object]:
    """Return options, as they go to the wire, with newer ones laid over them; a newer None takes an option away.

    A newer `delay` replaces a `run_at`, `attempts` a `retry_for`, and the other way round. Raises InvalidError as wire_options does.
    """
    added = wire_options(newer)
    merged = {name: value for name, value in options.items() if _EITHER.get(name) not in added} | added
    for name, value in newer.items():
        wire_name = "attempts" if name == "retries" else name
        if value is None and wire_name not in added:
            merged.pop(wire_name, None)
    return merged


def wire_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return options as the wire has them: without those that are None, times as seconds since 1970, retries as attempts.

    Raises:
        InvalidError: a value that can't be translated; `field` names it. Ranges are checked by job.parse_new_job.
    """
    made: dict[str, object] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name == "retries":
            if options.get("attempts") is not None:
                raise InvalidError("retries and attempts exclude each other: retries=4 means attempts=5", field="retries")
            if type(value) is not int or not 0 <= value <= 999:
                raise InvalidError("retries must be an integer from 0 to 999", field="retries")
            made["attempts"] = value + 1
        elif isinstance(value, datetime) and name in OPTIONS and OPTIONS[name].kind == "time":
            try:
                made[name] = value.timestamp()
            except (ValueError, OverflowError) as exc:
                raise InvalidError(f"{name} must be a time that this machine can express ({exc})", field=name) from None
        else:
            made[name] = value
    return made


def kept_options(view: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return the options that a copy of a job has of it, as the wire has them; `changes` are then laid over them (merge).

    Args:
        view: the job as `get` shows it with its payload. When it was to run is not kept.

    Raises:
        ConflictError: its payload is not there any more, so it can't be copied.
    """
    if view.get("payload") is None:
        raise ConflictError(f"job {view['id']} has no payload that could be copied")
    kept = {"queue": view["queue"], "priority": view["priority"], **view.get("options", {})}
    if changes.get("unique_key", "") is None:
        kept = {name: value for name, value in kept.items() if name not in _OF_THE_KEY}
    return kept
