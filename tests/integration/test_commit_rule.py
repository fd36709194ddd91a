"""No answer leaves before the sync that makes what it tells survive a power cut. Proved on the real dispatch, engine and SQLite.

A `kill -9` proves nothing here: the page cache outlives the process. So the store runs on a VFS that sees every write and sync,
and scripted peers note in the same sequence what leaves. Two judges: the order of events, for every answer; and what a power
cut would have left of the files, for some of them. Each must find planted faults.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apsw
import gevent
import pytest

from greenroom import batches
from greenroom.batches import Batches
from greenroom.clock import Clock
from greenroom.dispatch import Dispatch
from greenroom.engine import Engine
from greenroom.errors import GreenroomError
from greenroom.job import FINISHED_STATES, STATE_BY_LABEL, Job
from greenroom.lanes import Window
from greenroom.leases import Caps, Timing
from greenroom.protocol import parse_request
from greenroom.records import Submission
from greenroom.sessions import Session
from greenroom.stores.sqlite import DATABASE, SqliteStore
from greenroom.verbs import HANDLERS
from greenroom.waits import Wait
from tests.stores.sync_vfs import SyncRecorder, _RecordedFile

SEED = 7
COMMITS = 250
WAL = DATABASE + "-wal"
#: One of so many answers is also judged by what a power cut would have left.
CUT_EVERY = 300
FINISHED = {int(state) for state in FINISHED_STATES}
FINISHED_LABELS = {label for label, state in STATE_BY_LABEL.items() if state in FINISHED_STATES}


class Need(NamedTuple):
    """What must be on disk: something about a job's row, a submission, or fences up to a number being handed out."""

    what: str  # row, finished, requeues, cancel, submission, fence
    of: int | bytes
    at_least: int = 0


class Claim(NamedTuple):
    """Something that left, and what it tells."""

    position: int  # in the sequence of events
    verb: str
    needs: list[Need]


class Version(NamedTuple):
    """A job's row as it was once written."""

    transaction: int
    state: int
    requeues: int
    cancel: bool

    def gives(self, need: Need) -> bool:
        """Tell whether this row is what the need asks for."""
        if need.what == "finished":
            return self.state in FINISHED
        if need.what == "requeues":
            return self.requeues >= need.at_least or self.state in FINISHED
        return need.what == "row" or self.cancel


class Disk(SyncRecorder):
    """The one sequence of writes, syncs, commits and leavings; and what of each file a power cut would leave."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.vfs_name = name
        self.durable: dict[str, bytearray] = {DATABASE: bytearray(), WAL: bytearray()}
        self.cuts: list[tuple[int, dict[str, bytes]]] = []  # (claims before it, files)

    def xOpen(self, name: object, flags: list[int]) -> _File:
        return _File(self, name, flags)


class _File(_RecordedFile):
    """Keeps what was written and not synced apart from what was."""

    def __init__(self, recorder: Disk, name: object, flags: list[int]) -> None:
        super().__init__(recorder, name, flags)
        self._unsynced: list[tuple[int, bytes | None]] = []

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._unsynced.append((offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._unsynced.append((size, None))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        kept = self._recorder.durable.get(self._file, bytearray())
        for offset, data in self._unsynced:
            if data is None:
                del kept[offset:]
                continue
            if len(kept) < offset:
                kept.extend(bytes(offset - len(kept)))
            kept[offset:offset + len(data)] = data
        self._unsynced.clear()


class TracedStore(SqliteStore):
    """The store, noting in which transaction what was written."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        super().__init__(folder, vfs=disk.vfs_name)
        self._disk = disk
        self.transaction = 0
        self.versions: dict[int, list[Version]] = defaultdict(list)
        self.submissions: dict[bytes, int] = {}
        self.fences: list[tuple[int, int]] = []  # (handed out below, transaction)

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        super().apply(jobs, submissions)
        for job in jobs:
            self.versions[job.id].append(Version(self.transaction, job.stored_state, job.requeues, job.cancel_requested))
        self.submissions.update((submission.id, self.transaction) for submission in submissions)

    def block(self, name: str, count: int) -> int:
        first = super().block(name, count)
        if name == "fence":
            self.fences.append((first + count, self.transaction))
        return first

    def commit(self) -> None:
        super().commit()
        self._disk.record("", "commit")
        self.transaction += 1


class Caller:
    """A scripted peer: calls the verbs' handlers as a session does, and notes what each answer tells."""

    is_open = True
    deliveries_written = True

    def __init__(self, scene: Scene, number: int, role: str) -> None:
        self.scene = scene
        self.open_waits: set[Wait] = set()
        self.held_deliveries = 0
        self.session = Session(number, role=role, name=f"{role}-{number}", instance=number.to_bytes(16, "big"),
                               now=scene.dispatch.now(), conn=self)
        scene.dispatch.engine.open_session(self.session, [], scene.dispatch.now())
        self.held: dict[int, int] = {}
        self.is_reserving = False
        self._sent: dict[int, dict] = {}

    def ask(self, verb: str, **fields: object) -> None:
        """Send a request; its answer comes to `answer`."""
        request_id = self.scene.next_id()
        self._sent[request_id] = {"verb": verb, **fields}
        dispatch = self.scene.dispatch
        try:
            dispatch.begin_turn()  # as a connection does; else every look at the time would find it long over
            HANDLERS[verb](dispatch, self, parse_request({"id": request_id, "verb": verb, **fields}))
        except GreenroomError as exc:
            dispatch.batches.hold(self, request_id, exc)

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Take a reply."""
        sent = self._sent.pop(request_id)
        if isinstance(answer, GreenroomError):
            self.scene.claim(sent["verb"] + " error", [])
            return
        self.scene.claim(sent["verb"], getattr(self, "_after_" + sent["verb"])(sent, answer))

    def notify(self, notice: dict) -> None:
        """Take a notice."""
        self.scene.claim("notice", [Need("cancel", job) for job, _ in notice["leases"]])

    def flush(self) -> None:
        """Nothing is buffered here."""

    # -- what an answer tells -----------------------------------------------------------------------------------------------

    def _after_submit(self, sent: dict, answer: dict) -> list[Need]:
        ids = [outcome for outcome in answer["jobs"] if isinstance(outcome, int)]
        self.scene.ids.extend(ids)
        needs = [Need("row", job) for job in ids]
        return needs + ([Need("submission", sent["submission"])] if "submission" in sent else [])

    def _after_reserve(self, sent: dict, answer: dict) -> list[Need]:
        self.is_reserving = False
        self.held.update((job, fence) for job, fence, *_ in answer["jobs"])
        return [need for job, fence, *_ in answer["jobs"] for need in (Need("row", job), Need("fence", fence))]

    def _after_settle(self, sent: dict, answer: dict) -> list[Need]:
        needs: list[Need] = []
        for (job, _, outcome, *_), answered in zip(sent["leases"], answer["outcomes"]):
            if answered not in ("OK", "REPEATED"):
                continue
            if outcome == "nack":
                self.scene.nacks[job] += answered == "OK"
                needs.append(Need("requeues", job, self.scene.nacks[job]))
            else:
                needs.append(Need("finished", job))
        return needs

    def _after_cancel(self, sent: dict, answer: dict) -> list[Need]:
        told = {"cancelled": "finished", "requested": "cancel"}
        return [Need(told[outcome], job) for job, outcome in zip(sent["jobs"], answer["outcomes"])
                if isinstance(outcome, str)]

    def _after_get(self, sent: dict, answer: dict) -> list[Need]:
        needs: list[Need] = []
        for view in answer["jobs"]:
            if "error" in view and "state" not in view:
                continue
            needs.append(Need("row", view["id"]))
            needs += [Need("finished", view["id"])] if view["state"] in FINISHED_LABELS else []
            needs += [Need("cancel", view["id"])] if view["cancel_requested"] else []
            needs += [Need("requeues", view["id"], view["requeues"])] if view["requeues"] else []
        return needs

    _after_wait = _after_get


class Scene:
    """A broker without its edges, on a recorded disk, and the peers that keep it busy."""

    def __init__(self, folder: Path, disk: Disk, kind_of_batches: type[Batches] = Batches, *, sync: bool = True) -> None:
        self.disk = disk
        self.store = TracedStore(folder, disk)
        engine = Engine(Caps(), Timing(), Window(300, 2**20))  # a small window, so that jobs come back from the disk
        self.failures: list[str] = []
        self.dispatch = Dispatch(engine, self.store, Clock(), self.failures.append, None)
        self.dispatch.batches = kind_of_batches(engine, self.store, self.dispatch.waits, self.dispatch._wake.set)
        restored = self.store.open()
        if not sync:
            self.store._db.pragma("synchronous", 0)
        engine.restore(restored, self.dispatch.now(), 60.0)
        self.dispatch.start()
        self.claims: list[Claim] = []
        self.ids: list[int] = []
        self.nacks: Counter[int] = Counter()
        self.rng = random.Random(SEED)
        self._last_id = 0
        self.producers = [Caller(self, number, "client") for number in range(1, 9)]
        self.workers = [Caller(self, number, "worker") for number in range(101, 107)]

    def next_id(self) -> int:
        """Return a number for a request."""
        self._last_id += 1
        return self._last_id

    def claim(self, verb: str, needs: list[Need]) -> None:
        """Note that something leaves, now."""
        self.disk.record("", "leave")
        self.claims.append(Claim(len(self.disk.events), verb, needs))
        if len(self.claims) % CUT_EVERY == 0:
            self.disk.cuts.append((len(self.claims), {name: bytes(kept) for name, kept in self.disk.durable.items()}))

    def play(self, commits: int) -> None:
        """Keep all peers busy for so many commits. Requests come in bursts, before, during and after COMMITs."""
        rng = self.rng
        with gevent.Timeout(60):
            while self.dispatch.batches.commits < commits and not self.failures:
                for _ in range(rng.randint(1, 15)):
                    self._produce(rng.choice(self.producers))
                    self._work(rng.choice(self.workers))
                gevent.sleep(rng.choice((0.0, 0.0003, 0.001, 0.003)))
            self.dispatch.wait_for_commit(10)
        self.dispatch.stop(5)

    def _produce(self, caller: Caller) -> None:
        rng, recent = self.rng, self.ids[-300:]
        what = rng.random()
        if what < 0.01:  # more than is written in one go: others come in between the slices of a batch
            for _ in range(3):
                caller.ask("submit", jobs=[{"task": rng.choice("ab")} for _ in range(300)])
        elif what < 0.5 or not recent:
            jobs = [{"task": rng.choice("ab"), "priority": rng.randint(1, 10), "payload": rng.randbytes(rng.choice((9, 99, 999)))}
                    for _ in range(rng.choice((1, 1, 3, 20)))]
            caller.ask("submit", jobs=jobs, **({"submission": rng.randbytes(16)} if rng.random() < 0.5 else {}))
        elif what < 0.65:
            caller.ask("cancel", jobs=rng.sample(recent, min(len(recent), 2)))
        elif what < 0.85:
            caller.ask("get", jobs=[rng.choice(recent), rng.choice(self.ids)])
        elif len(caller.open_waits) < 100:
            caller.ask("wait", jobs=rng.sample(recent, min(len(recent), 5)), wait=rng.choice((0.0, 0.05, 5.0)))

    def _work(self, caller: Caller) -> None:
        rng = self.rng
        if not caller.is_reserving and len(caller.held) < 200:
            caller.is_reserving = True
            caller.ask("reserve", n=rng.randint(1, 30), wait=rng.choice((0.0, 1.0)))
        if caller.held:
            jobs = rng.sample(list(caller.held), rng.randint(1, len(caller.held)))
            outcomes = rng.choices((["ack", b"result"], ["fail", {"name": "Oops"}, {"retry": False}], ["nack"]), (8, 1, 1), k=len(jobs))
            caller.ask("settle", leases=[[job, caller.held.pop(job), *outcome] for job, outcome in zip(jobs, outcomes)])


# -- the judges -------------------------------------------------------------------------------------------------------------


def durable_at(scene: Scene) -> list[float]:
    """Return for each transaction where in the sequence it was safe: at the first sync of the log after its last write there."""
    syncs = [position for position, event in enumerate(scene.disk.events, 1) if (event.file, event.kind) == (WAL, "sync")]
    safe: list[float] = []
    last_write = 0
    for position, event in enumerate(scene.disk.events, 1):
        if (event.file, event.kind) == (WAL, "write"):
            last_write = position
        elif event.kind == "commit":
            after = bisect_right(syncs, last_write)
            safe.append(syncs[after] if after < len(syncs) else float("inf"))
    return safe


def too_early(scene: Scene) -> list[str]:
    """Return what left before it was safe, judged by the sequence of events."""
    safe = durable_at(scene)
    found: list[str] = []
    for claim in scene.claims:
        for need in claim.needs:
            transaction = _transaction_of(scene.store, need)
            if transaction is None or transaction >= len(safe) or safe[transaction] >= claim.position:
                found.append(f"{claim.verb} left as event {claim.position} and needs {need}: transaction {transaction}")
    return found


def _transaction_of(store: TracedStore, need: Need) -> int | None:
    if need.what == "submission":
        return store.submissions.get(need.of)
    if need.what == "fence":
        return next((transaction for below, transaction in store.fences if need.of < below), None)
    return next((version.transaction for version in store.versions.get(need.of, ()) if version.gives(need)), None)


def gone_after_cuts(scene: Scene, folder: Path) -> list[str]:
    """Return what had left and was not in the files that a power cut would have left, at each of the noted moments."""
    found: list[str] = []
    for number, (claims, files) in enumerate(scene.disk.cuts):
        image = folder / f"cut-{number}"
        image.mkdir()
        for name, data in files.items():
            (image / name).write_bytes(data)
        try:
            left = _Left(image / DATABASE)
        except apsw.Error as exc:
            found.append(f"cut {number}: {exc}")
            continue
        found += [f"cut {number}: {claim.verb} needs {need}" for claim in scene.claims[:claims] for need in claim.needs
                  if not left.has(need)]
    return found


class _Left:
    """What is in a database after a power cut."""

    def __init__(self, path: Path) -> None:
        db = apsw.Connection(str(path))
        try:
            self._jobs = {job_id: Version(0, *row) for job_id, *row in db.execute(
                "SELECT id, state, requeues, cancel_requested FROM jobs")}
            self._submissions = {row[0] for row in db.execute("SELECT id FROM submissions")}
            self._fences = db.execute("SELECT value FROM meta WHERE name = 'next_fence'").get
        finally:
            db.close()

    def has(self, need: Need) -> bool:
        """Tell whether a need is met."""
        if need.what == "submission":
            return need.of in self._submissions
        if need.what == "fence":
            return need.of < self._fences
        return need.of in self._jobs and self._jobs[need.of].gives(need)


# -- the proof --------------------------------------------------------------------------------------------------------------


class AnswersAtOnce(Batches):
    """Planted: answers leave when they are made."""

    def _leave(self, peer: batches.Peer | None, request_id: int | None, answer: object) -> None:
        batches._send([(peer, request_id, answer)])


class AnswersBeforeTheSync(Batches):
    """Planted: answers leave when their rows are written and the COMMIT has not begun."""

    def fetch(self, now: float) -> None:
        super().fetch(now)
        leaving, self._closed.leaving = self._closed.leaving, []
        batches._send(leaving)


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., Scene]:
    disks: list[Disk] = []

    def make(*kind: type[Batches], sync: bool = True) -> Scene:
        disks.append(Disk(f"disk-{tmp_path.name}"))
        return Scene(tmp_path / "data", disks[-1], *kind, sync=sync)

    return make


def test_nothing_leaves_before_the_sync_that_holds_it(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    print("seed", SEED)
    scene = make_scene()

    scene.play(COMMITS)

    assert scene.failures == []
    told = Counter(claim.verb for claim in scene.claims if claim.needs)
    print(dict(told), "commits", scene.dispatch.batches.commits, "cuts", len(scene.disk.cuts))
    assert all(told[verb] > 20 for verb in ("submit", "reserve", "settle", "cancel", "get", "wait", "notice")), told
    assert too_early(scene) == []
    assert len(scene.disk.cuts) > 5 and gone_after_cuts(scene, tmp_path) == []


@pytest.mark.parametrize(("planted", "sync"), [((), False), ((AnswersAtOnce,), True), ((AnswersBeforeTheSync,), True)],
                         ids=["synchronous-off", "answers-at-once", "answers-before-the-sync"])
def test_both_judges_find_a_planted_fault(make_scene: Callable[..., Scene], tmp_path: Path, planted: tuple[type[Batches], ...],
                                          sync: bool) -> None:
    scene = make_scene(*planted, sync=sync)

    scene.play(60)

    assert too_early(scene) != []
    assert gone_after_cuts(scene, tmp_path) != []
