"""The client for users' tests limits queues as a broker does."""

from __future__ import annotations

import pytest

from greenroom.errors import FullError, InvalidError, TooLargeError
from greenroom.tasks import Registry
from greenroom.testing import LocalClient


@pytest.fixture
def capture() -> LocalClient:
    registry = Registry()
    registry.register_task("t", lambda payload: payload)
    return LocalClient(inline=False, registry=registry)


def test_a_full_queue_raises_drops_and_raises_at_once_where_it_would_wait_for_ever(capture: LocalClient) -> None:
    made = capture.limit("mail", jobs=2, urgent=1, reason="why")
    assert (made["most_jobs"], made["by"], made["waiting"]) == (3, "local", 0)
    handles = capture.submit_many([("t", {})] * 3, queue="mail", on_full="drop")
    assert [handle.is_dropped for handle in handles] == [False, False, True] and capture.dropped == 1

    for way in ("raise", "wait"):
        with pytest.raises(FullError, match="2 jobs wait, its limit is 2; nothing runs by itself here"):
            capture.submit("t", queue="mail", on_full=way)
    assert capture.submit("t", queue="mail", priority=1).id == 3 and capture.submit("t").id == 4
    assert capture.limits()[0]["full"] == "all" and capture.limits()[0]["refused"] == 3

    capture.run_due()
    assert capture.submit("t", queue="mail").id == 5
    assert capture.unlimit("mail") is True and capture.unlimit("mail") is False and capture.limits() == []


def test_a_retry_and_another_queue_ask_for_room_there_too(capture: LocalClient) -> None:
    failed, other = capture.submit("t"), capture.submit("t", queue="other")
    failed.cancel()
    capture.limit("default", jobs=1, bytes=5)
    capture.submit("t")

    assert [outcome.code for outcome in capture.retry([failed.id]) + capture.change([other.id], queue="default")] == ["FULL", "FULL"]
    with pytest.raises(TooLargeError):
        capture.submit("t", b"123456", raw=True)
    waiting = capture.submitted[-1].id
    assert [getattr(outcome, "code", outcome) for payload in (b"123456", b"12345")
            for outcome in capture.change([waiting], payload=payload, raw=True)] == ["TOO_LARGE", "changed"]
    capture.limit("default", jobs=3)
    assert capture.retry([failed.id]) + capture.change([other.id], queue="default") == ["queued", "changed"]


def test_bad_limits_are_refused_by_name(capture: LocalClient) -> None:
    for bad, field in (({}, "jobs"), ({"jobs": 0}, "jobs"), ({"jobs": 1, "urgent": 0}, "urgent")):
        with pytest.raises(InvalidError) as caught:
            capture.limit("mail", **bad)
        assert caught.value.field == field
