"""What the engine wants done: one growing record that the pump (batches.py) empties after each call.

Plain data. The engine writes it, nobody else; it says nothing of disks, sockets or time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from greenroom.events import Event
from greenroom.job import Job
from greenroom.records import Damaged, LogLine, Pause, QueueLimit

if TYPE_CHECKING:
    from greenroom.lanes import Lane
    from greenroom.sessions import Session


class Delivery(NamedTuple):
    """The answer to a reserve: these jobs, under their present leases; empty when its time ran out or it was taken back."""

    session: Session
    request_id: int
    jobs: list[Job]


class Notice(NamedTuple):
    """A frame that nobody asked for."""

    session: Session
    kind: str  # cancel
    leases: list[tuple[int, int]]
    reason: str | None = None  # "soft_timeout"; None: the job is cancelled, or its run is over


class Effects:
    """The engine's wishes since they were last taken.

    Attributes:
        dirty: job id -> job whose row must be written (or written again) before anything below leaves.
        deliveries, notices: for sessions.
        finished: jobs that reached a final state: whoever waits for them is told.
        closes: sessions that another one replaced; their connections end.
        refills: lanes whose window wants jobs, or a head's payload, from the store.
        wants_scheduled: the window of scheduled jobs wants more. wants_expired: jobs may wait that should have begun by now.
        damaged: waiting jobs that the store must set aside.
        pauses: (kind, name) -> the pause that the store must keep; None: it is over.
        limits: queue -> the limit that the store must keep; None: it is over.
        events: what happened, for those who subscribed; what became of jobs that finished is not among them.
        deleted: ids of finished jobs of which nothing shall be left.
        lines: log lines of jobs. first_lines: job id -> number of its first line that is still kept.
    """

    __slots__ = ("dirty", "deliveries", "notices", "finished", "closes", "refills", "wants_scheduled", "wants_expired", "damaged",
                 "pauses", "limits", "events", "deleted", "lines", "first_lines")

    def __init__(self) -> None:
        self.dirty: dict[int, Job] = {}
        self.deliveries: list[Delivery] = []
        self.notices: list[Notice] = []
        self.finished: list[Job] = []
        self.closes: list[Session] = []
        self.refills: list[Lane] = []
        self.wants_scheduled = False
        self.wants_expired = False
        self.damaged: list[Damaged] = []
        self.pauses: dict[tuple[str, str], Pause | None] = {}
        self.limits: dict[str, QueueLimit | None] = {}
        self.events: list[Event] = []
        self.deleted: list[int] = []
        self.lines: list[LogLine] = []
        self.first_lines: dict[int, int] = {}

    @property
    def is_unusual(self) -> bool:
        """True if anything is wished for but rows, deliveries and news of finished jobs."""
        return bool(self.notices or self.closes or self.refills or self.wants_scheduled or self.wants_expired or self.damaged
                    or self.pauses or self.limits or self.deleted or self.lines)
