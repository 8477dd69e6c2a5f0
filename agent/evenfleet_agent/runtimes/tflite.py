"""The older interpreter of .tflite files, `tflite-runtime`: the only one with wheels for 32-bit ARM boards.

2.14, its last version, needs numpy 1: with numpy 2 it can be imported, and fails when an interpreter is built.
"""

from __future__ import annotations

from typing import Final

from evenfleet_agent.runtimes.interpreter import Package

TFLITE: Final = Package(
    name="tflite",
    module="tflite_runtime.interpreter",
    distribution="tflite-runtime",
    install="pip install tflite-runtime 'numpy<2'  (Python 3.9 to 3.11, best in an environment of its own)",
    needs_numpy_1=True,
)
