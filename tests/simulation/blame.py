"""Who is blamed for a crash: a job that kills its worker takes each other job with it once at most (I12).

Poison jobs are those of the workers here, and their payloads are in a set; what the broker counts is looked at as it counts it.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.simulation.world import Violation
from greenroom.job import Job

if TYPE_CHECKING:
    from tests.simulation.house import House

#: In each n-th seed some jobs kill whoever runs them. A draw of its own, so that the other seeds stay the runs that they were.
POISONED_EVERY = 8
SHARE = 0.1

Lease = tuple[int, int]  # job id and fence


class Blame:
    """See the module.

    Attributes:
        poison: payloads of jobs that kill their worker.
    """

    def __init__(self, house: House) -> None:
        self.poison: set[bytes] = set()
        self._house = house
        self._rng = Random(f"poison {house.world.rng.getstate()[1][0]}")
        self._granted: dict[Lease, int] = {}  # how often the job had crashed when the lease was given
        self._died: dict[Lease, int] = {}  # leases of workers that died -> the job that killed them
        self._blamed: dict[tuple[int, int], set[int]] = {}  # (job, the job that killed its worker) -> which crashes of the job those were

    def submits(self, payload: bytes) -> None:
        """A job is submitted; now and then it is poison."""
        if self._rng.random() < SHARE:
            self.poison.add(payload)

    def granted(self, job: Job) -> None:
        """A lease was given."""
        self._granted[job.id, job.fence] = job.crashes

    def delivered(self, job_id: int, fence: int, told: list[int]) -> None:
        """A delivery leaves: it tells how often its job has crashed, if it has."""
        crashes = self._granted.get((job_id, fence), 0)
        if told != ([crashes] if crashes else []):
            raise Violation(f"I12: the delivery of job {job_id} tells {told}, it has crashed {crashes} times")

    def worker_died(self, job_id: int, leases: list[Lease]) -> None:
        """A job has killed its worker, which held these leases."""
        self._house.world.counts["a job kills its worker"] += 1
        self._house.world.counts["… and takes others with it"] += len(leases) > 1
        for lease in leases:
            self._died[lease] = job_id

    def crashed(self, job: Job) -> None:
        """A crash of a job was counted."""
        killer = self._died.get((job.id, job.fence))
        if killer is None or killer == job.id:
            return
        blamed = self._blamed.setdefault((job.id, killer), set())
        blamed.add(job.crashes)
        if len(blamed) > 1:
            raise Violation(f"I12: {job} is blamed for job {killer}, which killed its workers, for the crashes {sorted(blamed)}")

    def retried(self, job_id: int) -> None:
        """Somebody vouches for a job: it is a suspect no longer."""
        self._blamed = {pair: blamed for pair, blamed in self._blamed.items() if job_id not in pair}

    def broker_died(self, rows: dict[int, Job]) -> None:
        """What was not on disk is forgotten, and was told to nobody."""
        for (job_id, _), blamed in self._blamed.items():
            crashes = rows[job_id].crashes if job_id in rows else 0
            blamed -= {number for number in blamed if number > crashes}
