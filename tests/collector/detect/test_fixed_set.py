from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.detect.betting import BetState
from evenfleet_collector.detect.fixed_set import FixedSetState, FixedSetWhy, step

SAME = "aa" * 32
OTHER = "bb" * 32


def run(
    passes: Sequence[tuple[int, int | None, str]],
    *,
    n: int = 200,
    reference_errors: int = 20,
    unstable: int = 0,
    margin_ratio: float = 0.01,
    state: FixedSetState | None = None,
) -> tuple[FixedSetState, list[FixedSetWhy]]:
    state = state or FixedSetState()
    seen = []
    for errors, hamming, digest in passes:
        state, why = step(
            state,
            n=n,
            errors=errors,
            hamming=hamming,
            prediction_digest=digest,
            reference_errors=reference_errors,
            unstable=unstable,
            margin_ratio=margin_ratio,
        )
        seen.append(why)
    return state, seen


def steady(errors: int, passes: int = 4, digest: str = SAME) -> list[tuple[int, int | None, str]]:
    return [(errors, None, digest)] + [(errors, 0, digest)] * (passes - 1)


def test_two_points_worse_is_outside_at_the_fourth_pass() -> None:
    _, seen = run(steady(24))

    assert [why.verdict for why in seen] == ["undetermined"] * 3 + ["outside"]


@pytest.mark.parametrize(
    ("n", "margin_ratio", "excess"), [(200, 0.01, 2), (100, 0.29, 29), (100, 0.07, 7), (300, 0.01, 3), (50, 0.0, 0)]
)
def test_exactly_at_the_margin_is_within(n: int, margin_ratio: float, excess: int) -> None:
    _, at = run(steady(5 + excess), n=n, margin_ratio=margin_ratio, reference_errors=5)
    _, above = run(steady(6 + excess), n=n, margin_ratio=margin_ratio, reference_errors=5)

    assert at[-1].verdict == "within"
    assert above[-1].verdict == "outside"


def test_better_than_the_reference_is_within() -> None:
    _, seen = run(steady(0))

    assert seen[-1].verdict == "within"
    assert "20 fewer errors" in seen[-1].reason


def test_samples_known_to_flip_are_not_held_against_a_device() -> None:
    _, seen = run(steady(24), unstable=2)

    assert seen[-1].verdict == "within"


def test_runner_that_starts_anew_every_window_is_judged_by_its_predictions() -> None:
    _, seen = run([(24, None, SAME)] * 4)

    assert seen[-1].verdict == "outside"


def test_first_pass_of_a_runner_with_other_predictions_decides_nothing() -> None:
    _, seen = run([*steady(20), (24, None, OTHER), (24, 0, OTHER), (24, 0, OTHER)])

    assert [why.verdict for why in seen[4:]] == ["undetermined"] * 3


@pytest.mark.parametrize("length", [1, 2, 3])
def test_odd_passes_up_to_three_in_a_row_never_flag(length: int) -> None:
    spike: Sequence[tuple[int, int | None, str]] = [(90, 70, OTHER)] + [(90, 0, OTHER)] * (length - 1)

    _, seen = run([*steady(20), *spike, (20, 70, SAME), *[(20, 0, SAME)] * 3])

    assert all(why.verdict != "outside" for why in seen)
    assert seen[-1].verdict == "within"


def test_answers_that_keep_changing_are_undetermined_with_the_reason() -> None:
    _, seen = run([(40, None, SAME), *[(40, 6, OTHER), (40, 6, SAME)] * 10])

    assert {why.verdict for why in seen} == {"undetermined"}
    assert "6 samples flipped since the pass before, 0 of 3 passes" in seen[-1].reason


def test_flag_stays_until_six_passes_in_a_row_are_inside() -> None:
    flagged, _ = run(steady(24))

    _, seen = run([(20, 4, OTHER), *[(20, 0, OTHER)] * 5], state=flagged)

    assert [why.verdict for why in seen] == ["outside"] * 5 + ["within"]
    assert [why.cleared_now for why in seen] == [False] * 5 + [True]
    assert "flagged until 6 passes in a row are inside, 2 so far" in seen[1].reason


def test_other_predictions_that_persist_are_reported_once_and_stay_in_the_reason() -> None:
    _, seen = run([*steady(20), (20, 0, OTHER), *[(20, 0, OTHER)] * 4])

    assert [why.predictions_changed_now for why in seen] == [False] * 7 + [True, False]
    assert all(why.verdict == "within" for why in seen[3:])
    assert "predictions changed from aaaaaaaaaaaa to bbbbbbbbbbbb and stayed so" in seen[-1].reason
    assert "changed" not in seen[6].reason


passes_drawn = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from([None, 0, 0, 0, 5]), st.sampled_from([SAME, SAME, OTHER])),
    max_size=30,
)


@given(passes=passes_drawn)
def test_outside_needs_more_than_the_margin_at_the_pass_that_flags(
    passes: list[tuple[int, int | None, str]],
) -> None:
    _, seen = run(passes)

    for why in seen:
        assert why.flagged_now <= (why.errors - why.reference_errors - why.unstable > why.allowed_errors)
        assert why.flagged_now <= (why.agreeing_passes == 3)
        assert why.verdict != "within" or why.excess_errors <= why.allowed_errors


@given(passes=passes_drawn, cut=st.integers(0, 30))
def test_restart_at_any_pass_changes_nothing(passes: list[tuple[int, int | None, str]], cut: int) -> None:
    whole, seen = run(passes)

    before, first = run(passes[:cut])
    restored = msgspec.json.decode(msgspec.json.encode(before), type=FixedSetState)
    after, second = run(passes[cut:], state=restored)

    assert after == whole
    assert first + second == seen


def test_state_of_all_metrics_of_a_device_and_variant_fits_into_512_bytes() -> None:
    many, digest = 999_999, "f" * 12
    bet = BetState(
        outside=(5_999_999,) * 3,  # the ceiling at log A = 45
        ages=(many,) * 3,
        within=(-2_999_999,) * 2,
        windows=many,
        inside_run=1000,
        estimate=2**24,
    )
    fixed = FixedSetState(agreeing=100, persisting=100, inside_run=1000, digest=digest, settled=digest, first=digest)

    assert len(msgspec.json.encode(bet)) * 2 + len(msgspec.json.encode(fixed)) <= 512
