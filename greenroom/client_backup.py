"""Receiving a backup of the broker's store into a file: pieces, checks, a file that is there whole or not at all.

Must not know how a connection is made or kept: `call` asks again by itself when one is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from greenroom.errors import ConfigError, ConnectError, GoneError, GreenroomError

#: Asked for at a time; the most that the protocol allows.
PIECE_BYTES = 2**20
#: How often to look whether the broker has made it.
LOOK_S = 0.5
#: A broker that gets no further for so long is given up. At the end it checks the copy without telling how far it is.
STALL_S = 600.0
#: A backup that the broker lost on the way (restarted, say) is begun anew, so often in all.
ATTEMPTS = 3

#: Told of progress: "making" or "receiving", bytes done, bytes in all.
Progress = Callable[[str, int, int], None]


class BackupError(GreenroomError):
    """Raised when a backup could not be received whole, or its file not be written; no file is left then."""

    code = "BACKUP"


class Backup(NamedTuple):
    """A backup that lies on this side's disk.

    Attributes:
        path: the file. bytes: its size. sha256: of its content, in hex, as the broker told it.
    """

    path: str
    bytes: int
    sha256: str


def fetch_backup(call: Callable[[dict], dict], path: str | os.PathLike[str], *, force: bool,
                 on_progress: Progress | None) -> Backup:
    """Let the broker make a backup and receive it into a file.

    Args:
        call: sends a request and returns its reply, raising its error.
        force: replace a file that is there.

    Raises:
        ConfigError: the file is there already, or its folder is not.
        BackupError: the file cannot be written, or what came is not what the broker sent.
        GreenroomError: what the broker answered, see docs/protocol_v1.md, `backup`.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}")
    if target.is_dir() or (target.exists() and not force):
        raise ConfigError(f"{target} is there already" + ("" if target.is_dir() else "; --force replaces it"))
    part = target.with_name(target.name + ".part")
    try:
        with _new_file(part) as file:
            size, digest = _receive_anew(call, file, on_progress or _nobody)
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(part, target, force=force)
    except OSError as exc:
        raise BackupError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return Backup(str(target), size, digest.hex())


def _new_file(part: Path) -> BinaryIO:
    with contextlib.suppress(FileNotFoundError):
        part.unlink()  # left by a client that was killed
    return open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _receive_anew(call: Callable[[dict], dict], file: BinaryIO, on_progress: Progress) -> tuple[int, bytes]:
    """Receive a backup, if need be a new one; returns its size and SHA-256."""
    attempts = 0
    while True:
        name = os.urandom(16)
        file.seek(0)
        file.truncate()
        try:
            received = _receive(call, name, file, on_progress)
        except GoneError as exc:
            attempts += 1
            if attempts == ATTEMPTS:
                raise BackupError(f"the broker lost the backup {ATTEMPTS} times while it was received") from exc
        except ConnectError:
            raise  # nobody is there to be told; the broker removes it by itself
        except BaseException:
            _end(call, name)
            raise
        else:
            _end(call, name)
            return received


def _end(call: Callable[[dict], dict], name: bytes) -> None:
    with contextlib.suppress(GreenroomError):  # else the broker removes it by itself, as this session ends or says no more of it
        call({"verb": "backup", "step": "end", "backup": name})


def _receive(call: Callable[[dict], dict], name: bytes, file: BinaryIO, on_progress: Progress) -> tuple[int, bytes]:
    call({"verb": "backup", "step": "begin", "backup": name})
    digest = hashlib.sha256()
    received = 0
    answer = _wait_until_ready(call, name, on_progress)
    while True:
        if not answer["data"]:
            break
        file.write(answer["data"])
        digest.update(answer["data"])
        received += len(answer["data"])
        on_progress("receiving", received, answer["total"])
        answer = call(_read(name, received))
    if received != answer["total"] or digest.digest() != answer["sha256"]:
        raise BackupError(f"what was received is not what the broker made: {received} of {answer['total']} bytes, "
                          f"SHA-256 {digest.hexdigest()}")
    return received, digest.digest()


def _wait_until_ready(call: Callable[[dict], dict], name: bytes, on_progress: Progress) -> dict:
    """Return the answer with the first piece."""
    made, since = -1, time.monotonic()
    while True:
        answer = call(_read(name, 0))
        if answer["ready"]:
            return answer
        if answer["made"] != made:
            made, since = answer["made"], time.monotonic()
        if time.monotonic() - since > STALL_S:
            raise BackupError(f"the broker got no further with the backup for {STALL_S:g} s")
        on_progress("making", made, answer["total"])
        time.sleep(LOOK_S)


def _read(name: bytes, offset: int) -> dict:
    return {"verb": "backup", "step": "read", "backup": name, "offset": offset, "size": PIECE_BYTES}


def _put_in_place(part: Path, target: Path, *, force: bool) -> None:
    if force:
        part.replace(target)
    else:
        try:
            os.link(part, target)  # unlike a rename never over a file that somebody made meanwhile
        except FileExistsError:
            raise ConfigError(f"{target} is there by now; --force replaces it") from None
        except OSError:
            part.rename(target)  # a file system without links
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _nobody(word: str, done: int, total: int) -> None:
    """For callers that do not want to know."""
