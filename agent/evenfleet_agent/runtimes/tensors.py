"""Turn real numbers into what a model's tensors hold, and back.

Pure; needs numpy. Quantisation is affine, ``real = (stored - zero_point) * scale``, as TFLite defines it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evenfleet_shared.errors import DataError, ModelRefusedError
from evenfleet_shared.manifest import TensorSpec

# float64 has no exact form of the largest int64, so that a clipped value could still overflow.
_LARGEST_INT = 2**62


def to_stored(values: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    """Return `values` as a tensor of `spec` holds them, in their own shape.

    Args:
        values: Values of the tensor's own integer type are taken as they are; all others are real numbers, which are
            divided by the scale, rounded to the nearest (halves to even), and cut to the type's range.
        spec: The tensor.

    Raises:
        ModelRefusedError: The tensor does not hold numbers.

    >>> spec = TensorSpec(name="x", shape=(1, 3), dtype="int8", scale=0.5, zero_point=-1)
    >>> to_stored(np.array([[0.0, 1.0, 1000.0]]), spec)
    array([[ -1,   1, 127]], dtype=int8)
    """
    dtype = numeric_dtype(spec)
    if values.dtype == dtype and dtype.kind in "iub":
        return values
    if dtype.kind == "b":
        set_bits: npt.NDArray[Any] = np.not_equal(values, 0)
        return set_bits
    if dtype.kind == "f":
        return values.astype(dtype)
    real = values.astype(np.float32)
    stored = np.rint(real / np.float32(spec.scale)) + (spec.zero_point or 0) if spec.scale else np.rint(real)
    limits = np.iinfo(dtype)
    return np.clip(stored.astype(np.float64), max(limits.min, -_LARGEST_INT), min(limits.max, _LARGEST_INT)).astype(
        dtype
    )


def to_real(stored: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Return the real numbers that a tensor of `spec` holds.

    >>> spec = TensorSpec(name="y", shape=(1, 2), dtype="int8", scale=0.5, zero_point=-1)
    >>> to_real(np.array([[-1, 1]], dtype=np.int8), spec)
    array([[0., 1.]], dtype=float32)
    """
    if not spec.scale:
        return stored.astype(np.float32)
    return (stored.astype(np.float32) - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)


def zeros(spec: TensorSpec) -> npt.NDArray[Any]:
    """Return one sample of nothing for an input, each of whose open sizes is 1.

    >>> zeros(TensorSpec(name="x", shape=(-1, 2), dtype="float32"))
    array([[0., 0.]], dtype=float32)
    """
    return np.zeros(tuple(1 if size == -1 else size for size in spec.shape), dtype=np.float32)


def numeric_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the numpy type of a tensor.

    Raises:
        ModelRefusedError: The tensor does not hold real numbers.
    """
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise ModelRefusedError(
            f"tensor {spec.name} is of type {spec.dtype}; only models of plain numbers are measured"
        )
    return dtype


def fit(values: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> npt.NDArray[Any]:
    """Return samples in the shape that an input takes, where the number of elements is the same.

    Args:
        values: Shape ``(batch, ...)``.
        shape: The input's; a -1 at its start is the batch.
        name: The input's, for the error.

    Raises:
        DataError: The number of elements differs.
    """
    target = (len(values), *shape[1:]) if shape[:1] == (-1,) else shape
    try:
        return values.reshape(target)
    except ValueError:
        raise DataError(
            f"input {name} takes shape {list(target)}, found values of shape {list(values.shape)}"
        ) from None


def resized(
    shape: tuple[int, ...], now: tuple[int, ...], sample_shape: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return the shape that an input has to be given for one sample; None where it has it, or may not be given any.

    Args:
        shape: As the model says; -1 is open, and so is 0, in files of old converters. Empty allows of no other.
        now: As the interpreter has it.
        sample_shape: As for `settle`.

    >>> resized((-1, 0), (1, 0), None), resized((1, 4), (1, 4), (4,)), resized((), (1,), (4,))
    ((1, 1), None, None)
    """
    settled = tuple(size or 1 for size in settle(shape, sample_shape))
    return settled if shape and settled != now else None


def with_batch(sizes: tuple[int, ...], sample_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of an input with nothing left open but the batch, where the first size is one.

    Args:
        sizes: As the model says; -1 is open.
        sample_shape: As for `settle`.

    >>> with_batch((-1, -1, 3), (32, 3)), with_batch((-1,), (16000,)), with_batch((1, 8), None)
    ((-1, 32, 3), (16000,), (1, 8))
    """
    settled = settle(sizes, sample_shape)
    batched = sizes[:1] == (-1,) and (sample_shape is None or len(sample_shape) + 1 == len(sizes) or settled[0] == 1)
    return (-1, *settled[1:]) if batched else settled


def settle(shape: tuple[int, ...], sample_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return an input's shape for one sample, with nothing left open.

    Args:
        shape: As the model says; -1 is open.
        sample_shape: The sizes of one sample, with which the model may or may not want a batch of 1.

    >>> settle((-1, -1, 3), (32, 3)), settle((-1,), (16000,)), settle((-1, 8), None), settle((1, 64), (8, 8))
    ((1, 32, 3), (16000,), (1, 8), (1, 64))
    """
    for wanted in () if sample_shape is None else ((1, *sample_shape), sample_shape):
        if len(wanted) == len(shape) and all(size in (-1, want) for size, want in zip(shape, wanted, strict=True)):
            return wanted
    return tuple(1 if size == -1 else size for size in shape)
