"""Read labelled data in whatever form it comes.

    npz.py    numpy_files.py    table.py    images.py    function.py     one form per file, listed in `DATA_FORMATS`
    declared.py    from what is declared and what the model takes to the preprocessing of images
    npy.py         the header of a .npy, before anything of it is believed

A form decides what the arrays are; `data.from_arrays` decides whether they are acceptable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evenfleet_collector.optimize import sources
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.datasets.function import Function
from evenfleet_collector.optimize.datasets.images import Images
from evenfleet_collector.optimize.datasets.interface import DataFormat, DataOptions, Wanted
from evenfleet_collector.optimize.datasets.npz import Npz
from evenfleet_collector.optimize.datasets.numpy_files import NumpyFiles
from evenfleet_collector.optimize.datasets.table import Table
from evenfleet_collector.optimize.sources import PairSource, Source
from evenfleet_shared.errors import ConfigError

# The first that takes a source reads it: a directory that holds no arrays is one of images.
DATA_FORMATS: Final[tuple[DataFormat, ...]] = (Npz(), NumpyFiles(), Table(), Images(), Function())
FORMS: Final = ", ".join(each.form for each in DATA_FORMATS[:-1]) + f", or {DATA_FORMATS[-1].form}"
_NOTHING_SAID: Final = DataOptions()
_MEANINGS: Final = {
    "label_column": "--label-column names a column of a CSV",
    "preprocessing": "preprocessing is declared for images",
}

__all__ = ["DATA_FORMATS", "FORMS", "DataFormat", "DataOptions", "Wanted", "parse", "read"]


def parse(text: str | Path) -> Source:
    """Say what DATA names.

    Raises:
        ConfigError: There is nothing of that name, or a file of another type.

    >>> parse("examples.small_cnn:data").name
    'examples.small_cnn:data'
    """
    source = _pair(str(text)) or sources.parse(text, "DATA", FORMS)
    _format_of(source)
    return source


def read(source: Source, wanted: Wanted) -> LabelledData:
    """Read what DATA names.

    Raises:
        DataError: It cannot be read or is not acceptable.
        ConfigError: There is no such function, or what was said of the data does not fit it.
    """
    taken = _format_of(source)
    for option, meaning in _MEANINGS.items():
        if option not in taken.options and getattr(wanted.options, option) != getattr(_NOTHING_SAID, option):
            raise ConfigError(f"{meaning}, and DATA {source.name} is {taken.form}: leave that out")
    return taken.read(source, wanted)


def _pair(text: str) -> PairSource | None:
    """Return ``x.npy,y.npy`` as a pair; None for anything else, a file with a comma in its name among it."""
    x, comma, y = text.partition(",")
    if not comma or not x.endswith(".npy") or not y.endswith(".npy") or Path(text).exists():
        return None
    paths = [Path(part.strip()).expanduser() for part in (x, y)]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"DATA {path} does not exist; expected two files: x.npy,y.npy")
    return PairSource(*paths)


def _format_of(source: Source) -> DataFormat:
    for each in DATA_FORMATS:
        if each.takes(source):
            return each
    raise ConfigError(f"DATA {source.name}: expected {FORMS}")
