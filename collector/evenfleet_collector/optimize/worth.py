"""What each variant is worth, as one row of values: what the report, the page, the table and the target's choice read.

Pure. Leaves building and running the variants to `release`, timing them to `timing`, and telling it to people to `page`
and `commands.optimize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evenfleet_collector.optimize.gain import Gain
from evenfleet_shared.manifest import Format, MissingVariant
from evenfleet_shared.messages import Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """One class of the test set, and how many of its samples were told right.

    Attributes:
        label: The class's number.
        name: Its name, where the data has names.
        n: Test samples of it.
        recall_ratio: The share of them that the variant gets right.
        reference_recall_ratio: The share that the reference variant gets right.
    """

    label: int
    name: str | None
    n: int
    recall_ratio: float
    reference_recall_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Steady latency and memory of one variant on the machine that built it, in a process of its own.

    Attributes:
        runtime: What ran it, such as ``litert``; with `runtime_version` and `threads`.
        n: Timed inferences of all rounds together.
        rounds: Processes that measured it in turn with the other variants.
        p50_ms, p95_ms: The median over the rounds.
        p50_low_ms, p50_high_ms: The smallest and the largest p50 of a round.
        p95_low_ms, p95_high_ms: The same of the p95.
        init_ms: Load and allocate, the median over the rounds.
        peak_rss_bytes: Peak of the process's resident memory, the largest of the rounds.
        after_load_bytes: Resident memory once the model is loaded, mostly the runtime's own; None where the kernel does not tell.
    """

    runtime: str
    runtime_version: str
    threads: int
    n: int
    rounds: int
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p95_ms: float
    p95_low_ms: float
    p95_high_ms: float
    init_ms: float
    peak_rss_bytes: int
    after_load_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The p50 that a variant's size and its operations let expect, from throughputs fitted on the others alone.

    Attributes:
        by_size_ms: Size over the others' bytes per second; None where fewer than two others were timed.
        by_macs_ms: Operations over the others' operations per second; None also where operations are not known.
    """

    by_size_ms: float | None
    by_macs_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastErrors:
    """How good the forecasts are where the truth is known: each variant foretold from the others, in the median.

    Attributes:
        by_size_factor: Forecasts by size are off by this factor, one way or the other, in the median; 1 is exact. None
            where there is no forecast.
        by_size_n: Forecasts that this is the median of.
        by_macs_factor, by_macs_n: The same by operations.
    """

    by_size_factor: float | None
    by_size_n: int
    by_macs_factor: float | None
    by_macs_n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantReport:
    """One variant's row: accuracy on the whole test set, agreement on the golden set, size, and time on this machine.

    Attributes:
        name, format, techniques: As in the manifest.
        accuracy_ratio: (TP + TN)/(TP + TN + FP + FN) over the test set, which for whole predictions is the share that is
            right; `accuracy_interval` is Wilson's, 95 %.
        class_accuracy_ratios: The same formula for each class against all others.
        worst_class: The class with the smallest recall; of equals the first.
        delta_ratio: Accuracy minus the reference variant's; `delta_interval` is paired, 95 %.
        size_bytes, size_ratio: Of the artifact, and over the reference's.
        compressed_bytes, compressed_ratio: The same after gzip, level 9.
        parameters, macs, operators, min_runtime_version: As in the manifest.
        agreement: With the reference variant's outputs on the golden set.
        timing: None where it was not asked for, or `no_timing` says why there is none.
        forecast: Beside the timing; None without one.
        dominated_by: Variants of the same format that are at least as good in accuracy, size, time and memory, and better
            in one.
        gain: What its last trained technique itself brought; None where none is trained, or `no_gain` says why it is not
            known.
        remarks: What a person should be told in a sentence each.
    """

    name: str
    format: Format
    techniques: tuple[str, ...]
    accuracy_ratio: float
    accuracy_interval: tuple[float, float]
    class_accuracy_ratios: tuple[float, ...]
    worst_class: ClassShare
    delta_ratio: float
    delta_interval: tuple[float, float]
    size_bytes: int
    size_ratio: float
    compressed_bytes: int
    compressed_ratio: float
    parameters: int | None
    macs: int | None
    operators: tuple[str, ...]
    min_runtime_version: str | None
    agreement: Agreement
    timing: Timing | None = None
    no_timing: str | None = None
    forecast: Forecast | None = None
    dominated_by: tuple[str, ...] = ()
    gain: Gain | None = None
    no_gain: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDocument:
    """All that a report tells, in the order of the release's variants.

    Attributes:
        model, reference_variant, lineage, preprocessing: As in the manifest.
        release: The digest that is the release's name.
        test_n, golden_n: Samples of the whole test set and of the golden set.
        machine: What built and timed the variants, as word and value, such as ``cpu`` or ``memory``.
        rows: The variants that were built.
        missing: Those that were not, with the reason.
        class_names: Of the classes in their order; empty where the data has no names.
        forecast_errors: None where nothing was timed.
        target: What was asked of a variant and what became of it, a sentence each; empty where nothing was asked.
        chosen: The variant that holds the target, or comes closest; None where nothing was asked.
        elapsed_s: How long the build took.
    """

    model: str
    release: str
    reference_variant: str
    test_n: int
    golden_n: int
    machine: Mapping[str, str]
    rows: tuple[VariantReport, ...]
    missing: tuple[MissingVariant, ...]
    lineage: Mapping[str, str]
    preprocessing: Mapping[str, str]
    class_names: tuple[str, ...] = ()
    forecast_errors: ForecastErrors | None = None
    target: tuple[str, ...] = ()
    chosen: str | None = None
    elapsed_s: float
