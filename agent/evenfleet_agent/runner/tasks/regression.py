"""Regression: numbers with a unit.

* A sample is right when every number of it is within `criteria.tolerance` of its label. There is no default: what is
  near enough is known to whoever uses the number.
* The headline is the root mean square error over all numbers (RMSE); the mean absolute error stands beside it, and R2
  as scikit-learn has it (the mean over columns) where every column of labels varies. None of them has a value where an
  output is no finite number; the sample is wrong.
* A decision is the number in steps of the tolerance, so that rounding noise does not make a new one of most.
"""

from __future__ import annotations

import math
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

_LARGEST_STEP: Final = 2.0**62


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return the true numbers, shape ``(n, numbers)``, float64."""
    check_count(given, samples)
    check_finite(given, "labels")
    return given.reshape(samples, -1).astype(np.float64)


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    assert exam.labels is not None
    if exam.criteria.tolerance is None:
        raise DataError("a regression needs to know what is near enough: give --tolerance, in the labels' unit")
    if outputs[0].size != exam.labels.shape[1]:
        raise DataError(
            f"the model gives {outputs[0].size} numbers per sample, the labels have {exam.labels.shape[1]}; "
            "expected as many"
        )
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._tally = Tally(exam, exam.tensors[:1])
        # Without labels nothing is held against it but the reference's decisions, for which any step will do.
        self._tolerance = exam.criteria.tolerance or 0.0
        self._labels = exam.labels
        width = 0 if exam.labels is None else exam.labels.shape[1]
        self._squares, self._absolute = np.zeros(width), 0.0
        self._numbers = self._unusable = 0

    def add(self, batch: Batch) -> None:
        outputs = rows(batch.outputs[0], batch.samples)
        correct = None
        if batch.labels is not None:
            errors = outputs.astype(np.float64) - batch.labels
            finite = np.isfinite(errors)
            correct = (finite & (np.abs(errors) <= self._tolerance)).all(axis=1)
            self._unusable += int(np.count_nonzero(~finite.all(axis=1)))
            errors = np.where(finite, errors, 0.0)
            self._squares += (errors**2).sum(axis=0)
            self._absolute += float(np.abs(errors).sum())
            self._numbers += errors.size
        self._tally.decide(self._steps(outputs), correct)
        if batch.reference is not None:
            expected = reference_rows(batch.reference, outputs.shape[1])
            apart = np.abs(expected.astype(np.float64) - outputs)
            near: npt.NDArray[np.bool_] = np.all(apart <= self._tolerance, axis=1)
            self._tally.compare(expected, outputs, near)

    def result(self) -> Score:
        details: dict[str, float] = {}
        score = None
        if self._unusable:
            details["samples-not-finite"] = self._unusable
        elif self._labels is not None:
            score = math.sqrt(self._squares.sum() / self._numbers)
            details["MAE"] = self._absolute / self._numbers
            total = ((self._labels - self._labels.mean(axis=0)) ** 2).sum(axis=0)
            if (total > 0).all():
                details["R2"] = float(np.mean(1.0 - self._squares / total))
        return self._tally.score(
            metric=None if self._labels is None else "RMSE",
            score=score,
            details=details,
        )

    def _steps(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if not self._tolerance:
            return outputs.astype("<f4")
        with np.errstate(over="ignore"):
            steps = np.rint(outputs.astype(np.float64) / self._tolerance)
        # A NaN is a step that nothing else is at.
        clipped = np.nan_to_num(np.clip(steps, -_LARGEST_STEP, _LARGEST_STEP), nan=-1.5 * _LARGEST_STEP)
        numbers: npt.NDArray[Any] = clipped.astype("<i8")
        return numbers


REGRESSION: Final = Task(
    name="regression",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    has_tolerance=True,
)
