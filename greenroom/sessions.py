"""Sessions and leases as the engine sees them: who holds which job until when. Records and their arithmetic, no rules.

Pure. Must not know lanes, stores or connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from greenroom.job import Job

if TYPE_CHECKING:
    from greenroom.groups import Group


class RunLimits:
    """How long one run may take, for a job with `soft_timeout` or `timeout`; what its worker says moves neither.

    Attributes:
        stop_at: from when on its worker is told to stop it; None: never. is_told: it was.
        end_at: when it is over, and has failed; None: never.
    """

    __slots__ = ("stop_at", "is_told", "end_at")

    def __init__(self, soft_s: float | None, hard_s: float | None, ran_for_s: float, now: float) -> None:
        # Stored times are of a clock that may have been set since: what is left lies between nothing and the whole.
        self.stop_at, self.end_at = (None if whole_s is None else now + min(whole_s, max(0.0, whole_s - ran_for_s)) for whole_s in (soft_s, hard_s))
        self.is_told = False

    @property
    def next_at(self) -> float | None:
        """When the next of them is due."""
        return self.end_at if self.stop_at is None or self.is_told else self.stop_at

    def put_off(self, seconds: float) -> None:
        """Move both: the broker itself stood still."""
        if self.stop_at is not None:
            self.stop_at += seconds
        if self.end_at is not None:
            self.end_at += seconds


class Lease:
    """The sole right to run a job for a time. Named by job id and fence; the store writes what it finds here."""

    __slots__ = ("job", "fence", "session", "granted_at", "delivered_at", "deadline", "limits", "missed_beats", "missed_at")

    def __init__(self, job: Job, fence: int, session: Session, granted_at: float) -> None:
        self.job = job
        self.fence = fence
        self.session = session
        self.granted_at = granted_at
        self.delivered_at: float | None = granted_at  # when it left; None: it waits for a COMMIT, and can't end before
        self.deadline: float | None = None  # its own, set by extend; None: the session's silence decides
        self.limits: RunLimits | None = None  # None: the run may take any time
        self.missed_beats = 0  # heartbeats in a row whose list lacked it
        self.missed_at = 0.0

    @property
    def instance(self) -> bytes:
        """16 bytes that name the worker process, zeros if it gave none."""
        return self.session.instance or bytes(16)

    @property
    def worker(self) -> str:
        """Name of the worker."""
        return self.session.name


class Parked(NamedTuple):
    """A reserve that waits at the broker."""

    request_id: int
    n: int
    deadline: float
    order: int  # grows with each parked reserve: who waits longest is served first


class Session:
    """One peer that said hello; outlives its connection by the reconnect grace if it holds leases.

    Attributes:
        key: number of the session. conn: whatever the edge hangs here (its stream); opaque to the engine.
        role: client or worker. instance: 16 bytes or None.
        last_seen: when it last sent a heartbeat, reserve or settle.
        grace_until: None while connected; else when its leases are given up. inherited_grace: the grace that it came back in, until it
            has said anything: a connection that ends before that may as well not have been made.
        leases: job id -> lease, in order of granting. granted_at: when the latest of them was granted, 0: never.
        has_deadlines: True once one of them got a deadline of its own, or its run has limits.
        group: what its latest reserve can run. parked: its open reserve.
        timer_at: when the engine looks at this session next; None: no timer runs.
        done, failed, lost: jobs it completed, failed, and lost to a broken lease.
    """

    __slots__ = ("key", "conn", "role", "name", "instance", "software", "address", "connected_at", "last_seen", "grace_until",
                 "inherited_grace", "leases", "granted_at", "has_deadlines", "group", "parked", "timer_at", "done", "failed", "lost",
                 "tasks", "queues")

    def __init__(self, key: int, *, role: str, name: str, instance: bytes | None, now: float, conn: object = None,
                 software: str = "", address: str = "") -> None:
        self.key = key
        self.conn = conn
        self.role = role
        self.name = name
        self.instance = instance
        self.software = software
        self.address = address
        self.connected_at = now
        self.last_seen = now
        self.grace_until: float | None = None
        self.inherited_grace: float | None = None
        self.leases: dict[int, Lease] = {}
        self.granted_at = 0.0
        self.has_deadlines = False
        self.group: Group | None = None
        self.parked: Parked | None = None
        self.timer_at: float | None = None
        self.done = 0
        self.failed = 0
        self.lost = 0
        self.tasks: frozenset[str] | None = None
        self.queues: frozenset[str] | None = None

    @property
    def status(self) -> str:
        """idle, busy or lost, as the page shows it."""
        if self.grace_until is not None:
            return "lost"
        return "busy" if self.leases else "idle"
