"""What can run a model, by name: one visible tuple, which everything that names a runtime reads.

Decides nothing and loads nothing heavy, so that the configuration, the command line and a download's short-lived child
can name what only the runner's subprocess imports. A new runtime is a file in `runtimes` and a line in `ENGINES`.

* The order is that of preference, and that in which a person is told of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from evenfleet_shared.manifest import Format


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime that there may be.

    Attributes:
        name: What the configuration, the command line and every result call it.
        file: The module in `runtimes` that has it as ``RUNTIME``.
        formats: The artifacts that it loads.
        package: The distribution whose operators `operators` knows; None where it runs no .tflite files.
    """

    name: str
    file: str
    formats: tuple[Format, ...]
    package: str | None = None


ENGINES: Final = (
    Engine("litert", "litert", ("tflite",), "ai-edge-litert"),
    Engine("tflite", "tflite", ("tflite",), "tflite-runtime"),
    Engine("litert-compiled", "compiled", ("tflite",), "ai-edge-litert"),
    Engine("tensorflow", "tensorflow", ("saved_model",)),
    Engine("onnx", "onnx", ("onnx",)),
)
NAMES: Final = tuple(engine.name for engine in ENGINES)

# What may run a model in the CPU's stead beside a library given by its path.
GPU: Final = "gpu"
EDGE_TPU: Final = "edgetpu"
NPU: Final = "npu"
DELEGATES: Final = (GPU, EDGE_TPU, NPU)

if TYPE_CHECKING:
    Name = str
else:
    # Settings are checked against it, and what is refused is told what there is.
    Name = Literal[NAMES]


def by_name(name: str) -> Engine:
    """Return the one called `name`, which there is.

    >>> by_name("onnx").formats
    ('onnx',)
    """
    return next(engine for engine in ENGINES if engine.name == name)
