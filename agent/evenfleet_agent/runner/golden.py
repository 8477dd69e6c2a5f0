"""Hold the samples that a model is measured on, and say how right its answers were.

Real samples with labels and the reference's outputs where there are any (a release's golden set, a user's .npz),
and a few made-up ones else, the same at every start. Decides whether they fit the model; leaves running it to `worker`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_agent.runner.protocol import Evaluation, RunnerSpec
from evenfleet_agent.runtimes import tensors
from evenfleet_agent.runtimes.interface import Model
from evenfleet_shared import agreement
from evenfleet_shared.errors import DataError
from evenfleet_shared.manifest import TensorSpec
from evenfleet_shared.metrics import class_counts

_MADE_UP: Final = 16
# A made-up tensor larger than this would say more about the machine's memory than about the model.
_MAX_MADE_UP_ELEMENTS: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Samples as they are on disk, and what is known about them."""

    inputs: npt.NDArray[Any] | None
    labels: npt.NDArray[np.int64] | None
    outputs: npt.NDArray[np.float32] | None
    reference_correct: npt.NDArray[np.bool_] | None
    input_scale: float

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
    if spec.labels_file is not None:
        labels = _read(spec.labels_file)
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or (n and labels.min() < 0):
            raise DataError(
                f"labels must be {n} whole numbers from 0, one per sample, found {labels.dtype} of shape {labels.shape}"
            )
    if spec.outputs_file is not None:
        outputs = _read(spec.outputs_file)
        if outputs.ndim != 2 or len(outputs) != n or outputs.dtype.kind != "f":
            raise DataError(
                f"{spec.outputs_file} must hold real numbers of shape [{n}, classes], found {outputs.dtype} of shape "
                f"{list(outputs.shape)}"
            )
        outputs = outputs.astype(np.float32, copy=False)
    if spec.reference_correct is not None:
        if len(spec.reference_correct) != n or set(spec.reference_correct) - {"0", "1"}:
            raise DataError(f"the reference's correctness must be {n} digits 0 or 1")
        correct = np.frombuffer(spec.reference_correct.encode(), dtype=np.uint8) == ord("1")
    return Golden(
        inputs=inputs,
        labels=None if labels is None else labels.astype(np.int64),
        outputs=outputs,
        reference_correct=correct,
        input_scale=spec.input_scale,
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


def why_not_scored(golden: Golden, rows: npt.NDArray[np.float32], output: TensorSpec) -> str | None:
    """Return why a model's answers cannot be compared with labels, None if they can, or nobody would expect them to be.

    Args:
        golden: The samples.
        rows: Outputs as `flatten` gives them.
        output: What they are of.

    Raises:
        DataError: There are labels that the model has no class for. Beside a reference's outputs, which the model can
            be compared with all the same, they are only a reason.
    """
    if golden.inputs is None or (golden.labels is None and golden.outputs is not None):
        return None
    if golden.labels is None:
        return "no accuracy: the data has no labels"
    if sum(size != 1 for size in output.shape[1:]) > 1:
        return f"no accuracy: the model gives numbers of shape {list(output.shape[1:])} per sample, not one per class"
    classes, highest = rows.shape[1], int(golden.labels.max())
    if classes < 2:
        return "no accuracy: the model gives one number per sample, not one per class"
    if highest >= classes:
        why = f"labels go up to {highest}, the model knows {classes} classes (0 to {classes - 1})"
        if golden.outputs is None:
            raise DataError(f"{why}; the data do not fit the model")
        return f"no accuracy: {why}"
    return None


def flatten(outputs: Sequence[npt.NDArray[np.float32]], samples: int) -> npt.NDArray[np.float32]:
    """Return the first output as one row per sample; a model's further outputs are not scored."""
    return outputs[0].reshape(samples, -1)


def evaluate(
    golden: Golden,
    rows: npt.NDArray[np.float32],
    *,
    output: TensorSpec,
    before: npt.NDArray[np.bool_] | None,
) -> tuple[Evaluation, npt.NDArray[np.bool_] | None]:
    """Score the outputs of one pass over all samples.

    Args:
        golden: The samples.
        rows: The outputs, shape ``(n, classes)``.
        output: What they are of.
        before: Which samples were right in the pass before.

    Returns:
        The evaluation, and which samples were right (None without labels).

    Raises:
        DataError: The reference's outputs have another shape.
    """
    predictions = rows.argmax(axis=1).astype("<i4")
    counts = correct = None
    if golden.labels is not None and why_not_scored(golden, rows, output) is None:
        correct = predictions == golden.labels
        counts = class_counts(golden.labels.tolist(), predictions.tolist(), rows.shape[1])
    reference = golden.reference_correct
    compared = None
    if golden.outputs is not None:
        if golden.outputs.shape != rows.shape:
            raise DataError(
                f"the model's outputs have shape {list(rows.shape)}, the reference's {list(golden.outputs.shape)}"
            )
        compared = agreement.compare(golden.outputs, rows, output_scale=output.scale)
    both = correct is not None and reference is not None
    return (
        Evaluation(
            n=len(rows),
            errors=counts.errors if counts else None,
            tp=counts.tp if counts else (),
            fp=counts.fp if counts else (),
            fn=counts.fn if counts else (),
            discordant_b=int((reference & ~correct).sum()) if both else None,  # type: ignore[operator]
            discordant_c=int((~reference & correct).sum()) if both else None,  # type: ignore[operator]
            hamming=int((before != correct).sum()) if before is not None and correct is not None else None,
            prediction_digest=agreement.prediction_digest(predictions),
            agreement=compared,
        ),
        correct,
    )


def _read(file: str) -> npt.NDArray[Any]:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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
    dtype = tensors.numeric_dtype(spec)
    if dtype.kind == "f":
        return generator.random(shape, dtype=np.float32)
    if dtype.kind in "iu" and spec.scale:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    # Whole numbers that are not quantised are indexes, of a vocabulary for example: stay where every model has some.
    return generator.integers(0, 2, shape).astype(dtype)
