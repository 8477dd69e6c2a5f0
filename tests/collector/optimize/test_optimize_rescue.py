"""The operators that int8 spoils stay in float, those alone, and only as far as the floor asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, build_release, graph, rescue, variants
from evenfleet_collector.optimize.dissect import Graph
from evenfleet_collector.optimize.evaluate import TFLiteArtifact
from evenfleet_collector.optimize.rescue import RescuedInt8
from evenfleet_collector.optimize.technique import Form, Material
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared.errors import ModelRefusedError
from fakes import tiny_models
from fakes.rotations import CLASSES, Layers, in_int8, rotations, samples, with_large_weight


def labelled(*, test_labels: Any = None) -> LabelledData:
    x_train, y_train = samples(400)
    x_test, y_test = samples(80, seed=5)
    return LabelledData(x_train, y_train, x_test, y_test if test_labels is None else test_labels)


def applied(folder: Path, layers: Layers, data: LabelledData, **settings: Any) -> Form:
    file = tiny_models.dense(folder / "float.tflite", layers)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    material = Material(data=data, classes=CLASSES, output_kind="logits", seed=0, folder=work)
    return RescuedInt8(**settings).apply(Form(stage="tflite", tflite=file), material)


def accuracy(file: Path) -> float:
    x, y = samples(80, seed=5)
    return float((TFLiteArtifact(file).outputs(x).argmax(axis=1) == y).mean())


def types(file: Path) -> dict[str, str]:
    """Return the type of each dense layer's weights."""
    return {
        one.name.removesuffix("_dequant"): one.weights.type
        for one in Graph(file.read_bytes()).operators
        if one.weights is not None
    }


@pytest.mark.parametrize("place", [1, 2, 3])
def test_layer_that_int8_spoils_alone_stays_in_float_and_accuracy_is_back(tmp_path: Path, place: int) -> None:
    layers = with_large_weight(rotations(), place)
    spoilt = tmp_path / "int8.tflite"
    spoilt.write_bytes(in_int8(tmp_path, layers))
    assert accuracy(spoilt) < 0.6

    form = applied(tmp_path, layers, labelled())

    assert form.tflite is not None
    assert accuracy(form.tflite) >= 0.99
    assert form.notes == (f"kept in float: FULLY_CONNECTED dense{place}",)
    expected = {f"dense{n}": "FLOAT32" if n == place else "INT8" for n in range(4)}
    assert types(form.tflite) == expected


def test_two_spoilt_layers_both_stay_in_float(tmp_path: Path) -> None:
    layers = with_large_weight(with_large_weight(rotations(), 1), 3)
    form = applied(tmp_path, layers, labelled())
    assert form.tflite is not None
    assert accuracy(form.tflite) >= 0.99
    assert {name for name, kind in types(form.tflite).items() if kind == "FLOAT32"} == {"dense1", "dense3"}


def test_int8_that_holds_the_floor_keeps_nothing_in_float(tmp_path: Path) -> None:
    form = applied(tmp_path, rotations(), labelled())
    assert form.notes == ("kept in float: no operator, int8 holds the floor as it is",)
    assert form.tflite is not None
    assert set(types(form.tflite).values()) == {"INT8"}


def test_labels_of_the_test_set_decide_nothing(tmp_path: Path) -> None:
    layers = with_large_weight(rotations(), 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made = applied(tmp_path / "a", layers, labelled()).tflite
    other = applied(tmp_path / "b", layers, labelled(test_labels=np.arange(80, dtype=np.int64) % 2)).tflite
    assert made is not None
    assert other is not None
    assert made.read_bytes() == other.read_bytes()


def test_floor_that_does_not_hold_with_one_operator_in_int8_is_refused(tmp_path: Path) -> None:
    layers = rotations()
    for place in (1, 2, 3):
        layers = with_large_weight(layers, place)
    weights, bias = layers[0]
    layers[0] = np.where(np.arange(weights.shape[1]) == 15, 1000.0, weights).astype(np.float32), bias
    data = labelled()
    for x in (data.x_train, data.x_test):
        x[:, 15] = 0.0  # as the other large weights: for what is always zero

    with pytest.raises(
        ModelRefusedError, match=r"int8-rescue: the accuracy floor does not hold with all .* of 4 in fl"
    ):
        applied(tmp_path, layers, data)


def test_calibration_and_measurement_share_no_sample() -> None:
    for settings in ((200, 500), (10_000, 10_000)):
        calibration, held_out = rescue._parts(labelled(), *settings, seed=0)
        assert not set(calibration) & set(held_out)
        assert len(held_out) >= 100


def test_only_int8_variants_below_the_floor_get_a_rescue_with_the_settings_of_their_int8() -> None:
    recipes = [*variants.DEFAULT, variants.recipe("trained", "qat")]
    found = variants.rescued(recipes, {"pruned-int8", "float16", "trained"}, 0.02)
    assert [(one.name, one.words) for one in found] == [("pruned-int8-rescued", ("prune", "int8-rescue"))]
    step = found[0].chain[-1]
    assert isinstance(step, RescuedInt8)
    assert (step.max_accuracy_drop_ratio, step.calibration_samples) == (0.02, 200)
    assert all(variants.misfit(one.chain, "keras") is None for one in found)


def test_rescue_is_called_what_a_manifest_takes_and_no_other_variant_is_called() -> None:
    named = [("int8", "int8"), ("int8-rescued", "float16"), ("x" * 64, "int8"), ("x" * 63 + "y", "int8")]
    recipes = [variants.recipe(name, word) for name, word in named]
    found = [one.name for one in variants.rescued(recipes, {name for name, _ in named}, 0.02)]
    assert found == ["int8-rescued-2", "x" * 56 + "-rescued", "x" * 54 + "-rescued-2"]


@pytest.mark.tensorflow
def test_release_of_a_tflite_file_holds_its_rescue(tmp_path: Path) -> None:
    path = tiny_models.dense(tmp_path / "m.tflite", with_large_weight(rotations(), 2))
    recipes = [variants.DEFAULT[0], Recipe("rescued", (variants.technique("int8-rescue"),))]
    built = build_release(path, labelled(), tmp_path / "release", recipes=recipes, golden_n=20)
    assert built.missing == ()
    row = built.variants[1]
    assert (row.name, row.accuracy_ratio) == ("rescued", 1.0)
    operators = graph.read((built.directory / "artifacts/rescued.tflite").read_bytes()).operators
    assert {name.partition(" ")[0] for name in operators} == {"DEQUANTIZE", "FULLY_CONNECTED", "QUANTIZE"}
