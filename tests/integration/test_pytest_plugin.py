"""The pytest plugin, used as a user does: their tests, in a folder and a process of their own; and a real broker with real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import ROOT, until

TASKS = '''
import os, time
from greenroom.tasks import Context, DontRetry, Retry, task

@task
def double(number: int) -> int:
    return number * 2

@task(queue="more")
def double_all(numbers: list, context: Context) -> list:
    handles = double.map(numbers)
    return [context.attempt, *(handle.result(30) for handle in handles)]

@task
def fails() -> None:
    raise DontRetry() from LookupError("nothing here")

@task(backoff="none", retries=1)
def third_time(context: Context) -> int:
    if context.attempt == 1:
        context.snooze(0.2)                      # no failure
    if context.attempt == 2:
        raise Retry(in_=0.2)                     # the first failure
    return context.attempt

@task(retries=1, backoff="fixed", backoff_base=3600.0)
def fails_once(context: Context) -> int:
    if context.attempt == 1:
        raise OSError("not yet")
    return context.attempt

@task
def hold(seconds: float, context: Context) -> bool:
    return context.wait(seconds)
'''


def run_tests(folder: Path, tests: str, *flags: str, outcome: int = 0) -> str:
    """Run a user's test module with the plugin, as its entry point loads it; return what pytest prints."""
    (folder / "shop_tasks.py").write_text(TASKS)
    (folder / "test_shop.py").write_text(textwrap.dedent(tests))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GREENROOM_", "PYTEST_"))}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "greenroom.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", ".",
                           "-q", *flags],
                          cwd=folder, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL,
                          env={**environment, "PYTHONPATH": str(ROOT), "GREENROOM_URL": "greenroom://localhost:1"})
    assert done.returncode == outcome, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_loads_nothing_before_a_fixture_asks(tmp_path: Path) -> None:
    run_tests(tmp_path, """
        import sys

        def test_nothing_is_loaded():
            assert {name for name in sys.modules if name.startswith("greenroom")} == {"greenroom", "greenroom.pytest_plugin"}
    """)


def test_inline_and_capture_stand_in_for_the_default_client_for_one_test_each(tmp_path: Path) -> None:
    printed = run_tests(tmp_path, """
        import pytest
        from greenroom.default_client import default_client
        from greenroom.errors import ConfigError
        from greenroom.tasks import DontRetry
        from shop_tasks import double, double_all, fails

        def test_inline(greenroom_inline):
            assert double_all.enqueue([1, 2]).result() == [1, 2, 4]
            with pytest.raises(DontRetry):
                fails.enqueue()

        def test_capture(greenroom_capture):
            double.enqueue(4)
            [job] = greenroom_capture.assert_enqueued(double, number=4)
            greenroom_capture.assert_not_enqueued(fails)
            assert greenroom_capture.run_due() == 1 and job.state == "completed"

        def test_nothing_is_left_behind(monkeypatch):
            monkeypatch.setenv("GREENROOM_CA", "nowhere.crt")
            with pytest.raises(ConfigError, match="nowhere.crt"):
                default_client()

        def test_a_failure(greenroom_capture):
            double.enqueue(4)
            greenroom_capture.assert_enqueued(double, number=5)
    """, outcome=1)

    assert "1 failed, 3 passed" in printed
    assert "E       AssertionError: no job of double(number=5) enqueued, at least one was expected; enqueued were:" in printed
    assert "  job 1: double(number=4), queued" in printed
    assert "def assert_enqueued" not in printed  # the traceback ends in the user's test


@pytest.mark.timeout(150)
def test_a_real_broker_runs_tasks_in_real_workers_that_enqueue_there_too(tmp_path: Path) -> None:
    run_tests(tmp_path, """
        import os
        import pytest
        from greenroom.client import Client
        from greenroom.errors import JobFailedError
        from shop_tasks import double, double_all, fails, third_time

        PIDS = []

        @pytest.mark.parametrize("pool", ["thread", "process"])
        def test_jobs(greenroom_broker, pool):
            worker = greenroom_broker.start_worker("shop_tasks", pool=pool, name="anna")
            PIDS.extend([greenroom_broker.pid, worker.pid])
            handle = double_all.enqueue([1, 2])
            assert handle.result(30) == [1, 2, 4]
            assert (handle.status()["queue"], handle.status()["worker"]) == ("more", "anna")
            with pytest.raises(JobFailedError, match="nothing here"):
                fails.using(priority=1).enqueue().result(30)
            handle = third_time.using(queue="more").enqueue()
            assert handle.result(30) == 3
            assert [run["outcome"] for run in greenroom_broker.client.runs(handle.id)] == ["snoozed", "failed"]
            with Client() as client:  # finds it by the environment
                assert [job["task"] for job in client.jobs(state="completed")] == ["third_time", "double", "double", "double_all"]

        def test_they_are_gone():
            assert len(PIDS) == 4
            for pid in PIDS:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
    """)


@pytest.mark.timeout(150)
def test_a_broker_of_a_test_can_be_killed_and_started_again_and_its_workers_too(tmp_path: Path) -> None:
    run_tests(tmp_path, """
        import pathlib
        from greenroom.testing_broker import LocalBroker
        from shop_tasks import double, hold

        def test_a_crash_loses_nothing(greenroom_broker):
            handle = double.enqueue(21)
            greenroom_broker.kill()
            greenroom_broker.start()
            greenroom_broker.start_worker(str(pathlib.Path(__file__).with_name("shop_tasks.py")))
            assert handle.result(30) == 42

        def test_a_killed_workers_job_runs_elsewhere(greenroom_broker):
            first = greenroom_broker.start_worker("shop_tasks")
            handle = hold.enqueue(1.0)
            while handle.status()["state"] != "running":
                pass
            first.kill()
            assert not first.is_running
            greenroom_broker.start_worker("shop_tasks")
            assert handle.result(30) is False and handle.status()["attempt"] == 2

        def test_a_broker_that_does_not_start_says_why(tmp_path):
            broker = LocalBroker(tmp_path / "b", ["--lease-s", "soon"])
            try:
                broker.start()
            except RuntimeError as exc:
                assert "the broker did not start; it said:" in str(exc) and "lease" in str(exc)
            else:
                raise AssertionError("it started")
    """)


#: Tests of a user who moves the time of a real broker.
TIME_IS_MOVED = """
        import time
        from datetime import datetime, timezone
        import pytest
        from greenroom.errors import JobFailedError
        from shop_tasks import double, fails_once, hold

        HOUR, DAY = 3600.0, 86400.0

        def test_what_waits_for_its_time(greenroom_broker):
            clock, client = greenroom_broker.clock, greenroom_broker.client
            at = clock.now()
            later = double.using(delay=HOUR).enqueue(1)
            never = double.using(expires_in=60).enqueue(2)
            client.pause(task="hold", seconds=DAY, reason="until tomorrow")
            clock.advance(HOUR - 1)
            assert (later.status()["state"], never.status()["state"]) == ("scheduled", "expired")
            clock.advance(1.0)
            assert later.status()["state"] == "queued" and 0 <= later.status()["submitted_at"] - at < 60
            assert len(client.pauses()) == 1
            clock.advance(DAY)
            assert client.pauses() == [] and abs(clock.now() - at - HOUR - DAY) < 60
            assert client.get([never.id])[0]["finished_at"] - at < 61 + 60  # it found its own time, not the end of the hour

            with pytest.raises(ValueError, match="never steps back"):
                clock.advance(-1)
            with pytest.raises(ValueError, match="a hundred years"):
                clock.advance(float("nan"))
            with pytest.raises(ValueError):
                clock.set_time(at)
            greenroom_broker.kill()
            with pytest.raises(RuntimeError, match="did not move its clock"):
                clock.advance(1)
            greenroom_broker.start()
            assert double.enqueue(3).status()["submitted_at"] - at > DAY  # it is as late as it was

        def test_schedules_of_both_kinds(greenroom_broker):
            clock, client = greenroom_broker.clock, greenroom_broker.client
            clock.set_time(datetime(2031, 5, 3, 11, 50, tzinfo=timezone.utc))
            client.schedule("noon", "double", {"number": 1}, cron="0 12 * * *", timezone="UTC")
            client.schedule("often", "double", {"number": 2}, every="10m", overlap="queue")
            clock.advance(0.5 * HOUR + 1)
            by_name = {schedule["name"]: schedule for schedule in client.schedules()}
            assert (by_name["noon"]["runs"], by_name["often"]["runs"]) == (1, 3)
            [noon] = [view for view in client.jobs() if view["id"] == by_name["noon"]["last_job"]]
            assert abs(noon["submitted_at"] - datetime(2031, 5, 3, 12, tzinfo=timezone.utc).timestamp()) < 1
            client.delete_schedule("often")
            clock.advance(3 * DAY)
            [noon] = client.schedules()
            assert (noon["runs"] + noon["skipped"], noon["next_at"] > clock.now()) == (4, True)

        def test_retries_run_limits_and_leases(greenroom_broker):
            broker, clock, client = greenroom_broker, greenroom_broker.clock, greenroom_broker.client
            worker = broker.start_worker("shop_tasks", concurrency=3)
            tried = fails_once.enqueue()
            kept, limited = hold.enqueue(60.0), hold.using(timeout=2 * HOUR, retries=0).enqueue(60.0)

            def until(handle, state, attempt):
                until_s = time.monotonic() + 60
                while (handle.status()["state"], handle.status()["attempt"]) != (state, attempt):
                    assert time.monotonic() < until_s, handle.status()
                    time.sleep(0.01)

            until(tried, "scheduled", 1)            # it failed
            until(kept, "running", 1)
            until(limited, "running", 1)
            clock.advance(HOUR)
            assert tried.result(30) == 2
            assert (limited.status()["state"], kept.status()["state"]) == ("running", "running")
            clock.advance(HOUR)
            assert limited.status()["error"]["name"] == "TimeoutError"
            clock.advance(30 * DAY)
            assert (kept.status()["state"], kept.status()["attempt"], worker.is_running) == ("running", 1, True)
            clock.advance(16.0, silent=True)        # longer than a lease
            assert (kept.status()["crashes"], kept.status()["state"] in ("queued", "running")) == (1, True)
            assert [run["outcome"] for run in client.runs(kept.id)] == ["expired"]

            worker.kill()
            broker.kill()                           # its restart grace would take a minute
            broker.start()
            clock.advance(61)
            assert kept.status()["state"] == "queued"
            assert "stood still" not in broker.output and "Traceback" not in broker.output
"""


@pytest.mark.timeout(150)
def test_the_time_of_a_real_broker_can_be_moved(tmp_path: Path) -> None:
    run_tests(tmp_path, TIME_IS_MOVED)


def test_no_other_entry_of_the_broker_has_a_clock_to_move() -> None:
    """What moves it is imported by nobody, and its arguments mean nothing to the broker."""
    script = "import sys, greenroom.broker, greenroom.run, greenroom.worker; print([n for n in sys.modules if 'testing' in n])"
    done = subprocess.run([sys.executable, "-c", f"from greenroom.patching import patch_all; patch_all(); {script}"],
                          capture_output=True, text=True, timeout=60, cwd=ROOT)
    refused = subprocess.run([sys.executable, "broker.py", "3", "0.0"], capture_output=True, text=True, timeout=60, cwd=ROOT)

    assert done.stdout.strip() == "[]", done.stderr
    assert refused.returncode == 2


def test_a_broker_of_a_test_ends_when_the_test_is_gone(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(textwrap.dedent("""
        import os, pathlib, sys
        from greenroom.testing_broker import LocalBroker

        broker = LocalBroker(pathlib.Path(sys.argv[1]))
        broker.start()
        print(broker.pid, flush=True)
        os._exit(0)
    """))
    done = subprocess.run([sys.executable, "leaves.py", str(tmp_path / "b")], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert done.stdout, done.stderr
    until(lambda: "stopped" in (tmp_path / "b/broker.log").read_text(), "it has stopped")


def test_a_test_run_that_is_interrupted_ends_its_processes(tmp_path: Path) -> None:
    (tmp_path / "shop_tasks.py").write_text(TASKS)
    (tmp_path / "test_shop.py").write_text(textwrap.dedent("""
        import time

        def test_long(greenroom_broker):
            worker = greenroom_broker.start_worker()
            print(greenroom_broker.pid, worker.pid, flush=True)
            time.sleep(100)
    """))
    running = subprocess.Popen([sys.executable, "-u", "-m", "pytest", "-p", "greenroom.pytest_plugin", "-p", "no:cacheprovider", "-qs"],
                               cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        pids = [int(word) for word in running.stdout.readline().split()]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=40)
    finally:
        running.kill()

    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
