"""Who waits for which jobs, until when; and that nothing is left behind."""

from __future__ import annotations

from greenroom.job import Job, State
from greenroom.waits import ANSWER_BYTES, Wait, Waits, fitting


class Waiter:
    """Whoever waits."""

    def __init__(self) -> None:
        self.open_waits: set[Wait] = set()


def finished(job_id: int, result: bytes = b"r") -> Job:
    job = Job(job_id, "q", "t", 5, b"", False, 0.0)
    job.state, job.result = State.COMPLETED, result
    return job


def opened(waits: Waits, peer: Waiter, request_id: int, ids: list[int], deadline: float = 60.0) -> None:
    waits.add(Wait(peer, request_id, ids), deadline)


def is_empty(waits: Waits) -> bool:
    waits.tick(10**9)
    return not (waits.open or waits._by_job or waits._deadlines)


def test_a_wait_ends_with_the_first_of_its_jobs_and_tells_all_that_finished_together() -> None:
    waits, peer = Waits(), Waiter()
    opened(waits, peer, 7, [1, 2, 3])

    assert waits.finished([finished(9)]) == []
    ((told, request_id, answer),) = waits.finished([finished(1), finished(3)])

    assert (told, request_id) == (peer, 7)
    assert [(shown["id"], shown["state"], shown["result"]) for shown in answer["jobs"]] == [
        (1, "completed", b"r"), (3, "completed", b"r")]
    assert not peer.open_waits and is_empty(waits)


def test_all_who_wait_for_a_job_are_told_in_the_order_they_came() -> None:
    waits = Waits()
    for number in range(5):
        opened(waits, Waiter(), number, [1])

    assert [request_id for _, request_id, _ in waits.finished([finished(1)])] == [0, 1, 2, 3, 4]
    assert is_empty(waits)


def test_an_id_that_stands_twice_is_told_once_and_leaves_nothing_behind() -> None:
    waits, peer = Waits(), Waiter()
    opened(waits, peer, 1, [5, 5, 6])

    ((_, _, answer),) = waits.finished([finished(5)])

    assert len(answer["jobs"]) == 1 and is_empty(waits)


def test_a_wait_whose_time_is_over_is_answered_empty_once() -> None:
    waits, peer = Waits(), Waiter()
    opened(waits, peer, 1, [5], deadline=10.0)
    opened(waits, peer, 2, [5], deadline=20.0)
    assert waits.next_due() == 10.0
    assert waits.tick(9.99) == []

    assert waits.tick(10.0) == [(peer, 1, {"jobs": []})]

    assert waits.next_due() == 20.0 and waits.tick(10.0) == []
    assert [request_id for _, request_id, _ in waits.finished([finished(5)])] == [2]


def test_the_waits_of_a_connection_that_ended_are_forgotten() -> None:
    waits, peer, other = Waits(), Waiter(), Waiter()
    opened(waits, peer, 1, [5, 6])
    opened(waits, peer, 2, [5])
    opened(waits, other, 3, [5])

    waits.drop_peer(peer)

    assert waits.open == 1 and not peer.open_waits
    assert [request_id for _, request_id, _ in waits.finished([finished(5), finished(6)])] == [3]
    assert is_empty(waits)


def test_waits_that_end_early_do_not_pile_up_until_their_deadline() -> None:
    waits, peer = Waits(), Waiter()
    for number in range(1000):
        opened(waits, peer, number, [number], deadline=60.0)
        waits.finished([finished(number)])

    assert len(waits._deadlines) <= 66


def test_an_answer_holds_as_many_views_as_fit_and_at_least_one() -> None:
    large = {"id": 1, "result": bytes(ANSWER_BYTES + 1)}
    small = {"id": 2, "result": bytes(ANSWER_BYTES // 4)}

    assert fitting([large, small]) == [large]
    assert fitting([small] * 10) == [small] * 3
    assert fitting([]) == []


def test_the_waits_of_a_peer_that_is_gone_end_at_once_and_are_cleared_away_a_few_at_a_time() -> None:
    waits, peer = Waits(), Waiter()
    for number in range(40):
        waits.add(Wait(peer, number, list(range(1000))), 50.0)

    waits.drop_peer(peer)

    assert waits.open == 0 and not peer.open_waits and waits.next_due() == 0.0
    steps = 0
    while waits.next_due() == 0.0:
        assert waits.tick(1.0) == []
        steps += 1
    assert 2 < steps <= 40 and waits._by_job == {}


def test_waits_that_come_clear_away_more_than_they_bring() -> None:
    waits, gone = Waits(), Waiter()
    for number in range(40):
        waits.add(Wait(gone, number, [number]), 50.0)
    waits.drop_peer(gone)

    for number in range(20):
        waits.add(Wait(Waiter(), number, [99]), 50.0)

    assert set(waits._by_job) == {99}
