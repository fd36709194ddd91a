"""The simulator finds each planted bug within a stated number of seeds, and finds nothing where nothing is planted."""

from __future__ import annotations

import pytest

from tests.simulation.plants import PLANTS, Plant, planted
from tests.simulation.run import Failed, simulate

FIRST_SEED = 11


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_bug_is_found(plant: Plant) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + plant.within):
        try:
            with planted(plant):
                simulate(seed)
        except Failed as exc:
            print(f"{plant.name}: found by seed {seed}, the {seed - FIRST_SEED + 1}. that was tried: {str(exc).splitlines()[0]}")
            simulate(seed)  # … and only because of it
            return
    pytest.fail(f"{plant.within} seeds do not find {plant.name!r}")
