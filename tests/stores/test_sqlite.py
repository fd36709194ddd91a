"""What only the SQLite store has: its files, lock, checks at open, settings, syncs, and what a kill leaves."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from greenroom.errors import StoreError
from greenroom.job import Job, State, rank_of
from greenroom.records import Lost, Submission
from greenroom.stores import sqlite, sqlite_pruning
from greenroom.stores.sqlite import PRAGMAS, READER_PRAGMAS, SqliteStore
from greenroom.stores.sqlite_rows import STATEMENT_BYTES, Rows
from tests.stores.sync_vfs import SyncRecorder

ROOT = Path(__file__).resolve().parents[2]
WAL = "greenroom.db-wal"


def new_jobs(store: SqliteStore, count: int, payload: bytes = b"p" * 100) -> list[Job]:
    first = store.block("job", count)
    jobs = []
    for job_id in range(first, first + count):
        job = Job(job_id, "default", "t", 5, payload, False, 1_000.0)
        job.place = job_id
        job.rank = rank_of(5, job_id)
        jobs.append(job)
    return jobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(folder)
    store.open()
    yield store
    store.close()


def filled(folder: Path, count: int = 2_000) -> dict[str, bytes]:
    """Make a store, stop it cleanly, and return its files."""
    store = SqliteStore(folder)
    store.open()
    store.apply(new_jobs(store, count), [])
    store.close()
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of all files but the lock, which says who looked last."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "greenroom.lock"}


def refusal(folder: Path) -> str:
    with pytest.raises(StoreError) as caught:
        SqliteStore(folder).open()
    return str(caught.value)


def test_a_second_opener_is_told_who_has_it(store: SqliteStore, folder: Path) -> None:
    assert f"in use by pid {os.getpid()}" in refusal(folder)

    script = f"from greenroom.stores.sqlite import SqliteStore; SqliteStore({str(folder)!r}).open()"
    other = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert other.returncode == 1 and f"in use by pid {os.getpid()}" in other.stderr

    store.apply(new_jobs(store, 1), [])
    store.commit()


def test_a_closed_store_can_be_opened_by_another(store: SqliteStore, folder: Path) -> None:
    store.close()
    successor = SqliteStore(folder)
    successor.open()
    successor.close()


def test_the_directory_and_its_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "above" / "data")
        store.open()
        store.apply(new_jobs(store, 1), [])
        store.commit()
    finally:
        os.umask(before)
    folder = tmp_path / "above" / "data"

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    store.close()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes == {name: 0o600 for name in ("greenroom.db", WAL, "greenroom.db-shm", "greenroom.lock")}


def test_the_settings_are_those_that_were_asked_for(store: SqliteStore) -> None:
    assert {name: store._db.pragma(name) for name in PRAGMAS} == PRAGMAS
    assert PRAGMAS["journal_mode"] == "wal" and PRAGMAS["synchronous"] == 2
    reader = store.reader()
    with pytest.raises(StoreError):
        reader._query("DELETE FROM jobs", ())
    reader.close()
    assert READER_PRAGMAS["query_only"] == 1


def test_a_setting_that_does_not_stick_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRAGMAS, "cache_size", "many")

    assert "did not take cache_size = many" in refusal(folder)


def test_a_newer_schema_is_refused_and_not_touched(folder: Path) -> None:
    filled(folder)
    with sqlite3.connect(folder / "greenroom.db") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = files(folder)

    assert "newer version (schema 99" in refusal(folder)
    assert files(folder) == before


def test_a_newer_schema_that_is_still_in_the_log_is_refused_and_not_touched(folder: Path) -> None:
    filled(folder)
    newer = apsw.Connection(str(folder / "greenroom.db"))
    newer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    newer.pragma("user_version", 99)
    newer.close()
    before = files(folder)
    assert len(before[WAL]) > 0

    assert "newer version (schema 99" in refusal(folder)
    after = files(folder)
    assert (after["greenroom.db"], after[WAL]) == (before["greenroom.db"], before[WAL])


def test_somebody_else_s_database_is_refused_and_not_touched(folder: Path) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / "greenroom.db") as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    before = files(folder)

    assert "not a database of Greenroom's" in refusal(folder)
    assert files(folder) == before


@pytest.mark.parametrize("content", [b"hello\n", b"\0" * 10_000, b"SQLite format 3\0", random.Random(3).randbytes(4096)])
def test_a_file_that_is_no_database_is_refused_and_not_touched(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "greenroom.db").write_bytes(content)

    assert "not a database" in refusal(folder)
    assert files(folder) == {"greenroom.db": content}


@pytest.mark.parametrize("place", ["schema", "middle", "cut"])
def test_a_damaged_file_is_refused_and_not_touched(folder: Path, place: str) -> None:
    whole = filled(folder)["greenroom.db"]
    if place == "schema":
        damaged = whole[:100] + b"\xff" * 3_996 + whole[4_096:]
    elif place == "middle":
        page = len(whole) // 8192 * 4096
        damaged = whole[:page] + b"\xa5" * 4_096 + whole[page + 4_096:]
    else:
        damaged = whole[:len(whole) // 8192 * 4096]
    (folder / "greenroom.db").write_bytes(damaged)

    assert "damaged" in refusal(folder)
    assert files(folder)["greenroom.db"] == damaged


def test_damage_met_later_is_an_error_not_a_wrong_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled(folder, 20_000)["greenroom.db"]
    damage = slice(len(whole) // 16384 * 4096, len(whole) // 8192 * 4096)  # pages that SQLite checks late
    damaged = bytearray(whole)
    damaged[damage] = b"\xa5" * (damage.stop - damage.start)
    (folder / "greenroom.db").write_bytes(damaged)
    monkeypatch.setattr(sqlite, "CHECK_S", -1.0)  # as in a file too large to be checked whole
    store = SqliteStore(folder)
    store.open()

    with pytest.raises(StoreError, match="damaged"):
        store.load(list(range(1, 20_001)))
    with pytest.raises(StoreError, match="failed before"):
        store.commit()
    store.close()


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    assert "is a file" in refusal(tmp_path / "file")
    assert "cannot be made" in refusal(tmp_path / "file" / "data")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    assert "not writable" in refusal(folder)


def test_a_database_that_is_a_directory_is_refused(folder: Path) -> None:
    (folder / "greenroom.db").mkdir(parents=True)
    assert "directory" in refusal(folder)


def test_a_refused_open_leaves_the_lock_free(folder: Path) -> None:
    folder.mkdir()
    (folder / "greenroom.db").write_bytes(b"x")
    refusal(folder)
    (folder / "greenroom.db").unlink()

    store = SqliteStore(folder)
    store.open()
    store.close()


KILLED = """
import sys, signal
from greenroom.stores.sqlite import SqliteStore
from tests.stores.test_sqlite import new_jobs
store = SqliteStore(sys.argv[1])
store.open()
store.apply(new_jobs(store, 500), [])
store.commit()
store.apply(new_jobs(store, 500), [])
print("applied", flush=True)
signal.pause()
"""


def test_a_kill_between_apply_and_commit_loses_only_what_was_not_committed(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "applied\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        child.stdout.close()

    store = SqliteStore(folder)
    restored = store.open()

    assert restored.lanes[0].queued == 500
    assert [job.id for job in store.take("default", "t", -2**63, 1_000)] == list(range(1, 501))
    assert store.load([501]) == {501: Lost(False)}
    assert store.block("job", 1) == 501
    store.close()


@pytest.fixture
def recorder() -> Iterator[SyncRecorder]:
    recorder = SyncRecorder("greenroom-test-recorder")
    yield recorder
    recorder.unregister()


def test_each_commit_syncs_the_log_before_it_returns(folder: Path, recorder: SyncRecorder) -> None:
    store = SqliteStore(folder, vfs="greenroom-test-recorder")
    store.open()
    for _ in range(5):
        writes, syncs = recorder.count(WAL, "write"), recorder.count(WAL, "sync")
        store.apply(new_jobs(store, 50), [])
        assert recorder.count(WAL, "sync") == syncs, "apply must not wait for the disk"
        store.commit()
        assert recorder.count(WAL, "write") > writes
        assert recorder.unsynced(WAL) == 0
    store.close()


def test_the_recorder_notices_when_nothing_is_synced(folder: Path, recorder: SyncRecorder) -> None:
    store = SqliteStore(folder, vfs="greenroom-test-recorder")
    store.open()
    store._db.pragma("synchronous", 0)
    store.apply(new_jobs(store, 50), [])
    store.commit()

    assert recorder.unsynced(WAL) > 0
    store.close()


class _FullDisk(SyncRecorder):
    """A recorder whose disk can be filled."""

    is_full = False

    def record(self, file: str, kind: str) -> None:
        if self.is_full and kind in ("write", "sync"):
            raise apsw.FullError("database or disk is full")
        super().record(file, kind)


def test_a_full_disk_ends_the_store_and_leaves_what_was_committed(folder: Path) -> None:
    disk = _FullDisk("greenroom-test-full")
    try:
        store = SqliteStore(folder, vfs="greenroom-test-full")
        store.open()
        store.apply(new_jobs(store, 10), [])
        store.commit()
        store.apply(new_jobs(store, 10), [])
        disk.is_full = True
        with pytest.raises(StoreError, match="disk is full"):
            store.commit()
        disk.is_full = False
        with pytest.raises(StoreError, match="failed before"):
            store.apply([], [])
        store.close()
    finally:
        disk.unregister()

    store = SqliteStore(folder)
    assert store.open().lanes[0].queued in (10, 20), "the outcome of a failed commit is unknown, but it is all or nothing"
    store.close()


def test_a_commit_on_another_thread_is_seen_by_a_reader_on_a_third(store: SqliteStore) -> None:
    store.apply(new_jobs(store, 300), [])
    commit = threading.Thread(target=store.commit)
    commit.start()
    commit.join(timeout=30)
    found: list[int] = []

    def read() -> None:
        reader = store.reader()
        found.extend(job.id for job in reader.page(before=None, limit=500)[0])
        reader.close()

    reading = threading.Thread(target=read)
    reading.start()
    reading.join(timeout=30)
    assert found == list(range(300, 0, -1))


def test_the_log_stays_bounded_while_a_reader_comes_and_goes(store: SqliteStore, folder: Path) -> None:
    reader = store.reader()
    for _ in range(60):
        store.apply(new_jobs(store, 1_000, payload=b"p" * 500), [])
        store.commit()
        assert len(reader.page(before=None, limit=20)[0]) == 20
    reader.close()

    assert (folder / WAL).stat().st_size < 32 * 1024 * 1024


def test_windows_use_their_index_and_never_sort(store: SqliteStore) -> None:
    statements = ((sqlite._TAKE, (1, 0, 9), "jobs_queued"), (sqlite._TAKE_SCHEDULED, (0, 0, 9), "jobs_scheduled"),
                  (sqlite._CANCELLED, (), "jobs_cancelled"), (sqlite._LEASES, (), "SCAN leases"), (sqlite_pruning._KEPT_DUE, (0.0, 9), "kept_jobs_until"),
                  (sqlite_pruning._DUE.format(**sqlite_pruning._FAILED_ROWS), (1, 2, 0.0, 9), "jobs_not_completed"))
    for sql, bindings, index in statements:
        plan = " ".join(row[3] for row in store._query(f"EXPLAIN QUERY PLAN {sql}", bindings))
        assert index in plan and "TEMP B-TREE" not in plan, sql


def test_unexpected_kinds_of_values_are_refused_by_the_table(store: SqliteStore) -> None:
    job, = new_jobs(store, 1)
    job.state = State.COMPLETED  # without finished_at
    store.apply([job], [Submission(b"s" * 16, b"h" * 16, "{}", 1.0)])

    with pytest.raises(StoreError, match="CHECK"):
        store.write()


def test_no_statement_holds_more_than_a_mebibyte_of_large_values_unless_it_is_one(store: SqliteStore) -> None:
    jobs = new_jobs(store, 600, b"p" * 5_000) + new_jobs(store, 3, b"q" * 2**20)
    ran: list[tuple[str, int, int]] = []  # what, rows, bytes of its large values

    def execute(statement: str, values: list) -> None:
        large = [len(value) for value in values if isinstance(value, (bytes, str)) and len(value) > 600]
        ran.append((statement.split("(")[0].strip(), statement.count("(?,"), sum(large)))

    rows = Rows()
    rows.add(jobs)
    rows.write(execute)
    for job in jobs:
        job.state, job.finished_at, job.payload = State.FAILED, 2.0, None
        job.error = {"name": "E", "message": "m" * 4_000, "traceback": "t" * 8_000}
    rows.add(jobs)
    rows.write(execute)

    assert sum(count for what, count, _ in ran if what == "INSERT INTO payloads") == 603
    assert all(size <= STATEMENT_BYTES or count == 1 for _, count, size in ran), ran
    assert {count for what, count, _ in ran if what == "INSERT INTO payloads"} >= {1, 128}
    assert max(count for what, count, size in ran if what == "WITH new" and size) == 64
