"""What `shipped.py` lets the worker run: a task that does nothing, one that keeps a core busy, one that sleeps. Each returns its job's number."""

from __future__ import annotations

import time

from greenroom.tasks import register_task

CPU_ROUNDS = 10_000  # about 0.5 ms
SLEEP_S = 0.01


def noop(payload: dict) -> int:
    """Return the number."""
    return payload["number"]


def burn(payload: dict) -> int:
    """Keep the interpreter busy, then return the number."""
    total = 0
    for step in range(CPU_ROUNDS):
        total += step & 3
    return payload["number"]


def sleep(payload: dict) -> int:
    """Sleep, then return the number."""
    time.sleep(SLEEP_S)
    return payload["number"]


register_task("bench.noop", noop)
register_task("bench.cpu", burn)
register_task("bench.sleep", sleep)
