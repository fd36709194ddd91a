"""greenroom/lease_watch.py: a worker's own deadline is earlier than the broker's, and only counts while the broker may live."""

from __future__ import annotations

from greenroom.lease_watch import LeaseWatch


def test_nothing_can_run_out_before_the_first_greeting() -> None:
    watch = LeaseWatch()

    assert not watch.is_over(1e9) and watch.left_s(1e9, 7.0) == 7.0


def test_the_deadline_is_before_the_broker_s_and_moves_with_each_answer() -> None:
    watch = LeaseWatch()
    watch.begin(10.0, 100.0)

    assert not watch.is_over(108.9)
    watch.heard(105.0)
    assert not watch.is_over(113.9)
    assert watch.is_over(114.1)  # the broker, which took the beat at 105.0 or later, waits until 115


def test_it_is_over_once_until_something_is_heard_again() -> None:
    watch = LeaseWatch()
    watch.begin(10.0, 100.0)

    assert [watch.is_over(now) for now in (120.0, 121.0)] == [True, False]
    watch.heard(130.0)
    assert watch.is_over(139.1)


def test_a_broker_that_ended_itself_gives_nothing_away() -> None:
    watch = LeaseWatch()
    watch.begin(10.0, 100.0)
    watch.broker_ended()

    assert not watch.is_over(1e9)


def test_it_tells_how_long_to_wait() -> None:
    watch = LeaseWatch()
    watch.begin(10.0, 100.0)

    assert watch.left_s(100.0, 5.0) == 5.0
    assert abs(watch.left_s(108.0, 5.0) - 1.0) < 1e-9
    assert watch.left_s(200.0, 5.0) == 0.0
