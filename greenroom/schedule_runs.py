"""Schedules at work: what is due is submitted, and that is recorded in the transaction that holds the job. No hub, thread or clock of its own.

When something is due and what its policies say is decided in schedules.py; this is where those decisions meet the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from greenroom.errors import DrainingError, FullError, GreenroomError, StoreFullError
from greenroom.job import FINISHED_STATES, Job
from greenroom.records import Lost, StoredSchedule
from greenroom.schedules import LATE_S, Schedule, Schedules
from greenroom.unique import Duplicate

if TYPE_CHECKING:
    from greenroom.desk import Desk

log = logging.getLogger(__name__)

#: Schedules looked at in one tick, at 0.1 to 0.3 ms each; the next tick comes at once. A slow cron line ends a tick sooner.
PER_TICK = 20
#: Where there was no room for a job, or a bug of ours stood in its way, it is tried again so much later.
AGAIN_S = 1.0
AGAIN_AFTER_BUG_S = 60.0


class ScheduleRuns:
    """All schedules of a broker, and what makes them run.

    Attributes:
        table: the schedules themselves; whoever changes one there says so with `changed`.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.table = Schedules()

    def restore(self, stored: Iterable[StoredSchedule]) -> None:
        """Start from what the store found."""
        self.table.restore(stored, self._desk.wall())
        for schedule in self.table.broken():
            log.error("schedule %s can't run: %s", schedule.name, schedule.broken)

    def changed(self, schedule: Schedule) -> None:
        """Have a schedule written as it is now."""
        self._desk.batches.record_schedule(schedule.name, schedule.stored())

    def check_open(self) -> None:
        """Raise DrainingError, BusyError or StoreFullError while nothing new is taken."""
        if self._desk.engine.draining:
            raise DrainingError("the broker is stopping", retry_after_s=1.0)
        self._desk.check_room()
        if self._desk.store_full:
            raise StoreFullError("the disk of the broker is nearly full", retry_after_s=10.0)

    # -- time ---------------------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when `tick` has something to do, in the desk's time, or None."""
        if not len(self.table):
            return None
        wall = self._desk.wall()
        due = self.table.next_due(wall)
        return None if due is None else self._desk.now() + due - wall

    def tick(self) -> None:
        """Submit what is due, as far as a few milliseconds allow."""
        if not len(self.table):
            return
        desk, wall = self._desk, self._desk.wall()
        self.table.look_at_clock(wall)
        desk.begin_turn()
        for _ in range(PER_TICK):
            if (schedule := self.table.pop_replan()) is not None:
                if schedule.replan(wall):
                    self.changed(schedule)
                self.table.arm(schedule)
            elif (schedule := self.table.pop_due(wall)) is not None:
                self._run(schedule, None)
            else:
                break
            if desk.is_breath_due:
                break

    # -- running ------------------------------------------------------------------------------------------------------------

    def run_now(self, schedule: Schedule) -> int:
        """Submit its job once, now, whatever its plan and its previous job; returns the id. Raises as a submit does."""
        self.check_open()
        ids = self._submit(schedule, 1)
        schedule.submitted(ids, self._desk.wall())
        self.changed(schedule)
        self._desk.after_call()
        return ids[0]

    def _run(self, schedule: Schedule, found: Job | Lost | None) -> None:
        """Deal with one that is due.

        Args:
            found: its previous job, if that had to be loaded.
        """
        try:
            self._run_or_look_up(schedule, found)
        except GreenroomError as exc:
            log.info("schedule %s finds no room for its job and tries again: %s", schedule.name, exc.message)
            after_s = exc.retry_after_s or AGAIN_S
            self.table.postpone(schedule, self._desk.wall() + (max(AGAIN_S, after_s) if isinstance(exc, FullError) else after_s))
        except Exception:
            # A bug must cost this schedule only: we are inside the timer or the pump, whose end is the broker's.
            log.exception("schedule %s met a bug of the broker", schedule.name)
            self.table.postpone(schedule, self._desk.wall() + AGAIN_AFTER_BUG_S)

    def _run_or_look_up(self, schedule: Schedule, found: Job | Lost | None) -> None:
        desk, wall = self._desk, self._desk.wall()
        if schedule.next_at is None or schedule.next_at > wall:
            self.table.arm(schedule)  # it was paused, or the clock set back, while its previous job was looked up
            return
        count = len(schedule.due(wall))
        overlap = schedule.definition["overlap"]
        if count and schedule.last_job is not None and overlap != "queue":
            if found is None:
                found = desk.in_memory(schedule.last_job)
            if found is None:
                self._look_up(schedule, schedule.last_job)
                return
            if _is_unfinished(found):
                if overlap == "skip":
                    schedule.skipped += 1
                    desk.engine.tally.schedule_skips += 1
                    count = 0
                else:
                    self.check_open()
                    options, payload = schedule.new_job.options, schedule.payload
                    desk.engine.check_room(1, len(payload))
                    desk.engine.check_limit(options.queue, options.priority, 1, len(payload), len(payload), desk.now(), instead_of=found)
                    desk.engine.cancel(found.id, desk.now(), found)
        if count:
            self.check_open()
            schedule.submitted(self._submit(schedule, count), wall)
        desk.engine.tally.schedule_misses += wall - schedule.next_at > LATE_S
        schedule.advance(wall)
        self.changed(schedule)
        self.table.arm(schedule)
        desk.after_call()

    def _submit(self, schedule: Schedule, count: int) -> list[int]:
        """Hand in the job so many times. If the queue's limit lets only some in, the other runs are left out; if none, it raises that."""
        desk = self._desk
        outcomes = desk.engine.submit([schedule.new_job] * count, desk.now())
        taken = [outcome for outcome in outcomes if not isinstance(outcome, GreenroomError)]
        if not taken:
            raise outcomes[0]
        schedule.skipped += count - len(taken)
        desk.engine.tally.schedule_skips += count - len(taken)
        desk.batches.note_payloads(count * len(schedule.payload))
        desk.engine.tally.schedule_jobs += sum(not isinstance(outcome, Duplicate) for outcome in taken)
        return [outcome.job if isinstance(outcome, Duplicate) else outcome for outcome in taken]

    def _look_up(self, schedule: Schedule, job_id: int) -> None:
        """Load the previous job, and go on when it is there."""
        def took(jobs: dict[int, Job | Lost]) -> None:
            if self.table.is_there(schedule):
                self._run(schedule, self._desk.as_memory_knows(jobs[job_id]))

        self._desk.load([job_id], took, lambda: None)


def _is_unfinished(job: Job | Lost) -> bool:
    # One that is damaged on disk was set aside: it never ends, and would hold up its schedule for ever.
    return isinstance(job, Job) and job.damage is None and job.state not in FINISHED_STATES
