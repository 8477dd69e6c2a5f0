"""What a format of labelled data is, and what the user and the model ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from evenfleet_collector.optimize.data import MAX_DATA_BYTES, LabelledData
from evenfleet_collector.optimize.datasets.declared import ImageSettings
from evenfleet_collector.optimize.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What is said of the data beside its name.

    Attributes:
        label_column: Of a CSV; None for the first of `table.LABEL_NAMES`, or else the last column.
        preprocessing: What becomes of images.
    """

    label_column: str | None = None
    preprocessing: ImageSettings = field(default_factory=ImageSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a format is asked for.

    Attributes:
        seed: Splits data that comes in one piece.
        sample_shape: What the model takes, batch aside, None where it takes any size; None for a model that does not say.
        options: What the user said.
        max_bytes: More is not read into memory.
    """

    seed: int
    sample_shape: tuple[int | None, ...] | None = None
    options: DataOptions = field(default_factory=DataOptions)
    max_bytes: int = MAX_DATA_BYTES


class DataFormat(Protocol):
    """One form that DATA may have: one file, and one line in `datasets.DATA_FORMATS`."""

    @property
    def form(self) -> str:
        """Return what it is called where the forms are listed."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """Return the fields of `DataOptions` that it heeds."""
        ...

    def takes(self, source: Source) -> bool:
        """Say whether this is the one to read `source`, by name and kind, without opening it."""
        ...

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        """Read and check.

        Raises:
            DataError: It cannot be read or is not acceptable.
            ConfigError: There is no such function.
        """
        ...
