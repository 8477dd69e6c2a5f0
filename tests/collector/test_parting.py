"""Two devices' runs side by side: what rounding accounts for, what does not, and what cannot be held side by side."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector import parting
from evenfleet_shared import layers
from evenfleet_shared.errors import EvenfleetError
from evenfleet_shared.layers import PROJECTIONS, LayerOutput, Layers, Summary

Values = npt.NDArray[np.float64]
N = 400
SIGNAL: Values = np.random.default_rng(0).standard_normal(N)
NOISE: Values = np.random.default_rng(1).standard_normal(N)


def told(index: int, values: Values, **changes: Any) -> LayerOutput:
    """Tell a tensor as a device does, in plain Python's words."""
    rows = [
        np.unpackbits(np.frombuffer(layers.signs(index + 1, k, N), np.uint8), count=N, bitorder="little") * 2.0 - 1.0
        for k in range(PROJECTIONS)
    ]
    summary = Summary(
        digest=hashlib.sha256(values.tobytes()).hexdigest()[:16],
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        rms=float(np.sqrt((values**2).mean())),
        projections=tuple(float(row @ values) for row in rows),
    )
    base = LayerOutput(
        index=index,
        operator="INPUT" if index < 0 else "CONV_2D",
        name=f"t{index}",
        number=index + 1,
        shape=(1, N),
        dtype="float32",
        summary=summary,
    )
    return replace(base, **changes)


def run(*found: LayerOutput, **changes: Any) -> Layers:
    base = Layers(
        artifact="a" * 64,
        golden="b" * 64,
        variant="int8",
        runtime="litert",
        runtime_version="2.1.0",
        executed="cpu",
        sample=0,
        outputs=len(found),
        layers=found,
    )
    return replace(base, **changes)


def first(a: Layers, b: Layers) -> int | None:
    found = parting.part(a, b).first
    return None if found is None else found.index


def test_runs_that_are_the_same_do_not_part() -> None:
    same = run(told(-1, SIGNAL), told(0, SIGNAL))
    found = parting.part(same, same)
    assert (found.first, found.held, [one.identical for one in found.outputs]) == (None, 2, [True, True])


def test_the_first_beyond_float_rounding_is_named_and_those_behind_it_exceed_too() -> None:
    a = run(*(told(index, SIGNAL) for index in range(-1, 4)))
    b = run(
        *(
            told(index, SIGNAL + size * NOISE)
            for index, size in zip(range(-1, 4), (0, 1e-6, 1e-5, 0.01, 0.1), strict=True)
        )
    )
    found = parting.part(a, b)
    assert [one.exceeds for one in found.outputs] == [False, False, False, True, True]
    assert found.first is found.outputs[3]
    assert found.first.difference_ratio == pytest.approx(0.01, rel=0.6)


def test_of_a_quantised_tensor_one_step_is_rounding_and_several_are_not() -> None:
    step = {"dtype": "int8", "step": 0.5}
    a = run(told(0, SIGNAL, **step))
    assert first(a, run(told(0, SIGNAL + 0.4 * NOISE, **step))) is None
    beyond = parting.part(a, run(told(0, SIGNAL + 2.0 * NOISE, **step))).first
    assert beyond is not None
    assert beyond.difference_steps == pytest.approx(4.0, rel=0.6)


def test_what_integers_were_granted_is_granted_to_the_floats_behind_them() -> None:
    behind = told(1, SIGNAL), told(1, SIGNAL + 0.02 * NOISE)
    assert first(run(told(0, SIGNAL), behind[0]), run(told(0, SIGNAL), behind[1])) == 1
    for before in (told(0, SIGNAL, dtype="int8", step=0.1), told(0, SIGNAL, integer_weights=True)):
        assert first(run(before, behind[0]), run(before, behind[1])) is None


def test_whole_numbers_are_held_against_nothing() -> None:
    found = parting.part(run(told(0, SIGNAL, dtype="int32")), run(told(0, -SIGNAL, dtype="int32")))
    assert (found.first, found.held) == (None, 0)


def test_numbers_that_are_not_finite_on_one_device_alone_part_them() -> None:
    sound = told(0, SIGNAL)
    assert sound.summary is not None
    broken = replace(sound, summary=replace(sound.summary, not_finite=3))
    found = parting.part(run(sound), run(broken)).first
    assert found is not None
    assert found.remark == "0 values are not finite on A, 3 on B"
    assert first(run(broken), run(broken)) is None


def test_another_shape_parts_them_and_what_was_not_seen_is_said() -> None:
    a = run(told(0, SIGNAL), told(1, SIGNAL))
    b = run(told(0, SIGNAL, summary=None, unseen="constant"), told(1, SIGNAL, shape=(N, 1)))
    unseen, other = parting.part(a, b).outputs
    assert (unseen.exceeds, unseen.remark) == (False, "not seen on B: constant")
    assert (other.exceeds, other.remark) == (True, f"float32 of shape [{N}, 1] on B")


@pytest.mark.parametrize(
    ("changes", "why"), [({"artifact": "c" * 64}, "another file"), ({"golden": "c" * 64}, "different golden samples")]
)
def test_other_files_and_other_samples_are_not_held_side_by_side(changes: dict[str, str], why: str) -> None:
    with pytest.raises(EvenfleetError, match=why):
        parting.part(run(told(0, SIGNAL)), run(told(0, SIGNAL), **changes))


@given(st.floats(1e-9, 0.6), st.integers(0, 10_000))
def test_what_is_well_within_rounding_never_parts_devices(size: float, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(N)
    scaled = size * parting.FLOAT32_RATIO * noise / math.sqrt((noise**2).mean()) * math.sqrt((SIGNAL**2).mean())
    assert first(run(told(0, SIGNAL)), run(told(0, SIGNAL + scaled))) is None
