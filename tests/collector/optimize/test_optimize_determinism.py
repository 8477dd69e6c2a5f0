"""The promise: same inputs, seed, machine and versions give the same digest of every artifact, whatever came before."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import (
    BuildReport,
    LabelledData,
    archive,
    build_release,
    read_recipe,
    saved_model,
    variants,
)
from evenfleet_collector.optimize.models import import_tensorflow
from evenfleet_collector.optimize.technique import Form, Material, Technique
from evenfleet_shared import manifest

pytestmark = pytest.mark.tensorflow

# Enough to move every weight.
QUICK = {"steps": 12, "clusters": 4, "calibration_samples": 20}
# What is measured is never the same twice.
ANEW = ("--seeds", "0", "--no-cache", "--no-timing", "--no-report")
# Their Keras 2 process takes ten seconds to start.
IN_A_PROCESS_OF_THEIR_OWN = ("cluster", "qat")
EVERY_TECHNIQUE = [
    pytest.param(
        replace(known, **{field.name: QUICK[field.name] for field in fields(known) if field.name in QUICK}),
        id=known.name,
        marks=[pytest.mark.slow] if known.name in IN_A_PROCESS_OF_THEIR_OWN else [],
    )
    for known in variants.TECHNIQUES
]


@pytest.fixture(scope="module")
def wide_blobs(blobs: LabelledData) -> LabelledData:
    """The blobs in 16 dimensions: a whole block for `prune-blocks`."""
    return LabelledData(np.tile(blobs.x_train, 4), blobs.y_train, np.tile(blobs.x_test, 4), blobs.y_test)


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for them that draws: Dropout has a random state of its own."""
    import_tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(16, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ],
        name="wide",
    )
    path = tmp_path_factory.mktemp("wide") / "wide.keras"
    model.save(path)
    return path


def applied(technique: Technique, model: Any, data: LabelledData, folder: Path) -> Form:
    """Take a Keras model through a technique, and what goes without saying before and after it."""
    folder.mkdir()
    material = Material(data=data, classes=3, output_kind="probabilities", seed=0, folder=folder)
    form = Form(stage="keras", keras=model)
    for step in variants.filled((technique,), "keras"):
        if form.stage == "keras" and step.takes == "saved_model":
            form = saved_model.export_keras(form.keras, data.sample_shape, material)
        form = step.apply(form, material)
    return saved_model.export_keras(form.keras, data.sample_shape, material) if form.stage == "keras" else form


def artifact(form: Form) -> bytes:
    if form.tflite is not None:
        return form.tflite.read_bytes()
    assert form.saved_model is not None
    packed = form.saved_model.with_suffix(".tar")
    archive.pack(form.saved_model, packed)
    return packed.read_bytes()


def other_work() -> None:
    """Build, train and convert another model, and draw from every generator."""
    import keras
    import tensorflow as tf

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7), keras.layers.Dropout(0.1)])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 5)), np.ones((8, 7)), verbose=0)
    tf.lite.TFLiteConverter.from_keras_model(model).convert()
    keras.random.uniform((3,))
    np.random.rand(3)
    random.random()


@pytest.mark.parametrize("technique", EVERY_TECHNIQUE)
def test_a_technique_gives_the_same_bytes_after_other_work_in_the_process(
    technique: Technique, wide_blobs: LabelledData, wide_file: Path, tmp_path: Path
) -> None:
    import keras

    first = artifact(applied(technique, keras.models.load_model(wide_file), wide_blobs, tmp_path / "first"))
    other_work()
    second = artifact(applied(technique, keras.models.load_model(wide_file), wide_blobs, tmp_path / "second"))

    assert first == second


def test_a_model_trained_here_and_the_same_loaded_from_a_file_are_exported_alike(
    wide_blobs: LabelledData, wide_file: Path, tmp_path: Path
) -> None:
    """A build that takes a trained model from its cache goes on from a file: Keras names its variables otherwise."""
    import keras

    technique = variants.technique("fine-tune")
    trained = applied(replace(technique, steps=12), keras.models.load_model(wide_file), wide_blobs, tmp_path / "first")
    trained.keras.save(tmp_path / "trained.keras")
    loaded = applied(
        variants.technique("saved-model"),
        keras.models.load_model(tmp_path / "trained.keras"),
        wide_blobs,
        tmp_path / "b",
    )

    assert artifact(trained) == artifact(loaded)


def test_what_is_written_is_computed_as_keras_computes_it_and_can_be_differentiated(
    wide_blobs: LabelledData, tmp_path: Path
) -> None:
    """Swish has a gradient of its own, which TensorFlow numbers too."""
    import keras
    import tensorflow as tf

    def model() -> Any:
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        given = keras.Input((16,))
        hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="swish")(given))
        return keras.Model(given, keras.layers.Dense(3)(keras.layers.Dense(8, activation="swish")(hidden)))

    original = model()
    first, second = (
        applied(variants.technique("saved-model"), one, wide_blobs, tmp_path / name)
        for one, name in ((original, "first"), (model(), "second"))
    )

    assert artifact(first) == artifact(second)
    loaded = tf.saved_model.load(str(first.saved_model))  # the signature lives no longer than this
    x = tf.constant(wide_blobs.x_test)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found, expected = loaded.signatures["serving_default"](input=x)["output"], original(x, training=False)
    assert np.array_equal(found.numpy(), expected.numpy())
    np.testing.assert_allclose(tape.gradient(found, x), tape.gradient(expected, x), atol=1e-6)


def test_a_layer_that_draws_while_it_is_served_is_written_and_draws_the_same_each_time(
    wide_blobs: LabelledData, tmp_path: Path
) -> None:
    import keras
    import tensorflow as tf

    class AlwaysDropping(keras.layers.Dropout):  # type: ignore[misc]  # keras has no types
        def call(self, inputs: Any, training: bool = False) -> Any:
            return super().call(inputs, training=True)

    model = keras.Sequential([keras.Input((16,)), AlwaysDropping(0.5), keras.layers.Dense(3)])
    form = applied(variants.technique("saved-model"), model, wide_blobs, tmp_path / "made")

    loaded = tf.saved_model.load(str(form.saved_model))
    signature, x = loaded.signatures["serving_default"], tf.constant(wide_blobs.x_test)
    assert np.array_equal(signature(input=x)["output"].numpy(), signature(input=x)["output"].numpy())


def test_a_build_of_some_and_one_that_goes_on_from_it_give_the_files_of_a_build_of_all(
    wide_blobs: LabelledData, wide_file: Path, tmp_path: Path
) -> None:
    recipes = [
        variants.Recipe(
            one.name, tuple(replace(step, steps=12) if hasattr(step, "steps") else step for step in one.chain)
        )
        for one in variants.DEFAULT
    ]
    only = ["distilled-saved-model", "pruned-int8"]

    def build(name: str, *, seeds: int, **more: Any) -> BuildReport:
        return build_release(wide_file, wide_blobs, tmp_path / name, recipes=recipes, seeds=seeds, **more)

    everything = build("all", seeds=1)
    some = build("some", seeds=0, only=only, cache_folder=tmp_path / "cache")
    resumed = build("resumed", seeds=0, cache_folder=tmp_path / "cache")

    assert len(some.manifest.variants) == 3
    for variant in some.manifest.variants:
        assert variant == everything.manifest.variant(variant.name)
    assert resumed.digest == everything.digest


@pytest.mark.slow
def test_another_process_with_another_hash_seed_gives_the_same_release(
    wide_blobs: LabelledData, wide_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **{name: getattr(wide_blobs, name) for name in ("x_train", "y_train", "x_test", "y_test")})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "\n".join(
            [
                *(f"[techniques.{one.id}]\n{_settings(one.values[0])}" for one in EVERY_TECHNIQUE),
                *(f'[[variants]]\nname = "{one.id}"\nchain = {_chain(one.values[0])}' for one in EVERY_TECHNIQUE),
            ]
        )
    )
    _, recipes = read_recipe(recipe)
    other_work()
    here = build_release(wide_file, data, tmp_path / "here", recipes=recipes, seeds=0)
    command = [sys.executable, "-m", "evenfleet_collector", "optimize", str(wide_file), "--data", str(data)]
    subprocess.run(
        [*command, "--recipe", str(recipe), "--out", str(tmp_path / "there"), *ANEW],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
    )

    there, digest = manifest.verify(tmp_path / "there")
    assert here.missing == ()
    assert {one.name: one.artifact.sha256 for one in there.variants} == {
        one.name: one.artifact.sha256 for one in here.manifest.variants
    }
    assert digest == here.digest


@pytest.mark.slow
def test_fewer_cores_give_the_same_release(tmp_path: Path) -> None:
    """A sum is cut into as many parts as there are threads, which by itself are as many as cores."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[variants]]\nname = "tuned"\nchain = ["fine-tune", "float32"]\nsettings.fine-tune.steps = 40\n')
    source = ["examples.small_cnn:model", "--data", "examples.small_cnn:data"]
    digests = set()
    for name, words in (("all", []), ("one", ["--cores", "1"])):
        subprocess.run(
            [
                *(sys.executable, "-m", "evenfleet_collector", "optimize", *source, "--recipe", str(recipe), *ANEW),
                *("--out", str(tmp_path / name), *words),
            ],
            cwd=Path(__file__).parents[3],
            check=True,
            capture_output=True,
        )
        digests.add(manifest.verify(tmp_path / name)[1])

    assert len(digests) == 1


def _settings(technique: Any) -> str:
    return "".join(f"{field.name} = {QUICK[field.name]}\n" for field in fields(technique) if field.name in QUICK)


def _chain(technique: Any) -> str:
    return f'["{technique.name}", "saved-model"]' if technique.gives == "keras" else f'["{technique.name}"]'


def test_building_turns_on_op_determinism() -> None:
    """TensorFlow does not tell; an operation that it has no repeatable kernel for is refused once it is on."""
    import tensorflow as tf

    import_tensorflow()

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"determinism"):
        tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32)
