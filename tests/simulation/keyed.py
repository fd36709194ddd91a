"""Jobs with unique keys: who submits them, in all modes, and the promises about them.

U1: a key has at most one job: until_done one that is not finished, debounce one that no worker ever got, throttle one a time. U2: of the
payloads that were accepted for a job the last one stands, and a later one than the last that was told; a debounced job waits until its time.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.simulation.actors import QUEUES, TASKS, Producer
from tests.simulation.world import Violation, World
from greenroom.job import FINISHED_STATES, Job

if TYPE_CHECKING:
    from tests.simulation.run import Run

#: In each n-th seed somebody submits jobs with keys again and again.
KEYED_EVERY = 4
#: Mode -> its keys: each mode has its own, so that what is promised of a key is the same for all its jobs.
KEYS = {"until_done": ("u1", "u2", "u3"), "throttle": ("t1", "t2"), "debounce": ("d1", "d2")}
THROTTLE_S = 4.0
EPSILON = 1e-6


class KeyedProducer(Producer):
    """Submits jobs that share a few keys, mostly so that the newest payload stands."""

    def __init__(self, run: Run, name: str, submits: int) -> None:
        super().__init__(run, name, submits)
        self.pace_s = 0.4
        self.rng = Random(f"keyed {run.seed}")  # its own, so that the others draw as they did

    def new_items(self) -> list[dict]:
        """Return the jobs of a submit, and tell the history of them."""
        return [self._new_item() for _ in range(self.rng.choice([1, 1, 2, 4, 8]))]

    def _new_item(self) -> dict:
        rng = self.rng
        mode = rng.choice([*KEYS, "debounce"])
        item: dict[str, object] = {"task": TASKS[0] if rng.random() < 0.9 else TASKS[1], "queue": rng.choice(QUEUES), "encoding": "raw",
                                   "payload": self.run.new_payload(rng.choice([0, 40, 700])), "priority": rng.choice([1, 5, 10]),
                                   "unique_key": rng.choice(KEYS[mode]), "unique_mode": mode}
        delay = None
        if mode == "debounce":
            delay = item["unique_for"] = rng.choice([0.1, 0.5, 3.0])
            if rng.random() < 0.5:
                item["debounce_max"] = 9.0
        else:
            if mode == "throttle":
                item["unique_for"] = THROTTLE_S
            if rng.random() < 0.3:
                delay = item["delay"] = rng.uniform(0.0, 8.0)
            item["on_duplicate"] = rng.choice(["keep", "replace", "replace"])
        self.history.note_spec(item, delay)
        return item


class KeyHistory:
    """What became of keys and payloads.

    Attributes:
        orders: job -> its payloads in the order in which the broker accepted them, of jobs that got another one; some were lost in a crash.
        coming: the payload of the submit that the engine is dealing with as a duplicate.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.orders: dict[int, list[bytes]] = {}
        self.coming: bytes | None = None
        self._accepted_at: dict[int, float] = {}  # job -> true time
        self._told: dict[int, int] = {}  # job -> place in its order of the latest payload that somebody was told of

    def duplicate(self, job: Job | None, payload: bytes, before: bytes | None, *, is_replaced: bool, was_known: bool) -> None:
        """The engine answered a duplicate.

        Args:
            job: who has the key. before: its payload as the history knows it. was_known: the engine had it in memory.
        """
        counts = self._world.counts
        counts["a duplicate of a job on disk"] += not was_known
        if not is_replaced:
            return
        # Running: its old payload would have had to be read, and a worker waited for that.
        if job.state in FINISHED_STATES or job.payload != payload:
            raise Violation(f"U2: {job} was told to have {payload!r}, has {job.payload!r}")
        counts["replaced"] += 1
        counts["replaced on disk"] += not was_known
        self.orders.setdefault(job.id, [before]).append(payload)

    def answered(self, items: list[dict], outcomes: list[object]) -> None:
        """The answer to a submit leaves: what it tells of payloads holds from now on."""
        for item, outcome in zip(items, outcomes):
            if isinstance(outcome, dict) and outcome.get("replaced"):
                order = self.orders[outcome["duplicate"]]
                place = len(order) - 1 - order[::-1].index(item["payload"])
                self._told[outcome["duplicate"]] = max(place, self._told.get(outcome["duplicate"], 0))

    def check(self, rows: dict[int, Job]) -> None:
        """All that is promised of keys and payloads, of the jobs as they are."""
        taken: dict[str, list[Job]] = {}
        begun: set[str] = set()  # keys of debounced jobs that a worker has or had
        for row in rows.values():
            if row.extras is None or row.extras.unique_key is None or row.state in FINISHED_STATES:
                continue
            if row.extras.unique_mode != "debounce" or not row.fence:
                taken.setdefault(row.extras.unique_key, []).append(row)
            else:
                begun.add(row.extras.unique_key)
        self._world.counts["a debounced job waits while another runs"] += any(key in taken for key in begun)
        for key, jobs in taken.items():
            if len(jobs) == 1:
                continue
            jobs.sort(key=lambda job: job.id)
            is_throttled = all(job.extras.unique_mode == "throttle" for job in jobs)
            if not is_throttled or any(self._are_too_near(first, later) for first, later in zip(jobs, jobs[1:])):
                raise Violation(f"U1: these jobs share the unique key {key}: {jobs}")
        for job_id, place in self._told.items():
            row = rows.get(job_id)
            if row is not None and row.payload is not None and row.payload not in self.orders[job_id][place:]:
                raise Violation(f"U2: job {job_id} has {row.payload!r}, it was told to have {self.orders[job_id][place]!r}")

    def _are_too_near(self, first: Job, later: Job) -> bool:
        """Tell whether a throttle let two jobs through, by the broker's clock, which a restart may set, and by the true time."""
        return (0 <= later.submitted_at - first.submitted_at < THROTTLE_S - EPSILON
                and self._accepted_at[later.id] - self._accepted_at[first.id] < THROTTLE_S - EPSILON)

    def accepted(self, job: Job) -> None:
        """A job was taken in."""
        self._accepted_at[job.id] = self._world.now

    def granted(self, job: Job, payload: bytes) -> None:
        """A worker gets a job: with the latest payload that was accepted."""
        if job.payload not in (payload, self.coming):
            raise Violation(f"U2: {job} begins with {job.payload!r}, its latest payload is {payload!r}")
        if job.extras is not None and job.extras.unique_mode == "debounce":
            self._world.counts["a debounced job began"] += 1
