"""`evenfleet diff` as a person calls it: what it names, how it ends, and what it says of files that cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.commands import diff as command
from evenfleet_collector.optimize import walk
from evenfleet_shared import manifest
from fakes import tiny_models, tiny_release
from fakes.rotations import in_int8, rotations, samples, with_large_weight

Run = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A sound float file, the same in int8, one that int8 spoils in float and int8, and samples."""
    for name, layers in (("sound", rotations()), ("spoilt", with_large_weight(rotations(), 2))):
        tiny_models.dense(tmp_path / f"{name}.tflite", layers)
        (tmp_path / f"{name}-int8.tflite").write_bytes(in_int8(tmp_path, layers))
    x, y = samples(80)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path


def test_file_against_itself_is_exit_0(evenfleet: Run, files: Path) -> None:
    sound = files / "sound.tflite"
    outcome = evenfleet("diff", sound, sound, "--data", files / "data.npz")
    assert (outcome.code, outcome.err) == (0, "")
    assert "No operator exceeds its bound." in outcome.out
    assert "0 of 64 decisions differ" in outcome.out


def test_spoilt_layer_is_named_in_a_sentence_and_is_exit_4(evenfleet: Run, files: Path) -> None:
    outcome = evenfleet("diff", files / "spoilt.tflite", files / "spoilt-int8.tflite", "--data", files / "data.npz")
    assert outcome.code == 4
    said = " ".join(outcome.out.split())
    assert "The first beyond its bound is operator 3, FULLY_CONNECTED dense2: it introduces" in said
    assert "half of its weights are 100 % or more off in B" in said
    assert "The output is most sensitive to operator 3, FULLY_CONNECTED dense2: with it alone as in B" in said


def test_json_holds_every_layer_and_the_first_beyond_its_bound(evenfleet: Run, files: Path) -> None:
    a, b = files / "spoilt.tflite", files / "spoilt-int8.tflite"
    outcome = evenfleet("diff", a, b, "--data", files / "data.npz", "--samples", 20, "--json")
    assert outcome.code == 4
    found = json.loads(outcome.out)
    assert (found["samples"], found["first"]["name"], found["first"]["cause"]) == (20, "dense2", "weights")
    assert [layer["name"] for layer in found["layers"] if layer["counterpart"]] == [f"dense{n}" for n in range(4)]
    exceeding = [layer for layer in found["layers"] if layer["exceeds"]]
    assert exceeding[0] == found["first"]
    assert all(layer["introduced_ratio"] > layer["bound"]["ratio"] for layer in exceeding)
    assert found["accuracy_a"] == 1.0 > found["accuracy_b"]


def test_sound_int8_file_in_another_runtime_is_exit_0(evenfleet: Run, files: Path) -> None:
    file = files / "sound-int8.tflite"
    outcome = evenfleet("diff", file, file, "--data", files / "data.npz", "--runtime-b", "litert-xnnpack")
    assert outcome.code == 0


def test_variants_of_a_release_are_fed_its_golden_set(evenfleet: Run, tmp_path: Path) -> None:
    release = tiny_release.write_release(tmp_path)
    outcome = evenfleet("diff", f"{release}:float32", f"{release}:float32", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["samples"] == 3


@pytest.mark.parametrize("labels", [np.arange(50) % 3, np.zeros((3, 1), np.int64), np.array(["a", "b", "c"])])
def test_golden_set_that_is_none_is_one_line(evenfleet: Run, tmp_path: Path, labels: np.ndarray) -> None:
    release = tiny_release.write_release(tmp_path)
    np.save(release / "golden" / "labels.npy", labels)
    described, _ = manifest.load(release)
    golden = replace(described.golden, labels=manifest.file_ref(release, "golden/labels.npy"))
    (release / manifest.MANIFEST_NAME).write_bytes(manifest.encode(replace(described, golden=golden)))
    outcome = evenfleet("diff", f"{release}:float32", f"{release}:float32")
    assert outcome.code == 2
    assert f"the golden set of {release} has float32 inputs of shape (3, 4) and " in outcome.err


@pytest.mark.parametrize(
    ("a", "b", "more", "code", "message"),
    [
        (
            "gone.tflite",
            "sound.tflite",
            (),
            2,
            "A gone.tflite does not exist; expected a .tflite file, or RELEASE_DIR:",
        ),
        (
            "~nosuchuser/a.tflite",
            "sound.tflite",
            (),
            2,
            "A '~nosuchuser/a.tflite' cannot be a path: Could not determine home",
        ),
        ("sound.tflite", "x" * 5000, (), 2, "cannot be a path"),
        ("sound.tflite", "sound-int8.tflite", (), 2, "--data is missing: A and B are files"),
        ("release", "sound.tflite", (), 2, "A release is a directory; name the variant as release:float32; it has fl"),
        ("release:int9", "sound.tflite", (), 2, "release release has no .tflite variant 'int9'; it has float32"),
        ("sound.tflite", "garbage.tflite", ("--data", "data.npz"), 1, "garbage.tflite is not a .tflite file: expected"),
        ("sound.tflite", "damaged.tflite", ("--data", "data.npz"), 1, "damaged.tflite"),
        ("sound.tflite", "aborting.tflite", ("--data", "data.npz"), 1, "makes the interpreter crash (SIG"),
        ("release:too-new", "sound.tflite", ("--data", "data.npz"), 1, "cannot be run by LiteRT"),
        (
            "sound.tflite",
            "release:float32",
            ("--data", "data.npz"),
            1,
            "A sound.tflite takes samples of shape (16,), B",
        ),
        ("sound.tflite", "other.tflite", ("--data", "data.npz"), 1, "A and B cannot be compared: A and B share no op"),
        (
            "sound.tflite",
            "sound.tflite",
            ("--data", "wide.npz"),
            2,
            "takes samples of shape (16,), DATA has samples of",
        ),
        ("sound.tflite", "sound.tflite", ("--data", "gone.npz"), 2, "gone.npz does not exist"),
        ("sound.tflite", "sound.tflite", ("--data", "data.npz", "--runtime-b", "tpu"), 2, "'tpu' is not one of"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_its_exit_code(
    evenfleet: Run,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    a: str,
    b: str,
    more: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(files)
    tiny_release.write_release(files)
    tiny_models.aborting(files / "aborting.tflite")
    tiny_models.relu(files / "other.tflite", shape=(1, 16))
    (files / "garbage.tflite").write_bytes(b"PK\x03\x04" * 100)
    sound = (files / "sound.tflite").read_bytes()
    (files / "damaged.tflite").write_bytes(sound[: len(sound) // 2])
    y = np.arange(8) % 4
    np.savez(files / "wide.npz", x_train=np.ones((8, 17)), y_train=y, x_test=np.ones((8, 17)), y_test=y)

    outcome = evenfleet("diff", a, b, *more)

    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    if "is not one of" not in message:  # click's own, with the usage before it
        assert outcome.err.count("\n") == 1


def test_interpreter_that_dies_in_the_walk_is_one_line_and_not_the_end_of_the_command(
    evenfleet: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may run as it is and still crash once it is cut apart; the process that walks is then gone."""
    folder = files / "hostile"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'evenfleet_collector.optimize.diff_worker' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    sound = files / "sound.tflite"
    outcome = evenfleet("diff", sound, sound, "--data", files / "data.npz")
    assert (outcome.code, outcome.out) == (1, "")
    assert "the interpreter crashed (SIGSEGV) while A and B were walked" in outcome.err


def test_runtimes_of_the_help_page_are_those_that_there_are() -> None:
    assert list(command.RUNTIMES) == list(walk.RUNTIMES)


def test_help_gives_an_example_and_the_exit_codes(evenfleet: Run) -> None:
    outcome = evenfleet("diff", "--help")
    assert outcome.code == 0
    assert "Example:" in outcome.out
    assert "4 an operator exceeds its bound" in " ".join(outcome.out.split())
