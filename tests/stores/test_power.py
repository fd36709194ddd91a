"""Power cuts at every write and sync of a broker's life on its store, and disks that fail: nothing acknowledged is lost, nothing comes twice."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenroom.errors import StoreError, UnknownOutcomeError
from greenroom.job import FINISHED_STATES
from greenroom.stores import Retention, sqlite
from greenroom.stores.sqlite import SqliteStore
from greenroom.stores.sqlite_check import CHECKS, findings
from greenroom.stores.sqlite_opening import DATABASE
from tests.core import new_job
from tests.stores.disk_core import DiskCore
from tests.stores.power_vfs import PowerDisk, Replay, io_error, lay_out, no_space
from tests.stores.test_damage import version_1
from tests.stores.test_sqlite import new_jobs

WAL = f"{DATABASE}-wal"
TABLES = ("meta", "lanes", "jobs", "payloads", "results", "leases", "submissions", "damaged")
#: Pages of log after which it is copied into the file: so that this happens many times in a short life.
CHECKPOINT_PAGES = 60


@pytest.fixture
def quick() -> Iterator[Path]:
    """Return a directory in memory if there is one: nobody pulls the plug of this machine, so syncs need not cost anything."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="greenroom-power-", dir=base))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disk() -> Iterator[PowerDisk]:
    disk = PowerDisk("greenroom-test-power")
    yield disk
    disk.unregister()


def content(store: SqliteStore) -> str:
    """Return a digest of every row of every table."""
    digest = hashlib.blake2b(digest_size=16)
    for table in TABLES:
        digest.update(repr(store._query(f"SELECT * FROM {table} ORDER BY 1", ())).encode())
    return digest.hexdigest()


class Life(DiskCore):
    """A broker whose acknowledgements and commits are noted among the disk's events."""

    def __init__(self, folder: Path, disk: PowerDisk, *, answers_early: bool = False) -> None:
        self.disk = disk
        self.answers_early = answers_early
        self.contents: list[str] = []
        self.acked: dict[int, bytes] = {}  # job -> payload
        self.finished: set[int] = set()
        self.cancelled: set[int] = set()  # … or asked to be
        super().__init__(folder, vfs=disk.name, retention=Retention(60.0, 0), max_jobs=40)

    def opened(self) -> None:
        """Whatever the start wrote is on disk."""
        self.contents.append(content(self.store))
        self.disk.mark(str(len(self.contents) - 1))

    def end_cycle(self) -> None:
        """The COMMIT returns, and what waited for it leaves."""
        self.store.is_committing = False
        if self.batches.needs_commit:
            if self.answers_early:
                self.disk.mark(str(len(self.contents)))
            self.store.commit()
            self.contents.append(content(self.store))
            if not self.answers_early:
                self.disk.mark(str(len(self.contents) - 1))
        self.batches.committed()

    def check_kept(self, sent: object, answer: dict) -> None:
        """Look at what is acknowledged through the store, at once."""
        if sent.verb == "submit":
            self.acked.update({job: new.payload for job, new in zip(answer["jobs"], sent.body)})
        elif sent.verb == "settle":
            self.finished.update(item.job for item, told in zip(sent.body, answer["outcomes"]) if told == "OK" and item.outcome != "nack")

        elif sent.verb == "cancel" and isinstance(answer["outcomes"][0], str):
            self.cancelled.add(sent.body)

    def compare(self) -> None:
        """Compare what was acknowledged with the store: so the digests stand for something."""
        found = self.store.load(list(self.acked))
        for job_id, payload in self.acked.items():
            job = found[job_id]
            if hasattr(job, "handed_out"):
                assert job_id in self.finished | self.cancelled and job.handed_out, f"job {job_id} is lost"
            else:
                assert job.payload == payload and job.damage is None
                assert (job.state in FINISHED_STATES) >= (job_id in self.finished), f"job {job_id} came back"


def live(core: Life, rng: random.Random, steps: int) -> None:
    """Submit, grant, settle, cancel, let time pass, delete history."""
    client, worker = core.connect("c", role="client"), core.connect(instance=b"i" * 16)
    for _ in range(steps):
        action = rng.choice(("submit", "submit", "reserve", "settle", "settle", "cancel", "time", "prune", "block"))
        if action == "submit":
            jobs = [new_job(rng.choice("tu"), rng.randbytes(rng.choice((0, 10, 600, 1_500))), priority=rng.randint(1, 3),
                            delay=rng.choice((None, None, None, 30.0))) for _ in range(rng.randint(1, 5))]
            client.submit(*jobs, submission=rng.choice((None, rng.randbytes(16))))
        elif action == "reserve":
            worker.reserve(rng.randint(1, 4))
        elif action == "settle" and worker.held:
            job = rng.choice(sorted(worker.held))
            worker.settle(rng.choice(("ack", "ack", "fail", "nack")), job, result=rng.randbytes(rng.choice((1, 700))))
        elif action == "cancel" and core.acked:
            client.cancel(rng.choice(sorted(core.acked)))
        elif action == "time":
            core.advance(rng.choice((0.5, 2.0)))
            worker.heartbeat()
        elif action == "prune":
            core.clock.advance(20.0)
            worker.heartbeat()
            core.batches.prune_soon(core.now)
        elif action == "block":
            core.engine.add_numbers("job", core.store.block("job", 10), 10, core.now)
            core.batches._store_changed = True
            core.cycle()
        core.run()


@contextmanager
def small_log(monkeypatch: pytest.MonkeyPatch, **pragmas: object) -> Iterator[None]:
    """Copy the log often, and set other settings."""
    with monkeypatch.context() as patch:
        for name, value in {"wal_autocheckpoint": CHECKPOINT_PAGES, **pragmas}.items():
            patch.setitem(sqlite.PRAGMAS, name, value)
        yield


def lived(folder: Path, disk: PowerDisk, seed: int, *, steps: int = 60, answers_early: bool = False) -> Life:
    """Run a life from the first start to the stop."""
    core = Life(folder, disk, answers_early=answers_early)
    live(core, random.Random(seed), steps)
    core.compare()
    core.restart()
    live(core, random.Random(seed + 1), steps // 3)
    core.compare()
    core.stop()
    disk.mark(str(len(core.contents) - 1))
    return core


class Sweep:
    """Cuts the power after each event, starts the real store on what is left, and compares."""

    def __init__(self, place: Path, life: Life, base: dict[str, bytes], rng: random.Random) -> None:
        self.place = place
        self.life = life
        self.base = base
        self.rng = rng
        self.cuts = self.starts = 0
        self.problems: list[str] = []
        self.ended: Counter[str] = Counter()
        self._known: dict[str, str] = {}  # digest of an image -> content after a start on it, or what went wrong

    def run(self) -> None:
        """Sweep."""
        replay = Replay()
        replay.synced = dict(self.base)
        acked = -1
        for number, event in enumerate(self.life.disk.events):
            replay.step(event)
            if event.kind == "mark":
                acked = int(event.data)
                continue
            modes = ["drop", "all"]
            if event.kind not in ("sync", "delete"):
                modes += ["prefix", "sectors", "sectors"]
                if number + 1 < len(self.life.disk.events) and self.life.disk.events[number + 1].kind == "sync":
                    modes += ["sectors"] * 4  # all of a commit is on its way
            for mode in modes:
                self.cut(replay.image(self.rng, mode), acked, f"after event {number} ({event.kind} of {event.file}), {mode}")

    def cut(self, files: dict[str, bytes], acked: int, where: str) -> None:
        """Start on what a cut left."""
        self.cuts += 1
        digest = hashlib.blake2b(repr(sorted((name, hashlib.blake2b(data).digest()) for name, data in files.items())).encode()).hexdigest()
        if digest not in self._known:
            self._known[digest] = self._start(files)
        found = self._known[digest]
        allowed = self.life.contents[max(acked, 0):acked + 2]
        if found not in allowed:
            known = self.life.contents.index(found) if found in self.life.contents else found
            self.problems.append(f"{where}: {acked} was acknowledged, the disk holds {known}")
        else:
            self.ended["ahead" if found != allowed[0] else "as acknowledged"] += 1

    def _start(self, files: dict[str, bytes]) -> str:
        self.starts += 1
        lay_out(self.place, files)
        store = SqliteStore(self.place)
        try:
            store.open()
            # The start has checked pages and counters, and the digest says the rest: all checks on some are enough.
            checks = CHECKS.values() if self.starts % 10 == 0 else ()
            wrong = [finding for check in checks for finding in findings(store._query, check)]
            first = {name: store.block(name, 1) for name in ("job", "fence")}
            store._db.execute("ROLLBACK")
            found = wrong[0] if wrong else content(store)
            assert first["job"] > 0 and first["fence"] > 0
        except StoreError as exc:
            return f"refused: {exc}"
        finally:
            store._abandon()
        return found


def opened_only(folder: Path, disk: PowerDisk) -> Life:
    """Start a broker and stop it."""
    life = Life(folder, disk)
    life.stop()
    disk.mark(str(len(life.contents) - 1))
    return life


def swept(quick: Path, disk: PowerDisk, seed: int, **options: object) -> Sweep:
    """Live, then cut the power everywhere."""
    began = time.monotonic()
    life = lived(quick / "life", disk, seed, **options)
    sweep = Sweep(quick / "cut", life, {}, random.Random(seed))
    sweep.run()
    print(f"\nseed {seed}: {len(disk.events)} events, {len(life.contents)} commits, {len(life.acked)} jobs acknowledged, {sweep.cuts} cuts, "
          f"{sweep.starts} different disks, {dict(sweep.ended)}, {len(sweep.problems)} lost, {time.monotonic() - began:.1f} s")
    return sweep


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(quick: Path, disk: PowerDisk, monkeypatch: pytest.MonkeyPatch,
                                                              seed: int) -> None:
    with small_log(monkeypatch):
        sweep = swept(quick, disk, seed)

    assert not sweep.problems, "\n".join(sweep.problems[::max(1, len(sweep.problems) // 10)])
    assert sweep.ended["ahead"] and sweep.ended["as acknowledged"], "unfinished commits must be met both ways"
    assert any(event.file == DATABASE and event.kind == "sync" for event in disk.events[100:]), "the log was never copied"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_power_cuts_in_many_lives(quick: Path, disk: PowerDisk, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    with small_log(monkeypatch, wal_autocheckpoint=random.Random(seed).choice((15, 60, 4096))):
        assert swept(quick, disk, seed).problems == []


@pytest.mark.parametrize("synchronous", [0, 1])
def test_the_sweep_finds_that_a_commit_is_not_synced(quick: Path, disk: PowerDisk, monkeypatch: pytest.MonkeyPatch,
                                                     synchronous: int) -> None:
    with small_log(monkeypatch, synchronous=synchronous):
        problems = swept(quick, disk, 1, steps=8).problems

    assert len(problems) > 50 and any("was acknowledged, the disk holds" in problem for problem in problems)


def test_the_sweep_finds_an_answer_before_its_commit(quick: Path, disk: PowerDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_log(monkeypatch):
        assert len(swept(quick, disk, 1, steps=8, answers_early=True).problems) > 20


@pytest.mark.parametrize("base", ["nothing", "schema 1"])
def test_a_power_cut_in_the_first_start_or_in_a_migration_loses_nothing(quick: Path, disk: PowerDisk, base: str) -> None:
    folder = quick / "life"
    files: dict[str, bytes] = {}
    if base == "schema 1":
        version_1(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    life = Life(folder, disk)
    life.stop()
    disk.mark(str(len(life.contents) - 1))
    sweep = Sweep(quick / "cut", life, files, random.Random(5))

    for _ in range(8):  # torn in another way each time
        sweep.run()

    print(f"\n{base}: {len(disk.events)} events, {sweep.cuts} cuts, {sweep.starts} different disks, {dict(sweep.ended)}")
    assert not sweep.problems, "\n".join(sweep.problems[::max(1, len(sweep.problems) // 10)])


def test_a_start_that_is_cut_off_again_and_again_is_as_good_as_one(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I21: open, crash, open …: a cut at each event of each start, five deep, ends where one start does."""
    rng = random.Random(21)
    first = PowerDisk("greenroom-test-power")
    version_1(quick / "life")
    files = {path.name: path.read_bytes() for path in (quick / "life").iterdir()}
    life = Life(quick / "life", first)
    whole = life.contents[0]
    life.stop()
    first.unregister()
    starts = 0
    for _ in range(60):
        disk_files = files
        for _ in range(5):
            lay_out(quick / "cut", disk_files)
            disk = PowerDisk("greenroom-test-power-again")
            store = SqliteStore(quick / "cut", vfs=disk.name)
            store.open()
            store._abandon()
            disk.unregister()
            starts += 1
            replay = Replay()
            replay.synced = dict(disk_files)
            for event in disk.events[:rng.randrange(len(disk.events) + 1)]:
                replay.step(event)
            disk_files = replay.image(rng, rng.choice(("drop", "prefix", "sectors", "all")))
        lay_out(quick / "cut", disk_files)
        store = SqliteStore(quick / "cut")
        store.open()
        assert content(store) == whole
        store._abandon()
    print(f"\n{starts} starts cut off")


# -- disks that fail --------------------------------------------------------------------------------------------------------


def answered_unknown(core: Life) -> list[int]:
    """Submit jobs, the COMMIT of which fails; returns ids that nobody was told."""
    client = core.connect("c", role="client")
    request = client.submit(*(new_job() for _ in range(5)), submission=b"s" * 16)
    with pytest.raises(StoreError):
        core.run()
    core.batches.failed()
    assert isinstance(client.answers[request], UnknownOutcomeError)
    with pytest.raises(StoreError, match="failed before"):
        core.store.commit()
    core.store.close()
    return [job for job in core.engine.jobs]


@pytest.mark.parametrize("kind, error, is_short", [("sync", io_error, False), ("write", no_space, False), ("write", no_space, True),
                                                   ("write", io_error, True)])
def test_a_commit_that_fails_is_unknown_and_a_resend_finds_out(quick: Path, disk: PowerDisk, kind: str, error: object,
                                                              is_short: bool) -> None:
    outcomes: Counter[str] = Counter()
    rng = random.Random(8)
    for at in range(1, 9 if kind == "write" else 2):
        for mode in ("drop", "all", "sectors"):
            folder = quick / f"life{at}{mode}"
            disk.events.clear()
            core = Life(folder, disk)
            before = core.connect("b", role="client")
            kept = before.submit(new_job(payload=b"kept"))
            core.run()
            ids = before.ids(kept)
            disk.fail(kind, at, error, file=WAL, is_short=is_short, times=1000)
            try:
                answered_unknown(core)
            except pytest.fail.Exception:
                disk.faults.clear()
                core.store.close()
                outcomes["no fault met"] += 1
                continue
            disk.faults.clear()
            replay = Replay()
            for event in disk.events:
                replay.step(event)
            lay_out(quick / "after", replay.image(rng, mode))

            again = DiskCore(quick / "after")
            client = again.connect("c", role="client")
            request = client.submit(*(new_job() for _ in range(5)), submission=b"s" * 16)
            again.run()
            assert again.loaded(ids[0]).payload == b"kept"
            outcomes["was stored" if "repeated" in client.answers[request] else "was not"] += 1
            assert again.engine.waiting == 6, "once, whichever it was"
            assert not [finding for check in CHECKS.values() for finding in findings(again.store._query, check)]
            again.store.close()
    print(f"\n{kind}: {dict(outcomes)}")
    assert outcomes["was not"]
    assert kind != "sync" or outcomes["was stored"], "a failed sync's rows may be there: that must be met"


def test_a_failed_sync_is_never_repeated_as_if_nothing_had_happened(quick: Path, disk: PowerDisk) -> None:
    core = Life(quick / "life", disk)
    disk.fail("sync", 1, io_error)  # once: the next would succeed, and lie, for the pages are marked clean
    answered_unknown(core)
    syncs = sum(event.kind == "sync" for event in disk.events)

    core.store.close()

    assert sum(event.kind == "sync" for event in disk.events) == syncs


def test_a_read_that_fails_ends_the_writer_but_not_a_page_of_history(quick: Path, disk: PowerDisk) -> None:
    store = SqliteStore(quick / "life", vfs=disk.name)
    store.open()
    for _ in range(40):
        store.apply(new_jobs(store, 50, b"p" * 500), [])
        store.commit()
    store.close()
    store = SqliteStore(quick / "life", vfs=disk.name)
    store.open()
    reader = store.reader()
    disk.fail("read", 1, io_error, file=DATABASE, times=10**6)

    with pytest.raises(StoreError, match="the disk does not work"):
        reader.page(before=None, limit=50)
    disk.faults.clear()
    assert len(reader.page(before=None, limit=50)[0]) == 50, "a page's failure is the page's alone"
    reader.close()
    store._db.pragma("cache_size", 1)
    store._db.release_memory() if hasattr(store._db, "release_memory") else None
    disk.fail("read", 1, io_error, file=DATABASE, times=10**6)
    with pytest.raises(StoreError, match="the disk does not work"):
        store.load(list(range(1, 2_000)))
    disk.faults.clear()
    with pytest.raises(StoreError, match="failed before"):
        store.commit()
    store.close()


def test_a_start_on_a_disk_that_fails_is_refused_and_the_next_one_is_whole(quick: Path, disk: PowerDisk) -> None:
    version_1(quick / "life")
    files = {path.name: path.read_bytes() for path in (quick / "life").iterdir()}
    refused = 0
    for kind, error in (("read", io_error), ("write", io_error), ("write", no_space), ("sync", io_error)):
        for at in range(1, 12):
            lay_out(quick / "life", files)
            disk.fail(kind, at, error)
            store = SqliteStore(quick / "life", vfs=disk.name)
            try:
                store.open()
            except StoreError as exc:
                refused += 1
                assert "Traceback" not in str(exc) and ("disk" in str(exc) or "damaged" in str(exc))
            store._abandon()
            disk.faults.clear()
            store = SqliteStore(quick / "life")
            store.open()
            assert len(store.load([1, 2])) == 2 and store.load([2])[2].payload == b"L" * 2_000
            store._abandon()
    assert refused > 20


def test_a_slow_sync_is_waited_for(quick: Path, disk: PowerDisk) -> None:
    core = Life(quick / "life", disk)
    disk.slow_sync_s = 0.2
    client = core.connect("c", role="client")
    request = client.submit(new_job())
    began = time.monotonic()
    core.run()

    assert time.monotonic() - began >= 0.2 and client.ids(request)
    disk.slow_sync_s = 0.0
    core.stop()
