"""Real clients and real workers behind a network that resets, delays, drips and cuts, at random moments and at chosen bytes.

Judged by tests/checker.py: every acknowledged job runs, none is stored twice, fences only grow.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.client import Client
from tests import checker
from tests.faults.proxy import Passage, Proxy
from tests.processes import BrokerProcess, WorkerProcess, until

SEED = 20_251_102
LEASE_S = 4.0
HEARTBEAT_S = LEASE_S / 3

TASKS = '''
import json, os, time
from greenroom.tasks import Context, task

def note(op, context, key):
    event = {"at": time.monotonic_ns(), "by": context.worker, "op": op, "type": "ok", "call": f"{context.fence}",
             "jobs": [[context.job_id, context.fence, key, key]]}
    with open(os.environ["HISTORY"], "ab", buffering=0) as history:
        history.write(json.dumps(event).encode() + b"\\n")

@task
def record(key: str, seconds: float, context: Context) -> str:
    """Note that the job came out, as an event of tests/checker.py."""
    note("reserve", context, key)
    time.sleep(seconds)
    return key

@task
def hold(key: str, context: Context) -> str:
    """Run until told to stop; both are noted."""
    note("reserve", context, key)
    while not context.wait(0.01):
        pass
    note("stopped", context, key)
    raise RuntimeError("told to stop")
'''


class Proxied:
    """A broker as a worker behind the proxy sees it."""

    def __init__(self, broker: BrokerProcess, proxy: Proxy, environ: dict[str, str]) -> None:
        self.get = broker.get
        self.url = f"greenroom://localhost:{proxy.port}"
        self.client_env = {**broker.client_env, "GREENROOM_URL": self.url, **environ}


class Scene:
    """A broker, a proxy before it, workers on either side of that, and what was submitted and came out.

    Attributes:
        sent, seen: the two files of the history.
    """

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        self.broker = broker
        self.proxy = Proxy((broker.host, broker.port))
        self.sent, self.seen = folder / "sent.jsonl", folder / "seen.jsonl"
        self.seen.touch()
        self.workers: list[WorkerProcess] = []
        self._folder = folder
        self._calls = itertools.count()
        (folder / "recording.py").write_text(TASKS)

    def start_worker(self, name: str, *flags: str, direct: bool = False) -> WorkerProcess:
        """Start a worker behind the proxy, or beside it."""
        environ = {"HISTORY": str(self.seen)}
        place = Proxied(self.broker, self.proxy, environ)
        if direct:
            place.client_env["GREENROOM_URL"] = self.broker.url
        flags = ("--tasks", str(self._folder / "recording.py"), "--no-builtins", *flags)
        worker = WorkerProcess(place, name, flags, self._folder)
        self.workers.append(worker)
        worker.start()
        return worker

    def client(self, *, direct: bool = False) -> Client:
        """Return a client behind the proxy, or beside it."""
        return Client(self.broker.url if direct else f"greenroom://localhost:{self.proxy.port}", ca=self.broker.ca)

    def submit(self, client: Client, task: str, count: int, **payload: object) -> list[int]:
        """Submit jobs, note it as the checker wants it, return their ids. A job's key is its digest: the task sees no more."""
        call = f"submit-{next(self._calls)}"
        keys = [f"{call}/{number}" for number in range(count)]
        self._note("submit", "invoke", call, jobs=[[key, key, 5] for key in keys])
        handles = client.submit_many((task, {"key": key, **payload}) for key in keys)
        ids = [handle.id for handle in handles]
        self._note("submit", "ok", call, ids=ids)
        return ids

    def _note(self, op: str, kind: str, call: str, **fields: object) -> None:
        with self.sent.open("a") as log:
            print(json.dumps({"at": time.monotonic_ns(), "by": "test", "op": op, "type": kind, "call": call, **fields}), file=log)

    def events(self, op: str) -> list[dict]:
        """Return what the tasks noted so far."""
        return [event for event in checker.load([self.seen]) if event["op"] == op]

    def report(self) -> checker.Report:
        """Judge what was seen, all that could come out having come out. Real workers don't tell what settles were answered."""
        self._note("drain", "ok", "drain")
        events = checker.load([self.sent, self.seen])
        return checker.check([event for event in events if event["op"] != "stopped"])

    def end(self) -> None:
        """End the workers and the proxy."""
        for worker in self.workers:
            worker.end()
        self.proxy.close()


@pytest.fixture
def make_scene(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(*flags: str) -> Scene:
        made.append(Scene(make_broker(*flags), tmp_path))
        return made[-1]

    yield make
    for scene in made:
        scene.end()


def assert_sound(scene: Scene, ids: list[int]) -> checker.Report:
    """All jobs are completed, each was stored once, and nothing else is in the store."""
    report = scene.report()
    assert report.lost + report.unexpected + report.duplicated + report.fences == []
    stats = scene.broker.stats()
    assert len(set(ids)) == len(ids) == stats["total"]
    assert stats["states"]["completed"] == len(ids), stats["states"]
    assert "Traceback" not in scene.broker.output
    assert not any("Traceback" in worker.output for worker in scene.workers)
    return report


# -- resets at chosen bytes -------------------------------------------------------------------------------------------------


def spread(first: int, last: int, count: int) -> list[int]:
    """Return `count` numbers from first to last, the ends included."""
    return sorted({first + (last - first) * place // (count - 1) for place in range(count)})


def test_a_submit_reset_at_any_byte_of_request_or_answer_is_stored_once(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    ids: list[int] = []
    resets = 0
    with scene.client() as client:
        client.ping()  # the first connection must work at once
        passage = scene.proxy.passages[-1]
        before = passage.passed_up, passage.passed_down
        ids += scene.submit(client, "record", 20, seconds=0.0)
        request, answer = passage.passed_up - before[0], passage.passed_down - before[1]
        for is_up, after in [(True, n) for n in spread(1, request, 12)] + [(False, n) for n in spread(1, answer, 12)]:
            client.ping()
            passage = scene.proxy.passages[-1]
            if is_up:
                passage.up.reset_after = passage.passed_up + after
            else:
                passage.down.reset_after = passage.passed_down + after

            ids += scene.submit(client, "record", 20, seconds=0.0)

            until(lambda: not passage.is_open, f"it was reset after {after} bytes, up: {is_up}")
            resets += 1

    scene.start_worker("w1", direct=True)
    with scene.client(direct=True) as client:
        assert {view["state"] for view in client.wait(ids, 30)} == {"completed"}
    print(f"{resets} resets in {len(ids) // 20} submits of {request} bytes with answers of {answer}")
    assert_sound(scene, ids)


def test_a_worker_reset_at_any_byte_of_reserve_delivery_and_settle_runs_every_job(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("--reconnect-grace-s", "5")  # so that a slow machine's reconnect is no lost worker
    worker = scene.start_worker("w1", "--concurrency", "1")
    ids: list[int] = []
    resets = 0
    with scene.client(direct=True) as client:
        for direction, more in [("up", n) for n in spread(1, 330, 16)] + [("down", n) for n in spread(1, 330, 16)]:
            passage = until(lambda: scene.proxy.passages, "the worker is connected")[-1]
            passed = passage.passed_up if direction == "up" else passage.passed_down
            getattr(passage, direction).reset_after = passed + more

            new = scene.submit(client, "record", 3, seconds=0.0)

            assert [view["state"] for view in client.wait(new, 30)] == ["completed"] * 3, (direction, more)
            ids += new
            resets += not passage.is_open
    print(f"{resets} resets, {len(ids)} jobs, {scene.proxy.accepted} connections, {scene.broker.stats()['requeued']} came back")
    assert resets >= 16 and worker.process.poll() is None
    assert_sound(scene, ids)


# -- faults at random -------------------------------------------------------------------------------------------------------

Fault = Callable[[Proxy, random.Random], str]


def reset_all(proxy: Proxy, rng: random.Random) -> str:
    proxy.reset()
    return "reset"


def reset_soon(proxy: Proxy, rng: random.Random) -> str:
    for passage in proxy.passages:
        passage.up.reset_after = passage.passed_up + rng.randrange(1, 4000)
        passage.down.reset_after = passage.passed_down + rng.randrange(1, 4000)
    return "reset soon"


def refuse(proxy: Proxy, rng: random.Random) -> str:
    proxy.refuses = True
    proxy.reset()
    return "refuse"


def slow_down(proxy: Proxy, rng: random.Random) -> str:
    delay_s = rng.uniform(0.02, 0.2)
    for passage in proxy.passages:
        passage.up.delay_s = passage.down.delay_s = delay_s
    return "delay"


def drip(proxy: Proxy, rng: random.Random) -> str:
    for passage in proxy.passages:
        passage.up.bytes_per_s = passage.down.bytes_per_s = rng.uniform(500, 5000)
    return "drip"


def cut_one_way(proxy: Proxy, rng: random.Random) -> str:
    up = rng.random() < 0.5
    proxy.cut(up=up, down=not up)
    return "half cut"


def cut_both(proxy: Proxy, rng: random.Random) -> str:
    proxy.cut()
    return "cut"


FAULTS: tuple[Fault, ...] = (reset_all, reset_soon, refuse, slow_down, drip, cut_one_way, cut_both)


@pytest.mark.parametrize("rounds", [7, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_producer_and_workers_behind_a_bad_network_lose_nothing_and_store_nothing_twice(
        make_scene: Callable[..., Scene], rounds: int) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    scene = make_scene("--lease-s", str(LEASE_S))
    for name in ("w1", "w2"):
        scene.start_worker(name, "--concurrency", "3")
    ids: list[int] = []
    done = threading.Event()
    errors: list[BaseException] = []

    def produce() -> None:
        try:
            with scene.client() as client:
                while not done.is_set():
                    ids.extend(scene.submit(client, "record", rng.randint(1, 30), seconds=rng.choice([0.0, 0.0, 0.02])))
                    done.wait(0.02)
        except BaseException as exc:
            errors.append(exc)

    producer = threading.Thread(target=produce)
    producer.start()
    injected: list[str] = []
    try:
        for number in range(rounds):
            injected.append(FAULTS[number % len(FAULTS)](scene.proxy, rng))
            done.wait(rng.uniform(0.1, 0.5))  # how long the fault lasts
            scene.proxy.heal()
            stored = len(ids)
            until(lambda: len(ids) > stored or errors, f"the producer goes on after {injected[-1]}", 40)
            assert errors == [], injected[-1]
    finally:
        done.set()
        producer.join(40)
    with scene.client(direct=True) as client:
        views = list(client.wait(ids, 60))

    assert errors == [] and {view["state"] for view in views} == {"completed"}
    report = assert_sound(scene, ids)
    print(f"{rounds} faults, {len(ids)} jobs, {report.counts['reserve ok']} runs, {scene.proxy.accepted} connections, "
          f"{scene.broker.stats()['requeued']} came back")


# -- dead links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["both", *(pytest.param(way, marks=pytest.mark.long) for way in ("up", "down"))])
def test_a_worker_cut_off_stops_before_its_job_is_given_away_and_works_on_when_healed(
        make_scene: Callable[..., Scene], direction: str) -> None:
    scene = make_scene("--lease-s", str(LEASE_S))
    cut_off = scene.start_worker("cut-off", "--concurrency", "2")
    with scene.client(direct=True) as client:
        ids = scene.submit(client, "hold", 1)
        until(lambda: scene.events("reserve"), "the job runs")
        scene.start_worker("heir", direct=True)
        passage: Passage = scene.proxy.passages[-1]
        began = time.monotonic()

        scene.proxy.cut(up=direction != "down", down=direction != "up")

        until(lambda: scene.events("stopped"), "the job was told to stop", LEASE_S + 10)
        stopped_s = time.monotonic() - began
        until(lambda: "was silent" in cut_off.output, "the worker noticed", 10)
        noticed_s = time.monotonic() - began
        if direction != "down":  # else its beats still arrive, and the broker leaves the jobs to it
            until(lambda: len(scene.events("reserve")) == 2, "the broker noticed and gave the job to the other", LEASE_S + 10)
            assert scene.events("stopped")[0]["at"] < scene.events("reserve")[1]["at"], "two worked on one job"
        print(f"cut {direction}: stopped after {stopped_s:.1f} s, noticed after {noticed_s:.1f} s of {LEASE_S} s")
        assert noticed_s < 3 * HEARTBEAT_S + 3

        scene.proxy.heal()
        until(lambda: "connected again" in cut_off.output, "the worker came back")
        until(lambda: not passage.is_open, "the old connection is gone")
        scene.workers[1].end()  # only the healed one is left, also for the job that the other had
        new = scene.submit(client, "record", 5, seconds=0.0)
        assert {view["state"] for view in client.wait(new, 30)} == {"completed"}
        client.cancel(ids)
        report = scene.report()
    assert report.unexpected + report.duplicated + report.fences == []


def test_a_job_that_does_not_stop_may_still_finish_if_nobody_else_got_it(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene("--lease-s", "2")
    scene.start_worker("w1")
    with scene.client(direct=True) as client:
        ids = scene.submit(client, "record", 1, seconds=3.0)
        until(lambda: scene.events("reserve"), "the job runs")
        scene.proxy.cut()
        until(lambda: "told to stop" in scene.workers[0].output, "its lease runs out")
        scene.proxy.heal()

        view = next(client.wait(ids, 30))

    assert view["state"] == "completed"
    report = scene.report()
    assert report.lost + report.unexpected + report.duplicated + report.fences == []


def test_a_client_cut_off_in_the_middle_of_a_submit_gets_its_answer_when_healed(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    with scene.client() as client:
        client.ping()
        for up in (True, False):
            scene.proxy.cut(up=up, down=not up)
            answers: list[list[int]] = []
            submitting = threading.Thread(target=lambda: answers.append(scene.submit(client, "record", 10, seconds=0.0)))
            submitting.start()
            if not up:
                until(lambda: scene.broker.stats()["total"] == 20, "it is stored, and the answer is stuck")
            scene.proxy.heal()
            submitting.join(20)
            assert len(answers) == 1 and len(set(answers[0])) == 10
    assert scene.broker.stats()["total"] == 20


@pytest.mark.long
def test_a_client_on_a_dead_link_notices_within_a_minute_and_sends_again_on_a_new_one(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    with scene.client() as client:
        client.ping()
        old = scene.proxy.passages[-1]
        old.cut()  # this one for ever; new ones pass
        began = time.monotonic()

        scene.submit(client, "record", 10, seconds=0.0)

        print(f"noticed after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 50
    assert scene.broker.stats()["total"] == 10
