"""What the engine counts of itself, for those who watch it run: plain integers since the start.

Must not know how they are shown. Nothing here costs a job more than an addition.
"""

from __future__ import annotations


class Tally:
    """Counters that only grow.

    Attributes:
        grants: jobs given to workers. grants_after_refill: those of them for which a reserve had to wait for the store.
        refills: looks into the store for a lane's window. refilled: jobs that they brought.
        late_settles: accepted after their lease had ended. stale_settles: refused with LEASE_LOST. repeated_settles: answered REPEATED.
        repeated_submits: answered from memory of their submission id.
        schedule_jobs: submitted by schedules. schedule_skips: runs left out, as the previous job was unfinished. schedule_misses: how often
            a schedule came so late that its policy for missed runs decided.
        log_lines, progress_reports: taken from runs.
        refused: code -> requests answered with an error. refused_jobs: code -> jobs refused in a submit that took others.
    """

    __slots__ = ("grants", "grants_after_refill", "refills", "refilled", "late_settles", "stale_settles", "repeated_settles",
                 "repeated_submits", "schedule_jobs", "schedule_skips", "schedule_misses", "log_lines", "progress_reports", "refused",
                 "refused_jobs")

    def __init__(self) -> None:
        self.grants = 0
        self.grants_after_refill = 0
        self.refills = 0
        self.refilled = 0
        self.late_settles = 0
        self.stale_settles = 0
        self.repeated_settles = 0
        self.repeated_submits = 0
        self.schedule_jobs = 0
        self.schedule_skips = 0
        self.schedule_misses = 0
        self.log_lines = 0
        self.progress_reports = 0
        self.refused: dict[str, int] = {}  # codes are those of errors.py, so there are few
        self.refused_jobs: dict[str, int] = {}

    def refuse(self, code: str) -> None:
        """Count a request that is answered with an error."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def refuse_job(self, code: str) -> None:
        """Count a job of a submit that is refused by itself."""
        self.refused_jobs[code] = self.refused_jobs.get(code, 0) + 1
