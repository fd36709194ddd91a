"""A long task in short runs: over its soft limit it notes how far it is, and goes on in a later run.

Run a worker with it:       python worker.py --tasks docs/examples/in_time.py
Submit a job to it:         python client.py submit count_words '{"path": "README.md"}' --wait
"""

from __future__ import annotations

import json
from pathlib import Path

from greenroom.tasks import Context, task


@task(soft_timeout=600, timeout=660)
def count_words(path: str, context: Context, place: str | None = None) -> dict:
    """Count the words of a text file, line by line. `place`: the file that keeps how far it is; left out: beside the text."""
    notes = Path(place or path + ".place")
    done = json.loads(notes.read_text()) if notes.exists() else {"lines": 0, "words": 0}
    with open(path, encoding="utf-8") as text:
        for line in list(text)[done["lines"]:]:
            done = {"lines": done["lines"] + 1, "words": done["words"] + len(line.split())}
            context.wait(0.01)  # the work that a line is
            if context.cancelled:
                notes.write_text(json.dumps(done))
                context.snooze(1)
    notes.unlink(missing_ok=True)
    return done
