from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfleet_collector.detect.betting import (
    NAT,
    BetRule,
    BetState,
    Evidence,
    JudgedWindow,
    _log_floor,
    rule,
    step,
    why,
)

LATENCY = rule(mu0=0.05, allowed_ratio=0.05, alpha=0.05, log_a=17.8)
DEMO = rule(mu0=0.10, allowed_ratio=0.10, alpha=0.05, log_a=17.8)

exceeds = st.lists(st.integers(0, 100), max_size=120)
mostly_bad = st.lists(st.one_of(st.integers(0, 100), st.integers(60, 100)), max_size=120)


def run(stream: list[int], by: BetRule = LATENCY, state: BetState | None = None) -> tuple[BetState, list[Evidence]]:
    state = state or BetState()
    evidence = []
    for exceed in stream:
        state, seen = step(state, exceed, 100, by)
        evidence.append(seen)
    return state, evidence


def windows_until(verdict: str, exceed: int, by: BetRule, state: BetState | None = None, most: int = 1000) -> int:
    state = state or BetState()
    for window in range(1, most + 1):
        state, seen = step(state, exceed, 100, by)
        if seen.verdict == verdict:
            return window
    raise AssertionError(f"not {verdict} after {most} windows")


@given(exceed=st.integers(0, 5), windows=st.integers(1, 400))
@settings(max_examples=30)
def test_constant_stream_inside_never_flags(exceed: int, windows: int) -> None:
    _, evidence = run([exceed] * windows)

    assert all(seen.verdict != "outside" and not seen.suspect for seen in evidence)


@given(
    base=st.integers(0, 3),
    spikes=st.lists(st.tuples(st.integers(6, 100), st.integers(1, 2)), max_size=6),
    log_a=st.floats(5.0, 30.0),
    min_windows=st.integers(3, 5),
)
@settings(max_examples=60)
def test_spikes_of_one_or_two_windows_never_flag(
    base: int, spikes: list[tuple[int, int]], log_a: float, min_windows: int
) -> None:
    by = rule(mu0=0.05, allowed_ratio=0.05, alpha=0.05, log_a=log_a, min_windows=min_windows)
    stream = [base] * 5
    for height, length in spikes:
        stream += [height] * length + [base] * 60

    _, evidence = run(stream, by)

    assert all(seen.verdict != "outside" for seen in evidence)


@given(log_a=st.floats(3.0, 40.0), min_windows=st.integers(1, 10), mu0=st.sampled_from([0.001, 0.01, 0.05, 0.5]))
def test_flag_takes_more_than_min_windows_however_bad_they_are(log_a: float, min_windows: int, mu0: float) -> None:
    by = rule(mu0=mu0, allowed_ratio=mu0, alpha=0.05, log_a=log_a, min_windows=min_windows)

    assert windows_until("outside", 100, by) > min_windows


@given(stream=exceeds, more=st.lists(st.integers(0, 40), min_size=120, max_size=120))
def test_more_exceedance_never_lowers_the_evidence_against_a_device(stream: list[int], more: list[int]) -> None:
    worse = [min(100, exceed + extra) for exceed, extra in zip(stream, more, strict=False)]
    _, evidence = run(stream)
    _, worse_evidence = run(worse)

    for seen, seen_worse in zip(evidence, worse_evidence, strict=True):
        if seen.verdict == "outside" or seen_worse.verdict == "outside":
            break  # a flag that is cleared starts anew, so what follows is another story
        assert seen_worse.outside_nats >= seen.outside_nats
        assert seen_worse.within_nats <= seen.within_nats


@given(stream=mostly_bad, log_a=st.floats(3.0, 45.0))
def test_state_is_bounded_and_survives_being_stored(stream: list[int], log_a: float) -> None:
    by = rule(mu0=0.05, allowed_ratio=0.05, alpha=0.05, log_a=log_a)
    state, _ = run([100] * 60 + stream, by)

    assert msgspec.json.decode(msgspec.json.encode(state), type=BetState) == state
    assert all(abs(total) < 2**31 for total in state.outside + state.within)
    assert max(state.outside) <= by.ceiling


@given(stream=mostly_bad, cut=st.integers(0, 120))
def test_restart_at_any_window_gives_the_same_state_and_evidence(stream: list[int], cut: int) -> None:
    whole, evidence = run(stream)

    before, first = run(stream[:cut])
    restored = msgspec.json.decode(msgspec.json.encode(before), type=BetState)
    after, second = run(stream[cut:], state=restored)

    assert after == whole
    assert first + second == evidence


@given(stream=mostly_bad)
def test_outside_and_within_never_hold_together(stream: list[int]) -> None:
    state = BetState()
    for exceed in [0] * 40 + stream:
        state, seen = step(state, exceed, 100, DEMO)
        assert not (state.flagged and state.settled)
        assert (seen.verdict == "outside") == state.flagged
        assert (seen.verdict == "within") == state.settled


@given(stream=st.lists(st.integers(0, 100), max_size=29))
def test_within_takes_thirty_windows_however_good_they_are(stream: list[int]) -> None:
    _, evidence = run([0] * (29 - len(stream)) + stream, DEMO)

    assert all(seen.verdict != "within" for seen in evidence)


@pytest.mark.parametrize(("by", "least", "most"), [(DEMO, 30, 35), (LATENCY, 60, 65)])
def test_healthy_stream_becomes_within_in_the_promised_time(by: BetRule, least: int, most: int) -> None:
    assert least <= windows_until("within", 0, by) <= most


def test_within_survives_one_odd_window_but_not_two() -> None:
    settled, _ = run([0] * 300)

    after_one, _ = run([100], state=settled)
    after_two, evidence = run([100, 100], state=settled)

    assert after_one.settled
    assert not after_two.settled
    assert evidence[-1].verdict == "undetermined"


@pytest.mark.parametrize("exceed", [9, 12, 20, 50, 100])
def test_device_that_goes_bad_leaves_within_before_it_is_flagged(exceed: int) -> None:
    settled, _ = run([0] * 5000)

    left = windows_until("undetermined", exceed, LATENCY, settled)
    flagged = windows_until("outside", exceed, LATENCY, settled)

    assert left < flagged


def test_device_always_at_the_boundary_is_rarely_called_within() -> None:
    """One measurement a window, one in twenty above: a bet that starts anew at 0 calls nearly every stream within."""
    draw = random.Random(7)
    streams, wrong = 200, 0
    for _ in range(streams):
        state = BetState()
        for _ in range(500):
            state, seen = step(state, int(draw.random() < 0.05), 1, LATENCY)
            if seen.verdict == "within":
                wrong += 1
                break

    # alpha is 0.05: 10 expected at most, and 19 is three standard errors above that.
    assert wrong <= 19


def test_long_past_beyond_tolerance_does_not_outvote_the_present() -> None:
    wide = rule(mu0=0.40, allowed_ratio=0.05, alpha=0.05, log_a=17.8)
    never_flagged, _ = run([20] * 2000, wide)

    assert windows_until("within", 0, wide, never_flagged) <= 250


def test_within_does_not_flap_when_it_has_just_been_reached() -> None:
    state, _ = run([0] * 65)
    assert state.settled

    _, evidence = run([9, 5, 9], state=state)

    assert [seen.verdict for seen in evidence] == ["within"] * 3
    assert evidence[-1].within_nats < evidence[-1].within_threshold_nats


def test_estimate_is_the_recent_mean() -> None:
    _, short = run([2, 4, 6])
    _, long = run([50] * 100 + [4, 8] * 300)

    assert short[-1].estimate_ratio == pytest.approx(0.04, abs=1e-6)
    assert long[-1].estimate_ratio == pytest.approx(0.06, abs=0.002)


@pytest.mark.parametrize("log_a", [6.0, 9.0])
def test_flags_at_the_exact_boundary_stay_within_the_budget(log_a: float) -> None:
    draw = random.Random(11)
    by = rule(mu0=0.05, allowed_ratio=0.05, alpha=0.05, log_a=log_a)
    streams, windows, flags = 30, 1500, 0
    for _ in range(streams):
        state = BetState()
        for _ in range(windows):
            state, seen = step(state, math.floor(draw.betavariate(0.5, 9.5) * 1_000_000), 1_000_000, by)
            flags += seen.flagged_now

    assert flags <= streams * windows / math.exp(log_a)


def test_flag_is_cleared_by_six_windows_inside_in_a_row_and_both_bets_start_anew() -> None:
    flagged, _ = run([100] * 7)
    assert flagged.flagged

    state, evidence = run([5, 5, 5, 5, 5, 6, 5, 5, 5, 5, 5, 5], state=flagged)

    assert [seen.cleared_now for seen in evidence] == [False] * 11 + [True]
    assert [seen.verdict for seen in evidence] == ["outside"] * 11 + ["undetermined"]
    assert state == BetState()


def test_tenth_of_the_samples_above_the_limit_is_inside_where_a_tenth_is_allowed() -> None:
    state, _ = run([100] * 9, DEMO)

    state, _ = run([10] * 6, DEMO, state)

    assert not state.flagged


def test_alternating_fault_is_flagged() -> None:
    _, evidence = run([40, 0] * 100)

    assert any(seen.verdict == "outside" for seen in evidence)


def test_wide_guard_band_makes_flags_rarer_but_not_good_news_cheaper() -> None:
    wide = rule(mu0=0.40, allowed_ratio=0.05, alpha=0.05, log_a=17.8)

    _, evidence = run([20] * 500, wide)

    assert {seen.verdict for seen in evidence} == {"undetermined"}


@given(stream=exceeds)
def test_why_recomputes_the_evidence_from_the_windows_it_names(stream: list[int]) -> None:
    stream = [*stream, 30]
    _, evidence = run(stream)
    last = evidence[-1]
    if any(seen.cleared_now for seen in evidence):
        return
    windows = [JudgedWindow(incarnation=1, seq=i + 1, exceed=exceed, n=100) for i, exceed in enumerate(stream)]

    explained = why(windows[-last.explained_by :], LATENCY)

    assert explained.stat_nats == last.outside_nats
    assert explained == why(windows, LATENCY)
    assert len(explained.windows) == last.explained_by
    if max(seen.outside_nats for seen in evidence) < 30:  # below the ceiling, the sum is the sum of its increments
        assert sum(window.increment_nats for window in explained.windows) == explained.windows[-1].sum_nats


@given(y=st.floats(-0.999999, 1e6))
def test_logarithms_are_rounded_down_to_the_unit(y: float) -> None:
    floor = _log_floor(y)

    assert floor <= math.log1p(y) * NAT + 1e-6
    assert floor > math.log1p(y) * NAT - 1 - 1e-6


@pytest.mark.parametrize(
    ("y", "units"),
    [("-0x1.e3cc2289042dcp-1", -189984), ("0x1.426ca62061c1ap+4", 199996), ("0x0p+0", 0)],
)
def test_logarithm_next_to_a_whole_unit_is_decided_exactly(y: str, units: int) -> None:
    """Of the first two, `math.log1p` times 2^16 is the next whole number, to the last bit, and the true value is not."""
    assert _log_floor(float.fromhex(y)) == units


@pytest.mark.parametrize(("exceed", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(exceed: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        step(BetState(), exceed, n, LATENCY)


@pytest.mark.parametrize("wrong", [{"mu0": 0.04}, {"mu0": 1.0}, {"alpha": 0.0}, {"log_a": 0.0}, {"min_windows": 0}])
def test_impossible_rule_is_refused(wrong: dict[str, float]) -> None:
    numbers = {"mu0": 0.05, "allowed_ratio": 0.05, "alpha": 0.05, "log_a": 17.8} | wrong
    with pytest.raises(ValueError, match=r"expected|out of bounds"):
        rule(**numbers)
