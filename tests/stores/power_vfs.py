"""A SQLite VFS that keeps what is synced apart from what is not, so that the power can be cut at any moment; and disks that fail.

Real files are behind it, and hold what a running process sees. `events` is what happened to them, in order; `image` says what the disk
may hold if the power is cut after so many of them. Sectors of 512 bytes are written whole or not at all, in any order between two syncs
(sqlite.org/atomiccommit.html says what a disk may do). It knows nothing of stores.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apsw

SECTOR = 512


class Event(NamedTuple):
    """One thing that happened to a file: write, truncate, sync, delete, or a mark that a test made."""

    file: str  # base name
    kind: str
    offset: int = 0  # of a write; size after a truncate; 1 for a delete that was synced
    data: bytes = b""
    is_lost: bool = False  # a sync failed after it: no later one brings it to the disk


class Fault(NamedTuple):
    """The k-th operation of a kind fails."""

    kind: str  # read, write or sync
    at: int  # counted from 1
    error: Callable[[], Exception]
    times: int = 1
    file: str = ""  # part of the file's name
    is_short: bool = False  # half of a write is done before it fails


class PowerDisk(apsw.VFS):
    """Registers itself under a name: give that to SqliteStore(…, vfs=name), keep it alive meanwhile, and unregister it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[Event] = []
        self.faults: list[Fault] = []
        self.counts = {"read": 0, "write": 0, "sync": 0}
        self.slow_sync_s = 0.0
        super().__init__(name, base="")

    def xOpen(self, name: object, flags: list[int]) -> _File:
        """Open a file whose life is recorded."""
        return _File(self, name, flags)

    def xDelete(self, filename: str, sync_folder: bool) -> None:
        """Delete a file; SQLite says whether its name must be gone for good."""
        super().xDelete(filename, sync_folder)
        self.events.append(Event(os.path.basename(filename), "delete", int(sync_folder)))

    def mark(self, what: str) -> None:
        """Note what has happened outside: an answer that left, say."""
        self.events.append(Event("", "mark", 0, what.encode()))

    def fail(self, kind: str, at: int, error: Callable[[], Exception], **options: object) -> None:
        """Have the `at`-th operation of this kind from now on fail."""
        self.counts[kind] = 0
        self.faults.append(Fault(kind, at, error, **options))

    def meet(self, kind: str, file: str) -> Fault | None:
        """Count an operation; return the fault that it meets."""
        if not any(fault.kind == kind and fault.file in file for fault in self.faults):
            return None
        self.counts[kind] += 1
        for fault in self.faults:
            if fault.kind == kind and fault.at <= self.counts[kind] < fault.at + fault.times:
                return fault
        return None

    def lose_unsynced(self, file: str) -> None:
        """A sync failed, and the kernel marked the pages clean: what waited for it never gets to the disk (ATC '20, Rebello et al.)."""
        for place in range(len(self.events) - 1, -1, -1):
            event = self.events[place]
            if event.file == file and event.kind == "sync":
                return
            if event.file == file:
                self.events[place] = event._replace(is_lost=True)


class _File(apsw.VFSFile):
    def __init__(self, disk: PowerDisk, name: object, flags: list[int]) -> None:
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = os.path.basename(path) if path else "(temporary)"
        super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        fault = self._disk.meet("read", self._name)
        if fault is not None:
            raise fault.error()
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        fault = self._disk.meet("write", self._name)
        if fault is not None:
            if fault.is_short:
                self._write(bytes(data)[:len(data) // 2], offset)
            raise fault.error()
        self._write(data, offset)

    def _write(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.events.append(Event(self._name, "write", offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._disk.events.append(Event(self._name, "truncate", size))

    def xSync(self, flags: int) -> None:
        if self._disk.slow_sync_s:
            time.sleep(self._disk.slow_sync_s)
        fault = self._disk.meet("sync", self._name)
        if fault is not None:
            self._disk.lose_unsynced(self._name)
            raise fault.error()
        self._disk.events.append(Event(self._name, "sync"))  # what a real sync would add is not needed: nobody pulls this plug


def no_space() -> Exception:
    """Return what SQLite gets from a full disk."""
    return apsw.FullError("database or disk is full")


def io_error() -> Exception:
    """Return what SQLite gets from a disk that does not work."""
    return apsw.IOError(f"disk I/O error ({os.strerror(errno.EIO)})")


class Replay:
    """What lies on the disk, event by event: `synced` for sure, and for each file what no sync has followed yet."""

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self.pending: dict[str, list[Event]] = {}

    def step(self, event: Event) -> None:
        """Let one more event happen."""
        if event.kind == "mark":
            return
        if event.kind == "sync":
            if event.file not in self.synced:
                self._sync_folder()  # SQLite does so with the first sync of a new journal or log
            base = self.synced.get(event.file, b"")
            for pending in self.pending.pop(event.file, []):
                if not pending.is_lost:
                    base = _applied(base, pending)
            if base is not None:
                self.synced[event.file] = base
        elif event.kind == "delete" and event.offset:
            self.synced.pop(event.file, None)
            self.pending.pop(event.file, None)
        else:
            self.pending.setdefault(event.file, []).append(event)

    def _sync_folder(self) -> None:
        """Names that went are gone for good."""
        for file, events in list(self.pending.items()):
            gone = max((place for place, event in enumerate(events) if event.kind == "delete"), default=-1)
            if gone >= 0:
                self.synced.pop(file, None)
                self.pending[file] = events[gone + 1:]
                if not self.pending[file]:
                    del self.pending[file]

    def image(self, rng: random.Random, mode: str) -> dict[str, bytes]:
        """Return name -> content after a cut.

        Args:
            mode: "drop": nothing unsynced is there; "all": everything is; "prefix": the operations up to one of them, the next one torn;
                "sectors": of each sector any version that it had since the last sync.
        """
        files = dict(self.synced)
        for file, events in self.pending.items():
            if mode == "drop":
                continue
            states = [files.get(file, b"")]
            stop = len(events) if mode != "prefix" else rng.randrange(len(events) + 1)
            for event in events[:stop]:
                states.append(_applied(states[-1], event))
            if mode == "prefix" and stop < len(events) and events[stop].kind == "write":
                torn = events[stop]
                kept = rng.randrange(0, len(torn.data) + 1, SECTOR)
                states.append(_applied(states[-1], torn._replace(data=torn.data[:kept])) if kept else states[-1])
            result = states[-1] if mode != "sectors" else _mixed(states, rng)
            if result is None:
                files.pop(file, None)
            else:
                files[file] = result
        return files


def _applied(content: bytes | None, event: Event) -> bytes | None:
    if event.kind == "delete":
        return None
    content = content or b""
    if event.kind == "truncate":
        return content[:event.offset].ljust(event.offset, b"\0") if event.offset > len(content) else content[:event.offset]
    end = event.offset + len(event.data)
    return content[:event.offset].ljust(event.offset, b"\0") + event.data + content[end:]


def _mixed(states: list[bytes | None], rng: random.Random) -> bytes | None:
    """Return each sector as it was in any of the states; the size likewise."""
    place = rng.randrange(len(states))
    if states[place] is None:
        return None
    first, end = place, place  # between two deletes it is one file; another of the same name shares no sector with it
    while first > 0 and states[first - 1] is not None:
        first -= 1
    while end < len(states) and states[end] is not None:
        end += 1
    known = states[first:end]
    size = len(rng.choice(known))
    parts = []
    for at in range(0, size, SECTOR):
        parts.append(rng.choice(known)[at:at + SECTOR].ljust(min(SECTOR, size - at), b"\0"))
    return b"".join(parts)


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """Make a directory hold exactly these files."""
    folder.mkdir(exist_ok=True, mode=0o700)
    for path in folder.iterdir():
        if path.name not in files and path.name != "greenroom.lock":
            path.unlink()
    for name, content in files.items():
        with open(folder / name, "wb") as file:
            file.write(content)
