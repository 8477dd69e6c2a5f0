"""Measure several things in several processes each, in turns, and say what the processes have in common.

Pure. One process of a program differs from the next by more than any interval within one of them shows: by where its
memory came to lie, by what else ran. Turns (A B A B) let a disturbance hit all alike.

* The figures shown are those of a process that there was: the one with the median p50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from evenfleet_shared.messages import Latency

FIGURES: Final = ("init_ms", "first_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over several processes."""

    median_ms: float
    low_ms: float
    high_ms: float


def spreads(processes: Sequence[Latency]) -> dict[str, Spread]:
    """Return each of `FIGURES` over the processes, of which there is one at least."""
    found = {}
    for name in FIGURES:
        values_ms = [getattr(latency, name) for latency in processes]
        found[name] = Spread(median_ms=median(values_ms), low_ms=min(values_ms), high_ms=max(values_ms))
    return found


def typical(p50s_ms: Sequence[float]) -> int:
    """Return which process has the median p50; of two in the middle, the faster one.

    >>> typical([5.0, 1.0, 3.0]), typical([4.0, 3.0, 1.0, 2.0])
    (2, 3)
    """
    return sorted(range(len(p50s_ms)), key=p50s_ms.__getitem__)[(len(p50s_ms) - 1) // 2]
