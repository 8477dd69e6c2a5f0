"""Read how much energy the machine has used, where it has a counter: RAPL in /sys/class/powercap, meters in /sys/class/hwmon.

Decides which counter is taken and how a difference is made of two readings. What else ran is in it: a counter is of a
package, a board or a rail, never of a process.

* A counter that cannot be read (RAPL is root's alone since 2020) is none.
* RAPL's packages are added up; their parts (cores, memory controller) are in them already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evenfleet_agent.host.system import ROOT, find, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """Counters of one kind, in microjoules, by their place; `wraps_at_uj` is where each begins anew, if it does."""

    method: str
    counters_uj: Mapping[str, int]
    wraps_at_uj: Mapping[str, int]


def energy(root: Path = ROOT) -> EnergyReading | None:
    """Return the machine's energy counters now, None where it has none that may be read."""
    return _rapl(root) or _meter(root)


def used_mj(before: EnergyReading | None, after: EnergyReading | None) -> float | None:
    """Return the millijoules between two readings, None where they are not of the same counters.

    A counter that is lower than before has wrapped around once; one that has no range to wrap at was set back, and
    tells nothing.

    >>> first = EnergyReading(method="rapl", counters_uj={"package-0": 900_000}, wraps_at_uj={"package-0": 1_000_000})
    >>> used_mj(first, EnergyReading(method="rapl", counters_uj={"package-0": 100_000}, wraps_at_uj={}))
    200.0
    """
    if before is None or after is None or before.counters_uj.keys() != after.counters_uj.keys():
        return None
    total_uj = 0
    for place, start_uj in before.counters_uj.items():
        difference_uj = after.counters_uj[place] - start_uj
        if difference_uj < 0:
            if place not in before.wraps_at_uj:
                return None
            difference_uj += before.wraps_at_uj[place]
        total_uj += difference_uj
    return total_uj / 1e3


def _rapl(root: Path) -> EnergyReading | None:
    counters: dict[str, int] = {}
    ranges: dict[str, int] = {}
    # A package's parts are called core, uncore, dram; AMD's zones have Intel's name. intel-rapl-mmio counts the same again.
    for zone in find(root / "sys/class/powercap", "intel-rapl:*"):
        name = read_text(zone / "name") or ""
        if not name.startswith("package"):
            continue
        place = f"{zone.name} {name}"
        with contextlib.suppress(ValueError):
            counters[place] = int(read_text(zone / "energy_uj") or "")
            ranges[place] = int(read_text(zone / "max_energy_range_uj") or "")
    if not counters:
        return None
    return EnergyReading(
        method=f"RAPL energy_uj of {len(counters)} package{'s' if len(counters) > 1 else ''}, all processes",
        counters_uj=counters,
        wraps_at_uj=ranges,
    )


def _meter(root: Path) -> EnergyReading | None:
    """Return the first meter with energy counters; of several rails it is not known which are within others."""
    for chip in find(root / "sys/class/hwmon", "hwmon*"):
        name = read_text(chip / "name") or chip.name
        for file in find(chip, "energy*_input"):
            with contextlib.suppress(ValueError):
                label = read_text(file.with_name(file.name.replace("_input", "_label"))) or file.name
                return EnergyReading(
                    method=f"hwmon {name} {label}, all processes"[:200],
                    counters_uj={f"{name} {file.name}": int(read_text(file) or "")},
                    wraps_at_uj={},
                )
    return None
