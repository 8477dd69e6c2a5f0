"""Draw samples that keep the classes' shares. Pure: the seed decides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def choose(labels: npt.NDArray[np.int64], count: int, seed: int) -> Indices:
    """Draw `count` of the samples so that each class keeps its share (largest remainder).

    Args:
        labels: Classes, shape ``(n,)``.
        count: How many; all of them where there are not more.
        seed: The same seed draws the same samples.

    Returns:
        Rising indices. Every class that occurs is drawn at least once where `count` allows that.

    >>> choose(np.array([0] * 8 + [1] * 2), 5, seed=0).size
    5
    >>> sorted(np.array([0] * 8 + [1] * 2)[choose(np.array([0] * 8 + [1] * 2), 5, seed=0)].tolist())
    [0, 0, 0, 0, 1]
    """
    if count >= labels.size:
        return np.arange(labels.size, dtype=np.int64)
    random = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = _quotas(sizes.astype(np.int64), count)
    drawn = [
        random.permutation(np.flatnonzero(labels == which))[:quota]
        for which, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def split(labels: npt.NDArray[np.int64], test_ratio: float, seed: int) -> tuple[Indices, Indices]:
    """Split samples into train and test, each with the classes' shares.

    Returns:
        Rising indices of the training and of the test samples, disjoint, together all.

    >>> [part.size for part in split(np.array([0, 1] * 10), 0.2, seed=0)]
    [16, 4]
    """
    test = choose(labels, max(1, round(labels.size * test_ratio)), seed)
    rest = np.ones(labels.size, dtype=bool)
    rest[test] = False
    return np.flatnonzero(rest).astype(np.int64), test


def _quotas(sizes: Indices, count: int) -> Indices:
    exact = sizes * (count / sizes.sum())
    quotas: Indices = np.floor(exact).astype(np.int64)
    if count >= sizes.size:
        quotas = np.maximum(quotas, 1)
    # Stable, so that equal remainders go to the lower class.
    by_remainder = np.argsort(-(exact - quotas), kind="stable")
    while quotas.sum() < count:
        for which in by_remainder:
            if quotas.sum() < count and quotas[which] < sizes[which]:
                quotas[which] += 1
    while quotas.sum() > count:  # the floor of one each gave away too many: the largest classes pay
        quotas[int(np.argmax(quotas))] -= 1
    return quotas
