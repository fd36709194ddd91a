"""What runs have said of themselves and nobody has heard yet: between the threads of tasks and whoever sends it on. Bounded.

It must not know the wire, pools or what a run is; a run is named by job id and fence. A child process of a pool has one box, the worker another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from greenroom.clock import Clock
from greenroom.job_log import LINE_CHARACTERS, TEXT_CHARACTERS

Key = tuple[int, int]  # job id and fence

#: Lines of an item of the wire's report.
ITEM_LINES = 100
#: Taken at once: a request of the wire holds 16,000 values and 4 MiB, and the broker's hub takes a few milliseconds for so many.
TAKEN_ITEMS = 500
TAKEN_LINES = 1000
TAKEN_CHARACTERS = 500_000
#: Lines of one run, and characters of all, that wait; beyond it new lines are left out, and counted. A run that writes faster than some
#: thousand lines a second can't be read by anybody.
WAITING_LINES = 1000
WAITING_CHARACTERS = 4_000_000

_clock = Clock()


class _Told:
    """What one run has said."""

    __slots__ = ("progress", "lines", "left_out")

    def __init__(self) -> None:
        self.progress: tuple[float | None, str | None] | None = None
        self.lines: deque[tuple[float, str]] = deque()
        self.left_out = 0


class ReportBox:
    """Safe in any thread; nothing here waits for anything but the lock, which is held for as long as it takes to move a few lines.

    Attributes:
        on_news: called without arguments when there is something in an empty box, in the thread that put it there.
    """

    def __init__(self) -> None:
        self.on_news: Callable[[], None] = _nothing
        self._lock = threading.Lock()
        self._told: dict[Key, _Told] = {}
        self._characters = 0

    def __bool__(self) -> bool:
        return bool(self._told)

    def set_progress(self, key: Key, fraction: float | None, text: str | None) -> None:
        """Note how far a run is; it replaces what was said before."""
        if text is not None:
            text = sendable(text, TEXT_CHARACTERS)
        with self._lock:
            was_empty = not self._told
            self._of(key).progress = (fraction, text)
        if was_empty:
            self.on_news()

    def add_lines(self, key: Key, texts: Iterable[str], at: float | None = None) -> None:
        """Note lines, written now; those for which there is no room are counted."""
        at = _clock.now() if at is None else at
        self._add(key, None, [(at, sendable(text, LINE_CHARACTERS)) for text in texts])

    def take(self) -> list[list]:
        """Take out a portion, as items of the wire's `report`: [job, fence, fraction, text, lines]. Empty: there is nothing."""
        items: list[list] = []
        lines_left, characters_left = TAKEN_LINES, TAKEN_CHARACTERS
        with self._lock:
            while self._told and len(items) < TAKEN_ITEMS and lines_left > 0 and characters_left > 0:
                key = next(iter(self._told))
                told = self._told.pop(key)
                item = [*key, *(told.progress or (None, None)), []]
                while told.lines and len(item[4]) < ITEM_LINES - 1 and characters_left > 0:
                    line = told.lines.popleft()
                    characters_left -= len(line[1])
                    self._characters -= len(line[1])
                    item[4].append(list(line))
                if told.left_out and not told.lines:  # there is room for one more
                    item[4].append([_clock.now(), f"({told.left_out:,} lines were left out here: they came too fast)"])
                    told.left_out = 0
                lines_left -= len(item[4])
                told.progress = None
                if told.lines or told.left_out:
                    self._told[key] = told  # behind the others
                items.append(item)
        return items

    def put(self, items: Iterable[list]) -> None:
        """Add what another box gave out."""
        for job, fence, fraction, text, lines in items:
            progress = None if fraction is None and text is None else (fraction, text)
            self._add((job, fence), progress, [(at, line) for at, line in lines])

    def put_back(self, items: Iterable[list]) -> None:
        """Put back what was taken and did not get through; what was said since is newer."""
        with self._lock:
            for job, fence, fraction, text, lines in items:
                told = self._of((job, fence))
                if told.progress is None and (fraction is not None or text is not None):
                    told.progress = (fraction, text)
                for at, line in reversed(lines):
                    told.lines.appendleft((at, line))
                    self._characters += len(line)

    def forget(self, key: Key) -> None:
        """Drop what is left of a run that nobody wants to hear of any more."""
        with self._lock:
            told = self._told.pop(key, None)
            if told is not None:
                self._characters -= sum(len(text) for _, text in told.lines)

    def _add(self, key: Key, progress: tuple[float | None, str | None] | None, lines: list[tuple[float, str]]) -> None:
        with self._lock:
            was_empty = not self._told
            told = self._of(key)
            if progress is not None:
                told.progress = progress
            for line in lines:
                if told.left_out or len(told.lines) >= WAITING_LINES or self._characters >= WAITING_CHARACTERS:
                    told.left_out += 1
                else:
                    told.lines.append(line)
                    self._characters += len(line[1])
        if was_empty:
            self.on_news()

    def _of(self, key: Key) -> _Told:
        told = self._told.get(key)
        if told is None:
            told = self._told[key] = _Told()
        return told


def _nothing() -> None:
    """Nobody wants to know."""


def sendable(text: str, limit: int) -> str:
    """Return a text without lone surrogates, which UTF-8 can't carry, cut to its limit."""
    text = text[:limit]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()[:limit]
