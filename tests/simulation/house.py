"""One broker in virtual time: the real desk, conversations, engine and batches; hub, disk and process are simulated.

It may die at any named point of a commit cycle, stand still, or stop in order, and starts again. The history is told of it all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tests.core import FINISHED_LABELS, CheckedEngine, Sent, Watched, check
from tests.simulation.network import Wire
from tests.simulation.stores import SimStore
from tests.simulation.world import Sleep, Violation, World
from greenroom.backups import Backups
from greenroom.clock import Clock
from greenroom.conversation import SWEEP_S, Conversation, Conversations
from greenroom.desk import Desk, Step
from greenroom.engine import Engine
from greenroom.errors import DrainingError, GreenroomError, InternalError, StoreError, UnknownOutcomeError
from greenroom.job import RETRYABLE_STATES, Job, JobOptions, State
from greenroom.lanes import Lane, Window
from greenroom.leases import Caps, Timing
from greenroom.protocol import parse_settle
from greenroom.records import Lost
from greenroom.sessions import Session
from greenroom.stores import Reader
from greenroom.unique import Duplicate

if TYPE_CHECKING:
    from tests.simulation.history import History

#: Where in a cycle a process may die. "commit" is while the COMMIT runs: the disk may have it or not.
POINTS = ("start", "slice", "written", "commit", "committed", "left")
TICK_AT_LEAST_S = 1.0
TELL_EVERY_S = 0.02
#: A broker that was told to stop waits so long for its disk.
STOP_WITHIN_S = 5.0


class SimEngine(CheckedEngine):
    """The checked engine, which tells the history of each grant, requeue and finish."""

    house: House

    def _accept(self, *args: object) -> list[Job]:
        jobs = super()._accept(*args)
        for job in jobs:
            self.house.history.accepted(job)
        return jobs

    def _duplicate(self, job_id: int, options: JobOptions, payload: bytes, now: float, find: Callable) -> object:
        history = self.house.history
        was_known = job_id in self.jobs or job_id in self.effects.dirty or self.house.desk.in_memory(job_id) is not None
        history.keys.coming = payload
        outcome = super()._duplicate(job_id, options, payload, now, find)
        history.keys.coming = None
        if isinstance(outcome, Duplicate):
            job = self.effects.dirty.get(job_id) if outcome.replaced else None
            history.keys.duplicate(job, payload, history.payloads.get(job_id), is_replaced=outcome.replaced, was_known=was_known)
            if outcome.replaced:
                history.replaced(job, payload)
        return outcome

    def _enqueue_new(self, job: Job, place: int) -> None:
        if job.state is State.SCHEDULED:
            self.house.history.falls_due(job)
        super()._enqueue_new(job, place)

    def _grant(self, jobs: list[Job], lane: Lane, session: Session, now: float) -> None:
        super()._grant(jobs, lane, session, now)
        for job in jobs:
            self.house.history.granted(job, session, now)

    def _put_in(self, job: Job, place: int) -> None:
        self.house.history.changed(job)
        super()._put_in(job, place)

    def pause(self, *args: object) -> None:
        self.house.world.counts["pause"] += 1
        super().pause(*args)

    def _end_pauses(self, now: float) -> None:
        self.house.world.counts["a pause ends by itself"] += 1
        super()._end_pauses(now)

    def purge(self, *args: object) -> bool | None:
        purged = super().purge(*args)
        self.house.world.counts["a job is purged"] += purged is True
        return purged

    def refilled(self, lane: Lane, plan: object, rows: list[Job], *args: object) -> None:
        self.house.world.counts["refill"] += bool(rows)
        super().refilled(lane, plan, rows, *args)

    def scheduled_refilled(self, rows: list[Job], *args: object) -> None:
        self.house.world.counts["refill of scheduled jobs"] += bool(rows)
        super().scheduled_refilled(rows, *args)

    def _requeue(self, job: Job, now: float, reason: str) -> None:
        crashes, place = job.crashes, job.place
        self.house.history.requeued(job, job.lease, now, reason)
        super()._requeue(job, now, reason)
        self.house.history.was_requeued(job, crashes, place, reason)

    def _put_off(self, job: Job, at: float) -> None:
        self.house.world.counts["put off"] += 1
        super()._put_off(job, at)

    def retry(self, job_id: int, now: float, loaded: Job | Lost | None = None) -> str | None:
        if isinstance(loaded, Job) and loaded.state in RETRYABLE_STATES and not self.draining:
            self.house.history.retried(job_id)
            self.house.retried.add(job_id)
        return super().retry(job_id, now, loaded)

    def delete(self, job_id: int, loaded: Job | Lost | None = None) -> str | None:
        outcome = super().delete(job_id, loaded)
        if outcome is not None:
            self.house.history.deleting(job_id, loaded)
        return outcome

    def _time_out(self, *args: object) -> None:
        self.house.world.counts["timed out"] += 1
        super()._time_out(*args)

    def _finish(self, job: Job, to: State, *args: object) -> None:
        self.house.world.counts["expired"] += to is State.EXPIRED
        super()._finish(job, to, *args)
        self.house.history.finished(job)


class SimDesk(Desk):
    """The desk on virtual time."""

    def __init__(self, house: House, engine: Engine, store: SimStore, clock: Clock) -> None:
        self._house = house
        super().__init__(engine, store, clock.now, house.wake, clock.wall)
        self.backups = Backups(None, lambda work: None, lambda work: work())

    def replan(self) -> None:
        """See Desk."""
        self._house.replan()

    def read(self, ask: Callable[[Reader], object]) -> object:
        """See Desk. What is committed, now."""
        reader = self.store.reader()
        try:
            return ask(reader)
        finally:
            reader.close()

    def wait_for_commit(self, within_s: float) -> None:
        """See Desk. Others have no turn meanwhile: the cycle goes on at once."""
        if self.store.fail_apply or self.store.fail_commit:
            raise DrainingError("the disk stands still")
        self._house.finish_cycles()

    def breathe(self) -> None:
        """See Desk."""


class SimConversation(Conversation):
    """The real conversation; what it says is looked at before it leaves."""

    __slots__ = ("sent", "beats", "heard_at", "ended_at")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.sent: dict[int, dict] = {}
        self.beats = 0
        self.heard_at = self.opened_at
        self.ended_at: float | None = None

    def _handle(self, message: dict) -> None:
        house = self._owner.house
        if house.last_words:
            return
        self.sent[message["id"]] = message
        verb = message["verb"]
        if verb in ("hello", "reserve", "settle", "heartbeat", "report", "extend"):
            self.heard_at = house.now
        self.beats += verb == "heartbeat"
        house.history.handling(self, message)
        house.reserving = message["id"] if verb == "reserve" else None
        super()._handle(message)
        house.reserving = None

    def answer(self, request_id: int, answer: dict | GreenroomError) -> None:
        """Look at an answer, then let it go."""
        self._owner.house.leaves(self, request_id, answer)
        super().answer(request_id, answer)

    def notify(self, notice: dict) -> None:
        """Look at a notice, then let it go."""
        self._owner.house.tells(notice)
        super().notify(notice)

    def end(self) -> None:
        """Note when."""
        self.ended_at = self._owner.house.now
        super().end()


class SimConversations(Conversations):
    """The real ones, of this house."""

    kind = SimConversation

    def __init__(self, desk: Desk, house: House) -> None:
        super().__init__(desk)
        self.house = house


class BrokerEnd:
    """The broker's end of a wire: what a Stream is in the process."""

    def __init__(self, house: House, wire: Wire) -> None:
        self.house = house
        self.wire = wire
        self.received_at = house.now
        self.conversation = house.conversations.open(self, "sim:1")
        self.is_over = False
        self._out: list[bytes] = []
        self._life = house.life

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the peer's kernel does not have: while its receiver is stuck."""
        down = self.wire.down
        return down.on_way if self.house.world.now < down.stuck_until else 0

    def send(self, data: bytes) -> None:
        """See Outlet."""
        self._out.append(data)

    def flush(self) -> None:
        """See Outlet."""
        if self._out:
            self.wire.send_down(b"".join(self._out))
            self._out.clear()

    def abort(self, why: str) -> None:
        """See Outlet. The owner learns of it in its next turn."""
        self.house.world.note("broker aborts", self.conversation.session and self.conversation.session.name, why)
        self.house.world.after(0.0, self._end)

    def got(self, wire: Wire, data: bytes) -> None:
        """See End."""
        if self._life != self.house.life or self.is_over:
            return
        if self.house.sleep.puts_off(self.got, wire, data):
            return
        self.received_at = self.house.now
        self.conversation.take(data)
        if not self.conversation.is_open:
            self._end()

    def ended(self, wire: Wire) -> None:
        """See End."""
        self._end()

    def _end(self) -> None:
        if self._life != self.house.life or self.is_over or self.house.sleep.puts_off(self._end):
            return
        self.is_over = True
        self.conversation.end()
        self.house.conversations.forget(self.conversation)
        self.flush()
        self.wire.close_down()


class Alarm(logging.Handler):
    """The broker logs a traceback only for a bug of its own: that ends the run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise what was logged."""
        if record.exc_info:
            raise Violation(f"a bug was logged: {record.getMessage()}: {record.exc_info[1]!r}") from record.exc_info[1]


class House(Watched):
    """See the module.

    Attributes:
        is_up: it runs and accepts connections. life: counts its starts; what belongs to an earlier one is dead.
        crash_at: {point of the cycle: after so many visits}. sleep: the hub may stand still.
        last_words: the store failed, and only UNKNOWN may leave any more.
    """

    def __init__(self, world: World, store: SimStore, make_limits: Callable[[], tuple[Caps, Timing, Window]],
                 commit_s: Callable[[], float], check_every: int) -> None:
        super().__init__()
        self.world = world
        self.store = store
        self.history: History  # set by the run
        self.is_up = False
        self.life = 0
        self.crash_at: dict[str, int] = {}
        self.sleep = Sleep(world)
        self.last_words = False
        self.restart_after_s: Callable[[], float] = lambda: 0.5
        self.wires: list[Wire] = []
        self._make_limits = make_limits
        self._commit_s = commit_s
        self._check_every = check_every
        self._steps = 0

    @property
    def now(self) -> float:
        """The broker's clock."""
        return self.clock.now()

    # -- life ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a new life on what the store has."""
        self.life += 1
        self.clock = Clock()
        caps, timing, window = self._make_limits()
        self.engine = SimEngine(caps, timing, window)
        self.engine.core = self.engine.house = self
        self.last_words = False
        self._pump_waits = False
        self._cycle: Iterator[Step] | None = None
        self._timer = 0  # only the event with this number is the next tick
        self._tick_waits = False
        self._planned_at = 0.0
        self.is_stopping = False
        restored = self.store.open()
        self.history.restarted(restored)
        self.desk = SimDesk(self, self.engine, self.store, self.clock)
        self.batches, self.waits = self.desk.batches, self.desk.waits
        self.conversations = SimConversations(self.desk, self)
        self._tell_waits = False
        self.batches.events.on_news = self._news
        self.desk.restore(restored, timing.restart_grace_s)
        self.world.note("broker starts", f"life {self.life}", f"{len(restored.leases)} leases")
        self.is_up = True
        self.desk.after_call()
        self.finish_cycles()
        self.replan()
        self.world.after(SWEEP_S, self._sweep, self.life)

    def crash(self, why: str, *, may_keep: bool = False) -> None:
        """The process dies, and another one starts after a while."""
        self.world.note("broker dies:", why)
        self.world.counts["crash: " + why] += 1
        self._end_of_process()
        self.store.crash(may_keep=may_keep)
        self.history.crashed()
        self.world.after(self.restart_after_s(), self.start)

    def _end_of_process(self) -> None:
        self.is_up = False
        self.life += 1  # every event of the old life is void
        self.sleep = Sleep(self.world)
        self.crash_at.clear()
        wires, self.wires = self.wires, []
        for wire in wires:
            if not (wire.up.is_closed and wire.down.is_closed):
                wire.close_down()

    def stop(self) -> None:
        """Stop in order, and start again: drain, commit, close."""
        if not self.is_up or self.is_stopping:
            return
        self.world.note("broker drains")
        self.world.counts["stop in order"] += 1
        self.is_stopping = True
        self.engine.drain()
        self.desk.after_call()
        self.conversations.announce_drain()
        self._stop_when_idle(self.life, self.world.now + STOP_WITHIN_S)

    def _stop_when_idle(self, life: int, until: float) -> None:
        if life != self.life:
            return
        if not self.batches.is_idle and self.world.now < until:
            self.world.after(0.01, self._stop_when_idle, life, until)
            return
        for conversation in list(self.conversations._conversations):
            conversation.stream._end()
        if not self.batches.is_idle or self.store.fail_apply or self.store.fail_commit:
            self.crash("stopped while its disk stood still", may_keep=self.store.is_committing)
            return
        self._end_of_process()
        self.store.shut()
        self.history.crashed()
        self.history.kept = [(lease.job.id, lease.fence) for session in self.engine.sessions.values()
                             for lease in session.leases.values()]
        self.world.after(self.restart_after_s(), self.start)

    def is_done(self) -> bool:
        """Tell whether it runs and has nothing left to do."""
        return self.is_up and not self.is_stopping and not (self.engine.waiting or self.engine.leases)

    def accept(self, wire: Wire) -> bool:
        """Take in a connection; False: refused."""
        if not self.is_up or self.is_stopping:
            return False
        wire.broker = BrokerEnd(self, wire)
        self.wires = [other for other in self.wires if not (other.up.is_closed and other.down.is_closed)] + [wire]
        return True

    # -- time ---------------------------------------------------------------------------------------------------------------

    def replan(self) -> None:
        """Plan the next tick, as Dispatch does."""
        if not self.is_up or self.engine.draining:
            return
        due = self.desk.next_due()
        now = self.now
        if self._tick_waits and (due is None or due >= self._planned_at):
            return
        at = min(max(due, now), now + TICK_AT_LEAST_S) if due is not None else now + TICK_AT_LEAST_S
        if not self._tick_waits or at < self._planned_at:
            self._tick_waits = True
            self._planned_at = at
            self._timer += 1
            self.world.after(max(0.001, at - now), self._tick, self.life, self._timer)

    def _tick(self, life: int, timer: int) -> None:
        if life != self.life or timer != self._timer or self.engine.draining or self.sleep.puts_off(self._tick, life, timer):
            return
        late_s = self.now - self._planned_at
        if self.desk.note_lag(late_s):
            self.world.counts["stall forgiven"] += bool(self.engine.leases)
            self.history.forgave(late_s)
            self.world.after(0.02, self._do_tick, life)
        else:
            self._do_tick(life)

    def _do_tick(self, life: int) -> None:
        if life != self.life or self.engine.draining or self.sleep.puts_off(self._do_tick, life):
            return
        self.desk.tick()
        if self.world.chance(0.2):
            self.batches.prune_soon(self.now)
        self.history.ticked()
        self._tick_waits = False
        self.replan()
        self.stepped()

    def _news(self) -> None:
        """Something happened that subscribers may be told."""
        if not self._tell_waits:
            self._tell_waits = True
            self.world.after(TELL_EVERY_S, self._tell, self.life)

    def _tell(self, life: int) -> None:
        if life != self.life or self.sleep.puts_off(self._tell, life):
            return
        self._tell_waits = False
        for _ in self.desk.subscriptions.tell():
            pass
        if self.desk.subscriptions.are_behind:
            self._news()

    def _sweep(self, life: int) -> None:
        if life != self.life or self.sleep.puts_off(self._sweep, life):
            return
        self.conversations.sweep()
        self.world.after(SWEEP_S, self._sweep, life)

    # -- the pump -----------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is work for a cycle."""
        if self.is_up and not self._pump_waits and self._cycle is None:
            self._pump_waits = True
            self.world.after(0.0, self._pump, self.life)

    def _pump(self, life: int) -> None:
        if life != self.life or self.sleep.puts_off(self._pump, life):
            return
        self._pump_waits = False
        if self._cycle is None and self.batches.has_work and not self._dies("start"):
            self._cycle = self.desk.write()
            self._go_on(life)

    def _go_on(self, life: int) -> None:
        """Drive the cycle to its next step."""
        if life != self.life or self._cycle is None or self.store.is_committing or self.sleep.puts_off(self._go_on, life):
            return
        try:
            step = next(self._cycle, None)
        except StoreError as exc:
            self._store_failed(exc)
            return
        if step is Step.TURN:
            if not self._dies("slice"):
                self.world.after(0.001, self._go_on, life)
        elif step is Step.COMMIT:
            if not self._dies("written"):
                self.store.is_committing = True
                self.world.after(self._commit_s(), self._commit, life)
        else:
            self._end_cycle(life)

    def _commit(self, life: int) -> None:
        """The COMMIT returns, in its thread: whether the hub stands still or not."""
        if life != self.life or self._dies("commit", may_keep=True):
            return
        if not self.store.is_committing:
            return  # somebody needed it sooner
        self.store.is_committing = False
        try:
            self.store.commit()
        except StoreError as exc:
            self._store_failed(exc)
            return
        if not self._dies("committed"):
            self._go_on(life)

    def _end_cycle(self, life: int) -> None:
        self._cycle = None
        rows = self.batches._closed.has_rows and len(self.batches._closed.dirty)
        self.desk.committed()
        if rows:
            self.history.committed(rows)
        if self._dies("left"):
            return
        self.stepped()
        if self.batches.has_work:
            self._pump_waits = True
            self.world.after(0.0005, self._pump, life)

    def _dies(self, point: str, *, may_keep: bool = False) -> bool:
        if self.crash_at.get(point, 0) <= 0:
            return False
        self.crash_at[point] -= 1
        if self.crash_at[point]:
            return False
        self.crash(point, may_keep=may_keep)
        return True

    def _store_failed(self, exc: StoreError) -> None:
        """As Dispatch does: tell all who wait, and end."""
        self.world.note("the store fails:", exc)
        self.last_words = True
        self.batches.failed()
        self.crash("the store failed")

    def finish_cycles(self) -> None:
        """Go through cycles at once until nothing is pending; no crash comes in between."""
        for _ in range(1000):
            if self._cycle is None:
                if not self.batches.has_work:
                    return
                self._cycle = self.desk.write()
            elif self.store.is_committing:
                self.store.is_committing = False
                self.store.commit()
            for step in self._cycle:
                if step is Step.COMMIT:
                    self.store.commit()
            self._cycle = None
            self.desk.committed()
        raise Violation("the pump never comes to rest")

    # -- what is looked at --------------------------------------------------------------------------------------------------

    def looks_closely(self) -> bool:
        """See Watched."""
        return len(self.store._jobs) < 300 or self.world.chance(0.002)

    def stepped(self) -> None:
        """Recount everything, now and then."""
        self._steps += 1
        if self._steps % self._check_every == 0 and len(self.store._jobs) < 600:
            check(self)
            self.history.check_kept()

    def leaves(self, conversation: SimConversation, request_id: int, answer: dict | GreenroomError) -> None:
        """An answer leaves: look at it."""
        message = conversation.sent.get(request_id)
        if isinstance(answer, InternalError):
            raise Violation("the broker answers INTERNAL")
        if self.last_words and not isinstance(answer, UnknownOutcomeError):
            raise Violation(f"a COMMIT failed, and the answer is {answer!r}")
        if isinstance(answer, GreenroomError):
            self.history.refused(conversation, message, answer)
            return
        self.check_kept(_as_sent(message), answer)
        self.history.answered(conversation, message, answer)

    def tells(self, notice: dict) -> None:
        """A notice leaves: what it tells must be on disk."""
        for lease in notice["leases"] if notice.get("reason") == "soft_timeout" else ():
            self.history.told_to_stop(*lease)
        if notice["notice"] != "events":
            return
        if self.last_words:
            raise Violation("a COMMIT failed, and events are told")
        for event in notice["events"]:
            if "job" in event:
                self.check_event(event["job"], is_over=event["state"] in FINISHED_LABELS)


def _as_sent(message: dict) -> Sent:
    body: object = message.get("jobs")
    if message["verb"] == "settle":
        body = [parse_settle(item, 2**20) for item in message["leases"]]
    return Sent(message["verb"], body)
