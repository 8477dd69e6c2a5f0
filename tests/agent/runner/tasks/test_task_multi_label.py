"""Every figure against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError

metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(scored, seed):
    draw = np.random.default_rng(seed)
    outputs, labels = draw.random((100, 9)), draw.integers(0, 2, (100, 9))
    near = np.where(draw.random((100, 9)) < 0.95, labels, 1 - labels) * 0.4 + outputs * 0.55
    score = scored("multi-label", near, labels, batch=3)
    claimed = near.astype(np.float32) > 0.5
    assert score.metric == "micro-F1"
    assert score.score == pytest.approx(metrics.f1_score(labels, claimed, average="micro"))
    assert score.correct.mean() == pytest.approx(metrics.accuracy_score(labels, claimed))
    assert score.details["hamming-loss"] == pytest.approx(metrics.hamming_loss(labels, claimed))
    counts = metrics.multilabel_confusion_matrix(labels, claimed)
    assert (score.tp, score.fp, score.fn) == tuple(map(tuple, (counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0])))


def test_sample_is_right_only_when_every_label_is(scored):
    score = scored("multi-label", np.array([[0.9, 0.9], [0.9, 0.1]]), [[1, 1], [1, 1]])
    assert score.correct.tolist() == [True, False]


def test_nothing_labelled_and_nothing_claimed_is_right_and_has_no_f1(scored):
    score = scored("multi-label", np.zeros((2, 3)), np.zeros((2, 3)))
    assert score.correct.all()
    assert (score.metric, score.score) == ("micro-F1", None)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_sample_whose_outputs_are_no_numbers_is_wrong(scored, number):
    score = scored("multi-label", np.array([[0.9, number], [0.9, 0.1]]), [[1, 0], [1, 0]])
    assert score.correct.tolist() == [False, True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 2, 0]], "0 or 1"),
        ([[0, np.nan, 0]], "0 or 1"),
        ([1], "0 or 1"),
        ([[[0, 1, 0]]], "0 or 1"),
        (np.zeros((1, 0)), "hold nothing"),
        ([["a", "b", "c"]], "must be numbers"),
        ([[0, 1]], "3 numbers per sample, the data have 2 labels"),
        ([[0, 1, 0]] * 2, "1 samples and 2 labels"),
    ],
)
def test_labels_that_are_none_are_refused(scored, labels, message):
    with pytest.raises(DataError, match=message):
        scored("multi-label", np.zeros((1, 3)), labels)
