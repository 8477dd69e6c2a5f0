"""A small convolutional network on Fashion-MNIST (28 x 28 x 1, ten kinds of clothes), as Debian packages it.

    apt-get install dataset-fashion-mnist
    evenfleet optimize examples.fashion_cnn:model --data examples.fashion_cnn:data --out release/

Inputs are float32 pixels in 0..1. Needs `evenfleet[optimize]`; trains in about half a minute.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = 60_000, 10_000
_IMAGES_HEADER, _LABELS_HEADER = 16, 8  # bytes before the values in an IDX file


def data() -> dict[str, Any]:
    """Return 60,000 training and 10,000 test samples of shape (28, 28, 1), with labels 0 to 9.

    EVENFLEET_FASHION_MNIST names another folder with the four files of the data set.

    Raises:
        FileNotFoundError: The data set is not installed.
    """
    folder = Path(os.environ.get("EVENFLEET_FASHION_MNIST", FOLDER))
    return {
        "x_train": _images(folder / "train-images-idx3-ubyte.gz", TRAIN),
        "y_train": _values(folder / "train-labels-idx1-ubyte.gz", _LABELS_HEADER, TRAIN),
        "x_test": _images(folder / "t10k-images-idx3-ubyte.gz", TEST),
        "y_test": _values(folder / "t10k-labels-idx1-ubyte.gz", _LABELS_HEADER, TEST),
    }


def model() -> Any:
    """Return the trained network: two convolutions with pooling, two dense layers, softmax over 10 classes."""
    import keras
    from keras import layers

    samples = data()
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="fashion_cnn",
    )
    network.compile(
        optimizer=keras.optimizers.Adam(2e-3),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
        steps_per_execution=32,
    )
    network.fit(samples["x_train"], samples["y_train"], batch_size=128, epochs=2, verbose=0)
    return network


def _images(path: Path, count: int) -> Any:
    pixels = _values(path, _IMAGES_HEADER, count * 28 * 28)
    return (pixels.reshape(count, 28, 28, 1) / 255.0).astype(np.float32)


def _values(path: Path, header: int, count: int) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"Fashion-MNIST is not installed (expected {path}); on Debian: apt-get install dataset-fashion-mnist"
        )
    with gzip.open(path) as file:
        values = np.frombuffer(file.read(), dtype=np.uint8, offset=header)
    if values.size != count:
        raise ValueError(f"{path} holds {values.size} values, expected {count}; reinstall dataset-fashion-mnist")
    return values
