"""Why work does not run: the list of whatever can hold a job or a queue back, what opens it, and when. Pure, read-only.

Each gate reads what dispatch itself goes by (pauses, groups, lanes), never a copy. It must not know who asks. A new reason to hold
work back gets a function here, and stands in LANE_GATES or JOB_GATES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

from greenroom.engine import Engine
from greenroom.groups import Group
from greenroom.job import FINISHED_STATES, QUEUED, RETRYABLE_STATES, RUNNING, SCHEDULED, Job, State
from greenroom.lanes import Lane
from greenroom.records import Pause

#: Lanes that are looked at to tell a job's place in line, some µs each; if its workers serve more, the place is "at least".
LANES_COUNTED = 1000
#: Tasks in an explanation of a queue: those with most jobs; of so many it is told what of other queues goes first.
TASKS_SHOWN = 100
TASKS_COMPARED = 10
LANES_PER_BREATH = 1000


class Gate(NamedTuple):
    """Something that holds work back.

    Attributes:
        code: for programs, stable. text: one sentence. opens: what opens it; empty: nothing is closed.
        at: when it opens, as far as known; an estimate for `behind`.
    """

    code: str
    text: str
    opens: str
    at: float | None = None


class Line(NamedTuple):
    """A job's place in line among the jobs that its workers can run."""

    ahead: int  # jobs that come before it, as far as memory knows
    maybe: int  # how many more of those that only the store has may come before it
    rate: float | None  # jobs a second that these workers end; None: not known yet

    @property
    def seconds(self) -> float | None:
        """About how long until its turn comes, or None. With `maybe` it may be longer."""
        return self.ahead / self.rate if self.rate else None


# -- of a lane ----------------------------------------------------------------------------------------------------------------


def _draining(engine: Engine, lane: Lane, now: float) -> Gate | None:
    if engine.draining:
        return Gate("draining", "the broker is stopping and gives out no jobs", "its next start")
    return None


def _paused(pause: Pause | None, now: float) -> Gate | None:
    if pause is None:
        return None
    until = "" if pause.until is None else f" for another {span(pause.until - now)}"
    why = f" ({pause.reason})" if pause.reason else ""
    text = f"the {pause.kind} {pause.name} is paused by {pause.by}{until}{why}"
    return Gate(f"{pause.kind}_paused", text, f"resume {pause.kind} {pause.name}", pause.until)


def _queue_paused(engine: Engine, lane: Lane, now: float) -> Gate | None:
    return _paused(engine.pauses.get("queue", lane.queue), now)


def _task_paused(engine: Engine, lane: Lane, now: float) -> Gate | None:
    return _paused(engine.pauses.get("task", lane.task), now)


def _full(engine: Engine, queue: str, now: float) -> Gate | None:
    """Return the gate that is closed for those who submit; what waits it does not hold back."""
    limited = engine.limits.get(queue)
    if limited is None or limited.full is None:
        return None
    limit = limited.limit
    passing = "" if limited.full == "all" else f"; priorities up to {limit.urgent} still get in"
    why = f" ({limit.reason})" if limit.reason else ""
    text = f"the queue {queue} is full for new jobs: {limited.told()}{passing}; set by {limit.by}{why}"
    seconds = limited.seconds(None, engine.paces, now)
    return Gate("queue_full", text, "jobs of it begin, or a higher limit", None if seconds is None else now + seconds)


def _no_worker(engine: Engine, lane: Lane, now: float) -> Gate | None:
    if any(group.tasks is None or lane.task in group.tasks for group in engine.groups):
        return None
    seen = engine.groups.last_seen(lane.task)
    last = "none has had it since the broker started" if seen is None else (
        f"{seen[0]} had it last, {span(now - seen[1])} ago")
    return Gate("no_worker", f"no connected worker has the task {lane.task}; {last}", f"a worker with the task {lane.task} connects")


def _filtered(engine: Engine, lane: Lane, now: float) -> Gate | None:
    others = sum(group.sessions for group in engine.groups if group.tasks is None or lane.task in group.tasks)
    if not others or any(True for _ in engine.groups.matching(lane)):
        return None
    return Gate("filtered", f"{_count(others, 'worker has', 'workers have')} the task {lane.task}, but none takes from the queue "
                f"{lane.queue}", f"a worker that takes from {lane.queue} connects")


def _no_free_slot(engine: Engine, lane: Lane, now: float) -> Gate | None:
    groups = list(engine.groups.matching(lane))
    if not groups or any(group.waiters for group in groups):
        return None
    workers = sum(group.sessions for group in groups)
    return Gate("no_free_slot", f"{_count(workers, 'worker', 'workers')} can run it, none has a free slot",
                "one of them finishes a job, or another worker connects")


#: Each returns the closed gate, or None. In the order in which a person wants to hear of them.
LANE_GATES: tuple[Callable[[Engine, Lane, float], Gate | None], ...] = (
    _draining, _queue_paused, _task_paused, _no_worker, _filtered, _no_free_slot)


def of_lane(engine: Engine, lane: Lane, now: float) -> list[Gate]:
    """Return the closed gates of all jobs of a task in a queue."""
    found = (gate(engine, lane, now) for gate in LANE_GATES)
    return [gate for gate in found if gate is not None]


# -- of a job -----------------------------------------------------------------------------------------------------------------


def explain_job(engine: Engine, job: Job, now: float) -> dict[str, object]:
    """Return why a job does not run (docs/protocol_v1.md, `explain`). Looks at a bounded number of lanes, and never breathes.

    Args:
        job: as memory has it, or just loaded.
    """
    shown: dict[str, object] = {"job": job.id, "state": job.state.label, "queue": job.queue, "task": job.task, "ahead": None,
                                "ahead_exact": True, "starts_at": None}
    over = _over(engine, job, now)
    full = _full(engine, job.queue, now)
    if over is not None:  # a full queue would refuse its retry
        return {**shown, "gates": _shown([over, full] if full is not None and job.state in RETRYABLE_STATES else [over])}
    lane = job.lane or engine.lanes.get((job.queue, job.task)) or Lane(job.queue, job.task, engine.window, engine.totals)
    gates = of_lane(engine, lane, now)
    if job.state is SCHEDULED:
        gates.insert(0, Gate("not_due", f"{_what_comes(job)} in {span(max(0.0, job.run_at - now))}", "its run_at", job.run_at))
        return {**shown, "gates": _shown([*gates, full] if full else gates)}
    line = place_in_line(engine, lane, job.rank, now, itself=job.id not in engine.jobs)
    shown.update(ahead=line.ahead, ahead_exact=not line.maybe)
    is_next = all(gate.code == "no_free_slot" for gate in gates)
    starts_in = line.seconds if is_next else None
    if starts_in is not None:
        shown["starts_at"] = now + starts_in
    if line.ahead or line.maybe:
        gates.append(_behind(line, now, is_next=is_next))
    elif not gates:
        gates.append(Gate("loading", "it is next: the broker is fetching jobs from its disk", "a moment"))
    return {**shown, "gates": _shown([*gates, full] if full else gates)}


def _what_comes(job: Job) -> str:
    """Return what a scheduled job waits for, as the beginning of a sentence."""
    if not job.failures or job.error is None:
        return "its time comes"
    times = "once" if job.failures == 1 else f"{job.failures} times"
    return f"it failed {times}, the last time with {job.error['name'] or 'no error name'}; its next try comes"


def _over(engine: Engine, job: Job, now: float) -> Gate | None:
    """Return the gate of a job that does not wait."""
    if job.id in engine.aside:
        return Gate("damaged", f"its {engine.aside[job.id]} does not match the checksum on the broker's disk, so it is set aside",
                    "a person: docs/operations.md, Damage")
    if job.state in FINISHED_STATES:
        return Gate("finished", f"it is over: {job.state.label} {span(now - (job.finished_at or now))} ago",
                    "retry it" if job.state in RETRYABLE_STATES else "nothing: submit it again")
    if job.state is RUNNING:
        limits = job.lease.limits if job.lease is not None else None
        told = "; it is over its soft limit, and the worker was told" if limits is not None and limits.is_told else ""
        if job.cancel_requested:
            told = "; its cancel was asked for: it ends as cancelled unless it completes"
        return Gate("running", f"it is running: {job.worker} has had it for {span(now - (job.started_at or now))}{told}", "")
    return None


def _behind(line: Line, now: float, *, is_next: bool) -> Gate:
    least = "at least " if line.maybe else ""
    text = f"{least}{_count(line.ahead, 'job comes', 'jobs come')} before it"
    if line.maybe and not line.ahead:
        text = "it is the first in memory; jobs that only the disk has may come before it"
    if line.seconds is None or not is_next:
        return Gate("behind", text, "they are done")
    return Gate("behind", f"{text}, and its workers end {line.rate:.3g} a second: its turn comes in {least}about {span(line.seconds)}",
                "they are done", now + line.seconds)


def place_in_line(engine: Engine, lane: Lane, rank: int, now: float, *, itself: bool = False) -> Line:
    """Return the place of a rank among the queued jobs that those can run who can run the lane.

    Args:
        itself: the job of this rank is one that only the store has.
    """
    lanes: dict[Lane, None] = {lane: None}
    for group in engine.groups.matching(lane):
        lanes.update(dict.fromkeys(islice(group.lanes, LANES_COUNTED)))
        if len(lanes) > LANES_COUNTED:
            break
    ahead = maybe = 0
    for other in islice(lanes, LANES_COUNTED):
        known, unknown = other.ahead_of(rank)
        ahead += known
        maybe += unknown - (itself and other is lane and unknown > 0)
    if len(lanes) >= LANES_COUNTED:
        maybe = max(maybe, 1)
    return Line(ahead, maybe, engine.paces.rate(lanes, now))


# -- of a queue ---------------------------------------------------------------------------------------------------------------


def explain_queue(engine: Engine, queue: str, now: float, breathe: Callable[[], None]) -> dict[str, object]:
    """Return why the throughput of a queue is what it is (docs/protocol_v1.md, `explain`). Breathes."""
    lanes: list[Lane] = []
    for number, lane in enumerate(list(engine.lanes.values()), 1):
        if lane.queue == queue:
            lanes.append(lane)
        if number % LANES_PER_BREATH == 0:
            breathe()
    sums = {state: sum(lane.counts[state] for lane in lanes) for state in (SCHEDULED, QUEUED, RUNNING)}
    gates = [gate for gate in (_draining(engine, lanes[0], now) if lanes else None, _paused(engine.pauses.get("queue", queue), now),
                              _full(engine, queue, now)) if gate]
    if not sums[QUEUED]:
        also = f"; {sums[SCHEDULED]} wait for their time" if sums[SCHEDULED] else ""
        gates.append(Gate("empty", f"no job is queued in {queue}{also}", "a submit, or the time of a scheduled job"))
    tasks = []
    for number, lane in enumerate(nlargest(TASKS_SHOWN, lanes, key=_most_queued)):
        tasks.append(_task(engine, lane, now, compare=number < TASKS_COMPARED))
        breathe()
    groups: set[Group] = {group for lane in lanes for group in engine.groups.matching(lane)}
    return {"queue": queue, **{state.label: sums[state] for state in sums}, "rate": engine.paces.rate(lanes, now),
            "workers": sum(group.sessions for group in groups), "asking": sum(len(group.waiters) for group in groups),
            "gates": _shown(gates), "tasks": tasks, "tasks_total": len(lanes)}


def _task(engine: Engine, lane: Lane, now: float, *, compare: bool) -> dict[str, object]:
    groups = list(engine.groups.matching(lane))
    gates = of_lane(engine, lane, now) if lane.counts[QUEUED] else []
    rank = lane.best_rank()
    if compare and groups and rank is not None and not lane.is_closed:
        line = place_in_line(engine, lane, rank, now)
        if line.ahead:
            gates.append(Gate("behind", f"{_count(line.ahead, 'job', 'jobs')} of other tasks and queues, that the same workers run, "
                              f"{'comes' if line.ahead == 1 else 'come'} before its first", "they are done"))
    return {"task": lane.task, "scheduled": lane.counts[SCHEDULED], "queued": lane.counts[QUEUED], "running": lane.counts[RUNNING],
            "rate": engine.paces.rate((lane,), now), "workers": sum(group.sessions for group in groups),
            "asking": sum(len(group.waiters) for group in groups), "gates": _shown(gates)}


def _most_queued(lane: Lane) -> tuple[int, int]:
    return lane.counts[State.QUEUED], lane.counts[State.RUNNING]


def _shown(gates: Iterable[Gate]) -> list[dict[str, object]]:
    return [gate._asdict() for gate in gates]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def span(seconds: float) -> str:
    """Return a time as people say it: `40 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`."""
    left = max(0, round(seconds))
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            rest = left % size // small
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"
