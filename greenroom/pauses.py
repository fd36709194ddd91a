"""Which queues and tasks are paused, by whom, why and until when. The one truth that dispatch, lists and `explain` read.

Pure and without a clock. It must not know lanes, groups or what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from greenroom.records import Pause

#: Pauses at the same time; beyond it FULL. All of them fit into one answer.
MAX_PAUSES = 1000


class Pauses:
    """All pauses that hold now.

    Attributes:
        next_end: when the first of them ends by itself; None: none does.
    """

    __slots__ = ("next_end", "_kept")

    def __init__(self) -> None:
        self.next_end: float | None = None
        self._kept: dict[tuple[str, str], Pause] = {}  # (kind, name) -> pause

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Pause]:
        return iter(self._kept.values())

    def restore(self, pauses: Iterable[Pause]) -> None:
        """Take in those that the store kept."""
        self._kept.update(((pause.kind, pause.name), pause) for pause in pauses)
        self._plan()

    def put(self, pause: Pause) -> None:
        """Pause something, in place of a pause that it has."""
        self._kept[pause.kind, pause.name] = pause
        self._plan()

    def end(self, kind: str, name: str) -> Pause | None:
        """End a pause; returns it, or None: there was none."""
        pause = self._kept.pop((kind, name), None)
        self._plan()
        return pause

    def get(self, kind: str, name: str) -> Pause | None:
        """Return the pause of a queue or task, or None."""
        return self._kept.get((kind, name))

    def of(self, queue: str, task: str) -> list[Pause]:
        """Return what holds back the jobs of a task in a queue: at most two pauses."""
        if not self._kept:
            return []
        found = (self._kept.get(("queue", queue)), self._kept.get(("task", task)))
        return [pause for pause in found if pause is not None]

    def over(self, now: float) -> list[Pause]:
        """Return those whose time is over."""
        return [pause for pause in self._kept.values() if pause.until is not None and pause.until <= now]

    def _plan(self) -> None:
        self.next_end = min((pause.until for pause in self._kept.values() if pause.until is not None), default=None)
