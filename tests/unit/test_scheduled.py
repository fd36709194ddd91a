"""The window over scheduled jobs: due order, its edge, and what overflows."""

from __future__ import annotations

import pytest

from greenroom import scheduled
from greenroom.job import Job, State
from greenroom.scheduled import Scheduled


def make_job(job_id: int, run_at: float, size: int = 1) -> Job:
    job = Job(job_id, "q", "t", 5, bytes(size), False, 0.0)
    job.state, job.run_at = State.SCHEDULED, run_at
    return job


def pop_all(window: Scheduled, now: float) -> list[int]:
    found = []
    while (job := window.pop_due(now)) is not None:
        job.state = State.QUEUED
        found.append(job.id)
    return found


def test_jobs_come_out_when_due_in_due_order_and_the_first_in_first_at_one_time() -> None:
    window = Scheduled()
    for job_id, run_at in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 10.0)):
        assert window.add(make_job(job_id, run_at))

    assert window.next_due() == 10.0
    assert pop_all(window, 9.999) == []
    assert pop_all(window, 20.0) == [2, 4, 3]
    assert (window.total, window.in_memory, window.next_due()) == (1, 1, 30.0)


def test_an_overflow_sends_the_later_half_to_the_store_and_later_jobs_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled, "MAX_IN_MEMORY", 4)
    window = Scheduled()
    for job_id in range(1, 6):
        window.add(make_job(job_id, float(job_id)))
    assert window.is_over

    dropped = window.shrink()

    assert sorted(job.id for job in dropped) == [3, 4, 5]
    assert (window.edge, window.in_store, window.in_memory) == ((2.0, 2), 3, 2)
    assert not window.add(make_job(6, 2.5)) and window.in_store == 4
    assert window.add(make_job(7, 1.5)) and window.in_memory == 3


def test_the_edge_is_forgotten_when_the_store_has_nothing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled, "MAX_IN_MEMORY", 2)
    window = Scheduled()
    jobs = [make_job(number, float(number)) for number in (1, 2, 3)]
    for job in jobs:
        window.add(job)
    for job in window.shrink():
        window.remove(job, in_memory=False)

    assert window.add(make_job(4, 99.0)) and window.edge is None


def test_a_cancelled_job_never_falls_due_and_its_traces_are_swept() -> None:
    window = Scheduled()
    jobs = [make_job(number, float(number)) for number in range(1, 301)]
    for job in jobs:
        window.add(job)

    for job in jobs[:250]:
        window.remove(job, in_memory=True)
        job.state = State.CANCELLED

    assert window.next_due() == 251.0 and len(window._heap) <= 2 * 50 + 64
    assert pop_all(window, 1000.0) == list(range(251, 301))
    assert (window.total, window.in_memory, window._bytes) == (0, 0, 0)


def test_large_payloads_overflow_it_and_stop_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled, "MAX_BYTES_IN_MEMORY", 1000)
    window = Scheduled()
    for number in range(1, 12):
        window.add(make_job(number, float(number), 100))
    assert window.is_over

    window.shrink()

    assert window.in_memory == 5 and not window.wants_refill, "reading on now would undo what was dropped"
    assert pop_all(window, 1.0) == [1] and window.wants_refill
