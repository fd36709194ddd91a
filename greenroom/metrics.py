"""What the broker shows at /metrics, in Prometheus' text form. The only module that knows prometheus-client.

METRICS is the list, docs/operations.md its documentation, and a test compares the two. Gets figures; must not know where they come
from. No label takes a value that peers choose freely, but for names of queues and tasks, and of those there are at most
SHOWN_ONE_BY_ONE each (figures.py).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from greenroom.distributions import Distribution
from greenroom.errors import WIRE_ERRORS
from greenroom.job import REQUEUES
from greenroom.leases import RETURNS
from greenroom.tls import REJECTION_REASONS

if TYPE_CHECKING:
    from greenroom.figures import Figures

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

#: A number; one for each value of the labels; a distribution; None: nothing to show.
Shown = float | int | None | list[tuple[tuple[str, ...], float | int | None]] | Distribution

FINISHED = ("completed", "failed", "cancelled", "expired")
UNFINISHED = ("scheduled", "queued", "running")
#: Why connections are refused at the door, and why single jobs of a submit are.
REJECTIONS = (*REJECTION_REASONS, "too_many")
JOB_ERRORS = ("INVALID", "TOO_LARGE", "FULL")
MS = 0.001
#: Formatting a number takes some 5 µs, and the largest families have 150.
FAMILIES_PER_BREATH = 6


class Family(NamedTuple):
    """One metric as it is documented, and how it is read."""

    name: str
    kind: str  # counter, gauge, histogram
    labels: tuple[str, ...]
    doc: str
    read: Callable[[Figures], Shown]


def _stat(*path: str, scale: float = 1.0) -> Callable[[Figures], Shown]:
    """Read a number of `stats`; one that is not there is not shown."""
    def read(figures: Figures) -> Shown:
        value: object = figures.stats
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else value * scale
    return read


def _map(path: str, keys: Iterable[str]) -> Callable[[Figures], Shown]:
    """Read a map of `stats`: its keys are the values of the label. All are shown, so that the first event is seen as a change."""
    def read(figures: Figures) -> Shown:
        found = figures.stats.get(path, {})
        return [((key.replace(" ", "_"),), found.get(key, 0)) for key in keys]
    return read


def _percentiles(path: str, p50: str, p99: str, scale: float) -> Callable[[Figures], Shown]:
    def read(figures: Figures) -> Shown:
        values = figures.stats[path]
        return [((share,), None if values[key] is None else values[key] * scale) for share, key in (("50", p50), ("99", p99))]
    return read


def _names(entries: Iterable[tuple[str, int, int, int]]) -> Shown:
    return [((name, state), number) for name, *numbers in entries for state, number in zip(UNFINISHED, numbers)]


def _sessions(figures: Figures) -> Shown:
    stats = figures.stats
    return [(("client",), stats["clients"]), (("worker",), stats["connections"] - stats["clients"])]


def _workers(figures: Figures) -> Shown:
    stats = figures.stats
    return [(("idle",), stats["idle"]), (("busy",), stats["busy"]), (("lost",), stats["workers"] - stats["idle"] - stats["busy"])]


METRICS: tuple[Family, ...] = (
    Family("greenroom_build_info", "gauge", ("version", "python"), "always 1; which versions run",
           lambda f: [((f.stats["version"], platform.python_version()), 1)]),
    Family("greenroom_start_time_seconds", "gauge", (), "when the broker started, seconds since 1970", _stat("started_at")),
    Family("greenroom_uptime_seconds", "gauge", (), "how long it has run", lambda f: f.stats["now"] - f.stats["started_at"]),
    Family("greenroom_ready", "gauge", (), "1 if /readyz says ready, else 0", lambda f: int(f.not_ready is None)),
    # -- the hub and the store
    Family("greenroom_hub_lag_seconds", "histogram", (), "how late timers come: how long something held the hub",
           lambda f: f.lag),
    Family("greenroom_hub_lag_latest_seconds", "gauge", (), "how late the latest timer came", _stat("hub", "lag_ms", scale=MS)),
    Family("greenroom_hub_lag_max_seconds", "gauge", (), "how late the latest of all timers came since the start",
           _stat("hub", "max_lag_ms", scale=MS)),
    Family("greenroom_hub_lag_last_minute_seconds", "gauge", ("percentile",),
           "how late 50 % and 99 % of the last minute's timers came at most",
           _percentiles("hub", "lag_p50_ms", "lag_p99_ms", MS)),
    Family("greenroom_commit_seconds", "histogram", (), "how long a COMMIT takes: the disk's fsync", lambda f: f.commit_time),
    Family("greenroom_commit_latest_seconds", "gauge", (), "how long the latest COMMIT took",
           _stat("store", "commit_ms", scale=MS)),
    Family("greenroom_commit_max_seconds", "gauge", (), "how long the slowest COMMIT since the start took",
           _stat("store", "commit_max_ms", scale=MS)),
    Family("greenroom_commit_last_minute_seconds", "gauge", ("percentile",),
           "how long 50 % and 99 % of the last minute's COMMITs took at most",
           _percentiles("store", "commit_p50_ms", "commit_p99_ms", MS)),
    Family("greenroom_commit_running_seconds", "gauge", (), "how long the COMMIT that runs now has taken so far; 0: none",
           lambda f: f.committing_s),
    Family("greenroom_batch_rows", "histogram", (), "rows in one COMMIT", lambda f: f.batch_rows),
    Family("greenroom_batch_latest_rows", "gauge", (), "rows in the latest COMMIT", _stat("store", "batch_rows")),
    Family("greenroom_batch_last_minute_rows", "gauge", ("percentile",),
           "rows in 50 % and 99 % of the last minute's COMMITs at most",
           _percentiles("store", "batch_rows_p50", "batch_rows_p99", 1)),
    Family("greenroom_commits_total", "counter", (), "COMMITs", _stat("store", "commits")),
    Family("greenroom_rows_total", "counter", (), "rows written", _stat("store", "rows")),
    Family("greenroom_disk_free_bytes", "gauge", (), "free on the disk of the data directory", _stat("store", "free_bytes")),
    Family("greenroom_store_full", "gauge", (), "1 while new jobs get STORE_FULL", lambda f: int(f.stats["store"]["full"])),
    Family("greenroom_damaged_jobs", "gauge", (), "jobs whose row does not match its checksum", _stat("damaged", "total")),
    # -- jobs
    Family("greenroom_jobs", "gauge", ("state",), "unfinished jobs", _map("states", UNFINISHED)),
    Family("greenroom_jobs_finished_total", "counter", ("state",), "finished jobs, ever", _map("states", FINISHED)),
    Family("greenroom_jobs_accepted_total", "counter", (), "jobs accepted, ever", _stat("total")),
    Family("greenroom_queue_jobs", "gauge", ("queue", "state"),
           "unfinished jobs of the 50 queues with the most; the others are `(other)`", lambda f: _names(f.queues)),
    Family("greenroom_task_jobs", "gauge", ("task", "state"),
           "unfinished jobs of the 50 tasks with the most; the others are `(other)`", lambda f: _names(f.tasks)),
    Family("greenroom_paused", "gauge", ("kind",), "queues and tasks whose jobs somebody holds back", _map("paused", ("queue", "task"))),
    Family("greenroom_limited_queues", "gauge", (), "queues with a limit", _stat("waiting", "limited_queues")),
    Family("greenroom_full_queues", "gauge", (), "those of them that are full for jobs that are not urgent", _stat("waiting", "full_queues")),
    Family("greenroom_queue_fill_ratio", "gauge", ("queue",), "how full queues with a limit are, the 50 fullest; 1 is the limit, urgent jobs pass it",
           lambda f: [((queue,), fill) for queue, fill in f.limits]),
    Family("greenroom_limit_refusals_total", "counter", (), "jobs that limits of queues kept out", _stat("waiting", "limit_refusals")),
    Family("greenroom_lanes", "gauge", (), "pairs of queue and task in memory, of 20,000", _stat("lanes")),
    Family("greenroom_requeues_total", "counter", ("reason",),
           "jobs that came back: lost, expired, crash, nack, bye, not_presented", _map("requeued_by", REQUEUES)),
    Family("greenroom_returns_total", "counter", ("reason",), "jobs given back before they began: unbegun, never_arrived",
           _map("requeued_by", RETURNS)),
    Family("greenroom_schedule_jobs_total", "counter", (), "jobs that schedules submitted", _stat("schedules", "submitted")),
    Family("greenroom_schedule_skips_total", "counter", (), "runs of schedules left out, as the previous job was unfinished or the queue full",
           _stat("schedules", "skipped")),
    Family("greenroom_schedule_misses_total", "counter", (),
           "how often a schedule came more than a minute late, so that its policy for missed runs decided", _stat("schedules", "missed")),
    Family("greenroom_job_log_lines_total", "counter", (), "log lines of jobs, taken from workers", _stat("reports", "lines")),
    Family("greenroom_job_progress_reports_total", "counter", (), "reports of how far a run is, taken from workers",
           _stat("reports", "progress")),
    # -- windows
    Family("greenroom_window_jobs", "gauge", (), "queued jobs in memory", _stat("memory", "jobs")),
    Family("greenroom_window_max_jobs", "gauge", (), "how many queued jobs may be in memory (`window_jobs`)",
           _stat("memory", "max_jobs")),
    Family("greenroom_window_bytes", "gauge", (), "payloads of queued jobs in memory", _stat("memory", "bytes")),
    Family("greenroom_window_max_bytes", "gauge", (), "how many bytes of payloads may be in memory (`window_bytes`)",
           _stat("memory", "max_bytes")),
    Family("greenroom_grants_total", "counter", (), "jobs given to workers", _stat("memory", "granted")),
    Family("greenroom_grants_after_refill_total", "counter", (),
           "jobs given to workers that had to wait for the store first; all others were in memory",
           _stat("memory", "granted_after_refill")),
    Family("greenroom_refills_total", "counter", (), "looks into the store for more jobs", _stat("memory", "refills")),
    Family("greenroom_refilled_rows_total", "counter", (), "jobs that refills brought into memory", _stat("memory", "refilled")),
    # -- leases and requests
    Family("greenroom_leases", "gauge", (), "leases held", _stat("memory", "leases")),
    Family("greenroom_stale_settles_total", "counter", (), "settles refused with LEASE_LOST", _stat("settles", "stale")),
    Family("greenroom_late_settles_total", "counter", (), "settles accepted after their lease had ended",
           _stat("settles", "late")),
    Family("greenroom_repeated_settles_total", "counter", (), "settles that came twice", _stat("settles", "repeated")),
    Family("greenroom_repeated_submits_total", "counter", (), "submits that came twice", _stat("repeated_submits")),
    Family("greenroom_refused_requests_total", "counter", ("code",), "requests answered with an error", _map("refused", WIRE_ERRORS)),
    Family("greenroom_refused_jobs_total", "counter", ("code",), "jobs refused one by one in a submit", _map("refused_jobs", JOB_ERRORS)),
    Family("greenroom_parked_reserves", "gauge", (), "workers' reserves that wait for a job", _stat("waiting", "reserves")),
    Family("greenroom_waits", "gauge", (), "clients' waits for jobs to finish", _stat("waiting", "waits")),
    Family("greenroom_held_answers", "gauge", (), "answers that wait for a COMMIT", _stat("waiting", "answers")),
    Family("greenroom_held_answer_bytes", "gauge", (), "about how much memory the answers take that wait for a COMMIT",
           _stat("waiting", "answer_bytes")),
    # -- connections
    Family("greenroom_connections", "gauge", (), "connections, those that shake hands included", _stat("door", "open")),
    Family("greenroom_connections_handshaking", "gauge", (), "connections that shake hands", _stat("door", "shaking")),
    Family("greenroom_connections_max", "gauge", (), "connections that there can be", _stat("door", "max")),
    Family("greenroom_handshakes_total", "counter", (), "TLS handshakes that succeeded", _stat("door", "handshakes")),
    Family("greenroom_rejected_handshakes_total", "counter", ("reason",), "connections refused at the door", _map("rejected", REJECTIONS)),
    Family("greenroom_protocol_errors_total", "counter", (), "connections closed for what they sent",
           _stat("door", "protocol_errors")),
    Family("greenroom_internal_errors_total", "counter", (), "bugs of ours met; the log has each",
           lambda f: f.stats["refused"].get("INTERNAL", 0)),
    Family("greenroom_sessions", "gauge", ("role",), "connected clients and workers", _sessions),
    Family("greenroom_workers", "gauge", ("status",), "workers: idle, busy, or lost (may come back)", _workers),
    Family("greenroom_event_subscribers", "gauge", (), "who is told of events, of 64", _stat("subscribers")),
    Family("greenroom_viewers", "gauge", (), "pages that watch live", _stat("process", "viewers")),
    # -- the process
    Family("greenroom_resident_memory_bytes", "gauge", (), "memory of the process", _stat("process", "resident_bytes")),
    Family("greenroom_cpu_seconds_total", "counter", (), "processor time used", _stat("process", "cpu_s")),
    Family("greenroom_open_files", "gauge", (), "file descriptors (Linux 6.2 or newer)", _stat("process", "open_files")),
    Family("greenroom_max_files", "gauge", (), "file descriptors that there can be", _stat("process", "max_files")),
    Family("greenroom_log_lines_dropped_total", "counter", (), "log lines dropped because nobody read our output",
           _stat("process", "log_lines_dropped")),
)


def exposition(figures: Figures, breathe: Callable[[], None]) -> bytes:
    """Return the body of /metrics. Breathes every few metrics."""
    parts: list[bytes] = []
    for first in range(0, len(METRICS), FAMILIES_PER_BREATH):
        some = METRICS[first:first + FAMILIES_PER_BREATH]
        parts.append(generate_latest(_Collected([_family(family, family.read(figures)) for family in some])))
        breathe()
    return b"".join(parts)


class _Collected:
    """What prometheus-client asks for metrics: made already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return all families."""
        return iter(self._families)


def _family(family: Family, shown: Shown) -> Metric:
    name, doc = family.name.removesuffix("_total"), family.doc
    if isinstance(shown, Distribution):
        histogram = HistogramMetricFamily(name, doc)
        reached = [str(float(bound)) for bound in shown.bounds] + ["+Inf"]
        histogram.add_metric([], list(zip(reached, accumulate(shown.buckets))), shown.total)
        return histogram
    made = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[family.kind](name, doc, labels=family.labels)
    for labels, value in shown if isinstance(shown, list) else [((), shown)]:
        if value is not None:
            made.add_metric(labels, value)
    return made
