"""What a caller wants done with a job that the broker has no room for: raise, wait for room, or drop it. Must not know clients.

Full is a queue at its limit, the broker at a cap, or its disk.
"""

from __future__ import annotations

from typing import NamedTuple

from greenroom.errors import FullError, StoreFullError

#: The ways, the default first.
WAYS = ("raise", "wait", "drop")
#: What the broker says then.
FULL_ERRORS = (FullError, StoreFullError)
#: A caller who waits gives up once no job of the call got in for so long, unless told otherwise.
WAIT_S = 300.0


class WhenFull(NamedTuple):
    """What to do."""

    way: str = WAYS[0]
    timeout_s: float = WAIT_S  # for `wait`


def when_full(on_full: str | None, full_timeout: float | None, default: WhenFull = WhenFull()) -> WhenFull:
    """Return what a call says of it, checked; what it leaves out (None) is the default's. Raises ValueError."""
    if on_full is not None and on_full not in WAYS:
        raise ValueError(f"on_full must be one of {', '.join(WAYS)}, not {on_full!r}")
    if full_timeout is not None and not full_timeout >= 0:
        raise ValueError("full_timeout must be a number of seconds, 0 or more")
    return WhenFull(default.way if on_full is None else on_full, default.timeout_s if full_timeout is None else full_timeout)
