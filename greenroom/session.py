"""Connections on the hub: each conversation in a greenlet of its own, and the sweeper. Thin: no rules, no verbs' meaning."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent

from greenroom.conversation import SWEEP_S, Conversation, Conversations
from greenroom.desk import Desk
from greenroom.stream import Stream

log = logging.getLogger(__name__)

#: The last words to a peer that we close have so long to leave.
FAREWELL_S = 0.5


class Connection(Conversation):
    """A peer of ours, served in the greenlet of its connection."""

    __slots__ = ()

    stream: Stream

    def run(self) -> None:
        """Serve until either side ends it. Never raises; the caller closes the stream."""
        try:
            while self.is_open:
                data = self.stream.read()
                if not data:
                    break
                self.take(data)
        except OSError as exc:
            log.debug("conn=%s ended: %s", self.address, exc)
        finally:
            self.end()
        self.stream.finish(FAREWELL_S)


class Sessions(Conversations):
    """All connections, and the greenlet that sweeps away those that are too slow."""

    kind = Connection

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._sweeper: gevent.Greenlet | None = None

    def start(self, on_death: Callable[[str], None]) -> None:
        """Start the sweeper."""
        self._sweeper = gevent.spawn(self._sweep_on)
        self._sweeper.link_exception(lambda greenlet: on_death(f"the sweeper died: {greenlet.exception!r}"))

    def serve(self, stream: Stream, address: tuple) -> None:
        """Serve one connection to its end; for the listener, in the connection's greenlet."""
        connection = self.open(stream, f"{address[0]}:{address[1]}")
        try:
            connection.run()
        finally:
            self.forget(connection)
            stream.close()

    def _sweep_on(self) -> None:
        while True:
            gevent.sleep(SWEEP_S)
            self.sweep()

    def stop(self, within_s: float) -> None:
        """End all connections, giving what is unsent a moment. Switches."""
        if self._sweeper is not None:
            self._sweeper.kill()
        deadline = self.desk.now() + within_s
        for connection in list(self._conversations):
            connection.stream.abort("the broker stops")
        while self._conversations and self.desk.now() < deadline:
            gevent.sleep(0.005)
