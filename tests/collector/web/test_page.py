from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from evenfleet_collector import web
from evenfleet_collector.store.rows import Balance
from fakes.apps import fake_app, stand_on
from fakes.stores import NOW_S, FakeStore, cell_row, device_row, flag_row, release_row


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return fake_app(FakeStore(), tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def store(app: FastAPI, tmp_path: Path) -> FakeStore:
    store = FakeStore()
    stand_on(app, store, tmp_path / "artifacts")
    return store


@pytest.fixture
def page(app: FastAPI) -> TestClient:
    return TestClient(app)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_empty_collector_says_how_to_begin(page: TestClient, store: FakeStore) -> None:
    assert "evenfleet release push DIR" in text_of(page.get("/").text)
    store.release_rows.append(release_row())
    assert "no device has reported on it yet" in text_of(page.get("/").text)


def test_page_shows_cells_flags_refusals_and_the_balance(page: TestClient, store: FakeStore) -> None:
    row = release_row("float32", "dynamic")
    store.release_rows.append(row)
    store.put_device(device_row("press-01"))
    store.put_cell(cell_row("press-01", "float32", row.release, verdict="outside", accuracy_delta=-0.031))
    store.put_cell(cell_row("press-01", "dynamic", row.release, refusal="operator version 12 is not supported"))
    store.flag_rows.append(flag_row(1, "press-01", "float32", row.release))
    store.balance = Balance(measured=1234, committed=1230, refused=1, lost=2, in_flight=1)
    store.dead = {"schema": 3}
    text = text_of(page.get("/").text)
    for told in (
        "▲ outside 1.31 ms p50 1.02 ms 97.2 % −3.1 pt 41.0 MB bit exact",
        "✕ refused operator version 12 is not supported",
        "litert 2.1.0 · xnnpack",
        "1,234 measured = 1,230 committed + 1 refused + 2 lost + 1 in flight",
        "press-01 · float32 · latency for 1 min, since 22:13:20 UTC",
        "3 messages could not be taken 3 × schema",
    ):
        assert told in text


def test_score_of_a_task_stands_below_the_share_of_right_samples(page: TestClient, store: FakeStore) -> None:
    row = release_row("float32")
    store.release_rows.append(row)
    store.put_cell(cell_row("a", "float32", row.release, accuracy_ratio=0.75, score_metric="mAP", score=0.52341))
    store.put_cell(cell_row("b", "float32", row.release, score_metric="RMSE", score=None))
    text = text_of(page.get("/").text)
    assert "75.0 % ±0 pt mAP 0.5234" in text
    assert "RMSE" not in text


def test_a_device_that_sleeps_is_said_to_for_a_day(page: TestClient, store: FakeStore) -> None:
    row = release_row()
    store.release_rows.append(row)
    for device, last_seen_s in (("asleep", NOW_S - 80_000), ("overdue", NOW_S - 90_000)):
        store.put_device(device_row(device, status="sleeping", last_seen_s=last_seen_s))
        store.put_cell(cell_row(device, "int8", row.release))
    text = text_of(page.get("/").text)
    assert "asleep litert 2.1.0 · xnnpack ☾ sleeping" in text
    assert text.count("sleeping") == 1


def test_what_comes_from_devices_is_text_on_the_page(page: TestClient, store: FakeStore) -> None:
    row = release_row()
    store.release_rows.append(row)
    hostile = '"><script>alert(1)</script>'
    store.put_cell(cell_row("a", "int8", row.release, reason=hostile, device_class=hostile))
    store.put_cell(cell_row("b", "int8", row.release, refusal=hostile))
    store.flag_rows.append(flag_row(1, "a", "int8", row.release, reason=hostile))
    assert "<script>alert" not in page.get("/").text
    assert page.get("/").text.count("&lt;script&gt;alert") >= 4


def test_release_is_chosen_by_the_start_of_its_digest(page: TestClient, store: FakeStore) -> None:
    old, new = release_row(model="old", pushed_s=NOW_S - 1), release_row(model="new")
    store.release_rows += [old, new]
    store.put_cell(cell_row("only-old", "int8", old.release))
    assert "only-old" not in page.get("/").text
    assert "only-old" in page.get("/", params={"release": old.release[:12]}).text
    assert "only-old" in page.get("/fragments/parity", params={"release": old.release}).text
    assert page.get("/").text.count("<option") == 2


def test_page_needs_nothing_from_elsewhere() -> None:
    folder = Path(web.__file__).parent
    sources = [*folder.glob("templates/*"), *folder.glob("static/*")]
    assert len(sources) >= 5
    for source in sources:
        found = re.findall(r"https?://[^\s\"']+", source.read_text(encoding="utf-8"))
        assert [url for url in found if url != "http://www.w3.org/2000/svg"] == [], source.name
        assert " style=" not in source.read_text(encoding="utf-8"), source.name  # the content policy would ignore it
