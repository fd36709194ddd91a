"""The shapes of the REST API: protocol views to JSON, JSON bodies to values. Pure; must not know HTTP, routes or greenlets.

Whatever a task or a producer wrote is hostile here: any depth, any size, any text. What leaves is bounded, plain JSON data.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re

from greenroom.job import STATE_BY_LABEL
from greenroom.protocol import pack_value, unpack_value
from greenroom.webui.answers import Refused

SAFE_INTEGER = 2**53 - 1  # what every JSON reader holds exactly
MAX_JSON_DEPTH = 64  # of a request body
MAX_JSON_VALUES = 16_000  # in a request body, as in a frame of the protocol: more would hold up everybody while it is read
MAX_SHOWN_DEPTH = 32
ROW_BYTES, ROW_VALUES = 512, 64  # of one payload or result in a list
JOB_BYTES, JOB_VALUES = 65536, 2000  # of one payload or result in a job's own answer
CUT_BYTES = 2048  # shown of what is too large to decode
MORE = "…"

# Possessive and with an optional end, so that it takes linear time on anything.
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def stats(reply: dict) -> dict:
    """Flatten the reply of the verb `stats` for the cards of the page."""
    states = reply["states"]
    counts = {state: states.get(state, 0) for state in STATE_BY_LABEL}
    shown = {name: value for name, value in reply.items() if name != "id"}
    return {"queue_size": counts["queued"] + counts["scheduled"], **counts, **shown}


def job_row(view: dict) -> dict:
    """Return a job for a list: short previews, an error without its traceback."""
    row = _job(view, ROW_BYTES, ROW_VALUES)
    if row.get("error"):
        row["error"] = {"name": row["error"].get("name"), "message": (row["error"].get("message") or "")[:ROW_BYTES]}
    return row


def job_detail(view: dict) -> dict:
    """Return a job with payload and result in full, up to JOB_BYTES each, and the whole error."""
    return _job(view, JOB_BYTES, JOB_VALUES)


def _job(view: dict, max_bytes: int, max_values: int) -> dict:
    job = dict(view)
    job["payload"] = _show(view.get("payload"), view.get("encoding"), max_bytes, max_values)
    job["result"] = _show(view.get("result"), view.get("result_encoding"), max_bytes, max_values)
    return job


def _show(data: bytes | None, encoding: str | None, max_bytes: int, max_values: int) -> dict | None:
    """Return `{"preview": value, "cut"?: true, "inexact"?: true}`, `{"text": str, "cut"?: true}` or None for left out."""
    if data is None:
        return None
    if encoding == "raw" or len(data) > max_bytes:
        return _show_text(data, min(max_bytes, CUT_BYTES) if len(data) > max_bytes else max_bytes)
    try:
        value = unpack_value(data)
    except ValueError:
        return _show_text(data, max_bytes)
    shown = _Shown(max_values)
    preview = shown.plain(value, 0)
    return {"preview": preview, **({"cut": True} if shown.cut else {}), **({"inexact": True} if shown.inexact else {})}


def _show_text(data: bytes, max_bytes: int) -> dict:
    text = data[:max_bytes].decode("utf-8", "backslashreplace")
    return {"text": text, "cut": True} if len(data) > max_bytes else {"text": text}


class _Shown:
    """Turns one decoded value into JSON data within a budget of values.

    Attributes:
        cut: something was left out. inexact: something is shown as a text that is none, so a submit of what is shown is another payload.
    """

    def __init__(self, max_values: int) -> None:
        self._left = max_values
        self.cut = False
        self.inexact = False

    def plain(self, value: object, depth: int) -> object:
        """Return a value that json.dumps takes and that every JSON reader holds exactly."""
        self._left -= 1
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return value if abs(value) <= SAFE_INTEGER else self._as_text(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else self._as_text(value)
        if isinstance(value, bytes):
            return {"$base64": base64.b64encode(value).decode("ascii")}
        if not isinstance(value, (dict, list)):
            return self._as_text(value)  # msgpack's extension types
        if depth >= MAX_SHOWN_DEPTH:
            self.cut = True
            return MORE
        return self._map(value, depth + 1) if isinstance(value, dict) else self._list(value, depth + 1)

    def _list(self, values: list, depth: int) -> list:
        shown = []
        for value in values:
            if self._left <= 0:
                self.cut = True
                shown.append(MORE)
                break
            shown.append(self.plain(value, depth))
        return shown

    def _map(self, values: dict, depth: int) -> dict:
        shown = {}
        for key, value in values.items():
            if self._left <= 0:
                self.cut = True
                shown[MORE] = MORE
                break
            shown[key if isinstance(key, str) else self._as_text(key)] = self.plain(value, depth)
        return shown

    def _as_text(self, value: object) -> str:
        self.inexact = True
        return str(value)


def load_json(body: bytes) -> object:
    """Decode a request body strictly.

    Raises Refused: BAD_JSON for anything that two JSON readers could understand differently (duplicate keys, NaN, bad UTF-8,
    numbers beyond a double), also for hundreds of levels; TOO_LARGE for more than MAX_JSON_VALUES values.
    """
    if _count_values(body) > MAX_JSON_VALUES:
        raise Refused("TOO_LARGE", f"the body has more than {MAX_JSON_VALUES:,} values; submit such a payload over the protocol")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise Refused("BAD_JSON", "the body has too many levels") from None
    except UnicodeDecodeError:
        raise Refused("BAD_JSON", "the body is not UTF-8") from None
    except json.JSONDecodeError as exc:
        raise Refused("BAD_JSON", f"the body is not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}") from None
    except ValueError as exc:
        raise Refused("BAD_JSON", f"the body is not acceptable JSON: {exc}") from None
    return value


def _count_values(body: bytes) -> int:
    marks = sum(map(body.count, (b",", b"[", b"{")))
    if marks <= MAX_JSON_VALUES:
        return marks
    return sum(map(_JSON_STRING.sub(b"", body).count, (b",", b"[", b"{")))


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {json.dumps(name[:100])} is there twice")
        found[name] = value
    return found


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond a double")
    return number


def payload_value(value: object, depth: int = 0) -> object:
    """Turn the payload of a body into the value that msgpack carries: `{"$base64": "…"}` becomes bytes.

    Raises Refused (INVALID, field payload) for integers outside 64 bits, bad base64 and too many levels.
    """
    if isinstance(value, int) and not -2**63 <= value < 2**64:
        raise Refused("INVALID", "payload has an integer outside 64 bits; send it as a decimal string", field="payload")
    if not isinstance(value, (dict, list)):
        return value
    if depth >= MAX_JSON_DEPTH:
        raise Refused("INVALID", f"payload has more than {MAX_JSON_DEPTH} levels", field="payload")
    if isinstance(value, list):
        return [payload_value(item, depth + 1) for item in value]
    if value.keys() == {"$base64"}:
        return _from_base64(value["$base64"])
    return {key: payload_value(item, depth + 1) for key, item in value.items()}


def job_fields(job: object, allowed: tuple[str, ...]) -> dict:
    """Turn a job of a body into one of a submit: unknown fields are refused by name, the payload is packed. Raises Refused."""
    if not isinstance(job, dict):
        raise Refused("INVALID", "job must be a map", field="job")
    for name in job:
        if name not in allowed:
            raise Refused("INVALID", f"there is no field {name[:100]!r} here", field=name[:100])
    if "payload" not in job:
        return job
    try:
        return {**job, "payload": pack_value(payload_value(job["payload"]))}
    except ValueError as exc:
        raise Refused("INVALID", f"payload is {exc}", field="payload") from None


def schedule(view: dict) -> dict:
    """Return a schedule with its payload in full, up to JOB_BYTES."""
    return {**view, "payload": _show(view.get("payload"), (view.get("job") or {}).get("encoding"), JOB_BYTES, JOB_VALUES)}


def _from_base64(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else _not_base64()
    except (binascii.Error, ValueError):
        return _not_base64()


def _not_base64() -> bytes:
    raise Refused("INVALID", "$base64 must be a string of standard base64", field="payload")
