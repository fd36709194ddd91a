"""docs/states.md draws the table of moves."""

from __future__ import annotations

import re
from pathlib import Path

from greenroom.job import MOVES, STATE_BY_LABEL

TEXT = (Path(__file__).parents[2] / "docs" / "states.md").read_text(encoding="utf-8")


def test_the_picture_has_the_moves_of_the_table_and_no_others() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", TEXT, re.MULTILINE))

    assert drawn == {(state.label, to.label) for state, moves in MOVES.items() for to in moves}


def test_every_state_is_explained() -> None:
    assert re.findall(r"^\| (\w+) \|", TEXT, re.MULTILINE)[1:] == list(STATE_BY_LABEL)
