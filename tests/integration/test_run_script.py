"""The script `run`: what it makes, when it makes it again, and what it says where something is missing. No network."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

#: Stands for the programs and the certificate maker of the checkout: `run` only has to call them, from the right folder.
TELL = "import os, sys\nprint(os.path.basename(__file__), os.getcwd(), *sys.argv[1:])\n"


def make_checkout(folder: Path) -> Path:
    """Make a folder with `run`, whose requirements every new virtualenv fulfils already."""
    (folder / "certs").mkdir(parents=True)
    shutil.copy(ROOT / "run", folder / "run")
    (folder / "tests").mkdir()
    for name in ("certs/gen_certs.py", "client.py", "tests/in_parts.py"):
        (folder / name).write_text(TELL)
    for name in ("requirements.txt", "requirements-test.txt"):
        (folder / name).write_text("pip\n")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A new checkout."""
    return make_checkout(tmp_path / "a check out")


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that is set up, shared because that takes seconds."""
    folder = make_checkout(tmp_path_factory.mktemp("set-up") / "a check out")
    done = run(folder, "setup")
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stderr and "gen_certs.py" in done.stdout
    return folder


def environment(path: str | None = None) -> dict[str, str]:
    """Return the environment of a machine without network, whose user's home is not writable."""
    return {"PATH": path or f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/nonexistent", "PIP_NO_INDEX": "1"}


def run(checkout: Path, *arguments: str, path: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run([str(checkout / "run"), *arguments], cwd=cwd or checkout.parent, env=environment(path),
                          capture_output=True, text=True, timeout=100)


def machine(folder: Path, **programs: str) -> str:
    """Make a folder for PATH that holds these shell scripts and a few plain tools, and nothing else."""
    folder.mkdir()
    for name in {"sh", "cat", "cksum", "dirname", "id", "mkdir", "rm", "tail"} - programs.keys():
        (folder / name).symlink_to(shutil.which(name))
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    return str(folder)


def test_help_names_every_target() -> None:
    done = run(ROOT, "help")

    assert done.returncode == 0
    for target in ("demo", "test", "setup", "broker", "worker", "client", "bench", "peers", "screenshots", "fuzz", "lint", "clean"):
        assert f"./run {target}" in done.stdout


def test_an_unknown_target_is_refused_with_the_list() -> None:
    done = run(ROOT, "dmeo")

    assert done.returncode == 2
    assert "no command dmeo" in done.stderr
    assert "./run demo" in done.stderr


def test_without_a_new_enough_python_one_line_says_so(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, "setup", path=machine(tmp_path / "bin", python3="exit 1"))

    assert done.returncode == 1
    assert done.stderr == "run: Python 3.11 or newer is needed: apt-get install python3, or https://www.python.org/downloads/\n"


def test_a_missing_venv_module_is_named_with_the_command_that_installs_it(checkout: Path, tmp_path: Path) -> None:
    without_venv = f'case "$2" in *ensurepip*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac'

    done = run(checkout, "setup", path=machine(tmp_path / "bin", python3=without_venv))

    assert done.returncode == 1
    minor = sys.version_info.minor
    assert done.stderr.splitlines()[-1] == \
        f"run: the venv module of python3 is missing: apt-get install python3.{minor}-venv (or: pip install virtualenv)"


def test_virtualenv_is_used_where_present(checkout: Path, tmp_path: Path) -> None:
    # `virtualenv -q -p PYTHON FOLDER`; this one leaves a mark.
    virtualenv = f'"{sys.executable}" -m venv "$4" && : >"$4/made-by-virtualenv"'
    python = f'exec "{sys.executable}" "$@"'

    done = run(checkout, "setup", path=machine(tmp_path / "bin", python3=python, virtualenv=virtualenv))

    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv/made-by-virtualenv").exists()


def test_what_is_set_up_is_not_set_up_again_until_the_requirements_change(set_up: Path) -> None:
    unchanged = run(set_up, "setup")
    (set_up / "requirements.txt").write_text("pip\n# newer\n")
    changed = run(set_up, "setup")
    at_last = run(set_up, "setup")

    assert (unchanged.returncode, changed.returncode, at_last.returncode) == (0, 0, 0)
    assert unchanged.stderr == at_last.stderr == ""
    assert changed.stderr.startswith("run: installing requirements.txt\n")
    assert all("gen_certs.py" in done.stdout for done in (unchanged, changed, at_last))


def test_packages_that_cannot_be_installed_are_named_and_tried_again(set_up: Path) -> None:
    (set_up / "requirements.txt").write_text("there-is-no-such-package\n")
    failed = run(set_up, "setup")
    (set_up / "requirements.txt").write_text("pip\n")
    again = run(set_up, "setup")

    assert failed.returncode == 1
    assert "there-is-no-such-package" in failed.stderr
    assert "pip could not install requirements.txt" in failed.stderr.splitlines()[-1]
    assert again.returncode == 0, again.stderr
    assert "making .venv" not in again.stderr


def test_an_interrupted_set_up_is_made_anew(set_up: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_index:
        silent_index.settimeout(60)
        (set_up / "requirements.txt").write_text(
            f"--index-url http://127.0.0.1:{silent_index.getsockname()[1]}/\nthere-is-no-such-package\n")
        process = subprocess.Popen([str(set_up / "run"), "setup"], env={**environment(), "PIP_NO_INDEX": "0"},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        silent_index.accept()[0].close()  # now pip is at work
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    (set_up / "requirements.txt").write_text("pip\n")

    again = run(set_up, "setup")

    assert again.returncode == 0, again.stderr
    assert "making .venv" in again.stderr


def test_as_root_on_debian_the_missing_tools_of_the_tests_are_installed_at_once(set_up: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    path = machine(tmp_path / "bin", **{"id": "echo 0", "google-chrome": "", "strace": "", "apt-get": f'echo "$*" >>{asked}'})

    done = run(set_up, "test", path=path)

    assert done.returncode == 0, done.stderr
    assert "run: installing faketime iproute2\n" in done.stderr
    assert asked.read_text() == "-q update\n-q install -y --no-install-recommends faketime iproute2\n"
    assert done.stdout.splitlines()[-1] == f"in_parts.py {set_up}"


def test_tools_that_apt_cannot_install_are_named_and_the_tests_run_without_them(set_up: Path, tmp_path: Path) -> None:
    path = machine(tmp_path / "bin", **{"id": "echo 0", "apt-get": "echo no such host; exit 100"})

    done = run(set_up, "test", path=path)

    assert done.returncode == 0
    assert done.stderr.endswith("run: apt-get could not install chromium strace faketime iproute2, tests that need them will skip: "
                                "no such host\n")


def test_without_root_missing_tools_are_named_with_the_command_that_installs_them(set_up: Path, tmp_path: Path) -> None:
    done = run(set_up, "test", path=machine(tmp_path / "bin", id="echo 1000", chromium="", faketime="", ip="", **{"apt-get": "exit 1"}))

    assert done.returncode == 0
    assert done.stderr.endswith("run: not here: strace; tests that need them will skip (as root: apt-get install strace)\n")


def test_programs_run_in_the_callers_folder_with_all_their_arguments(set_up: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()

    done = run(set_up, "client", "submit", "a b", "*", cwd=elsewhere)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"client.py {elsewhere} submit a b *"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_checkout_that_is_not_writable_is_named(checkout: Path) -> None:
    checkout.chmod(stat.S_IRUSR | stat.S_IXUSR)

    done = run(checkout, "setup")

    checkout.chmod(stat.S_IRWXU)
    assert done.returncode == 1
    assert "is not writable" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("shell", ["dash", "sh", "bash"])
def test_any_posix_shell_can_read_it(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")

    done = subprocess.run([shell, str(ROOT / "run"), "help"], capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stderr) == (0, "")
