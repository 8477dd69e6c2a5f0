"""The older interpreter of .tflite files, `tflite-runtime`: the only one with wheels for 32-bit ARM boards.

2.14, its last version, needs numpy 1: with numpy 2 it can be imported, and fails when an interpreter is built.
"""

from __future__ import annotations

from typing import Final

from evenfleet_agent import engines
from evenfleet_agent.runtimes.interface import Runtime
from evenfleet_agent.runtimes.interpreter import Package

RUNTIME: Final[Runtime] = Package(
    engine=engines.by_name("tflite"),
    module="tflite_runtime.interpreter",
    install="pip install tflite-runtime 'numpy<2'  (Python 3.9 to 3.11, best in an environment of its own)",
    needs_numpy_1=True,
)
