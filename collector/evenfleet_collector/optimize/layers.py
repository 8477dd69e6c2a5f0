"""Two graphs side by side: which operators are the same, how much each may differ, and which is the first to differ more.

Pure. Leaves reading files to `dissect`, running them to `walk`.

The error that an operator *introduces* is its output in B minus what A's operator gives for **B's** inputs; what it
*inherits* is the rest of the difference between A's and B's tensors. Only what is introduced is held against a bound.

* A bound is relative to the signal, and follows from the types that A and B store, not from the scales that they chose: a
  scale that is too coarse for its tensor exceeds the bound, and does not widen it.
* Weights that differ though they are stored alike, type and scales, are other weights: they widen no bound.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

# A tensor whose peak is at most so many times its rms is one that a quantiser of few bits serves well. Activations behind a
# ReLU, mostly zeros, reach 10; what reaches more wastes bits on its outliers.
PEAK_TO_RMS: Final = 16.0
# Sums in another order: some hundred units in the last place of float32.
FLOAT32_RATIO: Final = 1e-4
# Rounding to 11 bits costs at most 2^-11 of each weight.
FLOAT16_RATIO: Final = 2.0**-10
# Operators that quantise their inputs at run time where their weights are integers and their inputs are not.
_DYNAMIC_BITS: Final = 8
# Kernels for 16 bits that look the function up in a table of 513 points and interpolate.
_TABLE_RATIO: Final = 2.0**-10
_TABLE_KINDS: Final = ("SOFTMAX", "LOGISTIC", "TANH", "EXP", "RSQRT", "GELU")
_BITS: Final = {"INT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16, "INT2": 2}

Cause = Literal["other-weights", "weights", "saturation", "step", "arithmetic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A constant that an operator multiplies with.

    Attributes:
        type: How it is stored, as TFLite names it.
        digest: Of the values, as they are once dequantised.
        stored_as: Of type, shape and scales.
    """

    type: str
    digest: str
    stored_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a file.

    Attributes:
        position: Where it stands in the file, from 0.
        kind: As TFLite names it, such as ``CONV_2D``.
        name: Of its first output.
        shape: Of its first output.
        type: Of its first output.
        step: What one step of the first output is worth; None for floats.
        weights: Its weights; None where it has none.
        integer_inputs: Its first input that is no constant is quantised.
    """

    position: int
    kind: str
    name: str
    shape: tuple[int, ...]
    type: str
    step: float | None = None
    weights: Weights | None = None
    integer_inputs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What an operator's introduced error is held against, and what it is made of; all ratios to the signal's rms."""

    ratio: float
    output_ratio: float = 0.0
    weights_ratio: float = 0.0
    inputs_ratio: float = 0.0
    arithmetic_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One operator of B, beside the same one of A.

    Attributes:
        position: In B's file; -1 for the input itself.
        kind: Such as ``CONV_2D``; ``INPUT`` for the conversion of the samples.
        name: Of its output in B.
        counterpart: The name in A; None for a conversion that A does not have.
        type: Of its output in B.
        signal_rms: Of what A's operator gives for B's inputs.
        introduced_rms: Of B's output minus that.
        introduced_max: The largest of it.
        introduced_ratio: The larger of: all of the introduced error over all of the signal, and the median over channels.
        bound: What `introduced_ratio` is held against.
        rounding_rms: What rounding to B's steps costs whatever is computed, step/√12; None for floats.
        saturated_ratio: The share of values that stand at the end of B's range, with the signal beyond it by a step.
        weights_error_ratio: How far B's weights are from A's, over A's: the median over those that are not zero in A.
        other_weights: They differ though they are stored alike.
        total_rms: Of B's tensor minus A's, inherited error included; None where A has no such tensor.
        total_ratio: Over the rms of A's tensor.
        sensitivity_ratio: How far the output of A moves, over its rms, with this operator alone as B has it.
        changed: Of how many samples the decision changes with that.
    """

    position: int
    kind: str
    name: str
    counterpart: str | None
    type: str
    signal_rms: float
    introduced_rms: float
    introduced_max: float
    introduced_ratio: float
    bound: Bound
    rounding_rms: float | None = None
    saturated_ratio: float = 0.0
    weights_error_ratio: float | None = None
    other_weights: bool = False
    total_rms: float | None = None
    total_ratio: float | None = None
    sensitivity_ratio: float | None = None
    changed: int | None = None

    @property
    def exceeds(self) -> bool:
        """Return whether it introduces more than its bound."""
        return not self.introduced_ratio <= self.bound.ratio

    @property
    def sqnr_db(self) -> float | None:
        """Return the signal over the introduced error, in dB; None where there is no error, or no signal."""
        if not 0.0 < self.introduced_ratio < math.inf:
            return None
        return -20.0 * math.log10(self.introduced_ratio)

    @property
    def cause(self) -> Cause | None:
        """Return what most of an error beyond its bound comes from; None where it does not exceed it.

        Weights are told first, for wrong ones bring the others with them.
        """
        if not self.exceeds:
            return None
        if self.other_weights:
            return "other-weights"
        if self.weights_error_ratio is not None and self.weights_error_ratio > self.bound.ratio:
            return "weights"
        if self.saturated_ratio > 0.001:
            return "saturation"
        # The ratio may be that of the median channel, which the rounding of all of the tensor is not: half is most of it.
        if self.rounding_rms is not None and self.rounding_rms >= 0.5 * self.introduced_rms:
            return "step"
        return "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """A walk through both files.

    Attributes:
        samples: How many were fed.
        layers: In B's order.
        only_in_a, only_in_b: Operators without a counterpart, as ``KIND name``.
        output_rms, output_ratio: Of B's output minus A's, and over the rms of A's.
        changed: Samples whose decision differs between A and B.
        accuracy_a, accuracy_b: Shares of the samples told right; None without labels.
    """

    samples: int
    layers: tuple[LayerReport, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    output_rms: float
    output_ratio: float
    changed: int
    accuracy_a: float | None = None
    accuracy_b: float | None = None

    @property
    def first(self) -> LayerReport | None:
        """Return the first operator that exceeds its bound."""
        return next((layer for layer in self.layers if layer.exceeds), None)


def matched(a: Sequence[Operator], b: Sequence[Operator]) -> tuple[tuple[int, int], ...]:
    """Return which operators are the same: positions in `a` and in `b`, in the order of `b`.

    By name, kind and shape first. What is left is matched in order by kind and shape, between the same neighbours that have
    been matched by name: converters number tensors anew when they add some.

    >>> conv = Operator(position=0, kind="CONV_2D", name="x", shape=(1, 4), type="FLOAT32")
    >>> matched([conv], [Operator(position=0, kind="CONV_2D", name="x1", shape=(1, 4), type="INT8")])
    ((0, 0),)
    """
    pairs: dict[int, int] = {}
    by_name = {(one.name, one.kind, one.shape): place for place, one in enumerate(a)}
    for place, one in enumerate(b):
        found = by_name.pop((one.name, one.kind, one.shape), None)
        if found is not None:
            pairs[place] = found
    left_a = _left(a, {of_a: number for number, of_a in enumerate(pairs.values())})
    left_b = _left(b, {of_b: number for number, of_b in enumerate(pairs)})
    matcher = difflib.SequenceMatcher(None, [key for _, key in left_a], [key for _, key in left_b], autojunk=False)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            pairs[left_b[block.b + offset][0]] = left_a[block.a + offset][0]
    return tuple((pairs[place], place) for place in sorted(pairs))


def bound(a: Operator | None, b: Operator) -> Bound:
    """Return how much `b` may differ from `a`, given the same inputs, relative to the signal.

    A quantiser of n bits over a range of ± `PEAK_TO_RMS` times the rms rounds with an rms of
    ``2 · PEAK_TO_RMS / 2^n / √12`` of the signal. That is granted once for an output of integers, once for weights of
    integers, and once for inputs that are quantised at run time; squares add, for the errors are independent.

    Args:
        a: The operator of the reference; None for a conversion, which should give what it is given.
        b: The operator under test.

    >>> b = Operator(position=0, kind="ADD", name="x", shape=(1, 4), type="INT8", step=0.1)
    >>> round(bound(None, b).ratio, 4)
    0.0362
    """
    reference = b if a is None else a
    sides = [b] if a is None or (a.type, a.step) == (b.type, b.step) else [a, b]
    output = _combined(quantiser_ratio(_BITS[side.type]) for side in sides if side.type in _BITS)
    weights, arithmetic = 0.0, FLOAT32_RATIO
    stored = [side.weights for side in (reference, b) if side.weights is not None]
    if len({each.digest for each in stored}) > 1 and not other_weights(reference, b):
        weights = _combined(quantiser_ratio(_BITS[each.type]) for each in stored if each.type in _BITS)
        if any(each.type == "FLOAT16" for each in stored):
            arithmetic = FLOAT16_RATIO
    if b.kind in _TABLE_KINDS and "INT16" in (reference.type, b.type):
        arithmetic = max(arithmetic, _TABLE_RATIO)
    inputs = _combined(quantiser_ratio(_DYNAMIC_BITS) for side in (reference, b) if _at_run_time(side))
    return Bound(
        ratio=_combined((output, weights, inputs)) + arithmetic,
        output_ratio=output,
        weights_ratio=weights,
        inputs_ratio=inputs,
        arithmetic_ratio=arithmetic,
    )


def other_weights(a: Operator, b: Operator) -> bool:
    """Say whether weights differ that are stored alike, type and scales: no quantiser makes that of the same weights."""
    if a.weights is None or b.weights is None:
        return False
    return a.weights.digest != b.weights.digest and a.weights.stored_as == b.weights.stored_as


def quantiser_ratio(bits: int) -> float:
    """Return what rounding to `bits` costs of a tensor whose peak is `PEAK_TO_RMS` times its rms, over that rms.

    >>> [round(quantiser_ratio(bits), 5) for bits in (4, 8, 16)]
    [0.57735, 0.03608, 0.00014]
    """
    return 2.0 * PEAK_TO_RMS / 2.0**bits / math.sqrt(12.0)


def _combined(ratios: Iterable[float]) -> float:
    return math.sqrt(sum(ratio * ratio for ratio in ratios))


def _at_run_time(operator: Operator) -> bool:
    weights = operator.weights
    return weights is not None and weights.type in _BITS and not operator.integer_inputs and operator.type == "FLOAT32"


def _left(operators: Sequence[Operator], known: dict[int, int]) -> list[tuple[int, tuple[int, str, tuple[int, ...]]]]:
    """Return the places that are not matched yet, each with what it must share: the match before it, kind and shape."""
    before = -1
    left = []
    for place, one in enumerate(operators):
        if place in known:
            before = known[place]
        else:
            left.append((place, (before, one.kind, one.shape)))
    return left
