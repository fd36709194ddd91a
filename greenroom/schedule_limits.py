"""The words and bounds of schedules that the wire tells of. Plain data, for those who only speak of schedules too."""

from __future__ import annotations

MAX_SCHEDULES = 10_000
#: All schedules are in memory with their payloads. Whoever has more to say keeps it elsewhere and sends where.
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_ALL_PAYLOAD_BYTES = 64 * 2**20

#: A longer line says nothing that a shorter one can't; parsing takes time with the length.
MAX_CRON_CHARACTERS = 256
MAX_EVERY_CHARACTERS = 10
MAX_ZONE_CHARACTERS = 64
MAX_REASON_CHARACTERS = 256

#: What becomes of a run while the previous job is unfinished, and of runs that were missed; the first is the default.
OVERLAPS = ("skip", "queue", "replace")
MISSED = ("once", "skip", "all")
MAX_MISSED = 100
DEFAULT_MISSED = 10
