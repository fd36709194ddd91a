"""docs/tasks.md: its Python examples are put into the files that their first lines name, and run; its options are those of the table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.job import OPTIONS
from tests.processes import ROOT, BrokerProcess

TEXT = (ROOT / "docs" / "tasks.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n# (\w+\.py)(.*?)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def write_files(folder: Path) -> None:
    for name, _, code in BLOCKS:
        with (folder / name).open("a") as file:
            file.write(code + "\n")


def run(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GREENROOM_", "PYTEST_"))}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
                          env={**clean, "PYTHONPATH": str(ROOT), **(env or {})})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_python_example_is_one_that_is_run_here() -> None:
    assert len(BLOCKS) == TEXT.count("```python")
    assert {name for name, _, _ in BLOCKS} == {"shop_tasks.py", "shop.py", "unique_tasks.py", "test_shop.py"}


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    write_files(tmp_path)

    printed = run(tmp_path, "-m", "pytest", "-q", "-p", "greenroom.pytest_plugin", "-p", "no:cacheprovider", "test_shop.py")

    assert "5 passed" in printed


def test_the_script_of_the_page_works_with_a_broker_and_a_worker(broker: BrokerProcess, start_worker: Callable[..., object],
                                                                tmp_path: Path) -> None:
    write_files(tmp_path)
    start_worker(tasks=tmp_path / "shop_tasks.py")

    printed = run(tmp_path, "shop.py", env=broker.client_env)

    assert printed == ("1 {'path': 'a.png', 'width': 100}\n[800, 300, 50]\n"
                       "0 rows are written\n1000 rows are written\n2000 rows are written\n")
    assert [job["task"] for job in broker.get("/api/jobs?state=scheduled")[1]["jobs"]] == ["mail.receipt"]


def test_the_unique_tasks_of_the_page_have_the_keys_that_it_says(tmp_path: Path) -> None:
    [needed] = [note.partition("needs the option")[2].strip() for name, note, _ in BLOCKS if name == "unique_tasks.py"]
    if needed not in OPTIONS:
        pytest.skip(f"the table has no option {needed} yet")
    write_files(tmp_path)
    (tmp_path / "test_unique.py").write_text("""
from unique_tasks import index, refresh, report

def test_keys(greenroom_capture):
    report.enqueue(7), index.enqueue("A", force=True)
    first, same, other = refresh.enqueue("a"), refresh.enqueue(path="a"), refresh.enqueue("b")
    assert same.is_duplicate and same.id == first.id and not other.is_duplicate
    keys = [job.options["unique_key"] for job in greenroom_capture.submitted]
    assert keys[:2] == ["report:7", "a"] and len(keys) == 4
    assert greenroom_capture.submitted[0].options["attempts"] == 3
""")

    run(tmp_path, "-m", "pytest", "-q", "-p", "greenroom.pytest_plugin", "-p", "no:cacheprovider", "test_unique.py")


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"task", "payload", "encoding"}))
def test_every_option_stands_on_the_page(name: str) -> None:
    section = TEXT.partition("## 3. Options")[2].partition("\n## ")[0]

    assert f"`{name}`" in section
