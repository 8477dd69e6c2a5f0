"""What a window was measured under, in words."""

from __future__ import annotations

from typing import Any

from evenfleet_collector import circumstances
from evenfleet_collector.store.rows import Circumstances
from evenfleet_shared.messages import Conditions, Cost, Leak, Network, Overhead, Phase, Sustained, Throughput


def overhead(**changes: Any) -> Overhead:
    fields: dict[str, Any] = {
        "length_s": 300.0,
        "supervisor_cpu_ratio": 0.001,
        "cpu_ratio": 0.018,
        "budget_ratio": 0.02,
        "supervisor_rss_bytes": 26_300_000,
        "outbox_bytes": 81_300,
    }
    return Overhead(**fields | changes)


def test_each_kind_that_was_told_is_one_line() -> None:
    told = Circumstances(
        conditions=Conditions(steal_ratio=0.02, cpu_pressure_ratio=0.1, frequency_mhz=1499.6, temperature_c=61.25),
        overhead=overhead(stretched_ratio=4.0),
        network=Network(round_trips=9, rtt_p50_ms=41.0, rtt_max_ms=930.0, unacknowledged_ratio=0.0, sent_bytes=12_400),
        leak=Leak(windows=24, bytes_per_hour=2e6, low_bytes_per_hour=-1e5, high_bytes_per_hour=4e6),
        cost=Cost(cpu_ms=3.9, energy_mj=12.34, energy_method="RAPL", macs=1_000_000, predicted_ms=3.5),
    )
    assert circumstances.lines(told) == (
        "conditions: steal 2.0 %, processor pressure 10.0 %, 1500 MHz, 61.2 °C",
        (
            "overhead: 1.80 % of a processor, 2.00 % allowed, supervisor 0.10 % and 26.3 MB, outbox 81.3 kB, "
            "windows stretched 4 times"
        ),
        "network: round trip 41.0 ms, 930 ms at most, 0.0 % unacknowledged, 12.4 kB sent, 0 B received",
        "leak: +2.00 MB per hour (−100 kB to +4.00 MB) over 24 windows",
        "cost: processor 3.90 ms, energy 12.3 mJ (RAPL), 1,000,000 MACs, predicted 3.50 ms per inference",
    )


def sustained(**changes: Any) -> Sustained:
    fields: dict[str, Any] = {
        "duration_s": 600.0,
        "span_s": 60.0,
        "inferences": 150_000,
        "first_p50_ms": 4.0,
        "last_p50_ms": 5.0,
        "slowdown_ratio": 1.25,
    }
    return Sustained(**fields | changes)


def test_how_inferences_were_called_is_one_line_for_each_way() -> None:
    told = Circumstances(
        cadence_ms=40.0,
        late_starts=3,
        phases=(Phase(name="preprocess", n=9, p50_ms=0.2, p95_ms=0.3), Phase(name="queue", n=9, p50_ms=0.0, p95_ms=2)),
        sustained=sustained(
            first_temperature_c=41.0, last_temperature_c=78.5, first_frequency_mhz=1500.0, last_frequency_mhz=1200.0
        ),
        throughput=Throughput(batch=8, inferences=4000, duration_s=9.7, per_s=412.3),
    )
    assert circumstances.lines(told) == (
        "cadence: one inference every 40.0 ms, 3 due while the one before still ran",
        "phases: preprocess p50 200 µs p95 300 µs, queue p50 0.00 µs p95 2.00 ms",
        "sustained: 1.25 times as slow after 600 s (p50 4.00 ms to 5.00 ms), 41.0 to 78.5 °C, 1500 to 1200 MHz",
        "throughput: 412.3 inferences/s, 8 at a time",
    )


def test_sustained_load_without_a_thermometer_tells_the_times_alone() -> None:
    assert circumstances.lines(Circumstances(sustained=sustained(first_temperature_c=41.0))) == (
        "sustained: 1.25 times as slow after 600 s (p50 4.00 ms to 5.00 ms)",
    )


def test_what_was_not_told_is_left_out_and_zero_is_not() -> None:
    assert circumstances.lines(None) == ()
    assert circumstances.lines(Circumstances(conditions=Conditions(), cost=Cost())) == ()
    assert circumstances.lines(Circumstances(conditions=Conditions(steal_ratio=0.0, under_voltage=False))) == (
        "conditions: steal 0.0 %, voltage good",
    )
    assert "stretched" not in circumstances.lines(Circumstances(overhead=overhead()))[0]
