"""Waiting for jobs, the client's side: thousands of threads and ids share a few `wait` requests on one connection.

Must not know what a result means, nor how a connection is made.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from greenroom.errors import BusyError, ConnectError, DrainingError, FullError, GreenroomError, TlsError, WaitTimeoutError
from greenroom.link import Answer, Backoff, Link

#: Open `wait` requests of one connection; the broker allows 256.
MAX_OPEN = 64

#: Ids in a request while fewer than half are open. An answer brings what is finished and the rest is asked for again, so with 1,000
#: ids in each a job was asked for a hundred times over: 750 us of the broker's, 230 of ours.
FEW_IDS = 100

#: While all requests are open, the last one asks so briefly: ids that come meanwhile join it soon.
SHORT_WAIT_S = 0.5

#: Errors that pass: the ids are asked for again.
_PASSING = (ConnectError, BusyError, FullError, DrainingError)


class Ticket:
    """What one caller of `SharedWaits.wait` waits for."""

    __slots__ = ("waiting", "arrived", "event", "trouble")

    def __init__(self, ids: Iterable[int]) -> None:
        self.waiting = dict.fromkeys(ids)  # a set that keeps the order
        self.arrived: deque[dict] = deque()  # bounded by the number of ids
        self.event = threading.Event()
        self.trouble: GreenroomError | None = None  # why the latest request for some of its ids brought nothing


class SharedWaits:
    """All waiting of one client.

    Args:
        connected: returns an open link, or raises ConnectError at the deadline (monotonic seconds).
        connect_timeout_s: how long an outage may last before those who wait are told.
    """

    def __init__(self, connected: Callable[[float], Link], connect_timeout_s: float) -> None:
        self._connected = connected
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()  # guards the next three and what tickets wait for
        self._wanted: dict[int, list[Ticket]] = {}
        self._line: dict[int, None] = {}  # ids that no open request asks for, oldest first
        self._open = 0

    def wait(self, ids: Iterable[int], timeout_s: float | None) -> Iterator[dict]:
        """Yield each job's view, or `{"id", "error"}` if it is not there, as soon as it is finished.

        Raises:
            WaitTimeoutError: not all were finished within `timeout_s` (None: however long it takes).
            ConnectError: the broker could not be reached for the connect timeout.
        """
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        ticket = Ticket(ids)
        backoff = Backoff()
        self._join(ticket)
        try:
            while True:
                ticket.event.clear()
                if ticket.arrived:
                    backoff = Backoff()
                while ticket.arrived:
                    yield ticket.arrived.popleft()
                if ticket.waiting:
                    self._await_more(ticket, deadline, backoff)
                elif not ticket.arrived:
                    return
        finally:
            self._leave(ticket)

    def _await_more(self, ticket: Ticket, deadline: float, backoff: Backoff) -> None:
        now = time.monotonic()
        if now >= deadline:
            left = list(ticket.waiting)
            few = ", ".join(map(str, left[:3])) + (" …" if len(left) > 3 else "")
            raise WaitTimeoutError(f"{len(left)} of the jobs not finished in time: {few}")
        trouble, ticket.trouble = ticket.trouble, None
        if trouble is not None:
            if isinstance(trouble, TlsError) or not isinstance(trouble, _PASSING):
                raise trouble
            time.sleep(min(backoff.next(), deadline - now))
        try:
            self._ask(self._connected(min(deadline, time.monotonic() + self._connect_timeout_s)))
        except ConnectError:
            if time.monotonic() < deadline:
                raise
            return  # the time is up: say that instead
        ticket.event.wait(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))

    def _join(self, ticket: Ticket) -> None:
        with self._lock:
            for job in ticket.waiting:
                if job not in self._wanted:
                    self._wanted[job] = []
                    self._line[job] = None
                self._wanted[job].append(ticket)

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            for job in ticket.waiting:
                tickets = self._wanted.get(job, [])
                if ticket in tickets:
                    tickets.remove(ticket)
                if not tickets:
                    self._wanted.pop(job, None)
                    self._line.pop(job, None)

    def _ask(self, link: Link) -> None:
        """Send requests for the ids in the line, as many as may be open."""
        while True:
            with self._lock:
                most = link.limits.list if self._open >= MAX_OPEN // 2 else FEW_IDS
                ids = [job for job, _ in zip(self._line, range(most))]
                if not ids or self._open >= MAX_OPEN:
                    return
                for job in ids:
                    del self._line[job]
                self._open += 1
                wait_s = SHORT_WAIT_S if self._open == MAX_OPEN else link.limits.wait
            try:
                link.request({"verb": "wait", "jobs": ids, "wait": wait_s}, lambda answer, ids=ids: self._take(link, ids, answer))
            except GreenroomError as exc:
                self._put_back(ids, exc)
                return

    def _take(self, link: Link, ids: list[int], answer: Answer) -> None:
        """Hand out what a request brought; called by the link's thread."""
        if isinstance(answer, GreenroomError):
            self._put_back(ids, answer)
            return
        with self._lock:
            self._open -= 1
            told: dict[Ticket, None] = {}  # so that each is woken once, not once a job
            for view in answer["jobs"]:
                for ticket in self._wanted.pop(view["id"], ()):
                    ticket.arrived.append(view)
                    ticket.waiting.pop(view["id"], None)
                    told[ticket] = None
            for ticket in told:
                ticket.event.set()
            # At the end of the line: with more ids than the open requests can hold, all get their turn.
            self._line.update((job, None) for job in ids if job in self._wanted)
        if link.is_open:
            self._ask(link)

    def _put_back(self, ids: list[int], exc: GreenroomError) -> None:
        with self._lock:
            self._open -= 1
            for job in ids:
                for ticket in self._wanted.get(job, ()):
                    ticket.trouble = exc
                    ticket.event.set()
                if job in self._wanted:
                    self._line[job] = None
