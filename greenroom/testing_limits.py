"""Soft run limits in the client for users' tests: what runs too long is told to stop, as a broker and a worker would tell it.

A part of LocalClient (greenroom/testing.py). Must not know jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from greenroom.context import Context


class SoftLimits:
    """Sets Context.cancelled of runs that take longer than their `soft_timeout`, as time passes or is moved. Safe in any thread.

    Args:
        now: the client's clock, seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._stop_at: dict[Context, float] = {}  # of the runs that go on and have a limit

    @contextmanager
    def watch(self, context: Context, soft_s: float | None) -> Iterator[None]:
        """Watch a run for as long as the block takes. None: it has no limit."""
        if soft_s is None:
            yield
            return
        timer = threading.Timer(min(soft_s, threading.TIMEOUT_MAX), context.cancel)
        timer.daemon = True
        self._stop_at[context] = self._now() + soft_s
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            del self._stop_at[context]

    def time_was_moved(self) -> None:
        """Tell those whose time is over now."""
        now = self._now()
        for context, at in list(self._stop_at.items()):
            if at <= now:
                context.cancel()
