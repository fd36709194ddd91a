"""Runs one target under atheris until its time is over; a process of its own, started by fuzz.py. Linux, CPython 3.11.

Besides what a target asserts: no input may take longer than 50 ms of processor time, and libFuzzer watches the memory.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

#: Processor seconds of one input. Instrumented code is about four times slower than usual.
UNIT_S = 0.050
COUNTERS = struct.Struct("=QQd")  # inputs, bytes, seconds of the slowest


def main(target_name: str, work: Path, seconds: int) -> None:
    """Fuzz; ends the process. Counters go to the file `counters`, an input that failed to `crash-…` in `work`."""
    with atheris.instrument_imports(include=["greenroom", "tomllib"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[target_name]
    with (work / "counters").open("r+b") as file:
        shared = mmap.mmap(file.fileno(), COUNTERS.size)
    inputs = size = 0
    slowest_s = 0.0

    def one_input(data: bytes) -> None:
        nonlocal inputs, size, slowest_s
        took_s = _timed(target, data)
        if took_s > UNIT_S:  # the machine may have had something else to do: only what is slow each time is slow
            took_s = min(_timed(target, data) for _ in range(3))
        assert took_s <= UNIT_S, f"{took_s * 1000:.0f} ms for an input of {len(data)} bytes"
        inputs, size, slowest_s = inputs + 1, size + len(data), max(slowest_s, took_s)
        COUNTERS.pack_into(shared, 0, inputs, size, slowest_s)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=512", "-timeout=10", "-print_final_stats=1", "-max_len=8192",
                   f"-artifact_prefix={work}/", str(work / "corpus")], one_input)
    atheris.Fuzz()


def _timed(target: object, data: bytes) -> float:
    began = time.thread_time()
    target(data)
    return time.thread_time() - began


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
