"""Find the first operator at which two files of one graph part: read what is named, and have it walked in a process of its own.

Files come from anywhere, and the interpreter is C++ that trusts what it reads: each is first tried out alone, and the walk
takes none but its own process down (`diff_worker`). Leaves the walk to `walk`, and what is too much to `layers`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from evenfleet_collector.child import bound, last_line
from evenfleet_collector.optimize import datasets, sources, strata
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.datasets import DataOptions, Wanted, npy
from evenfleet_collector.optimize.layers import DiffReport
from evenfleet_collector.optimize.models import tflite_file
from evenfleet_collector.optimize.models.interface import OpenedModel
from evenfleet_collector.optimize.quiet import NoiseLog
from evenfleet_collector.optimize.sources import FileSource
from evenfleet_shared import manifest
from evenfleet_shared.errors import ConfigError, DataError, ModelRefusedError
from evenfleet_shared.manifest import Manifest

DEFAULT_SAMPLES: Final = 64
JOB_FILE: Final = "job.json"
SAMPLES_FILE: Final = "x.npy"
LABELS_FILE: Final = "y.npy"
REPORT_FILE: Final = "report.json"
# How the worker ends where the files cannot be compared; its last line says why.
REFUSED: Final = 10


@dataclass(frozen=True, slots=True)
class Named:
    """A file that was named by itself, or as a variant of a release.

    Attributes:
        text: As it was typed.
        path: The .tflite file.
        release: The directory it is of; None for a file by itself.
    """

    text: str
    path: Path
    release: Path | None = None


def parse(text: str, role: str) -> Named:
    """Say which file `text` names: a path, or ``RELEASE_DIR:VARIANT``.

    Args:
        text: What was typed.
        role: ``A`` or ``B``, for errors.

    Raises:
        ConfigError: There is no such file, release or variant.
        ArtifactError: The release is damaged.
    """
    path = sources.existing(text, role)
    if path is not None and path.is_dir():
        raise ConfigError(f"{role} {text} is a directory; {_choices(path)}")
    if path is not None and path.is_file():
        return Named(text, path)
    directory, colon, name = text.rpartition(":")
    folder = sources.existing(directory, role) if colon else None
    if folder is None or not (folder / manifest.MANIFEST_NAME).is_file():
        raise ConfigError(f"{role} {text} does not exist; expected a .tflite file, or RELEASE_DIR:VARIANT")
    found, _ = manifest.verify(folder)
    walkable = [variant.name for variant in found.variants if variant.format == "tflite"]
    if name not in walkable:
        raise ConfigError(
            f"{role} {text}: release {folder} has no .tflite variant {name!r}; it has {', '.join(walkable)}"
        )
    return Named(text, folder / found.variant(name).artifact.file, folder)


def diff(
    a: Named,
    b: Named,
    *,
    data: str | None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    runtime_a: str,
    runtime_b: str,
    options: DataOptions = DataOptions(),  # noqa: B008 - frozen
) -> DiffReport:
    """Walk both files.

    Args:
        a: The reference.
        b: What is held against it.
        data: What `datasets.parse` takes; None for the golden set of the release that `a`, or else `b`, is of.
        samples: How many of the test samples are fed, classes in their shares.
        seed: Which ones.
        runtime_a: What runs `a`, of `walk.RUNTIMES`.
        runtime_b: What runs `b`.
        options: What is said of the data beside its name.

    Raises:
        ConfigError: Neither data nor a release was named.
        DataError: The data cannot be read, or does not fit.
        ModelRefusedError: A file cannot be run, or the two are not of one graph.
        ArtifactError: The release is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="evenfleet-diff-") as name:
        folder = Path(name)
        with NoiseLog(folder / "noise.log").taking():
            opened = [tflite_file.TFLiteFile().open(FileSource(each.path), folder) for each in (a, b)]
            shapes = [model.sample_shape for model in opened]
            if shapes[0] != shapes[1]:
                raise ModelRefusedError(
                    f"A {a.text} takes samples of shape {shapes[0]}, B {b.text} of shape {shapes[1]}; expected files of one graph"
                )
            labelled = _labelled(a, b, data, seed, opened[0], options)
            for model in opened:
                model.checked(labelled)
        chosen = strata.choose(labelled.y_test, samples, seed)
        np.save(folder / SAMPLES_FILE, labelled.x_test[chosen], allow_pickle=False)
        np.save(folder / LABELS_FILE, labelled.y_test[chosen], allow_pickle=False)
        job = {"a": str(a.path), "b": str(b.path), "runtime_a": runtime_a, "runtime_b": runtime_b}
        (folder / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
        return _walked(folder)


def _walked(folder: Path) -> DiffReport:
    done = subprocess.run(
        bound([sys.executable, "-m", "evenfleet_collector.optimize.diff_worker", str(folder)]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return decoded((folder / REPORT_FILE).read_text(encoding="utf-8"))
    if done.returncode < 0:
        raise ModelRefusedError(
            f"the interpreter crashed ({signal.Signals(-done.returncode).name}) while A and B were walked; one of the files is damaged, or hostile"
        )
    said = last_line(done.stdout.strip() or done.stderr, "no reason given")
    raise ModelRefusedError(f"A and B cannot be compared: {said}")


def encoded(report: DiffReport) -> str:
    """Return a report as text; Python's JSON, which unlike the standard's has infinities."""
    return json.dumps(asdict(report))


def decoded(text: str) -> DiffReport:
    """Return what `encoded` was given."""
    return msgspec.convert(json.loads(text), DiffReport)


def _labelled(
    a: Named, b: Named, data: str | None, seed: int, model: OpenedModel, options: DataOptions
) -> LabelledData:
    if data is not None:
        wanted = Wanted(seed=seed, sample_shape=model.sample_shape, options=options)
        return datasets.read(datasets.parse(data), wanted)
    release = a.release or b.release
    if release is None:
        raise ConfigError("--data is missing: A and B are files, and files have no samples of their own")
    found, _ = manifest.load(release)
    if found.task != "classification" or found.golden.labels is None:
        raise ConfigError(f"{release} is of task {found.task}, whose golden set diff does not take; give --data")
    x, y = (_array(release, ref.file) for ref in (found.golden.inputs, found.golden.labels))
    if x.dtype != np.float32 or x.ndim < 2 or y.dtype != np.int64 or not x.shape[:1] == y.shape == (found.golden.n,):
        raise DataError(
            f"the golden set of {release} has {x.dtype} inputs of shape {x.shape} and {y.dtype} labels of shape {y.shape}; "
            f"expected {found.golden.n} float32 samples and as many int64 classes"
        )
    return LabelledData(x, y, x, y)


def _array(release: Path, name: str) -> Any:
    path = release / name
    try:
        with path.open("rb") as file:
            npy.check_header(file, path.stat().st_size, str(path))
        return np.load(path, allow_pickle=False)
    except npy.UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _choices(folder: Path) -> str:
    if not (folder / manifest.MANIFEST_NAME).is_file():
        return "expected a .tflite file, or RELEASE_DIR:VARIANT"
    found: Manifest = manifest.load(folder)[0]
    names = [variant.name for variant in found.variants if variant.format == "tflite"]
    return f"name the variant as {folder}:{names[0] if names else 'VARIANT'}; it has {', '.join(names) or 'none that is a .tflite'}"
