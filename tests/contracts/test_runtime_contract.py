"""What every runtime owes the runner: one suite, each runtime for real, in the subprocess it is used in."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Check, Checked, Loaded, Measure, Measured, Refused, RunnerSpec
from fakes import tiny_models, tiny_onnx, vendor_libraries

ROOT = Path(__file__).parents[2]

_SAVE = """
import sys, numpy as np, tensorflow as tf
module = tf.Module()
module.w = tf.Variable(np.load(sys.argv[1]).T)
spec = tf.TensorSpec([None, 4], tf.float32, name="x")
serve = tf.function(lambda x: {"y": tf.nn.softmax(x @ module.w)}, input_signature=[spec])
tf.saved_model.save(module, sys.argv[2], signatures={"serving_default": serve})
"""


@dataclass
class Case:
    runtime: str
    format: str
    accelerator: str
    python: str | None
    write: Callable[[Path], Path]


def tflite_python() -> str:
    found = Path(os.environ.get("EVENFLEET_TFLITE_PYTHON", ROOT / ".venv-tflite/bin/python"))
    if not found.exists():
        pytest.skip(f"no tflite-runtime environment at {found}; make one with 'make setup'")
    return str(found)


def write_tflite(directory: Path) -> Path:
    return tiny_models.classifier(directory / "m.tflite")


def write_onnx(directory: Path) -> Path:
    return tiny_onnx.dense(directory / "m.onnx", tiny_models.weights())


def write_saved_model(directory: Path) -> Path:
    """Write the same classifier as a SavedModel in a tar; TensorFlow stays out of the test's own process."""
    np.save(directory / "weights.npy", tiny_models.weights())
    subprocess.run(
        [
            sys.executable,
            "-c",
            _SAVE,
            str(directory / "weights.npy"),
            str(directory / "model"),
        ],
        check=True,
        capture_output=True,
    )
    with tarfile.open(directory / "m.tar", "w") as tar:
        tar.add(directory / "model", arcname=".")
    return directory / "m.tar"


@pytest.fixture(
    scope="module",
    params=[
        "litert",
        pytest.param("tflite", marks=pytest.mark.tflite),
        "litert-compiled",
        pytest.param("tensorflow", marks=pytest.mark.tensorflow),
        "onnx",
    ],
)
def case(request):
    if request.param == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
        return Case("onnx", "onnx", "cpu", None, write_onnx)
    if request.param == "tensorflow":
        return Case("tensorflow", "saved_model", "tensorflow-cpu", None, write_saved_model)
    python = tflite_python() if request.param == "tflite" else None
    return Case(request.param, "tflite", "xnnpack", python, write_tflite)


@pytest.fixture(scope="module")
def artifact(case, tmp_path_factory):
    return case.write(tmp_path_factory.mktemp(case.runtime))


@pytest.fixture
def runner():
    made = RunnerProcess()
    yield made
    made.stop()


def answer(runner):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        select.select([runner], [], [], 1.0)
        answers = runner.receive()
        if answers:
            return answers[0]
    raise AssertionError("no answer")


def load(runner, case, artifact, **fields):
    runner.start(
        RunnerSpec(
            runtime=case.runtime,
            artifact=str(artifact),
            format=case.format,
            python=case.python,
            warm_up_max_s=0.05,
            **fields,
        )
    )
    return answer(runner)


def test_check_builds_an_interpreter_and_tells_the_version(runner, case):
    runner.spawn(case.python)
    runner.send(Check(runtime=case.runtime))
    checked = answer(runner)
    assert isinstance(checked, Checked)
    assert checked.runtime_version[:1].isdigit()


def test_golden_set_is_answered_right_and_the_execution_is_told(runner, case, artifact, tmp_path):
    inputs = np.eye(3, 4, dtype=np.float32) * 5
    logits = inputs @ tiny_models.weights().T
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2]))
    np.save(tmp_path / "outputs.npy", np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    loaded = load(
        runner,
        case,
        artifact,
        inputs_file=str(tmp_path / "inputs.npy"),
        labels_file=str(tmp_path / "labels.npy"),
        outputs_file=str(tmp_path / "outputs.npy"),
        reference_correct="111",
        scratch_dir=str(tmp_path),
    )
    assert isinstance(loaded, Loaded)
    assert (loaded.accelerator_requested, loaded.accelerator_executed) == (case.accelerator, case.accelerator)
    assert loaded.inputs[0].shape[-1] == 4
    runner.send(Measure(samples=20))
    measured = answer(runner)
    assert isinstance(measured, Measured)
    assert measured.evaluation is not None
    assert (measured.evaluation.errors, measured.evaluation.discordant_b) == (0, 0)
    assert measured.evaluation.agreement is not None
    assert measured.evaluation.agreement.noise_class in ("bit-exact", "within-rounding")
    # what a SavedModel was unpacked to is gone while the runner lives on
    assert not list(tmp_path.glob("evenfleet-*"))


@pytest.mark.parametrize("runtime", ["litert", pytest.param("tflite", marks=pytest.mark.tflite), "litert-compiled"])
def test_kernels_of_xnnpack_can_be_left_away(runner, runtime, tmp_path):
    python = tflite_python() if runtime == "tflite" else None
    case = Case(runtime, "tflite", "cpu", python, write_tflite)
    loaded = load(runner, case, write_tflite(tmp_path), xnnpack=False)
    assert isinstance(loaded, Loaded)
    assert (loaded.accelerator_executed, loaded.delegated_ratio, loaded.fallback_reason) == ("cpu", 0.0, None)


def test_damaged_files_are_refused_in_one_line(runner, case, artifact, tmp_path):
    content = artifact.read_bytes()
    for damaged in (b"", b"garbage" * 100, content[: len(content) // 2]):
        (tmp_path / artifact.name).write_bytes(damaged)
        refused = load(runner, case, tmp_path / artifact.name)
        assert isinstance(refused, Refused), refused
        assert refused.kind == "model"
        assert artifact.name in refused.reason
        assert "\n" not in refused.reason


def test_file_that_is_not_there_is_refused(runner, case, tmp_path):
    refused = load(runner, case, tmp_path / "none")
    assert isinstance(refused, Refused)
    assert "does not exist" in refused.reason


@pytest.mark.tflite
def test_operator_too_new_for_the_runtime_is_named_with_its_version(runner, tmp_path):
    """tflite-runtime 2.14 has FULLY_CONNECTED up to version 10; dynamic-range models of TensorFlow 2.21 want 12."""
    case = Case("tflite", "tflite", "xnnpack", tflite_python(), write_tflite)
    refused = load(runner, case, tiny_models.classifier(tmp_path / "m.tflite", version=12))
    assert isinstance(refused, Refused)
    assert "FULLY_CONNECTED of version 12, which it has up to version 10" in refused.reason


# Who runs it: what was asked for against what runs, and why.


@pytest.fixture(scope="module")
def delegate(tmp_path_factory):
    """A vendor's library without a vendor, which the interpreters' own loaders load."""
    return vendor_libraries.delegate(tmp_path_factory.mktemp("delegate"))


@pytest.fixture(
    scope="module",
    params=["litert", pytest.param("tflite", marks=pytest.mark.tflite)],
)
def interpreter(request):
    python = tflite_python() if request.param == "tflite" else None
    return Case(request.param, "tflite", "xnnpack", python, write_tflite)


def execution(loaded):
    assert isinstance(loaded, Loaded), loaded
    assert "\n" not in (loaded.fallback_reason or "")
    return loaded.accelerator_requested, loaded.accelerator_executed, loaded.delegated_ratio


def test_gpu_that_is_not_there_leaves_the_model_to_the_cpu_with_the_reason(runner, case, artifact):
    loaded = load(runner, case, artifact, delegate="gpu")
    assert execution(loaded) == ("gpu", "cpu", 0.0)
    assert loaded.fallback_reason.startswith("no gpu: ")
    assert "the CPU runs it" in loaded.fallback_reason
    runner.send(Measure(samples=5))
    assert isinstance(answer(runner), Measured)


@pytest.mark.parametrize("runtime", ["litert", "litert-compiled"])
def test_npu_that_is_not_there_is_not_believed_to_run_the_model(runner, runtime, tmp_path):
    """LiteRT 2.3 says "fully accelerated" of a model compiled for NPU and CPU where there is no NPU."""
    loaded = load(runner, Case(runtime, "tflite", "npu", None, write_tflite), write_tflite(tmp_path), delegate="npu")
    assert execution(loaded) == ("npu", "cpu", 0.0)


def test_operator_that_xnnpack_cannot_take_is_named_with_the_share_of_the_others(runner, interpreter, tmp_path):
    loaded = load(runner, interpreter, tiny_models.partly_delegated(tmp_path / "m.tflite"))
    assert execution(loaded) == ("xnnpack", "xnnpack", 0.5)
    assert loaded.fallback_reason == "XNNPACK took 1 of 2 operators; left to the built-in kernels: CUMSUM"


def test_compiled_model_that_does_not_name_what_xnnpack_left_says_so(runner, tmp_path):
    case = Case("litert-compiled", "tflite", "xnnpack", None, write_tflite)
    loaded = load(runner, case, tiny_models.partly_delegated(tmp_path / "m.tflite"))
    assert execution(loaded) == ("xnnpack", "cpu", None)
    assert "the runtime litert does" in loaded.fallback_reason


def test_delegate_by_path_runs_its_share_and_the_rest_is_named(runner, interpreter, delegate, tmp_path):
    np.save(tmp_path / "inputs.npy", np.array([[1, -2, 3, 4]], dtype=np.float32))
    np.save(tmp_path / "outputs.npy", np.array([[1, 1, 4, 8]], dtype=np.float32))
    loaded = load(
        runner,
        interpreter,
        tiny_models.partly_delegated(tmp_path / "m.tflite"),
        delegate=str(delegate),
        inputs_file=str(tmp_path / "inputs.npy"),
        outputs_file=str(tmp_path / "outputs.npy"),
    )
    assert execution(loaded) == ("libfake_delegate.so", "libfake_delegate.so", 0.5)
    assert loaded.fallback_reason == "libfake_delegate.so took 1 of 2 operators; left to the built-in kernels: CUMSUM"
    runner.send(Measure(samples=5))
    measured = answer(runner)
    assert isinstance(measured, Measured)
    assert measured.evaluation is not None
    assert measured.evaluation.agreement is not None
    assert measured.evaluation.agreement.noise_class == "bit-exact"


def test_delegate_that_takes_all_of_a_model_leaves_no_reason(runner, interpreter, delegate, tmp_path):
    loaded = load(runner, interpreter, tiny_models.relu(tmp_path / "m.tflite"), delegate=str(delegate))
    assert execution(loaded) == ("libfake_delegate.so", "libfake_delegate.so", 1.0)
    assert loaded.fallback_reason is None


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fail", "made no delegate: no device answers on /dev/fake0; the CPU runs it with XNNPACK"),
        ("silent", "made no delegate: it gave no reason"),
        ("printed", "made no delegate: E driver.cc:17] firmware is too old"),
        ("refuse", "it refused the model: cannot run 2 of its operators"),
        ("error", "it refused the model: "),
        ("none", "took 0 of 2 operators; left to XNNPACK: RELU; left to the built-in kernels: CUMSUM"),
    ],
)
def test_delegate_that_does_not_run_the_model_leaves_it_to_the_cpu_with_its_own_words(
    runner, interpreter, delegate, tmp_path, mode, words
):
    model = tiny_models.partly_delegated(tmp_path / "m.tflite")
    loaded = load(runner, interpreter, model, delegate=str(delegate), delegate_options={"mode": mode})
    assert execution(loaded) == ("libfake_delegate.so", "cpu", 0.0)
    assert words in loaded.fallback_reason


def test_delegate_that_fails_when_the_model_runs_is_one_line(runner, interpreter, delegate, tmp_path):
    model = tiny_models.relu(tmp_path / "m.tflite")
    refused = load(runner, interpreter, model, delegate=str(delegate), delegate_options={"mode": "unplugged"})
    assert isinstance(refused, Refused)
    assert "m.tflite failed while running: the device is gone" in refused.reason
    assert "\n" not in refused.reason


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("/nowhere/libvendor.so", "cannot open shared object file"),
        ("text", "the library cannot be loaded"),
        ("libm.so.6", "is no TFLite delegate"),
    ],
)
def test_library_that_is_no_delegate_leaves_the_model_to_the_cpu(runner, interpreter, tmp_path, library, words):
    if library == "text":
        library = str(tmp_path / "text.so")
        Path(library).write_text("not a library")
    loaded = load(runner, interpreter, tiny_models.relu(tmp_path / "m.tflite"), delegate=library)
    assert execution(loaded) == (Path(library).name, "cpu", 0.0)
    assert words in loaded.fallback_reason


def test_edge_tpu_that_is_not_attached_is_told_though_its_library_says_nothing(
    runner, interpreter, tmp_path, monkeypatch
):
    """libedgetpu returns no delegate and an empty message where it finds no device."""
    vendor_libraries.delegate(tmp_path, "libedgetpu.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("FAKE_DELEGATE_MODE", "silent")
    loaded = load(runner, interpreter, tiny_models.relu(tmp_path / "m.tflite"), delegate="edgetpu")
    assert execution(loaded) == ("edgetpu", "cpu", 0.0)
    assert "libedgetpu.so.1 made no delegate: it found no Edge TPU" in loaded.fallback_reason


def test_edge_tpu_whose_library_is_not_installed_names_the_package(runner, interpreter, tmp_path):
    loaded = load(runner, interpreter, tiny_models.relu(tmp_path / "m.tflite"), delegate="edgetpu")
    assert execution(loaded) == ("edgetpu", "cpu", 0.0)
    assert "libedgetpu1-std" in loaded.fallback_reason


def test_file_compiled_for_an_edge_tpu_is_refused_with_why_there_is_none(runner, interpreter, tmp_path):
    """It holds one operator that only the Edge TPU has: there is nothing for the CPU to fall back to."""
    model = tiny_models.custom(tmp_path / "m_edgetpu.tflite", name="edgetpu-custom-op")
    refused = load(runner, interpreter, model, delegate="edgetpu")
    assert isinstance(refused, Refused)
    assert "compiled for an Edge TPU" in refused.reason
    assert "edgetpu cannot be used either: the library cannot be loaded" in refused.reason


def test_compiled_model_gives_its_outputs_in_the_graphs_order_as_the_interpreter_does(runner, tmp_path):
    model = tiny_models.named_outputs(tmp_path / "m.tflite")
    first = []
    for name in ("litert", "litert-compiled"):
        loaded = load(runner, Case(name, "tflite", "xnnpack", None, write_tflite), model)
        assert isinstance(loaded, Loaded)
        np.save(tmp_path / "inputs.npy", np.array([[1, -2]], dtype=np.float32))
        np.save(tmp_path / "outputs.npy", np.array([[1, 0]], dtype=np.float32))
        files = {"inputs_file": str(tmp_path / "inputs.npy"), "outputs_file": str(tmp_path / "outputs.npy")}
        load(runner, Case(name, "tflite", "xnnpack", None, write_tflite), model, **files)
        runner.send(Measure(samples=5))
        measured = answer(runner)
        assert isinstance(measured, Measured)
        assert measured.evaluation is not None
        assert measured.evaluation.agreement is not None
        first.append(measured.evaluation.agreement.noise_class)
    assert first == ["bit-exact", "bit-exact"]


def test_quantised_model_is_answered_alike_by_the_interpreter_and_the_compiled_model(runner, tmp_path):
    np.save(tmp_path / "inputs.npy", np.eye(3, dtype=np.float32) * 4)
    np.save(tmp_path / "labels.npy", np.arange(3))
    files = {"inputs_file": str(tmp_path / "inputs.npy"), "labels_file": str(tmp_path / "labels.npy")}
    model = tiny_models.quantised_classifier(tmp_path / "m.tflite")
    loads = []
    for name in ("litert", "litert-compiled"):
        loaded = load(runner, Case(name, "tflite", "xnnpack", None, write_tflite), model, **files)
        assert isinstance(loaded, Loaded)
        loads.append([(spec.dtype, spec.scale, spec.zero_point) for spec in (*loaded.inputs, *loaded.outputs)])
        runner.send(Measure(samples=5))
        measured = answer(runner)
        assert isinstance(measured, Measured)
        assert measured.evaluation is not None
        assert measured.evaluation.errors == 0
    assert loads[0] == loads[1] == [("int8", 1 / 16, -3), ("int8", 1 / 256, -128)]


def test_types_that_compiled_models_have_not_in_python_are_refused_in_one_line(runner, tmp_path):
    case = Case("litert-compiled", "tflite", "xnnpack", None, write_tflite)
    refused = load(runner, case, tiny_models.adder(tmp_path / "m.tflite", dtype="int64"))
    assert isinstance(refused, Refused)
    assert "int64" in refused.reason
