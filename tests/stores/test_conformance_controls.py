"""What every store must do for those who steer the broker: changed jobs, pauses. Part of the suite in test_conformance.py, whose stores it takes."""

from __future__ import annotations

import pytest

from greenroom.job import SMALL_BYTES, Job, Rewrite, State
from greenroom.records import LaneCounts, Pause, QueueLimit
from tests.stores.test_conformance import NOW, House, build, finish, house, ids, requeue

__all__ = ["build", "house"]  # fixtures


def test_pauses_are_kept_until_they_are_forgotten(house: House) -> None:
    first = Pause("queue", "mail", NOW, None, "provider is down \u2713", "ann")
    second = Pause("task", "mail", NOW + 1, NOW + 60.0, "", "web")
    house.store.keep_pauses({("queue", "mail"): first, ("task", "mail"): second})
    house.store.commit()
    house.reopen()
    assert house.restored.pauses == [first, second]

    later = first._replace(until=NOW + 99.0, reason="still down")
    house.store.keep_pauses({("queue", "mail"): later, ("task", "mail"): None, ("queue", "never was"): None})
    house.store.commit()
    house.reopen()

    assert house.restored.pauses == [later]


def test_limits_of_queues_are_kept_until_they_are_forgotten(house: House) -> None:
    first = QueueLimit("a", 1000, None, 2, 10, NOW, "too much \u2713", "ann")
    second = QueueLimit("b", None, 2**53 - 1, None, 1000, NOW + 1, "", "web")
    house.store.keep_limits({"b": second, "a": first})
    house.store.commit()
    house.reopen()
    assert house.restored.limits == [first, second]

    other = first._replace(jobs=5, bytes=7, urgent=None)
    house.store.keep_limits({"a": other, "b": None, "never was": None})
    house.store.commit()
    house.reopen()

    assert house.restored.limits == [other]


def move_to(job: Job, queue: str) -> None:
    job.rewrite = Rewrite(job.queue, job.payload_bytes, job.requeues, False)
    job.queue = queue


def give(job: Job, payload: bytes, *, raw: bool = False) -> None:
    job.rewrite = (job.rewrite or Rewrite(job.queue, job.payload_bytes, job.requeues, False))._replace(has_payload=True)
    job.payload, job.payload_bytes, job.raw = payload, len(payload), raw


def counts(house: House) -> dict[str, LaneCounts]:
    reader = house.store.reader()
    try:
        return {lane.queue: lane for lane in reader.counts()}
    finally:
        reader.close()


def test_a_job_that_changed_its_queue_is_in_the_other_lane_and_counted_there(house: House) -> None:
    stays, goes = house.saved(payload=b"12"), house.saved(payload=b"345")
    move_to(goes, "other")
    house.save(goes)

    assert goes.rewrite is None
    assert ids(house.store.take("default", "t", -2**63, 9)) == [stays.id]
    assert ids(house.store.take("other", "t", -2**63, 9)) == [goes.id]
    assert [(lane.queued, lane.waiting_bytes) for lane in (counts(house)["default"], counts(house)["other"])] == [(1, 2), (1, 3)]
    house.reopen()
    assert house.loaded(goes).queue == "other" and house.loaded(goes).damage is None and house.loaded(goes).payload == b"345"


@pytest.mark.parametrize("before", [3, SMALL_BYTES + 5])
@pytest.mark.parametrize("after", [4, SMALL_BYTES + 9])
def test_another_payload_is_written_and_counted(house: House, before: int, after: int) -> None:
    job = house.saved(payload=b"x" * before)
    give(job, b"y" * after, raw=True)
    house.save(job)
    house.reopen()

    loaded = house.loaded(job)
    assert (loaded.payload, loaded.payload_bytes, loaded.raw, loaded.damage) == (b"y" * after, after, True, None)
    assert house.store.payloads([job.id]) == {job.id: b"y" * after} and counts(house)["default"].waiting_bytes == after
    house.save(finish(loaded))
    assert counts(house)["default"].waiting_bytes == 0


def test_a_job_changed_twice_requeued_and_finished_in_one_batch_is_counted_once(house: House) -> None:
    job = house.new(payload=b"123")
    house.store.apply([job], [])
    requeue(job)
    move_to(job, "second")
    give(job, b"4567")
    house.store.apply([job], [])
    move_to(job, "third")
    house.store.apply([job], [])
    house.save(finish(job))

    shown = {queue: (lane.queued, lane.completed, lane.requeued, lane.waiting_bytes) for queue, lane in counts(house).items()}
    assert shown == {"default": (0, 0, 1, 0), "second": (0, 0, 0, 0), "third": (0, 1, 0, 0)}
    loaded = house.loaded(job)
    assert (loaded.queue, loaded.state, loaded.payload, loaded.damage) == ("third", State.COMPLETED, b"4567", None)
