"""What worker.py promises, as a real process against a scripted broker: every word on the wire is seen."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.protocol import pack_value, unpack_value
from tests.scripted import Peer, Program, ScriptedBroker, make_certificates, until

TASKS = '''
import os, threading, time
from greenroom.tasks import Context, DontRetry, register_task, task, unregister_task

@task
def echo(text: str = "") -> str:
    return text

@task
def hold(path: str, context: Context) -> str:
    """Runs until a file appears; says if it was cancelled."""
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        if context.wait(0.01):
            raise RuntimeError("was cancelled")
    return "held"

@task
def spin(seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "spun"

@task
def die() -> None:
    os._exit(9)

@task
def own_end(how: str, context: Context) -> list:
    if how == "snooze":
        context.snooze(30)
    if how == "look":
        return [os.environ["GREENROOM_URL"], os.environ["GREENROOM_CA"]]
    raise DontRetry("no such address")

@task
def swap() -> None:
    register_task("fresh", lambda payload: payload)
    unregister_task("echo")
'''


@pytest.fixture
def broker(certificates: Path) -> Iterator[ScriptedBroker]:
    scripted = ScriptedBroker(certificates)
    yield scripted
    scripted.close()


@pytest.fixture
def start(broker: ScriptedBroker, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    (tmp_path / "mine.py").write_text(TASKS)
    started: list[Program] = []

    def begin(*flags: str) -> Program:
        program = Program("worker.py", "--url", broker.url, "--ca", broker.ca, "--tasks", str(tmp_path / "mine.py"),
                          "--no-builtins", "--name", "w1", *flags)
        started.append(program)
        return program
    yield begin
    for program in started:
        program.kill()


def delivery(job: int, fence: int, task: str, **payload: object) -> list:
    return [job, fence, task, pack_value(payload), False, "default", 1, 5]


def settled(peer: Peer) -> list:
    """Take the next settle, accept it and return its items; reserves before it are left unanswered."""
    while True:
        message = peer.next()
        if message["verb"] == "settle":
            peer.reply(message, outcomes=["OK"] * len(message["leases"]))
            return message["leases"]
        assert message["verb"] in ("reserve", "heartbeat", "ping"), message
        if message["verb"] == "heartbeat":
            peer.reply(message, lost=[], cancel=[])


def until_begun(path: Path) -> None:
    until(lambda: Path(f"{path}.begun").exists())


def hold_one(broker: ScriptedBroker, path: Path, **greeting: object) -> Peer:
    """Greet the worker and let it run job 1 (fence 10) of the task `hold`."""
    peer = broker.greeted(**greeting)
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "hold", path=str(path))])
    until_begun(path)
    return peer


def test_it_greets_reserves_its_slots_runs_and_settles(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    program = start("--concurrency", "3", "--queues", "a,b")
    peer = broker.accept()
    hello = peer.greet()
    assert (hello["role"], hello["name"], hello["leases"], len(hello["instance"])) == ("worker", "w1", [], 16)
    reserve = peer.expect("reserve")
    assert (reserve["n"], reserve["queues"], reserve["wait"]) == (3, ["a", "b"], 60)
    assert reserve["tasks"] == ["die", "echo", "hold", "own_end", "spin", "swap"]
    peer.reply(reserve, jobs=[delivery(1, 10, "echo", text="x"), delivery(2, 11, "echo", other=1)])
    items = {}
    while len(items) < 2:
        items |= {item[0]: item for item in settled(peer)}
    assert items[1][:3] == [1, 10, "ack"] and unpack_value(items[1][3]) == "x" and items[1][4] is False
    assert items[2][:3] == [2, 11, "fail"] and items[2][3]["name"] == "BadPayloadError"
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d INFO    \[Worker w1\] connected", program.line_with("[Worker w1] connected"))
    program.line_with("job 2 failed: BadPayloadError")


def test_it_keeps_one_reserve_open_and_asks_for_what_is_free(broker: ScriptedBroker, start: Callable[..., Program],
                                                             tmp_path: Path) -> None:
    start("--concurrency", "2")
    peer = hold_one(broker, tmp_path / "a")
    reserve = peer.expect("reserve")
    assert reserve["n"] == 1
    (tmp_path / "a").touch()
    larger = None
    while larger is None:  # the freed slot and the settle, in either order
        message = peer.next()
        if message["verb"] == "settle":
            peer.reply(message, outcomes=["OK"])
        elif message["verb"] == "reserve":
            larger = message
    assert larger["n"] == 2
    peer.reply(reserve, jobs=[])  # replaced: nothing more is asked for
    peer.reply(larger, jobs=[delivery(5, 50, "echo", text="y")])
    assert settled(peer)[0][:3] == [5, 50, "ack"]


def test_what_finishes_while_a_settle_is_unanswered_is_settled_together(broker: ScriptedBroker, start: Callable[..., Program],
                                                                        tmp_path: Path) -> None:
    paths = {job: tmp_path / f"end-{job}" for job in (1, 2, 3)}
    start("--concurrency", "3")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(job, job, "hold", path=str(path)) for job, path in paths.items()])
    for path in paths.values():
        until_begun(path)
    paths[1].touch()
    first = next(message for message in iter(peer.next, None) if message["verb"] == "settle")
    assert [item[0] for item in first["leases"]] == [1]

    paths[2].touch()
    paths[3].touch()

    # Only reserves, until one asks for all three slots: both have ended although nothing was answered.
    free = 0
    while free < 3:
        message = peer.next()
        assert message["verb"] in ("reserve", "heartbeat")
        free = message.get("n", 0)
    peer.reply(first, outcomes=["OK"])
    assert {item[0] for item in settled(peer)} == {2, 3}


def test_heartbeats_list_every_lease_also_during_a_python_loop(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    start("--concurrency", "2")
    peer = broker.greeted(heartbeat_s=0.2)
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "spin", seconds=20), delivery(2, 11, "spin", seconds=20)])
    beats, started = [], time.monotonic()
    while time.monotonic() - started < 2.5:
        message = peer.next()
        if message["verb"] == "heartbeat":
            beats.append(sorted(message["leases"]))
            peer.reply(message, lost=[], cancel=[])
    assert len(beats) >= 5
    assert all(beat == [[1, 10], [2, 11]] for beat in beats)


def test_a_lost_lease_stops_its_task_and_drops_its_result(broker: ScriptedBroker, start: Callable[..., Program],
                                                          tmp_path: Path) -> None:
    program = start("--concurrency", "1")
    peer = hold_one(broker, tmp_path / "a", heartbeat_s=0.1)
    peer.reply(peer.next(), lost=[[1, 10]], cancel=[])
    program.line_with("job 1 dropped: its lease is lost")
    program.line_with("late result of job 1 was dropped")
    reserve = peer.expect("reserve")
    peer.reply(reserve, jobs=[delivery(2, 11, "echo", text="z")])
    assert [item[:3] for item in settled(peer)] == [[2, 11, "ack"]]


def test_a_cancel_notice_reaches_the_task(broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path) -> None:
    start()
    peer = broker.greeted()
    # The job was given out again, to the same worker, before the notice of the lease that ended came: after its time limit, say.
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "hold", path=str(tmp_path / "a")), delivery(1, 12, "hold", path=str(tmp_path / "b"))])
    for name in "ab":
        until_begun(tmp_path / name)
    peer.send({"notice": "cancel", "leases": [[1, 10], [99, 99]]})
    item = settled(peer)[0]
    assert item[:3] == [1, 10, "fail"] and item[3]["message"] == "was cancelled"
    (tmp_path / "b").touch()
    assert settled(peer)[0][:3] == [1, 12, "ack"]


def test_refused_outcomes_are_dropped_or_turned_into_a_failure(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    program = start("--concurrency", "2")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "echo"), delivery(2, 11, "echo")])
    outcomes = {1: {"code": "LEASE_LOST", "message": "late"}, 2: {"code": "TOO_LARGE", "message": "big"}}
    left = {1, 2}
    while left:
        message = peer.next()
        if message["verb"] == "settle":
            peer.reply(message, outcomes=[outcomes[item[0]] for item in message["leases"]])
            left -= {item[0] for item in message["leases"]}
    again = settled(peer)
    assert [item[:3] for item in again] == [[2, 11, "fail"]] and again[0][3]["name"] == "ResultTooLargeError"
    program.line_with("job 1 dropped: ack refused: late")


def test_a_task_that_snoozes_or_gives_up_is_settled_so(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    start("--concurrency", "1", "--pool", "process")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "own_end", how="snooze")])
    assert settled(peer) == [[1, 10, "snooze", 30.0]]
    peer.reply(peer.expect("reserve"), jobs=[delivery(2, 11, "own_end", how="give up")])
    [[job, fence, kind, error, retry]] = settled(peer)
    assert (job, fence, kind, error["name"], retry) == (2, 11, "fail", "DontRetry", {"retry": False})


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_its_tasks_find_its_broker_in_the_environment(broker: ScriptedBroker, start: Callable[..., Program], pool: str) -> None:
    start("--concurrency", "1", "--pool", pool)
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "own_end", how="look")])
    [[*_, kind, result, _]] = settled(peer)
    assert (kind, unpack_value(result)) == ("ack", [broker.url, broker.ca])


def test_a_settle_that_was_busy_is_sent_again(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    start("--concurrency", "1")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "echo")])
    while (message := peer.next())["verb"] != "settle":
        pass
    peer.refuse(message, "BUSY", retry_after_s=0.05)
    assert [item[:3] for item in settled(peer)] == [[1, 10, "ack"]]


def test_it_comes_back_presents_its_leases_and_settles_what_was_finished(broker: ScriptedBroker, start: Callable[..., Program],
                                                                         tmp_path: Path) -> None:
    program = start("--concurrency", "3")
    peer = broker.accept()
    instance = peer.greet()["instance"]
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "hold", path=str(tmp_path / "a")),
                                             delivery(2, 11, "hold", path=str(tmp_path / "b")), delivery(3, 12, "echo")])
    until_begun(tmp_path / "a")
    until_begun(tmp_path / "b")
    while peer.next()["verb"] != "settle":
        pass
    peer.close()  # the settle of job 3 has no answer
    peer = broker.accept()
    hello = peer.expect("hello")
    assert hello["instance"] == instance
    assert sorted(hello["leases"]) == [[1, 10], [2, 11], [3, 12]]
    lost = {"code": "LEASE_LOST", "message": "gone"}
    peer.send({"id": hello["id"], "version": 1, "broker": "b", "lease_s": 15, "heartbeat_s": 5, "idle_s": 60, "limits": {},
               "leases": [lost if lease == [2, 11] else "OK" for lease in hello["leases"]]})
    assert [item[:3] for item in settled(peer)] == [[3, 12, "ack"]]
    program.line_with("job 2 dropped: the broker did not keep its lease")
    program.line_with("connected again")
    (tmp_path / "a").touch()
    assert [item[:3] for item in settled(peer)] == [[1, 10, "ack"]]


def test_a_draining_broker_is_left_alone_and_met_again(broker: ScriptedBroker, start: Callable[..., Program],
                                                       tmp_path: Path) -> None:
    program = start("--concurrency", "1")
    peer = hold_one(broker, tmp_path / "a")
    peer.send({"notice": "drain", "reason": "broker"})
    program.line_with("the broker is going away")
    peer.close()
    peer = broker.accept()
    hello = peer.expect("hello")
    assert hello["leases"] == [[1, 10]]
    peer.send({"id": hello["id"], "leases": ["OK"], "limits": {}, "heartbeat_s": 5})
    (tmp_path / "a").touch()
    assert [item[:3] for item in settled(peer)] == [[1, 10, "ack"]]


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "notice"])
def test_a_drain_finishes_what_runs_and_says_bye(broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path,
                                                 by: str) -> None:
    program = start("--concurrency", "2")
    peer = hold_one(broker, tmp_path / "a")
    assert peer.expect("reserve")["n"] == 1
    if by == "notice":
        peer.send({"notice": "drain", "reason": "worker"})
    else:
        program.signal(getattr(signal, by))
    assert peer.expect("reserve")["n"] == 0
    (tmp_path / "a").touch()
    assert [item[:3] for item in settled(peer)] == [[1, 10, "ack"]]
    peer.reply(peer.expect("bye"))
    assert program.end() == 0
    program.line_with("draining")


def test_a_job_that_arrives_during_a_drain_is_given_back(broker: ScriptedBroker, start: Callable[..., Program],
                                                         tmp_path: Path) -> None:
    program = start("--concurrency", "2")
    peer = hold_one(broker, tmp_path / "a")
    reserve = peer.expect("reserve")
    program.signal(signal.SIGTERM)
    assert peer.expect("reserve")["n"] == 0
    peer.reply(reserve, jobs=[delivery(2, 11, "echo")])
    assert settled(peer) == [[2, 11, "nack", False]]


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_what_outlives_the_grace_is_given_back(broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path,
                                               pool: str) -> None:
    program = start("--concurrency", "1", "--grace", "0.3", "--pool", pool)
    peer = hold_one(broker, tmp_path / "a")
    program.signal(signal.SIGTERM)
    assert settled(peer) == [[1, 10, "nack", True]]
    peer.reply(peer.expect("bye"))
    assert program.end() == 0


def test_a_second_signal_ends_the_grace(broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path) -> None:
    program = start("--concurrency", "1", "--grace", "600")
    peer = hold_one(broker, tmp_path / "a")
    program.signal(signal.SIGTERM)
    program.line_with("draining")
    program.signal(signal.SIGTERM)
    assert settled(peer) == [[1, 10, "nack", True]]
    peer.reply(peer.expect("bye"))
    assert program.end() == 0


def test_tasks_that_come_and_go_are_told_at_once(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    start("--concurrency", "1")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "swap")])
    told = None
    while told is None or "fresh" not in told or "echo" in told:
        message = peer.next()
        if message["verb"] == "reserve":
            told = message["tasks"]
        elif message["verb"] == "settle":
            peer.reply(message, outcomes=["OK"])
    assert told == ["die", "fresh", "hold", "own_end", "spin", "swap"]


def test_a_dead_child_process_is_settled_as_a_crash(broker: ScriptedBroker, start: Callable[..., Program]) -> None:
    start("--concurrency", "1", "--pool", "process")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[delivery(1, 10, "die")])
    assert settled(peer) == [[1, 10, "crash"]]


def test_quick_jobs_are_reserved_ahead_and_given_back_when_one_gets_long(broker: ScriptedBroker, start: Callable[..., Program],
                                                                         tmp_path: Path) -> None:
    start("--concurrency", "2")
    peer = broker.greeted()
    numbers = iter(range(1, 1000))
    asked = 0
    while asked < 4:  # twice the slots
        message = peer.next()
        if message["verb"] == "settle":
            peer.reply(message, outcomes=["OK"] * len(message["leases"]))
            continue
        asked = message["n"]
        if asked < 4:
            peer.reply(message, jobs=[delivery(job, job, "echo") for job, _ in zip(numbers, range(asked))])
    long = [delivery(job, job, "hold", path=str(tmp_path / f"long{job}")) for job in range(2001, 2005)]
    peer.reply(message, jobs=long)
    given_back = []
    while len(given_back) < 2:
        given_back += [item for item in settled(peer) if item[2] == "nack"]
    assert given_back == [[2003, 2003, "nack", False], [2004, 2004, "nack", False]]


def test_a_job_that_crashed_before_runs_alone_and_until_then_nothing_new_is_taken(broker: ScriptedBroker, start: Callable[..., Program],
                                                                                   tmp_path: Path) -> None:
    paths = {job: tmp_path / f"job{job}" for job in (1, 3, 6)}
    start("--concurrency", "3")
    peer = hold_one(broker, paths[1], heartbeat_s=0.3)
    request = peer.expect("reserve")
    peer.reply(request, jobs=[[*delivery(3, 12, "hold", path=str(paths[3])), 2], delivery(4, 13, "echo"), [*delivery(5, 14, "echo"), 1]])
    assert settled(peer) == [[4, 13, "nack", False], [5, 14, "nack", False]]
    listed = None
    for _ in range(2):  # no reserve meanwhile
        beat = peer.next()
        assert beat["verb"] == "heartbeat"
        listed = beat["leases"]
        peer.reply(beat, lost=[], cancel=[])
    assert listed == [[1, 10], [3, 12]] and not Path(f"{paths[3]}.begun").exists()

    paths[1].touch()
    assert peer.expect("settle")["leases"][0][:3] == [1, 10, "ack"]
    time.sleep(0.3)
    assert not Path(f"{paths[3]}.begun").exists()  # the settle of job 1 is not answered, so it would be blamed


def test_a_suspect_does_not_begin_while_a_reserve_may_still_bring_it_a_neighbour(
        broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path) -> None:
    paths = {job: tmp_path / f"job{job}" for job in (1, 3)}
    start("--concurrency", "3")
    peer = hold_one(broker, paths[1])
    older = peer.expect("reserve")
    paths[1].touch()
    settle = peer.expect("settle")
    newer = peer.expect("reserve")
    assert (older["n"], newer["n"]) == (2, 3)
    peer.reply(older, jobs=[[*delivery(3, 12, "hold", path=str(paths[3])), 1]])
    peer.reply(settle, outcomes=["OK"])
    taken_back = peer.expect("reserve")
    assert taken_back["n"] == 0
    time.sleep(0.3)
    assert not Path(f"{paths[3]}.begun").exists()  # what the broker gave to `newer` meanwhile would die with it

    peer.reply(newer, jobs=[delivery(4, 13, "echo")])
    assert settled(peer) == [[4, 13, "nack", False]]
    peer.reply(taken_back, jobs=[])

    until_begun(paths[3])


def test_a_suspect_goes_back_by_cancel_and_drain_before_it_begins_and_after_it_jobs_come_one_at_a_time(
        broker: ScriptedBroker, start: Callable[..., Program], tmp_path: Path) -> None:
    paths = {job: tmp_path / f"job{job}" for job in (1, 3, 6)}
    program = start("--concurrency", "3")
    peer = broker.greeted()
    peer.reply(peer.expect("reserve"), jobs=[[*delivery(3, 12, "hold", path=str(paths[3])), 1]])
    until_begun(paths[3])
    paths[3].touch()
    assert settled(peer)[0][:3] == [3, 12, "ack"]
    one = peer.expect("reserve")
    assert one["n"] == 1
    peer.reply(one, jobs=[delivery(1, 13, "hold", path=str(paths[1]))])
    until_begun(paths[1])
    for job, fence in ((6, 14), (6, 15)):
        request = peer.expect("reserve")
        peer.reply(request, jobs=[[*delivery(job, fence, "hold", path=str(paths[6])), 1]])
        if fence == 14:
            assert request["n"] == 2
            peer.send({"notice": "cancel", "leases": [[6, 14]]})
            assert settled(peer) == [[6, 14, "nack", False]]
    time.sleep(0.2)
    program.signal(signal.SIGTERM)
    assert settled(peer) == [[6, 15, "nack", False]] and not Path(f"{paths[6]}.begun").exists()
    paths[1].touch()
    assert settled(peer)[0][:3] == [1, 13, "ack"]
    peer.reply(peer.expect("bye"))
    assert program.end() == 0


def test_more_than_a_first_frame_can_hold_is_left_out_of_the_hello(broker: ScriptedBroker, tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text("from greenroom.tasks import register_task\nfor number in range(900):\n"
                                      "    register_task('very-' * 20 + f'long-name-{number}', print)\n")
    program = Program("worker.py", "--url", broker.url, "--ca", broker.ca, "--tasks", str(tmp_path / "many.py"))
    try:
        peer = broker.accept()
        assert "tasks" not in peer.greet()
        assert len(peer.expect("reserve")["tasks"]) == 905
    finally:
        program.kill()


def test_it_waits_for_a_broker_that_is_not_there_yet(certificates: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = Program("worker.py", "--url", f"greenroom://localhost:{port}", "--ca", str(certificates / "ca.crt"))
    try:
        program.line_with("trying again until it works")
        broker = ScriptedBroker(certificates, port=port)
        broker.greeted()
        broker.close()
        assert sum("trying again" in line for line in program.lines) == 1
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    finally:
        program.kill()


def test_exit_codes_for_what_cannot_work(certificates: Path, tmp_path: Path) -> None:
    ca = str(certificates / "ca.crt")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"greenroom://localhost:{port}"
    for flags, code in ((["--url", "x"], 2), (["--concurrency", "0"], 2), (["--name", "a b"], 2), (["--tasks", "no.such"], 2),
                        (["--no-builtins"], 2), (["--ca", str(tmp_path / "no.crt")], 2), (["--connect-timeout", "0"], 3)):
        program = Program("worker.py", "--ca", ca, "--url", url, *flags)
        assert program.end() == code, (flags, program.lines, program.errors)
        assert not any("Traceback" in line for line in program.lines + program.errors)
        assert len(program.errors) <= 1 or flags[0] == "--concurrency"


def test_a_broker_with_another_ca_ends_it_with_4(broker: ScriptedBroker, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    program = Program("worker.py", "--url", broker.url, "--ca", str(other / "ca.crt"))
    with pytest.raises(OSError):
        broker.accept()
    assert program.end() == 4
    program.line_with("did not sign")
