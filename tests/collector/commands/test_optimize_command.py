"""`evenfleet optimize` and `diff` need the packages of the extra `optimize`, and no web stack."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for name in ("fastapi", "httpx", "nacl", "nats", "paho", "sqlite_utils", "uvicorn"):
    sys.modules[name] = None
import evenfleet_collector.cli
from evenfleet_collector.commands import diff, optimize, optimized
"""


def test_building_needs_nothing_of_the_collectors_web_stack() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
