"""A network of bytes: connections that split, delay, stall, break, half-close, and lose one direction. Knows no messages and no brokers.

Within one direction bytes keep their order, as TCP promises; nothing is promised between directions and connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tests.simulation.world import World


class End(Protocol):
    """Who is at an end of a wire."""

    def got(self, wire: Wire, data: bytes) -> None:
        """Take bytes that arrived."""

    def ended(self, wire: Wire) -> None:
        """The other end closed, or the connection broke: nothing more comes."""


class Pipe:
    """One direction.

    Attributes:
        is_lost: True: nothing arrives any more, and nobody is told. stuck_until: the receiver takes nothing before.
        on_way: bytes that were sent and have not arrived.
    """

    def __init__(self, world: World, delay_s: float, *, splits: bool) -> None:
        self._world = world
        self._delay_s = delay_s
        self._splits = splits
        self._last_at = 0.0
        self.is_lost = False
        self.is_closed = False
        self.stuck_until = 0.0
        self.on_way = 0

    def send(self, data: bytes, arrive: Callable[[bytes], None]) -> None:
        """Send bytes; `arrive` gets them later, perhaps in pieces, after all that was sent before."""
        if self.is_lost or self.is_closed:
            return
        rng = self._world.rng
        if self._splits and len(data) > 1 and rng.random() < 0.3:
            cut = rng.randrange(1, len(data))
            self._send(data[:cut], arrive)
            data = data[cut:]
        self._send(data, arrive)

    def _send(self, data: bytes, arrive: Callable[[bytes], None]) -> None:
        self.on_way += len(data)
        self._world.at(self._next_at(), self._arrived, data, arrive)

    def _arrived(self, data: bytes, arrive: Callable[[bytes], None]) -> None:
        self.on_way -= len(data)
        if not self.is_lost and not self.is_closed:
            arrive(data)

    def follow(self, call: Callable[[], None]) -> None:
        """Have something happen at the other end after everything that was sent before (a FIN)."""
        if not self.is_lost:
            self._world.at(self._next_at(), call)

    def _next_at(self) -> float:
        world = self._world
        self._last_at = max(self._last_at, world.now + self._delay_s * (0.5 + world.rng.random()), self.stuck_until)
        return self._last_at


class Wire:
    """One connection. `client` and `broker` are its ends, the latter is set when it was accepted."""

    def __init__(self, world: World, client: End, delay_s: float, *, splits: bool) -> None:
        self.client = client
        self.broker: End | None = None
        self.up = Pipe(world, delay_s, splits=splits)
        self.down = Pipe(world, delay_s, splits=splits)
        self._world = world

    def send_up(self, data: bytes) -> None:
        """Send bytes to the broker."""
        self.up.send(data, self._got_up)

    def send_down(self, data: bytes) -> None:
        """Send bytes to the client."""
        self.down.send(data, self._got_down)

    def _got_up(self, data: bytes) -> None:
        if self.broker is not None:
            self.broker.got(self, data)

    def _got_down(self, data: bytes) -> None:
        self.client.got(self, data)

    def close_up(self) -> None:
        """The client closes: what it sent before still arrives."""
        self.up.follow(self._ended_up)
        self.down.is_closed = True

    def close_down(self) -> None:
        """The broker closes, or its process ended: what it sent before still arrives."""
        self.down.follow(self._ended_down)
        self.up.is_closed = True

    def half_close(self, *, up: bool) -> None:
        """One direction ends with a FIN behind all that was sent; the other goes on until its sender closes."""
        if up:
            self.up.follow(self._ended_up)
        else:
            self.down.follow(self._ended_down)

    def cut(self) -> None:
        """The connection breaks: what is on its way is lost, and both ends learn of it (if they can)."""
        world = self._world
        for pipe, call in ((self.up, self._ended_up), (self.down, self._ended_down)):
            pipe.is_closed = True
            if not pipe.is_lost:
                world.after(0.001 + world.rng.random() * 0.05, call)

    def _ended_up(self) -> None:
        self.up.is_closed = True
        if self.broker is not None:
            self.broker.ended(self)

    def _ended_down(self) -> None:
        self.down.is_closed = True
        self.client.ended(self)
