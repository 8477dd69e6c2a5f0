from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from evenfleet_collector.resources import Access
from evenfleet_collector.routes import HealthSnapshot
from fakes.apps import fake_app
from fakes.stores import FakeStore

ACCESS = Access(admitted=12, denied={"credentials": 3, "client id": 1})


def scraped(client: TestClient) -> dict[tuple[str, str], float]:
    """Return every figure by its name and label, as Prometheus' own parser reads it."""
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_messages_dead_letters_connections_and_the_queue_are_counted_by_name(tmp_path: Path) -> None:
    store = FakeStore()
    store.dead = {"schema": 3, "encoding": 2}

    def full() -> HealthSnapshot:
        return HealthSnapshot(
            broker_connected=True, lag_windows=7, queue_messages=5, queue_bytes=99, queue_max_bytes=100
        )

    found = scraped(TestClient(fake_app(store, tmp_path, health=full, access=lambda: ACCESS)))

    assert found == {
        ("evenfleet_ingest_messages_total", "committed"): 0,
        ("evenfleet_passed_over_total", "unknown-context"): 3,
        ("evenfleet_dead_letters_total", "encoding"): 2,
        ("evenfleet_dead_letters_total", "schema"): 3,
        ("evenfleet_connections_admitted_total", ""): 12,
        ("evenfleet_connections_denied_total", "client id"): 1,
        ("evenfleet_connections_denied_total", "credentials"): 3,
        ("evenfleet_devices", ""): 0,
        ("evenfleet_windows", ""): 0,
        ("evenfleet_flags_open", ""): 0,
        ("evenfleet_lag_windows", ""): 7,
        ("evenfleet_queue_messages", ""): 5,
        ("evenfleet_queue_bytes", ""): 99,
        ("evenfleet_queue_max_bytes", ""): 100,
        ("evenfleet_ready", ""): 0,
    }


def test_figure_that_is_not_known_is_left_out(client: TestClient) -> None:
    assert ("evenfleet_queue_bytes", "") not in scraped(client)


def test_stats_tell_how_many_connections_were_refused_and_why(tmp_path: Path) -> None:
    client = TestClient(fake_app(FakeStore(), tmp_path, access=lambda: ACCESS))

    assert client.get("/api/v1/stats").json()["access"] == {
        "admitted": 12,
        "denied": {"credentials": 3, "client id": 1},
    }
