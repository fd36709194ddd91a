"""The column `extras` of a job: options that few jobs have, and what becomes of them, as one JSON map; NULL for most jobs.

Pure. Must not know statements.
"""

from __future__ import annotations

import json

from greenroom.job import Extras, Job
from greenroom.job_log import Report

#: What a job notes beside its options, and what it is when nothing happened.
_NOTED = {"failures": 0, "failed_since": None, "settled_fence": 0, "expires_at": None}


def pack_extras(job: Job) -> str | None:
    """Return the text for the store, or None: the job has nothing of the kind."""
    if job.extras is None and not job.settled_fence and job.report is None:
        return None
    values = {} if job.extras is None else job.extras.asked()
    values.update((name, getattr(job, name)) for name, nothing in _NOTED.items() if getattr(job, name) != nothing)
    if job.report is not None:
        values["report"] = job.report
    return json.dumps(values) if values else None


def take_extras(job: Job, text: str | None) -> None:
    """Give a job what the store has. Raises ValueError or TypeError for what is no such text."""
    if text is None:
        return
    values = json.loads(text)
    for name, nothing in _NOTED.items():
        setattr(job, name, values.pop(name, nothing))
    report = values.pop("report", None)
    job.report = None if report is None else Report(*report)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    job.extras = Extras(**values) if values else None


def keep_for(text: str | None) -> float | None:
    """Return how long a job asked to be kept, from what the store has, or None."""
    try:
        asked = None if text is None else json.loads(text).get("keep_for")
    except (ValueError, AttributeError):  # damaged
        return None
    return asked if isinstance(asked, (int, float)) else None


def kept_line_bytes(text: str) -> int:
    """Return how much the log lines of a job take at most, from what the store has; 0: it has none."""
    try:
        return Report(*json.loads(text).get("report", ())).kept_bytes
    except (ValueError, TypeError, AttributeError):
        return 1  # damaged: there may be some
