"""What every store must do for pages, search, counts and deletions, run against each of them as test_conformance.py does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from greenroom.failures import fingerprint
from greenroom.filters import EVERY, Filter
from greenroom.job import FINISHED_STATES, SMALL_BYTES, Job, Run, State
from greenroom.records import LogLine, Lost
from greenroom.stores import Retention, memory, sqlite_search
from tests.stores.test_conformance import FINISHED, NOW, House, build, finish, grant, house, ids

__all__ = ["build", "house"]  # fixtures

UNFINISHED = frozenset({State.SCHEDULED, State.QUEUED})


def walk_pages(house: House, limit: int = 7, **wanted: object) -> list[int]:
    """Return the ids of all pages; what is counted must be as much."""
    reader = house.store.reader()
    found, before = [], None
    for _ in range(1_000):
        jobs, before = reader.page(Filter(**wanted), before=before, limit=limit)
        found += ids(jobs)
        if before is None:
            break
    else:
        raise AssertionError("the pages never came to an end")
    counted = 0
    while True:
        some, before = reader.count(Filter(**wanted), before)
        counted += some
        if before is None:
            break
    reader.close()
    assert counted == len(found)
    return found


@pytest.fixture(params=["at once", "a few at a time"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at all jobs, or at so few at a time that every edge of a range is met."""
    if request.param == "a few at a time":
        for name, number in (("SCAN_S", 0.0), ("FIRST_IDS", 5), ("FIRST_IDS_OF_TEXT", 3), ("MOST_IDS", 9), ("MOST_WAITING", 0)):
            monkeypatch.setattr(sqlite_search, name, number)
        monkeypatch.setattr(memory, "_PAGE_SCAN_ROWS", 5)


@pytest.mark.usefixtures("steps")
def test_pages_go_from_newest_to_oldest_and_filters_combine(house: House) -> None:
    rng = random.Random(11)
    jobs = []
    for number in range(300):
        if number % 50 == 49:
            house.store.block("job", rng.choice([3, 1_000_000]))  # numbers that were never used
        jobs.append(house.new(queue=rng.choice("ab"), task=rng.choice(["t", "u.a", "u.b", "uvw"]), payload=rng.choice(
            [b"\xa5Apple", b"\xa5pear!", b"x" * SMALL_BYTES + b"aPPle", b"\xff" * 5000 + b"apple"]),
            run_at=rng.choice([None, None, NOW + 50.0])))
        jobs[-1].submitted_at = NOW + number
    house.save(*jobs)
    for job in jobs:
        if rng.random() < 0.6:
            grant(job, job.id, worker=rng.choice(["w1", "w2"]))
            finish(job, state=rng.choice(FINISHED), at=NOW + rng.randrange(600),
                   result=rng.choice([None, b"\xa5Apfel", b"y" * 600 + b"apfel"]))
            if job.state is State.FAILED:
                job.result = None
                job.error = {"name": rng.choice(["TimeoutError", "KeyError"]), "message": "no \"apple\" in caf\u00e9", "traceback": "line 1\nX()"}
    house.save(*jobs)
    house.reopen()
    texts = ("APPLE", "apfel", "\"Apple\" in", "keyerror", "CAF\u00e9", "1\nx()", "message", "pear", "nothing of the kind")

    def expect(wanted: Callable[[Job], bool]) -> list[int]:
        return [job.id for job in reversed(jobs) if wanted(job)]

    def check(**wanted: object) -> None:
        assert walk_pages(house, **wanted) == expect(Filter(**wanted).fits), wanted

    assert walk_pages(house) == expect(lambda job: True)
    assert walk_pages(house, queue="a") == expect(lambda job: job.queue == "a")
    assert walk_pages(house, task="u.*") == expect(lambda job: job.task in ("u.a", "u.b")) == walk_pages(house, limit=1000, task="u.*")
    assert walk_pages(house, worker="w2") == expect(lambda job: job.worker == "w2")
    assert walk_pages(house, error="KeyError") == expect(lambda job: bool(job.error) and job.error["name"] == "KeyError") != []
    assert walk_pages(house, states=frozenset({State.COMPLETED}), queue="b", task="uvw", worker="w1") == expect(
        lambda job: (job.state, job.queue, job.task, job.worker) == (State.COMPLETED, "b", "uvw", "w1")) != []
    for states in ({State.FAILED}, {State.QUEUED}, {State.SCHEDULED}, UNFINISHED, FINISHED_STATES, {State.FAILED, State.EXPIRED},
                   {State.COMPLETED, State.SCHEDULED}):
        check(states=frozenset(states))
        check(states=frozenset(states), task="u*", created_after=NOW + 40)
    check(created_after=NOW + 100, created_before=NOW + 200)
    check(finished_after=NOW + 100.0)
    check(finished_before=NOW + 100.0, states=frozenset({State.FAILED, State.COMPLETED}))
    check(id_from=jobs[20].id, id_to=jobs[130].id, queue="a")
    check(id_from=jobs[-1].id + 1)
    for text in texts:
        check(text=text)
        check(text=text, states=frozenset({State.FAILED}))
    for job in [job for job in jobs if job.state is State.FAILED][:3]:
        check(fingerprint=fingerprint(job.task, job.error))
        check(fingerprint=fingerprint(job.task, job.error), states=frozenset({State.FAILED}), queue="a", text="apple")
    check(fingerprint="0" * 16)
    assert walk_pages(house, text="message") == [] and walk_pages(house, text="APPLE") != [], "names of fields are no text of the job"
    assert walk_pages(house, queue="none") == walk_pages(house, task="x*") == walk_pages(house, states=UNFINISHED, queue="none") == []
    assert walk_pages(house, states=frozenset({State.RUNNING})) == walk_pages(house, states=frozenset({State.QUEUED})), "recorded as queued"


def test_a_full_last_page_has_no_next_one(house: House) -> None:
    jobs = [house.new() for _ in range(6)]
    house.save(*jobs)
    reader = house.store.reader()

    assert reader.page(before=None, limit=6)[1] is None
    assert reader.page(before=None, limit=5)[1] == jobs[1].id
    assert ids(reader.page(before=jobs[1].id, limit=5)[0]) == [jobs[0].id]
    assert reader.page(before=jobs[0].id, limit=5) == ([], None)
    assert reader.page(EVERY, before=None, limit=5)[1] == jobs[1].id
    reader.close()


def test_a_rare_match_is_found_in_steps_of_bounded_length(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [house.new() for _ in range(45_000)]
    jobs[3].task = "rare"
    house.save(*jobs)
    reader = house.store.reader()
    monkeypatch.setattr(sqlite_search, "SCAN_S", 0.0)  # one range a page, the first of 4,000 ids

    steps, before, found = 0, None, []
    while steps == 0 or before is not None:
        some, before = reader.page(Filter(task="rare"), before=before, limit=10)
        assert some == [] or before is None
        found += ids(some)
        steps += 1
        assert steps <= 45_000 // 4_000 + 1
    reader.close()

    assert found == [jobs[3].id] and steps > 2


def test_a_damaged_error_spoils_no_page(house: House) -> None:
    job = house.saved()
    job.error = {"name": "E", "message": "a line\nmore"}
    house.save(finish(job, state=State.FAILED, result=None))

    assert walk_pages(house, text="LINE\nM") == walk_pages(house, error="E") == [job.id], "one without a traceback"


# -- delete -----------------------------------------------------------------------------------------------------------------


def test_of_a_deleted_job_nothing_is_left_but_that_it_was(house: House) -> None:
    jobs = [house.new(payload=payload) for payload in (b"p", b"P" * 2000, b"q", b"r")]
    house.save(*jobs)
    for number, job in enumerate(jobs[:3]):
        job.runs = [Run(1, "w1", NOW, NOW + 1, "failed", None)]
        grant(job, 10 + number)
        finish(job, state=FINISHED[number], result=b"R" * 3000 if number == 0 else None)
        house.store.add_lines([LogLine(job.id, 1, NOW, 1, "a line")], {job.id: 1})
    house.save(*jobs[:3])
    before = house.store.reader().counts()

    house.store.add_lines([LogLine(jobs[0].id, 2, NOW, 1, "one that was not written yet")], {})
    house.store.delete(ids(jobs[:2]))
    assert all(house.loaded(job) == Lost(True) for job in jobs[:2]), "what is read next sees it"
    house.store.commit()
    for _ in range(2):
        reader = house.store.reader()
        for job in jobs[:2]:
            assert house.loaded(job) == house.seen(job) == Lost(True)
            assert reader.runs(job.id) == reader.lines(job.id, 0, 10) == []
        assert house.loaded(jobs[2]).state is FINISHED[2] and len(reader.runs(jobs[2].id)) == len(reader.lines(jobs[2].id, 0, 10)) == 1
        assert reader.counts() == before, "what ended is counted as before, as if it had been pruned"
        assert ids(reader.page(before=None, limit=9)[0]) == ids(jobs[:1:-1])
        reader.close()
        house.reopen()
    house.store.delete([jobs[2].id])
    house.store.close()
    house.reopen()
    assert house.loaded(jobs[2]) == Lost(True) and house.loaded(jobs[3]).payload == b"r"


def test_retention_counts_what_was_deleted_as_gone(build: Callable[..., House]) -> None:
    house = build(Retention(age_s=30 * 86400.0, count=10))
    jobs = [house.new() for _ in range(20)]
    house.save(*jobs)
    house.save(*[finish(job, at=NOW) for job in jobs])
    house.store.delete(ids(jobs[10:]))
    house.store.commit()

    for at in range(5):
        house.store.prune(NOW + 7200 + at, 100)
        house.store.commit()
    assert all(isinstance(house.loaded(job), Job) for job in jobs[:10])
