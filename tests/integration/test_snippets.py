"""The snippets of the documentation, run as they are against a real broker."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, BrokerProcess, Process, until

SNIPPETS = ROOT / "docs" / "snippets"


class SnippetWorker(Process):
    """docs/snippets/worker.py as a process."""

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        super().__init__([sys.executable, str(SNIPPETS / "worker.py"), "localhost", str(broker.port), broker.ca], folder / "snippet.log")


@pytest.fixture
def snippet_worker(broker: BrokerProcess, tmp_path: Path) -> SnippetWorker:
    worker = SnippetWorker(broker, tmp_path)
    worker.spawn()
    until(lambda: broker.stats()["workers"] == 1, "the snippet is connected: " + worker.output)
    yield worker
    worker.end()


def produce(broker: BrokerProcess, task: str, payload: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SNIPPETS / "producer.py"), "localhost", str(broker.port), broker.ca, task, payload],
                          capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["producer.py", "worker.py"])
def test_a_snippet_is_short_and_needs_only_msgpack(name: str) -> None:
    text = (SNIPPETS / name).read_text()
    imported = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}

    assert len(text.splitlines()) <= 60
    assert imported - set(sys.stdlib_module_names) == {"msgpack"}


def test_producer_and_worker_bring_a_result_back(broker: BrokerProcess, snippet_worker: SnippetWorker) -> None:
    done = produce(broker, "reverse_string", '{"data": "stressed"}')

    assert (done.returncode, done.stdout) == (0, "desserts\n"), done.stderr


def test_a_task_that_raises_is_a_failed_job(broker: BrokerProcess, snippet_worker: SnippetWorker) -> None:
    done = produce(broker, "to_uppercase", '{"wrong": 1}')

    assert done.returncode == 0 and "'state': 'failed'" in done.stdout and "KeyError" in done.stdout


def test_a_refused_job_is_told(broker: BrokerProcess) -> None:
    done = produce(broker, "no such name", "{}")

    assert done.returncode == 1 and "the job was refused: task must be" in done.stderr


def test_the_worker_comes_back_after_a_restart_of_the_broker(broker: BrokerProcess, snippet_worker: SnippetWorker) -> None:
    broker.restart(kill=True)

    assert produce(broker, "to_uppercase", '{"data": "again"}').stdout == "AGAIN\n"


def test_the_snippets_work_with_our_own_counterparts(broker: BrokerProcess, start_worker: object) -> None:
    start_worker()

    assert produce(broker, "fibonacci", '{"n": 100}').stdout == "354224848179261915075\n"
