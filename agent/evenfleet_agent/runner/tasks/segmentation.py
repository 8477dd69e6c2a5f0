"""Semantic segmentation: one class for each pixel.

* A model gives a score per class and pixel (the classes last, or first as PyTorch has them) and means the largest;
  class numbers, in a tensor of whole numbers; or one score per pixel and means the second of two classes above
  `criteria.score_threshold`.
* Pixels labelled as no class (below 0, or 255 where there are fewer classes) are not looked at. A pixel whose outputs are
  no numbers has no class, and so is wrong.
* A sample is right when its IoU, the mean over the classes that are in its label or its answer, is
  `criteria.iou_threshold` at least.
* Counts are of pixels, by class. The headline is the mean over classes of tp / (tp + fp + fn) of all samples together
  (mIoU), over the classes that occur at all, as TensorFlow's MeanIoU has it; the share of right pixels stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import (
    Batch,
    Exam,
    Score,
    Task,
    check_count,
    entries,
    rows,
)
from evenfleet_agent.runner.tasks.tally import Tally, is_number, reference_rows
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec

_VOID: Final = 255
_MAX_CLASSES: Final = 1001  # as many as a window has room to count


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return the class of each pixel, shape ``(n, height, width)``, whole numbers of whatever size they come in."""
    check_count(given, samples)
    labels = given[..., 0] if given.ndim == 4 and given.shape[-1] == 1 else given
    if labels.ndim != 3 or labels.dtype.kind not in "iub":
        raise DataError(
            f"labels must be whole numbers, one class per pixel, of shape [{samples}, height, width]; found "
            f"{given.dtype} of shape {list(given.shape)}"
        )
    for number, label in enumerate(labels):
        if label.max() >= _MAX_CLASSES or not ((label >= 0) & (label != _VOID)).any():
            raise DataError(
                f"sample {number}: labels are from {label.min()} to {label.max()}; expected classes from 0 to "
                f"{_MAX_CLASSES - 1}, {_VOID} or below 0 for pixels of no class, and one pixel of a class at least"
            )
    return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    assert exam.labels is not None
    scores = _by_class(entries(outputs[0], 1), exam.labels.shape[1:])
    classes = _classes(exam, scores)
    highest = max(int(_counted(label, classes).max()) for label in exam.labels)
    if highest >= classes:
        raise DataError(
            f"labels go up to {highest}, the model knows {classes} classes (0 to {classes - 1}); the data do not fit "
            "the model"
        )
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._exam = exam
        self._tally = Tally(exam, exam.tensors[:1])
        self._classes = 0  # known with the first outputs
        self._counts: npt.NDArray[np.int64] | None = None  # tp, fp, fn by class

    def add(self, batch: Batch) -> None:
        exam, samples = self._exam, batch.samples
        output = entries(batch.outputs[0], samples)
        size = output.shape[1:3] if batch.labels is None else batch.labels.shape[1:]
        scores = _by_class(output, size)
        answers = self._decide(scores)
        correct = None
        if batch.labels is not None:
            classes = self._classes = self._classes or _classes(exam, scores)
            counts = np.stack(
                [_count(label, answer, classes) for label, answer in zip(batch.labels, answers, strict=True)]
            )
            correct = np.array([_mean_iou(sample) >= exam.criteria.iou_threshold for sample in counts])
            together = counts.sum(axis=0)
            self._counts = together if self._counts is None else self._counts + together
        self._tally.decide(answers.astype("<i2"), correct)
        if batch.reference is not None:
            flat = rows(output, samples)
            expected = reference_rows(batch.reference, flat.shape[1])
            self._tally.compare(
                expected, flat, self._decide(_by_class(expected.reshape(output.shape), size)) == answers
            )

    def result(self) -> Score:
        metric, score, details = None, None, {}
        counts = np.zeros((3, 0), dtype=np.int64) if self._counts is None else self._counts
        if counts.size:
            metric, score = "mIoU", _mean_iou(counts)
            right, _, missed = counts.sum(axis=1)
            details["pixel-accuracy"] = float(right / (right + missed))
        return self._tally.score(
            counts=counts.tolist(),
            metric=metric,
            score=score,
            details=details,
        )

    def _decide(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the class of each pixel, -1 for none, shape ``(n, height, width)``."""
        usable = is_number(scores)
        if scores.shape[-1] > 1:
            return np.where(usable, scores.argmax(axis=-1), -1)
        values = scores[..., 0]
        if _holds_classes(self._exam.tensors[0]):
            return np.where(usable & (values >= 0) & (values < _MAX_CLASSES), values, -1).astype(np.int64)
        return np.where(usable, values > self._exam.criteria.score_threshold, -1)


def _by_class(output: npt.NDArray[np.float32], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return an output as ``(n, height, width, classes)``, whichever way round it comes.

    Raises:
        DataError: It is of another size than the labels.
    """
    if output.shape[1:] == size:
        return output[..., np.newaxis]
    if output.ndim == 4 and output.shape[1:3] == size:
        return output
    if output.ndim == 4 and output.shape[2:] == size:
        return np.moveaxis(output, 1, -1)
    raise DataError(
        f"the model gives {list(output.shape[1:])} per sample, the labels have {list(size)} pixels; expected one answer "
        "for each pixel"
    )


def _holds_classes(tensor: TensorSpec) -> bool:
    return tensor.dtype.startswith(("int", "uint")) and not tensor.scale


def _classes(exam: Exam, scores: npt.NDArray[np.float32]) -> int:
    """Return how many classes the model tells apart."""
    if scores.shape[-1] > 1:
        return min(int(scores.shape[-1]), _MAX_CLASSES)
    if not _holds_classes(exam.tensors[0]):
        return 2
    # Class numbers say nothing of how many there are.
    assert exam.labels is not None
    highest = max(int(_counted(label, _VOID).max()) for label in exam.labels)
    return exam.classes or max(highest + 1, 2)


def _counted(label: npt.NDArray[Any], classes: int) -> npt.NDArray[Any]:
    """Return the labels of the pixels that have one."""
    counted: npt.NDArray[Any] = label[(label >= 0) & ((label != _VOID) | (classes > _VOID))]
    return counted


def _count(label: npt.NDArray[Any], answer: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Return tp, fp and fn by class, shape ``(3, classes)``."""
    looked_at = (label >= 0) & ((label != _VOID) | (classes > _VOID))
    true, given = label[looked_at].astype(np.int64), answer[looked_at]
    right = true == given
    false = given[~right]
    # An answer that is none of the classes is nobody's, and the pixel's own class has missed it.
    false = false[(false >= 0) & (false < classes)]
    return np.stack([np.bincount(numbers, minlength=classes) for numbers in (true[right], false, true[~right])])


def _mean_iou(counts: npt.NDArray[np.int64]) -> float:
    tp, union = counts[0], counts.sum(axis=0)
    return float(np.mean(tp[union > 0] / union[union > 0]))


SEGMENTATION: Final = Task(
    name="segmentation",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    threshold="iou_threshold",
    counted="pixels",
)
