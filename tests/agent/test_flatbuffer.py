from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import flatbuffer
from evenfleet_shared.errors import ModelRefusedError
from fakes import tiny_models


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return tiny_models.classifier(tmp_path_factory.mktemp("m") / "m.tflite").read_bytes()


def test_whole_model_passes(content):
    flatbuffer.check(content, "m.tflite")
    flatbuffer.check(memoryview(content), "m.tflite")


def test_cut_model_is_refused_wherever_it_was_cut(content):
    for size in range(0, len(content) - 16, 7):
        with pytest.raises(ModelRefusedError, match=r"m\.tflite"):
            flatbuffer.check(content[:size], "m.tflite")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_behind_the_identifier_pass_or_are_refused(tail):
    with contextlib.suppress(ModelRefusedError):
        flatbuffer.check(b"\x1c\0\0\0TFL3" + tail, "m.tflite")


def test_other_files_are_told_apart():
    with pytest.raises(ModelRefusedError, match="is not a TFLite model"):
        flatbuffer.check(b"PK\x03\x04" * 100, "m.keras")
