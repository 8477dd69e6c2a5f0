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
from dataclasses import MISSING, dataclass, fields, is_dataclass
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
ComparabilityKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
Seq = Annotated[int, Meta(ge=1, le=2**53)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=MAX_MS)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e12)]
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]

LatencyMetric = Literal["latency"]
NoiseClass = Literal["bit-exact", "within-rounding", "same-decision", "divergent"]
MemoryKind = Literal["after_load", "peak_rss", "arena", "gpu"]
Task = Literal["classification", "multi-label", "regression", "detection", "segmentation", "embedding", "agreement"]
EventName = Literal[
    "release-installed",
    "release-refused",
    "variant-refused",
    "runner-failed",
    "loss",
    "outbox-damaged",
    "clock-jumped",
    "budget-reached",
]
CommandName = Literal["measure", "restart-runner", "layers"]
CorrelationId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]


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
class Claim:
    """What the samples of a window allow to be said about one quantile `q` of the latency.

    `low_ms` to `high_ms` is a distribution-free 95 % interval. `at_most_ms` is an upper bound that holds with 99 %, by
    MLPerf's early-stopping rule. None where there are too few samples; `runs_needed` is then what the rule takes.
    """

    q: Ratio
    low_ms: Milliseconds | None = None
    high_ms: Milliseconds | None = None
    at_most_ms: Milliseconds | None = None
    runs_needed: Seq | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Steady single-stream latency of one window, invoke alone.

    A sample may time several inferences in a row (`inferences_per_sample`): its value is then their mean.
    `left_out_ms` is the time, of all samples together, that was left out of them because the process had no processor to
    run on: 0 but for devices that share a machine and are told to do so. `init_ms` (load and allocate) and `first_ms` (first inference) are of the runner that measured the window.
    `claims` has one entry per quantile; `p99_qualified` is that of the p99, for readers that want no more.
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
    claims: Annotated[tuple[Claim, ...], Meta(max_length=8)] = ()

    def __post_init__(self) -> None:
        _check_latency(self)


def _check_latency(latency: Latency | AppLatency) -> None:
    ladder = (latency.min_ms, latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    if any(low > high for low, high in pairwise(ladder)):
        raise ValueError("latency quantiles must not fall from min_ms to max_ms")
    if latency.sketch.n != latency.n:
        raise ValueError(f"sketch counts {latency.sketch.n} values, latency.n says {latency.n}")


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

    A sample is right or wrong whatever the task, which says by what (`evenfleet_agent.runner.tasks`): so `errors`,
    `discordant_b` (samples that the reference got right and this run wrong), `discordant_c` (the reverse) and `hamming`
    (samples whose correctness differs from the pass before, none at the first pass of a runner) mean the same for all.
    `tp`, `fp`, `fn` hold one count per class, of samples (true negatives follow from n), of a detection's objects or of a
    segmentation's pixels; tasks without classes leave them empty.
    `score` is the task's own metric by its usual name, where that is not the share of right samples: `mAP`, for example.
    """

    golden: Digest
    task: Task = "classification"
    n: Seq
    errors: Count
    tp: Annotated[tuple[Count, ...], Meta(max_length=1001)] = ()
    fp: Annotated[tuple[Count, ...], Meta(max_length=1001)] = ()
    fn: Annotated[tuple[Count, ...], Meta(max_length=1001)] = ()
    discordant_b: Count
    discordant_c: Count
    hamming: Count | None
    prediction_digest: Digest
    agreement: Agreement
    metric: Name | None = None
    score: Finite | None = None

    def __post_init__(self) -> None:
        if self.errors > self.n:
            raise ValueError(f"errors is {self.errors}, more than n = {self.n}")
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError("tp, fp and fn must have one count per class each")
        if self.task != "classification":
            return
        if len(self.tp) < 2:
            raise ValueError("tp, fp and fn of a classification must have two classes at least")
        # A sample whose outputs are no numbers is given no class, so it is nobody's false positive.
        if not sum(self.fp) <= sum(self.fn) == self.errors or sum(self.tp) + self.errors != self.n:
            raise ValueError("tp, fp and fn do not add up to n and errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """One kind of memory and how it was read."""

    kind: MemoryKind
    bytes: Count
    method: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One part of a request's way through the device, timed apart from `invoke`.

    `preprocess` brings a sample into the form of the model's inputs, `postprocess` its outputs into real numbers.
    `queue` is how long after it was due a request was begun, which only a cadence has.
    """

    name: Literal["preprocess", "queue", "postprocess"]
    n: Seq
    p50_ms: Milliseconds
    p95_ms: Milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the machine was while the window was measured. Absent (None) is not zero.

    `steal_ratio` is the share of processor time that the hypervisor gave to others; the pressures are the kernel's (PSI,
    `some`): the share of time in which something waited for processor, memory or disk. `frequency_mhz` is the mean over
    the processors, `temperature_c` that of the hottest zone, both at the window's end. `gpu_use_ratio` is the share of the
    last moments in which the busiest GPU ran something (NVML).
    """

    steal_ratio: Ratio | None = None
    cpu_pressure_ratio: Ratio | None = None
    memory_pressure_ratio: Ratio | None = None
    io_pressure_ratio: Ratio | None = None
    frequency_mhz: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None
    temperature_c: Annotated[float, Meta(ge=-273.0, le=1000.0)] | None = None
    under_voltage: bool | None = None
    gpu_use_ratio: Ratio | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one inference takes beside its time.

    `cpu_ms` is processor time of the whole runner per inference. `energy_mj` is of the machine's counter that
    `energy_method` names, per inference, with what else ran. `macs` are the model's multiply-accumulates.
    `predicted_ms` is what this device's other models let expect of the p50, from size and operations; `predicted_error_ratio`
    is how far such a prediction is off for those (leave-one-out, median).
    """

    cpu_ms: Milliseconds | None = None
    energy_mj: Annotated[float, Meta(ge=0.0, le=1e12)] | None = None
    energy_method: Text | None = None
    macs: Count | None = None
    predicted_ms: Milliseconds | None = None
    predicted_error_ratio: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """How the runner's memory has grown since it was started: Theil–Sen's slope over the windows, 95 % interval."""

    windows: Seq
    bytes_per_hour: Finite
    low_bytes_per_hour: Finite
    high_bytes_per_hour: Finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """The first minute of uninterrupted load against the last one; temperature and frequency at both ends.

    `span_s` is what is taken for a minute: a tenth of the load where that is shorter.
    """

    duration_s: Seconds
    span_s: Seconds
    inferences: Seq
    first_p50_ms: Milliseconds
    last_p50_ms: Milliseconds
    slowdown_ratio: Annotated[float, Meta(ge=0.0, le=1e6)]
    first_temperature_c: float | None = None
    last_temperature_c: float | None = None
    first_frequency_mhz: float | None = None
    last_frequency_mhz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Inferences back to back without a pause, `batch` samples at a time: MLPerf's offline scenario."""

    batch: Seq
    inferences: Seq
    duration_s: Seconds
    per_s: Annotated[float, Meta(ge=0.0, le=1e12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The way to the broker since the window before: round trips of the acknowledgements, bytes at the socket.

    `unacknowledged_ratio` is the share of publishes that the broker refused, or whose session died before they were
    acknowledged.
    """

    round_trips: Count
    rtt_p50_ms: Milliseconds | None = None
    rtt_max_ms: Milliseconds | None = None
    throughput_bytes_per_s: Annotated[float, Meta(ge=0.0, le=1e12)] | None = None
    unacknowledged_ratio: Ratio | None = None
    sent_bytes: Count = 0
    received_bytes: Count = 0
    sessions: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What the agent itself took since the window before: supervisor and runners, measuring included.

    `cpu_ratio` is the share of one processor; `budget_ratio` is what it may take, and `stretched_ratio` how many times the
    window's length had to be stretched to hold it (1: not).
    """

    length_s: Seconds
    supervisor_cpu_ratio: Annotated[float, Meta(ge=0.0, le=1e4)]
    cpu_ratio: Annotated[float, Meta(ge=0.0, le=1e4)]
    budget_ratio: Annotated[float, Meta(ge=0.0, le=1e4)]
    stretched_ratio: Annotated[float, Meta(ge=1.0, le=1e6)] = 1.0
    supervisor_rss_bytes: Count
    outbox_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Header):
    """One report of one device for one variant of a release.

    `ended_uptime_s` is the device's monotonic clock at the end of the window; `ended_wall_s` is its wall clock
    (seconds since 1970), which may be wrong by any amount and orders nothing. `comparability` is that of the run context
    (see there), so that windows can be told apart before their context has arrived. `mode` is how inferences were called:
    one after another, or one every so often (`cadence_ms`), for a processor that idles in between is another one;
    `late_starts` counts those that were due while the one before still ran.
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
    comparability: ComparabilityKey | None = None
    mode: Literal["steady", "cadence"] = "steady"
    cadence_ms: Milliseconds | None = None
    late_starts: Count | None = None
    phases: Annotated[tuple[Phase, ...], Meta(max_length=3)] = ()
    conditions: Conditions | None = None
    cost: Cost | None = None
    leak: Leak | None = None
    sustained: Sustained | None = None
    throughput: Throughput | None = None
    network: Network | None = None
    overhead: Overhead | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryLatency:
    """The latency samples of several windows together; as `Latency`, without what a union of windows can't say."""

    n: Seq
    inferences_per_sample: Seq = 1
    min_ms: Milliseconds
    mean_ms: Milliseconds
    max_ms: Milliseconds
    sketch: Sketch

    def __post_init__(self) -> None:
        if self.min_ms > self.max_ms:
            raise ValueError("latency must not fall from min_ms to max_ms")
        if self.sketch.n != self.n:
            raise ValueError(f"sketch counts {self.sketch.n} values, latency.n says {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryAccuracy:
    """The passes over the golden set of several windows together.

    The set is the same in each, so `errors` of `n` (all passes added up) say how often it was wrong, but are no more
    evidence than one pass where outputs do not change: `changed` passes differed from the one before them. `last` is the
    newest pass, whole.
    """

    passes: Seq
    n: Seq
    errors: Count
    errors_max: Count
    changed: Count
    last: Accuracy

    def __post_init__(self) -> None:
        if self.errors > self.n:
            raise ValueError(f"errors is {self.errors}, more than n = {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Header):
    """What is left of several windows of one variant that had to give way on the device before they were published.

    It stands for the windows numbered `first_seq` to `last_seq` of the incarnation `summarised` that are of this
    `release`, `variant` and `context`; the ledger tells of each of them by number, with the reason `summarised`. It is
    refused (`overlaps`) where one of them has arrived. Counts and sketches are sums, `memory` is the highest of each kind
    and method. A summary is history: no verdict is made of it.
    """

    schema: Literal["summary/1"] = "summary/1"
    seq: Seq
    summarised: Incarnation
    first_seq: Seq
    last_seq: Seq
    windows: Seq
    release: Digest
    variant: Name
    artifact: Digest
    context: Digest
    mode: Literal["steady", "cadence"] = "steady"
    cadence_ms: Milliseconds | None = None
    comparability: ComparabilityKey | None = None
    measured_s: Seconds
    first_ended_uptime_s: Seconds
    last_ended_uptime_s: Seconds
    first_ended_wall_s: Finite
    last_ended_wall_s: Finite
    throttled_windows: Count = 0
    latency: SummaryLatency | None = None
    exceedances: Annotated[tuple[Exceedance, ...], Meta(max_length=16)] = ()
    accuracy: SummaryAccuracy | None = None
    memory: Annotated[tuple[MemoryReading, ...], Meta(max_length=8)] = ()

    def __post_init__(self) -> None:
        if not self.windows <= self.last_seq - self.first_seq + 1:
            raise ValueError(f"{self.windows} windows cannot be numbered {self.first_seq} to {self.last_seq}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLatency:
    """How long an application's calls took, those left out that raised. Quantiles are the sketch's."""

    n: Seq
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
        _check_latency(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppInput:
    """One input of an application's sampled calls, by its place among them.

    `n` counts elements that were looked at, `nan` and `infinite` those of them that are no finite numbers; the rest is of
    the finite ones, and None where there was none.
    """

    index: Annotated[int, Meta(ge=0, le=15)]
    n: Count
    nan: Count = 0
    infinite: Count = 0
    mean: Finite | None = None
    std: Annotated[float, Meta(ge=0.0, le=1e300)] | None = None
    min: Finite | None = None
    max: Finite | None = None

    def __post_init__(self) -> None:
        if self.nan + self.infinite > self.n:
            raise ValueError(f"nan and infinite are {self.nan + self.infinite}, more than n = {self.n}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min}, above max = {self.max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntropy:
    """How undecided outputs were, in nats: 0 is certain, ln(classes) knows nothing. Quantiles are the sketch's."""

    n: Seq
    mean_nats: Annotated[float, Meta(ge=0.0, le=1e3)]
    p50_nats: Annotated[float, Meta(ge=0.0, le=1e3)]
    p95_nats: Annotated[float, Meta(ge=0.0, le=1e3)]
    max_nats: Annotated[float, Meta(ge=0.0, le=1e3)]
    sketch: Sketch

    def __post_init__(self) -> None:
        if not self.p50_nats <= self.p95_nats <= self.max_nats:
            raise ValueError("entropy quantiles must not fall from p50_nats to max_nats")
        if self.sketch.n != self.n:
            raise ValueError(f"sketch counts {self.sketch.n} values, entropy.n says {self.n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStatistics:
    """What an application's sampled calls were given and answered: 1 call in `one_in` at last, `samples` in all.

    `dropped` samples were overwritten before they were read, `unreadable` ones held no numbers. `classes` counts outputs
    by the class that was decided for, the most frequent ones; `other_classes` is how many outputs decided for any other.
    """

    one_in: Seq
    samples: Count
    dropped: Count = 0
    unreadable: Count = 0
    inputs: Annotated[tuple[AppInput, ...], Meta(max_length=16)] = ()
    classes: Annotated[tuple[tuple[Count, Seq], ...], Meta(max_length=64)] = ()
    other_classes: Count = 0
    entropy: AppEntropy | None = None

    def __post_init__(self) -> None:
        if len({index for index, _ in self.classes}) != len(self.classes):
            raise ValueError("a class stands twice in classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWindow(Header):
    """One report of one application on the device: its own inferences, as `evenfleet_agent.probe` noted them.

    `model` is as the application names it: a name, or the sha256 of its file, which is an artifact's name. Clocks are as
    in a `window`. Of all `calls`, `latency.n` were read, `exceptions` raised, `dropped` were overwritten before they were
    read or could not be noted, and `refused` were noted as what no call can be.
    """

    schema: Literal["app/1"] = "app/1"
    seq: Seq
    app: Name
    model: Name | None = None
    length_s: Seconds
    ended_uptime_s: Seconds
    ended_wall_s: Finite
    processes: Count
    calls: Count
    exceptions: Count = 0
    dropped: Count = 0
    refused: Count = 0
    latency: AppLatency | None = None
    statistics: AppStatistics | None = None

    def __post_init__(self) -> None:
        timed = self.latency.n if self.latency else 0
        found = timed + self.exceptions + self.dropped + self.refused
        if found != self.calls:
            raise ValueError(f"latency.n, exceptions, dropped and refused add up to {found}, calls says {self.calls}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a measurement depended on beside the model. Absent (None) is not zero.

    `delegated_ratio` is the share of the graph's operators that the accelerator took, read from the loaded graph.
    Runs that differ in one of `COMPARABILITY_KEYS` are never compared; `comparability` names the values of all of them.
    `transport` is how the device speaks to its broker, `mqtt/3.1.1` or `mqtt/5`, with `+tls`.
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
    transport: Text | None = None
    metered: bool | None = None


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
    event: EventName
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
    are those that the device's runtime can load: it is told to run nothing else. `uptime_s` of a birth is the device's
    monotonic clock now, by which windows of a device without a wall clock are dated; a will has none.
    """

    schema: Literal["state/1"] = "state/1"
    status: Literal["birth", "sleeping", "gone", "lost"]
    session: Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}$(?!\n)")]
    device_class: Name
    agent_version: Text
    formats: Annotated[tuple[Literal["tflite", "saved_model", "onnx"], ...], Meta(max_length=8)] = ()
    desired_revision: Count
    contexts: Annotated[tuple[Digest, ...], Meta(max_length=64)] = ()
    uptime_s: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit that the agent counts samples against; `revision` grows with every change of the value."""

    metric: LatencyMetric = "latency"
    limit_ms: Milliseconds
    revision: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSignature:
    """A signature of the release's manifest, by a key that the device may or may not trust; see `signature.Signature`."""

    key: Digest
    signature: Annotated[str, Meta(max_length=200)]


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
    signatures: Annotated[tuple[ReleaseSignature, ...], Meta(max_length=8)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something to do once, now; not retained. Sent again with the same `correlation_id` until it is answered or expired.

    `ttl_s` counts from the arrival of the first copy at the device, whose wall clock may be wrong; `age_s` is how old the
    command was when this copy was sent. A device answers a copy of what it has done already with the same reply.
    `sustained_s` and `offline_s` are for `measure`: load the model without a pause for so long, and run its largest batches
    back to back for so long, after what every window has.
    """

    schema: Literal["command/1"] = "command/1"
    device: DeviceId
    correlation_id: CorrelationId
    command: CommandName
    variant: Name | None = None
    ttl_s: Annotated[float, Meta(gt=0.0, le=604_800.0)]
    age_s: Seconds = 0.0
    sustained_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.0
    offline_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Header):
    """The answer to a command: unnumbered, repeats the last seq, as `state` does.

    `seqs` are the numbers of the windows that the command made; `result` is what else it found, for `layers`.
    """

    schema: Literal["reply/1"] = "reply/1"
    correlation_id: CorrelationId
    command: CommandName
    status: Literal["done", "failed", "expired", "refused"]
    detail: Text = ""
    seqs: Annotated[tuple[Seq, ...], Meta(max_length=64)] = ()
    result: dict[str, Any] | None = None


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


Uplink = Union[Window, AppWindow, Summary, Context, Event, State, Reply]
Numbered = Union[Window, AppWindow, Summary, Context, Event]
Downlink = Union[Desired, Receipt, Command]

# Which types a topic's kind may carry, by schema.
SCHEMAS: Final[dict[str, dict[str, type[Any]]]] = {
    "window": {"window/1": Window, "app/1": AppWindow},
    "backfill": {"window/1": Window, "app/1": AppWindow, "summary/1": Summary},
    "context": {"context/1": Context},
    "event": {"event/1": Event},
    "state": {"state/1": State},
    "desired": {"desired/1": Desired},
    "receipt": {"receipt/1": Receipt},
    "command": {"command/1": Command},
    "reply": {"reply/1": Reply},
}

# What must be equal for two runs to be compared. An unknown value (None) equals only another unknown.
COMPARABILITY_KEYS: Final = (
    "runtime",
    "runtime_version",
    "accelerator_executed",
    "threads",
    "governor",
    "power_mode",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SchemaOnly:
    """What tells which type to decode."""

    schema: Annotated[str, Meta(max_length=40)]


def context_digest(run: RunContext) -> str:
    """Return the name of a run context: the sha256 of its canonical JSON, without later fields that are not known."""
    fields = msgspec.to_builtins(run)
    # What an agent that does not know them says is still named as that agent names it.
    for later in ("transport", "metered"):
        if fields[later] is None:
            del fields[later]
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def comparability_key(run: RunContext) -> dict[str, str | int | None]:
    """Return what must be equal for two runs to be compared, by name."""
    return {key: getattr(run, key) for key in COMPARABILITY_KEYS}


def comparability(run: RunContext) -> str:
    """Return the short name of a run's comparability key: 16 digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(comparability_key(run), order="sorted")).hexdigest()[:16]


def encode(message: Uplink | Downlink, *, compact: bool = False, packed: bool = False) -> bytes:
    """Return a message as bytes; whatever the form, `decode` makes the same value of them.

    Args:
        message: What to say.
        compact: Leave out every field that is at its default; otherwise only those that are None by default and are None.
        packed: MessagePack instead of JSON.
    """
    told = _told(message, compact=compact)
    return msgspec.msgpack.encode(told) if packed else msgspec.json.encode(told)


def _told(value: Any, *, compact: bool) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            name: _told(held, compact=compact)
            for name, default in _defaults(type(value))
            if not ((held := getattr(value, name)) == default and (compact or default is None))
        }
    if isinstance(value, tuple | list):
        return [_told(each, compact=compact) for each in value]
    return value


@cache
def _defaults(message_type: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Return the fields and their defaults; the schema has none, for nothing can be decoded without it."""
    return tuple((each.name, MISSING if each.name == "schema" else each.default) for each in fields(message_type))


def with_floor(payload: bytes, floor: int) -> bytes:
    """Return an encoded uplink message with its `floor` brought up to date, in the form that it has.

    An outbox writes a message once and sends it later, when it may have let go of older ones.

    Raises:
        MessageError: These are not the bytes that `encode` returned: the disk that they were on is failing.
    """
    form: Any = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    try:
        told = form.decode(payload, type=dict[str, Any])
        told["floor"] = floor
        encoded: bytes = form.encode(told)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError("encoding", str(error)[:300]) from None
    return encoded


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
