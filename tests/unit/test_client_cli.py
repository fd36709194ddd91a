"""The client's command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from greenroom import tables
from greenroom.client_cli import Output, build_parser, readable
from greenroom.client_demo import free_slots
from greenroom.client_failures import GroupRetry
from greenroom.protocol import pack_value
from tests.scripted import ROOT, Peer, Program, ScriptedBroker, make_certificates


@pytest.fixture
def broker(certificates: Path) -> Iterator[ScriptedBroker]:
    scripted = ScriptedBroker(certificates)
    yield scripted
    scripted.close()


@pytest.fixture
def start(broker: ScriptedBroker) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(*arguments: str) -> Program:
        program = Program("client.py", "--url", broker.url, "--ca", broker.ca, *arguments)
        started.append(program)
        return program
    yield begin
    for program in started:
        program.kill()


def view(job: int, state: str = "completed", result: object = None, **fields: object) -> dict:
    return {"id": job, "task": "t", "queue": "default", "priority": 5, "state": state, "attempt": 1, "worker": "w",
            "submitted_at": 1e9, "result": pack_value(result), "result_encoding": "msgpack", "encoding": "msgpack",
            "error": None, **fields}


def answered(broker: ScriptedBroker, *answers: tuple[str, dict]) -> Peer:
    """Greet the client and answer its requests in this order; {"error": {...}} refuses."""
    peer = broker.greeted()
    for verb, answer in answers:
        peer.reply(peer.expect(verb), **answer)
    return peer


FAILED = view(7, "failed", error={"name": "ValueError", "message": "bad\x1b[31m", "traceback": ""}) | {"result": None}
BULK_SUMS = {"matched": 3, "done": 0, "refused": 0, "why": None, "exact": True, "scanned_to": 1}
BULK = {**BULK_SUMS, "next": None}
NOT_FOUND = {"id": 9, "error": {"code": "NOT_FOUND", "message": "no job 9"}}


@pytest.mark.parametrize(("arguments", "answers", "code", "printed"), [
    (["submit", "t", '{"n": 1}'], [("submit", {"jobs": [17]})], 0, {"id": 17}),
    (["submit", "t", "--wait", "-o", "table"], [("submit", {"jobs": [7]}), ("wait", {"jobs": [view(7, result="a\nb")]})], 0, "a\\nb"),
    (["submit", "t", "--wait", "-o", "table"], [("submit", {"jobs": [7]}), ("wait", {"jobs": [view(7, result={"n": 2**60})]})],
     0, '{"n": "1152921504606846976"}'),
    (["submit", "t", "--wait", "-o", "table"], [("submit", {"jobs": [7]}), ("wait", {"jobs": [FAILED]})], 1, ""),
    (["submit", "t", "--wait", "--timeout", "0.5"], [("submit", {"jobs": [7]}), ("wait", {"jobs": []})], 6, None),
    (["submit", "t"], [("submit", {"error": {"code": "FULL", "message": "full"}})], 7, None),
    (["resubmit", "7", "--payload", '{"n": 2}', "--attempts", "1"], [("get", {"jobs": [view(7, "failed", payload=b"\x80")]}), ("submit", {"jobs": [18]})],
     0, {"id": 18}),
    (["resubmit", "9"], [("get", {"jobs": [NOT_FOUND]})], 5, None),
    (["get", "9"], [("get", {"jobs": [NOT_FOUND]})], 5, None),
    (["wait", "7"], [("wait", {"jobs": [FAILED]})], 1, None),
    (["wait", "7", "9"], [("wait", {"jobs": [view(7), NOT_FOUND]})], 5, None),
    (["cancel", "1", "-o", "jsonl"], [("cancel", {"outcomes": ["requested"]})], 0, {"id": 1, "outcome": "requested"}),
    (["cancel", "1"], [("cancel", {"outcomes": [{"code": "FINISHED", "message": "done"}]})], 7, None),
    (["stats"], [("stats", {"workers": 2, "states": {"queued": 1}})], 0, {"workers": 2, "states": {"queued": 1}}),
    (["queues", "-o", "jsonl"], [("queues", {"queues": [{"name": "q", "queued": 3}]})], 0, {"name": "q", "queued": 3}),
    (["workers", "-o", "json"], [("workers", {"workers": []})], 0, []),
    (["jobs", "state:failed id<9", "-n", "1", "-o", "json"], [("jobs", {"jobs": [], "next": None, "scanned_to": 1})], 0, []),
    (["jobs", "-n", "1"], [("jobs", {"jobs": [view(7, result=b"\xff")], "next": None})], 0, None),
    (["failures", "-o", "json"], [("failures", {"groups": [], "groups_total": 0, "scanned": {"jobs": 0, "newest": None, "oldest": None}, "next": None})],
     0, []),
    (["failures", "0" * 16], [("jobs", {"jobs": [], "next": None})], 5, ""),
    (["retry", "--group", "0" * 16, "--canary"], [("jobs", {"jobs": [], "next": None})], 5, ""),
    (["retry", "--group", "0" * 16, "--canary", "-o", "table"], [("jobs", {"jobs": [FAILED], "next": None}), ("retry", {"outcomes": ["queued"]}),
     ("wait", {"jobs": [FAILED]})], 1, "job 7 failed again (ValueError: bad\\x1b[31m): the others were not retried"),
    (["retry", "--group", "0" * 16, "--canary", "--dry-run", "-o", "json"], [("bulk", BULK)], 0, BULK_SUMS),
    (["demo"], [("workers", {"workers": []})], 7, None),
])
def test_each_command_prints_its_data_and_ends_with_its_code(broker: ScriptedBroker, start: Callable[..., Program],
                                                             arguments: list[str], answers: list, code: int,
                                                             printed: object) -> None:
    program = start(*arguments)
    answered(broker, *answers)
    assert program.end() == code, program.errors
    text = "\n".join(program.lines)
    if isinstance(printed, str):
        assert program.lines == ([printed] if printed else [])
    elif printed is not None:
        assert json.loads(text) == printed
    assert not any("Traceback" in line or "\x1b" in line for line in program.lines + program.errors)


@pytest.mark.parametrize(("outcome", "refused", "code"), [("retried", 0, 0), ("retried", 2, 7), ("failed", 0, 1), ("timeout", 0, 6)])
def test_a_group_of_which_one_is_tried_first_ends_with_a_code_for_what_became_of_it(outcome: str, refused: int, code: int) -> None:
    class Some:
        def retry_group(self, fingerprint: str, *, timeout: float) -> GroupRetry:
            return GroupRetry(fingerprint, outcome, 7, "completed", 3, refused, f"within {timeout:g} s")

    args = build_parser().parse_args(["retry", "--group", "f" * 16, "--canary"])
    assert args.command(Some(), args, Output("json")) == code


def test_a_list_shows_today_s_times_alone_and_a_refused_cancel_names_its_job_once(broker: ScriptedBroker,
                                                                                 start: Callable[..., Program]) -> None:
    now = time.time()
    program = start("jobs", "-o", "table")
    answered(broker, ("jobs", {"jobs": [view(8, submitted_at=now), view(7)], "next": None}))
    assert program.end() == 0
    assert re.search(r" w +\d\d:\d\d:\d\d( |$)", program.lines[1]) or datetime.now().date() != datetime.fromtimestamp(now).date()
    assert datetime.fromtimestamp(1e9).strftime("%Y-%m-%d %H:%M") in program.lines[2]
    refused = start("cancel", "1")
    answered(broker, ("cancel", {"outcomes": [{"code": "FINISHED", "message": "job 1 is already completed"}]}))
    assert refused.end() == 7 and refused.errors == ["greenroom: job 1 is already completed"]


def test_lists_are_one_object_a_line_when_piped_with_bytes_as_base64(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    program = start("jobs")
    answered(broker, ("jobs", {"jobs": [view(8, result=b"\xff\x00"), view(7, result=55)], "next": None}))
    assert program.end() == 0
    assert [json.loads(line)["result"] for line in program.lines] == [{"$base64": "/wA="}, 55]


@pytest.mark.parametrize("arguments", [
    [], ["submt"], ["submit"], ["submit", "t", "{n: 1}"], ["submit", "t", "NaN"], ["submit", "t", '{"$base64": "?"}'],
    ["submit", "t", "-p", "11"], ["submit", "t", "--prio", "1"], ["submit", "a b"], ["submit", "t", "--run-at", "noon"], ["get"],
    ["get", "x"], ["get", "0"], ["jobs", "--state", "lost"], ["jobs", "state:lost"], ["jobs", "a:b"], ["jobs", "-n", "0"], ["stats", "--timeout", "0"],
    ["failures", "x"], ["failures", "-n", "0"], ["retry", "--canary"], ["retry", "--canary", "7"], ["retry", "--group", "x", "--canary"],
    ["retry", "--group", "0" * 16, "7"], ["retry", "--group", "0" * 16, "--failed"], ["stats", "--url", "http://x"], ["stats", "--ca", "/nowhere"], ["stats", "-o", "xml"]])
def test_wrong_use_ends_with_2_and_a_sentence(broker: ScriptedBroker, start: Callable[..., Program], arguments: list[str]) -> None:
    program = start(*arguments)
    if arguments[-2:] in (["-p", "11"], ["submit", "a b"]):
        broker.greeted()  # these are checked with the broker's limits at hand
    assert program.end() == 2
    assert program.errors and not any("Traceback" in line for line in program.errors)
    assert not program.lines


def test_no_broker_ends_with_3_and_an_unknown_ca_with_4(broker: ScriptedBroker, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = Program("client.py", "stats", "--url", f"greenroom://localhost:{port}", "--ca", broker.ca)
    assert program.end() == 3
    assert len(program.errors) == 1 and "python broker.py" in program.errors[0]
    other = make_certificates(tmp_path)
    program = Program("client.py", "--ca", str(other / "ca.crt"), "stats", environ={"GREENROOM_URL": broker.url})
    with pytest.raises(OSError):
        broker.accept()
    assert program.end() == 4
    assert len(program.errors) == 1


def test_an_interrupt_ends_with_130_without_a_traceback(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    program = start("wait", "1")
    broker.greeted().expect("wait")
    program.signal(signal.SIGINT)
    assert program.end() == 130
    assert not any("Traceback" in line for line in program.errors)


def test_a_reader_that_stops_reading_is_no_error(broker: ScriptedBroker) -> None:
    with subprocess.Popen([sys.executable, "client.py", "jobs", "-n", "100000", "--url", broker.url, "--ca", broker.ca], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        peer = broker.greeted()
        before = 100_000
        process.stdout.close()
        while (request := peer.next()) is not None and request["verb"] == "jobs":
            peer.reply(request, jobs=[view(job) for job in range(before, before - request["limit"], -1)], next=before - 200)
            before -= 200
        assert process.stderr.read() == b""
        assert process.wait(10) == 0


@pytest.mark.parametrize("script", ["client.py", "worker.py"])
def test_a_script_without_its_packages_names_the_command_that_fixes_it(script: str) -> None:
    done = subprocess.run([sys.executable, "-S", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "msgpack" in done.stderr and "`./run setup && . .venv/bin/activate`" in done.stderr and "`pip install -r requirements.txt`" in done.stderr


@pytest.mark.parametrize("arguments", [["client.py", "stats"], ["worker.py"]])
def test_a_script_without_certificates_names_the_command_that_fixes_it(arguments: list[str], tmp_path: Path) -> None:
    for name in ("client.py", "worker.py", "protocol.py", "greenroom"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = Program("-c", f"import sys, runpy; sys.argv = {arguments!r}; import greenroom.endpoint, pathlib; "
                      "greenroom.endpoint._CHECKOUT = pathlib.Path.cwd(); "
                      f"runpy.run_path({arguments[0]!r}, run_name='__main__')", cwd=tmp_path)
    assert program.end() == 2
    assert len(program.errors) == 1 and not program.lines
    assert f"no CA certificate at {tmp_path}/certs/ca.crt: run `python certs/gen_certs.py` (or give --ca)" in program.errors[0]


def test_every_command_has_help_and_no_abbreviations() -> None:
    for name in ("submit", "get", "wait", "cancel", "jobs", "queues", "workers", "stats", "demo"):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([name, "--help"])
        assert caught.value.code == 0


def test_common_flags_may_stand_before_or_after_the_command() -> None:
    parser = build_parser()
    assert parser.parse_args(["--url", "u", "stats"]).url == "u"
    assert parser.parse_args(["stats", "--url", "u"]).url == "u"
    assert parser.parse_args(["--url", "u", "stats", "-o", "json"]).url == "u"


def test_tables_escape_what_a_terminal_would_obey_and_keep_columns_straight() -> None:
    text = tables.render(["name", "n"], [["a\x1b[2J\nb\u202e", 1], ["日本", 22], ["e\u0301", None]])
    assert "\x1b" not in text and "\u202e" not in text
    assert text.splitlines()[1] == "a\\x1b[2J\\nb\\u202e   1"
    assert text.splitlines()[2] == "日本" + " " * 15 + "22"
    assert len(tables.render(["a", "b"], [["x" * 30, "y" * 300]], width=40).splitlines()[1]) == 40


def test_json_keeps_exact_what_javascript_would_round() -> None:
    value = {"big": 2**53 + 1, "small": 2**53, "raw": b"\x00", 5: float("inf"), "bad": "\ud800\x9b"}
    text = tables.dump(value)
    assert json.loads(text) == {"big": "9007199254740993", "small": 2**53, "raw": {"$base64": "AA=="}, "5": "inf", "bad": "\ud800\x9b"}
    assert text.isascii()
    assert tables.from_json(tables.to_json([b"\xff", {"x": b""}])) == [b"\xff", {"x": b""}]


def test_a_view_becomes_readable_and_broken_msgpack_stays_bytes() -> None:
    assert readable(view(1, result=[1, "x"]))["result"] == [1, "x"]
    assert readable(view(1) | {"result": b"\xc1"})["result"] == b"\xc1"
    assert readable(view(1) | {"payload": pack_value({"n": 1})})["payload"] == {"n": 1}


def test_the_demo_counts_only_workers_that_can_run_it() -> None:
    def worker(free: int, **fields: object) -> dict:
        return {"status": "idle", "free": free, "tasks": ["slow_task", "reverse_string"], "queues": None, **fields}
    assert free_slots([worker(4), worker(2, queues=["default"]), worker(9, tasks=["slow_task"]), worker(9, queues=["other"]),
                       worker(9, status="lost")]) == 6
    assert free_slots([worker(9, tasks=["x"])]) is None
    assert free_slots([worker(0)]) == 0


def test_no_color_and_pipes_have_no_escape_codes() -> None:
    styled = tables.render(["state"], [["failed"]], styles={"failed": "31"})
    assert "\x1b[31mfailed\x1b[0m" in styled
    assert "\x1b" not in tables.render(["state"], [["failed"]])
    assert os.linesep not in tables.escape("a\r\nb")
