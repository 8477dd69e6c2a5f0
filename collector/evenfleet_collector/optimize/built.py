"""A variant that was built and run on the test samples: its artifact, what the file says of itself, and what it answered.

Kept in an entry of the cache, and read from there without TensorFlow.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize.data import Labels, Samples
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared.manifest import Calibration, Format, TensorSpec

_FACTS: Final = "facts.json"
_OUTPUTS: Final = "outputs.npy"
_GZIP_LEVEL: Final = 9
_GZIP: Final = 16 + zlib.MAX_WBITS
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an artifact: the fields of `manifest.Variant`, its size after gzip, and what its making says."""

    file: str
    format: Format
    input: TensorSpec
    output: TensorSpec
    compressed_bytes: int
    parameters: int | None = None
    macs: int | None = None
    operators: tuple[str, ...] = ()
    min_runtime_version: str | None = None
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Built:
    """A variant with its answers.

    Attributes:
        recipe: What it was made by.
        artifact: The file.
        facts: What is known of it.
        outputs: Dequantised scores of the test samples, shape ``(n, classes)``.
    """

    recipe: Recipe
    artifact: Path
    facts: Facts
    outputs: Samples

    @cached_property
    def predictions(self) -> Labels:
        """Return the class of each test sample, shape ``(n,)``."""
        predictions: Labels = self.outputs.argmax(axis=1)
        return predictions

    def correct(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Return which test samples it gets right, shape ``(n,)``."""
        correct: npt.NDArray[np.bool_] = self.predictions == labels
        return correct


def write(folder: Path, facts: Facts, outputs: Samples) -> None:
    """Write what is known beside an artifact that lies in `folder` already."""
    (folder / _FACTS).write_bytes(msgspec.json.encode(facts))
    np.save(folder / _OUTPUTS, outputs, allow_pickle=False)


def read(folder: Path, recipe: Recipe) -> Built:
    """Read what `write` wrote."""
    facts = msgspec.json.decode((folder / _FACTS).read_bytes(), type=Facts)
    outputs: Any = np.load(folder / _OUTPUTS, allow_pickle=False)
    return Built(recipe=recipe, artifact=folder / facts.file, facts=facts, outputs=outputs)


def compressed_size(path: Path) -> int:
    """Return a file's bytes after gzip at its strongest, which is what a transfer or a flash image may cost."""
    gzip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    size_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size_bytes += len(gzip.compress(chunk))
    return size_bytes + len(gzip.flush())
