"""Small .onnx files, written with the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 8, 3
Shape = Sequence[int | str]


def classifier(path: Path, *, shape: Shape = ("N", 3, SIDE, SIDE), labels: bool = False, softmax: bool = True) -> Path:
    """Write a convolution over channels first, pooling, a dense layer and softmax.

    Args:
        path: Where to.
        shape: Of the input.
        labels: Give the class too, by an operator of another domain, as scikit-learn's converter does.
        softmax: Whether the last layer is there.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    stored = {
        "w": random.normal(0, 0.3, (4, 3, 3, 3)),
        "b": np.linspace(-0.1, 0.1, 4),
        "d": random.normal(0, 0.3, (4 * (SIDE // 2) ** 2, CLASSES)),
    }
    last = "y" if not softmax else "m"
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        # A view by the batch's own size, as PyTorch writes it.
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["view"], axis=0),
        # And once more by a multiple of it, as attention over heads does.
        helper.make_node("Mul", ["n", "two"], ["n2"]),
        helper.make_node("Concat", ["n2", "rest"], ["heads"], axis=0),
        helper.make_node("Reshape", ["p", "heads"], ["h"]),
        helper.make_node("Reshape", ["h", "view"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], [last]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], CLASSES])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["m"], ["y"], axis=1))
    if labels:
        nodes += [
            helper.make_node("ArgMax", ["y"], ["index"], axis=1, keepdims=0),
            helper.make_node("ArrayFeatureExtractor", ["names", "index"], ["label"], domain="ai.onnx.ml"),
        ]
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [1, shape[0]]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
        + [
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.array([2]), "two"),
            numpy_helper.from_array(np.array([-1]), "rest"),
        ]
        + ([numpy_helper.from_array(np.arange(CLASSES)[np.newaxis], "names")] if labels else []),
    )
    domains = [helper.make_opsetid("", 13)] + [helper.make_opsetid("ai.onnx.ml", 3)] * labels
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path


def dense(path: Path, weights: np.ndarray[Any, Any]) -> Path:
    """Write softmax of a product with weights of shape ``(classes, features)``, of any batch."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    classes, features = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"], axis=1)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(np.ascontiguousarray(weights.T.astype(np.float32)), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def foreign(path: Path) -> Path:
    """Write a tree that only ONNX's own runtimes have."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L1")
    graph = helper.make_graph(
        [node],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    domains = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path
