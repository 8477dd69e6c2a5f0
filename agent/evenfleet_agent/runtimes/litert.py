"""LiteRT: Google's maintained interpreter of .tflite files (`ai-edge-litert`)."""

from __future__ import annotations

from typing import Final

from evenfleet_agent.runtimes.interpreter import Package

LITERT: Final = Package(
    name="litert",
    module="ai_edge_litert.interpreter",
    distribution="ai-edge-litert",
    install="pip install ai-edge-litert",
    needs_numpy_1=False,
)
