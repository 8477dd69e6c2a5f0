from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import BuildReport, LabelledData, build_release

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def digits_release(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """All variants of the seed model, built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("digits")
        return build_release("examples.digits_mlp:model", "examples.digits_mlp:data", folder / "release", seeds=0)


@pytest.fixture(scope="session")
def blobs() -> LabelledData:
    """Three well separated clouds of points in four dimensions."""
    random = np.random.default_rng(0)
    labels = np.arange(240, dtype=np.int64) % 3
    centres = np.eye(3, 4, dtype=np.float32)
    points = (centres[labels] + random.normal(0.0, 0.1, (240, 4))).astype(np.float32)
    return LabelledData(points[:180], labels[:180], points[180:], labels[180:])


@pytest.fixture(scope="session")
def blob_model() -> Any:
    """An untrained Keras classifier that takes the blobs."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3, activation="softmax")]
    )


@pytest.fixture(scope="session")
def blob_keras_file(blob_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras") / "blobs.keras"
    blob_model.save(path)
    return path
