"""What a form of model is, what it is once opened, and what it must do with the data to be a classifier.

A model is opened before the data is read: images take their size from it. Then it is checked against the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from evenfleet_collector.optimize.data import LabelledData, Samples
from evenfleet_collector.optimize.sources import ModelSource, one_line
from evenfleet_collector.optimize.technique import Form, Material, OutputKind, Stage
from evenfleet_shared.errors import DataError, ModelRefusedError

MAX_MODEL_BYTES: Final = 4 << 30
MAX_CLASSES: Final = 1001
_PROBE_SAMPLES: Final = 16

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model that was loaded, and not yet run.

    Attributes:
        what: What errors call it.
        stage: What techniques are given.
        sample_shape: What it takes, batch aside, None where any size goes; None where it does not say.
        run: Gives its scores for samples ``(n, …)``.
        one_by_one: Whether `run` takes a single sample at a time.
        form: Makes the form that techniques start from.
        digest: sha256 of the file, of all files of the directory, or of configuration and weights.
        own_name: What the file is called as a variant, where it is one already.
        lineage: What made it what it is, for the manifest.
    """

    what: str
    stage: Stage
    sample_shape: Shape | None
    run: Callable[[Samples], Any]
    one_by_one: bool
    form: Callable[[Material], Form]
    digest: str
    own_name: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)

    def checked(self, data: LabelledData) -> CheckedModel:
        """Run it on samples of the user's own.

        Raises:
            ModelRefusedError: It is no classifier: it gives no row of at least two scores, finite, per sample.
            DataError: The data's samples or labels do not fit it.
        """
        _check_samples(self.what, self.sample_shape, data)
        scores = _scores(self, data)
        classes = _classes(scores, data, self.what)
        return CheckedModel(opened=self, classes=classes, output_kind=output_kind(scores), scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedModel:
    """A classifier that fits the data; `scores` are those of the first test samples, shape ``(n, classes)``."""

    opened: OpenedModel
    classes: int
    output_kind: OutputKind
    scores: Samples


class ModelFormat(Protocol):
    """One form that MODEL may have: one file, and one line in `models.MODEL_FORMATS`."""

    @property
    def form(self) -> str:
        """Return what it is called where the forms are listed."""
        ...

    def takes(self, source: ModelSource) -> bool:
        """Say whether this is the one to open `source`, by name and kind, without opening it."""
        ...

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        """Load it.

        Args:
            source: What to load.
            work: Where to write what it is converted to, for as long as the model is used.

        Raises:
            ModelRefusedError: It cannot be loaded, or cannot be a classifier as a release holds one.
            ConfigError: There is no such function.
            RuntimeMissingError: What loads it is not installed.
        """
        ...


def output_kind(outputs: Samples) -> OutputKind:
    """Tell probabilities from logits by what comes out, whatever layer made it.

    >>> output_kind(np.array([[0.2, 0.8]], dtype=np.float32)), output_kind(np.array([[-1.0, 2.0]], dtype=np.float32))
    ('probabilities', 'logits')
    """
    sums_to_one = np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3)
    return "probabilities" if sums_to_one and outputs.min() >= 0.0 else "logits"


def check_counts(what: str, inputs: int, outputs: int) -> None:
    """Refuse what has more than one input or output."""
    if inputs != 1 or outputs != 1:
        raise ModelRefusedError(
            f"{what} has {inputs} {'input' if inputs == 1 else 'inputs'} and {outputs} "
            f"{'output' if outputs == 1 else 'outputs'}; releases are built from models with one of each"
        )


def check_float32(what: str, dtype: str) -> None:
    """Refuse another input than float32."""
    if dtype != "float32":
        raise ModelRefusedError(f"{what} takes {dtype} inputs; releases are built from models that take float32")


def check_batch(what: str, batch: int | None) -> None:
    """Refuse a batch that is fixed to other than one: devices run one sample at a time."""
    if batch not in (None, -1, 1):
        raise ModelRefusedError(
            f"{what} takes exactly {batch} samples at once, devices give one; export it with a free batch size or 1"
        )


def _check_samples(what: str, expected: Shape | None, data: LabelledData) -> None:
    found = data.sample_shape
    if expected is None:
        return
    if len(expected) != len(found) or any(want not in (None, have) for want, have in zip(expected, found, strict=True)):
        raise DataError(f"{what} takes samples of shape {expected}, DATA has samples of shape {found}")


def _scores(model: OpenedModel, data: LabelledData) -> Samples:
    x = data.x_test[:_PROBE_SAMPLES]
    batches = [x[i : i + 1] for i in range(len(x))] if model.one_by_one else [x]
    try:
        outputs = np.concatenate([np.asarray(model.run(batch)) for batch in batches])
    except Exception as error:  # noqa: BLE001 - the model decides what it trips over
        raise ModelRefusedError(
            f"{model.what} fails on test samples of shape {data.sample_shape}: {one_line(error)}"
        ) from None
    scores: Samples = outputs.astype(np.float32)
    return scores


def _classes(outputs: Samples, data: LabelledData, what: str) -> int:
    if outputs.ndim != 2 or not 2 <= outputs.shape[1] <= MAX_CLASSES:
        raise ModelRefusedError(
            f"{what} gives {outputs.shape[1:]} values per sample; expected a row of 2 to {MAX_CLASSES} class scores"
        )
    if not np.isfinite(outputs).all():
        raise ModelRefusedError(f"{what} gives NaN or infinite scores on the test samples; was it trained?")
    classes = int(outputs.shape[1])
    if data.largest_label >= classes:
        raise DataError(f"DATA has labels up to {data.largest_label}, {what} has {classes} classes: 0 to {classes - 1}")
    if data.class_names and len(data.class_names) != classes:
        # Names become numbers in sorted order, which is the model's order only if it knows the same names.
        raise DataError(
            f"DATA names {len(data.class_names)} classes ({', '.join(data.class_names[:5])}…), {what} has {classes}, "
            "so which is which is not known; give all of the model's classes, or labels as numbers"
        )
    return classes
