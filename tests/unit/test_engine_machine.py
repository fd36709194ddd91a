"""Hypothesis looks for a sequence of requests after which the engine differs from a dict of jobs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from greenroom.job import State
from greenroom.leases import MAX_CRASHES
from tests.core import Core, check, new_job

TASKS = st.sampled_from(["a", "b"])
FINISHED = ("completed", "failed", "cancelled")


class Known:
    """A job as the model knows it."""

    def __init__(self, task: str, priority: int, order: int) -> None:
        self.task = task
        self.rank = (priority, order)
        self.state = "queued"
        self.fence = 0
        self.late_fence = 0  # its lease was lost, nobody else got the job: a settle that comes late is taken
        self.crashes = 0
        self.failures = 0
        self.failed_fence = 0  # fence of the latest failure or snooze that was taken
        self.due = 0.0  # while it is scheduled
        self.attempt = 0
        self.cancel_requested = False


class Machine(RuleBasedStateMachine):
    """One client and up to three workers, who do what they please; each request is committed before the next."""

    leases = Bundle("leases")  # (job, fence), current or stale

    def __init__(self) -> None:
        super().__init__()
        self.core = Core(max_jobs=4)
        self.client = self.core.connect("c", role="client")
        self.workers = [self.core.connect(f"w{number}") for number in range(3)]
        self.jobs: dict[int, Known] = {}
        self.order = 0
        self.paused: set[str] = set()  # tasks

    # -- requests -----------------------------------------------------------------------------------------------------------

    @rule(tasks=st.lists(st.tuples(TASKS, st.sampled_from([1, 5, 9])), min_size=1, max_size=5))
    def submit(self, tasks: list[tuple[str, int]]) -> None:
        request_id = self.client.submit(*[new_job(task, priority=priority) for task, priority in tasks])
        self.core.run()
        for job_id, (task, priority) in zip(self.client.ids(request_id), tasks):
            self.order += 1
            assert job_id not in self.jobs
            self.jobs[job_id] = Known(task, priority, self.order)

    @rule(target=leases, number=st.integers(0, 2), n=st.integers(1, 4),
          tasks=st.none() | st.lists(TASKS, max_size=2, unique=True))
    def reserve(self, number: int, n: int, tasks: list[str] | None) -> object:
        worker = self.workers[number]
        request_id = worker.reserve(n, tasks=tasks, wait=0)
        self.core.run()
        got = worker.ids(request_id)
        fitting = sorted((known.rank, job_id) for job_id, known in self.jobs.items()
                         if known.state == "queued" and (tasks is None or known.task in tasks) and known.task not in self.paused)
        assert got == [job_id for _, job_id in fitting[:len(got)]] and bool(got) == bool(fitting)
        for job_id in got:
            known = self.jobs[job_id]
            assert worker.held[job_id] > known.fence
            known.state, known.fence, known.attempt = "running", worker.held[job_id], known.attempt + 1
            known.late_fence = 0
            assert self.core.engine.jobs[job_id].attempt == known.attempt
        return multiple(*[(job_id, worker.held[job_id]) for job_id in got])

    @rule(lease=leases, number=st.integers(0, 2), kind=st.sampled_from(["ack", "fail", "fail again", "snooze", "nack", "crash"]))
    def settle(self, lease: tuple[int, int], number: int, kind: str) -> None:
        job_id, fence = lease
        known = self.jobs[job_id]
        is_current = known.state == "running" and known.fence == fence
        is_in_memory = job_id in self.core.engine.jobs
        wish = {"fail": False, "snooze": 7.0}.get(kind)
        request_id = self.workers[number].settle(kind.split()[0], job_id, fence=fence, wish=wish)
        self.core.run()
        told = self.workers[number].outcome(request_id)

        if is_current:
            assert told == "OK"
            for worker in self.workers:
                if worker.held.get(job_id) == fence:
                    del worker.held[job_id]
            self.end(known, kind)
        elif known.state == "queued" and known.late_fence == fence and is_in_memory and kind in ("ack", "fail", "fail again"):
            assert told == "OK"
            if kind == "ack":
                known.state = "completed"
            else:
                self.note_failure(known)
                known.late_fence = 0
                if kind == "fail" or known.failures >= 5:
                    known.state = "failed"
        elif known.failed_fence == fence and kind in ("fail", "fail again", "snooze"):
            assert told == "REPEATED"
        elif known.fence != fence:
            assert told == "LEASE_LOST"
        else:
            assert told in ("REPEATED", "LEASE_LOST")  # the end of this very lease, told again or told differently

    def end(self, known: Known, kind: str) -> None:
        """What becomes of a job whose lease ends so."""
        known.crashes += kind in ("crash", "lost")
        if kind in ("fail", "fail again"):
            self.note_failure(known)
        elif kind == "snooze":
            known.failed_fence = known.fence
        if kind == "ack":
            known.state = "completed"
        elif known.cancel_requested:
            known.state = "cancelled"
        elif kind == "snooze" or (kind == "fail again" and known.failures < 5):
            known.state = "scheduled"
            known.due = self.core.now + (7.0 if kind == "snooze" else 10.0 * 2 ** (known.failures - 1))
        elif kind in ("fail", "fail again") or (kind in ("crash", "lost") and known.crashes >= MAX_CRASHES):
            known.state = "failed"
        else:
            known.state = "queued"
            known.late_fence = known.fence if kind == "lost" else 0

    def note_failure(self, known: Known) -> None:
        known.failures += 1
        known.failed_fence = known.fence

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass, with signs of life of the workers; jobs that fall due get new places."""
        for _ in range(round(seconds)):
            for worker in self.workers:
                worker.heartbeat(listed=False)
            self.core.advance(1.0)
            self.fall_due()

    def fall_due(self) -> None:
        due = sorted((known.due, job_id) for job_id, known in self.jobs.items() if known.state == "scheduled" and
                     known.due <= self.core.now)
        for _, job_id in due:
            self.order += 1
            known = self.jobs[job_id]
            known.state, known.rank = "queued", (known.rank[0], self.order)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        known = self.jobs[job_id]
        request_id = self.client.retry(job_id)
        self.core.run()
        if known.state not in ("failed", "cancelled"):
            assert self.client.outcome(request_id) == "CONFLICT"
            return
        assert self.client.outcome(request_id) == "queued"
        self.order += 1
        known.state, known.rank = "queued", (known.rank[0], self.order)
        known.failures = known.crashes = known.late_fence = 0
        known.cancel_requested = False

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        known = self.jobs[job_id]
        request_id = self.client.cancel(job_id)
        self.core.run()
        told = self.client.outcome(request_id)

        if known.state in FINISHED:
            assert told == "FINISHED"
        elif known.state == "running":
            assert told == "requested"
            known.cancel_requested = True
        else:
            assert told == "cancelled"
            known.state = "cancelled"

    @rule(task=TASKS, seconds=st.none() | st.just(3600.0))
    def pause(self, task: str, seconds: float | None) -> None:
        self.client.pause("task", task, seconds=seconds)
        self.core.run()
        self.paused.add(task)

    @rule(task=TASKS)
    def resume(self, task: str) -> None:
        request_id = self.client.resume("task", task)
        self.core.run()
        assert self.client.answers[request_id] == {"resumed": task in self.paused}
        self.paused.discard(task)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), priority=st.sampled_from([1, 5, 9]), payload=st.none() | st.just(b"y" * 600))
    def change(self, data: st.DataObject, priority: int, payload: bytes | None) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        known = self.jobs[job_id]
        request_id = self.client.change(job_id, priority=priority, payload=payload)
        self.core.run()
        told = self.client.outcome(request_id)

        if known.state == "queued":
            assert told == "changed"
            known.rank = (priority, known.rank[1])
            if payload is not None:
                known.late_fence = 0
        else:
            assert told == ("CONFLICT" if known.state == "running" else "FINISHED")

    @rule(number=st.integers(0, 2), bye=st.booleans())
    def lose(self, number: int, bye: bool) -> None:
        worker = self.workers[number]
        for job_id, fence in worker.held.items():
            known = self.jobs[job_id]
            if known.state == "running" and known.fence == fence:
                self.end(known, "bye" if bye else "lost")
        worker.close(bye=bye)
        self.core.advance(0.5)
        self.fall_due()
        self.workers[number] = self.core.connect(f"w{number}")

    @rule(lease=consumes(leases))
    def forget(self, lease: tuple[int, int]) -> None:
        """A lease that nobody settles any more."""

    @rule()
    def crash(self) -> None:
        """All was committed. Leases on disk run out after a minute; of the others nothing is known any more."""
        kept = {job_id: fence for job_id, (fence, *_) in self.core.store._leases.items()}
        for job_id, known in self.jobs.items():
            if known.state == "running" and kept.get(job_id) == known.fence:
                self.end(known, "lost")
                continue
            known.late_fence = 0
            if known.state == "running":
                known.state = "cancelled" if known.cancel_requested else "queued"
                row = self.core.store.committed(job_id)
                known.attempt, known.fence = row.attempt, row.fence
        self.core.crash_and_restart()
        self.core.advance(60.0)
        self.fall_due()
        self.client = self.core.connect("c", role="client")
        self.workers = [self.core.connect(f"w{number}") for number in range(3)]

    # -- what holds always --------------------------------------------------------------------------------------------------

    @invariant()
    def the_engine_is_as_the_model(self) -> None:
        newest = self.core.newest()
        differ = {job_id: (job.state.label, self.jobs[job_id].state) for job_id, job in newest.items()
                  if job.state.label != self.jobs[job_id].state}
        assert not differ and newest.keys() == self.jobs.keys(), f"the engine and the model differ: {differ}"
        totals = self.core.engine.totals
        for state in State:
            assert totals[state] == sum(known.state == state.label for known in self.jobs.values())
        assert all(newest[job_id].failures == known.failures for job_id, known in self.jobs.items())
        assert all(newest[job_id].crashes == known.crashes for job_id, known in self.jobs.items())
        check(self.core)

    def teardown(self) -> None:
        """One honest worker finishes everything."""
        for task in self.paused:
            self.client.resume("task", task)
        for worker in self.workers:
            worker.close(bye=True)
        self.core.run()
        last = self.core.connect("last")
        while True:
            request_id = last.reserve(100)
            self.core.run()
            if not last.ids(request_id):
                if not any(known.state == "scheduled" for known in self.jobs.values()):
                    break
                last.heartbeat(listed=False)
                self.core.advance(10.0)
                self.fall_due()
            last.settle("ack", *last.ids(request_id))
        assert not self.core.unfinished()


TestEngine = Machine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True,
                               suppress_health_check=list(HealthCheck))
