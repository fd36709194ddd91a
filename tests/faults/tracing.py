"""Running a broker under strace, which makes system calls fail, hang or kill at an exact count. No pytest but for skipping."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import skip_or_fail
from tests.processes import DEADLINE_S

_CALL = re.compile(r"\d+ +(\w+)\(\d+<([^>]*)>")


def need_strace() -> None:
    """Skip or fail where strace is not there or may not trace."""
    if shutil.which("strace") is None:
        skip_or_fail("strace is not installed: as root, apt-get install strace")
    done = subprocess.run(["strace", "-f", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True,
                          timeout=DEADLINE_S)
    if done.returncode:
        skip_or_fail(f"strace cannot trace here: {done.stderr.strip()}")


class Tracer:
    """The command that puts strace around a program: one injected fault, and a note of each call of that kind.

    The traced program stays our own child (-D), so its pid, its signals and its exit code are the program's. Calls are counted
    for each thread by itself: in a broker, those of the start in the main thread, those of COMMIT in the commit thread.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "strace.txt"

    def prefix(self, call: str, fault: str, file: Path | None = None) -> list[str]:
        """Return the command's beginning.

        Args:
            call: name of a system call whose first argument is a file. fault: what to inject, such as "error=EIO:when=3".
            file: only calls on this file count; None: any.
        """
        self._notes.unlink(missing_ok=True)
        only = ["-P", str(file)] if file is not None else []
        return ["strace", "-D", "-f", "-qq", "-y", "-s", "0", "-o", str(self._notes), *only,
                "-e", f"trace={call}", "-e", f"inject={call}:{fault}", "--"]

    def calls(self) -> list[tuple[str, str]]:
        """Return (call, name of its file) for each call so far, the latest last."""
        text = self._notes.read_text(errors="replace") if self._notes.exists() else ""
        return [(found[1], Path(found[2]).name) for found in _CALL.finditer(text)]
