"""The device's clocks, behind a Protocol, so that what waits can be tried out without waiting."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic_s(self) -> float:
        """Return seconds that never go back, and stand still while the device is suspended."""

    def uptime_s(self) -> float:
        """Return seconds since the device was started, those in which it was suspended too."""

    def wall_s(self) -> float:
        """Return seconds since 1970 by the device's wall clock, right or wrong."""


class SystemClock:
    """The device's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def uptime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        return time.time()
