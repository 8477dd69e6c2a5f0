"""TensorFlow: SavedModels, through their serving signature, on the CPU or on a GPU.

TensorFlow takes a GPU that it sees without being asked, and runs on the CPU, without a word, what has no kernel for it. So
where a GPU is in play, who runs each operator is read from what TensorFlow logs when it places the loaded function: that
takes one run of it while loading, after which it is placed anew, without the log.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent import engines
from evenfleet_agent.runtimes import delegates
from evenfleet_agent.runtimes.interface import Execution, Options, Runtime
from evenfleet_agent.runtimes.interpreter import fallen_back
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

_ENGINE: Final = engines.by_name("tensorflow")
_SIGNATURE: Final = "serving_default"
# Enough to make the call's overhead small, few enough to leave peak memory alone.
_BATCH: Final = 64
# What moves values into and out of a function; no work of the model's.
_BOOKKEEPING: Final = ("_Arg", "_Retval", "NoOp", "Identity", "IdentityN", "Placeholder", "Const")


class TensorFlow:
    """`tf.saved_model.load`."""

    name: Final = _ENGINE.name
    module: Final = "tensorflow"
    formats: Final = _ENGINE.formats
    install: Final = "pip install tensorflow-cpu  (tensorflow where the machine is not x86_64)"

    def version(self) -> str:
        """See `Runtime`."""
        return str(self._import().__version__)

    def takes(self, delegate: str) -> bool:
        """See `Runtime`."""
        return delegate == engines.GPU

    def check(self, options: Options) -> Execution:
        """See `Runtime`."""
        tf = self._import()
        gpu, reason = _gpu(tf, options)
        with tf.device("/GPU:0" if gpu else "/CPU:0"):
            total = tf.add(1.0, 1.0)
        if float(total) != 2.0:
            raise RuntimeMissingError(f"TensorFlow {tf.__version__} cannot add here: {self.install}")
        executed = "GPU" if "GPU" in total.device else "CPU"
        return _execution(options, gpu=gpu, reason=reason, placed={"add": ("AddV2", executed)})

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> SignatureModel:
        """See `Runtime`."""
        tf = self._import()
        if not any((artifact / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ModelRefusedError(f"{artifact.name} is not a SavedModel: it has no saved_model.pb")
        gpu, reason = _gpu(tf, options)
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if gpu:
            tf.debugging.set_log_device_placement(True)
        try:
            model = SignatureModel(tf, _load(tf, artifact), artifact.name, sample_shape)
            placed = model.placements() if gpu else {}
        except ModelRefusedError:
            raise
        # Whatever a foreign file makes the loader raise, the model cannot be run here.
        except Exception as error:
            raise ModelRefusedError(
                f"TensorFlow {tf.__version__} cannot load {artifact.name}: {_one_line(error)}"
            ) from error
        model.execution = _execution(options, gpu=gpu, reason=reason, placed=placed)
        return model

    def _import(self) -> Any:
        try:
            return importlib.import_module("tensorflow")
        except ImportError as error:
            raise RuntimeMissingError(
                f"runtime {self.name} is not installed here ({_one_line(error)}): {self.install}"
            ) from None


class SignatureModel:
    """See `Model`."""

    def __init__(self, tf: Any, loaded: Any, name: str, sample_shape: tuple[int, ...] | None) -> None:
        self._tf = tf
        self._loaded = loaded  # owns the variables that the signature only points to
        self._name = name
        self._signature = _signature(loaded, name)
        arguments = self._signature.structured_input_signature[1]
        self.inputs = tuple(
            _spec(
                key, _input_shape(argument.shape, sample_shape if len(arguments) == 1 else None, name), argument.dtype
            )
            for key, argument in sorted(arguments.items())
        )
        results = self._signature.structured_outputs
        self.outputs = tuple(_spec(key, _sizes(results[key].shape), results[key].dtype) for key in sorted(results))
        self.max_batch = _BATCH if all(spec.shape[:1] == (-1,) for spec in self.inputs) else 1
        self.execution = _execution(Options(), gpu=False, reason=None, placed={})
        self._feed: dict[str, Any] = {}
        self._results: dict[str, Any] = {}

    def prepare(self, values: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return {
            spec.name: self._tf.constant(tensors.to_stored(tensors.fit(value, spec.shape, spec.name), spec))
            for value, spec in zip(values, self.inputs, strict=True)
        }

    def feed(self, prepared: dict[str, Any]) -> None:
        """See `Model`."""
        self._feed = prepared

    def invoke(self) -> None:
        """See `Model`."""
        try:
            self._results = self._signature(**self._feed)
        except (self._tf.errors.OpError, ValueError, TypeError) as error:
            raise ModelRefusedError(f"{self._name} failed while running: {_one_line(error)}") from error

    def read(self) -> list[npt.NDArray[np.float32]]:
        """See `Model`."""
        from evenfleet_agent.runtimes import tensors

        return [tensors.to_real(self._results[spec.name].numpy(), spec) for spec in self.outputs]

    def placements(self) -> dict[str, tuple[str, str]]:
        """Run the model once and return where TensorFlow placed its operators; see the function of this name.

        TensorFlow logs that if it was asked to before its context was made, which loading a model does.
        """
        from evenfleet_agent.runtimes import tensors

        self.feed(self.prepare([tensors.zeros(spec) for spec in self.inputs]))
        with delegates.overheard(all_of_it=True) as log_text:
            self.invoke()
            found = placements(log_text())
        # Or every call from now on would be logged.
        self._tf.debugging.set_log_device_placement(False)
        return found


def placements(log_text: str) -> dict[str, tuple[str, str]]:
    r"""Return the type of each operator and the device it was placed on, by its name, as TensorFlow logs it.

    >>> placements("a/MatMul: (MatMul): /job:localhost/replica:0/task:0/device:GPU:0\nb: (_Arg): /job:x/device:CPU:0")
    {'a/MatMul': ('MatMul', 'GPU')}
    """
    found = re.findall(r"([^\s:]+): \((\w+)\): /\S*device:([A-Z_]+):\d+", log_text)
    return {name: (kind, device) for name, kind, device in found if kind not in _BOOKKEEPING}


def _gpu(tf: Any, options: Options) -> tuple[bool, str | None]:
    """Return whether a GPU is in play; and if one was asked for, why not."""
    if options.delegate not in (None, engines.GPU):
        return False, "TensorFlow takes gpu, and no TFLite delegate"
    with delegates.overheard() as words:
        found = tf.config.list_physical_devices("GPU")
        said = words()
    if found:
        return True, None
    if not tf.test.is_built_with_cuda():
        return False, "this TensorFlow was built without CUDA: pip install 'tensorflow[and-cuda]'"
    return False, f"TensorFlow sees none: {said or 'no reason given'}"


def _execution(options: Options, *, gpu: bool, reason: str | None, placed: Mapping[str, tuple[str, str]]) -> Execution:
    if not gpu:
        cpu = Execution(
            requested="tensorflow-cpu", executed="tensorflow-cpu", delegated_ratio=None, fallback_reason=None
        )
        return cpu if options.delegate is None else fallen_back(cpu, options.delegate, reason or "no reason given")
    requested, other = ("gpu", "cpu") if options.delegate else ("tensorflow-gpu", "tensorflow-cpu")
    taken = [name for name, (_, device) in placed.items() if device == "GPU"]
    left = sorted({kind for kind, device in placed.values() if device != "GPU"})
    told = f"the GPU took {len(taken)} of {len(placed)} operators; left to the CPU: {', '.join(left[:8])}"
    unseen = "TensorFlow did not log where it placed the model, so that nothing proves what runs it"
    return Execution(
        requested=requested,
        executed=requested if taken else other,
        delegated_ratio=len(taken) / len(placed) if placed else None,
        fallback_reason=unseen if not placed else told if left else None,
    )


def _load(tf: Any, artifact: Path) -> Any:
    try:
        return tf.saved_model.load(str(artifact))
    except AttributeError as error:
        # Saved with a Keras 2 optimizer's slot variables: without that Keras the object graph cannot be rebuilt
        # (tensorflow#52091). The signatures can be had without it; the loader for that has no public name.
        try:
            plain: Any = importlib.import_module("tensorflow.python.saved_model.load_v1_in_v2")
        except ImportError:
            raise error from None
        log.info("%s: objects not restored (%s), signatures only", artifact.name, _one_line(error))
        return plain.load(str(artifact), ["serve"], skip_restoring_checkpoint=False)


def _signature(loaded: Any, name: str) -> Any:
    signatures = getattr(loaded, "signatures", None) or {}
    if _SIGNATURE in signatures:
        return signatures[_SIGNATURE]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    raise ModelRefusedError(f"{name} has no signature {_SIGNATURE}; it has: {', '.join(signatures) or 'none'}")


def _input_shape(shape: Any, sample_shape: tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    from evenfleet_agent.runtimes import tensors

    if shape.rank is None:
        raise ModelRefusedError(
            f"{name} has an input of any number of dimensions; save it with a signature of one shape"
        )
    return tensors.with_batch(_sizes(shape), sample_shape)


def _sizes(shape: Any) -> tuple[int, ...]:
    return () if shape.rank is None else tuple(-1 if size is None else int(size) for size in shape.as_list())


def _spec(name: str, shape: tuple[int, ...], dtype: Any) -> TensorSpec:
    return TensorSpec(name=name[:500], shape=shape, dtype=str(dtype.name))


def _one_line(error: BaseException) -> str:
    return delegates.one_line(error) or type(error).__name__


RUNTIME: Final[Runtime] = TensorFlow()
