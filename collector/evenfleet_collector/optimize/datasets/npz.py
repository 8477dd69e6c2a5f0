"""An ``.npz``: a zip of arrays by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from evenfleet_collector.optimize import data
from evenfleet_collector.optimize.data import SPLIT, WHOLE, LabelledData
from evenfleet_collector.optimize.datasets import npy
from evenfleet_collector.optimize.datasets.interface import Wanted
from evenfleet_collector.optimize.sources import FileSource, Source, one_line
from evenfleet_shared.errors import DataError


class Npz:
    """Arrays ``x_train, y_train, x_test, y_test``, or ``x, y``."""

    form = "an .npz file"
    options: tuple[str, ...] = ()

    def takes(self, source: Source) -> bool:
        return isinstance(source, FileSource) and source.path.is_file() and source.path.suffix.lower() == ".npz"

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        assert isinstance(source, FileSource)
        path = source.path
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(archive, path, wanted.max_bytes)
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files if name in SPLIT + WHOLE}
        except (*npy.UNREADABLE, zipfile.BadZipFile) as error:
            # RuntimeError and NotImplementedError: encrypted, or packed by an unknown method.
            raise DataError(f"DATA {path} is not a readable .npz: {one_line(error, with_type=False)}") from None
        return data.from_arrays(arrays, f"DATA {path}", wanted.seed)


def _check_members(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> None:
    """Refuse what would unpack to more than `max_bytes`, or whose header promises other than is there."""
    members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") in SPLIT + WHOLE]
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise DataError(f"DATA {path} unpacks to {total} bytes, at most {max_bytes} are read")
    for member in members:
        with archive.open(member) as file:
            npy.check_header(file, member.file_size, f"DATA {path}: {member.filename}")
