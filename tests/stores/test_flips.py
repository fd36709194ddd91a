"""Bits that flip at rest, anywhere in the file or its log: detected, or harmless; never a wrong delivery, never a silent drop."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.errors import StoreError
from greenroom.job import FINISHED_STATES
from greenroom.records import Lost
from greenroom.stores.sqlite_opening import DATABASE
from tests.core import new_job, reserved, submitted
from tests.stores.disk_core import DiskCore
from tests.stores.power_vfs import lay_out

WAL = f"{DATABASE}-wal"


@pytest.fixture
def quick() -> Iterator[Path]:
    """Return a directory in memory if there is one."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="greenroom-flips-", dir=base))
    yield folder
    shutil.rmtree(folder)


class Noting(DiskCore):
    """Remembers which jobs the store had, and had finished, after the latest commit and after the one before."""

    known: tuple[set[int], set[int]] = (set(), set())
    known_before: tuple[set[int], set[int]] = (set(), set())

    def end_cycle(self) -> None:
        """Note it."""
        needs_commit = self.batches.needs_commit
        super().end_cycle()
        if needs_commit:
            rows = self.store._query("SELECT id, state FROM jobs", ())
            self.known_before, self.known = self.known, ({job for job, _ in rows}, {job for job, state in rows if state > 3})


class Truth:
    """A store with jobs in every state, as files: `with_log` left behind by a kill, `stopped` by a clean stop."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(4)
        core = Noting(folder)
        worker = core.connect(instance=b"i" * 16)
        self.payloads: dict[int, bytes] = {}
        for _ in range(12):
            jobs = [new_job(rng.choice("tu"), rng.randbytes(rng.choice((3, 200, 900, 5_000))), delay=rng.choice((None, None, 500.0)))
                    for _ in range(10)]
            self.payloads.update(zip(submitted(core, *jobs), [job.payload for job in jobs]))
            for job in reserved(worker, 4):
                if rng.random() < 0.7:
                    worker.settle("ack", job, result=rng.randbytes(rng.choice((4, 2_000))))
            core.run()
        self.finished = {job_id for job_id in self.payloads if core.loaded(job_id).state in FINISHED_STATES}
        self.results = {job_id: core.loaded(job_id).result for job_id in self.finished}
        self.with_log = files(folder)
        self.known_before = core.known_before
        core.stop()
        self.stopped = files(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Return the two files that hold jobs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in (DATABASE, WAL)}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(tmp_path_factory.mktemp("truth") / "data")


def verdict(folder: Path, truth: Truth, records: list[logging.LogRecord]) -> str:
    """Start on a directory, drain it, and say what came of the damage. Asserts that no wrong job was delivered."""
    records.clear()
    core = None
    try:
        core = DiskCore(folder)
        worker = core.connect()
        core.advance(1_000.0)
        while reserved(worker, 50):
            for job in sorted(worker.held):
                worker.settle("ack", job, result=b"done")
            core.run()
        core.advance(100.0)
        while reserved(worker, 50):
            pass
        told = [record for record in records if record.levelno >= logging.WARNING]
        # A flip in the last transaction of the log looks like one that a power cut tore: it is dropped, and that is said.
        is_cut = any("log ends with" in record.getMessage() for record in told)
        kept, finished = truth.known_before if is_cut else (set(truth.payloads), truth.finished)
        lost = 0
        for job_id, payload in truth.payloads.items():
            found = core.loaded(job_id)
            if job_id in worker.payloads:
                assert worker.payloads[job_id] == payload, f"job {job_id} was delivered with another payload"
                assert job_id not in finished, f"job {job_id} was finished and came back"
            elif isinstance(found, Lost):
                assert is_cut and job_id not in kept, f"job {job_id} is gone and nobody was told"
                lost += 1
            elif found.damage is not None:
                core.batches.load([job_id], lambda jobs: None)
                core.run()
            else:
                assert found.payload == payload and found.state in FINISHED_STATES, f"job {job_id} is silently kept back: {found}"
                assert job_id not in truth.finished or found.result == truth.results[job_id]
        assert set(worker.payloads) <= set(truth.payloads), "a job was invented"
    except StoreError as exc:
        assert "damaged" in str(exc) or "not a database" in str(exc) or "newer version" in str(exc) or "disk" in str(exc), str(exc)
        return "refused"
    finally:
        if core is not None:
            core.store._abandon()
    if is_cut:
        return "the last transaction of the log is gone, and it says so"
    told = [record for record in records if record.levelno >= logging.WARNING]
    return "reported" if told else "harmless"


@pytest.mark.parametrize("where", [DATABASE, WAL])
def test_a_flipped_bit_is_detected_or_harmless(quick: Path, truth: Truth, where: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = truth.stopped if where == DATABASE else truth.with_log
    outcomes: Counter[str] = Counter()
    for seed in range(350):
        rng = random.Random(seed)
        damaged = dict(whole)
        content = bytearray(damaged[where])
        places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 1, 8)))]
        if seed % 7 == 0:  # the header, and the first bytes of pages and frames, are few but matter most
            places = [rng.choice((rng.randrange(120), rng.randrange(len(content) // 4096) * 4096 + rng.randrange(40)))]
        for place in places:
            content[place] ^= 1 << rng.randrange(8)
        damaged[where] = bytes(content)
        lay_out(quick / "flipped", damaged)
        try:
            outcomes[verdict(quick / "flipped", truth, caplog.records)] += 1
        except AssertionError as exc:
            raise AssertionError(f"{where}, seed {seed}, bytes {places}: {exc}") from exc
    print(f"\n{where}: {len(whole[where])} bytes, {dict(outcomes)}")
    assert outcomes["refused"] and len(outcomes) > 1


def test_a_torn_or_short_file_is_detected(quick: Path, truth: Truth, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(1)
    outcomes: Counter[str] = Counter()
    for _ in range(40):
        damaged = dict(truth.stopped)
        content = damaged[DATABASE]
        if rng.random() < 0.5:
            damaged[DATABASE] = content[:rng.randrange(1, len(content))]
        else:
            at = rng.randrange(len(content) // 512) * 512
            damaged[DATABASE] = content[:at] + bytes(512) + content[at + 512:]
        lay_out(quick / "torn", damaged)
        outcomes[verdict(quick / "torn", truth, caplog.records)] += 1
    print(f"\n{dict(outcomes)}")
    assert outcomes["refused"] > 20
