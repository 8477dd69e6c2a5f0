"""The older interpreter of .tflite files, `tflite-runtime`: the only one with wheels for 32-bit ARM boards.

2.14, its last version, needs numpy 1: with numpy 2 it can be imported, and fails when an interpreter is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evenfleet_agent.runtimes.interface import Model, Options
from evenfleet_agent.runtimes.interpreter import Package
from evenfleet_shared.manifest import Format


class TFLiteRuntime:
    """`tflite_runtime.interpreter.Interpreter`."""

    name: Final = "tflite"
    formats: Final[tuple[Format, ...]] = ("tflite",)
    install: Final = "pip install tflite-runtime 'numpy<2'  (Python 3.9 to 3.11, best in an environment of its own)"

    def __init__(self) -> None:
        self._package = Package(
            runtime=self.name,
            module="tflite_runtime.interpreter",
            distribution="tflite-runtime",
            install=self.install,
            needs_numpy_1=True,
        )

    def version(self) -> str:
        """See `Runtime`."""
        return self._package.version()

    def check(self) -> str:
        """See `Runtime`."""
        return self._package.check()

    def load(self, artifact: Path, options: Options, sample_shape: tuple[int, ...] | None) -> Model:
        """See `Runtime`."""
        return self._package.load(artifact, options, sample_shape)
