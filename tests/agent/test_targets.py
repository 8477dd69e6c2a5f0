"""What `measure` finds at a path, and which arguments go together."""

from __future__ import annotations

import os
import tarfile

import pytest
from msgspec.structs import replace

from evenfleet_agent import targets as finding
from evenfleet_agent.runner import tasks
from evenfleet_shared.errors import ArtifactError, ConfigError
from fakes import tiny_models
from fakes.measuring import TEMPLATE, targets
from fakes.tiny_release import write_release


def test_tflite_file_is_tried_with_every_runtime_that_runs_it(tmp_path):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    assert target.runtimes == ("litert", "tflite", "litert-compiled")


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
    with pytest.raises(ConfigError, match="use litert or tflite or litert-compiled"):
        targets(tiny_models.classifier(tmp_path / "m.tflite"), runtime="tensorflow")


def test_release_gives_a_target_per_variant_with_its_golden_set(tmp_path):
    found = targets(write_release(tmp_path))
    assert [target.name for target in found] == ["float32", "too-new"]
    assert all(target.spec.inputs_file and target.spec.outputs_file for target in found)
    assert found[0].spec.reference_correct == "111"


def test_variants_can_be_chosen_and_an_unknown_one_is_refused(tmp_path):
    release = write_release(tmp_path)
    assert [target.name for target in targets(release, variants=["too-new"])] == ["too-new"]
    with pytest.raises(ConfigError, match="has no variant 'int4'; it has float32, too-new"):
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


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
def test_what_is_no_file_is_refused_at_once_and_not_read(tmp_path, path):
    """Reading /dev/zero as a tar never ends, and neither does waiting for a writer of a pipe."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither a file nor a directory"):
        targets(tmp_path / path)


def test_python_of_the_models_is_asked_for_evenfleet_and_for_the_runtime(tmp_path):
    python = tmp_path / "python"
    for program, expected in (
        ("exit 1", r"runtime\.python is .*, which is no Python that has evenfleet installed"),
        (
            'case "$2" in *evenfleet*) exit 0;; *) exit 1;; esac',
            r"runtime\.name is litert, .*pip install ai-edge-litert",
        ),
    ):
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        with pytest.raises(ConfigError, match=expected):
            finding.check_installed("litert", str(python))

    python.write_text("#!/bin/sh\nexit 0\n")
    finding.check_installed("litert", str(python))
    finding.check_installed("litert", None)


def test_options_of_a_delegate_are_keys_and_values() -> None:
    assert finding.delegate_options("/opt/lib.so", ["device=usb:0", "cache="]) == {"device": "usb:0", "cache": ""}
    assert finding.delegate_options(None, []) == {}


@pytest.mark.parametrize(
    ("delegate", "options", "why"),
    [
        ("opencl", [], "expected gpu, edgetpu, npu or the absolute path"),
        (None, ["a=b"], "name it with --delegate"),
        ("gpu", ["fast"], "expected KEY=VALUE"),
        ("gpu", ["=1"], "expected KEY=VALUE"),
    ],
)
def test_a_delegate_that_cannot_be_meant_is_refused_in_one_line(
    delegate: str | None, options: list[str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        finding.delegate_options(delegate, options)


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_criterion_is_taken_by_the_tasks_that_have_it_and_refused_by_name_of_the_others(tmp_path, task):
    (plain,) = targets(tiny_models.classifier(tmp_path / "m.tflite"), template=replace(TEMPLATE, task=task.name))
    if task.name in {"regression", "agreement"}:
        assert finding.held_to(plain, tolerance=0.25, threshold=None).spec.criteria.tolerance == 0.25
        with pytest.raises(ConfigError, match=rf"--threshold is 0\.25, task {task.name} has none"):
            finding.held_to(plain, tolerance=None, threshold=0.25)
    else:
        criteria = finding.held_to(plain, tolerance=None, threshold=0.25).spec.criteria
        assert getattr(criteria, task.threshold) == 0.25
        with pytest.raises(ConfigError, match=rf"--tolerance is 0\.25, task {task.name} has none"):
            finding.held_to(plain, tolerance=0.25, threshold=None)
