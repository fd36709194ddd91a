"""The engine's rules for those who steer it: queues and tasks that are paused and resumed.

Pure, like engine.py, which builds on this class. A pause closes whole lanes: a closed lane belongs to no reserve group, so neither
its jobs nor those of other lanes are touched, and what is not paused pays nothing.
"""

from __future__ import annotations

from greenroom.errors import FullError
from greenroom.lanes import Lane
from greenroom.leases import LeaseRules
from greenroom.pauses import MAX_PAUSES
from greenroom.records import Pause


class ControlRules(LeaseRules):
    """See the module."""

    def pause(self, pause: Pause, now: float) -> None:
        """Hold back the jobs of a queue or task. Those that run go on; one that comes back waits. Replaces a pause that there is.

        Raises FullError beyond MAX_PAUSES.
        """
        if self.pauses.get(pause.kind, pause.name) is None and len(self.pauses) >= MAX_PAUSES:
            raise FullError(f"{len(self.pauses)} queues and tasks are paused, the cap", field=pause.kind)
        self.pauses.put(pause)
        self.effects.pauses[pause.kind, pause.name] = pause
        groups = self.groups.close([lane for lane in self._lanes_of(pause.kind, pause.name) if not lane.is_closed])
        # Reserves may have waited for one of these lanes, to be read from the store, although others had jobs: one lane stands for
        # all of its group.
        self._match({next(iter(group.lanes)): None for group in groups if group.waiters and group.lanes}, now, was_blocked=True)
        self._answer_all_late(groups, now)

    def resume(self, kind: str, name: str, now: float) -> bool:
        """End a pause; returns False if there was none. A lane that something else holds back too stays closed."""
        if self.pauses.end(kind, name) is None:
            return False
        self.effects.pauses[kind, name] = None
        lanes = [lane for lane in self._lanes_of(kind, name) if not self.pauses.of(lane.queue, lane.task)]
        self.groups.open(lanes)
        self._match(dict.fromkeys(lanes), now)
        return True

    def _end_pauses(self, now: float) -> None:
        """Resume what was paused for a time."""
        for pause in self.pauses.over(now):
            self.resume(pause.kind, pause.name, now)

    def _lanes_of(self, kind: str, name: str) -> list[Lane]:
        return [lane for lane in self.lanes.values() if (lane.queue if kind == "queue" else lane.task) == name]
