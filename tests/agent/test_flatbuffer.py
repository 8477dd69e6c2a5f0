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
        flatbuffer.outline(b"\x1c\0\0\0TFL3" + tail, "m.tflite")


@given(st.data())
def test_model_with_bytes_changed_is_read_or_refused(content, data):
    changed = bytearray(content)
    for at in data.draw(st.lists(st.integers(8, len(content) - 1), min_size=1, max_size=8)):
        changed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelRefusedError):
        flatbuffer.check(changed, "m.tflite")
        flatbuffer.outline(changed, "m.tflite")


def test_other_files_are_told_apart():
    with pytest.raises(ModelRefusedError, match="is not a TFLite model"):
        flatbuffer.check(b"PK\x03\x04" * 100, "m.keras")


def test_operators_are_told_with_their_versions(tmp_path):
    found = flatbuffer.read(tiny_models.classifier(tmp_path / "m.tflite", version=9))
    assert [(code.builtin, code.version, code.custom) for code in found.operators] == [(9, 9, None), (25, 1, None)]


def test_operators_of_old_converters_are_read_from_the_old_field(tmp_path):
    found = flatbuffer.read(tiny_models.as_before_2_4(tiny_models.classifier(tmp_path / "m.tflite")))
    assert [code.builtin for code in found.operators] == [9, 25]


def test_operator_beyond_the_old_fields_range_is_read_from_the_new_one(tmp_path):
    found = flatbuffer.read(tiny_models.partly_delegated(tmp_path / "m.tflite"))
    assert [code.builtin for code in found.operators] == [19, 128]


def test_custom_operator_is_told_by_its_name(tmp_path):
    (code,) = flatbuffer.read(tiny_models.custom(tmp_path / "m.tflite")).operators
    assert (code.builtin, code.custom) == (32, "Frobnicate")


def test_runtime_that_the_converter_counts_on_is_told(tmp_path):
    path = tiny_models.with_min_runtime_version(tmp_path / "m.tflite", "2.16.0")
    assert flatbuffer.read(path).min_runtime_version == "2.16.0"
    assert flatbuffer.read(tiny_models.relu(tmp_path / "n.tflite")).min_runtime_version is None


def test_tensors_are_told_with_open_sizes_and_quantisation(tmp_path):
    found = flatbuffer.read(tiny_models.quantised_classifier(tmp_path / "m.tflite"))
    assert [(tensor.shape_signature, tensor.scale, tensor.zero_point) for tensor in found.tensors] == [
        ((1, 3), 1 / 16, -3),
        ((1, 3), 1 / 256, -128),
    ]
    free = flatbuffer.read(tiny_models.classifier(tmp_path / "n.tflite", dynamic_batch=True))
    assert (free.tensors[0].shape_signature, free.tensors[0].scale) == ((-1, 4), None)


def test_file_that_is_empty_or_not_there_is_refused(tmp_path):
    (tmp_path / "m.tflite").touch()
    with pytest.raises(ModelRefusedError, match=r"m\.tflite \(0 bytes\)"):
        flatbuffer.read(tmp_path / "m.tflite")
    with pytest.raises(ModelRefusedError, match="cannot be read"):
        flatbuffer.read(tmp_path / "none.tflite")


def test_the_first_graph_is_told_with_its_names_and_what_is_stored(content):
    graph = flatbuffer.graph(content, "m.tflite")
    assert [(node.code.builtin, node.inputs, node.outputs) for node in graph.nodes] == [
        (9, (0, 1, 2), (3,)),
        (25, (3,), (4,)),
    ]
    assert [(tensor.name, tensor.stored) for tensor in graph.tensors] == [
        ("x", False),
        ("w", True),
        ("b", True),
        ("logits", False),
        ("y", False),
    ]
    assert (graph.inputs, graph.outputs) == ((0,), (4,))


def test_a_model_may_be_given_other_outputs_and_stays_the_same_otherwise(content):
    made = flatbuffer.with_outputs(content, [3, 4])
    flatbuffer.check(made, "m.tflite")
    before, after = flatbuffer.graph(content, "m.tflite"), flatbuffer.graph(made, "m.tflite")
    assert (after.outputs, after.nodes, after.tensors) == ((3, 4), before.nodes, before.tensors)


@given(st.data())
def test_a_graph_with_bytes_changed_is_told_or_refused(content, data):
    changed = bytearray(content)
    for at in data.draw(st.lists(st.integers(8, len(content) - 1), min_size=1, max_size=8)):
        changed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelRefusedError):
        flatbuffer.check(bytes(changed), "m.tflite")
        flatbuffer.graph(bytes(changed), "m.tflite")
