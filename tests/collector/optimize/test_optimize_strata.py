from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.optimize import strata

LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(LABELS, st.integers(1, 250), st.integers(0, 5))
def test_drawn_samples_are_as_many_as_asked_for_and_differ(labels: np.ndarray, count: int, seed: int) -> None:
    drawn = strata.choose(labels, count, seed)
    assert drawn.size == min(count, labels.size)
    assert (np.diff(drawn) > 0).all()


@given(LABELS, st.integers(1, 250), st.integers(0, 5))
def test_every_class_is_drawn_where_there_is_room_for_all(labels: np.ndarray, count: int, seed: int) -> None:
    drawn = strata.choose(labels, count, seed)
    if count >= np.unique(labels).size:
        assert set(labels[drawn]) == set(labels)


def test_class_too_rare_for_a_share_is_drawn_all_the_same() -> None:
    labels = np.repeat([0, 1, 2], [97, 2, 1])
    assert np.bincount(labels[strata.choose(labels, 5, seed=0)]).tolist() == [3, 1, 1]


def test_classes_keep_their_shares() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    drawn = strata.choose(labels, 100, seed=3)
    assert np.bincount(labels[drawn]).tolist() == [60, 30, 10]


def test_same_seed_draws_the_same_and_another_seed_others() -> None:
    labels = np.arange(1000) % 10
    assert strata.choose(labels, 50, 1).tolist() == strata.choose(labels, 50, 1).tolist()
    assert strata.choose(labels, 50, 1).tolist() != strata.choose(labels, 50, 2).tolist()


def test_split_loses_no_sample_and_shares_none() -> None:
    train, test = strata.split(np.arange(100) % 4, 0.2, seed=0)
    assert test.size == 20
    assert sorted([*train, *test]) == list(range(100))
