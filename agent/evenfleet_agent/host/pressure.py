"""Read how long something had to wait for processor, memory or disk: /proc/pressure (PSI)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from evenfleet_agent.host.system import ROOT, read_text

Resource = Literal["cpu", "memory", "io"]
RESOURCES: Final[tuple[Resource, ...]] = ("cpu", "memory", "io")


def waited_s(resource: Resource, root: Path = ROOT) -> float | None:
    """Return the seconds since boot in which something waited for a resource; None where the kernel does not count them.

    Source:
        Documentation/accounting/psi.rst of the Linux kernel: the line `some`, its total in microseconds.
    """
    text = read_text(root / "proc/pressure" / resource) or ""
    found = re.search(r"^some .*\btotal=(\d+)", text, re.MULTILINE)
    return int(found[1]) / 1e6 if found else None


def pressure_ratio(before_s: float | None, after_s: float | None, elapsed_s: float) -> float | None:
    """Return the share of the time between two looks in which something waited.

    >>> pressure_ratio(10.0, 10.5, 2.0), pressure_ratio(None, 10.5, 2.0)
    (0.25, None)
    """
    if before_s is None or after_s is None or elapsed_s <= 0.0:
        return None
    return min(1.0, max(0.0, (after_s - before_s) / elapsed_s))
