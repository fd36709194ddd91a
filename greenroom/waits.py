"""Requests that wait for jobs to finish: who waits for which, until when. Pure; answers are handed back, not sent.

Must not know the engine: it is told of finished jobs. Bounded by the number of waits a session may have, which the verb's
handler checks, and of ids in one.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Any

from greenroom.job import Job
from greenroom.records import LogLine
from greenroom.views import view

#: Bytes of payloads, results and errors in one answer; the protocol says so.
ANSWER_BYTES = 2 * 2**20
#: Waits of peers that are gone which are cleared away at once: 1 ms if each has 1,000 jobs.
CLEARED_PER_TICK = 4


class Wait:
    """One open `wait`. `peer` is opaque; `is_open` turns False when it is answered."""

    __slots__ = ("peer", "request_id", "ids", "is_open", "ready", "deadline")

    def __init__(self, peer: Any, request_id: int, ids: list[int]) -> None:
        self.peer = peer
        self.request_id = request_id
        self.ids = list(dict.fromkeys(ids))  # an id that stands twice is waited for once
        self.is_open = True
        self.ready: list[Job] = []
        self.deadline = 0.0

    def answer(self, views: list[dict]) -> dict:
        """Return what ends it, with as many as fit of the views of its jobs that are finished."""
        return {"jobs": fitting(views)}


class LinesWait(Wait):
    """A `logs` that waits for lines of a job above a number, or for its end."""

    __slots__ = ("after", "limit")

    def __init__(self, peer: Any, request_id: int, job_id: int, after: int, limit: int) -> None:
        super().__init__(peer, request_id, [job_id])
        self.after = after
        self.limit = limit

    def answer(self, views: list[dict]) -> dict:
        """Return an answer without lines; with a view, the job is finished."""
        return lines_answer([], self.after, is_finished=bool(views))

    def answer_with(self, lines: list[LogLine]) -> dict:
        """Return an answer with new lines."""
        return lines_answer(lines[:self.limit], self.after, is_finished=False)


def lines_answer(lines: list[LogLine], after: int, *, is_finished: bool) -> dict:
    """Return the answer of the verb `logs`; some lines between `after` and these may have been dropped."""
    return {"lines": [[line.seq, line.at, line.attempt, line.text] for line in lines], "next": lines[-1].seq if lines else after,
            "dropped": max(0, lines[0].seq - after - 1) if lines else 0, "finished": is_finished}


class Waits:
    """All open waits."""

    def __init__(self) -> None:
        self._by_job: dict[int, dict[Wait, None]] = {}
        self._deadlines: list[tuple[float, int, Wait]] = []
        self._order = 0
        self._forgotten: deque[Wait] = deque()  # of peers that are gone; their ids are taken out a few waits at a time
        self.open = 0

    def add(self, wait: Wait, deadline: float) -> None:
        """Open a wait for jobs that are not known to be finished."""
        self._clear_some(2)  # so that they become fewer, however many come
        self.open += 1
        wait.peer.open_waits.add(wait)
        for job_id in wait.ids:
            self._by_job.setdefault(job_id, {})[wait] = None
        self.end_at(wait, deadline)

    def end_at(self, wait: Wait, deadline: float) -> None:
        """Set or change when an open wait is answered at the latest."""
        wait.deadline = deadline
        if len(self._deadlines) > 64 + 2 * self.open:
            self._deadlines = sorted(entry for entry in self._deadlines if entry[2].is_open and entry[2].deadline == entry[0])
        self._order += 1
        heappush(self._deadlines, (deadline, self._order, wait))

    def finished(self, jobs: list[Job]) -> list[tuple[Any, int, dict]]:
        """Return (peer, request id, answer) for the waits that these jobs end."""
        if not self._by_job:
            return []
        ended: dict[Wait, None] = {}
        for job in jobs:
            for wait in self._by_job.get(job.id, ()):
                if wait.is_open:
                    wait.ready.append(job)
                    ended[wait] = None
        return [self.close(wait, [view(job, with_result=True) for job in wait.ready]) for wait in ended]

    def close(self, wait: Wait, views: list[dict]) -> tuple[Any, int, dict]:
        """End a wait; returns (peer, request id, answer) with as many of the views as fit."""
        if wait.is_open:
            self._forget(wait)
        return wait.peer, wait.request_id, wait.answer(views)

    def wrote(self, lines: list[LogLine]) -> list[tuple[Any, int, dict]]:
        """Return (peer, request id, answer) for the waits that these log lines end."""
        if not self._by_job:
            return []
        by_job: dict[int, list[LogLine]] = {}
        for line in lines:
            if line.job in self._by_job:
                by_job.setdefault(line.job, []).append(line)
        answers = []
        for job_id, new in by_job.items():
            for wait in list(self._by_job[job_id]):
                above = [line for line in new if line.seq > wait.after] if isinstance(wait, LinesWait) and wait.is_open else []
                if above:
                    self._forget(wait)
                    answers.append((wait.peer, wait.request_id, wait.answer_with(above)))
        return answers

    def _forget(self, wait: Wait) -> None:
        self._end(wait)
        self._take_out(wait)

    def _end(self, wait: Wait) -> None:
        wait.is_open = False
        self.open -= 1
        wait.peer.open_waits.discard(wait)

    def _take_out(self, wait: Wait) -> None:
        for job_id in wait.ids:
            others = self._by_job.get(job_id)
            if others is not None:
                del others[wait]
                if not others:
                    del self._by_job[job_id]

    def _clear_some(self, count: int) -> None:
        while self._forgotten and count:
            self._take_out(self._forgotten.popleft())
            count -= 1

    def tick(self, now: float) -> list[tuple[Any, int, dict]]:
        """Return the empty answers of waits whose time ran out."""
        self._clear_some(CLEARED_PER_TICK)
        answers = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].is_open):
            at, _, wait = heappop(self._deadlines)
            if wait.is_open and wait.deadline == at:
                answers.append(self.close(wait, []))
        return answers

    def next_due(self) -> float | None:
        """Return when `tick` has something to do, or None; 0.0: at once."""
        if self._forgotten:
            return 0.0
        return self._deadlines[0][0] if self._deadlines else None

    def drop_peer(self, peer: Any) -> None:
        """Forget the waits of a connection that ended. It may have 256 of 1,000 jobs each: they are ended now, and cleared away later."""
        for wait in list(peer.open_waits):
            self._end(wait)
            self._forgotten.append(wait)


def fitting(views: list[dict]) -> list[dict]:
    """Return the views that fit into one answer, at least one."""
    size = 0
    for count, shown in enumerate(views):
        size += len(shown.get("result") or b"") + len(shown.get("payload") or b"") + 512
        error = shown.get("error")
        if error is not None:
            size += sum(len(text.encode()) for text in error.values() if isinstance(text, str))
        if size > ANSWER_BYTES and count:
            return views[:count]
    return views
