"""Import what building needs, have it compute repeatably, and say in which versions."""

from __future__ import annotations

import os

import numpy as np

from evenfleet_shared.errors import ConfigError, RuntimeMissingError


def import_tensorflow() -> dict[str, str]:
    """Import what building needs, turn on op determinism for this process, and return the versions.

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
    # Else kernels may sum in whichever order their threads finish, and the same seed trains another model.
    tf.config.experimental.enable_op_determinism()
    absl.logging.set_verbosity(absl.logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "ai-edge-litert": getattr(ai_edge_litert, "__version__", "unknown"),
        "numpy": np.__version__,
    }
