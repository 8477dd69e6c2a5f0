"""Every message between a device and the collector: its fields, their bounds, and how bytes become one.

A message is defined once: these frozen types are what goes on the wire, what is validated, what the database's JSON
holds and what the API returns. `docs/protocol.md` is generated from them.

* Every uplink message starts with a `Header`, which can be decoded alone, so that even a message whose body is
  refused can be refused by its number.
* Decoding gives a value or a `MessageError`, nothing else, whatever the bytes.
* Unknown fields are ignored (a newer agent may say more); an unknown schema is refused by name.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple, Union

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import MessageError

MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_MS: Final = 1e9

# `$` alone would let a trailing newline through.
DeviceId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="sha256, hexadecimal")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$(?!\n)")]
Text = Annotated[str, Meta(max_length=500)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seq = Annotated[int, Meta(ge=1, le=2**53)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=MAX_MS)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e12)]
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]

LatencyMetric = Literal["latency"]
NoiseClass = Literal["bit-exact", "within-rounding", "same-decision", "divergent"]
MemoryKind = Literal["after_load", "peak_rss", "arena", "gpu"]


class Incarnation(NamedTuple):
    """One life of a device's outbox: numbering starts anew with each.

    `counter` orders the lives of one device; `random` tells two lives apart that were given the same counter,
    because the file that keeps it was lost.
    """

    counter: Annotated[int, Meta(ge=1, le=2**31)]
    random: Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}$(?!\n)")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What every uplink message starts with.

    `seq` counts what this incarnation put into its outbox, from 1. `floor` is the lowest of them that it still holds:
    the collector stops waiting for what is missing below it. A `state` message is not numbered and repeats the last seq.
    """

    schema: Annotated[str, Meta(max_length=40)]
    device: DeviceId
    incarnation: Incarnation
    seq: Count
    floor: Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """Latencies as counts of geometric buckets, mergeable by adding counts; see `evenfleet_shared.sketch`."""

    relative_accuracy: Annotated[float, Meta(gt=0.0, lt=1.0)]
    zero: Count = 0
    bins: Annotated[tuple[tuple[Annotated[int, Meta(ge=-100_000, le=100_000)], Seq], ...], Meta(max_length=4096)] = ()

    def __post_init__(self) -> None:
        indexes = [index for index, _ in self.bins]
        if any(a >= b for a, b in pairwise(indexes)):
            raise ValueError("sketch bins must be in strictly rising order")
        # exp() of more is no number any more, and whoever asks for a quantile would fall over it.
        if indexes and indexes[-1] * math.log1p(2.0 * self.relative_accuracy / (1.0 - self.relative_accuracy)) > 700.0:
            raise ValueError("a sketch bin lies beyond the largest number")

    @property
    def n(self) -> int:
        """Return how many values were counted."""
        return self.zero + sum(count for _, count in self.bins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Steady single-stream latency of one window, invoke alone.

    A sample may time several inferences in a row (`inferences_per_sample`): its value is then their mean.
    `left_out_ms` is the time, of all samples together, that was left out of them because the process had no processor to
    run on: 0 but for devices that share a machine and are told to do so. `init_ms` (load and allocate) and `first_ms` (first inference) are of the runner that measured the window.
    """

    n: Seq
    inferences_per_sample: Seq = 1
    left_out_ms: Milliseconds = 0.0
    init_ms: Milliseconds
    first_ms: Milliseconds
    min_ms: Milliseconds
    mean_ms: Milliseconds
    max_ms: Milliseconds
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p95_ms: Milliseconds
    p99_ms: Milliseconds
    p99_qualified: bool
    sketch: Sketch

    def __post_init__(self) -> None:
        ladder = (self.min_ms, self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms, self.max_ms)
        if any(low > high for low, high in pairwise(ladder)):
            raise ValueError("latency quantiles must not fall from min_ms to max_ms")
        if self.sketch.n != self.n:
            raise ValueError(f"sketch counts {self.sketch.n} values, latency.n says {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceedance:
    """How many of a window's samples were above the limit that `desired` named (`limit_revision` tells which)."""

    metric: LatencyMetric = "latency"
    limit_ms: Milliseconds
    limit_revision: Count
    exceed: Count
    n: Seq

    def __post_init__(self) -> None:
        if self.exceed > self.n:
            raise ValueError(f"exceed is {self.exceed}, more than n = {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far outputs are from the release's reference outputs, on the golden set.

    `lsb_max` is the largest difference in steps of the variant's own output quantisation, where it has one.
    """

    noise_class: NoiseClass
    top1_ratio: Ratio
    max_abs_diff: Annotated[float, Meta(ge=0.0, le=1e300)]
    rms_diff: Annotated[float, Meta(ge=0.0, le=1e300)]
    lsb_max: Annotated[float, Meta(ge=0.0, le=1e300)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Outcome of one pass over the golden set.

    `tp`, `fp`, `fn` hold one count per class (true negatives follow from n). `discordant_b` counts samples that the
    reference got right and this run wrong, `discordant_c` the reverse. `hamming` is the number of samples whose
    correctness differs from the pass before, none at the first pass of a runner.
    """

    golden: Digest
    n: Seq
    errors: Count
    tp: Annotated[tuple[Count, ...], Meta(min_length=2, max_length=1001)]
    fp: Annotated[tuple[Count, ...], Meta(min_length=2, max_length=1001)]
    fn: Annotated[tuple[Count, ...], Meta(min_length=2, max_length=1001)]
    discordant_b: Count
    discordant_c: Count
    hamming: Count | None
    prediction_digest: Digest
    agreement: Agreement

    def __post_init__(self) -> None:
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError("tp, fp and fn must have one count per class each")
        if not sum(self.fp) == sum(self.fn) == self.errors or sum(self.tp) + self.errors != self.n:
            raise ValueError("tp, fp and fn do not add up to n and errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """One kind of memory and how it was read."""

    kind: MemoryKind
    bytes: Count
    method: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Header):
    """One report of one device for one variant of a release.

    `ended_uptime_s` is the device's monotonic clock at the end of the window; `ended_wall_s` is its wall clock
    (seconds since 1970), which may be wrong by any amount and orders nothing.
    """

    schema: Literal["window/1"] = "window/1"
    seq: Seq
    release: Digest
    variant: Name
    artifact: Digest
    context: Digest
    length_s: Seconds
    ended_uptime_s: Seconds
    ended_wall_s: Finite
    runner_start: Count
    throttled: bool | None = None
    latency: Latency | None = None
    exceedances: Annotated[tuple[Exceedance, ...], Meta(max_length=16)] = ()
    accuracy: Accuracy | None = None
    memory: Annotated[tuple[MemoryReading, ...], Meta(max_length=8)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a measurement depended on beside the model. Absent (None) is not zero.

    `delegated_ratio` is the share of the graph's operators that the accelerator took, read from the loaded graph.
    """

    device_class: Name
    runtime: Name
    runtime_version: Text
    accelerator_requested: Name
    accelerator_executed: Name
    delegated_ratio: Ratio | None
    fallback_reason: Text | None
    threads: Count
    governor: Text | None
    power_mode: Text | None
    os: Text
    kernel: Text
    machine: Text
    cpu_model: Text | None
    cpu_count: Count
    memory_total_bytes: Count
    python: Text
    attributes: Annotated[dict[Name, Text], Meta(max_length=32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(Header):
    """A run context, sent once per digest; windows name it by that digest."""

    schema: Literal["context/1"] = "context/1"
    seq: Seq
    digest: Digest
    run: RunContext

    def __post_init__(self) -> None:
        found = context_digest(self.run)
        if found != self.digest:
            raise ValueError(f"digest is {self.digest[:12]}…, the run context's own is {found[:12]}…")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Messages that the outbox gave up before they were receipted: numbers from `first_seq` to `last_seq`."""

    incarnation: Incarnation
    first_seq: Seq
    last_seq: Seq
    reason: Name

    def __post_init__(self) -> None:
        if self.last_seq < self.first_seq:
            raise ValueError(f"last_seq {self.last_seq} is below first_seq {self.first_seq}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Header):
    """Something that happened on the device: a release installed or refused, a runner that died, a loss."""

    schema: Literal["event/1"] = "event/1"
    seq: Seq
    event: Literal["release-installed", "release-refused", "variant-refused", "runner-failed", "loss"]
    happened_uptime_s: Seconds
    happened_wall_s: Finite
    release: Digest | None = None
    variant: Name | None = None
    detail: Text = ""
    losses: Annotated[tuple[Loss, ...], Meta(max_length=256)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State(Header):
    """Birth and death of a device's session: retained, unnumbered; the broker sends `lost` as the will.

    `session` names the connection, so that the will of an older one is not taken for the death of this one. `formats`
    are those that the device's runtime can load: it is told to run nothing else.
    """

    schema: Literal["state/1"] = "state/1"
    status: Literal["birth", "sleeping", "gone", "lost"]
    session: Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}$(?!\n)")]
    device_class: Name
    agent_version: Text
    formats: Annotated[tuple[Literal["tflite", "saved_model"], ...], Meta(max_length=8)] = ()
    desired_revision: Count
    contexts: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit that the agent counts samples against; `revision` grows with every change of the value."""

    metric: LatencyMetric = "latency"
    limit_ms: Milliseconds
    revision: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredVariant:
    """One variant to run, and the limits to count against."""

    name: Name
    limits: Annotated[tuple[Limit, ...], Meta(max_length=16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What a device should run; retained. An agent ignores a revision below the one it has.

    `release` is the sha256 of the manifest, which is fetched like every artifact: `GET <artifacts_url>/<sha256>`.
    """

    schema: Literal["desired/1"] = "desired/1"
    device: DeviceId
    revision: Seq
    release: Digest | None
    variants: Annotated[tuple[DesiredVariant, ...], Meta(max_length=64)] = ()
    artifacts_url: Annotated[str, Meta(pattern=r"^https?://", max_length=500)]
    window_length_s: Annotated[float, Meta(ge=0.1, le=86_400.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A numbered message that the collector will never take; `reason` is the dead letter's."""

    seq: Seq
    reason: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class IncarnationReceipt:
    """What the collector has on disk of one incarnation.

    Everything up to and including `contiguous` is settled (0: nothing). `gaps` are the inclusive ranges above it that
    are missing below the highest number seen.
    """

    incarnation: Incarnation
    contiguous: Count
    gaps: Annotated[tuple[tuple[Seq, Seq], ...], Meta(max_length=256)] = ()
    refused: Annotated[tuple[Refusal, ...], Meta(max_length=256)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Cumulative: the latest one says everything. `last_counter` is the highest incarnation counter known for the device."""

    schema: Literal["receipt/1"] = "receipt/1"
    device: DeviceId
    last_counter: Count
    incarnations: Annotated[tuple[IncarnationReceipt, ...], Meta(max_length=64)] = ()


Uplink = Union[Window, Context, Event, State]
Numbered = Union[Window, Context, Event]
Downlink = Union[Desired, Receipt]

# Which types a topic's kind may carry, by schema.
SCHEMAS: Final[dict[str, dict[str, type[Any]]]] = {
    "window": {"window/1": Window},
    "backfill": {"window/1": Window},
    "context": {"context/1": Context},
    "event": {"event/1": Event},
    "state": {"state/1": State},
    "desired": {"desired/1": Desired},
    "receipt": {"receipt/1": Receipt},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _SchemaOnly:
    schema: Annotated[str, Meta(max_length=40)]


def context_digest(run: RunContext) -> str:
    """Return the name of a run context: the sha256 of its canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(run, order="sorted")).hexdigest()


def encode(message: Uplink | Downlink) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def with_floor(payload: bytes, floor: int) -> bytes:
    """Return an encoded uplink message with its `floor` brought up to date.

    An outbox writes a message once and sends it later, when it may have let go of older ones.

    Raises:
        MessageError: These are not the bytes that `encode` returned: the disk that they were on is failing.
    """
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Any])
        fields["floor"] = floor
        return msgspec.json.encode(fields)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError("encoding", str(error)[:300]) from None


def decode_header(payload: bytes) -> Header:
    """Decode the header of an uplink message, whatever its body holds.

    Raises:
        MessageError: Too large, not JSON or MessagePack, or not a header.
    """
    header: Header = _decode(Header, payload)
    return header


def decode(kind: str, payload: bytes) -> Any:
    """Decode a message that came on a topic of `kind`.

    Returns:
        One of the types that `SCHEMAS` names for the kind.

    Raises:
        MessageError: With reason ``size``, ``encoding``, ``schema`` or ``invalid``.
    """
    schema = _decode(_SchemaOnly, payload).schema
    try:
        message_type = SCHEMAS[kind][schema]
    except KeyError:
        known = ", ".join(SCHEMAS.get(kind, {})) or "nothing"
        raise MessageError("schema", f"a {kind} topic carries {known}, found {schema!r}") from None
    return _decode(message_type, payload)


def _decode(message_type: Any, payload: bytes) -> Any:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError("size", f"{len(payload)} bytes, at most {MAX_MESSAGE_BYTES}")
    first = payload[:1]
    if first == b"{":
        decoder: Any = _json_decoder(message_type)
    elif b"\x80" <= first <= b"\x8f" or first in (b"\xde", b"\xdf"):
        decoder = _msgpack_decoder(message_type)
    else:
        raise MessageError("encoding", f"neither a JSON object nor a MessagePack map, starts with {first!r}")
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise MessageError("invalid", str(error)[:300]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise MessageError("encoding", str(error)[:300]) from None


# Built when first needed: an agent decodes two of these types, and each decoder costs memory there.
@cache
def _json_decoder(message_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(message_type)


@cache
def _msgpack_decoder(message_type: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(message_type)
