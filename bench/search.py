"""What search costs in a long history: the time of each page for each kind of filter, and how late the broker's hub is meanwhile.

The finished jobs are made straight in a store, by the store's own classes (`SqliteStore.apply`, `commit`), as if workers had done them: over the
wire a million take minutes. Then a broker with its shipped defaults starts on that store. Every filter is followed from the newest job to
the end of history, and what it finds is compared with what was made.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, HubLag, Peer, Report, percentile, positive, run

import argparse
import time
from collections.abc import Callable

from greenroom.job import COMPLETED, FAILED, QUEUED, Job, rank_of
from greenroom.protocol import pack_value
from greenroom.stores.sqlite import SqliteStore

ROWS_A_COMMIT = 2_000
SPAN_S = 2400.0  # they finished within the last 40 minutes: retention keeps every job for an hour, however many there are
FAILED_EVERY = 100
NEEDLE_EVERY = 100_000
ERRORS = ("TimeoutError", "KeyError", "ValueError")
TASKS = ("mail.send", "mail.receipt", "report.day", "report.month", "resize")
LIMIT = 50

#: Name -> the filter, and which jobs it must find, by their place from 0; None: whatever the clock says.
KINDS: dict[str, tuple[dict, Callable[[int], bool] | None]] = {
    "all": ({}, lambda place: True),
    "ids": ({"id_to": 1000}, lambda place: place < 1000),
    "failed": ({"state": "failed"}, lambda place: place % FAILED_EVERY == 0),
    "failed with one error and task": ({"state": "failed", "error": "KeyError", "task": "mail.*"}, lambda place: (
        place % FAILED_EVERY == 0 and _error(place) == "KeyError" and _task(place).startswith("mail."))),
    "waiting": ({"state": ["queued", "scheduled"]}, lambda place: False),
    "queue and task": ({"queue": "q3", "task": "resize", "id_to": 300_000}, lambda place: (
        place % 7 == 3 and _task(place) == "resize" and place < 300_000)),
    "a task nobody has": ({"task": "none.*"}, lambda place: False),
    "worker that did nothing": ({"worker": "w99"}, lambda place: False),
    "finished long ago": ({"finished_before": 1.0}, lambda place: False),
    "text, rare": ({"text": "Needle"}, lambda place: place % NEEDLE_EVERY == 5),
    "text, nowhere": ({"text": "no such text"}, lambda place: False),
}


def _task(place: int) -> str:
    return TASKS[place % len(TASKS)]


def _error(place: int) -> str:
    return ERRORS[place // FAILED_EVERY % len(ERRORS)]


def fill(folder: str, jobs: int, payload_bytes: int) -> None:
    """Make so many finished jobs in a new store."""
    store = SqliteStore(folder)
    store.open()
    began = time.time() - SPAN_S
    first = store.block("job", jobs)
    filling = "x" * payload_bytes
    for begin in range(0, jobs, ROWS_A_COMMIT):
        rows = [_job(first, place, began + SPAN_S * place / jobs, filling) for place in range(begin, min(jobs, begin + ROWS_A_COMMIT))]
        store.apply(rows, [])
        store.commit()
    store.close()


def _job(first: int, place: int, at: float, filling: str) -> Job:
    text = "A needle" if place % NEEDLE_EVERY == 5 else "hay"
    job = Job(first + place, f"q{place % 7}", _task(place), 5, pack_value({"n": place, "text": text, "filling": filling}), False, at)
    job.place = job.id
    job.rank = rank_of(job.priority, job.place)
    job.worker, job.fence, job.attempt, job.started_at, job.finished_at = f"w{place % 8}", job.id, 1, at, at
    job.state = QUEUED
    if place % FAILED_EVERY == 0:
        job.state = FAILED
        job.error = {"name": _error(place), "message": f"attempt {place} came to nothing", "traceback": "Traceback (most recent call last) …"}
    else:
        job.state = COMPLETED
        job.result = pack_value(place)
    return job


def follow(peer: Peer, lag: HubLag, wanted: dict, most_pages: int) -> tuple[list[float], int, bool]:
    """Go through the pages of a filter; returns the milliseconds of each, how many jobs there were, and whether it came to the end."""
    times, found = [], 0
    before: dict = {}
    while len(times) < most_pages:
        began = time.perf_counter()
        page = peer.call("jobs", filter=wanted, limit=LIMIT, **before)
        times.append((time.perf_counter() - began) * 1000)
        lag.sample()
        found += len(page["jobs"])
        if page["next"] is None:
            return times, found, True
        before = {"before": page["next"]}
    return times, found, False


def measure(report: Report, peer: Peer, jobs: int, most_pages: int) -> None:
    """Follow each kind of filter, and count by a dry run. Raises BenchError for a wrong answer."""
    worst = 0.0
    lag = HubLag(peer)
    lags: list[float] = []
    for name, (wanted, fits) in KINDS.items():
        lag.begin()
        times, found, is_whole = follow(peer, lag, wanted, most_pages)
        lags.append(lag.end()["max"])
        expected = sum(map(fits, range(jobs)))
        if found != expected if is_whole else found > expected:
            raise BenchError(f"{name}: {found} jobs were found, {expected} are there")
        worst = max(worst, *times)
        report.result(f"slowest page: {name}", max(times), "ms", first_ms=round(times[0], 1), p50_ms=round(percentile(times, 50), 1), pages=len(times), found=found,
                      whole=is_whole, seconds=round(sum(times) / 1000, 2), hub_lag_max_ms=round(lags[-1], 1))
    began = time.perf_counter()
    counted = peer.call("bulk", action="delete", filter={"state": "failed"}, dry_run=True)
    if counted["next"] is None and counted["matched"] != -(-jobs // FAILED_EVERY):
        raise BenchError(f"{counted['matched']} failed jobs were counted")
    report.result("dry run over all failed", (time.perf_counter() - began) * 1000, "ms", counted=counted["matched"])
    report.result("slowest page", worst, "ms", history=jobs)
    report.result("hub lag, max", max(lags), "ms")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="search.py", description="Search in a long history: times of pages, lag of the hub.")
    parser.add_argument("--jobs", type=positive, default=1_000_000, help="finished jobs in the store (default: 1,000,000)")
    parser.add_argument("--payload", type=positive, default=100, metavar="BYTES", help="about so many bytes of payload (default: 100)")
    parser.add_argument("--pages", type=positive, default=200, help="follow each filter for so many pages at most (default: 200)")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    with Certificates() as certificates:
        broker = Broker(certificates)
        report = Report.begin("Search", args, broker.settings)
        began = time.monotonic()
        fill(str(broker.data), args.jobs, args.payload)
        report.result("store made", time.monotonic() - began, "s", mib=round(broker.disk() / 2**20))
        with broker:
            peer = Peer(broker.endpoint).open()
            measure(report, peer, args.jobs, args.pages)
            peer.close()
            broker.stop()
    return 0


if __name__ == "__main__":
    run(main)
