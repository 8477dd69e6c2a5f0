"""docs/walk.md is what the code does."""

from __future__ import annotations

import importlib
from functools import reduce
from pathlib import Path

from world.walk import Walk, render

PAGE = Path(__file__).parents[2] / "docs" / "walk.md"


def test_page_shows_what_happens(tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8") == render(tmp_path), "PYTHONPATH=tests python -m world.walk > docs/walk.md"


def test_every_hop_names_functions_that_exist(tmp_path: Path) -> None:
    for hop in Walk(tmp_path).hops():
        for function in hop.functions:
            module, name = function.split(":")
            assert reduce(getattr, name.split("."), importlib.import_module(module)) is not None
