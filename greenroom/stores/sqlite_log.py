"""What lies in SQLite's log behind the last transaction that SQLite sees: torn by a power cut, or damaged. Only reads.

SQLite ends its log at the first frame whose checksum is wrong and says nothing: right for a transaction that a power cut
tore, but a flipped bit in the middle would silently drop every transaction behind it. Format: sqlite.org/fileformat2.html,
section 4; the index beside it: sqlite.org/walformat.html, section 2.1.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

HEADER = 32
FRAME_HEADER = 24
_MAGIC = 0x377F0682  # + 1: checksums are made of big-endian words


class Rest(NamedTuple):
    """What is behind the end of a log."""

    frames: int = 0  # of the log's own generation: written, but in no transaction that SQLite sees
    damage: str = ""  # why they can't be what a power cut leaves; empty: they can


def valid_frames(index: Path) -> int:
    """Return how many frames SQLite found valid, up to the last transaction's end: it wrote that into the log's index."""
    with open(index, "rb") as file:
        return struct.unpack("=I", file.read(20)[16:20])[0]


def count_valid(log: Path) -> int:
    """Return the same from the log itself: slower (a second for 64 MiB), but without an index."""
    with open(log, "rb") as file:
        content = file.read(HEADER)
        words = struct.unpack(">8I", content) if len(content) == HEADER else ()
        if not words or not _is_header(content, words):
            return 0
        order = "<" if words[0] == _MAGIC else ">"
        frames = complete = 0
        before = words[6:8]
        while len(frame := file.read(FRAME_HEADER + words[2])) == FRAME_HEADER + words[2]:
            header = struct.unpack(">6I", frame[:FRAME_HEADER])
            before = _frame_sum(frame, before, order)
            if header[2:4] != words[4:6] or header[4:6] != before:
                break
            frames += 1
            complete = frames if header[1] else complete
        return complete


def look_behind(log: Path, valid: int) -> Rest:
    """Look at the frames behind the first `valid` ones.

    A COMMIT is synced before the next transaction is written. So frames of at most one transaction can be torn; if a frame of
    another one follows them, they were whole once and are damaged now.
    """
    try:
        with open(log, "rb") as file:
            content = file.read(HEADER)
            if len(content) < HEADER:
                return Rest()
            words = struct.unpack(">8I", content)
            if not _is_header(content, words):
                # It is synced before the first frame is written.
                is_longer = bool(file.read(1))
                return Rest(0, "its header does not match its checksum") if is_longer else Rest()
            size = FRAME_HEADER + words[2]
            file.seek(HEADER + valid * size)
            return _look(file.read(), size, words[4:6], "<" if words[0] == _MAGIC else ">")
    except FileNotFoundError:
        return Rest()


def _is_header(content: bytes, words: tuple[int, ...]) -> bool:
    if words[0] not in (_MAGIC, _MAGIC + 1) or words[2] < 512 or words[2] > 65536 or words[2] & (words[2] - 1):
        return False
    return _checksum(content[:24], (0, 0), "<" if words[0] == _MAGIC else ">") == words[6:8]


def _look(content: bytes, size: int, salts: tuple[int, ...], order: str) -> Rest:
    frames = [content[at:at + size] for at in range(0, len(content) - size + 1, size)]
    headers = [struct.unpack(">6I", frame[:FRAME_HEADER]) for frame in frames]
    # One of the two salts is enough: the other may be what is damaged. Those of older generations differ in both.
    ours = [header[2] == salts[0] or header[3] == salts[1] for header in headers]
    computed: tuple[int, ...] | None = None
    for place in range(len(frames) - 1):
        if not ours[place]:
            continue
        before = headers[place - 1][4:6] if place and ours[place - 1] else None
        computed = _frame_sum(frames[place], before, order) if before is not None else None
        following = headers[place + 1]
        if not headers[place][1] or not ours[place + 1]:
            continue
        chains = [headers[place][4:6], computed] if computed is not None else [headers[place][4:6]]
        if following[4:6] in [_frame_sum(frames[place + 1], chain, order) for chain in chains]:
            return Rest(sum(ours), "a transaction in its middle does not match its checksum")
    return Rest(sum(ours))


def _frame_sum(frame: bytes, before: tuple[int, ...], order: str) -> tuple[int, ...]:
    return _checksum(frame[FRAME_HEADER:], _checksum(frame[:8], before, order), order)


def _checksum(data: bytes, start: tuple[int, ...], order: str) -> tuple[int, ...]:
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second
