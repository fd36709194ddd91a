"""Thread and process pools under real threads: each scenario is a script of its own, in a process that nobody patched."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TASKS = '''
import os, re, signal, subprocess, sys, time
from greenroom.tasks import CancelledTaskError, Context, DontRetry, Retry, register_task, task

@task
def own_end(how: str, context: Context) -> None:
    if how == "snooze":
        context.snooze(30)
    if how == "give up":
        raise DontRetry("no such address")
    raise Retry(at=2e9)

@task
def add(a: int, b: int) -> int:
    return a + b

@task
def ident(context: Context) -> list:
    return [context.job_id, context.fence, context.attempt, context.task, context.queue, context.worker]

@task
def boom() -> None:
    raise LookupError("nothing here")

@task
def leave() -> None:
    sys.exit(3)

@task
def interrupt() -> None:
    raise KeyboardInterrupt

@task
def unpackable() -> object:
    return {1, 2}

@task
def large(size: int) -> bytes:
    return b"x" * size

@task
def until_cancelled(mark: str, context: Context) -> None:
    open(mark, "w").close()
    if context.wait(60):
        raise CancelledTaskError("stopped")

@task
def deaf(mark: str) -> None:
    open(mark, "w").close()
    while True:
        time.sleep(0.05)

@task
def tells(mark: str, context: Context) -> bool:
    open(mark, "w").close()
    time.sleep(1.0)
    return context.cancelled

@task
def die(code: int) -> None:
    os._exit(code)

@task
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@task
def close_everything() -> None:
    os.closerange(3, 256)
    time.sleep(60)

@task
def leave_a_grandchild(mark: str) -> None:
    if os.fork() == 0:
        open(mark, "w").write(str(os.getpid()))
        time.sleep(20)
        os._exit(0)
    os._exit(1)

@task
def noisy() -> str:
    print("to stdout" * 2000)
    sys.stdout.flush()
    os.write(1, b"raw to fd 1" * 2000)
    subprocess.run(["echo", "from a child of the child"], check=True)
    return sys.stdin.read() + "quiet"

@task
def bad_regex(length: int) -> float:
    began = time.monotonic()
    re.match(r"(a|a)*$", "a" * length + "b")
    return time.monotonic() - began

@task
def stubborn(mark: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(mark, "w").close()
    time.sleep(60)

@task
def pid() -> int:
    return os.getpid()

register_task("echo", lambda payload: payload)
'''

PRELUDE = '''
import logging, os, sys, threading, time
from greenroom.pools import ProcessPool, RunItem, ThreadPool
from greenroom.protocol import pack_value, unpack_value
from greenroom.tasks import default_registry, load_tasks

logging.basicConfig(level=logging.WARNING)
KIND, FOLDER = sys.argv[1:]
SPEC = os.path.join(FOLDER, "pool_tasks.py")
MARK = os.path.join(FOLDER, "mark")

class Collector:
    """Keeps outcomes by job id and lets the script wait for them."""

    def __init__(self):
        self.condition = threading.Condition()
        self.outcomes = {}

    def __call__(self, outcome):
        with self.condition:
            assert outcome.job_id not in self.outcomes, "reported twice"
            self.outcomes[outcome.job_id] = outcome
            self.condition.notify_all()

    def wait(self, *job_ids, timeout=30):
        with self.condition:
            assert self.condition.wait_for(lambda: set(job_ids) <= set(self.outcomes), timeout), self.outcomes
            return [self.outcomes[job_id] for job_id in job_ids]

def make(size, on_done, **options):
    if KIND == "thread":
        load_tasks(SPEC)
        return ThreadPool(default_registry, size, on_done, **options)
    return ProcessPool([SPEC], size, on_done, **options)

def item(job_id, task, payload=None, **more):
    return RunItem(job_id, more.pop("fence", 1000 + job_id), task, pack_value({} if payload is None else payload), **more)

def until(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)

def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

done = Collector()
'''

both_pools = pytest.mark.parametrize("kind", ["thread", "process"])


def run_script(kind: str, folder: Path, scenario: str) -> str:
    """Run a scenario after the prelude; return its stderr. It fails by an assertion of its own."""
    (folder / "pool_tasks.py").write_text(TASKS)
    script = folder / "scenario.py"
    script.write_text(PRELUDE + textwrap.dedent(scenario) + "\nprint('the end')\n")
    code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(ROOT), str(script), kind, str(folder)], capture_output=True,
                          text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
    return done.stderr


@both_pools
def test_sixty_items_at_once_each_give_their_own_result(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(4, done)
        pool.start()
        submitters = [threading.Thread(target=lambda part=part: [
            pool.submit(item(n, "add", {"a": n, "b": 1})) for n in range(part, 61, 6)]) for part in range(1, 7)]
        for thread in submitters: thread.start()
        for thread in submitters: thread.join()
        outcomes = done.wait(*range(1, 61))
        assert [(o.kind, unpack_value(o.result), o.fence, o.encoding, o.error) for o in outcomes] == [
            ("ack", n + 1, 1000 + n, "msgpack", None) for n in range(1, 61)]
        assert all(0 <= o.seconds < 30 for o in outcomes)
        assert pool.stop(5) == [] and pool.stop(5) == []
        assert (pool.running(), pool.waiting()) == (0, 0)
    """)


@both_pools
def test_whatever_a_task_raises_is_a_fail_and_the_slot_serves_on(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done, max_result=5000)
        pool.start()
        for job_id, name in enumerate(["boom", "leave", "interrupt", "unpackable", "nowhere"], 1):
            pool.submit(item(job_id, name))
        pool.submit(item(6, "large", {"size": 5000}))
        pool.submit(item(7, "add", {"a": 1}))
        pool.submit(RunItem(8, 1, "add", b"\\xc1 no msgpack"))
        pool.submit(item(9, "echo", 2**63))
        pool.submit(item(10, "fibonacci", {"n": -1}))
        pool.submit(item(11, "large", {"size": 4997}))
        outcomes = done.wait(*range(1, 12))
        assert [o.kind for o in outcomes] == ["fail"] * 8 + ["ack", "fail", "ack"]
        errors = [o.error["name"] for o in outcomes if o.error]
        assert errors == ["LookupError", "SystemExit", "KeyboardInterrupt", "ResultError", "UnknownTaskError",
                          "ResultTooLargeError", "BadPayloadError", "BadPayloadError", "BadPayloadError"], errors
        assert all(o.result is None for o in outcomes if o.kind == "fail")
        assert outcomes[0].error["message"] == "nothing here" and "boom" in outcomes[0].error["traceback"]
        assert "5,003 bytes" in outcomes[5].error["message"] and "5,000 allowed" in outcomes[5].error["message"]
        assert "can't be decoded" in outcomes[7].error["message"]
        assert len(outcomes[10].result) == 5000
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_task_ends_its_run_in_a_way_of_its_own(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        for job_id, how in enumerate(["snooze", "give up", "later"], 1):
            pool.submit(item(job_id, "own_end", {"how": how}))
        snooze, give_up, later = (o.settle_item() for o in done.wait(1, 2, 3))
        assert snooze == [1, 1001, "snooze", 30.0]
        assert give_up[:3] == [2, 1002, "fail"] and give_up[4] == {"retry": False}
        assert (give_up[3]["name"], give_up[3]["message"]) == ("DontRetry", "no such address")
        assert later[:3] == [3, 1003, "fail"] and later[4] == {"retry_at": 2e9}
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_raw_payload_reaches_the_task_as_bytes_and_the_context_is_filled(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(RunItem(1, 5, "echo", b"\\xc1\\x00raw", encoding="raw"))
        pool.submit(item(2, "ident", queue="mail", attempt=3, worker="anna", fence=77))
        pool.submit(item(3, "echo", b"packed"))
        assert [unpack_value(o.result) for o in done.wait(1, 2, 3)] == [
            b"\\xc1\\x00raw", [2, 77, 3, "ident", "mail", "anna"], b"packed"]
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_running_job_sees_its_cancel_and_a_waiting_one_never_begins(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "until_cancelled", {"mark": MARK + "2"}))
        pool.submit(item(3, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK))
        assert (pool.running(), pool.waiting()) == (1, 2)
        assert pool.cancel(2) and pool.cancel(1) and pool.cancel(1)
        assert not pool.cancel(99)
        first, second, third = done.wait(1, 2, 3)
        assert (first.kind, first.error["name"], first.error["message"]) == ("fail", "CancelledTaskError", "stopped")
        assert (second.kind, second.error["name"]) == ("fail", "CancelledTaskError")
        assert not os.path.exists(MARK + "2")
        assert third.kind == "ack" and not pool.cancel(1)
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_cancel_of_a_lease_leaves_the_next_try_of_its_job_alone(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        ended = []
        pool = make(2, ended.append)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}, fence=10))  # its lease ended, and it was tried again at once
        pool.submit(item(1, "add", {"a": 1, "b": 1}, fence=11))
        pool.submit(item(1, "until_cancelled", {"mark": MARK + "2"}, fence=12))
        until(lambda: os.path.exists(MARK) and os.path.exists(MARK + "2") and len(ended) == 1)
        assert pool.cancel(1, 10) and not pool.cancel(1, 11)
        until(lambda: len(ended) == 2)
        assert [(o.fence, o.kind) for o in ended] == [(11, "ack"), (10, "fail")] and pool.running() == 1
        assert pool.cancel(1)
        until(lambda: len(ended) == 3)
        assert pool.stop(5) == []
    """)


@both_pools
def test_what_has_not_begun_can_be_withdrawn_and_what_has_cannot(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "until_cancelled", {"mark": MARK + "2"}))
        pool.submit(item(3, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK))
        assert pool.waiting_leases() == {(2, 1002), (3, 1003)}
        assert not pool.withdraw(1, 1001) and not pool.withdraw(2, 1) and not pool.withdraw(9, 9)
        assert pool.withdraw(2, 1002) and not pool.withdraw(2, 1002)
        assert (pool.running(), pool.waiting()) == (1, 1)
        assert pool.cancel(1) and not pool.cancel(2)
        assert done.wait(3)[0].kind == "ack"
        assert pool.stop(5) == [] and not os.path.exists(MARK + "2")
        assert set(done.outcomes) == {1, 3}
    """)


def test_a_parked_item_begins_when_it_is_released_and_not_before(tmp_path: Path) -> None:
    run_script("thread", tmp_path, """
        pool = make(2, done)
        pool.start()
        for n in (1, 2, 3):
            pool.submit(item(n, "add", {"a": n, "b": 1}), parked=True)
        pool.submit(item(4, "add", {"a": 4, "b": 1}))
        done.wait(4)
        assert pool.waiting_leases() == {(1, 1001), (2, 1002), (3, 1003)} and pool.withdraw(2, 1002)
        pool.release(2, 1002)
        pool.release(1, 1001)
        done.wait(1)
        assert set(done.outcomes) == {4, 1}
        assert [left.job_id for left in pool.stop(1)] == [3]
    """)


@both_pools
def test_withdrawing_races_with_the_slots_and_each_item_has_one_end(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        sys.setswitchinterval(0.0001)  # so that threads meet in the middle of things
        pool = make(2, done)
        pool.start()
        numbers = range(1, 901)
        for n in numbers:  # some sleep, so that not all are done before this thread has its turn again
            pool.submit(item(n, "add", {"a": n, "b": 1}) if n % 50 else item(n, "slow_task", {"seconds": 0.002}))
        done.wait(1)
        withdrawn = [n for n in reversed(numbers) if pool.withdraw(n, 1000 + n)]
        until(lambda: not pool.running() and not pool.waiting())
        assert pool.stop(5) == []
        assert withdrawn and sorted([*done.outcomes, *withdrawn]) == list(numbers)
    """)


@both_pools
def test_a_cancel_right_after_the_submit_is_never_lost(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(2, done)
        pool.start()
        pool.submit(item(1, "add", {"a": 1, "b": 1}))
        done.wait(1)
        for n in range(2, 102):
            pool.submit(item(n, "until_cancelled", {"mark": MARK + "x" * (n % 3) * 50}))
            if n % 2:
                time.sleep(0.0005 * (n % 7))  # meets the item in another stage each time
            assert pool.cancel(n)
            [outcome] = done.wait(n)
            assert outcome.error["name"] == "CancelledTaskError"
        assert pool.stop(5) == []
    """)


@both_pools
def test_stop_lets_running_items_finish_within_the_grace(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "slow_task", {"seconds": 0.5}))
        pool.submit(item(2, "add", {"a": 1, "b": 1}))
        until(lambda: pool.running() == 1)
        left = pool.stop(20)
        assert [i.job_id for i in left] == [2]
        assert list(done.outcomes) == [1] and done.outcomes[1].kind == "ack"
        from greenroom.errors import DrainingError
        try:
            pool.submit(item(3, "add", {"a": 1, "b": 1}))
        except DrainingError:
            pass
        else:
            raise AssertionError("a stopped pool took an item")
    """)


@both_pools
def test_stop_hands_back_what_did_not_finish_and_reports_nothing_of_it(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(2, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "slow_task", {"seconds": 50}))
        for n in (3, 4, 5):
            pool.submit(item(n, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK) and pool.running() == 2)
        pids = pool.pids() if KIND == "process" else []
        began = time.monotonic()
        left = pool.stop(0.3)
        assert sorted(i.job_id for i in left) == [1, 2, 3, 4, 5], left
        assert time.monotonic() - began < 10
        # Cancelled tasks end by themselves, children are ended; neither is reported any more.
        until(lambda: not any("greenroom-" in thread.name for thread in threading.enumerate()))
        assert done.outcomes == {} and not any(is_alive(pid) for pid in pids)
        assert pool.stop(1) == []
    """)


@both_pools
def test_a_receiver_that_raises_is_logged_and_harms_nobody(kind: str, tmp_path: Path) -> None:
    logged = run_script(kind, tmp_path, """
        def receiver(outcome):
            done(outcome)
            raise RuntimeError("the receiver is broken")
        pool = make(1, receiver)
        pool.start()
        for n in range(1, 6):
            pool.submit(item(n, "add", {"a": n, "b": n}))
        assert [unpack_value(o.result) for o in done.wait(1, 2, 3, 4, 5)] == [2, 4, 6, 8, 10]
        assert pool.stop(5) == []
    """)

    assert logged.count("RuntimeError: the receiver is broken") == 5


@both_pools
def test_a_pool_refuses_the_same_lease_twice_and_more_than_it_may_hold(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        from greenroom.errors import BusyError
        pool = make(1, done)
        pool.submit(item(1, "add", {"a": 1, "b": 1}))
        pool.submit(item(1, "add", {"a": 1, "b": 1}, fence=2))  # the same job under a new lease is another run
        try:
            pool.submit(item(1, "add", {"a": 1, "b": 1}))
        except ValueError:
            pass
        else:
            raise AssertionError("the same lease was taken twice")
        for n in range(3, 1002):
            pool.submit(item(n, "add", {"a": 1, "b": 1}))
        try:
            pool.submit(item(5000, "add", {"a": 1, "b": 1}))
        except BusyError:
            pass
        else:
            raise AssertionError("the line has no bound")
        assert len(pool.stop(1)) == 1001
    """)


def test_pool_threads_are_named_daemons(tmp_path: Path) -> None:
    run_script("thread", tmp_path, """
        pool = make(2, done)
        pool.start()
        threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        assert sorted(thread.name for thread in threads) == ["greenroom-task-1", "greenroom-task-2"]
        assert all(thread.daemon for thread in threads)
        assert pool.stop(5) == []
        assert threading.active_count() == 1
    """)


@pytest.mark.parametrize(("task", "payload", "how"), [
    ("die", {"code": 7}, "ended with exit code 7"),
    ("killed", {}, "was killed by SIGKILL"),
    ("close_everything", {}, "was killed by SIGTERM"),
])
def test_a_child_that_dies_is_a_crash_and_the_pool_serves_on(task: str, payload: dict, how: str, tmp_path: Path) -> None:
    run_script("process", tmp_path, f"""
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "pid"))
        pool.submit(item(2, {task!r}, {payload!r}))
        pool.submit(item(3, "pid"))
        before, crash, after = done.wait(1, 2, 3)
        assert (crash.kind, crash.fence, crash.result) == ("crash", 1002, None), crash
        assert crash.error["name"] == "ChildCrashError" and {how!r} in crash.error["message"], crash
        assert before.kind == after.kind == "ack" and before.result != after.result
        assert pool.pids() == [unpack_value(after.result)]
        assert pool.stop(5) == []
    """)


def test_a_dead_child_is_noticed_although_its_own_child_keeps_the_pipe_open(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        import signal
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "leave_a_grandchild", {"mark": MARK}))
        [crash] = done.wait(1, timeout=10)
        until(lambda: os.path.exists(MARK) and open(MARK).read())
        grandchild = int(open(MARK).read())
        assert is_alive(grandchild), "it must outlive the child for this test to say anything"
        assert (crash.kind, "ended with exit code 1" in crash.error["message"]) == ("crash", True)
        os.kill(grandchild, signal.SIGKILL)
        assert pool.stop(5) == []
    """)


def test_a_child_that_died_idle_costs_the_next_job_nothing(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        import signal
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "pid"))
        [first] = done.wait(1)
        os.kill(unpack_value(first.result), signal.SIGKILL)
        pool.submit(item(2, "pid"))
        [second] = done.wait(2)
        assert second.kind == "ack" and second.result != first.result
        assert pool.stop(5) == []
    """)


def test_what_tasks_print_in_a_child_goes_to_stderr_and_corrupts_nothing(tmp_path: Path) -> None:
    printed = run_script("process", tmp_path, """
        pool = make(2, done)
        pool.start()
        for n in range(1, 9):
            pool.submit(item(n, "noisy"))
        assert {unpack_value(o.result) for o in done.wait(*range(1, 9))} == {"quiet"}
        assert pool.stop(5) == []
    """)

    assert "to stdout" in printed and "raw to fd 1" in printed
    assert printed.count("from a child of the child") == 8


def test_a_regular_expression_in_a_child_does_not_hold_up_the_parent(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        import re
        length = 16
        while True:  # as long as it takes here: about two seconds
            began = time.monotonic()
            re.match(r"(a|a)*$", "a" * length + "b")
            took = time.monotonic() - began
            if took > 0.05:
                break
            length += 1
        while took < 1.5:
            length, took = length + 1, took * 2
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "pid"))
        done.wait(1)
        pool.submit(item(2, "bad_regex", {"length": length}))
        latest, last, ticks = 0.0, time.monotonic(), 0
        while 2 not in done.outcomes:
            time.sleep(0.02)
            now = time.monotonic()
            latest, last, ticks = max(latest, now - last - 0.02), now, ticks + 1
            assert ticks < 3000
            pool.cancel(2)  # must not block either, though the child can't listen
        [outcome] = done.wait(2)
        assert outcome.kind == "ack" and unpack_value(outcome.result) > 0.7, outcome
        assert latest < 0.3, f"the parent was {latest:.3f} s late"
        assert pool.stop(5) == []
    """)


def test_large_payloads_and_results_cross_the_pipe(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        pool = make(2, done, max_result=10_000_000)
        pool.start()
        payloads = {n: os.urandom(1_000_000 * n) for n in (1, 4, 9)}
        for n, payload in payloads.items():
            pool.submit(RunItem(n, n, "echo", payload, encoding="raw"))
        assert [unpack_value(o.result) for o in done.wait(1, 4, 9)] == list(payloads.values())
        assert pool.stop(5) == []
    """)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        pool = make(2, done)
        pool.start()
        pool.submit(item(1, "stubborn", {"mark": MARK}))
        until(lambda: os.path.exists(MARK))
        pids = pool.pids()
        began = time.monotonic()
        assert [i.job_id for i in pool.stop(0)] == [1]
        assert 1.5 < time.monotonic() - began < 10
        assert len(pids) == 2 and not any(is_alive(pid) for pid in pids) and pool.pids() == []
    """)


PARENT = '''
import sys, time
sys.path[:] = sys.argv[1:]
from greenroom.pools import ProcessPool, RunItem
from greenroom.protocol import pack_value
pool = ProcessPool([], 2, print)
pool.start()
pool.submit(RunItem(1, 1, "slow_task", pack_value({"seconds": 50})))
while len(pool.pids()) < 2 or not pool.running():
    time.sleep(0.01)
print(*pool.pids(), flush=True)
time.sleep(60)
'''


def test_children_ignore_ctrl_c_and_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    run_script("process", tmp_path, """
        import signal, subprocess
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        until(lambda: os.path.exists(MARK))
        [pid] = pool.pids()
        os.kill(pid, signal.SIGINT)
        pool.cancel(1)
        assert done.wait(1)[0].error["message"] == "stopped" and pool.pids() == [pid]
        assert pool.stop(5) == []

        parent = subprocess.Popen([sys.executable, "-P", os.path.join(FOLDER, "parent.py"), *sys.path],
                                  stdout=subprocess.PIPE, text=True)
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
        # Its children have no parent that reaps them here, so a zombie counts as ended.
        def has_ended(pid):
            try:
                return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"
            except FileNotFoundError:
                return True
        until(lambda: all(has_ended(pid) for pid in pids))
    """)


def test_children_that_cannot_load_their_tasks_are_tried_again_and_stop_is_quick(tmp_path: Path) -> None:
    logged = run_script("process", tmp_path, """
        late = os.path.join(FOLDER, "late.py")
        warnings = []
        watcher = logging.Handler()
        watcher.emit = lambda record: warnings.append(record.getMessage())
        logging.getLogger("greenroom.pools").addHandler(watcher)
        pool = ProcessPool([late], 1, done)
        pool.start()
        pool.submit(RunItem(1, 1, "late", pack_value({})))
        until(lambda: warnings)
        open(late, "w").write("from greenroom.tasks import task\\n@task\\ndef late() -> int:\\n    return 5\\n")
        assert unpack_value(done.wait(1)[0].result) == 5
        assert pool.stop(5) == []

        pool = ProcessPool(["nowhere_at_all"], 2, done)
        pool.start()
        pool.submit(RunItem(2, 1, "late", pack_value({})))
        began = time.monotonic()
        assert [i.job_id for i in pool.stop(30)] == [2]
        assert time.monotonic() - began < 6
    """)

    assert "a child process did not get ready" in logged and "there is no such file" in logged


def test_a_child_that_does_not_hear_a_cancel_is_killed_and_its_slot_goes_on(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        import greenroom.pools
        greenroom.pools.CANCEL_GRACE_S = 0.5
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "deaf", {"mark": MARK}))
        pool.submit(item(2, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK))
        assert pool.cancel(1)
        done.wait(1, 2)
        deaf, other = done.outcomes[1], done.outcomes[2]
        assert deaf.kind == "fail" and deaf.error["name"] == "CancelledTaskError", deaf
        assert "killed" in deaf.error["message"] and deaf.wish == {"retry": False}
        assert other.kind == "ack"
        pool.stop(5)
    """)


@both_pools
def test_a_run_over_its_soft_limit_is_told_and_not_killed(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        import greenroom.pools
        greenroom.pools.CANCEL_GRACE_S = 0.1
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "tells", {"mark": MARK}))
        until(lambda: os.path.exists(MARK))
        assert pool.cancel(1, is_forced=False)
        [told] = done.wait(1)
        assert told.kind == "ack" and unpack_value(told.result) is True, told
        pool.stop(5)
    """)


def test_a_cancel_after_the_soft_limit_kills_as_ever(tmp_path: Path) -> None:
    run_script("process", tmp_path, """
        import greenroom.pools
        greenroom.pools.CANCEL_GRACE_S = 0.1
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "deaf", {"mark": MARK}))
        until(lambda: os.path.exists(MARK))
        assert pool.cancel(1, is_forced=False)
        time.sleep(0.5)
        assert pool.running() == 1
        assert pool.cancel(1)
        [deaf] = done.wait(1)
        assert "killed" in deaf.error["message"], deaf
        pool.stop(5)
    """)
