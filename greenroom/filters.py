"""One filter over jobs, for lists, search and bulk verbs alike: what a map of conditions means, and whether a job fits.

Pure. Must not know where jobs are kept: stores turn a Filter into statements of theirs. The form that people write is in filter_text.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from greenroom.errors import InvalidError
from greenroom.failures import FINGERPRINT_CHARS, fingerprint
from greenroom.job import FINISHED_STATES, MOST_TIME, NUMBER_LIMIT, RETRYABLE_STATES, STATE_BY_LABEL, Job, State, check_name, is_number

#: Characters of a text that is looked for.
MAX_TEXT = 200
#: Of each payload and result so many bytes, its preview, are searched.
PREVIEW_BYTES = 4096
#: What may be done to all jobs that fit -> the states of the jobs in question.
ACTION_STATES: dict[str, frozenset[State]] = {
    "retry": RETRYABLE_STATES, "cancel": frozenset(State) - FINISHED_STATES, "delete": FINISHED_STATES,
    "change": frozenset({State.SCHEDULED, State.QUEUED}),
}


class Filter(NamedTuple):
    """Conditions, checked; a job fits if it meets all of them. None: any."""

    states: frozenset[State] | None = None
    queue: str | None = None
    task: str | None = None  # with a * at its end: all that begin so
    worker: str | None = None
    error: str | None = None  # name of the latest error
    created_after: float | None = None  # at that time or later; seconds since 1970
    created_before: float | None = None
    finished_after: float | None = None  # at that time or later
    finished_before: float | None = None
    id_from: int | None = None
    id_to: int | None = None  # this one too
    fingerprint: str | None = None  # of the latest error, see failures.py
    text: str | None = None  # in payload, result or error; A to Z count as a to z

    @property
    def task_prefix(self) -> str | None:
        """What the task begins with, or None: it is asked for as a whole, or any."""
        return self.task[:-1] if self.task is not None and self.task.endswith("*") else None

    @property
    def needle(self) -> bytes:
        """What is looked for in previews that were folded too."""
        return fold((self.text or "").encode())

    def fits(self, job: Job, *, looks_for_text: bool = True) -> bool:
        """Tell whether a job meets the conditions.

        Args:
            looks_for_text: False: the text was looked for already, and what is here of the job may lack its payload.
        """
        if self.states is not None and job.state not in self.states:
            return False
        if self.queue not in (None, job.queue) or self.worker not in (None, job.worker) or not self._fits_task(job.task):
            return False
        if self.error is not None and (job.error is None or job.error.get("name") != self.error):
            return False
        if not self._fits_numbers(job) or (self.fingerprint is not None and not self.is_alike(job)):
            return False
        return self.text is None or not looks_for_text or self._has_text(job)

    def _fits_task(self, task: str) -> bool:
        prefix = self.task_prefix
        return task.startswith(prefix) if prefix is not None else self.task in (None, task)

    def _fits_numbers(self, job: Job) -> bool:
        return (_is_between(self.created_after, job.submitted_at, self.created_before)
                and _is_between(self.finished_after, job.finished_at, self.finished_before)
                and (self.id_from is None or job.id >= self.id_from) and (self.id_to is None or job.id <= self.id_to))

    def is_alike(self, job: Job) -> bool:
        """Tell whether the latest error of a job has the fingerprint that is asked for."""
        return job.error is not None and fingerprint(job.task, job.error) == self.fingerprint

    def _has_text(self, job: Job) -> bool:
        needle = self.needle
        error = job.error or {}
        return any(needle in fold(some) for some in (
            (job.payload or b"")[:PREVIEW_BYTES], (job.result or b"")[:PREVIEW_BYTES],
            *(error.get(name, "").encode() for name in ("name", "message", "traceback"))))


def _is_between(low: float | None, value: float | None, high: float | None) -> bool:
    if value is None:
        return low is None and high is None
    return (low is None or value >= low) and (high is None or value < high)


def fold(text: bytes) -> bytes:
    """Return what a text is compared by: A to Z as a to z, everything else as it is."""
    return text.lower()  # of bytes: ASCII alone


#: The filter that every job fits.
EVERY = Filter()


def _check_states(value: object) -> frozenset[State]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word in STATE_BY_LABEL for word in words):
        raise ValueError("must be one of " + ", ".join(STATE_BY_LABEL) + ", or a list of some")
    return frozenset(STATE_BY_LABEL[word] for word in words)


def _check_task(value: object) -> str:
    if isinstance(value, str) and value.endswith("*") and value != "*":
        return check_name(value[:-1]) + "*"
    return check_name(value)


def _check_text(limit: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= limit or "\0" in value:
            raise ValueError(f"must be a text of 1 to {limit} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be a text that UTF-8 can hold") from None
        return value
    return check


def _check_time(value: object) -> float:
    if not is_number(value) or not 0 <= value <= MOST_TIME:
        raise ValueError("must be a time in seconds since 1970")
    return float(value)


def _check_id(value: object) -> int:
    if type(value) is not int or not 1 <= value < NUMBER_LIMIT:
        raise ValueError("must be an integer from 1 to 2^53-1")
    return value


def _check_fingerprint(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{FINGERPRINT_CHARS}}}", value):
        raise ValueError(f"must be {FINGERPRINT_CHARS} hexadecimal characters, as failures has them")
    return value


#: Field of a filter on the wire -> its check, which raises ValueError with the end of the sentence. In the order of Filter.
CHECKS: dict[str, Callable[[object], object]] = {
    "state": _check_states, "queue": check_name, "task": _check_task, "worker": check_name, "error": _check_text(128),
    "created_after": _check_time, "created_before": _check_time, "finished_after": _check_time, "finished_before": _check_time,
    "id_from": _check_id, "id_to": _check_id, "fingerprint": _check_fingerprint, "text": _check_text(MAX_TEXT),
}


def parse_filter(given: dict) -> Filter:
    """Check a filter as the wire has it; nil counts as left out.

    Raises InvalidError; `field` names the condition. One that is not known is refused: what it would have kept out must not be deleted.
    """
    values: dict[str, object] = {}
    for name, value in given.items():
        check = CHECKS.get(name)
        if check is None:
            raise InvalidError(f"a filter has no condition {str(name)[:40]!r}; it has {', '.join(CHECKS)}", field=str(name)[:128])
        if value is None:
            continue
        try:
            values["states" if name == "state" else name] = check(value)
        except ValueError as exc:
            raise InvalidError(f"{name} {exc}", field=name) from None
    return Filter(**values)
