"""`broker.py --check` on the real program, and the restore that docs/operations.md describes, from end to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.client import Client
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_backup import make_backup
from greenroom.stores.sqlite_opening import DATABASE, RESTORED_SKIP
from tests.processes import ROOT, BrokerProcess
from tests.stores.disk_core import damage
from tests.stores.test_sqlite import new_jobs

WAL = f"{DATABASE}-wal"


@pytest.fixture
def check(certificates: Path) -> Callable[..., tuple[int, str]]:
    """Run --check on a data directory; returns exit code and output."""
    def run(data: Path | str, *flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "broker.py"), "--check", "--data", str(data), "--cert", str(certificates / "server.crt"), "--key",
             str(certificates / "server.key"), *flags], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
        assert "Traceback" not in done.stderr + done.stdout
        return done.returncode, done.stdout + done.stderr
    return run


def filled(folder: Path) -> None:
    store = SqliteStore(folder)
    store.open()
    store.apply(new_jobs(store, 300, b"p" * 300), [])
    store.close()


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return name -> (content, time of the last change) of a directory."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_whole_store_is_found_whole_and_not_touched(tmp_path: Path, check: Callable) -> None:
    filled(tmp_path / "data")
    before = files(tmp_path / "data")

    code, said = check(tmp_path / "data")

    assert code == 0 and said.count("ok") == 9, said
    for part in ("configuration: ok", "certificates: ok", "it is stopped", "pages and indexes: ok", "checksums of all rows: ok"):
        assert part in said
    assert files(tmp_path / "data") == before


def test_a_store_that_was_killed_is_read_with_its_log_and_not_touched(tmp_path: Path, check: Callable) -> None:
    store = SqliteStore(tmp_path / "data")
    store.open()
    for _ in range(3):
        store.apply(new_jobs(store, 100), [])
        store.commit()
    shutil.copytree(tmp_path / "data", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
    store.close()
    before = files(tmp_path / "killed")

    code, said = check(tmp_path / "killed")

    assert code == 0 and "was not stopped cleanly" in said and "log: ok" in said, said
    assert files(tmp_path / "killed") == before
    log = bytearray(before[WAL][0])
    log[len(log) // 3] ^= 4
    (tmp_path / "killed" / WAL).write_bytes(log)
    code, said = check(tmp_path / "killed")
    assert code == 1 and "does not match its checksum" in said, said


def test_it_works_beside_a_running_broker(broker: BrokerProcess, check: Callable) -> None:
    with Client(broker.url, ca=broker.ca) as client:
        client.submit("t")
        code, said = check(broker.data)
        assert code == 0 and "a broker is running on it" in said, said
        client.submit("t")
    assert broker.terminate() == 0


@pytest.mark.parametrize("sql, said", [
    ("UPDATE jobs SET payload = x'00' WHERE id = 7", "job 7: its payload does not match"),
    ("UPDATE jobs SET attempt = 3 WHERE id = 9", "job 9: its row does not match"),
    ("UPDATE lanes SET queued = 299", "299 queued jobs"),
    ("UPDATE meta SET value = 300, sum = NULL WHERE name = 'next_job'", "job number 300 is in use, but not handed out yet"),
    ("UPDATE lanes SET task = 'u'", "lanes: the row of 1"),
    ("DROP INDEX jobs_cancelled", "text of the tables"),
])
def test_what_is_wrong_in_a_store_is_said(tmp_path: Path, check: Callable, sql: str, said: str) -> None:
    filled(tmp_path / "data")
    damage(tmp_path / "data", f"{sql}; UPDATE meta SET value = value WHERE name = 'pruned'")

    code, output = check(tmp_path / "data")

    assert code == 1 and said in output and "docs/operations.md (Damage)" in output, output


def test_damaged_pages_are_said(tmp_path: Path, check: Callable) -> None:
    filled(tmp_path / "data")
    path = tmp_path / "data" / DATABASE
    content = bytearray(path.read_bytes())
    content[len(content) // 2:len(content) // 2 + 4096] = b"\xa5" * 4096
    path.write_bytes(content)

    code, output = check(tmp_path / "data")
    assert code == 1 and "store: pages and indexes: " in output and "pages and indexes: ok" not in output

    path.write_bytes(b"no database at all")
    code, output = check(tmp_path / "data")
    assert code == 1 and "is not a database" in output


def test_a_damaged_job_is_said_everywhere_and_the_broker_goes_on(make_broker: Callable[..., BrokerProcess],
                                                                 start_worker: Callable[..., object]) -> None:
    broker = make_broker()
    with Client(broker.url, ca=broker.ca) as client:
        bad, *good = [client.submit("fibonacci", {"n": 5}).id for _ in range(4)]
    assert broker.terminate() == 0
    damage(broker.data, "UPDATE jobs SET payload = x'81a16e06' WHERE id = ?", bad)  # n = 6
    broker.start()
    start_worker(to=broker)

    with Client(broker.url, ca=broker.ca) as client:
        assert sorted(view["id"] for view in client.wait(good, timeout=60)) == good
        view, = client.get([bad])
        assert view["error"]["code"] == "DAMAGED" and str(bad) in view["error"]["message"]
        assert client.stats()["damaged"] == {"total": 1, "jobs": [bad]} and client.stats()["states"]["queued"] == 0
        assert [getattr(outcome, "code", outcome) for outcome in client.cancel([bad])] == ["DAMAGED"]
    assert broker.get("/readyz") == (200, {"status": "ready", "remarks": ["jobs whose row on disk is damaged: 1 (docs/operations.md, Damage)"]})
    assert broker.get("/api/stats")[1]["damaged"]["total"] == 1
    assert broker.get(f"/api/jobs/{bad}")[1]["error"]["code"] == "DAMAGED"
    assert broker.output.count(f"job {bad} is damaged") == 1


def test_all_errors_of_the_configuration_are_said_and_nothing_is_made(tmp_path: Path, check: Callable) -> None:
    (tmp_path / "broker.toml").write_text("prot = 1\nlease_s = 0\nweb_port = 'x'\n")

    code, said = check(tmp_path / "nowhere", "--config", str(tmp_path / "broker.toml"), "--cert", str(tmp_path / "none.crt"),
                       "--host", "0.0.0.0", env={"GREENROOM_WINDOW_JOBS": "1"})

    assert code == 2
    for part in ("did you mean port?", "lease_s in", "web_port in", "GREENROOM_WINDOW_JOBS", "--host 0.0.0.0", "certificates: "):
        assert part in said, said
    assert "the first start makes it" in said and not (tmp_path / "nowhere").exists()
    assert check("memory:")[0] == 0


def test_a_backup_is_checked_put_in_place_and_started(make_broker: Callable[..., BrokerProcess], check: Callable, tmp_path: Path) -> None:
    broker = make_broker()
    with Client(broker.url, ca=broker.ca) as client:
        before = [client.submit("t", {"n": number}).id for number in range(20)]
        make_backup(broker.data, tmp_path / "backup.db", lambda: False)
        after = [client.submit("t").id for _ in range(5)]
        assert client.cancel(before[:1]) == ["cancelled"]
    assert broker.terminate() == 0

    broker.data.rename(tmp_path / "old")  # as docs/operations.md says
    broker.data.mkdir(mode=0o700)
    shutil.copy(tmp_path / "backup.db", broker.data / DATABASE)
    code, said = check(broker.data)
    assert code == 0 and "it is a backup" in said, said
    broker.start()

    with Client(broker.url, ca=broker.ca) as client:
        views = client.get(before + after)
        assert [view.get("state") or view["error"]["code"] for view in views] == ["queued"] * 20 + ["GONE"] * 5
        assert client.submit("t").id > RESTORED_SKIP
        assert client.stats()["states"]["queued"] == 21
