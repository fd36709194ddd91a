"""What happens to jobs, as Server-Sent Events: the same events as the protocol's `subscribe`. Must not know HTTP or bottle.

A viewer that does not read has a few notices in its queue and no more; when it reads again it goes on, and is told what it missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gevent.queue import Empty, Queue

from greenroom.errors import DrainingError, InvalidError
from greenroom.events import parse_position, position_text
from greenroom.protocol import VERBS, check_fields
from greenroom.subscriptions import EventFilter, Listener
from greenroom.webui.answers import dump_json

MAX_WAITING = 4  # notices of up to 200 events that one viewer may have unread
PING_S = 10.0  # without a write nobody notices that a viewer is gone

#: Subscribes a listener: takes it, its filter and a position (boot and number, or None twice); returns the answer of `subscribe`.
Subscribe = Callable[[Listener, EventFilter, str | None, int | None], dict]


class JobEvents:
    """The source of `/api/events/jobs`. Owns no greenlet: each viewer's stream runs in that of its connection."""

    def __init__(self, subscribe: Subscribe, unsubscribe: Callable[[Listener], object]) -> None:
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._viewers: set[_Viewer] = set()
        self._stopped = False

    def watch(self, queue: str | None, task: str | None, kinds: str | None, after: str | None) -> Iterator[bytes]:
        """Return the stream of a new viewer: chunks of an event stream, without end. Closing the iterator frees its place.

        Args:
            kinds: names, with commas between them. after: a position, as the ids of events are.

        Raises at once InvalidError for what is wrong with these, FullError when there are too many subscribers, DrainingError.
        """
        if self._stopped:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        given = {"queue": queue, "task": task, "kinds": None if kinds is None else kinds.split(",")}
        fields = check_fields(VERBS["subscribe"], given)
        try:
            boot, seq = (None, None) if after is None else parse_position(after)
        except ValueError:
            raise InvalidError("after must be the id of an event", field="after") from None
        wanted = EventFilter(fields["queue"], fields["task"], None if fields["kinds"] is None else frozenset(fields["kinds"]))
        viewer = _Viewer(self._left)
        viewer.begin(self._subscribe(viewer, wanted, boot, seq))
        self._viewers.add(viewer)
        return viewer

    def _left(self, viewer: _Viewer) -> None:
        self._viewers.discard(viewer)
        self._unsubscribe(viewer)

    def stop(self) -> None:
        """End all streams. May be called twice."""
        self._stopped = True
        for viewer in list(self._viewers):
            viewer.is_over = True
            if viewer.notices.empty():
                viewer.notices.put_nowait(None)  # wakes its greenlet


class _Viewer:
    """One open stream: a listener that is read as chunks. No generator: one that nobody began to read would never give back its place."""

    def __init__(self, left: Callable[[_Viewer], None]) -> None:
        self.notices: Queue = Queue()  # bounded by `takes_events`
        self.is_over = False
        self._left = left
        self._boot = ""
        self._first = b""

    def begin(self, answer: dict) -> None:
        """Take the answer of `subscribe`."""
        self._boot = answer["boot"]
        self._first = b"retry: 1000\n" + _at(self._boot, answer["position"]) + b"\n"
        if answer["gap"]:
            self._first += _gap(self._boot, answer["position"])

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self.is_over:
            raise StopIteration
        try:
            notice = self.notices.get(timeout=PING_S)
        except Empty:
            return b": ping\n\n"
        if notice is None:
            raise StopIteration
        return _chunk(self._boot, notice)

    def close(self) -> None:
        """Give back its place; for the WSGI server, which calls it however the stream ends."""
        self.is_over = True
        self._left(self)

    @property
    def takes_events(self) -> bool:
        """See Listener."""
        return not self.is_over and self.notices.qsize() < MAX_WAITING

    def notify(self, notice: dict) -> None:
        """See Listener."""
        self.notices.put_nowait(notice)

    def flush(self) -> None:
        """See Listener."""


def _chunk(boot: str, notice: dict) -> bytes:
    parts = [_gap(boot, notice["oldest"] - 1)] if notice["gap"] else []
    for event in notice["events"]:
        parts.append(_at(boot, event["seq"]) + b"data: " + dump_json(event) + b"\n\n")
    parts.append(_at(boot, notice["position"]) + b"\n")  # without data: it moves the position alone
    return b"".join(parts)


def _at(boot: str, seq: int) -> bytes:
    return b"id: %s\n" % position_text(boot, seq).encode("ascii")


def _gap(boot: str, seq: int) -> bytes:
    return _at(boot, seq) + b"data: {\"kind\":\"gap\"}\n\n"
