"""The one backup that a broker makes at a time: begun, made, read in pieces, removed. Must not know sessions or greenlets.

What may wait for the disk runs in threads that the caller brings; they tell what became of it by the attributes of `_Backup`. All
else runs on the hub and never waits. A backup lies in a folder of its own inside the data directory, under a name made here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from greenroom.errors import BusyError, GoneError, GreenroomError, InternalError, InvalidError, StoreError, StoreFullError
from greenroom.stores.sqlite import DATABASE
from greenroom.stores.sqlite_backup import LEAVE_FREE_BYTES, make_backup

log = logging.getLogger(__name__)

FOLDER = "backups"
#: A backup that nobody asked about for so long is removed.
IDLE_S = 180.0
#: … and when the session that asked about it last ended without a word, so soon: time enough to connect again.
RESUME_S = 30.0
#: Threads that may be at work at once: one makes, one removes, one reads a piece.
THREADS = 3
HASH_BYTES = 2**20

_OUR_NAMES = re.compile(r"[0-9a-f]{16}\.db")  # and whatever follows: what SQLite and make_backup put beside it


class _Backup:
    """What there is of a backup.

    Attributes:
        name: what its peer calls it. path: where it lies. peer: who asked about it last. expires_at: when it is removed.
        made, total: bytes made so far, and of the whole (a guess until `sha256` is there).
        error: why it could not be made; cause: the same for the log, None once it was logged.
        is_unwanted: True once it was given up; the thread that makes it then stops and removes what it has.
    """

    __slots__ = ("name", "path", "peer", "expires_at", "made", "total", "sha256", "error", "cause", "is_unwanted")

    def __init__(self, name: bytes, path: Path, total: int) -> None:
        self.name = name
        self.path = path
        self.peer: object = None
        self.expires_at = 0.0
        self.made = 0
        self.total = total
        self.sha256: bytes | None = None
        self.error: GreenroomError | None = None
        self.cause: str | None = None
        self.is_unwanted = False


class Backups:
    """See the module. A peer is whatever the caller uses to tell its peers apart.

    Args:
        data: the store's directory; None for a store without one.
        start: runs something in a thread and returns at once.
        call: runs something in a thread and returns what it returns; raises BusyError if that takes too long.
    """

    def __init__(self, data: Path | None, start: Callable[[Callable[[], None]], object],
                 call: Callable[[Callable[[], bytes]], bytes]) -> None:
        self._data = data
        self._start = start
        self._call = call
        self._current: _Backup | None = None
        self._is_making = self._is_removing = self._is_reading = False  # each is set here and unset by its thread

    # -- what peers ask for -------------------------------------------------------------------------------------------------

    def begin(self, name: bytes, peer: object, now: float) -> dict[str, object]:
        """Begin a backup, or find it begun; return how far it is.

        Raises BusyError, StoreFullError, InvalidError (no disk), or what ended the backup of this name.
        """
        if self._data is None:
            raise InvalidError("this broker keeps its jobs in memory only: there is nothing to copy", field="verb")
        current = self._current
        if current is not None and current.name == name:
            return self._progress(current, peer, now)
        if self._is_making or self._is_removing or (current is not None and current.error is None):
            raise BusyError("there is another backup just now", retry_after_s=1.0)
        size = _check_room(self._data)
        folder = self._data / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        backup = self._current = _Backup(name, folder / f"{os.urandom(8).hex()}.db", size)
        self._is_making = True
        log.info("a backup begins: about %d MiB", size // 2**20)
        self._start(lambda: self._make(backup))
        return self._progress(backup, peer, now)

    def read(self, name: bytes, offset: int, size: int, peer: object, now: float) -> dict[str, object]:
        """Return how far a backup is and, once it is ready, bytes of it. Switches where `call` does.

        Raises GoneError, BusyError, InvalidError (beyond the end), InternalError (the disk), or what ended the backup.
        """
        backup = self._current
        if backup is None or backup.name != name:
            raise GoneError("there is no such backup, or not any more")
        progress = self._progress(backup, peer, now)
        if not progress["ready"]:
            return {**progress, "data": b""}
        if offset > backup.total:
            raise InvalidError(f"offset must be at most {backup.total}, the size of this backup", field="offset")
        if self._is_reading:
            raise BusyError("another piece is being read", retry_after_s=0.05)
        self._is_reading = True
        return {**progress, "data": self._call(lambda: self._read_piece(backup, offset, size))}

    def end(self, name: bytes) -> None:
        """Remove a backup, or stop making it. One that is not there is fine."""
        if self._current is not None and self._current.name == name:
            self._drop()

    @staticmethod
    def _progress(backup: _Backup, peer: object, now: float) -> dict[str, object]:
        backup.peer = peer
        backup.expires_at = now + IDLE_S
        if backup.error is not None:
            raise backup.error.with_traceback(None)  # it may be raised many times, and each would add to it
        return {"ready": backup.sha256 is not None, "made": backup.made, "total": backup.total, "sha256": backup.sha256}

    # -- what happens around them -------------------------------------------------------------------------------------------

    def left(self, peer: object, now: float, *, said_bye: bool) -> None:
        """A peer's session ended; it may come back for its backup unless it said bye."""
        backup = self._current
        if backup is None or backup.peer is not peer:
            return
        if said_bye:
            self._drop()
        else:
            backup.expires_at = min(backup.expires_at, now + RESUME_S)

    def tick(self, now: float) -> None:
        """Remove what nobody asks about any more, and say what went wrong in a thread."""
        backup = self._current
        if backup is None:
            return
        _say_cause(backup)
        if now >= backup.expires_at:
            log.warning("the backup is removed: nobody asked for it any more")
            self._drop()

    def remove_leftovers(self) -> None:
        """Remove what a broker that was killed has left. At start."""
        if self._data is None or not (self._data / FOLDER).is_dir():
            return
        for path in (self._data / FOLDER).iterdir():
            if _OUR_NAMES.match(path.name):
                log.warning("a backup that was not finished is removed: %s", path.name)
                _remove(path)

    def stop(self) -> None:
        """Give up what there is, as the broker ends. What a thread still makes, it removes; else the next start does."""
        backup, self._current = self._current, None
        if backup is not None:
            backup.is_unwanted = True
            _remove(backup.path)

    def _drop(self) -> None:
        backup, self._current = self._current, None
        _say_cause(backup)
        backup.is_unwanted = True
        self._is_removing = True
        self._start(lambda: self._remove_now(backup))

    # -- in threads ---------------------------------------------------------------------------------------------------------

    def _make(self, backup: _Backup) -> None:
        try:
            size = make_backup(self._data, backup.path, lambda: _look(backup))
            digest = _digest(backup)
            backup.made = backup.total = size
            backup.sha256 = digest  # last: with it, it is ready
        except StoreFullError as exc:
            backup.error = StoreFullError("the disk of the broker has no room for a backup", retry_after_s=10.0)
            backup.cause = str(exc)
        except (StoreError, OSError) as exc:
            backup.error, backup.cause = InternalError("the backup failed; the log of the broker says why"), str(exc)
        except Exception as exc:
            backup.error, backup.cause = InternalError("the broker met a bug of its own; it is in its log"), repr(exc)
        finally:
            if backup.is_unwanted or backup.sha256 is None:
                _remove(backup.path)
            self._is_making = False

    def _read_piece(self, backup: _Backup, offset: int, size: int) -> bytes:
        try:
            with open(backup.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except FileNotFoundError:
            backup.error = GoneError("this backup is not there any more")  # so that another may begin
            raise backup.error from None
        except OSError as exc:
            backup.cause = str(exc)
            raise InternalError("the backup cannot be read; the log of the broker says why") from None
        finally:
            self._is_reading = False

    def _remove_now(self, backup: _Backup) -> None:
        _remove(backup.path)
        self._is_removing = False


def _check_room(data: Path) -> int:
    """Return about how large a copy of the store will be; raises StoreFullError if there is no room for it."""
    size = sum(path.stat().st_size for path in (data / DATABASE, data / f"{DATABASE}-wal") if path.exists())
    free = shutil.disk_usage(data).free
    if free < size + LEAVE_FREE_BYTES:
        raise StoreFullError(f"the disk of the broker has {free // 2**20} MiB free; a backup takes {size // 2**20} and leaves "
                             f"{LEAVE_FREE_BYTES // 2**20}", retry_after_s=10.0)
    return size


def _say_cause(backup: _Backup) -> None:
    if backup.cause is not None:
        log.error("the backup failed: %s", backup.cause)
        backup.cause = None


def _look(backup: _Backup) -> bool:
    """Note how far the copy is; return whether to stop."""
    with contextlib.suppress(OSError):
        backup.made = os.stat(f"{backup.path}.part").st_size
    return backup.is_unwanted


def _digest(backup: _Backup) -> bytes:
    digest = hashlib.sha256()
    with open(backup.path, "rb", buffering=0) as file:
        while not backup.is_unwanted and (piece := file.read(HASH_BYTES)):
            digest.update(piece)
    return digest.digest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file that stays is removed at the next start
        path.unlink()
