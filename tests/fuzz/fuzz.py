"""Fuzzes the parsers: `./run fuzz [target …] [--seconds N]`. Each target is a process of its own, two at a time.

Needs atheris (requirements-test.txt has it where there is a wheel). Ends with 1 if an input failed, and prints it in hex: it belongs
into seeds.REGRESSIONS, with the fix.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

COUNTERS_BYTES = 24
#: A child that does not end by itself so long after its time is killed.
LATE_S = 60
LOOK_EVERY_S = 0.05


class Report(NamedTuple):
    """What came of one target."""

    target: str
    seed: int  # of libFuzzer
    inputs: int
    size: int  # bytes of all inputs
    slowest_ms: float
    rss_mb: int
    failed: str  # the end of its output and the input in hex, "" if all went well

    def __str__(self) -> str:
        return (f"{self.target}: seed {self.seed}, {self.inputs:,} inputs, {self.size:,} bytes, slowest {self.slowest_ms:.1f} ms, {self.rss_mb} MB"
                + (f"\n{self.failed}" if self.failed else ""))


def is_possible() -> bool:
    """Tell whether atheris is there: its only wheel is for CPython 3.11 on Linux x86-64."""
    return importlib.util.find_spec("atheris") is not None


class Child:
    """One target being fuzzed."""

    def __init__(self, target: str, seconds: int, *, prefix: Sequence[str] = ()) -> None:
        self.target = target
        self._folder = tempfile.TemporaryDirectory(prefix=f"greenroom-fuzz-{target}-")
        self._work = Path(self._folder.name)
        (self._work / "corpus").mkdir()
        for number, seed in enumerate(seeds.seeds(target)):
            (self._work / "corpus" / f"seed-{number}").write_bytes(seed)
        (self._work / "counters").write_bytes(bytes(COUNTERS_BYTES))
        self._log = (self._work / "log").open("w+b")
        self._deadline = time.monotonic() + seconds + LATE_S
        self._process = subprocess.Popen(
            [sys.executable, *prefix, str(Path(__file__).with_name("fuzz_child.py")), target, str(self._work), str(seconds)],
            stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=self._work)

    def is_over(self) -> bool:
        """Tell whether it has ended; kills it when it is late."""
        if self._process.poll() is None and time.monotonic() > self._deadline:
            self._process.kill()
            self._process.wait()
        return self._process.poll() is not None

    def report(self) -> Report:
        """Return what came of it, and remove its files."""
        self._log.seek(0)
        output = self._log.read().decode(errors="replace")
        self._log.close()
        inputs, size, slowest_s = struct.unpack("=QQd", (self._work / "counters").read_bytes())
        rss = re.search(r"peak_rss_mb:\s*(\d+)", output)
        seed = re.search(r"Seed: (\d+)", output)
        failed = ""
        if self._process.returncode != 0:
            kept = [f"{path.name}: {path.read_bytes().hex()}" for path in self._work.glob("*-*") if path.is_file()]
            failed = "\n".join([*output.splitlines()[-40:], f"exit code {self._process.returncode}", *kept])
        self._folder.cleanup()
        return Report(self.target, int(seed[1]) if seed else 0, inputs, size, slowest_s * 1000, int(rss[1]) if rss else 0, failed)

    def end(self) -> None:
        """Make sure that it is gone."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()


def fuzz(seconds_by_target: dict[str, int], *, side_by_side: int = 2) -> list[Report]:
    """Fuzz each target for so long; returns a report each."""
    waiting = list(seconds_by_target.items())
    running: list[Child] = []
    reports: list[Report] = []
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                running.append(Child(*waiting.pop(0)))
            for child in [child for child in running if child.is_over()]:
                running.remove(child)
                reports.append(child.report())
                print(reports[-1], flush=True)
            time.sleep(LOOK_EVERY_S)
    finally:
        for child in running:
            child.end()
    return reports


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"by default all: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: 600)")
    given = parser.parse_args(arguments)
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if not is_possible():
        print("fuzz: atheris is not installed: its only wheel is for CPython 3.11 on Linux x86-64", file=sys.stderr)
        return 2
    reports = fuzz({target: given.seconds for target in given.targets or TARGETS})
    return 1 if any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
