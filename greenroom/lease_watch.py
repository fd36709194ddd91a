"""When a worker must count its leases as lost, seen from its own side of a connection that may be dead. Pure: gets `now`.

Must not know jobs or sockets. A broker that is out of reach gives a silent worker's jobs to others when `lease_s` is over; who
holds them stops a little earlier, counted from before it sent what was answered last, so that no two work on one job.
"""

from __future__ import annotations

#: What runs is told to stop after this share of a lease without an answer.
SHARE = 0.9


class LeaseWatch:
    """The deadline that all leases of one worker share.

    Attributes:
        until: when they count as lost, None while they can't be: none was told yet, or the broker itself has ended.
    """

    def __init__(self) -> None:
        self.until: float | None = None
        self.patience_s = 0.0

    def begin(self, lease_s: float, asked_at: float) -> None:
        """Start with a greeting whose hello was sent at `asked_at`."""
        self.patience_s = SHARE * lease_s
        self.heard(asked_at)

    def heard(self, asked_at: float) -> None:
        """Note an answer to what was sent then: from there the leases hold."""
        self.until = asked_at + self.patience_s

    def broker_ended(self) -> None:
        """Note that the broker closed the connection or said that it will: its leases are on disk, and wait for us."""
        self.until = None

    def left_s(self, now: float, most_s: float) -> float:
        """Return the seconds until the deadline, at most `most_s`."""
        return most_s if self.until is None else max(0.0, min(most_s, self.until - now))

    def is_over(self, now: float) -> bool:
        """True once, when the deadline has passed."""
        if self.until is None or now < self.until:
            return False
        self.until = None
        return True
