"""A CSV with a header: one sample a row, one column for the label, numbers in all others.

Labels are whole numbers from 0, or text; text gets numbers in sorted order, as folders of images do. A row is laid
out in the shape that the model takes where that has as many values: 784 columns for a model of 28 × 28 × 1.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, Final

import numpy as np

from evenfleet_collector.optimize import data
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.datasets.interface import Wanted
from evenfleet_collector.optimize.sources import FileSource, Source, one_line
from evenfleet_shared.errors import ConfigError, DataError

LABEL_NAMES: Final = ("label", "class", "target")
_DELIMITERS: Final = (",", ";", "\t")
# Of the longest header line that is looked at to tell the delimiter.
_HEADER_BYTES: Final = 1 << 20


class Table:
    """UTF-8, with a comma, a semicolon or a tab between columns."""

    form = "a .csv file with a header"
    options: tuple[str, ...] = ("label_column",)

    def takes(self, source: Source) -> bool:
        return isinstance(source, FileSource) and source.path.is_file() and source.path.suffix.lower() == ".csv"

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        assert isinstance(source, FileSource)
        what = f"DATA {source.path}"
        try:
            with source.path.open(encoding="utf-8-sig", newline="") as file:
                delimiter = _delimiter(file.readline(_HEADER_BYTES))
                file.seek(0)
                rows = csv.reader(file, delimiter=delimiter, strict=True)
                values, labels, columns = _columns(rows, what, wanted)
        except OSError as error:
            raise DataError(f"{what} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise DataError(f"{what} is not a readable CSV: {one_line(error, with_type=False)}") from None
        x = np.frombuffer(values, dtype=np.float32).reshape(len(labels), columns)
        numbers, names = _classes(labels, what)
        labelled = data.from_arrays({"x": _shaped(x, wanted), "y": numbers}, what, wanted.seed)
        return replace(labelled, class_names=names)


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _columns(rows: Any, what: str, wanted: Wanted) -> tuple[array[float], list[str], int]:
    """Return all values row by row, the labels as text, and how many columns of values there are."""
    header = [name.strip() for name in next(rows, [])]
    if not header:
        raise DataError(f"{what} is empty; expected a header, and one sample a row")
    if all(_is_number(name) for name in header):
        raise DataError(f"{what} has no header: its first row holds numbers ({', '.join(header[:3])}, …)")
    at = _label_column(header, what, wanted.options.label_column)
    names = [name for index, name in enumerate(header) if index != at]
    if not names:
        raise DataError(f"{what} has the column {header[at]} alone; expected columns of numbers and one of labels")
    values: array[float] = array("f")
    labels: list[str] = []
    for line, row in _whole_rows(rows, len(header), what):
        label = row.pop(at).strip()
        if not label or label.lower() == "nan":
            raise DataError(f"{what}, line {line}: no label in the column {header[at]}")
        labels.append(label)
        try:
            values.extend(map(float, row))
        except (ValueError, OverflowError):
            _name_bad_value(row, names, f"{what}, line {line}")
        last = values[-len(names) :]
        if not all(map(math.isfinite, last)):
            _name_bad_value(row, names, f"{what}, line {line}")
        if len(values) * values.itemsize > wanted.max_bytes:
            raise DataError(
                f"{what} has more than {wanted.max_bytes} bytes of numbers by line {line}; more is not read"
            )
    if not labels:
        raise DataError(f"{what} has a header and no rows")
    return values, labels, len(names)


def _whole_rows(rows: Any, width: int, what: str) -> Iterator[tuple[int, list[str]]]:
    for row in rows:
        if not row:  # an empty line
            continue
        if len(row) != width:
            raise DataError(f"{what}, line {rows.line_num}: {len(row)} columns, the header has {width}")
        yield rows.line_num, row


def _label_column(header: list[str], what: str, asked: str | None) -> int:
    if asked is not None:
        if header.count(asked) != 1:
            found = "none" if asked not in header else str(header.count(asked))
            raise ConfigError(
                f"{what} has {found} of the columns called {asked!r}, expected one; it has {', '.join(header[:20])}"
            )
        return header.index(asked)
    lowered = [name.lower() for name in header]
    for name in LABEL_NAMES:
        if lowered.count(name) > 1:
            raise DataError(f"{what} has {lowered.count(name)} columns called {name}; name one with --label-column")
        if name in lowered:
            return lowered.index(name)
    return len(header) - 1


def _name_bad_value(row: list[str], names: list[str], where: str) -> None:
    for name, text in zip(names, row, strict=True):
        if not text.strip():
            raise DataError(f"{where}: the column {name} is empty; fill in or leave out samples with missing values")
        if not _is_number(text):
            raise DataError(f"{where}: the column {name} holds {text.strip()[:40]!r}, expected a number")
        if not math.isfinite(float(text)) or abs(float(text)) > float(np.finfo(np.float32).max):
            raise DataError(f"{where}: the column {name} holds {text.strip()}, expected a finite float32 number")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes(labels: list[str], what: str) -> tuple[Any, tuple[str, ...]]:
    """Return classes by row, and their names where labels are text."""
    if all(map(_is_number, labels)):
        return np.array([float(label) for label in labels]), ()
    names = sorted(set(labels))
    if len(names) < 2:
        raise DataError(f"{what} holds only the class {names[0]}; accuracy needs at least two classes")
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[label] for label in labels]), tuple(names)


def _shaped(x: Any, wanted: Wanted) -> Any:
    shape = wanted.sample_shape
    if shape is None or len(shape) < 2 or None in shape:
        return x
    sides = tuple(side for side in shape if side is not None)
    return x.reshape(len(x), *sides) if prod(sides) == x.shape[1] else x
