"""Values as text for people and programs: tables for a terminal, JSON without loss. Must not know the broker or its verbs.

What comes from others (names, results, errors) cannot move the cursor or colour the terminal: control characters are escaped.
"""

from __future__ import annotations

import base64
import json
import math
import unicodedata
from collections.abc import Sequence
from datetime import datetime

#: JSON readers that keep numbers as doubles hold integers exactly up to here; larger ones are written as text.
EXACT_LIMIT = 2**53

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\x1b"}


def to_json(value: object) -> object:
    """Turn a decoded value into one that JSON can hold: bytes as {"$base64": text}, integers beyond 2^53 and the floats that
    JSON lacks as text, keys as text, timestamps of msgpack and other objects as text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -EXACT_LIMIT <= value <= EXACT_LIMIT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$base64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {key if isinstance(key, str) else _key_text(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value)


def from_json(value: object) -> object:
    """Turn {"$base64": text} back into bytes, at any depth. Raises ValueError with a sentence."""
    if isinstance(value, dict):
        if value.keys() == {"$base64"}:
            try:
                return base64.b64decode(value["$base64"], validate=True)
            except (TypeError, ValueError):
                raise ValueError("what follows $base64 is not base64") from None
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def dump(value: object, *, indent: int | None = None) -> str:
    """Return JSON text of any decoded value; lone surrogates and control characters are escaped."""
    text = json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isascii() and "\x7f" not in text:
        return text
    # JSON escapes control characters below 32 only; terminals also obey others. The newlines are those of the indentation.
    return "".join(char if char == "\n" or not _is_unsafe(char) else "".join(f"\\u{unit:04x}" for unit in _units(char))
                   for char in text)


def escape(text: str) -> str:
    """Return the text on one line with everything escaped that a terminal would obey instead of show."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_ESCAPES.get(char) or (char if not _is_unsafe(char) else char.encode("unicode_escape").decode())
                   for char in text)


def shown(value: object, limit: int = 60) -> str:
    """Return one short line for any value: text as it is, the rest as JSON, cut with an ellipsis."""
    if value is None:
        return ""
    text = escape(value) if isinstance(value, str) else dump(value)
    return text if len(text) <= limit else text[:limit - 1] + "…"


def moment(at: float | None) -> str:
    """Return a time (Unix seconds) in the local zone, empty for None."""
    return "" if at is None else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def clock_time(at: float) -> str:
    """Return the time of day (of Unix seconds) in the local zone, to the millisecond."""
    try:
        when = datetime.fromtimestamp(at)
    except (ValueError, OverflowError, OSError):  # at the end of the year 9999, say, east of Greenwich
        return str(at)
    return f"{when:%H:%M:%S}.{when.microsecond // 1000:03d}"


def short_moment(at: float | None, now: float) -> str:
    """Return a time for a column of a list, in the local zone: of today the time alone, else date, hour and minute; empty for None."""
    if at is None:
        return ""
    when, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now).date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M")


def render(headings: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None,
           styles: dict[str, str] | None = None) -> str:
    """Return a table, numbers to the right, the rest to the left.

    Args:
        rows: cells of any type, shown as `shown` does.
        width: characters a line may have, the last column is cut to fit; None: as long as needed.
        styles: cell text -> SGR code (such as "32") with which it is coloured; None: no colours.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    is_number = [bool(rows) and all(isinstance(row[place], (int, float)) or row[place] is None for row in rows)
                 for place in range(len(headings))]
    widths = [max([len(heading)] + [_columns(row[place]) for row in cells]) for place, heading in enumerate(headings)]
    lines = [_line(list(headings), widths, is_number, width, None)]
    lines += [_line(row, widths, is_number, width, styles) for row in cells]
    return "\n".join(lines)


def _line(cells: list[str], widths: list[int], is_number: list[bool], width: int | None, styles: dict[str, str] | None) -> str:
    used, parts = 0, []
    for cell, room, to_right in zip(cells, widths, is_number):
        if width is not None and used + _columns(cell) > width:
            cell = _cut(cell, max(1, width - used))
        padding = " " * max(0, room - _columns(cell))
        code = styles.get(cell) if styles else None
        text = f"\x1b[{code}m{cell}\x1b[0m" if code else cell
        parts.append(padding + text if to_right else text + padding)
        used += room + 2
        if width is not None and used >= width:
            break
    return "  ".join(parts).rstrip()


def _cut(text: str, columns: int) -> str:
    while _columns(text) > columns - 1:
        text = text[:-1]
    return text + "…" if columns > 0 else ""


def _columns(text: str) -> int:
    """Return how many columns a text takes: wide characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _is_unsafe(char: str) -> bool:
    # Cc: control; Cf: formatting, with it the marks that turn the direction of text around; Cs: lone surrogates.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _units(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[place:place + 2], "big") for place in range(0, len(data), 2)]


def _key_text(key: object) -> str:
    value = to_json(key)
    return value if isinstance(value, str) else json.dumps(value)
