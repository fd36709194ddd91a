"""The console commands `greenroom-broker` and `greenroom-worker`: import and call main. Only the broker is patched, and first."""

from __future__ import annotations

import sys


def broker() -> None:
    """Run the broker."""
    from greenroom.patching import patch_all

    patch_all()
    from greenroom.broker import exit_from, main

    exit_from(main())


def worker() -> None:
    """Run a worker."""
    from greenroom.worker import main

    sys.exit(main())
