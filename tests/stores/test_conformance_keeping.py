"""How long every store keeps finished jobs that ask for it, and failed ones, run against each of them as test_conformance.py does."""

from __future__ import annotations

from collections.abc import Callable

from greenroom.job import Extras, Job, State, rank_of
from greenroom.job_log import Report
from greenroom.records import Gone, LogLine, Lost
from greenroom.stores import Retention
from tests.stores.test_conformance import HOUR, NOW, House, build, finish, house, ids, present, prune_all

__all__ = ["build", "house"]  # fixtures

DAY = 24 * HOUR
FAILED, CANCELLED, EXPIRED = State.FAILED, State.CANCELLED, State.EXPIRED


def asking(house: House, keep_for: float, **fields: object) -> Job:
    job = house.new(**fields)
    job.extras = Extras(keep_for=keep_for)
    return job


def prune_kept(house: House, now: float, limit: int = 100) -> list[int]:
    gone = house.store.prune_kept(now, limit)
    house.store.commit()
    return gone.ids


def test_what_asks_for_it_is_kept_so_long_whatever_age_and_count_say(build: Callable[..., House]) -> None:
    house = build(Retention(60.0, 0, 60.0, 0))
    long, failed, waiting, plain = asking(house, 30 * DAY), asking(house, 30 * DAY), asking(house, 30 * DAY), house.new()
    house.save(long, failed, waiting, plain)
    house.save(finish(long), finish(failed, state=FAILED), finish(plain))

    for _ in range(2):
        prune_all(house, NOW + 29 * DAY)
        assert prune_kept(house, NOW + 29 * DAY) == []
        assert present(house, [long, failed, waiting, plain]) == ids([long, failed, waiting])
        house.reopen()
        assert house.restored.keeping == 3
    assert house.store.prune_kept(NOW + 2 + 30 * DAY, 100) == Gone(ids([long, failed]), 2)
    house.store.commit()
    house.reopen()

    assert present(house, [long, failed, waiting]) == [waiting.id] and house.restored.keeping == 1
    assert house.loaded(long) == house.seen(failed) == Lost(True)
    assert house.restored.lanes[0][2:] == (0, 1, 2, 1, 0, 0, 0, 1), "counts keep what was deleted"


def test_what_asks_for_less_goes_as_soon_with_all_that_there_is_of_it(house: House) -> None:
    jobs = [asking(house, seconds, payload=b"p" * 600) for seconds in (0.0, 5.0, 2.5, HOUR)]
    house.save(*jobs)
    for job in jobs:
        finish(job, result=b"r" * 3000)
        job.report = Report(last=1, half_bytes=6)
        house.store.add_lines([LogLine(job.id, 1, NOW, 1, "a line")], {job.id: 1})
    house.save(*jobs)

    assert prune_kept(house, NOW + 1.9) == []
    assert house.store.prune_kept(NOW + 4.5, 1) == Gone([jobs[0].id], 0), "soonest first, no more than asked for"
    house.reopen()
    assert prune_kept(house, NOW + 4.5) == [jobs[2].id]
    reader = house.store.reader()
    assert reader.lines(jobs[2].id, 0, 10) == [] and len(reader.lines(jobs[1].id, 0, 10)) == 1
    reader.close()
    assert present(house, jobs) == ids([jobs[1], jobs[3]]) and house.restored.keeping == 0
    house.store.delete([jobs[1].id])
    house.store.commit()
    assert prune_kept(house, NOW + 2 * HOUR) == [jobs[3].id]


def test_the_time_of_a_retried_job_begins_with_its_last_end(house: House) -> None:
    job, both = asking(house, 10.0), asking(house, 10.0)
    house.save(job, both)
    house.save(finish(job, state=FAILED), finish(both, state=FAILED))

    for one in (job, both):
        one.state, one.finished_at, one.place = State.QUEUED, None, house.store.block("job", 1)
        one.rank = rank_of(one.priority, one.place)
    house.save(job)
    house.store.apply([both], [])
    house.store.apply([finish(both, at=NOW + 100)], [])  # in one batch
    house.store.commit()
    house.reopen()

    assert prune_kept(house, NOW + 109) == []
    assert prune_kept(house, NOW + 110) == [both.id]
    house.save(finish(job, at=NOW + 200))
    assert prune_kept(house, NOW + 209) == [] and prune_kept(house, NOW + 210) == [job.id]
    assert house.store.prune(NOW + 210, 100) == 0


def test_failed_jobs_are_kept_longer_than_all_others(build: Callable[..., House]) -> None:
    house = build(Retention(age_s=60.0, count=1000, failed_age_s=10 * DAY, failed_count=1000))
    jobs = [house.new() for _ in range(8)]
    house.save(*jobs)
    states = (State.COMPLETED, FAILED, CANCELLED, EXPIRED)
    house.save(*[finish(job, state=states[place % 4]) for place, job in enumerate(jobs)])

    prune_all(house, NOW + 9 * DAY)
    house.reopen()
    prune_all(house, NOW + 9 * DAY)
    assert present(house, jobs) == ids(jobs[1::4])
    prune_all(house, NOW + 11 * DAY)
    assert present(house, jobs) == []


def test_neither_kind_counts_among_the_other(build: Callable[..., House]) -> None:
    house = build(Retention(30 * DAY, 3, 30 * DAY, 2))
    completed, failed, asked = ([house.new() for _ in range(6)] for _ in range(3))
    for job in asked:
        job.extras = Extras(keep_for=20 * DAY)
    house.save(*completed, *failed, *asked)
    house.save(*[finish(job) for job in completed], *[finish(job, state=FAILED) for job in failed],
               *[finish(job, state=FAILED if job.id % 2 else CANCELLED) for job in asked])

    prune_all(house, NOW + HOUR - 10)
    assert len(present(house, [*completed, *failed, *asked])) == 18, "an hour, however many"
    house.store.delete([completed[-1].id, failed[-1].id, asked[-1].id])
    prune_all(house, NOW + 2 * HOUR)
    house.reopen()
    prune_all(house, NOW + 3 * HOUR)

    assert present(house, completed) == ids(completed[2:5])
    assert present(house, failed) == ids(failed[3:5])
    assert present(house, asked) == ids(asked[:5])
