"""The commit rule: nothing leaves before the COMMIT that holds it. And what is read while the store is free."""

from __future__ import annotations

import pytest

from greenroom import batches
from greenroom.batches import Batches
from greenroom.engine import Engine
from greenroom.errors import UnknownOutcomeError
from greenroom.job import Job, State
from greenroom.number_blocks import Numbers
from greenroom.records import Lost, Submission
from greenroom.stores import Retention
from greenroom.stores.memory import MemoryStore
from greenroom.waits import Waits
from tests.core import Core, check, new_job, outcome, reserved, submitted

SUBMISSION = b"s" * 16


def test_a_submit_is_answered_after_its_commit_and_its_job_delivered_after_it() -> None:
    core = Core()
    client, worker = core.connect("c", role="client"), core.connect()
    waiting = worker.reserve(wait=60)

    request_id = client.submit(new_job())
    core.begin_cycle()
    assert not client.answers and not worker.answers
    core.end_cycle()

    assert worker.ids(waiting) == client.ids(request_id)


def test_the_lease_of_a_delivery_that_waits_for_a_slow_commit_begins_when_it_leaves() -> None:
    core = Core()
    client, worker = core.connect("c", role="client"), core.connect()
    waiting = worker.reserve(wait=600)
    client.submit(new_job())
    core.begin_cycle()

    for _ in range(40):
        core.clock.advance(1.0)
        core.tick()
    core.end_cycle()
    (job,) = worker.ids(waiting)
    core.clock.advance(core.engine.timing.lease_s - 0.1)
    core.tick()
    assert worker.session.leases[job].job.state is State.RUNNING
    core.clock.advance(0.1)
    core.tick()

    assert not worker.session.leases and core.engine.jobs[job].requeues == 1


def test_what_is_decided_during_a_commit_waits_for_the_next() -> None:
    core = Core()
    client = core.connect("c", role="client")
    client.submit(new_job())
    core.begin_cycle()

    second = client.submit(new_job())
    core.end_cycle()
    assert len(client.answers) == 1 and second not in client.answers
    core.cycle()

    assert second in client.answers


def test_a_settle_a_cancel_and_a_wait_are_answered_after_their_commit() -> None:
    core = Core()
    first, second = submitted(core, new_job(), new_job())
    client, worker = core.connect("c", role="client"), core.connect()
    reserved(worker)
    requests = [client.wait(first), client.cancel(second)]
    settle = worker.settle("ack", first)

    core.begin_cycle()
    assert settle not in worker.answers and not client.answers
    core.end_cycle()

    assert worker.outcome(settle) == "OK" and all(request in client.answers for request in requests)


def test_a_cancel_notice_leaves_after_the_commit_of_its_flag() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker, client = core.connect(), core.connect("c", role="client")
    reserved(worker)

    client.cancel(job)
    core.begin_cycle()
    assert not worker.notices
    core.end_cycle()

    assert core.store.committed(job).cancel_requested and len(worker.notices) == 1


def test_what_needs_no_row_leaves_at_once_if_no_commit_runs_and_else_with_it() -> None:
    core = Core()
    ids = submitted(core, new_job(), new_job())
    worker, other = core.connect(), core.connect()
    commits = core.batches.commits

    at_once = worker.reserve()
    assert worker.ids(at_once) == ids[:1]
    core.connect("c", role="client").submit(new_job("else"))
    core.begin_cycle()
    with_it = other.reserve()
    assert with_it not in other.answers
    core.end_cycle()

    assert other.ids(with_it) == ids[1:] and core.batches.commits == commits + 1
    assert core.batches.is_idle and not core.batches.has_work


def test_a_delivery_counts_as_held_until_its_commit_is_over() -> None:
    core = Core()
    submitted(core, new_job())
    worker = core.connect()
    core.connect("c", role="client").submit(new_job("else"))

    core.begin_cycle()
    worker.reserve()
    assert worker.held_deliveries == 1
    core.end_cycle()

    assert worker.held_deliveries == 0 and len(worker.held) == 1


def test_an_answer_without_rows_waits_behind_rows_that_gather() -> None:
    core = Core()
    submitted(core, new_job("else"))
    client, worker = core.connect("c", role="client"), core.connect()
    client.submit(new_job())

    request_id = worker.reserve(tasks=["t"])
    assert request_id not in worker.answers, "the delivery tells of a job that is on no disk"
    core.run()

    assert len(worker.ids(request_id)) == 1


def test_a_job_that_came_and_went_in_one_batch_is_one_row() -> None:
    core = Core()
    worker, client = core.connect(), core.connect("c", role="client")
    worker.reserve(wait=60)
    rows = core.batches.rows
    request_id = client.submit(new_job())
    (job,) = core.engine.jobs
    client.cancel(job)

    core.cycle()

    assert core.batches.rows == rows + 1 == rows + core.batches.last_rows and client.ids(request_id) == [job]


def test_each_peer_is_flushed_once_for_all_that_it_is_told() -> None:
    core = Core()
    client = core.connect("c", role="client")
    for _ in range(10):
        client.submit(new_job())
    before = client.flushes

    core.cycle()

    assert len(client.answers) == 10 and client.flushes == before + 1


def test_a_failed_commit_tells_everybody_who_waits_that_the_outcome_is_unknown() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    client, worker = core.connect("c", role="client"), core.connect()
    reserved(worker)
    committing = client.submit(new_job())
    core.begin_cycle()
    gathering = client.submit(new_job())
    settle = worker.settle("ack", job)

    core.batches.failed()

    answers = [client.answers[committing], client.answers[gathering], worker.answers[settle]]
    assert all(isinstance(answer, UnknownOutcomeError) for answer in answers)


def test_rows_that_come_while_a_batch_is_written_in_slices_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE_JOBS", 2)
    core = Core()
    client = core.connect("c", role="client")
    first = client.submit(*[new_job() for _ in range(5)])
    core.batches.start()
    assert not core.batches.apply_slice()

    second = client.submit(new_job())
    client.cancel(max(core.engine.jobs) - 1)
    client.cancel(10**9)  # must look into the store, and that with every row written
    while not core.batches.apply_slice():
        pass
    core.batches.fetch(core.now)
    core.end_cycle()

    assert len(client.ids(first)) == 5 and len(client.ids(second)) == 1, "they joined the batch that was being written"
    check(core)


def test_a_submission_is_stored_once_however_often_and_whenever_it_is_sent() -> None:
    core = Core()
    client = core.connect("c", role="client")
    requests = [client.submit(new_job(), submission=SUBMISSION), client.submit(new_job(), submission=SUBMISSION)]
    core.begin_cycle()
    requests.append(client.submit(new_job(), submission=SUBMISSION))
    core.end_cycle()
    core.run()
    requests.append(client.submit(new_job(), submission=SUBMISSION))
    core.crash_and_restart()
    later = core.connect("c", role="client")
    again = later.submit(new_job(), submission=SUBMISSION)
    core.run()

    told = {tuple(client.ids(request)) for request in requests} | {tuple(later.ids(again))}
    assert len(told) == 1 and len(core.newest()) == 1


def test_two_of_one_submission_that_both_wait_for_the_store_are_stored_once() -> None:
    core = Core()
    client = core.connect("c", role="client")
    client.submit(new_job("else"))
    core.begin_cycle()
    requests = [client.submit(new_job(), submission=SUBMISSION) for _ in range(2)]
    assert not any(request in client.answers for request in requests)
    core.end_cycle()
    core.run()

    assert client.ids(requests[0]) == client.ids(requests[1])
    assert [client.answers[request].get("repeated", False) for request in requests] == [False, True]


def test_a_remembered_submission_alone_needs_a_commit() -> None:
    core = Core()
    core.batches.remember(Submission(SUBMISSION, bytes(16), "", core.now))
    assert core.batches.has_work

    core.run()
    core.crash_and_restart()

    assert core.store.submission(SUBMISSION) is not None


def test_a_load_sees_rows_that_were_not_yet_written() -> None:
    core = Core(max_jobs=2)
    client = core.connect("c", role="client")
    client.submit(*[new_job() for _ in range(5)])
    last = max(core.newest())
    assert last not in core.engine.jobs

    cancel = client.cancel(last)

    assert outcome(client, cancel) == "cancelled" and core.store.committed(last).state is State.CANCELLED


def test_a_second_load_does_not_see_a_job_as_it_was_before_the_first_changed_it() -> None:
    core = Core(max_jobs=2)
    ids = submitted(core, *[new_job() for _ in range(5)])
    client = core.connect("c", role="client")

    first, second = client.cancel(ids[4]), client.cancel(ids[4])
    core.run()

    assert (client.outcome(first), client.outcome(second)) == ("cancelled", "FINISHED")
    check(core)


def test_a_batch_takes_no_more_submits_beyond_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core()
    client = core.connect("c", role="client")
    monkeypatch.setattr(batches, "MAX_BATCH_JOBS", 3)
    client.submit(new_job(), new_job())
    assert not core.batches.is_full
    client.submit(new_job())
    assert core.batches.is_full
    core.begin_cycle()
    assert not core.batches.is_full, "what is being committed is not gathered"
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 100)
    client.submit(new_job(payload=bytes(100)))

    assert core.batches.is_full


def test_the_pump_is_woken_once_for_a_batch_and_not_while_a_commit_runs() -> None:
    core = Core()
    client = core.connect("c", role="client")
    before = core.wakes
    for _ in range(5):
        client.submit(new_job())
    assert core.wakes == before + 1
    core.begin_cycle()
    client.submit(new_job())
    core.end_cycle()

    assert core.wakes == before + 1 and core.batches.has_work


def test_numbers_are_fetched_before_they_run_out_and_never_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_NUMBERS", 20)
    core = Core()
    ids = [job for _ in range(40) for job in submitted(core, new_job())]
    core.crash_and_restart()
    ids += [job for _ in range(10) for job in submitted(core, new_job())]

    assert len(set(ids)) == 50 and ids == sorted(ids)


def test_pruning_goes_on_slice_by_slice_until_the_store_has_enough_of_it() -> None:
    core = Core()
    ids = submitted(core, *[new_job() for _ in range(450)])
    client = core.connect("c", role="client")
    for job in ids:
        client.cancel(job)
    core.run()
    core.clock.advance(8 * 86400.0)

    core.batches.prune_soon(core.now)
    core.cycle()
    assert len(core.newest()) == 350 and core.batches.has_work
    core.run()

    assert not core.newest() and outcome(client, client.cancel(ids[0])) == "GONE"
    assert core.engine.totals[State.CANCELLED] == 450


def test_a_block_of_numbers_alone_needs_a_commit_or_a_crash_would_hand_it_out_again() -> None:
    core = Core()
    core.engine.fences = Numbers()
    assert core.batches.has_work

    core.begin_cycle()
    assert core.batches.needs_commit
    core.end_cycle()
    last = core.engine.fences.left
    core.store.crash()

    assert core.store.block("fence", 1) > last


def test_settles_still_find_room_when_submits_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 100)
    core = Core()

    core.batches.note_payloads(100)
    assert core.batches.is_full and not core.batches.is_overfull
    core.batches.note_payloads(100)

    assert core.batches.is_overfull


def test_answers_that_wait_for_a_commit_are_weighed_until_they_leave() -> None:
    core = Core()
    submitted(core, new_job("else"))
    client = core.connect("c", role="client")
    client.submit(new_job())
    core.begin_cycle()
    for size in (1, 1000):
        core.batches.hold(client, client._send("jobs", None), {"jobs": [{"id": 1}] * size})
    held = core.batches.held_bytes
    assert 1000 * 800 < held < 1000 * 1000

    core.end_cycle()

    assert core.batches.held_bytes == 0 and len(client.answers) == 3


def test_a_hanging_commit_lets_only_so_many_answers_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_HELD_BYTES", 10_000)
    core = Core()
    client = core.connect("c", role="client")
    client.submit(new_job())
    core.begin_cycle()
    assert not core.batches.holds_too_much

    while not core.batches.holds_too_much:
        core.batches.hold(client, client._send("ping", None), {})
    assert 20 < len(client.sent) < 50
    core.end_cycle()

    assert not core.batches.holds_too_much


def test_rows_that_gathered_while_slices_were_applied_are_applied_in_slices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE_JOBS", 10)
    core = Core()
    client = core.connect("c", role="client")
    client.submit(*[new_job() for _ in range(25)])
    core.batches.start()
    slices = 0
    while not core.batches.apply_slice():
        slices += 1
    client.submit(*[new_job() for _ in range(25)])
    assert not core.batches.flush(), "nobody wants to read, so they wait for their own batch"

    core.batches.load([1], lambda jobs: None)
    assert core.batches.flush()
    while not core.batches.apply_slice():
        slices += 1
    assert slices == 4 and not core.batches.flush()
    core.batches.fetch(core.now)
    core.store.commit()
    core.batches.committed()

    assert len(core.store._jobs) == 50 and all(len(answer["jobs"]) == 25 for answer in client.answers.values())


class LateStore(MemoryStore):
    """A memory store that leaves statements for later, as SQLite's does; notes how many of them a read had to wait for."""

    def __init__(self) -> None:
        super().__init__(Retention())
        self.late = 0
        self.read_behind: list[int] = []

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """See Store."""
        super().apply(jobs, submissions)
        self.late += len(jobs)

    def unwritten(self) -> int:
        """See Store."""
        return self.late

    def write(self) -> None:
        """See Store."""
        self.late = 0

    def commit(self) -> None:
        """See Store."""
        super().commit()
        self.late = 0

    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """See Store."""
        self.read_behind.append(self.late)
        return super().load(ids, small=small)


def test_a_read_never_waits_for_the_statements_of_a_large_batch() -> None:
    """They run slice by slice where the store is to be read, or in the thread of the COMMIT, and the read comes after that."""
    store = LateStore()
    store.open()
    engine = Engine()
    pending = Batches(engine, store, Waits(), lambda: None)
    engine.add_numbers("job", store.block("job", 2 * batches.BLOCK_NUMBERS), 2 * batches.BLOCK_NUMBERS, 0.0)
    engine.add_numbers("fence", store.block("fence", 2 * batches.BLOCK_NUMBERS), 2 * batches.BLOCK_NUMBERS, 0.0)
    loaded: list[dict] = []

    def cycle(*, ask_at: str) -> None:
        engine.submit([new_job()] * 2000, 0.0)
        pending.collect()
        if ask_at == "start":
            pending.load([1], loaded.append)
        pending.start()
        while not pending.apply_slice():
            pass
        if ask_at == "end":
            pending.load([1], loaded.append)
        pending.fetch(0.0)
        store.commit()
        pending.committed()

    cycle(ask_at="start")
    assert (len(loaded), store.read_behind) == (1, [0])
    cycle(ask_at="end")
    assert len(loaded) == 1 and pending.has_work
    cycle(ask_at="")

    assert (len(loaded), store.read_behind) == (2, [0, 0])
