"""TensorFlow: SavedModels, through their serving signature."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenfleet_agent.runtimes.interface import Execution, Options
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import Format, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

_SIGNATURE: Final = "serving_default"
# Enough to make the call's overhead small, few enough to leave peak memory alone.
_BATCH: Final = 64


class TensorFlow:
    """`tf.saved_model.load`."""

    name: Final = "tensorflow"
    module: Final = "tensorflow"
    formats: Final[tuple[Format, ...]] = ("saved_model",)
    install: Final = "pip install tensorflow-cpu  (tensorflow where the machine is not x86_64)"

    def version(self) -> str:
        """See `Runtime`."""
        return str(self._import().__version__)

    def check(self) -> str:
        """See `Runtime`."""
        tf = self._import()
        if int(tf.add(1, 1)) != 2:
            raise RuntimeMissingError(f"TensorFlow {tf.__version__} cannot add here: {self.install}")
        return str(tf.__version__)

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> SignatureModel:
        """See `Runtime`."""
        tf = self._import()
        if not any((artifact / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ModelRefusedError(f"{artifact.name} is not a SavedModel: it has no saved_model.pb")
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        try:
            return SignatureModel(tf, _load(tf, artifact), artifact.name, sample_shape)
        except ModelRefusedError:
            raise
        # Whatever a foreign file makes the loader raise, the model cannot be run here.
        except Exception as error:
            raise ModelRefusedError(
                f"TensorFlow {tf.__version__} cannot load {artifact.name}: {_one_line(error)}"
            ) from error

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
        accelerator = "tensorflow-gpu" if tf.config.list_physical_devices("GPU") else "tensorflow-cpu"
        self.execution = Execution(
            requested=accelerator, executed=accelerator, delegated_ratio=None, fallback_reason=None
        )
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
    sizes = _sizes(shape)
    settled = tensors.settle(sizes, sample_shape)
    batched = sizes[:1] == (-1,) and (sample_shape is None or len(sample_shape) + 1 == len(sizes) or settled[0] == 1)
    return (-1, *settled[1:]) if batched else settled


def _sizes(shape: Any) -> tuple[int, ...]:
    return () if shape.rank is None else tuple(-1 if size is None else int(size) for size in shape.as_list())


def _spec(name: str, shape: tuple[int, ...], dtype: Any) -> TensorSpec:
    return TensorSpec(name=name[:500], shape=shape, dtype=str(dtype.name))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
