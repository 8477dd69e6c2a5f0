"""Hold the samples that a model is measured on, and lead one pass over them.

Real samples with labels and the reference's outputs where there are any (a release's golden set, a user's .npz),
and a few made-up ones else, the same at every start. Decides whether they fit the model; leaves running it to `worker`,
and what is right about an answer to `tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner import tasks
from evenfleet_agent.runner.protocol import Evaluation, RunnerSpec
from evenfleet_agent.runner.tasks.interface import Batch, Exam, Task, entries
from evenfleet_agent.runtimes import tensors as dtypes
from evenfleet_agent.runtimes.interface import Model
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import Criteria, TensorSpec

_MADE_UP: Final = 16
# A made-up tensor larger than this would say more about the machine's memory than about the model.
_MAX_MADE_UP_ELEMENTS: Final = 64 * 1024 * 1024
# Outputs that are scored at once: what a call of numpy costs is then shared, and the outputs take 1 MB at most.
_SCORED_ELEMENTS: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Samples as they are on disk, and what is known about them."""

    inputs: npt.NDArray[Any] | None
    labels: npt.NDArray[Any] | None
    outputs: npt.NDArray[np.float32] | None
    reference_correct: npt.NDArray[np.bool_] | None
    input_scale: float
    task: Task
    classes: int | None
    criteria: Criteria

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Return the sizes of one sample, None where there are none."""
        return None if self.inputs is None else self.inputs.shape[1:]

    def batches(self, model: Model, size: int) -> Iterator[list[npt.NDArray[Any]]]:
        """Yield the samples, `size` at a time, as a model's `prepare` takes them; without samples, made-up ones."""
        if self.inputs is None:
            yield from _made_up(model.inputs)
            return
        for start in range(0, len(self.inputs), size):
            yield [self._scaled(self.inputs[start : start + size])]

    def exam(self, tensors: tuple[TensorSpec, ...]) -> Exam:
        """Return what a model with these outputs is scored on."""
        return Exam(
            labels=self.labels,
            reference=self.outputs,
            tensors=tensors,
            classes=self.classes,
            criteria=self.criteria,
        )

    def _scaled(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.input_scale == 1.0:
            return values
        scaled = values * np.float32(self.input_scale)
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            return np.clip(np.rint(scaled), limits.min, limits.max).astype(values.dtype)
        return scaled


def load(spec: RunnerSpec) -> Golden:
    """Read the files that a spec names.

    Raises:
        DataError: One cannot be read, or they do not belong together.
    """
    inputs = None if spec.inputs_file is None else _read(spec.inputs_file)
    n = 0 if inputs is None else len(inputs)
    if inputs is not None and (not n or inputs.dtype.kind not in "iufb"):
        raise DataError(
            f"{spec.inputs_file} must hold samples of numbers, found {inputs.dtype} of shape {inputs.shape}"
        )
    if inputs is not None and inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError("the samples hold NaN or infinite values; clean the data first")
    labels = outputs = correct = None
    task = tasks.by_name(spec.task)
    if spec.labels_file is not None:
        labels = task.labels(_read(spec.labels_file, mapped=True), n)
    if spec.outputs_file is not None:
        outputs = _read(spec.outputs_file, mapped=True)
        if len(outputs) != n or outputs.dtype.kind != "f" or not outputs.size:
            raise DataError(
                f"{spec.outputs_file} must hold real numbers, one entry for each of {n} samples, found {outputs.dtype} of "
                f"shape {list(outputs.shape)}"
            )
        outputs = outputs.astype(np.float32, copy=False)
    if spec.reference_correct is not None:
        if len(spec.reference_correct) != n or set(spec.reference_correct) - {"0", "1"}:
            raise DataError(f"the reference's correctness must be {n} digits 0 or 1")
        correct = np.frombuffer(spec.reference_correct.encode(), dtype=np.uint8) == ord("1")
    return Golden(
        inputs=inputs,
        labels=labels,
        outputs=outputs,
        reference_correct=correct,
        input_scale=spec.input_scale,
        task=task,
        classes=spec.classes,
        criteria=spec.criteria,
    )


def check_fits(golden: Golden, model: Model) -> None:
    """Refuse samples that a model cannot take.

    Raises:
        DataError: It has several inputs, or another number of elements per sample.
    """
    if golden.inputs is not None and len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise DataError(
            f"the model has {len(model.inputs)} inputs ({names}), the data has one array; leave the data away to "
            "measure latency and memory alone"
        )


def why_not_scored(
    golden: Golden, outputs: Sequence[npt.NDArray[np.float32]], tensors: tuple[TensorSpec, ...]
) -> str | None:
    """Return why a model's answers cannot be scored, None if they can, or nobody would expect them to be.

    Args:
        golden: The samples.
        outputs: What the model gave for one sample.
        tensors: What they are.

    Raises:
        DataError: The labels are clearly not this model's. Beside a reference's outputs, which the model can be compared
            with all the same, they may be only a reason.
    """
    if golden.inputs is None or (golden.labels is None and golden.outputs is not None):
        return None
    if golden.labels is None:
        return f"no accuracy: the data has {golden.task.lacking}"
    return golden.task.why_not_scored(golden.exam(tensors), outputs)


class Pass:
    """One pass over all samples, scored as it goes.

    Args:
        golden: The samples; with labels or a reference's outputs.
        tensors: What the model's outputs are.
        labelled: Whether the labels are scored by, as `why_not_scored` had it.
    """

    def __init__(self, golden: Golden, tensors: tuple[TensorSpec, ...], *, labelled: bool) -> None:
        self._golden = golden if labelled else replace(golden, labels=None)
        self._scorer = golden.task.scorer(self._golden.exam(tensors))
        self._done = 0
        self._waiting: list[list[npt.NDArray[np.float32]]] = []

    def add(self, outputs: Sequence[npt.NDArray[np.float32]], samples: int) -> None:
        """Score the next samples, those of small outputs some at a time.

        Raises:
            DataError: The outputs do not go with the labels or with the reference's.
        """
        if samples > 1:
            self._score_waiting()
            self._score(outputs, samples)
            return
        single = [entries(output, 1) for output in outputs]
        if self._waiting and [output.shape for output in self._waiting[0]] != [output.shape for output in single]:
            self._score_waiting()
        self._waiting.append(single)
        if len(self._waiting) * sum(output.size for output in single) >= _SCORED_ELEMENTS:
            self._score_waiting()

    def _score_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._score([np.concatenate(parts) for parts in zip(*waiting, strict=True)], len(waiting))

    def _score(self, outputs: Sequence[npt.NDArray[np.float32]], samples: int) -> None:
        these = slice(self._done, self._done + samples)
        labels, reference = self._golden.labels, self._golden.outputs
        self._done += samples
        self._scorer.add(
            Batch(
                samples=samples,
                outputs=outputs,
                labels=None if labels is None else labels[these],
                reference=None if reference is None else np.asarray(reference[these]),
            )
        )

    def end(self, before: npt.NDArray[np.bool_] | None) -> tuple[Evaluation, npt.NDArray[np.bool_] | None]:
        """Return the evaluation, and which samples were right (None where they were held against nothing).

        Args:
            before: Which samples were right in the pass before.
        """
        self._score_waiting()
        score, reference = self._scorer.result(), self._golden.reference_correct
        correct = score.correct
        both = correct is not None and reference is not None
        return (
            Evaluation(
                task=self._golden.task.name,
                counted=self._golden.task.counted,
                n=self._done,
                errors=None if correct is None else int(np.count_nonzero(~correct)),
                tp=score.tp,
                fp=score.fp,
                fn=score.fn,
                metric=score.metric,
                score=score.score,
                details=score.details,
                discordant_b=int((reference & ~correct).sum()) if both else None,  # type: ignore[operator]
                discordant_c=int((~reference & correct).sum()) if both else None,  # type: ignore[operator]
                hamming=int((before != correct).sum()) if before is not None and correct is not None else None,
                prediction_digest=score.prediction_digest,
                agreement=score.agreement,
            ),
            correct,
        )


def _read(file: str, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Read an array; a mapped one stays on disk until it is looked at."""
    try:
        with np.errstate(over="ignore"):  # a size that no number holds is refused below
            array = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise DataError(f"{Path(file).name} cannot be read as an array of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise DataError(f"{Path(file).name} must hold one array with one entry per sample")
    return array


def _made_up(inputs: Sequence[TensorSpec]) -> Iterator[list[npt.NDArray[Any]]]:
    shapes = [tuple(1 if size == -1 else size for size in spec.shape) for spec in inputs]
    elements = sum(int(np.prod(shape, dtype=np.float64)) for shape in shapes)
    if elements > _MAX_MADE_UP_ELEMENTS:
        raise DataError(f"the model's inputs have {elements} elements; give it data to be measured on")
    # Of a large input a single one will do: its values do not change the time it takes.
    for seed in range(_MADE_UP if elements * _MADE_UP <= _MAX_MADE_UP_ELEMENTS // 16 else 1):
        generator = np.random.default_rng(seed)
        yield [_made_up_values(generator, spec, shape) for spec, shape in zip(inputs, shapes, strict=True)]


def _made_up_values(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = dtypes.numeric_dtype(spec)
    if dtype.kind == "f":
        return generator.random(shape, dtype=np.float32)
    if dtype.kind in "iu" and spec.scale:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    # Whole numbers that are not quantised are indexes, of a vocabulary for example: stay where every model has some.
    return generator.integers(0, 2, shape).astype(dtype)
