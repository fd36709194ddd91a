"""Distributions: what falls where, and which quantile the last minute has, against the values themselves."""

from __future__ import annotations

import random

import pytest

from greenroom.distributions import ROWS, SECONDS, SLICE_S, Distribution

SEED = 20


def test_a_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    seen = Distribution((1.0, 2.0, 5.0))
    for value in (0.0, 1.0, 1.5, 2.0, 5.0, 5.1, 1000.0):
        seen.add(value, 0.0)

    assert seen.buckets == [2, 2, 1, 2]
    assert (seen.count, seen.total, seen.latest, seen.highest) == (7, 1014.6, 1000.0, 1000.0)


@pytest.mark.parametrize("bounds, spread", [(SECONDS, lambda rng: rng.lognormvariate(-6, 1.5)), (ROWS, lambda rng: rng.randint(0, 30_000))])
def test_a_quantile_is_right_to_the_width_of_its_bucket(bounds: tuple, spread: object) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    values = [spread(rng) for _ in range(5000)]
    seen = Distribution(bounds)
    for number, value in enumerate(values):
        seen.add(value, 1000.0 + number * 50 / len(values))
    values.sort()

    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        told = seen.quantiles((share,), 1050.0)[0]
        true = values[max(0, int(share * len(values)) - 1)]
        low = max((bound for bound in bounds if bound < true), default=0.0)
        high = min((bound for bound in bounds if bound >= true), default=values[-1])
        assert low <= told <= high, (share, told, true)


def test_quantiles_forget_what_is_older_than_the_last_minute() -> None:
    seen = Distribution(SECONDS)
    seen.add(5.0, 1000.0)
    assert seen.quantiles((0.5, 0.99), 1059.0) == seen.quantiles((0.5, 0.99), 1001.0) != [None, None]
    seen.add(0.001, 1059.0)

    assert seen.quantiles((0.99,), 1059.0)[0] > 1.0
    assert seen.quantiles((0.99,), 1075.0)[0] <= 0.001
    assert seen.quantiles((0.99,), 1060.0 + 8 * SLICE_S) == [None]
    assert (seen.count, seen.highest) == (2, 5.0)


def test_a_slice_is_used_again_for_a_later_time() -> None:
    seen = Distribution((1.0,))
    for number in range(1000):
        seen.add(1.0 if number % 2 else 0.5, 7.0 * number)

    told = seen.quantiles((1.0,), 7.0 * 999)

    assert told == [1.0] and sum(part.buckets[0] for part in seen._slices) <= 1 + 70 / 7


def test_without_values_there_is_no_quantile() -> None:
    assert Distribution(SECONDS).quantiles((0.5, 0.99), 1e9) == [None, None]
