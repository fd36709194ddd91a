"""From a directory to a SQLite connection: lock, header, migrations, settings, what a backup becomes. Must not know jobs' rules.

Everything here either succeeds or raises StoreError with nothing changed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import apsw

from greenroom.errors import StoreError
from greenroom.job import NUMBER_LIMIT
from greenroom.stores.sums import record_sum

DATABASE = "greenroom.db"
LOCK = "greenroom.lock"

#: "GRNR": bytes 68 to 71 of the file say whose it is.
APPLICATION_ID = 0x47524E52
#: "GRNB": the file is a backup that no store was opened on yet (sqlite_backup.py).
BACKUP_ID = 0x47524E42

#: A store that is opened on a backup hands out no number of which it can't know whether it was handed out after the backup: it
#: goes on so much higher. That is 115 days at 100,000 jobs a second, and allows 9,000 restores.
RESTORED_SKIP = 10**12

#: File n brings the schema to version n, which is the file's user_version.
MIGRATIONS = ("sqlite_001_first.sql", "sqlite_002_sums.sql", "sqlite_003_life.sql", "sqlite_004_expiry.sql", "sqlite_005_unique.sql",
              "sqlite_006_schedules.sql", "sqlite_007_pauses.sql", "sqlite_008_log_lines.sql", "sqlite_009_not_completed.sql",
              "sqlite_010_queue_limits.sql", "sqlite_011_kept_jobs.sql")

#: SQLite up to 3.51.2 may corrupt a WAL that several connections use (sqlite.org/wal.html, "The WAL-reset bug").
OLDEST_SQLITE = (3, 51, 3)

#: How long somebody else's lock (a person's sqlite3 shell) may hold up a statement, and with it the whole broker.
BUSY_TIMEOUT_MS = 250


def sentence(exc: apsw.Error | OSError) -> str:
    """Say what went wrong, for people."""
    if isinstance(exc, apsw.FullError):
        return "the disk is full"
    if isinstance(exc, (apsw.CorruptError, apsw.NotADBError)):
        return f"the database is damaged ({exc})"
    if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
        return "another program holds a lock on the database"
    if isinstance(exc, apsw.IOError):
        return f"the disk does not work ({exc})"
    return str(exc)


def make_folder(folder: Path) -> None:
    """Make the data directory if it is not there; refuse one that can't be used."""
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            sync_folder(folder.parent)
    except OSError as exc:
        raise StoreError(f"data directory {folder} cannot be made: {exc.strerror}") from exc
    if not folder.is_dir():
        raise StoreError(f"data directory {folder} is a file, not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"data directory {folder} is not writable")


def sync_folder(folder: Path) -> None:
    """Make new names in a directory survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(folder: Path) -> int:
    """Take the lock that is held as long as the store is open; return its file descriptor.

    The file stays when the lock goes: removing it would let two processes lock two files of the same name.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"data directory {folder} is not writable: {exc.strerror}") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(f"data directory {folder} is in use by pid {pid}") from None
    except OSError as exc:
        os.close(handle)
        raise StoreError(f"data directory {folder} cannot be locked: {exc.strerror}") from exc
    return handle


def check_header(path: Path) -> None:
    """Refuse a file that is not ours by its first 100 bytes (sqlite.org/fileformat.html section 1.3), before SQLite sees it.

    No connection of this process may be open to it: closing a file drops the process's locks on it.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    if not header or (not any(header) and path.with_name(path.name + "-journal").exists()):
        return  # new, or its first transaction was cut off by a power loss: SQLite's journal takes it back
    if len(header) < 100 or header[:16] != b"SQLite format 3\0":
        raise StoreError(f"{path} is not a database; nothing was changed")
    owner = int.from_bytes(header[68:72], "big")
    if owner not in (APPLICATION_ID, BACKUP_ID):
        raise StoreError(f"{path} is not a database of Greenroom's; nothing was changed")
    check_version(int.from_bytes(header[60:64], "big"), path)
    if owner == BACKUP_ID:
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise StoreError(f"{path} is a backup, but {log.name} beside it belongs to the store that it replaces: move that "
                             "away, and -shm with it; nothing was changed")


def check_version(version: int, path: Path) -> None:
    """Refuse a schema that this version does not know."""
    if version > len(MIGRATIONS):
        raise StoreError(f"{path} was written by a newer version (schema {version}, this one knows {len(MIGRATIONS)}); "
                         "nothing was changed")


def run_migration(db: apsw.Connection, name: str) -> None:
    """Run one script of migrations/."""
    db.execute((Path(__file__).parent / "migrations" / name).read_text(encoding="utf-8"))


def migrate(db: apsw.Connection) -> None:
    """Bring the schema to this version, each step in one transaction.

    A new file gets its schema before it is turned to WAL: so the header that check_header reads is right from the start.
    """
    db.pragma("synchronous", 2)
    for version, name in enumerate(MIGRATIONS, start=1):
        if version <= db.pragma("user_version"):
            continue
        db.execute("BEGIN IMMEDIATE")
        run_migration(db, name)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("COMMIT")


def skip_numbers(db: apsw.Connection, path: Path) -> None:
    """Make a backup a store: from now on it hands out only numbers that nobody can have got after the backup was made.

    Without a log, as migrate does it: after a crash in between SQLite's journal makes the file a backup again.
    """
    db.pragma("journal_mode", "delete")
    db.pragma("synchronous", 2)
    db.execute("BEGIN IMMEDIATE")
    highest = db.execute("SELECT max(value) FROM meta WHERE name IN ('next_job', 'next_fence')").get
    if highest + RESTORED_SKIP >= NUMBER_LIMIT // 2:
        raise StoreError(f"{path} was restored so often that its numbers run out")
    has_sums = db.pragma("user_version") >= 2
    for name in ("next_job", "next_fence"):
        columns = "value, sum" if has_sums else "value, NULL"
        value, expected = db.execute(f"SELECT {columns} FROM meta WHERE name = ?", (name,)).fetchone()
        if expected not in (None, record_sum(name, value)):
            raise StoreError(f"{path} is damaged: the number {name}; nothing was changed")
        db.execute("UPDATE meta SET value = ? WHERE name = ?", (value + RESTORED_SKIP, name))
        if has_sums:
            db.execute("UPDATE meta SET sum = ? WHERE name = ?", (record_sum(name, value + RESTORED_SKIP), name))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("COMMIT")


def set_pragmas(db: apsw.Connection, pragmas: dict[str, object]) -> None:
    """Set each and read it back."""
    for name, value in pragmas.items():
        db.pragma(name, value)
        kept = db.pragma(name)
        if kept != value:
            raise StoreError(f"SQLite did not take {name} = {value}: it says {kept}")
