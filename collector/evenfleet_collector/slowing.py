"""Really slow a process's children: stopped for 10 of every 20 ms, until this program is ended.

`python -m evenfleet_collector.slowing PID`. The demo plants a latency fault with it, in a device that knows nothing.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Final

import psutil

STOPPED_S: Final = 0.010
RUNNING_S: Final = 0.010
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
        _signal(children, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        _signal(children, signal.SIGCONT)
        time.sleep(RUNNING_S)


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
