"""The wheel: what is in it, and that its commands work in a fresh virtualenv beside files of the user that are named like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.processes import ROOT, Process, free_port, until

DECOYS = ("client.py", "protocol.py", "worker.py", "broker.py", "webui.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(ROOT)],
                          capture_output=True, text=True, timeout=100)
    if "No module named build" in done.stderr or "Missing dependencies" in done.stdout:
        skip_or_fail("build and hatchling are not installed: pip install -r requirements-test.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands in a fresh virtualenv with the wheel. The libraries are lent, so that no network is needed."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=True)
    bin_folder = home / "bin"
    done = subprocess.run([str(bin_folder / "python"), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    site = subprocess.run([str(bin_folder / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    Path(site, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with files of theirs that are named like ours and must never be imported."""
    for name in DECOYS:
        (tmp_path / name).write_text("raise SystemExit('the decoy was imported')\n")
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes to end after the test, last one first."""
    processes: list[Process] = []
    yield processes
    for process in reversed(processes):
        process.end()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2 and "greenroom" in tops and all(top == "greenroom" or top.endswith(".dist-info") for top in tops)
    for needed in ("broker.py", "worker.py", "client.py", "protocol.py", "gen_certs.py", "run.py", "stores/sqlite.py"):
        assert f"greenroom/{needed}" in names
    for source in [*ROOT.glob("greenroom/stores/migrations/*.sql"), *ROOT.glob("webui/static/**/*.*")]:
        inside = source.relative_to(ROOT).as_posix()
        assert (inside if inside.startswith("greenroom/") else f"greenroom/{inside}") in names
    for_users_tests = {f"greenroom/{path.name}" for path in ROOT.glob("greenroom/testing*.py")} | {"greenroom/pytest_plugin.py"}
    assert for_users_tests <= names
    unwanted = [name for name in names - for_users_tests if name.endswith((".key", ".crt", ".pyc", ".db")) or "test" in name.lower()
                or "__pycache__" in name or "/bench" in name or "/docs" in name or "/examples" in name]
    assert unwanted == []


def test_the_installed_commands_do_a_job_in_a_folder_with_decoys(commands: Path, folder: Path, certificates: Path,
                                                                 started: list[Process]) -> None:
    port, web_port = free_port(), free_port()
    env = {"GREENROOM_URL": f"greenroom://localhost:{port}", "GREENROOM_CA": str(certificates / "ca.crt"), "PYTHONPATH": ""}
    broker = Process([str(commands / "greenroom-broker"), "--port", str(port), "--web-port", str(web_port), "--cert",
                      str(certificates / "server.crt"), "--key", str(certificates / "server.key")], folder / "broker.log", env)
    worker = Process([str(commands / "greenroom-worker"), "--name", "installed"], folder / "worker.log", env)
    for process, sign in ((broker, "dashboard:"), (worker, "connected")):
        started.append(process)
        process.spawn()
        until(lambda process=process, sign=sign: sign in process.output or process.process.poll() is not None, f"it says {sign}")
        assert process.process.poll() is None, process.output

    done = subprocess.run([str(commands / "greenroom"), "submit", "fibonacci", '{"n": 100}', "--wait", "-o", "json"],
                          cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "354224848179261915075" in done.stdout
    assert json.loads(done.stdout)
    assert worker.terminate() == 0, worker.output
    assert broker.terminate() == 0, broker.output
    assert "Traceback" not in broker.output + worker.output + done.stderr


def test_the_installed_modules_are_the_wheels_own(commands: Path, folder: Path) -> None:
    done = subprocess.run([str(commands / "python"), "-c", "import greenroom.client, greenroom.webui; print(greenroom.client.__file__)"],
                          cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": ""})

    assert done.returncode == 0, done.stderr
    assert str(commands.parent) in done.stdout


def test_the_installed_pytest_plugin_starts_a_broker_and_a_worker(commands: Path, folder: Path) -> None:
    (folder / "test_mine.py").write_text("""
from greenroom.tasks import task

@task
def double(number: int) -> int:
    return number * 2

def test_at_once(greenroom_inline):
    assert double.enqueue(4).result() == 8

def test_for_real(greenroom_broker):
    greenroom_broker.start_worker(__file__)
    assert double.enqueue(4).result(timeout=30) == 8
""")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GREENROOM_", "PYTEST_"))}

    done = subprocess.run([str(commands / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"], cwd=folder,
                          env={**env, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
