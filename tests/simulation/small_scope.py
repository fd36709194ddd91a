"""A model checker: two jobs, two workers, the real engine, batches and memory store, and each interleaving of what they can do.

Breadth first: each action that is enabled in a state is tried in it, and a state that was met before, by other actions or with
the workers' roles swapped, is not entered again. Invariants are checked in every state. No sockets, and only virtual time.
"""

from __future__ import annotations

import io
import marshal
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from types import CellType, CodeType, FunctionType
from typing import NamedTuple

from greenroom.errors import GreenroomError
from greenroom.job import FINISHED_STATES, Job, State, rank_of
from greenroom.leases import BEATS_APART_S, Timing
from greenroom.records import SettleItem
from greenroom.sessions import Lease, Session
from tests.core import Core, Peer, check, new_job

#: Small numbers in this order: a checkpoint after 1 s (the engine's own), a reserve waits 2 s, a lease lasts 4 s.
TIMING = Timing(lease_s=4.0, heartbeat_s=1.0, reconnect_grace_s=0.5, restart_grace_s=8.0)
WAIT_S = 2.0
JOBS = 2
WORKERS = {"A": b"A" * 16, "B": b"B" * 16}

Action = tuple  # (what, worker or None, …)
Key = bytes


class Alphabet(NamedTuple):
    """Which actions a search tries, beyond submit, reserve, settle, connecting again and commits."""

    outcomes: tuple[str, ...] = ("ack", "nack")
    priorities: tuple[int, ...] = (5, 4)
    amounts: tuple[int, ...] = (1,)  # jobs asked for in a reserve
    beats: bool = True
    breaks: bool = True
    takeovers: bool = True
    byes: bool = False
    cancels: bool = True
    times: bool = True
    commits_in_steps: bool = True  # else each action is committed at once
    crashes: bool = True


# -- one world -----------------------------------------------------------------------------------------------------------------


class World:
    """A broker, a client and two workers, and what they were told.

    Attributes:
        peers: worker -> its connection, None while it has none.
        last: worker -> job -> the latest fence that it got for it, settled or not.
        submitted: how many jobs the client tried to submit. accepted, done, wanted: what was answered: jobs that are stored, jobs
        that are finished and how, jobs whose cancel is noted.
        final: jobs that are finished in memory; only a crash may forget one, and only before it was told.
    """

    def __init__(self) -> None:
        self.core = Core(timing=TIMING)
        self.client = self.core.connect("c", role="client")
        self.peers: dict[str, Peer | None] = {name: self.core.connect(name, instance=WORKERS[name]) for name in WORKERS}
        self.last: dict[str, dict[int, int]] = {name: {} for name in WORKERS}
        self.submitted = 0
        self.accepted: set[int] = set()
        self.done: dict[int, State] = {}
        self.wanted: set[int] = set()
        self.final: dict[int, State] = {}

    def actions(self, alphabet: Alphabet) -> Iterator[Action]:
        """Yield what can happen in this state."""
        core = self.core
        if self.submitted < JOBS:
            for priority in alphabet.priorities:
                yield "submit", None, priority
        for name in WORKERS:
            yield from self._actions_of(name, alphabet)
        if alphabet.cancels:
            asked = {sent.body for sent in self.client.sent.values() if sent is not None and sent.verb == "cancel"}
            for job_id in sorted(self.accepted - self.done.keys() - self.wanted - asked):
                yield "cancel", None, job_id
        if core.store.is_committing:
            yield "end", None
        elif core.batches.has_work:
            yield "begin", None
        if alphabet.times and self._next_due() is not None:
            yield "time", None
        if alphabet.crashes:
            yield "crash", None, False
            if core.store.is_committing:
                yield "crash", None, True

    def _actions_of(self, name: str, alphabet: Alphabet) -> Iterator[Action]:
        peer = self.peers[name]
        if peer is None:
            yield "connect", name
            return
        if peer.session.parked is None:
            for amount in alphabet.amounts:
                yield "reserve", name, amount
        for job_id, fence in self.last[name].items():
            for outcome in alphabet.outcomes:
                yield "settle", name, outcome, job_id, fence
        if alphabet.beats and (peer.session.leases or peer.held):
            yield "beat", name, True
            yield "beat", name, False
        if alphabet.breaks:
            yield "break", name
        if alphabet.byes:
            yield "bye", name
        if alphabet.takeovers and (peer.held or peer.session.leases):
            yield "connect", name  # it still looks alive: a takeover

    def do(self, action: Action, alphabet: Alphabet) -> None:
        """Let one thing happen, listen to what is told, and check what this action may change."""
        what, name, *more = action
        before = _leases(self.core)
        getattr(self, f"_{what}")(name, *more)
        if not alphabet.commits_in_steps:
            self.core.run()
        self._hear()
        for lease in before.keys() - _leases(self.core).keys():
            assert self._may_end(action, *lease, before[lease]), f"{action} ended the lease {lease}"

    # -- what can happen ----------------------------------------------------------------------------------------------------

    def _submit(self, _: None, priority: int) -> None:
        self.submitted += 1
        self.client.submit(new_job(priority=priority))

    def _reserve(self, name: str, amount: int) -> None:
        self.peers[name].reserve(amount, wait=WAIT_S)

    def _settle(self, name: str, outcome: str, job_id: int, fence: int) -> None:
        job = self.core.newest()[job_id]
        is_current = job.lease is not None and job.lease.fence == fence
        is_late = job.state is State.QUEUED and job.fence == fence == job.late_fence
        before = None if is_current or is_late else _facts(self.core)
        self.peers[name].settle(outcome, job_id, fence=fence)
        assert before in (None, _facts(self.core)), f"a stale lease of job {job_id} changed something"

    def _beat(self, name: str, listed: bool) -> None:
        peer = self.peers[name]
        leases = list(peer.held.items()) if listed else []
        lost, _ = self.core.engine.heartbeat(peer.session, leases, self.core.now, deliveries_written=peer.held_deliveries == 0)
        self.core.batches.collect()
        for job_id, fence in lost:
            assert (job_id, fence) not in _leases(self.core)
            peer.held.pop(job_id)

    def _break(self, name: str) -> None:
        self.peers[name].close()
        self.last[name].update(self.peers[name].held)
        self.peers[name] = None

    def _bye(self, name: str) -> None:
        self.peers[name].close(bye=True)
        self.peers[name] = None

    def _connect(self, name: str) -> None:
        old = self.peers[name]
        if old is not None:
            old.is_gone = True
        presented = list(self.last[name].items())
        self.peers[name] = self.core.connect(name, instance=WORKERS[name], presented=presented)

    def _cancel(self, _: None, job_id: int) -> None:
        self.client.cancel(job_id)

    def _begin(self, _: None) -> None:
        self.core.begin_cycle()

    def _end(self, _: None) -> None:
        self.core.end_cycle()

    def _time(self, _: None) -> None:
        self.core.clock.advance(max(0.0, self._next_due() - self.core.now))
        self.core.tick()

    def _crash(self, _: None, is_kept: bool) -> None:
        store = self.core.store
        if is_kept:  # the COMMIT reached the disk, but nobody was told
            store.is_committing = False
            store.commit()
        self.final.clear()
        self.core.crash_and_restart()
        for job_id, (fence, *_) in store._leases.items():
            assert (job_id, fence) in _leases(self.core), f"the lease of job {job_id} was on disk and is gone"
        self.client = self.core.connect("c", role="client")
        self.peers = dict.fromkeys(WORKERS)

    def _next_due(self) -> float | None:
        """Return when something is due; timers that were set again or belong to ended sessions do nothing when they come."""
        engine = self.core.engine
        return min((session.timer_at for session in engine.sessions.values() if session.timer_at is not None), default=None)

    # -- what must hold -----------------------------------------------------------------------------------------------------

    def _may_end(self, action: Action, job_id: int, fence: int, lease: Lease) -> bool:
        what, name, *more = action
        if what == "time":
            return self.core.now >= _ends_at(lease)
        if what == "crash":
            return True  # those on disk are looked at there
        if what == "settle":
            return tuple(more[1:]) == (job_id, fence)
        if what == "beat":
            is_missed = lease.missed_beats > 0 and self.core.now - lease.missed_at >= BEATS_APART_S
            return is_missed and lease.instance == WORKERS[name] and not more[0]
        return what in ("bye", "connect") and lease.instance == WORKERS[name]

    def _hear(self) -> None:
        """Note what client and workers were told since the last action, and forget the words."""
        for name, peer in (("", self.client), *self.peers.items()):
            if peer is None:
                continue
            for request_id, answer in peer.answers.items():
                if answer is not None:
                    self._hear_one(peer.sent[request_id].verb, peer.sent[request_id].body, answer)
                    peer.answers[request_id] = peer.sent[request_id] = None
            if name:
                self.last[name].update(peer.held)

    def _hear_one(self, verb: str, body: object, answer: dict | GreenroomError) -> None:
        if isinstance(answer, GreenroomError):
            return
        if verb == "submit":
            self.accepted.update(answer["jobs"])
        elif verb == "settle" and answer["outcomes"] == ["OK"] and body[0].outcome in ("ack", "fail"):
            self.done[body[0].job] = self.core.store.committed(body[0].job).state
        elif verb == "cancel" and answer["outcomes"] == ["cancelled"]:
            self.done[body] = State.CANCELLED
        elif verb == "cancel" and answer["outcomes"] == ["requested"]:
            self.wanted.add(body)

    def check(self) -> None:
        """Assert everything that holds in each state; raises AssertionError."""
        check(self.core)
        jobs, committed = self.core.newest(), self.core.store.committed
        assert len(jobs) <= JOBS
        held = [job_id for session in self.core.engine.sessions.values() for job_id in session.leases]
        assert len(held) == len(set(held)), "two valid leases of one job"
        for job_id, job in jobs.items():
            assert (job.place, job.rank) == (job_id, rank_of(job.priority, job_id)), f"{job} lost its place"
            assert not job.cancel_requested or job.state is State.RUNNING or job.state in FINISHED_STATES, f"{job} runs again"
            assert self.final.get(job_id, job.state) is job.state, f"{job} was finished before"
            if job.state in FINISHED_STATES:
                self.final[job_id] = job.state
        # What was told is on disk, so that a crash in this state loses nothing of it.
        for job_id in self.accepted:
            assert committed(job_id) is not None, f"job {job_id} was accepted and would be lost"
        for job_id, state in self.done.items():
            assert jobs[job_id].state is committed(job_id).state is state, f"job {job_id} was told to be {state.label}"
        for job_id in self.wanted:
            row = committed(job_id)
            assert row.cancel_requested or row.state in FINISHED_STATES, f"the cancel of job {job_id} would be lost"

    def drain(self) -> None:
        """Heal and finish: both workers come back, take what there is and ack it; then every job that was accepted is over."""
        core = self.core
        if core.store.is_committing:
            core.end_cycle()
        core.run()
        for name in WORKERS:
            if self.peers[name] is not None:
                self._break(name)
        core.advance(TIMING.restart_grace_s)
        last = core.connect("last", instance=b"L" * 16)
        for _ in range(JOBS + 1):
            request_id = last.reserve(JOBS)
            core.run()
            if last.ids(request_id):
                last.settle("ack", *last.ids(request_id))
                core.run()
        check(core)
        for job_id in self.accepted:
            state = core.store.committed(job_id).state
            assert state in FINISHED_STATES and self.done.get(job_id, state) is state, f"job {job_id} ended {state.label}"


def _leases(core: Core) -> dict[tuple[int, int], Lease]:
    return {(job_id, lease.fence): lease for session in core.engine.sessions.values() for job_id, lease in session.leases.items()}


def _ends_at(lease: Lease) -> float:
    if lease.session.grace_until is not None:
        return lease.session.grace_until
    if lease.deadline is not None:
        return lease.deadline
    return max(lease.session.last_seen, lease.granted_at) + TIMING.lease_s


def _facts(core: Core) -> list[tuple]:
    """Return everything about jobs that a request with a stale lease must not change."""
    return [(job.id, job.state, job.fence, job.attempt, job.crashes, job.requeues, job.cancel_requested, job.result, job.lease,
             job.id in core.engine.effects.dirty) for job in core.newest().values()]


# -- when two worlds are the same --------------------------------------------------------------------------------------------


class _Names:
    """Numbers of one world as small ones: jobs by their order, fences by their order within a job, ranks by their place among
    those of the jobs, times as seconds from now."""

    def __init__(self, world: World, jobs: dict[int, Job]) -> None:
        core = world.core
        self.now = core.now
        self.ids = sorted(jobs)
        self.jobs = {job_id: place for place, job_id in enumerate(self.ids)}
        self._ranks = sorted(job.rank for job in jobs.values())
        store = vars(core.store)  # past the watch on its methods
        fences: dict[int, set[int]] = {job_id: {job.fence, job.late_fence, job.stored_lease} for job_id, job in jobs.items()}
        for rows in (store["_jobs"], store["_seen"]):
            for job_id, row in rows.items():
                fences[job_id].add(row.fence)
        for job_id, fence in _fences_on_their_way(world):
            fences.setdefault(job_id, set()).add(fence)
        self._fences = {job_id: {fence: place for place, fence in enumerate(sorted(found | {0}))}
                        for job_id, found in fences.items()}

    def fence(self, job_id: int, fence: int) -> int:
        return self._fences[job_id][fence]

    def rank(self, rank: int | None) -> int | None:
        if rank is None:
            return None
        return sum((rank > other) + (rank >= other) for other in self._ranks)

    def until(self, at: float | None) -> float | None:
        return None if at is None else round(at - self.now, 6)

    def answer(self, answer: object) -> tuple:
        """Name an answer that waits for a COMMIT."""
        if isinstance(answer, GreenroomError):
            return (answer.code,)
        if "jobs" in answer:
            return tuple(self.jobs[job] if isinstance(job, int) else (self.jobs[job[0]], self.fence(job[0], job[1]))
                         for job in answer["jobs"])
        return tuple(outcome.code if isinstance(outcome, GreenroomError) else outcome for outcome in answer["outcomes"])

    def request(self, body: object, verb: str) -> tuple:
        """Name a request that was not answered yet."""
        if verb == "settle":
            item: SettleItem = body[0]
            return verb, self.jobs[item.job], self.fence(item.job, item.fence), item.outcome
        return (verb, self.jobs[body]) if verb == "cancel" else (verb,)


def _fences_on_their_way(world: World) -> Iterator[tuple[int, int]]:
    """Yield (job, fence) of all that workers know, of what they asked and of what they will be answered."""
    for name, peer in world.peers.items():
        yield from world.last[name].items()
        for sent in peer.sent.values() if peer is not None else ():
            if sent is not None and sent.verb == "settle":
                yield sent.body[0].job, sent.body[0].fence
    for batch in (world.core.batches._closed, world.core.batches._gathering):
        for to, request_id, answer in batch.leaving if batch is not None else ():
            if to in world.peers.values() and to is not None and isinstance(answer, dict) and "jobs" in answer:
                yield from ((job[0], job[1]) for job in answer["jobs"] if not isinstance(job, int))


def key_of(world: World) -> Key:
    """Return the same for two worlds exactly if nothing that can happen later tells them apart."""
    core, engine, batches, store = world.core, world.core.engine, world.core.batches, vars(world.core.store)
    jobs = core.newest()
    names = _Names(world, jobs)
    leases_on_disk = (store["_saved"] or store)["_leases"]
    shown = tuple((_job_key(jobs[job_id], names, engine.jobs), _row_key(store["_jobs"].get(job_id), names),
                   _row_key(store["_seen"].get(job_id), names), job_id in world.accepted, int(world.done.get(job_id, 0)),
                   job_id in world.wanted) for job_id in names.ids)
    lanes = tuple((names.rank(lane.edge), names.rank(lane.offered) if lane.groups else 0, lane.is_filling, lane.in_memory)
                  for lane in engine.lanes.values())
    orders = sorted(session.parked.order for session in engine.sessions.values() if session.parked is not None)
    workers = sorted((_worker_key(world, name, names, orders, leases_on_disk) for name in WORKERS), key=repr)
    closed = None if batches._closed is None else tuple(names.jobs[job_id] for job_id in sorted(batches._closed.dirty))
    gathering = tuple(names.jobs[job_id] for job_id in sorted(batches._gathering.dirty))
    batch = (store["is_committing"], closed, gathering, batches._store_changed, len(batches._refills),
             tuple(_load_key(names, ids, loaded) for ids, loaded, _ in batches._loads))
    whole = (world.submitted, shown, lanes, workers, _peer_key(world, world.client, names), batch)
    return blake2b(marshal.dumps(whole, 2), digest_size=12).digest()  # version 2: equal values, equal bytes


def _load_key(names: _Names, ids: list[int], loaded: FunctionType) -> tuple:
    """Name a request that waits for a look into the store: those are answered in order."""
    held = [cell.cell_contents for cell in loaded.__closure__]
    settles = [item for things in held if isinstance(things, list) for item in things if isinstance(item, SettleItem)]
    return names.jobs[ids[0]], tuple((names.fence(item.job, item.fence), item.outcome) for item in settles)


def _job_key(job: Job, names: _Names, in_memory: dict[int, Job]) -> tuple:
    return (job.priority, int(job.state), names.fence(job.id, job.fence), names.fence(job.id, job.late_fence), job.crashes,
            job.cancel_requested, job.checkpoint, int(job.stored_state), names.fence(job.id, job.stored_lease),
            job.id in in_memory)


def _row_key(row: Job | None, names: _Names) -> tuple | None:
    return None if row is None else (int(row.state), names.fence(row.id, row.fence), row.crashes, row.cancel_requested)


def _worker_key(world: World, name: str, names: _Names, orders: list[int], leases_on_disk: dict) -> tuple:
    """Everything about one worker, without its name: the workers are alike, so the keys of both are sorted."""
    instance = WORKERS[name]
    session = world.core.engine._instances.get(instance)
    peer = world.peers[name]
    known = tuple(sorted((names.jobs.get(job_id, -1), names.fence(job_id, fence)) for job_id, fence in world.last[name].items()))
    stored = tuple(tuple(sorted((names.jobs[job_id], names.fence(job_id, fence)) for job_id, (fence, by, *_) in rows.items()
                                if by == instance)) for rows in (world.core.store._leases, leases_on_disk))
    believed = () if peer is None else tuple(sorted((names.jobs[job_id], names.fence(job_id, fence))
                                                    for job_id, fence in peer.held.items()))
    return (known, stored, believed, None if peer is None else _peer_key(world, peer, names),
            None if session is None else _session_key(session, names, orders))


def _session_key(session: Session, names: _Names, orders: list[int]) -> tuple:
    leases = tuple((names.jobs[job_id], names.fence(job_id, lease.fence), names.until(_ends_at(lease)),
                    None if lease.job.checkpoint else names.until(lease.granted_at), lease.missed_beats,
                    max(-BEATS_APART_S, names.until(lease.missed_at)) if lease.missed_beats else 0)
                   for job_id, lease in session.leases.items())
    parked = session.parked
    waits = None if parked is None else (names.until(parked.deadline), orders.index(parked.order), parked.n,
                                         session in session.group.waiters)
    heap = None if session.group is None else tuple(names.rank(entry[0]) for entry in session.group._heap[:1])
    return names.until(session.grace_until), leases, waits, heap, names.until(session.timer_at)


def _peer_key(world: World, peer: Peer, names: _Names) -> tuple:
    batches = world.core.batches
    waiting = tuple((request_id, None if batch is batches._gathering else 1, names.answer(answer))
                    for batch in (batches._closed, batches._gathering) if batch is not None
                    for to, request_id, answer in batch.leaving if to is peer and request_id is not None)
    waiting_ids = {request_id: place for place, (request_id, *_) in enumerate(waiting)}
    open_requests = tuple((waiting_ids.get(request_id, -1), names.request(sent.body, sent.verb))
                          for request_id, sent in peer.sent.items() if sent is not None)
    return tuple(entry[1:] for entry in waiting), open_requests, peer.held_deliveries


# -- copies of worlds --------------------------------------------------------------------------------------------------------

_Lock = type(threading.Lock())


class _Pickler(pickle.Pickler):
    """Pickles a whole world: also functions that wait for the store, with what they hold, and the store's lock (a new one)."""

    def reducer_override(self, thing: object) -> object:
        if isinstance(thing, FunctionType) and thing.__closure__:
            _CODES[thing.__code__.co_qualname] = thing.__code__, thing.__globals__
            cells = [cell.cell_contents for cell in thing.__closure__]
            return _empty_function, (thing.__code__.co_qualname, len(cells)), cells, None, None, _fill_function
        if isinstance(thing, _Lock):
            return threading.Lock, ()
        if isinstance(thing, State):
            return f"State.{thing.name}"
        if isinstance(thing, Counter):
            return Counter, ()  # statistics that nothing depends on; and they take a tenth of the time
        return NotImplemented


_CODES: dict[str, tuple[CodeType, dict]] = {}


def _empty_function(name: str, cells: int) -> FunctionType:
    code, names = _CODES[name]
    return FunctionType(code, names, closure=tuple(CellType() for _ in range(cells)))


def _fill_function(function: FunctionType, values: list[object]) -> None:
    for cell, value in zip(function.__closure__, values):
        cell.cell_contents = value


def frozen(world: World) -> bytes:
    """Return a copy of a world for `pickle.loads`."""
    buffer = io.BytesIO()
    _Pickler(buffer, 5).dump(world)
    return buffer.getvalue()


# -- the search --------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a search covered."""

    states: int
    transitions: int
    by_depth: list[int]  # new states at each depth


class Broken(AssertionError):
    """An invariant does not hold; says after which actions."""

    def __init__(self, path: list[Action], cause: Exception) -> None:
        super().__init__(f"after {len(path)} actions {path}: {cause!r}")
        self.path = path


def search(depth: int, alphabet: Alphabet = Alphabet(), *, drains: int = 0,
           collisions: list[tuple[list[Action], list[Action]]] | None = None) -> Found:
    """Visit each state that is reachable in up to `depth` actions; raises Broken with the shortest way to a broken one.

    Args:
        drains: drain each n-th of the deepest states, too; 0: none.
        collisions: takes pairs of ways that lead to worlds with the same key.
    """
    begin = World()
    ways: dict[Key, tuple[Key | None, Action | None]] = {key_of(begin): (None, None)}
    layer = {key_of(begin): frozen(begin)}
    by_depth, transitions = [1], 0
    for level in range(1, depth + 1):
        following: dict[Key, bytes] = {}
        for key, copy in layer.items():
            world = pickle.loads(copy)
            actions = list(world.actions(alphabet))
            for number, action in enumerate(actions):
                transitions += 1
                if number:
                    world = pickle.loads(copy)
                reached = _step(world, action, alphabet, ways, key)
                if reached in ways:
                    if collisions is not None:
                        collisions.append((_way(ways, reached), [*_way(ways, key), action]))
                    continue
                ways[reached] = key, action
                _checked(world, ways, reached, drain=bool(drains) and len(ways) % drains == 0 and level == depth)
                following[reached] = frozen(world) if level < depth else b""
        by_depth.append(len(following))
        layer = following
    return Found(len(ways), transitions, by_depth)


def _step(world: World, action: Action, alphabet: Alphabet, ways: dict, key: Key) -> Key:
    try:
        world.do(action, alphabet)
        return key_of(world)
    except Exception as exc:
        raise Broken([*_way(ways, key), action], exc) from exc


def _checked(world: World, ways: dict, key: Key, *, drain: bool) -> None:
    try:
        world.check()
        if drain:
            world.drain()
    except Exception as exc:
        raise Broken(_way(ways, key), exc) from exc


def _way(ways: dict[Key, tuple[Key | None, Action | None]], key: Key) -> list[Action]:
    way: list[Action] = []
    while True:
        key, action = ways[key]
        if key is None:
            return way[::-1]
        way.append(action)


def replayed(way: list[Action], alphabet: Alphabet) -> World:
    """Return the world to which these actions lead."""
    world = World()
    for action in way:
        world.do(action, alphabet)
    return world
