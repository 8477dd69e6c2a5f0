"""Every figure against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError

metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_figures_are_those_of_scikit_learn(scored, width, offset):
    draw = np.random.default_rng(width)
    labels = draw.normal(size=(80, width)).astype(np.float32) + np.float32(offset)
    outputs = labels + draw.normal(scale=0.3, size=labels.shape).astype(np.float32)
    score = scored("regression", outputs, labels, batch=9, tolerance=0.25)
    assert score.metric == "RMSE"
    assert score.score == pytest.approx(metrics.mean_squared_error(labels, outputs) ** 0.5, rel=1e-5)
    assert score.details["MAE"] == pytest.approx(metrics.mean_absolute_error(labels, outputs), rel=1e-5)
    assert score.details["R2"] == pytest.approx(metrics.r2_score(labels, outputs), rel=1e-4)
    assert score.correct.tolist() == (np.abs(outputs.astype(float) - labels) <= 0.25).all(axis=1).tolist()
    assert score.tp == ()


def test_a_difference_of_just_the_tolerance_is_right(scored):
    assert scored("regression", np.array([[1.5], [1.75]]), [1.0, 1.0], tolerance=0.5).correct.tolist() == [True, False]


def test_constant_labels_have_no_r2(scored):
    assert set(scored("regression", np.array([[1.0], [2.0]]), [1, 1], tolerance=1.0).details) == {"MAE"}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_output_that_is_no_number_is_wrong_and_leaves_no_mean(scored, number):
    score = scored("regression", np.array([[number], [2.0]]), [1.0, 2.0], tolerance=1e300)
    assert score.correct.tolist() == [False, True]
    assert (score.metric, score.score, score.details) == ("RMSE", None, {"samples-not-finite": 1})


def test_largest_numbers_there_are_still_give_a_mean(scored):
    largest = float(np.finfo(np.float32).max)
    score = scored("regression", np.array([[largest], [-largest]]), [-largest, largest], tolerance=1.0)
    assert score.score == pytest.approx(2 * largest)


def test_rounding_noise_makes_no_new_decisions_and_a_tolerance_of_nothing_keeps_each_apart(scored):
    outputs = np.array([[1.0], [2.0]])
    digests = {scored("regression", outputs + noise, [1, 2], tolerance=0.1).prediction_digest for noise in (0, 1e-5)}
    assert len(digests) == 1
    exact = {scored("regression", outputs + noise, [1, 2], tolerance=0.0).prediction_digest for noise in (0, 1e-5)}
    assert len(exact) == 2


def test_agreement_is_by_the_tolerance(scored):
    labels = np.array([[1.0], [2.0]])
    near = scored("regression", labels + 0.05, labels, reference=labels, tolerance=0.1).agreement
    far = scored("regression", labels + 0.2, labels, reference=labels, tolerance=0.1).agreement
    assert (near.noise_class, far.noise_class) == ("same-decision", "divergent")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.nan, 1], "NaN"),
        ([np.inf, 1], "NaN, infinite"),
        ([1e300, 1], "no room"),
        (["a", "b"], "must be numbers"),
        ([1], "2 samples and 1 labels"),
        ([[1, 2], [3, 4]], "1 numbers per sample, the labels have 2"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(scored, labels, message):
    with pytest.raises(DataError, match=message):
        scored("regression", np.zeros((2, 1)), labels, tolerance=0.1)


def test_regression_without_a_tolerance_is_refused(scored):
    with pytest.raises(DataError, match="--tolerance"):
        scored("regression", np.zeros((2, 1)), [1.0, 2.0])
