"""What the broker tells a subscriber, the client's side: a connection of its own that comes back where it was, and says what it missed.

Must not know how a connection is made.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from greenroom.errors import BusyError, ConnectError, DrainingError, GreenroomError, InvalidError, TlsError
from greenroom.events import parse_position, position_text
from greenroom.link import Backoff, Link

#: Notices that wait to be taken, each of up to 200 events. Beyond it the connection is given up until they are: the broker keeps what comes.
MAX_NOTICES = 50
#: While it waits, a stream looks so often whether its client was closed.
LOOK_S = 1.0

_PASSING = (ConnectError, BusyError, DrainingError)


class Connect(Protocol):
    """Makes a connection; raises ConnectError, at the latest at `deadline` (monotonic seconds)."""

    def __call__(self, deadline: float, on_notice: Callable[[dict], None], on_close: Callable[[GreenroomError], None]) -> Link:
        """Return an open link."""


class EventStream:
    """An iterator over events, see Client.events. For one thread; `close` may be called by any."""

    def __init__(self, connect: Connect, wanted: dict[str, object], after: str | None, timeout_s: float | None, answer_s: float,
                 is_over: Callable[[], bool]) -> None:
        """Subscribe.

        Args:
            wanted: fields of `subscribe`. after: a position, as events have it. timeout_s, answer_s: see Client.events, Client.
            is_over: tells whether the client was closed.
        """
        self._connect = connect
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._answer_s = answer_s
        self._is_over = is_over
        self._is_closed = False
        self._link: Link | None = None
        self._notices: deque[dict] = deque()
        self._ready: deque[dict] = deque()
        self._woken = threading.Event()
        self._boot, self._after = (None, None) if after is None else _parse(after)
        self._subscribe()

    def __iter__(self) -> EventStream:
        return self

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __next__(self) -> dict:
        until = float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            if self._is_closed or self._is_over():
                self.close()
                raise StopIteration
            if self._ready:
                return self._ready.popleft()
            self._woken.clear()
            if self._notices:
                self._take(self._notices.popleft())
            elif not self._link.is_open:
                self._subscribe()
            elif time.monotonic() >= until:
                raise StopIteration
            else:
                self._woken.wait(min(LOOK_S, until - time.monotonic()))

    def close(self) -> None:
        """End the connection, and the iteration. May be called twice."""
        self._is_closed = True
        self._woken.set()
        if self._link is not None:
            self._link.close()

    def _subscribe(self) -> None:
        """Connect and ask, again and again while the broker is away for less than the client's timeout."""
        deadline = time.monotonic() + self._answer_s
        backoff = Backoff()
        while True:
            try:
                self._ask(deadline)
                return
            except _PASSING as exc:
                pause_s = exc.retry_after_s if exc.retry_after_s is not None else backoff.next()
                if isinstance(exc, TlsError) or self._link is None or time.monotonic() + pause_s >= deadline:
                    raise
                time.sleep(pause_s)

    def _ask(self, deadline: float) -> None:
        notices: deque[dict] = deque()  # its own: what an earlier connection still brings is asked for again
        link = self._connect(deadline, lambda notice: self._noticed(link, notices, notice), lambda error: self._woken.set())
        position = {} if self._boot is None else {"boot": self._boot, "after": self._after}
        try:
            answer = link.call({"verb": "subscribe", **self._wanted, **position}, max(0.001, deadline - time.monotonic()))
        except GreenroomError:
            link.close()
            raise
        self._link, self._notices = link, notices
        self._boot, self._after = answer["boot"], answer["position"]
        if answer["gap"]:
            self._note_gap(answer["oldest"])

    def _noticed(self, link: Link, notices: deque[dict], notice: dict) -> None:
        """Take a notice; called by the link's thread."""
        if notice["notice"] != "events":
            return
        if len(notices) >= MAX_NOTICES:
            link.close()
        else:
            notices.append(notice)
        self._woken.set()

    def _take(self, notice: dict) -> None:
        if notice["gap"]:
            self._note_gap(notice["oldest"])
        for event in notice["events"]:
            self._ready.append({**event, "position": position_text(self._boot, event["seq"])})
        self._after = notice["position"]

    def _note_gap(self, oldest: int) -> None:
        self._ready.append({"kind": "gap", "position": position_text(self._boot, oldest - 1)})


def _parse(position: str) -> tuple[str, int]:
    try:
        return parse_position(position)
    except (ValueError, AttributeError):  # the latter: no text
        raise InvalidError("after must be the position of an event", field="after") from None


def wanted_fields(queue: str | None, task: str | None, kinds: Iterable[str] | None) -> dict[str, object]:
    """Return the fields of `subscribe` for a filter."""
    if isinstance(kinds, str):
        kinds = [kinds]
    fields = {"queue": queue, "task": task, "kinds": None if kinds is None else list(kinds)}
    if fields["kinds"] == []:
        raise InvalidError("kinds must name at least one kind of events", field="kinds")
    return {name: value for name, value in fields.items() if value is not None}
