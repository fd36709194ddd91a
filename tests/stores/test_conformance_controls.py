"""What every store must do for those who steer the broker: pauses. Part of the suite in test_conformance.py, whose stores it takes."""

from __future__ import annotations

from greenroom.records import Pause
from tests.stores.test_conformance import NOW, House, build, house

__all__ = ["build", "house"]  # fixtures


def test_pauses_are_kept_until_they_are_forgotten(house: House) -> None:
    first = Pause("queue", "mail", NOW, None, "provider is down \u2713", "ann")
    second = Pause("task", "mail", NOW + 1, NOW + 60.0, "", "web")
    house.store.keep_pauses({("queue", "mail"): first, ("task", "mail"): second})
    house.store.commit()
    house.reopen()
    assert house.restored.pauses == [first, second]

    later = first._replace(until=NOW + 99.0, reason="still down")
    house.store.keep_pauses({("queue", "mail"): later, ("task", "mail"): None, ("queue", "never was"): None})
    house.store.commit()
    house.reopen()

    assert house.restored.pauses == [later]
