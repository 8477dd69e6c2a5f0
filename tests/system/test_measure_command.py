"""`evenfleet-agent measure` and `doctor` as a user types them: real interpreters, exit codes, one line per error."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evenfleet_shared import manifest
from fakes import tiny_models
from fakes.tiny_release import write_release

ROOT = Path(__file__).parents[2]


def agent(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "evenfleet_agent", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "TMPDIR": str(cwd), **environment},
    )


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.eye(3, 4, dtype=np.float32) * 5, y=np.array([0, 1, 2]))
    return tmp_path / "data.npz"


def test_labelled_model_is_measured_and_told_as_json(tmp_path, data):
    tiny_models.classifier(tmp_path / "m.tflite")
    done = agent("measure", "m.tflite", "--data", data, "--samples", 700, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = json.loads(done.stdout)["results"]
    assert result["runtime"] == "litert"
    assert result["accelerator_executed"] == "xnnpack"
    assert result["latency"]["n"] == 700
    assert result["latency"]["p99_qualified"]
    assert result["intervals"]["p50_ms"][0] <= result["latency"]["p50_ms"] <= result["intervals"]["p50_ms"][1]
    assert result["accuracy"]["accuracy_ratio"] == 1.0
    assert {reading["kind"] for reading in result["memory"]} == {"after_load", "peak_rss"}


def test_every_mode_is_told_as_json(tmp_path):
    tiny_models.classifier(tmp_path / "m.tflite")
    options = ("--processes", 2, "--cadence-ms", 2, "--sustained", 0.2, "--samples", 20, "--json")
    done = agent("measure", "m.tflite", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["processes"], result["cadence_ms"]) == (2, 2.0)
    assert {phase["name"] for phase in result["phases"]} == {"preprocess", "queue", "postprocess"}
    assert result["sustained"]["slowdown_ratio"] > 0
    assert result["spread"]["p50_ms"]["low_ms"] <= result["latency"]["p50_ms"] <= result["spread"]["p50_ms"]["high_ms"]
    assert set(result["conditions"]) >= {"steal_ratio", "cpu_pressure_ratio", "temperature_c", "under_voltage"}
    assert result["start"]["at_s"] < result["end"]["at_s"]
    assert len(result["comparability"]) == 16
    assert [claim["runs_needed"] for claim in result["latency"]["claims"]] == [None, 64, 130, 662]


def test_same_runtime_named_twice_is_measured_once(tmp_path):
    tiny_models.classifier(tmp_path / "m.tflite")
    options = ("--runtime", "litert", "--runtime", "litert", "--samples", 20, "--json")
    done = agent("measure", "m.tflite", *options, cwd=tmp_path)
    assert len(json.loads(done.stdout)["results"]) == 1


def test_release_is_measured_though_one_variant_cannot_be(tmp_path):
    done = agent("measure", write_release(tmp_path), "--samples", 50, cwd=tmp_path)
    assert done.returncode == 0
    assert "too-new: not measured" in done.stdout


def test_variants_of_a_format_that_the_runtime_does_not_run_are_named(tmp_path):
    release = write_release(tmp_path)
    described, _ = manifest.load(release)
    first, second = described.variants
    described = dataclasses.replace(described, variants=(first, dataclasses.replace(second, format="saved_model")))
    (release / manifest.MANIFEST_NAME).write_bytes(manifest.encode(described))
    done = agent("measure", release, "--runtime", "litert", "--samples", 50, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "left out, for litert does not run their format: too-new\n")


def test_labels_that_no_variant_has_a_class_for_are_told_before_what_cannot_be_run(tmp_path):
    make_bad(tmp_path)
    done = agent(
        *("measure", "release", "--variant", "too-new", "--variant", "float32", "--data", "labels.npz"), cwd=tmp_path
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "labels go up to 77" in done.stderr


def test_variant_that_cannot_be_measured_fails_when_it_was_the_only_one_asked_for(tmp_path):
    done = agent("measure", write_release(tmp_path), "--variant", "too-new", cwd=tmp_path)
    assert done.returncode == 1
    assert "FULLY_CONNECTED of version 99" in done.stderr


def test_model_that_crashes_its_interpreter_is_one_line(tmp_path):
    tiny_models.aborting(tmp_path / "m.tflite")
    done = agent("measure", "m.tflite", cwd=tmp_path)
    assert done.returncode == 1
    assert "killed by SIGABRT while loading" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def make_bad(directory: Path) -> None:
    model = tiny_models.classifier(directory / "m.tflite")
    (directory / "cut.tflite").write_bytes(model.read_bytes()[:200])
    (directory / "text.txt").write_text("hello")
    (directory / "folder").mkdir()
    np.savez(directory / "shape.npz", x=np.zeros((2, 7)))
    np.savez(directory / "nan.npz", x=np.full((2, 4), np.nan))
    np.savez(directory / "labels.npz", x=np.eye(2, 4, dtype=np.float32), y=np.array([1, 77]))
    write_release(directory).rename(directory / "release")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("none.tflite", 2, "does not exist"),
        ("cut.tflite", 1, "is damaged"),
        ("text.txt", 2, "neither a .tflite file nor a tar"),
        ("folder", 2, "neither a SavedModel nor a release"),
        ("m.tflite --data shape.npz", 2, "takes shape [1, 4], found values of shape [1, 7]"),
        ("m.tflite --data nan.npz", 2, "NaN"),
        ("m.tflite --data none.npz", 2, "none.npz does not exist"),
        ("m.tflite --runtime tensorflow", 2, "use litert or tflite"),
        ("m.tflite --runtime caffe", 2, "'caffe' is not one of"),
        ("m.tflite --threads 0", 2, "0 is not in the range"),
        ("m.tflite --processes 0", 2, "0 is not in the range"),
        ("m.tflite --cadence-ms 0", 2, "0.0 is not in the range"),
        ("m.tflite --sustained -1", 2, "-1.0 is not in the range"),
        ("m.tflite --data labels.npz", 2, "labels.npz: labels go up to 77, the model knows 3 classes"),
        ("m.tflite --python /no/python", 2, "/no/python is not a program"),
        ("release --variant int4", 2, "has no variant 'int4'; it has float32, too-new"),
    ],
)
def test_bad_input_is_one_line_and_the_right_exit_code(tmp_path, arguments, code, words):
    make_bad(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = agent("measure", *arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_interrupt_leaves_no_process_and_no_file(tmp_path):
    """The interrupt comes at any moment of the worker's start."""
    tiny_models.classifier(tmp_path / "m.tflite")
    command = subprocess.Popen(
        [sys.executable, "-m", "evenfleet_agent", "measure", "m.tflite", "--min-duration", "600"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with command:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        end = time.monotonic() + 30
        while not (started := children.read_text().split()) and time.monotonic() < end:
            os.sched_yield()
        worker = os.pidfd_open(int(started[0]))
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=30) == 1
    # Killed by its parent, or by the end of its standard input if the interrupt came while it was being started.
    assert select.select([worker], [], [], 30.0)[0]
    os.close(worker)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]


@pytest.mark.tensorflow
def test_doctor_builds_interpreters_and_names_what_to_install(tmp_path):
    done = agent("doctor", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["runtimes"]["litert"]["runtime_version"]
    assert "pip install tflite-runtime" in found["runtimes"]["tflite"]["reason"]
    assert found["host"]["cpu_count"] > 0
    assert all(found["accelerators"].values())


def test_doctor_fails_where_a_delegate_that_was_asked_for_is_not_there(tmp_path):
    done = agent("doctor", "--delegate", "/nowhere/libvendor.so", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    (tried,) = found["delegates"]
    assert (tried["runtime"], tried["works"]) == ("litert", False)
    assert "cannot open shared object file" in tried["reason"]


def test_help_names_an_example_and_the_exit_codes(tmp_path):
    assert "Exit codes" in agent("--help", cwd=tmp_path).stdout
    assert "Example: evenfleet-agent measure" in agent("measure", "--help", cwd=tmp_path).stdout


@pytest.mark.tflite
def test_other_environments_python_measures_with_its_own_runtime(tmp_path, data):
    python = Path(os.environ.get("EVENFLEET_TFLITE_PYTHON", ROOT / ".venv-tflite/bin/python"))
    if not python.exists():
        pytest.skip(f"no tflite-runtime environment at {python}; make one with 'make setup'")
    tiny_models.classifier(tmp_path / "m.tflite")
    options = ("--runtime", "tflite", "--python", python, "--samples", 50, "--json")
    done = agent("measure", "m.tflite", "--data", data, *options, cwd=tmp_path)
    assert done.returncode == 0
    (result,) = json.loads(done.stdout)["results"]
    assert (result["runtime"], result["runtime_version"]) == ("tflite", "2.14.0")
    assert result["accuracy"]["errors"] == 0


@pytest.mark.tensorflow
@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_directory_with_a_damaged_saved_model_is_one_line(tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/saved_model.pb").write_bytes(content)
    done = agent("measure", "model", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot load model" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_runtime_that_was_named_and_is_not_there_fails_though_another_one_measured(tmp_path):
    tiny_models.classifier(tmp_path / "m.tflite")
    hidden = {"PYTHONPATH": os.pathsep.join((str(tmp_path / "hide"), os.environ.get("PYTHONPATH", "")))}
    (tmp_path / "hide/tflite_runtime").mkdir(parents=True)
    (tmp_path / "hide/tflite_runtime/__init__.py").write_text("raise ImportError('not here')")

    both = agent(
        "measure", "m.tflite", "--runtime", "litert", "--runtime", "tflite", "--samples", 5, cwd=tmp_path, **hidden
    )
    assert both.returncode == 1
    assert "p50" in both.stdout
    assert "not measured: runtime tflite is not installed here" in both.stdout


@pytest.mark.parametrize("option", ["--min-duration", "--max-duration", "--cadence-ms", "--sustained", "--threshold"])
def test_a_number_that_is_none_is_refused_by_its_option(tmp_path, option):
    tiny_models.classifier(tmp_path / "m.tflite")
    said = agent("measure", "m.tflite", option, "nan", cwd=tmp_path)
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert f"{option}: nan is not a number" in line
