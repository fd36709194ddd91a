"""The simulator finds each planted bug within a stated number of seeds, and finds nothing where nothing is planted."""

from __future__ import annotations

import pytest

from tests.simulation.plants import PLANTS, Plant, planted
from tests.simulation.run import Failed, simulate
from tests.simulation.world import Violation

FIRST_SEED = 11


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_bug_is_found(plant: Plant) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + plant.within):
        try:
            with planted(plant):
                simulate(seed)
        except Failed as exc:
            if not isinstance(_root(exc), (Violation, AssertionError)):
                continue  # the plant broke something by accident; it has to be found by one of our checks
            print(f"{plant.name}: found by seed {seed}, the {seed - FIRST_SEED + 1}. that was tried: {str(exc).splitlines()[0]}")
            simulate(seed)  # … and only because of it
            return
    pytest.fail(f"{plant.within} seeds do not find {plant.name!r}")


def _root(exc: BaseException) -> BaseException:
    """Return what began it: a check of ours, or an error in what was planted."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc
