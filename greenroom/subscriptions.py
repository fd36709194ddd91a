"""Who is told of events, how far each has come, and what it gets next. No hub and no clock: dispatch.py drives `tell`, the simulator too.

A subscriber is a filter and a number in the one log of events (events.py); nothing is queued for it. Who is slow falls behind in the
log, and is told of the gap when what it lacks is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from greenroom.engine import Engine
from greenroom.errors import FullError
from greenroom.events import MAX_EVENTS, USUAL_KINDS, Event, EventLog

#: Subscribers at the same time; beyond it FULL. Each looks at every event: a third of a microsecond.
MAX_SUBSCRIBERS = 64
#: Events go on being noted for so long after the last subscriber left, for those who come back.
LINGER_S = 60.0
#: Events in a frame (some 40 kB), and those looked at for it (0.2 ms): then others have their turn.
FRAME_EVENTS = 200
LOOK_EVENTS = 500
#: A subscriber whose filter lets nothing through hears how far it is after so many events, so that it can come back there.
QUIET_EVENTS = MAX_EVENTS // 2


class Listener(Protocol):
    """Who is told: a connection, or a viewer of the web.

    Attributes:
        takes_events: False while it has more unread than it should; it is told later.
    """

    takes_events: bool

    def notify(self, notice: dict) -> None:
        """Take a notice."""

    def flush(self) -> None:
        """Send it."""


class EventFilter(NamedTuple):
    """Which events somebody wants; None: any (of `kinds`: all but progress)."""

    queue: str | None = None
    task: str | None = None
    kinds: frozenset[str] | None = None

    def lets(self, event: Event) -> bool:
        """Tell whether an event is wanted."""
        return (event["kind"] in (USUAL_KINDS if self.kinds is None else self.kinds)
                and (self.queue is None or event.get("queue") == self.queue) and (self.task is None or event.get("task") == self.task))


class Subscription:
    """One subscriber. `position`: the number up to which it has been served; `told`: the one that it knows."""

    __slots__ = ("listener", "filter", "position", "told")

    def __init__(self, listener: Listener, wanted: EventFilter, position: int) -> None:
        self.listener = listener
        self.filter = wanted
        self.position = self.told = position


class Subscriptions:
    """All of them."""

    def __init__(self, engine: Engine, log: EventLog) -> None:
        self._engine = engine
        self._log = log
        self._kept: dict[Listener, Subscription] = {}
        self._left_at: float | None = None  # when the last of them left, while events are still noted

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, listener: Listener, wanted: EventFilter, boot: str | None, after: int | None) -> dict[str, object]:
        """Tell somebody of events from now on, or of those after a position; replaces what it asked for before. Returns the answer.

        Args:
            boot, after: the position, as an earlier answer and notice told it; None: now.

        Raises FullError.
        """
        if listener not in self._kept and len(self._kept) >= MAX_SUBSCRIBERS:
            raise FullError(f"{len(self._kept)} subscribers are there, the cap", retry_after_s=5.0)
        self._engine.is_watched = True
        self._left_at = None
        log = self._log
        position = log.visible if after is None else after
        has_gap = after is not None and (boot != log.boot or not log.knows_since(after))
        if has_gap:
            position = log.oldest - 1
        self._kept[listener] = Subscription(listener, wanted, position)
        if position < log.visible:
            log.on_news()
        return {"boot": log.boot, "position": position, "gap": has_gap, "oldest": log.oldest}

    def close(self, listener: Listener, now: float) -> dict[str, object]:
        """Forget a subscriber, if it is one; returns the answer for one that asked for it."""
        if self._kept.pop(listener, None) is not None and not self._kept:
            self._left_at = now
        return {"boot": self._log.boot, "position": self._log.visible, "gap": False, "oldest": self._log.oldest}

    def tick(self, now: float) -> None:
        """Note no more events when nobody has wanted any for a while."""
        if self._left_at is not None and now - self._left_at >= LINGER_S:
            self._left_at = None
            self._engine.is_watched = False
            self._log.pause()

    @property
    def are_behind(self) -> bool:
        """True while somebody has not been told all there is, because it is slow."""
        return any(subscription.position < self._log.visible for subscription in self._kept.values())

    def tell(self) -> Iterator[None]:
        """Send everybody what there is and fits; yields after every frame, and after half a thousand events looked at."""
        for listener, subscription in list(self._kept.items()):
            while (self._kept.get(listener) is subscription and subscription.position < self._log.visible and listener.takes_events):
                notice = self._next(subscription)
                if notice is not None:
                    subscription.told = subscription.position
                    listener.notify(notice)
                    listener.flush()
                yield

    def _next(self, subscription: Subscription) -> dict[str, object] | None:
        """Return the next notice for a subscriber, None: among the events that were looked at is none for it."""
        log = self._log
        has_gap = not log.knows_since(subscription.position)
        if has_gap:
            subscription.position = log.oldest - 1
        wanted: list[Event] = []
        for event in log.after(subscription.position, LOOK_EVENTS):
            subscription.position = event["seq"]
            if subscription.filter.lets(event):
                wanted.append(event)
                if len(wanted) == FRAME_EVENTS:
                    break
        if not (wanted or has_gap or subscription.position - subscription.told >= QUIET_EVENTS):
            return None
        return {"notice": "events", "events": wanted, "position": subscription.position, "gap": has_gap, "oldest": log.oldest}
