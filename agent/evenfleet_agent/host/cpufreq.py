"""Read how the kernel chooses the processor's frequency: /sys/devices/system/cpu, /sys/firmware/acpi."""

from __future__ import annotations

from pathlib import Path

from evenfleet_agent.host.system import ROOT, find, read_text


def governor(root: Path = ROOT) -> str | None:
    """Return the governors in use, ``performance`` or ``ondemand,schedutil`` for example; None on most virtual machines."""
    places = find(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    found = {text for text in map(read_text, places) if text}
    return ",".join(sorted(found)) or None


def frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the mean frequency of the processors, None where the kernel does not set it.

    What /proc/cpuinfo calls MHz is no substitute: on a virtual machine it is the clock's, whatever the processor does.
    """
    places = find(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    found = []
    for text in map(read_text, places):
        try:
            kilohertz = int(text or "")
        except ValueError:
            continue
        if kilohertz > 0:
            found.append(kilohertz)
    return sum(found) / len(found) / 1e3 if found else None


def power_mode(root: Path = ROOT) -> str | None:
    """Return the platform's power profile, ``balanced`` for example; None where the firmware has none."""
    return read_text(root / "sys/firmware/acpi/platform_profile") or None
