"""What MODEL may be, and how everything else is refused: one line, nothing run, nothing left behind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, build_release
from evenfleet_shared.errors import ConfigError, DataError, EvenfleetError, ModelRefusedError

pytestmark = pytest.mark.tensorflow


def refusal(model: Path | str, data: LabelledData, folder: Path) -> EvenfleetError:
    """Build, and return the error, having checked that it is one line and that no file is left."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(EvenfleetError) as caught:
        build_release(model, data, folder / "release")
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
    return caught.value


def replace_member(source: Path, target: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as made:
        for member in given.namelist():
            made.writestr(member, content if member == name else given.read(member))
    return target


@pytest.mark.parametrize("content", [b"", b"random bytes", b"PK\x03\x04"])
def test_file_that_is_no_keras_file_is_refused(tmp_path: Path, blobs: LabelledData, content: bytes) -> None:
    (tmp_path / "m.keras").write_bytes(content)
    error = refusal(tmp_path / "m.keras", blobs, tmp_path)
    assert isinstance(error, ModelRefusedError)
    assert "is not a .keras file, or is cut short" in str(error)


def test_truncated_keras_file_is_refused(tmp_path: Path, blobs: LabelledData, blob_keras_file: Path) -> None:
    (tmp_path / "m.keras").write_bytes(blob_keras_file.read_bytes()[:-500])
    assert "cut short" in str(refusal(tmp_path / "m.keras", blobs, tmp_path))


def test_other_zip_archive_is_refused_by_what_is_missing(tmp_path: Path, blobs: LabelledData) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "metadata.json, config.json, model.weights.h5 missing" in str(refusal(tmp_path / "m.keras", blobs, tmp_path))


def test_keras_file_with_damaged_weights_is_refused(tmp_path: Path, blobs: LabelledData, blob_keras_file: Path) -> None:
    damaged = replace_member(blob_keras_file, tmp_path / "m.keras", "model.weights.h5", b"\x89HDF nonsense")
    assert isinstance(refusal(damaged, blobs, tmp_path), ModelRefusedError)


def test_keras_file_that_names_a_function_to_run_is_refused_and_it_is_not_run(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    hostile = {
        "module": "os",
        "class_name": "system",
        "config": f"touch {tmp_path}/exploded",
        "registered_name": None,
    }
    path = replace_member(blob_keras_file, tmp_path / "m.keras", "config.json", json.dumps(hostile).encode())
    assert isinstance(refusal(path, blobs, tmp_path), ModelRefusedError)


def test_keras_file_with_a_lambda_is_refused_with_what_to_do(tmp_path: Path, blobs: LabelledData) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(3)])
    model.save(tmp_path / "m.keras")
    assert "Python code (a Lambda layer), which is never loaded" in str(refusal(tmp_path / "m.keras", blobs, tmp_path))


def test_keras_file_with_a_layer_of_ones_own_is_refused_by_the_layers_name(tmp_path: Path, blobs: LabelledData) -> None:
    import keras

    class Doubled(keras.layers.Layer):  # type: ignore[misc]  # keras has no types
        def call(self, x: Any) -> Any:
            return x * 2

    keras.Sequential([keras.Input((4,)), Doubled(), keras.layers.Dense(3)]).save(tmp_path / "m.keras")
    assert "holds Doubled, a class that is not Keras's own" in str(refusal(tmp_path / "m.keras", blobs, tmp_path))


def test_saved_model_of_random_bytes_is_refused(tmp_path: Path, blobs: LabelledData) -> None:
    (tmp_path / "sm").mkdir()
    (tmp_path / "sm" / "saved_model.pb").write_bytes(b"\xff" * 100)
    assert isinstance(refusal(tmp_path / "sm", blobs, tmp_path), ModelRefusedError)


def written(path: Path, function: Any, sample: tuple[int | None, ...], *names: str) -> Path:
    """Write a SavedModel whose signatures all compute `function`."""
    import tensorflow as tf

    module = tf.Module()
    concrete = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec(sample, tf.float32, name="x"))
    tf.saved_model.save(module, str(path), signatures=dict.fromkeys(names, concrete))
    return path


def test_saved_model_with_one_signature_of_another_name_is_taken(tmp_path: Path, blobs: LabelledData) -> None:
    path = written(tmp_path / "sm", lambda x: {"scores": x[:, :3]}, (None, 4), "predict")
    built = build_release(path, blobs, tmp_path / "release", only=["int8", "saved-model"])
    assert [each.accuracy_ratio for each in built.variants if each.name in {"float32", "saved-model"}] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "sample", "names", "message"),
    [
        (lambda x: {"y": x}, (None, 4), ("one", "other"), "no signature serving_default (found: "),
        (lambda x: {"a": x, "b": x, "c": x}, (None, 4), ("serving_default",), "has 1 input and 3 outputs"),
        (lambda x: {"y": x}, (8, 4), ("serving_default",), "takes exactly 8 samples at once"),
        (lambda x: {"y": x[:, None]}, (None, 4), ("serving_default",), "gives (1, 4) values per sample"),
        (lambda x: {"y": x[0]}, (None, 4), ("serving_default",), "expected a row of 2 to 1001 class scores"),
    ],
)
def test_saved_model_that_is_no_classifier_is_refused(
    tmp_path: Path, blobs: LabelledData, function: Any, sample: Any, names: tuple[str, ...], message: str
) -> None:
    error = refusal(written(tmp_path / "sm", function, sample, *names), blobs, tmp_path)
    assert isinstance(error, ModelRefusedError)
    assert message in str(error)


def test_saved_model_with_free_sides_takes_the_size_of_the_samples(tmp_path: Path) -> None:
    images = np.zeros((40, 6, 5, 3), np.float32)
    images[::2] = 1.0
    labels = np.arange(40, dtype=np.int64) % 2
    import tensorflow as tf

    def brightness(x: Any) -> Any:
        mean = tf.reduce_mean(x, axis=[1, 2, 3])
        return {"y": tf.stack([mean, 1.0 - mean], axis=1)}

    path = written(tmp_path / "sm", brightness, (None, None, None, 3), "serving_default")
    data = LabelledData(images[:20], labels[:20], images[20:], labels[20:])
    built = build_release(path, data, tmp_path / "release", only=["float32"])
    assert built.manifest.variants[0].input.shape == (1, 6, 5, 3)
    assert built.variants[0].accuracy_ratio == 1.0


def test_samples_of_another_shape_are_refused_with_both_shapes(tmp_path: Path, blob_keras_file: Path) -> None:
    labels = np.arange(8, dtype=np.int64) % 3
    images = LabelledData(np.zeros((8, 2, 2), np.float32), labels, np.zeros((8, 2, 2), np.float32), labels)
    error = refusal(blob_keras_file, images, tmp_path)
    assert isinstance(error, DataError)
    assert "takes samples of shape (4,), DATA has samples of shape (2, 2)" in str(error)


def test_labels_beyond_the_models_classes_are_refused(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    beyond = LabelledData(blobs.x_train, blobs.y_train + 1, blobs.x_test, blobs.y_test)
    error = refusal(blob_keras_file, beyond, tmp_path)
    assert isinstance(error, DataError)
    assert "has labels up to 3" in str(error)


def made_by(layers: Any) -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), *layers(keras)])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda keras: [keras.layers.Dense(1)], "expected a row of 2 to 1001 class scores"),
        (
            lambda keras: [keras.layers.Dense(4), keras.layers.Reshape((2, 2))],
            "expected a row of 2 to 1001 class scores",
        ),
        (
            lambda keras: [keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(np.nan))],
            "NaN or infinite",
        ),
    ],
)
def test_model_that_is_no_classifier_is_refused(tmp_path: Path, blobs: LabelledData, layers: Any, message: str) -> None:
    made_by(layers).save(tmp_path / "m.keras")
    error = refusal(tmp_path / "m.keras", blobs, tmp_path)
    assert isinstance(error, ModelRefusedError)
    assert message in str(error)


def test_model_with_two_inputs_is_refused(tmp_path: Path, blobs: LabelledData) -> None:
    import keras

    first, second = keras.Input((4,)), keras.Input((4,))
    joined = keras.layers.Dense(3)(keras.layers.Concatenate()([first, second]))
    keras.Model([first, second], joined).save(tmp_path / "m.keras")
    assert "has 2 inputs and 1 output; " in str(refusal(tmp_path / "m.keras", blobs, tmp_path))


def test_function_that_returns_no_model_is_refused(
    tmp_path: Path, blobs: LabelledData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ef_nomodel.py").write_text("def model():\n    return 'model'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert "gave str, expected a Keras" in str(refusal("ef_nomodel:model", blobs, tmp_path))


def test_target_that_holds_something_else_is_refused_before_the_model_is_read(
    tmp_path: Path, blobs: LabelledData, blob_keras_file: Path
) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "thesis.txt").write_text("years of work")
    error = refusal(blob_keras_file, blobs, tmp_path)
    assert isinstance(error, ConfigError)
    assert "already holds something else (thesis.txt)" in str(error)


def test_target_in_a_directory_that_cannot_be_written_is_refused(blobs: LabelledData, blob_keras_file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write in /proc"):
        build_release(blob_keras_file, blobs, Path("/proc/release"))
