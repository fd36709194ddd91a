"""The stream of job events for a page: what a chunk looks like, a viewer that does not read, the end."""

from __future__ import annotations

import pytest

from greenroom.errors import DrainingError
from greenroom.subscriptions import EventFilter
from greenroom.webui.job_events import MAX_WAITING, JobEvents

EVENT = {"seq": 5, "kind": "failed", "job": 1}


class Source:
    """Takes subscribers, as the broker does."""

    def __init__(self, *, gap: bool = False) -> None:
        self.listeners: dict[object, tuple[EventFilter, str | None, int | None]] = {}
        self.answer = {"boot": "b", "position": 3, "gap": gap, "oldest": 1}
        self.events = JobEvents(self.open, self.listeners.pop)

    def open(self, listener: object, wanted: EventFilter, boot: str | None, after: int | None) -> dict:
        self.listeners[listener] = wanted, boot, after
        return self.answer


def notice(*events: dict, position: int = 7, gap: bool = False) -> dict:
    return {"notice": "events", "events": list(events), "position": position, "gap": gap, "oldest": 5}


def test_a_chunk_has_an_id_for_each_event_and_the_position_last() -> None:
    source = Source()
    stream = source.events.watch("mail", None, "failed,expired", "b:3")
    ((viewer, asked),) = source.listeners.items()
    viewer.notify(notice(EVENT, gap=True))

    assert asked == (EventFilter("mail", None, frozenset({"failed", "expired"})), "b", 3)
    assert next(stream) == b"retry: 1000\nid: b:3\n\n"
    assert next(stream) == (b'id: b:4\ndata: {"kind":"gap"}\n\nid: b:5\ndata: {"seq":5,"kind":"failed","job":1}\n\nid: b:7\n\n')


def test_a_gap_at_the_begin_is_told_first() -> None:
    stream = Source(gap=True).events.watch(None, None, None, "old:9")

    assert next(stream) == b'retry: 1000\nid: b:3\n\nid: b:3\ndata: {"kind":"gap"}\n\n'


def test_a_viewer_that_does_not_read_takes_no_more_and_goes_on_when_it_reads() -> None:
    source = Source()
    stream = source.events.watch(None, None, None, None)
    (viewer,) = source.listeners
    for _ in range(MAX_WAITING):
        assert viewer.takes_events
        viewer.notify(notice(EVENT))
    assert not viewer.takes_events

    next(stream), next(stream)
    assert viewer.takes_events


def test_a_viewer_that_never_began_to_read_gives_back_its_place() -> None:
    source = Source()
    source.events.watch(None, None, None, None).close()

    assert not source.listeners


def test_a_stop_ends_the_streams_and_takes_no_new_ones() -> None:
    source = Source()
    stream = source.events.watch(None, None, None, None)
    next(stream)
    source.events.stop()

    assert list(stream) == []
    with pytest.raises(DrainingError):
        source.events.watch(None, None, None, None)
