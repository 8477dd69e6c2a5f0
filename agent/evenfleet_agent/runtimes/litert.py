"""LiteRT: Google's maintained interpreter of .tflite files (`ai-edge-litert`)."""

from __future__ import annotations

from typing import Final

from evenfleet_agent import engines
from evenfleet_agent.runtimes.interface import Runtime
from evenfleet_agent.runtimes.interpreter import Package

RUNTIME: Final[Runtime] = Package(
    engine=engines.by_name("litert"),
    module="ai_edge_litert.interpreter",
    install="pip install ai-edge-litert",
    needs_numpy_1=False,
)
