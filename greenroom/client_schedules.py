"""The client's calls about schedules. Must not know the command line."""

from __future__ import annotations

from collections.abc import Iterator

#: Schedules asked for at once.
PAGE = 100


class ScheduleCalls:
    """What `Client` can do with schedules; it brings `_call` and `_call_once`."""

    def _call(self, message: dict) -> dict:
        raise NotImplementedError

    def _call_once(self, message: dict) -> dict:
        raise NotImplementedError

    def schedules(self) -> Iterator[dict]:
        """Yield all schedules by name, each with its next ten runs (docs/protocol_v1.md, `schedules`), without payloads."""
        after: str | None = None
        while True:
            page = self._call({"verb": "schedules", "limit": PAGE, **({"after": after} if after else {})})
            yield from page["schedules"]
            after = page.get("next")
            if after is None:
                return

    def get_schedule(self, name: str) -> dict:
        """Return one schedule, with its payload. Raises NotFoundError."""
        return self._call({"verb": "schedules", "name": name})["schedules"][0]

    def delete_schedule(self, name: str) -> None:
        """Delete a schedule; the jobs that it submitted stay.

        Raises NotFoundError: it is not there, also when the answer was lost and the client asked again.
        """
        self._call({"verb": "schedule_delete", "name": name})

    def pause_schedule(self, name: str, reason: str = "") -> dict:
        """Have a schedule submit nothing until it is resumed; returns it. The reason (256 characters) is shown. Raises NotFoundError."""
        return self._call({"verb": "schedule_pause", "name": name, "reason": reason})["schedule"]

    def resume_schedule(self, name: str) -> dict:
        """Have a paused schedule go on with its next planned time; returns it. Raises NotFoundError."""
        return self._call({"verb": "schedule_resume", "name": name})["schedule"]

    def _run_schedule(self, name: str) -> int:
        return self._call_once({"verb": "schedule_run", "name": name})["job"]
