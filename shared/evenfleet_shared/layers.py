"""What a device tells of a model's operators, so that two devices' runs can be held side by side without sending tensors.

Defines the `result` of a `layers` command and the signs that its projections are made with. Leaves gathering to the agent and
comparing to the collector.

* Projection k of a tensor is the sum of its real values, each times its sign: +1 or -1, the same on every device. For two
  tensors a and b the expected square of the difference of their projections is the square of the distance ||a - b||
  (Johnson and Lindenstrauss, 1984; with signs: Achlioptas, 2003). So few numbers tell how far apart two tensors are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import MessageError
from evenfleet_shared.messages import Count, Digest, Finite, Name, Ratio, Text

PROJECTIONS: Final = 16
MAX_OUTPUTS: Final = 512
# As JSON; a message may be a little larger than that.
MAX_RESULT_BYTES: Final = 240_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What stands for the values of a tensor.

    `digest` is the start of the sha256 of its bytes as stored, little-endian. The rest is of its real values, those that
    are not finite counted by `not_finite` and taken as 0.
    """

    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
    not_finite: Count = 0
    min: Finite
    max: Finite
    mean: Finite
    rms: Annotated[float, Meta(ge=0.0, le=1e300)]
    projections: Annotated[tuple[Finite, ...], Meta(min_length=PROJECTIONS, max_length=PROJECTIONS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOutput:
    """One output of one operator, or with `index` -1 an input of the model as it was fed.

    `number` is the tensor's in the file. `step` is what one step of a quantised tensor is worth. `integer_weights`: the operator
    multiplies reals with integer weights, and so quantises its inputs while running. Without a `summary` it was not
    seen, and `unseen` says why.
    """

    index: Annotated[int, Meta(ge=-1, le=2**31)]
    operator: Annotated[str, Meta(max_length=100)]
    name: Annotated[str, Meta(max_length=100)]
    number: Count
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)] = ()
    dtype: Annotated[str, Meta(max_length=20)] = ""
    step: Annotated[float, Meta(gt=0.0, le=1e300)] | None = None
    integer_weights: bool = False
    summary: Summary | None = None
    unseen: Annotated[str, Meta(max_length=100)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The `result` of a `layers` command that was done: a model's operators in the order of the file, on one golden sample.

    `outputs` is how many outputs the file's operators have; `layers` holds fewer where that is too much for a message.
    `executed` and `delegated_ratio` are of this run, in which every tensor told of is kept, so that a delegate fuses less.
    """

    schema: Literal["layers/1"] = "layers/1"
    artifact: Digest
    golden: Digest
    variant: Name
    runtime: Annotated[str, Meta(max_length=40)]
    runtime_version: Annotated[str, Meta(max_length=100)]
    executed: Annotated[str, Meta(max_length=200)]
    delegated_ratio: Ratio | None = None
    sample: Count
    outputs: Count
    layers: Annotated[tuple[LayerOutput, ...], Meta(max_length=MAX_OUTPUTS + 16)]
    note: Text = ""


def signs(number: int, projection: int, count: int) -> bytes:
    """Return a tensor's signs for one projection, eight to a byte, the first in the lowest bit: set for +1, clear for -1.

    They are what SHAKE128 gives for ``layers/1 NUMBER PROJECTION``, which every language has.

    Args:
        number: The tensor's in the file; an input of the model has that of its tensor too.
        projection: From 0.
        count: How many signs.

    >>> signs(3, 0, 20).hex()
    '34273f'
    """
    return hashlib.shake_128(f"layers/1 {number} {projection}".encode()).digest((count + 7) // 8)


def decode(result: object) -> Layers:
    """Return what a reply's `result` says.

    Raises:
        MessageError: It is no such result.
    """
    try:
        return msgspec.convert(result, Layers)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MessageError("invalid", f"not a result of layers: {error}") from None
