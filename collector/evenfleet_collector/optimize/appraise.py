"""Work out what each variant is worth: a row for each, with what can be said of it only beside the others.

Pure. Leaves building and running to `builder`, timing to `timing`, and each rule to its own file: `gain`, `forecast`,
`front`, `remarks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import forecast, front, gain, remarks
from evenfleet_collector.optimize.built import Built
from evenfleet_collector.optimize.data import LabelledData, Labels
from evenfleet_collector.optimize.worth import ClassShare, VariantReport
from evenfleet_shared import metrics
from evenfleet_shared.manifest import Variant


def row(built: Built, entry: Variant, reference: Built, data: LabelledData, *, classes: int) -> VariantReport:
    """Return what is known of a variant without timing it, and without its control.

    Args:
        built: The variant.
        entry: The same in the manifest.
        reference: The variant that others are compared with.
        data: Whose test samples both were run on.
        classes: How many the model tells apart.
    """
    labels = data.y_test
    counts = metrics.class_counts(labels.tolist(), built.predictions.tolist(), classes)
    correct, reference_correct = built.correct(labels), reference.correct(labels)
    reference_bytes = reference.artifact.stat().st_size
    return VariantReport(
        name=entry.name,
        format=entry.format,
        techniques=entry.techniques,
        accuracy_ratio=counts.accuracy_ratio,
        accuracy_interval=metrics.wilson_interval(counts.n - counts.errors, counts.n),
        class_accuracy_ratios=counts.class_accuracy_ratios,
        worst_class=worst_class(labels, correct, reference_correct, data.class_names),
        # One division: a difference of two shares is off in the last place, and misses a limit that it just keeps.
        delta_ratio=(int(correct.sum()) - int(reference_correct.sum())) / len(labels),
        delta_interval=gain.over_samples(correct, reference_correct),
        size_bytes=entry.artifact.size_bytes,
        size_ratio=entry.artifact.size_bytes / reference_bytes,
        compressed_bytes=built.facts.compressed_bytes,
        compressed_ratio=built.facts.compressed_bytes / reference.facts.compressed_bytes,
        parameters=entry.parameters,
        macs=entry.macs,
        operators=entry.operators,
        min_runtime_version=entry.min_runtime_version,
        agreement=entry.reference.agreement,
        remarks=built.facts.notes,
    )


def worst_class(
    labels: Labels, correct: npt.NDArray[np.bool_], reference_correct: npt.NDArray[np.bool_], names: Sequence[str]
) -> ClassShare:
    """Return the class with the smallest recall; of equals the first.

    Args:
        labels: True classes, shape ``(n,)``.
        correct: Which samples the variant gets right, shape ``(n,)``.
        reference_correct: Which the reference gets right, shape ``(n,)``.
        names: By class; empty where the data has none.

    >>> labels = np.array([0, 0, 1, 1])
    >>> worst = worst_class(labels, np.array([True, True, True, False]), labels >= 0, ["cat", "dog"])
    >>> worst.name, worst.recall_ratio, worst.reference_recall_ratio
    ('dog', 0.5, 1.0)
    """
    occurring = np.unique(labels).tolist()
    worst = min(occurring, key=lambda label: float(correct[labels == label].mean()))
    of_it = labels == worst
    return ClassShare(
        label=worst,
        name=names[worst] if names else None,
        n=int(of_it.sum()),
        recall_ratio=float(correct[of_it].mean()),
        reference_recall_ratio=float(reference_correct[of_it].mean()),
    )


def beside_each_other(rows: Sequence[VariantReport], reference: str) -> tuple[VariantReport, ...]:
    """Return the rows with forecast, dominance and remarks.

    Args:
        rows: All variants, with timing and gain as far as they have them.
        reference: The name of the one that others are compared with.
    """
    forecasts = forecast.forecasts(rows)
    dominated, said = front.dominated_by(rows), remarks.remarks(rows, reference)
    return tuple(
        replace(
            each,
            forecast=forecasts.get(each.name),
            dominated_by=dominated[each.name],
            remarks=(*each.remarks, *said[each.name]),
        )
        for each in rows
    )
