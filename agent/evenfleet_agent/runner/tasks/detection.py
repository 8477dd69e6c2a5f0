"""Object detection: boxes with a class and a score each, ranked and matched as COCO does.

* Outputs are those of TFLite's detection post-processing (boxes, classes, scores, count, in any order that their names,
  their shapes or `criteria.detection_outputs` tell), or one tensor of rows (box, score, class). A box is two corners, in
  the same order and unit as the labels' boxes.
* Labels are rows (box, class), as many for each sample; those of class -1 are no objects.
* A sample is right when all its objects are found and nothing else is claimed: detections with a score of
  `criteria.score_threshold` at least, each the best match of an object of its own class, no other detection's, at an IoU
  of `criteria.iou_threshold` at least. Counts are of these objects and claims, by class.
* The headline is COCO's mAP: average precision at 101 recalls, the mean over IoU 0.5 to 0.95 in steps of 0.05 and over
  the classes that have objects, with at most 100 detections a class and sample. mAP50 and mAP75 stand beside it. There
  are no crowds and no sizes: a label is an object.
* A detection that is no finite numbers is a false claim of the highest rank. A count that is none makes the sample wrong.

Source:
    Lin et al. (2014), Microsoft COCO, and the evaluation code that defines it in practice (pycocotools 2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import (
    Batch,
    Exam,
    Score,
    Task,
    check_count,
    check_finite,
    rows,
)
from evenfleet_agent.runner.tasks.tally import Tally, reference_rows
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import Criteria, DetectionPart, TensorSpec

# Made as pycocotools makes them: 0.55 is not 0.5 + 0.05.
_IOUS: Final = np.linspace(0.5, 0.95, 10)
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS: Final = 100
_MAX_CLASSES: Final = 1001  # as many as a window has room to count
_WORDS: Final[dict[DetectionPart, tuple[str, ...]]] = {
    "boxes": ("box", "location"),
    "classes": ("class", "categor", "label"),
    "scores": ("score", "confidence"),
    "count": ("num", "count"),
}
# The order of the operator's own outputs (TFLite_Detection_PostProcess), what names and shapes leave open is taken in it.
_IN_ORDER: Final[tuple[DetectionPart, ...]] = ("boxes", "classes", "scores", "count")


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return the objects, shape ``(n, objects, 5)``, float32: two corners and the class, -1 for no object."""
    check_count(given, samples)
    if given.ndim != 3 or given.shape[2] != 5:
        raise DataError(
            f"labels must be of shape [{samples}, objects, 5] (two corners and the class, which is -1 for no object), "
            f"found {list(given.shape)}"
        )
    check_finite(given, "labels")
    labels = given.astype(np.float32)
    objects = labels[labels[..., 4] != -1]
    classes = objects[:, 4]
    if not ((classes == np.rint(classes)) & (classes >= 0) & (classes < _MAX_CLASSES)).all():
        raise DataError(
            f"classes of labelled objects must be whole numbers from 0 to {_MAX_CLASSES - 1}, or -1 for no object; "
            f"found {classes.min():g} to {classes.max():g}"
        )
    if not (objects[:, 2:4] > objects[:, :2]).all():
        wrong = objects[(objects[:, 2:4] <= objects[:, :2]).any(axis=1)][0]
        raise DataError(
            f"labelled boxes must have a size: the second corner is above the first in both coordinates; found "
            f"{[round(float(number), 4) for number in wrong[:4]]}"
        )
    return labels


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    _Reader(exam.tensors, exam.criteria).read(outputs, 1)
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """Detections of one sample, the highest score first; `whole` is false where it cannot be told how many there are."""

    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    whole: bool

    def above(self, score: float) -> _Found:
        """Return those with a score of at least so much."""
        kept = self.scores >= score
        return _Found(self.boxes[kept], self.classes[kept], self.scores[kept], self.whole)


class _Reader:
    """Take the outputs of some samples apart, by which tensor is what."""

    def __init__(self, tensors: Sequence[TensorSpec], criteria: Criteria) -> None:
        self._tensors = tensors
        self._places = _places(tensors, criteria.detection_outputs)

    def read(self, outputs: Sequence[npt.NDArray[np.float32]], samples: int) -> list[_Found]:
        """Return the detections of each sample.

        Raises:
            DataError: The tensors do not go together.
        """
        flat = [rows(output, samples) for output in outputs]
        if self._places is None:
            if outputs[0].shape[-1] != 6:
                raise _unclear(self._tensors)
            return [
                _sorted(table[:, :4], table[:, 5], table[:, 4], len(table)) for table in flat[0].reshape(samples, -1, 6)
            ]
        boxes, classes, scores = (flat[self._places[part]] for part in ("boxes", "classes", "scores"))
        if boxes.shape[1] != 4 * scores.shape[1] or classes.shape != scores.shape:
            raise _unclear(self._tensors)
        counts = (
            flat[self._places["count"]][:, 0]
            if "count" in self._places
            else np.full(samples, scores.shape[1], np.float32)
        )
        return [
            _sorted(b.reshape(-1, 4), c, s, float(n)) for b, c, s, n in zip(boxes, classes, scores, counts, strict=True)
        ]

    def whole_rows(self, outputs: Sequence[npt.NDArray[np.float32]], samples: int) -> npt.NDArray[np.float32]:
        """Return all outputs in one row per sample, with nothing where there are no detections.

        TFLite leaves there what was in the memory before: no run is like another.
        """
        flat = [rows(output, samples).copy() for output in outputs]
        if self._places is not None and "count" in self._places:
            counts = flat[self._places["count"]][:, 0]
            for part, width in (("boxes", 4), ("classes", 1), ("scores", 1)):
                filled = flat[self._places[part]].reshape(samples, -1, width)  # type: ignore[index]
                # Where the count is none of a number everything stays.
                filled[np.arange(filled.shape[1]) >= counts[:, np.newaxis]] = 0.0
        return np.concatenate(flat, axis=1)


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._exam = exam
        self._tally = Tally(exam, exam.tensors)
        self._reader = _Reader(exam.tensors, exam.criteria)
        self._objects = np.zeros(0, dtype=np.int64)  # by class
        self._counts = np.zeros((3, 0), dtype=np.int64)  # tp, fp, fn by class
        if exam.labels is not None:
            true = exam.labels[..., 4]
            classes = exam.classes or int(max(true.max(), 0)) + 1
            if true.max() >= classes:
                raise DataError(
                    f"labels go up to class {true.max():.0f}, the golden set has {classes} (0 to {classes - 1})"
                )
            self._objects = np.bincount(true[true >= 0].astype(np.int64), minlength=classes)
            self._counts = np.zeros((3, classes), dtype=np.int64)
        # By class: scores, and which detections match at which IoU. Precision is of all samples' detections in one rank.
        self._ranked: dict[int, list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]] = {}

    def add(self, batch: Batch) -> None:
        found = self._reader.read(batch.outputs, batch.samples)
        criteria = self._exam.criteria
        claims = [one.above(criteria.score_threshold) for one in found]
        if batch.labels is not None:
            for one, claimed, label in zip(found, claims, batch.labels, strict=True):
                objects = label[label[:, 4] >= 0].astype(np.float64)
                self._rank(one, objects)
                matched = _match(claimed, objects, criteria.iou_threshold)
                correct = claimed.whole and bool((matched >= 0).all()) and len(matched) == len(objects)
                self._count(claimed, objects, matched)
                self._tally.decide(_decision(claimed, matched), np.array([correct]))
        else:
            for claimed in claims:
                self._tally.decide(_decision(claimed, np.zeros(len(claimed.scores))), None)
        if batch.reference is not None:
            self._compare(batch, claims)

    def result(self) -> Score:
        precisions = np.array(
            [self._precision(number) for number in np.flatnonzero(self._objects).tolist()], dtype=np.float64
        ).reshape(-1, len(_IOUS))
        labelled = self._exam.labels is not None
        return self._tally.score(
            counts=self._counts.tolist(),
            metric="mAP" if labelled else None,
            score=float(precisions.mean()) if precisions.size else None,
            details={"mAP50": float(precisions[:, 0].mean()), "mAP75": float(precisions[:, 5].mean())}
            if precisions.size
            else {},
        )

    def _rank(self, found: _Found, objects: npt.NDArray[np.float64]) -> None:
        for number in np.unique(found.classes):
            if not (0 <= number < len(self._objects) and self._objects[int(number)]):
                continue  # of a class without objects there is no precision
            of_class = np.flatnonzero(found.classes == number)[:_MAX_DETECTIONS]
            its_objects = objects[objects[:, 4] == number]
            overlaps = _ious(found.boxes[of_class], its_objects[:, :4])
            matched = np.stack([_greedy(overlaps, iou) >= 0 for iou in _IOUS])
            self._ranked.setdefault(int(number), []).append((found.scores[of_class], matched))

    def _count(self, claimed: _Found, objects: npt.NDArray[np.float64], matched: npt.NDArray[np.int64]) -> None:
        classes = self._counts.shape[1]
        hit = np.zeros(len(objects), dtype=bool)
        hit[matched[matched >= 0]] = True
        false = claimed.classes[matched < 0]
        false = false[(false >= 0) & (false < classes) & (false == np.rint(false))]
        true = objects[:, 4].astype(np.int64)
        for row, numbers in enumerate((true[hit], false.astype(np.int64), true[~hit])):
            self._counts[row] += np.bincount(numbers, minlength=classes)

    def _precision(self, number: int) -> npt.NDArray[np.float64]:
        """Return a class's average precision at each IoU."""
        parts = self._ranked.get(int(number), [])
        if not parts:
            return np.zeros(len(_IOUS))
        scores = np.concatenate([scores for scores, _ in parts])
        hits = np.concatenate([matched for _, matched in parts], axis=1)[:, np.argsort(-scores, kind="stable")]
        true = np.cumsum(hits, axis=1)
        recall = true / self._objects[number]
        precision = true / np.arange(1, hits.shape[1] + 1)
        # The best precision at this recall or any higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        averages = np.zeros(len(_IOUS))
        for place, (at, reached) in enumerate(zip(precision, recall, strict=True)):
            first = np.searchsorted(reached, _RECALLS, side="left")
            averages[place] = at[first[first < len(at)]].sum() / len(_RECALLS)
        return averages

    def _compare(self, batch: Batch, claims: Sequence[_Found]) -> None:
        assert batch.reference is not None
        samples, outputs = batch.samples, batch.outputs
        widths = [rows(output, samples).shape[1] for output in outputs]
        expected = reference_rows(batch.reference, sum(widths))
        parts = np.split(expected, np.cumsum(widths)[:-1], axis=1)
        theirs = [part.reshape(output.shape) for part, output in zip(parts, outputs, strict=True)]
        criteria = self._exam.criteria
        others = [one.above(criteria.score_threshold) for one in self._reader.read(theirs, samples)]
        same = [
            ours.whole and other.whole and len(ours.scores) == len(other.scores)
            and bool((_match(ours, np.column_stack([other.boxes, other.classes]), criteria.iou_threshold) >= 0).all())
            for ours, other in zip(claims, others, strict=True)
        ]  # fmt: skip
        reader = self._reader
        self._tally.compare(reader.whole_rows(theirs, samples), reader.whole_rows(outputs, samples), np.array(same))


def _places(tensors: Sequence[TensorSpec], declared: tuple[DetectionPart, ...]) -> dict[DetectionPart, int] | None:
    """Return which output is what; None where one tensor has it all."""
    if declared:
        if len(declared) != len(tensors):
            raise DataError(f"criteria.detection_outputs names {len(declared)} outputs, the model has {len(tensors)}")
        return {part: place for place, part in enumerate(declared)}
    if len(tensors) == 1:
        return None
    if len(tensors) not in {3, 4}:
        raise _unclear(tensors)
    named: dict[DetectionPart, int] = {}
    for place, tensor in enumerate(tensors):
        meant = [part for part, words in _WORDS.items() if any(word in tensor.name.lower() for word in words)]
        if len(meant) == 1 and meant[0] not in named:
            named[meant[0]] = place
    if len(named) == len(tensors) and {"boxes", "classes", "scores"} <= set(named):
        return named
    boxes = [place for place, tensor in enumerate(tensors) if len(tensor.shape) >= 2 and tensor.shape[-1] == 4]
    if len(boxes) != 1:
        raise _unclear(tensors)
    left = [place for place in range(len(tensors)) if place not in boxes]
    counts = [place for place in left if math.prod(tensors[place].shape) in {1, -1}]
    if len(left) == 3 and len(counts) == 1:
        left.remove(counts[0])
        left.append(counts[0])
    return {"boxes": boxes[0], **dict(zip(_IN_ORDER[1:], left, strict=False))}


def _unclear(tensors: Sequence[TensorSpec]) -> DataError:
    shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)
    return DataError(
        f"the model's outputs ({shapes[:300]}) are no detections: expected boxes [n, k, 4], classes [n, k], scores [n, k] "
        "and perhaps their count [n], or one tensor [n, k, 6] of box, score and class"
    )


def _sorted(boxes: npt.NDArray[Any], classes: npt.NDArray[Any], scores: npt.NDArray[Any], count: float) -> _Found:
    whole = 0 <= count <= len(scores)  # false for NaN too
    n = int(count) if whole else len(scores)
    boxes, classes, scores = (part[:n].astype(np.float64) for part in (boxes, classes, scores))
    broken = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(classes) & np.isfinite(scores))
    # Nothing overlaps with a box without a size.
    boxes = np.where(broken[:, np.newaxis], 0.0, boxes)
    scores = np.where(broken, np.finfo(np.float64).max, scores)
    classes = np.where(np.isfinite(classes), classes, -1.0)
    order = np.argsort(-scores, kind="stable")
    return _Found(boxes[order], classes[order], scores[order], bool(whole))


def _match(found: _Found, objects: npt.NDArray[np.float64], iou: float) -> npt.NDArray[np.int64]:
    """Return each detection's object, -1 for none; an object is one detection's."""
    overlaps = _ious(found.boxes, objects[:, :4])
    overlaps[found.classes[:, np.newaxis] != objects[:, 4]] = 0.0
    return _greedy(overlaps, iou)


def _greedy(overlaps: npt.NDArray[np.float64], iou: float) -> npt.NDArray[np.int64]:
    """Give each detection, the highest score first, the object left that it overlaps most, if by `iou` at least."""
    matched = np.full(len(overlaps), -1, dtype=np.int64)
    if not overlaps.size:
        return matched
    left = overlaps.copy()
    for place, row in enumerate(left):
        # Of two alike the last one, as in COCO's code; nothing more than that depends on it.
        best = len(row) - 1 - int(row[::-1].argmax())
        if row[best] >= min(iou, 1.0 - 1e-10):
            matched[place] = best
            left[:, best] = -1.0
    return matched


def _ious(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the overlap of every box with every other, shape ``(a, b)``; a box turned inside out has none."""
    low, high = np.maximum(a[:, np.newaxis, :2], b[:, :2]), np.minimum(a[:, np.newaxis, 2:], b[:, 2:])
    inner = np.clip(high - low, 0.0, None).prod(axis=2)
    sizes = [np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=1) for boxes in (a, b)]
    union = sizes[0][:, np.newaxis] + sizes[1] - inner
    overlaps: npt.NDArray[np.float64] = np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)
    return overlaps


def _decision(claimed: _Found, matched: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what is claimed of a sample: the class of each claim and the object it is of, in an order of their own."""
    pairs = np.column_stack([np.clip(claimed.classes, -1, 2**30), matched]).astype("<i4")
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return np.concatenate([[len(ordered)], ordered.ravel()]).astype("<i4")


DETECTION: Final = Task(
    name="detection",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    threshold="score_threshold",
    counted="objects",
)
