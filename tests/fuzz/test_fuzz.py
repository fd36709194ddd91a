"""The parsers under a coverage-guided fuzzer, for seconds each; its seeds and all that it ever found, every time."""

from __future__ import annotations

import platform
import subprocess
import sys
import time

import pytest

from tests.conftest import skip_or_fail
from tests.fuzz import fuzz, seeds
from tests.fuzz.targets import TARGETS

#: For each target, in the everyday run. Two run at a time.
SECONDS = {"frames": 12, "requests": 12, "configuration": 10, "answers": 6, "large_frames": 6, "http_head": 6, "rest": 6}
LONG_SECONDS = 600
#: Far below what a slow machine does; a fuzzer that stands still would pass everything.
MIN_INPUTS_PER_S = 20


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_holds_for_its_seeds_and_for_cuts_of_them(target: str) -> None:
    for seed in seeds.seeds(target):
        for data in (seed, seed + seed, seed[:-1], seed[len(seed) // 2:], b""):
            TARGETS[target](data)


@pytest.mark.parametrize("target, data, what", seeds.REGRESSIONS, ids=[what for _, _, what in seeds.REGRESSIONS])
def test_what_failed_once_fails_no_more(target: str, data: bytes, what: str) -> None:
    TARGETS[target](data)


def test_every_target_is_fuzzed_in_the_everyday_run() -> None:
    assert set(SECONDS) == set(TARGETS)


def skip_without_atheris() -> None:
    if fuzz.is_possible():
        return
    if (sys.implementation.name, sys.version_info[:2], sys.platform, platform.machine()) == ("cpython", (3, 11), "linux", "x86_64"):
        skip_or_fail("atheris is not installed: pip install -r requirements-test.txt")
    pytest.skip("the only wheel of atheris is for CPython 3.11 on Linux x86-64")


def check_reports(seconds: dict[str, int]) -> None:
    skip_without_atheris()
    reports = fuzz.fuzz(seconds)

    assert not any(report.failed for report in reports), "\n".join(map(str, reports))
    assert {report.target for report in reports} == set(seconds)
    for report in reports:
        assert report.inputs >= MIN_INPUTS_PER_S * seconds[report.target], str(report)


@pytest.mark.timeout(300)
def test_seconds_of_fuzzing_find_nothing() -> None:
    check_reports(SECONDS)


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS * len(SECONDS))
def test_ten_minutes_of_fuzzing_each_find_nothing() -> None:
    check_reports({target: LONG_SECONDS for target in TARGETS})


#: An errors.from_wire that takes for granted that there is a code: nearly any change of a seed's bytes there shows it.
PLANTED = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
from greenroom import errors
checked = errors.from_wire
def from_wire(error):
    if isinstance(error, dict):
        error["code"]
    return checked(error)
errors.from_wire = from_wire
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_fuzzer_finds_a_planted_bug_and_tells_the_input() -> None:
    skip_without_atheris()
    child = fuzz.Child("answers", 60, prefix=["-c", PLANTED, str(fuzz.ROOT)])
    try:
        while not child.is_over():
            time.sleep(fuzz.LOOK_EVERY_S)
        report = child.report()
    finally:
        child.end()

    assert "KeyError" in report.failed and "\ncrash-" in report.failed, str(report)


def test_the_command_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([sys.executable, fuzz.__file__, "nonsense"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2 and "no target nonsense" in done.stderr
