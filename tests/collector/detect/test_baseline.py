from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.detect.baseline import (
    MAX_GUARD_RATIO,
    Guard,
    class_baseline,
    guard_band,
    latency_quantile,
    limit,
    memory_quantile,
    tolerable_ratio,
)
from evenfleet_shared import sketch

shares = st.lists(st.floats(0.0, 1.0), max_size=60)


def test_bad_tenth_of_a_devices_windows_does_not_move_its_baseline() -> None:
    good, bad = sketch.from_values([10.0] * 94 + [20.0] * 6), sketch.from_values([90.0] * 100)

    assert latency_quantile([good] * 9 + [bad], 0.95) == pytest.approx(20.0, rel=0.01)


def test_latency_baseline_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one window"):
        latency_quantile([], 0.95)


def test_memory_quantile_is_a_peak_that_was_seen() -> None:
    assert memory_quantile([300, 100, 200], 0.5) == 200


def test_bad_third_of_a_class_does_not_move_its_baseline() -> None:
    assert class_baseline([20.0, 20.5, 21.0, 19.5, 60.0, 80.0]) < 21.0


def test_class_without_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one device"):
        class_baseline([])


def test_limit_is_the_margin_above_the_baseline() -> None:
    assert limit(100.0, 0.25) == 125.0


def test_guard_band_covers_a_slow_regime_of_good_devices() -> None:
    slow_night = [0.0] * 200 + [0.12] * 40 + [0.0] * 48

    guard = guard_band([slow_night], allowed_ratio=0.05)

    assert guard.ratio == pytest.approx(0.12)


def test_one_odd_window_is_not_a_regime() -> None:
    guard = guard_band([[0.0] * 100 + [1.0] + [0.0] * 100], allowed_ratio=0.05)

    assert guard.ratio == 0.0


def test_devices_already_outside_do_not_set_the_guard_band() -> None:
    good, bad = [[0.02] * 288] * 19, [[0.6] * 288]

    guard = guard_band([*good, *bad], allowed_ratio=0.05)

    assert guard.ratio == pytest.approx(0.02)
    assert (guard.devices, guard.excluded_devices) == (19, 1)


def test_calibration_shorter_than_the_moving_mean_counts_with_its_mean() -> None:
    assert guard_band([[0.0, 0.06], [0.01]], allowed_ratio=0.05).ratio == 0.03


def test_guard_band_wider_than_half_is_cut_and_says_so() -> None:
    regime = [0.0] * 500 + [1.0] * 24

    guard = guard_band([regime], allowed_ratio=0.05)

    assert guard.ratio == MAX_GUARD_RATIO
    assert guard.capped


def test_class_without_good_devices_has_no_guard_band() -> None:
    guard = guard_band([[0.5] * 30, []], allowed_ratio=0.05)

    assert guard == Guard(ratio=0.0, devices=0, excluded_devices=1, capped=False)
    assert tolerable_ratio(0.05, guard) == 0.05


@given(calibrations=st.lists(shares, max_size=8), allowed=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_guard_band_leaves_room_to_bet_and_ignores_the_order_of_devices(
    calibrations: list[list[float]], allowed: float
) -> None:
    guard = guard_band(calibrations, allowed_ratio=allowed)

    assert allowed <= tolerable_ratio(allowed, guard) <= MAX_GUARD_RATIO
    assert guard == guard_band(calibrations[::-1], allowed_ratio=allowed)
