"""Makes the test vectors and section 13 of the specification from one list of messages: `python tests/vectors/make_vectors.py`.

A vector is a file of lines `hex bytes  # what they are`. tests/unit/test_vectors.py fails when files or page differ from what this
makes. Encodes by hand, so that it does not agree with protocol.py by construction.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPECIFICATION = HERE.parents[1] / "docs" / "protocol_v1.md"
BEGIN, END = "<!-- vectors: made by tests/vectors/make_vectors.py -->\n", "<!-- end of vectors -->\n"

INSTANCE = bytes(range(1, 17))
SUBMISSION = bytes.fromhex("019ab5c0d1e0") + bytes(range(10))
VIEW = {"id": 7, "task": "reverse_string", "queue": "default", "priority": 1, "state": "completed", "submitted_at": 1795560405.5,
        "run_at": None, "started_at": 1795560406.0, "finished_at": 1795560406.5, "worker": "w1", "attempt": 1, "crashes": 0,
        "requeues": 0, "failures": 0, "cancel_requested": False, "payload_bytes": 15, "result_bytes": 9, "encoding": "msgpack", "error": None,
        "result": b"\xa8desserts", "result_encoding": "msgpack"}
PAYLOAD = b"\x81\xa4data\xa8stressed"
LIMITS = {"frame": 4194304, "payload": 1048576, "result": 1048576, "list": 1000, "leases": 1000, "reserve": 1048576, "wait": 60,
          "waits": 256}
WORKER = {"name": "w1", "session": 2, "status": "busy", "jobs": [{"id": 7, "fence": 12, "task": "reverse_string",
          "started_at": 1795560406.0}], "running": 1, "free": 3, "tasks": ["reverse_string"], "tasks_total": 1, "queues": None,
          "queues_total": 0,
          "connected_at": 1795560400.0, "last_seen_at": 1795560406.0, "done": 0, "failed": 0, "lost": 0,
          "address": "127.0.0.1:40000", "software": "greenroom-python/0.1.0"}
BACKUP = bytes.fromhex("5ea7c0de" * 4)
BACKUP_FILE = b"SQLite format 3\0"
SCHEDULE = {"name": "nightly", "error": None, "job": {"task": "report", "queue": "reports"}, "payload_bytes": 1, "cron": "30 2 * * *",
            "every": None, "timezone": "Europe/Berlin", "overlap": "skip", "missed": "once", "missed_max": 10, "next_at": 1795570200.0,
            "next_runs": [1795570200.0, 1795656600.0], "last_at": 1795483801.5, "last_job": 7, "runs": 3, "skipped": 0,
            "paused_at": None, "reason": ""}
PAUSED = {**SCHEDULE, "next_at": None, "next_runs": [], "paused_at": 1795560407.5, "reason": "the database moves"}
PAUSE = {"queue": "mail", "task": None, "paused_at": 1795560405.5, "until": 1795561005.5, "reason": "provider is down", "by": "ann"}
FAILURE = {"fingerprint": "5d1c0e7a9b3f2468", "task": "send", "error": "TimeoutError", "place": "shop/mail.py in send", "message": "no answer after 3 s",
           "count": 2, "first_at": 1795560400.5, "last_at": 1795560406.5, "workers": ["w1"], "workers_total": 1, "newest": 9, "jobs": [9, 7]}
LIMIT = {"queue": "mail", "jobs": 1000, "bytes": None, "urgent": 2, "extra": 10, "most_jobs": 1100, "most_bytes": None, "set_at": 1795560405.5,
         "reason": "", "by": "ann", "waiting": 1003, "waiting_bytes": 40960, "full": "ordinary", "refused": 12}
COUNTS = {"scheduled": 0, "queued": 1, "running": 1, "completed": 5, "failed": 0, "cancelled": 0, "expired": 0}

#: Name -> (heading, message). `C` is sent by the peer, `S` by the broker.
MESSAGES: dict[str, tuple[str, dict]] = {
    "hello": ("C: a worker greets", {"verb": "hello", "id": 1, "version": 1, "role": "worker", "name": "w1", "instance": INSTANCE,
              "leases": [[7, 12]]}),
    "hello_reply": ("S: the greeting", {"id": 1, "version": 1, "broker": "greenroom/0.1.0", "name": "w1", "session": 2,
                    "now": 1795560405.5, "lease_s": 15.0, "heartbeat_s": 5.0, "idle_s": 60.0, "limits": LIMITS, "leases": ["OK"]}),
    "submit": ("C: two jobs, one of them with defaults", {"verb": "submit", "id": 2, "submission": SUBMISSION, "jobs": [
               {"task": "reverse_string", "payload": PAYLOAD, "priority": 1}, {"task": "cleanup"}]}),
    "submit_reply": ("S: ids, in order", {"id": 2, "jobs": [7, 8]}),
    "submit_reply_item_refused": ("S: one of two was refused", {"id": 2, "jobs": [7, {"code": "INVALID",
                                  "message": "priority must be an integer from 1 (first) to 10 (last)", "field": "priority"}]}),
    "submit_debounced": ("C: one job of many events", {"verb": "submit", "id": 2, "jobs": [{"task": "reindex", "payload": PAYLOAD,
                         "unique_key": "reindex:7", "unique_mode": "debounce", "unique_for": 2.0, "debounce_max": 30.0}]}),
    "submit_reply_duplicate": ("S: a job that waits has the key, and now this payload", {"id": 2, "jobs": [
                               {"duplicate": 7, "state": "scheduled", "replaced": True}]}),
    "cancel": ("C:", {"verb": "cancel", "id": 3, "jobs": [8]}),
    "cancel_reply": ("S:", {"id": 3, "outcomes": ["cancelled"]}),
    "retry": ("C:", {"verb": "retry", "id": 19, "jobs": [9, 7]}),
    "retry_reply": ("S: one completed", {"id": 19, "outcomes": ["queued", {"code": "CONFLICT", "message":
                    "job 7 is completed: only what failed, was cancelled or expired can be retried"}]}),
    "delete": ("C:", {"verb": "delete", "id": 21, "jobs": [9, 7]}),
    "delete_reply": ("S: one still runs", {"id": 21, "outcomes": ["deleted", {"code": "CONFLICT", "message":
                     "job 7 is running: only a finished job can be deleted"}]}),
    "bulk": ("C: how many timed out?", {"verb": "bulk", "id": 22, "action": "retry", "filter": {"error": "TimeoutError"}, "dry_run": True}),
    "bulk_change": ("C: what waits of a task shall go first", {"verb": "bulk", "id": 22, "action": "change", "filter": {"task": "mail.*"}, "priority": 1}),
    "bulk_reply": ("S: so many down to job 4712, and there are older jobs", {"id": 22, "matched": 17, "exact": True, "done": 0, "refused": 0, "why": None,
                   "next": 4712, "scanned_to": 4712}),
    "runs": ("C: what became of its runs", {"verb": "runs", "id": 20, "job": 9}),
    "runs_reply": ("S: one so far", {"id": 20, "runs": [{"attempt": 1, "worker": "w1", "started_at": 1795560406.0,
                   "ended_at": 1795560406.5, "outcome": "failed", "error": {"name": "ValueError", "message": "no such file",
                                                                            "traceback": ""}}]}),
    "report": ("C: how far a job is, and two lines of its log", {"verb": "report", "id": 21, "leases": [
               [7, 12, 0.25, "page 1 of 4", [[1795560406.5, "page 1"], [1795560406.75, "page 2"]]], [9, 13, None, None, []]]}),
    "report_reply": ("S:", {"id": 21, "outcomes": ["OK", {"code": "LEASE_LOST", "message": "job 9 is not held under fence 13"}]}),
    "logs": ("C: what follows line 1, or comes within 30 s", {"verb": "logs", "id": 22, "job": 7, "after": 1, "wait": 30}),
    "logs_reply": ("S: a line", {"id": 22, "lines": [[2, 1795560406.75, 1, "page 2"]], "next": 2, "dropped": 0, "finished": False}),
    "get": ("C:", {"verb": "get", "id": 4, "jobs": [7]}),
    "get_reply": ("S: a view", {"id": 4, "jobs": [VIEW]}),
    "wait": ("C:", {"verb": "wait", "id": 5, "jobs": [7, 8], "wait": 30}),
    "wait_reply": ("S: one is finished, one is not there", {"id": 5, "jobs": [VIEW, {"id": 8, "error": {
                   "code": "GONE", "message": "job 8 is no longer kept"}}]}),
    "reserve": ("C: up to four jobs, waiting at the broker", {"verb": "reserve", "id": 6, "n": 4, "tasks": ["reverse_string"],
                "wait": 60}),
    "reserve_reply": ("S: a delivery", {"id": 6, "jobs": [[7, 12, "reverse_string", PAYLOAD, False, "default", 1, 1]]}),
    "reserve_reply_suspect": ("S: the delivery of a job that crashed twice", {"id": 6, "jobs": [
                              [8, 15, "reverse_string", PAYLOAD, False, "default", 3, 5, 2]]}),
    "settle": ("C: the outcomes", {"verb": "settle", "id": 7, "leases": [
               [7, 12, "ack", b"\xa8desserts", False],
               [9, 13, "fail", {"name": "ValueError", "message": "no such file", "traceback": ""}],
               [10, 14, "nack", False], [11, 15, "crash"], [12, 16, "snooze", 60],
               [13, 17, "fail", {"name": "OSError", "message": "", "traceback": ""}, {"retry": False}]]}),
    "settle_reply": ("S: a lease was lost", {"id": 7, "outcomes": ["OK", "OK", "OK", {
                     "code": "LEASE_LOST", "message": "job 11 is not held under fence 15"}, "OK", "OK"]}),
    "heartbeat": ("C:", {"verb": "heartbeat", "id": 8, "leases": [[7, 12]]}),
    "heartbeat_reply": ("S:", {"id": 8, "lost": [], "cancel": [[7, 12]]}),
    "extend": ("C:", {"verb": "extend", "id": 9, "leases": [[7, 12]], "for": 120}),
    "extend_reply": ("S:", {"id": 9, "outcomes": ["OK"]}),
    "jobs": ("C: what timed out of all that mails", {"verb": "jobs", "id": 10, "filter": {"state": ["failed", "expired"], "task": "mail.*",
             "error": "TimeoutError", "finished_after": 1795560405.5}, "before": 1000, "limit": 20}),
    "jobs_reply": ("S: nothing on this page, but there are more", {"id": 10, "jobs": [], "next": 412, "scanned_to": 412}),
    "failures": ("C: how did jobs fail lately?", {"verb": "failures", "id": 27, "filter": {"finished_after": 1795560000.0}}),
    "failures_reply": ("S: two of them in the same way", {"id": 27, "groups": [FAILURE], "groups_total": 1,
                       "scanned": {"jobs": 2, "newest": 9, "oldest": 7}, "next": None}),
    "queues": ("C:", {"verb": "queues", "id": 11}),
    "queues_reply": ("S:", {"id": 11, "queues": [{"name": "default", **COUNTS, "requeued": 0, "workers": 1, "tasks": 2,
                     "paused": None, "limit": None}],
                     "total": 1}),
    "workers": ("C:", {"verb": "workers", "id": 12}),
    "workers_reply": ("S:", {"id": 12, "workers": [WORKER], "total": 1}),
    "stats": ("C:", {"verb": "stats", "id": 13}),
    "stats_reply": ("S:", {"id": 13, "states": COUNTS, "requeued": 0, "total": 7, "workers": 1, "idle": 0, "busy": 1,
                    "connections": 2, "clients": 1, "lanes": 1,
                    "tasks": [{"task": "reverse_string", **COUNTS, "requeued": 0, "workers": 1, "total": 7, "paused": None}],
                    "memory": {"jobs": 1, "bytes": 15, "leases": 1, "max_jobs": 100000, "max_bytes": 134217728, "granted": 6,
                               "granted_after_refill": 0, "refills": 0, "refilled": 0},
                    "now": 1795560407.0, "started_at": 1795560000.0, "version": "0.1.0",
                    "store": {"commits": 20, "rows": 40, "batch_rows": 2, "batch_rows_p50": 2, "batch_rows_p99": 4, "commit_ms": 0.25,
                              "commit_p50_ms": 0.25, "commit_p99_ms": 2.0, "commit_max_ms": 4.0, "full": False,
                              "free_bytes": 80149938176},
                    "hub": {"lag_ms": 0.5, "max_lag_ms": 4.0, "lag_p50_ms": 0.25, "lag_p99_ms": 2.0}, "requeued_by": {}, "returned": 0,
                    "paused": {"queue": 0, "task": 0}, "schedules": {"submitted": 0, "skipped": 0, "missed": 0},
                    "reports": {"lines": 0, "progress": 0}, "subscribers": 0,
                    "damaged": {"total": 0, "jobs": []},
                    "settles": {"late": 0, "stale": 0, "repeated": 0}, "repeated_submits": 0, "refused": {},
                    "refused_jobs": {}, "waiting": {"reserves": 1, "waits": 0, "answers": 0, "answer_bytes": 0, "limited_queues": 0,
                                                      "full_queues": 0, "limit_refusals": 0},
                    "door": {"open": 2, "shaking": 0, "max": 19872, "handshakes": 2, "protocol_errors": 0}, "rejected": {},
                    "process": {"resident_bytes": 54304768, "cpu_s": 0.5, "open_files": 18, "max_files": 20000, "viewers": 0,
                                "log_lines_dropped": 0}}),
    "ping": ("C:", {"verb": "ping", "id": 14}),
    "ping_reply": ("S:", {"id": 14, "now": 1795560407.5}),
    "backup": ("C: a backup, please", {"verb": "backup", "id": 16, "step": "begin", "backup": BACKUP}),
    "backup_reply": ("S: it is being made", {"id": 16, "ready": False, "made": 1048576, "total": 8388608, "sha256": None}),
    "backup_read": ("C: its first bytes", {"verb": "backup", "id": 17, "step": "read", "backup": BACKUP, "offset": 0, "size": 16}),
    "backup_read_reply": ("S: a file of 16 bytes, to be short", {"id": 17, "ready": True, "made": 16, "total": 16,
                          "sha256": hashlib.sha256(BACKUP_FILE).digest(), "data": BACKUP_FILE}),
    "backup_end": ("C: it may go", {"verb": "backup", "id": 18, "step": "end", "backup": BACKUP}),
    "schedules": ("C: all schedules behind a name", {"verb": "schedules", "id": 19, "after": "hourly", "limit": 100}),
    "schedules_reply": ("S:", {"id": 19, "schedules": [SCHEDULE], "next": None, "total": 2}),
    "schedule_put": ("C: each night at half past two in Berlin", {"verb": "schedule_put", "id": 20, "name": "nightly", "cron": "30 2 * * *",
                     "timezone": "Europe/Berlin", "job": {"task": "report", "queue": "reports", "payload": b"\x80"}}),
    "schedule_put_reply": ("S:", {"id": 20, "schedule": SCHEDULE, "created": False}),
    "schedule_pause": ("C:", {"verb": "schedule_pause", "id": 21, "name": "nightly", "reason": "the database moves"}),
    "schedule_pause_reply": ("S:", {"id": 21, "schedule": PAUSED}),
    "schedule_resume": ("C:", {"verb": "schedule_resume", "id": 22, "name": "nightly"}),
    "schedule_resume_reply": ("S:", {"id": 22, "schedule": SCHEDULE}),
    "schedule_run": ("C:", {"verb": "schedule_run", "id": 23, "name": "nightly"}),
    "schedule_run_reply": ("S:", {"id": 23, "job": 9}),
    "schedule_delete": ("C:", {"verb": "schedule_delete", "id": 24, "name": "nightly"}),
    "schedule_delete_reply": ("S:", {"id": 24}),
    "pause": ("C: a queue is paused for ten minutes", {"verb": "pause", "id": 19, "queue": "mail", "for": 600, "reason": "provider is down",
              "by": "ann"}),
    "pause_reply": ("S:", {"id": 19, "pause": PAUSE}),
    "pauses": ("C:", {"verb": "pauses", "id": 20}),
    "pauses_reply": ("S:", {"id": 20, "pauses": [PAUSE]}),
    "resume": ("C:", {"verb": "resume", "id": 21, "queue": "mail"}),
    "resume_reply": ("S:", {"id": 21, "resumed": True}),
    "limit": ("C: a thousand jobs may wait, and a tenth more of the priorities 1 and 2", {"verb": "limit", "id": 27, "queue": "mail", "jobs": 1000,
              "urgent": 2, "by": "ann"}),
    "limit_reply": ("S: some more wait already", {"id": 27, "limit": LIMIT}),
    "limits": ("C:", {"verb": "limits", "id": 28}),
    "limits_reply": ("S:", {"id": 28, "limits": [LIMIT]}),
    "unlimit": ("C:", {"verb": "unlimit", "id": 29, "queue": "mail"}),
    "unlimit_reply": ("S:", {"id": 29, "removed": True}),
    "submit_reply_queue_full": ("S: there was room for one of two", {"id": 2, "jobs": [7, {"code": "FULL", "message":
                                "the queue mail is full: 1000 jobs wait, its limit is 1000", "field": "queue", "retry_after_s": 2.5}]}),
    "change": ("C: two jobs shall run first", {"verb": "change", "id": 22, "jobs": [8, 9], "priority": 1}),
    "change_reply": ("S: one of them runs already", {"id": 22, "outcomes": ["changed", {
                     "code": "CONFLICT", "message": "job 9 is running: only a job that waits can be changed"}]}),
    "purge": ("C:", {"verb": "purge", "id": 23, "queue": "mail", "before": 5000}),
    "purge_reply": ("S: there may be more", {"id": 23, "purged": 1000, "next": 3871}),
    "explain": ("C:", {"verb": "explain", "id": 24, "job": 8}),
    "explain_reply": ("S:", {"id": 24, "job": 8, "state": "queued", "queue": "mail", "task": "send", "ahead": 0, "ahead_exact": True,
                      "starts_at": None, "gates": [{"code": "queue_paused",
                      "text": "the queue mail is paused by ann for another 10 min (provider is down)", "opens": "resume queue mail",
                      "at": 1795561005.5}]}),
    "explain_queue": ("C:", {"verb": "explain", "id": 25, "queue": "reports"}),
    "explain_queue_reply": ("S: a queue with one task", {"id": 25, "queue": "reports", "scheduled": 0, "queued": 2, "running": 4, "rate": 0.5,
                            "workers": 1, "asking": 0, "gates": [], "tasks": [{"task": "render", "scheduled": 0, "queued": 2, "running": 4,
                            "rate": 0.5, "workers": 1, "asking": 0, "gates": [{"code": "no_free_slot", "text":
                            "1 worker can run it, none has a free slot", "opens": "one of them finishes a job, or another worker connects",
                            "at": None}]}], "tasks_total": 1}),
    "subscribe": ("C: it comes back, and wants to know of failures in a queue", {"verb": "subscribe", "id": 26, "queue": "mail",
                  "kinds": ["failed", "scheduled"], "boot": "5f0c6a1e9b7d2384", "after": 310}),
    "subscribe_reply": ("S:", {"id": 26, "boot": "5f0c6a1e9b7d2384", "position": 310, "gap": False, "oldest": 1}),
    "bye": ("C:", {"verb": "bye", "id": 15}),
    "bye_reply": ("S: and the connection ends", {"id": 15}),
    "notice_cancel": ("S: unasked", {"notice": "cancel", "leases": [[7, 12]]}),
    "notice_cancel_soft_timeout": ("S: unasked, a run is over its soft limit", {"notice": "cancel", "leases": [[7, 12]], "reason": "soft_timeout"}),
    "notice_drain": ("S: unasked, the broker is going away", {"notice": "drain", "reason": "broker"}),
    "notice_drain_worker": ("S: unasked, this worker shall end", {"notice": "drain", "reason": "worker"}),
    "notice_events": ("S: unasked, to a subscriber", {"notice": "events", "events": [
                      {"seq": 312, "kind": "scheduled", "at": 1795560407.5, "job": 8, "queue": "mail", "task": "send", "state": "scheduled",
                       "attempt": 1, "worker": "w1", "run_at": 1795560415.5, "reason": "failed", "error": "TimeoutError"}],
                      "position": 315, "gap": False, "oldest": 1}),
    "error": ("S: a request that is refused as a whole", {"id": 2, "error": {"code": "BUSY", "message":
              "too much waits to be written", "retry_after_s": 0.1}}),
    "error_fatal": ("S: the last frame before the broker closes", {"id": 0, "error": {"code": "PROTOCOL_ERROR", "message":
                    "a frame of 0 bytes; 1 to 4194304 are allowed"}}),
}

#: Name -> (bytes that are a PROTOCOL_ERROR, why).
MALFORMED: dict[str, tuple[bytes, str]] = {
    "malformed_empty": (bytes(4), "a length of 0"),
    "malformed_too_long": (bytes.fromhex("ffffffff"), "a length above the limit"),
    "malformed_list": (bytes.fromhex("00000001 90"), "the body is not a map"),
    "malformed_two_values": (bytes.fromhex("00000002 80 80"), "two values in one body"),
    "malformed_duplicate": (bytes.fromhex("00000007 82 a161 01 a161 02"), "the key \"a\" twice"),
    "malformed_number_key": (bytes.fromhex("00000003 81 01 02"), "a number as a key"),
    "malformed_extension": (bytes.fromhex("00000006 81 a161 d4 01 00"), "an extension type"),
    "malformed_utf8": (bytes.fromhex("00000005 81 a161 a1 ff"), "a string that is not UTF-8"),
    "malformed_cut_short": (bytes.fromhex("00000004 82 a161 01"), "a map that ends too early"),
}


def encode(value: object) -> list[tuple[bytes, str]]:
    """Return the msgpack bytes of a value in pieces, each with a word for people."""
    if value is None or isinstance(value, bool):
        return [({None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value], str(value).lower().replace("none", "nil"))]
    if isinstance(value, int):
        return [(_integer(value), str(value))]
    if isinstance(value, float):
        return [(b"\xcb" + struct.pack(">d", value), f"{value} (float)")]
    if isinstance(value, str):
        data = value.encode()
        return [(_head(len(data), 0xA0, 31, {1: 0xD9, 2: 0xDA}) + data, f'"{value}"')]
    if isinstance(value, bytes):
        return [(_head(len(value), None, -1, {1: 0xC4, 2: 0xC5}) + value, f"{len(value)} bytes")]
    if isinstance(value, list):
        pieces = [(_head(len(value), 0x90, 15, {2: 0xDC}), f"list of {len(value)}")]
        for item in value:
            pieces += encode(item)
        return pieces
    pieces = [(_head(len(value), 0x80, 15, {2: 0xDE}), f"map of {len(value)}")]
    for key, item in value.items():
        (data, word), (first, *rest) = encode(key)[0], encode(item)
        # A key and a short value share a line.
        if rest or len(data) + len(first[0]) > 40:
            pieces += [(data, word + ":"), first, *rest]
        else:
            pieces.append((data + first[0], f"{word}: {first[1]}"))
    return pieces


def _integer(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    for size, code in ((1, 0xCC), (2, 0xCD), (4, 0xCE), (8, 0xCF)):
        if value < 256**size:
            return bytes([code]) + value.to_bytes(size, "big")
    raise ValueError(value)


def _head(length: int, fix: int | None, most: int, sized: dict[int, int]) -> bytes:
    if fix is not None and length <= most:
        return bytes([fix | length])
    for size, code in sized.items():
        if length < 256**size:
            return bytes([code]) + length.to_bytes(size, "big")
    raise ValueError(length)


def lines_of(pieces: list[tuple[bytes, str]]) -> str:
    """Return pieces as lines of hex and words, 16 bytes a line."""
    lines = []
    for data, word in pieces:
        for first in range(0, len(data), 16):
            shown = data[first:first + 16].hex(" ")
            lines.append(f"{shown:<48}# {word}" if first + 16 >= len(data) else shown)
    return "\n".join(lines) + "\n"


def vectors() -> dict[str, str]:
    """Return file name -> content, for all of them."""
    files = {}
    for name, (_, message) in MESSAGES.items():
        pieces = encode(message)
        length = sum(len(data) for data, _ in pieces)
        files[f"{name}.hex"] = lines_of([(struct.pack(">I", length), f"length {length}"), *pieces])
    for name, (data, why) in MALFORMED.items():
        files[f"{name}.hex"] = lines_of([(data, why)])
    return files


def section() -> str:
    """Return the part of the specification between the markers."""
    files = vectors()
    parts = [BEGIN]
    for name, (heading, _) in MESSAGES.items():
        parts.append(f"**{name}** · {heading}\n\n```\n{files[name + '.hex']}```\n\n")
    parts.append("These are PROTOCOL_ERRORs:\n\n| bytes | why |\n|---|---|\n")
    parts += [f"| `{data.hex(' ')}` | {why} |\n" for data, why in MALFORMED.values()]
    return "".join([*parts, END])


def main() -> None:
    """Write all files and the section."""
    for name, content in vectors().items():
        (HERE / name).write_text(content)
    text = SPECIFICATION.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    SPECIFICATION.write_text(before + section() + after)


if __name__ == "__main__":
    main()
