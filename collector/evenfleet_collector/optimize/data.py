"""Labelled data, checked before a minute is spent on training.

Decides what is acceptable: float32 samples, finite; whole-number labels from 0; at least two classes; train and test
alike in shape. Leaves reading to `datasets`, and to `models` whether the data fits the model. What the golden set
holds is what the model is given: nothing is scaled after this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import strata
from evenfleet_collector.optimize.sources import one_line
from evenfleet_shared.errors import DataError
from evenfleet_shared.preprocessing import Preprocessing

MAX_DATA_BYTES: Final = 4 << 30
TEST_RATIO: Final = 0.2
SPLIT: Final = ("x_train", "y_train", "x_test", "y_test")
WHOLE: Final = ("x", "y")

Samples = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledData:
    """Samples ``(n, …)`` float32 and classes ``(n,)`` int64, checked.

    Attributes:
        x_train: Samples to train on and to calibrate with.
        y_train: Their classes.
        x_test: Samples to judge by.
        y_test: Their classes.
        class_names: By class, where the data has names and not numbers: folders of images, text in a CSV.
        declared: How the samples were made here; None for samples that were given ready.
    """

    x_train: Samples
    y_train: Labels
    x_test: Samples
    y_test: Labels
    class_names: tuple[str, ...] = ()
    declared: Preprocessing | None = None

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over all four arrays, shapes included."""
        running = hashlib.sha256()
        for name in SPLIT:
            array = getattr(self, name)
            running.update(f"{name} {array.dtype} {array.shape}\n".encode())
            running.update(np.ascontiguousarray(array).data)
        return running.hexdigest()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample."""
        return tuple(self.x_train.shape[1:])

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how the samples came about."""
        return self.declared or Preprocessing(input="as-given", shape=self.sample_shape)

    @property
    def largest_label(self) -> int:
        """Return the highest class that occurs."""
        return int(max(self.y_train.max(), self.y_test.max()))


def from_arrays(arrays: Mapping[str, Any], source: str, seed: int) -> LabelledData:
    """Check arrays and make them labelled data.

    Args:
        arrays: ``x_train, y_train, x_test, y_test``, or ``x, y`` to be split by class shares, a fifth for the test.
            Labels may be ``(n,)``, ``(n, 1)`` or one-hot ``(n, classes)``.
        source: Where they come from, for errors.
        seed: Decides the split.

    Raises:
        DataError: They are not acceptable; says what was found.

    >>> from_arrays({"x": np.zeros((20, 3)), "y": [0, 1] * 10}, "here", seed=0).x_test.shape
    (4, 3)
    >>> from_arrays({"x": np.zeros((20, 3)), "y": [1] * 20}, "here", seed=0)
    Traceback (most recent call last):
    ...
    evenfleet_shared.errors.DataError: here: y holds only class 1; accuracy needs at least two classes
    """
    if all(name in arrays for name in SPLIT):
        x_train, y_train = _pair(arrays, "x_train", "y_train", source)
        x_test, y_test = _pair(arrays, "x_test", "y_test", source)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise DataError(
                f"{source}: samples of x_train have shape {x_train.shape[1:]}, of x_test {x_test.shape[1:]}; "
                "they must be alike"
            )
        return LabelledData(x_train, y_train, x_test, y_test)
    if all(name in arrays for name in WHOLE):
        x, y = _pair(arrays, "x", "y", source)
        train, test = strata.split(y, TEST_RATIO, seed)
        for name, part in (("training", train), ("test", test)):
            if np.unique(y[part]).size < 2:
                raise DataError(
                    f"{source}: {y.size} samples are too few to split: the {name} part has fewer than 2 classes"
                )
        return LabelledData(x[train], y[train], x[test], y[test])
    found = ", ".join(sorted(arrays)) or "nothing"
    missing = [name for name in SPLIT if name not in arrays]
    if len(missing) < len(SPLIT):
        raise DataError(f"{source}: {', '.join(missing)} missing; found {found}")
    raise DataError(f"{source}: expected arrays {', '.join(SPLIT)}, or x and y; found {found}")


def _pair(arrays: Mapping[str, Any], x_name: str, y_name: str, source: str) -> tuple[Samples, Labels]:
    x = _samples(arrays[x_name], f"{source}: {x_name}")
    y = _labels(arrays[y_name], f"{source}: {y_name}")
    if len(x) != len(y):
        raise DataError(
            f"{source}: {x_name} has {len(x)} samples and {y_name} has {len(y)} labels; they must be as many"
        )
    return x, y


def _samples(value: Any, what: str) -> Samples:
    array = _array(value, what)
    if array.ndim < 2 or not array.size:
        raise DataError(f"{what} has shape {array.shape}, expected (samples, …) and at least one sample")
    with np.errstate(over="ignore", invalid="ignore"):
        samples = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(samples)
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(samples), -1).all(axis=1))
        raise DataError(
            f"{what} has values that are not finite float32 numbers in {bad.size} of {len(samples)} samples, "
            f"the first is sample {bad[0]}"
        )
    return samples


def _labels(value: Any, what: str) -> Labels:
    array = _array(value, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(f"{what} has shape {array.shape}, expected one class per sample: (samples,)")
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        bad = np.flatnonzero(~np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1))
        raise DataError(f"{what} has {bad.size} labels that are NaN or infinite, the first is sample {bad[0]}")
    if array.ndim == 2:
        if not (np.isin(numbers, (0.0, 1.0)).all() and (numbers.sum(axis=1) == 1.0).all()):
            raise DataError(f"{what} has shape {array.shape} but is not one-hot: expected a single 1 per row")
        numbers = numbers.argmax(axis=1).astype(np.float64)
    if (numbers != np.floor(numbers)).any() or numbers.min() < 0 or numbers.max() > 1e9:
        wrong = numbers[(numbers != np.floor(numbers)) | (numbers < 0) | (numbers > 1e9)][0]
        raise DataError(f"{what} holds {wrong:g}; classes are whole numbers from 0")
    labels = numbers.astype(np.int64)
    classes = np.unique(labels)
    if classes.size < 2:
        raise DataError(f"{what} holds only class {classes[0]}; accuracy needs at least two classes")
    return labels


def _array(value: Any, what: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # ragged lists, odd objects
        raise DataError(f"{what} is not an array of numbers: {one_line(error)}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} holds values of type {array.dtype}, expected numbers")
    return array
