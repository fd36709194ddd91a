"""The demonstration behind `./run demo`: a broker and workers as processes, real jobs, a worker killed in the middle.

A program like one that a user could write: everything goes through the public client, and every result is compared with one that
is worked out here, without the tasks' code. Ends its children whatever happens. Exit codes: 0 everything completed and matched,
1 something did not, 130 Ctrl-C before the end, 128 + N ended by signal N.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from greenroom.client import Client, decode_result
from greenroom.errors import GreenroomError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
TASKS = ROOT / "docs" / "examples" / "file_stats.py"
HOST = "127.0.0.1"
PORT, WEB_PORT = 65432, 8080
#: Demonstrations that may run at the same time, each in a folder of its own.
MOST_AT_ONCE = 9
START_WITHIN_S = 20.0
STOP_WITHIN_S = 15.0
END_WITHIN_S = 300.0
#: A worker is killed when so much of the work is done.
KILL_AT = 0.4
WORKERS, SLOTS = 2, 4
#: Short sleeps among the jobs. Together they fill all slots for 5.6 seconds, so the page has something to show for so long.
SLEEPS, SLEEP_S = 180, 0.25
#: One job of another built-in task for so many files.
FILES_PER_BUILTIN = 8
#: Exponents k, and whether 2^k - 1 is prime (oeis.org/A000043).
MERSENNE = {31: True, 61: True, 67: False, 83: False, 89: True, 101: False, 107: True, 127: True}


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(prog="./run demo", allow_abbrev=False, description="Greenroom's main job on real input.")
    parser.add_argument("--exit", action="store_true",
                        help="end when the jobs are done, with 0 only if all of them completed and matched")
    parser.add_argument("--screenshots", metavar="DIR", help="take pictures of the dashboard into DIR while jobs run, then end")
    options = parser.parse_args(argv)
    # It configures broker, workers and client itself: settings of the user's shell must not reach them.
    for name in [name for name in os.environ if name.startswith("GREENROOM_")]:
        del os.environ[name]
    stage = Stage()
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signals.append(signal.SIGHUP)
    for number in signals:
        signal.signal(number, stage.on_signal)
    is_good: bool | None = None  # until it is known
    try:
        is_good = run(stage, options.screenshots)
        if not options.exit and not options.screenshots:
            say(f"\nThe dashboard stays open at {stage.page} until Ctrl-C.")
            stage.wait_for_end()
    except KeyboardInterrupt:
        if is_good is None:
            return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # nobody reads any more; the interpreter would complain about it at its end
        return 1
    except (GreenroomError, DemoError, OSError, subprocess.CalledProcessError) as exc:
        sys.stderr.write(f"demo: {exc}\n")
        return 1
    finally:
        stage.close()
    return 0 if is_good else 1


def say(text: str) -> None:
    """Print a line for people."""
    print(text, flush=True)


class DemoError(Exception):
    """Raised when the demonstration cannot go on; the message is a sentence."""


# -- the processes ----------------------------------------------------------------------------------------------------------


class Stage:
    """The processes of the demonstration, and where they are.

    Attributes:
        folder: where store and logs lie. url, page: the broker's addresses, once it is open.
    """

    def __init__(self) -> None:
        self.folder = DATA
        self.url = self.page = ""
        self._children: dict[str, subprocess.Popen] = {}
        self._lock: IO[str] | None = None
        self._is_busy = False  # a child is being started or all are being ended: no signal may come in between
        self._signal = 0

    @property
    def ca(self) -> str:
        """The CA certificate that everybody trusts here."""
        return str(ROOT / "certs" / "ca.crt")

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """End the demonstration: raises KeyboardInterrupt or SystemExit where it stands, so that `close` runs."""
        self._signal = number
        if not self._is_busy:
            self._obey()

    def _obey(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal:
            raise SystemExit(128 + self._signal)

    def open(self) -> None:
        """Start a broker on an empty store, and wait until it is ready. Raises DemoError with what it said if it is not."""
        self._take_folder()
        port, web_port = free_port(PORT), free_port(WEB_PORT)
        self.url, self.page = f"greenroom://{HOST}:{port}", f"http://{HOST}:{web_port}/"
        self._start("broker", "broker.py", "--port", str(port), "--web-port", str(web_port), "--data", str(self.folder / "store"))
        deadline = time.monotonic() + START_WITHIN_S
        while not _is_ready(web_port):
            if not self._is_serving() or time.monotonic() > deadline:
                raise DemoError(f"the broker did not start: {self._said('broker')}")
            time.sleep(0.05)

    def _take_folder(self) -> None:
        """Empty a folder that no other demonstration uses now."""
        DATA.mkdir(mode=0o700, exist_ok=True)
        for number in range(1, MOST_AT_ONCE + 1):
            name = "demo" if number == 1 else f"demo-{number}"
            self._lock = (DATA / f"{name}.lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                continue
            self.folder = DATA / name
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700)
            return
        raise DemoError(f"{MOST_AT_ONCE} demonstrations are running from this folder already")

    def start_worker(self, name: str) -> None:
        """Start a worker that also knows the example's task."""
        self._start(name, "worker.py", "--name", name, "--url", self.url, "--ca", self.ca, "--concurrency", str(SLOTS),
                    "--tasks", str(TASKS))

    def _start(self, name: str, script: str, *flags: str) -> None:
        self._is_busy = True
        with (self.folder / f"{name}.log").open("ab") as log:
            # In a session of its own: Ctrl-C is for us, and we end them in order.
            self._children[name] = subprocess.Popen([sys.executable, str(ROOT / script), *flags], cwd=self.folder, stdout=log,
                                                    stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
        self._is_busy = False
        self._obey()

    def kill(self, name: str) -> int:
        """SIGKILL a child and return its process id."""
        child = self._children[name]
        child.kill()
        child.wait()
        return child.pid

    def check_alive(self) -> None:
        """Raise DemoError if the broker has ended."""
        if not self._is_serving():
            raise DemoError(f"the broker has ended: {self._said('broker')}")

    def _is_serving(self) -> bool:
        return self._children["broker"].poll() is None

    def _said(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace").strip()[-2000:] or f"it said nothing ({log})"

    def wait_for_end(self) -> None:
        """Return never: Ctrl-C or a signal ends it, DemoError says that the broker is gone."""
        while True:
            self.check_alive()
            time.sleep(0.5)

    def close(self) -> None:
        """End all children, workers first, each with a moment to drain."""
        self._is_busy = True
        names = sorted(self._children)
        for group in ([name for name in names if name != "broker"], [name for name in names if name == "broker"]):
            children = [self._children[name] for name in group]
            for child in children:
                child.terminate()
            deadline = time.monotonic() + STOP_WITHIN_S
            for child in children:
                try:
                    child.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def free_port(wanted: int) -> int:
    """Return this port or, if it is taken, a free one, saying so."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, wanted))
        except OSError:
            sock.bind((HOST, 0))
            say(f"Port {wanted} is taken; using {sock.getsockname()[1]} instead.")
        return sock.getsockname()[1]


def _is_ready(web_port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, web_port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- the play ---------------------------------------------------------------------------------------------------------------


def run(stage: Stage, pictures: str | None) -> bool:
    """Run the jobs and print what became of them; returns whether all is as it should be."""
    stage.open()
    for number in range(WORKERS):
        stage.start_worker(f"demo-{number + 1}")
    say(f"Dashboard: {stage.page}")
    folder = Path(sysconfig.get_path("stdlib"))
    planned = plan_jobs(folder, sleeps=SLEEPS * (4 if pictures else 1))
    say(f"{len(planned)} jobs at mixed priorities: each .py file of {folder} is counted and hashed, among built-in tasks.")
    with Client(stage.url, ca=stage.ca) as client:
        await_workers(client, WORKERS)
        if pictures:
            fill_pages(client)
        began = time.monotonic()
        ids = [handle.id for handle in client.submit_many(job._asdict() for job in planned)]
        progress = Progress(stage, client, len(ids))
        progress.show_until(KILL_AT)
        killed = kill_a_worker(stage, client)
        if pictures:
            subprocess.run([sys.executable, str(ROOT / "docs" / "screenshots.py"), stage.page, pictures], check=True)
        progress.show_until(1.0)
        took_s = time.monotonic() - began
        views = read_views(client, ids)
        stats = client.stats()
    view = views[ids.index(killed.job)]
    say(f"Job {killed.job} was finished by {view['worker']}, on attempt {view['attempt']}: it is {view['state']}.\n")
    return report(planned, views, stats, took_s)


def fill_pages(client: Client) -> None:
    """Give the pages beside the overview something to show: failures of two kinds, a paused queue, schedules. For pictures only."""
    missing = [client.submit("file_stats", {"path": f"/srv/orders/{number}.csv"}, queue="orders", priority=1, attempts=1) for number in range(14)]
    wrong = [client.submit("fibonacci", {"n": -number}, priority=1, attempts=1) for number in range(1, 6)]
    for _ in client.wait([handle.id for handle in (*missing, *wrong)], END_WITHIN_S):
        pass
    client.pause(queue="mail", seconds=3600, reason="the mail server is being moved")
    for number in range(6):
        client.submit("to_uppercase", {"data": f"letter {number}"}, queue="mail")
    client.schedule("heartbeat", "to_uppercase", {"data": "still here"}, every="30s")
    client.schedule("night-report", "fibonacci", {"n": 100}, cron="30 2 * * *", timezone="Europe/Berlin")
    client.schedule("order-check", "is_prime", {"n": 97}, cron="*/15 6-20 * * mon-fri", queue="orders")
    client.pause_schedule("order-check", "until the new tariff is in")


def await_workers(client: Client, count: int) -> None:
    """Return when so many workers are connected."""
    deadline = time.monotonic() + START_WITHIN_S
    while sum(worker["status"] != "lost" for worker in client.workers()) < count:
        if time.monotonic() > deadline:
            raise DemoError(f"the workers did not connect within {START_WITHIN_S:g} s: see their logs in {DATA}")
        time.sleep(0.05)


def read_views(client: Client, ids: Sequence[int]) -> list[dict]:
    """Return the finished jobs in the order of their ids here."""
    views: dict[int, dict] = {}
    for view in client.wait(ids, END_WITHIN_S):
        if "state" not in view:
            raise DemoError(f"the broker has lost job {view['id']}: {view['error']}")
        views[view["id"]] = view
    return [views[job_id] for job_id in ids]


class Progress:
    """A bar on a terminal, a line each second elsewhere; on stderr, so that the report can be piped."""

    WIDTH = 40

    def __init__(self, stage: Stage, client: Client, total: int) -> None:
        self._stage = stage
        self._client = client
        self._total = total
        self._is_terminal = sys.stderr.isatty()
        self._next_line_at = 0.0

    def show_until(self, share: float) -> None:
        """Return when this share of the jobs is finished. Raises DemoError after END_WITHIN_S."""
        deadline = time.monotonic() + END_WITHIN_S
        while True:
            self._stage.check_alive()
            states = self._client.stats()["states"]
            done = states["completed"] + states["failed"] + states["cancelled"]
            is_there = done >= share * self._total
            self._draw(done, states, is_last=is_there)
            if is_there:
                return
            if time.monotonic() > deadline:
                raise DemoError(f"only {done} of {self._total} jobs were finished after {END_WITHIN_S:g} s")
            time.sleep(0.1)

    def _draw(self, done: int, states: dict, *, is_last: bool) -> None:
        text = f"{done:5d}/{self._total} done, {states['running']:2d} running, {states['queued']:5d} queued"
        if self._is_terminal:
            filled = self.WIDTH * done // self._total
            bar = "#" * filled + "." * (self.WIDTH - filled)
            sys.stderr.write(f"\r[{bar}] {text}" + ("\n" if is_last else ""))
        elif is_last or time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + 1
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Killed(NamedTuple):
    """A worker that was killed, and a job that it held."""

    worker: str
    job: int


def kill_a_worker(stage: Stage, client: Client) -> Killed:
    """Kill, with SIGKILL, a worker that is in the middle of a job; another one takes its place.

    What was running is only sure afterwards: should the job have been settled just before the kill, the next worker is tried.
    """
    deadline = time.monotonic() + START_WITHIN_S
    serial = WORKERS
    while time.monotonic() < deadline:
        victim = _busiest_with_time_left(client)
        if victim is None:
            time.sleep(0.01)
            continue
        pid = stage.kill(victim.worker)
        serial += 1
        if _came_back(client, victim.job):
            say(f"Killed {victim.worker} (pid {pid}, SIGKILL) while it held job {victim.job} (slow_task).")
            say(f"Job {victim.job} was requeued by the broker; worker demo-{serial} is started as a replacement.")
            stage.start_worker(f"demo-{serial}")
            return victim
        stage.start_worker(f"demo-{serial}")
        await_workers(client, WORKERS)
    raise DemoError("no worker was met in the middle of a job")


def _busiest_with_time_left(client: Client) -> Killed | None:
    """Return the worker with the sleep that began last: it will not be over before the signal arrives."""
    held = [(job["started_at"], Killed(worker["name"], job["id"])) for worker in client.workers() if worker["status"] == "busy"
            for job in worker["jobs"] if job["task"] == "slow_task"]
    return max(held)[1] if held else None


def _came_back(client: Client, job_id: int) -> bool:
    """Wait until the job was requeued; False if it had been settled just before the kill."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        view = client.get([job_id])[0]
        if view["requeues"]:
            return True
        if view["state"] not in ("queued", "running"):
            return False
        time.sleep(0.02)
    raise DemoError(f"job {job_id} did not come back after its worker was killed")


# -- the jobs, and what must come out ---------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """A job to submit: arguments of `Client.submit`."""

    task: str
    payload: dict
    priority: int


def plan_jobs(folder: Path, *, sleeps: int, seed: int = 1) -> list[Planned]:
    """Return a `file_stats` job for each readable .py file below `folder`, among built-in tasks, shuffled, at mixed priorities."""
    rng = random.Random(seed)
    jobs = [("file_stats", {"path": str(path)}) for path in python_files(folder)]
    jobs += [_builtin(rng) for _ in range(len(jobs) // FILES_PER_BUILTIN)]
    jobs += [("slow_task", {"seconds": SLEEP_S})] * sleeps
    rng.shuffle(jobs)
    return [Planned(task, payload, rng.randint(1, 10)) for task, payload in jobs]


def python_files(folder: Path) -> list[Path]:
    """Return the readable .py files below a folder, without caches and installed packages, sorted."""
    found: list[Path] = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", "dist-packages"})
        found += [Path(path, name) for name in sorted(names) if name.endswith(".py")]
    return [path for path in found if path.is_file() and os.access(path, os.R_OK)]


def _builtin(rng: random.Random) -> tuple[str, dict]:
    word = "".join(rng.choices("abcdefghij äöü", k=20))
    return rng.choice([
        ("reverse_string", {"data": word}), ("to_uppercase", {"data": word}), ("fibonacci", {"n": rng.randint(0, 300)}),
        ("is_prime", {"n": str(2 ** rng.choice(list(MERSENNE)) - 1)})])


def expected_result(job: Planned) -> object:
    """Return what a job must give, worked out another way than the tasks do. Raises OSError if a file is gone."""
    payload = job.payload
    if job.task == "file_stats":
        content = Path(payload["path"]).read_bytes()
        lines = content.count(b"\n") + (content[-1:] not in (b"", b"\n"))
        return {"path": payload["path"], "lines": lines, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if job.task == "fibonacci":
        low, high = 0, 1
        for _ in range(payload["n"]):
            low, high = high, low + high
        return low if low < 2**64 else str(low)
    if job.task == "is_prime":
        return MERSENNE[(int(payload["n"]) + 1).bit_length() - 1]
    if job.task == "reverse_string":
        return payload["data"][::-1]
    return payload["data"].upper() if job.task == "to_uppercase" else {"slept": payload["seconds"]}


def mismatches(planned: Sequence[Planned], views: Sequence[dict]) -> list[str]:
    """Compare the completed jobs' results with the demonstration's own; returns a line for each that differs."""
    lines = []
    for job, view in zip(planned, views, strict=True):
        if view["state"] != "completed":
            continue
        result, expected = decode_result(view), expected_result(job)
        if result != expected:
            lines.append(f"differs: job {view['id']} {job.task} gave {result!r}, expected {expected!r}")
    return lines


# -- the report -------------------------------------------------------------------------------------------------------------


def report(planned: Sequence[Planned], views: Sequence[dict], stats: dict, took_s: float) -> bool:
    """Print the table; returns whether everything completed and matched, and something was requeued."""
    failed = [view for view in views if view["state"] != "completed"]
    wrong = mismatches(planned, views)
    files = [decode_result(view) for view in views if view["task"] == "file_stats" and view["state"] == "completed"]
    latencies = sorted((view["finished_at"] - view["submitted_at"]) * 1000 for view in views)
    lost = sum(view["crashes"] for view in views)
    rows = [
        ("jobs", f"{len(views)}"), ("failed", f"{len(failed)}"),
        ("requeued", f"{stats['requeued']} ({lost} lost with the killed worker)"),
        ("given back", f"{stats['returned']} (reserved ahead by a worker that was busy then, and run by another)"),
        ("time", f"{took_s:.2f} s"),
        ("throughput", f"{len(views) / took_s:.0f} jobs/s"),
        *((f"latency p{share}", f"{percentile(latencies, share):.0f} ms (submitted to finished)") for share in (50, 95, 99)),
        *_records(files),
        ("compared", f"{len(views) - len(failed)} results, {len(files)} hashes among them: {len(wrong) or 'none'} differ"),
    ]
    width = max(len(name) for name, _ in rows)
    say("=" * 72)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")
    say("=" * 72)
    for line in [f"{view['state']}: job {view['id']} {view['task']}: {view['error']}" for view in failed[:5]] + wrong[:5]:
        say(line)
    if not lost:
        say("No job was requeued for the killed worker: that is a fault.")
    return not failed and not wrong and 0 < lost <= stats["requeued"]


def _records(files: Sequence[dict]) -> Iterator[tuple[str, str]]:
    for title, key in (("longest file", "lines"), ("largest file", "bytes")):
        if files:
            best = max(files, key=lambda found: found[key])
            yield title, f"{best['path']} ({best[key]} {key})"


def percentile(ordered: Sequence[float], share: int) -> float:
    """Return the value below which `share` per cent of an ordered list lie."""
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


if __name__ == "__main__":
    sys.exit(main())
