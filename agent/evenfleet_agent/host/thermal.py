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
_PI_THROTTLED: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """One look at the throttle indicators.

    `flags` holds the firmware's, of now; `events` counts how often the processor was throttled since boot.
    """

    flags: int | None
    events: int | None


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Return the temperature of each thermal zone by its type, empty where there are none; the hotter one of two alike."""
    found: dict[str, float] = {}
    for zone in find(root / "sys/class/thermal", "thermal_zone*"):
        name, text = read_text(zone / "type"), read_text(zone / "temp")
        try:
            degrees = int(text or "") / 1000.0
        except ValueError:
            continue
        if name:
            found[name] = max(degrees, found.get(name, degrees))
    return found


def throttling(root: Path = ROOT) -> Throttling:
    """Look at the indicators now."""
    flags = _integer(read_text(root / _PI_THROTTLED), base=16)
    counters = find(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for count in (_integer(read_text(path)) for path in counters) if count is not None]
    return Throttling(flags=flags, events=sum(counts) if counts else None)


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


def _integer(text: str | None, *, base: int = 10) -> int | None:
    try:
        return int(text or "", base)
    except ValueError:
        return None
