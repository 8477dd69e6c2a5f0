"""Really slow a process's children: stopped for 10 of every 20 ms, until this program is ended.

`python -m evenfleet_collector.slowing PID`. The demo plants a latency fault with it, in a device that knows nothing.

A child that waits for a file lock is left alone: a stop cannot slow it, and each would send it to the end of the queue for
its turn to measure, where it would never get to the head.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Final

import psutil

STOPPED_S: Final = 0.010
RUNNING_S: Final = 0.010
LOCKS: Final = Path("/proc/locks")
_LOOK_EVERY: Final = 50


def main() -> None:
    """Run until SIGTERM; no child is left stopped."""
    parent = psutil.Process(int(sys.argv[1]))
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    children: list[psutil.Process] = []
    beat = 0
    while not ending:
        if beat % _LOOK_EVERY == 0:
            children = _children(parent)
        beat += 1
        waiting = waiting_for_locks(LOCKS.read_text(encoding="ascii"))
        running = [child for child in children if child.pid not in waiting]
        _signal(running, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        _signal(running, signal.SIGCONT)
        time.sleep(RUNNING_S)


def waiting_for_locks(locks: str) -> set[int]:
    r"""Return the processes that wait for a file lock that another holds.

    Args:
        locks: The text of ``/proc/locks``, in which a waiter's line has an arrow behind its number.

    >>> waiting_for_locks("1: FLOCK ADVISORY WRITE 12 fe:00:9 0 EOF\n1: -> FLOCK ADVISORY WRITE 34 fe:00:9 0 EOF")
    {34}
    """
    rows = (line.split() for line in locks.splitlines())
    return {int(words[5]) for words in rows if len(words) > 5 and words[1] == "->"}


def _children(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return list(parent.children())
    except psutil.NoSuchProcess:
        sys.exit(0)


def _signal(children: list[psutil.Process], number: signal.Signals) -> None:
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:  # noqa: PERF203 - it ended between two looks
            continue


if __name__ == "__main__":
    main()
