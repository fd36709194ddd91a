"""The broker of a test: the real program with a clock that the test moves, over a socket that only the test's process has.

The broker's own entries (greenroom/run.py, broker.py) know nothing of it. Where the other end is, and what it may do with the time of
its broker, is in greenroom/testing_broker.py. Here nothing of the rules is changed: time is made to pass, and what is due then is done.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from greenroom.clock import Clock

if TYPE_CHECKING:
    from greenroom.broker import Broker

#: An advance stops at so many times at which something is due, and does the rest in one jump: some seconds at most.
MOST_STOPS = 1_000
#: What is due at one of them is done in so many ticks, each with its COMMIT.
MOST_TICKS = 1_000
#: Seconds that the disk has for what a tick decides.
SETTLE_S = 10.0
PAUSE_S = 0.001


class MovableClock(Clock):
    """The real time, and what was added to it."""

    def __init__(self, moved_s: float) -> None:
        super().__init__()
        self.moved_s = moved_s

    def now(self) -> float:
        """See Clock."""
        return super().now() + self.moved_s

    def wall(self) -> float:  # not static here: it moves too
        """See Clock."""
        return Clock.wall() + self.moved_s


class Mover:
    """Lets the time of a running broker pass.

    Args:
        sleep: lets the rest of the broker have its turn.
    """

    def __init__(self, broker: Broker, clock: MovableClock, sleep: Callable[[float], None]) -> None:
        self._broker = broker
        self._clock = clock
        self._sleep = sleep

    def serve(self, commands: socket.socket) -> None:
        """Do what the test asks until it is gone; then nobody needs this broker, and it stops. Switches."""
        for line in commands.makefile("r", encoding="utf-8"):
            asked = json.loads(line)
            self.advance(asked["seconds"], is_silent=asked["silent"])
            commands.sendall(json.dumps({"moved_s": self._clock.moved_s}).encode() + b"\n")
        self._broker.ended.set()

    def advance(self, seconds: float, *, is_silent: bool) -> None:
        """Let time pass from one thing that is due to the next, so that each finds the time that it would find in reality. Switches.

        Args:
            is_silent: no worker is heard meanwhile; else each that is connected counts as heard all the time.
        """
        target = self._clock.now() + seconds
        for _ in range(MOST_STOPS):
            due = self._next_stop()
            if due is None or due >= target:
                break
            self._move_to(due, is_silent)
        self._move_to(target, is_silent)

    def _next_stop(self) -> float | None:
        # Not the leases: with workers that are heard all the time nothing happens when they are looked at.
        engine = self._broker.engine
        dues = (engine.scheduled.next_due(), engine.expiry.look_at, engine.pauses.next_end, self._broker.dispatch.schedules.next_due())
        return min((due for due in dues if due is not None), default=None)

    def _move_to(self, at: float, is_silent: bool) -> None:
        clock, dispatch = self._clock, self._broker.dispatch
        passed_s = max(0.0, at - clock.now())
        clock.moved_s += passed_s
        self._hear_peers(passed_s, is_silent)
        for _ in range(MOST_TICKS):
            dispatch.look_now()
            dispatch.tick()
            self._wait_for_disk()
            due = dispatch.next_due()
            if due is None or due > clock.now():
                return

    def _hear_peers(self, passed_s: float, is_silent: bool) -> None:
        """Peers live in real time: none of them was slow or idle."""
        now = self._clock.now()
        for conversation in self._broker.sessions:
            conversation.opened_at += passed_s
            conversation.stream.received_at += passed_s
            if conversation.partial_since is not None:
                conversation.partial_since += passed_s
        for session in self._broker.engine.sessions.values():
            if session.grace_until is None and not is_silent:
                session.last_seen = now

    def _wait_for_disk(self) -> None:
        batches, deadline = self._broker.dispatch.batches, self._clock.now() + SETTLE_S
        self._sleep(PAUSE_S)
        while (batches.has_work or not batches.is_idle) and self._clock.now() < deadline:
            self._sleep(PAUSE_S)


def main() -> None:
    """Run a broker; before its own flags come the number of the socket and how far its time has been moved already."""
    from greenroom.patching import patch_all

    patch_all()
    import gevent

    from greenroom import broker

    commands, clock = socket.socket(fileno=int(sys.argv.pop(1))), MovableClock(float(sys.argv.pop(1)))
    serving: list[gevent.Greenlet] = []

    def make(settings: object, _: Clock, writer: object) -> Broker:
        made = broker.Broker(settings, clock, writer)
        serving.append(gevent.spawn(Mover(made, clock, gevent.sleep).serve, commands))
        serving[0].link_exception(lambda greenlet: made.fail(f"the clock of the test died: {greenlet.exception!r}"))
        return made

    broker.exit_from(broker.main(make=make))
