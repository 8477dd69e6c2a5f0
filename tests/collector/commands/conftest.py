from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from evenfleet_collector import cli
from fakes.apps import served
from fakes.stores import FakeStore


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def collector(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served(store, tmp_path / "artifacts") as url:
        monkeypatch.setenv("EVENFLEET_URL", url)
        yield url


@pytest.fixture
def evenfleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["evenfleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capsys.readouterr())

    return run
