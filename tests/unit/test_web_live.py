"""Live events: one snapshot for all, bounded queues, nothing done for nobody."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from greenroom.errors import BusyError
from greenroom.webui import live as live_module
from greenroom.webui.live import MAX_VIEWERS, MAX_WAITING, Live

STATS = {"states": {}, "tasks": []}


class Source:
    """What Live asks; counts the snapshots."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.changed = 1
        self.rejected = 0
        self.failure: Exception | None = None

    def call(self, verb: str, fields: dict) -> dict:
        if verb != "stats":
            return {"workers": [], "total": 0, "jobs": []}
        if self.failure is not None:
            raise self.failure
        self.snapshots += 1
        return STATS

    def security(self) -> dict:
        return {"rejected_total": self.rejected}


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def live(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr(live_module, "TICK_S", 0.02)
    monkeypatch.setattr(live_module, "REFRESH_S", 3600.0)
    live = Live(source.call, source.security, lambda: source.changed)
    yield live
    live.stop()


def next_events(stream: Iterator[bytes], count: int) -> list[bytes]:
    """Return the kinds of the next events, within a deadline."""
    with gevent.Timeout(10):
        return [next(stream).split(b"\n")[0] for _ in range(count)]


def wait_until(condition: object) -> None:
    with gevent.Timeout(10):
        while not condition():
            gevent.sleep(0.005)


GREETING = [b"retry: 1000", b"event: overview", b"event: security"]


def test_a_viewer_gets_everything_at_once(live: Live) -> None:
    assert next_events(live.watch(), 3) == GREETING


def test_an_event_comes_when_something_changed(live: Live, source: Source) -> None:
    stream = live.watch()
    next_events(stream, 3)

    source.changed += 1
    assert next_events(stream, 1) == [b"event: overview"]
    source.rejected += 1
    assert next_events(stream, 1) == [b"event: security"]


def test_one_snapshot_serves_all_viewers(live: Live, source: Source) -> None:
    streams = [live.watch() for _ in range(20)]

    for stream in streams:
        assert next_events(stream, 3) == GREETING
    source.changed += 1
    for stream in streams:
        next_events(stream, 1)

    assert source.snapshots == 2


def test_without_a_change_comes_a_ping(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "PING_S", 0.05)
    stream = live.watch()
    next_events(stream, 3)

    assert next_events(stream, 1) == [b": ping"]


def test_clocks_and_heartbeats_are_refreshed_without_a_change(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "REFRESH_S", 0.05)
    stream = live.watch()
    next_events(stream, 3)

    assert next_events(stream, 1) == [b"event: overview"]


def test_nothing_is_computed_while_nobody_watches(live: Live, source: Source) -> None:
    stream = live.watch()
    next_events(stream, 3)
    stream.close()
    wait_until(lambda: live._ticker.dead)

    before = source.snapshots
    source.changed += 5

    assert live.viewers == 0
    assert source.snapshots == before
    assert next_events(live.watch(), 3) == GREETING
    assert source.snapshots == before + 1


def test_a_viewer_that_does_not_read_is_dropped_and_harms_nobody(live: Live, source: Source) -> None:
    lazy, eager = live.watch(), live.watch()
    next_events(lazy, 1)
    next_events(eager, 3)

    for _ in range(MAX_WAITING + 1):
        source.changed += 1
        assert next_events(eager, 1) == [b"event: overview"]

    assert live.viewers == 1
    with gevent.Timeout(10):
        assert len(list(lazy)) <= MAX_WAITING


def test_there_is_a_cap_on_viewers_and_a_closed_one_frees_its_place(live: Live) -> None:
    streams = [live.watch() for _ in range(MAX_VIEWERS)]
    with pytest.raises(BusyError):
        live.watch()

    next_events(streams[0], 1)
    streams[0].close()

    assert next_events(live.watch(), 3) == GREETING


def test_a_failed_snapshot_is_skipped_and_the_next_one_comes(live: Live, source: Source) -> None:
    source.failure = BusyError("too much in flight")
    stream = live.watch()
    assert next_events(stream, 1) == [b"retry: 1000"]
    gevent.sleep(0.1)

    source.failure = None

    assert sorted(next_events(stream, 2)) == [b"event: overview", b"event: security"]


def test_stop_ends_every_stream(live: Live) -> None:
    stream = live.watch()
    next_events(stream, 3)

    live.stop()
    live.stop()

    with gevent.Timeout(10):
        assert list(stream) == []
    with pytest.raises(BusyError):
        live.watch()
