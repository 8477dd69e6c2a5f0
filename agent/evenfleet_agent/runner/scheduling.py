"""Read how long this thread has waited for a processor while it could have run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")


def waited_ms(file: Path = _SCHEDSTAT) -> float | None:
    """Return the milliseconds since the thread began, None where the kernel does not tell.

    Time in which the process was stopped, or asleep, is no waiting: it could not have run.

    Source:
        Documentation/scheduler/sched-stats.rst of the Linux kernel: the second of three numbers, in nanoseconds.
    """
    try:
        return int(file.read_text(encoding="ascii").split()[1]) / 1e6
    except (OSError, ValueError, IndexError):
        return None
