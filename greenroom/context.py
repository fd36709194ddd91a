"""What a running task may know of its job, and what it may say of itself.

It must not know the wire, pools, leases or the broker.
"""

from __future__ import annotations

import threading
from typing import NoReturn

from greenroom.run_reports import ReportBox
from greenroom.task_outcomes import Snooze

_events = threading.Lock()  # guards the making and setting of all contexts' events


class Context:
    """What a running task may know about its job.

    Attributes:
        job_id: the job's number.
        fence: grows with each lease of any job; a system that remembers the highest can refuse a late writer.
        attempt: 1 for the first run.
        task, queue, worker: names.
    """

    __slots__ = ("job_id", "fence", "attempt", "task", "queue", "worker", "_is_cancelled", "_event", "_reports")

    def __init__(self, *, job_id: int, fence: int, attempt: int, task: str, queue: str, worker: str,
                 reports: ReportBox | None = None) -> None:
        self.job_id = job_id
        self.fence = fence
        self.attempt = attempt
        self.task = task
        self.queue = queue
        self.worker = worker
        self._is_cancelled = False
        self._event: threading.Event | None = None  # made by the first `wait`: it costs 5 us, and most tasks never wait for a cancel
        self._reports = reports  # None: nobody listens

    @property
    def cancelled(self) -> bool:
        """Say whether somebody cancelled the job, or its soft_timeout is over. A long task looks now and then and ends with CancelledTaskError."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Set `cancelled`; called by the pool, from any thread."""
        with _events:
            self._is_cancelled = True
            if self._event is not None:
                self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`, less if the job is cancelled meanwhile; return `cancelled`."""
        with _events:
            if self._is_cancelled:
                return True
            if self._event is None:
                self._event = threading.Event()
        return self._event.wait(seconds)

    def snooze(self, seconds: float) -> NoReturn:
        """End this run; the job runs again in so many seconds, and no attempt is used up. Raises Snooze, which must leave the task."""
        raise Snooze(seconds)

    def progress(self, fraction: float | None, text: str | None = None) -> None:
        """Say how far the run is, for those who watch: shown within a second, replaced by the next, and never waited for.

        Args:
            fraction: 0 … 1; what lies outside is taken for the nearer end. None: not known.
            text: what it is at, up to 200 characters.

        Raises:
            TypeError, ValueError: the fraction is no number, the text no text, or both are None.
        """
        if fraction is not None:
            if not isinstance(fraction, (int, float)) or fraction != fraction:
                raise ValueError(f"a progress must be a number from 0 to 1, not {fraction!r}")
            fraction = min(1.0, max(0.0, float(fraction)))
        if not isinstance(text, str | None):
            raise TypeError(f"the text of a progress must be a str, not {type(text).__name__}")
        if fraction is None and text is None:
            raise ValueError("a progress needs a fraction or a text")
        if self._reports is not None:
            self._reports.set_progress((self.job_id, self.fence), fraction, text)

    def log(self, text: str) -> None:
        """Write to the log of the job, a line for each line of the text (of up to 2,000 characters); never waits.

        The lines are on the broker's disk within a second, and before the run's end is. A job keeps its latest 500 to 1,000 lines; where
        a run writes faster than they can be sent, a line says how many were left out.

        Raises:
            TypeError: it is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"a log takes a str, not {type(text).__name__}")
        if self._reports is not None:
            self._reports.add_lines((self.job_id, self.fence), text.splitlines() or [""])
