"""An example of a task module: one task that counts and hashes a file.

Run a worker with it:       python worker.py --tasks docs/examples/file_stats.py
Submit a job to it:         python client.py submit file_stats '{"path": "README.md"}' --wait
"""

from __future__ import annotations

import hashlib
import os

from greenroom.tasks import task

CHUNK_BYTES = 256 * 1024


# The name is what clients submit to. Without it, the function's own name is taken.
@task(name="file_stats")
def file_stats(path: str) -> dict:
    """Count the lines and bytes of a file and hash it.

    The payload's keys arrive as keyword arguments, so a payload is a map like {"path": "/etc/hostname"}. What the function
    returns is the job's result; what it raises makes the job failed, with the error's name and text to read.

    A last line without a newline at its end counts as a line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path!r} on this worker's machine")

    digest = hashlib.sha256()
    lines = size = 0
    last = b"\n"
    # In chunks: a file of many gigabytes must not need as much memory.
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            lines += chunk.count(b"\n")
            size += len(chunk)
            last = chunk[-1:]
    if last != b"\n":
        lines += 1

    return {"path": path, "lines": lines, "bytes": size, "sha256": digest.hexdigest()}
