"""Lay out what was measured, for a person at a terminal: one model in detail, several side by side.

Decides which figures stand where. Leaves how a figure is told to `wording`, and measuring to `measure`.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenfleet_agent import wording
from evenfleet_agent.measure import QUANTILES, Accuracy, Failure, Result
from evenfleet_agent.rounds import Spread
from evenfleet_shared.manifest import TensorSpec
from evenfleet_shared.messages import Agreement
from evenfleet_shared.metrics import runs_needed


def table(outcomes: Sequence[Result | Failure]) -> str:
    """Return the outcomes for a person: one model in detail, several side by side."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    parts = []
    if len(outcomes) == 1 and results:
        parts.append(_detail(results[0]))
    elif results:
        parts.append(_side_by_side(results))
        notes = dict.fromkeys(f"{result.name}: {note}" for result in results for note in _remarks(result))
        parts.append("\n".join(notes))
    parts.append("\n".join(f"{failure.name}: not measured: {failure.reason}" for failure in failures))
    return "\n\n".join(part for part in parts if part)


def _detail(result: Result) -> str:
    figures = result.latency
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    rows = [
        ("model", f"{result.name} ({result.format})"),
        ("runtime", f"{result.runtime} {result.runtime_version}, {threads}, Python {result.python}"),
        ("executed on", _executed(result)),
        *(("input", _tensor(spec)) for spec in result.inputs),
        *(("output", _tensor(spec)) for spec in result.outputs),
        *(("note", remark) for remark in _remarks(result)),
        ("init", wording.ms(figures.init_ms)),
        ("first", wording.ms(figures.first_ms)),
    ]
    rows += [
        (name.removesuffix("_ms"), wording.quantile(result.latency, q, _spread_of(result, name)))
        for name, q in QUANTILES.items()
    ]
    rows += [
        (
            "throughput",
            f"{wording.rate(result.throughput_per_s)} inferences/s, one at a time, {result.cpu_share:.2f} CPUs busy",
        ),
        *wording.modes(result.throughput, result.sustained, result.cadence_ms, result.late_starts),
        *(
            (phase.name, f"{wording.ms(phase.p50_ms):<12} n {phase.n}, p95 {wording.ms(phase.p95_ms)}")
            for phase in result.phases
        ),
        *((f"memory {reading.kind}", f"{reading.bytes / 1e6:.1f} MB  ({reading.method})") for reading in result.memory),
        *wording.cost(result.cost),
        ("conditions", wording.conditions(result.start, result.end, throttled=result.throttled)),
        ("comparable", f"{result.comparability}: {wording.key(result.comparable_by)}"),
    ]
    accuracy = result.accuracy
    if accuracy:
        low, high = accuracy.interval
        right = accuracy.n - accuracy.errors
        rows.append(
            (
                "accuracy",
                f"{accuracy.accuracy_ratio:.4f}  ({right} of {accuracy.n}, 95 % interval {low:.4f} to {high:.4f})",
            )
        )
        if accuracy.metric:
            rows.append((accuracy.metric, "no value" if accuracy.score is None else f"{accuracy.score:.4g}"))
        rows += [(name, f"{value:.4g}") for name, value in accuracy.details.items()]
    if result.agreement:
        rows.append(("agreement", _agreement(result.agreement)))
    text = _aligned(rows)
    return f"{text}\n\n{_by_class(accuracy)}" if accuracy and accuracy.counts.tp else text


def _by_class(accuracy: Accuracy) -> str:
    counts = accuracy.counts
    told = [(str(number), str(tp + fn)) for number, (tp, fn) in enumerate(zip(counts.tp, counts.fn, strict=True))]
    recalls = ["-" if recall is None else f"{recall:.4f}" for recall in accuracy.class_recall_ratios]
    if accuracy.class_accuracy_ratios:
        ratios = [f"{ratio:.4f}" for ratio in accuracy.class_accuracy_ratios]
        rows = [(*first, ratio, recall) for first, ratio, recall in zip(told, ratios, recalls, strict=True)]
        return _aligned([("class", "samples", "accuracy", "recall"), *rows])
    false = map(str, counts.fp)
    rows = [(*first, recall, wrong) for first, recall, wrong in zip(told, recalls, false, strict=True)]
    return _aligned([("class", accuracy.counted, "recall", "false"), *rows])


def _side_by_side(results: Sequence[Result]) -> str:
    head = (
        "model",
        "runtime",
        "executed",
        "init",
        "first",
        "p50",
        "p90",
        "p95",
        "p99",
        "n",
        "peak MB",
        "accuracy",
        "agreement",
    )
    rows: list[tuple[str, ...]] = [head]
    for result in results:
        figures = result.latency
        peak = next((reading.bytes for reading in result.memory if reading.kind == "peak_rss"), None)
        rows.append(
            (
                result.name,
                f"{result.runtime} {result.runtime_version}",
                result.accelerator_executed
                + ("" if result.delegated_ratio in (None, 0.0) else f" {result.delegated_ratio:.0%}"),
                *(wording.ms(value) for value in (figures.init_ms, figures.first_ms)),
                wording.ms(figures.p50_ms) + _between(result),
                *(wording.ms(getattr(figures, name)) for name in ("p90_ms", "p95_ms", "p99_ms")),
                str(figures.n) + ("" if figures.p99_qualified else "!"),
                "-" if peak is None else f"{peak / 1e6:.1f}",
                "-" if result.accuracy is None else _scored(result.accuracy),
                "-" if result.agreement is None else result.agreement.noise_class,
            )
        )
    text = _aligned(rows)
    if any(not result.latency.p99_qualified for result in results):
        text += f"\n! fewer than {runs_needed(0.99)} runs: the p99 is unqualified"
    if any(result.spread for result in results):
        text += f"\n{results[0].processes} processes each, in turns: those with the median p50, and what the p50s lie between"
    throttled = [result.throttled for result in results if result.throttled is not None]
    # They were measured in turns, or one after another: from the first one's beginning to the last one's end.
    start = min((result.start for result in results), key=lambda look: look.at_s)
    end = max((result.end for result in results), key=lambda look: look.at_s)
    text += f"\nconditions: {wording.conditions(start, end, throttled=any(throttled) if throttled else None)}"
    for key in dict.fromkeys(result.comparability for result in results):
        alike = [result for result in results if result.comparability == key]
        named = ", ".join(dict.fromkeys(result.name for result in alike))
        text += f"\ncomparable: {key} ({wording.key(alike[0].comparable_by)}): {named}"
    return text


def _spread_of(result: Result, name: str) -> Spread | None:
    return result.spread[name] if result.spread else None


def _between(result: Result) -> str:
    spread = _spread_of(result, "p50_ms")
    return f" ({spread.low_ms:.4g} to {spread.high_ms:.4g})" if spread else ""


def _scored(accuracy: Accuracy) -> str:
    headline = "" if accuracy.score is None else f" ({accuracy.metric} {accuracy.score:.4g})"
    return f"{accuracy.accuracy_ratio:.4f}{headline}"


def _remarks(result: Result) -> list[str]:
    remarks = ["synthetic inputs: latency and memory only, nothing about accuracy"] if result.synthetic_inputs else []
    if result.fallback_reason:
        remarks.append(result.fallback_reason)
    return [*remarks, *result.notes]


def _executed(result: Result) -> str:
    if result.delegated_ratio is None or result.accelerator_requested == "cpu":
        return result.accelerator_executed
    return f"{result.accelerator_executed}, {result.delegated_ratio:.0%} of the operators delegated"


def _tensor(spec: TensorSpec) -> str:
    quantised = f", step {spec.scale:.6g}, zero point {spec.zero_point}" if spec.scale else ""
    return f"{spec.name} {spec.dtype} {list(spec.shape)}{quantised}"


def _agreement(agreement: Agreement) -> str:
    steps = "" if agreement.lsb_max is None else f", {agreement.lsb_max:.1f} steps of its quantisation"
    return (
        f"{agreement.noise_class}: same decision in {agreement.top1_ratio:.2%}, largest difference "
        f"{agreement.max_abs_diff:.3g}{steps}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
