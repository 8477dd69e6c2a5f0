"""`/metrics`: the collector in figures, as Prometheus takes them.

Read from the store at every question: nothing is counted twice, and what is on disk outlives a restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evenfleet_collector.resources import Figures
from evenfleet_collector.routes.health import reasons_against
from evenfleet_collector.routes.parts import HealthSnapshot, PartsOf
from evenfleet_collector.routes.stats import figures_of

router = APIRouter(tags=["health"])

# The plain text that every version of Prometheus reads.
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"}},
)
def show_metrics(parts: PartsOf) -> Response:
    """Return the collector's figures for Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(figures_of(parts), parts.health()))
    return Response(generate_latest(registry), media_type=MEDIA_TYPE)


class _Once(Collector):
    """The answer to one question."""

    def __init__(self, figures: Figures, health: HealthSnapshot) -> None:
        self._figures = figures
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        figures, health = self._figures, self._health
        yield _counter(
            "evenfleet_ingest_messages", "Messages from devices, by what became of them.", "result", figures.ingested
        )
        yield _counter(
            "evenfleet_passed_over",
            "Windows, devices, events and replies that were not judged or told, or contradict what is known, by reason.",
            "reason",
            figures.passed_over,
        )
        yield _counter(
            "evenfleet_dead_letters", "Messages that could not be taken.", "reason", figures.dead_letters_by_reason
        )
        yield CounterMetricFamily(
            "evenfleet_connections_admitted",
            "Connections that the broker let in since the collector's start.",
            value=figures.access.admitted,
        )
        yield _counter(
            "evenfleet_connections_denied",
            "Connections that the broker refused since the collector's start.",
            "reason",
            figures.access.denied,
        )
        for name, what, value in (
            ("evenfleet_devices", "Devices that were enrolled or heard of.", figures.devices),
            ("evenfleet_windows", "Windows on disk.", figures.windows),
            ("evenfleet_flags_open", "Open flags: device, variant and metric outside tolerance.", figures.flags_open),
            ("evenfleet_lag_windows", "Windows on disk that are not judged yet.", health.lag_windows),
            ("evenfleet_queue_messages", "Messages in the broker's queue.", health.queue_messages),
            ("evenfleet_queue_bytes", "Size of the broker's queue.", health.queue_bytes),
            ("evenfleet_queue_max_bytes", "Size from which the broker's queue refuses.", health.queue_max_bytes),
            ("evenfleet_ready", "1 if /readyz says ready.", int(not reasons_against(health))),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, what, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
