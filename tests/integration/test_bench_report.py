"""The report, run as a user would run it, from small saved results."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from tests.processes import ROOT

WITHIN_S = 100
HEAD = {"name": "machine", "value": 2, "unit": "cores",
        "params": {"machine": "2 x test", "versions": "Python 3", "commit": "abc1234", "broker_settings": {"lease_s": 15.0}}}


def bench(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "bench" / script), *arguments], capture_output=True, text=True, timeout=WITHIN_S,
                          env={"PATH": "/usr/bin:/bin"}, cwd=cwd)


def save(folder: Path, script: str, *lines: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{script}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (HEAD, *lines)))


def result(name: str, value: float, unit: str, **params: object) -> dict:
    return {"name": name, "value": value, "unit": unit, "params": params}


def peer(group: str, name: str, rate: float, **params: object) -> dict:
    given = {"ours": False, "can_lose": "nothing", "fsync_before_answer": True, "how": "pipelined", "versions": "", **params}
    return result("peer jobs", rate, "jobs/s", group=group, peer=name, **given, min=rate * 0.9, max=rate * 1.1, runs=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    save(folder, "throughput", *(result("jobs", 700.0 * batch, "jobs/s", mode="all", batch=batch, connections=64, payload=100, runs=5,
                                        min=600.0 * batch, max=900.0 * batch) for batch in (1, 10, 100)))
    for number, p99 in enumerate((3.0, 5.0, 4.5)):
        save(folder, f"latency-{number}", result("submit to result p99", p99, "ms", load="idle", held=0, jobs_per_s=number),
             result("submit to result p99", 9.0, "ms", load="50 %", held=0, jobs_per_s=number),
             result("hub lag p99", 5.0 + number, "ms", load="50 %", held=0))
    save(folder, "peers", peer("brokers", "Greenroom", 60_000, ours=True), peer("brokers", "a <quick> & durable one", 20_000),
         peer("brokers", "another", 90_000, can_lose="everything", fsync_before_answer=False),
         *(result("peer ratio", times, "x", group="brokers", peer=name, fsync_before_answer=is_durable, min=times - 0.5,
                  max=times + 0.5, runs=3)
           for name, times, is_durable in (("a slow one", 9.0, True), ("a <quick> & durable one", 3.0, True), ("another", 0.7, False))),
         result("peer left out", 0, "jobs/s", group="brokers", peer="a third", reason="it is not installed"))
    return folder


def row(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {start}"))


def test_the_report_holds_each_target_against_the_median_of_its_runs(saved: Path, tmp_path: Path) -> None:
    done = bench("report.py", "--from", str(saved), cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "70,000/s (60,000–90,000, 5 runs); connections 64 | **missed**: 88% of it" in row(done.stdout, "durable TLS jobs")
    assert "700/s" in row(done.stdout, "batch 1 with") and "missed" in row(done.stdout, "batch 1 with")
    assert "4.5 ms (3–5, 3 runs) | **missed**: 1.1× too much" in row(done.stdout, "submit → result, idle, p99")
    lag = row(done.stdout, "hub lag while any of it runs, p99")
    assert "6 ms (5–7, 3 runs); script latency, result hub lag p99, load 50 %, held 0 | aim met" in lag
    assert "3× (2.5–3.5, 3 runs); peer a <quick> & durable one | aim met" in row(done.stdout, "the next broker")
    assert "not measured in this run" in row(done.stdout, "the next Python queue")
    assert "Left out: a third (it is not installed)." in done.stdout


def test_the_report_writes_its_part_of_the_page_and_readable_charts(saved: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmarks.md").write_text("# Benchmarks\n\nBy hand.\n")

    first = bench("report.py", "--from", str(saved), "--docs", str(docs), cwd=tmp_path)
    once = (docs / "benchmarks.md").read_text()
    again = bench("report.py", "--from", str(saved), "--docs", str(docs), cwd=tmp_path)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert once == (docs / "benchmarks.md").read_text()
    assert once.count("By hand.") == 1 and once.count("## Against the targets") == 1
    pictures = sorted(path.name for path in (docs / "img").iterdir())
    assert pictures == ["bench-latency.svg", "bench-peers-brokers.svg", "bench-throughput.svg"]
    for name in pictures:
        assert f"img/{name}" in once
        drawing = xml.etree.ElementTree.parse(docs / "img" / name).getroot()
        assert "prefers-color-scheme: dark" in "".join(drawing.itertext())
    bars = xml.etree.ElementTree.parse(docs / "img" / "bench-peers-brokers.svg").getroot()
    assert "a <quick> & durable one" in "".join(bars.itertext())


def test_the_report_refuses_what_no_benchmark_prints(tmp_path: Path) -> None:
    (tmp_path / "throughput.jsonl").write_text("jobs 17\n")

    done = bench("report.py", "--from", str(tmp_path), cwd=tmp_path)
    empty = bench("report.py", "--from", str(tmp_path / "nowhere"), cwd=tmp_path)

    assert (done.returncode, empty.returncode) == (1, 1)
    assert "no benchmark prints" in done.stderr and "has no results" in empty.stderr
    assert "Traceback" not in done.stderr + empty.stderr


def test_every_run_of_the_sets_is_one_that_its_script_takes(tmp_path: Path) -> None:
    program = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
import report
for script, runs in [*report.QUICK.items(), *report.FULL.items()]:
    parser = importlib.import_module(script).build_parser()
    for arguments in runs:
        parser.parse_args([*arguments, "--json"])
    print(script)
"""
    done = subprocess.run([sys.executable, "-c", program, str(ROOT / "bench")], capture_output=True, text=True, timeout=WITHIN_S,
                          cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert {"throughput", "latency", "connections", "depth", "shipped", "recovery", "fanout", "parts", "search", "peers"} == set(done.stdout.split())
