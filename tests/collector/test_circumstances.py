"""What a window was measured under, in words."""

from __future__ import annotations

from typing import Any

from evenfleet_collector import circumstances
from evenfleet_collector.store.rows import Circumstances
from evenfleet_shared.messages import Conditions, Cost, Leak, Network, Overhead


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


def test_what_was_not_told_is_left_out_and_zero_is_not() -> None:
    assert circumstances.lines(None) == ()
    assert circumstances.lines(Circumstances(conditions=Conditions(), cost=Cost())) == ()
    assert circumstances.lines(Circumstances(conditions=Conditions(steal_ratio=0.0, under_voltage=False))) == (
        "conditions: steal 0.0 %, voltage good",
    )
    assert "stretched" not in circumstances.lines(Circumstances(overhead=overhead()))[0]
