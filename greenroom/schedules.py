"""Schedules: rules that submit a job again and again. When each is due, what was missed, what is shown. Pure: `now` in, decisions out.

Here `now` is always the wall clock of the machine, in seconds since 1970: that is what a cron line means. What is done with a decision is
in schedule_runs.py, how times recur in recurrence.py.

When the wall clock is set forward, or the broker was down, what lies between was missed: the schedule's policy says what becomes of it.
When it is set back, an interval is not waited for longer than once; a cron line runs no time a second time if the clock went back by three
hours at most, and is planned anew if by more.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from greenroom.errors import FullError, GreenroomError, InvalidError, NotFoundError
from greenroom.job import OPTIONS, Extras, NewJob, parse_new_job
from greenroom.records import StoredSchedule
from greenroom.recurrence import Every, Recurrence, parse_recurrence
from greenroom.schedule_limits import MAX_ALL_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, MAX_SCHEDULES

#: A run that comes later than this was missed. Sooner it is on time: a broker that restarts needs a few seconds.
LATE_S = 60.0
#: The clock set back by so much at most: times that ran are not run again. Debian's cron draws the line there.
REPEATED_S = 3 * 3600.0
#: The wall clock and the monotonic one never agree to the microsecond.
STEP_BACK_S = 1.0
#: Runs shown.
SHOWN_RUNS = 10

#: What of a job a schedule may not say: it says itself when.
_NOT_HERE = ("delay", "run_at")
_KEPT = ("cron", "every", "timezone", "overlap", "missed", "missed_max")


class Schedule:
    """One rule, and how far it has come."""

    __slots__ = ("name", "definition", "new_job", "when", "next_at", "planned_at", "last_at", "last_job", "runs", "skipped", "paused_at",
                 "reason", "broken", "due_at", "_shown")

    def __init__(self, name: str, definition: dict[str, object], new_job: NewJob | None, when: Recurrence | None) -> None:
        self.name = name
        self.definition = definition  # job (options without payload) and _KEPT: what JSON can carry
        self.new_job = new_job  # what is submitted; None: broken
        self.when = when
        self.next_at: float | None = None  # the next planned time; None: paused, broken, or no more
        self.planned_at: float | None = None  # the latest planned time that is over
        self.last_at: float | None = None  # when it submitted last
        self.last_job: int | None = None  # what it submitted last
        self.runs = 0
        self.skipped = 0  # runs left out as the previous job was unfinished
        self.paused_at: float | None = None
        self.reason = ""  # of the pause
        self.broken: str | None = None  # why it can't run: a sentence
        self.due_at: float | None = None  # when somebody looks at it: next_at, or later if there was no room
        self._shown: tuple[float, list[float]] | None = None

    @property
    def payload(self) -> bytes:
        """What each job gets; empty for a broken schedule."""
        return b"" if self.new_job is None else self.new_job.payload

    def due(self, now: float) -> list[float]:
        """Return the planned times for which jobs are to be submitted now, by the policy for missed ones."""
        if self.next_at is None or self.next_at > now:
            return []
        policy = self.definition["missed"]
        runs = self.when.latest(self.next_at, now, self.definition["missed_max"] if policy == "all" else 1)
        return [] if policy == "skip" and runs and now - runs[-1] > LATE_S else runs

    def advance(self, now: float) -> None:
        """Plan the next run, after all that are due were dealt with."""
        passed = self.when.latest(self.next_at, now, 1)
        self.planned_at = passed[-1] if passed else self.next_at
        self.next_at = self.when.next_after(self.planned_at if isinstance(self.when, Every) else now)

    def submitted(self, ids: list[int], now: float) -> None:
        """Note what it submitted."""
        self.runs += len(ids)
        self.last_job = ids[-1]
        self.last_at = now

    def replan(self, now: float) -> bool:
        """Plan anew if the clock was set back since, or a time zone's rules changed; returns whether that moved the next run."""
        if self.next_at is None or self.next_at <= now:
            return False
        if isinstance(self.when, Every):
            wanted: float | None = min(self.next_at, now + self.when.seconds)
        else:
            has_run = self.planned_at is not None and now < self.planned_at <= now + REPEATED_S
            wanted = self.when.next_after(self.planned_at if has_run else now)
        if wanted == self.next_at:
            return False
        self.next_at = wanted
        return True

    def next_runs(self, breathe: Callable[[], None]) -> list[float]:
        """Return the next ten planned times; calls `breathe` between them."""
        first = self.next_at
        if first is None:
            return []
        if self._shown is None or self._shown[0] != first:
            runs = [first]
            while len(runs) < SHOWN_RUNS:
                breathe()
                following = self.when.next_after(runs[-1])
                if following is None:
                    break
                runs.append(following)
            self._shown = (first, runs)
        return self._shown[1]

    def stored(self) -> StoredSchedule:
        """Return what the store keeps."""
        return StoredSchedule(
            self.name, json.dumps(self.definition), self.payload, self.next_at, self.planned_at, self.last_at, self.last_job, self.runs,
            self.skipped, self.paused_at, self.reason)

    def view(self, next_runs: list[float], *, with_payload: bool = False) -> dict[str, object]:
        """Return the map of docs/protocol_v1.md, `schedules`."""
        shown: dict[str, object] = {"name": self.name, "error": self.broken}
        if self.broken is not None:
            return shown
        shown.update({
            "job": self.definition["job"], "payload_bytes": len(self.payload), **{name: self.definition[name] for name in _KEPT},
            "next_at": self.next_at, "next_runs": next_runs, "last_at": self.last_at, "last_job": self.last_job, "runs": self.runs,
            "skipped": self.skipped, "paused_at": self.paused_at, "reason": self.reason})
        if with_payload:
            shown["payload"] = self.payload
        return shown


class Schedules:
    """All schedules, by name and by when they are due."""

    def __init__(self) -> None:
        self._by_name: dict[str, Schedule] = {}
        self._names: list[str] = []  # sorted
        self._payload_bytes = 0
        self._heap: list[tuple[float, int, Schedule]] = []  # an entry counts while its time is the schedule's due_at
        self._order = 0
        self._seen_now: float | None = None
        self._to_replan: deque[Schedule] = deque()

    def __len__(self) -> int:
        return len(self._by_name)

    def restore(self, stored: Iterable[StoredSchedule], now: float) -> None:
        """Start from what the store found. What can't run any more is kept, and says why."""
        for record in stored:
            schedule = _restored(record, now)
            self._add(schedule)
            self._to_replan.append(schedule)
            self._arm(schedule)

    def broken(self) -> list[Schedule]:
        """Return those that can't run."""
        return [schedule for schedule in self._by_name.values() if schedule.broken is not None]

    # -- changes ------------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Schedule:
        """Return a schedule. Raises NotFoundError."""
        schedule = self._by_name.get(name)
        if schedule is None:
            raise NotFoundError(f"no schedule {name}", field="name")
        return schedule

    def is_there(self, schedule: Schedule) -> bool:
        """Tell whether this very one was neither deleted nor replaced."""
        return self._by_name.get(schedule.name) is schedule

    def put(self, name: str, fields: dict[str, object], now: float) -> tuple[Schedule, bool]:
        """Make a schedule, or replace the one of this name; returns it, and whether it is new.

        What a replaced one has done stays: its counts, its last job, its pause. Its next run stays if the new one says the same about
        when: whoever puts all schedules at each deployment would else put off the long ones for ever.

        Args:
            fields: `job` (a map as in a submit, with payload) and the other fields of the verb `schedule_put`.

        Raises InvalidError, TooLargeError or FullError, with nothing changed.
        """
        schedule = _parse(name, fields, now)
        before = self._by_name.get(name)
        if before is None and len(self._by_name) >= MAX_SCHEDULES:
            raise FullError(f"there are {MAX_SCHEDULES} schedules, the cap", field="name")
        size = self._payload_bytes + len(schedule.payload) - (0 if before is None else len(before.payload))
        if size > MAX_ALL_PAYLOAD_BYTES:
            raise FullError(f"the payloads of all schedules are at their cap of {MAX_ALL_PAYLOAD_BYTES} bytes", field="payload")
        schedule.next_at = schedule.when.next_after(now)
        if before is not None:
            if before.broken is None:
                _take_over(schedule, before)
            self._remove(before)
        self._add(schedule)
        self._arm(schedule)
        return schedule, before is None

    def delete(self, name: str) -> None:
        """Remove a schedule; the jobs that it submitted stay. Raises NotFoundError."""
        self._remove(self.get(name))

    def pause(self, name: str, reason: str, now: float) -> Schedule:
        """Submit nothing until `resume`; pausing again changes the reason. Raises NotFoundError or InvalidError."""
        schedule = self.sound(name)
        schedule.paused_at = now if schedule.paused_at is None else schedule.paused_at
        schedule.reason = reason
        schedule.next_at = None
        self._arm(schedule)
        return schedule

    def resume(self, name: str, now: float) -> Schedule:
        """Go on with the next planned time; those in the pause were not missed. Raises NotFoundError or InvalidError."""
        schedule = self.sound(name)
        if schedule.paused_at is not None:
            schedule.paused_at, schedule.reason = None, ""
            schedule.next_at = schedule.when.next_after(now)
            self._arm(schedule)
        return schedule

    def sound(self, name: str) -> Schedule:
        """Return a schedule that can run. Raises NotFoundError or InvalidError."""
        schedule = self.get(name)
        if schedule.broken is not None:
            raise InvalidError(f"schedule {name} can't run: {schedule.broken}; put it again or delete it", field="name")
        return schedule

    def page(self, after: str | None, limit: int) -> tuple[list[Schedule], str | None]:
        """Return schedules by name, and the name to pass as `after` for the next page or None."""
        begin = 0 if after is None else bisect_right(self._names, after)
        names = self._names[begin:begin + limit]
        return [self._by_name[name] for name in names], names[-1] if begin + limit < len(self._names) else None

    def _add(self, schedule: Schedule) -> None:
        self._by_name[schedule.name] = schedule
        insort(self._names, schedule.name)
        self._payload_bytes += len(schedule.payload)

    def _remove(self, schedule: Schedule) -> None:
        del self._by_name[schedule.name]
        del self._names[bisect_left(self._names, schedule.name)]
        self._payload_bytes -= len(schedule.payload)
        schedule.due_at = None

    # -- time ---------------------------------------------------------------------------------------------------------------

    def next_due(self, now: float) -> float | None:
        """Return when there is something to do, or None."""
        if self._to_replan:
            return now
        while self._heap and self._heap[0][0] != self._heap[0][2].due_at:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def look_at_clock(self, now: float) -> None:
        """Notice that the wall clock was set back: all schedules are then planned anew, some at a time, by `pop_replan`."""
        if self._seen_now is not None and now < self._seen_now - STEP_BACK_S:
            self._to_replan = deque(self._by_name.values())
        self._seen_now = now

    def pop_replan(self) -> Schedule | None:
        """Return a schedule whose plan must be looked at, or None."""
        while self._to_replan:
            schedule = self._to_replan.popleft()
            if self.is_there(schedule):
                return schedule
        return None

    def pop_due(self, now: float) -> Schedule | None:
        """Take out a schedule that is due, or return None. `arm` or `postpone` it when it was dealt with."""
        due = self.next_due(now) if not self._to_replan else None
        if due is None or due > now:
            return None
        schedule = heappop(self._heap)[2]
        schedule.due_at = None
        return schedule

    def arm(self, schedule: Schedule) -> None:
        """Have it found when its next run is due."""
        if self.is_there(schedule):
            self._arm(schedule)

    def postpone(self, schedule: Schedule, until: float) -> None:
        """Look at a schedule again at that time, as there was no room for its job."""
        if self.is_there(schedule) and schedule.next_at is not None:
            self._push(schedule, until)

    def _arm(self, schedule: Schedule) -> None:
        schedule.due_at = None
        if schedule.next_at is not None:
            self._push(schedule, schedule.next_at)

    def _push(self, schedule: Schedule, at: float) -> None:
        if len(self._heap) > 64 + 2 * len(self._by_name):
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].due_at]
            heapify(self._heap)
        self._order += 1
        schedule.due_at = at
        heappush(self._heap, (at, self._order, schedule))


def _parse(name: str, fields: dict[str, object], now: float) -> Schedule:
    given = fields["job"]
    for option in _NOT_HERE:
        if given.get(option) is not None:
            raise InvalidError(f"{option} is not for a schedule, which says itself when", field=option)
    new_job = parse_new_job(given, MAX_PAYLOAD_BYTES)
    if new_job.options.extras is not None:
        _check_duplicates(new_job.options.extras)
    when = parse_recurrence(fields["cron"], fields["every"], fields["timezone"], now)
    if fields["missed"] == "all" and fields["overlap"] != "queue":
        raise InvalidError("missed all goes with overlap queue: the jobs come at once", field="missed")
    kept = {option: given[option] for option in OPTIONS if option != "payload" and given.get(option) is not None}
    return Schedule(name, {"job": kept, **{name: fields[name] for name in _KEPT}}, new_job, when)


def _check_duplicates(extras: Extras) -> None:
    """Refuse what a schedule says in its own way: what becomes of the previous job when the next is due."""
    for option, value in (("unique_mode", "debounce"), ("on_duplicate", "replace")):
        if getattr(extras, option) == value:
            raise InvalidError(f"{option} {value} is not for a schedule, whose overlap says what becomes of the previous job", field=option)


def _take_over(schedule: Schedule, before: Schedule) -> None:
    for attribute in ("planned_at", "last_at", "last_job", "runs", "skipped", "paused_at", "reason"):
        setattr(schedule, attribute, getattr(before, attribute))
    if before.paused_at is not None or all(schedule.definition[name] == before.definition[name] for name in ("cron", "every", "timezone")):
        schedule.next_at = before.next_at


def _restored(record: StoredSchedule, now: float) -> Schedule:
    try:
        if record.is_damaged:
            raise InvalidError("its row on disk does not match its checksum")
        definition = json.loads(record.definition)
        schedule = _parse(record.name, {**definition, "job": {**definition["job"], "payload": record.payload}}, now)
    except GreenroomError as exc:
        schedule = Schedule(record.name, {}, None, None)
        schedule.broken = exc.message
        return schedule
    schedule.next_at, schedule.planned_at, schedule.last_at, schedule.last_job = record[3:7]
    schedule.runs, schedule.skipped, schedule.paused_at, schedule.reason = record[7:11]
    return schedule
