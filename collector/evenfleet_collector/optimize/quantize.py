"""Full integer quantisation: int8 weights, activations, input and output, so that integer-only hardware runs all of it.

Ranges come from training samples. The converter leaves an operator that has no int8 kernel in float32 between two
conversions, although told to use integer operators alone; such a file is refused here.
"""

from __future__ import annotations

from typing import Final

from evenfleet_collector.optimize import float_lite, graph
from evenfleet_collector.optimize.technique import CALIBRATION_SAMPLES, Conversion, Form, Material
from evenfleet_shared.errors import ModelRefusedError


def _full_int8(form: Form, material: Material) -> Form:
    import tensorflow as tf

    lite = float_lite.converter(form)
    lite.optimizations = [tf.lite.Optimize.DEFAULT]
    lite.representative_dataset = material.calibration
    lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    lite.inference_input_type = tf.int8
    lite.inference_output_type = tf.int8
    converted = float_lite.write(form, material, "int8", lite)
    assert converted.tflite is not None
    left = graph.read(converted.tflite.read_bytes()).float_operators
    if left:
        raise ModelRefusedError(
            f"int8: {', '.join(left)} would run in float32, having no int8 kernel; integer-only hardware refuses that"
        )
    return converted


FULL_INT8: Final = Conversion(
    name="int8",
    gives="tflite",
    settings=f"batch=1 input=int8 output=int8 calibration={CALIBRATION_SAMPLES}",
    convert=_full_int8,
)
