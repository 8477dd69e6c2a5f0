"""Embeddings: a direction in a space, to be compared with others by the cosine of their angle.

* A sample is right when the cosine of its embedding with the one it should be is `criteria.cosine_threshold` at least.
  What it should be is the label, and where the data have none, the reference's output.
* The headline is the mean cosine. An embedding without a direction has cosine 0 with every other (as in scikit-learn),
  one that is no finite numbers -1, and is wrong at any threshold.
* A decision is the cosine in thousandths.
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
    check_finite,
    rows,
)
from evenfleet_agent.runner.tasks.tally import Tally, reference_rows
from evenfleet_shared.errors import DataError

# A vector's cosine with itself comes out this near to 1.
_ROUNDING: Final = 1e-9


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return the embeddings that the samples should have, shape ``(n, dimensions)``."""
    check_count(given, samples)
    check_finite(given, "labels")
    if given.size == samples:
        raise DataError(
            f"labels of shape {list(given.shape)} have one number per sample; expected the embedding of each"
        )
    return given.reshape(samples, -1)


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    if exam.labels is not None and outputs[0].size != exam.labels.shape[1]:
        raise DataError(
            f"the model's embeddings have {outputs[0].size} dimensions, the labels' {exam.labels.shape[1]}; "
            "expected as many"
        )
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._tally = Tally(exam, exam.tensors[:1])
        self._threshold = exam.criteria.cosine_threshold - _ROUNDING
        self._cosines: list[npt.NDArray[np.float64]] = []

    def add(self, batch: Batch) -> None:
        outputs = rows(batch.outputs[0], batch.samples)
        expected = None if batch.reference is None else reference_rows(batch.reference, outputs.shape[1])
        wanted = expected if batch.labels is None else batch.labels
        assert wanted is not None  # a pass has something to score by
        cosines, near = self._compare(outputs, wanted)
        self._cosines.append(cosines)
        self._tally.decide(np.rint(1000 * cosines).astype("<i4"), near)
        if expected is not None:
            self._tally.compare(expected, outputs, self._compare(outputs, expected)[1])

    def result(self) -> Score:
        cosines = np.concatenate(self._cosines)
        return self._tally.score(
            metric="mean-cosine",
            score=float(cosines.mean()),
            details={"lowest-cosine": float(cosines.min())},
        )

    def _compare(
        self, outputs: npt.NDArray[Any], wanted: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the cosines, and which are near enough."""
        finite = np.isfinite(outputs).all(axis=1) & np.isfinite(wanted).all(axis=1)
        a, b = (_directions(np.where(finite[:, np.newaxis], vectors, 0.0)) for vectors in (outputs, wanted))
        cosines = np.where(finite, np.clip((a * b).sum(axis=1), -1.0, 1.0), -1.0)
        return cosines, finite & (cosines >= self._threshold)


def _directions(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    directions: npt.NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    return directions


EMBEDDING: Final = Task(
    name="embedding",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    threshold="cosine_threshold",
    lacking="neither labels nor outputs of a reference",
)
