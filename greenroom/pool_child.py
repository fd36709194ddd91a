"""The child's side of the process pool: reads items from a pipe, runs them on the main thread, writes outcomes back.

It must not know the broker or the connection. Started by pools.Child; it ends when its stdin is closed.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time

from greenroom.errors import ConfigError
from greenroom.pools import PIPE_FRAME_LIMIT, Run, RunItem, execute
from greenroom.protocol import FrameReader, encode_frame
from greenroom.run_reports import ReportBox
from greenroom.tasks import default_registry, load_tasks

# Reports gather for so long, so that a task that says much costs few frames.
REPORT_PAUSE_S = 0.1

# How long a task may go on after the parent is gone: its result can reach nobody any more.
ORPHAN_S = 2.0


def main(options: dict) -> None:
    """Serve the parent until it closes our stdin.

    Args:
        options: {"specs": [str] for load_tasks, "max_result": bytes}.
    """
    # Ctrl-C goes to the whole terminal; the parent decides what happens to running jobs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    in_fd, out_fd = _take_pipes()
    try:
        for spec in options["specs"]:
            load_tasks(spec)
    except ConfigError as exc:
        _send(out_fd, {"failed": str(exc)})
        sys.exit(2)
    _send(out_fd, {"ready": os.getpid()})
    outbox = Outbox(out_fd)
    inbox = Inbox(in_fd, outbox.reports)
    threading.Thread(target=inbox.read, name="greenroom-pipe", daemon=True).start()
    try:
        serve(inbox, outbox, max_result=options["max_result"])
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone, so nobody waits for this result


def serve(inbox: Inbox, outbox: Outbox, *, max_result: int) -> None:
    """Run what arrives, one after the other, until the parent is gone."""
    while (run := inbox.next()) is not None:
        outbox.send({"begun": list(run.key)})
        outcome = execute(default_registry, run.item, run.context, max_result=max_result)
        inbox.current = None
        outbox.send_reports()
        outbox.send(outcome._asdict())


class Outbox:
    """Writes to the pipe, from the main thread and, once a task has reported anything, from one that sends reports.

    Attributes:
        reports: what the task says of itself.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()  # frames must not mix; held while the parent does not read, and it always does
        self._has_news = threading.Event()
        self._thread: threading.Thread | None = None
        self.reports = ReportBox()
        self.reports.on_news = self._note_news

    def send(self, message: dict) -> None:
        """Write a frame. Raises BrokenPipeError when the parent is gone."""
        with self._lock:
            _send(self._fd, message)

    def send_reports(self) -> None:
        """Write all that the task has reported so far."""
        while self.reports:
            with self._lock:  # taken and written in one go, or the thread's portion could come behind the outcome
                items = self.reports.take()
                if items:
                    _send(self._fd, {"reports": items})

    def _note_news(self) -> None:
        self._has_news.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_now_and_then, name="greenroom-reports", daemon=True)
            self._thread.start()

    def _send_now_and_then(self) -> None:
        try:
            while self._has_news.wait():
                time.sleep(REPORT_PAUSE_S)
                self._has_news.clear()
                self.send_reports()
        except OSError:
            pass  # the parent is gone; the main thread, or the one that reads, ends this process


class Inbox:
    """Reads the pipe in a thread of its own, so that a cancel is seen while a task runs."""

    def __init__(self, fd: int, reports: ReportBox) -> None:
        self._fd = fd
        self._reports = reports
        self._runs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()  # at most one item: the parent waits
        self.current: Run | None = None

    def next(self) -> Run | None:
        """Wait for an item; None when the parent is gone."""
        return self._runs.get()

    def read(self) -> None:
        """Read until the parent closes the pipe, then end this process, by force if a task keeps it."""
        reader = FrameReader(PIPE_FRAME_LIMIT)
        try:
            while reader.failed is None and (data := os.read(self._fd, 1 << 16)):
                for message in reader.feed(data):
                    self._take(message)
        except OSError as exc:
            print(f"greenroom child {os.getpid()}: its pipe failed: {exc}", file=sys.stderr)
        self._runs.put(None)
        run = self.current
        if run is not None:
            run.context.cancel()
        # Ends early, with the process, if the main thread leaves by itself.
        threading.Event().wait(ORPHAN_S)
        os._exit(1)

    def _take(self, message: dict) -> None:
        if "run" in message:
            self.current = Run(RunItem(**message["run"]), self._reports)
            self._runs.put(self.current)
            return
        run = self.current  # the main thread clears it at any moment
        if run is not None and message.get("cancel") == list(run.key):
            run.context.cancel()


def _take_pipes() -> tuple[int, int]:
    """Move the two pipes away from 0 and 1, so that what a task prints goes to stderr and what it reads is empty."""
    in_fd, out_fd = os.dup(0), os.dup(1)  # not inherited by processes that a task starts
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    # It was opened on a pipe, so it would keep lines back until 8 KiB are full.
    sys.stdout.reconfigure(line_buffering=True)
    return in_fd, out_fd


def _send(fd: int, message: dict) -> None:
    view = memoryview(encode_frame(message))
    while view:
        view = view[os.write(fd, view):]
