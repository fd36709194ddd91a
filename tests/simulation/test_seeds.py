"""A thousand seeds of the simulator, the seeds that once found something, and the rare things that must have happened in them."""

from __future__ import annotations

from collections import Counter
from time import monotonic

import pytest

from tests.simulation.run import simulate

SEEDS = 1000
BLOCK = 50

#: Seeds that found a bug of the product as it was then. What a seed does changes with the simulator: each has a plain test too.
FOUND: dict[int, str] = {
    18: "a sign of life took back what a forgiven stall gave, and the lease's timer stood for later",
    98: "after a stall, peers whose hello lay in the kernel were swept away unheard",
}

#: Branches that are rare, and that a run of all seeds must have taken: else the simulator has gone blind there.
MUST_HAPPEN = (
    "lease taken over", "resume in grace", "resume after a restart", "leases at a restart", "cancelled by a restart",
    "a COMMIT of one row", "a COMMIT of hundreds", "a COMMIT of thousands", "refill", "refill of scheduled jobs",
    "UNKNOWN", "BUSY", "KEY_CONFLICT", "STORE_FULL", "DRAINING", "DEADLINE", "submit repeated", "settle repeated",
    "settle: LEASE_LOST", "late settle accepted", "cancel of a running job", "cancel noticed", "soft limit noticed", "stall forgiven",
    "too many crashes", "requeue: lost", "requeue: expired", "requeue: nack", "requeue: unbegun", "requeue: crash",
    "requeue: bye", "requeue: not presented", "requeue: never arrived",
    "crash: start", "crash: slice", "crash: written", "crash: commit", "crash: committed", "crash: left", "crash: any time",
    "crash: the machine", "crash: the store failed", "stop in order", "a crash in a COMMIT that is on disk",
    "a failed COMMIT is on disk", "power cut: drop", "power cut: all", "power cut: prefix", "power cut: sectors",
    "SQLite kept the open transaction",
    "pause", "a pause ends by itself", "a queued job is changed", "changed in bulk", "explained: behind", "explained: queue_paused", "explained: no_free_slot",
    "limit", "a job finds its queue full", "an urgent job passes the limit", "purge", "a job is purged",
    "half-open connection", "half-closed connection", "no answer in time", "put off", "retried", "expired", "timed out", "duplicate",
    "replaced", "replaced on disk", "a duplicate of a job on disk", "a debounced job began", "a debounced job waits while another runs", "worker crash", "worker stands still", "wall clock jumps",
    "gap of events", "subscribed again without a gap", "gap of a slow subscriber", "told to the end", "event: requeued", "event: retried",
    "event: scheduled", "event: progress", "event: expired",
    "a job kills its worker", "… and takes others with it", "a suspect begins alone", "a suspect begins beside others", "a suspect is given back",
    "schedule made", "schedule ran", "schedule skipped", "line acknowledged", "log read", "deleted", "deleted job asked for",
    "kept no longer",
)

_counts: Counter[str] = Counter()
_done: set[int] = set()


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BLOCK))
def test_every_promise_holds_in_every_seed(first: int) -> None:
    began, events = monotonic(), 0
    for seed in range(first, first + BLOCK):
        result = simulate(seed)
        _counts.update(result.counts)
        _done.add(seed)
        events += result.events
    print(f"seeds {first} to {first + BLOCK - 1}: {events} events in {monotonic() - began:.1f} s")


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_found_a_bug_finds_none_any_more(seed: int) -> None:
    simulate(seed)


def test_rare_branches_were_taken() -> None:
    if len(_done) < SEEDS:
        pytest.skip("only with all seeds")

    print("\n".join(f"{times:8}  {name}" for name, times in sorted(_counts.items())))
    assert [name for name in MUST_HAPPEN if not _counts[name]] == [], "nobody came there"


def test_a_seed_is_always_the_same_run() -> None:
    first, again = simulate(3), simulate(3)

    assert (first.events, first.counts) == (again.events, again.counts)
