"""``module:function``: the user's own code, which returns arrays or gives batches.

Batches are pairs (samples, labels), from anything that can be iterated: a generator, a tf.data.Dataset, a torch
DataLoader, a Keras PyDataset. They are gathered in memory, up to a bound, since every variant sees all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from evenfleet_collector.optimize import data
from evenfleet_collector.optimize.data import SPLIT, WHOLE, LabelledData
from evenfleet_collector.optimize.datasets.interface import Wanted
from evenfleet_collector.optimize.sources import FunctionSource, Source, call, one_line
from evenfleet_shared.errors import DataError


class Function:
    """Called without arguments."""

    form = "module:function returning arrays or giving batches"
    options: tuple[str, ...] = ()

    def takes(self, source: Source) -> bool:
        return isinstance(source, FunctionSource)

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        assert isinstance(source, FunctionSource)
        arrays = call(source, DataError, lambda made: _by_name(made, source.name, wanted.max_bytes))
        return data.from_arrays(arrays, source.name, wanted.seed)


def _by_name(value: Any, what: str, max_bytes: int) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if _gives_batches(value):
        return dict(zip(WHOLE, _gathered(value, what, max_bytes), strict=True))
    if isinstance(value, (tuple, list)):
        if len(value) == 4:
            return dict(zip(SPLIT, value, strict=True))
        if len(value) == 2 and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in value):
            return dict(zip(SPLIT, (*value[0], *value[1]), strict=True))  # the form of keras.datasets
        if len(value) == 2 and all(_gives_batches(part) for part in value):
            train = _gathered(value[0], f"{what}: training batches", max_bytes)
            used = sum(array.nbytes for array in train)
            return dict(
                zip(SPLIT, (*train, *_gathered(value[1], f"{what}: test batches", max_bytes - used)), strict=True)
            )
        if len(value) == 2:
            return dict(zip(WHOLE, value, strict=True))
    raise DataError(
        f"{what} returned {type(value).__name__}; expected a dictionary with {', '.join(SPLIT)} (or x and y), "
        "a tuple of them in this order, batches (x, y), or two of those for training and test"
    )


def _gives_batches(value: Any) -> bool:
    """Say whether it is to be iterated: what is no array, and no list of arrays."""
    if isinstance(value, (Mapping, tuple, list, str, bytes)) or hasattr(value, "__array__"):
        return False
    return isinstance(value, Iterable) or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _each(batches: Any) -> Iterator[Any]:
    if hasattr(batches, "__getitem__") and hasattr(batches, "__len__"):
        # A Keras PyDataset has a length, and an iterator of the old kind that never ends.
        return (batches[index] for index in range(len(batches)))
    return iter(batches)


def _gathered(batches: Any, what: str, max_bytes: int) -> tuple[Any, Any]:
    xs: list[Any] = []
    ys: list[Any] = []
    used = 0
    for number, batch in enumerate(_each(batches)):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            found = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise DataError(f"{what}: batch {number} is {found}, expected a pair (samples, labels)")
        x, y = (_array(part, f"{what}: batch {number}") for part in batch)
        if y.ndim == 0 or x.ndim < 2 or len(x) != len(y):
            raise DataError(
                f"{what}: batch {number} has samples of shape {x.shape} and labels of shape {y.shape}; "
                "expected as many of both, several at once (tf.data: .batch(32))"
            )
        if xs and (x.shape[1:] != xs[0].shape[1:] or y.shape[1:] != ys[0].shape[1:]):
            raise DataError(
                f"{what}: batch {number} has samples of shape {x.shape[1:]} and labels of shape {y.shape[1:]}, "
                f"batch 0 has {xs[0].shape[1:]} and {ys[0].shape[1:]}"
            )
        used += x.nbytes + y.nbytes
        if used > max_bytes:
            raise DataError(
                f"{what} gave more than {max_bytes} bytes in {number + 1} batches; more is not read. Does it end?"
            )
        xs.append(x)
        ys.append(y)
    if not xs:
        raise DataError(f"{what} gave no batch")
    return np.concatenate(xs), np.concatenate(ys)


def _array(part: Any, what: str) -> Any:
    try:
        array = np.asarray(part)
    except Exception as error:  # noqa: BLE001 - ragged lists, tensors of another library: whatever they raise
        raise DataError(f"{what} is not an array of numbers: {one_line(error)}") from None
    # A generator may hand out one buffer again and again; float64 would cost twice the room.
    return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()
