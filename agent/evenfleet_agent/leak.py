"""Say whether a runner's memory grows: the slope of its resident memory over the windows since it was started.

Pure. Leaves reading memory to the runner, and what to make of a slope to whoever sees it.

* A history belongs to one incarnation of a runner: whoever starts it anew begins with an empty one.
* A history is bounded. When it is full every second reading is let go, so that it always spans the runner's whole life.
* Memory that stays as it is has a slope of 0, with an interval of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Final

from evenfleet_shared.messages import Leak

MIN_WINDOWS: Final = 8
# Slopes are taken of all pairs: 2,016 of them.
MAX_READINGS: Final = 64
_Z_95: Final = 1.959963984540054
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Readings of one runner's memory: seconds on a monotonic clock and bytes, of every `stride`-th of `seen` windows."""

    readings: tuple[tuple[float, int], ...] = ()
    stride: int = 1
    seen: int = 0


def with_reading(history: History, at_s: float, resident_bytes: int) -> History:
    """Return the history with one more window's reading.

    >>> with_reading(History(), 300.0, 50_000_000).readings
    ((300.0, 50000000),)
    """
    readings, stride = history.readings, history.stride
    if history.seen % stride == 0:
        readings = (*readings, (at_s, resident_bytes))
        if len(readings) > MAX_READINGS:
            readings, stride = readings[::2], 2 * stride
    return History(readings=readings, stride=stride, seen=history.seen + 1)


def slope(history: History) -> Leak | None:
    """Return how fast the memory grows, None before there are `MIN_WINDOWS` readings of different times.

    Source:
        Theil (1950) and Sen (1968), the median of the slopes of all pairs; its interval by the ranks of Kendall's
        statistic, whose variance is lessened by equal readings (Kendall 1970).

    >>> history = History()
    >>> for window in range(12):
    ...     history = with_reading(history, 300.0 * window, 50_000_000 + 1_000 * window)
    >>> slope(history).bytes_per_hour
    12000.0
    """
    readings = history.readings
    slopes = sorted(
        (bytes_b - bytes_a) / (s_b - s_a)
        for index, (s_a, bytes_a) in enumerate(readings)
        for s_b, bytes_b in readings[index + 1 :]
        if s_b > s_a
    )
    n = len(readings)
    if n < MIN_WINDOWS or not slopes:
        return None
    half = _Z_95 * math.sqrt(_kendall_variance([resident for _, resident in readings])) / 2.0
    low = max(0, math.floor(len(slopes) / 2.0 - half))
    high = min(len(slopes) - 1, math.ceil(len(slopes) / 2.0 + half))
    return Leak(
        windows=history.seen,
        bytes_per_hour=median(slopes) * _HOUR_S,
        low_bytes_per_hour=slopes[low] * _HOUR_S,
        high_bytes_per_hour=slopes[high] * _HOUR_S,
    )


def _kendall_variance(values: list[int]) -> float:
    """Return the variance of Kendall's statistic under no trend, with its correction for equal values."""
    n = len(values)
    ties = [values.count(value) for value in set(values)]
    return (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18.0
