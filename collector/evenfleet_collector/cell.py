"""Decide what one more window means for one device × variant of a release.

Pure: `step` takes the cell before the window, the window, and what it is held to; it returns the cell after it, a
verdict per metric, and the flags that open or close. `assess` finds the values and writes the results.

A class of devices goes through three phases with every variant. In **burn-in** each device's windows make its own
quantiles, and their median becomes the class's baseline, with a limit above it. In **calibration** devices count
against that limit, which shows how far sound devices wander by themselves; where not one of them keeps to it, these
windows make the next reference, and calibration begins anew. From then on the class is **judged**: a
device that comes later is held to its class at once. Accuracy has its reference in the release and is judged from the
first window.

* A window enters a bet only if it was counted against the limit in force, in a setup that is the baseline's.
* A window of another file than the release names, or of another golden set, is compared with nothing.
* A metric whose flag is open is `outside` until the flag is closed, whatever the window does not say of it.
* Windows of a device that is throttled, or outside in accuracy, make no baseline.
* A new policy revision starts all evidence anew and no baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from evenfleet_collector.detect import baseline as baselines
from evenfleet_collector.detect import betting, fixed_set
from evenfleet_collector.detect.betting import BetState
from evenfleet_collector.detect.fixed_set import FixedSetState, FixedSetWhy
from evenfleet_collector.tolerance import ExceedanceTolerance, Policy, Setup, Verdict, differing_keys, log_a
from evenfleet_shared import sketch
from evenfleet_shared.manifest import Manifest, Variant
from evenfleet_shared.messages import Accuracy, Exceedance, Limit, RunContext, Window

Metric = Literal["accuracy", "latency", "memory"]
Phase = Literal["burn-in", "calibrating", "judged"]

METRICS: Final[tuple[Metric, ...]] = ("accuracy", "latency", "memory")
# Those that are held to a limit by a bet on the share of measurements above it.
EXCEEDANCE_METRICS: Final[tuple[Metric, ...]] = ("latency", "memory")

# A class does not wait for ever for a device that reports seldom: it goes on when the fastest has twice what it takes.
PATIENCE: Final = 2

# What a message may say; a class as slow as that has no limit worth the name.
MAX_LIMIT_MS: Final = 1e9


class ClassKey(NamedTuple):
    """What shares a baseline: a device class, for one variant of a release."""

    release: str
    variant: str
    device_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricBaseline:
    """What a metric of a class is held to: a latency in ms, or a peak in bytes.

    `mu0` is the share of samples above the limit that counts as in tolerance, None until calibration has ended.
    """

    value: float
    limit: float
    mu0: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBaseline:
    """The baseline of a class, frozen when calibration has ended.

    `revision` is what devices name when they count against the latency limit; `run`, `mode` and `cadence_ms` are a setup
    that most devices were comparable with, and all must be.
    """

    revision: int
    run: RunContext
    # Baselines of before there were cadences do not say it, and are of steady windows.
    mode: Literal["steady", "cadence"] = "steady"
    cadence_ms: float | None = None
    latency: MetricBaseline | None
    memory: MetricBaseline | None
    devices: int
    frozen: bool = False

    @property
    def setup(self) -> Setup:
        """Return what windows must share to be held to it."""
        return Setup(run=self.run, mode=self.mode, cadence_ms=self.cadence_ms)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Return what devices are told to count against."""
        if self.latency is None:
            return ()
        return (Limit(limit_ms=min(self.latency.limit, MAX_LIMIT_MS), revision=self.revision),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is remembered of one device × variant of a release.

    `windows` counts all that were judged, `burn_in` and `calibration` those that may enter a baseline.
    """

    device: str
    key: ClassKey
    windows: int = 0
    burn_in: int = 0
    calibration: int = 0
    policy_revision: int = 0
    latency: BetState = field(default_factory=BetState)
    memory: BetState = field(default_factory=BetState)
    accuracy: FixedSetState = field(default_factory=FixedSetState)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricVerdict:
    """The verdict on one metric of a cell, and what it rests on.

    `value` is the metric's latest figure (accuracy as a ratio, latency quantile in ms, peak memory in bytes), `limit`
    what it is held to, in the same unit; `evidence` is the log of the evidence gathered, `evidence_needed` where it
    becomes `outside`.
    """

    metric: Metric
    verdict: Verdict
    reason: str
    value: float | None = None
    limit: float | None = None
    windows: int = 0
    evidence: float | None = None
    evidence_needed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagChange:
    """A flag that opens or closes. For a bet, `explained_by` windows up to this one make up the evidence."""

    metric: Metric
    opens: bool
    reason: str
    explained_by: int = 0
    why: FixedSetWhy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStep:
    """What a window did."""

    cell: Cell
    metrics: tuple[MetricVerdict, ...]
    changes: tuple[FlagChange, ...]


def step(
    cell: Cell, window: Window, run: RunContext, manifest: Manifest, baseline: ClassBaseline | None, policy: Policy
) -> CellStep:
    """Judge one more window of a cell.

    Args:
        cell: Before the window.
        window: The next one in order.
        run: What it was measured under.
        manifest: Its release, which has the variant.
        baseline: The class's, None while it burns in.
        policy: What is tolerated.
    """
    if cell.policy_revision != policy.revision:
        cell = replace(
            cell,
            policy_revision=policy.revision,
            latency=replace(BetState(), flagged=cell.latency.flagged),
            memory=replace(BetState(), flagged=cell.memory.flagged),
        )
    cell = replace(cell, windows=cell.windows + 1)
    variant = manifest.variant(window.variant)
    incomparable = _incomparable(window, run, variant, baseline)
    if incomparable:
        return CellStep(cell=cell, metrics=withheld(cell, "incomparable", incomparable), changes=())
    metrics: list[MetricVerdict] = []
    changes: list[FlagChange] = []
    if window.accuracy is not None:
        cell, verdict, change = _judge_accuracy(cell, window.accuracy, variant, manifest, policy)
        metrics.append(verdict)
        changes += change
    elif cell.accuracy.flagged:
        metrics.append(_withheld(cell, "accuracy", "undetermined", "this window has no accuracy"))
    if may_enter_baseline(cell, window):
        if baseline is None:
            cell = replace(cell, burn_in=cell.burn_in + 1)
        elif not baseline.frozen and counted(window, baseline) is not None:
            cell = replace(cell, calibration=cell.calibration + 1)
    for metric in EXCEEDANCE_METRICS:
        cell, verdict, change = _judge_exceedance(cell, metric, window, baseline, policy)
        metrics.append(verdict)
        changes += change
    return CellStep(cell=cell, metrics=tuple(metrics), changes=tuple(changes))


def phase(cell: Cell, baseline: ClassBaseline | None) -> Phase:
    """Return how far a cell's class has come."""
    if baseline is None:
        return "burn-in"
    return "judged" if baseline.frozen else "calibrating"


def is_flagged(cell: Cell, metric: Metric) -> bool:
    """Return whether a metric's flag is open."""
    flagged = {"accuracy": cell.accuracy.flagged, "latency": cell.latency.flagged, "memory": cell.memory.flagged}
    return flagged[metric]


def withheld(cell: Cell | None, verdict: Verdict, reason: str) -> tuple[MetricVerdict, ...]:
    """Return a verdict on every metric where nothing could be judged: `outside` stays where a flag is open.

    Args:
        cell: None where none has been judged.
        verdict: Of the metrics without a flag.
        reason: Why nothing could be judged.
    """
    return tuple(_withheld(cell, metric, verdict, reason) for metric in METRICS)


def _withheld(cell: Cell | None, metric: Metric, verdict: Verdict, reason: str) -> MetricVerdict:
    if cell is not None and is_flagged(cell, metric):
        return MetricVerdict(metric=metric, verdict="outside", reason=f"its flag is open; {reason}")
    return MetricVerdict(metric=metric, verdict=verdict, reason=reason)


def retired(cell: Cell) -> Cell:
    """Return a cell whose device no longer runs the variant: should it come back, it starts without evidence."""
    return replace(cell, latency=BetState(), memory=BetState(), accuracy=FixedSetState())


def is_of_release(window: Window, variant: Variant) -> bool:
    """Return whether a window measured the file that the release has for its variant."""
    return window.artifact == variant.artifact.sha256


def may_enter_baseline(cell: Cell, window: Window) -> bool:
    """Return whether a window may take part in its class's baseline."""
    return not window.throttled and not cell.accuracy.flagged


def counted(window: Window, baseline: ClassBaseline) -> Exceedance | None:
    """Return a window's count against the latency limit in force, None where it counted against another.

    The limit itself must be the same: a device that has just changed class or release counts against an older one for
    a while, whose revision may be the same number.
    """
    in_force = baseline.limits
    return next(
        (
            one
            for one in window.exceedances
            if Limit(metric=one.metric, limit_ms=one.limit_ms, revision=one.limit_revision) in in_force
        ),
        None,
    )


def exceedance(metric: Metric, window: Window, baseline: ClassBaseline) -> tuple[int, int] | None:
    """Return how many of how many measurements of a window were above the metric's limit; None where none count."""
    if metric == "memory":
        peak = peak_bytes(window)
        return None if peak is None or baseline.memory is None else (int(peak > baseline.memory.limit), 1)
    count = counted(window, baseline)
    return None if count is None or baseline.latency is None else (count.exceed, count.n)


def peak_bytes(window: Window) -> int | None:
    """Return the peak memory of the runner that measured a window."""
    return next((reading.bytes for reading in window.memory if reading.kind == "peak_rss"), None)


def bet_rule(tolerance: ExceedanceTolerance, mu0: float, policy: Policy) -> betting.BetRule:
    """Return the numbers that an exceedance stream is judged by."""
    return betting.rule(
        # A baseline outlives the policy it was made under: a policy that allows more since then raises the bar.
        mu0=max(mu0, tolerance.allowed_ratio),
        allowed_ratio=tolerance.allowed_ratio,
        alpha=tolerance.alpha,
        log_a=log_a(policy),
        min_windows=policy.min_windows,
        clear_windows=policy.clear_windows,
    )


def ready(counts: Sequence[int], expected: int, needed: int) -> bool:
    """Return whether a class has seen enough windows to go on to its next phase.

    Args:
        counts: Windows that each device of the class has had.
        expected: How many devices the class has, heard of or not.
        needed: Windows that each should have.

    >>> ready([5, 5], 2, 5), ready([5, 5], 3, 5), ready([5, 10], 3, 5)
    (True, False, True)
    """
    enough = sum(count >= needed for count in counts)
    return bool(counts) and (enough >= expected or max(counts) >= PATIENCE * needed)


def setup_of(window: Window, run: RunContext) -> Setup:
    """Return what a window's figures depend on beside its file."""
    return Setup(run=run, mode=window.mode, cadence_ms=window.cadence_ms)


def reference_setup(setups: Sequence[Setup]) -> Setup:
    """Return the setup that a class is held to: one that as many of its devices as possible are comparable with.

    Args:
        setups: One per device, in any fixed order; of equally common ones the first is taken.

    Raises:
        ValueError: There are none.
    """
    keys = [tuple(setup.values.values()) for setup in setups]
    ((commonest, _),) = Counter(keys).most_common(1)
    return setups[keys.index(commonest)]


def open_baseline(
    windows: Mapping[str, Sequence[Window]], setup: Setup, policy: Policy, *, revision: int
) -> ClassBaseline:
    """Return a class's baseline after burn-in.

    Args:
        windows: Each device's burn-in windows, comparable with `setup`; at least one device has one.
        setup: What others must be comparable with.
        policy: Which quantiles, and what margin.
        revision: Names the limits.
    """
    latencies = [
        baselines.latency_quantile(sketches, policy.latency.quantile)
        for device_windows in windows.values()
        if (sketches := [window.latency.sketch for window in device_windows if window.latency])
    ]
    peaks = [
        baselines.memory_quantile(found, policy.memory.quantile)
        for device_windows in windows.values()
        if (found := [peak for window in device_windows if (peak := peak_bytes(window)) is not None])
    ]
    return ClassBaseline(
        revision=revision,
        run=setup.run,
        mode=setup.mode,
        cadence_ms=setup.cadence_ms,
        latency=_metric_baseline(latencies, policy.latency),
        memory=_metric_baseline(peaks, policy.memory),
        devices=len(windows),
    )


def freeze(baseline: ClassBaseline, windows: Mapping[str, Sequence[Window]], policy: Policy) -> ClassBaseline | None:
    """Return a class's baseline after calibration: how far sound devices wander is now known.

    Args:
        baseline: As burn-in left it.
        windows: Each device's calibration windows, in order.
        policy: What is tolerated.

    Returns:
        None where none of the devices kept to the limit that its own class had set: the class was not steady, and
        whoever was judged by that limit would be outside for no fault of its own.
    """
    frozen = baseline
    for metric in EXCEEDANCE_METRICS:
        before = baseline_of(metric, baseline)
        if before is None:
            continue
        allowed_ratio = tolerance_of(metric, policy).allowed_ratio
        shares = [
            [counts[0] / counts[1] for window in device_windows if (counts := exceedance(metric, window, baseline))]
            for device_windows in windows.values()
        ]
        guard = baselines.guard_band(shares, allowed_ratio=allowed_ratio)
        if guard.excluded_devices and not guard.devices:
            return None
        after = replace(before, mu0=baselines.tolerable_ratio(allowed_ratio, guard))
        frozen = replace(frozen, latency=after) if metric == "latency" else replace(frozen, memory=after)
    return replace(frozen, frozen=True)


def calibrated_at(baseline: ClassBaseline, policy: Policy) -> int:
    """Return the calibration windows that a device has had when its class can be frozen: anew for each revision."""
    return policy.calibration_windows * baseline.revision


def _metric_baseline(quantiles: Sequence[float], tolerance: ExceedanceTolerance) -> MetricBaseline | None:
    if not quantiles:
        return None
    value = baselines.class_baseline(quantiles)
    return MetricBaseline(value=value, limit=baselines.limit(value, tolerance.margin_ratio))


def baseline_of(metric: Metric, baseline: ClassBaseline) -> MetricBaseline | None:
    """Return what a metric that is held to a limit is held to; None where the class has not measured it."""
    return baseline.latency if metric == "latency" else baseline.memory


def tolerance_of(metric: Metric, policy: Policy) -> ExceedanceTolerance:
    """Return what is tolerated of a metric that is held to a limit."""
    return policy.latency if metric == "latency" else policy.memory


def _incomparable(window: Window, run: RunContext, variant: Variant, baseline: ClassBaseline | None) -> str | None:
    """Return why a window may be compared with nothing, None where it may."""
    if not is_of_release(window, variant):
        return (
            f"not comparable: measured with the file {window.artifact[:12]}…, "
            f"the release's is {variant.artifact.sha256[:12]}…"
        )
    if baseline is None:
        return None
    here, there = setup_of(window, run), baseline.setup
    keys = differing_keys(there, here)
    if not keys:
        return None
    named = ", ".join(f"{key} ({here.values[key]} here, {there.values[key]} in its class)" for key in keys)
    return f"not comparable with its class: {named}"


def _judge_accuracy(
    cell: Cell, accuracy: Accuracy, variant: Variant, manifest: Manifest, policy: Policy
) -> tuple[Cell, MetricVerdict, list[FlagChange]]:
    golden = manifest.golden.digest
    if accuracy.task != manifest.task:
        reason = f"not comparable: scored as {accuracy.task}, the release is of {manifest.task}"
        return cell, _withheld(cell, "accuracy", "incomparable", reason), []
    if accuracy.golden != golden:
        reason = f"not comparable: measured on the golden set {accuracy.golden[:12]}…, the release's is {golden[:12]}…"
        return cell, _withheld(cell, "accuracy", "incomparable", reason), []
    if accuracy.n != variant.reference.n:
        reason = f"measured on {accuracy.n} samples, the release's own result is on {variant.reference.n}"
        return cell, _withheld(cell, "accuracy", "undetermined", reason), []
    state, why = fixed_set.step(
        cell.accuracy,
        n=accuracy.n,
        errors=accuracy.errors,
        hamming=accuracy.hamming,
        prediction_digest=accuracy.prediction_digest,
        reference_errors=variant.reference.errors,
        unstable=0,
        margin_ratio=policy.accuracy.margin_ratio,
        min_windows=policy.min_windows,
        clear_windows=policy.clear_windows,
    )
    verdict = MetricVerdict(
        metric="accuracy",
        verdict=why.verdict,
        reason=why.reason,
        value=1.0 - accuracy.errors / accuracy.n,
        limit=1.0 - variant.reference.errors / variant.reference.n - policy.accuracy.margin_ratio,
        windows=cell.windows,
    )
    changes = []
    if why.flagged_now or why.cleared_now:
        changes.append(FlagChange(metric="accuracy", opens=why.flagged_now, reason=why.reason, why=why))
    return replace(cell, accuracy=state), verdict, changes


def _judge_exceedance(
    cell: Cell,
    metric: Metric,
    window: Window,
    baseline: ClassBaseline | None,
    policy: Policy,
) -> tuple[Cell, MetricVerdict, list[FlagChange]]:
    tolerance = tolerance_of(metric, policy)
    value = _value(metric, tolerance, window)
    held_to = baseline_of(metric, baseline) if baseline else None
    state = cell.latency if metric == "latency" else cell.memory
    counts = exceedance(metric, window, baseline) if baseline else None
    waiting = MetricVerdict(
        metric=metric,
        verdict="outside" if state.flagged else "undetermined",
        reason=_waiting_reason(cell, baseline, held_to, policy),
        value=value,
        limit=held_to.limit if held_to else None,
        windows=state.windows,
    )
    if held_to is None or held_to.mu0 is None or counts is None:
        return cell, waiting, []
    after, evidence = betting.step(state, *counts, bet_rule(tolerance, held_to.mu0, policy))
    reason = _exceedance_reason(metric, tolerance, held_to, evidence)
    verdict = replace(
        waiting,
        verdict=evidence.verdict,
        reason=reason,
        windows=evidence.windows,
        evidence=round(evidence.outside_nats, 3),
        evidence_needed=round(evidence.outside_threshold_nats, 3),
    )
    changes = []
    if evidence.flagged_now or evidence.cleared_now:
        changes.append(
            FlagChange(metric=metric, opens=evidence.flagged_now, reason=reason, explained_by=evidence.explained_by)
        )
    after_cell = replace(cell, latency=after) if metric == "latency" else replace(cell, memory=after)
    return after_cell, verdict, changes


def _value(metric: Metric, tolerance: ExceedanceTolerance, window: Window) -> float | None:
    if metric == "memory":
        return peak_bytes(window)
    return sketch.quantile(window.latency.sketch, tolerance.quantile) if window.latency else None


def _waiting_reason(cell: Cell, baseline: ClassBaseline | None, held_to: MetricBaseline | None, policy: Policy) -> str:
    if baseline is None:
        return f"burn-in: {cell.burn_in} of {policy.burn_in_windows} windows"
    if held_to is None:
        return "not measured in this class"
    if not baseline.frozen:
        done = cell.calibration - calibrated_at(baseline, policy) + policy.calibration_windows
        again = (
            f"; its class was not steady, this is its reference no. {baseline.revision}"
            if baseline.revision > 1
            else ""
        )
        return f"calibrating: {max(0, done)} of {policy.calibration_windows} windows{again}"
    return "this window did not count against the limit in force"


def _exceedance_reason(
    metric: Metric, tolerance: ExceedanceTolerance, held_to: MetricBaseline, evidence: betting.Evidence
) -> str:
    name = f"p{100 * tolerance.quantile:g} latency" if metric == "latency" else "peak memory"
    limit = f"{held_to.limit:.4g} ms" if metric == "latency" else f"{held_to.limit / 1e6:.4g} MB"
    unit = "samples" if metric == "latency" else "windows"
    share = f"{evidence.estimate_ratio:.1%} of {unit} above {limit}, {held_to.mu0:.1%} tolerated"
    limit_of = f"its class's {name} plus {tolerance.margin_ratio:.0%}"
    return f"{share} ({limit} is {limit_of}); {evidence.windows} windows"
