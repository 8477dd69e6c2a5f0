"""Figures against scikit-learn's, over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec

metrics = pytest.importorskip("sklearn.metrics")

N, H, W, C = 12, 5, 7, 4


def of_type(dtype, *shape, scale=None):
    return (TensorSpec(name="y", shape=shape, dtype=dtype, scale=scale),)


@pytest.fixture
def scene():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, C, (N, H, W)).astype(np.uint8)
    scores = draw.random((N, H, W, C)) + np.eye(C)[labels] * 0.8
    labels[draw.random((N, H, W)) < 0.1] = 255
    return scores.astype(np.float32), labels


def test_figures_are_those_of_scikit_learn(scored, scene):
    scores, labels = scene
    score = scored("segmentation", scores, labels, batch=5, iou_threshold=0.78)
    answers = scores.argmax(axis=-1)
    seen = labels != 255
    assert score.metric == "mIoU"
    assert score.score == pytest.approx(metrics.jaccard_score(labels[seen], answers[seen], average="macro"))
    assert score.details["pixel-accuracy"] == pytest.approx(metrics.accuracy_score(labels[seen], answers[seen]))
    counts = metrics.multilabel_confusion_matrix(labels[seen], answers[seen])
    assert (score.tp, score.fp, score.fn) == tuple(map(tuple, (counts[:, 1, 1], counts[:, 0, 1], counts[:, 1, 0])))
    right = [
        metrics.jaccard_score(label[mask], answer[mask], average="macro", labels=np.union1d(label[mask], answer[mask]))
        >= 0.78
        for label, answer, mask in zip(labels, answers, seen, strict=True)
    ]
    assert score.correct.tolist() == right
    assert 0 < sum(right) < N


def test_classes_may_come_first_and_class_numbers_alone(scored, scene):
    scores, labels = scene
    last = scored("segmentation", scores, labels)
    first = scored("segmentation", np.moveaxis(scores, -1, 1), labels)
    numbers = scored("segmentation", scores.argmax(axis=-1), labels, tensors=of_type("int64", 1, H, W), classes=C)
    with_channel = scored(
        "segmentation", scores.argmax(axis=-1)[..., np.newaxis], labels, tensors=of_type("uint8", 1, H, W, 1)
    )
    for other in (first, numbers, with_channel):
        assert (other.tp, other.fp, other.fn, other.score) == (last.tp, last.fp, last.fn, last.score)
        assert other.prediction_digest == last.prediction_digest


def test_one_score_per_pixel_is_a_mask(scored):
    labels = np.array([[[0, 1], [1, 1]]])
    scores = np.array([[[0.1, 0.9], [0.6, 0.4]]])
    for tensors in (of_type("float32", 1, 2, 2), of_type("uint8", 1, 2, 2, scale=1 / 255)):
        score = scored("segmentation", scores, labels, tensors=tensors)
        assert (score.tp, score.fp, score.fn) == ((1, 2), (1, 0), (0, 1))
    assert scored("segmentation", scores, labels, score_threshold=0.3).correct.all()


def test_class_that_occurs_nowhere_is_not_in_the_mean(scored):
    labels = np.zeros((1, 2, 2), dtype=np.int64)
    assert scored("segmentation", np.eye(3)[labels], labels).score == 1.0


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_wrong(scored, number):
    scores = np.eye(2)[[[[0, 1], [1, 1]]] * 2]
    scores[0, ..., 1] = number
    score = scored("segmentation", scores, np.array([[[0, 1], [1, 1]]] * 2))
    assert score.correct.tolist() == [False, True]
    assert (score.tp, score.fp, score.fn) == ((1, 3), (0, 0), (1, 3))


def test_class_number_that_the_golden_set_does_not_have_is_wrong_and_nobodys(scored):
    score = scored(
        "segmentation", np.array([[[0, 9]]]), np.array([[[0, 1]]]), tensors=of_type("int32", 1, 1, 2), classes=2
    )
    assert (score.tp, score.fp, score.fn) == ((1, 0), (0, 0), (0, 1))


def test_agreement_is_by_pixel(scored, scene):
    scores, labels = scene
    turned = scores.copy()
    turned[0, 0, 0] = np.roll(turned[0, 0, 0], 1)
    found = scored("segmentation", turned, labels, reference=scores).agreement
    assert (found.noise_class, found.top1_ratio) == ("divergent", 1 - 1 / (N * H * W))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2, 2)), "whole numbers"),
        (np.zeros((2, 4), dtype=int), "of shape \\[2, height, width\\]"),
        (np.zeros((1, 2, 2), dtype=int), "2 samples and 1 labels"),
        (np.full((2, 2, 2), 255), "sample 0: labels are from 255 to 255"),
        (np.full((2, 2, 2), -1), "sample 0: labels are from -1 to -1"),
        (np.full((2, 2, 2), 2**40), "expected classes from 0 to 1000"),
        (np.full((2, 2, 2), 3), "labels go up to 3, the model knows 3 classes"),
        (np.zeros((2, 3, 2), dtype=int), r"the model gives \[2, 2, 3\] per sample, the labels have \[3, 2\] pixels"),
        (np.zeros((2, 0, 2), dtype=int), "hold nothing"),
    ],
)
def test_labels_that_do_not_fit_are_refused(scored, labels, message):
    with pytest.raises(DataError, match=message):
        scored("segmentation", np.zeros((2, 2, 2, 3)), labels)
