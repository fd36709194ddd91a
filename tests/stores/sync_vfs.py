"""A SQLite VFS that records writes and syncs, for tests that prove what was synced when. Does real IO through the default one."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import apsw


class Event(NamedTuple):
    """One thing that SQLite did to a file."""

    number: int  # counts up over all files
    file: str  # base name, as in greenroom.db-wal
    kind: str  # write, truncate or sync


class SyncRecorder(apsw.VFS):
    """Registers itself under a name; give that name to SqliteStore(…, vfs=name). Keep it alive while connections use it."""

    def __init__(self, name: str) -> None:
        self.events: list[Event] = []
        self._numbers = itertools.count(1)
        super().__init__(name, base="")

    def xOpen(self, name: object, flags: list[int]) -> _RecordedFile:
        """Open a file whose writes and syncs are recorded."""
        return _RecordedFile(self, name, flags)

    def record(self, file: str, kind: str) -> None:
        """Append an event."""
        self.events.append(Event(next(self._numbers), file, kind))

    def unsynced(self, file: str) -> int:
        """Return how many writes to this file no sync has followed yet."""
        writes = 0
        for event in self.events:
            if event.file == file:
                writes = 0 if event.kind == "sync" else writes + 1
        return writes

    def count(self, file: str, kind: str) -> int:
        """Return how many events of a kind a file has had."""
        return sum(1 for event in self.events if event.file == file and event.kind == kind)


class _RecordedFile(apsw.VFSFile):
    """Records after the real thing was done: a sync that failed is none."""

    def __init__(self, recorder: SyncRecorder, name: object, flags: list[int]) -> None:
        self._recorder = recorder
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._file = os.path.basename(path) if path else "(temporary)"
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._recorder.record(self._file, "write")

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._recorder.record(self._file, "truncate")

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._recorder.record(self._file, "sync")
