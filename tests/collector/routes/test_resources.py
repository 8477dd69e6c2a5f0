from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from evenfleet_collector.store.rows import AppWindowRow, CommandRow, ReleaseRow, WindowRow
from evenfleet_shared import signature as signatures
from evenfleet_shared.messages import AppWindow, Conditions, Incarnation, Window
from evenfleet_shared.signature import PrivateKey
from fakes.stores import NOW_S, FakeStore, cell_row, command_row, device_row, event_row, flag_row, release_row
from fakes.uplink import app_window, reply


def window_row(number: int, device: str = "press-01", variant: str = "int8") -> WindowRow:
    window = Window(
        device=device,
        incarnation=Incarnation(1, "00c0ffee"),
        seq=number,
        floor=1,
        release="a" * 64,
        variant=variant,
        artifact="b" * 64,
        context="c" * 64,
        length_s=1.0,
        ended_uptime_s=1.0,
        ended_wall_s=0.0,
        runner_start=0,
    )
    return WindowRow(id=number, received_s=NOW_S + number, backfill=False, window=window)


def pages(client: TestClient, path: str, page_size: int, **filters: str) -> list[list[Any]]:
    found = []
    parameters = {**filters, "page_size": str(page_size)}
    while True:
        body = client.get(path, params=parameters).raise_for_status().json()
        found.append(body["items"])
        if body["next_page_token"] is None:
            return found
        parameters["page_token"] = body["next_page_token"]


def test_devices_come_in_pages_that_neither_repeat_nor_leave_out(client: TestClient, store: FakeStore) -> None:
    for number in range(7):
        store.put_device(device_row(f"press-{number}"))
    found = pages(client, "/api/v1/devices", 3)
    assert [len(page) for page in found] == [3, 3, 1]
    assert [row["device"] for page in found for row in page] == [f"press-{number}" for number in range(7)]


def test_device_that_appears_between_two_pages_repeats_none(client: TestClient, store: FakeStore) -> None:
    for name in ("b", "c", "d"):
        store.put_device(device_row(name))
    first = client.get("/api/v1/devices?page_size=2").json()
    store.put_device(device_row("a"))
    second = client.get("/api/v1/devices", params={"page_token": first["next_page_token"]}).json()
    assert [row["device"] for row in second["items"]] == ["d"]


def test_devices_are_filtered_by_verdict(client: TestClient, store: FakeStore) -> None:
    for number in range(250):
        store.put_device(device_row(f"d{number:03}", verdict="outside" if number in {7, 249} else "within"))
    body = client.get("/api/v1/devices?verdict=outside").json()
    assert [row["device"] for row in body["items"]] == ["d007", "d249"]
    assert body["next_page_token"] is None


def test_one_device_is_the_stores_row(client: TestClient, store: FakeStore) -> None:
    row = device_row("press-01")
    store.put_device(row)
    assert client.get("/api/v1/devices/press-01").json() == msgspec.to_builtins(row)


def test_enrolment_gives_the_token_once(client: TestClient) -> None:
    first = client.post("/api/v1/devices", json={"device": "press-01"})
    assert (first.status_code, first.json()) == (201, {"device": "press-01", "token": "token-of-press-01"})
    again = client.post("/api/v1/devices", json={"device": "press-01"})
    assert again.status_code == 409
    assert "enrolled already" in again.json()["detail"]


def test_windows_are_those_received_in_the_half_open_time(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    store.window_rows += [window_row(number) for number in range(1, 6)]
    body = client.get(
        "/api/v1/devices/press-01/windows",
        params={"start": "2023-11-14T22:13:22Z", "end": "2023-11-14T23:13:24+01:00"},
    ).json()
    assert [row["id"] for row in body["items"]] == [2, 3]


def test_windows_are_the_messages_that_devices_sent(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    store.window_rows += [window_row(1), window_row(2, variant="float32"), window_row(3)]
    found = pages(client, "/api/v1/devices/press-01/windows", 1, variant="int8")
    assert [row["id"] for page in found for row in page] == [1, 3]
    assert msgspec.convert(found[0][0]["window"], Window) == window_row(1).window


@pytest.fixture
def apps(store: FakeStore) -> list[AppWindowRow]:
    store.put_device(device_row("press-01"))
    sent = [app_window(1), app_window(2, app="counting"), app_window(3), app_window(4, device="press-02")]
    store.app_window_rows += [
        AppWindowRow(id=row.seq, received_s=NOW_S + row.seq, backfill=False, window=row) for row in sent
    ]
    return store.app_window_rows


def test_windows_of_applications_come_in_pages_and_are_filtered(client: TestClient, apps: list[AppWindowRow]) -> None:
    path = "/api/v1/devices/press-01/apps"
    assert [[row["id"] for row in page] for page in pages(client, path, 2)] == [[1, 2], [3]]
    assert [row["id"] for page in pages(client, path, 1, app="inspection") for row in page] == [1, 3]
    start = {"start": "2023-11-14T22:13:22Z"}
    assert [row["id"] for row in client.get(path, params=start).json()["items"]] == [2, 3]
    body = client.get(path).json()["items"][0]["window"]
    assert msgspec.convert(body, AppWindow) == apps[0].window


def test_newest_window_of_each_application_can_be_asked_for(client: TestClient, apps: list[AppWindowRow]) -> None:
    path = "/api/v1/devices/press-01/apps"
    assert [[row["id"] for row in page] for page in pages(client, path, 1, newest="true")] == [[2], [3]]
    assert [row["id"] for row in client.get(path, params={"newest": "true", "app": "counting"}).json()["items"]] == [2]


@pytest.mark.usefixtures("apps")
def test_applications_of_a_device_that_is_not_known_are_not_found(client: TestClient) -> None:
    assert client.get("/api/v1/devices/press-99/apps").status_code == 404
    assert client.get("/api/v1/devices/press-01/apps?application=x").status_code == 422


def test_releases_are_listed_newest_first_and_found_by_their_start(client: TestClient, store: FakeStore) -> None:
    old, new = release_row(model="old", pushed_s=1.0), release_row(model="new", pushed_s=2.0)
    store.release_rows += [old, new]
    assert [row["model"] for page in pages(client, "/api/v1/releases", 1) for row in page] == ["new", "old"]
    assert msgspec.json.decode(client.get(f"/api/v1/releases/{old.release[:8]}").content, type=ReleaseRow) == old


@pytest.fixture
def fleet(store: FakeStore) -> str:
    row = release_row()
    store.release_rows.append(row)
    for device, p95_ms in (("a", 3.0), ("b", 1.0), ("c", None), ("d", 2.0)):
        store.put_cell(cell_row(device, "int8", row.release, p95_ms=p95_ms))
    store.put_cell(cell_row("a", "float32", row.release, p95_ms=9.0, verdict="outside"))
    return row.release


def test_parity_is_of_the_latest_release(client: TestClient, store: FakeStore, fleet: str) -> None:
    older = release_row(model="older", pushed_s=0.0)
    store.release_rows.append(older)
    store.put_cell(cell_row("z", "int8", older.release))
    body = client.get("/api/v1/parity").json()
    assert body["release"] == fleet
    assert {cell["device"] for cell in body["items"]} == {"a", "b", "c", "d"}
    assert [cell["device"] for cell in client.get(f"/api/v1/parity?release={older.release}").json()["items"]] == ["z"]


@pytest.mark.usefixtures("fleet")
def test_parity_sorts_the_slowest_first_and_the_unmeasured_last(client: TestClient) -> None:
    found = pages(client, "/api/v1/parity", 2, sort="-p95_ms")
    assert [cell["p95_ms"] for page in found for cell in page] == [9.0, 3.0, 2.0, 1.0, None]


@pytest.mark.usefixtures("fleet")
def test_parity_is_filtered(client: TestClient) -> None:
    body = client.get("/api/v1/parity?verdict=outside&device=a").json()
    assert [(cell["device"], cell["variant"]) for cell in body["items"]] == [("a", "float32")]


def test_parity_without_any_release_is_empty(client: TestClient) -> None:
    assert client.get("/api/v1/parity").json() == {"release": None, "model": None, "items": [], "next_page_token": None}


def test_flags_are_open_ones_with_evidence_as_json(client: TestClient, store: FakeStore) -> None:
    store.flag_rows += [flag_row(1, "a", "int8", "f" * 64, cleared_s=NOW_S + 5), flag_row(2, "b", "int8", "f" * 64)]
    body = client.get("/api/v1/flags").json()
    assert [flag["id"] for flag in body["items"]] == [2]
    assert body["items"][0]["evidence"]["steps"][0]["increment"] == 8.5
    assert len(client.get("/api/v1/flags?cleared=true").json()["items"]) == 2
    assert client.get("/api/v1/flags?device=a").json()["items"] == []
    assert client.get("/api/v1/flags/1").json()["cleared_s"] == NOW_S + 5


def test_assignment_takes_the_start_of_a_digest(client: TestClient, store: FakeStore) -> None:
    row = release_row()
    store.release_rows.append(row)
    answer = client.put("/api/v1/assignments/*", json={"release": row.release[:6]})
    assert answer.json() == {"device": "*", "release": row.release}
    assert client.get("/api/v1/assignments").json()["items"] == [{"device": "*", "release": row.release}]
    client.put("/api/v1/assignments/*", json={"release": None}).raise_for_status()
    assert store.assigned == {"*": None}


@pytest.mark.parametrize("named", ["digest", "start", "tag"])
def test_tag_is_moved_to_a_release_however_that_is_named(client: TestClient, store: FakeStore, named: str) -> None:
    old, new = release_row(model="old"), release_row(model="new")
    store.release_rows += [old, new]
    client.put("/api/v1/tags/canary", json={"release": new.release}).raise_for_status()
    client.put("/api/v1/tags/prod", json={"release": old.release}).raise_for_status()
    word = {"digest": new.release, "start": new.release[:8], "tag": "canary"}[named]

    moved = client.put("/api/v1/tags/prod", json={"release": word})

    assert moved.json() == {"tag": "prod", "release": new.release, "tagged_s": NOW_S}
    assert client.get("/api/v1/tags/prod").json() == moved.json()
    assert [row["tag"] for page in pages(client, "/api/v1/tags", 1) for row in page] == ["canary", "prod"]
    moves = [row for page in pages(client, "/api/v1/tags/prod/moves", 1) for row in page]
    assert [(row["before"], row["release"]) for row in moves] == [(None, old.release), (old.release, new.release)]
    assert client.get(f"/api/v1/releases/{new.release}").json()["tags"] == ["canary", "prod"]


def test_tag_stands_for_its_release_wherever_one_is_named(client: TestClient, store: FakeStore, fleet: str) -> None:
    store.release_rows.append(release_row(model="newer", pushed_s=NOW_S + 1))
    client.put("/api/v1/tags/prod", json={"release": fleet}).raise_for_status()
    assert client.get("/api/v1/releases/prod").json()["release"] == fleet
    assert client.get("/api/v1/parity?release=prod").json()["release"] == fleet
    assert client.put("/api/v1/assignments/*", json={"release": "prod"}).json()["release"] == fleet
    assert fleet[:12] in client.get("/?release=prod").text
    for path in ("/api/v1/releases/prod", "/api/v1/parity?release=prod", "/?release=prod"):
        client.delete("/api/v1/tags/prod")
        assert client.get(path).status_code == 404
    assert store.assigned == {"*": fleet}


def test_tag_that_is_taken_away_is_gone_once(client: TestClient, store: FakeStore) -> None:
    store.release_rows.append(release_row())
    client.put("/api/v1/tags/prod", json={"release": store.release_rows[0].release}).raise_for_status()
    assert client.delete("/api/v1/tags/prod").status_code == 204
    again = client.delete("/api/v1/tags/prod")
    assert again.status_code == 404
    assert "no tag 'prod' here" in again.json()["detail"]
    assert len(client.get("/api/v1/tags/prod/moves").json()["items"]) == 2


@pytest.mark.parametrize("tag", ["beef", "abc", "0", "Prod", ".x", "x" * 64, "a b"])
def test_tag_that_could_be_a_digest_is_refused(client: TestClient, store: FakeStore, tag: str) -> None:
    store.release_rows.append(release_row())
    answer = client.put(f"/api/v1/tags/{tag}", json={"release": store.release_rows[0].release})
    assert answer.status_code == 422
    assert "not hexadecimal digits alone, which stand for a digest" in answer.json()["detail"]
    assert store.tag_rows == {}


def test_signature_is_kept_and_served_as_it_was_made(client: TestClient, store: FakeStore) -> None:
    row = release_row()
    store.release_rows.append(row)
    made = PrivateKey(bytes(32)).sign(row.release)
    url = f"/api/v1/releases/{row.release[:8]}/signatures/{made.key}"
    answer = client.put(url, content=signatures.encode(made))
    assert answer.status_code == 200
    shown = client.get(f"/api/v1/releases/{row.release}").json()
    assert shown == answer.json()
    assert shown["signatures"] == [msgspec.to_builtins(made)]


def test_signature_of_something_else_is_refused(client: TestClient, store: FakeStore) -> None:
    row = release_row()
    store.release_rows.append(row)
    key = PrivateKey(bytes(32))
    url = f"/api/v1/releases/{row.release}/signatures/"
    good = signatures.encode(key.sign(row.release))
    for path, payload in (
        (url + key.public.id, signatures.encode(key.sign("0" * 64))),
        (url + "0" * 64, good),
        (url + key.public.id, good + b" "),
        (url + key.public.id, b"{}"),
        (url + "0" * 63, good),
    ):
        answer = client.put(path, content=payload)
        assert answer.status_code == 422
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.put(f"/api/v1/releases/{'0' * 64}/signatures/{key.public.id}", content=good).status_code == 404
    assert store.release_rows[0].signatures == ()


def test_policy_is_replaced_and_shown_as_it_now_stands(client: TestClient) -> None:
    answer = client.put("/api/v1/policies", json={"latency": {"margin_ratio": 0.25}})
    assert answer.json()["latency"]["margin_ratio"] == 0.25
    assert answer.json()["revision"] == 2
    assert client.get("/api/v1/policies").json() == answer.json()


def test_stats_hold_the_loss_balance(client: TestClient) -> None:
    assert client.get("/api/v1/stats").json()["balance"] == {
        "measured": 0,
        "committed": 0,
        "refused": 0,
        "lost": 0,
        "in_flight": 0,
    }


def test_every_answer_is_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"CellRow", "DeviceRow", "Manifest", "Policy", "Signature", "Window"} <= described["components"][
        "schemas"
    ].keys()
    assert {f"/api/v1/{name}" for name in ("devices", "parity", "flags", "policies", "stats", "stream")} <= described[
        "paths"
    ].keys()


def test_windows_tell_what_they_were_measured_under(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    row = window_row(1)
    row = replace(row, window=replace(row.window, conditions=Conditions(steal_ratio=0.25), comparability="0" * 16))
    store.window_rows.append(row)
    (found,) = client.get("/api/v1/devices/press-01/windows").json()["items"]
    assert found["window"]["conditions"]["steal_ratio"] == 0.25
    assert msgspec.convert(found["window"], Window) == row.window


def test_events_come_in_pages_in_either_order(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    store.event_rows += [event_row(1, "press-01"), event_row(2, "other"), *(event_row(n, "press-01") for n in (3, 4))]
    assert [row["id"] for page in pages(client, "/api/v1/devices/press-01/events", 2) for row in page] == [1, 3, 4]
    newest = pages(client, "/api/v1/devices/press-01/events", 2, sort="-id")
    assert [[row["id"] for row in page] for page in newest] == [[4, 3], [1]]
    assert newest[0][0]["event"] == "clock-jumped"
    assert client.get("/api/v1/devices/press-99/events").status_code == 404
    assert client.get("/api/v1/devices/press-01/events?sort=detail").status_code == 422


def test_command_is_kept_for_its_device_and_shown_with_its_answer(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    made = client.post("/api/v1/devices/press-01/commands", json={"command": "measure", "variant": "int8", "ttl_s": 60})
    assert made.status_code == 201
    row = made.json()
    assert (row["state"], row["command"], row["variant"], row["ttl_s"]) == ("waiting", "measure", "int8", 60.0)

    answered = replace(store.command_rows[0], state="done", reply=reply(row["correlation_id"], seqs=(7,)))
    store.command_rows[0] = answered
    shown = client.get(f"/api/v1/devices/press-01/commands/{row['correlation_id']}")
    assert msgspec.json.decode(shown.content, type=CommandRow) == answered


def test_commands_come_in_pages(client: TestClient, store: FakeStore) -> None:
    store.put_device(device_row("press-01"))
    store.command_rows += [command_row(n, "press-01" if n != 2 else "other") for n in (1, 2, 3, 4)]
    assert [row["id"] for page in pages(client, "/api/v1/devices/press-01/commands", 2) for row in page] == [1, 3, 4]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"command": "measure"}, "ttl_s: expected a value"),
        ({"command": "explode", "ttl_s": 60}, "expected 'measure', 'restart-runner' or 'layers', found 'explode'"),
        ({"command": "measure", "ttl_s": 0}, "body: ttl_s: expected a number above 0.0, found 0.0; nothing was sent"),
        ({"command": "measure", "ttl_s": 604_801}, "body: ttl_s: expected a number of at most 604800.0"),
        ({"command": "measure", "ttl_s": "soon"}, "found 'soon'"),
        ({"command": "measure", "ttl_s": 60, "variant": "a b"}, "body: variant: expected a text that matches"),
        ({"command": "measure", "ttl_s": 60, "shell": "x"}, "found 'shell'"),
    ],
)
def test_command_that_is_none_is_refused_and_not_kept(
    client: TestClient, store: FakeStore, body: dict[str, Any], told: str
) -> None:
    store.put_device(device_row("press-01"))
    refused = client.post("/api/v1/devices/press-01/commands", json=body)
    assert refused.status_code == 422
    assert told in refused.json()["detail"]
    assert store.command_rows == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_command_for_no_finite_time_is_refused(client: TestClient, store: FakeStore, number: str) -> None:
    store.put_device(device_row("press-01"))
    body = f'{{"command": "measure", "ttl_s": {number}}}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/v1/devices/press-01/commands", content=body, headers=headers).status_code == 422
    assert store.command_rows == []


def test_command_to_or_of_a_stranger_is_not_found(client: TestClient, store: FakeStore) -> None:
    body = {"command": "measure", "ttl_s": 60}
    assert client.post("/api/v1/devices/press-99/commands", json=body).status_code == 404
    assert client.get("/api/v1/devices/press-99/commands").status_code == 404
    store.put_device(device_row("press-01"))
    assert client.get("/api/v1/devices/press-01/commands/c1").status_code == 404
