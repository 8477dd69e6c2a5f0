"""Say what a technique itself brought: a variant against its matched control, on the same test samples.

Pure. The control was trained as long, from the same start, without the technique's idea (`Technique.control`), so what
training alone brings is in both. Leaves to `release` building the two.

* A technique that changes nothing brings 0 with an interval that holds 0, and is said to bring nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from evenfleet_shared import metrics

CONFIDENCE_RATIO: Final = 0.95

Brought = Literal["more", "less", "nothing shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a variant's last trained technique brought in accuracy, as a difference of ratios.

    Attributes:
        technique: Its name.
        control: The names of the steps that led to the control.
        seeds: How many pairs were trained.
        control_ratio: Accuracy of the control, the mean over the seeds.
        delta_ratio: Accuracy of the variant minus the control's, the mean over the seeds.
        low_ratio, high_ratio: 95 % interval of `delta_ratio`: over the test samples for one seed (paired), over the
            seeds for more.
    """

    technique: str
    control: tuple[str, ...]
    seeds: int
    control_ratio: float
    delta_ratio: float
    low_ratio: float
    high_ratio: float

    @property
    def brought(self) -> Brought:
        """Return what may be said of it."""
        if self.low_ratio > 0.0:
            return "more"
        return "less" if self.high_ratio < 0.0 else "nothing shown"


def of(
    technique: str,
    control: Sequence[str],
    pairs: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
) -> Gain:
    """Return the gain.

    Args:
        technique: Its name.
        control: The names of the control's steps.
        pairs: For each seed which test samples the variant and which the control got right, shape ``(n,)`` each.

    >>> same = np.array([True] * 90 + [False] * 10)
    >>> gain = of("prune", ["fine-tune"], [(same, same)])
    >>> gain.delta_ratio, gain.brought, gain.low_ratio < 0.0 < gain.high_ratio
    (0.0, 'nothing shown', True)
    """
    deltas = [float(variant.mean() - other.mean()) for variant, other in pairs]
    low, high = over_samples(*pairs[0]) if len(pairs) == 1 else over_seeds(deltas, 1.0 / len(pairs[0][0]))
    return Gain(
        technique=technique,
        control=tuple(control),
        seeds=len(pairs),
        control_ratio=fmean(float(other.mean()) for _, other in pairs),
        delta_ratio=fmean(deltas),
        low_ratio=low,
        high_ratio=high,
    )


def over_samples(
    a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], confidence_ratio: float = CONFIDENCE_RATIO
) -> tuple[float, float]:
    """Return the interval of mean(a) − mean(b) for two outcomes on the same samples.

    Source:
        Newcombe (1998), Improved confidence intervals for the difference between binomial proportions based on paired
        data, method 10: Wilson intervals of both, joined with their correlation.

    >>> low, high = over_samples(np.array([True] * 95 + [False] * 5), np.array([True] * 90 + [False] * 10))
    >>> round(low, 3), round(high, 3)
    (0.001, 0.111)
    """
    n = len(a)
    z = NormalDist().inv_cdf((1.0 + confidence_ratio) / 2.0)
    p_a, p_b = float(a.mean()), float(b.mean())
    both, only_a, only_b, neither = (int(np.count_nonzero(mask)) for mask in (a & b, a & ~b, ~a & b, ~a & ~b))
    (low_a, high_a), (low_b, high_b) = (metrics.wilson_interval(int(each.sum()), n, z) for each in (a, b))
    margins = math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    product = both * neither - only_a * only_b
    # A correlation that is taken for positive is corrected for the counts being whole.
    phi = (max(product - n / 2, 0) if product > 0 else product) / margins if margins else 0.0
    delta = p_a - p_b
    low = delta - _joined(p_a - low_a, high_b - p_b, phi)
    high = delta + _joined(high_a - p_a, p_b - low_b, phi)
    return low, high


def over_seeds(
    deltas: Sequence[float], step_ratio: float, confidence_ratio: float = CONFIDENCE_RATIO
) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two differences.

    Args:
        deltas: The differences, one for each seed.
        step_ratio: What one sample more is worth. Differences come in such steps, so few seeds may agree by chance and
            show no spread at all; the spread is taken for that of rounding at the least, step/√12.
        confidence_ratio: How often the interval is to hold the truth.

    >>> low, high = over_seeds([0.01, 0.02, 0.03], 0.001)
    >>> round(low, 4), round(high, 4)
    (-0.0048, 0.0448)
    >>> low, high = over_seeds([0.01, 0.01], 0.01)
    >>> round(low, 4), round(high, 4)
    (-0.0159, 0.0359)
    """
    mean, spread = fmean(deltas), max(stdev(deltas), step_ratio / math.sqrt(12.0))
    reach = float(stats.t.ppf((1.0 + confidence_ratio) / 2.0, len(deltas) - 1)) * spread / math.sqrt(len(deltas))
    return mean - reach, mean + reach


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2.0 * phi * first * second + second * second))
