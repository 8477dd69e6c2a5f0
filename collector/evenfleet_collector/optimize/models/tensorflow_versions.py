"""Say which versions building works with; import them when something is to be built, and have them compute repeatably."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from typing import Final

from evenfleet_shared.errors import ConfigError, RuntimeMissingError

_NEEDED: Final = ("tensorflow", "keras", "ai_edge_litert", "numpy")
# By what a release's lineage calls it: the packages that bring it, of which one is installed.
_IN_THE_LINEAGE: Final = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly"),
    "keras": ("keras",),
    "ai-edge-litert": ("ai-edge-litert",),
    "numpy": ("numpy",),
}
# What some techniques and some forms of MODEL need besides.
_OPTIONAL: Final = ("tf-keras", "tensorflow-model-optimization", "ai-edge-quantizer", "onnx2tf", "onnx")


def versions() -> dict[str, str]:
    """Return the versions of what building needs, without importing any of it.

    Raises:
        RuntimeMissingError: Something is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _not_installed(f"No module named {missing[0]!r}")
    return {
        name: next((found for package in packages if (found := _version(package))), "unknown")
        for name, packages in _IN_THE_LINEAGE.items()
    }


def all_versions() -> dict[str, str]:
    """Return the versions of all that can have a part in a variant; what is not installed has none."""
    return {**versions(), **{package: _version(package) or "none" for package in _OPTIONAL}}


# More gain nothing on the small batches that we train with.
_MOST_THREADS: Final = 8


def import_tensorflow() -> None:
    """Import what building needs, and turn on op determinism for this process.

    Raises:
        RuntimeMissingError: Something is not installed, or cannot be imported.
        ConfigError: Keras is set to another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # By itself as many as the cores that the process may use, and a sum is cut into as many parts: --cores would train
    # another model. Read when TensorFlow first computes, by children too.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(min(os.cpu_count() or 1, _MOST_THREADS)))
    try:
        import absl.logging
        import ai_edge_litert  # noqa: F401 - to fail here, and not in the middle
        import keras
        import tensorflow as tf
    except ImportError as error:
        raise _not_installed(str(error)) from None
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"Keras is set to the backend {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    # Else kernels may sum in whichever order their threads finish, and the same seed trains another model.
    tf.config.experimental.enable_op_determinism()
    absl.logging.set_verbosity(absl.logging.ERROR)
    tf.get_logger().setLevel("ERROR")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _not_installed(what: str) -> RuntimeMissingError:
    return RuntimeMissingError(
        f"building a release needs TensorFlow and LiteRT ({what}); install them with: pip install 'evenfleet[optimize]'"
    )
