"""A seeded random walk over everything that may happen to a broker with a tiny window; every invariant after every step."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.core import Core, Peer, check, check_at_rest, lease_end, new_job
from greenroom.errors import GreenroomError
from greenroom.job import FINISHED_STATES, State
from greenroom.leases import Caps
from greenroom.stores import Retention

TASKS = ["a", "b", "c"]
QUEUES = ["q", "r"]
FILTERS = [(None, None), (None, None), (["q"], None), (None, ["a", "b"]), (["q", "r"], ["c"]), (["r"], ["a"])]
MAX_UNFINISHED = 40
MAX_WORKERS = 5
STEPS = 2_000
SEEDS = range(1, 6)


class Walk:
    """One broker and its peers, moved at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.core = Core(max_jobs=12, max_bytes=8_000, caps=Caps(leases_per_session=6, reserve_bytes=3_000),
                         retention=Retention(age_s=30.0, count=1_000))
        self.client = self.core.connect("c", role="client")
        self.workers: list[Peer] = []
        self.instances = [bytes([number]) * 16 for number in range(1, 5)]
        self.gone: dict[bytes, dict[int, int]] = {}  # what an instance still holds after its connection broke
        self.submitted: list[tuple[Peer, int]] = []
        self.accepted: set[int] = set()  # told to the client
        self.stale: list[tuple[Peer, int]] = []  # settles that must not be accepted
        self.ever_settled: list[tuple[str, int, int]] = []
        self.done: Counter[str] = Counter()
        self.steps = 0
        self.is_committing = False

    def step(self) -> None:
        """Do one thing, then check everything."""
        is_flood = self.steps // 80 % 3 == 0  # else the workers catch up, down to the last job
        self.steps += 1
        work = 12 if is_flood else 30
        steps = [(self.submit, 16 if is_flood else 2), (self.reserve, work), (self.settle, work), (self.settle_stale, 3),
                 (self.cancel, 4), (self.beat, 8), (self.extend, 1), (self.connect, 4), (self.cut, 1.5), (self.bye, 0.7), (self.wait, 3), (self.time, 10), (self.begin, 12), (self.end, 14), (self.prune, 2),
                 (self.long_silence, 0.3), (self.crash, 0.3)]
        action = self.rng.choices([step for step, _ in steps], [weight for _, weight in steps])[0]
        action()
        self.done[action.__name__] += 1
        self.note_rare_things()
        check(self.core)
        self.learn()

    def learn(self) -> None:
        """What a client was told is accepted must be somewhere, for ever (I1). No stale settle was (I5)."""
        for worker, request_id in self.stale[:]:
            if request_id in worker.answers:
                assert worker.outcome(request_id) != "OK"
                self.stale.remove((worker, request_id))
        for peer, request_id in self.submitted[:]:
            if request_id in peer.answers:
                if not isinstance(peer.answers[request_id], GreenroomError):
                    self.accepted.update(peer.ids(request_id))
                self.submitted.remove((peer, request_id))

    def note_rare_things(self) -> None:
        """Count what a walk must have met, or it proves little."""
        engine = self.core.engine
        self.done["in the store alone"] += any(lane.in_store for lane in engine.lanes.values())
        self.done["scheduled in the store alone"] += engine.scheduled.in_store > 0
        self.done["all done"] += not self.core.unfinished()
        self.done["waits for a refill"] += engine.parked > 0 and any(lane.is_filling for lane in engine.lanes.values())
        self.done["waits for a job"] += any(group.waiters and not any(lane.best_rank() for lane in group.lanes)
                                            for group in engine.groups)
        self.done["all leases it may hold"] += any(engine._room(session) == 0 and session.parked is not None
                                                   for session in engine.sessions.values())
        queued = [job for job in engine.jobs.values() if job.state is State.QUEUED]
        self.done["payload not in memory"] += any(job.payload is None for job in queued)
        for reason in ("lost", "expired", "nack", "unbegun", "bye", "not presented", "never arrived", "crash"):
            self.done[reason] += engine.requeued_by[reason] > 0
        self.done["completed"] = max(self.done["completed"], engine.totals[State.COMPLETED])

    # -- steps --------------------------------------------------------------------------------------------------------------

    def submit(self) -> None:
        if len(self.core.unfinished()) > MAX_UNFINISHED:
            return
        rng = self.rng
        jobs = []
        for _ in range(rng.choice([1, 1, 2, 5, 9])):
            delay = rng.choice([None, None, None, 0.0, rng.uniform(0, 20)])
            jobs.append(new_job(rng.choice(TASKS), bytes(rng.choice([0, 1, 100, 513, 900])), queue=rng.choice(QUEUES),
                                priority=rng.choice([1, 5, 5, 10]), delay=delay))
        submission = rng.randbytes(16) if rng.random() < 0.3 else None
        request_id = self.client.submit(*jobs, submission=submission)
        self.submitted.append((self.client, request_id))
        if submission is not None and rng.random() < 0.5:
            again = self.client.submit(*jobs, submission=submission)
            self.submitted.append((self.client, again))

    def worker(self) -> Peer | None:
        return self.rng.choice(self.workers) if self.workers else None

    def busy(self) -> Peer | None:
        busy = [worker for worker in self.workers if worker.held]
        return self.rng.choice(busy) if busy else None

    def reserve(self) -> None:
        worker = self.worker()
        if worker is not None:
            queues, tasks = self.rng.choice(FILTERS)
            worker.reserve(self.rng.choice([0, 1, 2, 4, 10]), wait=self.rng.choice([0, 0, 2.0, 30.0]), queues=queues, tasks=tasks)

    def settle(self) -> None:
        worker = self.busy()
        if worker is None:
            return
        jobs = self.rng.sample(sorted(worker.held), self.rng.randint(1, len(worker.held)))
        outcome = self.rng.choices(["ack", "fail", "nack", "unbegun", "crash"], [14, 2, 2, 1, 1.5])[0]
        self.ever_settled += [(outcome, job, worker.held[job]) for job in jobs]
        worker.settle(outcome, *jobs)

    def settle_stale(self) -> None:
        """Repeat an old settle, or make one up: never accepted, nothing breaks."""
        worker = self.worker()
        if worker is None:
            return
        if self.ever_settled and self.rng.random() < 0.7:
            outcome, job, fence = self.rng.choice(self.ever_settled)
        else:
            outcome, job, fence = self.rng.choice(["ack", "fail", "nack"]), self.rng.randint(1, 300), self.rng.randint(1, 300)
        known = self.core.newest().get(job)
        if known is None or known.fence != fence:  # else it may be a late one, and taken
            request_id = worker.settle(outcome, job, fence=fence)
            self.stale.append((worker, request_id))

    def cancel(self) -> None:
        jobs = sorted(self.core.newest())
        if jobs:
            self.client.cancel(self.rng.choice(jobs))

    def beat(self) -> None:
        worker = self.busy() or self.worker()
        if worker is not None:
            if worker.held and self.rng.random() < 0.2:
                del worker.held[min(worker.held)]  # its delivery went astray
            lost, _ = worker.heartbeat(listed=self.rng.random() < 0.8, deliveries_written=self.rng.random() < 0.8)
            for job, _ in lost:
                worker.held.pop(job, None)

    def extend(self) -> None:
        worker = self.worker()
        if worker is not None and worker.held:
            worker.extend(self.rng.choice(sorted(worker.held)), self.rng.uniform(1, 40))

    def connect(self) -> None:
        if len(self.workers) >= MAX_WORKERS:
            return
        if self.rng.random() < 0.3:
            self.workers.append(self.core.connect("anonymous"))
            return
        instance = self.rng.choice(self.instances)
        known = dict(self.gone.pop(instance, {}))
        for worker in self.workers[:]:
            if worker.session.instance == instance:
                known.update(worker.held)
        presented = [lease for lease in known.items() if self.rng.random() < 0.9]
        self.workers.append(self.core.connect(f"w{instance[0]}", instance=instance, presented=presented))

    def drop(self, *, bye: bool) -> None:
        worker = self.worker()
        if worker is not None:
            self.workers.remove(worker)
            if worker.session.instance is not None and not worker.is_replaced:
                self.gone[worker.session.instance] = dict(worker.held)
            worker.close(bye=bye)

    def cut(self) -> None:
        self.drop(bye=False)

    def bye(self) -> None:
        self.drop(bye=True)

    def wait(self) -> None:
        jobs = sorted(self.core.unfinished())
        if jobs and len(self.client.open_waits) < 20:
            self.client.wait(*self.rng.choices(jobs, k=3), seconds=self.rng.uniform(1, 30))

    def time(self) -> None:
        self.core.clock.advance(self.rng.choice([0.001, 0.1, 0.6, 1.1, 4.0]))
        self.core.tick()
        self.check_time()

    def check_time(self) -> None:
        """After a tick nobody is late (I10, I15)."""
        core = self.core
        for session in core.engine.sessions.values():
            assert session.grace_until is None or session.grace_until > core.now
            for lease in session.leases.values():
                assert session.grace_until is not None or lease_end(core, lease) > core.now
        assert all(job.run_at > core.now for job in core.engine.jobs.values() if job.state is State.SCHEDULED)

    def long_silence(self) -> None:
        self.core.clock.advance(20.0)
        self.core.tick()
        self.check_time()

    def begin(self) -> None:
        if not self.is_committing:
            self.core.begin_cycle()
            self.is_committing = True

    def end(self) -> None:
        if self.is_committing:
            self.core.end_cycle()
            self.is_committing = False
        else:
            self.core.cycle()

    def prune(self) -> None:
        self.core.batches.prune_soon(self.core.now)

    def crash(self) -> None:
        """Whatever was not told to anybody may be gone; what was told is there."""
        for worker in self.workers:
            if worker.session.instance is not None and not worker.is_replaced:
                self.gone[worker.session.instance] = dict(worker.held)
        kept = {job_id: job.state for job_id, job in self.core.store._seen.items() if job_id in self.accepted}
        self.core.crash_and_restart()
        self.is_committing = False
        self.workers.clear()
        self.submitted.clear()
        self.stale.clear()
        self.client = self.core.connect("c", role="client")
        now = self.core.newest()
        for job_id, state in kept.items():
            assert job_id in now and (state not in FINISHED_STATES or now[job_id].state is state)

    # -- the end ------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """With one honest worker everything is finished in the end (L1), and the store counts as the engine does."""
        core = self.core
        if self.is_committing:
            core.end_cycle()
        for worker in self.workers:
            worker.close()
        core.run()
        core.advance(90.0)
        check_at_rest(core)
        worker = core.connect("last")
        for _ in range(10 * MAX_UNFINISHED):
            request_id = worker.reserve(10, wait=0)
            core.run()
            check(core)
            jobs = worker.ids(request_id)
            if not jobs:
                break
            worker.settle("ack", *jobs)
        core.run()
        assert not core.unfinished()
        check_at_rest(core)


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so low that a few jobs reach them."""
    monkeypatch.setattr("greenroom.scheduled.MAX_IN_MEMORY", 8)
    monkeypatch.setattr("greenroom.scheduled.REFILL_BELOW", 3)
    monkeypatch.setattr("greenroom.batches.BLOCK_NUMBERS", 60)
    monkeypatch.setattr("greenroom.lanes.REFILL_BELOW", 3)
    monkeypatch.setattr("greenroom.engine.REFILL_TO", 6)


def test_random_walks_keep_every_invariant(small_numbers: None) -> None:
    done: Counter[str] = Counter()
    for seed in SEEDS:
        walk = Walk(seed)
        try:
            for _ in range(STEPS):
                walk.step()
            walk.drain()
        except BaseException:
            print("seed", seed, "step", walk.steps)
            raise
        done.update(walk.done)

    rare = sorted(name for name, times in done.items() if not times)
    assert not rare, "no walk came there"
