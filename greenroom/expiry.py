"""When to look through waiting jobs for those whose time to begin is over. The store finds them; this only knows when to ask it.

Pure and without a clock.
"""

from __future__ import annotations

#: Looks into the store stand so far apart at least: a tenth of a millisecond each.
LOOKS_APART_S = 0.2


class Expiry:
    """The next look.

    Attributes:
        may_happen: some job has such a time, or may have one: since the start of the broker nobody has looked.
        look_at: when to look, None: no job is known to have such a time.
    """

    def __init__(self) -> None:
        self.may_happen = False
        self.look_at: float | None = None

    def note(self, at: float) -> None:
        """Note that a job must begin by then."""
        self.may_happen = True
        if self.look_at is None or at < self.look_at:
            self.look_at = at

    def take_due(self, now: float) -> bool:
        """Return whether to look now; then the look is the caller's, and is not due again before the next `note`."""
        if self.look_at is None or self.look_at > now:
            return False
        self.look_at = None
        return True
