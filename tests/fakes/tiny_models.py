"""Real .tflite files of a few hundred bytes, written without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}

FEATURES, CLASSES = 4, 3


def weights() -> npt.NDArray[np.float32]:
    """Return the classifier's weights, shape ``(CLASSES, FEATURES)``: class i looks at feature i, and a little at the last."""
    matrix = np.eye(CLASSES, FEATURES, dtype=np.float32)
    matrix[:, -1] = [0.1, 0.2, 0.3]
    return matrix


def classifier(path: Path, *, version: int = 1, dynamic_batch: bool = False) -> Path:
    """Write FULLY_CONNECTED and SOFTMAX in float32; a high `version` of the first is one that no runtime has."""
    graph = _Graph()
    x = graph.tensor("x", (1, FEATURES), signature=(-1, FEATURES) if dynamic_batch else None)
    w = graph.tensor("w", (CLASSES, FEATURES), data=weights())
    b = graph.tensor("b", (CLASSES,), data=np.zeros(CLASSES, dtype=np.float32))
    logits = graph.tensor("logits", (1, CLASSES))
    y = graph.tensor("y", (1, CLASSES))
    options = schema.FullyConnectedOptionsT()
    options.weightsFormat = 0
    graph.operator(
        schema.BuiltinOperator.FULLY_CONNECTED,
        (x, w, b),
        (logits,),
        (schema.BuiltinOptions.FullyConnectedOptions, options),
        version=version,
    )
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    graph.operator(schema.BuiltinOperator.SOFTMAX, (logits,), (y,), (schema.BuiltinOptions.SoftmaxOptions, softmax))
    return graph.write(path, inputs=(x,), outputs=(y,))


def as_before_2_4(path: Path) -> Path:
    """Rewrite a file as converters before TensorFlow 2.4 wrote it: operators by the one byte of the deprecated field."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for code in model.operatorCodes:
        code.builtinCode = 0
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def dense(path: Path, layers: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> Path:
    """Write FULLY_CONNECTED layers in float32, named ``dense0`` and so on, with RELU in all but the last.

    Args:
        path: Where to write.
        layers: Weights ``(outputs, inputs)`` and biases of each.
    """
    graph = _Graph()
    tensor = first = graph.tensor("x", (1, layers[0][0].shape[1]))
    for number, (matrix, bias) in enumerate(layers):
        made = graph.tensor(f"dense{number}", (1, len(bias)))
        w = graph.tensor(f"w{number}", matrix.shape, data=matrix.astype(np.float32))
        b = graph.tensor(f"b{number}", bias.shape, data=bias.astype(np.float32))
        options = schema.FullyConnectedOptionsT()
        last = number == len(layers) - 1
        options.fusedActivationFunction = (
            schema.ActivationFunctionType.NONE if last else schema.ActivationFunctionType.RELU
        )
        graph.operator(
            schema.BuiltinOperator.FULLY_CONNECTED,
            (tensor, w, b),
            (made,),
            (schema.BuiltinOptions.FullyConnectedOptions, options),
        )
        tensor = made
    return graph.write(path, inputs=(first,), outputs=(tensor,))


def quantised_classifier(path: Path) -> Path:
    """Write a full int8 SOFTMAX over three features: the largest one wins. Input step 1/16, output step 1/256."""
    graph = _Graph()
    x = graph.tensor("x", (1, CLASSES), dtype="int8", scale=1 / 16, zero_point=-3)
    y = graph.tensor("y", (1, CLASSES), dtype="int8", scale=1 / 256, zero_point=-128)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    graph.operator(
        schema.BuiltinOperator.SOFTMAX, (x,), (y,), (schema.BuiltinOptions.SoftmaxOptions, softmax), version=2
    )
    return graph.write(path, inputs=(x,), outputs=(y,))


def half_quantised_classifier(path: Path) -> Path:
    """Write RELU in float32 and SOFTMAX in int8: what a converter leaves when an operator has no integer kernel."""
    graph = _Graph()
    x, middle = graph.tensor("x", (1, CLASSES)), graph.tensor("middle", (1, CLASSES))
    quantised = graph.tensor("quantised", (1, CLASSES), dtype="int8", scale=1 / 16)
    y = graph.tensor("y", (1, CLASSES), dtype="int8", scale=1 / 256, zero_point=-128)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    graph.operator(schema.BuiltinOperator.RELU, (x,), (middle,), None)
    graph.operator(schema.BuiltinOperator.QUANTIZE, (middle,), (quantised,), None)
    graph.operator(
        schema.BuiltinOperator.SOFTMAX, (quantised,), (y,), (schema.BuiltinOptions.SoftmaxOptions, softmax), version=2
    )
    return graph.write(path, inputs=(x,), outputs=(y,))


def adder(path: Path, *, dtype: str = "float32", shape: tuple[int, ...] = (1, 2)) -> Path:
    """Write a model with two inputs, which adds them."""
    graph = _Graph()
    a, b, y = (graph.tensor(name, shape, dtype=dtype) for name in ("a", "b", "sum"))
    graph.operator(schema.BuiltinOperator.ADD, (a, b), (y,), (schema.BuiltinOptions.AddOptions, schema.AddOptionsT()))
    return graph.write(path, inputs=(a, b), outputs=(y,))


def relu(path: Path, *, shape: tuple[int, ...] = (1,), signature: tuple[int, ...] | None = None) -> Path:
    """Write the smallest model there is, of any shape."""
    graph = _Graph()
    x, y = graph.tensor("x", shape, signature=signature), graph.tensor("y", shape, signature=signature)
    graph.operator(schema.BuiltinOperator.RELU, (x,), (y,), None)
    return graph.write(path, inputs=(x,), outputs=(y,))


def partly_delegated(path: Path) -> Path:
    """Write RELU, which XNNPACK takes, and then CUMSUM, which it has no kernel for."""
    graph = _Graph()
    x, middle, y = graph.tensor("x", (1, 4)), graph.tensor("middle", (1, 4)), graph.tensor("y", (1, 4))
    axis = graph.tensor("axis", (), dtype="int32", data=np.array(1, dtype=np.int32))
    graph.operator(schema.BuiltinOperator.RELU, (x,), (middle,), None)
    graph.operator(
        schema.BuiltinOperator.CUMSUM,
        (middle, axis),
        (y,),
        (schema.BuiltinOptions.CumsumOptions, schema.CumsumOptionsT()),
    )
    return graph.write(path, inputs=(x,), outputs=(y,))


def sigmoid(path: Path, matrix: npt.NDArray[np.float32]) -> Path:
    """Write FULLY_CONNECTED and LOGISTIC in float32: one independent score per row of `matrix`, ``(outputs, inputs)``."""
    graph = _Graph()
    x = graph.tensor("x", (1, matrix.shape[1]))
    w = graph.tensor("w", matrix.shape, data=matrix.astype(np.float32))
    b = graph.tensor("b", (len(matrix),), data=np.zeros(len(matrix), dtype=np.float32))
    logits, y = graph.tensor("logits", (1, len(matrix))), graph.tensor("y", (1, len(matrix)))
    options = schema.FullyConnectedOptionsT()
    graph.operator(
        schema.BuiltinOperator.FULLY_CONNECTED,
        (x, w, b),
        (logits,),
        (schema.BuiltinOptions.FullyConnectedOptions, options),
    )
    graph.operator(schema.BuiltinOperator.LOGISTIC, (logits,), (y,), None)
    return graph.write(path, inputs=(x,), outputs=(y,))


# Four places in a picture, as centre y, centre x, height, width.
ANCHORS = np.array([[y, x, 0.4, 0.4] for y in (0.25, 0.75) for x in (0.25, 0.75)], dtype=np.float32)
DETECTED_CLASSES = 2


def detector(path: Path) -> Path:
    """Write the end of an SSD: box encodings and class scores go through TFLite's own detection post-processing.

    The input, ``(1, anchors, 4 + 1 + classes)``, is what the rest of such a network would have made of a picture: an offset
    from each anchor, then the scores of the background and of each class.
    """
    graph, columns = _Graph(), 4 + 1 + DETECTED_CLASSES
    x = graph.tensor("x", (1, len(ANCHORS), columns))
    encodings = graph.tensor("encodings", (1, len(ANCHORS), 4))
    scores = graph.tensor("class_scores", (1, len(ANCHORS), 1 + DETECTED_CLASSES))
    for name, start, made in (("boxes", 0, encodings), ("scores", 4, scores)):
        width = 4 if name == "boxes" else 1 + DETECTED_CLASSES
        begin = graph.tensor(f"{name}_begin", (3,), dtype="int32", data=np.array([0, 0, start], dtype=np.int32))
        size = graph.tensor(f"{name}_size", (3,), dtype="int32", data=np.array([1, -1, width], dtype=np.int32))
        graph.operator(
            schema.BuiltinOperator.SLICE,
            (x, begin, size),
            (made,),
            (schema.BuiltinOptions.SliceOptions, schema.SliceOptionsT()),
        )
    anchors = graph.tensor("anchors", ANCHORS.shape, data=ANCHORS)
    found = tuple(
        graph.tensor(f"TFLite_Detection_PostProcess{number}", shape)
        for number, shape in (("", (1, 3, 4)), (":1", (1, 3)), (":2", (1, 3)), (":3", (1,)))
    )
    options = flexbuffers.Builder()
    with options.Map():
        for key, value in (("max_detections", 3), ("max_classes_per_detection", 1), ("num_classes", DETECTED_CLASSES)):
            options.Int(key, value)
        for key, real in (("nms_score_threshold", 0.05), ("nms_iou_threshold", 0.6)):
            options.Float(key, real)
        for key in ("y_scale", "x_scale", "h_scale", "w_scale"):
            options.Float(key, 1.0)
    graph.operator(
        schema.BuiltinOperator.CUSTOM,
        (encodings, scores, anchors),
        found,
        None,
        custom_code="TFLite_Detection_PostProcess",
        custom_options=bytes(options.Finish()),
    )
    return graph.write(path, inputs=(x,), outputs=found)


def custom(path: Path, *, name: str = "Frobnicate") -> Path:
    """Write a model whose only operator nobody has."""
    graph = _Graph()
    x, y = graph.tensor("x", (1,)), graph.tensor("y", (1,))
    graph.operator(schema.BuiltinOperator.CUSTOM, (x,), (y,), None, custom_code=name)
    return graph.write(path, inputs=(x,), outputs=(y,))


def named_outputs(path: Path) -> Path:
    """Write RELU and NEG of one input, whose signature lists the two outputs in another order than the graph."""
    graph = _Graph()
    x, up, down = graph.tensor("x", (1, 2)), graph.tensor("up", (1, 2)), graph.tensor("down", (1, 2))
    graph.operator(schema.BuiltinOperator.RELU, (x,), (up,), None)
    graph.operator(schema.BuiltinOperator.NEG, (x,), (down,), (schema.BuiltinOptions.NegOptions, schema.NegOptionsT()))
    graph.sign(inputs={"x": x}, outputs={"a_down": down, "b_up": up})
    return graph.write(path, inputs=(x,), outputs=(up, down))


def with_min_runtime_version(path: Path, version: str) -> Path:
    """Write a model that says which runtime its converter counts on."""
    graph = _Graph()
    x, y = graph.tensor("x", (1,)), graph.tensor("y", (1,))
    graph.operator(schema.BuiltinOperator.RELU, (x,), (y,), None)
    # Converters pad it to 16 bytes.
    graph.metadata("min_runtime_version", version.encode().ljust(16, b"\0"))
    return graph.write(path, inputs=(x,), outputs=(y,))


def aborting(path: Path) -> Path:
    """Write a model that makes LiteRT 2.3 abort its process: an ADD of quantised type that has no quantisation."""
    return adder(path, dtype="uint8")


class _Graph:
    def __init__(self) -> None:
        self._buffers = [_buffer(None)]  # the first one is the empty one
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[Any] = []
        self._metadata: list[Any] = []
        self._signatures: list[Any] = []

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        dtype: str = "float32",
        data: npt.NDArray[Any] | None = None,
        signature: tuple[int, ...] | None = None,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = list(shape)
        tensor.type = _TYPES[dtype]
        tensor.buffer = 0
        if signature is not None:
            tensor.shapeSignature = list(signature)
        if data is not None:
            tensor.buffer = len(self._buffers)
            self._buffers.append(_buffer(data))
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero_point]
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def operator(
        self,
        builtin: int,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        options: tuple[int, Any] | None,
        *,
        version: int = 1,
        custom_code: str | None = None,
        custom_options: bytes | None = None,
    ) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.version = version
        code.customCode = custom_code
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._codes)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if custom_options is not None:
            operator.customOptions = np.frombuffer(custom_options, dtype=np.uint8)
        if options:
            operator.builtinOptionsType, operator.builtinOptions = options
        self._codes.append(code)
        self._operators.append(operator)

    def metadata(self, name: str, content: bytes) -> None:
        entry = schema.MetadataT()
        entry.name = name
        entry.buffer = len(self._buffers)
        self._buffers.append(_buffer(np.frombuffer(content, dtype=np.uint8)))
        self._metadata.append(entry)

    def sign(self, *, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.subgraphIndex = 0
        signature.inputs, signature.outputs = _tensor_map(inputs), _tensor_map(outputs)
        self._signatures.append(signature)

    def write(self, path: Path, *, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Path:
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = list(inputs), list(outputs)
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes, model.subgraphs, model.buffers = self._codes, [subgraph], self._buffers
        model.metadata, model.signatureDefs = self._metadata, self._signatures
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(builder.Output())
        return path


def _buffer(data: npt.NDArray[Any] | None) -> Any:
    buffer = schema.BufferT()
    if data is not None:
        buffer.data = np.frombuffer(data.tobytes(), dtype=np.uint8)
    return buffer


def _tensor_map(names: dict[str, int]) -> list[Any]:
    made = []
    for name, index in names.items():
        entry = schema.TensorMapT()
        entry.name = name
        entry.tensorIndex = index
        made.append(entry)
    return made
