"""A network whose every layer is as well made for int8 as a layer can be, and ways to spoil one of them.

Each layer turns its input, and adds what keeps it above zero; the last turns back and reads the class. No layer's weights
or outputs have outliers, so that what int8 costs is small and known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize.rescue import Quantizer
from fakes import tiny_models

Floats = npt.NDArray[np.float32]
Layers = list[tuple[Floats, Floats]]

FEATURES, CLASSES = 16, 4
_LIFT = 5.0


def samples(count: int, *, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return samples with their classes, well apart: class i has a large feature i."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    x = random.normal(0.0, 0.3, size=(count, FEATURES)).astype(np.float32)
    x[np.arange(count), labels] += 2.0
    return x, labels


def rotations() -> Layers:
    """Return four layers that get every sample right."""
    random = np.random.default_rng(1)
    turns = [np.linalg.qr(random.normal(size=(FEATURES, FEATURES)))[0] for _ in range(3)]
    lift = np.full(FEATURES, _LIFT)
    layers = [(turns[0], lift), *((turn, lift - turn @ lift) for turn in turns[1:])]
    back = (turns[2] @ turns[1] @ turns[0]).T[:CLASSES]
    layers.append((back, -back @ lift))
    return [(weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in layers]


def with_large_weight(layers: Layers, place: int) -> Layers:
    """Give every unit of a layer a weight of 1000, for an input that is always zero: int8 rounds all its others to zero."""
    made = list(layers)
    weights, bias = made[place - 1]
    made[place - 1] = np.vstack([weights, np.zeros((1, weights.shape[1]), np.float32)]), np.append(bias, np.float32(0))
    weights, bias = made[place]
    made[place] = np.hstack([weights, np.full((len(weights), 1), 1000.0, np.float32)]), bias
    return made


def with_loud_channel(layers: Layers, place: int) -> Layers:
    """Make one more output of a layer, 1000 times as large, which nothing reads: its range leaves int8 no steps for others."""
    made = list(layers)
    weights, bias = made[place]
    made[place] = np.vstack([weights, weights[:1] * 1000.0]).astype(np.float32), np.append(bias, np.float32(2000))
    weights, bias = made[place + 1]
    made[place + 1] = np.hstack([weights, np.zeros((len(weights), 1), np.float32)]), bias
    return made


def in_int8(folder: Path, layers: Layers, calibration: Floats | None = None) -> bytes:
    """Return the network in int8, calibrated with samples of its own or with others."""
    path = tiny_models.dense(folder / "to-quantise.tflite", layers)
    return Quantizer(path, samples(100, seed=9)[0] if calibration is None else calibration).quantized([])
