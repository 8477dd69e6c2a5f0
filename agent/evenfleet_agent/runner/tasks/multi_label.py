"""Multi-label classification: any number of labels for one sample.

* A label is claimed when its score is above `criteria.score_threshold`.
* A sample is right when every label of it is (subset accuracy); one whose outputs are no numbers never is.
* Counts are of samples, by label. The headline is the F1 of all labels' counts together (micro-F1), which has no value
  where nothing is labelled and nothing claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import Batch, Exam, Score, Task, check_count, rows
from evenfleet_agent.runner.tasks.tally import Tally, is_number, reference_rows
from evenfleet_shared.errors import DataError


def _labels(given: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
    """Return 0 or 1 per label, shape ``(n, labels)``, bool."""
    check_count(given, samples)
    if given.ndim != 2 or not ((given == 0) | (given == 1)).all():
        raise DataError(
            f"labels must be 0 or 1, one row per sample and one column per label, found {given.dtype} of shape "
            f"{list(given.shape)}"
        )
    claimed: npt.NDArray[np.bool_] = np.not_equal(given, 0)
    return claimed


def _why_not_scored(exam: Exam, outputs: Sequence[npt.NDArray[np.float32]]) -> str | None:
    assert exam.labels is not None
    if outputs[0].size != exam.labels.shape[1]:
        raise DataError(
            f"the model gives {outputs[0].size} numbers per sample, the data have {exam.labels.shape[1]} labels; "
            "expected as many"
        )
    return None


class _Pass:
    def __init__(self, exam: Exam) -> None:
        self._tally = Tally(exam, exam.tensors[:1])
        self._threshold = exam.criteria.score_threshold
        width = 0 if exam.labels is None else exam.labels.shape[1]
        self._counts = np.zeros((3, width), dtype=np.int64)  # tp, fp, fn by label
        self._samples = 0

    def add(self, batch: Batch) -> None:
        scores = rows(batch.outputs[0], batch.samples)
        claimed, usable = self._decide(scores)
        correct = None
        if batch.labels is not None:
            labels = batch.labels
            correct = (claimed == labels).all(axis=1) & usable
            self._counts += np.stack(
                [(part).sum(axis=0) for part in (claimed & labels, claimed & ~labels, ~claimed & labels)]
            )
            self._samples += batch.samples
        self._tally.decide(np.packbits(claimed, axis=1), correct)
        if batch.reference is not None:
            expected = reference_rows(batch.reference, scores.shape[1])
            same = (self._decide(expected)[0] == claimed).all(axis=1) & usable
            self._tally.compare(expected, scores, same)

    def result(self) -> Score:
        tp, fp, fn = self._counts.tolist()
        together = 2 * sum(tp) + sum(fp) + sum(fn)
        decided = self._samples * len(tp)
        return self._tally.score(
            counts=(tp, fp, fn),
            metric="micro-F1" if decided else None,
            score=2 * sum(tp) / together if together else None,
            details={"hamming-loss": (sum(fp) + sum(fn)) / decided} if decided else {},
        )

    def _decide(self, scores: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which labels are claimed, and for which samples that means anything."""
        return np.isfinite(scores) & (scores > self._threshold), is_number(scores)


MULTI_LABEL: Final = Task(
    name="multi-label",
    labels=_labels,
    why_not_scored=_why_not_scored,
    scorer=_Pass,
    threshold="score_threshold",
)
