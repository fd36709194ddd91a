"""Schedules in every store: what is recorded is there after a restart, what was not committed is not; and how SQLite keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from greenroom.errors import StoreError
from greenroom.records import StoredSchedule
from greenroom.stores import open_store
from greenroom.stores.sqlite_check import CHECKS, findings, opened_for_check
from greenroom.stores.sqlite_opening import APPLICATION_ID, DATABASE, MIGRATIONS, run_migration
from tests.crash_store import CrashStore
from tests.stores.test_conformance import House, build  # noqa: F401  (a fixture)


def schedule(name: str = "s", **fields: object) -> StoredSchedule:
    values = {"definition": '{"every": "10s"}', "payload": b"\x80", "next_at": 10.5, "planned_at": None, "last_at": 0.1, "last_job": 7,
              "runs": 3, "skipped": 1, "paused_at": None, "reason": "Grün", **fields}
    return StoredSchedule(name, **values)


def test_schedules_are_there_after_a_restart_by_name(build: Callable[..., House]) -> None:  # noqa: F811
    house = build()
    paused = schedule("a", next_at=None, paused_at=5.0, payload=bytes(65536), last_job=2**53 - 1)
    house.store.apply_schedules({"b": schedule("b"), "a": paused, "gone": schedule("gone")})
    house.store.commit()
    house.store.apply_schedules({"gone": None, "b": schedule("b", runs=4), "never": None})
    house.store.commit()

    house.reopen()

    assert house.restored.schedules == [paused, schedule("b", runs=4)]


def test_the_latest_of_many_changes_before_a_commit_counts(build: Callable[..., House]) -> None:  # noqa: F811
    house = build()
    house.store.apply_schedules({"s": schedule(), "t": schedule("t")})
    house.store.apply_schedules({"s": None})
    house.store.write()
    house.store.apply_schedules({"s": schedule(runs=9), "t": None})
    house.store.commit()
    house.reopen()
    assert house.restored.schedules == [schedule(runs=9)]


def test_many_schedules_are_written_at_once(build: Callable[..., House]) -> None:  # noqa: F811
    house = build()
    many = {f"s{number:04}": schedule(f"s{number:04}", payload=bytes(number % 7 * 9000)) for number in range(700)}
    house.store.apply_schedules(many)
    house.store.commit()
    house.store.apply_schedules({name: None for name in list(many)[::2]})
    house.store.commit()
    house.reopen()
    assert house.restored.schedules == list(many.values())[1::2]


def test_a_schedule_and_its_job_are_one_transaction_in_memory_too() -> None:
    store = CrashStore()
    store.open()
    house = object.__new__(House)
    house.store = store
    store.apply_schedules({"s": schedule()})
    store.commit()
    store.apply([house.new()], [])
    store.apply_schedules({"s": schedule(runs=4)})

    store.crash()

    assert store.open().schedules == [schedule()] and not store._jobs


def test_sqlite_forgets_job_and_schedule_together_when_the_process_dies(tmp_path: Path) -> None:
    house = House(str(tmp_path / "data"))
    house.store.apply_schedules({"s": schedule()})
    house.store.commit()
    job = house.new()
    house.store.apply([job], [])
    house.store.apply_schedules({"s": schedule(runs=4)})
    house.store.write()
    house.store._abandon()  # as a kill -9 leaves it

    house.store = open_store(house.url)
    assert house.store.open().schedules == [schedule()] and not isinstance(house.loaded(job), type(job))
    house.store.close()


@pytest.mark.parametrize("column, value", [("name", "t"), ("definition", "{}"), ("payload", b"\x81"), ("next_at", 11.5), ("runs", 2),
                                           ("reason", "Rot"), ("paused_at", 1.0), ("last_job", None)])
def test_a_changed_bit_is_met_as_damage(tmp_path: Path, column: str, value: object) -> None:
    house = House(str(tmp_path / "data"))
    house.store.apply_schedules({"s": schedule(), "sound": schedule("sound")})
    house.store.commit()
    house.store.close()
    db = apsw.Connection(str(tmp_path / "data" / DATABASE))
    db.execute(f"UPDATE schedules SET {column} = ? WHERE name = 's'", (value,))
    db.close()

    with opened_for_check(tmp_path / "data") as (query, _):
        told = findings(query, CHECKS["checksums of all rows"])
    house.store = open_store(house.url)
    found = house.store.open().schedules
    house.store.close()

    assert len(told) == 1 and "schedules" in told[0]
    assert sorted(record.is_damaged for record in found) == [False, True]
    assert next(record for record in found if not record.is_damaged) == schedule("sound")


def test_a_store_of_schema_4_opens_without_schedules_and_can_be_checked_before(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    db = apsw.Connection(str(folder / DATABASE))
    for name in MIGRATIONS[:4]:
        run_migration(db, name)
    db.pragma("application_id", APPLICATION_ID)
    db.pragma("user_version", 4)
    db.close()

    with opened_for_check(folder) as (query, _):
        assert all(findings(query, check) == [] for name, check in CHECKS.items())
    store = open_store(str(folder))
    assert store.open().schedules == []
    store.apply_schedules({"s": schedule()})
    store.close()
    store = open_store(str(folder))
    assert store.open().schedules == [schedule()]
    store.close()


def test_a_store_that_failed_takes_no_schedule(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "data"))
    store.open()
    store._abandon()
    with pytest.raises(StoreError):
        store.apply_schedules({"s": schedule()})
