"""Tells a person who runs a script without its packages which command fixes that. Standard library only, imports nothing of ours.

The scripts in the root call `require` before their other imports.
"""

from __future__ import annotations

import importlib.util
import os
import sys

OLDEST_PYTHON = (3, 11)


def require(*packages: str) -> None:
    """Return if these packages can be found, else print one line to stderr and exit with 2.

    They are looked for, not imported: the broker must patch the standard library before some of them are.

    Args:
        packages: names of top-level packages, as they are imported.
    """
    script = os.path.basename(sys.argv[0])
    if sys.version_info < OLDEST_PYTHON:
        _stop(f"{script}: Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed, this is {sys.version.split()[0]}")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        what = "package " + missing[0] if len(missing) == 1 else "packages " + ", ".join(missing)
        _stop(f"{script}: {what} not found by {sys.executable or 'python'}: "
              "run `./run setup && . .venv/bin/activate`, or `pip install -r requirements.txt`")


def _stop(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.exit(2)
