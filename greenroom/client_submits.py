"""Submitting: cuts jobs into frames, sends a few at a time, and sends a frame again until its outcome is known.

Must not know how a connection is made, nor what handles are.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator

from greenroom.clock import Clock
from greenroom.errors import (BusyError, ConnectError, DrainingError, GreenroomError, InvalidError, TooLargeError,
                              UnknownOutcomeError, from_wire)
from greenroom.job import PLAIN_OPTIONS
from greenroom.link import Answer, Backoff, Link
from greenroom.protocol import MAX_REQUEST_VALUES, pack_value
from greenroom.unique import Duplicate
from greenroom.when_full import FULL_ERRORS, WhenFull

#: A client sends the same submission again for so long at most (the broker remembers it for twice that).
RESEND_S = 300.0

#: Frames that may wait for their answer at the same time: the next is on its way while one is being committed.
WINDOW = 4

#: Bytes at which a frame is full. Well under the frame limit: such a frame takes some milliseconds to decode.
FRAME_BYTES = 2**20

#: An upper bound of what a job adds to a frame besides its payload: keys, three names of 128 characters, numbers. It holds for
#: PLAIN_OPTIONS; others may be long (lists of names, a key of 256 characters), and are packed to be measured.
JOB_BYTES = 512

#: Values in its maps and lists: a broker takes some more. Jobs with twenty options each must come in smaller frames.
FRAME_VALUES = MAX_REQUEST_VALUES - 100

_clock = Clock()


def new_submission() -> bytes:
    """Return 16 bytes that no other frame has: 6 bytes of milliseconds since 1970, so that they are time-ordered, 10 random."""
    return int(_clock.now() * 1000).to_bytes(6, "big") + os.urandom(10)


def reading_failed(exc: Exception) -> InvalidError:
    """Return the failure of a submit whose iterable of jobs raised."""
    failure = InvalidError(f"reading the jobs failed: {type(exc).__name__}: {exc}")
    failure.__cause__ = exc
    return failure


def _count_values(job: dict) -> int:
    """Return how many of a frame's values a job takes: as an item of the list, as a map, its fields, and what stands in their lists."""
    return 2 + len(job) + sum(1 + len(value) for value in job.values() if isinstance(value, (list, tuple)))


class Frame:
    """Jobs that are sent, and answered, together."""

    __slots__ = ("places", "jobs", "submission", "deadline", "may_be_stored", "backoff", "is_done")

    def __init__(self, timeout_s: float, places: list[int] | None = None, jobs: list[dict] | None = None) -> None:
        self.places: list[int] = places or []  # where the outcome of each job belongs
        self.jobs: list[dict] = jobs or []
        self.submission = new_submission()
        self.deadline = time.monotonic() + timeout_s
        self.may_be_stored = False  # it was sent, and the answer got lost
        self.backoff = Backoff()
        self.is_done = False


class Submits:
    """One submit of any number of jobs.

    Args:
        connected: returns an open link, or raises ConnectError at the deadline (monotonic seconds).
        jobs: what goes to the wire, or an error for a job that was refused here already. Read as it is sent.
        timeout_s: for each frame, RESEND_S at most.
        full: what becomes of jobs that the broker has no room for. While it waits for room nothing more is read or sent. Dropped are
            those whose outcome is one of FULL_ERRORS.

    Attributes:
        outcomes: one for each job read so far: its id, the job that has its unique key, or an error.
        failure: the error of a whole frame that ended it all, or None; jobs not read by then were not submitted.
    """

    def __init__(self, connected: Callable[[float], Link], jobs: Iterable[dict | GreenroomError], timeout_s: float,
                 full: WhenFull = WhenFull()) -> None:
        self.outcomes: list[int | Duplicate | GreenroomError] = []
        self.failure: GreenroomError | None = None
        self._connected = connected
        self._jobs = jobs
        self._timeout_s = min(timeout_s, RESEND_S)
        self._answers: queue.SimpleQueue[tuple[Frame, Answer]] = queue.SimpleQueue()
        self._in_flight: list[Frame] = []
        self._full = full
        self._full_since: float | None = None  # no job got in since then
        self._full_backoff = Backoff()

    def run(self) -> None:
        """Submit all. Never raises for what the broker says or the network does: see `outcomes` and `failure`."""
        try:
            limits = self._connected(time.monotonic() + self._timeout_s).limits
        except GreenroomError as exc:
            self.failure = exc
            return
        frames = self._cut(limits.list, min(FRAME_BYTES, limits.frame - 1024), limits.payload)
        has_more = True
        while has_more or self._in_flight:
            while has_more and len(self._in_flight) < WINDOW and self.failure is None:
                frame = next(frames, None)
                has_more = frame is not None
                if frame is not None:
                    self._in_flight.append(frame)
                    self._send(frame)
            has_more = has_more and self.failure is None
            self._take_one()

    def _cut(self, most_jobs: int, most_bytes: int, most_payload: int) -> Iterator[Frame]:
        frame, size, values = Frame(self._timeout_s), 0, 0
        unanswered = UnknownOutcomeError("the broker has not answered")  # until it does
        for place, job in enumerate(self._read()):
            if isinstance(job, GreenroomError):
                self.outcomes.append(job)
                continue
            payload_bytes = len(job.get("payload", b""))
            if payload_bytes > most_payload:
                self.outcomes.append(TooLargeError(f"payload has {payload_bytes} bytes, the limit is {most_payload}",
                                                   field="payload"))
                continue
            job_bytes, job_values = payload_bytes + JOB_BYTES, len(PLAIN_OPTIONS) + 2
            if not job.keys() <= PLAIN_OPTIONS:
                job_values = _count_values(job)
                job_bytes += len(pack_value({name: value for name, value in job.items() if name not in PLAIN_OPTIONS}))
            if frame.jobs and (len(frame.jobs) >= most_jobs or size + job_bytes > most_bytes
                               or values + job_values > FRAME_VALUES):
                yield frame
                frame, size, values = Frame(self._timeout_s), 0, 0
            self.outcomes.append(unanswered)
            frame.places.append(place)
            frame.jobs.append(job)
            size += job_bytes
            values += job_values
        if frame.jobs:
            yield frame

    def _read(self) -> Iterator[dict | GreenroomError]:
        try:
            yield from self._jobs
        except Exception as exc:
            # Raised by the caller's own iterable. What it gave before is submitted, so it must not be lost.
            self.failure = reading_failed(exc)

    def _send(self, frame: Frame) -> None:
        while True:
            try:
                link = self._connected(frame.deadline)
            except GreenroomError as exc:
                self._give_up(frame, exc)
                return
            try:
                link.request({"verb": "submit", "jobs": frame.jobs, "submission": frame.submission},
                             lambda answer: self._answers.put((frame, answer)),
                             timeout_s=max(0.0, frame.deadline - time.monotonic()))
                return
            except ConnectError as exc:
                # The link ended between being handed out and being used: nothing was sent.
                if time.monotonic() >= frame.deadline:
                    self._give_up(frame, exc)
                    return
            except GreenroomError as exc:
                self._give_up(frame, exc)
                return
            time.sleep(frame.backoff.next())

    def _take_one(self) -> None:
        if not self._in_flight:
            return
        soonest = min(frame.deadline for frame in self._in_flight)
        try:
            frame, answer = self._answers.get(timeout=max(0.0, soonest - time.monotonic()))
        except queue.Empty:
            for late in [frame for frame in self._in_flight if frame.deadline <= time.monotonic()]:
                late.may_be_stored = True
                self._give_up(late, ConnectError("the broker did not answer in time"))
            return
        if frame.is_done:
            return
        if isinstance(answer, dict):
            self._accept(frame, answer)
        else:
            self._refused(frame, answer)

    def _accept(self, frame: Frame, answer: dict) -> None:
        self._done(frame)
        refused = Frame(self._timeout_s)
        for place, job, outcome in zip(frame.places, frame.jobs, answer.get("jobs", ())):
            duplicate = outcome.get("duplicate") if isinstance(outcome, dict) else None
            made = (outcome if isinstance(outcome, int) else Duplicate(duplicate, outcome.get("state"), outcome.get("replaced") is True)
                    if isinstance(duplicate, int) else from_wire(outcome))
            self.outcomes[place] = made
            if isinstance(made, FULL_ERRORS):
                refused.places.append(place)
                refused.jobs.append(job)
        if len(refused.jobs) < len(frame.jobs):
            self._full_since = None
        if refused.jobs and self._full.way == "wait":
            self._wait_for_room(refused)

    def _refused(self, frame: Frame, exc: GreenroomError) -> None:
        if isinstance(exc, (ConnectError, UnknownOutcomeError)):
            frame.may_be_stored = True
        elif isinstance(exc, FULL_ERRORS) and self._full.way != "raise" and not frame.may_be_stored:
            self._done(frame)
            for place in frame.places:
                self.outcomes[place] = exc
            if self._full.way == "wait":
                self._wait_for_room(Frame(self._timeout_s, frame.places, frame.jobs))
            return
        elif not (isinstance(exc, (BusyError, DrainingError)) or isinstance(exc, FULL_ERRORS) and self._full.way == "wait"):
            self._give_up(frame, exc)
            return
        pause_s = exc.retry_after_s if exc.retry_after_s is not None else frame.backoff.next()
        if time.monotonic() + pause_s >= frame.deadline:
            self._give_up(frame, exc)
        else:
            self._again(frame, pause_s)

    def _wait_for_room(self, frame: Frame) -> None:
        """Send jobs that were refused again, in a frame of its own, when there may be room; or end it all, they waited long enough."""
        exc = self.outcomes[frame.places[-1]]
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
            self._full_backoff = Backoff()
        left_s = self._full_since + self._full.timeout_s - now
        if left_s <= 0 or self.failure is not None:
            self.failure = self.failure or exc
            return
        # At the broker's time, and a little later each by chance: others wait for the same room.
        time.sleep(min(left_s, (exc.retry_after_s or 0.0) + self._full_backoff.next()))
        frame.deadline = time.monotonic() + self._timeout_s
        self._in_flight.append(frame)
        self._send(frame)

    def _again(self, frame: Frame, pause_s: float) -> None:
        # All frames wait with this one: what is wrong with one is wrong with the next.
        time.sleep(pause_s)
        self._send(frame)

    def _give_up(self, frame: Frame, exc: GreenroomError) -> None:
        if frame.may_be_stored:
            known = UnknownOutcomeError(f"the jobs may or may not be stored: {exc.message}")
            known.__cause__ = exc
            exc = known
        self._done(frame)
        for place in frame.places:
            self.outcomes[place] = exc
        self.failure = self.failure or exc

    def _done(self, frame: Frame) -> None:
        frame.is_done = True
        self._in_flight.remove(frame)
