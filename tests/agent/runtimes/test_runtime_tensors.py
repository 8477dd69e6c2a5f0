from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.runtimes import tensors
from evenfleet_shared.errors import DataError, ModelRefusedError
from evenfleet_shared.manifest import TensorSpec


def tensor(dtype, *, scale=None, zero_point=None, shape=(1, 3)):
    return TensorSpec(name="x", shape=shape, dtype=dtype, scale=scale, zero_point=zero_point)


@given(st.lists(st.floats(-7.5, 7.5, width=32), min_size=1, max_size=20))
def test_quantised_values_come_back_within_half_a_step(values):
    spec = tensor("int8", scale=1 / 16, zero_point=1)
    real = np.array(values, dtype=np.float32)
    assert np.abs(tensors.to_real(tensors.to_stored(real, spec), spec) - real).max() <= 0.5 / 16 + 1e-6


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255), ("int16", -32768, 32767)])
def test_values_beyond_the_type_are_cut_off_and_do_not_wrap(dtype, low, high):
    stored = tensors.to_stored(np.array([-1e9, 1e9]), tensor(dtype, scale=0.1, zero_point=0))
    assert stored.tolist() == [low, high]


def test_large_values_do_not_overflow_64_bits():
    stored = tensors.to_stored(np.array([-1e30, 1e30]), tensor("int64"))
    assert stored[0] < 0 < stored[1]


def test_values_of_the_models_own_integer_type_are_taken_as_they_are():
    pixels = np.array([0, 128, 255], dtype=np.uint8)
    assert tensors.to_stored(pixels, tensor("uint8", scale=0.007, zero_point=128)) is pixels


def test_whole_numbers_that_are_not_quantised_are_rounded():
    assert tensors.to_stored(np.array([1.6, 2.4]), tensor("int32")).tolist() == [2, 2]


def test_truth_values_are_made_of_numbers():
    assert tensors.to_stored(np.array([0.0, 2.0]), tensor("bool")).tolist() == [False, True]


@pytest.mark.parametrize("dtype", ["string", "object", "resource", "str"])
def test_tensor_of_text_is_refused(dtype):
    with pytest.raises(ModelRefusedError, match="plain numbers"):
        tensors.numeric_dtype(tensor(dtype))


def test_batch_keeps_its_size_when_samples_have_too_many_elements():
    with pytest.raises(DataError, match=r"takes shape \[2, 64\], found values of shape \[2, 128\]"):
        tensors.fit(np.zeros((2, 128)), (-1, 64), "x")
