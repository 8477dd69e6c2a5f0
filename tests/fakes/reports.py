"""Rows of a report as a build would make them, for whoever reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evenfleet_collector.optimize import forecast, front, remarks
from evenfleet_collector.optimize.worth import ClassShare, ReportDocument, Timing, VariantReport
from evenfleet_shared.messages import Agreement


def timing(p50_ms: float = 1.0, *, noise_ratio: float = 0.01, **changed: Any) -> Timing:
    """Return a timing whose rounds lie within `noise_ratio` on either side."""
    low, high = 1.0 - noise_ratio, 1.0 + noise_ratio
    values: dict[str, Any] = {
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "threads": 1,
        "n": 3000,
        "rounds": 5,
        "p50_ms": p50_ms,
        "p50_low_ms": p50_ms * low,
        "p50_high_ms": p50_ms * high,
        "p95_ms": p50_ms * 1.5,
        "p95_low_ms": p50_ms * 1.5 * low,
        "p95_high_ms": p50_ms * 1.5 * high,
        "init_ms": 2.0,
        "peak_rss_bytes": 40_000_000,
        "after_load_bytes": 36_000_000,
    }
    return Timing(**values | changed)


def variant_row(name: str = "int8", **changed: Any) -> VariantReport:
    """Return a variant's row; `p50_ms` stands for a whole timing, and what follows from a changed value follows."""
    p50_ms = changed.pop("p50_ms", None)
    if p50_ms is not None:
        changed["timing"] = timing(p50_ms)
    accuracy, size = changed.get("accuracy_ratio", 0.95), changed.get("size_bytes", 50_000)
    delta = changed.get("delta_ratio", accuracy - 0.95)
    compressed = changed.get("compressed_bytes", round(size * 0.9))
    values: dict[str, Any] = {
        "name": name,
        "format": "tflite",
        "techniques": (name,),
        "accuracy_ratio": accuracy,
        "accuracy_interval": (max(0.0, accuracy - 0.02), min(1.0, accuracy + 0.02)),
        "class_accuracy_ratios": (0.98, 0.97, 0.96),
        "worst_class": ClassShare(label=2, name=None, n=40, recall_ratio=0.9, reference_recall_ratio=0.92),
        "delta_ratio": delta,
        "delta_interval": (delta - 0.01, delta + 0.01),
        "size_bytes": size,
        "size_ratio": size / 100_000,
        "compressed_bytes": compressed,
        "compressed_ratio": compressed / 90_000,
        "parameters": 25_000,
        "macs": 1_000_000,
        "operators": ("CONV_2D", "FULLY_CONNECTED", "SOFTMAX"),
        "min_runtime_version": "2.5.0",
        "agreement": Agreement(noise_class="same-decision", top1_ratio=0.99, max_abs_diff=0.02, rms_diff=0.004),
    }
    return VariantReport(**values | changed)


def report(*rows: VariantReport, **changed: Any) -> ReportDocument:
    """Return a report of these rows, the first of which is the reference, with forecasts, dominance and remarks."""
    reference = rows[0].name
    found, above, said = forecast.forecasts(rows), front.dominated_by(rows), remarks.remarks(rows, reference)
    values: dict[str, Any] = {
        "model": "digits",
        "release": "9f2c" * 16,
        "reference_variant": reference,
        "test_n": 540,
        "golden_n": 300,
        "machine": {"cpu": "x86_64, 2 cores", "memory": "8.00 GB"},
        "rows": tuple(
            replace(
                row, forecast=found.get(row.name), dominated_by=above[row.name], remarks=row.remarks or said[row.name]
            )
            for row in rows
        ),
        "missing": (),
        "lineage": {"model": "examples.digits_mlp:model", "seed": "0"},
        "preprocessing": {"input": "as-given", "fingerprint": "ab" * 32},
        "forecast_errors": forecast.errors(rows, found),
        "elapsed_s": 83.4,
    }
    return ReportDocument(**values | changed)
