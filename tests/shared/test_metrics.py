"""Counts that add up, and intervals that hold what they say as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_shared import metrics

outcomes = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60),
    )
)


@given(outcomes=outcomes)
def test_class_counts_add_up(outcomes):
    classes, pairs = outcomes
    counts = metrics.class_counts([label for label, _ in pairs], [predicted for _, predicted in pairs], classes)
    assert sum(counts.tp) + sum(counts.fn) == counts.n == len(pairs)
    assert sum(counts.fp) == sum(counts.fn) == counts.errors
    assert counts.accuracy_ratio == pytest.approx(np.mean([label == predicted for label, predicted in pairs]))


@given(outcomes=outcomes)
def test_accuracy_of_a_class_is_that_of_the_question_whether_it_is_this_class(outcomes):
    classes, pairs = outcomes
    counts = metrics.class_counts([label for label, _ in pairs], [predicted for _, predicted in pairs], classes)
    for number, ratio in enumerate(counts.class_accuracy_ratios):
        right = [(label == number) == (predicted == number) for label, predicted in pairs]
        assert ratio == pytest.approx(np.mean(right))


def test_class_that_does_not_occur_has_no_recall():
    counts = metrics.class_counts([0, 0], [0, 1], 3)
    assert counts.class_recall_ratios == (0.5, None, None)


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy_ratio(tp=0, tn=0, fp=0, fn=0)


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50), q=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_nearest_rank_is_the_smallest_value_that_enough_are_not_above(values, q):
    ordered = sorted(values)
    found = metrics.nearest_rank(ordered, q)
    assert sum(value <= found for value in ordered) >= q * len(ordered) - 1e-9
    assert sum(value < found for value in ordered) < q * len(ordered) + 1e-9


@pytest.mark.parametrize(("n", "q"), [(20, 0.5), (100, 0.5), (100, 0.9), (200, 0.95), (1000, 0.99)])
def test_quantile_interval_holds_the_quantile_in_95_of_100_cases(n, q):
    """Drawn 4,000 times; the share may miss 0.95 by the chance of that many draws."""
    interval = metrics.quantile_interval([float(rank) for rank in range(1, n + 1)], q)
    assert interval is not None
    low, high = (int(rank) - 1 for rank in interval)
    samples = np.sort(np.random.default_rng(7).exponential(size=(4000, n)), axis=1)
    quantile = -np.log(1 - q)
    held = np.mean((samples[:, low] <= quantile) & (quantile <= samples[:, high]))
    assert held >= 0.95 - 0.011


def test_quantile_interval_is_not_wider_than_it_needs_to_be():
    low, high = metrics.quantile_interval([float(rank) for rank in range(1, 10_001)], 0.5)
    assert high - low == pytest.approx(2 * 1.96 * 50, rel=0.05)


@pytest.mark.parametrize("n", [1, 5, 50])
def test_too_few_samples_have_no_interval_of_a_p99(n):
    assert metrics.quantile_interval([1.0] * n, 0.99) is None


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_interval_holds_the_share_and_stays_within_0_and_1(n, data):
    k = data.draw(st.integers(0, n))
    low, high = metrics.wilson_interval(k, n)
    assert 0.0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1.0


@given(n=st.integers(1, 500), data=st.data())
def test_newcombe_interval_holds_the_difference_and_turns_round_with_it(n, data):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = metrics.newcombe_difference(b, c, n)
    assert low <= (c - b) / n <= high
    assert metrics.newcombe_difference(c, b, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_share_that_is_none_is_refused(k, n):
    with pytest.raises(ValueError, match="no share"):
        metrics.wilson_interval(k, n)
