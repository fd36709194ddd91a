"""What the broker tells of itself while it runs: the answer of the verb `stats`, and what /metrics shows beside it.

Read-only. It must not know the wire, nor Prometheus; long counts breathe.
"""

from __future__ import annotations

from heapq import nlargest
from operator import itemgetter
from typing import NamedTuple

from greenroom import __version__, views
from greenroom.desk import Desk
from greenroom.distributions import Distribution
from greenroom.leases import RETURNS

#: Queues, and tasks, that /metrics shows one by one: those with the most unfinished jobs. The others are one sum.
SHOWN_ONE_BY_ONE = 50


class Figures(NamedTuple):
    """Everything that can be watched.

    Attributes:
        stats: the answer of the verb `stats`.
        lag, commit_time, batch_rows: seconds, seconds, rows.
        limits: (queue, how full it is) of the fullest with a limit; 1 is the limit.
        queues, tasks: (name, scheduled, queued, running), see views.busiest.
        committing_s: how long the COMMIT that runs now has taken so far; 0: none runs.
        not_ready: why the broker is not ready, or None.
    """

    stats: dict
    lag: Distribution
    commit_time: Distribution
    batch_rows: Distribution
    limits: list[tuple[str, float]]
    queues: list[tuple[str, int, int, int]]
    tasks: list[tuple[str, int, int, int]]
    committing_s: float
    not_ready: str | None


def figures(desk: Desk, not_ready: str | None) -> Figures:
    """Return what /metrics shows. Breathes."""
    engine, breathe = desk.engine, desk.breathe
    fullest = nlargest(SHOWN_ONE_BY_ONE, ((limited.limit.queue, limited.fill) for limited in engine.limits), key=itemgetter(1))
    by_queue = views.grouped_by("queue", engine, breathe)
    queues = views.busiest(engine, by_queue, SHOWN_ONE_BY_ONE, breathe)
    views.forget(by_queue, breathe)
    by_task = views.grouped_by("task", engine, breathe)
    tasks = views.busiest(engine, by_task, SHOWN_ONE_BY_ONE, breathe)
    return Figures(_stats(desk, by_task), desk.lag, desk.commit_time, desk.batch_rows, fullest, queues, tasks,
                   desk.committing_s, not_ready)


def stats(desk: Desk) -> dict[str, object]:
    """Return the answer of the verb `stats`, see docs/protocol_v1.md. Breathes."""
    return _stats(desk, views.grouped_by("task", desk.engine, desk.breathe))


def _stats(desk: Desk, by_task: views.Grouped) -> dict[str, object]:
    engine, tally, now = desk.engine, desk.engine.tally, desk.now()
    shown = {**views.counts(engine, desk.breathe), "tasks": views.tasks(engine, by_task, desk.breathe)}
    views.forget(by_task, desk.breathe)
    shown["memory"].update(
        max_jobs=engine.window.max_jobs, max_bytes=engine.window.max_bytes, granted=tally.grants,
        granted_after_refill=tally.grants_after_refill, refills=tally.refills, refilled=tally.refilled)
    shown.update(
        now=now, started_at=desk.started_at, version=__version__, lanes=len(engine.lanes), store=_store(desk, now),
        hub=_hub(desk, now), requeued_by=dict(engine.requeued_by), damaged=views.damaged(engine),
        returned=sum(engine.requeued_by[reason] for reason in RETURNS),
        paused={kind: sum(pause.kind == kind for pause in engine.pauses) for kind in ("queue", "task")},
        settles={"late": tally.late_settles, "stale": tally.stale_settles, "repeated": tally.repeated_settles},
        repeated_submits=tally.repeated_submits, refused=dict(tally.refused), refused_jobs=dict(tally.refused_jobs),
        schedules={"submitted": tally.schedule_jobs, "skipped": tally.schedule_skips, "missed": tally.schedule_misses},
        reports={"lines": tally.log_lines, "progress": tally.progress_reports}, subscribers=len(desk.subscriptions),
        waiting={"reserves": engine.parked, "waits": desk.waits.open, "answers": desk.batches.held_answers,
                 "answer_bytes": desk.batches.held_bytes, "limited_queues": len(engine.limits),
                 "full_queues": sum(limited.full is not None for limited in engine.limits), "limit_refusals": engine.limits.refused},
        **desk.outside())
    return shown


def _store(desk: Desk, now: float) -> dict[str, object]:
    batches, commit_time, batch_rows = desk.batches, desk.commit_time, desk.batch_rows
    commit_p50, commit_p99 = commit_time.quantiles((0.5, 0.99), now)
    rows_p50, rows_p99 = batch_rows.quantiles((0.5, 0.99), now)
    return {"commits": batches.commits, "rows": batches.rows, "batch_rows": batches.last_rows, "batch_rows_p50": _whole(rows_p50),
            "batch_rows_p99": _whole(rows_p99), "commit_ms": _ms(commit_time.latest), "commit_p50_ms": _ms(commit_p50),
            "commit_p99_ms": _ms(commit_p99), "commit_max_ms": _ms(commit_time.highest), "full": desk.store_full,
            "free_bytes": desk.free_bytes}


def _hub(desk: Desk, now: float) -> dict[str, object]:
    p50, p99 = desk.lag.quantiles((0.5, 0.99), now)
    return {"lag_ms": _ms(desk.lag.latest), "max_lag_ms": _ms(desk.lag.highest), "lag_p50_ms": _ms(p50),
            "lag_p99_ms": _ms(p99)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _whole(rows: float | None) -> int | None:
    return None if rows is None else round(rows)
