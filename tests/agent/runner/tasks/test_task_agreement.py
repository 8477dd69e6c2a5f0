from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec

REFERENCE = np.array([[3.0, 4.0], [0.0, 10.0]])


def test_sample_is_right_up_to_a_tenth_of_the_references_size(scored):
    score = scored("agreement", REFERENCE + np.array([[0.0, 0.5], [1.01, 0.0]]), reference=REFERENCE)
    assert score.correct.tolist() == [True, False]
    assert score.metric == "relative-error"
    assert score.score == pytest.approx(np.sqrt((0.25 + 1.01**2) / 125))


def test_tolerance_is_the_golden_sets(scored):
    near = REFERENCE * 1.05
    assert scored("agreement", near, reference=REFERENCE).correct.all()
    assert not scored("agreement", near, reference=REFERENCE, tolerance=0.01).correct.any()


def test_outputs_of_any_shape_are_compared_vector_by_vector(scored):
    reference = np.zeros((2, 2, 2, 3))
    reference[..., 1] = 1.0
    outputs = reference.copy()
    outputs[1, 0, 0] = [1.1, 1.0, 0.0]
    score = scored("agreement", outputs, reference=reference, batch=2, tolerance=1.0)
    assert (score.agreement.noise_class, score.agreement.top1_ratio) == ("divergent", 7 / 8)
    assert score.correct.all()


def test_further_outputs_are_compared_where_the_reference_has_them(scored):
    outputs = [np.ones((2, 2)), np.full((2, 1), 5.0)]
    of_all = scored("agreement", outputs, reference=np.array([[1, 1, 5], [1, 1, 9]]))
    assert of_all.correct.tolist() == [True, False]
    assert of_all.agreement.noise_class == "divergent"
    of_first = scored("agreement", outputs, reference=np.ones((2, 2)))
    assert of_first.agreement.noise_class == "bit-exact"


def test_steps_are_told_where_all_outputs_have_the_same(scored):
    def tensors(*scales):
        return tuple(TensorSpec(name="y", shape=(1, 1), dtype="int8", scale=scale) for scale in scales)

    outputs, reference = [np.ones((1, 1)), np.ones((1, 1))], np.array([[1.0, 1.5]])
    assert scored("agreement", outputs, reference=reference, tensors=tensors(0.5, 0.5)).agreement.lsb_max == 1.0
    assert scored("agreement", outputs, reference=reference, tensors=tensors(0.5, 0.25)).agreement.lsb_max is None


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_are_wrong_and_leave_no_ratio(scored, number):
    outputs = REFERENCE.copy()
    outputs[0, 0] = number
    score = scored("agreement", outputs, reference=REFERENCE, tolerance=1e300)
    assert score.correct.tolist() == [False, True]
    assert (score.score, score.details) == (None, {"samples-not-finite": 1})
    assert score.agreement.noise_class == "divergent"


def test_reference_of_another_width_is_refused(scored):
    with pytest.raises(DataError, match="2 numbers per sample, the reference's outputs have 3"):
        scored("agreement", REFERENCE, reference=np.ones((2, 3)))


def test_labels_are_refused(scored):
    with pytest.raises(DataError, match="does not look at"):
        scored("agreement", REFERENCE, [0, 1], reference=REFERENCE)
