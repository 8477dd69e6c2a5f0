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
from fakes import tiny_models

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
        pytest.param("tensorflow", marks=pytest.mark.tensorflow),
    ],
)
def case(request):
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


@pytest.mark.parametrize("runtime", ["litert", pytest.param("tflite", marks=pytest.mark.tflite)])
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
    """tflite-runtime 2.14 has FULLY_CONNECTED up to version 11; dynamic-range models of TensorFlow 2.21 want 12."""
    case = Case("tflite", "tflite", "xnnpack", tflite_python(), write_tflite)
    refused = load(runner, case, tiny_models.classifier(tmp_path / "m.tflite", version=12))
    assert isinstance(refused, Refused)
    assert "FULLY_CONNECTED of version 12" in refused.reason
