"""Runs all tests as three pytest processes side by side: most of them wait for processes and clocks, so that saves half the time.

`./run test` calls this when no tests are named; arguments (--long) go to all. Ends with the output of a part that failed, if one did.
"""

from __future__ import annotations

import glob
import signal
import subprocess
import sys
import tempfile
import time

#: All parts but the first, which is everything else, so that a new folder is never left out.
PARTS = (("tests/integration/test_[e-z]*.py", "tests/fuzz/test_*.py"),
         ("tests/faults/test_*.py", "tests/simulation/test_*.py", "tests/stores/test_*.py", "tests/unit/test_*.py"))
LINE_EVERY_S = 30.0


def main(arguments: list[str]) -> int:
    """Run all parts; returns 0 if all passed, else the exit code of one that did not."""
    ignored = [argument for patterns in PARTS for pattern in patterns for argument in ("--ignore-glob", pattern)]
    parts = [[*ignored, "tests"], *([path for pattern in patterns for path in sorted(glob.glob(pattern))] for patterns in PARTS)]
    logs = [tempfile.TemporaryFile("w+") for _ in parts]
    children = [
        subprocess.Popen([sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/part-{number}", *part, *arguments],
                         stdout=log, stderr=subprocess.STDOUT)
        for number, (part, log) in enumerate(zip(parts, logs))]
    try:
        _wait(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        for child in children:
            child.wait()
        outputs = sorted(zip(children, logs), key=lambda pair: pair[0].returncode != 0)
        for _, log in outputs:
            log.seek(0)
            print(log.read(), flush=True, end="")
    return outputs[-1][0].returncode


def _wait(children: list[subprocess.Popen]) -> None:
    began = said_at = time.monotonic()
    while any(child.poll() is None for child in children):
        time.sleep(0.1)
        if time.monotonic() - said_at >= LINE_EVERY_S:
            said_at = time.monotonic()
            running = sum(child.poll() is None for child in children)
            print(f"{said_at - began:.0f} s: {running} of {len(children)} parts still run", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
