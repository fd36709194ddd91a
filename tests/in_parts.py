"""Runs all tests as several pytest processes side by side: a third of their time they wait for processes and clocks.

`./run test` calls this when no tests are named; arguments (--long) go to all. Ends with the output of a part that failed, if one did.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import tempfile
import time

#: What runs together, longest first; the first of all is everything else, so that a new folder is never left out.
PARTS = (
    ("tests/simulation/test_se*.py",),
    ("tests/integration/test_[s-z]*.py",),
    ("tests/integration/test_[e-n]*.py",),
    ("tests/integration/test_d[a-d]*.py", "tests/integration/test_d[f-z]*.py"),
    ("tests/simulation/test_[a-r]*.py", "tests/simulation/test_s[f-z]*.py"),
    ("tests/integration/test_[o-p]*.py",),
    ("tests/stores/test_*.py", "tests/unit/test_*.py"),
    ("tests/faults/test_[s-z]*.py",),
    ("tests/integration/test_de*.py",),
    ("tests/faults/test_[a-r]*.py",),
    ("tests/fuzz/test_*.py",),
    ("tests/integration/test_[q-r]*.py",),
)
#: Parts at a time, more than processors: the tests wait for a third of their time.
MORE_THAN_PROCESSORS = 3
LINE_EVERY_S = 30.0


class Part:
    """One pytest process with a part of the tests."""

    def __init__(self, number: int, arguments: list[str]) -> None:
        self._log = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen([sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/part-{number}", *arguments],
                                       stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "TEST_PART": str(number)})

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._child.poll()

    def end(self) -> None:
        """Have it stop, if it runs, and wait for that."""
        if self.code is None:
            self._child.send_signal(signal.SIGINT)
        self._child.wait()

    def print_output(self) -> None:
        """Print what it said."""
        self._log.seek(0)
        print(self._log.read(), flush=True, end="")


def main(arguments: list[str]) -> int:
    """Run all parts; returns 0 if all passed, else the exit code of one that did not."""
    ignored = [argument for patterns in PARTS for pattern in patterns for argument in ("--ignore-glob", pattern)]
    waiting = [[*ignored, "tests"], *([path for pattern in patterns for path in sorted(glob.glob(pattern))] for patterns in PARTS)]
    at_once = (os.cpu_count() or 1) + MORE_THAN_PROCESSORS
    parts: list[Part] = []
    began = said_at = time.monotonic()
    try:
        while waiting or any(part.code is None for part in parts):
            running = sum(part.code is None for part in parts)
            if waiting and running < at_once:
                parts.append(Part(len(parts), [*waiting.pop(0), *arguments]))
                continue
            time.sleep(0.1)
            if time.monotonic() - said_at >= LINE_EVERY_S:
                said_at = time.monotonic()
                print(f"{said_at - began:.0f} s: {running} parts run, {len(waiting)} wait", file=sys.stderr, flush=True)
    finally:
        for part in parts:
            part.end()
        parts.sort(key=lambda part: part.code != 0)
        for part in parts:
            part.print_output()
    return parts[-1].code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
