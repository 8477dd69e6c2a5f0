from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from evenfleet_shared import preprocessing
from evenfleet_shared.errors import DataError, ReleaseError
from evenfleet_shared.preprocessing import Preprocessing

IMAGE = Preprocessing(
    input="image",
    shape=(32, 32, 3),
    resize="pillow-bilinear",
    fit="stretch",
    channels="RGB",
    scale=(1 / 255,),
    offset=(0.0,),
    layout="HWC",
)


@pytest.mark.parametrize(
    "change",
    [
        {"resize": "pillow-bicubic"},
        {"resize": "tensorflow-bilinear"},
        {"fit": "crop"},
        {"channels": "BGR"},
        {"scale": (1 / 127.5,)},
        {"offset": (-1.0,)},
        {"offset": (0.0, 0.0, -1.0)},
        {"shape": (3, 32, 32), "layout": "CHW"},
        {"shape": (64, 32, 3)},
    ],
)
def test_any_change_gives_another_fingerprint(change: dict[str, Any]) -> None:
    assert replace(IMAGE, **change).fingerprint != IMAGE.fingerprint


def test_same_number_for_every_channel_is_one_number() -> None:
    assert replace(IMAGE, offset=(0.0, 0.0, 0.0)).fingerprint == IMAGE.fingerprint


def test_fingerprint_can_be_computed_from_the_manifest_alone() -> None:
    wire = IMAGE.wire()
    fields = {name: text for name, text in wire.items() if name != "fingerprint"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert wire["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    assert all(isinstance(value, str) for value in wire.values())


def test_wire_form_is_pinned() -> None:
    """Devices hold fingerprints in their firmware: a release of a later version must give the same ones."""
    assert IMAGE.wire() == {
        "input": "image",
        "shape": "32x32x3",
        "dtype": "float32",
        "resize": "pillow-bilinear",
        "fit": "stretch",
        "channels": "RGB",
        "scale": "0.00392156862745098",
        "offset": "0.0",
        "layout": "HWC",
        "fingerprint": "fb7b65a4b6ff3b81f43f606b64655f001a4ad18a23007ae9f633ad5ca7106bd8",
    }


def test_wire_form_reads_back_with_what_a_manifest_says_beside_it() -> None:
    per_channel = replace(IMAGE, scale=(0.1, 0.2, 0.3))
    assert preprocessing.from_wire({**per_channel.wire(), "mean": "0.3", "note": "x"}) == per_channel


def test_device_with_the_same_preprocessing_is_content() -> None:
    IMAGE.require_same({**IMAGE.wire(), "maximum": "1"})


def test_device_with_another_resize_and_channel_order_is_told_both() -> None:
    own = replace(IMAGE, resize="tensorflow-bilinear", channels="BGR")
    with pytest.raises(DataError) as caught:
        own.require_same(IMAGE.wire())
    assert "channels is BGR here, the release was built with RGB" in str(caught.value)
    assert "resize is tensorflow-bilinear here, the release was built with pillow-bilinear" in str(caught.value)


def test_changed_declaration_is_found_by_its_fingerprint() -> None:
    with pytest.raises(ReleaseError, match=r"preprocessing\.fingerprint is .* the manifest was changed"):
        preprocessing.from_wire({**IMAGE.wire(), "channels": "BGR"})


@pytest.mark.parametrize(
    "change",
    [{"resize": "area"}, {"shape": "axb"}, {"shape": ""}, {"scale": "1,2,3,4"}, {"scale": "much"}, {"input": "sound"}],
)
def test_unreadable_declaration_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ReleaseError, match="cannot be read"):
        preprocessing.from_wire({**IMAGE.wire(), **change})


def test_release_that_declares_nothing_is_refused() -> None:
    with pytest.raises(ReleaseError, match="declares no preprocessing"):
        IMAGE.require_same({})


def test_declaration_loads_without_numpy() -> None:
    program = "import sys, evenfleet_shared.preprocessing; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
