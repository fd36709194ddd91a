"""The Core of tests/core.py on a real SQLite store, and damage done to its rows behind its back."""

from __future__ import annotations

from pathlib import Path

import apsw

from greenroom.batches import Batches
from greenroom.engine import Engine
from greenroom.job import Job
from greenroom.lanes import Window
from greenroom.stores import Retention
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_opening import DATABASE
from greenroom.waits import Waits
from tests.core import Core, Sent


class DiskCore(Core):
    """One broker without its edges, on a data directory."""

    def __init__(self, folder: Path, *, vfs: str | None = None, retention: Retention = Retention(), **options: object) -> None:
        self.folder = folder
        self.vfs = vfs
        self.retention = retention
        super().__init__(**options)

    def _start(self) -> None:
        self.store = SqliteStore(self.folder, self.retention, vfs=self.vfs)
        self.engine = Engine(self._caps, self._timing, Window(*self._limits))
        self.waits = Waits()
        self.peers = []
        self.wakes = 0
        self.batches = Batches(self.engine, self.store, self.waits, self._wake)
        restored = self.store.open()
        self.opened()
        self.engine.restore(restored, self.now, self._timing.restart_grace_s)
        self.batches.collect()
        self.run()

    def opened(self) -> None:
        """The store was opened; nothing was done with it yet."""

    def check_kept(self, sent: Sent, answer: dict) -> None:
        """What is kept is looked at on the disk, after the run."""

    def stop(self) -> None:
        """Stop as a broker does: leases are kept."""
        self.engine.drain()
        self.batches.collect()
        self.run()
        self.store.close()

    def restart(self) -> None:
        """Stop and start again on the same directory."""
        self.stop()
        self._start()

    def loaded(self, job_id: int) -> Job:
        """Return a job as on disk."""
        return self.store.load([job_id])[job_id]


def damage(folder: Path, sql: str, *bindings: object) -> None:
    """Change rows as a flipped bit does: without their sums."""
    with_other = apsw.Connection(str(folder / DATABASE))
    with_other.execute(sql, bindings)
    assert with_other.changes() > 0
    with_other.close()
