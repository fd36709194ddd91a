"""What the client offers to those who steer the broker: pauses, limits, purges, explanations. A part of Client, see client.py.

Must not know connections: it asks through `_call`.
"""

from __future__ import annotations


class Controls:
    """See the module."""

    def _call(self, message: dict) -> dict:
        raise NotImplementedError

    def pause(self, queue: str | None = None, *, task: str | None = None, seconds: float | None = None, reason: str = "",
              by: str | None = None) -> dict:
        """Hold back the jobs of a queue or of a task, one of them; what runs goes on. Replaces a pause that it has.

        Args:
            seconds: so long; None: until `resume`.
            reason, by: shown wherever the queue or task is; `by`: who does it, default this client's name.

        Returns:
            The pause: `queue`, `task`, `paused_at`, `until`, `reason`, `by`.
        """
        return self._call(_filled(verb="pause", queue=queue, task=task, reason=reason, by=by, **{"for": seconds}))["pause"]

    def resume(self, queue: str | None = None, *, task: str | None = None) -> bool:
        """End the pause of a queue or task; False if it was not paused."""
        return self._call(_filled(verb="resume", queue=queue, task=task))["resumed"]

    def pauses(self) -> list[dict]:
        """Return all pauses, as `pause` does."""
        return self._call({"verb": "pauses"})["pauses"]

    def limit(self, queue: str, *, jobs: int | None = None, bytes: int | None = None, urgent: int | None = None, extra: int | None = None,
              reason: str = "", by: str | None = None) -> dict:
        """Let no more than so much wait in a queue: beyond it submits get FULL. Replaces a limit that it has; what waits stays.

        Args:
            jobs, bytes: scheduled and queued jobs, and their payloads; at least one of the two.
            urgent: jobs of this priority, and of lower numbers, may go beyond, by `extra` per cent (None: 10).
            reason, by: as in `pause`.

        Returns:
            The limit: `queue`, `jobs`, `bytes`, `urgent`, `extra`, `most_jobs`, `most_bytes`, `set_at`, `reason`, `by`, and what is there:
            `waiting`, `waiting_bytes`, `full` (None, "ordinary" or "all" are refused), `refused` (jobs kept out so far).

        Raises InvalidError; FullError beyond 1,000 limits.
        """
        return self._call(_filled(verb="limit", queue=queue, jobs=jobs, bytes=bytes, urgent=urgent, extra=extra, reason=reason, by=by))["limit"]

    def unlimit(self, queue: str) -> bool:
        """End the limit of a queue; False if it had none."""
        return self._call({"verb": "unlimit", "queue": queue})["removed"]

    def limits(self) -> list[dict]:
        """Return all limits, as `limit` does."""
        return self._call({"verb": "limits"})["limits"]

    def purge(self, queue: str, *, task: str | None = None) -> int:
        """Cancel all jobs that wait in a queue (left out: of any task) and return how many; running ones go on.

        Jobs that are submitted meanwhile stay. What is cancelled is cancelled, also if this call ends with an error.
        """
        purged = 0
        before: int | None = None
        while True:
            answer = self._call(_filled(verb="purge", queue=queue, task=task, before=before))
            purged += answer["purged"]
            before = answer.get("next")
            if before is None:
                return purged

    def explain(self, job: int) -> dict:
        """Return why a job does not run: `gates` that are closed, `ahead`, `starts_at` (docs/protocol_v1.md, `explain`).

        Raises NotFoundError or GoneError.
        """
        return _without_id(self._call({"verb": "explain", "job": job}))

    def explain_queue(self, queue: str) -> dict:
        """Return why the throughput of a queue is what it is (docs/protocol_v1.md, `explain`)."""
        return _without_id(self._call({"verb": "explain", "queue": queue}))


def _filled(**fields: object) -> dict:
    return {name: value for name, value in fields.items() if value is not None}


def _without_id(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "id"}
