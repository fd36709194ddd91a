"""A broker whose disk fills up: new jobs are refused before anything moves, running ones are settled to the last, and space that comes back helps."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.client import Client
from greenroom.stores.disk_room import BALLAST, BALLAST_BYTES, MAKE_ABOVE_BYTES, MIN_FREE_BYTES, RELEASE_BELOW_BYTES, DiskRoom
from tests.conftest import skip_or_fail
from tests.processes import BrokerProcess, until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 176 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=176m", "tmpfs", folder], capture_output=True,
                                           timeout=30).returncode:
        skip_or_fail("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


def free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def fill(folder: Path, leave: int) -> None:
    """Have somebody else's file leave so much free."""
    file = os.open(folder / "somebody-elses", os.O_RDWR | os.O_CREAT)
    try:
        size = os.fstat(file).st_size + free(folder) - leave
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


def post(broker: BrokerProcess, path: str, body: object) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def has_ballast(broker: BrokerProcess) -> bool:
    """Tell whether it is there, with all its blocks."""
    try:
        return (broker.data / BALLAST).stat().st_blocks * 512 >= BALLAST_BYTES
    except FileNotFoundError:
        return False


def test_on_a_disk_that_fills_up_running_jobs_are_settled_and_new_ones_refused(small_disk: Path, certificates: Path) -> None:
    broker = BrokerProcess(small_disk, certificates)
    ballast = broker.data / BALLAST
    try:
        broker.start()
        until(lambda: has_ballast(broker), "the ballast is made")
        assert ballast.stat().st_mode & 0o777 == 0o600
        client = Client(broker.url, ca=broker.ca)
        ids = [handle.id for handle in client.submit_many([{"task": "t"}] * 400)]
        fill(small_disk, MIN_FREE_BYTES // 2)
        until(lambda: broker.get("/readyz")[0] == 503, "the disk is noticed to be nearly full")
        status, answer = post(broker, "/api/submit", {"task": "t"})
        assert (status, answer["error"]["code"]) == (503, "STORE_FULL")
        before = client.stats()["total"]
        fill(small_disk, 0)
        until(lambda: not ballast.exists(), "the ballast is given up")
        until(lambda: free(small_disk) > RELEASE_BELOW_BYTES, "its blocks are free")  # the name goes first

        for job in ids:  # a cancel is a row, like a settle
            assert client.cancel([job]) == ["cancelled"]
        assert client.stats()["total"] == before and client.stats()["states"]["cancelled"] == len(ids)

        (small_disk / "somebody-elses").unlink()
        until(lambda: broker.get("/readyz")[0] == 200, "space is back")
        until(lambda: has_ballast(broker), "the ballast is made again")
        assert client.submit("t").id > ids[-1]
        until(lambda: "the disk of" in broker.output and "disk space is back" in broker.output, "the log tells it")  # a thread writes the lines
        client.close()
        assert broker.terminate() == 0
    finally:
        broker.end()


def test_a_broker_that_starts_on_a_full_disk_gives_up_its_ballast_first(small_disk: Path, certificates: Path) -> None:
    broker = BrokerProcess(small_disk, certificates)
    try:
        broker.start()
        until(lambda: has_ballast(broker), "the ballast is made")
        with Client(broker.url, ca=broker.ca) as client:
            job = client.submit("t").id
        broker.kill()
        fill(small_disk, 0)

        broker.spawn()
        until(lambda: "dashboard:" in broker.output[broker.output.rfind("full:"):], "it serves on a disk that was full")
        with Client(broker.url, ca=broker.ca) as client:
            assert client.cancel([job]) == ["cancelled"]
        assert broker.terminate() == 0
    finally:
        broker.end()


def test_the_marks_leave_room_for_each_other() -> None:
    assert RELEASE_BELOW_BYTES + BALLAST_BYTES < MIN_FREE_BYTES, "what is given up must not let new jobs in"
    assert MAKE_ABOVE_BYTES - BALLAST_BYTES > MIN_FREE_BYTES, "what is made must not shut them out"


def test_looking_at_a_disk_with_room_makes_the_ballast_once(tmp_path: Path) -> None:
    room = DiskRoom(tmp_path)

    assert room.look() is False and room.free_bytes > MIN_FREE_BYTES
    first = (tmp_path / BALLAST).stat()
    room.look()

    assert (tmp_path / BALLAST).stat().st_mtime_ns == first.st_mtime_ns and first.st_size == BALLAST_BYTES
