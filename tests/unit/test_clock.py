"""The clock: it reads the machine's wall clock once, and nothing that is done to that later moves it."""

from __future__ import annotations

import time

import pytest

from greenroom.clock import Clock


@pytest.mark.parametrize("jump_s", [3600.0, 10 * 365 * 86400.0, -3600.0])
def test_a_jump_of_the_wall_clock_moves_nothing_until_the_next_start(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    clock = Clock()
    before, began = clock.now(), time.monotonic()
    wall = time.time

    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)

    assert 0 <= clock.now() - before <= time.monotonic() - began + 0.001
    assert Clock().now() == pytest.approx(wall() + jump_s, abs=1.0), "a new start believes the machine"
