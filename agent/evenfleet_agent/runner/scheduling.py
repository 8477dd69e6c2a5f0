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


def waited_within(waited_ms: float, bracket_ms: float, sample_ms: float) -> float:
    """Return how much of a wait surely fell into a sample, in ms.

    The kernel can only be asked before and after: what was waited for in between may have been waited for beside the
    sample. A sample that was relieved of that as well would come out too fast, at the worst as nothing.

    Args:
        waited_ms: Between the two questions.
        bracket_ms: From before the first question to after the second.
        sample_ms: The sample, which lies in between.

    >>> waited_within(4.0, 5.2, 5.0), waited_within(4.0, 9.0, 5.0), waited_within(0.0, 5.2, 5.0)
    (3.8, 0.0, 0.0)
    """
    return round(min(max(0.0, waited_ms - (bracket_ms - sample_ms)), sample_ms), 6)
