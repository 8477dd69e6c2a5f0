"""Where two devices' runs of one file part: how far apart each operator's outputs are, and the first beyond what rounding does.

Pure. Both runs are told in few numbers (`evenfleet_shared.layers`), so distances are estimates, and include what operators
before passed on. Leaves asking the devices to `commands.device_diff`.

* What is granted follows from the types that the file stores, as in a `diff` of files, and does not shrink again behind them.
* An estimate counts as beyond only if it is so by more than estimates are off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from evenfleet_collector.optimize.layers import FLOAT16_RATIO, FLOAT32_RATIO, quantiser_ratio
from evenfleet_shared.errors import EvenfleetError
from evenfleet_shared.layers import PROJECTIONS, LayerOutput, Layers, Summary

# One in a thousand estimates of 16 projections is larger than the distance by this: chi-squared with 16 degrees of freedom.
CERTAIN: Final = 1.6
# What processors that flush the smallest numbers to zero make of them.
_SMALLEST: Final = 2.0**-126
_BITS: Final = {"int8": 8, "uint8": 8, "int16": 16}
# Operators with integer weights quantise their inputs to so many bits while running.
_RUN_TIME_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport:
    """One output of one operator on both devices.

    Attributes:
        index: The operator's in the file; -1 for an input of the model, as it was fed.
        operator: Such as ``CONV_2D``; ``INPUT`` for an input.
        name: The tensor's.
        shape: Of it on A.
        type: Of it on A.
        identical: Every byte is the same.
        signal_rms: Of A's; None where either device has not seen it.
        difference_rms: Of B's minus A's, estimated.
        difference_ratio: Over `signal_rms`.
        difference_steps: Over what one step of a quantised tensor is worth; None for others.
        bound_rms: What rounding accounts for; None where nothing is held against it.
        exceeds: It differs by more, and by more than estimates are off.
        remark: Why it was not seen or not held against anything, or what else is different.
    """

    index: int
    operator: str
    name: str
    shape: tuple[int, ...] = ()
    type: str = ""
    identical: bool = False
    signal_rms: float | None = None
    difference_rms: float | None = None
    difference_ratio: float | None = None
    difference_steps: float | None = None
    bound_rms: float | None = None
    exceeds: bool = False
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Parting:
    """Both runs, output by output in the file's order."""

    outputs: tuple[OutputReport, ...]

    @property
    def first(self) -> OutputReport | None:
        """Return the first output beyond what rounding accounts for."""
        return next((one for one in self.outputs if one.exceeds), None)

    @property
    def held(self) -> int:
        """Return how many outputs were held against a bound."""
        return sum(one.bound_rms is not None for one in self.outputs)


def part(a: Layers, b: Layers) -> Parting:
    """Hold two runs side by side.

    Args:
        a: The reference.
        b: What is held against it.

    Raises:
        EvenfleetError: They are not of one file, or were not fed the same sample.
    """
    if a.artifact != b.artifact:
        raise EvenfleetError(
            f"A runs another file than B as {a.variant}: {a.artifact[:12]} and {b.artifact[:12]}; expected devices that run "
            "the same release, 'evenfleet device show' tells which; for two files there is 'evenfleet diff A.tflite B.tflite'"
        )
    if (a.golden, a.sample) != (b.golden, b.sample):
        raise EvenfleetError("A and B were fed different golden samples; expected devices that run the same release")
    others = {(one.index, one.number): one for one in b.layers}
    pairs = [(one, others[one.index, one.number]) for one in a.layers if (one.index, one.number) in others]
    return Parting(tuple(_reports(pairs)))


def distance(a: Summary, b: Summary) -> float:
    """Return the estimated Euclidean distance between two tensors.

    >>> one = Summary(digest="0" * 16, min=0, max=1, mean=0, rms=1, projections=(1.0,) * 16)
    >>> other = Summary(digest="1" * 16, min=0, max=1, mean=0, rms=1, projections=(3.0,) * 16)
    >>> distance(one, other)
    2.0
    """
    if a.digest == b.digest:
        return 0.0
    return math.hypot(*(x - y for x, y in zip(a.projections, b.projections, strict=True))) / math.sqrt(PROJECTIONS)


def _reports(pairs: list[tuple[LayerOutput, LayerOutput]]) -> Iterator[OutputReport]:
    granted = FLOAT32_RATIO
    for one, other in pairs:
        granted = max(granted, _own_ratio(one))
        yield _report(one, other, granted)


def _report(one: LayerOutput, other: LayerOutput, granted_ratio: float) -> OutputReport:
    a, b = one.summary, other.summary
    if a is None or b is None:
        device, why = ("A", one.unseen) if a is None else ("B", other.unseen)
        remark = why or "no reason given"
        if (a is None) is not (b is None):
            remark = f"not seen on {device}: {remark}"
        return OutputReport(index=one.index, operator=one.operator, name=one.name, remark=remark)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return OutputReport(
            index=one.index,
            operator=one.operator,
            name=one.name,
            shape=one.shape,
            type=one.dtype,
            signal_rms=a.rms,
            exceeds=True,
            remark=f"{other.dtype} of shape {list(other.shape)} on B",
        )
    difference = distance(a, b) / math.sqrt(max(math.prod(one.shape), 1))
    bound = _bound_rms(one, a, granted_ratio)
    beyond = bound is not None and difference > CERTAIN * bound
    remark = "" if bound is not None else "whole numbers are not held against anything"
    if a.not_finite != b.not_finite:
        remark = f"{a.not_finite} values are not finite on A, {b.not_finite} on B"
    return OutputReport(
        index=one.index,
        operator=one.operator,
        name=one.name,
        shape=one.shape,
        type=one.dtype,
        identical=a.digest == b.digest,
        signal_rms=a.rms,
        difference_rms=difference,
        difference_ratio=difference / a.rms if a.rms else None,
        difference_steps=difference / one.step if one.step else None,
        bound_rms=bound,
        exceeds=beyond or a.not_finite != b.not_finite,
        remark=remark,
    )


def _own_ratio(one: LayerOutput) -> float:
    """Return what an operator's own types account for, over the signal's rms."""
    if one.step is not None and one.dtype in _BITS:
        return quantiser_ratio(_BITS[one.dtype])
    if one.integer_weights:
        return quantiser_ratio(_RUN_TIME_BITS)
    return FLOAT16_RATIO if one.dtype == "float16" else 0.0


def _bound_rms(one: LayerOutput, a: Summary, granted_ratio: float) -> float | None:
    """Return what may lie between the two: of a quantised tensor one step, whatever its signal is, if that is more."""
    if one.step is None and not one.dtype.startswith("float"):
        return None
    return max(granted_ratio * a.rms, one.step or 0.0, _SMALLEST)
