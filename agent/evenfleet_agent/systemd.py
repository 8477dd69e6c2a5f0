"""Tell the service manager how the agent is: ready, alive, stopping. Does nothing where there is none.

A service manager that hears nothing for its watchdog's time kills the agent and starts it again; it is told at every turn
of the loop, so what it notices is a loop that hangs.

Source:
    sd_notify(3): datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """The one that started this process, if it wants to hear."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address else None

    def ready(self, status: str) -> None:
        """The agent has started."""
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """The loop turns."""
        if self.watchdog_s is not None:
            self._tell("WATCHDOG=1")

    def status(self, status: str) -> None:
        """Show a line in the service's status."""
        self._tell(f"STATUS={status}")

    def stopping(self) -> None:
        """The agent was told to stop and is doing so."""
        self._tell("STOPPING=1")

    def _tell(self, lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as out:
                out.sendto(lines.encode(), self._address)
        except OSError:
            pass  # it will notice that it hears nothing; nobody else could be told


def _address(text: str) -> str | None:
    if not text.startswith(("/", "@")):
        return None
    # "@" stands for the zero byte of a name that is not in the file system.
    return "\0" + text[1:] if text.startswith("@") else text


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environment["WATCHDOG_USEC"])
        pid = int(environment.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None
