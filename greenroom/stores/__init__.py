"""The contract of a store, and how one is opened. A store records what the engine did; it never decides.

One writer drives a store (`Store`); readers for pages and history go through `Reader`, which sees committed rows only.

How the writer is used (greenroom/batches.py keeps to this order, tests/stores/test_conformance.py checks each store):
    store.open()                        once; what a restart needs to know
    loop:
        store.apply(jobs, submissions)  on the caller's thread, quick: what is to be written is taken as it is now
        store.commit()                  statements and fsync; may run in another thread; nothing else touches the store meanwhile
        store.take / load / block …     between commits only; they see all that was applied, so they run its statements first
    store.close()
Whatever raises StoreError after `open` leaves the outcome of the open transaction unknown: the caller answers UNKNOWN and
ends the process; it never goes on with the same store.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from greenroom.errors import ConfigError
from greenroom.filters import EVERY, Filter
from greenroom.job import Job, Run
from greenroom.records import Damaged, Gone, LaneCounts, LogLine, Lost, Pause, QueueLimit, Restored, StoredLease, StoredSchedule, Submission


#: The outcome of a submit is remembered so long under the id its client gave it.
SUBMISSION_KEPT_S = 600.0


__all__ = ["Damaged", "Gone", "LaneCounts", "Lost", "Pause", "Reader", "Restored", "Retention", "Store", "StoredLease", "StoredSchedule",
           "Submission", "open_store"]


class Store(Protocol):
    """The writer's side of a store."""

    def open(self) -> Restored:
        """Open or create it, check it, and return what a restart needs.

        Raises StoreError, with nothing touched: in use by another process (names the pid), directory not writable,
        not a store of ours, corrupt, or of a newer schema.
        """

    def block(self, name: str, count: int) -> int:
        """Hand out `count` numbers that were never handed out; returns the first. Durable with the next commit.

        Args:
            name: "job" (ids and places) or "fence".
        """

    def apply(self, jobs: list[Job], submissions: list[Submission]) -> None:
        """Take the present state of these jobs as part of the open transaction (opens one if none is open).

        For each job: insert it if `stored_state` is 0, else update it; a finished job gets its result or error; a running
        one is recorded as queued, and with a lease row if `checkpoint` is set; a lease row of a job that is no longer running
        is removed. `runs` that ended join its history. With `rewrite` set the queue, and perhaps the payload, are written again too. Then
        sets stored_state, stored_requeues and stored_lease, and clears runs and rewrite. Counters move in the same transaction.
        The list holds a job at most once. Quick: about 3 µs a row; the statements may be left to `write` or `commit`.
        """

    def apply_schedules(self, changes: dict[str, StoredSchedule | None]) -> None:
        """Record these schedules, or that there is none of that name any more, as part of the open transaction (opens one)."""

    def unwritten(self) -> int:
        """Jobs that were applied and whose statements have not run."""

    def write(self) -> None:
        """Run the statements of all that was applied: about 3 µs a job, no fsync. Else `commit` does, or whatever reads."""

    def commit(self) -> None:
        """Make everything applied durable; returns after the fsync. A no-op when nothing is open."""

    def take(self, queue: str, task: str, after_rank: int, limit: int) -> list[Job]:
        """Return up to `limit` jobs recorded as queued in this lane with rank above `after_rank`, in order of rank.

        Jobs that are leased are among them: the caller skips those it holds. Payloads up to SMALL_BYTES and above are both
        included. A job that does not match its checksum is among them, with `damage` set and fields that mean nothing.
        """

    def take_scheduled(self, after: tuple[float, int], limit: int) -> list[Job]:
        """Return up to `limit` scheduled jobs with (run_at, id) above `after`, in that order; payloads as in take."""

    def take_expired(self, now: float, limit: int) -> list[Job]:
        """Return up to `limit` jobs recorded as waiting and never begun whose `expires_at` is `now` or before, soonest first; small, as
        in load. Those that have just been begun may be among them."""

    def next_expiry(self) -> float | None:
        """Return the first `expires_at` of all jobs that are recorded as waiting and never begun, or None."""

    def load(self, ids: list[int], *, small: bool = False) -> dict[int, Job | Lost]:
        """Return each job, in whatever state, as on disk (with what was applied), or Lost; payloads and results of any size.

        Args:
            small: leave payloads and results above SMALL_BYTES None; their sizes are known all the same.

        A job that does not match its checksum has `damage` set and fields that mean nothing.
        """

    def payloads(self, ids: list[int]) -> dict[int, bytes]:
        """Return the payloads of these jobs; those without a row, or that do not match their checksum, are left out."""

    def submission(self, submission_id: bytes) -> Submission | None:
        """Return what was recorded under this id, or None; with an empty outcome if it does not match its checksum."""

    def set_aside(self, damaged: list[Damaged]) -> None:
        """Record, in the open transaction, that these waiting jobs are damaged.

        No window has them again, and their lanes count them no more.
        Their rows stay as they are, whatever becomes of history. Nothing happens to those that were set aside before.
        """

    def keep_limits(self, limits: dict[str, QueueLimit | None]) -> None:
        """Keep these limits, by queue, in the open transaction; None: forget it. `open` returns those that are kept."""

    def keep_pauses(self, pauses: dict[tuple[str, str], Pause | None]) -> None:
        """Keep these pauses, by (kind, name), in the open transaction; None: forget it. `open` returns those that are kept."""

    def add_lines(self, lines: list[LogLine], first_lines: dict[int, int]) -> None:
        """Record log lines of jobs, in the open transaction. Quick: the statements are left to `commit`; only readers see lines.

        Args:
            first_lines: job id -> lower bound; lines of these jobs below it, these or older ones, are deleted.
        """

    def delete(self, ids: list[int]) -> None:
        """Delete these finished jobs with their runs and log lines, in the open transaction; `load` says that they were handed out.

        All of them must be there, and written. Lanes go on counting them among what ended, as they do with pruned ones.
        """

    def prune_kept(self, now: float, limit: int) -> Gone:
        """Delete up to `limit` finished jobs that asked how long they are kept (`keep_for`) and whose time is over, soonest first.

        Part of the open transaction. Empty when there is nothing more to do now. `prune` leaves such jobs alone.
        """

    def prune(self, now: float, limit: int) -> int:
        """Delete up to `limit` finished jobs that are beyond retention, and as many submissions older than 10 minutes.

        Part of the open transaction. Returns 0 when there is nothing more to do now: ask again in a second or so. Any other
        number (rows that went, or were looked at on the way to such rows) says: call again with the next batch. Looks at no
        more than a few times `limit` rows a call, so that it takes a millisecond or two however long the history is.
        """

    def reader(self) -> Reader:
        """Open another read-only view; each may be used by one thread at a time and must be closed."""

    def close(self) -> None:
        """Commit what was applied, release the lock. Safe to call twice."""


class Reader(Protocol):
    """The pages' side of a store: committed rows only, never blocks the writer."""

    def jobs(self, ids: list[int], *, payload: bool = False) -> dict[int, Job | Lost]:
        """Return these jobs as committed (with result; payload only if asked for)."""

    def page(self, wanted: Filter = EVERY, *, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """Return jobs newest first: ids below `before` (None: from the newest) that fit, as recorded (running ones as queued).

        Looks for 100 ms at most, or at 20,000 rows. Returns the jobs (payload None unless at most SMALL_BYTES, with
        payload_bytes; result likewise) and the id to pass as `before` for the next page, or None at the end: all jobs from that id up
        were looked at. A page may hold fewer than `limit` jobs, even none, and still have a next one.
        """

    def count(self, wanted: Filter, before: int | None) -> tuple[int, int | None]:
        """Return how many jobs fit, in the same way: bounded in time, and with the id to go on from, or None."""

    def runs(self, job_id: int) -> list[Run]:
        """Return the latest 100 runs of a job that did not complete it, as committed, oldest first."""

    def lines(self, job_id: int, after: int, limit: int) -> list[LogLine]:
        """Return up to `limit` log lines of a job with numbers above `after`, in order, as committed. One that does not match its
        checksum is left out."""

    def counts(self) -> list[LaneCounts]:
        """Return the counters of all lanes, as committed."""

    def close(self) -> None:
        """Close it. Safe to call twice."""


class Retention(NamedTuple):
    """How long finished jobs are kept that do not say so themselves: pruned when older than an age, or beyond a count and older than an
    hour. Failed jobs have bounds of their own, and do not count among the others."""

    age_s: float = 7 * 86400.0
    count: int = 1_000_000
    failed_age_s: float = 90 * 86400.0
    failed_count: int = 100_000


def open_store(url: str, retention: Retention = Retention()) -> Store:
    """Make the store that a configuration names; it is not opened yet.

    Args:
        url: "memory:" (nothing survives the process), or the path of a data directory.

    Raises ConfigError for a URL with a scheme that is not known.
    """
    if url == "memory:":
        from greenroom.stores.memory import MemoryStore
        return MemoryStore(retention)
    if "://" in url or url.startswith("memory"):
        raise ConfigError(f"store {url!r} is not known: give a directory, or memory:", field="data")
    from greenroom.stores.sqlite import SqliteStore
    return SqliteStore(url, retention)
