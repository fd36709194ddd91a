"""Connections on the hub: each conversation in a greenlet of its own, whose turn it is, and the sweeper. Thin: no rules, no verbs' meaning."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter

import gevent
from gevent.hub import Waiter, get_hub

from greenroom.conversation import SWEEP_S, Conversation, Conversations
from greenroom.desk import Desk
from greenroom.stream import Stream

log = logging.getLogger(__name__)

#: The last words to a peer that we close have so long to leave.
FAREWELL_S = 0.5
#: Connections whose bytes came together are served for so long before the hub looks at its timers and sockets; the others wait in line …
TURNS_S = 0.02
#: … which moves for so long between two such looks.
LINE_S = 0.01


class Turns:
    """Whose turn it is when many have sent something at once: in the order of their coming, some milliseconds at a time.

    The hub serves everybody whose bytes a look at the sockets found before it looks at a timer. Ten thousand workers that reserve, come
    back, or are gone in the same moment would keep it for a second.
    """

    def __init__(self) -> None:
        loop = get_hub().loop
        self._look_at = perf_counter()  # when the hub looked at its sockets last
        self._line: deque[Waiter] = deque()
        self._looks = loop.check(ref=False)
        self._looks.start(self._note_look)
        self._next_look = loop.timer(0.0001)

    def _note_look(self) -> None:
        self._look_at = perf_counter()

    def wait(self) -> None:
        """Return when it is the caller's turn: mostly at once. Else switches."""
        if not self._line and perf_counter() - self._look_at < TURNS_S:
            return
        waiter = Waiter()
        self._line.append(waiter)
        if len(self._line) == 1:
            self._next_look.start(self._move)
        waiter.get()

    def _move(self) -> None:
        """Serve those who wait longest; called by the hub. Not by events, of which the hub deals with few between two looks."""
        until = perf_counter() + LINE_S
        while self._line and perf_counter() < until:
            self._line[0].switch(None)  # returns when that one waits for something else, or is gone
            self._line.popleft()
        if self._line:
            self._next_look.start(self._move)

    def stop(self) -> None:
        """End the look-out. Who still waits has his turn: the line moves on to its end by itself."""
        self._looks.close()


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
        self._turns = Turns()

    def start(self, on_death: Callable[[str], None]) -> None:
        """Start the sweeper."""
        self._sweeper = gevent.spawn(self._sweep_on)
        self._sweeper.link_exception(lambda greenlet: on_death(f"the sweeper died: {greenlet.exception!r}"))

    def serve(self, stream: Stream, address: tuple) -> None:
        """Serve one connection to its end; for the listener, in the connection's greenlet."""
        stream.wait_turn = self._turns.wait
        connection = self.open(stream, f"{address[0]}:{address[1]}")
        try:
            connection.run()
        finally:
            self.forget(connection)
            stream.close()

    @staticmethod
    def _is_late(conversation: Connection, now: float) -> str | None:
        if conversation.stream.is_in_line:
            return None  # it has sent something, it is we who are late
        return Conversations._is_late(conversation, now)

    def _sweep_on(self) -> None:
        while True:
            gevent.sleep(SWEEP_S)
            self.sweep()

    def stop(self, within_s: float) -> None:
        """End all connections, giving what is unsent a moment. Switches."""
        if self._sweeper is not None:
            self._sweeper.kill()
        deadline = self.desk.now() + within_s
        for connection in self:
            connection.stream.abort("the broker stops")
        while self._conversations and self.desk.now() < deadline:
            gevent.sleep(0.005)
        self._turns.stop()
