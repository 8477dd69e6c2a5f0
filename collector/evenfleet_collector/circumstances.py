"""Word what a window says beside its figures: how it was called, the machine, the agent's own share, the network, leak and cost.

Pure. One line for each of them that the device told of; what it did not tell is left out, for absent is not zero.
"""

from __future__ import annotations

from evenfleet_collector import figures
from evenfleet_collector.store.rows import Circumstances
from evenfleet_shared.messages import Conditions, Cost, Leak, Network, Overhead, Phase, Sustained, Throughput


def lines(told: Circumstances | None) -> tuple[str, ...]:
    """Return what is known, a line for each kind of it.

    >>> lines(Circumstances(conditions=Conditions(steal_ratio=0.02, temperature_c=61.0, under_voltage=True)))
    ('conditions: steal 2.0 %, 61.0 °C, under-voltage',)
    >>> lines(Circumstances(leak=Leak(windows=9, bytes_per_hour=2e6, low_bytes_per_hour=1e6, high_bytes_per_hour=3e6)))
    ('leak: +2.00 MB per hour (+1.00 MB to +3.00 MB) over 9 windows',)
    """
    if told is None:
        return ()
    worded = (
        ("conditions", _conditions(told.conditions) if told.conditions else []),
        ("overhead", _overhead(told.overhead) if told.overhead else []),
        ("network", _network(told.network) if told.network else []),
        ("leak", _leak(told.leak) if told.leak else []),
        ("cost", _cost(told.cost) if told.cost else []),
        ("cadence", _cadence(told.cadence_ms, told.late_starts)),
        ("phases", [_phase(phase) for phase in told.phases]),
        ("sustained", _sustained(told.sustained) if told.sustained else []),
        ("throughput", [_throughput(told.throughput)] if told.throughput else []),
    )
    return tuple(f"{kind}: {', '.join(parts)}" for kind, parts in worded if parts)


def _conditions(conditions: Conditions) -> list[str]:
    ratios = (
        ("steal", conditions.steal_ratio),
        ("processor pressure", conditions.cpu_pressure_ratio),
        ("memory pressure", conditions.memory_pressure_ratio),
        ("disk pressure", conditions.io_pressure_ratio),
        ("GPU in use", conditions.gpu_use_ratio),
    )
    parts = [f"{name} {figures.accuracy(ratio)}" for name, ratio in ratios if ratio is not None]
    if conditions.frequency_mhz is not None:
        parts.append(f"{conditions.frequency_mhz:.0f} MHz")
    if conditions.temperature_c is not None:
        parts.append(f"{conditions.temperature_c:.1f} °C")
    if conditions.under_voltage is not None:
        parts.append("under-voltage" if conditions.under_voltage else "voltage good")
    return parts


def _overhead(overhead: Overhead) -> list[str]:
    parts = [
        f"{_percent(overhead.cpu_ratio)} of a processor, {_percent(overhead.budget_ratio)} allowed",
        f"supervisor {_percent(overhead.supervisor_cpu_ratio)} and {figures.size(overhead.supervisor_rss_bytes)}",
        f"outbox {figures.size(overhead.outbox_bytes)}",
    ]
    if overhead.stretched_ratio > 1.0:
        parts.append(f"windows stretched {overhead.stretched_ratio:g} times")
    return parts


def _network(network: Network) -> list[str]:
    parts = []
    if network.rtt_p50_ms is not None:
        worst = f", {figures.latency(network.rtt_max_ms)} at most" if network.rtt_max_ms is not None else ""
        parts.append(f"round trip {figures.latency(network.rtt_p50_ms)}{worst}")
    if network.throughput_bytes_per_s is not None:
        parts.append(f"{figures.size(network.throughput_bytes_per_s)}/s")
    if network.unacknowledged_ratio is not None:
        parts.append(f"{figures.accuracy(network.unacknowledged_ratio)} unacknowledged")
    parts.append(f"{figures.size(network.sent_bytes)} sent, {figures.size(network.received_bytes)} received")
    return parts


def _leak(leak: Leak) -> list[str]:
    low, high = _signed(leak.low_bytes_per_hour), _signed(leak.high_bytes_per_hour)
    return [f"{_signed(leak.bytes_per_hour)} per hour ({low} to {high}) over {leak.windows} windows"]


def _cost(cost: Cost) -> list[str]:
    parts = []
    if cost.cpu_ms is not None:
        parts.append(f"processor {figures.latency(cost.cpu_ms)}")
    if cost.energy_mj is not None:
        method = f" ({cost.energy_method})" if cost.energy_method else ""
        parts.append(f"energy {cost.energy_mj:.3g} mJ{method}")
    if cost.macs is not None:
        parts.append(f"{figures.count(cost.macs)} MACs")
    if cost.predicted_ms is not None:
        error = cost.predicted_error_ratio
        parts.append(f"predicted {figures.latency(cost.predicted_ms)}" + (f" ± {_percent(error)}" if error else ""))
    return [f"{', '.join(parts)} per inference"] if parts else []


def _cadence(cadence_ms: float | None, late_starts: int | None) -> list[str]:
    parts = [] if cadence_ms is None else [f"one inference every {figures.latency(cadence_ms)}"]
    if late_starts is not None:
        parts.append(f"{figures.count(late_starts)} due while the one before still ran")
    return parts


def _phase(phase: Phase) -> str:
    return f"{phase.name} p50 {figures.latency(phase.p50_ms)} p95 {figures.latency(phase.p95_ms)}"


def _sustained(sustained: Sustained) -> list[str]:
    p50s = f"p50 {figures.latency(sustained.first_p50_ms)} to {figures.latency(sustained.last_p50_ms)}"
    parts = [f"{sustained.slowdown_ratio:.3g} times as slow after {sustained.duration_s:.4g} s ({p50s})"]
    if sustained.first_temperature_c is not None and sustained.last_temperature_c is not None:
        parts.append(f"{sustained.first_temperature_c:.1f} to {sustained.last_temperature_c:.1f} °C")
    if sustained.first_frequency_mhz is not None and sustained.last_frequency_mhz is not None:
        parts.append(f"{sustained.first_frequency_mhz:.0f} to {sustained.last_frequency_mhz:.0f} MHz")
    return parts


def _throughput(throughput: Throughput) -> str:
    return f"{throughput.per_s:.4g} inferences/s, {throughput.batch} at a time"


def _percent(ratio: float) -> str:
    # Agents take little: a tenth of a percent is not small there.
    return f"{ratio * 100:.2f} %" if ratio < 0.1 else f"{ratio * 100:.0f} %"


def _signed(size_bytes: float) -> str:
    return f"{'+' if size_bytes >= 0 else figures.MINUS}{figures.size(abs(size_bytes))}"
