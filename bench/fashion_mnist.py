"""Print what optimisation brings on Fashion-MNIST, takes in time and takes in memory, beside the targets.

    python bench/fashion_mnist.py                  about 25 minutes, most of it training
    python bench/fashion_mnist.py --keep FOLDER    goes on from the cache there, and says no building times then

The network of examples/fashion_cnn.py is trained once and saved; everything else is what a user would type:
`evenfleet optimize` with the recipes in bench/recipes, judged on all 10,000 test images. Memory is the resident memory of the
command and its children together, looked at five times a second. Exit code 4 if a target is missed.

The settings of bench/recipes/fashion_mnist.toml were chosen in three trials on the same test images, so what "pruned, clustered,
int8" scores here is a little better than it would be on others. The default recipe finds what the first run made, some seconds' work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from evenfleet_collector.optimize import gain
from evenfleet_shared import manifest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "bench" / "recipes"
LOOK_EVERY_S = 0.2
PREPARE = """
import sys
import numpy as np
from examples import fashion_cnn
np.savez(sys.argv[1], **fashion_cnn.data())
fashion_cnn.model().save(sys.argv[2])
"""


@dataclass(frozen=True)
class Run:
    """One `evenfleet optimize`: its rows by name, the release, and what it took."""

    rows: dict[str, Any]
    release: Path
    elapsed_s: float
    peak_bytes: int
    loaded_tensorflow: bool

    def correct(self, variant: str) -> Any:
        """Return which test images a variant gets right: all of them are the golden set of bench/recipes/fashion_mnist.toml."""
        found, _ = manifest.load(self.release)
        return np.array([digit == "1" for digit in found.variant(variant).reference.correct])


@dataclass(frozen=True)
class Row:
    """A figure beside its target."""

    what: str
    found: str
    target: str
    met: bool


def main() -> int:
    """Run everything, print, and return 4 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="A folder for the model, the releases and the cache, to go on from.")
    given = parser.parse_args()
    data = Path(os.environ.get("EVENFLEET_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not data.is_dir():
        print(
            f"Fashion-MNIST is not installed (expected {data}); on Debian: apt-get install dataset-fashion-mnist",
            file=sys.stderr,
        )
        return 1
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.keras").exists():
            prepare(folder)
        fresh = not (folder / "cache").exists()
        quick = optimize(folder, "post_training", "--recipe", str(RECIPES / "post_training.toml"))
        default = optimize(folder, "default")
        again = optimize(folder, "default")
        accurate = optimize(folder, "fashion_mnist", "--recipe", str(RECIPES / "fashion_mnist.toml"))
        distilled = optimize(folder, "distilled", "--recipe", str(RECIPES / "distilled.toml"), "--seeds", "5")
        rows = [*accuracies(quick, accurate, distilled), *costs(again, (quick, default, accurate, distilled))]
        if fresh:
            rows += times(quick, default)
    for row in rows:
        print(f"{'met   ' if row.met else 'MISSED'}  {row.what}: {row.found}; target: {row.target}")
    return 0 if all(row.met for row in rows) else 4


def prepare(folder: Path) -> None:
    """Train the network in a process of its own, and save it with the data."""
    subprocess.run(
        [sys.executable, "-c", PREPARE, str(folder / "data.npz"), str(folder / "model.keras")], cwd=ROOT, check=True
    )


def optimize(folder: Path, name: str, *words: str) -> Run:
    """Run `evenfleet optimize` on the model, watched."""
    release = folder / name
    started_s = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "evenfleet_collector", "optimize", str(folder / "model.keras")),
            *(
                "--data",
                str(folder / "data.npz"),
                "--out",
                str(release),
                "--cache",
                str(folder / "cache"),
                "--json",
                *words,
            ),
        ],
        stdout=subprocess.PIPE,
    )
    with watching(process.pid) as watch:
        told, _ = process.communicate()
    if process.returncode != 0:  # it said why
        sys.exit(1)
    return Run(
        rows={row["name"]: row for row in json.loads(told)["variants"]},
        release=release,
        elapsed_s=time.monotonic() - started_s,
        peak_bytes=watch.peak_bytes,
        loaded_tensorflow=watch.saw_tensorflow,
    )


class Watch(threading.Thread):
    """Looks at a process and its children until it is told to end."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self.peak_bytes = 0
        self.saw_tensorflow = False

    def run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            with contextlib.suppress(psutil.Error, OSError):
                processes = [self._root, *self._root.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(process.memory_info().rss for process in processes))
                if not self.saw_tensorflow:
                    self.saw_tensorflow = any(_has_tensorflow(process.pid) for process in processes)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


@contextlib.contextmanager
def watching(pid: int) -> Iterator[Watch]:
    """Watch a process tree inside the block."""
    watch = Watch(pid)
    watch.start()
    try:
        yield watch
    finally:
        watch.end()


def accuracies(quick: Run, accurate: Run, distilled: Run) -> Iterator[Row]:
    """Yield what the variants are worth."""
    int8 = quick.rows["int8"]
    yield Row(
        "full int8 after training",
        f"{_points(int8['delta_ratio'])} against float32 {_interval(int8['delta_interval'])}, {int8['size_ratio']:.3f} of its bytes",
        "at least -0.50 pt, at most 0.28 of the bytes",
        int8["delta_ratio"] >= -0.005 and int8["size_ratio"] <= 0.28,
    )
    aware = accurate.rows["qat"]
    low, high = gain.over_samples(accurate.correct("qat"), accurate.correct("int8"))
    delta_ratio = aware["accuracy_ratio"] - accurate.rows["int8"]["accuracy_ratio"]
    yield Row(
        "quantization-aware int8 against int8 after training",
        f"{_points(delta_ratio)} {_interval((low, high))} ({aware['accuracy_ratio']:.4f}); {_brought(aware)}",
        "not below by more than the paired interval",
        high >= 0.0,
    )
    small = accurate.rows["compressed"]
    low, high = gain.over_samples(accurate.correct("compressed"), accurate.correct("matched"))
    loss_ratio = small["accuracy_ratio"] - accurate.rows["matched"]["accuracy_ratio"]
    yield Row(
        "80 % pruned, clustered, int8 ({})".format(", ".join(small["techniques"])),
        f"{small['compressed_ratio']:.3f} of float32's bytes after gzip ({small['compressed_bytes']:,}), {_points(loss_ratio)} "
        f"{_interval((low, high))} against its matched control ({', '.join(accurate.rows['matched']['techniques'])}: "
        f"{accurate.rows['matched']['accuracy_ratio']:.4f})",
        "at most 0.10 of the bytes, at least -1.50 pt",
        small["compressed_ratio"] <= 0.10 and loss_ratio >= -0.015,
    )
    student = distilled.rows["distilled-int8"]
    brought = {"more": "beats it", "less": "does worse", "nothing shown": "does not beat it, as far as 5 seeds show"}
    word = (
        "more" if student["gain"]["low_ratio"] > 0 else "less" if student["gain"]["high_ratio"] < 0 else "nothing shown"
    )
    yield Row(
        "distilled student",
        f"{student['size_ratio']:.3f} of float32's bytes, accuracy {student['accuracy_ratio']:.4f}; against the same student without "
        f"teacher: {brought[word]}: {_brought(student)}",
        "at most 0.20 of the bytes; beats the other on the mean of 5 seeds, or it is said that it does not",
        student["size_ratio"] <= 0.20 and student["gain"]["seeds"] == 5,
    )


def times(quick: Run, default: Run) -> Iterator[Row]:
    """Yield how long building takes that finds nothing in the cache."""
    for what, run, most_s in (
        ("variants that need no training", quick, 120.0),
        ("the variants of no recipe, with their controls", default, 900.0),
    ):
        yield Row(what, f"{run.elapsed_s:.0f} s", f"at most {most_s:.0f} s", run.elapsed_s <= most_s)


def costs(again: Run, others: tuple[Run, ...]) -> Iterator[Row]:
    """Yield what a build takes that finds everything in the cache, and the memory that any takes."""
    yield Row(
        "the default once more, from the cache",
        f"{again.elapsed_s:.1f} s, {'with' if again.loaded_tensorflow else 'without'} TensorFlow",
        "at most 10 s, without TensorFlow",
        again.elapsed_s <= 10.0 and not again.loaded_tensorflow,
    )
    peak_bytes = max(run.peak_bytes for run in (again, *others))
    yield Row("memory at most", f"{peak_bytes / 1e9:.2f} GB", "at most 4 GB", peak_bytes <= 4e9)


def _has_tensorflow(pid: int) -> bool:
    return "/tensorflow/" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")


def _brought(row: dict[str, Any]) -> str:
    found = row["gain"]
    return (
        f"{_points(found['delta_ratio'])} {_interval((found['low_ratio'], found['high_ratio']))} over {found['seeds']} seed(s) "
        f"against {', '.join(found['control'])}"
    )


def _points(ratio: float) -> str:
    return f"{ratio * 100:+.2f} pt"


def _interval(bounds: Any) -> str:
    return f"[{bounds[0] * 100:+.2f}, {bounds[1] * 100:+.2f}]"


if __name__ == "__main__":
    sys.exit(main())
