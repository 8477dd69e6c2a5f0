"""LiteRT: Google's maintained interpreter of .tflite files (`ai-edge-litert`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evenfleet_agent.runtimes.interface import Model, Options
from evenfleet_agent.runtimes.interpreter import Package
from evenfleet_shared.manifest import Format


class LiteRT:
    """`ai_edge_litert.interpreter.Interpreter`."""

    name: Final = "litert"
    formats: Final[tuple[Format, ...]] = ("tflite",)
    install: Final = "pip install ai-edge-litert"

    def __init__(self) -> None:
        self._package = Package(
            runtime=self.name,
            module="ai_edge_litert.interpreter",
            distribution="ai-edge-litert",
            install=self.install,
            needs_numpy_1=False,
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
