"""Turn what a runner measured into the figures of one window.

Pure: raw samples in, the fields of `messages.Window` out. The header, the names and the clocks are the supervisor's.

* The count of samples above a limit is exact; the sketch is for everything else.
* Nothing is filtered: a slow sample is a slow sample.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from evenfleet_agent.predict import Prediction
from evenfleet_agent.runner.protocol import Evaluation, Measured
from evenfleet_shared import sketch
from evenfleet_shared.messages import (
    MAX_MS,
    Accuracy,
    Claim,
    Conditions,
    Cost,
    Exceedance,
    Latency,
    Leak,
    Limit,
    MemoryReading,
    Phase,
    Sustained,
    Throughput,
)
from evenfleet_shared.metrics import QUANTILES, claimed, nearest_rank, quantile_interval, runs_needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the supervisor knows of a measurement and the runner does not; None where it does not know it.

    Attributes:
        conditions: From before the measurement to after it, like `throttled`.
        leak: Of this runner since it was started.
        prediction: What the other models let expect.
        macs: The model's multiply-accumulates, from the release's manifest.
    """

    conditions: Conditions | None = None
    throttled: bool | None = None
    leak: Leak | None = None
    prediction: Prediction | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBody:
    """The measured fields of `messages.Window`, by the same names."""

    latency: Latency
    exceedances: tuple[Exceedance, ...]
    accuracy: Accuracy | None
    memory: tuple[MemoryReading, ...]
    throttled: bool | None
    mode: Literal["steady", "cadence"]
    cadence_ms: float | None
    late_starts: int | None
    phases: tuple[Phase, ...]
    conditions: Conditions | None
    cost: Cost
    leak: Leak | None
    sustained: Sustained | None
    throughput: Throughput | None

    def fields(self) -> dict[str, Any]:
        """Return them by name, for a `messages.Window` to be made of them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def close(
    measured: Measured, *, limits: Sequence[Limit], golden: str | None, surroundings: Surroundings = Surroundings()
) -> WindowBody:
    """Return one window's figures.

    Args:
        measured: What the runner answered; it has one sample at least.
        limits: From `desired`.
        golden: The golden set's digest, which the accuracy is reported under; None reports none.
        surroundings: What was learnt beside the runner.

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
        throttled=surroundings.throttled,
        mode="steady" if measured.cadence_ms is None else "cadence",
        cadence_ms=measured.cadence_ms,
        late_starts=measured.late_starts,
        phases=measured.phases,
        conditions=_with_gpu(surroundings.conditions, measured.gpu_use_ratio),
        cost=cost(measured, len(ordered), surroundings),
        leak=surroundings.leak,
        sustained=measured.sustained,
        throughput=measured.throughput,
    )


def _with_gpu(conditions: Conditions | None, use_ratio: float | None) -> Conditions | None:
    if use_ratio is None:
        return conditions
    return replace(conditions or Conditions(), gpu_use_ratio=min(1.0, max(0.0, use_ratio)))


def cost(measured: Measured, samples: int, surroundings: Surroundings) -> Cost:
    """Return what one inference took beside its time.

    Raises:
        ValueError: What was measured is no amount.
    """
    inferences = samples * measured.inferences_per_sample
    cpu_ms = measured.cpu_s * 1e3 / inferences
    energy_mj = None if measured.energy_mj is None else measured.energy_mj / inferences
    if not _is_duration(cpu_ms) or not _is_duration(energy_mj or 0.0):
        raise ValueError("cpu_s and energy_mj must be amounts")
    prediction = surroundings.prediction
    return Cost(
        cpu_ms=cpu_ms,
        energy_mj=energy_mj,
        energy_method=measured.energy_method,
        macs=surroundings.macs,
        predicted_ms=None if prediction is None else prediction.predicted_ms,
        predicted_error_ratio=None if prediction is None else prediction.error_ratio,
    )


def claim(ordered: Sequence[float], q: float) -> Claim:
    """Return what samples in rising order allow to be said about one quantile."""
    low_ms, high_ms = quantile_interval(ordered, q) or (None, None)
    at_most_ms = claimed(ordered, q)
    return Claim(
        q=q,
        low_ms=low_ms,
        high_ms=high_ms,
        at_most_ms=at_most_ms,
        runs_needed=runs_needed(q) if at_most_ms is None else None,
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
    claims = tuple(claim(ordered, q) for q in QUANTILES)
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
        p99_qualified=claims[-1].at_most_ms is not None,
        sketch=sketch.from_values(ordered),
        claims=claims,
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
