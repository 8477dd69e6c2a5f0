"""Read how the processors' time was spent, the hypervisor's share included: /proc/stat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evenfleet_agent.host.system import ROOT, read_text

# The eighth number of the line. What follows it, guest time, is counted within the first two.
_STEAL = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorTime:
    """Of all processors since boot, in the kernel's ticks."""

    steal: int
    total: int


def processor_time(root: Path = ROOT) -> ProcessorTime | None:
    """Return the counters now, None where the kernel does not tell them, or none of stolen time.

    Source:
        proc_stat(5).
    """
    words = (read_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    if not words or words[0] != "cpu":
        return None
    try:
        ticks = [int(word) for word in words[1 : _STEAL + 2]]
    except ValueError:
        return None
    return ProcessorTime(steal=ticks[_STEAL], total=sum(ticks)) if len(ticks) > _STEAL else None


def steal_ratio(before: ProcessorTime | None, after: ProcessorTime | None) -> float | None:
    """Return the share of the time between two looks in which the hypervisor ran others; None if not a tick passed.

    >>> steal_ratio(ProcessorTime(steal=5, total=100), ProcessorTime(steal=15, total=300))
    0.05
    """
    if before is None or after is None or after.total <= before.total:
        return None
    # The counter of stolen time goes back on some hosts, when a guest is moved.
    return min(1.0, max(0, after.steal - before.steal) / (after.total - before.total))
