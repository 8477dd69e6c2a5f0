"""What the agent and the collector agree on: topics, messages, the release manifest, the measures.

Stands on nothing but the standard library and msgspec, so that a supervisor on a small board can load all of it.
"""

__version__ = "0.1.0"
