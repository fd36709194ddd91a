"""What every store must do for the log lines of jobs, run against each of them as test_conformance.py does."""

from __future__ import annotations

from greenroom.job import Extras, Job
from greenroom.job_log import Report, take_lines
from greenroom.records import LogLine, Lost
from tests.stores.test_conformance import NOW, House, build, finish, grant, house

__all__ = ["build", "house"]  # fixtures


def lines_of(house: House, job: Job, after: int = 0, limit: int = 1000) -> list[LogLine]:
    reader = house.store.reader()
    try:
        return reader.lines(job.id, after, limit)
    finally:
        reader.close()


def written(job: Job, *texts: str) -> list[LogLine]:
    return take_lines(job, [(NOW + 1, text) for text in texts])


def test_log_lines_are_read_in_order_once_they_are_committed(house: House) -> None:
    job, other = house.saved(), house.saved()
    grant(job, 1)
    lines = written(job, "one", "", "drei \u00fc \x00\n", "x" * 2000)
    house.store.add_lines(lines + written(other, "another's"), {})
    house.store.apply([job, other], [])
    house.store.write()
    assert lines_of(house, job) == []

    house.store.commit()

    assert lines_of(house, job) == lines and lines_of(house, job, 1, 2) == lines[1:3] and lines_of(house, job, 4) == []
    assert [line.text for line in lines_of(house, other)] == ["another's"]
    house.reopen()
    assert lines_of(house, job) == lines
    assert house.loaded(job).report == job.report and house.loaded(job).damage is None


def test_a_job_keeps_what_it_noted_of_its_runs_with_its_other_options(house: House) -> None:
    job = house.new()
    job.extras = Extras(attempts=7)
    job.report = Report(0.5, "half \u00fc")
    house.save(job)
    house.save(finish(job))
    house.reopen()

    assert (house.loaded(job).report, house.loaded(job).extras) == (job.report, job.extras)
    assert house.seen(job).report == job.report


def test_older_lines_go_when_the_job_says_so_and_all_go_with_their_job(house: House) -> None:
    job, kept = house.saved(), house.saved()
    for first in range(0, 2500, 500):
        lines = written(job, *(str(number) for number in range(first, first + 500)))
        house.store.add_lines(lines, {job.id: job.report.first} if job.report.first > 1 else {})
        house.save(job)
    assert [line.text for line in lines_of(house, job)] == [str(number) for number in range(1500, 2500)]
    empty = house.saved()
    house.store.add_lines(written(kept, "stays") + written(empty, ""), {})
    house.save(kept, empty)

    house.save(finish(job, at=NOW - 30 * 86400), finish(empty, at=NOW - 30 * 86400), finish(kept, at=NOW))
    while house.store.prune(NOW, 10):
        house.store.commit()
    house.store.commit()

    assert house.loaded(job) == Lost(True) and lines_of(house, job) == lines_of(house, empty) == []
    assert [line.text for line in lines_of(house, kept)] == ["stays"]
