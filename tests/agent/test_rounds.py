from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import rounds, window
from fakes import runners


def latency(p50_ms):
    spec = runners.RunnerSpec(runtime="litert", artifact="m.tflite", format="tflite")
    measured = runners.measured(spec, [p50_ms] * 3)
    return window.latency(measured, window.ordered_samples_ms(measured))


@given(st.lists(st.floats(0.001, 1e3), min_size=1, max_size=9))
def test_typical_process_has_the_median_p50(p50s_ms):
    chosen = p50s_ms[rounds.typical(p50s_ms)]
    assert chosen == statistics.median_low(p50s_ms)


def test_every_figure_is_told_with_its_median_and_ends():
    found = rounds.spreads([latency(3.0), latency(1.0), latency(8.0)])
    assert set(found) == {"init_ms", "first_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"}
    assert (found["p99_ms"].low_ms, found["p99_ms"].median_ms, found["p99_ms"].high_ms) == (1.0, 3.0, 8.0)


def test_no_process_has_no_median():
    with pytest.raises(IndexError):
        rounds.typical([])
