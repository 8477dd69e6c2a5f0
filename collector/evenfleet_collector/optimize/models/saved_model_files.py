"""A SavedModel directory: a program, and run as one; only give what you trust."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from evenfleet_collector.optimize import saved_model
from evenfleet_collector.optimize.models import interface
from evenfleet_collector.optimize.models.interface import OpenedModel
from evenfleet_collector.optimize.sources import FileSource, ModelSource, one_line
from evenfleet_shared.errors import ModelRefusedError
from evenfleet_shared.manifest import file_digest

SIGNATURE: Final = "serving_default"


class SavedModelFiles:
    """With the signature ``serving_default``, or with a single one, whatever its name."""

    form = "a SavedModel directory"

    def takes(self, source: ModelSource) -> bool:
        return isinstance(source, FileSource) and source.path.is_dir()

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        assert isinstance(source, FileSource)
        return open_directory(source.path, f"MODEL {source.path}", work)


def open_directory(directory: Path, what: str, work: Path) -> OpenedModel:
    """Load a SavedModel.

    Args:
        directory: Where it is.
        what: What errors call it.
        work: Where to write it anew if its signature has another name.

    Raises:
        ModelRefusedError: It cannot be loaded, or has another signature than releases are built from.
    """
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # noqa: BLE001 - the files decide what the loader trips over
        raise ModelRefusedError(f"{what} cannot be loaded by TensorFlow {tf.__version__}: {one_line(error)}") from None
    signatures = getattr(loaded, "signatures", {})
    signature = signatures.get(SIGNATURE)
    if signature is None and len(signatures) == 1:
        return _under_our_name(loaded, directory, what, work)
    if signature is None:
        known = ", ".join(signatures) or "none"
        raise ModelRefusedError(
            f"{what} has no signature {SIGNATURE} (found: {known}); export it with model.export(), or "
            f"tf.saved_model.save(model, folder, signatures={{'{SIGNATURE}': function}})"
        )
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    interface.check_counts(what, len(inputs), len(outputs))
    ((input_name, given),) = inputs.items()
    (output_name,) = outputs
    interface.check_float32(what, given.dtype.name)
    shape = None
    if given.shape.rank is not None:
        batch, *sides = given.shape if given.shape.rank else (None,)
        interface.check_batch(what, batch)
        shape = tuple(sides)
    return OpenedModel(
        what=what,
        stage="saved_model",
        sample_shape=shape,
        run=lambda x: signature(**{input_name: tf.constant(x)})[output_name].numpy(),
        one_by_one=True,
        form=lambda material: saved_model.wrap_loaded(directory, loaded, material.data.sample_shape, material),
        digest=digest_of_files(directory),
    )


def _under_our_name(loaded: Any, directory: Path, what: str, work: Path) -> OpenedModel:
    """Write it anew with its only signature under the name that devices look for, and open that."""
    import tensorflow as tf

    ((_, signature),) = loaded.signatures.items()
    renamed = work / "saved-model-renamed"
    try:
        tf.saved_model.save(loaded, str(renamed), signatures={SIGNATURE: signature})
    except Exception as error:  # noqa: BLE001 - the files decide what the writer trips over
        raise ModelRefusedError(f"{what} cannot be written with the signature {SIGNATURE}: {one_line(error)}") from None
    (renamed / "fingerprint.pb").unlink(missing_ok=True)  # holds a random number
    return replace(open_directory(renamed, what, work), digest=digest_of_files(directory))


def digest_of_files(directory: Path) -> str:
    """Return the sha256 over names and contents of all files."""
    running = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        running.update(f"{path.relative_to(directory).as_posix()} {file_digest(path)}\n".encode())
    return running.hexdigest()
