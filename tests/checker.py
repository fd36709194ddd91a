"""Judges a history of what clients and workers saw: was anything lost, invented, done twice, or held by two at once?

Shares no code with the broker or the client: standard library only, and must stay so. A bug in theirs must not excuse itself here.

A history is files of JSON lines that the processes of a test wrote while they worked. Each line is an event:

    at      nanoseconds of the machine's monotonic clock, comparable between processes
    by      who: the name of a worker or producer, the same over its reconnects
    op      submit, reserve, settle, cancel, failed, gone or drain
    type    invoke (about to be sent), ok (answered), fail (refused: surely nothing happened) or unknown (no answer came)
    call    ties the events of one request together; a request that is sent again keeps its call

and by op and type:

    submit invoke   jobs: [[key, digest, priority], …]; the key is unique to the job and travels in its payload
    submit ok       ids: [id or null, …] in the same order; null: this job was refused
    reserve ok      jobs: [[id, fence, key, digest], …] in the order of the answer
    settle invoke   leases: [[id, fence, outcome], …]
    settle ok       outcomes: ["OK", "REPEATED" or an error's code, …]
    cancel ok       ids, outcomes: ["cancelled", "requested" or an error's code, …]
    failed ok       ids of jobs that the broker gave up, as too many of their workers died
    gone ok         the connection of `by` ended, or its process; `by` "broker": the broker's did, and so everybody's connection
    drain ok        faults are over, and all that could come out came out

After Jepsen's total-queue checker (reliability of queues: lost and unexpected must be empty) with leases added.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

_FINISHES = ("ack", "fail")

#: The life of a job as its deliveries tell it: what it may be next. "expired": its worker was silent for a lease.
_WAITING, _HELD, _DONE = "waiting", "held", "done"
_MOVES = {
    (_WAITING, "delivered"): _HELD, (_HELD, "finished"): _DONE,
    (_HELD, "given back"): _WAITING, (_HELD, "gone"): _WAITING, (_HELD, "expired"): _WAITING,
}


def load(paths: Iterable[Path]) -> list[dict]:
    """Read and merge histories in order of time. A last line that was cut off by a kill is left out.

    Raises ValueError for any other line that is not JSON.
    """
    events: list[dict] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        events.extend(json.loads(line) for line in lines[:-1] if line)
    return sorted(events, key=lambda event: event["at"])


@dataclass
class Report:
    """What a history says. Each list holds sentences; all but `recovered` and `counts` must be empty.

    Attributes:
        lost: acknowledged submits that never came out. unfinished: acknowledged, came out, and nobody could finish them
            (a finish without an answer may have been accepted).
        unexpected: came out but was never submitted, or not so. duplicated: came out or finished again after it must not.
        fences: a fence that did not grow, or a settle accepted from somebody who was not the holder.
        order: an answer, or one consumer's deliveries, against priority or first in, first out.
        recovered: keys of submits without an acknowledgement that came out anyway (allowed).
        counts: how many events of each kind there were, as "op type".
    """

    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    fences: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def faults(self) -> list[str]:
        """All that must not be."""
        return [f"{name}: {sentence}" for name in ("lost", "unfinished", "unexpected", "duplicated", "fences", "order")
                for sentence in getattr(self, name)]


@dataclass
class _Job:
    """What was submitted under one key."""

    key: str
    digest: str
    priority: int
    call: str
    place: int  # in its submit
    invoked_at: int  # first sent
    acked_at: int | None = None
    ids: set[int] = field(default_factory=set)  # as acknowledged
    was_refused: bool = False


@dataclass
class _Delivery:
    """One lease as its worker received it."""

    at: int
    reserved_at: int  # when the reserve was sent
    by: str
    job: int
    fence: int
    key: str


@dataclass
class _Settle:
    """One lease of one settle."""

    invoked_at: int
    by: str
    job: int
    fence: int
    outcome: str
    answers: list[str] = field(default_factory=list)  # in order; empty: unknown


def check(events: list[dict], *, one_consumer: bool = False, lease_s: float | None = None) -> Report:
    """Judge a history.

    Args:
        events: as `load` returns them. Without a drain at the end nothing can be said to be lost.
        one_consumer: True if a single worker reserved, one request at a time, and the broker never died: then the order over
            all answers is checked too, not only inside each.
        lease_s: the broker's, if the history has every `gone`: then a job may come out again only where the lease rules allow
            it, that is when it was given back, when who held it is gone, or silent for so long.

    Raises ValueError for a history that has no drain as its last event, or an event that is not described above.
    """
    if not events or (events[-1]["op"], events[-1]["type"]) != ("drain", "ok"):
        raise ValueError("a history must end with a drain: before it, what did not come out yet is not lost")
    checker = _Checker()
    for event in events:
        checker.take(event)
    return checker.judge(one_consumer=one_consumer, lease_s=lease_s)


class _Checker:
    """Sorts the events, then judges each job by itself."""

    def __init__(self) -> None:
        self.report = Report()
        self.jobs: dict[str, _Job] = {}
        self.by_call: dict[str, list[_Job]] = {}
        self.reserved: dict[str, int] = {}  # call -> sent at
        self.answers: list[list[_Delivery]] = []
        self.deliveries: dict[int, list[_Delivery]] = defaultdict(list)
        self.digests: dict[tuple[int, int], str] = {}
        self.settles: dict[str, list[_Settle]] = {}
        self.cancelled: dict[int, int] = {}  # job -> when the answer came
        self.given_up: set[int] = set()
        self.disordered: set[int] = set()  # jobs whose fences did not grow
        self.gone: dict[str, list[int]] = defaultdict(list)  # who -> when, in order
        self.sent: dict[str, list[int]] = defaultdict(list)  # who -> when it sent something, in order

    def take(self, event: dict) -> None:
        """Note one event."""
        kind = f"{event['op']} {event['type']}"
        self.report.counts[kind] += 1
        if event["type"] == "invoke":
            self.sent[event["by"]].append(event["at"])
        handle = getattr(self, "_" + kind.replace(" ", "_"), None)
        if handle is not None:
            handle(event)
        elif event["op"] not in ("submit", "reserve", "settle", "cancel", "failed", "gone", "drain") or event["type"] not in (
                "invoke", "ok", "fail", "unknown"):
            raise ValueError(f"an event of no known kind: {event}")

    # -- noting -------------------------------------------------------------------------------------------------------------

    def _submit_invoke(self, event: dict) -> None:
        if event["call"] in self.by_call:
            return  # sent again
        jobs = [_Job(key, digest, priority, event["call"], place, event["at"])
                for place, (key, digest, priority) in enumerate(event["jobs"])]
        self.by_call[event["call"]] = jobs
        self.jobs.update((job.key, job) for job in jobs)

    def _submit_ok(self, event: dict) -> None:
        for job, job_id in zip(self.by_call[event["call"]], event["ids"], strict=True):
            if job_id is None:
                job.was_refused = True
                continue
            job.ids.add(job_id)
            if job.acked_at is None:
                job.acked_at = event["at"]

    def _submit_fail(self, event: dict) -> None:
        for job in self.by_call[event["call"]]:
            job.was_refused = True

    def _reserve_invoke(self, event: dict) -> None:
        self.reserved[event["call"]] = event["at"]

    def _reserve_ok(self, event: dict) -> None:
        answer: list[_Delivery] = []
        for job_id, fence, key, digest in event["jobs"]:
            delivery = _Delivery(event["at"], self.reserved.get(event["call"], 0), event["by"], job_id, fence, key)
            answer.append(delivery)
            self.deliveries[job_id].append(delivery)
            self._expect(delivery, digest)
        self.answers.append(answer)

    def _expect(self, delivery: _Delivery, digest: str) -> None:
        job = self.jobs.get(delivery.key)
        what = f"job {delivery.job} with key {delivery.key!r} came out"
        if job is None or job.invoked_at > delivery.at:
            self.report.unexpected.append(f"{what}, but nobody had submitted it")
        elif job.digest != digest:
            self.report.unexpected.append(f"{what} with another payload than it went in with")
        elif job.ids and delivery.job not in job.ids:
            self.report.unexpected.append(f"{what}, but it was acknowledged as {sorted(job.ids)}")
        elif job.was_refused and not job.ids:
            self.report.unexpected.append(f"{what}, but it had been refused")

    def _settle_invoke(self, event: dict) -> None:
        if event["call"] not in self.settles:
            self.settles[event["call"]] = [
                _Settle(event["at"], event["by"], job_id, fence, outcome) for job_id, fence, outcome in event["leases"]]

    def _settle_ok(self, event: dict) -> None:
        for settle, outcome in zip(self.settles[event["call"]], event["outcomes"], strict=True):
            settle.answers.append(outcome)

    def _cancel_ok(self, event: dict) -> None:
        for job_id, outcome in zip(event["ids"], event["outcomes"], strict=True):
            if outcome == "cancelled":
                self.cancelled.setdefault(job_id, event["at"])

    def _failed_ok(self, event: dict) -> None:
        self.given_up.update(event["ids"])

    def _gone_ok(self, event: dict) -> None:
        self.gone[event["by"]].append(event["at"])

    # -- judging ------------------------------------------------------------------------------------------------------------

    def judge(self, *, one_consumer: bool, lease_s: float | None) -> Report:
        """Return the report."""
        settles: dict[int, list[_Settle]] = defaultdict(list)
        for call in self.settles.values():
            for settle in call:
                settles[settle.job].append(settle)
        for job in self.jobs.values():
            self._judge_submit(job, settles)
        ids_by_key: dict[str, set[int]] = defaultdict(set)
        for job_id, deliveries in self.deliveries.items():
            self._judge_deliveries(job_id, deliveries)
            for delivery in deliveries:
                ids_by_key[delivery.key].add(job_id)
        for key, ids in ids_by_key.items():
            if len(ids) > 1:
                self.report.duplicated.append(f"key {key!r} came out as jobs {sorted(ids)}")
            if key in self.jobs and not self.jobs[key].ids:
                self.report.recovered.append(key)
        for job_id, of_job in settles.items():
            self._judge_settles(job_id, of_job)
        if lease_s is not None:
            for job_id, deliveries in self.deliveries.items():
                self._judge_life(deliveries, settles.get(job_id, []), round(lease_s * 1e9))
        for answer in self.answers:
            self._judge_answer(answer)
        if one_consumer:
            self._judge_order()
        return self.report

    def _judge_submit(self, job: _Job, settles: dict[int, list[_Settle]]) -> None:
        if len(job.ids) > 1:
            self.report.duplicated.append(f"key {job.key!r} was acknowledged as jobs {sorted(job.ids)}")
        for job_id in job.ids:
            if job_id in self.cancelled:
                continue
            if job_id in self.given_up:
                self._judge_given_up(job_id, settles.get(job_id, []))
            elif job_id not in self.deliveries:
                self.report.lost.append(f"job {job_id} with key {job.key!r} was acknowledged and never came out")
            elif not any(settle.outcome in _FINISHES and self._may_be_accepted(settle)
                         for settle in settles.get(job_id, ())):
                self.report.unfinished.append(f"job {job_id} with key {job.key!r} came out and no finish of it was accepted")

    def _judge_given_up(self, job_id: int, settles: list[_Settle]) -> None:
        """Nobody had finished it, and a worker that had it died; or any did, if all died before they read that they had it."""
        deliveries = self.deliveries.get(job_id, [])
        if any(settle.outcome in _FINISHES and ("OK" in settle.answers or "REPEATED" in settle.answers) for settle in settles):
            self.report.duplicated.append(f"job {job_id} was finished, and then given up")
        elif not any(at > delivery.at for delivery in deliveries for who in (delivery.by, "broker") for at in self.gone[who]):
            if deliveries or not any(self.gone.values()):
                self.report.unfinished.append(f"job {job_id} was given up, but no worker that had it is gone")

    def _may_be_accepted(self, settle: _Settle) -> bool:
        """Tell whether a settle was accepted, or who sent it died before it could hear."""
        if settle.answers:
            return "OK" in settle.answers or "REPEATED" in settle.answers
        return bool(self.gone[settle.by]) and self.gone[settle.by][-1] > self.sent[settle.by][-1]

    def _judge_deliveries(self, job_id: int, deliveries: list[_Delivery]) -> None:
        """Deliveries are in order of time: each has a higher fence than the one before, none comes twice or after a cancel."""
        for before, after in zip(deliveries, deliveries[1:]):
            if after.fence == before.fence:
                self.report.duplicated.append(f"job {job_id} came out twice under fence {after.fence}")
            elif after.fence < before.fence:
                self.disordered.add(job_id)
                self.report.fences.append(f"job {job_id} came out under fence {after.fence} after {before.fence}")
        cancelled_at = self.cancelled.get(job_id)
        for delivery in deliveries:
            if cancelled_at is not None and delivery.reserved_at > cancelled_at:
                self.report.duplicated.append(f"job {job_id} came out under fence {delivery.fence} after it was cancelled")

    def _judge_life(self, deliveries: list[_Delivery], settles: list[_Settle], lease_ns: int) -> None:
        """Replay one job: each delivery, and how its lease ended before the next one. Done stays done is judged with the settles."""
        state = _WAITING
        by_fence: dict[int, list[_Settle]] = defaultdict(list)  # a job that was nacked 10,000 times has as many of each
        for settle in settles:
            by_fence[settle.fence].append(settle)
        for delivery, after in zip(deliveries, [*deliveries[1:], None]):
            state = _MOVES.get((state, "delivered"), state)
            end = self._end_of(delivery, by_fence[delivery.fence], after.at if after is not None else None, lease_ns)
            state = _MOVES.get((state, end), state)
            if after is not None and state == _HELD:
                self.report.duplicated.append(f"job {after.job} came out under fence {after.fence} while {delivery.by} held it under "
                                              f"fence {delivery.fence}")

    def _end_of(self, delivery: _Delivery, of_lease: list[_Settle], before: int | None, lease_ns: int) -> str:
        """Tell how a lease ended, before the moment when its job came out again."""
        if any(settle.outcome in _FINISHES and ("OK" in settle.answers or "REPEATED" in settle.answers) for settle in of_lease):
            return "finished"
        if before is None:
            return "open"
        if any(settle.outcome not in _FINISHES and settle.invoked_at < before for settle in of_lease):
            return "given back"
        # It was granted between its reserve and its answer, and may have been read after the end of the connection.
        if any(delivery.reserved_at < at < before for who in (delivery.by, "broker") for at in self.gone[who]):
            return "gone"
        sent = self.sent[delivery.by]
        latest = sent[bisect_left(sent, before) - 1] if sent and sent[0] < before else delivery.reserved_at
        return "expired" if before - latest >= lease_ns else "open"

    def _judge_settles(self, job_id: int, settles: list[_Settle]) -> None:
        finished: set[int] = set()
        for settle in settles:
            if "OK" not in settle.answers and "REPEATED" not in settle.answers:
                continue
            # REPEATED to a nack says that the job is in its queue already and changes nothing: no matter who says it.
            if settle.outcome in _FINISHES or "OK" in settle.answers:
                self._judge_holder(settle)
            if settle.outcome in _FINISHES:
                finished.add(settle.fence)
        oks = Counter(settle.fence for settle in settles if settle.outcome in _FINISHES
                      for answer in settle.answers if answer == "OK")
        for fence, times in oks.items():
            if times > 1:
                self.report.duplicated.append(f"job {job_id} was finished {times} times under fence {fence}")
        if len(finished) > 1:
            self.report.duplicated.append(f"job {job_id} was finished under fences {sorted(finished)}")

    def _judge_holder(self, settle: _Settle) -> None:
        """An accepted settle is of a lease that this worker had, and no later lease was out when it was sent."""
        what = f"{settle.outcome} of job {settle.job} under fence {settle.fence} by {settle.by} was accepted"
        deliveries = self.deliveries.get(settle.job, [])
        if len(deliveries) > 100 and settle.job not in self.disordered:
            # Of a job that came out 10,000 times only what is about this lease and the next ones.
            place = bisect_left(deliveries, settle.fence, key=lambda delivery: delivery.fence)
            deliveries = deliveries[place:place + 100]
        if not any(delivery.fence == settle.fence and delivery.by == settle.by for delivery in deliveries):
            self.report.fences.append(f"{what}, but it had not been delivered to it")
            return
        for delivery in deliveries:
            if delivery.fence <= settle.fence:
                continue
            if delivery.at < settle.invoked_at:
                self.report.fences.append(f"{what} although fence {delivery.fence} was out")
            elif settle.outcome in _FINISHES:
                # A higher fence is a later lease, whenever its worker got to see it.
                self.report.duplicated.append(f"{what}, and then it came out under fence {delivery.fence}")

    def _judge_answer(self, answer: list[_Delivery]) -> None:
        """Inside one answer jobs stand by priority, then first in, first out where the history knows who was first."""
        jobs = [self.jobs[delivery.key] for delivery in answer if delivery.key in self.jobs]
        latest: _Job | None = None  # of this priority so far, the one sent last
        for job in jobs:
            if latest is not None and job.priority < latest.priority:
                self.report.order.append(f"key {job.key!r} of priority {job.priority} stood behind {latest.key!r} of "
                                         f"{latest.priority} in an answer")
            elif latest is not None and job.priority == latest.priority and _is_before(job, latest):
                self.report.order.append(f"key {job.key!r} stood behind {latest.key!r}, submitted later, in an answer")
            if latest is None or job.priority != latest.priority or (job.invoked_at, job.place) > (latest.invoked_at, latest.place):
                latest = job

    def _judge_order(self) -> None:
        """With one consumer each first delivery is the best job that had surely been there when its reserve was sent."""
        waiting: dict[int, list[tuple[int, int, str]]] = defaultdict(list)  # priority -> heap by acknowledgement
        for job in self.jobs.values():
            if job.acked_at is not None and not job.ids & self.cancelled.keys():
                heappush(waiting[job.priority], (job.acked_at, job.place, job.key))
        seen: set[str] = set()
        for answer in self.answers:
            for delivery in answer:
                job = self.jobs.get(delivery.key)
                if job is None or delivery.key in seen:
                    continue
                seen.add(delivery.key)
                self._judge_best(job, delivery, waiting, seen)

    def _judge_best(self, job: _Job, delivery: _Delivery, waiting: dict[int, list[tuple[int, int, str]]], seen: set[str]) -> None:
        for priority in sorted(waiting):
            heap = waiting[priority]
            while heap and heap[0][2] in seen:
                heappop(heap)
            if priority > job.priority or not heap:
                continue
            acked_at, _, key = heap[0]
            if acked_at < delivery.reserved_at and (priority < job.priority or _is_before(self.jobs[key], job)):
                self.report.order.append(f"key {job.key!r} of priority {job.priority} came out before {key!r} of {priority}")
                return


def _is_before(one: _Job, other: _Job) -> bool:
    """Tell whether one job was surely stored before the other."""
    if one.call == other.call:
        return one.place < other.place
    return one.acked_at is not None and one.acked_at < other.invoked_at
