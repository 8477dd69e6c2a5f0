"""An ``.onnx``, converted to a SavedModel by onnx2tf in a process of its own (`onnx_child`).

onnx2tf requires older versions of TensorFlow and numpy than the rest of the project, and sets TensorFlow to the old
Keras; so it never comes into this process, and may live in another environment, named by ``EVENFLEET_ONNX_PYTHON``.
What comes back is held against ONNX's own reference evaluator: converters of layouts are wrong without saying so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from evenfleet_collector.child import bound, last_line
from evenfleet_collector.optimize.models import onnx_child
from evenfleet_collector.optimize.models.interface import MAX_MODEL_BYTES, OpenedModel
from evenfleet_collector.optimize.models.saved_model_files import open_directory
from evenfleet_collector.optimize.sources import FileSource, ModelSource, one_line
from evenfleet_shared.errors import ConfigError, ModelRefusedError, RuntimeMissingError
from evenfleet_shared.manifest import file_digest

PYTHON_VARIABLE: Final = "EVENFLEET_ONNX_PYTHON"
# Without dependencies: onnx2tf pins TensorFlow 2.19 and numpy 1.26, and runs on those that are here.
INSTALL: Final = (
    "pip install --no-deps onnx2tf==1.29.24 onnx==1.19.1 onnx-graphsurgeon==0.5.8 sne4onnx==2.0.1 sng4onnx==2.0.1 "
    "tf-keras==2.21.0"
)
_INSTALLED: Final = "from importlib import metadata; print(sorted(f\"{one.metadata['Name']} {one.version}\" for one in metadata.distributions()))"
_LIMIT_S: Final = 1800
# Sums in another order; a wrong layout is off by far more.
_TOLERANCE_RATIO: Final = 1e-3


class OnnxFile:
    """An ``.onnx`` file."""

    form = "an .onnx file"

    def takes(self, source: ModelSource) -> bool:
        return isinstance(source, FileSource) and source.path.suffix.lower() == ".onnx" and source.path.is_file()

    def open(self, source: ModelSource, work: Path) -> OpenedModel:
        assert isinstance(source, FileSource)
        what = f"MODEL {source.path}"
        size = source.path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelRefusedError(f"{what} has {size} bytes, at most {MAX_MODEL_BYTES} are read")
        folder = work / "onnx"
        folder.mkdir()
        versions = _converted(source.path, folder, what)
        converted = folder / "saved-model"
        (converted / "fingerprint.pb").unlink(missing_ok=True)  # holds a random number
        for lite in converted.glob("*.tflite"):  # of any batch size; ours are made from the SavedModel
            lite.unlink()
        opened = open_directory(converted, what, folder)
        _compare(opened, folder / "probe.npz")
        lineage = {"converter": ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))}
        return replace(opened, digest=file_digest(source.path), lineage=lineage)


def other_environment() -> str:
    """Return what the environment that `PYTHON_VARIABLE` names has installed; empty where none is named.

    What an .onnx becomes depends on it, so what is kept of a build does too.
    """
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            bound([python, "-I", "-c", _INSTALLED]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    return python  # opening the model says what is wrong with it


def _converted(path: Path, folder: Path, what: str) -> dict[str, str]:
    """Have it converted, and return the versions of what did it."""
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    if not Path(python).is_file():
        raise ConfigError(f"{PYTHON_VARIABLE} is {python}, expected the path of a Python that has onnx2tf")
    log = folder / "log.txt"
    code: int | None = None
    try:
        with log.open("wb") as file:
            code = subprocess.run(
                bound([python, onnx_child.__file__, str(path), str(folder)]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT_S,
                check=False,
            ).returncode
        result: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    except subprocess.TimeoutExpired:
        raise ModelRefusedError(f"{what} was not converted within {_LIMIT_S} s") from None
    except (OSError, ValueError):
        printed = log.read_bytes()[-4096:].decode("utf-8", "replace")
        raise ModelRefusedError(
            f"{what} cannot be converted: onnx2tf ended with code {code} ({last_line(printed, limit=200)})"
        ) from None
    if "absent" in result:
        raise RuntimeMissingError(
            f"converting {path.name} needs {result['absent']}, which {python} does not have; install it with: {INSTALL}; "
            f"or name the Python of another environment that has onnx2tf in {PYTHON_VARIABLE}"
        )
    if "refused" in result:
        raise ModelRefusedError(
            f"{what} cannot be converted: {one_line(RuntimeError(result['refused']), with_type=False)}"
        )
    versions: dict[str, str] = result["versions"]
    return versions


def _compare(opened: OpenedModel, probe: Path) -> None:
    """Hold what was converted against what ONNX itself makes of the same samples."""
    with np.load(probe) as stored:
        x, wanted = stored["x"], stored["y"]
    try:
        found = np.concatenate([opened.run(x[i : i + 1]) for i in range(len(x))])
    except Exception as error:  # noqa: BLE001 - the model decides what it trips over
        raise ModelRefusedError(f"{opened.what} was converted, but does not run: {type(error).__name__}") from None
    if found.shape != wanted.shape:
        raise ModelRefusedError(
            f"{opened.what} gives {wanted.shape[1:]} values per sample, converted {found.shape[1:]}"
        )
    largest = float(np.abs(found - wanted).max())
    allowed = _TOLERANCE_RATIO * max(1.0, float(np.abs(wanted).max()))
    if not largest <= allowed:
        raise ModelRefusedError(
            f"{opened.what} was converted wrongly: its outputs differ from ONNX's own by {largest:.3g}, "
            f"expected at most {allowed:.3g}"
        )
