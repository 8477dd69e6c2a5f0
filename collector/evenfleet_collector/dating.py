"""Say when a window was measured, of a device whose wall clock may be wrong by any amount, or not there at all.

Pure. Only people look at these times: judging goes by incarnation and number.

* Where a life was heard of while it lasted, the device's uptime tells: it was up for so long when we heard it.
* Of a life that was over before anything of it came, nobody knows how long ago that was. Its wall clock is believed if
  it may be true; otherwise all that is known is what it was before.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Dated = Literal["uptime", "wall", "before"]

# 2024-01-01: a clock that says less has not been set.
EARLIEST_S: Final = 1_704_067_200.0
# How far a clock that was set may be ahead of ours.
AHEAD_S: Final = 60.0


class Measured(NamedTuple):
    """When, in seconds since 1970 by the collector's clock, and by what that is known; `before`: then at the latest."""

    at_s: float
    dated: Dated


def booted_s(known_s: float | None, heard_s: float, uptime_s: float) -> float:
    """Return when a life began, at the latest: what took the shortest way tells it best.

    >>> booted_s(None, heard_s=1000.0, uptime_s=10.0), booted_s(990.0, heard_s=2000.0, uptime_s=995.0)
    (990.0, 990.0)
    """
    found_s = heard_s - uptime_s
    return found_s if known_s is None else min(known_s, found_s)


def measured(
    uptime_s: float, wall_s: float, *, life_booted_s: float | None, later_booted_s: float | None, received_s: float
) -> Measured:
    """Return when a window ended.

    Args:
        uptime_s: The device's monotonic clock at its end.
        wall_s: The device's wall clock at its end.
        life_booted_s: When its life began, where that was heard of while it lasted.
        later_booted_s: When the first later life of the device began that was.
        received_s: When the window came.

    >>> measured(100.0, 5.0, life_booted_s=1000.0, later_booted_s=None, received_s=9000.0)
    Measured(at_s=1100.0, dated='uptime')
    >>> measured(100.0, 5.0, life_booted_s=None, later_booted_s=7000.0, received_s=9000.0)
    Measured(at_s=7000.0, dated='before')
    """
    if life_booted_s is not None:
        return Measured(min(received_s, life_booted_s + uptime_s), "uptime")
    latest_s = received_s if later_booted_s is None else min(received_s, later_booted_s)
    if EARLIEST_S <= wall_s <= latest_s + AHEAD_S:
        return Measured(min(wall_s, latest_s), "wall")
    return Measured(latest_s, "before")
