"""What every runtime looks like to the runner; see the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evenfleet_shared.manifest import Format, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a runtime is told beside the model; what has no meaning for it, it ignores."""

    threads: int = 1
    xnnpack: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Who runs the loaded graph; `delegated_ratio` is the accelerator's share of its operators, None if unknown."""

    requested: str
    executed: str
    delegated_ratio: float | None
    fallback_reason: str | None


class Model(Protocol):
    """A loaded model.

    `inputs` and `outputs` have the sizes that are really run, with -1 where each call may have its own. `max_batch`
    is how many samples one call takes: 1, unless the first size is free.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def execution(self) -> Execution: ...

    @property
    def max_batch(self) -> int: ...

    def prepare(self, values: Sequence[npt.NDArray[Any]]) -> Any:
        """Return `values`, one array per input with the input's number of elements, as `feed` takes them.

        Values of an input's own integer type are taken as they are, all others as real numbers to be quantised.
        """

    def feed(self, prepared: Any) -> None:
        """Set the inputs of the next `invoke`."""

    def invoke(self) -> None:
        """Run the model once.

        Raises:
            ModelRefusedError: It cannot be run after all.
        """

    def read(self) -> list[npt.NDArray[np.float32]]:
        """Return the outputs of the last `invoke` as real numbers."""


class Runtime(Protocol):
    """An interpreter that may be installed here."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[Format, ...]: ...

    @property
    def module(self) -> str:
        """Return the Python module that it is."""

    @property
    def install(self) -> str:
        """Return the command that installs it."""

    def version(self) -> str:
        """Import the runtime and return its version.

        Raises:
            RuntimeMissingError: It is not installed; the message names the command that mends it.
        """

    def check(self) -> str:
        """Build a real interpreter, run something small in it and return its version.

        Raises:
            RuntimeMissingError: It is not usable; the message names the command that mends it.
        """

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> Model:
        """Load a model.

        Args:
            artifact: A file, or for a SavedModel its directory.
            options: For the interpreter.
            sample_shape: One sample's sizes, to settle those that the model leaves open; None makes each of them 1.

        Raises:
            RuntimeMissingError: The runtime is not usable.
            ModelRefusedError: It cannot run this model.
        """
