"""Techniques on a real small model: what each leaves in the file, and that nothing is credited for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from evenfleet_collector.optimize import BuildReport, LabelledData, build_release, variants
from evenfleet_collector.optimize.technique import Form, Material, Stage, Technique
from evenfleet_collector.optimize.variants import Recipe
from fakes import tiny_models

pytestmark = pytest.mark.tensorflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing(Technique):
    """A technique that does nothing, and so should bring nothing."""

    name: ClassVar[str] = "nothing"
    takes: ClassVar[Stage] = "keras"
    gives: ClassVar[Stage] = "keras"

    def apply(self, form: Form, material: Material) -> Form:
        return form

    def control(self) -> tuple[Technique, ...] | None:
        return ()


def built(data: LabelledData, model: Path, tmp_path: Path, recipes: Sequence[Recipe], *, seeds: int = 0) -> BuildReport:
    return build_release(model, data, tmp_path / "release", recipes=recipes, golden_n=20, seeds=seeds)


def constants(file: Path) -> list[Any]:
    """Return the constant tensors of more than 20 elements, as they are stored."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()
    inputs = {one["index"] for one in interpreter.get_input_details()}
    found = []
    for tensor in interpreter.get_tensor_details():
        if tensor["index"] in inputs or np.prod(tensor["shape"]) <= 20 or len(tensor["shape"]) != 2:
            continue
        try:
            found.append(interpreter.get_tensor(tensor["index"]))
        except ValueError:
            continue  # no constant
    return found


def test_a_technique_that_does_nothing_is_reported_as_bringing_nothing(
    blobs: LabelledData, blob_keras_file: Path, tmp_path: Path
) -> None:
    chain = (Nothing(), *variants.recipe("x", "prune", "int8").chain)
    report = built(
        blobs,
        blob_keras_file,
        tmp_path,
        [variants.DEFAULT[0], Recipe("nothing", (Nothing(), variants.technique("int8"))), Recipe("pruned", chain)],
        seeds=2,
    )

    nothing = next(row for row in report.variants if row.name == "nothing").gain
    assert nothing is not None
    assert (nothing.technique, nothing.control, nothing.seeds) == ("nothing", ("int8",), 2)
    assert (nothing.delta_ratio, nothing.brought) == (0.0, "nothing shown")
    pruned = next(row for row in report.variants if row.name == "pruned").gain
    assert pruned is not None
    assert (pruned.technique, pruned.control) == ("prune", ("nothing", "fine-tune", "int8"))
    assert report.variants[0].gain is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutControl(Nothing):
    """A technique whose control does not fit the model."""

    name: ClassVar[str] = "without-control"

    def control(self) -> tuple[Technique, ...] | None:
        return variants.recipe("x", "cluster").chain


def test_a_control_that_cannot_be_built_leaves_the_variant(
    blobs: LabelledData, blob_keras_file: Path, tmp_path: Path
) -> None:
    chain = (WithoutControl(), variants.technique("int8"))
    report = built(blobs, blob_keras_file, tmp_path, [variants.DEFAULT[0], Recipe("kept", chain)], seeds=1)

    row = report.variants[1]
    assert (row.name, row.gain) == ("kept", None)
    assert row.no_gain is not None
    assert row.no_gain.startswith("its control was not built: cluster: no kernel has")


def test_zeros_and_clusters_survive_to_the_quantized_file(tmp_path: Path) -> None:
    recipes = [
        variants.DEFAULT[0],
        variants.recipe("clustered", "cluster", "float32"),
        variants.recipe("all", "prune", "cluster", "qat"),
    ]
    report = build_release(
        "examples.digits_mlp:model", "examples.digits_mlp:data", tmp_path / "release", recipes=recipes, seeds=0
    )

    assert report.missing == ()
    artifacts = report.directory / "artifacts"
    assert all(len(np.unique(one)) <= 16 for one in constants(artifacts / "clustered.tflite"))
    kernels = [one for one in constants(artifacts / "all.tflite") if one.shape in {(64, 64), (32, 64)}]
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel.dtype == np.int8
        assert np.mean(kernel == 0) >= 0.59
        # With a scale for each channel a shared value is as many steps as there are scales: counted in each.
        assert max(len(np.unique(row)) for row in kernel) <= 17


def test_a_model_too_small_to_cluster_is_told_so(blobs: LabelledData, blob_keras_file: Path, tmp_path: Path) -> None:
    report = built(blobs, blob_keras_file, tmp_path, [variants.DEFAULT[0], variants.recipe("c", "cluster", "int8")])

    assert [(one.name, one.reason) for one in report.missing] == [
        ("c", "cluster: no kernel has 64 weights that are not zero, which 16 clusters take; fewer clusters may do")
    ]


def test_blocks_become_zero_whole_and_the_sparse_file_is_smaller(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(2)])
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 64)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    file = tmp_path / "wide.keras"
    model.save(file)
    recipes = [
        variants.DEFAULT[0],
        variants.recipe("blocks", "prune-blocks", "sparse"),
        variants.recipe("dense", "prune-blocks", "float32"),
    ]
    report = built(LabelledData(x[:150], y[:150], x[150:], y[150:]), file, tmp_path, recipes)

    assert report.missing == ()
    sizes = {row.name: row.size_bytes for row in report.variants}
    assert sizes["blocks"] < 0.5 * sizes["dense"]
    kernel = next(one for one in constants(report.directory / "artifacts/dense.tflite") if one.shape == (64, 64))
    blocks = kernel.reshape(64, 4, 16)
    assert set(np.unique(np.count_nonzero(blocks, axis=2))) <= {0, 16}
    assert np.mean(~blocks.any(axis=2)) == pytest.approx(0.8, abs=0.01)


def test_fewer_bits_make_a_smaller_file(digits_release: BuildReport, tmp_path: Path) -> None:
    recipes = [variants.DEFAULT[0], *(variants.recipe(name, name) for name in ("weight-only", "int4", "int16x8"))]
    report = build_release(
        "examples.digits_mlp:model", "examples.digits_mlp:data", tmp_path / "release", recipes=recipes, seeds=0
    )

    assert report.missing == ()
    ratio = {row.name: row.size_ratio for row in report.variants}
    assert ratio["int4"] < ratio["weight-only"] < 0.5
    assert all(row.accuracy_ratio >= report.variants[0].accuracy_ratio - 0.02 for row in report.variants)


def test_a_file_for_devices_works_out_no_shapes(blobs: LabelledData, tmp_path: Path) -> None:
    """Flatten asks for the batch size where it is free, by operators that accelerators do not take."""
    import keras

    given = keras.Input((2, 2))
    keras.Model(given, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Dense(4)(given)))).save(
        tmp_path / "flat.keras"
    )
    square = LabelledData(blobs.x_train.reshape(-1, 2, 2), blobs.y_train, blobs.x_test.reshape(-1, 2, 2), blobs.y_test)
    report = built(square, tmp_path / "flat.keras", tmp_path, [variants.DEFAULT[0], variants.recipe("int8", "int8")])

    for variant in report.manifest.variants:
        assert {operator.split()[0] for operator in variant.operators} <= {"FULLY_CONNECTED", "RESHAPE"}


def test_a_model_that_keras_2_does_not_know_misses_those_variants_alone(blobs: LabelledData, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.RMSNormalization(), keras.layers.Dense(3)])
    file = tmp_path / "new.keras"
    model.save(file)
    report = built(blobs, file, tmp_path, [variants.DEFAULT[0], variants.recipe("qat", "qat")])

    (missing,) = report.missing
    assert missing.name == "qat"
    assert "RMSNormalization, which Keras 2 does not have" in missing.reason
    assert [row.name for row in report.variants] == ["float32"]


@pytest.mark.parametrize("name", ["weight-only", "int4"])
def test_file_without_signatures_gets_smaller_weights_too(tmp_path: Path, name: str) -> None:
    """Converters of before 2020 wrote none, and the quantizer trips over that."""
    square = np.eye(128, dtype=np.float32)
    file = tiny_models.dense(tmp_path / "m.tflite", [(square, square[0])] * 2)
    labels = np.arange(8, dtype=np.int64) % 2
    data = LabelledData(square[:8], labels, square[:8], labels)
    material = Material(data=data, classes=2, output_kind="logits", seed=0, folder=tmp_path)
    made = variants.technique(name).apply(Form(stage="tflite", tflite=file), material)
    assert made.tflite is not None
    assert made.tflite.stat().st_size < 0.4 * file.stat().st_size


def test_a_student_can_be_pruned_and_a_compiled_model_may_have_a_loss_of_its_own(
    blobs: LabelledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        """
import keras

def own_loss(labels, scores):
    return keras.ops.mean(scores)

def model():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
    made.compile(loss=own_loss)
    return made
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    report = build_release(
        "mine:model",
        blobs,
        tmp_path / "release",
        recipes=[
            variants.DEFAULT[0],
            variants.recipe("pruned", "prune", "int8"),
            variants.recipe("student", "distil", "prune", "int8"),
        ],
        golden_n=20,
        seeds=0,
    )

    assert report.missing == ()
    assert [row.name for row in report.variants] == ["float32", "pruned", "student"]


def test_quantization_aware_training_takes_a_separable_convolution_beside_others(tmp_path: Path) -> None:
    """The library splits it into layers that name themselves: as conv2d, which there is."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="conv2d"),
            layers.Conv2D(6, 1, name="conv2d_1"),
            layers.DepthwiseConv2D(3, name="depthwise_conv2d"),
            layers.SeparableConv2D(8, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.save(tmp_path / "separable.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8, 8, 1)).astype(np.float32), np.arange(90) % 3
    data = LabelledData(x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    report = built(data, tmp_path / "separable.keras", tmp_path, [variants.DEFAULT[0], variants.recipe("qat", "qat")])

    assert report.missing == ()


def test_a_layer_that_cannot_be_trained_quantization_aware_is_named(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4, 2)), keras.layers.GRU(4, unroll=True), keras.layers.Dense(3)])
    model.save(tmp_path / "recurrent.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4, 2)).astype(np.float32), np.arange(90) % 3
    data = LabelledData(x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    report = built(data, tmp_path / "recurrent.keras", tmp_path, [variants.DEFAULT[0], variants.recipe("qat", "qat")])

    (missing,) = report.missing
    assert missing.reason == (
        "qat: layer gru is a GRU, which tensorflow-model-optimization cannot train quantization-aware"
    )


@pytest.mark.parametrize(("unroll", "missing"), [(False, ["int8", "int16x8"]), (True, [])])
def test_a_loop_is_refused_by_what_calibrates_and_does_not_end_the_build(
    tmp_path: Path, unroll: bool, missing: list[str]
) -> None:
    """TensorFlow's calibrator ends the process with a segmentation fault.

    Not a GRU: of an unrolled one the converter leaves SPLIT in float32 in some runs and not in others, which is refused too.
    """
    import keras

    layers = [keras.Input((8, 8)), keras.layers.SimpleRNN(16, unroll=unroll), keras.layers.Dense(3)]
    keras.Sequential(layers).save(tmp_path / "loop.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8, 8)).astype(np.float32), np.arange(90) % 3
    data = LabelledData(x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    recipes = [variants.DEFAULT[0], variants.recipe("int8", "int8"), variants.recipe("int16x8", "int16x8")]
    report = built(data, tmp_path / "loop.keras", tmp_path, recipes)

    assert [one.name for one in report.missing] == missing
    assert all("unroll=True" in one.reason for one in report.missing)
