"""Make what readers see of a cell: its verdict in words, and the figures of its latest window.

Pure. Leaves to `assess` and `silence` when a row is written.

* A row is `outside` exactly as long as a flag of its cell is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evenfleet_collector import cell as cells
from evenfleet_collector.cell import Cell, CellStep, ClassBaseline, MetricVerdict
from evenfleet_collector.store.rows import CellRow, Circumstances, EventRow
from evenfleet_collector.tolerance import Verdict, combine
from evenfleet_shared.manifest import Variant
from evenfleet_shared.messages import RunContext, Window


def judged(
    done: CellStep, window: Window, run: RunContext, variant: Variant, baseline: ClassBaseline | None, now_s: float
) -> CellRow:
    """Return the row of a cell whose latest window was judged."""
    verdict = combine(metric.verdict for metric in done.metrics)
    accuracy, latency = window.accuracy, window.latency
    ratio = 1.0 - accuracy.errors / accuracy.n if accuracy else None
    return CellRow(
        version=0,
        device=window.device,
        device_class=run.device_class,
        release=window.release,
        variant=window.variant,
        verdict=verdict,
        reason=_reason(verdict, done.metrics),
        metrics=done.metrics,
        refusal=None,
        phase=cells.phase(done.cell, baseline),
        windows=done.cell.windows,
        accuracy_ratio=ratio,
        accuracy_delta=None if ratio is None else ratio - (1.0 - variant.reference.errors / variant.reference.n),
        noise_class=accuracy.agreement.noise_class if accuracy else None,
        p50_ms=latency.p50_ms if latency else None,
        p95_ms=latency.p95_ms if latency else None,
        peak_bytes=cells.peak_bytes(window),
        run=run,
        updated_s=now_s,
        circumstances=_circumstances(window),
        score_metric=accuracy.metric if accuracy else None,
        score=accuracy.score if accuracy else None,
    )


def not_judged(window: Window, device_class: str, cell: Cell | None, reason: str, now_s: float) -> CellRow:
    """Return the row of a cell whose latest window could not be judged, nor its figures trusted."""
    row = waiting(window.device, device_class, window.release, window.variant, reason, now_s)
    return _withheld(replace(row, windows=cell.windows if cell else 0), cell, "undetermined", reason, now_s)


def refused(event: EventRow, device_class: str, cell: Cell | None, now_s: float) -> CellRow:
    """Return the row of a variant that its device cannot run.

    Raises:
        ValueError: The event names no release and variant.
    """
    if event.release is None or event.variant is None:
        raise ValueError(f"event {event.id} names no variant")
    reason = "the device cannot run this variant"
    row = waiting(event.device, device_class, event.release, event.variant, reason, now_s)
    row = replace(row, refusal=event.detail, phase="refused")
    return _withheld(row, cell, "undetermined", reason, now_s) if cell else row


def silent(before: CellRow, cell: Cell | None, reason: str, now_s: float) -> CellRow:
    """Return the row of a cell that should be heard of, and is not."""
    return _withheld(before, cell, "silent", reason, now_s)


def retired(before: CellRow, reason: str, now_s: float) -> CellRow:
    """Return the row of a variant that its device is not to run any more; the last figures stay."""
    return replace(before, verdict="undetermined", reason=reason, metrics=(), updated_s=now_s)


def waiting(device: str, device_class: str, release: str, variant: str, reason: str, now_s: float) -> CellRow:
    """Return the row of a cell of which nothing is known yet."""
    return CellRow(
        version=0,
        device=device,
        device_class=device_class,
        release=release,
        variant=variant,
        verdict="undetermined",
        reason=reason,
        metrics=(),
        refusal=None,
        phase="burn-in",
        windows=0,
        accuracy_ratio=None,
        accuracy_delta=None,
        noise_class=None,
        p50_ms=None,
        p95_ms=None,
        peak_bytes=None,
        run=None,
        updated_s=now_s,
    )


def _circumstances(window: Window) -> Circumstances | None:
    told = Circumstances(
        conditions=window.conditions,
        overhead=window.overhead,
        network=window.network,
        leak=window.leak,
        cost=window.cost,
        cadence_ms=window.cadence_ms,
        late_starts=window.late_starts,
        phases=window.phases,
        sustained=window.sustained,
        throughput=window.throughput,
    )
    return None if told == Circumstances() else told


def _withheld(row: CellRow, cell: Cell | None, verdict: Verdict, reason: str, now_s: float) -> CellRow:
    metrics = cells.withheld(cell, verdict, reason)
    overall = combine(metric.verdict for metric in metrics)
    said = reason if overall == verdict else _reason(overall, metrics)
    return replace(row, verdict=overall, reason=said, metrics=metrics, updated_s=now_s)


def _reason(verdict: Verdict, metrics: Sequence[MetricVerdict]) -> str:
    """Return what the metrics that made the verdict say."""
    return "; ".join(f"{metric.metric}: {metric.reason}" for metric in metrics if metric.verdict == verdict)
