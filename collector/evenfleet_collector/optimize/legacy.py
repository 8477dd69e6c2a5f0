"""Weight clustering and quantization-aware training, by tensorflow-model-optimization in a process of its own.

That library knows Keras 2 alone, and one process cannot have both: `legacy_worker` builds the model anew there, trains
it, and hands back weights or a file. This module is the parent's end.

* Zeros and shared values that an earlier step made survive the later ones.
* A process that dies, or a library that is not there, ends this variant with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from evenfleet_collector.child import bound, last_line
from evenfleet_collector.optimize import quantize, training
from evenfleet_collector.optimize.technique import CalibrationSamples, Form, Material, Rate, Stage, Steps, Technique
from evenfleet_shared.errors import ModelRefusedError, RuntimeMissingError

JOB_FILE: Final = "job.json"
WEIGHTS_FILE: Final = "weights.npz"
MADE_WEIGHTS_FILE: Final = "made.npz"
MADE_TFLITE_FILE: Final = "made.tflite"
# How the worker ends where the model is not one for it, and where a library is missing; the reason is its last line.
REFUSED: Final = 10
MISSING: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Technique):
    """Every kernel gets along with `clusters` values, trained together: the file compresses, and stays as it is else."""

    name: ClassVar[str] = "cluster"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"
    clusters: Annotated[int, Meta(ge=2, le=4096)] = 16
    steps: Steps = 700
    learning_rate: Rate = 3e-4

    def apply(self, form: Form, material: Material) -> Form:
        """Cluster the weights of a clone."""
        job = {
            "do": "cluster",
            "clusters": self.clusters,
            **_training(self.steps, self.learning_rate, material),
            "preserve_sparsity": form.pruned,
        }
        made = _run(self.name, job, form.keras, material)
        model = training.clone(form.keras, material.seed)
        load_weights(model, made / MADE_WEIGHTS_FILE)
        return Form(stage="keras", keras=model, pruned=form.pruned, clustered=True)

    def control(self) -> tuple[Technique, ...] | None:
        """Return the same training with all values free."""
        return (training.FineTune(steps=self.steps, learning_rate=self.learning_rate),)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationAware(Technique):
    """Trained on with the rounding of int8 in place, so that the weights make up for it; then full int8.

    Ranges are learned while it trains: `calibration_samples` are the control's.
    """

    name: ClassVar[str] = "qat"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "tflite"
    steps: Steps = 700
    learning_rate: Rate = 3e-4
    calibration_samples: CalibrationSamples = 200

    def apply(self, form: Form, material: Material) -> Form:
        """Train a clone and convert it."""
        job = {
            "do": "qat",
            **_training(self.steps, self.learning_rate, material),
            "preserve_sparsity": form.pruned,
            "preserve_clusters": form.clustered,
        }
        made = _run(self.name, job, form.keras, material)
        written = replace(
            form, stage="tflite", tflite=made / MADE_TFLITE_FILE, parameters=int(form.keras.count_params())
        )
        return quantize.only_integers(self.name, written)

    def control(self) -> tuple[Technique, ...] | None:
        """Return the same training without the rounding, quantized afterwards."""
        return (
            training.FineTune(steps=self.steps, learning_rate=self.learning_rate),
            quantize.FullInt8(calibration_samples=self.calibration_samples),
        )


def save_weights(model: Any, path: Path) -> None:
    """Write a model's weights by layer; of a Keras 2 or a Keras 3 model."""
    weights = {_weight(layer, n): array for layer in model.layers for n, array in enumerate(layer.get_weights())}
    np.savez(path, **weights)


def load_weights(model: Any, path: Path) -> None:
    """Set the weights of a model with the same layers, whichever Keras it is of."""
    with np.load(path, allow_pickle=False) as weights:
        for layer in model.layers:
            layer.set_weights([weights[_weight(layer, n)] for n in range(len(layer.get_weights()))])


def _weight(layer: Any, number: int) -> str:
    return f"{layer.name}//{number}"


def _training(steps: int, learning_rate: float, material: Material) -> dict[str, Any]:
    data = material.data
    return {
        "epochs": training.epochs_for(len(data.x_train), steps),
        "batch": training.BATCH,
        "learning_rate": learning_rate,
        "seed": material.seed,
        "from_logits": material.output_kind == "logits",
    }


def _run(name: str, job: Mapping[str, Any], model: Any, material: Material) -> Path:
    """Have the worker do a job; return the folder that holds what it made."""
    folder = material.new_path(name)
    folder.mkdir()
    x, y = _training_files(material)
    described = {**job, "kind": type(model).__name__, "model": model.get_config(), "x": str(x), "y": str(y)}
    (folder / JOB_FILE).write_text(json.dumps(described, default=repr), encoding="utf-8")
    save_weights(model, folder / WEIGHTS_FILE)
    log = folder / "log"
    with log.open("wb") as out:
        done = subprocess.run(
            bound([sys.executable, "-m", "evenfleet_collector.optimize.legacy_worker", str(folder)]),
            env={**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode == 0:
        return folder
    printed = log.read_text(encoding="utf-8", errors="replace")
    said = last_line(printed, f"its process ended with code {done.returncode} and no word")
    if done.returncode == MISSING:
        raise RuntimeMissingError(f"{name}: {said}")
    raise ModelRefusedError(f"{name}: {said}")


def _training_files(material: Material) -> tuple[Path, Path]:
    """Return the training samples and labels as files, written once."""
    x, y = material.folder / "x_train.npy", material.folder / "y_train.npy"
    if not y.exists():
        np.save(x, material.data.x_train, allow_pickle=False)
        np.save(y, material.data.y_train, allow_pickle=False)
    return x, y
