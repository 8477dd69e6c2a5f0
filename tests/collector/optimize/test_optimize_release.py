"""A real release of the seed model, checked with nothing but the files in it."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import DEFAULT, BuildReport, LabelledData, Progress, build_release, variants
from evenfleet_shared import disk, manifest, trust
from evenfleet_shared.errors import ConfigError, ModelRefusedError
from evenfleet_shared.signature import PrivateKey

pytestmark = pytest.mark.tensorflow


EAGER_ONLY = """
import keras
import tensorflow as tf

class EagerOnly(keras.Model):
    def call(self, x):
        if not tf.executing_eagerly():
            raise RuntimeError("only runs eagerly")
        return keras.ops.softmax(x[:, :3])

def model():
    return EagerOnly()
"""


def golden(release: BuildReport, name: str) -> Any:
    return np.load(release.directory / "golden" / f"{name}.npy", allow_pickle=False)


def run_tflite(path: Path, x: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for sample in x:
        scale, zero_point = given["quantization"]
        stored = np.clip(np.rint(sample / scale) + zero_point, -128, 127) if scale else sample
        interpreter.set_tensor(given["index"], stored[None].astype(given["dtype"]))
        interpreter.invoke()
        row = interpreter.get_tensor(made["index"])[0]
        scale, zero_point = made["quantization"]
        rows.append((row.astype(np.float32) - zero_point) * np.float32(scale) if scale else row)
    return np.array(rows)


def test_every_variant_is_built_and_every_file_is_the_manifests(digits_release: BuildReport) -> None:
    checked, digest = manifest.verify(digits_release.directory)
    assert digest == digits_release.digest
    assert [each.name for each in checked.variants] == [each.name for each in DEFAULT]
    assert checked.missing == ()
    files = {path.relative_to(digits_release.directory).as_posix() for path in digits_release.directory.rglob("*.*")}
    assert files == {each.file for each in checked.files} | {"manifest.json"}


def test_accuracies_are_worth_the_name(digits_release: BuildReport) -> None:
    rows = {row.name: row for row in digits_release.variants}
    assert rows["float32"].accuracy_ratio >= 0.95
    assert abs(rows["int8"].delta_ratio) <= 0.01
    assert min(row.accuracy_ratio for row in rows.values()) >= 0.92
    assert rows["distilled-int8"].size_bytes < rows["int8"].size_bytes < rows["float32"].size_bytes


def test_golden_set_is_real_test_samples_in_their_classes_shares(digits_release: BuildReport) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.data / 16.0).astype(np.float32)
    known = {sample.tobytes(): label for sample, label in zip(pixels, digits.target, strict=True)}
    inputs, labels = golden(digits_release, "inputs"), golden(digits_release, "labels")
    assert (inputs.dtype, labels.dtype, len(inputs)) == (np.float32, np.int64, 300)
    assert [known[sample.tobytes()] for sample in inputs] == labels.tolist()
    assert np.bincount(labels).min() >= 27


@pytest.mark.parametrize("name", [each.name for each in DEFAULT if "saved-model" not in each.name])
def test_reference_result_is_what_the_plain_interpreter_gives(digits_release: BuildReport, name: str) -> None:
    variant = digits_release.manifest.variant(name)
    outputs = run_tflite(digits_release.directory / variant.artifact.file, golden(digits_release, "inputs"))
    right = outputs.argmax(axis=1) == golden(digits_release, "labels")
    assert "".join("01"[int(each)] for each in right) == variant.reference.correct
    assert variant.reference.errors == int((~right).sum())
    difference = np.abs(outputs - golden(digits_release, "outputs"))
    assert float(difference.max()) == pytest.approx(variant.reference.agreement.max_abs_diff)
    assert float(np.sqrt((difference**2).mean())) == pytest.approx(variant.reference.agreement.rms_diff, rel=1e-4)
    if name == digits_release.manifest.reference_variant:
        assert np.array_equal(outputs, golden(digits_release, "outputs"))
        assert variant.reference.agreement.noise_class == "bit-exact"


@pytest.mark.parametrize("name", [each.name for each in DEFAULT if "saved-model" in each.name])
def test_saved_model_runs_from_its_tar_alone(digits_release: BuildReport, name: str, tmp_path: Path) -> None:
    import tensorflow as tf

    variant = digits_release.manifest.variant(name)
    with tarfile.open(digits_release.directory / variant.artifact.file) as tar:
        tar.extractall(tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    outputs = loaded.signatures["serving_default"](input=tf.constant(golden(digits_release, "inputs")))[
        "output"
    ].numpy()
    assert variant.input.shape == (-1, 64)
    assert int((outputs.argmax(axis=1) != golden(digits_release, "labels")).sum()) == variant.reference.errors


def test_int8_is_int8_from_end_to_end(digits_release: BuildReport) -> None:
    variant = digits_release.manifest.variant("int8")
    assert (variant.input.dtype, variant.output.dtype) == ("int8", "int8")
    assert variant.input.scale is not None
    assert not any("QUANTIZE" in operator for operator in variant.operators)


def test_facts_of_the_seed_model_are_read_from_the_file(digits_release: BuildReport) -> None:
    dense = 64 * 64 + 64 * 32 + 32 * 10
    for name in ("float32", "float16", "dynamic", "int8", "pruned-int8"):
        variant = digits_release.manifest.variant(name)
        assert (variant.parameters, variant.macs) == (dense + 64 + 32 + 10, dense)
        assert any(operator.startswith("FULLY_CONNECTED v") for operator in variant.operators)
        assert variant.min_runtime_version
    assert digits_release.manifest.variant("saved-model").parameters == dense + 64 + 32 + 10


def test_pruned_weights_are_zero_in_the_file(digits_release: BuildReport) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = digits_release.directory / digits_release.manifest.variant("pruned-int8").artifact.file
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    shapes = {(64, 64), (32, 64)}
    kernels = [
        interpreter.get_tensor(each["index"])
        for each in interpreter.get_tensor_details()
        if tuple(each["shape"]) in shapes and each["dtype"] == np.int8
    ]
    assert len(kernels) == 2
    assert all((kernel == 0).mean() >= 0.6 for kernel in kernels)


def test_same_inputs_give_the_same_files(tmp_path: Path, blobs: LabelledData, blob_keras_file: Path) -> None:
    only = ["float32", "pruned-int8"]
    first, second = (
        build_release(blob_keras_file, blobs, tmp_path / name, golden_n=30, only=only).manifest for name in ("a", "b")
    )
    assert first == second
    assert first.golden.n == 30


def test_only_named_variants_and_the_reference_are_built_and_steps_are_told_in_order(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    told: list[Progress] = []
    built = build_release(blob_keras_file, blobs, tmp_path / "r", only=["int8"], report=told.append)
    assert [each.name for each in built.manifest.variants] == ["float32", "int8"]
    steps = [each.step for each in told]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, told[-1].steps + 1))
    assert built.manifest.golden.n == len(blobs.x_test)


def test_the_recipes_first_variant_is_the_reference_whatever_it_is_called(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    recipes = [
        variants.recipe("base", "float32"),
        variants.recipe("saved-model", "saved-model"),
        variants.recipe("float32", "float16"),
    ]
    built = build_release(blob_keras_file, blobs, tmp_path / "r", recipes=recipes)
    assert built.manifest.reference_variant == "base"
    assert built.manifest.variant("base").reference.agreement.noise_class == "bit-exact"


def test_report_has_the_names_of_the_classes(tmp_path: Path, blobs: LabelledData, blob_keras_file: Path) -> None:
    named = replace(blobs, class_names=("apple", "fig", "pear"))
    built = build_release(blob_keras_file, named, tmp_path / "r", only=["float32"])
    assert built.document().class_names == ("apple", "fig", "pear")
    assert json.loads(built.manifest.lineage["class_names"]) == ["apple", "fig", "pear"]


@pytest.mark.parametrize("name", ["Raspberry Pi 4", "", "-x", "x" * 65])
def test_device_class_that_no_manifest_takes_is_refused_before_any_work(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path, name: str
) -> None:
    told: list[Progress] = []
    with pytest.raises(ConfigError, match=r"--device-class .*expected 1 to 64 letters"):
        build_release(blob_keras_file, blobs, tmp_path / "r", timed=True, device_class=name, report=told.append)
    assert told == []


def test_release_that_would_hold_too_many_variants_holds_the_first_and_names_the_others(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    recipes = [variants.recipe(f"v{number}", "float32") for number in range(66)]
    built = build_release(blob_keras_file, blobs, tmp_path / "r", recipes=recipes)
    assert [each.name for each in built.manifest.variants] == [f"v{number}" for number in range(64)]
    assert [each.name for each in built.missing] == ["v64", "v65"]
    assert built.missing[0].reason == "a release holds at most 64 variants"


def test_earlier_release_is_replaced_signatures_and_all_and_nothing_else_appears(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    earlier = build_release(blob_keras_file, blobs, tmp_path / "r", only=["float16"])
    trust.write(tmp_path / "r", PrivateKey(bytes(32)).sign(earlier.digest))
    built = build_release(blob_keras_file, blobs, tmp_path / "r", only=["int8"])
    checked = trust.check(tmp_path / "r")
    assert (checked.manifest, checked.digest, checked.signatures) == (built.manifest, built.digest, ())
    assert sorted(path.name for path in (tmp_path / "r" / "artifacts").iterdir()) == ["float32.tflite", "int8.tflite"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_interrupted_build_leaves_nothing(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path, step: int
) -> None:
    told: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        told.append(progress)
        if len(told) == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_release(blob_keras_file, blobs, tmp_path / "r", only=["int8"], report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    left = [tmp_path / f".r-building-{word}" for word in ("killed", "alive", "moving", "young")]
    for folder in left:
        folder.mkdir()
    for folder in left[:3]:
        (folder / "lock").touch()
    (tmp_path / ".r-building-moving" / "earlier").mkdir()
    with disk.held(tmp_path / ".r-building-alive" / "lock"):
        build_release(blob_keras_file, blobs, tmp_path / "r", only=["float32"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "r", ".r-building-alive", ".r-building-moving", ".r-building-young"
    }  # fmt: skip


def test_saved_model_gives_the_variants_that_need_no_training_and_says_why_not_the_others(
    tmp_path: Path, blobs: LabelledData, blob_model: Any
) -> None:
    blob_model.export(tmp_path / "sm", verbose=False)
    built = build_release(tmp_path / "sm", blobs, tmp_path / "r")
    assert [each.name for each in built.manifest.variants] == ["float32", "float16", "dynamic", "int8", "saved-model"]
    assert {each.name for each in built.missing} == {
        "pruned-int8", "distilled-int8", "pruned-saved-model", "distilled-saved-model",
    }  # fmt: skip
    assert all("needs a Keras model" in each.reason for each in built.missing)
    saved = built.manifest.variant("saved-model")
    assert saved.parameters == blob_model.count_params()
    assert saved.reference.agreement.noise_class in ("bit-exact", "within-rounding")
    manifest.verify(tmp_path / "r")


def test_variant_that_cannot_be_built_is_named_with_the_reason_and_the_rest_is_built(
    tmp_path: Path, blobs: LabelledData
) -> None:
    """Cumulative sums have no int8 kernel, and the converter leaves them in float32 without a word."""
    import keras

    given = keras.Input((4,))
    hidden = keras.layers.Dense(4, activation="relu")(given)
    keras.Model(given, keras.layers.Dense(3)(keras.ops.cumsum(hidden, axis=1))).save(tmp_path / "m.keras")
    built = build_release(tmp_path / "m.keras", blobs, tmp_path / "r", only=["int8", "float16", "saved-model"])
    assert [each.name for each in built.manifest.variants] == ["float32", "float16", "saved-model"]
    (missing,) = built.missing
    assert missing.name == "int8"
    assert "CUMSUM would run in float32" in missing.reason


def test_model_that_gives_logits_is_pruned_and_distilled_as_well(tmp_path: Path, blobs: LabelledData) -> None:
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.fit(blobs.x_train, blobs.y_train, epochs=30, verbose=0)
    model.save(tmp_path / "m.keras")
    built = build_release(tmp_path / "m.keras", blobs, tmp_path / "r", only=["pruned-int8", "distilled-int8"])
    assert [row.accuracy_ratio >= 0.95 for row in built.variants] == [True, True, True]


def test_skip_past_the_hidden_layer_forbids_a_narrower_student_and_says_so(tmp_path: Path, blobs: LabelledData) -> None:
    import keras

    given = keras.Input((8,))
    hidden = keras.layers.Add()([given, keras.layers.Dense(8, activation="relu")(given)])
    keras.Model(given, keras.layers.Dense(3)(hidden)).save(tmp_path / "m.keras")
    wide = LabelledData(np.tile(blobs.x_train, 2), blobs.y_train, np.tile(blobs.x_test, 2), blobs.y_test)
    built = build_release(tmp_path / "m.keras", wide, tmp_path / "r", only=["distilled-int8"])
    assert [each.name for each in built.manifest.variants] == ["float32"]
    assert "a narrower student does not fit together" in built.missing[0].reason


def test_model_of_which_nothing_can_be_built_is_refused_and_leaves_nothing(
    tmp_path: Path, blobs: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ef_eager.py").write_text(EAGER_ONLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    with pytest.raises(ModelRefusedError, match=r"no variant could be built; float32: .*only runs eagerly"):
        build_release("ef_eager:model", blobs, tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["ef_eager.py"]
