"""What a report says aloud: merits that are none, and losses that are real."""

from __future__ import annotations

import pytest

from evenfleet_collector.optimize import remarks
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.worth import VariantReport
from fakes.reports import timing, variant_row

FLOAT = variant_row("float32", size_bytes=100_000, p50_ms=0.010)
INT8 = variant_row("int8", size_bytes=65_440, compressed_bytes=50_000, p50_ms=0.006)


def of(*rows: VariantReport) -> tuple[str, ...]:
    """Return the remarks on the last row."""
    return remarks.remarks(rows, "float32")[rows[-1].name]


def test_pruned_variant_that_is_neither_smaller_nor_faster_is_said_to_be_so() -> None:
    row = variant_row(
        "pruned-int8",
        techniques=("prune", "int8"),
        size_bytes=65_432,
        compressed_bytes=20_000,
        timing=timing(0.0061, noise_ratio=0.05),
    )
    assert of(FLOAT, INT8, row) == (
        (
            "pruned, and neither smaller nor faster than int8 (65,432 against 65,440 bytes, p50 6.10 µs against 6.00 µs); "
            "compressed it is 40 % of it"
        ),
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size_bytes": 30_000}, "smaller but not faster than int8"),
        ({"size_bytes": 30_000, "p50_ms": 0.003}, "smaller and faster than int8"),
        ({"p50_ms": 0.003}, "faster but not smaller than int8"),
    ],
)
def test_pruned_variant_with_a_merit_is_told_it(changed: dict[str, float], words: str) -> None:
    values = {"size_bytes": 65_440, "p50_ms": 0.006} | changed
    row = variant_row("x", techniques=("prune-blocks", "cluster", "int8"), **values)
    assert f"pruned in blocks and clustered, and {words} (" in of(FLOAT, INT8, row)[0]


def test_pruned_variant_without_its_counterpart_is_held_against_the_reference() -> None:
    row = variant_row("x", techniques=("prune", "int4"), size_bytes=20_000, p50_ms=0.004)
    assert "smaller and faster than float32" in of(FLOAT, INT8, row)[0]


def test_pruned_reference_is_not_held_against_itself() -> None:
    base = variant_row("base", techniques=("prune", "float32"), p50_ms=0.010)
    assert remarks.remarks([base, INT8], "base")["base"] == ()


def test_counterpart_of_another_format_is_none() -> None:
    saved = variant_row("saved", techniques=("prune", "int8"), format="saved_model", size_bytes=99_900)
    assert "not smaller than float32 (99,900 against 100,000 bytes)" in of(FLOAT, INT8, saved)[0]


def test_time_that_was_not_taken_is_not_spoken_of() -> None:
    plain = variant_row("int8", size_bytes=50_000, compressed_bytes=40_000)
    row = variant_row("x", techniques=("prune", "int8"), size_bytes=50_000, compressed_bytes=10_000)
    assert of(variant_row("float32"), plain, row) == (
        "pruned, and not smaller than int8 (50,000 against 50,000 bytes); compressed it is 25 % of it",
    )


def test_much_slower_variant_is_called_slow_with_the_reason_where_it_is_known() -> None:
    row = variant_row("int16x8", p50_ms=0.045)
    assert of(FLOAT, row) == (
        "4.5 times as slow as float32 (p50 45.0 µs against 10.0 µs); few runtimes have fast kernels for int16x8",
    )
    assert of(FLOAT, variant_row("x", p50_ms=0.045)) == ("4.5 times as slow as float32 (p50 45.0 µs against 10.0 µs)",)


@pytest.mark.parametrize("slow", [timing(0.0149), timing(0.03, noise_ratio=0.9)], ids=["a little", "noisy"])
def test_slower_by_little_or_by_noise_is_not_remarked_upon(slow: object) -> None:
    assert of(FLOAT, variant_row("int16x8", timing=slow)) == ()


def test_loss_beyond_its_interval_is_remarked_upon() -> None:
    row = variant_row("x", accuracy_ratio=0.92, delta_interval=(-0.045, -0.012))
    assert of(variant_row("float32"), row) == (
        "less accurate than float32 by more than chance explains: −3.0 pt [−4.5 pt, −1.2 pt]",
    )
    assert of(variant_row("float32"), variant_row("x", accuracy_ratio=0.94, delta_interval=(-0.03, 0.01))) == ()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.01, 0.02, ("qat itself brings no accuracy that shows: +0.5 pt [−1.0 pt, +2.0 pt]",)),
        (-0.02, -0.01, ("qat itself costs accuracy: +0.5 pt [−2.0 pt, −1.0 pt]",)),
        (0.001, 0.02, ()),
    ],
)
def test_technique_that_brought_nothing_is_said_to_have(low: float, high: float, words: tuple[str, ...]) -> None:
    gain = Gain(
        technique="qat",
        control=("fine-tune", "int8"),
        seeds=3,
        control_ratio=0.9,
        delta_ratio=0.005,
        low_ratio=low,
        high_ratio=high,
    )
    said = of(variant_row("float32"), variant_row("x", gain=gain))
    assert said == tuple(f"{each} over 3 seeds, against fine-tune + int8" for each in words)


def test_reference_alone_has_nothing_to_be_told() -> None:
    assert of(FLOAT) == ()
