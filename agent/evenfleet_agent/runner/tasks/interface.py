"""What every task looks like to the pass over a golden set; see the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.protocol import Counted
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import Criteria, TensorSpec
from evenfleet_shared.messages import Agreement
from evenfleet_shared.messages import Task as TaskName

Threshold = Literal["score_threshold", "iou_threshold", "cosine_threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What a model is scored on: nothing of it changes from pass to pass.

    Attributes:
        labels: As `Task.labels` returns them, one entry a sample; None where there are none to compare with.
        reference: The reference's outputs, shape ``(n, ...)``; None without.
        tensors: What the model's outputs are.
        classes: How many the golden set has, None where nobody said.
        criteria: What makes a sample right.
    """

    labels: npt.NDArray[Any] | None
    reference: npt.NDArray[np.float32] | None
    tensors: tuple[TensorSpec, ...]
    classes: int | None
    criteria: Criteria


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The next samples of a pass, in the order of the golden set.

    Attributes:
        samples: How many they are, 1 at least.
        outputs: Every output tensor of the model as real numbers.
        labels: Of these samples; None exactly where the exam has none.
        reference: The reference's outputs of these samples, likewise.
    """

    samples: int
    outputs: Sequence[npt.NDArray[np.float32]]
    labels: npt.NDArray[Any] | None
    reference: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one pass came to.

    Attributes:
        correct: Which samples are right, shape ``(n,)``; None where the task had nothing to hold them against.
        tp: Counts per class, like `fp` and `fn`, of what the task counts (samples, labels, objects, pixels); empty without
            classes.
        metric: The headline's usual name, where that is not the share of right samples.
        score: Its value; None where it has none, a mean over outputs that are no numbers for example.
        details: Further figures by their usual names.
        prediction_digest: sha256 over the decisions.
        agreement: With the reference's outputs; None without them.
    """

    correct: npt.NDArray[np.bool_] | None
    tp: tuple[int, ...] = ()
    fp: tuple[int, ...] = ()
    fn: tuple[int, ...] = ()
    metric: str | None = None
    score: float | None = None
    details: dict[str, float] = field(default_factory=dict)
    prediction_digest: str
    agreement: Agreement | None


class Scorer(Protocol):
    """One pass. What it keeps is a few numbers per sample, whatever a sample's outputs are."""

    def add(self, batch: Batch) -> None:
        """Score the next samples.

        Raises:
            DataError: The outputs are not of a shape that the task, the labels or the reference go with.
        """

    def result(self) -> Score:
        """Return what all that was added comes to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of answer that a model gives, and what is right about it: all that the agent knows of a task.

    Attributes:
        name: As messages and manifests have it.
        labels: Returns labels in the one form that the task scores by, from any that users have them in, for so many
            samples. A `DataError` where they are of no such form, or not as many; its message is whole, but for the file.
        why_not_scored: Returns why these labels and a model that gave such outputs for one sample do not go together, None
            if they do. A `DataError` where they are clearly not of each other, and nothing else can be said by these data.
        scorer: Begins a pass.
        threshold: The field of `Criteria` that a user means by the task's threshold, None where it has none.
        has_tolerance: Whether `Criteria.tolerance` means something to it.
        counted: What its counts are of. Of samples alone there is an accuracy by class, since nobody counts what is
            rightly not there.
        lacking: What data do not have that it can't be scored on.
    """

    name: TaskName
    labels: Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]
    why_not_scored: Callable[[Exam, Sequence[npt.NDArray[np.float32]]], str | None]
    scorer: Callable[[Exam], Scorer]
    threshold: Threshold | None = None
    has_tolerance: bool = False
    counted: Counted = "samples"
    lacking: str = "no labels"


def rows(output: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """Return an output as one row per sample.

    Raises:
        DataError: It has no whole number of elements per sample.

    >>> rows(np.zeros((2, 3, 4), dtype=np.float32), 2).shape
    (2, 12)
    """
    if not output.size or output.size % samples:
        raise DataError(f"the model gave outputs of shape {list(output.shape)} for {samples} samples")
    return output.reshape(samples, -1)


def entries(output: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """Return an output with one entry per sample, in its own shape; a model without a batch gives one sample's alone.

    Raises:
        DataError: It has another number of entries.

    >>> entries(np.zeros((5, 4), dtype=np.float32), 1).shape
    (1, 5, 4)
    """
    if output.ndim and len(output) == samples:
        return output
    if samples == 1:
        return output[np.newaxis]
    raise DataError(f"the model gave outputs of shape {list(output.shape)} for {samples} samples")


def check_count(labels: npt.NDArray[Any], samples: int) -> None:
    """Refuse labels that are not one entry per sample.

    Raises:
        DataError: They are not.
    """
    if not labels.ndim or labels.dtype.kind not in "iufb":
        raise DataError(
            f"labels must be numbers, one entry per sample, found {labels.dtype} of shape {list(labels.shape)}"
        )
    if len(labels) != samples:
        raise DataError(f"there are {samples} samples and {len(labels)} labels; expected one label per sample")
    if not labels.size:
        raise DataError(f"labels of shape {list(labels.shape)} hold nothing")


def check_finite(labels: npt.NDArray[Any], what: str) -> None:
    """Refuse labels that float32 has no room for, NaN and infinities among them; squares of what passes stay finite.

    Raises:
        DataError: There are such.
    """
    if labels.dtype.kind == "f" and not (np.abs(labels) <= np.finfo(np.float32).max).all():
        raise DataError(f"{what} hold NaN, infinite values or such that float32 has no room for; clean the data first")
