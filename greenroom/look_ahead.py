"""How many jobs a worker reserves beyond its free slots: many while its jobs are quick, none while they are not.

Pure arithmetic; the caller brings the time (monotonic seconds). Must not know the connection or the pool.
"""

from __future__ import annotations

#: While a job occupies its slot for less than this, jobs are reserved ahead: so many as are begun within AHEAD_WORK_S, at least as many
#: as there are slots. A round trip with its COMMIT takes 2 to 10 ms, in which a slot runs a hundred jobs that do nothing: with as many
#: ahead as slots 2,000 jobs/s, so 8,100. For jobs that sleep 10 ms it is 330 a second of 400, without it 200.
QUICK_S = 0.02
AHEAD_WORK_S = 0.02
MOST_AHEAD = 500

#: What had to go back cuts the most that is reserved ahead to so much of it, and each job that ends raises it again by so much. With a
#: slow job among N quick ones it settles at some N / 12: about one job in twelve goes back, not most of them.
CUT_TO = 0.25
REGAIN = 1 / 16


class LookAhead:
    """What the latest jobs tell about the next ones."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._most = float(MOST_AHEAD)
        self._pace_s = 1.0  # seconds from one outcome to the next while the pool has work, a moving average
        self._busy_since = 0.0  # when the latest outcomes were taken, or the pool got work after it had none

    def began(self, now: float) -> None:
        """Note that the pool got work after it had none."""
        self._busy_since = now

    def ended(self, count: int, now: float) -> None:
        """Note that so many jobs ended since the latest call."""
        # Every job counts for a fifth, so it takes some 25 quick ones before reserving ahead begins if they come one by one.
        self._pace_s += min(1.0, 0.2 * count) * ((now - self._busy_since) / count - self._pace_s)
        self._busy_since = now
        self._most = min(MOST_AHEAD, self._most + REGAIN * count)

    def gave_back(self) -> None:
        """Note that what was reserved ahead did not begin in time: jobs are not quick any more."""
        self._pace_s = 1.0
        self._most = max(float(self._slots), self._most * CUT_TO)

    @property
    def jobs(self) -> int:
        """How many jobs to hold beyond those that occupy the slots."""
        if self._pace_s * self._slots >= QUICK_S:
            return 0
        return max(self._slots, min(int(self._most), int(AHEAD_WORK_S / self._pace_s)))
