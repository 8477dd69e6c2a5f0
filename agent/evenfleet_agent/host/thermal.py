"""Read temperatures, and whether heat or a weak supply holds the processor back: /sys.

What a machine does not tell is None: a virtual machine without sensors is not at 0 °C and not known to run unthrottled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_agent.host.system import ROOT, find, read_text

# Raspberry Pi firmware, `vcgencmd get_throttled`: under-voltage, frequency capped, throttled, soft temperature limit, now.
_PI_NOW: Final = 0b1111
_PI_UNDER_VOLTAGE: Final = 0b0001
_PI_THROTTLED: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_COLDEST_C: Final = -60.0
_HOTTEST_C: Final = 250.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """One look at the throttle indicators.

    `flags` holds the firmware's, of now; `events` counts how often the processor was throttled since boot. `alarm` is
    that of a supply monitor, for kernels that tell the firmware's voltage flag only there.
    """

    flags: int | None
    events: int | None
    alarm: bool | None = None

    @property
    def under_voltage(self) -> bool | None:
        """Return whether the supply is too weak now, None where nothing watches it."""
        if self.flags is not None:
            return self.flags & _PI_UNDER_VOLTAGE != 0
        return self.alarm


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Return the temperature of each thermal zone by its type, empty where there are none; the hotter one of two alike."""
    found: dict[str, float] = {}
    for zone in find(root / "sys/class/thermal", "thermal_zone*"):
        name, text = read_text(zone / "type"), read_text(zone / "temp")
        try:
            degrees = int(text or "") / 1000.0
        except ValueError:
            continue
        # A broken sensor reads as 2147483 °C or -274 °C, and would be the hottest zone.
        if name and _COLDEST_C <= degrees <= _HOTTEST_C:
            found[name] = max(degrees, found.get(name, degrees))
    return found


def hottest_c(root: Path = ROOT) -> float | None:
    """Return the temperature of the hottest zone, None where there is none."""
    return max(temperatures_c(root).values(), default=None)


def throttling(root: Path = ROOT) -> Throttling:
    """Look at the indicators now."""
    flags = _integer(read_text(root / _PI_THROTTLED), base=16)
    counters = find(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for count in (_integer(read_text(path)) for path in counters) if count is not None]
    return Throttling(flags=flags, events=sum(counts) if counts else None, alarm=_supply_alarm(root))


def throttled(before: Throttling, after: Throttling) -> bool | None:
    """Return whether the processor was held back between two looks; None where the machine does not tell.

    >>> throttled(Throttling(flags=None, events=3), Throttling(flags=None, events=5))
    True
    >>> throttled(Throttling(flags=None, events=None), Throttling(flags=None, events=None)) is None
    True
    """
    known = [look.flags & _PI_NOW != 0 for look in (before, after) if look.flags is not None]
    if before.events is not None and after.events is not None:
        known.append(after.events > before.events)
    return any(known) if known else None


def under_voltage(before: Throttling, after: Throttling) -> bool | None:
    """Return whether the supply was too weak at one of two looks; None where nothing watches it.

    >>> under_voltage(Throttling(flags=0x1, events=None), Throttling(flags=0x0, events=None))
    True
    """
    known = [look.under_voltage for look in (before, after) if look.under_voltage is not None]
    return any(known) if known else None


def _supply_alarm(root: Path) -> bool | None:
    """Return the alarm of the Raspberry Pi's supply monitor (the kernel's driver `rpi_volt`)."""
    for chip in find(root / "sys/class/hwmon", "hwmon*"):
        if read_text(chip / "name") == "rpi_volt":
            alarm = _integer(read_text(chip / "in0_lcrit_alarm"))
            return None if alarm is None else alarm != 0
    return None


def _integer(text: str | None, *, base: int = 10) -> int | None:
    try:
        return int(text or "", base)
    except ValueError:
        return None
