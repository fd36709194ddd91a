"""Scenarios of worker pools: scripts of their own, in a process that nobody patched. No pytest."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]

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
