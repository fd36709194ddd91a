"""docs/reliability.md names every line of the reliability plan, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text()
#: How many lines of each kind there are; a number never changes its meaning, so new ones go to the end.
LINES = {"I": 26, "L": 4, "R": 4, "F": 50, "G": 21}
ROW = re.compile(r"^\| ([ILRFG]\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TEST = re.compile(r"`((?:unit|stores|integration|fuzz|simulation|faults)/test_\w+\.py)(?:::(\w+))?`")


def test_every_line_has_a_row_of_its_own_in_order() -> None:
    rows = [row[0] for row in ROW.findall(TEXT)]

    assert rows == [f"{kind}{number}" for kind, count in LINES.items() for number in range(1, count + 1)]


@pytest.mark.parametrize("line, what, tests, outcome", ROW.findall(TEXT), ids=lambda value: value if len(value) < 4 else "")
def test_a_row_names_tests_that_exist_or_says_why_there_is_none(line: str, what: str, tests: str, outcome: str) -> None:
    named = TEST.findall(tests)

    assert named or tests == "—" and len(outcome) > 10, f"{line} has neither a test nor a reason"
    assert outcome.strip(" -—"), f"{line} has no outcome"
    for path, name in named:
        source = ROOT / "tests" / path
        assert source.is_file(), f"{line}: there is no tests/{path}"
        assert not name or re.search(rf"^def {name}\(", source.read_text(), re.MULTILINE), f"{line}: no {name} in tests/{path}"
