"""What `evenfleet-agent measure` decides; the command itself, with its exit codes, is in `system/test_measure_command`."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest

from evenfleet_agent import cli, runtimes
from evenfleet_agent import measure as measuring
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Measure, RunnerSpec
from evenfleet_shared.errors import ArtifactError, ConfigError, DataError, ReleaseError
from fakes import tiny_models
from fakes.tiny_release import write_release

TEMPLATE = RunnerSpec(runtime="auto", artifact="", format="tflite", warm_up_max_s=0.01)


def targets(model, *, runtime="auto", template=TEMPLATE, variants=()):
    return measuring.find_targets(model, runtime=runtime, template=template, variants=variants)


def silent(name, stage):
    pass


@pytest.fixture
def runner():
    made = RunnerProcess()
    yield made
    made.stop()


def test_tflite_file_is_tried_with_every_runtime_that_runs_it(tmp_path):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    assert target.runtimes == ("litert", "tflite")


def test_tflite_file_is_known_by_its_content_too(tmp_path):
    assert targets(tiny_models.classifier(tmp_path / "model.bin"))[0].spec.format == "tflite"


def test_saved_model_is_a_directory_or_a_tar(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/saved_model.pb").write_bytes(b"x")
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(tmp_path / "model", arcname=".")
    for path in (tmp_path / "model", tmp_path / "model.tar"):
        assert (targets(path)[0].spec.format, targets(path)[0].runtimes) == ("saved_model", ("tensorflow",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tflite", None, "does not exist"),
        ("model.keras", b"PK\3\4" * 10, "evenfleet optimize"),
        ("notes.txt", b"hello", r"neither a \.tflite file nor a tar"),
    ],
)
def test_what_is_no_model_is_told_apart(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        targets(tmp_path / name)


def test_directory_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a SavedModel nor a release"):
        targets(tmp_path)


def test_runtime_that_does_not_run_the_format_names_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match="use litert or tflite"):
        targets(tiny_models.classifier(tmp_path / "m.tflite"), runtime="tensorflow")


def test_release_gives_a_target_per_variant_with_its_golden_set(tmp_path):
    found = targets(write_release(tmp_path))
    assert [target.name for target in found] == ["float32", "too-new"]
    assert all(target.spec.inputs_file and target.spec.outputs_file for target in found)
    assert found[0].spec.reference_correct == "111"


def test_variants_can_be_chosen_and_an_unknown_one_is_refused(tmp_path):
    release = write_release(tmp_path)
    assert [target.name for target in targets(release, variants=["too-new"])] == ["too-new"]
    with pytest.raises(ReleaseError, match="no variant 'int4'"):
        targets(release, variants=["int4"])


def test_release_without_a_variant_for_the_runtime_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no variant"):
        targets(write_release(tmp_path), runtime="tensorflow")


def test_release_whose_artifact_was_changed_is_not_measured(tmp_path):
    release = write_release(tmp_path)
    artifact = release / "artifacts/float32.tflite"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"float32\.tflite"):
        targets(release)


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x", "y"), ("inputs", "labels")])
def test_samples_and_labels_are_found_by_their_usual_names(tmp_path, names):
    np.savez(tmp_path / "d.npz", **{names[0]: np.zeros((2, 4)), names[1]: np.array([[0], [1]])})
    inputs, labels = measuring.write_data(tmp_path / "d.npz", tmp_path)
    assert np.load(inputs).shape == (2, 4)
    assert labels is not None
    assert np.load(labels).tolist() == [0, 1]


def test_one_hot_labels_become_class_numbers(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)), y=np.array([[0.0, 0, 1], [1, 0, 0]]))
    _, labels = measuring.write_data(tmp_path / "d.npz", tmp_path)
    assert labels is not None
    assert np.load(labels).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(3)}, "no array called"),
        ({"x": np.array([{}], dtype=object)}, "pickled objects are not read"),
        ({"x": np.zeros((2, 4)), "y": np.array([0.5, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([np.nan, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([[1, 1], [1, 0]])}, "one-hot"),
        ({"x": np.zeros((2, 4)), "y": np.array(["a", "b"])}, "whole numbers"),
    ],
)
def test_data_that_cannot_be_used_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        measuring.write_data(tmp_path / "d.npz", tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PK\3\4garbage"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz"):
        measuring.write_data(tmp_path / "d.npz", tmp_path)


def test_measured_release_is_told_side_by_side_and_what_was_refused_below(tmp_path, runner):
    outcomes = [
        measuring.measure(target, Measure(samples=700), runner, silent) for target in targets(write_release(tmp_path))
    ]
    measured, refused = outcomes
    assert isinstance(measured, measuring.Result)
    assert measured.accuracy is not None
    assert measured.accuracy.accuracy_ratio == 1.0
    assert measured.agreement is not None
    assert isinstance(refused, measuring.Failure)
    assert refused.kind == "model"
    told = measuring.table(outcomes)
    assert "float32  litert" in told
    assert "too-new: not measured: litert" in told
    assert max(len(line) for line in told.splitlines()) < 250


def test_single_model_is_told_in_detail(tmp_path, runner):
    (target,) = targets(tiny_models.partly_delegated(tmp_path / "m.tflite"))
    told = measuring.table([measuring.measure(target, Measure(samples=30), runner, silent)])
    for words in ("synthetic inputs", "50% of the operators", "unqualified", "VmHWM", "left to the built-in kernels"):
        assert words in told


def test_next_runtime_is_tried_when_the_first_is_missing_and_the_first_is_told_when_all_are(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    missing = measuring.Target(name="m", runtimes=("tflite", "litert"), spec=target.spec)
    result = measuring.measure(missing, Measure(samples=5), runner, silent)
    assert isinstance(result, measuring.Result)
    assert result.runtime == "litert"
    none = measuring.Target(name="m", runtimes=("tflite",), spec=target.spec)
    failure = measuring.measure(none, Measure(samples=5), runner, silent)
    assert isinstance(failure, measuring.Failure)
    assert (failure.kind, "pip install tflite-runtime" in failure.reason) == ("runtime", True)


def test_command_offers_every_runtime_there_is():
    (option,) = [parameter for parameter in cli.measure.params if parameter.name == "runtime"]
    assert list(option.type.choices) == ["auto", *(runtime.name for runtime in runtimes.RUNTIMES)]
