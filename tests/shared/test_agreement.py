"""The four noise classes, at their borders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evenfleet_shared import agreement

REFERENCE = np.array([[0.1, 0.9], [0.8, 0.2]], dtype=np.float32)
STEP = 1 / 256


def compared(outputs, *, output_scale=None):
    return agreement.compare(REFERENCE, np.asarray(outputs, dtype=np.float32), output_scale=output_scale)


def test_equal_outputs_are_bit_exact():
    found = compared(REFERENCE, output_scale=STEP)
    assert (found.noise_class, found.max_abs_diff, found.rms_diff, found.lsb_max) == ("bit-exact", 0.0, 0.0, 0.0)


def test_float_outputs_within_a_ten_thousandth_of_the_largest_are_within_rounding():
    assert compared(REFERENCE + 0.00008).noise_class == "within-rounding"
    assert compared(REFERENCE + 0.0002).noise_class == "same-decision"


def test_quantised_outputs_one_step_away_are_within_rounding():
    assert compared(REFERENCE + STEP, output_scale=STEP).noise_class == "within-rounding"
    two = compared(REFERENCE + 2 * STEP, output_scale=STEP)
    assert (two.noise_class, round(two.lsb_max)) == ("same-decision", 2)


def test_another_decision_of_one_sample_is_divergent():
    found = compared([[0.9, 0.1], [0.8, 0.2]])
    assert (found.noise_class, found.top1_ratio) == ("divergent", 0.5)


def test_tiny_difference_that_turns_a_decision_is_still_within_rounding():
    """Two scores that are equal but for rounding have no decision to agree on."""
    reference = np.array([[0.5, 0.50001]], dtype=np.float32)
    found = agreement.compare(reference, np.ascontiguousarray(reference[:, ::-1]), output_scale=None)
    assert (found.noise_class, found.top1_ratio) == ("within-rounding", 0.0)


@given(
    outputs=hnp.arrays(np.float32, (2, 2), elements=st.floats(width=32)),
    output_scale=st.none() | st.floats(1e-6, 1.0),
)
def test_whatever_a_runtime_gives_can_be_reported(outputs, output_scale):
    found = compared(outputs, output_scale=output_scale)
    for number in (found.top1_ratio, found.max_abs_diff, found.rms_diff, found.lsb_max or 0.0):
        assert 0.0 <= number <= 1e300


@given(
    outputs=hnp.arrays(np.float32, (6, 3), elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    cuts=st.lists(st.integers(1, 5), max_size=3),
)
def test_batches_of_any_size_agree_like_all_at_once(outputs, cuts):
    reference = np.arange(18, dtype=np.float32).reshape(6, 3)
    comparison = agreement.Comparison(output_scale=0.5)
    for part, other in zip(np.split(reference, sorted(set(cuts))), np.split(outputs, sorted(set(cuts))), strict=True):
        comparison.add(part, other)
    found, whole = comparison.result(), agreement.compare(reference, outputs, output_scale=0.5)
    assert found.rms_diff == pytest.approx(whole.rms_diff)
    assert (found.noise_class, found.top1_ratio, found.max_abs_diff) == (
        whole.noise_class,
        whole.top1_ratio,
        whole.max_abs_diff,
    )


def test_outputs_of_any_shape_are_decided_vector_by_vector():
    reference = np.zeros((2, 2, 3), dtype=np.float32)
    reference[..., 0] = 1.0
    outputs = reference.copy()
    outputs[1, 1] = [0.0, 1.0, 0.0]
    found = agreement.compare(reference, outputs, output_scale=None)
    assert (found.noise_class, found.top1_ratio) == ("divergent", 0.75)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_reference_that_is_no_numbers_makes_nothing_a_rounding(bad):
    found = agreement.compare(
        np.array([[bad, 0.0, 1.0]], dtype=np.float32), np.array([[0.0, 0.5, 1.0]], dtype=np.float32), output_scale=None
    )
    assert found.noise_class == "divergent"


def test_nothing_compared_is_a_programming_mistake():
    with pytest.raises(ValueError, match="nothing was compared"):
        agreement.Comparison(output_scale=None).result()


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (4,)])
def test_outputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="cannot compare"):
        compared(np.zeros(shape))


def test_decisions_are_named_by_value_not_by_type():
    decisions = [3, 1, 2]
    names = {agreement.prediction_digest(np.array(decisions, dtype=dtype)) for dtype in (np.int64, np.uint8, ">i4")}
    assert len(names) == 1
    assert agreement.prediction_digest(np.array([3, 2, 1])) not in names
