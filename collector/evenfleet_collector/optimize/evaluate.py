"""Run an artifact on samples, and compare what it gives with labels and with the reference outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evenfleet_collector.optimize.data import Labels, Samples
from evenfleet_shared import agreement, metrics
from evenfleet_shared.manifest import Format, ReferenceResult, TensorSpec


class TFLiteArtifact:
    """A .tflite in the plain LiteRT interpreter, one sample at a time, one thread: as a device runs it."""

    format: Format = "tflite"

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self.input, self.output = _spec(self._input), _spec(self._output)

    def outputs(self, x: Samples) -> Samples:
        """Return dequantised outputs, shape ``(n, classes)``."""
        rows = np.empty((len(x), self.output.shape[-1]), dtype=np.float32)
        for row, sample in zip(rows, x, strict=True):
            self._interpreter.set_tensor(self._input["index"], self._encode(sample[np.newaxis]))
            self._interpreter.invoke()
            row[:] = self._decode(self._interpreter.get_tensor(self._output["index"]).reshape(-1))
        return rows

    def _encode(self, x: Samples) -> Any:
        scale, zero_point = self.input.scale, self.input.zero_point
        if scale is None or zero_point is None:
            return x
        bounds = np.iinfo(self._input["dtype"])
        return np.clip(np.rint(x / np.float32(scale)) + zero_point, bounds.min, bounds.max).astype(self._input["dtype"])

    def _decode(self, row: Any) -> Any:
        scale, zero_point = self.output.scale, self.output.zero_point
        if scale is None or zero_point is None:
            return row
        return (row.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


class SavedModelArtifact:
    """A SavedModel directory in TensorFlow."""

    format: Format = "saved_model"
    _BATCH = 256

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        self._loaded = tf.saved_model.load(str(directory))  # the signature lives no longer than this
        self._signature = self._loaded.signatures["serving_default"]
        ((self._input_name, given),) = self._signature.structured_input_signature[1].items()
        ((self._output_name, made),) = self._signature.structured_outputs.items()
        self.input = TensorSpec(name=self._input_name, shape=_shape(given.shape), dtype=given.dtype.name)
        self.output = TensorSpec(name=self._output_name, shape=_shape(made.shape), dtype=made.dtype.name)

    def outputs(self, x: Samples) -> Samples:
        """Return outputs, shape ``(n, classes)``."""
        batch = 1 if self.input.shape[0] == 1 else self._BATCH
        parts = [
            self._signature(**{self._input_name: self._tf.constant(x[start : start + batch])})[
                self._output_name
            ].numpy()
            for start in range(0, len(x), batch)
        ]
        return np.concatenate(parts).astype(np.float32)


def reference_result(
    outputs: Samples, labels: Labels, reference_outputs: Samples, output_scale: float | None
) -> ReferenceResult:
    """Return what the manifest says of a variant on the golden set.

    Args:
        outputs: The variant's dequantised outputs, shape ``(n, classes)``.
        labels: True classes, shape ``(n,)``.
        reference_outputs: The reference variant's outputs, same shape.
        output_scale: One step of the variant's output quantisation; None for float.
    """
    predictions = outputs.argmax(axis=1)
    counts = metrics.class_counts(labels.tolist(), predictions.tolist(), outputs.shape[1])
    return ReferenceResult(
        n=counts.n,
        errors=counts.errors,
        tp=counts.tp,
        fp=counts.fp,
        fn=counts.fn,
        correct="".join("01"[int(right)] for right in predictions == labels),
        prediction_digest=agreement.prediction_digest(predictions),
        agreement=agreement.compare(reference_outputs, outputs, output_scale=output_scale),
    )


def _spec(details: dict[str, Any]) -> TensorSpec:
    scales = details["quantization_parameters"]["scales"]
    quantised = len(scales) == 1
    return TensorSpec(
        name=str(details["name"])[:500],
        shape=tuple(int(side) for side in details["shape_signature"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scales[0]) if quantised else None,
        zero_point=int(details["quantization_parameters"]["zero_points"][0]) if quantised else None,
    )


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(-1 if side is None else int(side) for side in shape)
