"""The specification's tables against the code: whoever changes one must change the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from greenroom import backups, control_verbs, conversation, events, failure_verbs, failures, schedule_limits, stream, subscriptions
from greenroom.errors import WIRE_ERRORS
from greenroom.filters import CHECKS, MAX_TEXT, PREVIEW_BYTES
from greenroom.job import MOVES, OPTIONS, STATE_BY_LABEL, USUAL
from greenroom.leases import MAX_CRASHES, Timing
from greenroom.listener import HANDSHAKE_DEADLINE_S
from greenroom.paces import ROUND_S
from greenroom.pauses import MAX_PAUSES
from greenroom.queue_limits import MAX_LIMITS
from greenroom.protocol import (BACKUP_PIECE_BYTES, DEFAULT_LIMITS, DEFAULT_PORT, ERROR_LIMITS, HELLO_FRAME_BYTES, MAX_ANSWER_VALUES,
                                MAX_INNER_ITEMS, MAX_MAP_ENTRIES, MAX_REQUEST_VALUES, MAX_TEXT_BYTES, VERBS, WORKER_VERBS,
                                check_fields)
from greenroom.retries import pause_s
from greenroom.schedules import LATE_S, REPEATED_S, Schedules
from greenroom.stores import sqlite_search

CODE = Path(__file__).resolve().parents[2] / "greenroom"
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "protocol_v1.md").read_text()


def part(begin: str, end: str) -> str:
    return TEXT.split(begin, 1)[1].split(end, 1)[0]


def first_column(text: str) -> list[str]:
    """Return the names in backticks in the first column of the tables of a text."""
    return [name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def fields_of(verb: str) -> set[str]:
    return {field.name for field in VERBS[verb]}


def test_the_greeting_and_the_verbs_with_tables_have_the_fields_of_the_code() -> None:
    hello = part("The first request MUST be `hello`.", "Reply:")
    submit = part("### submit", "A job is a map")
    reserve = part("### reserve", "Reply:")

    assert set(first_column(hello)) == fields_of("hello")
    assert set(first_column(submit)) == fields_of("submit")
    assert set(first_column(reserve)) == fields_of("reserve")


def test_a_schedule_is_put_with_the_fields_and_shown_with_the_bounds_of_the_code() -> None:
    put = part("### schedule_put", "Reply:")
    shown = part("### schedules", "### schedule_put")
    rows = {line.split("`")[1]: line for line in put.splitlines() if line.startswith("| `")}

    assert {"name", "job", *rows} == fields_of("schedule_put")
    assert set(first_column(shown)) - {"payload"} == set(vectors_of_schedules()) and "`payload`" in shown
    for field in VERBS["schedule_put"]:
        if field.default is not None:
            assert str(field.default) in rows[field.name].split("|")[3]
    assert f"at most {schedule_limits.MAX_SCHEDULES:,} schedules" in shown and f"{schedule_limits.MAX_PAYLOAD_BYTES} bytes" in shown
    assert f"{schedule_limits.MAX_ALL_PAYLOAD_BYTES // 2**20} MiB in all" in shown and f"more than {LATE_S:g} s" in put
    assert f"up to {REPEATED_S / 3600:g} hours" in put and f"int 1 … {schedule_limits.MAX_MISSED} |" in rows["missed_max"]


def vectors_of_schedules() -> dict[str, object]:
    """Return a schedule as a new one is shown."""
    schedules = Schedules()
    fields = check_fields(VERBS["schedule_put"], {"name": "n", "job": {"task": "t"}, "every": "1s"})
    return schedules.put("n", fields, 0.0)[0].view([])


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete", "bulk", "failures", "runs", "logs", "get", "wait", "settle", "heartbeat", "report", "extend", "backup", "schedules",
                                  "schedule_delete", "schedule_pause", "schedule_resume", "schedule_run", "pause", "resume", "limit", "unlimit", "change", "purge", "explain", "subscribe"])
def test_the_verbs_described_in_a_sentence_name_all_their_fields(verb: str) -> None:
    sentence = part(f"### {verb}\n", "Reply")

    assert fields_of(verb) <= set(re.findall(r"`(\w+)`", sentence))


def test_every_verb_is_described() -> None:
    headings = set(re.findall(r"^### (\w+)$", TEXT, re.MULTILINE))
    watching = part("## 9. Watching", "### ")

    assert headings | set(first_column(watching)) | {"hello", "bye"} == set(VERBS)
    listed = next(line for line in watching.splitlines() if line.startswith("| `jobs`"))
    assert fields_of("jobs") <= set(re.findall(r"`(\w+)`", listed.split("|")[2]))


def test_the_kinds_of_events_and_their_bounds_are_those_of_the_code() -> None:
    text = part("### subscribe", "### backup")

    assert tuple(first_column(text)) == events.KINDS
    assert f"{subscriptions.MAX_SUBSCRIBERS} subscribers" in text and f"at most {subscriptions.FRAME_EVENTS} events" in text
    assert f"latest\n{events.MAX_EVENTS:,}" in text and f"for {subscriptions.LINGER_S:g} s after" in text
    assert f"{conversation.EVENTS_UNSENT_BYTES // 1024} KiB unread" in text


def test_the_options_of_a_job_and_their_defaults_are_those_of_the_code() -> None:
    table = part("A job is a map:", "Reply:")
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}

    assert list(rows) == list(OPTIONS)
    for name in ("encoding", "queue", "priority"):
        assert str(OPTIONS[name].default) in rows[name].split("|")[3]
    assert OPTIONS["payload"].default == bytes.fromhex(re.search(r"`(\w\w)` \(an empty map\)", rows["payload"]).group(1))


def test_the_conditions_of_a_filter_are_those_of_the_code() -> None:
    table = part("### What a filter is", "### schedules")

    assert [name for name in first_column(table) if name in CHECKS] == first_column(table) and set(first_column(table)) == set(CHECKS)
    assert f"text (1 … {MAX_TEXT})" in table and f"first {PREVIEW_BYTES:,} bytes" in table and f"up to {sqlite_search.MOST_WAITING:,} of them" in table


def test_failures_are_told_with_the_fields_and_bounds_of_the_code() -> None:
    text = part("### failures", "### pause").replace("\n", " ")
    found = failures.Failures()
    found.add(1, "t", None, None, None)
    told = found.told(None)

    assert first_column(part("### failures", "### pause")) == list(told)
    assert {*told["groups"][0], *told["scanned"]} <= set(re.findall(r"`(\w+)`", text))
    assert f"the {failures.MAX_GROUPS} largest" in text and f"at most {failures.MAX_WORKERS} names" in text and f"at most {failures.MAX_IDS:,} ids" in text
    assert f"first {failures.MESSAGE_CHARS} characters" in text and f"up to {failure_verbs.MAX_JOBS:,} failed jobs" in text
    assert f"about {failure_verbs.MAX_S:g} s" in text and failure_verbs.MAX_GROUPINGS == 2


@pytest.mark.parametrize("page", ["protocol_v1.md", "clients.md"])
def test_the_curve_of_the_usual_pauses_is_that_of_the_code(page: str) -> None:
    text = (CODE.parent / "docs" / page).read_text().replace("\n", " ")
    *most, last = (f"{pause_s(USUAL, failures, 1.0):g}" for failures in range(1, USUAL.attempts))

    assert f"after up to {', '.join(most)} and {last} s" in text or f"pauses of up to {', '.join(most)} and {last} s" in text
    assert f"({USUAL.attempts})" in text or f"up to {USUAL.attempts} failures" in text


def test_the_error_table_is_that_of_the_code() -> None:
    rows = [line.split("|") for line in part("## 11. Errors", "## 12.").splitlines() if re.match(r"\| [A-Z_]+ \|", line)]

    assert {row[1].strip(): row[2].strip() == "yes" for row in rows} == {code: cls.fatal for code, cls in WIRE_ERRORS.items()}


def test_limits_numbers_and_deadlines_are_those_of_the_code() -> None:
    limits = {name: int(row.split("|")[2]) for row in part("Limits, told in the greeting", "## 5.").splitlines()
              if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    deadlines = part("## 12. Deadlines", "## 13.")
    timing = Timing()

    assert limits == DEFAULT_LIMITS._asdict()
    assert f"port {DEFAULT_PORT}" in TEXT and f"{HELLO_FRAME_BYTES // 1024} KiB before it" in TEXT
    assert f"{MAX_REQUEST_VALUES:,} values" in TEXT.replace("\n", " ") and f"{MAX_ANSWER_VALUES:,}" in TEXT
    assert f"more than {MAX_MAP_ENTRIES} entries" in TEXT and f"more than {MAX_INNER_ITEMS} items in a list that is not" in TEXT
    assert f"a text of more than {MAX_TEXT_BYTES // 2**20} MiB" in TEXT
    assert f"loses its leases ({timing.lease_s:g})" in TEXT and f"a heartbeat ({timing.heartbeat_s:g})" in TEXT
    assert f"{timing.reconnect_grace_s:g} s after the worker's connection ended" in TEXT.replace("\n", " ")
    assert f"hold for {timing.restart_grace_s:g} s" in TEXT and MAX_CRASHES == 5 and "after the fifth crash" in TEXT
    assert f"waiting for the peer | {HANDSHAKE_DEADLINE_S:g} |" in deadlines and f"hello | {conversation.HELLO_DEADLINE_S:g} |" in deadlines
    assert f"last | {conversation.FRAME_DEADLINE_S:g} |" in deadlines and f"`idle_s` ({conversation.IDLE_S:g})" in deadlines
    assert f"sends | {stream.WRITE_DEADLINE_S:g} |" in deadlines
    assert f"At most {stream.MAX_UNSENT_BYTES // 2**20} MiB wait" in deadlines
    assert f"asks about a backup | {backups.IDLE_S:g} |" in deadlines and f"without `bye` | {backups.RESUME_S:g} |" in deadlines
    assert f"`size` (int 1 … {BACKUP_PIECE_BYTES}, default {BACKUP_PIECE_BYTES})" in part("### backup", "## 10.")


def test_the_gates_are_those_of_the_code_and_numbers_of_pauses_and_changes_too() -> None:
    codes = {code for name in ("gates.py",) for code in re.findall(r'Gate\("(\w+)"', (CODE / name).read_text())} | {"queue_paused", "task_paused"}
    rows = [line.split("|")[1] for line in part("### explain", "For a queue:").splitlines() if line.startswith("| ") and "code" not in line]

    assert {code.strip() for row in rows for code in row.split(",")} == codes
    assert f"at most {MAX_PAUSES:,}" in TEXT and f"{MAX_PAUSES:,} queues and tasks" in TEXT and "4 MiB of payloads together" in TEXT
    assert f"there are at most {MAX_LIMITS:,} |" in TEXT and f"FULL: {MAX_LIMITS:,} queues have one" in TEXT
    assert control_verbs.CHANGE_BYTES == 4 * 2**20 and "10 to 20 s" in TEXT and ROUND_S == 10.0


def test_the_states_are_those_of_the_code_and_the_picture_shows_their_moves() -> None:
    listed = re.search(r"\| `state` \| word \| ([^|]+) \|", TEXT).group(1).split(", ")
    picture = part("## 6. Life of a job", "A job is named by")

    assert [word.strip() for word in listed] == list(STATE_BY_LABEL)
    assert all(state.label in picture for state in MOVES)


def test_who_may_use_a_verb_is_told() -> None:
    role = next(line for line in TEXT.splitlines() if line.startswith("| `role` | word |"))

    assert {name for name in re.findall(r"`(\w+)`", role) if name in VERBS} == set(WORKER_VERBS)


def test_the_ranges_in_the_tables_are_those_of_the_code() -> None:
    def bounds(verb: str, name: str) -> tuple[float, float]:
        found = re.search(rf"\| `{name}` \| (?:int|seconds) ([\d,]+) … ([\d,]+)", part(f"### {verb}", "\n### "))
        return tuple(float(number.replace(",", "")) for number in found.groups())

    for verb, name in (("reserve", "n"), ("reserve", "wait")):
        check = next(field for field in VERBS[verb] if field.name == name).check
        low, high = (int(bound) for bound in bounds(verb, name))
        assert check(low) == low and check(high) == high
        for outside in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"from {low} to {high}"):
                check(outside)
    for name in ("priority", "delay"):
        low, high = (int(bound) for bound in bounds("submit", name))
        check = OPTIONS[name].check
        assert check(low) == low and check(high) == high
        for outside in (low - 1, high + 1):
            with pytest.raises(ValueError):
                check(outside)


def test_the_lengths_of_an_error_are_those_of_the_code() -> None:
    sentence = part('"fail", error]`', "longer ones are cut").replace("\n", " ")

    assert {name: int(size) for name, size in re.findall(r"`(\w+)`\s+\(≤ (\d+)\)", sentence)} == ERROR_LIMITS
