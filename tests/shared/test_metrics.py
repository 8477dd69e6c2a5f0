"""Counts that add up, and intervals that hold what they say as often as they say."""

from __future__ import annotations

import math

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


@pytest.mark.parametrize(
    ("n", "q", "discarded"), [(2048, 0.9, 172), (2116, 0.9, 178), (7469, 0.9, 685), (1_179_125, 0.99, 11_539)]
)
def test_early_stopping_discards_as_many_runs_as_published_results_of_mlperf_do(n, q, discarded):
    assert metrics.allowed_over(n, q) - 1 == discarded


@pytest.mark.parametrize(("q", "needed"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662)])
def test_claim_takes_as_many_runs_as_mlperf_says_and_not_one_less(q, needed):
    assert metrics.runs_needed(q) == needed
    assert metrics.claimed([1.0] * needed, q) == 1.0
    assert metrics.claimed([1.0] * (needed - 1), q) is None


@given(q=st.sampled_from(metrics.QUANTILES), over=st.integers(0, 40))
def test_slow_runs_must_be_paid_for_with_further_ones(q, over):
    needed = metrics.runs_needed(q, over)
    assert metrics.allowed_over(needed, q) == over + 1
    assert metrics.allowed_over(needed - 1, q) == over
    values = [1.0] * (needed - over) + [2.0] * over
    assert metrics.claimed(values, q) == 1.0
    assert metrics.claimed([*values[1:-1], 2.0, 2.0], q) == 2.0


@pytest.mark.parametrize(("n", "q"), [(11, 0.5), (64, 0.9), (400, 0.95), (662, 0.99), (3000, 0.99)])
def test_claim_is_below_the_quantile_in_one_of_a_hundred_cases_at_most(n, q):
    """Drawn 4,000 times from a uniform distribution, whose quantile is known; the share may miss by chance."""
    draws = np.sort(np.random.default_rng(1).random((4000, n)), axis=1)
    too_low = sum(metrics.claimed(list(draw), q) < q for draw in draws)  # type: ignore[operator]
    assert too_low <= 40 + 3 * math.sqrt(40)


def test_interval_of_a_million_samples_is_found_without_looking_at_them_all():
    class Ranks(list):
        looked_at = 0

        def __len__(self):
            return 1_000_000

        def __getitem__(self, rank):
            self.looked_at += 1
            return float(rank)

    ranks = Ranks()
    low, high = metrics.quantile_interval(ranks, 0.99)
    # The normal approximation is good at that size: 1.96 sqrt(n q (1 - q)) = 195.
    assert (low, high) == (pytest.approx(989_805, abs=3), pytest.approx(990_195, abs=3))
    assert ranks.looked_at == 2
