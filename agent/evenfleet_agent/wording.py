"""Put the figures of a measurement into words, for a person at a terminal.

Decides how a figure is told beside what it is worth, and that what a machine does not tell is called not known. Leaves
choosing the figures and laying them out to `measure`.
"""

from __future__ import annotations

from collections.abc import Mapping

from evenfleet_agent.host import conditions as between_looks
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.rounds import Spread
from evenfleet_shared.messages import Cost, Latency, Sustained, Throughput

NOT_KNOWN = "not known"
Row = tuple[str, str]


def ms(value: float) -> str:
    """Return a duration.

    >>> ms(0.0123456), ms(12345.6)
    ('0.01235 ms', '12346 ms')
    """
    return f"{value:.4g} ms" if value < 1e4 else f"{value:.0f} ms"


def rate(per_s: float) -> str:
    """Return how many there are in a second.

    >>> rate(12345.6), rate(0.12345)
    ('12,346', '0.123')
    """
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def quantile(latency: Latency, q: float, spread: Spread | None) -> str:
    """Return one of the latency's quantiles with what it is worth.

    Args:
        latency: With a claim about it.
        q: Which one.
        spread: Over several processes, where there were.
    """
    (claim,) = (claim for claim in latency.claims if claim.q == q)
    told = [f"n {latency.n}"]
    if claim.low_ms is None or claim.high_ms is None:
        told.append("too few runs for an interval")
    else:
        told.append(f"95 % interval {ms(claim.low_ms)} to {ms(claim.high_ms)}")
    if claim.at_most_ms is None:
        told.append(f"unqualified: fewer than {claim.runs_needed} runs")
    else:
        told.append(f"at most {ms(claim.at_most_ms)} (99 %)")
    if spread:
        told.append(f"median over processes {ms(spread.median_ms)}, {ms(spread.low_ms)} to {ms(spread.high_ms)}")
    return f"{ms(getattr(latency, f'p{q * 100:.0f}_ms')):<12} {', '.join(told)}"


def modes(
    throughput: Throughput | None, sustained: Sustained | None, cadence_ms: float | None, late_starts: int | None
) -> list[Row]:
    """Return what was found where inferences were called in other ways than one after another."""
    rows: list[Row] = []
    if throughput:
        how = f"{throughput.batch} at a time back to back for {throughput.duration_s:.3g} s, inputs set each time"
        rows.append(("offline", f"{rate(throughput.per_s)} inferences/s, {how}"))
    if cadence_ms is not None:
        late = f"{late_starts} were due while the one before still ran"
        rows.append(("cadence", f"one inference every {cadence_ms:g} ms; {late}"))
    if sustained:
        span = f"in the last {sustained.span_s:.3g} s of {sustained.duration_s:.4g} s as in the first"
        p50s = f"p50 {ms(sustained.last_p50_ms)}, was {ms(sustained.first_p50_ms)}"
        temperature = _from_to(sustained.first_temperature_c, sustained.last_temperature_c, "°C")
        frequency = _from_to(sustained.first_frequency_mhz, sustained.last_frequency_mhz, "MHz")
        rows.append(("sustained", f"{sustained.slowdown_ratio:.3f} times as slow {span}: {p50s}"))
        rows.append(("", f"temperature {temperature}, frequency {frequency}"))
    return rows


def cost(found: Cost) -> list[Row]:
    """Return what an inference took beside its time."""
    rows: list[Row] = []
    if found.cpu_ms is not None:
        rows.append(("CPU", f"{ms(found.cpu_ms)} of processor time per inference"))
    if found.energy_mj is not None:
        rows.append(("energy", f"{found.energy_mj:.4g} mJ per inference  ({found.energy_method})"))
    if found.macs is not None:
        rows.append(("operations", f"{found.macs:,} multiply-accumulates"))
    if found.predicted_ms is not None:
        off = f"off by {found.predicted_error_ratio:.0%} in the median"
        rows.append(("predicted", f"{ms(found.predicted_ms)} by size and operations of the others, {off}"))
    return rows


def conditions(start: Look, end: Look, *, throttled: bool | None) -> str:
    """Return how the machine was from one look to another."""
    found = between_looks.between(start, end)
    governors = " then ".join(dict.fromkeys(look.governor or NOT_KNOWN for look in (start, end)))
    pressures = (
        f"cpu {_share(found.cpu_pressure_ratio)}",
        f"memory {_share(found.memory_pressure_ratio)}",
        f"io {_share(found.io_pressure_ratio)}",
    )
    parts = (
        f"steal {_share(found.steal_ratio)}",
        f"pressure {', '.join(pressures)}",
        f"governor {governors}",
        f"frequency {_from_to(start.frequency_mhz, end.frequency_mhz, 'MHz')}",
        f"temperature {_from_to(start.temperature_c, end.temperature_c, '°C')}",
        f"throttled {_yes(throttled)}",
        f"under-voltage {_yes(found.under_voltage)}",
    )
    return "; ".join(parts)


def key(fields: Mapping[str, str | int | None]) -> str:
    """Return a comparability key.

    >>> key({"threads": 4, "governor": None})
    'threads 4, governor not known'
    """
    return ", ".join(f"{name} {NOT_KNOWN if value is None else value}" for name, value in fields.items())


def _share(ratio: float | None) -> str:
    return NOT_KNOWN if ratio is None else f"{ratio:.1%}"


def _from_to(first: float | None, last: float | None, unit: str) -> str:
    if first is None and last is None:
        return NOT_KNOWN
    return " to ".join(NOT_KNOWN if value is None else f"{value:.4g} {unit}" for value in (first, last))


def _yes(said: bool | None) -> str:
    if said is None:
        return NOT_KNOWN
    return "yes" if said else "no"
