"""Convert an ``.onnx`` to a SavedModel with onnx2tf, as a program of its own in whatever environment has onnx2tf.

    python onnx_child.py MODEL.onnx FOLDER

Loads nothing of ours: the environment need not have it. Writes ``FOLDER/saved-model``, samples with what ONNX's own
reference evaluator makes of them as ``FOLDER/probe.npz``, and last of all ``FOLDER/result.json``: ``refused`` with why,
``absent`` with which package, or ``versions``. Inputs keep the shape and order of axes that the .onnx has.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# What onnx2tf would fetch from the web to compare layers with, by this name in the current directory.
_SAMPLE_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
_PROBES = 4
_FLOAT = 1  # onnx.TensorProto.FLOAT


class RefusedError(Exception):
    """Why this model cannot be taken."""


def main(model: Path, folder: Path) -> None:
    """Convert, and leave the result in `folder`."""
    result: dict[str, Any]
    try:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        result = _convert(model, folder)
    except ModuleNotFoundError as error:
        result = {"absent": error.name or str(error)}
    except RefusedError as error:
        result = {"refused": str(error)}
    except SystemExit:  # onnx2tf prints why, and exits
        result = {"refused": "onnx2tf gave up on it"}
    except Exception as error:  # noqa: BLE001 - the model decides what the converter trips over
        result = {"refused": f"{type(error).__name__}: {error}"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _convert(path: Path, folder: Path) -> dict[str, Any]:
    import numpy as np
    import onnx

    model = _loaded(path)
    _check_operators(model)
    name, shape = _input(model)
    output = _output(model)
    if len(model.graph.output) > 1:
        # sklearn's classifiers give the class beside the scores; the rest of the graph goes with it.
        model = onnx.utils.Extractor(model).extract_model([name], [output])
    one = folder / "model.onnx"
    # Shapes in between are what onnx2tf tells one axis from another by.
    onnx.save(onnx.shape_inference.infer_shapes(model), one)

    random = np.random.default_rng(0)
    x = random.random((_PROBES, *shape), dtype=np.float32)
    y = np.concatenate([_reference(one, name, sample[np.newaxis]) for sample in x])
    np.savez(folder / "probe.npz", x=x, y=y)

    os.chdir(folder)
    np.save(_SAMPLE_IMAGES, random.random((20, 128, 128, 3), dtype=np.float32))
    import onnx2tf

    onnx2tf.convert(
        input_onnx_file_path=str(one),
        output_folder_path=str(folder / "saved-model"),
        keep_shape_absolutely_input_names=[name],
        output_signaturedefs=True,
        not_use_onnxsim=True,  # a further package, for graphs that others made needlessly long
        not_use_opname_auto_generate=True,
        non_verbose=True,
    )
    return {"versions": {"onnx2tf": onnx2tf.__version__, "onnx": onnx.__version__}}


def _loaded(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        elsewhere = any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)
        if not elsewhere:
            onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - the file decides what its reader trips over
        lines = str(error).strip().splitlines()
        raise RefusedError(f"it is not a valid ONNX model ({lines[0] if lines else type(error).__name__})") from None
    if elsewhere:
        raise RefusedError("it keeps weights in other files; save it as one: onnx.save(onnx.load(path), path)")
    return model


def _check_operators(model: Any) -> None:
    """Refuse operators of other domains: they have no counterpart, and some are code."""
    needed = _needed_nodes(model)
    strange = sorted({f"{node.domain}.{node.op_type}" for node in needed if node.domain not in {"", "ai.onnx"}})
    if strange:
        raise RefusedError(f"it uses operators that TFLite has no counterpart of: {', '.join(strange[:5])}")


def _needed_nodes(model: Any) -> list[Any]:
    """Return the nodes that the scores depend on."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    wanted = [_output(model)]
    found: dict[int, Any] = {}
    while wanted:
        node = made_by.get(wanted.pop())
        if node is not None and id(node) not in found:
            found[id(node)] = node
            wanted += node.input
    return list(found.values())


def _input(model: Any) -> tuple[str, list[int]]:
    """Return the name of the only input, and the shape of a sample."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise RefusedError(f"it has {len(inputs)} inputs; releases are built from models with one")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != _FLOAT:
        raise RefusedError("it takes another type than float32; releases are built from models that take float32")
    sides: list[Any] = [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?") for dim in kind.shape.dim
    ]
    if not sides or any(isinstance(side, str) for side in sides[1:]):
        raise RefusedError(
            f"its input {inputs[0].name} has the shape ({', '.join(map(str, sides))}), where more than the batch is free; "
            "fix the others: python -m onnxruntime.tools.make_dynamic_shape_fixed"
        )
    if not isinstance(sides[0], str) and sides[0] != 1:
        raise RefusedError(f"it takes exactly {sides[0]} samples at once; export it with a free batch size or 1")
    return inputs[0].name, sides[1:]


def _output(model: Any) -> str:
    """Return the name of the only output, or of the only one that can be scores."""
    outputs = list(model.graph.output)
    if len(outputs) > 1:
        outputs = [
            value
            for value in outputs
            if value.type.tensor_type.elem_type == _FLOAT and len(value.type.tensor_type.shape.dim) == 2
        ]
    if len(outputs) != 1:
        raise RefusedError(
            f"it has {len(model.graph.output)} outputs, {len(outputs)} of them rows of float32 scores; expected one"
        )
    return str(outputs[0].name)


def _reference(path: Path, name: str, x: Any) -> Any:
    from onnx.reference import ReferenceEvaluator

    return next(iter(ReferenceEvaluator(str(path)).run(None, {name: x})))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
