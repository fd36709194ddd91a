"""Which job runs alone in its worker: one that crashed before, where its neighbours would share its fate. Pure: gets `now`.

Must not know pools or the connection. What ran when a process died may be what killed it. Among others it would have them blamed each
time, and all of them would end as crash loops; alone it takes nobody along. So a job is blamed for another's crash once at most: from
then on it is a suspect itself, and two suspects never run together.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum

#: A suspect waits so long for its neighbours to end, then it goes back to its queue, where an idle worker may have it. Neighbours that
#: outlast one suspect are waited for by none: a job that runs for hours, or hangs, must not keep its worker's other slots empty.
#: The run limit of a suspect ends so much later (leases.py).
SUSPECT_WAIT_S = 10.0

Lease = tuple[int, int]  # job id and fence


class Step(Enum):
    """What is to be done with the suspect that waits."""

    BEGIN = 1
    GIVE_BACK = 2


class Suspects:
    """One worker's rule.

    Args:
        are_kept_apart: False: each job runs in a process of its own, or nobody wants this; nothing is a suspect then.

    Attributes:
        lease: of the suspect that is here, whether it waits or runs; None: there is none. Nothing else is taken meanwhile.
    """

    def __init__(self, *, are_kept_apart: bool) -> None:
        self._are_kept_apart = are_kept_apart
        self.lease: Lease | None = None
        self._give_back_at: float | None = None  # None: it runs, or is being given back
        self._outlasted: set[Lease] = set()  # neighbours that a suspect waited for in vain
        self._came_last = False

    @property
    def due_at(self) -> float | None:
        """When the suspect has waited long enough; None: none waits."""
        return self._give_back_at

    def most(self, wanted: int) -> int:
        """Return how many jobs to ask for: suspects one at a time, for whatever comes with one goes back."""
        return 0 if self.lease is not None else min(wanted, 1) if self._came_last else wanted

    def is_suspect(self, crashes: int) -> bool:
        """Tell whether a job that crashed so often is to run alone."""
        return self._are_kept_apart and crashes > 0

    def admit(self, lease: Lease, crashes: int, now: float) -> bool:
        """Tell whether a job that was just delivered may stay: with a suspect here it goes back unbegun. It may be the suspect from now."""
        if self.lease is not None:
            return False
        self._came_last = self.is_suspect(crashes)
        if self._came_last:
            self.lease, self._give_back_at = lease, now + SUSPECT_WAIT_S
        return True

    def step(self, held: Set[Lease], now: float, *, may_get_more: bool) -> Step | None:
        """Tell what is to be done with the suspect now. Call it when something changed, and at `due_at`.

        Args:
            held: all leases of the worker, also those that are settled and not answered yet: who dies with them is blamed.
            may_get_more: a reserve is not answered yet, so a neighbour may be on its way; one that takes them back is answered after those.
        """
        if self.lease is not None and self.lease not in held:
            self.lease = self._give_back_at = None
        if self._give_back_at is None:
            return None
        neighbours = held - {self.lease}
        self._outlasted &= neighbours
        if not may_get_more and neighbours <= self._outlasted:
            self._give_back_at = None
            return Step.BEGIN
        if now < self._give_back_at:
            return None
        self._outlasted = set(neighbours)
        self._give_back_at = None  # it leaves `held` when the broker has said yes
        return Step.GIVE_BACK
