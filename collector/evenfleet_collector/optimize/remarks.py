"""What a person should be told of a variant in a sentence, since the figures alone do not say it aloud.

Pure. Each remark is a rule of its own in `_RULES`; most variants get none.

* A variant with pruned or clustered weights is held against the same chain without that step where the report has one,
  else against the reference: that weights are zero is no merit if nothing became smaller or faster.
* Sizes within 1 % are called equal: it is the same file with other numbers in it. Time differs where `front.faster` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from evenfleet_collector import figures
from evenfleet_collector.optimize import front
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.worth import VariantReport

SAME_SIZE_RATIO: Final = 0.01
MUCH_SLOWER_FACTOR: Final = 1.5

# Techniques that leave the weights' number alone, and what they make of a variant.
_MASKED: Final = {"prune": "pruned", "prune-blocks": "pruned in blocks", "cluster": "clustered"}
_SLOW_BECAUSE: Final = {"int16x8": "few runtimes have fast kernels for int16x8"}


def remarks(rows: Sequence[VariantReport], reference: str) -> Mapping[str, tuple[str, ...]]:
    """Return the remarks on each variant, by name.

    Args:
        rows: The variants of the report; names are unique.
        reference: The name of the one that the others are compared with, which is among them.
    """
    (reference_row,) = (row for row in rows if row.name == reference)
    return {
        row.name: tuple(said for rule in _RULES if (said := rule(row, reference_row, rows)) is not None) for row in rows
    }


def _pruned(row: VariantReport, reference: VariantReport, rows: Sequence[VariantReport]) -> str | None:
    words = [_MASKED[step] for step in row.techniques if step in _MASKED]
    if not words:
        return None
    plain = tuple(step for step in row.techniques if step not in _MASKED)
    other = next((each for each in rows if (each.techniques, each.format) == (plain, row.format)), reference)
    if other.name == row.name:  # the reference itself
        return None
    smaller = row.size_bytes < other.size_bytes * (1.0 - SAME_SIZE_RATIO)
    sizes = f"{figures.count(row.size_bytes)} against {figures.count(other.size_bytes)} bytes"
    share = f"compressed it is {row.compressed_bytes / other.compressed_bytes * 100:.0f} % of it"
    start = " and ".join(words)
    if not front.comparable(row, other) or row.timing is None or other.timing is None:
        what = "smaller" if smaller else "not smaller"
        return f"{start}, and {what} than {other.name} ({sizes}); {share}"
    faster = front.faster(row, other)
    what = {
        (True, True): "smaller and faster",
        (True, False): "smaller but not faster",
        (False, True): "faster but not smaller",
        (False, False): "neither smaller nor faster",
    }[smaller, faster]
    times = f"p50 {figures.latency(row.timing.p50_ms)} against {figures.latency(other.timing.p50_ms)}"
    return f"{start}, and {what} than {other.name} ({sizes}, {times}); {share}"


def _slow(row: VariantReport, reference: VariantReport, rows: Sequence[VariantReport]) -> str | None:
    if row.timing is None or reference.timing is None or not front.faster(reference, row):
        return None
    if row.timing.p50_ms < reference.timing.p50_ms * MUCH_SLOWER_FACTOR or reference.timing.p50_ms == 0.0:
        return None
    factor = row.timing.p50_ms / reference.timing.p50_ms
    times = f"p50 {figures.latency(row.timing.p50_ms)} against {figures.latency(reference.timing.p50_ms)}"
    reason = next((f"; {_SLOW_BECAUSE[step]}" for step in row.techniques if step in _SLOW_BECAUSE), "")
    return f"{factor:.1f} times as slow as {reference.name} ({times}){reason}"


def _lossy(row: VariantReport, reference: VariantReport, rows: Sequence[VariantReport]) -> str | None:
    low, high = row.delta_interval
    if row.name == reference.name or high >= 0.0:
        return None
    return (
        f"less accurate than {reference.name} by more than chance explains: "
        f"{figures.points(row.delta_ratio)} [{figures.points(low)}, {figures.points(high)}]"
    )


def _idle(row: VariantReport, reference: VariantReport, rows: Sequence[VariantReport]) -> str | None:
    if row.gain is None or row.gain.brought == "more":
        return None
    what = {"less": "costs accuracy", "nothing shown": "brings no accuracy that shows"}[row.gain.brought]
    return f"{row.gain.technique} itself {what}: {worded(row.gain)}"


def worded(gain: Gain) -> str:
    """Return a gain with its interval, what it is over, and what it is against."""
    over = "the same test samples" if gain.seeds == 1 else f"{gain.seeds} seeds"
    low, high = figures.points(gain.low_ratio), figures.points(gain.high_ratio)
    return f"{figures.points(gain.delta_ratio)} [{low}, {high}] over {over}, against {' + '.join(gain.control)}"


_RULES: Final[tuple[Callable[[VariantReport, VariantReport, Sequence[VariantReport]], str | None], ...]] = (
    _pruned,
    _slow,
    _lossy,
    _idle,
)
