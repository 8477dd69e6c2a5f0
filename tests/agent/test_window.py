from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import window
from evenfleet_agent.runner.protocol import Evaluation, Measured
from evenfleet_shared import sketch
from evenfleet_shared.messages import Agreement, Limit, MemoryReading, Window, decode, encode

GOLDEN = "a" * 64
AGREEMENT = Agreement(noise_class="bit-exact", top1_ratio=1.0, max_abs_diff=0.0, rms_diff=0.0)
EVALUATION = Evaluation(
    n=4,
    errors=1,
    tp=(2, 1),
    fp=(0, 1),
    fn=(1, 0),
    discordant_b=1,
    discordant_c=0,
    hamming=None,
    prediction_digest="b" * 64,
    agreement=AGREEMENT,
)
durations = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


def measured(samples_ms, *, evaluation=None, inferences_per_sample=1):
    return Measured(
        samples_ms=array("d", samples_ms).tobytes(),
        inferences_per_sample=inferences_per_sample,
        init_ms=12.0,
        first_ms=3.0,
        evaluation=evaluation,
        memory=(MemoryReading(kind="peak_rss", bytes=10_000_000, method="VmHWM"),),
        length_s=1.0,
        waited_s=0.0,
        cpu_s=0.5,
    )


@given(durations)
def test_any_durations_give_a_window_that_the_collector_takes(samples_ms):
    body = window.close(measured(samples_ms, evaluation=EVALUATION), limits=(), golden=GOLDEN)
    message = Window(
        device="press-07",
        incarnation=(1, "0" * 8),  # type: ignore[arg-type]
        seq=1,
        floor=1,
        release="c" * 64,
        variant="int8",
        artifact="d" * 64,
        context="e" * 64,
        length_s=1.0,
        ended_uptime_s=5.0,
        ended_wall_s=5.0,
        runner_start=0,
        latency=body.latency,
        exceedances=body.exceedances,
        accuracy=body.accuracy,
        memory=body.memory,
    )
    assert decode("window", encode(message)).latency == body.latency


@given(durations, st.floats(0, 1e6))
def test_exceedances_are_counted_exactly_and_strictly_above(samples_ms, limit_ms):
    (counted,) = window.close(
        measured(samples_ms), limits=[Limit(limit_ms=limit_ms, revision=3)], golden=None
    ).exceedances
    assert counted.exceed == len([value for value in samples_ms if value > limit_ms])
    assert (counted.n, counted.limit_revision) == (len(samples_ms), 3)


def test_sample_at_the_limit_is_not_above_it():
    (counted,) = window.close(measured([1.0, 2.0]), limits=[Limit(limit_ms=2.0, revision=1)], golden=None).exceedances
    assert counted.exceed == 0


@given(durations)
def test_sketch_agrees_with_the_raw_quantiles(samples_ms):
    latency = window.close(measured(samples_ms), limits=(), golden=None).latency
    told = sketch.quantile(latency.sketch, 0.95)
    assert math.isclose(told, latency.p95_ms, rel_tol=0.0101, abs_tol=1e-6)


@pytest.mark.parametrize(("n", "qualified"), [(661, False), (662, True)])
def test_p99_is_qualified_from_the_least_number_of_runs(n, qualified):
    assert window.close(measured([1.0] * n), limits=(), golden=None).latency.p99_qualified is qualified


def test_quantiles_are_nearest_ranks_whatever_the_order():
    latency = window.close(measured([float(i) for i in range(100, 0, -1)]), limits=(), golden=None).latency
    assert (latency.min_ms, latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms) == (1, 50, 95, 99, 100)


def test_accuracy_needs_labels_reference_and_reference_outputs():
    for missing in ({"errors": None}, {"agreement": None}, {"discordant_b": None}):
        part = Evaluation(**{**{name: getattr(EVALUATION, name) for name in EVALUATION.__struct_fields__}, **missing})
        assert window.close(measured([1.0], evaluation=part), limits=(), golden=GOLDEN).accuracy is None


@pytest.mark.parametrize("samples_ms", [[], [math.nan], [1.0, -1.0], [math.inf]])
def test_samples_that_are_no_durations_are_a_programming_mistake(samples_ms):
    with pytest.raises(ValueError, match="durations"):
        window.close(measured(samples_ms), limits=(), golden=None)
