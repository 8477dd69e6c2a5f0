"""Print the highest version of every TFLite operator that an interpreter has, as `evenfleet_agent.operators` lists them.

    python bench/operator_versions.py MODULE        ai_edge_litert.interpreter or tflite_runtime.interpreter

Run it with the Python that has the interpreter; nothing else is needed. It asks by building interpreters of files that
name one operator each: one that lacks it says so before it looks at anything else.
"""

from __future__ import annotations

import base64
import importlib
import json
import struct
import sys
from collections.abc import Callable

OPERATORS = 210
HIGHEST_VERSION = 20
CUSTOM = 32  # has no versions to ask for

# One tensor, which is input and output, and the code of one operator, whose three numbers are at the end.
_MODEL = bytearray(
    base64.b64decode(
        "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAAhAAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAMAAgABAAM"
        "AAAAEAAAABAAAAAUAAAAGAAAAAAAAAABAAAAAAAAAAEAAAAAAAAAAQAAABAAAAAMAAwACAAAAAAABAAMAAAACAAAAAwAAAABAAAAeAAAAAEA"
        "AAABAAAAAQAAABAAAAAMABAADwAAAAgABAAMAAAAiHdmVUQzIhEAAABV"
    )
)
_BUILTIN, _VERSION, _OLD_BUILTIN = 192, 196, 203
_LACKING = ("Didn't find op", "Op builtin_code out of range")


def model(builtin: int, version: int) -> bytes:
    """Return a .tflite file that names one operator."""
    content = bytearray(_MODEL)
    struct.pack_into("<ii", content, _BUILTIN, builtin, version)
    struct.pack_into("<b", content, _OLD_BUILTIN, min(builtin, 127))
    return bytes(content)


def highest_versions(module: str) -> dict[int, int]:
    """Return the highest version by the operator's number; an operator that the interpreter lacks is left out."""
    interpreter = importlib.import_module(module).Interpreter
    found: dict[int, int] = {}
    for builtin in range(OPERATORS):
        if builtin != CUSTOM:
            known = [version for version in range(1, HIGHEST_VERSION + 1) if _has(interpreter, model(builtin, version))]
            found |= {builtin: known[-1]} if known else {}
    return found


def _has(interpreter: Callable[..., object], content: bytes) -> bool:
    try:
        interpreter(model_content=content)
    except ValueError as error:
        if any(words in str(error) for words in _LACKING):
            return False
        raise
    return True


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(json.dumps(highest_versions(sys.argv[1])))
