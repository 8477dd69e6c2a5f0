"""Read how often the kernel has killed a process for want of memory: /proc/vmstat, and the control group's own count."""

from __future__ import annotations

import re
from pathlib import Path

from evenfleet_agent.host.system import ROOT, read_text


def kills(root: Path = ROOT) -> int | None:
    """Return the kills since boot, of the whole machine; None where the kernel does not tell (before 4.13).

    In a container with a memory limit of its own its control group's kills are counted by the machine's kernel as well.
    """
    found = re.search(r"^oom_kill (\d+)$", read_text(root / "proc/vmstat", 65_536) or "", re.MULTILINE)
    return int(found[1]) if found else None
