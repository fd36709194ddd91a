"""docs/features.md names verbs, options, routes and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from greenroom.job import OPTIONS
from greenroom.protocol import VERBS

ROOT = Path(__file__).parents[2]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (ROOT / "docs/features.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| feature")]
ROUTES = (ROOT / "docs/rest.md").read_text(encoding="utf-8")
NOTICES = {"cancel", "drain"}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_row_names_what_there_is(row: list[str]) -> None:
    feature, wire, _, _, rest, _, _, tests = row

    for word in re.findall(r"`(\w+)`", wire):
        assert word in VERBS or word in OPTIONS or word in NOTICES, f"{feature}: no verb or option {word}"
    for route in re.findall(r"/api/[\w/<>]*", rest):
        assert route in ROUTES, f"{feature}: no route {route}"
    for test in re.findall(r"`([\w/]+\.py)`", tests):
        assert (ROOT / "tests" / test).exists(), f"{feature}: no test {test}"


def test_every_option_of_a_job_that_is_not_plain_has_a_row() -> None:
    text = " ".join(" ".join(row) for row in ROWS)

    for name in ("attempts", "expires_in", "timeout", "soft_timeout", "unique_key", "on_duplicate", "debounce_max", "keep_for"):
        assert name in OPTIONS and name in text
