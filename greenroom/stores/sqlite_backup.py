"""A copy of an open SQLite store, made beside its writer. Must not write to the store, or know who asked and where the copy goes.

The copy is one snapshot: a read transaction is held while the pages are copied. Measured beside a writer that commits all the
time, 300 MiB: without the held transaction each commit makes SQLite start again, so it never ended; held, the slowest
commit took 0.13 s (64 KiB steps were no better); VACUUM INTO, one long statement, made one wait for 0.49 s. What it costs is
log: the writer cannot reuse it until the copy is done, so the log grows by what is written meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw

from greenroom.errors import StoreError, StoreFullError
from greenroom.stores.sqlite_opening import BACKUP_ID, BUSY_TIMEOUT_MS, DATABASE, sentence, sync_folder

#: Pages of 4 KiB copied between two looks at `should_stop`: about a millisecond.
STEP_PAGES = 256
#: … and between two syncs, so that a COMMIT's fsync never finds hundreds of megabytes of ours before it in the disk's queue.
SYNC_PAGES = 2048

#: A copy leaves so much of the disk free: twice what new jobs need (disk_room.MIN_FREE_BYTES).
LEAVE_FREE_BYTES = 128 * 2**20


def make_backup(source: Path, target: Path, should_stop: Callable[[], bool]) -> int:
    """Copy a store that may be open and written to; return the copy's size in bytes.

    Runs for as long as the disk needs (about 0.1 GiB a second): call it in a thread. The target appears whole or not at all,
    synced, mode 0600, marked as a backup: a store that is opened on it skips numbers (SqliteStore.open).

    Args:
        source: the data directory.
        target: the file to make, on any file system; its directory must exist and the file must not. `<target>.part` beside it
            is used while copying.
        should_stop: asked about every millisecond of work; True ends the copy with StoreError.

    Raises:
        StoreFullError: the disk of the target has not enough room; nothing is left of the copy.
        StoreError: anything else went wrong, or `should_stop` said so; nothing is left of the copy.
    """
    if target.exists():
        raise StoreError(f"{target} is there already")
    part = target.with_name(target.name + ".part")
    try:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()  # left by a process that was killed
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy(source / DATABASE, part, file, should_stop)
            _mark(file)
            os.fsync(file)
            size = os.fstat(file).st_size
        finally:
            os.close(file)
        os.rename(part, target)
        sync_folder(target.parent)
        return size
    except apsw.FullError as exc:
        raise StoreFullError(f"there is no room for the copy {target}") from exc
    except apsw.Error as exc:
        raise StoreError(f"backup of {source}: {sentence(exc)}") from exc
    except OSError as exc:
        raise StoreError(f"backup of {source} to {target}: {exc.strerror}") from exc
    finally:
        for name in (part, *(part.with_name(part.name + end) for end in ("-journal", "-wal", "-shm"))):
            with contextlib.suppress(OSError):
                name.unlink()


def _copy(database: Path, part: Path, file: int, should_stop: Callable[[], bool]) -> None:
    source = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        source.set_busy_timeout(BUSY_TIMEOUT_MS)
        source.execute("BEGIN")
        pages = source.pragma("page_count")  # begins to read, and so pins the snapshot
        _check_room(part, pages * source.pragma("page_size"))
        target = apsw.Connection(str(part), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            target.pragma("journal_mode", "off")
            target.pragma("synchronous", 0)  # synced here, see SYNC_PAGES
            with target.backup("main", source, "main") as copying:
                while not copying.done:
                    if should_stop():
                        raise StoreError(f"the copy of {database} was stopped")
                    copying.step(STEP_PAGES)
                    if (copying.page_count - copying.remaining) % SYNC_PAGES < STEP_PAGES:
                        os.fdatasync(file)
                        _check_room(part, 0)
        finally:
            target.close()
    finally:
        source.close()


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed + LEAVE_FREE_BYTES:
        raise StoreFullError(f"{free // 2**20} MiB are free for a copy of {needed // 2**20} MiB, and "
                             f"{LEAVE_FREE_BYTES // 2**20} MiB must stay free")


def _mark(file: int) -> None:
    """Say in the header (sqlite.org/fileformat.html, section 1.3) that this is a backup, and that no log belongs to it."""
    os.pwrite(file, b"\x01\x01", 18)
    os.pwrite(file, BACKUP_ID.to_bytes(4, "big"), 68)
