"""Counts against scikit-learn's confusion matrix, and the decisions that no oracle has."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError

metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_scikit_learn(scored, seed):
    draw = np.random.default_rng(seed)
    outputs, labels = draw.normal(size=(200, 5)), draw.integers(0, 5, 200)
    score = scored("classification", outputs, labels, batch=7)
    matrix = metrics.confusion_matrix(labels, outputs.argmax(axis=1), labels=range(5))
    assert score.tp == tuple(np.diag(matrix))
    assert score.fp == tuple(matrix.sum(axis=0) - np.diag(matrix))
    assert score.fn == tuple(matrix.sum(axis=1) - np.diag(matrix))
    assert score.correct.mean() == metrics.accuracy_score(labels, outputs.argmax(axis=1))
    assert (score.metric, score.score) == (None, None)


def test_single_score_tells_two_classes_apart_above_the_threshold(scored):
    outputs = [[0.2], [0.5], [0.51], [0.9]]
    score = scored("classification", np.array(outputs), [0, 0, 1, 0])
    assert score.correct.tolist() == [True, True, True, False]
    assert (score.tp, score.fp, score.fn) == ((2, 1), (0, 1), (1, 0))


def test_threshold_of_a_logit_is_the_golden_sets(scored):
    score = scored("classification", np.array([[-0.1], [0.1]]), [0, 1], score_threshold=0.0)
    assert score.correct.all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_sample_whose_outputs_are_no_numbers_has_no_class(scored, number):
    """An argmax would find the NaN, and call the sample right."""
    score = scored("classification", np.array([[0, number, 0], [0, 1, 0]]), [1, 1])
    assert score.correct.tolist() == [False, True]
    assert (score.tp, score.fp, score.fn) == ((0, 1, 0), (0, 0, 0), (0, 1, 0))
    assert not scored("classification", np.array([[number], [number]]), [1, 0]).correct.any()


def test_masked_classes_are_no_hindrance(scored):
    assert scored("classification", np.array([[0, 1.0, -np.inf]]), [1]).correct.all()


def test_agreement_of_single_scores_is_by_their_class(scored):
    reference = np.array([[0.2], [0.8]])
    assert (
        scored("classification", reference + 0.1, [0, 1], reference=reference).agreement.noise_class == "same-decision"
    )
    turned = scored("classification", 1 - reference, [0, 1], reference=reference).agreement
    assert (turned.noise_class, turned.top1_ratio) == ("divergent", 0.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.5, 1]), "whole numbers"),
        (np.array([np.nan, 1]), "whole numbers"),
        (np.array([-1, 1]), "found -1 to 1"),
        (np.array([[1, 1], [0, 1]]), "not one-hot"),
        (np.array(["a", "b"]), "whole numbers"),
        (np.array([0]), "2 samples and 1 labels"),
        (np.array(0), "whole numbers"),
        (np.zeros((2, 0)), "not one-hot"),
    ],
)
def test_labels_that_are_no_classes_are_refused(scored, labels, message):
    with pytest.raises(DataError, match=message):
        scored("classification", np.zeros((2, 3)), labels)
