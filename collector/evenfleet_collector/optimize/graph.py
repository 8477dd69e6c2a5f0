"""Read from a .tflite file what running it asks for: operators with versions, operations, parameters, runtime version."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

_FLOAT_TYPES = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_WEIGHT_TYPES = ("FLOAT32", "FLOAT16", "INT4", "INT8", "UINT8", "INT16")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What a file says of itself.

    Attributes:
        operators: ``NAME vN``, sorted, each once: what a runtime must know.
        parameters: Elements of constant weights and biases.
        macs: Multiply-accumulate operations of one inference in convolutions and dense layers.
        float_operators: Names of the operators that read or write float tensors, conversions from and to int8 aside.
        min_runtime_version: The oldest TFLite runtime that can load it, as the converter wrote it.
    """

    operators: tuple[str, ...]
    parameters: int
    macs: int
    float_operators: tuple[str, ...]
    min_runtime_version: str | None


def read(payload: bytes) -> GraphFacts:
    """Read a file, of this or of an old converter; whatever its reader trips over is raised as it is."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(payload, 0)
    codes = [(kind(code), code.version) for code in model.operatorCodes]
    return GraphFacts(
        operators=tuple(sorted({f"{name} v{version}" for name, version in codes})),
        parameters=sum(_parameters(model, graph) for graph in model.subgraphs),
        macs=sum(
            _macs(codes[operator.opcodeIndex][0], operator, graph)
            for graph in model.subgraphs
            for operator in graph.operators
        ),
        float_operators=tuple(
            sorted(
                {
                    codes[operator.opcodeIndex][0]
                    for graph in model.subgraphs
                    for operator in graph.operators
                    if _touches_floats(operator, graph)
                }
                - {"QUANTIZE", "DEQUANTIZE"}
            )
        ),
        min_runtime_version=_metadata(model, b"min_runtime_version"),
    )


def kind(code: Any) -> str:
    """Return what an operator is called, such as ``CONV_2D``, by its entry in the file's list of operators.

    Converters before TensorFlow 2.4 wrote the number into the one byte of the deprecated field alone, later ones into
    both where it fits.

    Source:
        tensorflow/lite/schema/schema_utils.cc, GetBuiltinCode.
    """
    return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _parameters(model: Any, graph: Any) -> int:
    types = _names("TensorType")
    elements: dict[int, int] = {}  # by buffer: two tensors may share one
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or not len(data):
            continue
        quantised = tensor.quantization is not None and tensor.quantization.scale is not None
        # An int32 without a scale is a shape or an axis, with one it is a bias.
        if types[tensor.type] in _WEIGHT_TYPES or quantised:
            elements[tensor.buffer] = _size(tensor)
    return sum(elements.values())


def _macs(name: str, operator: Any, graph: Any) -> int:
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL"):
        return 0
    inputs = [graph.tensors[index] for index in operator.inputs]
    output = graph.tensors[operator.outputs[0]]
    if name == "FULLY_CONNECTED":  # weights (units, inputs)
        return _size(output) * int(inputs[1].shape[-1])
    if name == "BATCH_MATMUL":
        return _size(output) * int(inputs[0].shape[-1])
    if name == "CONV_2D":  # weights (channels out, height, width, channels in)
        return _size(output) * prod(int(side) for side in inputs[1].shape[1:])
    if name == "CONV_3D":  # weights (depth, height, width, channels in, channels out)
        return _size(output) * prod(int(side) for side in inputs[1].shape[:-1])
    if name == "DEPTHWISE_CONV_2D":  # weights (1, height, width, channels out)
        return _size(output) * int(inputs[1].shape[1]) * int(inputs[1].shape[2])
    # TRANSPOSE_CONV spreads each input: inputs are (shape, weights (out, height, width, in), data).
    return _size(inputs[2]) * prod(int(side) for side in inputs[1].shape[:-1])


def _touches_floats(operator: Any, graph: Any) -> bool:
    types = _names("TensorType")
    indexes = [index for index in (*operator.inputs, *operator.outputs) if index >= 0]  # -1: left out
    return any(types[graph.tensors[index].type] in _FLOAT_TYPES for index in indexes)


def _metadata(model: Any, name: bytes) -> str | None:
    for entry in model.metadata or ():
        if entry.name == name and model.buffers[entry.buffer].data is not None:
            return bytes(model.buffers[entry.buffer].data).split(b"\0", 1)[0].decode("ascii", "replace") or None
    return None


def _size(tensor: Any) -> int:
    return prod(int(side) for side in tensor.shape) if tensor.shape is not None else 1


@cache
def _names(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    members = vars(getattr(schema, enumeration))
    return {value: name for name, value in members.items() if isinstance(value, int)}
