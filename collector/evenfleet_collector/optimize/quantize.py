"""Integer quantisation with calibration: int8 throughout, or int8 weights with int16 activations.

Ranges come from training samples, which the manifest names, and weights have a scale for each output channel. The converter leaves an operator
that has no integer kernel in float32 between two conversions, although told to use integer operators alone; such a
file is refused here: integer-only hardware would refuse it, or run it on another processor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from evenfleet_collector.optimize import graph
from evenfleet_collector.optimize.float_lite import Conversion
from evenfleet_collector.optimize.technique import CalibrationSamples, Form, Material
from evenfleet_shared.errors import ModelRefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrated(Conversion):
    # Enough for the ranges of activations; more costs time and changes no scale noticeably.
    calibration_samples: CalibrationSamples = 200

    def apply(self, form: Form, material: Material) -> Form:
        """Convert with the integer operators alone.

        Raises:
            ModelRefusedError: An operator stayed in float, or the model has a loop.
        """
        if form.batch_of_one is not None and _has_loop(form.batch_of_one):
            # Not a refusal of TensorFlow's: its calibrator ends the process with a segmentation fault (2.21, Keras's GRU).
            raise ModelRefusedError(
                f"{self.name}: the model has a loop, as LSTM and GRU layers do, on which TensorFlow's calibration crashes; "
                "the same layers with unroll=True, and the same weights, have none"
            )
        # Not super(): a slotted dataclass is made anew, and the class that super() would look up is the first one.
        made = only_integers(self.name, Conversion.apply(self, form, material))
        return replace(made, calibration=material.calibration_record(self.calibration_samples))

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        lite.optimizations = [tf.lite.Optimize.DEFAULT]
        lite.representative_dataset = lambda: material.calibration(self.calibration_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullInt8(_Calibrated):
    """Int8 weights, activations, input and output, so that integer-only hardware runs all of it."""

    name: ClassVar[str] = "int8"

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        _Calibrated.configure(self, lite, material)
        lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        lite.inference_input_type = tf.int8
        lite.inference_output_type = tf.int8


@dataclass(frozen=True, slots=True, kw_only=True)
class Int16x8(_Calibrated):
    """Int8 weights with int16 activations, input and output: nearly the float model's accuracy.

    Few runtimes have fast kernels for it: look at the latency before it goes anywhere.
    """

    name: ClassVar[str] = "int16x8"

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        _Calibrated.configure(self, lite, material)
        lite.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
        lite.inference_input_type = tf.int16
        lite.inference_output_type = tf.int16


def _has_loop(saved_model: Path) -> bool:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    graphs = [one.graph_def for one in saved.meta_graphs]
    nodes = [one.node for one in graphs] + [function.node_def for one in graphs for function in one.library.function]
    return any(node.op in {"While", "StatelessWhile"} for some in nodes for node in some)


def only_integers(name: str, form: Form) -> Form:
    """Return the form if its file runs without a float operator.

    Raises:
        ModelRefusedError: It does not; the operators are named.
    """
    assert form.tflite is not None
    left = graph.read(form.tflite.read_bytes()).float_operators
    if left:
        raise ModelRefusedError(
            f"{name}: {', '.join(left)} would run in float32, having no integer kernel; integer-only hardware refuses that"
        )
    return form
