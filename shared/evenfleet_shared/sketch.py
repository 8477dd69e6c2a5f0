"""Count values in geometric buckets, so that quantiles of any union come out within a stated relative error.

The layout is DDSketch's (Masson, Rim and Lee, 2019): bucket i holds the values v with
gamma^(i-1) < v <= gamma^i, gamma = (1 + a)/(1 - a) for relative accuracy a. Sketches of equal accuracy merge
exactly, by adding counts. `messages.Sketch` is the form on the wire.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

from evenfleet_shared.messages import Sketch

RELATIVE_ACCURACY: Final = 0.01

# Below a nanosecond (in ms) no clock tells values apart.
_SMALLEST: Final = 1e-6


def from_values(values: Iterable[float], relative_accuracy: float = RELATIVE_ACCURACY) -> Sketch:
    """Count `values`, each finite and at least 0, in any unit.

    >>> from_values([1.0, 1.0, 2.0]).n
    3
    """
    log_gamma = _log_gamma(relative_accuracy)
    zero = 0
    bins: Counter[int] = Counter()
    for value in values:
        if value < _SMALLEST:
            zero += 1
        else:
            bins[math.ceil(math.log(value) / log_gamma)] += 1
    return Sketch(relative_accuracy=relative_accuracy, zero=zero, bins=tuple(sorted(bins.items())))


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Return the sketch of the union.

    Raises:
        ValueError: There are none, or their accuracies differ.

    >>> merge([from_values([1.0]), from_values([2.0, 3.0])]).n
    3
    """
    parts = list(sketches)
    accuracies = {part.relative_accuracy for part in parts}
    if len(accuracies) != 1:
        raise ValueError(f"can merge sketches of one accuracy only, got {sorted(accuracies)}")
    bins: Counter[int] = Counter()
    for part in parts:
        bins.update(dict(part.bins))
    return Sketch(
        relative_accuracy=accuracies.pop(),
        zero=sum(part.zero for part in parts),
        bins=tuple(sorted(bins.items())),
    )


def quantile(sketch: Sketch, q: float) -> float:
    """Return the value at quantile `q` (nearest rank), within the sketch's relative accuracy.

    Raises:
        ValueError: The sketch is empty or `q` is not within 0..1.

    >>> round(quantile(from_values([1.0] * 95 + [10.0] * 5), 0.5), 2)
    0.99
    """
    n = sketch.n
    if not n or not 0.0 <= q <= 1.0:
        raise ValueError(f"no quantile {q} of a sketch of {n} values")
    rank = max(1, math.ceil(q * n))
    seen = sketch.zero
    if rank <= seen:
        return 0.0
    log_gamma = _log_gamma(sketch.relative_accuracy)
    for index, count in sketch.bins:
        seen += count
        if rank <= seen:
            # The bucket's point whose relative distance to both its ends is the same.
            return math.exp(index * log_gamma) * (1.0 - sketch.relative_accuracy)
    raise AssertionError("the rank is at most n")


def _log_gamma(relative_accuracy: float) -> float:
    return math.log1p(2.0 * relative_accuracy / (1.0 - relative_accuracy))
