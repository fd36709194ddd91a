"""Filters as a caller gives them become filters as the wire has them, and what is done to all jobs that fit one. A part of the client.

Must not know connections.
"""

from __future__ import annotations

from collections.abc import Callable

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


def bulk(call: Callable[[dict], dict], action: str, given: str | dict, *, dry_run: bool, on_progress: Callable[[dict], None] | None,
         changes: dict[str, object]) -> dict:
    """Do something to all jobs that fit, see Client.bulk.

    Args:
        call: asks the broker, again after a lost connection. changes: fields of the action "change".
    """
    message = {"verb": "bulk", "action": action, "filter": wire_filter(given), "dry_run": dry_run, **changes}
    sums: dict = {"matched": 0, "done": 0, "refused": 0, "why": None, "exact": True, "scanned_to": None}
    before: int | None = None
    while True:
        answer = call(message if before is None else {**message, "before": before})
        for name in ("matched", "done", "refused"):
            sums[name] += answer[name]
        sums["why"] = sums["why"] or answer["why"]
        sums["exact"] = sums["exact"] and answer["exact"]
        sums["scanned_to"] = answer["scanned_to"]
        if on_progress is not None:
            on_progress(dict(sums))
        before = answer.get("next")
        if before is None:
            return sums
