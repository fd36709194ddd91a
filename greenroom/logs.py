"""Logging set-up: one line an event, written by a real thread, so that a pipe nobody reads never stops the hub.

Must not know what is logged, nor gevent: the caller brings the thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import sys
from _queue import SimpleQueue  # the native one also where gevent has patched `queue`: a real thread waits on it
from typing import TextIO

#: Lines that wait to be written; beyond it they are dropped and counted.
MAX_LINES = 10_000
#: What ends when somebody tidies up; anything else means that nobody reads us any more.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LineWriter(logging.Handler):
    """Formats records at once and leaves writing to `run`, which the caller starts in a thread.

    Attributes:
        dropped: lines that were dropped because the reader of our output did not keep up. unwritten: those that its disk did not take.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.begin_with("")
        self.dropped = 0  # counted by those who log
        self.unwritten = 0  # counted by the thread
        self._dropped_told = 0
        self._stream = stream
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    def begin_with(self, words: str) -> None:
        """Have these words in each line, between time and level and the message; no `%` among them."""
        self.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {words}%(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line. Never blocks."""
        if self._lines.qsize() >= MAX_LINES:
            self.dropped += 1
            return
        try:
            self._lines.put(self.format(record))
        except Exception:  # a bad log call must not take down what it was logging
            self.handleError(record)

    def run(self) -> None:
        """Write lines until `finish`; for a thread of its own."""
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except OSError as exc:
                if exc.errno not in _PASSING:
                    return  # nobody reads us any more; what comes is dropped at MAX_LINES
                self.unwritten += 1
            except ValueError:
                return  # closed
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def _write(self, line: str) -> None:
        lost = self.dropped + self.unwritten
        if lost != self._dropped_told:
            self._stream.write(f"({lost - self._dropped_told} lines were dropped: our output was not read, or its disk was full)\n")
            self._stream.flush()
            self._dropped_told = lost
        self._stream.write(line + "\n")
        if self._lines.empty():
            self._stream.flush()

    def finish(self) -> None:
        """Have `run` return once what is queued is written."""
        self._lines.put(None)


def set_up(level: str, stream: TextIO = sys.stdout) -> LineWriter:
    """Send all logging of this process to one LineWriter.

    Args:
        level: debug, info, warning or error.
    """
    if isinstance(stream, io.TextIOWrapper):
        # A terminal that cannot show a character must not end the log.
        stream.reconfigure(errors="backslashreplace")
    writer = LineWriter(stream)
    root = logging.getLogger()
    root.handlers = [writer]
    root.setLevel(level.upper())
    return writer


class ErrorStream:
    """A text stream that turns what is written to it into log lines: for tracebacks that gevent prints by itself."""

    def __init__(self) -> None:
        self._partial = ""

    def write(self, text: str) -> None:
        """Log the lines that this completes. Never blocks."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if line.strip():
                logging.getLogger("gevent").error("%s", line)

    def flush(self) -> None:
        """Nothing to do: a line is logged when it ends."""
