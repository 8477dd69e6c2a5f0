"""Make the limits that devices are judged against, from what their class did in calibration.

A class's baseline is the median over its devices of each device's own quantile: a mean, or the quantile of all
samples together, is poisoned when a third of the devices are bad. The guard band is how far the share of exceedances
of good devices wanders by itself (temperature, clock frequency) over times longer than a window. One odd window is not
such a time, and can never flag: so of every 24 the largest does not count. With it, spikes of one window in 2,000 set
the band on their own, and +20 % took 43 to 48 windows to find instead of 32 to 34, at no fewer false flags (0 both).

Leaves to others which windows may enter: never those of a device that is flagged, suspect or throttled. Leaves to
`betting` what is done with the result.

* A device whose own calibration is already above what the tolerance allows does not widen the guard band.
* The guard band is at most `MAX_GUARD_RATIO`, and says when it had to be cut to that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from evenfleet_shared import sketch
from evenfleet_shared.messages import Sketch
from evenfleet_shared.metrics import nearest_rank

GUARD_WINDOWS: Final = 24
GUARD_QUANTILE: Final = 0.99

# Good devices that spend hours with more than half of their samples above the limit have no limit worth the name. A
# wider band would leave nothing to bet on, since no X is above 1; so it is cut, and such a class may flag falsely.
MAX_GUARD_RATIO: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How far the mean exceedance of good devices wanders.

    `devices` took part; `excluded_devices` were left out for being above tolerance in calibration already. `capped`
    says that the class is less steady than a limit can express; its flags are then not covered by the budget.
    """

    ratio: float
    devices: int
    excluded_devices: int
    capped: bool


def latency_quantile(windows: Iterable[Sketch], q: float) -> float:
    """Return one device's baseline latency quantile: the median of its windows' quantiles, in the sketches' unit.

    Not the quantile of all samples together, which a twentieth of bad windows sets alone when q is 0.95, and which
    lies 1.3 % higher on the generated devices of `bench/detection.py`: there +20 % took 58 windows to find, not 44.

    Raises:
        ValueError: There are no windows, or one is empty.
    """
    quantiles = [sketch.quantile(window, q) for window in windows]
    if not quantiles:
        raise ValueError("a latency baseline needs at least one window")
    return statistics.median(quantiles)


def memory_quantile(peaks_bytes: Iterable[int], q: float) -> float:
    """Return one device's quantile of its windows' memory peaks, in bytes.

    Raises:
        ValueError: There are none.
    """
    return nearest_rank(sorted(peaks_bytes), q)


def class_baseline(device_quantiles: Sequence[float]) -> float:
    """Return the baseline of a device class.

    Args:
        device_quantiles: One quantile per device, shape ``(devices,)``.

    Raises:
        ValueError: The class has no device.

    >>> class_baseline([20.0, 21.0, 90.0])
    21.0
    """
    if not device_quantiles:
        raise ValueError("a class baseline needs at least one device")
    return statistics.median(device_quantiles)


def limit(baseline: float, margin_ratio: float) -> float:
    """Return the limit in the baseline's unit.

    >>> limit(20.0, 0.10)
    22.0
    """
    return (1.0 + margin_ratio) * baseline


def guard_band(calibrations: Iterable[Sequence[float]], *, allowed_ratio: float) -> Guard:
    """Return the guard band of a class.

    Args:
        calibrations: Per device the exceedance shares X of its calibration windows, in order. A device with fewer
            than 24 of them counts with the mean of all.
        allowed_ratio: The share that the tolerance allows, 1 − q.

    Returns:
        The 99 % quantile, over all those devices' windows, of the mean of X over the last 24 windows without the
        largest of them. 0 when no device took part.

    >>> guard_band([[0.0] * 240 + [0.125] * 48, [0.75] * 288], allowed_ratio=0.05)
    Guard(ratio=0.125, devices=1, excluded_devices=1, capped=False)
    """
    means: list[float] = []
    devices = excluded = 0
    for shares in calibrations:
        if not shares:
            continue
        # fsum is exact, so that neither order nor Python version shows in the result.
        if math.fsum(shares) / len(shares) > allowed_ratio:
            excluded += 1
            continue
        devices += 1
        if len(shares) < GUARD_WINDOWS:
            means.append(math.fsum(shares) / len(shares))
        for end in range(GUARD_WINDOWS, len(shares) + 1):
            recent = shares[end - GUARD_WINDOWS : end]
            means.append((math.fsum(recent) - max(recent)) / (GUARD_WINDOWS - 1))
    ratio = nearest_rank(sorted(means), GUARD_QUANTILE) if means else 0.0
    return Guard(
        ratio=min(ratio, MAX_GUARD_RATIO),
        devices=devices,
        excluded_devices=excluded,
        capped=ratio > MAX_GUARD_RATIO,
    )


def tolerable_ratio(allowed_ratio: float, guard: Guard) -> float:
    """Return mu0, the largest mean exceedance that counts as in tolerance.

    >>> tolerable_ratio(0.05, Guard(ratio=0.08, devices=3, excluded_devices=0, capped=False))
    0.08
    """
    return max(allowed_ratio, guard.ratio)
