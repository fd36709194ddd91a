"""Failed jobs that failed the same way: the fingerprint by which they are alike, and groups of them. Pure; must not know who gives the jobs.

Two failures are alike when task, error name, place (file and function of the traceback's last line) and message agree; numbers,
hexadecimal and quoted parts of the message don't count, for they name the job rather than the bug, nor do numbers in the folder's name. Texts
are hostile: any size, any content; what is done to each is bounded.
"""

from __future__ import annotations

import hashlib
import re

MAX_GROUPS = 200  # told; the largest
MAX_WORKERS = 20  # named in a group
MAX_IDS = 1000  # of its jobs, named in a group; a list of the protocol holds no more
MESSAGE_CHARS = 300  # that are compared and shown
PLACE_CHARS = 200
FINGERPRINT_CHARS = 16
#: The last line of a traceback is looked for at so many places: a message may look like one.
MAX_LOOKS = 5

_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")
#: The first look ahead changes no match: it spares the second one, which may look through all of the text, where none can be.
_NUMBER = re.compile(r"\b0[xX][0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]{4})(?=[0-9a-fA-F-]*[0-9])[0-9a-fA-F]{4,}(?:-[0-9a-fA-F]{4,})*\b|[0-9]+")
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


def fingerprint(task: str, error: dict | None) -> str:
    """Return what all failures of a kind have in common, as 16 hexadecimal characters. Takes 15 us, with a hostile text half a millisecond.

    Args:
        error: a map with any of `name`, `message`, `traceback`; None: the job failed without saying why.
    """
    error = error or {}
    folder, slash, rest = place_of(error.get("traceback") or "").partition("/")
    place = _NUMBER.sub("#", folder) + slash + rest  # releases/20261128/mail.py is the code of releases/20261127/mail.py
    parts = (task, error.get("name") or "", place, plain_message(error.get("message") or ""))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:FINGERPRINT_CHARS]


class Failures:
    """Groups of failed jobs, filled newest job first.

    Attributes:
        jobs: how many were added. newest, oldest: ids of the first and the last of them; None: there are none.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self.newest: int | None = None
        self.oldest: int | None = None
        self._groups: dict[str, dict] = {}

    def add(self, job_id: int, task: str, error: dict | None, worker: str | None, finished_at: float | None) -> None:
        """Add a failed job."""
        found = fingerprint(task, error)
        group = self._groups.get(found)
        if group is None:
            error = error or {}
            # Jobs come newest first, so the first one is the example.
            group = self._groups[found] = {
                "fingerprint": found, "task": task, "error": error.get("name") or "", "place": place_of(error.get("traceback") or ""),
                "message": (error.get("message") or "")[:MESSAGE_CHARS], "count": 0, "first_at": None, "last_at": None, "workers": set(),
                "newest": job_id, "jobs": []}
        if finished_at is not None:
            group["first_at"] = finished_at if group["first_at"] is None else min(finished_at, group["first_at"])
            group["last_at"] = finished_at if group["last_at"] is None else max(finished_at, group["last_at"])
        if worker is not None:
            group["workers"].add(worker)
        if len(group["jobs"]) < MAX_IDS:
            group["jobs"].append(job_id)
        group["count"] += 1
        self.newest = self.newest or job_id
        self.oldest = job_id
        self.jobs += 1

    def told(self, following: int | None) -> dict[str, object]:
        """Return the groups, largest first, and what was looked at: the answer of the verb `failures` (docs/protocol_v1.md).

        Args:
            following: id below which nothing was looked at; None: all was.
        """
        largest = sorted(self._groups.values(), key=lambda group: (-group["count"], -group["newest"]))[:MAX_GROUPS]
        groups = [{**group, "workers": sorted(group["workers"])[:MAX_WORKERS], "workers_total": len(group["workers"])} for group in largest]
        return {"groups": groups, "groups_total": len(self._groups),
                "scanned": {"jobs": self.jobs, "newest": self.newest, "oldest": self.oldest}, "next": following}
