"""Say which variants nobody needs, since another is at least as good in everything, and which stand on a front.

Pure. Dominance looks at accuracy, size, p50 latency and peak memory at once, and only where a difference is more than
noise; a front looks at two of them as they were measured.

* Accuracy compares as it is: all variants were asked the same test samples, so a variant that gets one more right does
  so on these samples, whatever another set would say. To call that noise would hide the more accurate variant.
* Size compares to the byte.
* Latency differs only where the ranges of the rounds' p50 do not overlap, memory only by more than 2 %.
* Variants of different formats, runtimes or threads are never compared; nor one that was timed with one that was not,
  since nobody knows which is faster. Two that were both not timed are compared in accuracy and size.
* Dominance has no circles. "Within noise" is not handed on from one pair to the next, so that plain pairs could make
  one (a beats b in time, b beats c in memory, …, and the last beats a); no variant of a circle dominates another in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from evenfleet_collector.optimize.worth import VariantReport

SAME_MEMORY_RATIO: Final = 0.02

Metric = Literal["size", "latency"]


def dominated_by(rows: Sequence[VariantReport]) -> Mapping[str, tuple[str, ...]]:
    """Return for each variant the names of those that dominate it, in the order of the rows; names are unique."""
    beats = {row.name: {other.name for other in rows if _dominates(row, other)} for row in rows}
    reached = {name: _reachable(name, beats) for name in beats}
    return {
        row.name: tuple(
            other.name for other in rows if row.name in beats[other.name] and other.name not in reached[row.name]
        )
        for row in rows
    }


def front(rows: Sequence[VariantReport], metric: Metric) -> tuple[VariantReport, ...]:
    """Return the variants that no other beats in accuracy and in `metric` together, as measured, the cheapest first.

    Args:
        rows: The variants to look at, of one format if one wants to choose between them.
        metric: What accuracy is set against. For latency those that were not timed are left out.
    """
    costs = {row.name: cost for row in rows if (cost := _cost(row, metric)) is not None}
    known = [row for row in rows if row.name in costs]
    kept = [row for row in known if not any(_beats(other, row, costs) for other in known)]
    return tuple(sorted(kept, key=lambda row: (costs[row.name], row.name)))


def comparable(a: VariantReport, b: VariantReport) -> bool:
    """Return whether two variants were timed alike: same format, runtime, version and threads."""
    if a.format != b.format or a.timing is None or b.timing is None:
        return False
    return (a.timing.runtime, a.timing.runtime_version, a.timing.threads) == (
        b.timing.runtime,
        b.timing.runtime_version,
        b.timing.threads,
    )


def faster(a: VariantReport, b: VariantReport) -> bool:
    """Return whether `a` is faster than `b` by more than noise: its slowest round is faster than the other's fastest."""
    return (
        comparable(a, b)
        and a.timing is not None
        and b.timing is not None
        and a.timing.p50_high_ms < b.timing.p50_low_ms
    )


def _dominates(a: VariantReport, b: VariantReport) -> bool:
    if a.name == b.name or a.format != b.format:
        return False
    timed = comparable(a, b)
    if not timed and (a.timing is not None or b.timing is not None):
        return False
    pairs = [(_better_accuracy(a, b), _better_accuracy(b, a)), (_smaller(a, b), _smaller(b, a))]
    if timed:
        pairs += [(faster(a, b), faster(b, a)), (_leaner(a, b), _leaner(b, a))]
    return any(better for better, _ in pairs) and not any(worse for _, worse in pairs)


def _better_accuracy(a: VariantReport, b: VariantReport) -> bool:
    return a.accuracy_ratio > b.accuracy_ratio


def _smaller(a: VariantReport, b: VariantReport) -> bool:
    return a.size_bytes < b.size_bytes


def _leaner(a: VariantReport, b: VariantReport) -> bool:
    assert a.timing is not None
    assert b.timing is not None
    return a.timing.peak_rss_bytes * (1.0 + SAME_MEMORY_RATIO) < b.timing.peak_rss_bytes


def _reachable(start: str, beats: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = beats[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _beats(a: VariantReport, b: VariantReport, costs: Mapping[str, float]) -> bool:
    at_least = a.accuracy_ratio >= b.accuracy_ratio and costs[a.name] <= costs[b.name]
    return at_least and (a.accuracy_ratio > b.accuracy_ratio or costs[a.name] < costs[b.name])


def _cost(row: VariantReport, metric: Metric) -> float | None:
    if metric == "size":
        return float(row.size_bytes)
    return None if row.timing is None else row.timing.p50_ms
