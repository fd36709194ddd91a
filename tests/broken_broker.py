"""The broker program with one part made to fail, for tests of what it does then. BREAK in the environment says which and when.

    kill-before-commit:N   the process kills itself instead of its Nth COMMIT
    kill-after-commit:N    it kills itself when its Nth COMMIT has returned, before anything leaves
    fail-sync:FILE         once this file is there each sync fails, as for a broken disk
    hang-sync:FILE         while this file is there no sync returns, for a minute at most, as for a disk that stands still
    hasty-answers:         answers leave when they are made, not when they are on disk
    die:PART               the greenlet of that part ends with an exception a moment after start: pump, timer, lag, events, sweeper, watcher
    close:PART             what that part needs is closed behind its back: the socket of listener or web, the database of store
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gevent import monkey

from greenroom.patching import patch_all

sleep = monkey.get_original("time", "sleep")  # COMMIT runs in a real thread
patch_all()

import apsw
import gevent

from greenroom import batches, broker
from greenroom.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

BREAK_AFTER_S = 0.3
HANG_S = 60.0
_kept: list[apsw.VFS] = []  # alive as long as the process


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_commit(number: int, *, before: bool) -> None:
    """Replace SqliteStore.commit by one that kills the process at its Nth call."""
    whole: Callable[[SqliteStore], None] = SqliteStore.commit
    calls = 0

    def commit(store: SqliteStore) -> None:
        nonlocal calls
        calls += 1
        if calls == number and before:
            _kill_self()
        whole(store)
        if calls == number:
            _kill_self()

    SqliteStore.commit = commit


class BadDisk(apsw.VFS):
    """The system's disk, until a file is there; then its syncs fail or hang."""

    def __init__(self, trigger: Path, *, hangs: bool) -> None:
        self.trigger = trigger
        self.hangs = hangs
        super().__init__("bad", base="")

    def xOpen(self, name: object, flags: list[int]) -> _BadFile:
        """Open a file on it."""
        return _BadFile(self, name, flags)


class _BadFile(apsw.VFSFile):
    def __init__(self, disk: BadDisk, name: object, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:
        if self._disk.trigger.exists():
            if not self._disk.hangs:
                raise apsw.IOError("planted")
            log.warning("the disk hangs (planted)")
            hangs_until = monotonic() + HANG_S
            while self._disk.trigger.exists() and monotonic() < hangs_until:
                sleep(0.05)
        super().xSync(flags)


def use_bad_disk(trigger: Path, *, hangs: bool) -> None:
    """Put the store on a disk that goes bad once a file is there."""
    _kept.append(BadDisk(trigger, hangs=hangs))
    SqliteStore.__init__ = functools.partialmethod(SqliteStore.__init__, vfs="bad")


def answer_at_once() -> None:
    """Let everything leave before its COMMIT."""
    batches.Batches._leave = lambda _, peer, request_id, answer: batches._send([(peer, request_id, answer)])


def break_part(part: str) -> None:
    """Let a greenlet of a started broker die."""
    start = broker.Broker.start

    def started(self: broker.Broker) -> None:
        start(self)
        gevent.spawn_later(BREAK_AFTER_S, _break, self, part)

    broker.Broker.start = started


def _break(running: broker.Broker, part: str) -> None:
    if part == "store":
        while running.dispatch.committing_s:
            gevent.sleep(0.001)  # the commit thread has the connection
        running.store._db.close()
        return
    if part in ("listener", "web"):
        server = running.listener if part == "listener" else running.web._server
        # The number of the closed file goes to one that accepts nothing, as when a library closes a file that is not its own.
        with open(os.devnull, "rb") as other:
            os.dup2(other.fileno(), server.socket.fileno())
        return
    pump, timer, lag, events = running.dispatch._greenlets
    greenlet = {"pump": pump, "timer": timer, "lag": lag, "events": events, "sweeper": running.sessions._sweeper,
                "watcher": running._watcher}[part]
    greenlet.kill(RuntimeError(f"planted in the {part}"), block=False)


def main() -> int:
    """Break what BREAK names, then run the broker."""
    how, _, what = os.environ["BREAK"].partition(":")
    if how in ("die", "close"):
        break_part(what)
    elif how == "hasty-answers":
        answer_at_once()
    elif how in ("fail-sync", "hang-sync"):
        use_bad_disk(Path(what), hangs=how == "hang-sync")
    else:
        kill_at_commit(int(what), before=how == "kill-before-commit")
    return broker.main()


if __name__ == "__main__":
    code = main()
    os._exit(code)
