"""The form in which people write a filter: `state:failed task:mail.* error:TimeoutError finished>-2h "no answer"`.

Pure: what a text means depends on `now` alone. What the conditions mean, and their checks, are in filters.py.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from greenroom.errors import InvalidError
from greenroom.filters import parse_filter

#: Characters of a whole filter.
MAX_CHARACTERS = 1000

_PART = re.compile(r"""(?:(?P<key>[a-z]+)(?P<sign>[:<>]))?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]*))(?=\s|$)""")
_SPAN = re.compile(r"-(\d{1,9}(?:\.\d{1,6})?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NAMES = ("queue", "task", "worker", "error", "fingerprint")
_TIMES = ("created", "finished")


def filter_from_text(text: str, now: float) -> dict[str, object]:
    """Turn what a person wrote into a filter as the wire has it, checked.

    Conditions are `key:value` (state, several with commas between; queue, task, worker, error, fingerprint, text; id, one or `10-20`) and
    `created`, `finished` and `id` with > or <. Times are seconds since 1970, ISO (without a zone: UTC) or `-2h` (s, m, h, d): so long
    before now. Words without a key are looked for as one text; quotes keep blanks and signs together, a backslash in them any character.

    Raises InvalidError; `field` names the condition.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidError(f"a filter has at most {MAX_CHARACTERS} characters", field="filter")
    found: dict[str, object] = {}
    words: list[str] = []
    rest = text.strip()
    while rest:
        part = _PART.match(rest)
        if part is None:
            raise InvalidError(f"the filter cannot be read from {rest[:40]!r} on", field="filter")
        rest = rest[part.end():].lstrip()
        value = part["bare"] if part["quoted"] is None else re.sub(r"\\(.)", r"\1", part["quoted"])
        if part["key"] is None:
            words.append(value)
            continue
        for name, meant in _condition(part["key"], part["sign"], value, now).items():
            if name in found:
                raise InvalidError(f"{name} is there twice", field=name)
            found[name] = meant
    if words:
        if "text" in found:
            raise InvalidError("text is there twice", field="text")
        found["text"] = " ".join(words)
    parse_filter(found)
    return found


def _condition(key: str, sign: str, value: str, now: float) -> dict[str, object]:
    if key in _TIMES and sign != ":":
        return {f"{key}_{'after' if sign == '>' else 'before'}": _time(key, value, now)}
    if key == "id":
        return _ids(sign, value)
    if sign == ":" and key == "state":
        return {"state": value.split(",")}
    if sign == ":" and key in (*_NAMES, "text"):
        return {key: value}
    if key in _TIMES:
        raise InvalidError(f"{key} is compared with > or <, as in {key}>-2h", field=key)
    known = ", ".join((*(f"{name}:" for name in ("state", *_NAMES, "text", "id")), *(f"{name}> {name}<" for name in (*_TIMES, "id"))))
    raise InvalidError(f"a filter has no condition {key + sign!r}; it has {known}", field=key)


def _ids(sign: str, value: str) -> dict[str, object]:
    part = re.fullmatch(r"(\d{1,16})(?:-(\d{1,16}))?", value, re.ASCII)
    if part is None or (sign != ":" and part[2] is not None):
        raise InvalidError("id must be a number, or two as in id:10-20", field="id")
    first = int(part[1])
    if sign == ">":
        return {"id_from": first + 1}
    if sign == "<":
        if first < 2:
            raise InvalidError("no id is below 1", field="id")
        return {"id_to": first - 1}
    return {"id_from": first, "id_to": first if part[2] is None else int(part[2])}


def _time(key: str, value: str, now: float) -> float:
    span = _SPAN.fullmatch(value)
    if span is not None:
        return max(0.0, now - float(span[1]) * _SECONDS[span[2]])
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value, re.ASCII):
        return float(value)
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidError(f"{key} must be a time: -2h, 2030-01-31T09:00 or seconds since 1970", field=key) from None
