"""Say how the machine was while something was measured: two looks, and what lies between them.

Reads what the modules of one source each read. Leaves judging it to whoever sees the window.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from evenfleet_agent.host import cpufreq, pressure, processor, thermal
from evenfleet_agent.host.processor import ProcessorTime
from evenfleet_agent.host.system import ROOT
from evenfleet_agent.host.thermal import Throttling
from evenfleet_shared.messages import Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The machine at one moment; `at_s` is on the monotonic clock. Absent is None, never zero."""

    at_s: float
    governor: str | None
    frequency_mhz: float | None
    temperature_c: float | None
    throttling: Throttling
    processor_time: ProcessorTime | None
    cpu_waited_s: float | None
    memory_waited_s: float | None
    io_waited_s: float | None

    @property
    def under_voltage(self) -> bool | None:
        """Return whether the supply is too weak right now."""
        return self.throttling.under_voltage


def look(root: Path = ROOT) -> Look:
    """Look at the machine now."""
    waited_s = {resource: pressure.waited_s(resource, root) for resource in pressure.RESOURCES}
    return Look(
        at_s=time.monotonic(),
        governor=cpufreq.governor(root),
        frequency_mhz=cpufreq.frequency_mhz(root),
        temperature_c=thermal.hottest_c(root),
        throttling=thermal.throttling(root),
        processor_time=processor.processor_time(root),
        cpu_waited_s=waited_s["cpu"],
        memory_waited_s=waited_s["memory"],
        io_waited_s=waited_s["io"],
    )


def between(before: Look, after: Look) -> Conditions:
    """Return the conditions from one look to a later one; frequency and temperature are the later one's."""
    elapsed_s = after.at_s - before.at_s
    return Conditions(
        steal_ratio=processor.steal_ratio(before.processor_time, after.processor_time),
        cpu_pressure_ratio=pressure.pressure_ratio(before.cpu_waited_s, after.cpu_waited_s, elapsed_s),
        memory_pressure_ratio=pressure.pressure_ratio(before.memory_waited_s, after.memory_waited_s, elapsed_s),
        io_pressure_ratio=pressure.pressure_ratio(before.io_waited_s, after.io_waited_s, elapsed_s),
        frequency_mhz=after.frequency_mhz,
        temperature_c=after.temperature_c,
        under_voltage=thermal.under_voltage(before.throttling, after.throttling),
    )


def throttled(before: Look, after: Look) -> bool | None:
    """Return whether heat or a weak supply held the processor back in between; None where the machine does not tell."""
    return thermal.throttled(before.throttling, after.throttling)
