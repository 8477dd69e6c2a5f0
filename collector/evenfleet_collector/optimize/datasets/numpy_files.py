"""``.npy`` files: a pair ``x.npy,y.npy``, or a directory of them named as the arrays of an ``.npz``.

Mapped into memory, not read: what a split or a conversion to float32 takes is copied, the rest stays on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evenfleet_collector.optimize import data
from evenfleet_collector.optimize.data import SPLIT, WHOLE, LabelledData
from evenfleet_collector.optimize.datasets import npy
from evenfleet_collector.optimize.datasets.interface import Wanted
from evenfleet_collector.optimize.sources import FileSource, PairSource, Source, one_line
from evenfleet_shared.errors import DataError


class NumpyFiles:
    """Samples and labels, each in a file."""

    form = "a NumPy pair x.npy,y.npy or a directory with x_train.npy, y_train.npy, x_test.npy and y_test.npy"
    options: tuple[str, ...] = ()

    def takes(self, source: Source) -> bool:
        if isinstance(source, PairSource):
            return True
        return isinstance(source, FileSource) and source.path.is_dir() and bool(_named(source.path))

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        if isinstance(source, PairSource):
            files = {"x": source.x, "y": source.y}
            what = f"DATA {source.x},{source.y}"
        else:
            assert isinstance(source, FileSource)
            files = _named(source.path)
            what = f"DATA {source.path}"
        try:
            total = sum(path.stat().st_size for path in files.values())
        except OSError as error:
            raise DataError(f"{what} cannot be read: {error.strerror}") from None
        if total > wanted.max_bytes:
            raise DataError(f"{what} has {total} bytes, at most {wanted.max_bytes} are read")
        return data.from_arrays({name: _mapped(path) for name, path in files.items()}, what, wanted.seed)


def _named(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.npy" for name in SPLIT + WHOLE if (folder / f"{name}.npy").is_file()}


def _mapped(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            npy.check_header(file, path.stat().st_size, f"DATA {path}")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except npy.UNREADABLE as error:
        raise DataError(f"DATA {path} is not a readable .npy: {one_line(error, with_type=False)}") from None
