"""What greenroom.logs promises: nobody who logs ever waits, nothing is reordered, what is lost is counted."""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import gevent
import pytest

from greenroom import logs
from greenroom.logs import MAX_LINES, LineWriter
from tests.processes import ROOT, last_line


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers = handlers
    root.setLevel(level)


def record(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("greenroom.x", logging.INFO, __file__, 1, text, args, None)


def test_lines_are_written_in_order_with_time_and_level() -> None:
    out = io.StringIO()
    writer = LineWriter(out)

    for number in range(500):
        writer.emit(record("line %d", number))
    writer.finish()
    writer.run()

    lines = out.getvalue().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == [str(number) for number in range(500)]
    date, clock, level, _ = lines[0].split(maxsplit=3)
    assert time.strptime(f"{date} {clock}", "%Y-%m-%d %H:%M:%S") and level == "INFO"


def test_lines_beyond_the_bound_are_dropped_counted_and_told_of() -> None:
    out = io.StringIO()
    writer = LineWriter(out)

    for number in range(MAX_LINES + 7):
        writer.emit(record("line %d", number))
    writer.finish()
    writer.run()

    lines = out.getvalue().splitlines()
    assert writer.dropped == 7
    assert len(lines) == MAX_LINES + 1 and lines[0] == "(7 lines were dropped: our output was not read, or its disk was full)"
    assert lines[-1].endswith(f"line {MAX_LINES - 1}")


def test_dropped_lines_are_told_of_once() -> None:
    out = io.StringIO()
    writer = LineWriter(out)
    for number in range(MAX_LINES + 1):
        writer.emit(record("line"))
    writer.finish()
    writer.run()

    writer.emit(record("later"))
    writer.finish()
    writer.run()

    assert out.getvalue().count("dropped") == 1 and out.getvalue().endswith("later\n")


def test_a_call_with_wrong_arguments_harms_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    writer = LineWriter(out)

    writer.emit(record("%d jobs", "many"))
    writer.emit(record("good"))
    writer.finish()
    writer.run()

    assert out.getvalue().endswith("good\n") and out.getvalue().count("\n") == 1
    assert "%d jobs" in capsys.readouterr().err


def test_a_reader_that_went_away_ends_the_writer_and_nobody_else() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gevent.sleep(0.001)  # a close under gevent may wait for the hub's next turn
    out = os.fdopen(writing, "w")
    writer = LineWriter(out)
    writer.emit(record("nobody hears it"))

    writer.run()

    for _ in range(MAX_LINES + 5):
        writer.emit(record("nor this"))
    assert writer.dropped == 5
    with pytest.raises(BrokenPipeError):
        out.close()


class FullDisk(io.StringIO):
    """A file whose disk is full until somebody tidies up."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_a_full_disk_costs_the_lines_of_that_time_and_no_more() -> None:
    out = FullDisk()
    writer = LineWriter(out)
    for _ in range(3):
        writer.emit(record("not this"))
    writer.finish()
    writer.run()

    out.is_full = False
    writer.emit(record("later"))
    writer.finish()
    writer.run()

    first, second = out.getvalue().splitlines()
    assert first.startswith("(3 lines were dropped") and second.endswith("later") and writer.unwritten == 3


def test_a_character_that_the_output_cannot_show_does_not_end_the_log(root_logger: logging.Logger) -> None:
    raw = io.BytesIO()
    writer = logs.set_up("info", io.TextIOWrapper(raw, encoding="ascii"))

    logging.getLogger("greenroom").warning("[Server] SSLError – rejected")
    logging.getLogger("greenroom").warning("later")
    writer.finish()
    writer.run()

    text = raw.getvalue().decode("ascii")
    assert "SSLError \\u2013 rejected" in text and text.endswith("later\n")


def test_the_level_given_decides(root_logger: logging.Logger) -> None:
    out = io.StringIO()
    writer = logs.set_up("warning", out)

    logging.getLogger("greenroom").info("not this")
    logging.getLogger("greenroom").warning("this")
    writer.finish()
    writer.run()

    assert out.getvalue().endswith("this\n") and "not" not in out.getvalue()


FULL_PIPE = '''
"""Log far more than a pipe holds, on a hub whose standard library is patched, while nobody reads."""
from gevent import monkey
monkey.patch_all()
import logging, sys, time
import gevent
from gevent.threadpool import ThreadPool
sys.path.insert(0, sys.argv[1])
from greenroom import logs

writer = logs.set_up("info")
writing = ThreadPool(1).spawn(writer.run)
log = logging.getLogger("greenroom")
worst = 0.0
for number in range(15_000):
    began = time.perf_counter()
    log.info("line %d %s", number, "x" * 100)
    worst = max(worst, time.perf_counter() - began)
    if number % 100 == 0:
        gevent.sleep(0.001)
sys.stderr.write(f"{worst} {writer.dropped}\\n")
sys.stderr.flush()
sys.stdin.read()  # until the test has read what it wants to
writer.finish()
writing.wait(10)
sys.stderr.write(f"{writing.ready()}\\n")
'''


def test_a_pipe_that_nobody_reads_never_stops_the_hub() -> None:
    child = subprocess.Popen([sys.executable, "-c", FULL_PIPE, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    try:
        first = child.stderr.readline()
        worst, dropped = first.split()
        child.stdin.close()
        lines = child.stdout.read().splitlines()
        rest = child.stderr.read()
        assert child.wait(20) == 0, rest
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()

    assert float(worst) < 1.0, "logging waited for the pipe"
    assert int(dropped) > 0 and last_line(rest) == "True"
    numbers = [int(line.split()[4]) for line in lines if not line.startswith("(")]
    assert numbers == list(range(15_000 - int(dropped))), "what was kept is whole and in order"
    told = [int(line[1:].split()[0]) for line in lines if line.startswith("(")]
    assert sum(told) == int(dropped)
