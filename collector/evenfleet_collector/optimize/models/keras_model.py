"""Keras models: a ``.keras`` file, read in Keras's safe mode (no code in it is run), or a function that returns one.

A ``module:function`` is a program and is run as one: only give it what you trust.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from evenfleet_collector.optimize.models import interface
from evenfleet_collector.optimize.models.interface import MAX_MODEL_BYTES, OpenedModel, Shape
from evenfleet_collector.optimize.sources import FileSource, FunctionSource, ModelSource, call, one_line
from evenfleet_collector.optimize.technique import Form
from evenfleet_shared.errors import ModelRefusedError
from evenfleet_shared.manifest import file_digest

# How Keras says that a layer, or an activation, is a user's.
_NOT_LOCATED: Final = re.compile(r"Could not locate (class|function) '([^']{1,100})'")
_MEMBERS: Final = ("metadata.json", "config.json", "model.weights.h5")


class KerasFile:
    """A ``.keras`` file."""

    form = "a .keras file"

    def takes(self, source: ModelSource) -> bool:
        return isinstance(source, FileSource) and source.path.suffix.lower() == ".keras" and source.path.is_file()

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        assert isinstance(source, FileSource)
        return _opened(_load(source.path), f"MODEL {source.path}", file_digest(source.path))


class KerasFunction:
    """Called without arguments."""

    form = "module:function returning a Keras model"

    def takes(self, source: ModelSource) -> bool:
        return isinstance(source, FunctionSource)

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        assert isinstance(source, FunctionSource)
        return _opened(call(source, ModelRefusedError), source.name, None)


def _opened(model: Any, what: str, digest: str | None) -> OpenedModel:
    import keras

    if not isinstance(model, keras.Model):
        raise ModelRefusedError(f"{what} gave {type(model).__name__}, expected a Keras {keras.__version__} model")
    shape: Shape | None = None
    if model.built and isinstance(getattr(model, "inputs", None), list):
        interface.check_counts(what, len(model.inputs), len(model.outputs))
        interface.check_float32(what, model.inputs[0].dtype)
        batch, *sides = model.inputs[0].shape
        interface.check_batch(what, batch)
        shape = tuple(sides)
    return OpenedModel(
        what=what,
        stage="keras",
        sample_shape=shape,
        run=lambda x: model(x, training=False).numpy(),
        one_by_one=False,
        form=lambda _: Form(stage="keras", keras=model),
        digest=digest or _digest_of_weights(model),
    )


def _load(path: Path) -> Any:
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelRefusedError(
            f"MODEL {path} is not a .keras file, or is cut short: expected a zip archive ({one_line(error, with_type=False)})"
        ) from None
    missing = [name for name in _MEMBERS if name not in members]
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
        own = _NOT_LOCATED.search(text)
        if own is not None:
            raise ModelRefusedError(
                f"MODEL {path} holds {own[2]}, a {own[1]} that is not Keras's own and is not in the file; "
                "give the model as module:function"
            ) from None
        raise ModelRefusedError(
            f"MODEL {path} cannot be loaded by Keras {keras.__version__}: {one_line(error)}"
        ) from None


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
