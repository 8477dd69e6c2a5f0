"""Dominance and fronts: nobody is called needless who is better in anything, and noise is neither merit nor fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.optimize import front
from evenfleet_collector.optimize.worth import VariantReport
from fakes.reports import timing, variant_row

WORSE = variant_row("worse", accuracy_ratio=0.90, size_bytes=60_000, p50_ms=2.0)
BETTER = variant_row("better", accuracy_ratio=0.91, size_bytes=50_000, p50_ms=1.0)


@st.composite
def report_rows(draw: st.DrawFn) -> list[VariantReport]:
    """Draw rows that often tie, and whose rounds often overlap."""
    rows = []
    for number in range(draw(st.integers(1, 8))):
        low = draw(st.integers(1, 6))
        timed = draw(st.sampled_from([True, True, True, False]))
        rows.append(
            variant_row(
                f"v{number}",
                format=draw(st.sampled_from(["tflite", "tflite", "saved_model"])),
                accuracy_ratio=draw(st.integers(88, 91)) / 100,
                size_bytes=draw(st.integers(1, 3)) * 1000,
                timing=timing(
                    low + 0.5,
                    p50_low_ms=float(low),
                    p50_high_ms=float(low + draw(st.integers(1, 4))),
                    peak_rss_bytes=draw(st.integers(100, 107)),
                )
                if timed
                else None,
            )
        )
    return rows


def test_variant_that_is_worse_in_everything_is_dominated() -> None:
    assert front.dominated_by([WORSE, BETTER]) == {"worse": ("better",), "better": ()}


@pytest.mark.parametrize(
    "merit",
    [
        {"accuracy_ratio": 0.9101},
        {"size_bytes": 49_999},
        {"timing": timing(0.9)},
        {"timing": timing(2.0, peak_rss_bytes=39_000_000)},
    ],
    ids=["accuracy", "size", "latency", "memory"],
)
def test_variant_with_one_merit_is_not_dominated(merit: dict[str, object]) -> None:
    assert front.dominated_by([replace(WORSE, **merit), BETTER])["worse"] == ()  # type: ignore[arg-type]


def test_latency_and_memory_within_noise_are_no_merit() -> None:
    noisy = replace(WORSE, timing=timing(0.99, noise_ratio=0.05, peak_rss_bytes=39_500_000))
    assert front.dominated_by([noisy, BETTER])["worse"] == ("better",)


def test_noise_alone_makes_nobody_better() -> None:
    twin = replace(BETTER, name="twin", timing=timing(1.01, noise_ratio=0.05, peak_rss_bytes=40_500_000))
    assert front.dominated_by([BETTER, twin]) == {"better": (), "twin": ()}


@pytest.mark.parametrize(
    "other",
    [
        replace(BETTER, format="saved_model"),
        replace(BETTER, timing=None),
        replace(BETTER, timing=timing(1.0, runtime="tflite")),
        replace(BETTER, timing=timing(1.0, threads=4)),
    ],
    ids=["format", "not timed", "runtime", "threads"],
)
def test_what_cannot_be_compared_is_not_dominated(other: VariantReport) -> None:
    assert front.dominated_by([WORSE, other]) == {"worse": (), "better": ()}


def test_variants_of_a_report_without_timing_are_compared_in_accuracy_and_size() -> None:
    assert front.dominated_by([replace(WORSE, timing=None), replace(BETTER, timing=None)])["worse"] == ("better",)


def test_a_circle_that_noise_makes_dominates_nobody_in_it() -> None:
    """a, b, c and d are ever slower; e is so noisy that nobody is faster, leaner than a and less lean than d.

    Each pair by itself is plain: a beats b, b beats c, c beats d, d beats e, and e beats a.
    """
    rounds = {"a": (1, 2), "b": (3, 4), "c": (5, 6), "d": (7, 8), "e": (1, 9)}
    memory = {"a": 1045, "b": 1028, "c": 1010, "d": 1000, "e": 1022}
    rows = [
        variant_row(name, timing=timing(low, p50_low_ms=low, p50_high_ms=high, peak_rss_bytes=memory[name]))
        for name, (low, high) in rounds.items()
    ]
    for better, worse in ("ab", "bc", "cd", "de", "ea"):
        pair = [row for row in rows if row.name in {better, worse}]
        assert front.dominated_by(pair)[worse] == (better,)

    assert set(front.dominated_by(rows).values()) == {()}


@given(report_rows())
def test_dominance_is_irreflexive_and_has_no_circle(rows: list[VariantReport]) -> None:
    above = front.dominated_by(rows)
    assert all(name not in names for name, names in above.items())
    left = dict(above)
    while left:
        free = [name for name, names in left.items() if not set(names) & set(left)]
        assert free, f"a circle in {left}"
        for name in free:
            del left[name]


@given(report_rows())
def test_somebody_is_dominated_by_nobody(rows: list[VariantReport]) -> None:
    assert () in front.dominated_by(rows).values()


@given(report_rows())
def test_front_is_not_empty_and_nobody_on_it_is_beaten(rows: list[VariantReport]) -> None:
    found = front.front(rows, "size")
    assert found
    for row in found:
        assert not any(
            other.accuracy_ratio >= row.accuracy_ratio
            and other.size_bytes <= row.size_bytes
            and (other.accuracy_ratio, other.size_bytes) != (row.accuracy_ratio, row.size_bytes)
            for other in rows
        )
    assert [row.size_bytes for row in found] == sorted(row.size_bytes for row in found)
    assert [row.accuracy_ratio for row in found] == sorted(row.accuracy_ratio for row in found)


@given(report_rows())
def test_whoever_is_not_on_the_front_is_beaten_by_one_that_is(rows: list[VariantReport]) -> None:
    found = front.front(rows, "size")
    for row in rows:
        assert row in found or any(
            other.accuracy_ratio >= row.accuracy_ratio and other.size_bytes <= row.size_bytes for other in found
        )


@given(report_rows())
def test_front_by_latency_holds_the_timed_alone(rows: list[VariantReport]) -> None:
    timed = [row for row in rows if row.timing is not None]
    found = front.front(rows, "latency")
    assert {row.name for row in found} <= {row.name for row in timed}
    assert bool(found) == bool(timed)
