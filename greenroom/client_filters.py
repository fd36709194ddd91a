"""Filters as a caller gives them become filters as the wire has them. A part of the client.

Must not know connections.
"""

from __future__ import annotations

from greenroom.clock import Clock
from greenroom.filter_text import filter_from_text
from greenroom.filters import parse_filter


def wire_filter(given: str | dict | None) -> dict | None:
    """Return a filter as the wire has it, checked; None: any job. Times like `-2h` count from now, by this machine's clock.

    Raises InvalidError; `field` names the condition.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return filter_from_text(given, Clock().now())
    parse_filter(given)
    return given
