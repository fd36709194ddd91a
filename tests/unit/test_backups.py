"""The broker's one backup: who gets it, when it is removed, what becomes of errors. Time is a number, threads run when told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom import backups as module
from greenroom.backups import FOLDER, IDLE_S, RESUME_S, Backups
from greenroom.errors import BusyError, GoneError, InternalError, InvalidError, StoreFullError
from greenroom.stores import sqlite_backup
from greenroom.stores.sqlite import DATABASE, SqliteStore

ONE, TWO = b"1" * 16, b"2" * 16
PEER, OTHER = object(), object()


class Threads:
    """Runs what is started when the test says so."""

    def __init__(self) -> None:
        self.started: list[Callable[[], None]] = []

    def run(self) -> None:
        """Run all that was started."""
        while self.started:
            self.started.pop(0)()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    store = SqliteStore(tmp_path / "data")
    store.open()
    store.close()
    return tmp_path / "data"


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def backups(data: Path, threads: Threads) -> Backups:
    return Backups(data, threads.started.append, lambda work: work())


def files(data: Path) -> list[str]:
    return sorted(os.listdir(data / FOLDER))


def test_a_backup_is_made_read_in_pieces_and_removed(backups: Backups, threads: Threads, data: Path) -> None:
    begun = backups.begin(ONE, PEER, 0.0)
    assert (begun["ready"], begun["sha256"]) == (False, None) and begun["total"] > 0
    assert backups.read(ONE, 0, 100, PEER, 0.0)["data"] == b""
    threads.run()

    ready = backups.read(ONE, 0, 2**20, PEER, 1.0)
    pieces = [backups.read(ONE, offset, 5000, PEER, 1.0)["data"] for offset in range(0, ready["total"] + 1, 5000)]

    assert ready["ready"] and ready["made"] == ready["total"] == len(ready["data"])
    assert b"".join(pieces) == ready["data"] and hashlib.sha256(ready["data"]).digest() == ready["sha256"]
    [name] = files(data)
    assert (data / FOLDER / name).stat().st_mode & 0o777 == 0o600 and (data / FOLDER).stat().st_mode & 0o777 == 0o700

    backups.end(ONE)
    threads.run()
    assert files(data) == []


def test_the_same_begin_finds_its_backup_and_another_is_busy_until_the_first_is_gone(backups: Backups, threads: Threads) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    assert backups.begin(ONE, OTHER, 1.0)["ready"]
    with pytest.raises(BusyError):
        backups.begin(TWO, OTHER, 1.0)
    backups.end(ONE)
    with pytest.raises(BusyError):
        backups.begin(TWO, OTHER, 1.0)  # the first still lies on the disk
    threads.run()
    assert not backups.begin(TWO, OTHER, 1.0)["ready"]


def test_ending_a_backup_that_is_being_made_stops_it_and_leaves_nothing(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    backups.end(ONE)

    threads.run()

    assert files(data) == []
    with pytest.raises(GoneError):
        backups.read(ONE, 0, 1, PEER, 0.0)
    backups.begin(TWO, PEER, 0.0)


def test_a_backup_given_up_as_its_copy_ends_is_removed_all_the_same(backups: Backups, threads: Threads, data: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up_too_late_to_stop(source: Path, target: Path, should_stop: Callable[[], bool]) -> int:
        backups.end(ONE)
        threads.run()  # the removal finds nothing yet
        return sqlite_backup.make_backup(source, target, lambda: False)

    monkeypatch.setattr(module, "make_backup", give_up_too_late_to_stop)
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    assert files(data) == []


def test_only_its_name_opens_a_backup(backups: Backups, threads: Threads) -> None:
    with pytest.raises(GoneError):
        backups.read(ONE, 0, 1, PEER, 0.0)
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    with pytest.raises(GoneError):
        backups.read(TWO, 0, 1, PEER, 0.0)
    backups.end(TWO)
    assert backups.read(ONE, 0, 1, PEER, 0.0)["data"] == b"S"


def test_nothing_lies_beyond_the_end(backups: Backups, threads: Threads) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()
    total = backups.begin(ONE, PEER, 0.0)["total"]

    assert len(backups.read(ONE, total - 1, 10, PEER, 0.0)["data"]) == 1
    assert backups.read(ONE, total, 10, PEER, 0.0)["data"] == b""
    with pytest.raises(InvalidError) as told:
        backups.read(ONE, total + 1, 10, PEER, 0.0)
    assert told.value.field == "offset"


def test_a_backup_that_nobody_asks_about_is_removed(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()
    backups.read(ONE, 0, 1, PEER, 100.0)

    backups.tick(100.0 + IDLE_S - 1)
    assert not threads.started
    backups.tick(100.0 + IDLE_S)
    threads.run()

    assert files(data) == []
    backups.tick(1e6)  # nothing is there


def test_a_session_that_ends_may_come_back_for_a_while_and_none_after_bye(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    backups.left(OTHER, 10.0, said_bye=True)
    backups.left(PEER, 10.0, said_bye=False)
    backups.tick(10.0 + RESUME_S - 1)
    assert backups.read(ONE, 0, 1, OTHER, 10.0 + RESUME_S - 1)["ready"]
    backups.tick(10.0 + RESUME_S + 1)
    assert files(data)
    backups.left(OTHER, 50.0, said_bye=True)
    threads.run()

    assert files(data) == []


def test_a_session_that_does_not_come_back_loses_its_backup(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    backups.left(PEER, 10.0, said_bye=False)
    backups.tick(10.0 + RESUME_S)
    threads.run()

    assert files(data) == []


def test_without_room_nothing_is_begun(backups: Backups, threads: Threads, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_FREE_BYTES", 2**60)

    with pytest.raises(StoreFullError) as told:
        backups.begin(ONE, PEER, 0.0)

    assert told.value.retry_after_s and not threads.started and not (data / FOLDER).exists()
    monkeypatch.undo()
    assert not backups.begin(ONE, PEER, 0.0)["ready"]


def test_a_disk_that_fills_meanwhile_is_told_to_who_reads_and_frees_the_place(
        backups: Backups, threads: Threads, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    backups.begin(ONE, PEER, 0.0)
    monkeypatch.setattr(sqlite_backup, "LEAVE_FREE_BYTES", 2**60)
    threads.run()

    for _ in range(2):
        with pytest.raises(StoreFullError):
            backups.read(ONE, 0, 1, PEER, 0.0)
    backups.tick(1.0)
    assert "the backup failed" in caplog.text and files(data) == []
    monkeypatch.undo()
    assert not backups.begin(TWO, OTHER, 0.0)["ready"]


def test_a_store_that_cannot_be_copied_is_an_error_without_a_path(backups: Backups, threads: Threads, data: Path) -> None:
    (data / DATABASE).write_bytes(b"no database at all" * 1000)
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    with pytest.raises(InternalError) as told:
        backups.read(ONE, 0, 1, PEER, 0.0)
    assert str(data) not in told.value.message and files(data) == []


def test_a_file_that_somebody_removed_is_gone(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    threads.run()
    (data / FOLDER / files(data)[0]).unlink()

    for _ in range(2):
        with pytest.raises(GoneError):
            backups.read(ONE, 0, 1, PEER, 0.0)
    assert not backups.begin(TWO, OTHER, 0.0)["ready"]


def test_one_piece_is_read_at_a_time(data: Path, threads: Threads) -> None:
    def call(work: Callable[[], bytes]) -> bytes:
        with pytest.raises(BusyError):
            backups.read(ONE, 0, 1, OTHER, 0.0)
        return work()

    backups = Backups(data, threads.started.append, call)
    backups.begin(ONE, PEER, 0.0)
    threads.run()

    assert backups.read(ONE, 0, 4, PEER, 0.0)["data"] == b"SQLi"
    assert backups.read(ONE, 4, 2, PEER, 0.0)["data"] == b"te"


def test_a_start_removes_what_a_killed_broker_left_and_nothing_else(backups: Backups, data: Path) -> None:
    backups.remove_leftovers()
    (data / FOLDER).mkdir()
    for name in ("0123456789abcdef.db", "0123456789abcdef.db.part", "0123456789abcdef.db.part-journal", "mine.db", "notes"):
        (data / FOLDER / name).touch()

    backups.remove_leftovers()

    assert files(data) == ["mine.db", "notes"]


def test_stopping_removes_what_is_ready_and_stops_what_is_made(backups: Backups, threads: Threads, data: Path) -> None:
    backups.begin(ONE, PEER, 0.0)
    backups.stop()
    threads.run()
    assert files(data) == []

    backups.begin(TWO, PEER, 0.0)
    threads.run()
    backups.stop()
    assert files(data) == []


def test_a_store_in_memory_has_nothing_to_copy(threads: Threads) -> None:
    backups = Backups(None, threads.started.append, lambda work: work())

    with pytest.raises(InvalidError) as told:
        backups.begin(ONE, PEER, 0.0)
    assert told.value.field == "verb"
    backups.remove_leftovers()
    backups.stop()
