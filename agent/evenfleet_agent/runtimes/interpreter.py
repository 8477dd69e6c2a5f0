"""Run .tflite files in an `Interpreter` class, which `ai-edge-litert` and `tflite-runtime` both have.

The two packages differ in name, age and what they refuse; `litert` and `tflite` say so.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent import engines, flatbuffer, operators
from evenfleet_agent.engines import Engine
from evenfleet_agent.runtimes import delegates
from evenfleet_agent.runtimes.interface import Execution, Options, Runtime
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

    engine: Engine
    module: str
    install: str
    needs_numpy_1: bool

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def formats(self) -> tuple[Format, ...]:
        return self.engine.formats

    @property
    def distribution(self) -> str:
        """Return what pip calls it."""
        return str(self.engine.package)

    def takes(self, delegate: str) -> bool:
        """See `Runtime`."""
        return delegate != engines.NPU

    def check(self, options: Options) -> Execution:
        """See `Runtime`."""
        return run_smallest(self, options)

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
        found = flatbuffer.read(artifact)
        version = self.version()
        missing = operators.lacking(
            found.operators, found.min_runtime_version, package=self.distribution, version=version
        )
        if missing:
            raise ModelRefusedError(
                operators.refusal(artifact.name, runtime=self.name, version=version, missing=missing)
            )
        if options.delegate is None:
            return self._load(module, artifact, options, sample_shape)
        reason = ""
        try:
            delegate = delegates.load(module, options.delegate, options.delegate_options)
            return self._load(module, artifact, options, sample_shape, delegate)
        except delegates.DelegateUnusableError as error:
            reason = str(error)
        except ModelRefusedError as error:
            reason = f"it refused the model: {str(error).partition(': ')[2] or error}"
        try:
            model = self._load(module, artifact, dataclasses.replace(options, delegate=None), sample_shape)
        except ModelRefusedError as error:
            raise ModelRefusedError(
                f"{error}; {delegates.name_of(options.delegate)} cannot be used either: {reason}"
            ) from None
        model.execution = fallen_back(model.execution, options.delegate, reason)
        return model

    def open_up(
        self, artifact: Path, content: bytes, options: Options, sample_shape: tuple[int, ...] | None
    ) -> InterpretedModel:
        """Return an artifact that is loaded already loaded once more, with other outputs.

        Args:
            artifact: The file.
            content: The same with the outputs that are wanted (`flatbuffer.with_outputs`).
            options: As it was loaded with; with a delegate that cannot be used here, the CPU runs it as it does there.
            sample_shape: As it was loaded with.

        Raises:
            ModelRefusedError: It cannot be run so.
        """
        module = self._import()
        if options.delegate is not None:
            try:
                delegate = delegates.load(module, options.delegate, options.delegate_options)
            except delegates.DelegateUnusableError:
                options = dataclasses.replace(options, delegate=None)
            else:
                return self._load(module, artifact, options, sample_shape, delegate, content)
        return self._load(module, artifact, options, sample_shape, content=content)

    def _load(
        self,
        module: Any,
        artifact: Path,
        options: Options,
        sample_shape: tuple[int, ...] | None,
        delegate: Any = None,
        content: bytes | None = None,
    ) -> InterpretedModel:
        interpreter = self._build(module, artifact, options, delegate, content)
        # A delegate given by name or path has its parts by now; those of XNNPACK come with the tensors.
        given_parts = 0 if delegate is None else sum(part.name == _DELEGATE for part in _operators(interpreter) or ())
        try:
            _settle_shapes(interpreter, sample_shape)
            interpreter.allocate_tensors()
            return InterpretedModel(interpreter, options, artifact, given_parts, content)
        except _INTERPRETER_ERRORS as error:
            raise self._refusal(artifact.name, error) from error

    def _import(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise RuntimeMissingError(
                f"runtime {self.name} is not installed here ({delegates.one_line(error)}): {self.install}"
            ) from None

    def _build(self, module: Any, artifact: Path, options: Options, delegate: Any, content: bytes | None) -> Any:
        resolver = module.OpResolverType
        kernels = resolver.AUTO if options.xnnpack else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            return module.Interpreter(
                model_path=str(artifact) if content is None else None,
                model_content=content,
                num_threads=options.threads,
                experimental_op_resolver_type=kernels,
                experimental_delegates=None if delegate is None else [delegate],
            )
        except _INTERPRETER_ERRORS as error:
            import numpy as np

            if self.needs_numpy_1 and not np.__version__.startswith("1."):
                raise RuntimeMissingError(
                    f"runtime {self.name} {self.version()} needs numpy < 2, found {np.__version__}: {self.install}"
                ) from error
            raise self._refusal(artifact.name, error) from error

    def _refusal(self, name: str, error: BaseException) -> ModelRefusedError:
        return ModelRefusedError(f"{self.name} {self.version()} cannot run {name}: {explain(str(error))}")


class InterpretedModel:
    """See `Model`."""

    max_batch: Final = 1

    def __init__(
        self, interpreter: Any, options: Options, artifact: Path, given_parts: int, content: bytes | None = None
    ) -> None:
        self._interpreter = interpreter
        # Not every interpreter keeps alive what it reads from.
        self._content = content
        self._artifact = artifact
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._input_indexes = [int(tensor["index"]) for tensor in inputs]
        self._output_indexes = [int(tensor["index"]) for tensor in outputs]
        self.inputs = tuple(_spec(tensor) for tensor in inputs)
        self.outputs = tuple(_spec(tensor) for tensor in outputs)
        self.execution = execution(_operators(interpreter), options, given_parts)

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
            raise ModelRefusedError(f"{self._artifact.name} failed while running: {explain(str(error))}") from error

    def read(self) -> list[npt.NDArray[np.float32]]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return [
            tensors.to_real(self._interpreter.get_tensor(index), spec)
            for index, spec in zip(self._output_indexes, self.outputs, strict=True)
        ]

    def stored(self, place: int) -> npt.NDArray[Any]:
        """Return one output of the last `invoke` as it is stored, a copy."""
        found: npt.NDArray[Any] = self._interpreter.get_tensor(self._output_indexes[place])
        return found

    def sizes(self) -> dict[int, int]:
        """Return how many bytes each tensor takes whose shape is settled, by its number, whether it is kept or not."""
        import numpy as np

        found = {}
        for tensor in self._interpreter.get_tensor_details():
            with contextlib.suppress(TypeError):
                item_bytes = np.dtype(tensor["dtype"]).itemsize
                found[int(tensor["index"])] = math.prod(int(size) for size in tensor["shape"]) * item_bytes
        return found


def run_smallest(runtime: Runtime, options: Options, smallest: bytes = _SMALLEST_MODEL) -> Execution:
    """Run a runtime's smallest model and return who ran it: what a `Runtime.check` does.

    Args:
        runtime: Which has to load it.
        options: For its interpreter.
        smallest: The file's content, a .tflite file's by default.

    Raises:
        RuntimeMissingError: It cannot be run.
    """
    from evenfleet_agent.runtimes import tensors

    with tempfile.TemporaryDirectory(prefix="evenfleet-check-") as directory:
        artifact = Path(directory) / "the built-in test model"
        artifact.write_bytes(smallest)
        try:
            model = runtime.load(artifact, options, None)
            model.feed(model.prepare([tensors.zeros(spec) for spec in model.inputs]))
            model.invoke()
        except ModelRefusedError as error:
            raise RuntimeMissingError(f"{error}: {runtime.install}") from None
    return model.execution


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
    custom = re.search(r"unresolved custom op: ([\w.-]+?)\.?(?:\s|$)", message)
    if custom:
        made = "; the file was compiled for an Edge TPU, which the delegate edgetpu needs to be there for"
        return f"it has no custom operator {custom[1]}{made if custom[1] == operators.EDGE_TPU_OPERATOR else ''}"
    return delegates.one_line(message) or "no reason given"


def _settle_shapes(interpreter: Any, sample_shape: tuple[int, ...] | None) -> None:
    from evenfleet_agent.runtimes import tensors

    inputs = interpreter.get_input_details()
    for tensor in inputs:
        shape = tuple(int(size) for size in tensor["shape_signature"])
        wanted = tensors.resized(shape, tuple(tensor["shape"]), sample_shape if len(inputs) == 1 else None)
        if wanted is not None:
            interpreter.resize_tensor_input(tensor["index"], wanted)


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


def execution(graph: Sequence[Operator] | None, options: Options, given_parts: int) -> Execution:
    """Say who runs a loaded graph.

    Args:
        graph: As loaded; None where the interpreter does not show it.
        options: What was asked for.
        given_parts: How many of its DELEGATE operators, the first ones, are those of the delegate that was asked for.
    """
    requested = "cpu"
    if options.delegate is not None:
        requested = delegates.name_of(options.delegate)
    elif options.xnnpack:
        requested = "xnnpack"
    if requested == "cpu":
        return Execution(requested="cpu", executed="cpu", delegated_ratio=0.0, fallback_reason=None)
    own = [operator for operator in graph or () if operator.name != _DELEGATE]
    if graph is None or not own:
        unseen = "this interpreter does not show its graph, so that nothing proves what runs it"
        return Execution(
            requested=requested, executed="cpu", delegated_ratio=None, fallback_reason=None if own else unseen
        )
    parts = [operator for operator in graph if operator.name == _DELEGATE]
    taken = delegated([*own, *(parts if options.delegate is None else parts[:given_parts])])
    of_xnnpack = delegated([*own, *parts[given_parts:]]) - taken if options.delegate is not None else set()
    left = {operator.name for position, operator in enumerate(own) if position not in taken | of_xnnpack}
    rest = [f"left to XNNPACK: {_names(own[position].name for position in of_xnnpack)}"] if of_xnnpack else []
    rest += [f"left to the built-in kernels: {_names(left)}"] if left else []
    label = "XNNPACK" if requested == "xnnpack" else requested
    return Execution(
        requested=requested,
        executed=requested if taken else "cpu",
        delegated_ratio=len(taken) / len(own),
        fallback_reason=f"{label} took {len(taken)} of {len(own)} operators; {'; '.join(rest)}" if rest else None,
    )


def fallen_back(cpu: Execution, delegate: str, reason: str) -> Execution:
    """Say that the CPU runs what a delegate was asked for.

    Args:
        cpu: Who runs the graph that was loaded in its stead.
        delegate: As it was asked for.
        reason: Why it cannot be used.
    """
    runs = "the CPU runs it" + (" with XNNPACK" if cpu.executed == "xnnpack" else "")
    also = f" ({cpu.fallback_reason})" if cpu.fallback_reason else ""
    name = delegates.name_of(delegate)
    return Execution(
        requested=name, executed="cpu", delegated_ratio=0.0, fallback_reason=f"no {name}: {reason}; {runs}{also}"
    )


def _names(operators: Iterable[str]) -> str:
    names = sorted(set(operators))
    return ", ".join(names[:8]) + (" and others" if len(names) > 8 else "")
