"""Backups of an open store: whole, made beside a writer that never rests, gone when incomplete; and what a restore hands out."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import gevent
import pytest
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from greenroom.errors import StoreError, StoreFullError
from greenroom.job import Job
from greenroom.stores import sqlite_backup
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_opening import BACKUP_ID, DATABASE, RESTORED_SKIP
from greenroom.stores.sqlite_backup import make_backup
from tests.stores.sync_vfs import SyncRecorder
from tests.stores.test_sqlite import new_jobs

really_sleep = get_original("time", "sleep")  # in a thread that has no hub

WAL = f"{DATABASE}-wal"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "copy.db"


@pytest.fixture
def store(folder: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(folder)
    store.open()
    yield store
    store.close()


def never() -> bool:
    return False


def restored(target: Path, folder: Path) -> SqliteStore:
    """Do what docs/operations.md says about a restore, and open the result."""
    folder.mkdir()
    shutil.copy(target, folder / DATABASE)
    return SqliteStore(folder)


def rows(store: SqliteStore) -> dict[int, bytes]:
    """Return id -> payload of all jobs that wait in the lane of new_jobs."""
    return {job.id: job.payload for job in store.take("default", "t", -2**63, 10**6)}


def backup_while_writing(store: SqliteStore, folder: Path, target: Path) -> tuple[int, int, list[Job]]:
    """Make a copy in a thread while this one commits jobs; returns its size, the jobs acked when it began, and all in the end."""
    acked: list[Job] = []
    looks: list[int] = []

    def note() -> bool:
        looks.append(len(acked))
        deadline = time.monotonic() + 60
        while len(acked) <= looks[0] and len(looks) > 1 and time.monotonic() < deadline:
            really_sleep(0.001)
        return False

    pool = ThreadPool(1)
    copying = pool.spawn(make_backup, folder, target, note)
    while not copying.ready():
        jobs = new_jobs(store, 50, os.urandom(300))
        store.apply(jobs, [])
        store.commit()
        acked.extend(jobs)
        gevent.sleep(0)
    pool.join()
    assert looks[-1] > looks[0], "nothing was written while the copy was made"
    return copying.get(), looks[0], acked


def test_a_copy_made_beside_a_writer_that_never_rests_is_one_moment_of_the_store(store: SqliteStore, folder: Path, target: Path,
                                                                                 tmp_path: Path) -> None:
    for _ in range(20):
        store.apply(new_jobs(store, 1_000, b"x" * 500), [])
        store.commit()

    size, acked_before, acked = backup_while_writing(store, folder, target)

    assert size == target.stat().st_size and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    copy = restored(target, tmp_path / "restored")
    lanes = copy.open().lanes
    found = rows(copy)
    assert lanes[0].queued == len(found) >= 20_000 + acked_before - 50
    written = {job.id: job.payload for job in acked}
    assert all(written[job_id] == payload for job_id, payload in found.items() if job_id > 20_000)
    assert sorted(found) == list(range(1, len(found) + 1)), "it holds a commit but not one before it"
    assert copy._db.execute("PRAGMA integrity_check").get == "ok"
    copy.close()


def test_a_copy_holds_what_is_still_in_the_log(store: SqliteStore, folder: Path, target: Path, tmp_path: Path) -> None:
    store.apply(new_jobs(store, 10), [])
    store.commit()
    assert (folder / WAL).stat().st_size > 0

    make_backup(folder, target, never)

    copy = restored(target, tmp_path / "restored")
    copy.open()
    assert rows(copy) == rows(store)
    copy.close()


def test_a_restored_store_hands_out_no_number_that_was_handed_out_after_the_backup(store: SqliteStore, folder: Path, target: Path,
                                                                                   tmp_path: Path) -> None:
    store.block("fence", 100)
    store.apply(new_jobs(store, 10), [])
    store.commit()
    make_backup(folder, target, never)
    after = {name: store.block(name, 1_000_000) + 999_999 for name in ("job", "fence")}

    copy = restored(target, tmp_path / "restored")
    copy.open()
    first = {name: copy.block(name, 1) for name in ("job", "fence")}
    copy.close()

    assert all(after[name] < first[name] < after[name] + RESTORED_SKIP for name in first)
    again = SqliteStore(tmp_path / "restored")
    again.open()
    assert again.block("job", 1) == first["job"] + 1, "it skips once"
    assert sorted(rows(again)) == list(range(1, 11))
    again.close()


def test_a_restore_of_a_restore_skips_again_and_a_backup_that_ran_out_of_numbers_is_refused(store: SqliteStore, folder: Path,
                                                                                            target: Path, tmp_path: Path) -> None:
    make_backup(folder, target, never)
    copy = restored(target, tmp_path / "restored")
    copy.open()
    make_backup(tmp_path / "restored", target.with_name("second.db"), never)
    copy.block("job", 2**52)
    copy.commit()
    make_backup(tmp_path / "restored", target.with_name("third.db"), never)
    copy.close()

    second = restored(target.with_name("second.db"), tmp_path / "second")
    second.open()
    assert second.block("job", 1) > 2 * RESTORED_SKIP
    second.close()
    third = restored(target.with_name("third.db"), tmp_path / "third")
    with pytest.raises(StoreError, match="numbers run out"):
        third.open()


def test_a_plain_copy_can_be_marked_as_a_backup_by_hand(store: SqliteStore, folder: Path) -> None:
    """As docs/operations.md says it for copies that were made without make_backup."""
    store.apply(new_jobs(store, 10), [])
    store.close()

    subprocess.run([sys.executable, "-m", "apsw", str(folder / DATABASE), f"PRAGMA application_id = {BACKUP_ID}"], check=True, timeout=60)

    assert BACKUP_ID == 1196576322, "the number in docs/operations.md"
    again = SqliteStore(folder)
    again.open()
    assert again.block("job", 1) > RESTORED_SKIP and len(rows(again)) == 10
    again.close()


def test_a_backup_beside_the_old_store_s_log_is_refused(store: SqliteStore, folder: Path, target: Path) -> None:
    store.apply(new_jobs(store, 10), [])
    store.commit()
    make_backup(folder, target, never)
    store.apply(new_jobs(store, 10), [])
    store.commit()
    log = (folder / WAL).read_bytes()
    store.close()
    shutil.copy(target, folder / DATABASE)
    (folder / WAL).write_bytes(log)  # SQLite would play it into the backup without a word

    with pytest.raises(StoreError, match="belongs to the store that it replaces"):
        SqliteStore(folder).open()
    assert (folder / WAL).read_bytes() == log and (folder / DATABASE).read_bytes() == target.read_bytes()

    (folder / WAL).unlink()
    successor = SqliteStore(folder)
    assert successor.open().lanes[0].queued == 10
    successor.close()


def test_a_copy_that_is_stopped_leaves_nothing(store: SqliteStore, folder: Path, target: Path) -> None:
    for _ in range(5):
        store.apply(new_jobs(store, 1_000, b"x" * 500), [])
        store.commit()
    looks = iter([False, False, True])

    with pytest.raises(StoreError, match="was stopped"):
        make_backup(folder, target, lambda: next(looks))

    assert list(target.parent.iterdir()) == []
    make_backup(folder, target, never)


def test_a_killed_copy_s_rest_is_no_hindrance_and_an_existing_file_is_not_overwritten(store: SqliteStore, folder: Path,
                                                                                     target: Path) -> None:
    target.with_name("copy.db.part").write_bytes(b"half")
    make_backup(folder, target, never)
    before = target.read_bytes()

    with pytest.raises(StoreError, match="is there already"):
        make_backup(folder, target, never)
    assert target.read_bytes() == before and [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_copy_for_which_there_is_no_room_is_refused_and_leaves_nothing(store: SqliteStore, folder: Path, target: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_backup, "LEAVE_FREE_BYTES", 2**60)

    with pytest.raises(StoreFullError, match="must stay free"):
        make_backup(folder, target, never)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere/copy.db", "file/copy.db"])
def test_a_target_that_cannot_be_made_is_an_error(store: SqliteStore, folder: Path, target: Path, name: str) -> None:
    (target.parent / "file").write_text("x")

    with pytest.raises(StoreError, match="backup of"):
        make_backup(folder, target.parent / name, never)


def test_a_source_that_is_no_store_is_an_error_and_leaves_nothing(tmp_path: Path, target: Path) -> None:
    with pytest.raises(StoreError, match="backup of"):
        make_backup(tmp_path / "nowhere", target, never)
    assert list(target.parent.iterdir()) == []


class Failing(SyncRecorder):
    """A disk that takes so many writes and then none."""

    left = 0

    def record(self, file: str, kind: str) -> None:
        super().record(file, kind)
        if kind == "write":
            self.left -= 1
            if self.left < 0:
                raise apsw.IOError("no more writes")


def test_a_crash_at_any_write_of_the_first_start_after_a_restore_leaves_a_backup_or_a_store_that_skipped(
        store: SqliteStore, folder: Path, target: Path, tmp_path: Path) -> None:
    make_backup(folder, target, never)
    disk = Failing("greenroom-test-failing")
    outcomes = []
    for moment in range(1, 60, 2):
        place = tmp_path / f"restored{moment}"
        restored(target, place)
        disk.left = moment
        opened = SqliteStore(place, vfs="greenroom-test-failing")
        try:
            opened.open()
            opened.close()
            outcomes.append("opened")
        except StoreError:
            outcomes.append("failed")
            opened.close()

        again = SqliteStore(place)
        again.open()
        assert RESTORED_SKIP < again.block("job", 1) < 2 * RESTORED_SKIP, f"after write {moment}"
        again.close()
    disk.unregister()
    assert outcomes.count("failed") > 5 and outcomes[-1] == "opened"
