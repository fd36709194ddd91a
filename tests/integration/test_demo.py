"""`./run demo`: the whole main job on real input, a killed worker, a planted fault, and that nothing stays behind."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT, make_certificates, until

PARTS = ("broker.py", "worker.py", "client.py", "protocol.py", "greenroom", "webui", "docs", "certs")
END_WITHIN_S = 100.0


class Demo:
    """A demonstration in a copy of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen | None = None

    def start(self, *flags: str) -> None:
        """Start it; what it prints goes to files."""
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            self.process = subprocess.Popen([sys.executable, "-m", "greenroom.demo", *flags], cwd=self.folder, stdout=out, stderr=err,
                                            stdin=subprocess.DEVNULL)

    @property
    def said(self) -> str:
        """What it printed to stdout."""
        return (self.folder / "out").read_text()

    @property
    def progress(self) -> str:
        """What it printed to stderr."""
        return (self.folder / "err").read_text()

    def ends(self) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(END_WITHIN_S)

    def says(self, text: str) -> None:
        """Wait until it has said this."""
        until(lambda: text in self.said or self.process.poll() is not None, f"the demo says {text!r}", END_WITHIN_S)
        assert text in self.said, self.said + self.progress

    def pids(self) -> list[int]:
        """Return the process ids that its children wrote into their logs."""
        return [int(pid) for log in self.folder.glob("data/demo/*.log") for pid in re.findall(r"\bpid (\d+)", log.read_text())]

    def survivors(self) -> list[int]:
        """Return the children that still run."""
        return [pid for pid in self.pids() if _is_running(pid)]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A copy of the checkout, with certificates, in a folder whose name has a space."""
    folder = tmp_path / "check out"
    folder.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.crt", "*.key", "img"))
        else:
            shutil.copy(ROOT / part, folder / part)
    make_certificates(folder / "certs")
    made = Demo(folder)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.terminate()
        made.process.wait(END_WITHIN_S)


def row(said: str, name: str) -> str:
    """Return the value of a row of the table."""
    return re.search(rf"^{name} +(.+)$", said, re.MULTILINE)[1]


def test_everything_completes_and_matches_although_a_worker_is_killed(demo: Demo) -> None:
    with socket.socket() as sock:
        taken = _occupy(sock, 65432)
        demo.start("--exit")
        code = demo.ends()

    said = demo.said
    assert code == 0, said + demo.progress
    assert f"Port {taken} is taken; using " in said
    assert "Dashboard: http://127.0.0.1:" in said
    victim, job = re.search(r"^Killed (\S+) \(pid \d+, SIGKILL\) while it held job (\d+)", said, re.MULTILINE).groups()
    assert f"Job {job} was requeued" in said
    finisher = re.search(rf"^Job {job} was finished by (\S+), on attempt (\d+)", said, re.MULTILINE)
    assert finisher[1] != victim and int(finisher[2]) >= 2
    files = [path for path in Path(sysconfig.get_path("stdlib")).rglob("*.py")
             if not {"site-packages", "dist-packages", "__pycache__"} & set(path.parts) and path.is_file()]
    assert int(row(said, "jobs")) > len(files) > 100
    assert f" {len(files)} hashes" in row(said, "compared")
    assert row(said, "failed") == "0"
    assert int(row(said, "requeued").split()[0]) >= 1
    assert row(said, "given back").split()[0].isdigit()
    assert float(row(said, "time").split()[0]) >= 5
    for name in ("throughput", "latency p50", "latency p95", "latency p99", "longest file", "largest file"):
        assert row(said, name)
    assert "none differ" in row(said, "compared")
    assert len(demo.progress.splitlines()) >= 5
    assert len(demo.pids()) == 4 and demo.survivors() == []


def _occupy(sock: socket.socket, port: int) -> int:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier broker may still fade away
    try:
        sock.bind(("127.0.0.1", port))
        sock.listen()
    except OSError:
        pass  # somebody else has taken it already, which is as good
    return port


def test_a_wrong_result_is_found_and_the_page_stays_open_until_ctrl_c(demo: Demo) -> None:
    task = demo.folder / "docs/examples/file_stats.py"
    right = '"sha256": digest.hexdigest()'
    assert right in task.read_text()
    task.write_text(task.read_text().replace(right, '"sha256": "0" * 64 if path.endswith("/zipfile.py") else digest.hexdigest()'))

    demo.start()
    demo.says("The dashboard stays open")
    page = http.client.HTTPConnection("127.0.0.1", int(re.search(r"Dashboard: http://127.0.0.1:(\d+)/", demo.said)[1]), timeout=20)
    page.request("GET", "/")
    status = page.getresponse().status
    page.close()
    demo.process.send_signal(signal.SIGINT)

    assert demo.ends() == 1
    assert status == 200
    assert re.search(r"^differs: job \d+ file_stats gave ", demo.said, re.MULTILINE)
    assert demo.survivors() == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_the_middle_ends_all_its_processes(demo: Demo, number: int, code: int) -> None:
    demo.start()
    demo.says("jobs at mixed priorities")
    until(lambda: len(demo.pids()) >= 3, "broker and workers have started")

    demo.process.send_signal(number)

    assert demo.ends() == code, demo.said + demo.progress
    assert demo.survivors() == []
    assert "Traceback" not in demo.progress


def test_a_broker_that_cannot_start_is_quoted(demo: Demo) -> None:
    (demo.folder / "certs/server.key").unlink()

    demo.start("--exit")

    assert demo.ends() == 1
    assert re.search(r"^demo: the broker did not start: .*server\.key", demo.progress, re.MULTILINE)
    assert "Traceback" not in demo.progress


def test_two_demonstrations_at_once_do_not_touch_each_other(demo: Demo) -> None:
    demo.start()
    demo.says("jobs at mixed priorities")
    second = subprocess.Popen([sys.executable, "-m", "greenroom.demo"], cwd=demo.folder, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL)
    try:
        said = ""
        while "jobs at mixed priorities" not in said and (line := second.stdout.readline()):
            said += line
        survivors = demo.survivors()
    finally:
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=END_WITHIN_S)

    assert "jobs at mixed priorities" in said
    assert survivors and survivors == demo.pids()
    assert (demo.folder / "data/demo/store").is_dir() and (demo.folder / "data/demo-2/store").is_dir()
