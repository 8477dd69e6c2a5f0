"""What is matched with what, and how much an operator may add to the difference."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from evenfleet_collector.optimize import layers
from evenfleet_collector.optimize.layers import Bound, LayerReport, Operator, Weights

FLOATS = Weights(type="FLOAT32", digest="float", stored_as="FLOAT32")
INTEGERS = Weights(type="INT8", digest="int8", stored_as="INT8 scales")


def operator(kind: str = "CONV_2D", name: str = "x", **changes: Any) -> Operator:
    return Operator(**{"position": 0, "kind": kind, "name": name, "shape": (1, 8), "type": "FLOAT32"} | changes)


def layer(introduced_ratio: float, **changes: Any) -> LayerReport:
    fields: dict[str, Any] = {
        "position": 0,
        "kind": "CONV_2D",
        "name": "x",
        "counterpart": "x",
        "type": "INT8",
        "signal_rms": 1.0,
        "introduced_rms": introduced_ratio,
        "introduced_max": introduced_ratio,
        "introduced_ratio": introduced_ratio,
        "bound": Bound(ratio=0.05),
    }
    return LayerReport(**fields | changes)


def test_renumbered_operators_are_matched_between_the_neighbours_that_kept_their_names() -> None:
    a = [operator(name="a1"), operator("ADD", "sum"), operator(name="b1")]
    b = [operator(name="a2"), operator("ADD", "sum"), operator(name="b2")]
    assert layers.matched(a, b) == ((0, 0), (1, 1), (2, 2))


def test_renumbered_operator_is_not_matched_across_a_neighbour() -> None:
    """Both are convolutions of one shape without a namesake, but one stands before the addition and one behind it."""
    a = [operator(name="a1"), operator("ADD", "sum")]
    b = [operator("ADD", "sum"), operator(name="b2")]
    assert layers.matched(a, b) == ((1, 0),)


@pytest.mark.parametrize("changes", [{"kind": "ADD"}, {"shape": (1, 9)}])
def test_namesake_of_another_kind_or_shape_is_no_match(changes: dict[str, Any]) -> None:
    assert layers.matched([operator()], [operator(**changes)]) == ()


def test_coarse_step_does_not_widen_the_bound() -> None:
    fine = layers.bound(operator(), operator(type="INT8", step=0.001))
    coarse = layers.bound(operator(), operator(type="INT8", step=1000.0))
    assert fine == coarse


def test_more_bits_make_a_narrower_bound() -> None:
    reference = operator(weights=FLOATS)
    ratios = [
        layers.bound(reference, operator(type=kind, step=0.1, weights=weights)).ratio
        for kind, weights in (("INT16", FLOATS), ("INT8", FLOATS), ("INT8", INTEGERS))
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] < ratios[1] / 50


def test_weights_that_are_stored_alike_and_differ_are_accounted_for_by_nothing() -> None:
    changed = Weights(type="INT8", digest="changed", stored_as=INTEGERS.stored_as)
    same = layers.bound(operator(weights=INTEGERS), operator(weights=INTEGERS))
    other = layers.bound(operator(weights=INTEGERS), operator(weights=changed))
    quantised = layers.bound(operator(weights=FLOATS), operator(weights=INTEGERS))
    assert other.weights_ratio == same.weights_ratio == 0.0
    assert quantised.weights_ratio == layers.quantiser_ratio(8)


def test_inputs_quantised_at_run_time_are_accounted_for_and_those_that_are_integers_already_are_not() -> None:
    at_run_time = layers.bound(operator(weights=FLOATS), operator(weights=INTEGERS))
    integers = layers.bound(
        operator(weights=FLOATS), operator(weights=INTEGERS, type="INT8", step=0.1, integer_inputs=True)
    )
    assert (at_run_time.inputs_ratio, integers.inputs_ratio) == (layers.quantiser_ratio(8), 0.0)


def test_same_integers_in_another_runtime_are_granted_one_rounding() -> None:
    one = operator(type="INT8", step=0.1, weights=INTEGERS, integer_inputs=True)
    assert layers.bound(one, one).ratio == pytest.approx(layers.quantiser_ratio(8) + layers.FLOAT32_RATIO)


def test_error_that_is_no_number_exceeds_every_bound() -> None:
    assert layer(math.nan).exceeds
    assert layer(math.inf).exceeds
    assert not layer(0.05).exceeds


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, "arithmetic"),
        ({"other_weights": True, "saturated_ratio": 0.5}, "other-weights"),
        ({"weights_error_ratio": 1.0, "saturated_ratio": 0.5}, "weights"),
        ({"saturated_ratio": 0.5, "rounding_rms": 0.2}, "saturation"),
        ({"rounding_rms": 0.2, "weights_error_ratio": 0.01}, "step"),
    ],
)
def test_cause_is_told_of_what_exceeds_its_bound(changes: dict[str, Any], cause: str) -> None:
    assert layer(0.2, **changes).cause == cause
    assert layer(0.01, **changes).cause is None


def test_page_grants_what_the_code_grants() -> None:
    text = (Path(__file__).parents[3] / "docs/diff.md").read_text(encoding="utf-8")
    granted = {int(bits): ratio for bits, ratio in re.findall(r"^\| (\d+) \| ([\d.]+) % \|$", text, re.MULTILINE)}
    assert granted == {bits: f"{100 * layers.quantiser_ratio(bits):.3g}" for bits in (16, 8, 4)}
    assert f"± {layers.PEAK_TO_RMS:g} times" in text
    for ratio in (layers.FLOAT32_RATIO, layers.FLOAT16_RATIO):
        assert f"{100 * ratio:.3g} %" in text
