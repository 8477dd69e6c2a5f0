"""Weights alone in fewer bits, by ai-edge-quantizer: a smaller file, computed in float32.

Works on the float32 file, so on any model whose operators the quantizer knows, with no samples and no training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from evenfleet_collector.optimize.dissect import with_signatures
from evenfleet_collector.optimize.technique import Form, Material, Stage, Technique
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError

INSTALL = "pip install --no-deps ai-edge-quantizer immutabledict"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnly(Technique):
    """Int8 or int4 weights with a scale for each output channel; each is made float again before it is used."""

    name: ClassVar[str] = "weight-only"
    takes: ClassVar[Stage] = "tflite"
    gives: ClassVar[Stage] = "tflite"
    bits: Literal[4, 8] = 8

    def apply(self, form: Form, material: Material) -> Form:
        """Quantize the weights."""
        return _quantized(self.name, f"weight_only_wi{self.bits}_afp32", form, material)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4(Technique):
    """Int4 weights, activations quantised to int8 at run time, in float between operators."""

    name: ClassVar[str] = "int4"
    takes: ClassVar[Stage] = "tflite"
    gives: ClassVar[Stage] = "tflite"

    def apply(self, form: Form, material: Material) -> Form:
        """Quantize the weights."""
        return _quantized(self.name, "dynamic_wi4_afp32", form, material)


def _quantized(name: str, recipe_name: str, form: Form, material: Material) -> Form:
    recipe, quantizer = _library()
    assert form.tflite is not None
    made = quantizer.Quantizer(with_signatures(form.tflite.read_bytes()), getattr(recipe, recipe_name)()).quantize()
    path = material.new_path(f"{name}.tflite")
    path.write_bytes(made.quantized_model)
    if path.stat().st_size >= form.tflite.stat().st_size:
        raise ModelRefusedError(
            f"{name}: the file did not become smaller ({path.stat().st_size:,} bytes); no operator of it has weights to quantize"
        )
    return replace(form, stage="tflite", tflite=path)


def _library() -> tuple[Any, Any]:
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise RuntimeMissingError(f"ai-edge-quantizer is not installed ({error}); install it with: {INSTALL}") from None
    return recipe, quantizer
