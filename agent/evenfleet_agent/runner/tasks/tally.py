"""What every pass keeps: who was right, the decisions' digest, and the agreement with the reference's outputs.

Leaves to the tasks what a decision is and when it is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.tasks.interface import Exam, Score, rows
from evenfleet_shared import agreement
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec


class Tally:
    """The common part of a pass.

    Args:
        exam: What is scored.
        scored: The outputs that the task looks at: the first alone, or all of them.
    """

    def __init__(self, exam: Exam, scored: Sequence[TensorSpec]) -> None:
        scales = {tensor.scale for tensor in scored}
        # Steps of different sizes have no common count; what the outputs are apart is then told in their own unit alone.
        self._comparison = agreement.Comparison(output_scale=scales.pop() if len(scales) == 1 else None)
        self._compares = exam.reference is not None
        self._decisions = hashlib.sha256()
        self._correct: list[npt.NDArray[np.bool_]] = []

    def decide(self, decisions: npt.NDArray[Any], correct: npt.NDArray[np.bool_] | None) -> None:
        """Take the next samples' decisions, as little-endian integers, and which of them are right."""
        self._decisions.update(np.ascontiguousarray(decisions).tobytes())
        if correct is not None:
            self._correct.append(correct)

    def compare(
        self, reference: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32], same: npt.NDArray[np.bool_]
    ) -> None:
        """Take how the next samples' outputs, in rows, are beside the reference's, and which decisions are the same."""
        self._comparison.add(reference, outputs, same)

    def score(
        self,
        *,
        counts: Sequence[Sequence[int]] = ((), (), ()),
        metric: str | None = None,
        score: float | None = None,
        details: dict[str, float] | None = None,
    ) -> Score:
        """Return what the pass came to.

        Args:
            counts: True positives, false positives and false negatives by class.
            metric: As `Score` has it, like `score` and `details`.
            score: Of that metric.
            details: Beside it.
        """
        tp, fp, fn = map(tuple, counts)
        return Score(
            correct=np.concatenate(self._correct) if self._correct else None,
            tp=tp,
            fp=fp,
            fn=fn,
            metric=metric,
            score=score,
            details=details or {},
            prediction_digest=self._decisions.hexdigest(),
            agreement=self._comparison.result() if self._compares else None,
        )


def reference_rows(reference: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """Return the reference's outputs of some samples in rows as wide as the model's.

    Raises:
        DataError: They have another width.
    """
    found = rows(reference, len(reference))
    if found.shape[1] != width:
        raise DataError(f"the model gives {width} numbers per sample, the reference's outputs have {found.shape[1]}")
    return found


def is_number(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows a decision can be read from: in NaN or a positive infinity an argmax finds what it will."""
    usable: npt.NDArray[np.bool_] = np.all(~(np.isnan(outputs) | np.isposinf(outputs)), axis=-1)
    return usable
