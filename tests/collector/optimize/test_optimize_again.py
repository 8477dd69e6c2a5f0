"""A second build takes what the first one made, an interrupted one goes on where it was, and a release tells of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import BuildReport, LabelledData, Progress, build_release, variants
from evenfleet_collector.optimize import target as targets
from evenfleet_collector.optimize.prune import Prune
from evenfleet_collector.optimize.quantize import FullInt8
from evenfleet_collector.optimize.saved_model import PlainSavedModel
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared import manifest
from evenfleet_shared.errors import ConfigError

pytestmark = pytest.mark.tensorflow

PRUNE = Prune(steps=30)
RECIPES = (
    variants.recipe("float32", "float32"),
    Recipe("pruned-int8", (PRUNE, FullInt8())),
    Recipe("pruned-saved-model", (PRUNE, PlainSavedModel())),
)

# Any import of TensorFlow fails there.
WITHOUT_TENSORFLOW = """
import sys

def refuse(event, arguments):
    if event == "import" and arguments[0] in ("tensorflow", "keras"):
        raise ImportError("TensorFlow is not to be loaded")

sys.addaudithook(refuse)
from evenfleet_collector.cli import main
main()
"""


class Told:
    """The labels of a build's steps, until it is interrupted at one."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.labels: list[str] = []
        self._interrupt_at = interrupt_at

    def __call__(self, progress: Progress) -> None:
        self.labels.append(progress.label)
        if progress.label == self._interrupt_at:
            raise KeyboardInterrupt


@pytest.fixture
def build(tmp_path: Path, blobs: LabelledData, blob_keras_file: Path) -> Callable[..., BuildReport]:
    def run(out: str, told: Told, cache: str | None = "cache", **asked: object) -> BuildReport:
        given = {"recipes": RECIPES, "seeds": 0, "golden_n": 20, **asked}
        folder = tmp_path / cache if cache else None
        return build_release(blob_keras_file, blobs, tmp_path / out, cache_folder=folder, report=told, **given)  # type: ignore[arg-type]

    return run


def test_a_second_build_makes_nothing_and_gives_the_same_release(build: Callable[..., BuildReport]) -> None:
    first, told = build("a", Told(), seeds=1), Told()
    second = build("b", told, seeds=1)
    assert second.digest == first.digest
    manifest.verify(second.directory)
    assert [row.gain for row in second.variants] == [row.gain for row in first.variants]
    assert {label for label in told.labels if ":" in label} == {
        f"{name}: from the cache"
        for name in (
            "float32",
            "pruned-int8",
            "pruned-saved-model",
            "control of pruned-int8",
            "control of pruned-saved-model",
        )
    }


def test_a_build_from_the_cache_gives_the_files_of_one_without(build: Callable[..., BuildReport]) -> None:
    with pytest.raises(KeyboardInterrupt):
        build("a", Told(interrupt_at="pruned-int8: measuring on 60 test samples"))
    resumed = build("a", Told())
    assert resumed.digest == build("b", Told(), cache=None).digest


def test_an_interrupted_build_goes_on_after_the_last_training_that_ended(
    build: Callable[..., BuildReport], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build("a", Told(interrupt_at="pruned-int8: int8"))
    assert not (tmp_path / "a").exists()
    told = Told()
    built = build("a", told)
    assert [row.name for row in built.variants] == ["float32", "pruned-int8", "pruned-saved-model"]
    assert "float32: from the cache" in told.labels
    assert "pruned-int8: prune" not in told.labels
    assert "pruned-int8: int8" in told.labels


@pytest.mark.parametrize("change", ["setting", "seed", "data", "model"])
def test_what_was_made_from_something_else_is_not_taken(
    build: Callable[..., BuildReport], tmp_path: Path, blobs: LabelledData, blob_keras_file: Path, change: str
) -> None:
    import keras

    build("a", Told())
    told = Told()
    model, data, recipes, seed = blob_keras_file, blobs, RECIPES, 0
    if change == "setting":
        recipes = (RECIPES[0], Recipe("pruned-int8", (Prune(steps=31), FullInt8())))
    elif change == "seed":
        seed = 1
    elif change == "data":
        data = LabelledData(blobs.x_train, np.roll(blobs.y_train, 1), blobs.x_test, blobs.y_test)
    else:
        other = keras.models.load_model(blob_keras_file)
        other.set_weights([weights + 0.01 for weights in other.get_weights()])
        model = tmp_path / "other.keras"
        other.save(model)
    build_release(
        model, data, tmp_path / "b", recipes=recipes, seed=seed, seeds=0, golden_n=20,
        cache_folder=tmp_path / "cache", report=told,
    )  # fmt: skip
    assert "pruned-int8: prune" in told.labels


SUBCLASSED = """
import keras

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, kernel_initializer="identity")

    def call(self, x):
        return keras.ops.softmax({sign} * self.dense(x))

def model():
    net = Net()
    net.build((None, 4))
    return net
"""


def test_a_functions_model_with_the_same_weights_and_other_code_is_another(
    blobs: LabelledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = []
    for name, sign in (("ef_plus", 1), ("ef_same", 1), ("ef_minus", -1)):
        (tmp_path / f"{name}.py").write_text(SUBCLASSED.format(sign=sign))
        told = Told()
        build_release(
            f"{name}:model", blobs, tmp_path / "r", only=["float32"], cache_folder=tmp_path / "cache", report=told
        )
        labels.append(told.labels)
    assert ["float32: from the cache" in each for each in labels] == [False, True, False]


def test_a_damaged_entry_is_made_again(build: Callable[..., BuildReport], tmp_path: Path) -> None:
    first = build("a", Told())
    for file in (tmp_path / "cache").rglob("artifact.tflite"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    told = Told()
    assert build("b", told).digest == first.digest
    assert "float32: float32" in told.labels


@pytest.fixture(scope="session")
def timed(tmp_path_factory: pytest.TempPathFactory, blobs: LabelledData, blob_keras_file: Path) -> Path:
    """A release, a report and a cache, made by the command."""
    folder = tmp_path_factory.mktemp("timed")
    np.savez(
        folder / "blobs.npz", **{name: getattr(blobs, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    )
    (folder / "blobs.keras").write_bytes(blob_keras_file.read_bytes())
    done = command(folder, "--only", "int8", "--device-class", "bench-pc")
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path, *more: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "evenfleet_collector"]
    return subprocess.run(
        [
            *(sys.executable, *program, "optimize", "blobs.keras", "--data", "blobs.npz", "--out", "release"),
            *("--cache", "cache", "--json", *more),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_second_run_of_the_command_loads_no_tensorflow(timed: Path) -> None:
    before = (timed / "release" / "manifest.json").read_bytes()
    done = command(timed, "--only", "int8", "--device-class", "bench-pc", code=WITHOUT_TENSORFLOW)
    assert done.returncode == 0, done.stderr
    assert (timed / "release" / "manifest.json").read_bytes() == before
    changed = command(timed, "--only", "float16", "--out", "other", code=WITHOUT_TENSORFLOW)
    (missing,) = json.loads(changed.stdout)["missing"]
    assert missing["name"] == "float16"
    assert "TensorFlow is not to be loaded" in missing["reason"]


def test_the_envelope_tells_what_the_class_of_this_machine_can_expect(timed: Path) -> None:
    described, _ = manifest.verify(timed / "release")
    assert [(each.variant, each.device_class, each.runtime) for each in described.envelope] == [
        ("float32", "bench-pc", "litert"),
        ("int8", "bench-pc", "litert"),
    ]
    for each in described.envelope:
        assert 0.0 < each.p50_low_ms <= each.p50_ms <= each.p50_high_ms
        assert each.p50_ms <= each.p95_ms
        assert (each.rounds, each.test_n) == (3, 60)
        assert each.n >= 3 * 300
        assert 10_000_000 < each.peak_rss_bytes < 1_000_000_000
        assert each.accuracy_low_ratio <= each.accuracy_ratio <= each.accuracy_high_ratio


def test_the_report_lies_beside_the_release_and_names_every_variant(timed: Path) -> None:
    page = (timed / "release-report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("float32", "int8"))
    assert "<svg" in page


def test_rows_have_what_a_choice_is_made_by(timed: Path) -> None:
    rows = json.loads(command(timed, "--only", "int8", "--device-class", "bench-pc").stdout)["variants"]
    for row in rows:
        assert row["compressed_bytes"] < row["size_bytes"] * 1.1
        assert row["timing"]["p50_ms"] > 0.0
        worst = row["worst_class"]
        assert 0.0 <= worst["recall_ratio"] <= row["accuracy_ratio"]
    assert rows[0]["delta_interval"][0] <= 0.0 <= rows[0]["delta_interval"][1]


def test_a_target_that_holds_names_the_smallest_and_one_that_cannot_says_by_how_much(timed: Path) -> None:
    held = command(timed, "--only", "int8", "--out", "other", "--target", "size_kb<=100, accuracy_drop<=0.5")
    assert held.returncode == 0, held.stderr
    told = json.loads(held.stdout)["target"]
    assert told["holds"]
    missed = command(timed, "--only", "int8", "--out", "other", "--target", "size_bytes<=10, accuracy_drop<=0.5")
    assert missed.returncode == 4, missed.stderr
    told = json.loads(missed.stdout)["target"]
    assert not told["holds"]
    assert told["unmet"][0]["shortfall"]["missed_by"] > 100.0
    assert "no variant holds: size_bytes<=10" in told["words"][0]
    manifest.verify(timed / "other")


def test_a_target_of_time_without_timing_is_refused_before_any_work(blobs: LabelledData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--target p95_ms<=5: variants have to be timed"):
        build_release("examples.small_cnn:model", blobs, tmp_path / "r", target=targets.parse("p95_ms<=5"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cache", "x", "--no-cache"), "contradict"),
        (("--no-report", "--report", "x.html"), "contradict"),
        (("--report", "nowhere/x.html"), "its folder is not there"),
        (("--report", "release/x.html"), "is in the release release, which holds nothing else"),
        (("--memory", "lots"), "expected a size"),
        (("--target", "p95ms<=5"), "did you mean p95_ms"),
        (("--cores", "4096"), "may use"),
    ],
)
def test_words_that_cannot_be_meant_end_at_once_in_one_line(timed: Path, words: tuple[str, ...], said: str) -> None:
    done = command(timed, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_cache_goes_before_the_environments(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENFLEET_OPTIMIZE_CACHE", "of-the-environment")
    given = ["blobs.keras", "--data", "blobs.npz", "--out", "again", "--no-cache", "--target", "p95ms<=5"]
    done = subprocess.run(
        [sys.executable, "-m", "evenfleet_collector", "optimize", *given],
        cwd=timed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "contradict" not in done.stderr
    assert "did you mean p95_ms" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_in_a_line_that_says_what_is_kept_and_leaves_no_release(
    timed: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "evenfleet_collector", "optimize", "blobs.keras", "--data", "blobs.npz"),
            *("--out", "interrupted", "--cache", f"fresh-{number.name}"),
        ],
        cwd=timed,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "dynamic" in line:
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].endswith("in the cache, and the same command goes on from there")
    assert "Traceback" not in said
    assert [path.name for path in timed.iterdir() if "interrupted" in path.name] == []
