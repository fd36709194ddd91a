"""Search over all jobs of the SQLite store: a filter becomes one statement, which runs over a range of ids at a time, newest first.

Must not write, or know the library: it gets a `Query`. Rows that do not match stay inside SQLite: each row that comes out costs the
interpreter's lock, which the hub has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from greenroom.filters import PREVIEW_BYTES, Filter, fold
from greenroom.job import COMPLETED, NUMBER_LIMIT, QUEUED, RUNNING, SCHEDULED

#: A look goes on with ranges until it took so long; then the caller goes on from there.
SCAN_S = 0.08
#: Ids of the first range; twice as many in the next as long as one takes less than half of RANGE_S.
FIRST_IDS = 4_000
FIRST_IDS_OF_TEXT = 500
MOST_IDS = 50_000
RANGE_S = 0.02
#: So many waiting jobs are found by their indexes, whatever lies between them.
MOST_WAITING = 20_000

#: A payload wherever it is kept; the inner query runs only for those that are not in the row.
WHOLE_PAYLOAD = "ifnull(jobs.payload, (SELECT data FROM payloads WHERE payloads.job = jobs.id))"
WHOLE_RESULT = """CASE WHEN jobs.result IS NULL AND jobs.result_bytes > 0
    THEN (SELECT data FROM results WHERE results.job = jobs.id) ELSE jobs.result END"""

_WAITING_STATES = frozenset({SCHEDULED, QUEUED})

_LANES = "SELECT id FROM lanes WHERE "
_WAITING = """jobs.id IN (SELECT id FROM jobs INDEXED BY jobs_queued WHERE state = 2 AND lane IN (SELECT id FROM lanes)
    UNION ALL SELECT id FROM jobs INDEXED BY jobs_scheduled WHERE state = 1)"""


def _preview_has(column: str) -> str:
    return f"instr(CAST(lower(CAST(substr({column}, 1, {PREVIEW_BYTES}) AS TEXT)) AS BLOB), :needle)"


def _of_error(name: str) -> str:
    return f"ifnull(jobs.error ->> '$.{name}', '')"


_ERROR_TEXT = " || char(10) || ".join(f"({_of_error(name)})" for name in ("name", "message", "traceback"))
_HAS_TEXT = f"""(ifnull({_preview_has(WHOLE_PAYLOAD)}, 0) OR ifnull({_preview_has(f'({WHOLE_RESULT})')}, 0)
    OR CASE WHEN json_valid(jobs.error) THEN instr(lower({_ERROR_TEXT}), :text) ELSE 0 END)"""

#: Field of a filter -> its condition, by the field's name.
_CONDITIONS = {
    "worker": "jobs.worker = :worker",
    "created_after": "jobs.submitted_at >= :created_after", "created_before": "jobs.submitted_at < :created_before",
    "finished_after": "jobs.finished_at >= :finished_after", "finished_before": "jobs.finished_at < :finished_before",
    "error": "CASE WHEN json_valid(jobs.error) THEN jobs.error ->> '$.name' = :error ELSE 0 END",
    "fingerprint": "jobs.error IS NOT NULL",  # the rest needs Python: see sqlite_reader.py
    "text": _HAS_TEXT,  # last: it is the dearest
}

#: Runs one SQL statement with its bindings (by place or by name) and returns all rows.
Query = Callable[[str, "tuple | dict"], list[tuple]]


class Search:
    """One filter over the rows. See greenroom.stores.Reader for what `page` and `count` promise."""

    def __init__(self, query: Query, wanted: Filter, before: int | None) -> None:
        self._query = query
        self._before = NUMBER_LIMIT if before is None else before
        if wanted.id_to is not None:
            self._before = min(self._before, wanted.id_to + 1)
        self._least = wanted.id_from or 1
        self._values: dict[str, object] = {}
        self._source = "jobs NOT INDEXED"
        self._conditions: list[str] = []
        self._ids = FIRST_IDS if wanted.text is None else FIRST_IDS_OF_TEXT
        self._is_indexed = False  # so few rows are in question that they are all looked at
        self._has_lanes = True
        lanes = self._note_lanes(wanted)
        self._note_states(wanted, lanes)
        for name, condition in _CONDITIONS.items():
            if getattr(wanted, name) is not None:
                self._conditions.append(condition)
                self._values[name] = getattr(wanted, name)
        if wanted.text is not None:
            self._values["needle"], self._values["text"] = wanted.needle, fold(wanted.text.encode()).decode()

    def _note_lanes(self, wanted: Filter) -> str:
        """Note the condition on queue and task; returns it as one over lanes. Without a lane that fits nothing is looked at."""
        conditions = []
        if wanted.queue is not None:
            conditions.append("lanes.queue = :queue")
            self._values["queue"] = wanted.queue
        if wanted.task is not None:
            prefix = wanted.task_prefix
            conditions.append("lanes.task = :task" if prefix is None else "substr(lanes.task, 1, length(:task)) = :task")
            self._values["task"] = wanted.task if prefix is None else prefix
        if not conditions:
            return "1"
        lanes = " AND ".join(conditions)
        self._conditions.append(f"jobs.lane IN ({_LANES}{lanes})")
        self._has_lanes = bool(self._query(f"{_LANES}{lanes} LIMIT 1", self._values))
        return lanes

    def _note_states(self, wanted: Filter, lanes: str) -> None:
        """Note the condition on states, and whether an index has them. A running job is recorded as queued."""
        if wanted.states is None:
            return
        recorded = {QUEUED if state is RUNNING else state for state in wanted.states}
        self._conditions.append(f"jobs.state IN ({', '.join(str(int(state)) for state in sorted(recorded))})")
        if min(recorded) > COMPLETED:
            self._source = "jobs INDEXED BY jobs_not_completed"
            self._conditions.append("jobs.state > 4")
        elif recorded <= _WAITING_STATES:
            waiting = self._query(f"SELECT ifnull(sum(scheduled + queued), 0) FROM lanes WHERE {lanes}", self._values)[0][0]
            if waiting <= MOST_WAITING:
                others = "" if lanes == "1" else f" WHERE {lanes}"
                self._is_indexed = True
                self._conditions.append(_WAITING.replace("(SELECT id FROM lanes)", f"(SELECT id FROM lanes{others})"))

    def page(self, columns: str, limit: int) -> tuple[list[tuple], int | None]:
        """Return rows of these columns, the id first, newest first, and the id before which the next page begins, or None."""
        rows: list[tuple] = []
        for floor, where in self._ranges():
            rows += self._query(f"""SELECT {columns} FROM {self._source} LEFT JOIN lanes ON lanes.id = jobs.lane WHERE {where}
                ORDER BY jobs.id DESC LIMIT :limit""", {**self._values, "floor": floor, "before": self._before,
                                                       "limit": limit + 1 - len(rows)})
            if len(rows) > limit:
                return rows[:limit], rows[limit - 1][0]
        return rows, self._next

    def count(self) -> tuple[int, int | None]:
        """Return how many rows fit, and the id before which the others were not looked at, or None."""
        found = 0
        for floor, where in self._ranges():
            found += self._query(f"SELECT count(*) FROM {self._source} WHERE {where}",
                                 {**self._values, "floor": floor, "before": self._before})[0][0]
        return found, self._next

    def _ranges(self) -> Iterator[tuple[int, str]]:
        """Yield the lower end of one range of ids after the other, and the condition; stop when it took long enough.

        `_next` is then where to go on, or None.
        """
        self._next: int | None = None
        if not self._has_lanes:
            return
        where = " AND ".join(["jobs.id < :before AND jobs.id >= :floor", *self._conditions])
        is_cheap = self._is_indexed or not self._conditions
        over = "WHERE state > 4 AND" if "INDEXED BY" in self._source else "WHERE"
        began = time.perf_counter()
        while True:
            if is_cheap:
                floor = self._least
            else:  # over what was never used, or deleted, one step leads
                top = self._query(f"SELECT id FROM {self._source} {over} id < ? AND id >= ? ORDER BY id DESC LIMIT 1",
                                  (self._before, self._least))
                if not top:
                    return
                floor = max(self._least, top[0][0] - self._ids + 1)
            range_began = time.perf_counter()
            yield floor, where
            if floor <= self._least:
                return
            self._before = floor
            now = time.perf_counter()
            if now - began > SCAN_S:
                self._next = floor
                return
            if now - range_began < RANGE_S / 2:
                self._ids = min(MOST_IDS, 2 * self._ids)
            elif now - range_began > RANGE_S:
                self._ids = max(1, self._ids // 2)
