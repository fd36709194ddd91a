"""The dashboard of a real broker in a real Chromium.

The scenarios are in browser_scenarios.py, which runs unpatched beside us with one browser for all.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from tests.processes import BrokerProcess, Process, WorkerProcess, until

SCENARIOS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "browser_scenarios.py")
DEADLINE_S = 90
EVIL = "<img src=x onerror=\"window.pwned=1;alert(1)\"><script>window.pwned=2</script>'\u202e\"</script>"

EVIL_TASKS = '''
from greenroom.tasks import register_task

EVIL = {evil!r}


class EvilError(Exception):
    pass


EvilError.__name__ = EVIL[:100]


def fail(payload):
    raise EvilError(EVIL)


register_task("evil_result", lambda payload: {{EVIL: EVIL, "list": [EVIL, payload]}})
register_task("evil_text", lambda payload: EVIL)
register_task("evil_error", fail)
'''


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(autouse=True)
def browser_is_there() -> None:
    """Skip where there is no browser; with CI set that is a failure."""
    missing = [name for name, there in (("chromium", find_chromium()), ("playwright", importlib.util.find_spec("playwright"))) if not there]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{' and '.join(missing)} not installed")


class Scenarios:
    """The process that has the browser; a new one after a scenario that did not end."""

    def __init__(self) -> None:
        self._child: subprocess.Popen | None = None

    def run(self, broker: object, name: str, facts: dict | None = None, actions: dict[str, Callable[[], object]] | None = None) -> None:
        """Run a scenario; when it asks for a word, do the action of that name and let it go on."""
        wanted = iter((actions or {}).items())
        try:
            with gevent.Timeout(DEADLINE_S, AssertionError(f"{name} took more than {DEADLINE_S} s")):
                said = self._tell({"name": name, "url": f"http://127.0.0.1:{broker.web_port}/", "facts": facts or {}})
                while "ask" in said:
                    word, action = next(wanted)
                    assert said["ask"] == word
                    action()
                    said = self._tell({})
        except BaseException:
            self.end()
            raise
        assert "passed" in said, said["failed"]
        assert next(wanted, None) is None, "the scenario did not ask for all actions"

    def _tell(self, line: dict) -> dict:
        if self._child is None:
            command = [sys.executable, SCENARIOS, find_chromium()]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._child.stdin.write(json.dumps(line) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the process of the scenarios has ended; see its traceback above"
        return json.loads(answer)

    def end(self) -> None:
        """Close the browser; a process that does not end by itself is killed."""
        child, self._child = self._child, None
        if child is None:
            return
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


@pytest.fixture(scope="module")
def scenarios() -> Iterator[Scenarios]:
    made = Scenarios()
    yield made
    made.end()


def submit(broker: object, task: str, payload: object, **options: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=20)
    body = json.dumps({"task": task, "payload": payload, **options})
    connection.request("POST", "/api/submit", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["id"]


@pytest.fixture(scope="module")
def start_both(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], BrokerProcess]]:
    """Start a broker and its worker for several scenarios, to look at what is there or to leave it idle."""
    made: list[Process] = []

    def start() -> BrokerProcess:
        folder = tmp_path_factory.mktemp("shared")
        broker = BrokerProcess(folder / "broker", certificates)
        made.append(broker)
        broker.start()
        worker = WorkerProcess(broker, "w1", [], folder)
        made.append(worker)
        worker.start()
        return broker

    yield start
    for process in reversed(made):
        process.end()


@pytest.fixture(scope="module")
def with_one_worker(start_both: Callable[[], BrokerProcess]) -> BrokerProcess:
    return start_both()


@pytest.mark.parametrize("name", ["submit_from_the_form_and_watch_it", "results_are_exact", "a_copy_is_submitted", "the_keyboard_is_enough", "the_broker_itself_is_watched",
                                  "wrong_input_is_told_at_its_field", "without_events_the_page_polls_and_comes_back",
                                  "events_are_listed_as_they_happen"])
def test_with_one_worker(scenarios: Scenarios, with_one_worker: object, name: str) -> None:
    scenarios.run(with_one_worker, name)


def test_without_a_worker_the_page_says_how_to_start_one(scenarios: Scenarios, broker: object) -> None:
    modes = {"until_done": (["until the job is finished, at the latest in"], {"unique_for": 60}),
             "throttle": (["in "], {"unique_for": 60}),
             "debounce": (["puts it off by 60 s, at the latest in"], {"unique_for": 60, "debounce_max": 600})}
    keyed = {mode: (submit(broker, "t", {}, unique_key=f"<b>{mode}", unique_mode=mode, **options), told)
             for mode, (told, options) in modes.items()}
    scenarios.run(broker, "without_a_worker_the_page_says_how_to_start_one", keyed)


@pytest.fixture(scope="module")
def with_jobs_in_every_state(start_both: Callable[[], BrokerProcess]) -> BrokerProcess:
    broker = start_both()
    for n in range(10):
        submit(broker, "fibonacci", {"n": n})
    submit(broker, "fibonacci", {"n": -1})
    submit(broker, "a_task_that_nobody_has.and_a_long_name", {}, queue="a-queue-with-a-rather-long-name")
    submit(broker, "fibonacci", {"n": 1}, delay=3600)
    submit(broker, "slow_task", {"seconds": 300})
    return broker


@pytest.mark.parametrize("name", ["everything_fits_1440_by_900", "nothing_scrolls_sideways_on_a_phone", "text_has_contrast_in_both_themes"])
def test_with_jobs_in_every_state(scenarios: Scenarios, with_jobs_in_every_state: object, name: str) -> None:
    scenarios.run(with_jobs_in_every_state, name)


def test_hostile_text_in_every_field_stays_text(scenarios: Scenarios, broker: object, start_worker: object, tmp_path: object) -> None:
    module = tmp_path / "evil_tasks.py"
    module.write_text(EVIL_TASKS.format(evil=EVIL), encoding="utf-8")
    start_worker(tasks=str(module))

    jobs = [submit(broker, task, {EVIL: [EVIL, {"deep": EVIL}]}, attempts=1) for task in ("evil_result", "evil_text", "evil_error")]

    scenarios.run(broker, "hostile_text_stays_text", {"jobs": jobs, "text": "window.pwned=2"})


def test_progress_and_log_lines_are_live_and_stay_text(scenarios: Scenarios, make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--lease-s", "120")  # the worker here sends no heartbeats
    worker = broker.connect(role="worker")
    job = submit(broker, "t", {})
    [[_, fence, *_]] = worker.call("reserve", n=1, wait=5)["jobs"]

    def say(fraction: float | None, *lines: str) -> None:
        text = None if fraction is None else EVIL[:150]
        assert worker.call("report", leases=[[job, fence, fraction, text, [[1000.0, line] for line in lines]]])["outcomes"] == ["OK"]

    def finish() -> None:
        say(None, "line three")
        worker.call("settle", leases=[[job, fence, "ack"]])

    say(0.25, "line one", EVIL)
    scenarios.run(broker, "progress_and_log_lines_are_live", {"job": job, "text": "window.pwned=2", "lines": 54}, actions={
        "more": lambda: say(0.75, *map(str, range(50)), "line two"), "finish": finish})


def post(broker: object, path: str, body: dict) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=20)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def wait_for_states(broker: object, **counts: int) -> None:
    """Wait until so many jobs are in these states."""
    def are_there() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", broker.web_port, timeout=20)
        connection.request("GET", "/api/stats")
        stats = json.loads(connection.getresponse().read())
        connection.close()
        return all(stats[state] == count for state, count in counts.items())
    until(are_there, f"jobs are {counts}")


def test_hostile_text_stays_text_on_every_page(scenarios: Scenarios, broker: object, start_worker: object, tmp_path: object) -> None:
    module = tmp_path / "evil_tasks.py"
    module.write_text(EVIL_TASKS.format(evil=EVIL), encoding="utf-8")
    start_worker(tasks=str(module))
    submit(broker, "evil_error", {EVIL: EVIL}, attempts=1)
    wait_for_states(broker, failed=1)
    post(broker, "/api/pause", {"queue": "default", "reason": EVIL[:200], "by": EVIL[:100]})
    post(broker, "/api/limit", {"queue": "default", "jobs": 1, "reason": EVIL[:200], "by": EVIL[:100]})
    post(broker, "/api/schedules/night", {"job": {"task": "evil_text"}, "every": "1h"})
    assert post(broker, "/api/schedules/night/pause", {"reason": EVIL[:200]})["schedule"]["reason"] == EVIL[:200]

    scenarios.run(broker, "hostile_text_stays_text_on_every_page", {"text": "window.pwned=2", "evil": EVIL[:100]})


def test_jobs_are_filtered_by_the_address(scenarios: Scenarios, broker: object, start_worker: object) -> None:
    start_worker()
    facts = {"failed": [submit(broker, "fibonacci", {"n": -1}, attempts=1) for _ in range(2)],
             "completed": [submit(broker, "fibonacci", {"n": 1}) for _ in range(3)],
             "other": [submit(broker, "reverse_string", {"data": "x"}, queue="other", keep_for=86400)]}
    wait_for_states(broker, failed=2, completed=4)

    scenarios.run(broker, "jobs_are_filtered_by_the_address", facts)


def test_pages_of_jobs_go_back_in_time(scenarios: Scenarios, broker: object) -> None:
    scenarios.run(broker, "pages_of_jobs_go_back_in_time", {"jobs": [submit(broker, "fibonacci", {"n": 1}) for _ in range(60)]})


def test_many_jobs_are_cancelled_and_retried(scenarios: Scenarios, broker: object, start_worker: object) -> None:
    start_worker()
    failed = [submit(broker, "fibonacci", {"n": -1}, attempts=1) for _ in range(205)]  # more than one page of ids
    wait_for_states(broker, failed=205)

    scenarios.run(broker, "many_jobs_are_cancelled_and_retried", {
        "failed": failed, "queued": [submit(broker, "a_task_that_nobody_has", {}, queue="mine") for _ in range(4)]})


def test_jobs_are_searched_and_deleted(scenarios: Scenarios, broker: object, start_worker: object) -> None:
    start_worker()
    found = [submit(broker, "reverse_string", {"data": f"Needle {number}"}) for number in range(3)]
    others = [submit(broker, "reverse_string", {"data": "hay"}) for _ in range(2)]
    wait_for_states(broker, completed=5)

    scenarios.run(broker, "jobs_are_searched_and_deleted", {"text": "needle", "found": found, "others": others})


FLAKY_TASK = '''
import os
from greenroom.tasks import register_task


def flaky(payload):
    if not os.path.exists(payload["file"]):
        raise TimeoutError(f"no answer from host {payload['host']}")
    return "good now"


register_task("flaky", flaky)
'''


def test_failures_are_grouped_and_one_is_tried_first(scenarios: Scenarios, broker: object, start_worker: object, tmp_path: object) -> None:
    (tmp_path / "flaky_tasks.py").write_text(FLAKY_TASK, encoding="utf-8")
    start_worker(tasks=str(tmp_path / "flaky_tasks.py"))
    healed = tmp_path / "healed"
    flaky = [submit(broker, "flaky", {"file": str(healed), "host": n}, attempts=1) for n in range(4)]
    for _ in range(2):
        submit(broker, "fibonacci", {"n": -1}, attempts=1)
    wait_for_states(broker, failed=6)
    healed.touch()

    scenarios.run(broker, "failures_are_grouped_and_one_is_tried_first", {"flaky": flaky, "total": 6})


def test_queues_and_what_waits_in_them_are_steered(scenarios: Scenarios, broker: object) -> None:
    for _ in range(2):
        submit(broker, "a_task_that_nobody_has", {}, queue="mail")
    job = submit(broker, "fibonacci", {"n": 1}, queue="mail", timeout=60, unique_key="<i>key</i>")

    scenarios.run(broker, "queues_are_paused_and_resumed")
    scenarios.run(broker, "waiting_jobs_are_changed_deleted_and_purged", {"job": job})


def test_queues_are_limited(scenarios: Scenarios, broker: object) -> None:
    for _ in range(2):
        submit(broker, "a_task_that_nobody_has", {}, queue="mail")

    scenarios.run(broker, "queues_are_limited")


def test_schedules_are_steered(scenarios: Scenarios, broker: object) -> None:
    post(broker, "/api/schedules/night", {"job": {"task": "to_uppercase", "payload": {"data": "x"}}, "cron": "30 2 * * *"})
    post(broker, "/api/schedules/often", {"job": {"task": "fibonacci", "payload": {"n": 1}}, "every": "2h"})

    scenarios.run(broker, "schedules_are_paused_and_run")
    scenarios.run(broker, "schedules_are_made_edited_and_deleted")


@pytest.fixture(scope="module")
def with_all_that_pages_can_show(start_both: Callable[[], BrokerProcess]) -> BrokerProcess:
    broker = start_both()
    long = "a-name-" * 9
    for n in range(30):
        submit(broker, "fibonacci", {"n": n - 3}, attempts=1)
    submit(broker, f"{long}task", {}, queue=f"{long}queue", delay=1)
    wait_for_states(broker, failed=3, completed=27)
    post(broker, "/api/pause", {"queue": f"{long}queue", "reason": "x" * 200})
    post(broker, "/api/pause", {"task": f"{long}task", "reason": "the disk is full", "for": 900})
    post(broker, "/api/limit", {"queue": f"{long}queue", "jobs": 1, "bytes": 10**12, "urgent": 2, "reason": "z" * 200})
    for schedule in ("night", long):
        post(broker, f"/api/schedules/{schedule}", {"job": {"task": f"{long}task", "queue": long}, "cron": "*/15 2-4 * * mon-fri",
                                                    "timezone": "America/Argentina/ComodRivadavia"})
    post(broker, "/api/schedules/night/pause", {"reason": "y" * 200})
    return broker


@pytest.mark.parametrize("name", ["the_other_pages_fit_a_phone", "the_other_pages_have_contrast_and_fit_a_window"])
def test_the_other_pages_with_all_they_can_show(scenarios: Scenarios, with_all_that_pages_can_show: object, name: str) -> None:
    scenarios.run(with_all_that_pages_can_show, name)


def test_the_page_recovers_after_a_restart(scenarios: Scenarios, broker: object, start_worker: object) -> None:
    start_worker()

    scenarios.run(broker, "the_page_recovers_after_a_restart", actions={"kill": broker.kill, "restart": broker.restart})
