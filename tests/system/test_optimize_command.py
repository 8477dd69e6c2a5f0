"""`evenfleet optimize` as a person calls it: a process of its own, in a directory of the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evenfleet_collector.commands.optimize import optimize
from evenfleet_shared import manifest, preprocessing

MODEL = """
import keras
import numpy as np

def data():
    labels = np.arange(120) % 2
    print("user code may print")
    return np.stack([labels, 1 - labels, labels * 0.5], axis=1), labels

def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, activation="relu"),
                             keras.layers.Dense(2, activation="softmax")])
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenfleet_collector", "optimize", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(folder.with_name(f"{folder.name}-cache"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.tensorflow
def test_command_prints_nothing_but_json_and_builds_the_same_release_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    only = ("--only", "int8", "--only", "saved-model", "--json", "--no-cache", "--no-timing", "--no-report")
    first, second = (
        run(tmp_path, "mine:model", "--data", "mine:data", "--out", out, *only) for out in ("release", "again")
    )
    assert first.returncode == 0, first.stderr
    printed = json.loads(first.stdout)
    _, digest = manifest.verify(tmp_path / "release")
    assert printed["release"] == digest == json.loads(second.stdout)["release"]
    assert [each["name"] for each in printed["variants"]] == ["float32", "int8", "saved-model"]
    lines = first.stderr.splitlines()
    assert lines
    assert all(line.startswith("[") for line in lines), first.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "mine.py", "release"]


@pytest.mark.tensorflow
def test_damaged_model_ends_in_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "d.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    done = run(tmp_path, "m.keras", "--data", "d.npz", "--out", "release")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("evenfleet: MODEL m.keras is not a .keras file")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.keras", "--data", "d.npz", "--out", "r"], "evenfleet: MODEL nowhere.keras does not exist"),
        (["m.h5", "--data", "d.npz", "--out", "r"], "evenfleet: MODEL m.h5: .h5 files are not read"),
        (["a:b", "--data", "nowhere.npz", "--out", "r"], "evenfleet: DATA nowhere.npz does not exist"),
        (["a:b", "--data", "c:d", "--out", "taken"], "evenfleet: --out"),
        (["a:b", "--data", "c:d", "--out", "no/such/parent"], "cannot write in"),
        (["a:b", "--data", "c:d", "--out", "r", "--only", "int9"], "did you mean int8?"),
        (["a:b", "--out", "r"], "Missing option '--data'"),
        (["a:b", "--data", "x.npy,y.npy", "--out", "r"], "evenfleet: DATA x.npy does not exist"),
        (["a:b", "--data", "c:d", "--out", "r", "--preprocessing", "resise=x"], "did you mean resize?"),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "m.h5").write_bytes(b"x")
    (tmp_path / "taken").write_text("a file")
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


IMAGES_MODEL = """
import keras

def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")])
"""


@pytest.mark.tensorflow
def test_directory_of_images_becomes_a_release_that_says_what_was_done_to_them(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for copy in range(10):
                Image.new("RGB", (9, 7), (200 * number, copy, 0)).save(
                    tmp_path / "photos" / part / name / f"{copy}.png"
                )
    (tmp_path / "mine.py").write_text(IMAGES_MODEL)
    words = ("--preprocessing", "scale=1/127.5", "--preprocessing", "offset=-1", "--only", "float32", "--json")
    done = run(tmp_path, "mine:model", "--data", "photos", "--out", "release", *words)
    assert done.returncode == 0, done.stderr
    described, _ = manifest.verify(tmp_path / "release")
    declared = preprocessing.from_wire(described.preprocessing)
    assert (declared.resize, declared.channels, declared.shape) == ("pillow-bilinear", "RGB", (6, 6, 3))
    assert declared.fingerprint == json.loads(done.stdout)["preprocessing"]
    assert json.loads(described.lineage["class_names"]) == ["dark", "light"]
    assert np.load(tmp_path / "release" / "golden" / "inputs.npy").min() == -1.0


@pytest.mark.tensorflow
def test_table_with_a_missing_value_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "d.csv").write_text("a,b,c,kind\n" + "1,2,3,x\n3,2,1,y\n" * 10 + "1,,3,x\n")
    done = run(tmp_path, "mine:model", "--data", "d.csv", "--label-column", "kind", "--out", "release")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("evenfleet: DATA d.csv, line 22: the column b is empty")


def test_help_has_an_example_and_the_exit_codes() -> None:
    result = CliRunner().invoke(optimize, ["--help"])
    assert result.exit_code == 0
    assert "evenfleet optimize examples.small_cnn:model --data examples.small_cnn:data --out release/" in result.output
    assert "Exit codes: 0 done" in result.output
