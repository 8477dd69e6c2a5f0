"""Full integer quantisation: int8 weights, activations, input and output, so that integer-only hardware runs all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evenfleet_collector.optimize import float_lite, graph
from evenfleet_collector.optimize.technique import CALIBRATION_SAMPLES, Form, Material, Stage
from evenfleet_shared.errors import ModelRefusedError


@dataclass(frozen=True, slots=True)
class FullInt8:
    """Ranges come from training samples.

    The converter leaves an operator that has no int8 kernel in float32 between two conversions, although told to use
    integer operators alone; such a file is refused here.
    """

    name: ClassVar[str] = "int8"
    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "tflite"
    settings: ClassVar[str] = f"batch=1 input=int8 output=int8 calibration={CALIBRATION_SAMPLES}"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert with the integer operators alone.

        Raises:
            ModelRefusedError: An operator stayed in float.
        """
        import tensorflow as tf

        lite = float_lite.converter(form)
        lite.optimizations = [tf.lite.Optimize.DEFAULT]
        lite.representative_dataset = material.calibration
        lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        lite.inference_input_type = tf.int8
        lite.inference_output_type = tf.int8
        converted = float_lite.write(form, material, self.name, lite)
        assert converted.tflite is not None
        left = graph.read(converted.tflite.read_bytes()).float_operators
        if left:
            raise ModelRefusedError(
                f"int8: {', '.join(left)} would run in float32, having no int8 kernel; integer-only hardware refuses that"
            )
        return converted
