"""Agreement: no labels, only what the reference gave for the same samples.

* A sample is right when its outputs, all tensors together, are no further from the reference's than
  `criteria.tolerance` (0.1 unless the golden set says otherwise) times the reference's own size, both as Euclidean norms.
  That is a signal-to-noise ratio of 20 dB, and asks nothing of what the numbers mean.
* The headline is that ratio over all samples together. It has no value where an output is no finite number, which makes
  the sample wrong.
* A decision is where the largest number of each output vector (along the last axis) is: whether they are the same is
  what the noise classes are made from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import Batch, Exam, Score, Task, entries, rows
from evenfleet_agent.runner.tasks.tally import Tally, is_number, reference_rows
from evenfleet_shared.errors import DataError

_TOLERANCE: Final = 0.1


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    raise DataError("there are labels, which task agreement does not look at; leave them away or name their --task")


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        assert exam.reference is not None
        self._exam = exam
        self._width = int(np.prod(exam.reference.shape[1:]))
        self._tally: Tally | None = None
        self._tolerance = _TOLERANCE if exam.criteria.tolerance is None else exam.criteria.tolerance
        self._difference = self._size = 0.0
        self._unusable = 0

    def add(self, batch: Batch) -> None:
        assert batch.reference is not None
        outputs = batch.outputs
        if sum(rows(output, batch.samples).shape[1] for output in outputs) != self._width:
            outputs = outputs[:1]  # a reference may be of the first output alone, as classifiers' are
        if self._tally is None:
            self._tally = Tally(self._exam, self._exam.tensors[: len(outputs)])
        given = np.concatenate([rows(output, batch.samples) for output in outputs], axis=1)
        expected = reference_rows(batch.reference, given.shape[1])
        finite = (np.isfinite(given) & np.isfinite(expected)).all(axis=1)
        sound = finite[:, np.newaxis]
        size = np.where(sound, expected, 0.0).astype(np.float64)
        difference = np.where(sound, given, 0.0) - size
        apart, reach = (np.sqrt((part**2).sum(axis=1)) for part in (difference, size))
        self._difference += float((apart**2).sum())
        self._size += float((reach**2).sum())
        self._unusable += int(np.count_nonzero(~finite))
        correct = finite & (apart <= self._tolerance * reach)
        decisions, same = _decide(outputs, expected, correct)
        self._tally.decide(decisions, correct)
        self._tally.compare(expected, given, same & sound)

    def result(self) -> Score:
        assert self._tally is not None  # there is no set without samples
        known = self._size > 0 and not self._unusable
        return self._tally.score(
            metric="relative-error",
            score=math.sqrt(self._difference / self._size) if known else None,
            details={"samples-not-finite": self._unusable} if self._unusable else {},
        )


def _decide(
    outputs: Sequence[npt.NDArray[np.float32]], expected: npt.NDArray[np.float32], correct: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the decisions of each sample, and which are the reference's too."""
    samples, start = len(correct), 0
    decisions, same = [], []
    for output in outputs:
        vectors = entries(output, samples).reshape(samples, -1, output.shape[-1] if output.ndim > 1 else 1)
        width = vectors[0].size
        others = expected[:, start : start + width].reshape(vectors.shape)
        start += width
        places = np.where(is_number(vectors), vectors.argmax(axis=-1), -1)
        decisions.append(places)
        # Of one number alone none is the largest: there the decision is whether it is near enough.
        single = vectors.shape[-1] == 1
        its_places = np.where(is_number(others), others.argmax(axis=-1), -2)
        same.append(np.broadcast_to(correct[:, np.newaxis], places.shape) if single else places == its_places)
    return np.concatenate(decisions, axis=1).astype("<i4"), np.concatenate(same, axis=1)


AGREEMENT: Final = Task(
    name="agreement",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    has_tolerance=True,
    lacking="no outputs of a reference",
)
