"""Rows that do not match their checksums (I22): set aside, never delivered, never dropped, reported; all else goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from greenroom.errors import DamagedError, StoreError
from greenroom.job import Job, State
from greenroom.records import Lost, Pause, QueueLimit, Submission
from greenroom.stores import Retention
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_check import CHECKS, findings, kept as check_kept, opened_for_check, sums
from greenroom.stores.sqlite_opening import APPLICATION_ID, DATABASE
from greenroom.stores.sums import data_sum, row_sum
from greenroom.views import damaged
from tests.core import new_job, outcome, reserved, submitted
from tests.stores.disk_core import DiskCore, damage
from tests.stores.test_sqlite import new_jobs

LARGE = b"L" * 2_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def core(folder: Path) -> Iterator[DiskCore]:
    core = DiskCore(folder)
    yield core
    core.store.close()


def broken(folder: Path, job_id: int, what: str) -> None:
    """Do one kind of damage to a job."""
    if what == "large payload":
        damage(folder, "UPDATE payloads SET data = ? WHERE job = ?", LARGE[:-1] + b"M", job_id)
    elif what == "no payload":
        damage(folder, "DELETE FROM payloads WHERE job = ?", job_id)
    else:
        damage(folder, f"UPDATE jobs SET {what} WHERE id = ?", job_id)


@pytest.mark.parametrize("what", [
    "payload = x'79'", "payload = x''", "payload_bytes = 3", "large payload", "no payload", "priority = 4", "raw = 1", "attempt = 1", "fence = 77",
    "crashes = 4", "place = 9", "submitted_at = 1", "cancel_requested = 1", "worker = 'w'", "worker = CAST(x'ff' AS TEXT)", "error = '{'",
    "run_at = 5", "row_sum = row_sum + 1", "payload_sum = payload_sum + 1", "result_raw = 1"])
def test_a_damaged_queued_job_is_set_aside_and_the_rest_goes_on(core: DiskCore, folder: Path, caplog: pytest.LogCaptureFixture,
                                                                what: str) -> None:
    ids = submitted(core, *(new_job(payload=LARGE if "large" in what or "no " in what else b"x") for _ in range(5)))
    core.restart()
    broken(folder, ids[1], what)

    worker = core.connect()
    got = [job for _ in range(6) for job in reserved(worker)]

    assert got == [ids[0], *ids[2:]]
    assert damaged(core.engine) == {"total": 1, "jobs": [ids[1]]}
    assert core.engine.waiting == core.engine.waiting_bytes == 0
    lane, = core.engine.lanes.values()
    assert lane.counts[State.QUEUED] == lane.waiting_bytes == 0
    client = core.connect("c", role="client")
    assert outcome(client, client.cancel(ids[1])) == "DAMAGED"
    for job in got:
        assert outcome(worker, worker.settle("ack", job)) == "OK"
    core.restart()
    assert damaged(core.engine)["total"] == 1 and reserved(core.connect()) == []
    assert core.loaded(ids[1]).damage in ("row", "payload")
    assert [counts.queued for counts in core.store.reader().counts()] == [0]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_a_damaged_scheduled_job_is_set_aside_and_the_rest_falls_due(core: DiskCore, folder: Path) -> None:
    ids = submitted(core, *(new_job(delay=100.0 + number) for number in range(4)))
    core.restart()
    core.stop()
    damage(folder, "UPDATE jobs SET payload = x'00' WHERE id = ?", ids[2])
    core._start()

    assert core.engine.scheduled.total == core.engine.waiting == 3
    core.advance(200)
    assert reserved(core.connect(), 10) == [ids[0], ids[1], ids[3]]
    assert damaged(core.engine)["jobs"] == [ids[2]]


def test_a_whole_slice_of_damaged_jobs_does_not_hide_those_behind_it(core: DiskCore, folder: Path) -> None:
    ids = submitted(core, *(new_job() for _ in range(700)))
    core.restart()
    damage(folder, "UPDATE jobs SET payload = x'00' WHERE id <= ?", ids[449])

    worker = core.connect()
    assert [job for _ in range(5) for job in reserved(worker, 200)] == ids[450:]
    assert damaged(core.engine)["total"] == 450 and core.engine.waiting == 0


def test_a_payload_that_is_found_damaged_when_its_job_comes_back_is_not_delivered_again(core: DiskCore, folder: Path) -> None:
    ids = submitted(core, new_job(payload=LARGE), new_job())
    worker = core.connect()
    assert reserved(worker) == ids[:1]
    broken(folder, ids[0], "large payload")

    worker.settle("nack", ids[0])

    assert reserved(worker, 2) == ids[1:] and reserved(worker) == []
    assert damaged(core.engine) == {"total": 1, "jobs": ids[:1]} and core.engine.waiting == 0
    worker.settle("ack", ids[1])
    core.run()
    core.restart()
    assert reserved(core.connect()) == [] and core.loaded(ids[0]).damage == "payload"


def test_a_running_job_whose_row_is_damaged_is_finished_all_the_same(core: DiskCore, folder: Path) -> None:
    ids = submitted(core, new_job(), new_job())
    worker = core.connect()
    reserved(worker)
    broken(folder, ids[0], "crashes = 4")

    assert outcome(worker, worker.settle("ack", ids[0])) == "OK"

    assert core.loaded(ids[0]).state is State.COMPLETED and core.loaded(ids[0]).damage is None, "it was written whole"
    assert reserved(worker) == ids[1:]


@pytest.mark.parametrize("result", [b"r", LARGE])
def test_a_damaged_result_is_an_error_for_who_asks_and_is_reported_once(core: DiskCore, folder: Path, result: bytes,
                                                                       caplog: pytest.LogCaptureFixture) -> None:
    job, = submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    assert outcome(worker, worker.settle("ack", job, result=result)) == "OK"
    core.restart()
    if len(result) == 1:
        damage(folder, "UPDATE jobs SET result = x'00' WHERE id = ?", job)
    else:
        damage(folder, "UPDATE results SET data = x'00' WHERE job = ?", job)

    found = core.store.load([job])[job]
    assert found.damage == "result"
    with pytest.raises(DamagedError, match="its result does not match"):
        core.engine.check_there(job, found)
    if len(result) == 1:
        for _ in range(3):
            core.batches.load([job], lambda jobs: None)
            core.run()
        assert len(caplog.records) == 1 and damaged(core.engine)["jobs"] == [job]


def test_history_never_deletes_what_was_set_aside(folder: Path) -> None:
    core = DiskCore(folder, retention=Retention(60.0, 0))
    ids = submitted(core, new_job(), new_job())
    core.restart()
    damage(folder, "UPDATE jobs SET payload = x'00' WHERE id = ?", ids[0])
    worker = core.connect()
    assert reserved(worker) == ids[1:]
    worker.settle("ack", ids[1])
    core.run()
    damage(folder, "UPDATE jobs SET state = 6, finished_at = 1 WHERE id = ?", ids[0])  # so that it looks finished, long ago

    while core.store.prune(core.now + 10_000, 200):
        core.store.commit()

    assert core.loaded(ids[0]).damage == "row" and core.loaded(ids[1]) == Lost(True)
    core.store.close()


def test_a_damaged_lease_is_dropped_and_its_job_waits_again(core: DiskCore, folder: Path) -> None:
    ids = submitted(core, new_job(), new_job())
    instance = b"i" * 16
    worker = core.connect(instance=instance)
    reserved(worker, 2)
    core.stop()
    damage(folder, "UPDATE leases SET instance = ? WHERE job = ?", b"j" * 16, ids[0])
    damage(folder, "UPDATE leases SET job = 77 WHERE job = ?", ids[1])
    core._start()

    again = core.connect(instance=instance, presented=[(job, worker.held[job]) for job in ids])

    assert [getattr(told, "code", told) for told in again.presented] == ["LEASE_LOST", "LEASE_LOST"]
    assert reserved(again, 2) == ids
    core.restart()
    assert len(core.engine.jobs) == 2


def test_a_damaged_submission_is_told_from_one_that_never_was(folder: Path) -> None:
    store = SqliteStore(folder)
    store.open()
    store.apply([], [Submission(bytes([number]) * 16, b"h" * 16, "[1]", 5.0) for number in range(3)])
    store.commit()
    damage(folder, "UPDATE submissions SET outcome = '[2]' WHERE id = ?", b"\x01" * 16)
    damage(folder, "UPDATE submissions SET outcome = CAST(x'ff' AS TEXT) WHERE id = ?", b"\x02" * 16)

    outcomes = [store.submission(bytes([number]) * 16) for number in range(4)]

    assert [found and found.outcome for found in outcomes] == ["[1]", "", "", None]
    store.close()


@pytest.mark.parametrize("sql, said", [
    ("UPDATE meta SET value = value + 64 WHERE name = 'next_job'", "number next_job"),
    ("UPDATE meta SET value = 0 WHERE name = 'next_fence'", "number next_fence"),
    ("DELETE FROM meta WHERE name = 'next_fence'", "number next_fence"),
    ("UPDATE meta SET value = 1 WHERE name = 'pruned'", "of which 1 were deleted"),
    ("UPDATE meta SET value = 1 WHERE name = 'pruned_failed'", "failed jobs are counted of which 1 were deleted"),
    ("UPDATE meta SET value = 7 WHERE name = 'keeping'", "number keeping"),
    ("UPDATE lanes SET task = 'u'", "the name of lane 1"),
    ("UPDATE lanes SET queue = 'u'", "the name of lane 1"),
])
def test_damaged_numbers_and_lanes_end_the_start(folder: Path, sql: str, said: str) -> None:
    store = SqliteStore(folder)
    store.open()
    store.apply(new_jobs(store, 3), [])
    store.block("fence", 5)
    store.close()
    damage(folder, sql)

    with pytest.raises(StoreError, match=said):
        SqliteStore(folder).open()


@pytest.mark.parametrize("sql, said", [
    ("UPDATE kept_jobs SET failed = 1", None), ("UPDATE kept_jobs SET until = until - 100", "job 1 is noted to be kept until"),
    ("UPDATE kept_jobs SET failed = 0", "job 1 is noted"), ("UPDATE kept_jobs SET job = 3", "job 3 is noted"),
    ("DELETE FROM kept_jobs", "job 1 asked how long it is kept"), ("UPDATE jobs SET extras = '{'", "1 jobs that ask")])
def test_what_is_noted_of_kept_jobs_is_checked_and_put_right_from_their_rows(folder: Path, caplog: pytest.LogCaptureFixture, sql: str,
                                                                             said: str | None) -> None:
    core = DiskCore(folder, retention=Retention(60.0, 0, 60.0, 0))
    kept, plain, waiting = submitted(core, new_job(keep_for=7200.1), new_job(), new_job(delay=1e6))
    worker = core.connect()
    reserved(worker, 2)
    worker.settle("fail", kept)
    worker.settle("ack", plain)
    core.run()
    core.restart()
    damage(folder, sql)

    with opened_for_check(folder) as (query, _):
        found = findings(query, check_kept)
    assert (said is None and not found) or said in found[0] + (found[-1] if found else "")
    core.store.prune_kept(core.now + 7150.0, 10)
    assert isinstance(core.store.load([kept])[kept], Job), "not before its time"
    assert ("is put right" in caplog.text) == ("- 100" in sql)
    core.store.close()


def version_1(folder: Path) -> None:
    """Make a store as the first version did: two jobs, one with a large payload, and a submission."""
    folder.mkdir()
    db = apsw.Connection(str(folder / DATABASE))
    db.execute((Path("greenroom/stores/migrations/sqlite_001_first.sql")).read_text())
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1; PRAGMA journal_mode = wal")
    db.execute("UPDATE meta SET value = 100; UPDATE meta SET value = 0 WHERE name = 'pruned'")
    db.execute("INSERT INTO lanes (id, queue, task, queued, waiting_bytes) VALUES (1, 'q', 't', 2, 2001)")
    for job_id, payload, size in ((1, b"x", 1), (2, None, len(LARGE))):
        db.execute("INSERT INTO jobs (id, lane, state, rank, priority, place, raw, submitted_at, fence, attempt, payload_bytes, payload) "
                   "VALUES (?1, 1, 2, 5 * 9007199254740992 + ?1, 5, ?1, 0, 1.0, 0, 0, ?3, ?2)", (job_id, payload, size))
    db.execute("INSERT INTO payloads VALUES (2, ?)", (LARGE,))
    db.execute("INSERT INTO submissions VALUES (?, ?, '[1, 2]', 1.0)", (b"s" * 16, b"h" * 16))
    db.close()


def test_failed_jobs_of_an_older_schema_are_counted_as_they_are(folder: Path) -> None:
    version_1(folder)
    db = apsw.Connection(str(folder / DATABASE))
    db.execute("UPDATE lanes SET queued = 1, waiting_bytes = 1, completed = 4, failed = 3; UPDATE meta SET value = 6 WHERE name = 'pruned'")
    db.execute("UPDATE jobs SET state = 5, finished_at = 2.0 WHERE id = 2")
    db.close()
    store = SqliteStore(folder, Retention(60.0, 0, 1e9, 0))
    store.open()
    while store.prune(7000.0, 10):
        store.commit()
    store.close()

    with opened_for_check(folder) as (query, _):
        assert [finding for check in CHECKS.values() for finding in findings(query, check)] == []
        assert query("SELECT name, value FROM meta WHERE name LIKE 'pruned%' ORDER BY name", ()) == [("pruned", 7), ("pruned_failed", 3)]


def test_a_store_of_schema_1_keeps_its_jobs_and_gets_sums_as_rows_are_written(folder: Path) -> None:
    version_1(folder)
    core = DiskCore(folder)
    assert core.store.submission(b"s" * 16).outcome == "[1, 2]"
    worker = core.connect()
    assert reserved(worker, 5) == [1, 2] and worker.payloads == {1: b"x", 2: LARGE}
    worker.settle("ack", 1)
    core.run()
    core.restart()

    sums = core.store._query("SELECT id, row_sum IS NOT NULL, result_sum IS NOT NULL FROM jobs ORDER BY id", ())
    assert sums == [(1, 1, 1), (2, 1, 0)], "the second got a lease when the broker stopped"
    assert all(value is not None for value, in core.store._query("SELECT sum FROM lanes", ()))
    core.store.close()


@pytest.mark.parametrize("change, named, row", [
    ("UPDATE pauses SET until = 8.0", "the pause of queue mail", "pauses: the row of queue"),
    ("UPDATE queue_limits SET max_jobs = 1", "the limit of queue mail", "queue_limits: the row of mail")])
def test_a_damaged_pause_or_limit_ends_the_start_as_nobody_knows_what_it_holds_back(folder: Path, change: str, named: str, row: str) -> None:
    store = SqliteStore(folder)
    store.open()
    store.keep_pauses({("queue", "mail"): Pause("queue", "mail", 1.0, 9.0, "why", "ann")})
    store.keep_limits({"mail": QueueLimit("mail", 1000, None, 2, 10, 1.0, "why", "ann")})
    store.commit()
    store.close()
    damage(folder, change)

    with pytest.raises(StoreError, match=f"{named}; nothing was changed"):
        SqliteStore(folder).open()
    with opened_for_check(folder) as (query, _):
        assert list(sums(query)) == [f"{row} does not match its checksum"]


def test_every_column_that_is_written_is_summed(folder: Path) -> None:
    store = SqliteStore(folder)
    store.open()
    names = [row[1] for row in store._query("PRAGMA table_info(jobs)", ())]
    store.apply(new_jobs(store, 1), [])
    job = store.load([1])[1]
    job.state, job.finished_at, job.result, job.error = State.FAILED, 5.0, b"r", {"name": "E", "message": "", "traceback": ""}
    store.apply([job], [])
    store.commit()
    not_summed = {"row_sum", "payload_sum", "result_sum"}
    before = {name: store._query(f"SELECT {name} FROM jobs", ())[0][0] for name in names}
    for name in (name for name in names if name not in not_summed | {"id", "payload", "result"}):
        value = before[name]
        other = f"{value}x" if isinstance(value, str) else "x" if name == "worker" else (value or 0) + 1
        if name == "state":
            other = int(State.CANCELLED)
        damage(folder, f"UPDATE jobs SET {name} = ?", other)
        assert store.load([1])[1].damage == "row", f"{name} is not summed"
        damage(folder, f"UPDATE jobs SET {name} = ?", value)
        assert store.load([1])[1].damage is None
    store.close()


def test_what_a_sum_costs_on_the_way_of_a_submit(folder: Path) -> None:
    store = SqliteStore(folder)
    store.open()
    jobs = new_jobs(store, 2_000)
    store.close()

    def spent() -> float:
        began = time.perf_counter()
        for job in jobs:
            row_sum(job, 2, None, None)
            data_sum(job.id, job.payload)
        return time.perf_counter() - began

    each_us = min(spent() for _ in range(20)) / len(jobs) * 1e6
    print(f"\nboth sums of a new job: {each_us:.2f} µs")
    assert each_us < 10, "some µs would be a third of what a row costs"
