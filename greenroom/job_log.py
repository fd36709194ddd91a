"""What a run tells of itself while it runs: how far it is, and lines of text. What of it a job keeps, and how much. Pure.

The lines themselves go to the store (greenroom.stores.Store.add_lines); the job notes only how many there are and which of them are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from greenroom.records import LogLine

if TYPE_CHECKING:
    from greenroom.job import Job

#: A job keeps its latest lines: between one and two halves of this size, whichever bound is met first. So at most 1,000 lines and 256 KiB
#: of text, and dropping the oldest half is one range of rows for each 500 lines.
HALF_LINES = 500
HALF_BYTES = 128 * 1024


#: A progress text and a log line have so many characters at most; longer ones are cut.
TEXT_CHARACTERS = 200
LINE_CHARACTERS = 2000


class Report(NamedTuple):
    """What a job has been told to have done so far."""

    fraction: float | None = None  # 0 … 1
    text: str | None = None
    last: int = 0  # number of its latest line; 0: none
    first: int = 1  # lines below are dropped
    half: int = 1  # first line of the newer half
    half_bytes: int = 0  # of text, in the newer half

    @property
    def kept_bytes(self) -> int:
        """At most so many bytes of text are in the store, and one for each line; 0: there is no line."""
        return self.half_bytes + (HALF_BYTES if self.half > self.first else 0) + self.last - self.first + 1

    def shown(self) -> dict[str, object]:
        """Return the fields of a view."""
        shown: dict[str, object] = {}
        if self.fraction is not None:
            shown["progress"] = self.fraction
        if self.text is not None:
            shown["progress_text"] = self.text
        return shown


def take_lines(job: Job, lines: Iterable[tuple[float, str]]) -> list[LogLine]:
    """Number new lines of a job and note them in it; `job.report.first` says which older ones are to be dropped."""
    _, _, last, first, half, half_bytes = report = job.report or Report()
    taken = []
    for at, text in lines:
        size = len(text.encode())
        if last >= half and (last + 1 - half >= HALF_LINES or half_bytes + size > HALF_BYTES):
            first, half, half_bytes = half, last + 1, 0
        last += 1
        half_bytes += size
        taken.append(LogLine(job.id, last, at, job.attempt, text))
    job.report = report._replace(last=last, first=first, half=half, half_bytes=half_bytes)
    return taken


def end_progress(job: Job) -> None:
    """Forget how far a run was that did not complete the job; its lines stay."""
    if job.report is not None:
        job.report = job.report._replace(fraction=None, text=None)
