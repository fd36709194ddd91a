"""What the operating system says of this process: memory, files, processor time. Linux; elsewhere what can't be told is None.

Cheap enough for the hub: no list is read, however many files are open.
"""

from __future__ import annotations

import os
import resource
import time

PAGE_BYTES = resource.getpagesize()


def resident_bytes() -> int | None:
    """Return the memory that this process has."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def open_files() -> int | None:
    """Return how many file descriptors are open, or None where that takes long to find out.

    Since Linux 6.2 the size of /proc/self/fd is their number. Counting its entries took 61 ms with 10,000 of them.
    """
    try:
        return os.stat("/proc/self/fd").st_size or None
    except OSError:
        return None


def max_files() -> int:
    """Return how many files may be open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cpu_s() -> float:
    """Return the processor time used so far, of all threads."""
    return time.process_time()
