from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import leak
from evenfleet_agent.leak import History


def history(readings):
    found = History()
    for at_s, resident_bytes in readings:
        found = leak.with_reading(found, at_s, resident_bytes)
    return found


def test_memory_that_stays_has_no_slope_and_no_doubt_about_it():
    found = leak.slope(history((300.0 * window, 50_000_000) for window in range(500)))
    assert found is not None
    assert (found.windows, found.bytes_per_hour, found.low_bytes_per_hour, found.high_bytes_per_hour) == (500, 0, 0, 0)


def test_fewer_than_eight_windows_say_nothing():
    assert leak.slope(history((300.0 * window, window) for window in range(7))) is None
    assert leak.slope(history((300.0 * window, window) for window in range(8))) is not None


def test_windows_of_one_moment_say_nothing():
    assert leak.slope(history((5.0, window) for window in range(20))) is None


def test_leak_is_found_under_noise_that_is_larger_than_a_windows_growth():
    """4 KB per window of 300 s under noise of 40 KB: 48 KB an hour."""
    draw = random.Random(1)
    found = leak.slope(history((300.0 * i, 50_000_000 + 4_000 * i + draw.gauss(0, 40_000)) for i in range(200)))
    assert found is not None
    assert found.low_bytes_per_hour > 0
    assert found.low_bytes_per_hour <= 48_000 <= found.high_bytes_per_hour
    assert found.bytes_per_hour == pytest.approx(48_000, rel=0.2)


def test_one_wild_reading_does_not_make_a_leak():
    readings = [(300.0 * window, 50_000_000) for window in range(20)]
    readings[13] = (readings[13][0], 90_000_000)
    found = leak.slope(history(readings))
    assert found is not None
    assert found.bytes_per_hour == 0
    assert found.low_bytes_per_hour == found.high_bytes_per_hour == 0


@pytest.mark.parametrize("grown_at", [1, 10, 20, 30, 39])
def test_memory_that_grows_once_and_stays_is_not_told_as_surely_growing(grown_at):
    found = leak.slope(history((300.0 * i, 50_000_000 + 9_000_000 * (i >= grown_at)) for i in range(40)))
    assert found is not None
    assert found.low_bytes_per_hour == 0


def test_interval_holds_the_true_slope_in_95_of_100_cases():
    """Drawn 1,000 times; the share may miss 0.95 by the chance of that many draws."""
    draw = random.Random(2)
    held = 0
    for _ in range(1000):
        found = leak.slope(history((3600.0 * i, 10 * i + draw.gauss(0, 50)) for i in range(20)))
        assert found is not None
        held += found.low_bytes_per_hour <= 10 <= found.high_bytes_per_hour
    assert 0.93 <= held / 1000 <= 0.985


@given(windows=st.integers(1, 3000))
def test_history_is_bounded_and_spans_the_runners_whole_life(windows):
    found = history((float(window), window) for window in range(windows))
    assert len(found.readings) <= leak.MAX_READINGS
    assert found.seen == windows
    assert found.readings[0] == (0.0, 0)
    assert windows - 1 - found.readings[-1][0] < found.stride
    assert windows < 2 * leak.MAX_READINGS or len(found.readings) >= leak.MAX_READINGS // 2
