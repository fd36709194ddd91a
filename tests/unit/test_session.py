"""Whose turn it is when many connections have sent something at once, and that nobody is late who waits for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import perf_counter

import gevent
import pytest
from gevent.hub import get_hub

from greenroom.session import TURNS_S, Sessions, Turns

DEADLINE_S = 10.0
MANY = 320


class Crowd:
    """Greenlets that wait for the same socket, so that one look of the hub finds all of them; each, when its turn has come, keeps the
    hub for a while.

    Attributes:
        turns: theirs. served: their numbers, in the order in which they were served.
    """

    def __init__(self, stack: ExitStack, *, busy_s: float) -> None:
        self.turns = Turns()
        stack.callback(self.turns.stop)
        self.served: list[int] = []
        self._speaker, heard = map(stack.enter_context, socket.socketpair())
        self.greenlets = [gevent.spawn(self._serve, number, heard, busy_s) for number in range(MANY)]
        gevent.sleep(0)

    def _serve(self, number: int, sock: socket.socket, busy_s: float) -> None:
        watcher = get_hub().loop.io(sock.fileno(), 1)
        try:
            get_hub().wait(watcher)
        finally:
            watcher.close()
        self.turns.wait()
        self.served.append(number)
        until = perf_counter() + busy_s
        while perf_counter() < until:
            pass

    def speak(self) -> None:
        """Wake all of them."""
        self._speaker.send(b"x")

    def join(self) -> None:
        """Wait for the end of all."""
        gevent.joinall(self.greenlets, timeout=DEADLINE_S)
        assert all(greenlet.dead for greenlet in self.greenlets)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_timer_is_looked_at_while_many_who_came_together_are_served(stack: ExitStack) -> None:
    crowd = Crowd(stack, busy_s=TURNS_S / 20)
    served_before: list[int] = []
    timer = gevent.spawn_later(TURNS_S / 20, lambda: served_before.append(len(crowd.served)))

    crowd.speak()
    crowd.join()

    timer.join(DEADLINE_S)
    assert len(crowd.served) == MANY
    assert served_before[0] < MANY / 2, "the timer came when nearly all were served"


def serve_a_line(stack: ExitStack, turns: Turns) -> list[int]:
    """Let many wait in line, each of whom needs no time; returns their numbers in the order in which they were served."""
    stack.callback(turns.stop)
    served: list[int] = []

    def serve(number: int) -> None:
        turns.wait()
        served.append(number)

    gevent.sleep(0.001)  # the hub has just looked, and looks no more before all of them have come
    until = perf_counter() + 2 * TURNS_S
    while perf_counter() < until:
        pass
    greenlets = [gevent.spawn(serve, number) for number in range(MANY)]
    gevent.joinall(greenlets, timeout=DEADLINE_S)
    return served


def test_those_who_wait_are_served_in_the_order_of_their_coming(stack: ExitStack) -> None:
    assert serve_a_line(stack, Turns()) == list(range(MANY))


def test_a_line_moves_by_time_not_by_a_few_at_each_look_of_the_hub(stack: ExitStack) -> None:
    looks: list[int] = []
    look = get_hub().loop.check(ref=False)
    stack.callback(look.close)

    look.start(looks.append, 1)
    served = serve_a_line(stack, Turns())

    # A busy hub looks seldom, so a line that moves by a few at each look grows without end.
    assert len(served) == MANY and len(looks) < 10, looks


def test_one_that_is_ended_while_it_waits_holds_nobody_up(stack: ExitStack) -> None:
    crowd = Crowd(stack, busy_s=TURNS_S / 20)
    killer = gevent.spawn_later(TURNS_S / 20, lambda: crowd.greenlets[-1].kill(block=False) or crowd.greenlets[0].kill(block=False))

    crowd.speak()
    crowd.join()

    killer.join(DEADLINE_S)
    assert len(crowd.served) >= MANY - 2


def test_nobody_is_left_waiting_when_the_line_ends(stack: ExitStack) -> None:
    crowd = Crowd(stack, busy_s=TURNS_S / 20)
    crowd.speak()
    while len(crowd.served) < 6:  # the rest wait in line by now
        gevent.sleep(0.001)
    assert len(crowd.served) < MANY

    crowd.turns.stop()

    crowd.join()
    assert sorted(crowd.served) == list(range(MANY))


def test_a_peer_whose_bytes_wait_in_line_is_not_late() -> None:
    class InLine:
        received_at = 0.0
        is_in_line = True

    class Silent(InLine):
        is_in_line = False

    class Talk:
        session, opened_at, partial_since = None, 0.0, None

        def __init__(self, stream: InLine) -> None:
            self.stream = stream

    assert Sessions._is_late(Talk(InLine()), 1000.0) is None
    assert Sessions._is_late(Talk(Silent()), 1000.0) == "no hello in time"


def test_who_comes_alone_does_not_wait() -> None:
    turns = Turns()
    try:
        gevent.sleep(0.001)  # the hub has just looked
        switched: list[int] = []
        gevent.spawn(switched.append, 1)

        turns.wait()

        assert not switched
    finally:
        turns.stop()
