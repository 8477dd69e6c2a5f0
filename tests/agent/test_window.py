from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import window
from evenfleet_agent.predict import Prediction
from evenfleet_agent.runner.protocol import Evaluation, Measured
from evenfleet_shared import sketch
from evenfleet_shared.messages import (
    Agreement,
    Conditions,
    Leak,
    Limit,
    MemoryReading,
    Phase,
    Sustained,
    Throughput,
    Window,
    decode,
    encode,
)

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
KNOWN = window.Surroundings(
    conditions=Conditions(steal_ratio=0.25, temperature_c=61.5),
    throttled=True,
    leak=Leak(windows=9, bytes_per_hour=10.0, low_bytes_per_hour=-5.0, high_bytes_per_hour=12.0),
    prediction=Prediction(predicted_ms=3.0, error_ratio=0.5),
    macs=1_000_000,
)
durations = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


def measured(samples_ms, *, evaluation=None, inferences_per_sample=1, **further):
    return Measured(
        samples_ms=array("d", samples_ms).tobytes(),
        inferences_per_sample=inferences_per_sample,
        init_ms=12.0,
        first_ms=3.0,
        evaluation=evaluation,
        memory=(MemoryReading(kind="peak_rss", bytes=10_000_000, method="VmHWM"),),
        length_s=1.0,
        waited_s=0.0,
        **{"cpu_s": 0.5, **further},
    )


@given(durations)
def test_any_durations_give_a_window_that_the_collector_takes(samples_ms):
    body = window.close(measured(samples_ms, evaluation=EVALUATION), limits=(), golden=GOLDEN, surroundings=KNOWN)
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
        **body.fields(),
    )
    assert decode("window", encode(message)) == message


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


def test_every_quantile_is_told_with_its_interval_and_with_what_may_be_claimed():
    latency = window.close(measured([float(i) for i in range(1, 201)]), limits=(), golden=None).latency
    told = {claim.q: claim for claim in latency.claims}
    assert set(told) == {0.5, 0.9, 0.95, 0.99}
    assert (told[0.5].low_ms, told[0.5].high_ms) == (86.0, 115.0)
    # P(Binomial(200, 0.1) <= 10) is 0.8 % and P(Binomial(200, 0.05) <= 3) is 0.9 %, each the last below 1 %.
    assert (told[0.9].at_most_ms, told[0.9].runs_needed) == (191.0, None)
    assert told[0.95].at_most_ms == 198.0
    assert (told[0.99].at_most_ms, told[0.99].high_ms, told[0.99].runs_needed) == (None, None, 662)


def test_what_the_supervisor_knows_stands_beside_what_was_measured():
    body = window.close(measured([1.0]), limits=(), golden=None, surroundings=KNOWN)
    assert (body.throttled, body.conditions, body.leak) == (True, KNOWN.conditions, KNOWN.leak)
    assert (body.cost.macs, body.cost.predicted_ms, body.cost.predicted_error_ratio) == (1_000_000, 3.0, 0.5)


def test_what_nobody_knows_is_none():
    body = window.close(measured([1.0]), limits=(), golden=None)
    assert (body.throttled, body.conditions, body.leak) == (None, None, None)
    cost = body.cost
    assert (cost.energy_mj, cost.energy_method, cost.macs, cost.predicted_ms) == (None, None, None, None)


def test_cost_is_of_one_inference_though_a_sample_is_of_several():
    body = window.close(
        measured([1.0] * 5, inferences_per_sample=4, cpu_s=0.1, energy_mj=50.0, energy_method="RAPL"),
        limits=(),
        golden=None,
    )
    assert (body.cost.cpu_ms, body.cost.energy_mj, body.cost.energy_method) == (5.0, 2.5, "RAPL")


@pytest.mark.parametrize("further", [{"cpu_s": math.nan}, {"cpu_s": -1.0}, {"energy_mj": math.inf}])
def test_cost_that_is_no_amount_is_a_programming_mistake(further):
    with pytest.raises(ValueError, match="amounts"):
        window.close(measured([1.0], **further), limits=(), golden=None)


def test_window_says_how_inferences_were_called():
    phases = (Phase(name="queue", n=1, p50_ms=0.1, p95_ms=0.2),)
    sustained = Sustained(
        duration_s=600.0, span_s=60.0, inferences=1000, first_p50_ms=1.0, last_p50_ms=1.5, slowdown_ratio=1.5
    )
    throughput = Throughput(batch=64, inferences=6400, duration_s=2.0, per_s=3200.0)
    body = window.close(
        measured([1.0], cadence_ms=40.0, late_starts=3, phases=phases, sustained=sustained, throughput=throughput),
        limits=(),
        golden=None,
    )
    assert (body.mode, body.cadence_ms, body.late_starts) == ("cadence", 40.0, 3)
    assert (body.phases, body.sustained, body.throughput) == (phases, sustained, throughput)
    assert window.close(measured([1.0]), limits=(), golden=None).mode == "steady"


def test_gpu_in_use_is_a_condition_and_one_that_is_not_there_is_none():
    used = window.close(measured([1.0], gpu_use_ratio=0.37), limits=(), golden=None)
    assert used.conditions is not None
    assert used.conditions.gpu_use_ratio == 0.37
    assert window.close(measured([1.0]), limits=(), golden=None).conditions is None
