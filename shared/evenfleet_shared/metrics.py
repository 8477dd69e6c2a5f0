"""The measures that agent and collector must compute alike: accuracy from counts, quantiles of samples, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

# The quantiles of latency that are told everywhere.
QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
# A claim about a quantile is wrong with a probability of one in a hundred at most, as in MLPerf.
CLAIM_CONFIDENCE: Final = 0.99

# So many standard deviations from the mean, nothing that a float could add is left of a binomial distribution.
_TAIL_SDS: Final = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """Confusion counts of a classifier, one-against-the-rest for each class, over `n` samples."""

    n: int
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    fn: tuple[int, ...]

    @property
    def errors(self) -> int:
        """Return how many samples were given a wrong class."""
        return self.n - sum(self.tp)

    @property
    def accuracy_ratio(self) -> float:
        """Return the share of samples that were given their own class."""
        return sum(self.tp) / self.n

    @property
    def class_accuracy_ratios(self) -> tuple[float, ...]:
        """Return (TP + TN) / (TP + TN + FP + FN) of each class against the rest."""
        return tuple(
            accuracy_ratio(tp=tp, tn=self.n - tp - fp - fn, fp=fp, fn=fn)
            for tp, fp, fn in zip(self.tp, self.fp, self.fn, strict=True)
        )

    @property
    def class_recall_ratios(self) -> tuple[float | None, ...]:
        """Return TP / (TP + FN) of each class, None for a class that does not occur."""
        return tuple(tp / (tp + fn) if tp + fn else None for tp, fn in zip(self.tp, self.fn, strict=True))


def accuracy_ratio(*, tp: int, tn: int, fp: int, fn: int) -> float:
    """Return the share of right decisions of a binary classifier.

    Raises:
        ValueError: There are no samples.

    >>> accuracy_ratio(tp=40, tn=50, fp=4, fn=6)
    0.9
    """
    total = tp + tn + fp + fn
    if not total:
        raise ValueError("no samples")
    return (tp + tn) / total


def class_counts(labels: Sequence[int], predictions: Sequence[int], classes: int) -> ClassCounts:
    """Count the outcomes of a classifier.

    Args:
        labels: True classes, shape ``(n,)``, each in 0..classes-1.
        predictions: Predicted classes, shape ``(n,)``.
        classes: Number of classes.

    >>> class_counts([0, 0, 1], [0, 1, 1], 2)
    ClassCounts(n=3, tp=(1, 1), fp=(0, 1), fn=(1, 0))
    """
    tp, fp, fn = [0] * classes, [0] * classes, [0] * classes
    for label, predicted in zip(labels, predictions, strict=True):
        if label == predicted:
            tp[label] += 1
        else:
            fn[label] += 1
            fp[predicted] += 1
    return ClassCounts(n=len(labels), tp=tuple(tp), fp=tuple(fp), fn=tuple(fn))


def nearest_rank(ordered: Sequence[float], q: float) -> float:
    """Return the value at quantile `q` of samples in rising order: the smallest with at least q·n samples not above it.

    >>> nearest_rank([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    if not ordered:
        raise ValueError("no samples")
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def quantile_interval(ordered: Sequence[float], q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return a distribution-free confidence interval of quantile `q`: two of the order statistics.

    Args:
        ordered: Independent samples in rising order, shape ``(n,)``.
        q: Within 0..1, ends excluded.
        confidence: The least probability that the interval holds the quantile.

    Returns:
        Lower and upper end in the samples' unit; None where n is too small for any such interval.

    Source:
        David and Nagaraja, Order Statistics, 7.1: P(x_(r) <= quantile < x_(s)) = sum of Binomial(n, q) over r..s-1.

    >>> quantile_interval([float(i) for i in range(1, 101)], 0.5)
    (40.0, 61.0)
    >>> quantile_interval([1.0, 2.0, 3.0], 0.99) is None
    True
    """
    n = len(ordered)
    tail = (1.0 - confidence) / 2.0
    below = 0.0  # P(Binomial(n, q) < i), step by step
    lower = upper = None
    for i, mass in _binomial_masses(n, q):
        if below <= tail:
            lower = i
        below += mass
        if 1.0 - below <= tail:
            upper = i + 1
            break
    if not lower or upper is None or upper > n:
        return None
    return ordered[lower - 1], ordered[upper - 1]


def allowed_over(n: int, q: float, confidence: float = CLAIM_CONFIDENCE) -> int:
    """Return how many of `n` runs may have been slower for what they were slower than to stand for quantile `q`.

    MLPerf's early stopping: were the quantile higher than the claimed value, a run would be over it with a probability
    of 1 - q or more; so few over it are then seen with a probability of 1 - confidence at most. Their tolerance is 0.

    Args:
        n: Runs.
        q: Within 0..1, ends excluded.
        confidence: That the claim holds.

    Returns:
        -1 where even none would be too many.

    Source:
        MLPerf Inference, LoadGen's early stopping. Published results of n = 2048, 2116 and 7469 runs discard one less
        than this, 172, 178 and 685, since the claimed run itself is counted as one of the slow ones.

    >>> allowed_over(458, 0.99), allowed_over(459, 0.99), allowed_over(2048, 0.9)
    (-1, 0, 173)
    """
    below = 0.0
    over = -1
    for i, mass in _binomial_masses(n, 1.0 - q):
        below += mass
        if below > 1.0 - confidence:
            break
        over = i
    return over


def claimed(ordered: Sequence[float], q: float, confidence: float = CLAIM_CONFIDENCE) -> float | None:
    """Return the value that the samples allow to be claimed as an upper bound of quantile `q`.

    Args:
        ordered: Independent samples in rising order.
        q: Within 0..1, ends excluded.
        confidence: That the quantile is not above it.

    Returns:
        A sample; None where there are fewer than `runs_needed`.

    Source:
        As `allowed_over`: MLPerf's early-stopping estimate.

    >>> claimed([float(rank) for rank in range(1, 663)], 0.99), claimed([1.0] * 661, 0.99)
    (662.0, None)
    """
    over = allowed_over(len(ordered), q, confidence)
    return ordered[len(ordered) - over] if over >= 1 else None


@cache
def runs_needed(q: float, over: int = 0, confidence: float = CLAIM_CONFIDENCE) -> int:
    """Return how many runs a claim about quantile `q` takes, `over` of which are slower than the claimed one.

    >>> [runs_needed(q) for q in QUANTILES], runs_needed(0.99, over=1)
    ([11, 64, 130, 662], 838)
    """
    low, high = over + 1, 2 * (over + 2)
    while allowed_over(high, q, confidence) <= over:
        low, high = high, 2 * high
    while low + 1 < high:
        middle = (low + high) // 2
        if allowed_over(middle, q, confidence) <= over:
            low = middle
        else:
            high = middle
    return high


def newcombe_difference(b: int, c: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return an interval of the difference of two accuracies on the same samples, `(c - b) / n`.

    Args:
        b: Samples that only the reference got right.
        c: Samples that only the candidate got right.
        n: All samples.
        z: Normal quantile of the confidence.

    Source:
        Square-and-add Wilson interval on the discordant share of each direction; Newcombe (1998), Statistics in
        Medicine 17:2635, without the correlation correction, hence a little wide.

    >>> low, high = newcombe_difference(5, 5, 500)
    >>> low < 0 < high
    True
    """
    low_b, high_b = wilson_interval(b, n, z)
    low_c, high_c = wilson_interval(c, n, z)
    difference = (c - b) / n
    return (
        difference - math.hypot(c / n - low_c, high_b - b / n),
        difference + math.hypot(high_c - c / n, b / n - low_b),
    )


def wilson_interval(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share k/n.

    >>> [round(end, 3) for end in wilson_interval(0, 100)]
    [0.0, 0.037]
    """
    if not 0 <= k <= n or not n:
        raise ValueError(f"no share {k}/{n}")
    share = k / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _binomial_masses(n: int, p: float) -> Iterator[tuple[int, float]]:
    """Yield the probability of each number of successes, from the first that has any to speak of, up to n."""
    start = max(0, math.floor(n * p - _TAIL_SDS * math.sqrt(n * p * (1.0 - p))))
    log_choose = math.lgamma(n + 1) - math.lgamma(start + 1) - math.lgamma(n - start + 1)
    mass = math.exp(log_choose + start * math.log(p) + (n - start) * math.log1p(-p))
    for k in range(start, n + 1):
        yield k, mass
        mass *= (n - k) / (k + 1) * p / (1.0 - p)
