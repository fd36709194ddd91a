"""Jobs that ask how long they are kept, in virtual time, over engine and memory store: not before their time, soon after, over a crash."""

from __future__ import annotations

import pytest

from greenroom.errors import FullError
from greenroom.job import State
from greenroom.leases import Caps
from greenroom.protocol import parse_request
from greenroom.stores import Retention
from greenroom.verbs import HANDLERS
from tests.core import Core, check, new_job, outcome, reserved, state, submitted
from tests.unit.test_schedules import House

HOUR, DAY = 3600.0, 86400.0


def prune(core: Core) -> None:
    core.batches.prune_soon(core.now)
    core.run()


def gone(core: Core, *ids: int) -> list[bool]:
    return [job_id not in core.store._jobs for job_id in ids]


def run_all(core: Core, *, fails: int | None = None) -> None:
    """Let a worker finish all that is queued; one job fails for good."""
    worker = core.connect("w")
    while taken := reserved(worker, 100):
        worker.settle("ack", *[job_id for job_id in taken if job_id != fails])
        if fails in taken:
            worker.settle("fail", fails)
        core.run()
    worker.close(bye=True)
    core.run()


def test_each_is_kept_for_as_long_as_it_asked_and_a_crash_changes_nothing() -> None:
    core = Core(retention=Retention(60.0, 0, 60.0, 0))
    now, soon, long, plain = submitted(core, new_job(keep_for=0.0), new_job(keep_for=50.0), new_job(keep_for=DAY), new_job())
    prune(core)
    assert gone(core, now, soon, long, plain) == [False] * 4, "they wait"
    run_all(core, fails=long)

    core.advance(40.0)
    prune(core)
    assert gone(core, now, soon, long, plain) == [True, False, False, False]
    check(core)
    core.crash_and_restart()
    core.advance(30.0)
    core.batches.prune_soon(core.now)
    core.begin_cycle()
    core.crash_and_restart()
    assert gone(core, soon, plain) == [False, False], "the COMMIT was not there yet"
    prune(core)
    assert gone(core, now, soon, long, plain) == [True, True, False, True] and core.engine.keeping.count == 1

    core.advance(DAY)
    prune(core)
    assert gone(core, long) == [True] and core.engine.keeping.count == 0
    check(core)


def test_however_it_ends_and_after_a_retry_anew() -> None:
    core = Core()
    failed, cancelled, expired = submitted(core, new_job(keep_for=10.0), new_job(keep_for=10.0, queue="other"),
                                           new_job(keep_for=10.0, queue="other", expires_in=1.0))
    client = core.connect("c", role="client")
    client.cancel(cancelled)
    worker = core.connect("w")
    assert reserved(worker, 1, queues=["q"]) == [failed]
    worker.settle("fail", failed)
    core.advance(9.0)
    assert [state(core, job_id) for job_id in (failed, cancelled, expired)] == [State.FAILED, State.CANCELLED, State.EXPIRED]
    assert outcome(client, client.retry(failed)) == "queued"
    core.advance(1.5)
    prune(core)
    assert gone(core, failed, cancelled, expired) == [False, True, False]
    assert reserved(worker, 1, queues=["q"]) == [failed]
    worker.settle("ack", failed)
    core.advance(9.5)
    prune(core)
    assert gone(core, failed, cancelled, expired) == [False, True, True]
    core.advance(0.5)
    prune(core)
    assert gone(core, failed) == [True]
    assert outcome(client, client.retry(failed)) == outcome(client, client.delete(failed)) == "GONE"


def test_jobs_that_ask_for_long_are_limited_in_number_from_submit_until_they_are_gone() -> None:
    core = Core(caps=Caps(kept_jobs=3))
    client = core.connect("c", role="client")

    def submit(*jobs: object) -> list[object]:
        request = client.submit(*jobs)
        core.run()
        return [job if isinstance(job, int) else type(job) for job in client.answers[request]["jobs"]]

    first, second = submit(new_job(keep_for=2 * DAY), new_job(keep_for=DAY, unique_key="k"))
    third, *refused = submit(*[new_job(keep_for=DAY)] * 3)
    assert refused == [FullError] * 2 and isinstance(third, int)
    assert submit(new_job(keep_for=DAY, unique_key="other")) == [FullError]
    assert all(isinstance(job, int) for job in submit(new_job(), new_job(keep_for=HOUR), new_job(keep_for=0.0)))
    (error,) = [job for job in client.answers[client.submit(new_job(keep_for=DAY))]["jobs"]]
    assert error.field == "keep_for" and "3 jobs" in error.message

    run_all(core, fails=first)
    core.crash_and_restart()
    client = core.connect("c", role="client")
    assert core.engine.keeping.count == 3
    assert outcome(client, client.retry(first)) == "queued" and core.engine.keeping.count == 3
    assert outcome(client, client.delete(second)) == "deleted" and core.engine.keeping.count == 2
    core.advance(DAY)
    prune(core)
    assert gone(core, first, second, third) == [False, True, True] and core.engine.keeping.count == 1
    assert [isinstance(job, int) for job in submit(*[new_job(keep_for=DAY)] * 3)] == [True, True, False]
    check(core)


class Asker:
    """Whoever asks the desk: keeps the answers."""

    session, is_open, deliveries_written, takes_events, held_deliveries = None, True, True, False, 0

    def __init__(self) -> None:
        self.open_waits: set[object] = set()
        self.answers: dict[int, dict] = {}

    def answer(self, request_id: int, answer: dict) -> None:
        self.answers[request_id] = answer

    def flush(self) -> None:
        """Nothing is queued here."""


@pytest.fixture
def house() -> House:
    return House()


def ask(house: House, asker: Asker, verb: str, **fields: object) -> int:
    request_id = len(asker.answers) + len(asker.open_waits) + 1
    HANDLERS[verb](house, asker, parse_request({"id": request_id, "verb": verb, **fields}))
    house.commit()
    return request_id


def test_a_job_that_is_not_kept_is_told_to_those_who_wait_and_then_gone_from_memory_too(house: House) -> None:
    asker = Asker()
    ids = asker.answers[ask(house, asker, "submit", jobs=[{"task": "t", "keep_for": 0}, {"task": "t", "keep_for": 5}])]["jobs"]
    waits = ask(house, asker, "wait", jobs=ids, wait=30.0)
    assert ask(house, asker, "cancel", jobs=ids[:1]) and asker.answers[waits]["jobs"][0]["state"] == "cancelled"
    ask(house, asker, "cancel", jobs=ids[1:])
    house.batches.prune_soon(house.now())
    house.commit()

    shown = asker.answers[ask(house, asker, "get", jobs=ids)]["jobs"]
    assert shown[0]["error"]["code"] == "GONE" and shown[1]["state"] == "cancelled" and shown[1]["options"] == {"keep_for": 5.0}
    assert asker.answers[ask(house, asker, "wait", jobs=ids[:1], wait=30.0)]["jobs"][0]["error"]["code"] == "GONE", "at once"
    house.advance(5.0)
    house.batches.prune_soon(house.now())
    house.commit()
    assert asker.answers[ask(house, asker, "get", jobs=ids[1:])]["jobs"][0]["error"]["code"] == "GONE"
    house.restart()
    assert house.in_memory(ids[1]) is None


def test_a_schedule_whose_jobs_find_room_to_be_kept_for_some_of_them_alone_leaves_out_the_others() -> None:
    house = House(caps=Caps(kept_jobs=2))
    house.put(job={"task": "t", "payload": b"", "keep_for": DAY}, every="1h", overlap="queue", missed="all")
    blocking = house.ask("submit", jobs=[{"task": "t", "keep_for": DAY}])["jobs"][0]
    house.restart(down_s=2.5 * HOUR)
    house.advance(5.0)
    assert len(house.jobs()) == 2 and (house.show()["runs"], house.show()["skipped"]) == (1, 1), "two were due, and there was room for one"

    house.ask("cancel", jobs=[blocking])
    assert house.ask("delete", jobs=[blocking])["outcomes"] == ["deleted"] and house.engine.keeping.count == 1


def test_a_queue_with_a_limit_counts_them_too() -> None:
    house, asker = House(caps=Caps(kept_jobs=2)), Asker()
    ask(house, asker, "limit", queue="q", jobs=10, by="ann")
    outcomes = asker.answers[ask(house, asker, "submit", jobs=[{"task": "t", "queue": "q", "keep_for": DAY}] * 3)]["jobs"]
    assert [type(job) for job in outcomes] == [int, int, dict] and outcomes[2]["field"] == "keep_for" and house.engine.keeping.count == 2
