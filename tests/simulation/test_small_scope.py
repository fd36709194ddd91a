"""Two jobs and two workers to depth ten, every interleaving; that the search misses nothing, and that it finds planted bugs."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from greenroom.batches import Batches, Peer
from greenroom.deadlines import DeadlineRules
from greenroom.effects import Delivery
from greenroom.engine import Engine
from greenroom.job import Job, rank_of
from greenroom.lanes import Lane
from greenroom.leases import LeaseRules
from greenroom.records import SettleItem
from greenroom.sessions import Session
from tests.simulation.small_scope import Action, Alphabet, Broken, Found, frozen, key_of, replayed, search

pytestmark = pytest.mark.timeout(300)

#: To depth ten in the everyday run: commits and crashes at each point of them, with cancels …
COMMITS = Alphabet(("ack",), (5,), beats=False, breaks=False, takeovers=False, times=False)
#: … and lost connections, leases that run out, late settles and reserves that wait, each action committed at once.
LEASES = Alphabet(("ack",), (5,), beats=False, takeovers=False, cancels=False, commits_in_steps=False, crashes=False)
#: With --long, the first two to depth ten.
LOST_BEATS = Alphabet(("ack",), (5,), breaks=False, takeovers=False, cancels=False, commits_in_steps=False, crashes=False)
BREAKS_AND_CRASHES = Alphabet(("ack", "nack"), (5,), beats=False, takeovers=False, cancels=False, times=False)
TOGETHER = Alphabet(commits_in_steps=False)
WIDE = Alphabet(outcomes=("ack", "fail", "nack", "crash"), amounts=(1, 2), byes=True)


def _searched(alphabet: Alphabet, depth: int) -> Found:
    began = time.monotonic()
    found = search(depth, alphabet, drains=20)
    print(f"depth {depth}: {found.states} states, {found.transitions} transitions, {time.monotonic() - began:.1f} s, {alphabet}")
    return found


@pytest.mark.parametrize(("alphabet", "depth"), [(COMMITS, 10), (LEASES, 10), (WIDE, 5)], ids=["commits", "leases", "wide"])
def test_every_interleaving_of_two_jobs_and_two_workers_keeps_the_promises(alphabet: Alphabet, depth: int) -> None:
    found = _searched(alphabet, depth)

    assert len(found.by_depth) == depth + 1 and all(found.by_depth), "there was nothing to do at some depth"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("alphabet", "depth"), [(LOST_BEATS, 10), (BREAKS_AND_CRASHES, 10), (TOGETHER, 8), (WIDE, 7)],
                         ids=["lost beats", "breaks and crashes", "together", "wide"])
def test_more_actions_keep_the_promises_in_every_interleaving(alphabet: Alphabet, depth: int) -> None:
    found = _searched(alphabet, depth)

    assert len(found.by_depth) == depth + 1 and all(found.by_depth)


def test_no_interleaving_is_missed_because_two_states_look_alike() -> None:
    """Without any notion of equal states the same ones are reached."""
    depth, alphabet = 4, Alphabet()
    ways: list[list[Action]] = [[]]
    plain = {key_of(replayed([], alphabet))}
    for _ in range(depth):
        ways = [[*way, action] for way in ways for action in replayed(way, alphabet).actions(alphabet)]
        for way in ways:
            world = replayed(way, alphabet)
            world.check()
            plain.add(key_of(world))

    found = search(depth, alphabet)

    print(f"{len(ways)} interleavings of {depth} actions reach {len(plain)} states")
    assert found.states == len(plain) < len(ways)


@pytest.mark.parametrize(("alphabet", "depth", "pairs"), [(WIDE, 4, 60), (COMMITS, 7, 60), (LEASES, 7, 60)])
def test_states_that_look_alike_behave_alike(alphabet: Alphabet, depth: int, pairs: int) -> None:
    """Two ways to what is called one state: the same can happen next in both, and leads to the same states again."""
    met: list[tuple[list[Action], list[Action]]] = []
    search(depth, alphabet, collisions=met)

    for one, other in random.Random(1).sample(met, pairs):
        assert _next_states(one, alphabet) == _next_states(other, alphabet), f"{one} and {other} are not the same"


def _next_states(way: list[Action], alphabet: Alphabet) -> list[tuple]:
    """Return what can happen after this way and where it leads, without the names of workers and the numbers of jobs."""
    copy = frozen(replayed(way, alphabet))
    following = []
    for action in pickle.loads(copy).actions(alphabet):
        world = pickle.loads(copy)
        world.do(action, alphabet)
        world.check()
        following.append((action[0], key_of(world)))
    return sorted(following)


# -- bugs that it must find --------------------------------------------------------------------------------------------------


@contextmanager
def _planted(owner: type, name: str, bug: Callable) -> Iterator[None]:
    """Wrap a method: `bug(original, self, *args)`."""
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **kwargs: bug(original, self, *args, **kwargs))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _fence_unchecked(settle: Callable, engine: LeaseRules, items: list[SettleItem], *rest: object) -> object:
    running = {job.id: job.lease.fence for job in engine.jobs.values() if job.lease is not None}
    return settle(engine, [item._replace(fence=running.get(item.job, item.fence)) for item in items], *rest)


def _ghost_lease(end_lease: Callable, engine: LeaseRules, job: Job) -> None:
    lease = job.lease
    end_lease(engine, job)
    lease.session.leases[job.id] = lease


def _place_reset(requeue: Callable, engine: LeaseRules, job: Job, *rest: object) -> None:
    job.place = engine.ids.take()
    job.rank = rank_of(job.priority, job.place)
    requeue(engine, job, *rest)


def _cancel_lost(requeue: Callable, engine: LeaseRules, job: Job, *rest: object) -> None:
    job.cancel_requested = False
    requeue(engine, job, *rest)


def _delivered_early(deliver: Callable, batches: Batches, delivery: Delivery) -> None:
    jobs = [[job.id, job.fence, job.task, job.payload] for job in delivery.jobs]
    delivery.session.conn.answer(delivery.request_id, {"jobs": jobs})


def _answered_early(hold: Callable, batches: Batches, peer: Peer, request_id: int, answer: object) -> None:
    peer.answer(request_id, answer)


def _expired_early(review: Callable, engine: LeaseRules, session: Session, now: float, limit: int) -> int:
    return review(engine, session, now + 1.5, limit)


def _grace_forgotten(close: Callable, engine: LeaseRules, session: Session, now: float, *, said_bye: bool) -> None:
    close(engine, session, now, said_bye=True)


def _lease_not_kept(restore: Callable, engine: LeaseRules, restored: object, *rest: object) -> None:
    restore(engine, restored._replace(leases=[]), *rest)


@pytest.mark.parametrize(("owner", "name", "bug", "alphabet"), [
    (LeaseRules, "settle", _fence_unchecked, LEASES),
    (Lane, "put_back", lambda put_back, lane, job: None, LEASES),
    (LeaseRules, "_end_lease", _ghost_lease, LEASES),
    (LeaseRules, "_requeue", _place_reset, LEASES),
    (LeaseRules, "_requeue", _cancel_lost, Alphabet(("nack",), (5,), breaks=False, takeovers=False, commits_in_steps=False)),
    (Batches, "_deliver", _delivered_early, COMMITS),
    (Batches, "hold", _answered_early, COMMITS),
    (DeadlineRules, "_review_leases", _expired_early, LEASES),
    (LeaseRules, "close_session", _grace_forgotten, LEASES),
    (Engine, "restore", _lease_not_kept, Alphabet(("ack",), (5,), commits_in_steps=False)),
], ids=["fence unchecked", "requeue lost", "ghost lease", "place reset", "cancel lost", "delivery before commit",
        "answer before commit", "lease ends early", "grace forgotten", "lease on disk forgotten"])
def test_a_planted_bug_is_found(owner: type, name: str, bug: Callable, alphabet: Alphabet) -> None:
    with _planted(owner, name, bug), pytest.raises(Broken) as found:
        search(8, alphabet)

    print(f"found after {len(found.value.path)} actions: {found.value}")
