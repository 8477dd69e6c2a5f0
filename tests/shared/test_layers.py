"""The result of `layers`: what is decoded, what is not, and the signs that every device must make alike."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_shared import layers
from evenfleet_shared.errors import MessageError
from evenfleet_shared.layers import LayerOutput, Layers, Summary

SUMMARY = Summary(digest="0" * 16, min=-1.0, max=1.0, mean=0.0, rms=0.5, projections=(0.25,) * layers.PROJECTIONS)
RESULT = Layers(
    artifact="a" * 64,
    golden="b" * 64,
    variant="int8",
    runtime="litert",
    runtime_version="2.1.0",
    executed="xnnpack",
    delegated_ratio=1.0,
    sample=0,
    outputs=2,
    layers=(
        LayerOutput(index=-1, operator="INPUT", name="x", number=0, shape=(1, 4), dtype="float32", summary=SUMMARY),
        LayerOutput(index=0, operator="RELU", name="y", number=1, unseen="constant"),
    ),
)


def test_a_result_survives_both_encodings() -> None:
    for encoded in (
        msgspec.json.decode(msgspec.json.encode(RESULT)),
        msgspec.msgpack.decode(msgspec.msgpack.encode(RESULT)),
    ):
        assert layers.decode(encoded) == RESULT


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": 3},
        {"artifact": "x"},
        {"schema": "layers/2"},
        {
            "layers": [
                {**msgspec.to_builtins(RESULT.layers[0]), "summary": {**msgspec.to_builtins(SUMMARY), "rms": -1.0}}
            ]
        },
        {
            "layers": [
                {
                    **msgspec.to_builtins(RESULT.layers[0]),
                    "summary": {**msgspec.to_builtins(SUMMARY), "projections": []},
                }
            ]
        },
    ],
)
def test_nonsense_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="not a result of layers"):
        layers.decode({**msgspec.to_builtins(RESULT), **changed})


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)
    )
)
def test_anything_is_a_result_or_refused(found: object) -> None:
    with pytest.raises(MessageError):
        layers.decode(found)


def test_signs_are_those_that_every_device_makes() -> None:
    assert layers.signs(0, 0, 64).hex() == "e9d0bdcf73643a81"
    assert layers.signs(7, 15, 9).hex() == "a44c"
    # The first of a longer row are those of a shorter one: a tensor of another size has no other signs.
    assert layers.signs(7, 15, 4096)[:2] == layers.signs(7, 15, 9)


def test_the_largest_result_fits_into_a_message() -> None:
    assert layers.MAX_RESULT_BYTES + 8192 < 256 * 1024
