"""How a broker starts, refuses to start, stops, restarts and ends when a part of it dies. Real processes throughout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path

import apsw
import pytest

from greenroom.config import BrokerConfig
from greenroom.stores.disk_room import BALLAST
from tests.processes import DEADLINE_S, ROOT, BrokerProcess, Process, RawPeer, WorkerProcess, last_line, make_certificates, until

BROKEN = ROOT / "tests/broken_broker.py"

MakeBroker = Callable[..., BrokerProcess]
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, certificates: Path) -> Refused:
    """Start a broker that must refuse: exit 2, nothing on stdout, one line on stderr, which is returned without the name."""
    def start(*flags: str, env: dict[str, str] | None = None) -> str:
        given = ["--port", "0", "--web-port", "0", "--data", str(tmp_path / "data"), "--cert", str(certificates / "server.crt"),
                 "--key", str(certificates / "server.key"), *flags]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GREENROOM_")}
        done = subprocess.run([sys.executable, str(ROOT / "broker.py"), *given], capture_output=True, text=True,
                              timeout=DEADLINE_S, env={**clean, **(env or {})}, cwd=tmp_path)
        assert done.returncode == 2, done
        assert done.stdout == "" and done.stderr.count("\n") == 1, done
        assert done.stderr.startswith("broker.py: ")
        return done.stderr.removeprefix("broker.py: ").strip()
    return start


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in each file below a folder, but for those that a running broker changes by itself."""
    own = (BALLAST, "greenroom.db-shm")  # the ballast appears a second after the start; the log's index notes who reads
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in own}


def submit(peer: RawPeer, *jobs: dict) -> list[int]:
    """Submit jobs (task t, a raw payload) and return their ids."""
    ids = peer.call("submit", jobs=[{"task": "t", "encoding": "raw", "payload": b"p", **job} for job in jobs])["jobs"]
    assert all(isinstance(job_id, int) for job_id in ids)
    return ids


def reserve(peer: RawPeer, n: int = 1, wait: float = 10.0) -> list[list]:
    """Return deliveries."""
    return peer.call("reserve", n=n, wait=wait)["jobs"]


# -- refusing to start ------------------------------------------------------------------------------------------------------


def test_a_second_broker_on_the_same_data_is_refused_and_touches_nothing(broker: BrokerProcess, refused: Refused) -> None:
    submit(broker.connect(), {})
    before = contents(broker.data)

    sentence = refused("--data", str(broker.data))

    assert f"in use by pid {broker.pid}" in sentence and str(broker.data) in sentence
    after = contents(broker.data)
    # SQLite's shared memory holds marks of who reads: the running broker, which prunes once a second, moves them itself.
    assert {name: data for name, data in after.items() if not name.endswith("-shm")} == {
        name: data for name, data in before.items() if not name.endswith("-shm")} and after.keys() == before.keys()
    assert submit(broker.connect(), {})


def test_a_data_directory_that_cannot_be_made_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    assert str(tmp_path / "file") in refused("--data", str(tmp_path / "file"))
    assert "cannot be made" in refused("--data", str(tmp_path / "file/data"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o500)

    assert "not writable" in refused("--data", str(tmp_path / "mine"))


def test_a_corrupt_store_is_refused_and_not_touched(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/greenroom.db").write_bytes(b"no database at all" * 100)

    sentence = refused()

    assert "greenroom.db" in sentence and "not a database" in sentence
    assert (tmp_path / "data/greenroom.db").read_bytes() == b"no database at all" * 100


def test_a_newer_schema_is_refused_and_not_touched(make_broker: MakeBroker, refused: Refused) -> None:
    broker = make_broker()
    broker.terminate()
    db = apsw.Connection(str(broker.data / "greenroom.db"))
    db.pragma("user_version", 99)
    db.pragma("wal_checkpoint(TRUNCATE)")
    db.close()
    before = contents(broker.data)

    assert "newer version (schema 99" in refused("--data", str(broker.data))
    after = contents(broker.data)
    assert after["greenroom.db"] == before["greenroom.db"] and not after.get("greenroom.db-wal")


@pytest.mark.parametrize("flag", ["--port", "--web-port"])
def test_a_busy_port_is_named_with_its_flag(refused: Refused, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])

        sentence = refused(flag, port)

    assert f"127.0.0.1:{port}" in sentence and sentence.endswith(f"choose another with {flag}")


def test_certificates_that_cannot_serve_are_refused(refused: Refused, tmp_path: Path, certificates: Path) -> None:
    other = make_certificates(tmp_path / "other")
    shutil.copy(other / "server.key", tmp_path / "open.key")
    os.chmod(tmp_path / "open.key", 0o644)

    assert "python certs/gen_certs.py" in refused("--cert", str(tmp_path / "none.crt"))
    assert "python certs/gen_certs.py" in refused("--key", str(tmp_path / "none.key"))
    assert "server.key" in refused("--key", str(other / "server.key"))
    assert "open.key" in refused("--cert", str(other / "server.crt"), "--key", str(tmp_path / "open.key"))
    assert "none.crt" in refused("--client-ca", str(tmp_path / "none.crt"))
    assert "not for servers" in refused("--cert", str(certificates / "test-client.crt"), "--key", str(certificates / "test-client.key"))
    assert not (tmp_path / "data").exists()


def test_an_ended_certificate_is_an_error_line_and_no_reason_to_stay_away(make_broker: MakeBroker, tmp_path: Path, certificates: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    class LongAgo(datetime):
        @classmethod
        def now(cls, tz: timezone | None = None) -> datetime:
            return datetime.now(tz) - timedelta(days=400)

    gen_certs = sys.modules["gen_certs"]
    monkeypatch.setattr(gen_certs, "datetime", LongAgo)
    gen_certs.generate(tmp_path / "old")
    pair = ("--cert", str(tmp_path / "old" / "server.crt"), "--key", str(tmp_path / "old" / "server.key"))

    # Whose clock is wrong is not known: a broker's, after a start without one, is no reason to refuse those whose clocks are right.
    broker = make_broker(*pair)

    until(lambda: "ERROR" in broker.output and "ended 3.0 days ago" in broker.output, "the line about the certificate")
    done = subprocess.run([sys.executable, str(ROOT / "broker.py"), "--check", *pair, "--data", str(tmp_path / "none")],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "ended 3.0 days ago" in done.stdout


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.2", "::"])
def test_another_address_than_loopback_needs_client_certificates(refused: Refused, host: str) -> None:
    assert "--client-ca" in refused("--host", host)


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "broker.py"), "--bogus", "1"], capture_output=True, text=True,
                          timeout=DEADLINE_S, cwd=tmp_path)

    assert done.returncode == 2 and done.stderr.endswith("unrecognized arguments: --bogus 1\n") and not done.stdout


def test_bad_settings_are_refused_where_they_stand(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "greenroom.toml").write_text('web_prot = 1\n')

    assert "did you mean web_port?" in refused("--config", str(tmp_path / "greenroom.toml"))
    assert "GREENROOM_LEASE_S" in refused(env={"GREENROOM_LEASE_S": "soon"})
    assert "GREENROOM_WINDOW_JOBS" in refused(env={"GREENROOM_WINDOW_JOBS": "1"})
    assert str(tmp_path / "none.toml") in refused(env={"GREENROOM_CONFIG": str(tmp_path / "none.toml")})


# -- settings ---------------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_the_file(make_broker: MakeBroker, tmp_path: Path) -> None:
    (tmp_path / "greenroom.toml").write_text("lease_s = 20\nmax_waiting_jobs = 3\nhistory_count = 7\n")

    broker = make_broker("--config", str(tmp_path / "greenroom.toml"), "--lease-s", "22",
                         env={"GREENROOM_LEASE_S": "21", "GREENROOM_MAX_WAITING_JOBS": "2"})
    peer = broker.connect()

    assert peer.greeting["lease_s"] == 22
    assert submit(peer, {}, {})
    assert peer.call("submit", jobs=[{"task": "t"}])["error"]["code"] == "FULL"


def test_help_shows_the_real_defaults_and_fits_the_screen() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "broker.py"), "--help"], capture_output=True, text=True, timeout=DEADLINE_S,
                          env={**os.environ, "COLUMNS": "80"})

    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    for setting in fields(BrokerConfig):
        assert "--" + setting.name.replace("_", "-") in text
        if setting.name not in ("cert", "key", "client_ca"):
            assert f"(default: {setting.default})" in text, setting.name


def test_it_says_where_it_listens_and_lies(broker: BrokerProcess) -> None:
    for part in (f"greenroom://127.0.0.1:{broker.port}", f"http://127.0.0.1:{broker.web_port}/", str(broker.data),
                 f"pid {broker.pid}"):
        assert part in broker.output
    assert broker.data.stat().st_mode & 0o777 == 0o700


# -- another address: a worker on a second machine --------------------------------------------------------------------------


def test_on_another_address_only_those_with_a_certificate_get_in(make_broker: MakeBroker, certificates: Path,
                                                                 tmp_path: Path) -> None:
    broker = make_broker("--client-ca", str(certificates / "ca.crt"), host="127.0.0.2")
    pair = ["--cert", str(certificates / "test-client.crt"), "--key", str(certificates / "test-client.key")]
    worker = WorkerProcess(broker, "second-machine", pair, tmp_path)
    stranger = Process([sys.executable, str(ROOT / "worker.py")], tmp_path / "stranger.log", broker.client_env)
    try:
        worker.start()
        stranger.spawn()
        rejected = until(lambda: broker.get("/api/security")[1]["rejected"].get("no_certificate"), "the stranger is counted")
        peer = broker.connect()
        (job,) = submit(peer, {"task": "reverse_string", "payload": b"\x81\xa4data\xa3abc", "encoding": "msgpack"})
        (view,) = peer.call("wait", jobs=[job], wait=20)["jobs"]
    finally:
        worker.end()
        stranger.end()

    assert rejected >= 1 and (view["state"], view["worker"], view["result"]) == ("completed", "second-machine", b"\xa3cba")
    assert "requires a client certificate" in stranger.output
    assert broker.get("/api/security")[1]["client_certificates"] == "required"


# -- stopping ---------------------------------------------------------------------------------------------------------------


def test_sigterm_tells_workers_keeps_their_leases_and_ends_with_0(broker: BrokerProcess) -> None:
    instance = bytes(range(16))
    worker = broker.connect(role="worker", instance=instance)
    submit(broker.connect(), {}, {})
    (first, *_), (second, *_) = leases = reserve(worker, 2)

    broker.signal(signal.SIGTERM)
    assert worker.notice() == {"notice": "drain", "reason": "broker"}
    assert worker.closes()
    assert broker.process.wait(DEADLINE_S) == 0
    broker.start()

    stats = broker.stats()["states"]
    assert (stats["running"], stats["queued"]) == (2, 0)
    again = broker.connect(role="worker", instance=instance, leases=[lease[:2] for lease in leases])
    assert again.greeting["leases"] == ["OK", "OK"]
    assert again.call("settle", leases=[[*lease[:2], "ack", b"done"] for lease in leases])["outcomes"] == ["OK", "OK"]
    views = again.call("get", jobs=[first, second])["jobs"]
    assert [(view["state"], view["attempt"], view["crashes"], view["requeues"]) for view in views] == [("completed", 1, 0, 0)] * 2


def test_a_worker_settles_after_the_restart_what_it_ran_through_it(broker: BrokerProcess, tmp_path: Path) -> None:
    worker = WorkerProcess(broker, "w", ["--concurrency", "1"], tmp_path)
    try:
        worker.start()
        (job,) = submit(broker.connect(), {"task": "slow_task", "payload": b"\x81\xa7seconds\x02", "encoding": "msgpack"})
        until(lambda: broker.stats()["states"]["running"] == 1, "the job runs")
        assert broker.terminate() == 0
        broker.start()
        (view,) = broker.connect().call("wait", jobs=[job], wait=20)["jobs"]
    finally:
        worker.end()

    assert (view["state"], view["worker"], view["attempt"], view["crashes"]) == ("completed", "w", 1, 0)


def test_a_stopping_broker_refuses_new_jobs_with_a_code(make_broker: MakeBroker) -> None:
    """Requests that reach it while it drains are answered DRAINING or not at all, never lost after an OK."""
    broker = make_broker()
    peer = broker.connect()
    for _ in range(200):
        peer.send("submit", jobs=[{"task": "t"}])
    broker.signal(signal.SIGTERM)
    outcomes: list[dict] = []
    try:
        while True:
            outcomes.append(peer.call("submit", jobs=[{"task": "t"}]))
    except OSError:
        pass
    assert broker.process.wait(DEADLINE_S) == 0
    broker.start()

    answers = [*outcomes, *peer.messages]
    acknowledged = [job for answer in answers for job in answer.get("jobs", ())]
    assert {answer["error"]["code"] for answer in answers if "error" in answer} <= {"DRAINING"}
    assert broker.stats()["states"]["queued"] >= len(acknowledged) > 0
    found = broker.connect().call("get", jobs=acknowledged[:1000])["jobs"]
    assert {view["state"] for view in found} == {"queued"}


@pytest.fixture
def hanging(make_broker: MakeBroker, tmp_path: Path) -> BrokerProcess:
    """A broker whose disk stands still while a submit waits for its COMMIT."""
    broker = make_broker(env={"BREAK": f"hang-sync:{tmp_path / 'now'}"}, program=BROKEN)
    peer = broker.connect()
    submit(peer, {})
    (tmp_path / "now").touch()
    peer.send("submit", jobs=[{"task": "t"}])
    until(lambda: "the disk hangs" in broker.output, "a COMMIT hangs")
    return broker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_is_fast(hanging: BrokerProcess, number: int) -> None:
    broker = hanging
    broker.signal(number)
    until(lambda: "stopping" in broker.output, "the broker drains")
    began = time.monotonic()

    broker.signal(number)

    assert broker.process.wait(DEADLINE_S) == 1 and time.monotonic() - began < 1.0


def test_a_disk_that_hangs_does_not_keep_it_from_stopping(hanging: BrokerProcess) -> None:
    assert hanging.terminate(within_s=15) == 1
    assert "Traceback" not in hanging.output


# -- parts that die ---------------------------------------------------------------------------------------------------------


def test_when_the_store_fails_who_waits_gets_unknown_and_the_process_ends(make_broker: MakeBroker, certificates: Path,
                                                                           tmp_path: Path) -> None:
    broker = make_broker(env={"BREAK": f"fail-sync:{tmp_path / 'now'}"}, program=BROKEN)
    peer, worker = broker.connect(), broker.connect(role="worker")
    kept = submit(peer, {})
    assert [lease[0] for lease in reserve(worker)] == kept

    (tmp_path / "now").touch()
    answer = peer.call("submit", jobs=[{"task": "t"}])

    assert answer["error"]["code"] == "UNKNOWN" and peer.closes()
    assert broker.process.wait(DEADLINE_S) == 1
    assert re.search("CRITICAL .*the store failed", broker.output) and "the disk does not work" in broker.output
    assert last_line(broker.output).endswith("[Server] stopped")
    whole = BrokerProcess(broker.data.parent, certificates)
    try:
        whole.start()
        assert whole.connect().call("get", jobs=kept)["jobs"][0]["state"] in ("queued", "running")
    finally:
        whole.end()


@pytest.mark.parametrize("what", ["die:pump", "die:timer", "die:lag", "die:events", "die:sweeper", "close:listener"])
def test_a_dead_part_ends_the_process_instead_of_living_on_deaf(make_broker: MakeBroker, what: str) -> None:
    broker = make_broker(env={"BREAK": what}, program=BROKEN)

    if what == "close:listener":
        with socket.socket() as knock:
            knock.settimeout(1.0)
            knock.connect_ex(("127.0.0.1", broker.port))

    assert broker.process.wait(DEADLINE_S) == 1
    assert "stopping:" in broker.output


# -- bad surroundings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


def test_output_that_nobody_reads_does_not_stall_the_broker(tmp_path: Path, certificates: Path, full_pipe: int) -> None:
    broker = BrokerProcess(tmp_path / "broker", certificates, ["--log-level", "debug"])
    broker.process = subprocess.Popen(broker._command, stdout=full_pipe, stderr=full_pipe, stdin=subprocess.DEVNULL,
                                      env=broker._env, cwd=tmp_path)
    try:
        until(broker._is_ready, "the broker is ready")
        for _ in range(50):
            socket.create_connection(("127.0.0.1", broker.port)).close()
        assert submit(broker.connect(), {})
        assert broker.terminate() == 0
    finally:
        broker.end()


def test_it_serves_on_without_file_descriptors_and_recovers(make_broker: MakeBroker) -> None:
    broker = make_broker("--max-connections", "16", prefix=["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"])
    peer = broker.connect()
    idle = []
    try:
        for _ in range(100):
            idle.append(socket.create_connection(("127.0.0.1", broker.web_port), timeout=5))
        until(lambda: _open_files(broker.pid) >= 64, "no file descriptor is left")
        late = socket.create_connection(("127.0.0.1", broker.port), timeout=5)
        idle.append(late)
        for _ in range(20):
            assert submit(peer, {})
    finally:
        for connection in idle:
            connection.close()

    until(lambda: _serves(broker), "the broker takes new connections again")
    assert broker.terminate() == 0
    assert broker.output.count("cannot accept") <= 4 and "Traceback" not in broker.output


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _serves(broker: BrokerProcess) -> bool:
    try:
        return bool(submit(broker.connect(timeout=2.0), {})) and broker.get("/healthz")[0] == 200
    except OSError:
        return False


# -- restarting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_restores_every_job_place_lease_and_counter(broker: BrokerProcess, kill: bool) -> None:
    instance = bytes(range(16))
    worker, peer = broker.connect(role="worker", instance=instance), broker.connect()
    priorities = [1 + number * 7 % 10 for number in range(300)]
    ids = submit(peer, *({"priority": priority, "task": "ab"[number % 2], "queue": "xy"[number % 3 == 0],
                          "payload": b"%d " % number * 200} for number, priority in enumerate(priorities)))
    later = submit(peer, {"delay": 3600.0}, {"delay": 7200.0})
    expected = [job for _, _, job in sorted(zip(priorities, range(300), ids))]
    leases = reserve(worker, 40)
    assert [lease[0] for lease in leases] == expected[:40]
    outcomes = [["ack", b"r" * 600]] * 10 + [["fail", {"name": "Oops", "message": "no", "traceback": ""}, {"retry": False}]] * 5 + [["nack"]] * 15
    settled = worker.call("settle", leases=[[*lease[:2], *outcome] for lease, outcome in zip(leases, outcomes)])
    assert set(settled["outcomes"]) == {"OK"}
    assert peer.call("cancel", jobs=[expected[-1], later[1]])["outcomes"] == ["cancelled", "cancelled"]
    held = leases[30:]
    time.sleep(2.5)  # a lease is sure to be on disk when a tick has found it older than a second
    before, queues, views = broker.stats(), broker.get("/api/queues")[1], peer.call("get", jobs=ids, payload=True)["jobs"]

    broker.restart(kill=kill)

    after = broker.stats()
    for key in ("states", "requeued", "total", "tasks"):
        assert _without_workers(after[key]) == _without_workers(before[key]), key
    assert _without_workers(broker.get("/api/queues")[1]) == _without_workers(queues)
    again = broker.connect(role="worker", instance=instance, leases=[lease[:2] for lease in held])
    assert again.greeting["leases"] == ["OK"] * 10
    assert again.call("get", jobs=ids, payload=True)["jobs"] == views
    left = expected[15:30] + expected[40:-1]
    delivered = [lease for _ in range(3) for lease in reserve(again, 100)]
    assert [lease[0] for lease in delivered] == left
    assert min(lease[1] for lease in delivered) > max(lease[1] for lease in leases)
    assert again.call("settle", leases=[[*lease[:2], "ack", b""] for lease in held])["outcomes"] == ["OK"] * 10


def _without_workers(shown: object) -> object:
    """Leave out what says who is connected."""
    if isinstance(shown, dict):
        return {key: _without_workers(value) for key, value in shown.items() if key not in ("workers", "now")}
    return [_without_workers(item) for item in shown] if isinstance(shown, list) else shown


def test_starting_again_and_again_changes_nothing(broker: BrokerProcess) -> None:
    ids = submit(broker.connect(), *({"priority": 1 + number % 3} for number in range(20)))
    before = broker.stats()["states"]

    for kill in (True, False, True):
        broker.restart(kill=kill)

    assert broker.stats()["states"] == before
    order = [job for _, job in sorted((1 + number % 3, job) for number, job in enumerate(ids))]
    assert [lease[0] for lease in reserve(broker.connect(role="worker"), 20)] == order
