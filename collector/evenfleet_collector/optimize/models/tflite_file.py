"""An existing ``.tflite``: it is the reference variant, and what needs more than the file is missing with the reason.

The interpreter is C++ that trusts what it reads, so a file is first loaded and run in a process of its own: one that
makes it crash is refused, and does not end the build.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from evenfleet_collector.child import bound
from evenfleet_collector.optimize import evaluate, graph
from evenfleet_collector.optimize.models import interface
from evenfleet_collector.optimize.models.interface import MAX_MODEL_BYTES, OpenedModel
from evenfleet_collector.optimize.sources import FileSource, ModelSource, one_line
from evenfleet_collector.optimize.technique import Form, Material
from evenfleet_shared.errors import ModelRefusedError
from evenfleet_shared.manifest import file_digest

_IDENTIFIER: Final = b"TFL3"
_TRIAL_LIMIT_S: Final = 120
# The message goes to stdout: what the interpreter itself prints goes to stderr.
_TRIAL: Final = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
try:
    interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
    interpreter.allocate_tensors()
    for each in interpreter.get_input_details():
        interpreter.set_tensor(each["index"], np.zeros(each["shape"], each["dtype"]))
    interpreter.invoke()
except Exception as error:
    print(error)
    sys.exit(1)
"""
_INTEGERS: Final = ("int8", "uint8", "int16")


class TFLiteFile:
    """A ``.tflite`` file."""

    form = "a .tflite file"

    def takes(self, source: ModelSource) -> bool:
        return isinstance(source, FileSource) and source.path.suffix.lower() == ".tflite" and source.path.is_file()

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        assert isinstance(source, FileSource)
        path = source.path
        what = f"MODEL {path}"
        _check_file(path, what)
        _try_out(path, what)
        try:
            details = _Details(path)
            own_name = type_name(path.read_bytes())
            parameters = graph.read(path.read_bytes()).parameters
        except Exception as error:  # noqa: BLE001 - the file decides what its readers trip over
            raise ModelRefusedError(f"{what} cannot be read: {one_line(error)}") from None
        details.check(what)
        artifact = evaluate.TFLiteArtifact(path)

        def form(_: Material) -> Form:
            return Form(stage="tflite", tflite=path, parameters=parameters)

        return OpenedModel(
            what=what,
            stage="tflite",
            sample_shape=artifact.input.shape[1:],
            run=artifact.outputs,
            one_by_one=False,
            form=form,
            digest=file_digest(path),
            own_name=own_name,
        )


class _Details:
    """Inputs and outputs, as the interpreter describes them."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=1)
        self.inputs: list[dict[str, Any]] = interpreter.get_input_details()
        self.outputs: list[dict[str, Any]] = interpreter.get_output_details()

    def check(self, what: str) -> None:
        """Refuse what is no classifier that a device can run as it is."""
        import numpy as np

        interface.check_counts(what, len(self.inputs), len(self.outputs))
        for role, tensor in (("input", self.inputs[0]), ("output", self.outputs[0])):
            dtype = np.dtype(tensor["dtype"]).name
            scales = tensor["quantization_parameters"]["scales"]
            if dtype != "float32" and not (dtype in _INTEGERS and len(scales) == 1):
                raise ModelRefusedError(
                    f"{what} has an {role} of type {dtype}{'' if dtype not in _INTEGERS else ' without one scale'}; "
                    f"expected float32, or {', '.join(_INTEGERS)} with a scale"
                )
            shape = [int(side) for side in tensor["shape_signature"]]
            if not shape:
                raise ModelRefusedError(f"{what} has an {role} without a batch: a single number")
            interface.check_batch(what, shape[0])
            if -1 in shape[1:]:
                sides = " × ".join("any" if side == -1 else str(side) for side in shape)
                raise ModelRefusedError(
                    f"{what} has an {role} of shape {sides}; devices run a file as it is, so everything but the batch "
                    "must be fixed: convert it with a fixed shape"
                )
        rank = len(self.outputs[0]["shape"])
        if rank != 2:
            raise ModelRefusedError(
                f"{what} gives {tuple(int(side) for side in self.outputs[0]['shape'][1:])} values per sample; "
                f"expected a row of 2 to {interface.MAX_CLASSES} class scores"
            )


def type_name(payload: bytes) -> str:
    """Return what a file is called as a variant, by the types of its weights and activations.

    ``float32``, ``float16``, ``dynamic``, ``int8``, ``int16x8``, ``uint8``; ``original`` for any other mixture.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(payload, 0)
    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    weights: set[str] = set()
    activations: set[str] = set()
    for each in model.subgraphs:
        for tensor in each.tensors:
            stored = model.buffers[tensor.buffer].data
            constant = stored is not None and len(stored) > 0
            # Biases and shapes say nothing: those of int8 models are int32.
            if constant and (tensor.shape is None or len(tensor.shape) < 2):
                continue
            (weights if constant else activations).add(names[tensor.type])
    if activations & {"INT8", "INT16", "UINT8"} and graph.read(payload).float_operators:
        return "original"
    known = {
        ("FLOAT32", "FLOAT32"): "float32",
        ("FLOAT32", "FLOAT16"): "float16",
        ("FLOAT32", "INT8"): "dynamic",
        ("INT8", "INT8"): "int8",
        ("INT16", "INT8"): "int16x8",
        ("UINT8", "UINT8"): "uint8",
    }
    computed = activations - {"INT32", "INT64", "BOOL"}
    if len(computed) > 1:
        computed -= {"FLOAT32"}  # at the ends, between conversions
    stored_as = weights - {"INT32", "INT64"} or set(computed)
    if len(stored_as) > 1:
        stored_as -= {"FLOAT32"}  # what was too small to be worth it
    if len(computed) != 1 or len(stored_as) != 1:
        return "original"
    return known.get((computed.pop(), stored_as.pop()), "original")


def _check_file(path: Path, what: str) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelRefusedError(f"{what} cannot be read: {error.strerror}") from None
    if head[4:] != _IDENTIFIER:
        raise ModelRefusedError(f"{what} is not a .tflite file: expected TFL3 at byte 4, found {head[4:]!r}")
    if size > MAX_MODEL_BYTES:
        raise ModelRefusedError(f"{what} has {size} bytes, at most {MAX_MODEL_BYTES} are read")


def _try_out(path: Path, what: str) -> None:
    """Load and run it once in another process.

    Raises:
        ModelRefusedError: It cannot be run, or took the process down with it.
    """
    try:
        done = subprocess.run(
            bound([sys.executable, "-c", _TRIAL, str(path)]),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelRefusedError(f"{what} did not give a first result within {_TRIAL_LIMIT_S} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ModelRefusedError(f"{what} makes the interpreter crash ({name}): the file is damaged, or hostile")
    if done.returncode:
        said = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ModelRefusedError(f"{what} cannot be run by LiteRT: {said[0][:300]}")
