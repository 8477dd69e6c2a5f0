"""Classification: one class out of two or more.

* A model gives a score per class and means the largest, or one score alone and means the second of two classes above
  `criteria.score_threshold` (Keras's BinaryAccuracy; 0.5 for a sigmoid, 0 for a logit).
* A sample is right when its class is its label's. One whose outputs are no numbers has no class, and so is wrong.
* Counts are of samples, one class against the rest. The headline is the share of right samples itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import Batch, Exam, Score, Task, rows
from evenfleet_agent.runner.tasks.tally import Tally, is_number, reference_rows
from evenfleet_shared.errors import DataError

# No model has as many classes, and every number up to here is one in every type.
_MAX_LABEL: Final = 2**24


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return class numbers, shape ``(n,)``, int64, from such, a column of such, or one-hot rows."""
    labels = given
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "iufb":
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise DataError(
                f"labels of shape {list(labels.shape)} are not one-hot; expected one class each, or another --task"
            )
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "iufb" or not (labels == np.rint(labels)).all():
        raise DataError(
            f"labels must be whole numbers, one per sample, found {labels.dtype} of shape {list(labels.shape)}; "
            "or of another --task than classification"
        )
    if len(labels) != samples:
        raise DataError(f"there are {samples} samples and {len(labels)} labels; expected one label per sample")
    if not samples or labels.min() < 0 or labels.max() > _MAX_LABEL:
        found = f"{labels.min():.0f} to {labels.max():.0f}" if samples else "none"
        raise DataError(f"labels must be from 0 to {_MAX_LABEL}, found {found}")
    return labels.astype(np.int64)


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    assert exam.labels is not None
    output = exam.tensors[0]
    if sum(size != 1 for size in output.shape[1:]) > 1:
        return f"no accuracy: the model gives numbers of shape {list(output.shape[1:])} per sample, not one per class"
    width, highest = outputs[0].size, int(exam.labels.max())
    if width == 1 and highest > 1:
        return f"no accuracy: the model gives one number per sample, which tells two classes apart, labels go up to {highest}"
    classes = max(width, 2)
    if highest >= classes:
        why = f"labels go up to {highest}, the model knows {classes} classes (0 to {classes - 1})"
        if exam.reference is None:
            raise DataError(f"{why}; the data do not fit the model")
        return f"no accuracy: {why}"
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._tally = Tally(exam, exam.tensors[:1])
        self._threshold = exam.criteria.score_threshold
        self._counts: npt.NDArray[np.int64] | None = None  # tp, fp, fn by class

    def add(self, batch: Batch) -> None:
        scores = rows(batch.outputs[0], batch.samples)
        predictions = self._decide(scores)
        correct = None
        if batch.labels is not None:
            correct = predictions == batch.labels
            self._count(batch.labels, predictions, correct, max(scores.shape[1], 2))
        self._tally.decide(predictions.astype("<i4"), correct)
        if batch.reference is not None:
            expected = reference_rows(batch.reference, scores.shape[1])
            self._tally.compare(expected, scores, self._decide(expected) == predictions)

    def result(self) -> Score:
        return self._tally.score(counts=((), (), ()) if self._counts is None else self._counts.tolist())

    def _decide(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        wide = scores.shape[1] > 1
        classes = scores.argmax(axis=1) if wide else (scores[:, 0] > self._threshold).astype(np.int64)
        return np.where(is_number(scores), classes, -1)

    def _count(
        self,
        labels: npt.NDArray[Any],
        predictions: npt.NDArray[np.int64],
        correct: npt.NDArray[np.bool_],
        classes: int,
    ) -> None:
        false = predictions[~correct & (predictions >= 0)]
        counts = np.stack(
            [np.bincount(numbers, minlength=classes) for numbers in (labels[correct], false, labels[~correct])]
        )
        self._counts = counts if self._counts is None else self._counts + counts


CLASSIFICATION: Final = Task(
    name="classification",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    threshold="score_threshold",
)
