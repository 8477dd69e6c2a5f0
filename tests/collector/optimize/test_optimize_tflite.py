"""MODEL as a .tflite: what is taken, what it is called, and what cannot be taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, build_release, graph, models
from evenfleet_collector.optimize.dissect import Graph
from evenfleet_collector.optimize.models import OpenedModel
from evenfleet_collector.optimize.models.tflite_file import type_name
from evenfleet_collector.optimize.variants import recipe
from evenfleet_shared import manifest
from evenfleet_shared.errors import DataError, ModelRefusedError
from fakes import tiny_models


def open_file(path: Path) -> OpenedModel:
    return models.open_model(models.parse(path), path.parent)


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_classifier_is_taken_and_run(tmp_path: Path, blobs: LabelledData, dynamic_batch: bool) -> None:
    path = tiny_models.classifier(tmp_path / "m.tflite", dynamic_batch=dynamic_batch)
    opened = open_file(path)
    assert (opened.stage, opened.own_name, opened.sample_shape) == ("tflite", "float32", (4,))
    checked = opened.checked(blobs)
    assert (checked.classes, checked.output_kind) == (3, "probabilities")
    assert opened.digest == manifest.file_digest(path)


def test_integer_classifier_is_taken_with_its_scales(tmp_path: Path) -> None:
    opened = open_file(tiny_models.quantised_classifier(tmp_path / "m.tflite"))
    assert opened.own_name == "int8"
    assert np.argmax(opened.run(np.array([[0.0, 2.0, 1.0]], dtype=np.float32))) == 1


def test_file_of_an_old_converter_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = tiny_models.as_before_2_4(tiny_models.classifier(tmp_path / "m.tflite"))
    assert np.argmax(open_file(path).run(np.array([[0.0, 2.0, 1.0, 0.0]], dtype=np.float32))) == 1
    found = graph.read(path.read_bytes())
    assert (found.operators, found.macs) == (("FULLY_CONNECTED v1", "SOFTMAX v1"), 12)
    assert [one.kind for one in Graph(path.read_bytes()).operators] == ["FULLY_CONNECTED", "SOFTMAX"]


def test_mixture_of_types_is_called_original(tmp_path: Path) -> None:
    assert open_file(tiny_models.half_quantised_classifier(tmp_path / "m.tflite")).own_name == "original"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (tiny_models.adder, "has 2 inputs and 1 output"),
        (tiny_models.custom, "cannot be run by LiteRT: .*Frobnicate"),
        (lambda path: tiny_models.classifier(path, version=99), "cannot be run by LiteRT: .*FULLY_CONNECTED"),
        (tiny_models.relu, "expected a row of 2 to 1001 class scores"),
        (lambda path: tiny_models.relu(path, shape=(1, 4, 4)), r"gives \(4, 4\) values per sample"),
        (
            lambda path: tiny_models.relu(path, shape=(1, 4), signature=(-1, -1)),
            "shape any × any; devices run a file as",
        ),
        (lambda path: tiny_models.relu(path, shape=(8, 4)), "takes exactly 8 samples at once, devices give one"),
        (tiny_models.aborting, r"makes the interpreter crash \(SIG"),
        (lambda path: path.write_bytes(b""), "is not a .tflite file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 100), "is not a .tflite file: expected TFL3"),
        (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 100), "MODEL .*m.tflite"),
    ],
)
def test_file_that_cannot_be_a_release_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "m.tflite")
    with pytest.raises(ModelRefusedError, match=message) as caught:
        open_file(tmp_path / "m.tflite")
    assert "\n" not in str(caught.value)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tiny_models.classifier(tmp_path / "m.tflite")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelRefusedError):
        open_file(path)


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    labels = np.arange(8, dtype=np.int64) % 2
    other = LabelledData(np.zeros((8, 5), np.float32), labels, np.zeros((8, 5), np.float32), labels)
    with pytest.raises(DataError, match=r"takes samples of shape \(4,\), DATA has samples of shape \(5,\)"):
        open_file(tiny_models.classifier(tmp_path / "m.tflite")).checked(other)


def test_names_of_classes_that_the_model_does_not_have_are_refused(tmp_path: Path, blobs: LabelledData) -> None:
    """Two folders of a model's three classes would be numbered 0 and 1, whichever they are."""
    named = LabelledData(blobs.x_train, blobs.y_train % 2, blobs.x_test, blobs.y_test % 2, class_names=("one", "other"))
    with pytest.raises(DataError, match=r"names 2 classes .* has 3, so which is which is not known"):
        open_file(tiny_models.classifier(tmp_path / "m.tflite")).checked(named)


@pytest.mark.tensorflow
def test_release_of_a_file_holds_it_and_says_why_nothing_else(tmp_path: Path, blobs: LabelledData) -> None:
    path = tiny_models.classifier(tmp_path / "m.tflite")
    built = build_release(path, blobs, tmp_path / "release")
    _, digest = manifest.verify(tmp_path / "release")
    assert built.digest == digest
    assert [each.name for each in built.variants] == ["float32"]
    assert (tmp_path / "release" / "artifacts" / "float32.tflite").read_bytes() == path.read_bytes()
    assert built.manifest.variants[0].techniques == ()
    assert built.manifest.lineage["model_sha256"] == manifest.file_digest(path)
    reasons = {each.name: each.reason for each in built.missing}
    assert "MODEL is a .tflite file, which is converted already" in reasons["int8"]
    assert "needs a Keras model" in reasons["pruned-int8"]


@pytest.mark.tensorflow
def test_every_converted_variant_is_recognised_by_its_types(digits_release: object) -> None:
    folder = digits_release.directory / "artifacts"  # type: ignore[attr-defined]
    for name in ("float32", "float16", "dynamic", "int8"):
        assert type_name((folder / f"{name}.tflite").read_bytes()) == name


@pytest.mark.tensorflow
def test_converted_int8_file_is_the_reference_of_its_own_release(tmp_path: Path, digits_release: object) -> None:
    folder = digits_release.directory  # type: ignore[attr-defined]
    x, y = (np.load(folder / "golden" / f"{name}.npy") for name in ("inputs", "labels"))
    built = build_release(
        folder / "artifacts" / "int8.tflite", LabelledData(x, y, x, y), tmp_path / "release", only=["int8"]
    )
    assert built.manifest.reference_variant == "int8"
    earlier = digits_release.manifest.variant("int8").reference  # type: ignore[attr-defined]
    assert built.manifest.variant("int8").reference.errors == earlier.errors


@pytest.mark.tensorflow
@pytest.mark.parametrize("chain", [("weight-only",), ("float32", "weight-only")])
def test_float_file_is_enough_for_what_starts_from_one(
    tmp_path: Path, digits_release: object, chain: tuple[str, ...]
) -> None:
    folder = digits_release.directory  # type: ignore[attr-defined]
    x, y = (np.load(folder / "golden" / f"{name}.npy") for name in ("inputs", "labels"))
    built = build_release(
        folder / "artifacts" / "float32.tflite",
        LabelledData(x, y, x, y),
        tmp_path / "release",
        recipes=[recipe("float32", "float32"), recipe("small", *chain)],
    )
    assert [each.name for each in built.variants] == ["float32", "small"]
    assert built.variants[1].size_ratio < 0.5
