"""TFLite without integer activations: float32 as it is, float16 weights, int8 weights ("dynamic range").

One file for three, since they differ in two settings of one converter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from evenfleet_collector.optimize.technique import Form, Material, Stage, Technique


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion(Technique):
    """A technique that has TensorFlow's converter write the SavedModel, with a batch of one, and trains nothing."""

    takes: ClassVar[Stage] = "saved_model"
    gives: ClassVar[Stage] = "tflite"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert and write the file."""
        import tensorflow as tf

        lite = tf.lite.TFLiteConverter.from_saved_model(str(form.batch_of_one), signature_keys=["serving_default"])
        self.configure(lite, material)
        path = material.new_path(f"{self.name}.tflite")
        path.write_bytes(lite.convert())
        return replace(form, stage="tflite", tflite=path)

    def configure(self, lite: Any, material: Material) -> None:
        """Tell the converter what to do; nothing for the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Float32(Conversion):
    """The float model as TFLite: the reference."""

    name: ClassVar[str] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16(Conversion):
    """Weights stored as float16; computed in float32 on CPUs, in float16 on GPUs."""

    name: ClassVar[str] = "float16"

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        lite.optimizations = [tf.lite.Optimize.DEFAULT]
        lite.target_spec.supported_types = [tf.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRange(Conversion):
    """Weights stored as int8, activations quantised at run time; needs no calibration samples."""

    name: ClassVar[str] = "dynamic-range"

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        lite.optimizations = [tf.lite.Optimize.DEFAULT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse(Conversion):
    """Float32 weights, of which only the blocks that are not zero are stored and computed with.

    Worth something after `prune-blocks` alone: runtimes have kernels for whole blocks, not for scattered zeros.
    """

    name: ClassVar[str] = "sparse"

    def configure(self, lite: Any, material: Material) -> None:
        import tensorflow as tf

        lite.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
