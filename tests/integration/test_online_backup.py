"""Backups over the wire against real brokers: what is in them, who gets them, what is left when somebody dies in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from greenroom.client import Client
from greenroom.client_backup import BackupError
from greenroom.errors import ConfigError, InvalidError, StoreFullError
from greenroom.protocol import encode_frame
from tests.conftest import skip_or_fail
from tests.faults.proxy import Proxy
from tests.processes import ROOT, BrokerProcess, RawPeer, until
from tests.scripted import Background, Peer, ScriptedBroker

NAME = b"0123456789abcdef"
MIB = 2**20


def fill(peer: RawPeer, jobs: int, size: int = 4000) -> list[int]:
    """Submit jobs with random payloads; returns their ids."""
    ids: list[int] = []
    for first in range(0, jobs, 500):
        ids += peer.call("submit", jobs=[{"task": "t", "encoding": "raw", "payload": os.urandom(size)}
                                         for _ in range(min(500, jobs - first))])["jobs"]
    return ids


def ask(peer: RawPeer, step: str, name: bytes = NAME, **fields: object) -> dict:
    return peer.call("backup", step=step, backup=name, **fields)


def begun(peer: RawPeer, name: bytes = NAME) -> dict:
    """Begin a backup (the one before may just be going) and wait until it is ready."""
    until(lambda: "error" not in ask(peer, "begin", name), "there is a place for it")
    return until(lambda: (answer := ask(peer, "read", name, size=1)) and answer["ready"] and answer, "the backup is ready", 60)


def left_files(broker: BrokerProcess) -> list[str]:
    folder = broker.data / "backups"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def restore(file: Path, make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> BrokerProcess:
    """Start a new broker on a backup, as docs/operations.md says."""
    (tmp_path / "restored" / "data").mkdir(parents=True)
    shutil.copy(file, tmp_path / "restored" / "data" / "greenroom.db")
    return make_broker("--restart-grace-s", "0.5", name="restored")


def client_of(broker: BrokerProcess, **options: object) -> Client:
    return Client(broker.url, ca=broker.ca, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path_factory.mktemp("shared"), certificates)
    broker.start()
    yield broker
    broker.end()


class Load:
    """Producers and a worker that never rest, in greenlets; notes what was acknowledged when."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.stored: dict[int, bytes] = {}  # job -> payload, once its submit was answered
        self.finished: set[int] = set()  # jobs whose ack was answered
        self.errors: list[object] = []
        self._broker = broker
        self._is_over = False
        self._greenlets = [gevent.spawn(loop) for loop in (self._produce, self._produce, self._work)]

    def _produce(self) -> None:
        peer = self._broker.connect()
        while not self._is_over:
            payloads = [os.urandom(2000) for _ in range(50)]
            items = [{"task": "t", "encoding": "raw", "payload": payload} for payload in payloads]
            self.stored.update(zip(peer.call("submit", jobs=items)["jobs"], payloads))

    def _work(self) -> None:
        peer = self._broker.connect(role="worker")
        while not self._is_over:
            jobs = peer.call("reserve", n=20, wait=1)["jobs"]
            if jobs:
                outcomes = peer.call("settle", leases=[[job, fence, "ack", b"\x01"] for job, fence, *_ in jobs])["outcomes"]
                self.errors += [outcome for outcome in outcomes if outcome != "OK"]
                self.finished.update(job for job, *_ in jobs)

    def stop(self) -> None:
        """End it; raises what went wrong in it."""
        self._is_over = True
        gevent.joinall(self._greenlets, timeout=30, raise_error=True)


def test_a_backup_made_during_load_has_all_that_was_acknowledged_before_it_and_its_jobs_run(
        make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    broker = make_broker()
    load = Load(broker)
    until(lambda: len(load.stored) > 2000 and load.finished, "there is something to copy", 60)
    stored, finished = dict(load.stored), set(load.finished)

    with client_of(broker) as client:
        made = client.backup(tmp_path / "copy.db")
    later = len(load.stored) - len(stored)
    load.stop()

    print(f"{made.bytes} bytes, {len(stored)} jobs stored and {len(finished)} finished before it, {later} stored meanwhile")
    assert later > 0 and load.errors == [] and left_files(broker) == []
    assert hashlib.sha256((tmp_path / "copy.db").read_bytes()).hexdigest() == made.sha256
    worker = restore(tmp_path / "copy.db", make_broker, tmp_path).connect(role="worker")
    ran: dict[int, bytes] = {}
    while jobs := worker.call("reserve", n=500, wait=1.5)["jobs"]:
        assert set(worker.call("settle", leases=[[job, fence, "ack"] for job, fence, *_ in jobs])["outcomes"]) == {"OK"}
        ran.update({job: payload for job, _, _, payload, *_ in jobs})
    assert all(load.stored[job] == payload for job, payload in ran.items())
    assert not finished & ran.keys(), "a job that was finished before the backup ran again"
    missing = sorted(stored.keys() - ran.keys())
    views = [view for first in range(0, len(missing), 500)
             for view in worker.call("get", jobs=missing[first:first + 500])["jobs"]]
    assert {view.get("state") for view in views} == {"completed"} and finished <= set(missing)


def test_a_second_backup_is_busy_until_the_first_is_ended(shared: BrokerProcess) -> None:
    first, second = shared.connect(), shared.connect()
    begun(first)

    error = ask(second, "begin", b"2" * 16)["error"]
    assert error["code"] == "BUSY" and error["retry_after_s"] > 0
    assert ask(second, "read", b"2" * 16)["error"]["code"] == "GONE"
    ask(first, "end")

    until(lambda: "error" not in ask(second, "begin", b"2" * 16), "the place is free")
    ask(second, "end", b"2" * 16)


def test_two_clients_at_once_both_get_theirs(shared: BrokerProcess, tmp_path: Path) -> None:
    fill(shared.connect(), 500)
    with client_of(shared) as one, client_of(shared) as two:
        calls = [Background(client.backup, tmp_path / name) for client, name in ((one, "a"), (two, "b"))]
        sizes = [call.result(60).bytes for call in calls]

    assert [(tmp_path / name).stat().st_size for name in "ab"] == sizes


def test_a_connection_lost_in_the_middle_costs_no_byte_twice(broker: BrokerProcess, tmp_path: Path) -> None:
    fill(broker.connect(), 4000)
    with Proxy((broker.host, broker.port)) as proxy:
        passages: list[int] = []

        def on_progress(word: str, done: int, total: int) -> None:
            if word == "receiving" and done == 5 * MIB:
                passages.append(proxy.accepted)
                for passage in proxy.passages:
                    passage.reset()

        with Client(f"greenroom://localhost:{proxy.port}", ca=broker.ca) as client:
            made = client.backup(tmp_path / "copy.db", on_progress=on_progress)

        assert passages == [1] and proxy.accepted == 2
    assert made.bytes > 15 * MIB and (tmp_path / "copy.db").stat().st_size == made.bytes
    assert broker.output.count("a backup begins") == 1, "it was begun anew"


def test_a_broker_killed_in_the_middle_leaves_nothing_and_the_client_begins_anew(broker: BrokerProcess, tmp_path: Path) -> None:
    fill(broker.connect(), 1000)
    kills: list[list[str]] = []

    def on_progress(word: str, done: int, total: int) -> None:
        if word == "receiving" and not kills:
            broker.kill()
            kills.append(left_files(broker))
            broker.start()
            kills.append(left_files(broker))

    with client_of(broker) as client:
        made = client.backup(tmp_path / "copy.db", on_progress=on_progress)

    assert len(kills[0]) == 1 and kills[1] == [], "a rest was left, and removed at the start"
    assert broker.output.count("a backup begins") == 2 and (tmp_path / "copy.db").stat().st_size == made.bytes


def test_a_backup_that_is_lost_again_and_again_is_given_up(broker: BrokerProcess, tmp_path: Path) -> None:
    thief = broker.connect()
    fill(thief, 1000)

    def on_progress(word: str, done: int, total: int) -> None:
        for path in (broker.data / "backups").glob("*.db"):
            path.unlink()

    with client_of(broker) as client, pytest.raises(BackupError, match="lost the backup 3 times"):
        client.backup(tmp_path / "copy.db", on_progress=on_progress)
    assert os.listdir(tmp_path) == ["broker"]


KILLED_CLIENT = """
import os, signal, sys
from greenroom.client import Client

def on_progress(word, done, total):
    if word == "receiving":
        os.kill(os.getpid(), signal.SIGKILL)

Client(sys.argv[1], ca=sys.argv[2]).backup(sys.argv[3], on_progress=on_progress)
"""


@pytest.mark.parametrize("is_restarted", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_client_killed_in_the_middle_leaves_a_part_that_the_next_one_replaces(broker: BrokerProcess, tmp_path: Path,
                                                                                is_restarted: bool) -> None:
    fill(broker.connect(), 1000)
    target = tmp_path / "copy.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_CLIENT, broker.url, broker.ca, str(target)], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL and not target.exists()
    assert (tmp_path / "copy.db.part").stat().st_mode & 0o777 == 0o600

    if is_restarted:  # else the broker waits 30 s for the killed one to come back
        broker.restart()
    with client_of(broker, timeout=60.0) as client:
        began = time.monotonic()
        made = client.backup(target)

    print(f"the next client had the broker's one place after {time.monotonic() - began:.1f} s")
    assert target.stat().st_size == made.bytes and not (tmp_path / "copy.db.part").exists()


def test_bye_ends_a_backup_and_a_lost_connection_does_not(shared: BrokerProcess) -> None:
    first, second = shared.connect(), shared.connect()
    begun(first)
    first.close()
    assert begun(second)["ready"], "another connection goes on with the same backup"
    assert len(left_files(shared)) == 1

    second.call("bye")

    until(lambda: left_files(shared) == [], "it was removed")


def test_wrong_names_and_offsets_are_refused_and_the_right_ones_go_on(shared: BrokerProcess) -> None:
    peer = shared.connect()
    total = begun(peer)["total"]

    assert ask(peer, "read", b"x" * 16)["error"]["code"] == "GONE" and ask(peer, "end", b"x" * 16).keys() == {"id"}
    assert ask(peer, "read", offset=total + 1)["error"]["field"] == "offset"
    assert ask(peer, "read", offset=total)["data"] == b"" and len(ask(peer, "read", offset=total - 3)["data"]) == 3
    assert ask(peer, "read", size=15)["data"] == b"SQLite format 3"
    ask(peer, "end")
    assert ask(peer, "read")["error"]["code"] == "GONE"


@pytest.mark.parametrize("name", [b"../../../evil.db", b"/tmp/evil-backup", b"\0" * 16, b"..\\..\\..\\evil\0\0\0"])
def test_no_name_of_a_peer_s_reaches_a_path(shared: BrokerProcess, name: bytes) -> None:
    def tree() -> set[Path]:
        return {path for path in shared.data.parent.rglob("*")}

    peer, before = shared.connect(), tree()
    until(lambda: ask(peer, "begin", name, path="/tmp/evil", file="../evil", target="evil").get("ready"), "it is ready")
    [made] = tree() - before - {shared.data / "backups"}

    assert made.parent == shared.data / "backups" and made.stat().st_mode & 0o777 == 0o600
    assert made.parent.stat().st_mode & 0o777 == 0o700 and not set(made.name) - set("0123456789abcdef.db")
    assert not Path("/tmp/evil-backup").exists() and not Path("/tmp/evil").exists()
    ask(peer, "end", name)
    until(lambda: not made.exists(), "it was removed")


def test_a_peer_that_does_not_read_is_closed_and_hurts_nobody(broker: BrokerProcess) -> None:
    greedy, other = broker.connect(), broker.connect()
    fill(other, 4000)
    begun(greedy)

    greedy.sock.sendall(b"".join(encode_frame({"verb": "backup", "id": number, "step": "read", "backup": NAME})
                                 for number in range(1000, 1040)))
    until(lambda: broker.stats()["connections"] == 1, "it was closed as too slow")

    assert "now" in other.call("ping") and begun(other)["ready"]
    with open(f"/proc/{broker.pid}/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert peak < 300 * 1024


def test_four_pieces_may_be_on_their_way(shared: BrokerProcess) -> None:
    peer = shared.connect()
    fill(peer, 2000)
    total = begun(peer)["total"]
    whole = b""
    while len(whole) < total:
        asked = [peer.send("backup", step="read", backup=NAME, offset=len(whole) + ahead * MIB) for ahead in range(4)
                 if len(whole) + ahead * MIB <= total]
        whole += b"".join(peer.reply(number)["data"] for number in asked)

    assert hashlib.sha256(whole).digest() == ask(peer, "read")["sha256"]
    ask(peer, "end")


def test_a_broker_in_memory_says_that_it_has_nothing_to_copy(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    broker = make_broker("--data", "memory:")

    with client_of(broker) as client, pytest.raises(InvalidError, match="memory only"):
        client.backup(tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists() and not (tmp_path / "copy.db.part").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 260 MiB for a broker's data."""
    folder = tmp_path / "broker" / "data"
    folder.mkdir(parents=True, mode=0o700)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260m,mode=700", "tmpfs", folder]).returncode:
        skip_or_fail("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def ballast(disk: Path, free: int) -> None:
    """Fill a disk until only so much is free."""
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - free)


def test_a_disk_without_room_refuses_a_backup_and_settles_go_on(small_disk: Path, make_broker: Callable[..., BrokerProcess],
                                                                tmp_path: Path) -> None:
    broker = make_broker()
    peer, worker = broker.connect(), broker.connect(role="worker")
    fill(peer, 500)
    ballast(small_disk, 129 * MIB)

    with client_of(broker) as client, pytest.raises(StoreFullError, match="MiB free"):
        client.backup(tmp_path / "copy.db")
    [[job, fence, *_]] = worker.call("reserve", n=1)["jobs"]
    assert worker.call("settle", leases=[[job, fence, "ack"]])["outcomes"] == ["OK"]

    (small_disk / "ballast").unlink()
    with client_of(broker) as client:
        assert client.backup(tmp_path / "copy.db").bytes == (tmp_path / "copy.db").stat().st_size


def test_a_disk_that_fills_while_the_copy_is_made_ends_it_and_only_it(small_disk: Path, make_broker: Callable[..., BrokerProcess],
                                                                      tmp_path: Path) -> None:
    broker = make_broker()
    peer = broker.connect()
    fill(peer, 8000)

    ask(peer, "begin")
    until(lambda: left_files(broker), "the copy has begun")
    broker.signal(signal.SIGSTOP)
    ballast(small_disk, 100 * MIB)
    assert left_files(broker)[0].endswith(".part"), "the copy is under way"
    broker.signal(signal.SIGCONT)
    error = until(lambda: ask(peer, "read").get("error"), "it was told")

    assert error["code"] == "STORE_FULL" and error["retry_after_s"] > 0 and str(small_disk) not in error["message"]
    until(lambda: left_files(broker) == [], "nothing is left of it")
    assert all(type(job) is int for job in fill(peer, 1))
    ask(peer, "end")
    until(lambda: "the backup failed: " in broker.output, "the log says why")


# -- the client's side ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_kept_unless_told_otherwise(shared: BrokerProcess, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("precious")
    begins = shared.output.count("a backup begins")

    with client_of(shared) as client:
        with pytest.raises(ConfigError, match="--force"):
            client.backup(target)
        with pytest.raises(ConfigError, match="no folder"):
            client.backup(tmp_path / "nowhere" / "copy.db")
        assert target.read_text() == "precious" and shared.output.count("a backup begins") == begins
        client.backup(str(target), force=True)

    assert target.read_bytes().startswith(b"SQLite format 3") and target.stat().st_mode & 0o777 == 0o600


def test_a_file_that_appears_meanwhile_is_kept_too(shared: BrokerProcess, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"

    with client_of(shared) as client, pytest.raises(ConfigError, match="by now"):
        client.backup(target, on_progress=lambda *_: target.write_text("precious"))

    assert target.read_text() == "precious" and left_files(shared) == [] and not (tmp_path / "copy.db.part").exists()


@pytest.fixture
def scripted(certificates: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(certificates)
    yield made
    made.close()


def tell(peer: Peer, steps: list[dict]) -> dict:
    """Answer a begin and some reads; returns the request after them."""
    peer.reply(peer.expect("backup"), ready=False, made=0, total=3, sha256=None)
    for fields in steps:
        peer.reply(peer.expect("backup"), **{"ready": True, "made": 3, "total": 3, **fields})
    return peer.expect("backup")


@pytest.mark.parametrize("steps", [
    [{"sha256": hashlib.sha256(b"abd").digest(), "data": b"abc"}, {"sha256": hashlib.sha256(b"abd").digest(), "data": b""}],
    [{"sha256": hashlib.sha256(b"ab").digest(), "data": b"ab"}, {"sha256": hashlib.sha256(b"ab").digest(), "data": b""}],
])
def test_what_is_not_what_the_broker_made_is_not_kept(scripted: ScriptedBroker, tmp_path: Path, steps: list[dict]) -> None:
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with Client(scripted.url, ca=scripted.ca) as client:
        call = Background(client.backup, target, force=True)
        peer = scripted.greeted()
        end = tell(peer, steps)
        assert end["step"] == "end"
        peer.reply(end)

        with pytest.raises(BackupError, match="is not what the broker made"):
            call.result()

    assert os.listdir(tmp_path) == ["copy.db"] and target.read_text() == "precious"


def test_a_disk_of_the_client_that_is_full_is_told_and_the_broker_too(scripted: ScriptedBroker, tmp_path: Path) -> None:
    with Client(scripted.url, ca=scripted.ca) as client:
        part = tmp_path / "copy.db.part"
        call = Background(client.backup, tmp_path / "copy.db", on_progress=lambda *_: part.unlink())
        peer = scripted.greeted()
        digest = hashlib.sha256(b"abc").digest()
        end = tell(peer, [{"sha256": digest, "data": b"abc"}, {"sha256": digest, "data": b""}])
        peer.reply(end)

        with pytest.raises(BackupError, match="cannot be written: No such file"):
            call.result()

    assert end["step"] == "end" and os.listdir(tmp_path) == []


def command(broker: BrokerProcess, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "client.py"), "backup", *arguments], capture_output=True, text=True,
                          timeout=60, env={**os.environ, **broker.client_env}, **options)


def test_the_command_writes_the_file_and_says_what_it_is(shared: BrokerProcess, tmp_path: Path) -> None:
    done = command(shared, "copy.db", cwd=tmp_path)
    again = command(shared, "copy.db", cwd=tmp_path)
    forced = command(shared, "copy.db", "--force", "-o", "table", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"path": "copy.db", "bytes": (tmp_path / "copy.db").stat().st_size,
                                       "sha256": json.loads(done.stdout)["sha256"]}
    assert again.returncode == 2 and again.stderr == "greenroom: copy.db is there already; --force replaces it\n"
    assert forced.returncode == 0 and forced.stdout.startswith("copy.db: ") and forced.stderr == ""


def test_the_command_shows_how_far_it_is_on_a_terminal(shared: BrokerProcess, tmp_path: Path) -> None:
    fill(shared.connect(), 1000)
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, str(ROOT / "client.py"), "backup", "copy.db"], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=theirs, timeout=60, env={**os.environ, **shared.client_env})
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)

    assert done.returncode == 0 and "receiving: 1.0 of " in shown and shown.endswith("\x1b[K")
