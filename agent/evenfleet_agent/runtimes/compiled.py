"""LiteRT's CompiledModel: .tflite files, compiled for the CPU, a GPU or an NPU when they are loaded (`ai-edge-litert` 2).

What it says of who runs a model was tried out, and is believed only as far as it held:

* For the CPU alone, ``is_fully_accelerated`` is true exactly where XNNPACK took every operator. Where it is false, nothing tells
  which operators are left; the runtime `litert` does.
* For GPU and CPU together it raises where there is no GPU. It does not fall back, so falling back is done here.
* For NPU and CPU together it says "fully accelerated" on a machine without any NPU, having run everything on the CPU.
  So an NPU is asked for alone, which raises then.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent import engines, flatbuffer, operators
from evenfleet_agent.runtimes import delegates
from evenfleet_agent.runtimes.interface import Execution, Options, Runtime
from evenfleet_agent.runtimes.interpreter import fallen_back, run_smallest
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# What the Python interface has tensors of.
_DTYPES: Final = ("float32", "float16", "int32", "int8", "uint8", "bool")
_ENGINE: Final = engines.by_name("litert-compiled")
_PACKAGE: Final = str(_ENGINE.package)


class CompiledLiteRT:
    """`ai_edge_litert.compiled_model`."""

    name: Final = _ENGINE.name
    module: Final = "ai_edge_litert.compiled_model"
    formats: Final = _ENGINE.formats
    install: Final = "pip install --upgrade ai-edge-litert"

    def version(self) -> str:
        """See `Runtime`."""
        self._import()
        try:
            return importlib.metadata.version(_PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    def takes(self, delegate: str) -> bool:
        """See `Runtime`."""
        return delegate in (engines.GPU, engines.NPU)

    def check(self, options: Options) -> Execution:
        """See `Runtime`."""
        return run_smallest(self, options)

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> CompiledModel:
        """See `Runtime`."""
        library = self._import()
        outline = flatbuffer.read(artifact)
        version = self.version()
        missing = operators.lacking(outline.operators, outline.min_runtime_version, package=_PACKAGE, version=version)
        if missing:
            raise ModelRefusedError(
                operators.refusal(artifact.name, runtime=self.name, version=version, missing=missing)
            )
        reason = ""
        if options.delegate is not None:
            try:
                compiled, execution = _accelerated(library, artifact, options.delegate, options)
                return CompiledModel(compiled, outline, execution, artifact.name, sample_shape)
            except delegates.DelegateUnusableError as error:
                reason = str(error)
        try:
            compiled = _compile(library, artifact, library.HardwareAccelerator.CPU, options)
            execution = _on_cpu(compiled, options)
            if options.delegate is not None:
                execution = fallen_back(execution, options.delegate, reason)
            return CompiledModel(compiled, outline, execution, artifact.name, sample_shape)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            also = (
                f"; {delegates.name_of(options.delegate)} cannot be used either: {reason}" if options.delegate else ""
            )
            raise ModelRefusedError(
                f"{self.name} {version} cannot run {artifact.name}: {delegates.one_line(error)}{also}"
            ) from error

    def _import(self) -> Any:
        try:
            library = importlib.import_module(self.module)
        except ImportError as error:
            raise RuntimeMissingError(
                f"runtime {self.name} is not installed here ({delegates.one_line(error)}): {self.install}"
            ) from None
        if not hasattr(library, "CpuOptions"):
            raise RuntimeMissingError(f"runtime {self.name} needs a newer {_PACKAGE}: {self.install}")
        return library


class CompiledModel:
    """See `Model`."""

    max_batch: Final = 1

    def __init__(
        self,
        compiled: Any,
        outline: flatbuffer.Outline,
        execution: Execution,
        name: str,
        sample_shape: tuple[int, ...] | None,
    ) -> None:
        self._compiled = compiled
        self._name = name
        self.execution = execution
        signature = compiled.get_signature_by_index(0)
        inputs = _in_order(compiled.get_input_tensor_details(signature["key"]), signature["inputs"])
        _settle_shapes(compiled, inputs, outline, sample_shape)
        inputs = _in_order(compiled.get_input_tensor_details(signature["key"]), signature["inputs"])
        outputs = _in_order(compiled.get_output_tensor_details(signature["key"]), signature["outputs"])
        self._input_buffers = compiled.create_input_buffers(0)
        self._output_buffers = compiled.create_output_buffers(0)
        self.inputs = tuple(_spec(tensor, outline) for tensor in inputs)
        # Outputs come in the graph's order, as in the other runtimes, whatever the signature's.
        self.outputs = tuple(_spec(tensor, outline) for tensor in outputs)

    def prepare(self, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """See `Model`."""
        import numpy as np

        from evenfleet_agent.runtimes import tensors

        return [
            np.ascontiguousarray(tensors.to_stored(tensors.fit(value, spec.shape, spec.name), spec))
            for value, spec in zip(values, self.inputs, strict=True)
        ]

    def feed(self, prepared: list[npt.NDArray[Any]]) -> None:
        """See `Model`."""
        for buffer, value in zip(self._input_buffers, prepared, strict=True):
            buffer.write(value)

    def invoke(self) -> None:
        """See `Model`."""
        try:
            self._compiled.run_by_index(0, self._input_buffers, self._output_buffers)
        except (RuntimeError, ValueError) as error:
            raise ModelRefusedError(f"{self._name} failed while running: {delegates.one_line(error)}") from error

    def read(self) -> list[npt.NDArray[np.float32]]:
        """See `Model`."""
        import numpy as np

        from evenfleet_agent.runtimes import tensors

        return [
            tensors.to_real(
                buffer.read(int(np.prod(spec.shape, dtype=np.int64)), np.dtype(spec.dtype)).reshape(spec.shape), spec
            )
            for buffer, spec in zip(self._output_buffers, self.outputs, strict=True)
        ]


def _compile(library: Any, artifact: Path, accelerators: Any, options: Options, **more: Any) -> Any:
    kernels = library.CpuKernelMode.XNNPACK if options.xnnpack else library.CpuKernelMode.BUILTIN
    return library.CompiledModel.from_file(
        str(artifact),
        options=library.Options(
            hardware_accelerators=accelerators,
            # One thread is its own default, whatever the machine.
            cpu_options=library.CpuOptions(num_threads=options.threads, kernel_mode=kernels),
            **more,
        ),
    )


def _accelerated(library: Any, artifact: Path, delegate: str, options: Options) -> tuple[Any, Execution]:
    kind = library.HardwareAccelerator
    if delegate == engines.NPU:
        compiled = _try(library, artifact, kind.NPU, options)
        return compiled, Execution(requested=delegate, executed=delegate, delegated_ratio=1.0, fallback_reason=None)
    if delegate != engines.GPU:
        raise delegates.DelegateUnusableError(
            "CompiledModel takes gpu and npu, and no delegate's library; the runtime litert does"
        )
    try:
        compiled = _try(library, artifact, kind.GPU, options)
    except delegates.DelegateUnusableError as error:
        compiled = _try(library, artifact, kind.GPU | kind.CPU, options)
        reason = f"the GPU does not take every operator ({error}); LiteRT does not say which it took"
        return compiled, Execution(requested=delegate, executed=delegate, delegated_ratio=None, fallback_reason=reason)
    return compiled, Execution(requested=delegate, executed=delegate, delegated_ratio=1.0, fallback_reason=None)


def _try(library: Any, artifact: Path, accelerators: Any, options: Options) -> Any:
    try:
        switches = {key: value.lower() in ("1", "true", "yes") for key, value in options.delegate_options.items()}
        more = {"gpu_options": library.GpuOptions(**switches)} if switches else {}
    except TypeError as error:
        raise delegates.DelegateUnusableError(f"its options are wrong: {delegates.one_line(error)}") from None
    with delegates.overheard() as words:
        try:
            return _compile(library, artifact, accelerators, options, **more)
        except (RuntimeError, ValueError, MemoryError) as error:
            # The exception names lines of LiteRT's sources; what happened is on standard error.
            said = (
                words()
                or re.sub(r"\s*(?:└\s*)?ERROR: \[\S+\]\s*└?\s*", "", delegates.one_line(error))
                or "no reason given"
            )
    raise delegates.DelegateUnusableError(f"LiteRT cannot compile for it: {said}")


def _on_cpu(compiled: Any, options: Options) -> Execution:
    if not options.xnnpack:
        return Execution(requested="cpu", executed="cpu", delegated_ratio=0.0, fallback_reason=None)
    if compiled.is_fully_accelerated():
        return Execution(requested="xnnpack", executed="xnnpack", delegated_ratio=1.0, fallback_reason=None)
    return Execution(
        requested="xnnpack",
        executed="cpu",
        delegated_ratio=None,
        fallback_reason="XNNPACK did not take every operator; CompiledModel does not say which, the runtime litert does",
    )


def _settle_shapes(
    compiled: Any, inputs: Sequence[Any], outline: flatbuffer.Outline, sample_shape: tuple[int, ...] | None
) -> None:
    from evenfleet_agent.runtimes import tensors

    for number, tensor in enumerate(inputs):
        shape = outline.tensors[int(tensor["index"])].shape_signature
        wanted = tensors.resized(shape, tuple(tensor["shape"]), sample_shape if len(inputs) == 1 else None)
        if wanted is not None:
            compiled.resize_input_tensor(number, wanted, strict=False)


def _in_order(details: dict[str, Any], names: Sequence[str]) -> list[Any]:
    return [details[name] for name in names]


def _spec(tensor: dict[str, Any], outline: flatbuffer.Outline) -> TensorSpec:
    if tensor["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {tensor['name']} is {tensor['dtype']}, which CompiledModel has not in Python")
    stored = outline.tensors[int(tensor["index"])]
    return TensorSpec(
        name=str(tensor["name"])[:500],
        shape=tuple(int(size) for size in tensor["shape"]),
        dtype=str(tensor["dtype"]),
        scale=stored.scale,
        zero_point=stored.zero_point,
    )


RUNTIME: Final[Runtime] = CompiledLiteRT()
