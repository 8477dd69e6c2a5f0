"""The sketch against the library that its layout comes from, and the laws of merging."""

from __future__ import annotations

import math

import pytest
from ddsketch import DDSketch
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_shared import sketch
from evenfleet_shared.messages import Sketch
from evenfleet_shared.metrics import nearest_rank

latencies = st.lists(st.just(0.0) | st.floats(1e-5, 1e6), min_size=1, max_size=200)
quantiles = st.floats(0.0, 1.0)


@given(values=latencies, q=quantiles)
def test_quantile_is_within_the_relative_accuracy_of_the_exact_one(values, q):
    exact = nearest_rank(sorted(values), q)
    assert sketch.quantile(sketch.from_values(values), q) == pytest.approx(exact, rel=sketch.RELATIVE_ACCURACY * 1.0001)


@given(values=latencies, data=st.data())
def test_quantile_is_in_the_same_bucket_as_the_librarys(values, data):
    rank = data.draw(st.integers(1, len(values)))
    oracle = DDSketch(relative_accuracy=sketch.RELATIVE_ACCURACY)
    for value in values:
        oracle.add(value)
    # The library counts ranks from 0 and rounds them down; the middle between two is one that both agree on.
    its_q = min(1.0, (rank - 0.5) / (len(values) - 1)) if len(values) > 1 else 0.0
    ours = sketch.quantile(sketch.from_values(values), (rank - 0.5) / len(values))
    assert ours == pytest.approx(oracle.get_quantile_value(its_q), rel=2.1 * sketch.RELATIVE_ACCURACY)


@given(parts=st.lists(latencies, min_size=1, max_size=5))
def test_merged_sketch_is_the_sketch_of_all_values(parts):
    together = sketch.from_values([value for part in parts for value in part])
    assert sketch.merge([sketch.from_values(part) for part in parts]) == together


@given(a=latencies, b=latencies, c=latencies)
def test_order_and_grouping_of_merges_do_not_matter(a, b, c):
    x, y, z = map(sketch.from_values, (a, b, c))
    assert sketch.merge([x, y]) == sketch.merge([y, x])
    assert sketch.merge([sketch.merge([x, y]), z]) == sketch.merge([x, sketch.merge([y, z])])


@given(values=latencies, a=quantiles, b=quantiles)
def test_higher_quantile_is_never_lower(values, a, b):
    made = sketch.from_values(values)
    assert sketch.quantile(made, min(a, b)) <= sketch.quantile(made, max(a, b))


@given(values=latencies)
def test_every_value_is_counted(values):
    assert sketch.from_values(values).n == len(values)


def test_sketches_of_different_accuracy_are_not_merged():
    with pytest.raises(ValueError, match="one accuracy only"):
        sketch.merge([sketch.from_values([1.0]), sketch.from_values([1.0], relative_accuracy=0.02)])


def test_nothing_cannot_be_merged():
    with pytest.raises(ValueError, match="one accuracy only"):
        sketch.merge([])


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_quantile_outside_0_to_1_is_refused(q):
    with pytest.raises(ValueError, match="no quantile"):
        sketch.quantile(sketch.from_values([1.0]), q)


def test_empty_sketch_has_no_quantile():
    with pytest.raises(ValueError, match="of 0 values"):
        sketch.quantile(Sketch(relative_accuracy=0.01), 0.5)
