"""What only process pools have: children that die, hang, print and must be killed. Each scenario is a script of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pool_scripts import run_script


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
