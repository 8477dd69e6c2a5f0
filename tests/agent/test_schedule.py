"""Windows lie on a grid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.schedule import MAX_SAVED_S, Allowance, first_after_s, next_window_s

LENGTHS_S = st.floats(0.1, 86_400.0)


@given(st.floats(0.0, 1e8), LENGTHS_S, st.floats(0.0, 1e8))
def test_the_next_window_is_in_the_future_by_one_length_at_most(last_s: float, length_s: float, ago_s: float) -> None:
    now_s = last_s + ago_s
    due_s = next_window_s(last_s, length_s, now_s)

    assert now_s - 1e-6 <= due_s <= now_s + length_s + 1e-6


@given(st.integers(0, 10_000), st.integers(1, 600), st.integers(0, 100_000))
def test_it_lies_on_the_grid_of_the_last_one(last_s: int, length_s: int, ago_s: int) -> None:
    due_s = next_window_s(float(last_s), float(length_s), float(last_s + ago_s))

    assert (due_s - last_s) % length_s == 0


def test_measuring_that_takes_a_while_does_not_move_the_grid() -> None:
    due_s = 0.0
    for _ in range(100):
        due_s = next_window_s(due_s, 5.0, due_s + 0.7)

    assert due_s == pytest.approx(500.0)


def test_a_clock_before_the_last_window_waits_for_one_length() -> None:
    assert next_window_s(100.0, 5.0, 90.0) == 105.0


@given(
    ratio=st.floats(0.001, 4.0),
    costs=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=40),
    length_s=st.floats(0.5, 600.0),
)
def test_over_a_long_time_no_more_is_taken_than_the_share(ratio: float, costs: list[float], length_s: float) -> None:
    allowance = Allowance(ratio=ratio, at_s=0.0)
    due_s = now_s = 0.0
    taken_s = 0.0
    for cost_s in costs:
        now_s = max(now_s, due_s)
        allowance = allowance.at(now_s)
        if allowance.free_s > now_s:
            due_s = first_after_s(due_s, length_s, allowance.free_s)
            assert due_s >= allowance.free_s - 1e-6
            now_s = due_s
            allowance = allowance.at(now_s)
        # What was taken before this window has been earned by now.
        assert taken_s <= ratio * now_s + 1e-6 * (1 + taken_s)
        allowance = allowance.less(cost_s)
        taken_s += cost_s
        due_s = next_window_s(due_s, length_s, now_s)


def test_what_was_saved_in_quiet_times_is_bounded() -> None:
    saved = Allowance(ratio=0.1, at_s=0.0).at(30 * 24 * 3600.0)

    assert saved.saved_s == pytest.approx(0.1 * MAX_SAVED_S)
    assert saved.at(0.0) == saved  # a clock that went back earns nothing
