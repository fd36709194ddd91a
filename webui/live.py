"""Live events: one snapshot a second, made once for all viewers, pushed as Server-Sent Events. Must not know HTTP or bottle.

Nothing is computed while nobody watches. A viewer that does not read fills its own small queue and is dropped; it comes back by
itself (docs/rest.md, "Events").
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import gevent
from gevent.event import Event
from gevent.queue import Empty, Full, Queue

from greenroom.errors import BusyError, GreenroomError
from greenroom.webui import shapes
from greenroom.webui.answers import dump_json

log = logging.getLogger(__name__)

MAX_VIEWERS = 200
MAX_WAITING = 8  # events that one viewer may have unread
TICK_S = 1.0
REFRESH_S = 5.0  # heartbeats and the clock move without counting as changes
PING_S = 10.0  # without a write nobody notices that a viewer is gone
WORKERS_SHOWN = 50
JOBS_SHOWN = 50


class Live:
    """The source of live events. Owns one greenlet, which lives only while there are viewers."""

    def __init__(self, call: Callable[[str, dict], dict], security: Callable[[], dict], changes: Callable[[], int]) -> None:
        """Keep the functions.

        Args:
            call: runs a protocol verb, see app.make_app.
            security: returns what `/api/security` shows.
            changes: returns a number that grew if anything changed.
        """
        self._call = call
        self._security = security
        self._changes = changes
        self._viewers: set[_Viewer] = set()
        self._latest: dict[str, bytes] = {}  # kind of event -> the whole event
        self._seen_changes = -1
        self._made_at = float("-inf")  # monotonic
        self._wake = Event()
        self._ticker: gevent.Greenlet | None = None
        self._stopped = False

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return len(self._viewers)

    def watch(self) -> Iterator[bytes]:
        """Return the stream of a new viewer: chunks of an event stream, without end. Closing the iterator frees its place.

        Raises BusyError at once when there are too many viewers or the broker stops.
        """
        if self._stopped or len(self._viewers) >= MAX_VIEWERS:
            raise BusyError(f"at most {MAX_VIEWERS} viewers can watch at once", retry_after_s=5)
        viewer = _Viewer()
        self._viewers.add(viewer)
        if self._ticker is None or self._ticker.dead:
            self._ticker = gevent.spawn(self._run)
        self._wake.set()
        return self._stream(viewer)

    def stop(self) -> None:
        """End all streams and the greenlet. May be called twice. Switches."""
        self._stopped = True
        for viewer in list(self._viewers):
            self._drop(viewer)
        self._wake.set()
        if self._ticker is not None:
            self._ticker.join(TICK_S)
            self._ticker.kill()

    def _stream(self, viewer: _Viewer) -> Iterator[bytes]:
        try:
            yield b"retry: 1000\n\n"
            while not viewer.dropped:
                try:
                    event = viewer.events.get(timeout=PING_S)
                except Empty:
                    event = b": ping\n\n"
                if event is not None:
                    yield event
        finally:
            self._viewers.discard(viewer)

    def _run(self) -> None:
        while self._viewers and not self._stopped:
            self._wake.clear()
            try:
                self._refresh()
            except GreenroomError as exc:
                log.debug("live events skip a tick: %s", exc.message)
            except Exception:
                log.exception("live events skip a tick")
            self._greet_newcomers()
            self._wake.wait(TICK_S)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._made_at < TICK_S * 0.9:  # a newcomer woke us between two ticks; timers may be a little early
            return
        changes = self._changes()
        if changes != self._seen_changes or now - self._made_at >= REFRESH_S:
            self._made_at = now
            self._publish("overview", overview(self._call))
            self._seen_changes = changes
        security = self._security()
        if _event("security", security) != self._latest.get("security"):
            self._publish("security", security)

    def _publish(self, kind: str, data: dict) -> None:
        event = _event(kind, data)
        self._latest[kind] = event
        for viewer in list(self._viewers):
            if viewer.greeted:
                self._offer(viewer, event)

    def _greet_newcomers(self) -> None:
        for viewer in [viewer for viewer in self._viewers if not viewer.greeted]:
            for event in self._latest.values():
                self._offer(viewer, event)
            viewer.greeted = bool(self._latest)

    def _offer(self, viewer: _Viewer, event: bytes) -> None:
        try:
            viewer.events.put_nowait(event)
        except Full:
            self._drop(viewer)

    def _drop(self, viewer: _Viewer) -> None:
        viewer.dropped = True
        self._viewers.discard(viewer)
        if viewer.events.empty():
            viewer.events.put_nowait(None)  # wakes its greenlet


class _Viewer:
    """One open stream."""

    def __init__(self) -> None:
        self.events: Queue = Queue(maxsize=MAX_WAITING)
        self.greeted = False  # it has the latest snapshot, and gets each new one
        self.dropped = False


def _event(kind: str, data: dict) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode("ascii"), dump_json(data))


def overview(call: Callable[[str, dict], dict]) -> dict:
    """Return what the overview page shows: stats, the first workers, the newest jobs. Switches; may raise GreenroomError."""
    workers = call("workers", {})
    jobs = call("jobs", {"limit": JOBS_SHOWN, "payload": True})
    return {"stats": shapes.stats(call("stats", {})), "workers": workers["workers"][:WORKERS_SHOWN],
            "workers_total": workers["total"], "jobs": [shapes.job_row(view) for view in jobs["jobs"]]}
