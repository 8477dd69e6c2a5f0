"""Foretell a model's time on this device from what its other models take, by size and by operations.

Pure, and free of numpy: the supervisor calls it. Time is taken to be bytes over a throughput of bytes plus
multiply-accumulates over a throughput of these, neither of them negative. What is foretold stands beside what was
measured, with how far such a forecast is off, so that a reader sees what size and operations are worth here.

* A model never has a part in its own forecast, nor in the error that is told with it.
* Errors count relatively: a model of 10 µs weighs as much as one of 100 ms.
* Only models that were run alike tell anything of each other: of one runtime, accelerator and number of threads. What
  that is, the caller says.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

# With one, there would be no telling how far it is off.
LEAST_OTHERS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A measured model; `macs` is None where its operations are not known."""

    size_bytes: int
    macs: int | None
    p50_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model of this device, measured (`p50_ms`) or not yet; those with the same `alike` were run in the same way.

    `size_bytes` is None where nobody said.
    """

    size_bytes: int | None
    macs: int | None
    p50_ms: float | None
    alike: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A forecast; `error_ratio` is the median of |foretold - measured| / measured over the others, each left out in turn."""

    predicted_ms: float
    error_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Milliseconds per byte and per multiply-accumulate; neither is negative."""

    ms_per_byte: float
    ms_per_mac: float

    def foretell_ms(self, size_bytes: int, macs: int | None) -> float:
        """Return the time of a model."""
        return self.ms_per_byte * size_bytes + self.ms_per_mac * (macs or 0)


def among(run: Run, others: Sequence[Run]) -> Prediction | None:
    """Return the forecast of one of a device's models by those of its others that were run alike.

    >>> others = [Run(size_bytes=size, macs=None, p50_ms=size / 1e6, alike="cpu") for size in (100_000, 400_000)]
    >>> round(among(Run(size_bytes=200_000, macs=None, p50_ms=None, alike="cpu"), others).predicted_ms, 6)
    0.2
    >>> among(Run(size_bytes=200_000, macs=None, p50_ms=None, alike="gpu"), others) is None
    True
    """
    if run.size_bytes is None:
        return None
    known = [
        Known(size_bytes=other.size_bytes, macs=other.macs, p50_ms=other.p50_ms)
        for other in others
        if other.size_bytes is not None and other.p50_ms and other.alike == run.alike
    ]
    return predict(run.size_bytes, run.macs, known)


def predict(size_bytes: int, macs: int | None, others: Sequence[Known]) -> Prediction | None:
    """Return a model's forecast.

    Args:
        size_bytes: Of its artifact.
        macs: Its multiply-accumulates; None leaves the forecast to the size.
        others: Measured on this device in the same way. Those whose operations are not known are left aside where the
            model's own are.

    Returns:
        None with fewer than `LEAST_OTHERS` that can be used, or where they foretell nothing.

    >>> others = [Known(size_bytes=size, macs=macs, p50_ms=size / 1e6 + macs / 1e7)
    ...           for size, macs in ((100_000, 5_000_000), (400_000, 5_000_000), (100_000, 50_000_000))]
    >>> prediction = predict(200_000, 10_000_000, others)
    >>> round(prediction.predicted_ms, 6)
    1.2
    """
    by_macs = macs is not None
    usable = [known for known in others if known.p50_ms > 0.0 and (known.macs is not None or not by_macs)]
    if len(usable) < LEAST_OTHERS:
        return None
    predicted_ms = fit(usable, by_macs=by_macs).foretell_ms(size_bytes, macs)
    errors = []
    for index, known in enumerate(usable):
        rates = fit([*usable[:index], *usable[index + 1 :]], by_macs=by_macs)
        errors.append(abs(rates.foretell_ms(known.size_bytes, known.macs) - known.p50_ms) / known.p50_ms)
    return Prediction(predicted_ms=predicted_ms, error_ratio=median(errors)) if predicted_ms > 0.0 else None


def fit(known: Sequence[Known], *, by_macs: bool) -> Rates:
    """Return the rates with the least squares of relative errors, none of them negative.

    Args:
        known: One at least, each with a time above 0.
        by_macs: Whether operations count; then all of them know theirs.
    """
    # Each row says: its bytes and operations, over its time, are to give 1.
    rows = [(each.size_bytes / each.p50_ms, (each.macs or 0) / each.p50_ms if by_macs else 0.0) for each in known]
    bb, mm = sum(b * b for b, _ in rows), sum(m * m for _, m in rows)
    bm, b1, m1 = sum(b * m for b, m in rows), sum(b for b, _ in rows), sum(m for _, m in rows)
    determinant = bb * mm - bm * bm
    candidates = []
    # Below this share the rows are multiples of each other, and what is left of the difference is rounding.
    if determinant > 1e-9 * bb * mm:
        candidates.append(
            Rates(ms_per_byte=(mm * b1 - bm * m1) / determinant, ms_per_mac=(bb * m1 - bm * b1) / determinant)
        )
    candidates += [Rates(ms_per_byte=b1 / bb if bb else 0.0, ms_per_mac=0.0)]
    candidates += [Rates(ms_per_byte=0.0, ms_per_mac=m1 / mm)] if mm else []

    def off(rates: Rates) -> float:
        return sum((rates.ms_per_byte * b + rates.ms_per_mac * m - 1.0) ** 2 for b, m in rows)

    return min((each for each in candidates if each.ms_per_byte >= 0.0 and each.ms_per_mac >= 0.0), key=off)
