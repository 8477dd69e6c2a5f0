"""ONNX Runtime: .onnx files, on the CPU or on a GPU through CUDA.

Who runs each node is asked of the loaded session (1.32 tells; older versions may not): a node that CUDA has no kernel for
runs on the CPU without a word, though the session lists both providers.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent import engines
from evenfleet_agent.runtimes import delegates
from evenfleet_agent.runtimes.interface import Execution, Options, Runtime
from evenfleet_agent.runtimes.interpreter import fallen_back, run_smallest
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"
_ERRORS_ONLY: Final = 3
_ENGINE: Final = engines.by_name("onnx")
_MODULE: Final = "onnxruntime"
# Enough to make the call's overhead small, few enough to leave peak memory alone; as for SavedModels.
_BATCH: Final = 64
_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
# One Relu of one float: opset 13, IR version 8.
_SMALLEST_MODEL: Final = base64.b64decode(
    "CAg6MwoMCgF4EgF5IgRSZWx1EgF0Wg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)


class OnnxRuntime:
    """`onnxruntime.InferenceSession`."""

    name: Final = _ENGINE.name
    module: Final = _MODULE
    formats: Final = _ENGINE.formats
    install: Final = "pip install onnxruntime"

    def version(self) -> str:
        """See `Runtime`."""
        return str(self._import().__version__)

    def takes(self, delegate: str) -> bool:
        """See `Runtime`."""
        return delegate == engines.GPU

    def check(self, options: Options) -> Execution:
        """See `Runtime`."""
        return run_smallest(self, options, _SMALLEST_MODEL)

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> SessionModel:
        """See `Runtime`."""
        library = self._import()
        execution = Execution(requested="cpu", executed="cpu", delegated_ratio=0.0, fallback_reason=None)
        if options.delegate is not None:
            try:
                session = _on_gpu(library, artifact, options)
                return SessionModel(session, _execution(session, options.delegate), artifact.name, sample_shape)
            except delegates.DelegateUnusableError as error:
                execution = fallen_back(execution, options.delegate, str(error))
        return SessionModel(_session(library, artifact, options, [_CPU]), execution, artifact.name, sample_shape)

    def _import(self) -> Any:
        try:
            return importlib.import_module(_MODULE)
        except ImportError as error:
            raise RuntimeMissingError(
                f"runtime {self.name} is not installed here ({delegates.one_line(error)}): {self.install}"
            ) from None


class SessionModel:
    """See `Model`."""

    def __init__(self, session: Any, execution: Execution, name: str, sample_shape: tuple[int, ...] | None) -> None:
        self._session = session
        self._name = name
        self.execution = execution
        inputs = session.get_inputs()
        self.inputs = tuple(
            _spec(tensor, _input_shape(tensor, sample_shape if len(inputs) == 1 else None), name) for tensor in inputs
        )
        # What is no tensor of numbers, such as the map of a scikit-learn classifier, is left out.
        self.outputs = tuple(
            _spec(tensor, _sizes(tensor.shape), name) for tensor in session.get_outputs() if tensor.type in _DTYPES
        )
        if not self.outputs:
            raise ModelRefusedError(f"{name} has no output of plain numbers")
        self._output_names = [spec.name for spec in self.outputs]
        self.max_batch = _BATCH if all(spec.shape[:1] == (-1,) for spec in self.inputs) else 1
        self._feed: dict[str, Any] = {}
        self._results: list[Any] = []

    def prepare(self, values: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return {
            spec.name: tensors.to_stored(tensors.fit(value, spec.shape, spec.name), spec)
            for value, spec in zip(values, self.inputs, strict=True)
        }

    def feed(self, prepared: dict[str, Any]) -> None:
        """See `Model`."""
        self._feed = prepared

    def invoke(self) -> None:
        """See `Model`."""
        try:
            self._results = self._session.run(self._output_names, self._feed)
        # ONNX Runtime's errors have no class of their own in common.
        except Exception as error:
            raise ModelRefusedError(f"{self._name} failed while running: {_explain(error)}") from error

    def read(self) -> list[npt.NDArray[np.float32]]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return [tensors.to_real(result, spec) for result, spec in zip(self._results, self.outputs, strict=True)]


def _session(library: Any, artifact: Path, options: Options, providers: list[Any]) -> Any:
    settings = library.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    settings.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
    try:
        return library.InferenceSession(str(artifact), settings, providers=providers)
    # ONNX Runtime's errors have no class of their own in common, and a foreign file may make it raise any.
    except Exception as error:
        raise ModelRefusedError(f"onnx {library.__version__} cannot run {artifact.name}: {_explain(error)}") from error


def _on_gpu(library: Any, artifact: Path, options: Options) -> Any:
    if options.delegate != engines.GPU:
        raise delegates.DelegateUnusableError("ONNX Runtime takes gpu, and no TFLite delegate")
    available = library.get_available_providers()
    if _CUDA not in available:
        raise delegates.DelegateUnusableError(
            f"this ONNX Runtime was built for {', '.join(available)}: pip install onnxruntime-gpu"
        )
    with delegates.overheard() as words:
        try:
            session = _session(library, artifact, options, [(_CUDA, dict(options.delegate_options)), _CPU])
        except ModelRefusedError as error:
            raise delegates.DelegateUnusableError(str(error)) from None
        said = words()
    if _CUDA not in session.get_providers():
        raise delegates.DelegateUnusableError(f"CUDA cannot be used: {said or 'no reason given'}")
    return session


def _execution(session: Any, delegate: str) -> Execution:
    if not hasattr(session, "get_provider_graph_assignment_info"):
        reason = "this version of ONNX Runtime does not tell which nodes CUDA runs; 1.32 does"
        return Execution(requested=delegate, executed="cpu", delegated_ratio=None, fallback_reason=reason)
    nodes = [
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    taken = [kind for provider, kind in nodes if provider == _CUDA]
    left = sorted({kind for provider, kind in nodes if provider != _CUDA})
    told = f"CUDA took {len(taken)} of {len(nodes)} nodes; left to the CPU: {', '.join(left[:8])}"
    return Execution(
        requested=delegate,
        executed=delegate if taken else "cpu",
        delegated_ratio=len(taken) / len(nodes) if nodes else None,
        fallback_reason=told if left else None,
    )


def _input_shape(tensor: Any, sample_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    from evenfleet_agent.runtimes import tensors

    return tensors.with_batch(_sizes(tensor.shape), sample_shape)


def _sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """Return sizes, -1 for one that has a name or nothing at all."""
    return tuple(size if isinstance(size, int) and size > 0 else -1 for size in shape)


def _spec(tensor: Any, shape: tuple[int, ...], name: str) -> TensorSpec:
    if tensor.type not in _DTYPES:
        raise ModelRefusedError(f"{name}: {tensor.name} is {tensor.type}; only models of plain numbers are measured")
    return TensorSpec(name=str(tensor.name)[:500], shape=shape, dtype=_DTYPES[tensor.type])


def _explain(error: BaseException) -> str:
    """Return an error without ONNX Runtime's codes.

    >>> _explain(RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed:Protobuf parsing failed."))
    'Load model failed:Protobuf parsing failed.'
    """
    words = delegates.one_line(error)
    return words.partition(" : ")[2].partition(" : ")[2].partition(" : ")[2] or words or type(error).__name__


RUNTIME: Final[Runtime] = OnnxRuntime()
