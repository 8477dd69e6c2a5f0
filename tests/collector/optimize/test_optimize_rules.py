"""The pure parts of pruning and distilling."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from evenfleet_collector.optimize import distil, prune

WEIGHTS = st_numpy.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(-4, 4, width=32)
)


@given(WEIGHTS, st.floats(0, 1))
def test_mask_drops_the_asked_share_and_nothing_larger_than_it_keeps(weights: np.ndarray, ratio: float) -> None:
    mask = prune.keep_mask(weights, ratio)
    assert int((mask == 0).sum()) == round(weights.size * ratio)
    dropped, kept = np.abs(weights[mask == 0]), np.abs(weights[mask == 1])
    assert not dropped.size or not kept.size or dropped.max() <= kept.min()


def test_last_kernel_and_those_too_small_to_save_anything_are_left_alone() -> None:
    shapes = {"first/kernel": (3, 3, 1, 16), "first/bias": (16,), "large/kernel": (800, 64), "last/kernel": (64, 10)}
    variables = [SimpleNamespace(path=path, shape=shape) for path, shape in shapes.items()]

    kernels = prune.prunable(SimpleNamespace(trainable_variables=variables))

    assert [kernel.path for kernel in kernels] == ["large/kernel"]


def test_kernels_of_a_deep_network_are_pruned_although_each_is_a_small_part() -> None:
    variables = [SimpleNamespace(path=f"layer{number}/kernel", shape=(10, 10)) for number in range(121)]

    kernels = prune.prunable(SimpleNamespace(trainable_variables=variables))

    assert [kernel.path for kernel in kernels] == [f"layer{number}/kernel" for number in range(1, 120)]


def test_sparsity_never_falls_and_ends_where_it_should() -> None:
    ratios = [prune.sparsity_at(step, 50, 0.6) for step in range(80)]
    assert ratios == sorted(ratios)
    assert ratios[50:] == [0.6] * 30


def test_higher_temperature_brings_scores_together_without_changing_their_order() -> None:
    outputs = np.array([[0.7, 0.2, 0.1]], dtype=np.float32)
    cold, hot = (distil.softened(outputs, "probabilities", temperature) for temperature in (1.0, 4.0))
    assert np.ptp(hot) < np.ptp(cold)
    assert hot.argsort().tolist() == cold.argsort().tolist()
    assert abs(hot.sum() - 1.0) < 1e-6
