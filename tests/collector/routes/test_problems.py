from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evenfleet_collector.routes import HealthSnapshot
from evenfleet_collector.routes.guard import MAX_BODY_BYTES
from fakes.apps import fake_app
from fakes.stores import FakeStore, release_row


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/api/v1/nothing", 404, "GET /api/v1/nothing is not answered here"),
        ("/api/v1/devices/press-99", 404, "no device 'press-99'"),
        ("/api/v1/devices/press-99/windows", 404, "no device 'press-99'"),
        ("/api/v1/devices/Press%2099", 422, "path device: expected 1 to 63 of a-z, 0-9 and '-'"),
        ("/api/v1/devices?verdct=outside", 422, "query verdct: expected a known parameter"),
        ("/api/v1/devices?verdict=bad", 422, "found 'bad'"),
        ("/api/v1/devices?page_size=0", 422, "query page_size: expected greater than or equal to 1, found '0'"),
        ("/api/v1/devices?page_size=1001", 422, "less than or equal to 1000"),
        ("/api/v1/devices?page_token=%F0%9F%98%80", 400, "page_token"),
        ("/api/v1/devices?page_token=bm90IGpzb24", 400, "page_token"),
        ("/api/v1/flags?page_token=ImEi", 400, "page_token"),
        ("/api/v1/flags?page_token=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", 400, "page_token"),  # 999999999999999999999
        ("/api/v1/flags?page_token=LTE", 400, "page_token"),  # -1
        ("/api/v1/flags/0", 422, "path flag"),
        ("/api/v1/flags/7", 404, "no flag '7'"),
        ("/api/v1/flags?start=yesterday", 422, "query start"),
        ("/api/v1/flags?start=2026-01-01T00:00:00", 422, "timezone"),
        ("/api/v1/releases/26", 422, "path release: expected a tag, a release's digest, or at least 4 hexadecimal"),
        (
            "/api/v1/parity?release=26",
            422,
            "query release: expected a tag, a release's digest, or at least 4 hexadecimal",
        ),
        ("/api/v1/artifacts/xyz", 422, "path sha256: expected a sha256 of 64 hexadecimal digits"),
        ("/api/v1/releases/abcdef", 404, "no single release 'abcdef'"),
        ("/api/v1/parity?release=abcdef", 404, "no single release 'abcdef'"),
        ("/api/v1/parity?sort=colour", 422, "query sort"),
        ("/api/v1/stream?after_version=-1", 422, "query after_version"),
        ("/?release=abcdef", 404, "no single release 'abcdef'"),
        ("/static/../page.py", 404, "is not answered here"),
    ],
)
def test_bad_question_is_a_problem_that_says_what_is_wrong(
    client: TestClient, path: str, status: int, told: str
) -> None:
    _assert_problem(client.get(path), status, told)
    _assert_listed(client, "get", path, status)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("DELETE", "/api/v1/stats", b"", 405, "DELETE /api/v1/stats"),
        ("POST", "/api/v1/devices", b"{", 422, "body: expected JSON, found Expecting property name"),
        ("POST", "/api/v1/devices", b'{"device": "\xff"}', 400, "body: expected JSON in UTF-8"),
        ("POST", "/api/v1/devices", b"[" * 100_000, 400, "body: expected JSON in UTF-8"),
        ("POST", "/api/v1/devices", b"[]", 422, "body"),
        ("POST", "/api/v1/devices", b"{}", 422, "body device: expected a value, found none"),
        ("POST", "/api/v1/devices", b'{"device": "Press 7"}', 422, "found 'Press 7'"),
        ("POST", "/api/v1/releases", b"\xff\xfe", 422, "not a release manifest"),
        ("POST", "/api/v1/releases", b"{}", 422, "not a release manifest"),
        ("PUT", "/api/v1/assignments/*", b'{"release": "abcdef"}', 404, "no single release"),
        ("PUT", "/api/v1/assignments/a.b", b'{"release": null}', 422, "path device"),
        ("PUT", "/api/v1/assignments/ghost", b'{"release": null}', 409, "not enrolled"),
        ("PUT", "/api/v1/policies", b"\xff", 400, "expected a policy as JSON"),
        ("PUT", "/api/v1/policies", b"[" * 100_000, 400, "expected a policy as JSON"),
        ("PUT", "/api/v1/policies", b"[]", 422, "expected a table of settings, found"),
        ("PUT", "/api/v1/policies", b'{"min_windows": 0}', 422, "min_windows: expected a whole number of at least 1"),
        ("PUT", "/api/v1/policies", b'{"latency": {"quantile": "x"}}', 422, "latency.quantile: expected a number, fo"),
        ("POST", "/api/v1/devices", b'{"device": "a", "clas": "b"}', 422, "body clas: expected a known field"),
        ("PUT", "/api/v1/assignments/*", b'{"release": "26"}', 422, "at least 4 hexadecimal digits of its start, fou"),
        ("PUT", "/api/v1/assignments/*", b'{"release": ""}', 422, "at least 4 hexadecimal digits of its start, found"),
        ("PUT", "/api/v1/policies", b'{"latency": {"margin": 1}}', 422, "unknown setting latency.margin"),
    ],
)
def test_bad_edit_is_a_problem_and_changes_nothing(
    client: TestClient, store: FakeStore, method: str, path: str, body: bytes, status: int, told: str
) -> None:
    before = store.policy()
    response = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    _assert_problem(response, status, told)
    _assert_listed(client, method.lower(), path, status)
    assert (store.device_rows, store.assigned, store.policy()) == ({}, {}, before)


def test_openapi_tells_of_every_error_as_a_problem(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"Problem", "Fault"} <= schema["components"]["schemas"].keys()
    assert "HTTPValidationError" not in str(schema)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "421" in operation["responses"]
            for status, said in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert said["content"].keys() == {"application/problem+json"}


def test_body_of_another_kind_is_told_what_is_expected_and_not_how_it_is_called_inside(client: TestClient) -> None:
    response = client.post("/api/v1/devices", content=b'{"device": "a"}', headers={"Content-Type": "text/plain"})
    _assert_problem(response, 422, "body: expected a JSON object, sent as application/json, found")
    assert "NewDevice" not in response.text


def test_release_whose_artifacts_are_not_here_is_refused(client: TestClient) -> None:
    import msgspec

    response = client.post("/api/v1/releases", content=msgspec.json.encode(release_row().manifest))
    _assert_problem(response, 422, "is not here yet")


@pytest.mark.parametrize("announced", [True, False])
def test_body_that_is_too_large_is_refused(client: TestClient, announced: bool) -> None:
    payload = bytes(MAX_BODY_BYTES + 1)
    content = payload if announced else iter([payload[: 1 << 20], payload[1 << 20 :]])
    _assert_problem(client.put("/api/v1/policies", content=content), 413, "at most 8,388,608 bytes")


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("testserver", True),
        ("TestServer.:8080", True),
        ("localhost:8080", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("10.1.2.3:8080", True),
        ("rebound.example", False),
        ("rebound.example:8080", False),
        ("127.0.0.1.rebound.example", False),
        ("testserver.rebound.example", False),
        ("rebound.example@127.0.0.1", False),
        ("testserver:port", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_name_that_is_not_this_servers_is_refused_for_a_page_may_have_rebound_it(
    client: TestClient, store: FakeStore, host: str, let_in: bool
) -> None:
    response = client.post("/api/v1/devices", json={"device": "a"}, headers={"Host": host, "Origin": f"http://{host}"})
    if let_in:
        assert response.status_code == 201
        return
    _assert_problem(response, 421, "--allowed-host")
    assert store.device_rows == {}


def test_page_of_another_origin_cannot_change_anything(client: TestClient, store: FakeStore) -> None:
    response = client.post("/api/v1/devices", json={"device": "a"}, headers={"Origin": "https://evil.example"})
    _assert_problem(response, 403, "evil.example")
    assert store.device_rows == {}
    own = client.post("/api/v1/devices", json={"device": "a"}, headers={"Origin": "http://testserver"})
    assert own.status_code == 201


@pytest.mark.parametrize("path", ["/", "/api/v1/stats", "/api/v1/nothing", "/static/page.css"])
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/api/v1/stats", "/api/v1/devices"])
def test_head_of_what_can_be_got_is_answered(client: TestClient, path: str) -> None:
    """Monitors ask so."""
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


def test_head_of_a_stream_is_refused_for_it_has_no_end(client: TestClient) -> None:
    assert client.head("/api/v1/stream").status_code == 405


def test_failure_inside_tells_the_network_nothing_of_it(tmp_path: Path) -> None:
    class Broken(FakeStore):
        def stats(self) -> Any:
            raise ZeroDivisionError("secret")

    client = TestClient(fake_app(Broken(), tmp_path), raise_server_exceptions=False)
    response = client.get("/api/v1/stats")
    _assert_problem(response, 500, "its log says at what")
    assert "secret" not in response.text


def test_readiness_names_its_reasons(tmp_path: Path, client: TestClient) -> None:
    def ill() -> HealthSnapshot:
        return HealthSnapshot(
            broker_connected=False,
            lag_windows=20_000,
            failing={"ingest": "the store refused to write"},
            queue_problem="the broker did not store a message",
            queue_messages=900,
            queue_bytes=990_000,
            queue_max_bytes=1_000_000,
        )

    assert client.get("/livez").status_code == 200
    well = client.get("/readyz").json()
    assert (well["ready"], well["reasons"], well["lag_windows"]) == (True, [], 0)
    response = TestClient(fake_app(FakeStore(), tmp_path, health=ill)).get("/readyz")
    assert response.status_code == 503
    assert [reason.split(":")[0] for reason in response.json()["reasons"]] == [
        "not connected to the broker",
        "the broker did not store a message",
        "the broker's queue is full, 990,000 of 1,000,000 bytes",
        "ingest pauses",
        "20,000 windows wait to be judged, expected at most 10,000",
    ]


def _assert_problem(response: Any, status: int, told: str) -> None:
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert told in problem["detail"]
    assert {"type", "title", "instance"} <= problem.keys()


def _assert_listed(client: TestClient, method: str, path: str, status: int) -> None:
    """What is answered stands in the OpenAPI page, where there is such a route."""
    for pattern, operations in client.get("/openapi.json").json()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path.partition("?")[0]) and method in operations:
            assert str(status) in operations[method]["responses"]
