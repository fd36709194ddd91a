"""Failed jobs that failed the same way, put together. Pure; must not know routes, HTTP or who gives the jobs.

Two failures are alike when task, error name, place (file and function of the traceback's last line) and message agree; numbers,
hexadecimal and quoted parts of the message don't count, for they name the job rather than the bug. Texts are hostile: any size, any
content; what is done to each is bounded.
"""

from __future__ import annotations

import hashlib
import re

MAX_GROUPS = 200  # shown; the largest
MAX_WORKERS = 20  # named in a group
MESSAGE_CHARS = 300  # that are compared and shown
PLACE_CHARS = 200
#: The last line of a traceback is looked for at so many places: a message may look like one.
MAX_LOOKS = 5

_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")
_NUMBER = re.compile(r"\b0[xX][0-9a-fA-F]+\b|\b(?=[0-9a-fA-F-]*[0-9])[0-9a-fA-F]{4,}(?:-[0-9a-fA-F]{4,})*\b|[0-9]+")
_FRAME = re.compile(r'File "([^"\n]{0,1000})", line [0-9]+, in ([^\n]{1,200})')


def place_of(traceback: str) -> str:
    """Return where the traceback ends, such as "shop/mail.py in send", or "" if it names no line."""
    end = len(traceback)
    for _ in range(MAX_LOOKS):
        end = traceback.rfind('File "', 0, end)
        if end < 0:
            return ""
        frame = _FRAME.match(traceback, end)
        if frame is not None:
            path = "/".join(frame[1].replace("\\", "/").split("/")[-2:])  # workers keep the same code in different folders
            return f"{path} in {frame[2].strip()}"[:PLACE_CHARS]
    return ""


def plain_message(message: str) -> str:
    """Return the message without what differs from job to job: quoted parts, hexadecimal and other numbers."""
    return _NUMBER.sub("#", _QUOTED.sub("'…'", message[:MESSAGE_CHARS]))


class Failures:
    """Groups of failed jobs, filled newest job first.

    Attributes:
        jobs: how many were added.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self._groups: dict[str, dict] = {}

    def add(self, job: dict) -> None:
        """Add a failed job, a view of the verb `jobs`."""
        error = job.get("error") or {}
        name, message = error.get("name") or "", error.get("message") or ""
        place, plain = place_of(error.get("traceback") or ""), plain_message(message)
        key = "\0".join((job["task"], name, place, plain))
        group = self._groups.get(key)
        if group is None:
            # Jobs come newest first, so the first one is the example.
            group = self._groups[key] = {
                "fingerprint": hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:16], "task": job["task"], "error": name,
                "place": place, "message": message[:MESSAGE_CHARS], "count": 0, "first_at": None, "last_at": None, "workers": set(),
                "newest": job["id"], "jobs": []}
        at = job.get("finished_at")
        if at is not None:
            group["first_at"] = at if group["first_at"] is None else min(at, group["first_at"])
            group["last_at"] = at if group["last_at"] is None else max(at, group["last_at"])
        if job.get("worker") is not None:
            group["workers"].add(job["worker"])
        group["jobs"].append(job["id"])
        group["count"] += 1
        self.jobs += 1

    def shown(self) -> dict[str, object]:
        """Return `groups`, largest first, and `groups_total`; see docs/rest.md."""
        largest = sorted(self._groups.values(), key=lambda group: (-group["count"], -group["newest"]))[:MAX_GROUPS]
        groups = [{**group, "workers": sorted(group["workers"])[:MAX_WORKERS], "workers_total": len(group["workers"])} for group in largest]
        return {"groups": groups, "groups_total": len(self._groups)}
