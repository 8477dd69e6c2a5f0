"""Run .tflite files in an `Interpreter` class, which `ai-edge-litert` and `tflite-runtime` both have.

The two packages differ in name, age and what they refuse; `litert` and `tflite` say so.
"""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent.runtimes import flatbuffer
from evenfleet_agent.runtimes.interface import Execution, Options
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import Format, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# One RELU of one float: a real graph, since an interpreter that cannot work may still read a file.
_SMALLEST_MODEL: Final = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA0AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAMAAgABAAMAA"
    "AAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAEAAAABAAAAAQAAAAAAAAAC"
    "AAAAMAAAAAQAAADk////CAAAAAwAAAABAAAAeQAAAAEAAAABAAAADAAMAAgAAAAAAAQADAAAAAgAAAAMAAAAAQAAAHgAAAABAAAAAQAAAAEAAA"
    "AQAAAADAAMAAsAAAAAAAQADAAAABMAAAAAAAAT"
)
_DELEGATE: Final = "DELEGATE"
# An interpreter answers a bad model with any of these; SystemError comes from extension modules built for another
# numpy, MemoryError from a shape that no machine has room for.
_INTERPRETER_ERRORS: Final = (
    ValueError,
    RuntimeError,
    TypeError,
    SystemError,
    ImportError,
    AttributeError,
    MemoryError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A `Runtime`: a Python package that has the `Interpreter` class."""

    name: str
    module: str
    distribution: str
    install: str
    needs_numpy_1: bool
    formats: tuple[Format, ...] = ("tflite",)

    def check(self) -> str:
        """See `Runtime`."""
        module = self._import()
        interpreter = self._build(module, {"model_content": _SMALLEST_MODEL}, Options(), "the built-in test model")
        interpreter.allocate_tensors()
        interpreter.invoke()
        return self.version()

    def version(self) -> str:
        """See `Runtime`."""
        self._import()
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> InterpretedModel:
        """See `Runtime`."""
        module = self._import()
        _check_file(artifact)
        interpreter = self._build(module, {"model_path": str(artifact)}, options, artifact.name)
        try:
            _settle_shapes(interpreter, sample_shape)
            interpreter.allocate_tensors()
            return InterpretedModel(interpreter, options, artifact.name)
        except _INTERPRETER_ERRORS as error:
            raise self._refusal(artifact.name, error) from error

    def _import(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise RuntimeMissingError(
                f"runtime {self.name} is not installed here ({_one_line(error)}): {self.install}"
            ) from None

    def _build(self, module: Any, source: dict[str, Any], options: Options, name: str) -> Any:
        resolver = module.OpResolverType
        kernels = resolver.AUTO if options.xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            return module.Interpreter(**source, num_threads=options.threads, experimental_op_resolver_type=kernels)
        except _INTERPRETER_ERRORS as error:
            import numpy as np

            if self.needs_numpy_1 and not np.__version__.startswith("1."):
                raise RuntimeMissingError(
                    f"runtime {self.name} {self.version()} needs numpy < 2, found {np.__version__}: {self.install}"
                ) from error
            raise self._refusal(name, error) from error

    def _refusal(self, name: str, error: BaseException) -> ModelRefusedError:
        return ModelRefusedError(f"{self.name} {self.version()} cannot run {name}: {explain(str(error))}")


class InterpretedModel:
    """See `Model`."""

    max_batch: Final = 1

    def __init__(self, interpreter: Any, options: Options, name: str) -> None:
        self._interpreter = interpreter
        self._name = name
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._input_indexes = [int(tensor["index"]) for tensor in inputs]
        self._output_indexes = [int(tensor["index"]) for tensor in outputs]
        self.inputs = tuple(_spec(tensor) for tensor in inputs)
        self.outputs = tuple(_spec(tensor) for tensor in outputs)
        self.execution = _execution(_operators(interpreter), options)

    def prepare(self, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return [
            tensors.to_stored(tensors.fit(value, spec.shape, spec.name), spec)
            for value, spec in zip(values, self.inputs, strict=True)
        ]

    def feed(self, prepared: list[npt.NDArray[Any]]) -> None:
        """See `Model`."""
        for index, value in zip(self._input_indexes, prepared, strict=True):
            self._interpreter.set_tensor(index, value)

    def invoke(self) -> None:
        """See `Model`."""
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ModelRefusedError(f"{self._name} failed while running: {explain(str(error))}") from error

    def read(self) -> list[npt.NDArray[np.float32]]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return [
            tensors.to_real(self._interpreter.get_tensor(index), spec)
            for index, spec in zip(self._output_indexes, self.outputs, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Operator:
    """A node of a loaded graph, with the numbers of its tensors."""

    name: str
    inputs: frozenset[int]
    outputs: frozenset[int]


def delegated(operators: Sequence[Operator]) -> set[int]:
    """Return the positions of the operators that a delegate runs.

    A loaded graph lists its original operators followed by one DELEGATE per part that was taken, and does not say
    what is in a part. What is, is found by walking back from the part's outputs to its inputs.

    >>> graph = [Operator("RELU", frozenset({0}), frozenset({1})), Operator("SOFTMAX", frozenset({1}), frozenset({2}))]
    >>> delegated([*graph, Operator("DELEGATE", frozenset({0}), frozenset({1}))])
    {0}
    """
    producer = {
        tensor: position
        for position, operator in enumerate(operators)
        if operator.name != _DELEGATE
        for tensor in operator.outputs
    }
    taken: set[int] = set()
    for part in operators:
        if part.name != _DELEGATE:
            continue
        open_tensors = list(part.outputs)
        while open_tensors:
            tensor = open_tensors.pop()
            position = producer.get(tensor)
            if position is None or position in taken:
                continue
            taken.add(position)
            open_tensors += operators[position].inputs - part.inputs
    return taken


def explain(message: str) -> str:
    r"""Return what an interpreter's message comes down to, in one line.

    >>> explain("Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this ...")
    'it has no operator FULLY_CONNECTED of version 12; use a newer runtime, or a variant converted for this one'
    >>> explain("Encountered unresolved custom op: Foo.\nSee instructions: https://…")
    'it has no custom operator Foo'
    """
    missing = re.search(r"builtin opcode '(\w+)' version '(\d+)'", message)
    if missing:
        return f"it has no operator {missing[1]} of version {missing[2]}; use a newer runtime, or a variant converted for this one"
    custom = re.search(r"unresolved custom op: ([\w.]+?)\.?(?:\s|$)", message)
    if custom:
        return f"it has no custom operator {custom[1]}"
    return _one_line(message)


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300] or "no reason given"


def _check_file(artifact: Path) -> None:
    try:
        with artifact.open("rb") as file:
            if not artifact.stat().st_size:
                flatbuffer.check(b"", artifact.name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
                flatbuffer.check(content, artifact.name)
    except OSError as error:
        raise ModelRefusedError(f"{artifact} cannot be read: {error.strerror}") from None


def _settle_shapes(interpreter: Any, sample_shape: tuple[int, ...] | None) -> None:
    from evenfleet_agent.runtimes import tensors

    inputs = interpreter.get_input_details()
    for tensor in inputs:
        shape = tuple(int(size) for size in tensor["shape_signature"])
        settled = tensors.settle(shape, sample_shape if len(inputs) == 1 else None)
        # A size of 0 is an open one too, in files of old converters.
        settled = tuple(size or 1 for size in settled)
        if shape and settled != tuple(tensor["shape"]):
            interpreter.resize_tensor_input(tensor["index"], settled)


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    import numpy as np

    scale, zero_point = tensor["quantization"]
    return TensorSpec(
        name=str(tensor["name"])[:500],
        shape=tuple(int(size) for size in tensor["shape"]),
        dtype=np.dtype(tensor["dtype"]).name,
        scale=float(scale) or None,
        zero_point=int(zero_point) if scale else None,
    )


def _operators(interpreter: Any) -> list[Operator] | None:
    try:
        # Private, and the only place where the loaded graph can be seen; a version without it leaves the share unknown.
        details = interpreter._get_ops_details()
        return [
            Operator(str(node["op_name"]), frozenset(map(int, node["inputs"])), frozenset(map(int, node["outputs"])))
            for node in details
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _execution(operators: list[Operator] | None, options: Options) -> Execution:
    if not options.xnnpack:
        return Execution(requested="cpu", executed="cpu", delegated_ratio=0.0, fallback_reason=None)
    own = [operator for operator in operators or [] if operator.name != _DELEGATE]
    if operators is None or not own:
        return Execution(requested="xnnpack", executed="cpu", delegated_ratio=None, fallback_reason=None)
    taken = delegated(operators)
    left = sorted({operator.name for position, operator in enumerate(operators) if position not in taken} - {_DELEGATE})
    reason = None
    if left:
        names = ", ".join(left[:8]) + (" and others" if len(left) > 8 else "")
        reason = f"XNNPACK took {len(taken)} of {len(own)} operators; left to the built-in kernels: {names}"
    return Execution(
        requested="xnnpack",
        executed="xnnpack" if taken else "cpu",
        delegated_ratio=len(taken) / len(own),
        fallback_reason=reason,
    )
