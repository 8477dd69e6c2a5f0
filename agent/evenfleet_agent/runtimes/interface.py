"""What every runtime looks like to the runner; see the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evenfleet_shared.manifest import Format, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a runtime is told beside the model.

    What has no meaning for it, it ignores, but for `delegate`, of which it then says that it has no such thing.

    Attributes:
        threads: Of the interpreter.
        xnnpack: Let it use its XNNPACK kernels.
        delegate: What shall run the model instead of the CPU: ``gpu``, ``edgetpu``, ``npu``, or a library's path.
        delegate_options: As the delegate's library takes them.
    """

    threads: int = 1
    xnnpack: bool = True
    delegate: str | None = None
    delegate_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Who runs the loaded graph.

    Attributes:
        requested: What was asked for: ``xnnpack``, ``cpu``, or a delegate's name.
        executed: What runs at least one operator of it; ``cpu`` where what was asked for runs none.
        delegated_ratio: The share of the operators that what was asked for runs, read from the loaded graph; None where
            the runtime does not tell.
        fallback_reason: Why not all of them, and what runs the others; always there where `executed` is not `requested`.
    """

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

    def takes(self, delegate: str) -> bool:
        """Return whether there is any sense in asking it for a delegate; asked all the same, it says that it has none."""

    def version(self) -> str:
        """Import the runtime and return its version.

        Raises:
            RuntimeMissingError: It is not installed; the message names the command that mends it.
        """

    def check(self, options: Options) -> Execution:
        """Build a real interpreter, run something small in it and return who ran it.

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
