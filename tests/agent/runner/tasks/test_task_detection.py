"""Average precision against pycocotools on random scenes; the right and the wrong by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfleet_agent.runner.tasks import detection
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec

BOX = [0.1, 0.1, 0.5, 0.5]
OTHER = [0.6, 0.6, 0.9, 0.9]


def outputs(*samples, width=3):
    """Return boxes, classes, scores, count from lists of (box, class, score) by sample."""
    boxes, classes, scores = (np.zeros((len(samples), width, *more)) for more in ((4,), (), ()))
    for i, sample in enumerate(samples):
        for j, (box, number, score) in enumerate(sample):
            boxes[i, j], classes[i, j], scores[i, j] = box, number, score
    return [boxes, classes, scores, np.array([len(sample) for sample in samples])]


def labels(*samples, width=2):
    found = np.full((len(samples), width, 5), -1.0)
    for i, sample in enumerate(samples):
        for j, (box, number) in enumerate(sample):
            found[i, j] = [*box, number]
    return found


def tensors(*named):
    return tuple(TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in named)


def random_scene(seed, *, samples=8, classes=3, most=6, detections=12, step=None):
    """Return labels, and detections near some of them; scores are coarse, so that many are alike."""
    draw = np.random.default_rng(seed)
    low = draw.random((samples, most, 2)) * 0.7
    true = np.concatenate([low, low + 0.05 + draw.random((samples, most, 2)) * 0.25], axis=2)
    numbers = draw.integers(0, classes, (samples, most, 1))
    objects = np.concatenate([true, numbers], axis=2)
    objects[draw.random((samples, most)) < 0.3] = -1
    chosen = draw.integers(0, most, (samples, detections))
    rows = np.arange(samples)[:, np.newaxis]
    boxes = true[rows, chosen] + draw.normal(scale=0.02, size=(samples, detections, 4))
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 0.01)
    seen = np.where(
        draw.random((samples, detections)) < 0.8,
        numbers[rows, chosen, 0],
        draw.integers(0, classes, (samples, detections)),
    )
    scores = draw.random((samples, detections))
    scores = np.round(scores, 1) if step else scores
    return objects.astype(np.float32), [
        boxes.astype(np.float32),
        seen,
        scores.astype(np.float32),
        draw.integers(0, detections + 1, samples),
    ]


def coco_map(objects, found):
    """Return pycocotools' mAP, mAP50 and mAP75 of the same scene, without its areas and crowds."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")

    def xywh(box):
        box = [float(number) for number in box]
        return [box[1], box[0], box[3] - box[1], box[2] - box[0]]

    truth, results = [], []
    for image, (sample, boxes, classes, scores, count) in enumerate(zip(objects, *found, strict=True)):
        for *box, number in sample:
            if number >= 0:
                truth.append(
                    {
                        "id": len(truth) + 1,
                        "image_id": image,
                        "category_id": int(number),
                        "bbox": xywh(box),
                        "area": 1.0,
                        "iscrowd": 0,
                    }
                )
        for box, number, score in list(zip(boxes, classes, scores, strict=True))[: int(count)]:
            results.append({"image_id": image, "category_id": int(number), "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = {
            "images": [{"id": image} for image in range(len(objects))],
            "categories": [{"id": number} for number in range(20)],
            "annotations": truth,
        }
        gt.createIndex()
        evaluation = cocoeval.COCOeval(gt, gt.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("step", [None, 0.1])
@pytest.mark.parametrize("seed", range(15))
def test_mean_average_precision_is_pycocotools(scored, seed, step):
    objects, found = random_scene(seed, step=step)
    score = scored("detection", found, objects, batch=3)
    expected = coco_map(objects, found)
    assert score.metric == "mAP"
    assert [score.score, score.details["mAP50"], score.details["mAP75"]] == pytest.approx(expected, abs=1e-9)
    assert 0.05 < score.score < 0.95


def test_more_than_a_hundred_detections_of_a_class_are_cut_as_in_pycocotools(scored):
    objects, found = random_scene(3, samples=2, classes=1, most=40, detections=150)
    found[3][:] = 150
    assert scored("detection", found, objects).score == pytest.approx(coco_map(objects, found)[0], abs=1e-9)


def test_class_of_which_nothing_is_found_counts_as_nothing(scored):
    score = scored("detection", outputs([(BOX, 0, 0.9)]), labels([(BOX, 0), (OTHER, 1)]))
    assert score.score == 0.5
    assert (score.tp, score.fp, score.fn) == ((1, 0), (0, 0), (0, 1))


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([(BOX, 0, 0.9), (OTHER, 1, 0.8)], True),
        ([(BOX, 0, 0.9), (OTHER, 1, 0.4)], False),  # not claimed
        ([(BOX, 0, 0.9), (OTHER, 1, 0.8), (BOX, 0, 0.7)], False),  # claimed twice
        ([(BOX, 0, 0.9), (OTHER, 1, 0.8), (BOX, 0, 0.4)], True),
        ([(BOX, 1, 0.9), (OTHER, 1, 0.8)], False),  # of another class
        ([(BOX, 0, 0.9), (OTHER, 1, 0.8), ([0.0, 0.6, 0.3, 0.9], 7, 0.6)], False),  # of no class
        ([(BOX, 0, 0.9), ([0.6, 0.6, 0.9, 0.76], 1, 0.8)], True),  # IoU 0.53
        ([(BOX, 0, 0.9), ([0.6, 0.6, 0.9, 0.74], 1, 0.8)], False),  # IoU 0.47
        ([(BOX, 0, 0.9), ([0.9, 0.9, 0.6, 0.6], 1, 0.8)], False),  # inside out
        ([], False),
    ],
)
def test_sample_is_right_when_all_objects_are_found_and_nothing_else_is_claimed(scored, found, right):
    assert scored("detection", outputs(found), labels([(BOX, 0), (OTHER, 1)])).correct.tolist() == [right]


def test_thresholds_are_the_golden_sets(scored):
    found = outputs([(BOX, 0, 0.3), ([0.6, 0.6, 0.9, 0.74], 1, 0.8)])
    assert scored(
        "detection", found, labels([(BOX, 0), (OTHER, 1)]), score_threshold=0.2, iou_threshold=0.4
    ).correct.all()


def test_sample_without_objects_is_right_when_nothing_is_claimed(scored):
    score = scored("detection", outputs([], [(BOX, 0, 0.9)]), labels([], []))
    assert score.correct.tolist() == [True, False]
    assert (score.metric, score.score) == ("mAP", None)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_detection_that_is_no_numbers_is_a_false_claim_of_the_highest_rank(scored, part, number):
    found = outputs([(BOX, 0, 0.9), (OTHER, 0, 0.01)])
    found[part][0, 1] = number
    score = scored("detection", found, labels([(BOX, 0)]))
    assert score.correct.tolist() == [False]
    assert score.tp == (1,)
    if part != 1:
        assert score.fp == (1,)
        assert score.score == pytest.approx(0.5)


@pytest.mark.parametrize("count", [np.nan, np.inf, -1, 4])
def test_count_that_is_none_makes_the_sample_wrong(scored, count):
    found = outputs([(BOX, 0, 0.9)], [(BOX, 0, 0.9)])
    found[3] = np.array([count, 1.0])
    assert scored("detection", found, labels([(BOX, 0)], [(BOX, 0)])).correct.tolist() == [False, True]


def test_what_is_beyond_the_count_is_not_looked_at(scored):
    found = outputs([(BOX, 0, 0.9), (OTHER, 0, 0.9)])
    found[3] = np.array([1])
    assert scored("detection", found, labels([(BOX, 0)])).correct.all()


@given(seed=st.integers(0, 2**32), numbers=st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_whatever_a_detector_gives_is_scored(scored, seed, numbers):
    objects, found = random_scene(seed, samples=2)
    found = [part.astype(np.float32) for part in found]
    draw = np.random.default_rng(seed)
    for number in numbers:
        part = found[draw.integers(0, 4)]
        part.flat[draw.integers(0, part.size)] = number
    score = scored("detection", found, objects, reference=np.concatenate([p.reshape(2, -1) for p in found], axis=1))
    assert score.correct.shape == (2,)
    assert score.score is None or 0.0 <= score.score <= 1.0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_average_precision_does_not_depend_on_the_order_of_detections_or_samples(scored, seed):
    objects, found = random_scene(seed, samples=4)
    found[3][:] = found[2].shape[1]
    draw = np.random.default_rng(seed)
    samples, places = draw.permutation(4), draw.permutation(found[2].shape[1])
    shuffled = [*(part[samples][:, places] for part in found[:3]), found[3]]
    before, after = scored("detection", found, objects), scored("detection", shuffled, objects[samples])
    assert after.score == pytest.approx(before.score)
    assert after.tp == before.tp
    assert after.correct.tolist() == before.correct[samples].tolist()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_finding_just_what_is_there_is_perfect_and_one_false_claim_of_a_high_score_is_not(scored, seed):
    objects, _ = random_scene(seed, samples=3)
    there = objects[..., 4] >= 0
    # Those that are no objects go to the end, beyond the count.
    order = np.argsort(~there, axis=1, kind="stable")
    sorted_objects = np.take_along_axis(objects, order[..., np.newaxis], axis=1)
    found = [sorted_objects[..., :4], sorted_objects[..., 4], np.full(there.shape, 0.9), there.sum(axis=1)]
    score = scored("detection", found, objects)
    assert score.correct.all()
    assert score.score in {1.0, None}
    worse = [part.copy() for part in found]
    worse[0][0, 0] = [-5, -5, -4, -4]
    assert not scored("detection", worse, objects).correct[0] or not there[0].any()


def test_boxes_may_be_in_any_unit_and_either_order_of_corners(scored):
    objects, found = random_scene(5)
    plain = scored("detection", found, objects)
    scaled = [found[0] * 320, *found[1:]]
    turned = [found[0][..., [1, 0, 3, 2]], *found[1:]]
    assert scored("detection", scaled, objects * np.array([320, 320, 320, 320, 1])).score == pytest.approx(plain.score)
    assert scored("detection", turned, objects[..., [1, 0, 3, 2, 4]]).score == pytest.approx(plain.score)


@pytest.mark.parametrize(
    ("order", "names", "declared"),
    [
        ([0, 1, 2, 3], ["TFLite_Detection_PostProcess", "TFLite_Detection_PostProcess:1", "TFLite_Detection_PostProcess:2", "TFLite_Detection_PostProcess:3"], ()),
        ([0, 1, 2], ["a", "b", "c"], ()),
        ([3, 1, 2, 0], ["a", "b", "c", "d"], ()),  # boxes and count by their shapes, the others in the operator's order
        ([2, 3, 0, 1], ["scores", "num_detections", "detection_boxes", "detection_classes"], ()),
        ([2, 0, 3, 1], ["StatefulPartitionedCall:1", "StatefulPartitionedCall:3", "StatefulPartitionedCall:0", "StatefulPartitionedCall:2"], ("scores", "boxes", "count", "classes")),
    ],
)  # fmt: skip
def test_outputs_are_told_apart_by_name_shape_or_declaration(scored, order, names, declared):
    objects, found = random_scene(7)
    found[3][:] = found[2].shape[1]
    plain = scored("detection", found, objects)
    chosen = [found[place] for place in order]
    named = tensors(*((name, (1, *part.shape[1:])) for name, part in zip(names, chosen, strict=True)))
    assert scored("detection", chosen, objects, tensors=named, detection_outputs=declared).score == plain.score


def test_one_tensor_of_box_score_and_class_is_taken(scored):
    objects, found = random_scene(7)
    found[3][:] = found[2].shape[1]
    rows = np.concatenate([found[0], found[2][..., np.newaxis], found[1][..., np.newaxis]], axis=2)
    assert scored("detection", rows, objects).score == scored("detection", found, objects).score


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 10)],
        [(1, 3, 4), (1, 3, 4), (1, 3), (1,)],
        [(1, 3, 4), (1, 3)],
        [(1, 3, 4), (1, 3), (1, 2), (1,)],
        [(1, 3), (1, 3), (1, 3), (1,)],
        [(1, 3, 4), (1, 3), (1, 3), (1,), (1,)],
    ],
)
def test_outputs_that_are_no_detections_are_refused_by_their_shapes(scored, shapes):
    with pytest.raises(DataError, match="are no detections: expected boxes"):
        scored("detection", [np.zeros(shape) for shape in shapes], labels([(BOX, 0)]))


def test_declaration_of_other_outputs_than_there_are_is_refused(scored):
    with pytest.raises(DataError, match="names 3 outputs, the model has 4"):
        scored(
            "detection", outputs([(BOX, 0, 1)]), labels([(BOX, 0)]), detection_outputs=("boxes", "scores", "classes")
        )


@pytest.mark.parametrize(
    ("given_labels", "message"),
    [
        (np.zeros((1, 4)), r"shape \[1, objects, 5\]"),
        (np.zeros((1, 2, 4)), r"shape \[1, objects, 5\]"),
        (np.zeros((1, 0, 5)), "hold nothing"),
        (np.zeros((2, 1, 5)), "1 samples and 2 labels"),
        (labels([(BOX, 0.5)]), "whole numbers"),
        (labels([(BOX, -2)]), "found -2 to -2"),
        (labels([(BOX, 5000)]), "from 0 to 1000"),
        (labels([([0.5, 0.5, 0.1, 0.1], 0)]), r"must have a size.*\[0.5, 0.5, 0.1, 0.1\]"),
        (labels([([0.5, 0.5, 0.5, 0.9], 0)]), "must have a size"),
        (labels([([np.nan, 0, 1, 1], 0)]), "NaN"),
        (labels([([0, 0, 1e300, 1], 0)]), "no room"),
        (np.array([[["a"] * 5]]), "must be numbers"),
    ],
)
def test_labels_that_are_no_objects_are_refused(scored, given_labels, message):
    with pytest.raises(DataError, match=message):
        scored("detection", outputs([(BOX, 0, 1)]), given_labels)


def test_class_beyond_the_golden_sets_is_refused(scored):
    with pytest.raises(DataError, match="labels go up to class 3, the golden set has 2"):
        scored("detection", outputs([(BOX, 0, 1)]), labels([(BOX, 3)]), classes=2)


def test_same_objects_found_are_the_same_decision_however_the_numbers_differ(scored):
    found = outputs([(BOX, 0, 0.9), (OTHER, 1, 0.8)])
    nearly = outputs([([0.6, 0.6, 0.9, 0.88], 1, 0.85), (BOX, 0, 0.8)])
    fewer = outputs([(BOX, 0, 0.9), (OTHER, 1, 0.3)])

    def compared(others):
        reference = np.concatenate([part.reshape(1, -1) for part in others], axis=1)
        return scored("detection", found, labels([(BOX, 0)]), reference=reference).agreement.noise_class

    assert [compared(others) for others in (found, nearly, fewer)] == ["bit-exact", "same-decision", "divergent"]


def test_what_is_beyond_the_count_is_no_difference(scored):
    """TFLite leaves there what was in the memory before."""
    found, others = outputs([(BOX, 0, 0.9)]), outputs([(BOX, 0, 0.9)])
    found[0][0, 2], found[1][0, 2], found[2][0, 2] = 7.0, 1e30, np.nan
    reference = np.concatenate([part.reshape(1, -1) for part in others], axis=1)
    assert scored("detection", found, labels([(BOX, 0)]), reference=reference).agreement.noise_class == "bit-exact"


def test_digest_is_over_what_was_found_not_over_the_numbers(scored):
    true = labels([(BOX, 0), (OTHER, 1)])
    found = [
        scored("detection", outputs(sample), true).prediction_digest
        for sample in (
            [(BOX, 0, 0.9), (OTHER, 1, 0.8)],
            [(OTHER, 1, 0.9), ([0.11, 0.1, 0.5, 0.5], 0, 0.7)],
            [(BOX, 0, 0.9)],
            [(BOX, 0, 0.9), (OTHER, 0, 0.8)],
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_overlap_of_two_boxes_is_that_of_their_areas():
    a, b = (
        np.array([[0.0, 0.0, 2.0, 2.0]]),
        np.array([[1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 2.0, 2.0]]),
    )
    assert detection._ious(a, b)[0].tolist() == [1 / 7, 0.0, 1.0]
