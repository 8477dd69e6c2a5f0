"""Cosines against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError

pairwise = pytest.importorskip("sklearn.metrics.pairwise")


def test_cosines_are_those_of_scikit_learn(scored):
    draw = np.random.default_rng(0)
    outputs, labels = draw.normal(size=(50, 8)), draw.normal(size=(50, 8))
    outputs[3] = 0.0
    outputs[5:] = labels[5:] + 0.3 * outputs[5:]
    score = scored("embedding", outputs, labels, batch=7)
    expected = np.diag(pairwise.cosine_similarity(outputs, labels))
    assert score.metric == "mean-cosine"
    assert score.score == pytest.approx(expected.mean())
    assert score.details["lowest-cosine"] == pytest.approx(expected.min())
    assert score.correct.tolist() == (expected >= 0.9).tolist()


def test_embedding_without_labels_should_be_the_references(scored):
    reference = np.eye(3)
    score = scored("embedding", reference[[0, 1, 1]] * 7, reference=reference)
    assert score.correct.tolist() == [True, True, False]
    assert score.agreement.noise_class == "divergent"


def test_labels_go_before_what_the_reference_gave(scored):
    labels, reference = np.eye(2), np.eye(2)[::-1]
    score = scored("embedding", labels, labels, reference=reference)
    assert score.correct.all()
    assert score.agreement.noise_class == "divergent"


def test_same_embedding_holds_any_threshold(scored):
    vectors = np.random.default_rng(1).normal(size=(100, 17))
    assert scored("embedding", vectors, vectors, cosine_threshold=1.0).correct.all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_embedding_that_is_no_numbers_is_wrong_at_any_threshold(scored, number):
    score = scored("embedding", [[[number, 1.0], [1.0, 0.0]]][0:1], [[0, 1], [1, 0]], cosine_threshold=-1.0)
    assert score.correct.tolist() == [False, True]
    assert score.score == 0.0


def test_reference_that_is_no_numbers_makes_the_sample_wrong(scored):
    score = scored("embedding", np.ones((2, 2)), reference=np.array([[1, np.nan], [1, 1]]))
    assert score.correct.tolist() == [False, True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[np.nan, 1]], "NaN"),
        ([1], "one number per sample"),
        ([[1, 2, 3]], "2 dimensions, the labels' 3"),
        ([[1, 2]] * 2, "1 samples and 2 labels"),
    ],
)
def test_labels_that_are_no_embeddings_are_refused(scored, labels, message):
    with pytest.raises(DataError, match=message):
        scored("embedding", np.ones((1, 2)), labels)
