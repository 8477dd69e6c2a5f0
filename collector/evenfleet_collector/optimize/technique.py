"""What a technique is: one step that takes the model in one form and gives it in another.

A variant is a chain of techniques (`variants.VARIANTS`). A technique is one file and one line in
`variants.TECHNIQUES`. A Keras model is exported by itself where a technique takes a SavedModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from evenfleet_collector.optimize import strata
from evenfleet_collector.optimize.data import LabelledData, Samples
from evenfleet_shared.messages import Count

Stage = Literal["keras", "saved_model", "tflite"]
OutputKind = Literal["probabilities", "logits"]

# Enough for the ranges of activations; more costs time and changes no scale noticeably.
CALIBRATION_SAMPLES = 200


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
        parameters: Weights, biases and statistics, as far as known.
    """

    stage: Stage
    keras: Any = None
    saved_model: Path | None = None
    batch_of_one: Path | None = None
    tflite: Path | None = None
    parameters: Count | None = None


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

    def calibration(self) -> Iterator[list[Samples]]:
        """Yield training samples one by one, classes in their shares, as the converter wants them."""
        for index in strata.choose(self.data.y_train, CALIBRATION_SAMPLES, self.seed):
            yield [np.expand_dims(self.data.x_train[index], 0)]


class Technique(Protocol):
    """One step towards a variant.

    `settings` goes into the release's lineage, so that two releases built differently can be told apart.
    """

    @property
    def name(self) -> str:
        """Return the word for it in a recipe and in the manifest."""
        ...

    @property
    def takes(self) -> Stage:
        """Return the stage it needs."""
        ...

    @property
    def gives(self) -> Stage:
        """Return the stage it leaves."""
        ...

    @property
    def settings(self) -> str:
        """Return its settings as short text."""
        ...

    def apply(self, form: Form, material: Material) -> Form:
        """Return the next form; whatever is raised ends this variant alone.

        Raises:
            ModelRefusedError: The technique does not fit this model; says why.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A technique that writes the SavedModel in another form and trains nothing: `convert` is all there is to it."""

    name: str
    gives: Stage
    settings: str
    convert: Callable[[Form, Material], Form]
    takes: ClassVar[Stage] = "saved_model"

    def apply(self, form: Form, material: Material) -> Form:
        """Convert."""
        return self.convert(form, material)
