"""Foretell a variant's time from its size and from its operations, as a planner would who had timed only the others.

Pure. Leaves timing to `timing`. What is foretold stands beside what was measured, so that a reader sees how far size or
operations can be trusted as a measure of speed; often that is not far.

* A variant never has a part in its own forecast.
* Throughput is the median of the others', on a logarithmic scale: one variant whose kernels are ten times slower does
  not move it, and being off is a factor anyway.
* Only variants of the same format, runtime, version and number of threads tell anything of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from evenfleet_collector.optimize.worth import Forecast, ForecastErrors, VariantReport

LEAST_OTHERS: Final = 2


def forecasts(rows: Sequence[VariantReport]) -> Mapping[str, Forecast]:
    """Return the forecast of each variant that was timed, by name.

    A variant's bytes per second are its artifact's size over its p50, its operations per second the same of its
    multiply-accumulates.
    """
    timed = [row for row in rows if _p50_ms(row) is not None]
    return {
        row.name: Forecast(by_size_ms=_foretold_ms(row, timed, _size), by_macs_ms=_foretold_ms(row, timed, _macs))
        for row in timed
    }


def errors(rows: Sequence[VariantReport], found: Mapping[str, Forecast]) -> ForecastErrors:
    """Return by which factor the forecasts are off in the median.

    Args:
        rows: The variants.
        found: What `forecasts` says of them.
    """
    by_size, by_macs = [], []
    for row in rows:
        measured_ms, forecast = _p50_ms(row), found.get(row.name)
        if measured_ms is None or forecast is None:
            continue
        if forecast.by_size_ms is not None:
            by_size.append(off_factor(forecast.by_size_ms, measured_ms))
        if forecast.by_macs_ms is not None:
            by_macs.append(off_factor(forecast.by_macs_ms, measured_ms))
    return ForecastErrors(
        by_size_factor=median(by_size) if by_size else None,
        by_size_n=len(by_size),
        by_macs_factor=median(by_macs) if by_macs else None,
        by_macs_n=len(by_macs),
    )


def off_factor(foretold_ms: float, measured_ms: float) -> float:
    """Return by which factor a forecast is off; half and twice the truth are equally wrong.

    >>> off_factor(2.0, 4.0), off_factor(4.0, 2.0), off_factor(3.0, 3.0)
    (2.0, 2.0, 1.0)
    """
    return max(foretold_ms / measured_ms, measured_ms / foretold_ms)


def _foretold_ms(
    row: VariantReport, timed: Sequence[VariantReport], amount: Callable[[VariantReport], int | None]
) -> float | None:
    own = amount(row)
    if not own:
        return None
    logs = [
        math.log(there / there_ms)
        for other in timed
        if other.name != row.name
        and _kin(other) == _kin(row)
        and (there := amount(other))
        and (there_ms := _p50_ms(other))
    ]
    return own / math.exp(median(logs)) if len(logs) >= LEAST_OTHERS else None


def _kin(row: VariantReport) -> tuple[object, ...]:
    assert row.timing is not None
    return (row.format, row.timing.runtime, row.timing.runtime_version, row.timing.threads)


def _p50_ms(row: VariantReport) -> float | None:
    """Return the p50; a clock too coarse for the model says 0, of which no throughput can be made."""
    return row.timing.p50_ms if row.timing is not None and row.timing.p50_ms > 0.0 else None


def _size(row: VariantReport) -> int | None:
    return row.size_bytes


def _macs(row: VariantReport) -> int | None:
    return row.macs
