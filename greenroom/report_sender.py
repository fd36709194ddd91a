"""Sends on what a worker's runs say of themselves: a few times a second for all of them, and the rest before they are settled.

Runs on the worker's one thread. It must not know how a task runs, nor what the broker does with a report.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenroom.errors import ConnectError, GreenroomError
from greenroom.link import Answer, Link
from greenroom.run_reports import Key, ReportBox

log = logging.getLogger("greenroom.worker")

#: Reports gather for so long: what is watched by people need not be quicker.
PAUSE_S = 0.25
#: Requests sent at once before a settle, each of up to 1,000 lines; the rest is given up then.
MOST_REQUESTS = 8


class ReportSender:
    """See the module.

    Args:
        box: what the runs said. is_held: tells whether a run still has its lease: nobody wants to hear of others.

    Attributes:
        due_at: when `send` has something to do next (monotonic); in the past: nothing waits, or it may be sent at once.
    """

    def __init__(self, box: ReportBox, is_held: Callable[[Key], bool]) -> None:
        self._box = box
        self._is_held = is_held
        self._is_sending = False
        self.due_at = 0.0

    def send(self, link: Link, now: float, *, before_settle: bool) -> None:
        """Send what there is if it is time, or at once if jobs are about to be settled: what comes behind a settle is refused."""
        if not self._box or not before_settle and (self._is_sending or now < self.due_at):
            return
        for _ in range(MOST_REQUESTS if before_settle else 1):
            items = [item for item in self._box.take() if self._is_held((item[0], item[1]))]
            if not items:
                break
            try:
                link.request({"verb": "report", "leases": items}, lambda answer, items=items: self._answered(items, answer))
            except GreenroomError as exc:
                self._again(items, exc)
                break
            self._is_sending = True
        self.due_at = now + PAUSE_S

    def _answered(self, items: list[list], answer: Answer) -> None:
        self._is_sending = False
        if isinstance(answer, GreenroomError):
            self._again(items, answer)
            return
        refused = [outcome for outcome in answer["outcomes"] if outcome != "OK"]
        if refused:
            log.debug("%d reports were refused, the first: %s", len(refused), refused[0])

    def _again(self, items: list[list], exc: GreenroomError) -> None:
        """Keep what did not get through: for the next connection, or until the broker is less busy."""
        if isinstance(exc, ConnectError) or exc.code in ("BUSY", "UNKNOWN"):
            self._box.put_back(item for item in items if self._is_held((item[0], item[1])))
            self.due_at = time.monotonic() + (exc.retry_after_s or PAUSE_S)
        elif exc.code == "UNKNOWN_VERB":
            log.debug("this broker takes no reports")
        else:
            log.warning("a report was refused: %s", exc.message)
