"""Reserve groups: which lane serves whom next, however late a group comes and whatever another group took."""

from __future__ import annotations

import random

import pytest

from greenroom.groups import Group, Groups
from greenroom.job import Job, State, move, rank_of
from greenroom.lanes import Lane, Window
from greenroom.sessions import Session


class Hall:
    """Lanes and groups, tied as the engine ties them."""

    def __init__(self) -> None:
        self.groups = Groups()
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.window = Window()
        self.places = 0
        self.keys = 0

    def lane(self, task: str, queue: str = "q") -> Lane:
        if (queue, task) not in self.lanes:
            self.lanes[queue, task] = Lane(queue, task, self.window, [0] * 7)
            self.groups.add_lane(self.lanes[queue, task])
        return self.lanes[queue, task]

    def add(self, task: str, priority: int = 5) -> Job:
        lane = self.lane(task)
        self.places += 1
        job = Job(self.places, "q", task, priority, b"", False, 0.0)
        job.lane, job.rank = lane, rank_of(priority, self.places)
        lane.append(job)
        if job.rank < lane.offered:
            lane.offered = job.rank
            for group in lane.groups:
                group.offer(lane, job.rank)
        lane.count(State.QUEUED, 1)
        return job

    def join(self, queues: list[str] | None = None, tasks: list[str] | None = None) -> Session:
        self.keys += 1
        session = Session(self.keys, role="worker", name="w", instance=None, now=0.0)
        self.groups.join(session, None if queues is None else frozenset(queues), None if tasks is None else frozenset(tasks))
        return session

    @staticmethod
    def take(group: Group) -> Job | None:
        lane = group.best_lane()
        if lane is None:
            return None
        job, = lane.take(1, group.rival_rank(), 0)
        move(job, State.RUNNING)
        return job


def test_sessions_with_the_same_filter_share_a_group_that_goes_with_the_last() -> None:
    hall = Hall()
    lane = hall.lane("a")
    one, two, other = hall.join(tasks=["a", "b"]), hall.join(tasks=["b", "a"]), hall.join()
    assert one.group is two.group is not other.group and one.group.sessions == 2

    hall.groups.leave(one)
    assert len(lane.groups) == 2
    hall.groups.leave(two)

    assert lane.groups == [other.group] and list(hall.groups) == [other.group]


@pytest.mark.parametrize("queues, tasks, fits", [
    (None, None, True), (["q"], None, True), (None, ["a"], True), (["q"], ["a"], True), (["r"], None, False),
    (None, ["b"], False), ([], None, False), (None, [], False)])
def test_a_filter_left_out_means_any_and_an_empty_one_none(queues: list | None, tasks: list | None, fits: bool) -> None:
    hall = Hall()
    job = hall.add("a")
    session = hall.join(queues, tasks)

    assert hall.take(session.group) is (job if fits else None)


def test_the_best_head_among_the_lanes_comes_first() -> None:
    hall = Hall()
    session = hall.join()
    jobs = [hall.add("a", 5), hall.add("b", 9), hall.add("c", 1), hall.add("b", 2), hall.add("a", 5)]

    assert [hall.take(session.group) for _ in range(6)] == [jobs[2], jobs[3], jobs[0], jobs[4], jobs[1], None]


def test_a_group_made_while_a_lane_was_empty_hears_of_its_next_job() -> None:
    hall = Hall()
    early = hall.join()
    first = hall.add("a")
    assert hall.take(early.group) is first

    late = hall.join(tasks=["a"])
    second = hall.add("a")

    assert hall.take(late.group) is second


def test_a_group_made_later_hears_of_a_better_job_than_those_it_found() -> None:
    hall = Hall()
    early = hall.join()
    first = hall.add("a", 1)
    hall.add("b", 3)
    hall.add("a", 5)
    assert hall.take(early.group) is first

    late = hall.join(queues=["q"])
    better = hall.add("a", 2)

    assert hall.take(late.group) is better


@pytest.mark.parametrize("seed", range(5))
def test_whoever_takes_gets_the_best_job_that_it_can_run(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    hall = Hall()
    sessions: list[Session] = []
    for _ in range(2000):
        step = rng.random()
        if step < 0.45:
            hall.add(rng.choice("abcd"), rng.choice([1, 5, 9]))
        elif step < 0.55 and len(sessions) < 8:
            sessions.append(hall.join(rng.choice([None, ["q"]]), rng.choice([None, ["a"], ["a", "b"], ["c"]])))
        elif step < 0.62 and sessions:
            hall.groups.leave(sessions.pop(rng.randrange(len(sessions))))
        elif sessions:
            group = rng.choice(sessions).group
            heads = [lane.head() for lane in hall.lanes.values() if group.matches(lane) and lane.head() is not None]
            assert hall.take(group) is min(heads, key=lambda job: job.rank, default=None)
            assert len(group._heap) <= 64 + 4 * len(group.lanes) + 1
