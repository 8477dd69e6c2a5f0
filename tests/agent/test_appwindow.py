from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import appwindow
from evenfleet_agent.appwindow import MAX_CLASSES, MAX_OPEN_CLASSES, Accumulator, AppBody, InputSample, Sample, message
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation

chunks = st.lists(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    min_size=1,
    max_size=10,
)


def closed(accumulator: Accumulator) -> AppBody:
    return accumulator.close(app="inspection", model=None, length_s=60.0, ended_uptime_s=1.0, ended_wall_s=0.0)


def sample(inputs: Any = (), rows: Any = (), one_in: int = 7) -> Sample:
    return Sample(one_in=one_in, inputs=inputs, rows=rows)


def input_of(values: Any) -> InputSample:
    held = np.asarray(values, dtype="float64")
    return InputSample(len(held), 0, 0, float(held.mean()), float(held.std()), float(held.min()), float(held.max()))


@given(st.lists(st.lists(st.floats(0.001, 1e5), max_size=30), max_size=10))
def test_latency_is_the_same_however_it_came_in_parts(parts: list[list[float]]) -> None:
    accumulator = Accumulator()
    for part in parts:
        accumulator.add_calls("a", part)
    every = sorted(value for part in parts for value in part)
    body = closed(accumulator)
    assert body.calls == len(every)
    if not every:
        assert body.latency is None
        return
    assert body.latency is not None
    assert (body.latency.min_ms, body.latency.max_ms) == (every[0], every[-1])
    assert body.latency.mean_ms == pytest.approx(math.fsum(every) / len(every))
    for q, found in ((0.5, body.latency.p50_ms), (0.95, body.latency.p95_ms)):
        assert found == pytest.approx(every[max(0, math.ceil(q * len(every)) - 1)], rel=0.0101)


@given(chunks)
def test_input_statistics_of_many_samples_are_those_of_all_their_elements(parts: list[list[float]]) -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    accumulator.add_samples([sample([input_of(part)]) for part in parts])
    every = np.concatenate([np.asarray(part) for part in parts])
    statistics = closed(accumulator).statistics
    assert statistics is not None
    (held,) = statistics.inputs
    assert (held.n, held.min, held.max) == (len(every), every.min(), every.max())
    assert held.mean == pytest.approx(every.mean(), abs=1e-6)
    assert held.std == pytest.approx(every.std(), rel=1e-6, abs=1e-5)


near = st.sampled_from([1.0, 0.9999995, 0.999999, 0.0, -1.0, 1e100, -1e100, 1e-310])


@given(st.lists(st.tuples(st.sampled_from([0, 1, 4, 2**20]), st.integers(0, 2), near, near, near, near), max_size=6))
def test_inputs_that_are_taken_close_to_a_message_with_the_mean_between_the_ends(found: list[tuple[Any, ...]]) -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    for elements, nan, *numbers in found:
        with contextlib.suppress(ValueError):
            accumulator.add_samples([sample([InputSample(elements, nan, 0, *numbers)])])
    body = closed(accumulator)
    sent = message(body, device="press-07", incarnation=Incarnation(1, "0" * 8), seq=1, floor=1)
    assert messages.decode("window", messages.encode(sent)) == sent
    for one in body.statistics.inputs if body.statistics else ():
        if one.mean is not None and one.min is not None and one.max is not None:
            assert one.min <= one.mean <= one.max


def test_mean_that_rounding_put_beyond_the_ends_is_told_as_the_end() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    accumulator.add_samples([sample([InputSample(3, 0, 0, 1.0000001, 0.0, 1.0, 1.0)])])
    statistics = closed(accumulator).statistics
    assert statistics is not None
    assert (statistics.inputs[0].min, statistics.inputs[0].mean, statistics.inputs[0].max) == (1.0, 1.0, 1.0)


def test_calls_are_timed_raised_dropped_or_refused() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0, math.nan, -1.0, 1e12, 2.0], exceptions=3, dropped=4)
    accumulator.add_calls("b", [], dropped=1)
    accumulator.add_calls("c", [])
    body = closed(accumulator)
    assert (body.calls, body.exceptions, body.dropped, body.refused, body.processes) == (13, 3, 5, 3, 2)
    assert body.latency is not None
    assert body.latency.n == 2


def test_p99_of_too_few_calls_is_not_qualified() -> None:
    few, many = Accumulator(), Accumulator()
    few.add_calls("a", [1.0] * 661)
    many.add_calls("a", [1.0] * 662)
    found = [closed(one).latency for one in (few, many)]
    assert [latency.p99_qualified for latency in found if latency] == [False, True]


def test_frequent_classes_are_shown_and_the_rest_is_other() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    accumulator.add_samples([sample(rows=[(index, math.nan)]) for index in range(MAX_CLASSES + 10)])
    accumulator.add_samples([sample(rows=[(MAX_CLASSES + 5, math.nan)])])
    statistics = closed(accumulator).statistics
    assert statistics is not None
    assert len(statistics.classes) == MAX_CLASSES
    assert (MAX_CLASSES + 5, 2) in statistics.classes
    assert statistics.other_classes == 10
    assert statistics.entropy is None


def test_what_is_held_does_not_grow_with_the_classes() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    accumulator.add_samples([sample(rows=[(index, 0.5)]) for index in range(MAX_OPEN_CLASSES * 3)])
    assert len(accumulator._classes) == MAX_OPEN_CLASSES
    statistics = closed(accumulator).statistics
    assert statistics is not None
    assert statistics.other_classes + sum(count for _, count in statistics.classes) == MAX_OPEN_CLASSES * 3


def test_entropy_is_of_the_rows_that_have_one() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [1.0])
    accumulator.add_samples([sample(rows=[(0, 0.0), (1, 0.5), (1, math.nan)]), sample(rows=[(1, 1.0)], one_in=9)])
    statistics = closed(accumulator).statistics
    assert statistics is not None
    assert statistics.entropy is not None
    assert (statistics.entropy.n, statistics.entropy.mean_nats, statistics.entropy.max_nats) == (3, 0.5, 1.0)
    assert statistics.one_in == 9


def test_dropped_count_has_an_end() -> None:
    accumulator = Accumulator()
    for _ in range(3):
        accumulator.add_calls("a", [], dropped=appwindow.MAX_COUNT)
    assert closed(accumulator).dropped == appwindow.MAX_COUNT


def test_window_without_a_call_is_empty() -> None:
    accumulator = Accumulator()
    accumulator.add_calls("a", [])
    assert accumulator.is_empty
    accumulator.add_calls("a", [], exceptions=1)
    assert not accumulator.is_empty


@pytest.mark.parametrize(
    "figures",
    [
        (1, 2, 0, 0.0, 0.0, 0.0, 0.0),
        (1, 0, 0, math.nan, 0.0, 0.0, 0.0),
        (1, 0, 0, 0.0, -0.1, 0.0, 0.0),
        (1, 0, 0, 2.0, 0.0, 0.0, 1.0),
        (1, 0, 0, 0.9999995, 0.0, 1.0, 0.999999),
        (2**20 + 1, 0, 0, 0.5, 0.0, 0.0, 1.0),
        (1, 0, 0, 1e200, 0.0, 1e200, 1e200),
    ],
)
def test_input_that_cannot_be_is_refused(figures: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"elements|not a finite|ends"):
        InputSample(*figures)
