"""MODEL as an .onnx: really converted, in a process of its own."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, build_release, models
from evenfleet_shared import manifest
from evenfleet_shared.errors import ConfigError, ModelRefusedError, RuntimeMissingError
from fakes import tiny_onnx

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def images(shape: tuple[int, ...]) -> LabelledData:
    x = np.random.default_rng(1).random((60, *shape), dtype=np.float32)
    labels = np.arange(60, dtype=np.int64) % tiny_onnx.CLASSES
    return LabelledData(x[:40], labels[:40], x[40:], labels[40:])


def python_that(folder: Path, body: str) -> Path:
    """Write a stand-in for another environment's Python."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\nfolder = pathlib.Path(sys.argv[3])\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("batch", ["N", 1])
def test_release_is_built_from_it_twice_the_same_and_computes_what_onnx_computes(
    tmp_path: Path, batch: str | int
) -> None:
    from onnx.reference import ReferenceEvaluator

    path = tiny_onnx.classifier(tmp_path / "m.onnx", shape=(batch, 3, tiny_onnx.SIDE, tiny_onnx.SIDE), labels=True)
    data = images((3, tiny_onnx.SIDE, tiny_onnx.SIDE))
    only = ["int8", "saved-model"]
    built, again = (build_release(path, data, tmp_path / name, only=only) for name in ("release", "again"))
    assert [each.name for each in built.variants] == ["float32", "int8", "saved-model"]
    assert built.manifest.variant("float32").artifact == again.manifest.variant("float32").artifact
    assert built.manifest.lineage["model_sha256"] == manifest.file_digest(path)
    assert built.manifest.lineage["converter"].startswith("onnx ")
    inputs, outputs = (np.load(tmp_path / "release" / "golden" / f"{name}.npy") for name in ("inputs", "outputs"))
    evaluator = ReferenceEvaluator(str(path))
    wanted = [evaluator.run(None, {"x": sample[np.newaxis]})[1][0] for sample in inputs]
    assert np.abs(outputs - wanted).max() < 1e-5
    assert built.manifest.variant("saved-model").input.shape[0] == (1 if batch == 1 else -1)


def test_channels_last_with_a_fixed_batch_asks_nothing_of_the_network(tmp_path: Path, work: Path) -> None:
    """For such inputs onnx2tf would fetch sample images."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "last",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "d")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    opened = models.open_model(models.parse(tmp_path / "m.onnx"), work)
    assert opened.checked(images((8, 8, 3))).output_kind == "logits"
    assert "calibration_image_sample_data" not in (work / "onnx" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be converted: "),
        (lambda path: path.write_bytes(b"nonsense" * 10), "not a valid ONNX model"),
        (tiny_onnx.foreign, r"operators that TFLite has no counterpart of: ai\.onnx\.ml\.Normalizer"),
        (
            lambda path: tiny_onnx.classifier(path, shape=("N", 3, "H", "W")),
            r"\(N, 3, H, W\), where more than the batch",
        ),
        (lambda path: tiny_onnx.classifier(path, shape=(16, 3, 8, 8)), "exactly 16 samples at once"),
    ],
)
def test_file_that_cannot_be_converted_is_refused_in_one_line(
    tmp_path: Path, work: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match=message) as caught:
        models.open_model(models.parse(tmp_path / "m.onnx"), work)
    assert "\n" not in str(caught.value)


def test_environment_without_the_converter_is_answered_with_the_command(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_that(tmp_path, '(folder / "result.json").write_text(json.dumps({"absent": "onnx2tf"}))')
    monkeypatch.setenv("EVENFLEET_ONNX_PYTHON", str(python))
    path = tiny_onnx.classifier(tmp_path / "m.onnx")
    with pytest.raises(RuntimeMissingError, match=r"needs onnx2tf, which .*pip install --no-deps onnx2tf=="):
        models.open_model(models.parse(path), work)


def test_environment_that_is_not_there_is_a_usage_error(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENFLEET_ONNX_PYTHON", str(tmp_path / "nowhere"))
    path = tiny_onnx.classifier(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"EVENFLEET_ONNX_PYTHON is .*nowhere"):
        models.open_model(models.parse(path), work)


def test_converter_that_dies_is_refused_with_its_last_words(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_that(tmp_path, 'print("out of memory")\nsys.exit(9)')
    monkeypatch.setenv("EVENFLEET_ONNX_PYTHON", str(python))
    path = tiny_onnx.classifier(tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match=r"ended with code 9 \(out of memory\)"):
        models.open_model(models.parse(path), work)


def test_conversion_that_computes_something_else_is_found(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layouts that got lost raise no error; here the other environment converts another model than was given."""
    other = tiny_onnx.classifier(tmp_path / "other.onnx", softmax=False)
    child = Path(models.__file__).with_name("onnx_child.py")
    body = (
        "import runpy\n"
        f"sys.argv = [{str(child)!r}, {str(other)!r}, sys.argv[3]]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "import numpy as np\n"
        "probe = dict(np.load(folder / 'probe.npz'))\n"
        "probe['y'] = np.exp(probe['y']) / np.exp(probe['y']).sum(axis=1, keepdims=True)\n"
        "np.savez(folder / 'probe.npz', **probe)"
    )
    monkeypatch.setenv("EVENFLEET_ONNX_PYTHON", str(python_that(tmp_path, body)))
    path = tiny_onnx.classifier(tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match="was converted wrongly: its outputs differ from ONNX's own by"):
        models.open_model(models.parse(path), work)
