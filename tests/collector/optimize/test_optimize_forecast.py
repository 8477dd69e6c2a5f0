"""Times foretold from size and operations: from the others alone, and honest about how far off they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector.optimize import forecast
from fakes.reports import timing, variant_row


def test_variants_of_one_throughput_are_foretold_exactly() -> None:
    rows = [
        variant_row(f"v{size}", size_bytes=size * 1000, macs=size * 10, p50_ms=size / 10) for size in (10, 20, 40, 80)
    ]
    found = forecast.forecasts(rows)

    assert [found[row.name].by_size_ms for row in rows] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert [found[row.name].by_macs_ms for row in rows] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    known = forecast.errors(rows, found)
    assert (known.by_size_factor, known.by_macs_factor) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (known.by_size_n, known.by_macs_n) == (4, 4)


def test_variants_of_equal_operations_and_unequal_time_are_not_foretold_by_operations() -> None:
    """A quantized model does as many operations as the float one; the report is to say that this foretells nothing."""
    rows = [variant_row(f"v{number}", p50_ms=float(ms)) for number, ms in enumerate((1, 4, 16))]
    found = forecast.forecasts(rows)

    # The median of two on a logarithmic scale: 8 between 4 and 16.
    assert found["v0"].by_macs_ms == pytest.approx(8.0)
    assert forecast.errors(rows, found).by_macs_factor == pytest.approx(8.0)


def test_own_time_has_no_part_in_the_forecast() -> None:
    others = [variant_row("a", p50_ms=1.0), variant_row("b", p50_ms=2.0)]
    quick, slow = ([*others, variant_row("c", p50_ms=ms)] for ms in (0.01, 1000.0))
    assert forecast.forecasts(quick)["c"] == forecast.forecasts(slow)["c"]


def test_two_others_are_the_least() -> None:
    rows = [variant_row("a", p50_ms=1.0), variant_row("b", p50_ms=2.0)]
    found = forecast.forecasts(rows)

    assert (found["a"].by_size_ms, found["a"].by_macs_ms) == (None, None)
    assert forecast.errors(rows, found).by_size_factor is None


@pytest.mark.parametrize("changed", [{"runtime": "tflite"}, {"threads": 4}, {"runtime_version": "1.4.0"}], ids=str)
def test_a_variant_that_was_timed_otherwise_tells_nothing(changed: dict[str, object]) -> None:
    rows = [variant_row("a", p50_ms=1.0), variant_row("b", p50_ms=1.0)]
    stranger = variant_row("c", timing=timing(1.0, **changed))
    assert forecast.forecasts([*rows, stranger])["a"].by_size_ms is None


def test_another_format_tells_nothing() -> None:
    rows = [variant_row(name, p50_ms=1.0) for name in "abc"]
    assert forecast.forecasts([*rows[:2], replace(rows[2], format="saved_model")])["a"].by_size_ms is None


def test_unknown_operations_leave_the_forecast_by_size() -> None:
    rows = [variant_row(name, p50_ms=1.0, macs=None) for name in "abc"]
    found = forecast.forecasts(rows)
    assert (found["a"].by_size_ms, found["a"].by_macs_ms) == (pytest.approx(1.0), None)


def test_variants_that_were_not_timed_have_no_forecast() -> None:
    rows = [variant_row("a"), variant_row("b", p50_ms=0.0), *(variant_row(name, p50_ms=1.0) for name in "cde")]
    assert set(forecast.forecasts(rows)) == {"c", "d", "e"}


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**9)), min_size=3, max_size=8))
def test_a_forecast_lies_between_what_the_slowest_and_the_fastest_other_say(values: list[tuple[float, int]]) -> None:
    rows = [variant_row(f"v{n}", p50_ms=ms, size_bytes=size) for n, (ms, size) in enumerate(values)]
    for place, (row, found) in enumerate(zip(rows, forecast.forecasts(rows).values(), strict=True)):
        said = [row.size_bytes * ms / size for n, (ms, size) in enumerate(values) if n != place]
        assert found.by_size_ms is not None
        assert min(said) * 0.999 <= found.by_size_ms <= max(said) * 1.001
