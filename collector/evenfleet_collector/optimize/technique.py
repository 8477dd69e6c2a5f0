"""What a technique is: one step that takes the model in one form and gives it in another.

A variant is a chain of techniques (`variants.DEFAULT`, or a recipe's). A technique is one class and one line in
`variants.TECHNIQUES`. A Keras model is exported by itself where a technique takes a SavedModel, and becomes a float32 file
by itself where one takes a TFLite file.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta

from evenfleet_collector.optimize import strata
from evenfleet_collector.optimize.data import LabelledData, Samples
from evenfleet_shared.manifest import Calibration
from evenfleet_shared.messages import Count

Stage = Literal["keras", "saved_model", "tflite"]
OutputKind = Literal["probabilities", "logits"]

# The bounds of settings, which a recipe's values are checked against.
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Steps = Annotated[int, Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, Meta(gt=0.0, le=1.0)]
CalibrationSamples = Annotated[int, Meta(ge=2, le=100_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The model as it stands between two techniques.

    Attributes:
        stage: Which of the next three is there.
        keras: The Keras model. Techniques never change it, they clone it.
        saved_model: The SavedModel directory, any batch size, for the ``saved-model`` variants and whoever loads it.
        batch_of_one: The same SavedModel with a batch of exactly one, which is what TFLite files are made from: a free
            batch size costs operators (SHAPE, PACK) that accelerators do not take.
        tflite: The TFLite file.
        pruned: Weights are zero that must stay so.
        clustered: Weights share few values that must stay so.
        parameters: Weights, biases and statistics, as far as known.
        calibration: Which samples the ranges of the TFLite file come from; None where they come from none.
        notes: What the techniques so far have to say of what they made, a sentence each.
    """

    stage: Stage
    keras: Any = None
    saved_model: Path | None = None
    batch_of_one: Path | None = None
    tflite: Path | None = None
    pruned: bool = False
    clustered: bool = False
    parameters: Count | None = None
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What techniques work with.

    Attributes:
        data: Training samples (techniques never see the test samples' labels).
        classes: Number of classes.
        output_kind: Whether the model's outputs are probabilities already.
        seed: Each technique seeds every generator with it before it draws anything.
        folder: Where to write; a technique makes names of its own with `new_path`.
    """

    data: LabelledData
    classes: int
    output_kind: OutputKind
    seed: int
    folder: Path

    def new_path(self, name: str) -> Path:
        """Return a path in the working folder that is not taken."""
        number = 0
        while (path := self.folder / f"{number:03d}-{name}").exists():
            number += 1
        return path

    def calibration(self, samples: int) -> Iterator[list[Samples]]:
        """Yield training samples one by one, classes in their shares, as the converter wants them; all where there are fewer."""
        for index in strata.choose(self.data.y_train, samples, self.seed):
            yield [np.expand_dims(self.data.x_train[index], 0)]

    def calibration_record(self, samples: int) -> Calibration:
        """Return which samples `calibration` yields, for the manifest."""
        running = hashlib.sha256()
        for (sample,) in self.calibration(samples):
            running.update(sample.astype("<f4").tobytes())
        chosen = strata.choose(self.data.y_train, samples, self.seed)
        counts = np.bincount(self.data.y_train[chosen], minlength=self.classes)
        return Calibration(
            n=chosen.size, seed=self.seed, sha256=running.hexdigest(), class_counts=tuple(counts.tolist())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique(ABC):
    """One step towards a variant: a frozen dataclass whose fields are its settings, which a recipe may change.

    Attributes:
        name: The word for it in a recipe and in the manifest.
        takes: The stage it needs.
        gives: The stage it leaves.
    """

    name: ClassVar[str]
    takes: ClassVar[Stage]
    gives: ClassVar[Stage]

    @property
    def settings(self) -> str:
        """Return its settings as short text; two that differ in it are two steps, and their releases differ."""
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @property
    def described(self) -> str:
        """Return its name with its settings, as the manifest has it."""
        return f"{self.name}({self.settings})"

    @abstractmethod
    def apply(self, form: Form, material: Material) -> Form:
        """Return the next form; whatever is raised ends this variant alone.

        Raises:
            ModelRefusedError: The technique does not fit this model; says why.
        """

    def control(self) -> tuple[Technique, ...] | None:
        """Return the steps that differ from this one in nothing but its idea: trained as long, without it.

        None for a step that trains nothing: the variant before it is its control.
        """
        return None
