"""Int8 with the worst operators left in float, as few as it takes for the accuracy floor to hold.

Every operator is first put into the float file alone, as int8 has it (`walk`): what moves the output most is the worst. As
many of the worst stay in float as the floor asks for, by doubling and halving their number; each file is measured.

ai-edge-quantizer makes the files, and not TensorFlow's QuantizationDebugger, which can leave operators out too: it works on
the float32 file, so on a ``.tflite`` that was given as well, calibrates once for all files, and makes one in a hundredth of a
second, where the debugger converts and calibrates anew for each.

* The floor is held on training samples that calibration has not seen. Labels of the test set decide nothing here.
* Input and output are float32, so that an operator at either end can be left in float without a conversion before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from evenfleet_collector.optimize import evaluate, strata, walk
from evenfleet_collector.optimize.data import LabelledData, Labels, Samples
from evenfleet_collector.optimize.dissect import Graph, with_signatures
from evenfleet_collector.optimize.layers import LayerReport
from evenfleet_collector.optimize.technique import CalibrationSamples, Form, Material, Ratio, Stage, Technique
from evenfleet_collector.optimize.weight_only import INSTALL
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError

# The order of operators settles with few; each costs as many runs of the file as it has operators.
_WALKED_SAMPLES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RescuedInt8(Technique):
    """Int8, with as many of the worst operators in float as the accuracy floor asks for; input and output in float."""

    name: ClassVar[str] = "int8-rescue"
    takes: ClassVar[Stage] = "tflite"
    gives: ClassVar[Stage] = "tflite"
    max_accuracy_drop_ratio: Ratio = 0.01
    calibration_samples: CalibrationSamples = 200
    # An accuracy of 500 samples is told to 0.2 points.
    held_out_samples: Annotated[int, Meta(ge=10, le=100_000)] = 500

    def apply(self, form: Form, material: Material) -> Form:
        """Find the operators to leave in float, and write the file.

        Raises:
            ModelRefusedError: The floor does not hold even with all operators but one in float.
            RuntimeMissingError: ai-edge-quantizer is not installed.
        """
        assert form.tflite is not None
        calibration, held_out = _parts(material.data, self.calibration_samples, self.held_out_samples, material.seed)
        x, y = material.data.x_train[held_out], material.data.y_train[held_out]
        quantizer = Quantizer(form.tflite, material.data.x_train[calibration])
        wanted_ratio = _accuracy_ratio(form.tflite, x, y) - self.max_accuracy_drop_ratio
        files: dict[int, Path] = {}
        accuracies: dict[int, float] = {}
        worst: Sequence[_Layer] = ()

        def holds(kept: int) -> bool:
            path = files[kept] = material.new_path(f"{self.name}-{kept}.tflite")
            path.write_bytes(quantizer.quantized([layer.scope for layer in worst[:kept]]))
            accuracies[kept] = _accuracy_ratio(path, x, y)
            # A millionth: the difference of two shares is not exact.
            return accuracies[kept] >= wanted_ratio - 1e-6

        kept: int | None = 0
        if not holds(0):
            few = strata.choose(y, _WALKED_SAMPLES, material.seed)
            worst = _worst_first(form.tflite.read_bytes(), files[0].read_bytes(), x[few])
            kept = fewest(len(worst) - 1, holds)
        if kept is None:
            drop = wanted_ratio + self.max_accuracy_drop_ratio - max(accuracies.values())
            raise ModelRefusedError(
                f"{self.name}: the accuracy floor does not hold with all operators but one of {len(worst)} in float: "
                f"{drop * 100:.2f} points are lost on {len(y)} training samples, "
                f"{self.max_accuracy_drop_ratio * 100:.2f} are allowed; raise max_accuracy_drop_ratio, or use int16x8"
            )
        named = ", ".join(f"{layer.kind} {layer.name}" for layer in worst[:kept])
        note = f"kept in float: {named}" if kept else "kept in float: no operator, int8 holds the floor as it is"
        return replace(
            form,
            stage="tflite",
            tflite=files[kept],
            notes=(*form.notes, note),
            calibration=material.calibration_record(calibration.size),
        )


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 1 to `most` that holds, found by doubling and then halving; None where none does.

    What holds is taken to hold for all larger numbers; where that is not so, what is returned holds all the same.

    >>> asked = []
    >>> fewest(20, lambda number: asked.append(number) or number >= 5), asked
    (5, [1, 2, 4, 8, 6, 5])
    """
    below, number = 0, 1
    while number <= most and not holds(number):
        if number == most:
            return None
        below, number = number, min(2 * number, most)
    if number > most:
        return None
    while number - below > 1:
        middle = (below + number) // 2
        if holds(middle):
            number = middle
        else:
            below = middle
    return number


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    name: str
    scope: str


class Quantizer:
    """A float32 file, calibrated once, and int8 files made of it."""

    def __init__(self, file: Path, x: Samples) -> None:
        _check_installed()
        self._payload = with_signatures(file.read_bytes())
        # Ranges of our own: the library's average over samples cuts off what few of them reach, and it asks for signatures,
        # which files of old converters have not.
        self._ranges = {
            name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
            for name, (low, high) in walk.ranges(file.read_bytes(), x).items()
        }

    def quantized(self, in_float: Sequence[str]) -> bytes:
        """Return the file in int8, without the operators of these scopes, and without input and output."""
        from ai_edge_quantizer import quantizer, recipe, recipe_manager
        from ai_edge_quantizer.algorithm_manager import AlgorithmName
        from ai_edge_quantizer.qtyping import TFLOperationName

        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        for operation in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            manager.add_quantization_config(".*", operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
        for scope in in_float:
            manager.add_quantization_config(
                f"^{re.escape(scope)}$", TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
        made = quantizer.Quantizer(self._payload, manager.get_quantization_recipe())
        result: Any = made.quantize(self._ranges, enable_progress_bar=False, enable_progress_report=False)
        return bytes(result.quantized_model)


def _check_installed() -> None:
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError as error:
        raise RuntimeMissingError(f"ai-edge-quantizer is not installed ({error}); install it with: {INSTALL}") from None


def _parts(data: LabelledData, calibration: int, held_out: int, seed: int) -> tuple[strata.Indices, strata.Indices]:
    """Return training samples to calibrate with and others to measure with, at least half of all."""
    first = strata.choose(data.y_train, min(calibration, len(data.y_train) // 2), seed)
    rest = np.setdiff1d(np.arange(len(data.y_train)), first)
    return first, rest[strata.choose(data.y_train[rest], held_out, seed)]


def _worst_first(reference: bytes, quantised: bytes, x: Samples) -> list[_Layer]:
    """Return the operators that can be left in float, those that move the output most first."""
    graph = Graph(reference)
    by_name = {one.name: one for one in graph.operators}
    report = walk.walk(reference, quantised, x)
    ranked = sorted((layer for layer in report.layers if layer.sensitivity_ratio), key=_moves, reverse=True)
    found = []
    for layer in ranked:
        operator = by_name.get(layer.counterpart or "")
        if operator is None:
            continue
        # As the quantizer names an operator: by its outputs.
        scope = "".join(f"{graph.name(number)};" for number in graph.outputs(operator.position))
        found.append(_Layer(operator.kind, operator.name.partition(";")[0], scope))
    return found


def _moves(layer: LayerReport) -> float:
    return layer.sensitivity_ratio or 0.0


def _accuracy_ratio(file: Path, x: Samples, y: Labels) -> float:
    return float((evaluate.TFLiteArtifact(file).outputs(x).argmax(axis=1) == y).mean())
