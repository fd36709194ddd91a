"""Unique keys without a broker: the client for users' tests answers as the engine does."""

from __future__ import annotations

import pytest

from greenroom.errors import ConflictError, InvalidError
from greenroom.job import YEAR_S
from greenroom.tasks import Registry
from greenroom.testing import LocalClient

DEBOUNCED = {"unique_key": "k", "unique_mode": "debounce", "unique_for": 10.0}


@pytest.fixture
def seen() -> list:
    return []


@pytest.fixture
def client(seen: list) -> LocalClient:
    registry = Registry()
    registry.register_task("note", lambda payload: seen.append(payload["n"]))
    registry.register_task("other", lambda payload: None)
    return LocalClient(inline=False, registry=registry)


def told(client: LocalClient, number: int, task: str = "note", **options: object) -> tuple[int, bool, bool]:
    handle = client.submit(task, {"n": number}, **options)
    return handle.id, handle.is_duplicate, handle.is_replaced


def test_a_key_is_taken_until_its_job_is_finished(client: LocalClient, seen: list) -> None:
    assert told(client, 1, unique_key="k") == (1, False, False)
    assert told(client, 2, unique_key="k") == (1, True, False)
    assert told(client, 3, unique_key="k", on_duplicate="replace") == (1, True, True)
    assert told(client, 4, "other", unique_key="k", on_duplicate="replace") == (1, True, False)
    client.run_due()
    assert seen == [3]
    assert told(client, 5, unique_key="k") == (2, False, False)


def test_a_throttle_holds_for_its_time(client: LocalClient, seen: list) -> None:
    throttled = {"unique_key": "k", "unique_mode": "throttle", "unique_for": 60.0, "on_duplicate": "replace"}
    assert told(client, 1, **throttled) == (1, False, False)
    client.run_due()
    assert told(client, 2, **throttled) == (1, True, False)
    client.advance(60.0)
    assert told(client, 3, **throttled) == (2, False, False)


def test_debounced_calls_are_one_run_with_the_last_arguments(client: LocalClient, seen: list) -> None:
    for number in range(3):
        assert told(client, number, **DEBOUNCED) == (1, number > 0, number > 0)
        client.advance(9.0)
        assert client.run_due() == 0
    client.advance(1.0)
    assert (client.run_due(), seen) == (1, [2])
    assert told(client, 4, **DEBOUNCED) == (2, False, False)


def test_a_bound_ends_the_putting_off(client: LocalClient, seen: list) -> None:
    for number in range(3):
        told(client, number, **DEBOUNCED, debounce_max=15.0)
        client.advance(6.0)
    assert (client.run_due(), seen) == (1, [2])


def test_what_comes_during_a_run_is_a_job_of_its_own(client: LocalClient, seen: list) -> None:
    inner: list = []
    client._registry.register_task("again", lambda payload: inner.append(told(client, 7, "again", **DEBOUNCED)) if payload["n"] != 7 else None)
    told(client, 1, "again", **DEBOUNCED)
    client.advance(10.0)
    client.run_due()
    assert inner == [(2, False, False)] and client.submitted[1].state == "scheduled"


def test_a_job_that_is_retried_takes_its_key_again_unless_another_has_it(client: LocalClient) -> None:
    told(client, 1, unique_key="k")
    client.cancel([1])
    told(client, 2, unique_key="k")
    [conflict] = client.retry([1])
    assert isinstance(conflict, ConflictError)
    client.cancel([2])
    assert client.retry([1]) == ["queued"] and told(client, 3, unique_key="k") == (1, True, False)


def test_submit_many_tells_duplicates_apart(client: LocalClient) -> None:
    handles = client.submit_many([("note", {"n": 1}), ("note", {"n": 2})], unique_key="k", on_duplicate="replace")
    assert [(handle.id, handle.is_replaced) for handle in handles] == [(1, False), (1, True)]


@pytest.mark.parametrize(("field", "options"), [
    ("on_duplicate", {"on_duplicate": "replace"}),
    ("debounce_max", {"debounce_max": 5.0}),
    ("unique_for", {"unique_key": "k", "unique_mode": "debounce"}),
    ("unique_for", {"unique_key": "k", "unique_mode": "throttle"}),
    ("delay", {**DEBOUNCED, "delay": 1.0}),
    ("run_at", {**DEBOUNCED, "run_at": 0.0}),
    ("on_duplicate", {**DEBOUNCED, "on_duplicate": "keep"}),
    ("debounce_max", {**DEBOUNCED, "debounce_max": 9.0}),
    ("debounce_max", {"unique_key": "k", "debounce_max": 9.0}),
    ("debounce_max", {**DEBOUNCED, "debounce_max": YEAR_S + 1}),
    ("on_duplicate", {"unique_key": "k", "on_duplicate": "drop"}),
])
def test_what_does_not_go_together_is_refused_by_name(client: LocalClient, field: str, options: dict) -> None:
    with pytest.raises(InvalidError, match=field) as caught:
        client.submit("note", {"n": 1}, **options)
    assert caught.value.field == field
