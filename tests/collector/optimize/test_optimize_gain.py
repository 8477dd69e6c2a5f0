"""What a technique brought: the interval holds what it claims, and nothing is credited for nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.optimize import gain


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=300))
def test_the_interval_holds_the_difference_and_turns_round_with_it(outcomes: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(column) for column in zip(*outcomes, strict=True))
    low, high = gain.over_samples(a, b)

    assert low - 1e-12 <= a.mean() - b.mean() <= high + 1e-12
    assert np.allclose(gain.over_samples(b, a), (-high, -low))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """5,000 pairs of classifiers that really differ by two points, on 400 samples of which they share the hard ones."""
    random = np.random.default_rng(1)
    hard = random.random((5000, 400)) < 0.2
    a = ~hard | (random.random(hard.shape) < 0.5)
    b = ~hard | (random.random(hard.shape) < 0.4)
    covered = 0
    for one, other in zip(a, b, strict=True):
        low, high = gain.over_samples(one, other)
        covered += low <= 0.02 <= high

    assert 0.94 <= covered / 5000 <= 0.97


def test_a_technique_that_changes_nothing_brings_nothing() -> None:
    right = np.random.default_rng(2).random(1000) < 0.9
    found = gain.of("prune", ["fine-tune"], [(right, right)] * 3)

    assert found.delta_ratio == 0.0
    assert found.low_ratio < 0.0 < found.high_ratio
    assert found.brought == "nothing shown"


def test_seeds_that_agree_on_one_sample_show_nothing_and_on_many_they_do() -> None:
    right = np.ones(360, dtype=np.bool_)
    one, many = (gain.of("prune", ["fine-tune"], [(right, np.arange(360) >= wrong)] * 2) for wrong in (1, 9))
    assert (one.brought, many.brought) == ("nothing shown", "more")


def test_a_difference_that_every_seed_shows_is_credited() -> None:
    random = np.random.default_rng(3)
    pairs = [(random.random(5000) < 0.92, random.random(5000) < 0.90) for _ in range(5)]
    found = gain.of("distil", ["distil"], pairs)

    assert found.seeds == 5
    assert found.brought == "more"
    assert 0.0 < found.low_ratio < found.delta_ratio < found.high_ratio
