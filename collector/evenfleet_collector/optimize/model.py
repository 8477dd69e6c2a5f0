"""Load the model that MODEL names, without running code hidden in it, and say what it is.

Decides whether it is a classifier that a release can be built from: one float32 input, one row of at least two scores
per sample, finite on the user's own data. A ``.keras`` file is read in Keras's safe mode (no lambda is deserialised);
a SavedModel is a program and is run as one, like a ``module:function``: only give it what you trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from evenfleet_collector.optimize import saved_model
from evenfleet_collector.optimize.data import LabelledData, Samples
from evenfleet_collector.optimize.sources import FunctionSource, Source, call, one_line
from evenfleet_collector.optimize.technique import Form, Material, OutputKind
from evenfleet_shared.errors import ConfigError, DataError, ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import file_digest

MAX_MODEL_BYTES: Final = 4 << 30
MAX_CLASSES: Final = 1001
_PROBE_SAMPLES: Final = 16
_KERAS_MEMBERS: Final = ("metadata.json", "config.json", "model.weights.h5")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model, checked against the data.

    Attributes:
        stage: What it is.
        handle: The Keras model, or what `tf.saved_model.load` returned.
        directory: Of a SavedModel.
        digest: sha256 of the file, of all files of the directory, or of configuration and weights.
    """

    stage: Literal["keras", "saved_model"]
    handle: Any
    directory: Path | None
    classes: int
    output_kind: OutputKind
    digest: str

    def form(self, material: Material) -> Form:
        """Return it in the form that techniques start from."""
        if self.directory is None:
            return Form(stage="keras", keras=self.handle)
        return saved_model.wrap_loaded(self.directory, self.handle, material.data.sample_shape, material)


def import_tensorflow() -> dict[str, str]:
    """Import what building needs, and return the versions.

    Raises:
        RuntimeMissingError: Something is not installed.
        ConfigError: Keras is set to another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        import absl.logging
        import ai_edge_litert
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise RuntimeMissingError(
            f"building a release needs TensorFlow and LiteRT ({error}); install them with: pip install 'evenfleet[optimize]'"
        ) from None
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"Keras is set to the backend {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    absl.logging.set_verbosity(absl.logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "ai-edge-litert": getattr(ai_edge_litert, "__version__", "unknown"),
        "numpy": np.__version__,
    }


def load(source: Source, data: LabelledData) -> LoadedModel:
    """Load and check.

    Raises:
        ModelRefusedError: It cannot be loaded, or is not a classifier as described above.
        ConfigError: There is no such function.
        DataError: The data's samples or labels do not fit it.
    """
    if isinstance(source, FunctionSource):
        return _from_keras(call(source, ModelRefusedError), source.name, data, None)
    if source.path.is_dir():
        return _from_saved_model(source.path, data)
    return _from_keras(_load_keras_file(source.path), f"MODEL {source.path}", data, file_digest(source.path))


def output_kind(outputs: Samples) -> OutputKind:
    """Tell probabilities from logits by what comes out, whatever layer made it.

    >>> output_kind(np.array([[0.2, 0.8]], dtype=np.float32)), output_kind(np.array([[-1.0, 2.0]], dtype=np.float32))
    ('probabilities', 'logits')
    """
    sums_to_one = np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3)
    return "probabilities" if sums_to_one and outputs.min() >= 0.0 else "logits"


def _load_keras_file(path: Path) -> Any:
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelRefusedError(
            f"MODEL {path} is not a .keras file, or is cut short: expected a zip archive ({one_line(error, with_type=False)})"
        ) from None
    missing = [name for name in _KERAS_MEMBERS if name not in members]
    if missing:
        raise ModelRefusedError(f"MODEL {path} is a zip archive but no .keras file: {', '.join(missing)} missing")
    if sum(members.values()) > MAX_MODEL_BYTES:
        raise ModelRefusedError(
            f"MODEL {path} unpacks to {sum(members.values())} bytes, at most {MAX_MODEL_BYTES} are read"
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - the file decides what the loader trips over
        text = str(error)
        if "safe" in text.lower() and "lambda" in text.lower():
            raise ModelRefusedError(
                f"MODEL {path} holds Python code (a Lambda layer), which is never loaded from a file; "
                "replace the layer, or give the model as module:function"
            ) from None
        raise ModelRefusedError(
            f"MODEL {path} cannot be loaded by Keras {keras.__version__}: {one_line(error)}"
        ) from None


def _from_keras(model: Any, what: str, data: LabelledData, digest: str | None) -> LoadedModel:
    import keras

    if not isinstance(model, keras.Model):
        raise ModelRefusedError(f"{what} gave {type(model).__name__}, expected a Keras {keras.__version__} model")
    if model.built and isinstance(getattr(model, "inputs", None), list):
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ModelRefusedError(
                f"{what} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
                "releases are built from models with one of each"
            )
        _check_input(what, model.inputs[0].dtype, tuple(model.inputs[0].shape), data)
    outputs = _probe(lambda x: model(x, training=False), data, what)
    return LoadedModel(
        stage="keras",
        handle=model,
        directory=None,
        classes=_classes(outputs, data, what),
        output_kind=output_kind(outputs),
        digest=digest or _digest_of_weights(model),
    )


def _from_saved_model(directory: Path, data: LabelledData) -> LoadedModel:
    import tensorflow as tf

    what = f"MODEL {directory}"
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # noqa: BLE001 - the files decide what the loader trips over
        raise ModelRefusedError(f"{what} cannot be loaded by TensorFlow {tf.__version__}: {one_line(error)}") from None
    signature = getattr(loaded, "signatures", {}).get("serving_default")
    if signature is None:
        known = ", ".join(getattr(loaded, "signatures", {})) or "none"
        raise ModelRefusedError(
            f"{what} has no signature serving_default (found: {known}); export it with model.export()"
        )
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelRefusedError(
            f"{what} has {len(inputs)} inputs and {len(outputs)} outputs; releases are built from models with one of each"
        )
    ((input_name, given),) = inputs.items()
    (output_name,) = outputs
    shape = tuple(given.shape) if given.shape.rank is not None else None
    _check_input(what, given.dtype.name, shape, data)
    scores = _probe(lambda x: signature(**{input_name: tf.constant(x)})[output_name], data, what, one_by_one=True)
    return LoadedModel(
        stage="saved_model",
        handle=loaded,
        directory=directory,
        classes=_classes(scores, data, what),
        output_kind=output_kind(scores),
        digest=_digest_of_files(directory),
    )


def _check_input(what: str, dtype: str, shape: tuple[int | None, ...] | None, data: LabelledData) -> None:
    if dtype != "float32":
        raise ModelRefusedError(f"{what} takes {dtype} inputs; releases are built from models that take float32")
    found = data.sample_shape
    if shape is None:
        return
    expected = shape[1:]
    if len(expected) != len(found) or any(want not in (None, have) for want, have in zip(expected, found, strict=True)):
        raise DataError(f"{what} takes samples of shape {expected}, DATA has samples of shape {found}")


def _probe(function: Any, data: LabelledData, what: str, *, one_by_one: bool = False) -> Samples:
    x = data.x_test[:_PROBE_SAMPLES]
    batches = [x[i : i + 1] for i in range(len(x))] if one_by_one else [x]
    try:
        outputs = np.concatenate([function(batch).numpy() for batch in batches])
    except Exception as error:  # noqa: BLE001 - the model decides what it trips over
        raise ModelRefusedError(
            f"{what} fails on test samples of shape {data.sample_shape}: {one_line(error)}"
        ) from None
    scores: Samples = outputs.astype(np.float32)
    return scores


def _classes(outputs: Samples, data: LabelledData, what: str) -> int:
    if outputs.ndim != 2 or not 2 <= outputs.shape[1] <= MAX_CLASSES:
        raise ModelRefusedError(
            f"{what} gives {outputs.shape[1:]} values per sample; expected a row of 2 to {MAX_CLASSES} class scores"
        )
    if not np.isfinite(outputs).all():
        raise ModelRefusedError(f"{what} gives NaN or infinite scores on the test samples; was it trained?")
    classes = int(outputs.shape[1])
    if data.largest_label >= classes:
        raise DataError(f"DATA has labels up to {data.largest_label}, {what} has {classes} classes: 0 to {classes - 1}")
    return classes


def _digest_of_weights(model: Any) -> str:
    running = hashlib.sha256()
    try:
        running.update(json.dumps(model.get_config(), sort_keys=True, default=repr).encode())
    except NotImplementedError:  # a subclassed model that does not describe itself
        running.update(type(model).__name__.encode())
    for weights in model.get_weights():
        running.update(f"{weights.dtype} {weights.shape}\n".encode())
        running.update(np.ascontiguousarray(weights).data)
    return running.hexdigest()


def _digest_of_files(directory: Path) -> str:
    running = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        running.update(f"{path.relative_to(directory).as_posix()} {file_digest(path)}\n".encode())
    return running.hexdigest()
