from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.apps import served
from fakes.stores import FakeStore, cell_row, release_row

RELEASE = release_row().release


@pytest.fixture
def url(store: FakeStore, tmp_path: Path) -> Iterator[str]:
    with served(store, tmp_path / "artifacts") as url:
        yield f"{url}/api/v1/stream"


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    fields: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in {"event", "id", "data"}:
            fields[name] = value
        elif not line and "data" in fields:
            yield {**fields, "data": json.loads(fields["data"])}
            fields = {}


def test_change_of_a_cell_is_told_with_its_version(url: str, store: FakeStore) -> None:
    store.put_cell(cell_row("a", "int8", RELEASE))
    with httpx.stream("GET", url, timeout=10) as response:
        lines = response.iter_lines()
        assert next(lines) == ": following"
        store.put_cell(cell_row("b", "int8", RELEASE, verdict="outside"))
        told = next(events(lines))
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert (told["event"], told["id"]) == ("cells", "2")
    assert [(cell["device"], cell["verdict"]) for cell in told["data"]] == [("b", "outside")]


@pytest.mark.parametrize("how", ["header", "parameter", "both"])
def test_reader_that_comes_back_is_told_what_it_missed(url: str, store: FakeStore, how: str) -> None:
    for device in ("a", "b", "c"):
        store.put_cell(cell_row(device, "int8", RELEASE))
    headers = {} if how == "parameter" else {"Last-Event-ID": "1"}
    parameters = {"parameter": {"after_version": 1}, "both": {"after_version": 0}}.get(how, {})
    with httpx.stream("GET", url, timeout=10, headers=headers, params=parameters) as response:
        told = next(events(response.iter_lines()))
    assert [cell["device"] for cell in told["data"]] == ["b", "c"]
    assert told["id"] == "3"


def test_id_of_another_store_starts_anew(url: str, store: FakeStore) -> None:
    store.put_cell(cell_row("a", "int8", RELEASE))
    with httpx.stream("GET", url, timeout=10, headers={"Last-Event-ID": "900"}) as response:
        told = next(events(response.iter_lines()))
    assert [cell["device"] for cell in told["data"]] == ["a"]


def test_server_that_ends_does_not_wait_for_its_streams(store: FakeStore, tmp_path: Path) -> None:
    following = threading.Event()

    def follow(url: str) -> None:
        with httpx.stream("GET", url, timeout=30) as response:
            for _ in response.iter_lines():
                following.set()

    with served(store, tmp_path / "artifacts") as url:
        reader = threading.Thread(target=follow, args=(f"{url}/api/v1/stream",))
        reader.start()
        assert following.wait(10)
        began = time.monotonic()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert time.monotonic() - began < 2
