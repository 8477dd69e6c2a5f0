"""TFLite without integer activations: float32 as it is, float16 weights, int8 weights ("dynamic range").

One file for three, since they differ in two settings of one converter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from evenfleet_collector.optimize.technique import Form, Material, Stage


@dataclass(frozen=True, slots=True)
class Float32:
    """The float model as TFLite: the reference."""

    name: ClassVar[str] = "float32"
    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "tflite"
    settings: ClassVar[str] = "batch=1"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert without any optimisation."""
        return write(form, material, self.name, converter(form))


@dataclass(frozen=True, slots=True)
class Float16:
    """Weights stored as float16; computed in float32 on CPUs, in float16 on GPUs."""

    name: ClassVar[str] = "float16"
    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "tflite"
    settings: ClassVar[str] = "batch=1 weights=float16"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert with float16 as the only weight type."""
        import tensorflow as tf

        lite = converter(form)
        lite.optimizations = [tf.lite.Optimize.DEFAULT]
        lite.target_spec.supported_types = [tf.float16]
        return write(form, material, self.name, lite)


@dataclass(frozen=True, slots=True)
class DynamicRange:
    """Weights stored as int8, activations quantised at run time; needs no calibration samples."""

    name: ClassVar[str] = "dynamic-range"
    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "tflite"
    settings: ClassVar[str] = "batch=1 weights=int8"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert with the default optimisation."""
        import tensorflow as tf

        lite = converter(form)
        lite.optimizations = [tf.lite.Optimize.DEFAULT]
        return write(form, material, self.name, lite)


def converter(form: Form) -> Any:
    """Return TensorFlow's converter for the form's SavedModel with a batch of one."""
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(str(form.batch_of_one), signature_keys=["serving_default"])


def write(form: Form, material: Material, name: str, lite: Any) -> Form:
    """Convert and write the file."""
    path = material.new_path(f"{name}.tflite")
    path.write_bytes(lite.convert())
    return replace(form, stage="tflite", tflite=path)
