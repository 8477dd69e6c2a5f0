from __future__ import annotations

import dataclasses
import math
from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.tolerance import (
    SEVERITY,
    ExceedanceTolerance,
    Policy,
    Setup,
    combine,
    differing_keys,
    log_a,
    with_room_for,
)
from evenfleet_shared.messages import COMPARABILITY_KEYS, RunContext, comparability_key

RUN = RunContext(
    device_class="pi-4",
    runtime="litert",
    runtime_version="2.3.0",
    accelerator_requested="cpu",
    accelerator_executed="xnnpack",
    delegated_ratio=1.0,
    fallback_reason=None,
    threads=1,
    governor=None,
    power_mode=None,
    os="Debian 12",
    kernel="6.1",
    machine="x86_64",
    cpu_model=None,
    cpu_count=2,
    memory_total_bytes=2**32,
    python="3.11.7",
    attributes={},
)


def test_policy_survives_json() -> None:
    policy = Policy(revision=3, streams=500, latency=ExceedanceTolerance(quantile=0.9))

    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"window_length_s": 0}', "window_length_s"),
        (b'{"latency": {"quantile": 1.0}}', "latency.quantile"),
        (b'{"accuracy": {"margin_ratio": -0.1}}', "accuracy.margin_ratio"),
        (b'{"streams": 1, "false_flags_per_fleet_month": 1000}', "false_flags_per_fleet_month"),
    ],
)
def test_policy_out_of_bounds_is_refused_by_name(text: bytes, named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.json.decode(text, type=Policy)


def test_threshold_follows_from_streams_windows_and_budget() -> None:
    policy = Policy(streams=512, window_length_s=60.0, false_flags_per_fleet_month=2.0)

    exact = math.log(512 * 43_200 / 2)

    assert exact <= log_a(policy) <= exact + 2**-16 + 1e-9


def test_enrolling_a_device_changes_no_threshold_until_the_power_of_two_is_full() -> None:
    assert log_a(Policy(streams=65)) == log_a(Policy(streams=128)) < log_a(Policy(streams=129))
    assert with_room_for(Policy(streams=65), 128) == Policy(streams=65)
    assert with_room_for(Policy(streams=65), 129) == Policy(revision=2, streams=256)


def test_allowed_share_compares_equal_to_the_same_share_of_a_count() -> None:
    for hundredths in range(50, 100):
        allowed = ExceedanceTolerance(quantile=hundredths / 100).allowed_ratio
        assert (100 - hundredths) / 100 == allowed


def test_device_is_silent_after_three_windows() -> None:
    assert Policy(window_length_s=60.0).silent_after_s == 180.0


def test_cell_has_the_worst_verdict_of_its_metrics_in_any_order() -> None:
    for worst, verdict in enumerate(SEVERITY):
        for order in permutations(SEVERITY[worst:]):
            assert combine(order) == verdict


def test_cell_without_metrics_is_not_within() -> None:
    assert combine([]) == "undetermined"


def test_runs_that_differ_in_other_things_may_be_compared() -> None:
    other = dataclasses.replace(RUN, kernel="6.6", accelerator_requested="gpu", attributes={"rack": "7"})

    assert differing_keys(Setup(run=RUN), Setup(run=other)) == ()
    assert comparability_key(RUN) == comparability_key(other)


@pytest.mark.parametrize("ratio", [0.1, None])
def test_another_share_delegated_forbids_comparing_runs_of_one_file_alone(ratio: float | None) -> None:
    other = dataclasses.replace(RUN, delegated_ratio=ratio)

    assert differing_keys(Setup(run=RUN), Setup(run=other)) == ("delegated_ratio",)
    assert comparability_key(RUN) == comparability_key(other)


def test_windows_that_were_called_in_another_way_may_not_be_compared() -> None:
    steady = Setup(run=RUN)
    slow, fast = (Setup(run=RUN, mode="cadence", cadence_ms=ms) for ms in (100.0, 40.0))

    assert differing_keys(steady, slow) == ("mode", "cadence_ms")
    assert differing_keys(slow, fast) == ("cadence_ms",)
    assert differing_keys(slow, dataclasses.replace(slow)) == ()


@given(keys=st.sets(st.sampled_from(COMPARABILITY_KEYS)))
def test_differing_keys_are_named(keys: set[str]) -> None:
    changes = {key: 7 if key == "threads" else "other" for key in keys}
    other = dataclasses.replace(RUN, **changes)  # type: ignore[arg-type]

    assert set(differing_keys(Setup(run=RUN), Setup(run=other))) == keys
    assert (comparability_key(RUN) == comparability_key(other)) == (not keys)
