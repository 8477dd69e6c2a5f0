"""Read what a process takes of the processor and of memory: /proc/<pid>."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from evenfleet_agent.host.system import ROOT, read_text


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a process: `cpu_s` since it began, its resident memory now."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int, root: Path = ROOT) -> Usage | None:
    """Return what a process takes, None where it has ended or may not be looked at.

    Source:
        proc_pid_stat(5): fields 14 and 15, in clock ticks; they follow the name in parentheses, which may hold any.
    """
    fields = (read_text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    memory = re.search(r"^VmRSS:\s+(\d+) kB$", read_text(root / f"proc/{pid}/status") or "", re.MULTILINE)
    try:
        ticks = int(fields[11]) + int(fields[12])
    except (IndexError, ValueError):
        return None
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(memory[1]) * 1024 if memory else 0)
