"""Turn what a runner measured into the figures of one window.

Pure: raw samples in, the fields of `messages.Window` out. The header, the names and the clocks are the supervisor's.

* The count of samples above a limit is exact; the sketch is for everything else.
* Nothing is filtered: a slow sample is a slow sample.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from evenfleet_agent.runner.protocol import Evaluation, Measured
from evenfleet_shared import sketch
from evenfleet_shared.messages import MAX_MS, Accuracy, Exceedance, Latency, Limit, MemoryReading
from evenfleet_shared.metrics import MIN_RUNS_FOR_P99, nearest_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBody:
    """The measured fields of `messages.Window`, by the same names."""

    latency: Latency
    exceedances: tuple[Exceedance, ...]
    accuracy: Accuracy | None
    memory: tuple[MemoryReading, ...]


def close(measured: Measured, *, limits: Sequence[Limit], golden: str | None) -> WindowBody:
    """Return one window's figures.

    Args:
        measured: What the runner answered; it has one sample at least.
        limits: From `desired`.
        golden: The golden set's digest, which the accuracy is reported under; None reports none.

    Raises:
        ValueError: There are no samples, or one is no duration.
    """
    ordered = ordered_samples_ms(measured)
    return WindowBody(
        latency=latency(measured, ordered),
        exceedances=tuple(
            Exceedance(
                metric=limit.metric,
                limit_ms=limit.limit_ms,
                limit_revision=limit.revision,
                exceed=sum(1 for value in ordered if value > limit.limit_ms),
                n=len(ordered),
            )
            for limit in limits
        ),
        accuracy=accuracy(measured.evaluation, golden) if measured.evaluation and golden else None,
        memory=measured.memory,
    )


def ordered_samples_ms(measured: Measured) -> list[float]:
    """Return the raw samples in rising order.

    Raises:
        ValueError: There are none, or one is no duration.
    """
    samples = array("d")
    samples.frombytes(measured.samples_ms)
    if not samples or not all(_is_duration(value) for value in samples):
        raise ValueError("a window needs samples that are durations")
    return sorted(samples)


def latency(measured: Measured, ordered: Sequence[float]) -> Latency:
    """Return the latency figures of samples in rising order.

    Raises:
        ValueError: What was measured beside them is no duration.
    """
    if not all(_is_duration(value) for value in (measured.init_ms, measured.first_ms, measured.left_out_ms)):
        raise ValueError("init_ms, first_ms and left_out_ms must be durations")
    n = len(ordered)
    return Latency(
        n=n,
        inferences_per_sample=measured.inferences_per_sample,
        left_out_ms=measured.left_out_ms,
        init_ms=measured.init_ms,
        first_ms=measured.first_ms,
        min_ms=ordered[0],
        mean_ms=math.fsum(ordered) / n,
        max_ms=ordered[-1],
        p50_ms=nearest_rank(ordered, 0.5),
        p90_ms=nearest_rank(ordered, 0.9),
        p95_ms=nearest_rank(ordered, 0.95),
        p99_ms=nearest_rank(ordered, 0.99),
        p99_qualified=n >= MIN_RUNS_FOR_P99,
        sketch=sketch.from_values(ordered),
    )


def accuracy(evaluation: Evaluation, golden: str) -> Accuracy | None:
    """Return an evaluation as it is reported, None where labels, reference or reference outputs are missing."""
    if evaluation.errors is None or evaluation.agreement is None:
        return None
    if evaluation.discordant_b is None or evaluation.discordant_c is None:
        return None
    return Accuracy(
        golden=golden,
        task=evaluation.task,
        n=evaluation.n,
        errors=evaluation.errors,
        tp=evaluation.tp,
        fp=evaluation.fp,
        fn=evaluation.fn,
        discordant_b=evaluation.discordant_b,
        discordant_c=evaluation.discordant_c,
        hamming=evaluation.hamming,
        prediction_digest=evaluation.prediction_digest,
        agreement=evaluation.agreement,
        metric=evaluation.metric,
        score=evaluation.score,
    )


def _is_duration(value_ms: float) -> bool:
    # False for NaN too, which the collector would refuse the whole window for.
    return 0.0 <= value_ms <= MAX_MS
