"""The listener's gate: who does its part of a handshake next."""

from __future__ import annotations

import gevent
from gevent.event import Event

from greenroom.listener import Gate

DEADLINE_S = 5.0


class Queue:
    """A gate that somebody holds, and others that wait for it.

    Attributes:
        order: names, in the order in which they got in. go_on: the holder leaves when it is set.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.order: list[str] = []
        self.go_on = Event()
        self.greenlets = [gevent.spawn(self._hold)]
        gevent.sleep(0)

    def _hold(self) -> None:
        with self.gate.passed(True):
            self.go_on.wait(DEADLINE_S)

    def add(self, name: str, *, is_new: bool) -> gevent.Greenlet:
        """Let one more wait."""
        def pass_through() -> None:
            with self.gate.passed(is_new):
                self.order.append(name)
                gevent.sleep(0)  # others could get in here
                assert self.order[-1] == name, "two were inside"

        self.greenlets.append(gevent.spawn(pass_through))
        gevent.sleep(0)
        return self.greenlets[-1]

    def run(self) -> list[str]:
        """Let all through; returns the order."""
        self.go_on.set()
        gevent.joinall(self.greenlets, timeout=DEADLINE_S)
        assert all(greenlet.dead for greenlet in self.greenlets)
        return self.order


def test_who_has_begun_goes_first_and_then_who_came_last() -> None:
    queue = Queue()
    for name, is_new in (("old", True), ("second step", False), ("newer", True), ("another second step", False), ("newest", True)):
        queue.add(name, is_new=is_new)

    assert queue.run() == ["second step", "another second step", "newest", "newer", "old"]


def test_one_that_is_ended_while_it_waits_holds_nobody_up() -> None:
    queue = Queue()
    waiting = [queue.add(name, is_new=name != "b") for name in "abc"]
    waiting[0].kill()
    waiting[1].kill()

    assert queue.run() == ["c"]


def test_one_that_is_ended_when_its_turn_has_come_passes_it_on() -> None:
    queue = Queue()
    first, _ = queue.add("a", is_new=False), queue.add("b", is_new=False)
    queue.go_on.set()
    queue.greenlets[0].join(DEADLINE_S)  # the turn is a's, who has not run yet or just did
    first.kill()

    assert queue.run()[-1] == "b"


def test_a_gate_that_nobody_holds_is_open_again() -> None:
    queue = Queue()
    queue.run()

    assert queue.add("later", is_new=True).dead or queue.run() == ["later"]
