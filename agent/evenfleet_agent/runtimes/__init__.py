"""What can run a model: one runtime per file, one Protocol (`interface`); the visible tuple is `engines.ENGINES`.

Only the runner's subprocess loads models; importing this package loads no interpreter and no numpy, so that the
command line can ask a runtime. A new one is a file here, with a `RUNTIME`, and a line in `engines.ENGINES`.

* A runtime says `RuntimeMissingError` when it is not usable as installed and `ModelRefusedError` when it is and cannot
  run the model; everything else it raises is a bug or a broken device.
* Values go in and come out as real numbers: a runtime quantises and dequantises by what the model says.
* `Model.invoke` runs the model and nothing else: it is what gets timed.
* `Model.execution` is what can be proved of who runs the loaded graph. A delegate that cannot be had, or refuses the model,
  leaves it to the CPU, with the reason: never an error, and never silently.
"""

from __future__ import annotations

import importlib
from typing import Final

from evenfleet_agent.engines import ENGINES, Engine
from evenfleet_agent.runtimes.interface import Runtime
from evenfleet_shared.errors import ConfigError
from evenfleet_shared.manifest import Format


def _runtime(engine: Engine) -> Runtime:
    found: Runtime = importlib.import_module(f"{__name__}.{engine.file}").RUNTIME
    return found


RUNTIMES: Final = tuple(map(_runtime, ENGINES))


def by_name(name: str) -> Runtime:
    """Return the runtime called `name`.

    Raises:
        ConfigError: There is none.

    >>> by_name("litert").formats
    ('tflite',)
    """
    for runtime in RUNTIMES:
        if runtime.name == name:
            return runtime
    raise ConfigError(f"unknown runtime {name!r}; known here: {', '.join(runtime.name for runtime in RUNTIMES)}")


def for_format(model_format: Format) -> tuple[Runtime, ...]:
    """Return the runtimes that take a format, the preferred one first."""
    return tuple(runtime for runtime in RUNTIMES if model_format in runtime.formats)
