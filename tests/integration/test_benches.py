"""Each benchmark, run for seconds as a user would run it: it ends by itself, checks what it must, prints what it promises. No times."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.processes import ROOT, BrokerProcess, WorkerProcess, free_port

WITHIN_S = 100


def bench(script: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "bench" / script), *arguments], capture_output=True, text=True,
                          timeout=WITHIN_S, env={"PATH": "/usr/bin:/bin", **(env or {})}, cwd=cwd)


def objects(done: subprocess.CompletedProcess) -> list[dict]:
    """Return the objects of a `--json` run, after a look at their shape."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for item in found:
        assert isinstance(item["name"], str) and isinstance(item["unit"], str) and isinstance(item["params"], dict), item
        assert isinstance(item["value"], (int, float)), item
    return found


def values(done: subprocess.CompletedProcess) -> dict[str, float]:
    return {item["name"]: item["value"] for item in objects(done)}


@pytest.mark.parametrize("flags", [
    ("--batch", "10", "--connections", "2"), ("--batch", "1", "--connections", "3", "--pipeline", "4", "--safe"),
    ("--mode", "submit", "--batch", "100", "--connections", "1", "--jobs", "1000"),
    ("--mode", "drain", "--batch", "100", "--connections", "2", "--jobs", "1000")], ids=["all", "safe", "submit", "drain"])
def test_throughput_measures_and_finds_every_job_in_the_store(flags: Sequence[str], tmp_path: Path) -> None:
    done = bench("throughput.py", *flags, "--seconds", "0.3", "--json", cwd=tmp_path)

    found = values(done)

    assert found["jobs"] > 0 and found["fsyncs"] > 0 and found["broker memory"] > 0 and found["broker CPU per job"] > 0
    machine = objects(done)[0]
    assert machine["name"] == "machine"
    assert {"machine", "versions", "commit", "broker_settings"} <= machine["params"].keys()


def test_hub_time_measures_the_worst_turn_of_every_large_request_and_bomb(tmp_path: Path) -> None:
    done = bench("hub_time.py", "--repeat", "3", "--json", cwd=tmp_path)

    found = {result["name"]: result["params"]["least"] for result in objects(done)[1:]}

    print(found)
    assert len(found) >= 25 and any(name.startswith("bomb") for name in found)
    # The goal is 5 ms on a quiet machine; beside other tests the same instructions take up to three times as long.
    assert max(found.values()) < 15, found


def test_throughput_prints_a_table_for_people(tmp_path: Path) -> None:
    done = bench("throughput.py", "--connections", "1", "--seconds", "0.2", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [row[:3] for row in rows] == [["all", "1", "1"], ["all", "10", "1"], ["all", "100", "1"]]


def test_latency_measures_idle_and_an_open_loop_while_connections_are_held(tmp_path: Path) -> None:
    done = bench("latency.py", "--seconds", "0.5", "--idle", "20", "--held", "6", "--loads", "50", "--json", cwd=tmp_path)

    found = {(item["name"], item["params"].get("load")): item["value"] for item in objects(done)}

    assert found["capacity", None] > 0 and found["jobs in the store", None] > 20
    for load in ("idle", "50 %"):
        start, result = found["submit to start p50", load], found["submit to result p50", load]
        assert 0 < start < result <= found["submit to result p99.9", load]
        assert found["hub lag max", load] >= 0
    assert found["arrivals sent over 1 ms late", "50 %"] >= 0


def test_depth_fills_restarts_and_drains_each_depth(tmp_path: Path) -> None:
    done = bench("depth.py", "--depths", "200", "1000", "--at-least", "400", "--json", cwd=tmp_path)

    found = {(item["name"], item["params"].get("depth")): item["value"] for item in objects(done)}

    for depth in (200, 1000):
        assert found["submit", depth] > 0 and found["drain", depth] > 0 and found["store on disk, full", depth] > 0
        for end in ("kill -9", "SIGTERM"):
            assert 0 < found[f"start after {end} until hello", depth] < found[f"start after {end} until first job", depth]
    assert found["submit slowdown", 200] == 1 and found["drain slowdown", 1000] > 0


def test_search_finds_what_each_filter_is_for_and_times_its_pages(tmp_path: Path) -> None:
    done = bench("search.py", "--jobs", "3000", "--json", cwd=tmp_path)

    found = {item["name"].removeprefix("slowest page: "): item for item in objects(done)}

    assert found["failed"]["params"]["found"] == 30 and found["text, rare"]["params"]["found"] == 1 and found["all"]["params"]["found"] == 3000
    assert found["all"]["params"]["pages"] == 60 and found["text, nowhere"]["params"]["whole"] is True
    assert found["dry run over all failed"]["params"]["counted"] == 30 and found["slowest page"]["value"] > 0


def test_recovery_loses_no_job_in_kills_of_broker_and_worker(tmp_path: Path) -> None:
    done = bench("recovery.py", "--kills", "1", "--seconds", "0.3", "--rate", "500", "--only", "broker", "--json", cwd=tmp_path)
    found = values(done)
    assert found["broker killed: jobs lost"] == 0 and found["broker killed: jobs finished twice"] == 0
    assert found["broker killed: until hello"] > 0 and found["broker killed: until first settle"] > 0

    found = values(bench("recovery.py", "--kills", "1", "--rate", "500", "--only", "killed", "--json", cwd=tmp_path))
    assert found["worker killed: until its jobs were finished"] >= 500, "before the reconnect grace was over"
    assert found["worker killed: late settles accepted"] == 0


def test_fanout_gives_every_viewer_its_events_while_jobs_flow(tmp_path: Path) -> None:
    done = bench("fanout.py", "--viewers", "5", "--seconds", "2", "--runs", "1", "--json", cwd=tmp_path)

    found = {(item["name"], item["params"].get("viewers")): item["value"] for item in objects(done)}

    assert found["jobs", 0] > 0 and found["jobs", 5] > 0 and found["overviews a viewer, least", 5] > 0
    assert found["overview delay p50", 5] <= found["overview delay p100", 5] > 0


def test_parts_measures_each_part_alone(tmp_path: Path) -> None:
    found = {item["name"] for item in objects(bench("parts.py", "--repeats", "1", "--jobs", "100", "--json", cwd=tmp_path))}

    assert {"engine submit", "engine reserve", "engine settle", "SQLite submit: apply", "SQLite submit: statements", "SQLite settle: COMMIT", "decode submit",
            "check leases of a settle", "encode answer to reserve", "TLS seal", "TLS open"} <= found


def test_connections_lets_every_connection_complete_a_job(tmp_path: Path) -> None:
    found = values(bench("connections.py", "--connections", "30", "--idle", "0.2", "--probes", "5", "--seconds", "0.3", "--rate", "50",
                         "--working", "10", "--silent", "3", "--slow", "0", "--leased", "4", "--json", cwd=tmp_path))

    assert found["jobs in the store"] >= 5 + 30 + 1 + 2 * 4
    assert found["storm, leases kept"] == 4 and found["storm, leases lost"] == 0
    assert {"connect", "client CPU per connect", "broker memory per connection", "idle CPU", "submit to result, alone p50",
            "submit to result, all held p99.9", "submit to result, working p99", "submit to result, with hostile peers p99",
            "hostile peers closed after", "storm, all back after", "hub lag, storm max"} <= found.keys()


def test_connections_refuses_more_than_the_file_limit(tmp_path: Path) -> None:
    done = bench("connections.py", "--connections", "100000000", cwd=tmp_path)

    assert done.returncode == 1 and "file limit" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_shipped_moves_every_job_through_worker_and_client(pool: str, tmp_path: Path) -> None:
    done = bench("shipped.py", "--pool", pool, "--jobs", "40", "--probes", "5", "--runs", "1", "--json", cwd=tmp_path)

    found = objects(done)
    assert {item["params"]["task"] for item in found if item["name"] == "jobs"} == {"noop", "cpu", "sleep"}
    assert all(item["value"] > 0 for item in found if item["name"] == "jobs")
    assert {"submit_many", "fsyncs", "broker CPU per job", "worker CPU per job", "client CPU per job",
            "submit to result, idle p50", "submit to result, idle p99"} <= {item["name"] for item in found}


def test_stress_frames_its_summary(broker: BrokerProcess, start_worker: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    start_worker()

    done = bench("stress.py", "--jobs", "40", "--connections", "8", "--seed", "1", env=broker.client_env, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    first, last = (place for place, line in enumerate(lines) if line and set(line) == {"="})
    framed = [line.split(":") for line in lines[first + 1:last]]
    assert [label.strip() for label, _ in framed] == ["Total Jobs", "Success", "Failed", "Total Time", "Avg Latency", "Throughput"]
    assert [value.strip() for _, value in framed[:3]] == ["40", "40", "0"]
    assert framed[4][1].endswith("ms/job") and framed[5][1].endswith("jobs/sec")
    assert [line.split()[0] for line in lines[last + 1:]] == ["p50", "p95", "p99"]


def test_stress_counts_wrong_results_as_failed(broker: BrokerProcess, start_worker: Callable[..., WorkerProcess],
                                               tmp_path: Path) -> None:
    liar = tmp_path / "liar.py"
    liar.write_text("from greenroom.tasks import register_task\n"
                    "register_task('to_uppercase', lambda payload: 'not it')\n")
    start_worker(tasks=liar)

    done = bench("stress.py", "--jobs", "10", "--connections", "2", "--seed", "1", env=broker.client_env, cwd=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "Failed      : 2" in done.stdout and "Success     : 8" in done.stdout


def test_stress_prints_json(broker: BrokerProcess, start_worker: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    start_worker()

    found = values(bench("stress.py", "--jobs", "10", "--connections", "2", "--json", env=broker.client_env, cwd=tmp_path))

    assert (found["total jobs"], found["success"], found["failed"]) == (10, 10, 0)


def test_stress_without_a_broker_says_what_to_start(certificates: Path, tmp_path: Path) -> None:
    env = {"GREENROOM_URL": f"greenroom://localhost:{free_port()}", "GREENROOM_CA": str(certificates / "ca.crt")}

    done = bench("stress.py", env=env, cwd=tmp_path)

    assert done.returncode == 3 and "python broker.py" in done.stderr and len(done.stderr.splitlines()) == 1


def test_stress_without_a_worker_says_what_to_start(broker: BrokerProcess, tmp_path: Path) -> None:
    done = bench("stress.py", env=broker.client_env, cwd=tmp_path)

    assert done.returncode == 3 and "python worker.py" in done.stderr and len(done.stderr.splitlines()) == 1
