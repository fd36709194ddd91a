"""Client, worker and broker together, all real: what a user sees of them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.client import Client
from greenroom.errors import FinishedError, GoneError, InvalidError, JobFailedError, NotFoundError
from tests.processes import ROOT, BrokerProcess, WorkerProcess, until

HOLDERS = '''
import re, time
from greenroom.tasks import task

@task
def spin(seconds: float) -> str:
    """A Python loop: it lets other threads run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "spun"

@task
def grind(letters: int) -> None:
    """One regular expression that backtracks and holds the interpreter lock all the while: 26 letters take some 4 s."""
    re.match(r"(a+)+$", "a" * letters + "b")
'''

StartWorker = Callable[..., WorkerProcess]


def client_of(broker: BrokerProcess) -> Client:
    return Client(broker.url, ca=broker.ca)


def command(broker: BrokerProcess, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "client.py"), *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **broker.client_env})


def test_results_of_every_builtin_task_are_exact(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker()
    with client_of(broker) as client:
        asked = [("fibonacci", {"n": 100}), ("is_prime", {"n": 2**89 - 1}), ("reverse_string", {"data": "Hällo"}),
                 ("to_uppercase", {"data": "x"}), ("slow_task", {"seconds": 0})]
        handles = client.submit_many(asked)
        assert [handle.result(20) for handle in handles] == ["354224848179261915075", True, "olläH", "X", {"slept": 0}]
        with pytest.raises(JobFailedError, match="FibonacciTooLargeError"):
            client.submit("fibonacci", {"n": 10**9}).result(20)


def test_the_command_line_submits_waits_and_lists(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker("--concurrency", "2")
    done = command(broker, "submit", "fibonacci", '{"n": 100}', "-p", "2", "--wait")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "354224848179261915075"), done.stderr
    failed = command(broker, "submit", "fibonacci", '{"n": "x"}', "--wait", "-o", "table")
    assert failed.returncode == 1 and "BadPayloadError" in failed.stderr and "Traceback" not in failed.stderr
    jobs = command(broker, "jobs", "--state", "completed")
    assert [json.loads(line)["task"] for line in jobs.stdout.splitlines()] == ["fibonacci"]
    for verb in ("queues", "workers", "stats"):
        assert command(broker, verb, "-o", "table").returncode == 0
    missing = command(broker, "get", str(2**50))
    assert missing.returncode == 5 and not missing.stdout


def test_the_demo_shows_the_urgent_job_first(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker("--concurrency", "2")
    start_worker("--concurrency", "1")
    shown = command(broker, "demo")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "3 free slots" in shown.stdout and "1. back" in shown.stdout and "'desserts'" in shown.stdout


def test_cancelling_a_waiting_and_a_running_job(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker("--concurrency", "1")
    with client_of(broker) as client:
        running = client.submit("slow_task", {"seconds": 60})
        until(lambda: running.status()["state"] == "running", "the job runs")
        waiting = client.submit("slow_task", {"seconds": 60})
        assert waiting.cancel() == "cancelled"
        assert running.cancel() == "requested"
        for handle in (waiting, running):
            with pytest.raises(JobFailedError) as caught:
                handle.result(20)
            assert caught.value.job["state"] == "cancelled"
        with pytest.raises(FinishedError):
            waiting.cancel()
        with pytest.raises((NotFoundError, GoneError)):
            client.handle(2**52).status()


def test_a_task_over_its_soft_limit_notes_how_far_it_is_and_goes_on_in_another_run(broker: BrokerProcess, start_worker: StartWorker,
                                                                                  tmp_path: Path) -> None:
    (tmp_path / "text").write_text("two words\n" * 100, encoding="utf-8")
    start_worker("--pool", "process", tasks=ROOT / "docs" / "examples" / "in_time.py")
    with client_of(broker) as client:
        handle = client.submit("count_words", {"path": str(tmp_path / "text")}, soft_timeout=0.6, attempts=1)

        assert handle.result(20) == {"lines": 100, "words": 200}
        assert {run["outcome"] for run in client.runs(handle.id)} == {"snoozed"} and handle.status()["attempt"] >= 2
        with pytest.raises(InvalidError, match="soft_timeout must be less than timeout") as caught:
            client.submit("count_words", {}, soft_timeout=5, timeout=5)
        assert caught.value.field == "soft_timeout"


def test_edit_and_retry_from_python_and_the_command_line(broker: BrokerProcess, start_worker: StartWorker, capsys: pytest.CaptureFixture[str]) -> None:
    start_worker()
    with client_of(broker) as client:
        runpy.run_path(str(ROOT / "docs" / "examples" / "edit_and_retry.py"))["main"](client)
        *_, second, first, states = capsys.readouterr().out.splitlines()
        assert second.startswith("job 2 with 6765 as job ") and first.startswith("job 1 with 55 as job ")
        assert states == "the first ones: ['failed', 'failed']"

        done = command(broker, "resubmit", "1", "--payload", '{"n": 30}', "--wait", "-o", "json")
        shown = json.loads(done.stdout)
        assert (done.returncode, shown["result"], shown["queue"], shown["options"]) == (0, 832040, "sums", {"attempts": 1})
        with pytest.raises(InvalidError, match="priority"):
            client.resubmit(1, priority=11)
        with pytest.raises(NotFoundError):
            client.resubmit(2**52)
        held = client.submit("fibonacci", {"n": 5}, delay=3600)
        copy = client.resubmit(held.id, delay=1800)
        broker.restart(kill=True)
        assert [(view["state"], view["payload"]) for view in client.get([held.id, copy.id], payload=True)] == [("scheduled", b"\x81\xa1n\x05")] * 2
    assert command(broker, "resubmit", str(2**52)).returncode == 5


@pytest.mark.parametrize("kill", [False, True])
def test_a_running_job_outlives_a_restart_of_the_broker(broker: BrokerProcess, start_worker: StartWorker, kill: bool) -> None:
    start_worker()
    with client_of(broker) as client:
        handle = client.submit("slow_task", {"seconds": 6})
        until(lambda: handle.status()["state"] == "running", "the job runs")
        time.sleep(2.0)  # only a lease that is a second old is sure to be on disk
        broker.restart(kill=kill)
        assert handle.result(30) == {"slept": 6}
        view = handle.status()
        assert (view["attempt"], view["requeues"], view["crashes"]) == (1, 0, 0)


def test_a_killed_worker_s_job_is_finished_by_another(broker: BrokerProcess, start_worker: StartWorker) -> None:
    workers = {worker.name: worker for worker in (start_worker(name="one"), start_worker(name="two"))}
    with client_of(broker) as client:
        handle = client.submit("slow_task", {"seconds": 2})
        first = until(lambda: handle.status()["worker"], "somebody runs the job")
        workers[first].kill()
        assert handle.result(20) == {"slept": 2}
        view = handle.status()
        assert (view["attempt"], view["crashes"]) == (2, 1) and view["worker"] != first


MARKING = """
import time
from greenroom.tasks import task

@task
def mark(file: str) -> None:
    open(file, "w").close()
    time.sleep(1)
"""


def test_a_stopped_worker_finishes_its_jobs_and_gives_the_others_away(broker: BrokerProcess, start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "marking_tasks.py").write_text(MARKING, encoding="utf-8")
    marks = [tmp_path / f"begun-{number}" for number in range(3)]
    worker = start_worker("--concurrency", "2", tasks=tmp_path / "marking_tasks.py")
    with client_of(broker) as client:
        handles = client.submit_many([("mark", {"file": str(mark)}) for mark in marks])
        until(lambda: sum(map(Path.exists, marks)) == 2, "two have begun")  # the broker says running as soon as the worker has them
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0
        views = client.get([handle.id for handle in handles])
        assert sorted(view["state"] for view in views) == ["completed", "completed", "queued"]
        assert all(view["crashes"] == 0 for view in views)


def test_many_jobs_from_many_threads_all_come_back_once(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker("--concurrency", "8")
    start_worker("--concurrency", "8")
    wrong: list[object] = []
    with client_of(broker) as client:
        def produce(base: int) -> None:
            for number in range(base, base + 40):
                if client.submit("reverse_string", {"data": str(number)}, priority=1 + number % 10).result(60) != str(number)[::-1]:
                    wrong.append(number)
        threads = [threading.Thread(target=produce, args=(1000 * number,)) for number in range(1, 11)]
        bulk = client.submit_many(("to_uppercase", {"data": f"n{number}"}) for number in range(3000))
        for thread in threads:
            thread.start()
        finished = {view["id"]: view["state"] for view in client.wait([handle.id for handle in bulk], 60)}
        for thread in threads:
            thread.join(60)
        assert not wrong and not any(thread.is_alive() for thread in threads)
        assert len(finished) == 3000 and set(finished.values()) == {"completed"}
        states = client.stats()["states"]
        assert (states["completed"], states["failed"]) == (3400, 0)


@pytest.mark.parametrize(("task", "pool", "payload", "lease_s"), [
    ("spin", "thread", {"seconds": 6}, 2),
    ("grind", "process", {"letters": 26}, 1),
    pytest.param("spin", "thread", {"seconds": 60}, 15, marks=[pytest.mark.long, pytest.mark.timeout(180)]),
    pytest.param("grind", "process", {"letters": 29}, 15, marks=[pytest.mark.long, pytest.mark.timeout(180)])])
def test_long_work_keeps_its_lease(make_broker: Callable[..., BrokerProcess], start_worker: StartWorker, tmp_path: Path, task: str,
                                   pool: str, payload: dict, lease_s: float) -> None:
    (tmp_path / "holders.py").write_text(HOLDERS)
    broker = make_broker("--lease-s", str(lease_s))
    start_worker("--concurrency", "1", "--pool", pool, to=broker, tasks=tmp_path / "holders.py")
    with client_of(broker) as client:
        handle = client.submit(task, payload)
        handle.result(150)
        view = handle.status()
    assert view["finished_at"] - view["started_at"] > lease_s
    assert (view["state"], view["attempt"], view["crashes"]) == ("completed", 1, 0)


THREADS = """
import sys, threading
from greenroom.client import Client
wrong = []
with Client() as client:
    def produce(base):
        for number in range(base, base + 50):
            if client.submit("reverse_string", {"data": str(number)}).result(30) != str(number)[::-1]:
                wrong.append(number)
    threads = [threading.Thread(target=produce, args=(1000 * number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    print(len(wrong), sum(thread.is_alive() for thread in threads), client.stats()["states"]["completed"])
"""


def test_real_threads_share_a_client(broker: BrokerProcess, start_worker: StartWorker) -> None:
    start_worker("--concurrency", "8")
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=90, cwd=ROOT,
                          env={**os.environ, **broker.client_env, "PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == ["0", "0", "800"], done.stderr
