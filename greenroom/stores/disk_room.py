"""Room on the disk of a data directory: how much is free, and a ballast file that is given up when there is none left.

Blocks on the disk: called from a thread. Knows nothing of stores and jobs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

BALLAST = "greenroom.ballast"
BALLAST_BYTES = 32 * 2**20

#: Below so much free disk new jobs are refused, while settles still find room.
MIN_FREE_BYTES = 64 * 2**20
#: Below this the ballast goes: somebody else fills the disk, and a COMMIT that finds no room ends the broker.
RELEASE_BELOW_BYTES = 16 * 2**20
#: It is made (again) when so much is free: with it there, new jobs are not refused for its sake.
MAKE_ABOVE_BYTES = MIN_FREE_BYTES + 2 * BALLAST_BYTES


class DiskRoom:
    """One data directory.

    Attributes:
        free_bytes: at the latest look; 0 before the first.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._ballast = self._folder / BALLAST
        self._cannot_make = False
        self.free_bytes = 0

    def look(self) -> bool:
        """Measure, give up or make the ballast; returns True while the disk is too full for new jobs. Raises OSError."""
        self.free_bytes = shutil.disk_usage(self._folder).free
        is_short = self.free_bytes < MIN_FREE_BYTES
        if self.free_bytes < RELEASE_BELOW_BYTES:
            self.release_if_short()
        elif self.free_bytes >= MAKE_ABOVE_BYTES and not self._ballast.exists():
            self._make()
        return is_short

    def release_if_short(self) -> None:
        """Give up the ballast if the disk is full: also before a store is opened, which needs some room. Never fails."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._folder).free < RELEASE_BELOW_BYTES and self._ballast.exists():
                self._ballast.unlink()
                log.error("the disk of %s is full: %d MiB of ballast were given up, so that running jobs can be settled",
                          self._folder, BALLAST_BYTES // 2**20)

    def _make(self) -> None:
        """Reserve the ballast's blocks. Without it all else works as well, so a file system that can't is only told of."""
        if self._cannot_make:
            return
        try:
            file = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, BALLAST_BYTES)
            finally:
                os.close(file)
        except OSError as exc:
            self._cannot_make = True
            with contextlib.suppress(OSError):
                self._ballast.unlink()
            log.warning("no ballast could be made in %s: %s", self._folder, exc.strerror)
