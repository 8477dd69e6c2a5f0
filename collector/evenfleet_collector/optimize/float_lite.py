"""TFLite without integer activations: float32 as it is, float16 weights, int8 weights ("dynamic range").

One file for three, since they differ in two settings of one converter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from evenfleet_collector.optimize.technique import Conversion, Form, Material


def converter(form: Form) -> Any:
    """Return TensorFlow's converter for the form's SavedModel with a batch of one."""
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(str(form.batch_of_one), signature_keys=["serving_default"])


def write(form: Form, material: Material, name: str, lite: Any) -> Form:
    """Convert and write the file."""
    path = material.new_path(f"{name}.tflite")
    path.write_bytes(lite.convert())
    return replace(form, stage="tflite", tflite=path)


def _float32(form: Form, material: Material) -> Form:
    return write(form, material, "float32", converter(form))


def _float16(form: Form, material: Material) -> Form:
    import tensorflow as tf

    lite = converter(form)
    lite.optimizations = [tf.lite.Optimize.DEFAULT]
    lite.target_spec.supported_types = [tf.float16]
    return write(form, material, "float16", lite)


def _dynamic_range(form: Form, material: Material) -> Form:
    import tensorflow as tf

    lite = converter(form)
    lite.optimizations = [tf.lite.Optimize.DEFAULT]
    return write(form, material, "dynamic-range", lite)


# The float model as TFLite: the reference.
FLOAT32: Final = Conversion(name="float32", gives="tflite", settings="batch=1", convert=_float32)
# Weights stored as float16; computed in float32 on CPUs, in float16 on GPUs.
FLOAT16: Final = Conversion(name="float16", gives="tflite", settings="batch=1 weights=float16", convert=_float16)
# Weights stored as int8, activations quantised at run time; needs no calibration samples.
DYNAMIC_RANGE: Final = Conversion(
    name="dynamic-range", gives="tflite", settings="batch=1 weights=int8", convert=_dynamic_range
)
