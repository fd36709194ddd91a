"""The job that peers.py gives to every contender, and the file in which workers note what arrived and when.

Standard library only: it is imported by every peer's worker, in whichever virtual environment that runs.
"""

from __future__ import annotations

import os
import struct
import time
from array import array
from pathlib import Path

NUMBER_CHARS, PAYLOAD_CHARS = 16, 100
#: Numbers from here on are jobs sent ahead to see that a worker is up; they are not counted.
WARM_UP = 2**40

#: Printable, because some peers carry text, and longer than a payload, so that a mix-up shows. No line ends, spaces or quotes.
_FILLER = "".join(chr(48 + number * number * 31 % 75) for number in range(1009)) * 2
_RECORD = struct.Struct("=QQ")
_WRONG = 2**64 - 1

_file = -1


def make_text(number: int) -> str:
    """Return a job's payload of 100 characters: its number in 16, and filler that depends on it."""
    start = number * 31 % 1009
    return f"{number:016x}" + _FILLER[start:start + PAYLOAD_CHARS - NUMBER_CHARS]


def noop(payload: str) -> str:
    """The task: look at the payload, note that it arrived, return the number as its result."""
    global _file
    if _file < 0:  # one write a record, so that threads and forks do not mix them
        _file = os.open(os.environ["PEER_ARRIVALS"], os.O_WRONLY | os.O_APPEND)
    number = int(payload[:NUMBER_CHARS], 16)
    os.write(_file, _RECORD.pack(number if payload == make_text(number) else _WRONG, time.monotonic_ns()))
    return payload[:NUMBER_CHARS]


class Arrivals:
    """The file, seen from the benchmark.

    Attributes:
        path: what workers get as PEER_ARRIVALS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"")
        path.chmod(0o666)

    def count(self) -> int:
        """How many jobs arrived, those of the warm-up too."""
        return self.path.stat().st_size // _RECORD.size

    def read(self) -> tuple[array, float]:
        """Return the numbers that arrived, without the warm-up's, and when the last came (monotonic). Raises ValueError if a
        payload had changed."""
        records = array("Q")
        data = self.path.read_bytes()
        records.frombytes(data[:len(data) // _RECORD.size * _RECORD.size])
        if _WRONG in records[::2]:
            raise ValueError("a job came with another payload than it was submitted with")
        counted = [(number, at) for number, at in zip(records[::2], records[1::2]) if number < WARM_UP]
        return array("Q", (number for number, _ in counted)), max((at for _, at in counted), default=0) / 1e9
