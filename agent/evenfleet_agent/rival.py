"""Notice that another client takes this one's place again and again: a copy of the device, with its id.

Pure. A collector that lost its data knows a later incarnation than ours once; another client with our id brings one each
time that it connects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

RIVAL_INCARNATIONS: Final = 3
RIVAL_WITHIN_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Rival:
    """When the collector knew a later incarnation, lately; and whether that is often enough to be another client."""

    overtaken_s: tuple[float, ...] = ()
    suspected: bool = False


def heard(rival: Rival, *, overtaken: bool, now_s: float) -> Rival:
    """Return what to think after a receipt; suspicion ends only when nothing of it is left.

    >>> rival = Rival()
    >>> for at_s in (0.0, 1.0, 2.0):
    ...     rival = heard(rival, overtaken=True, now_s=at_s)
    >>> rival.suspected, heard(rival, overtaken=False, now_s=602.0).suspected
    (True, False)
    """
    times = (*rival.overtaken_s, now_s) if overtaken else rival.overtaken_s
    times = tuple(at_s for at_s in times if at_s > now_s - RIVAL_WITHIN_S)[-RIVAL_INCARNATIONS:]
    suspected = len(times) >= RIVAL_INCARNATIONS or (rival.suspected and bool(times))
    return replace(rival, overtaken_s=times, suspected=suspected)
