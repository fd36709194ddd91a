"""greenroom/look_ahead.py: reserving ahead pays while all jobs are quick; with slow ones among them little goes back."""

from greenroom.look_ahead import MOST_AHEAD, LookAhead


def test_slow_jobs_are_not_reserved_ahead() -> None:
    ahead = LookAhead(slots=4)
    ahead.began(0.0)
    for at in range(1, 50):
        ahead.ended(4, at * 0.1)
    assert ahead.jobs == 0


def test_quick_jobs_are_reserved_ahead_up_to_the_bound() -> None:
    ahead = LookAhead(slots=4)
    ahead.began(0.0)
    ahead.ended(1000, 0.02)
    assert ahead.jobs == MOST_AHEAD
    ahead.began(1.0)
    for at in range(1, 100):
        ahead.ended(1, 1.0 + at * 0.002)
    assert 8 <= ahead.jobs <= 12, "20 ms of jobs that take 2"


def test_a_slow_job_among_many_quick_ones_sends_few_back() -> None:
    ahead = LookAhead(slots=4)
    went_back = ended = 0
    now = 0.0
    for _ in range(200):  # each round: a hundred quick jobs, then one that blocks the line
        ahead.began(now)
        for _ in range(100):
            now += 0.00002
            ahead.ended(1, now)
            ended += 1
        went_back += ahead.jobs
        ahead.gave_back()
        assert ahead.jobs == 0, "none is reserved ahead before quick ones were seen again"
    assert went_back / ended < 0.15


def test_the_bound_comes_back_after_the_slow_ones() -> None:
    ahead = LookAhead(slots=4)
    for _ in range(20):
        ahead.gave_back()
    now = 0.0
    ahead.began(now)
    for _ in range(MOST_AHEAD * 16 // 100 + 1):
        now += 0.001
        ahead.ended(100, now)
    assert ahead.jobs == MOST_AHEAD
