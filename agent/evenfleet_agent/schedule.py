"""Decide when the next window is due.

Pure. Windows lie on a grid, so that their length does not grow by the time that measuring takes; one that was missed,
because the device slept or measuring took longer, is left out, not made up for.
"""

from __future__ import annotations

import math


def next_window_s(last_due_s: float, length_s: float, now_s: float) -> float:
    """Return when the window after the one due at `last_due_s` is due, on the same clock.

    >>> next_window_s(10.0, 5.0, 11.0), next_window_s(10.0, 5.0, 27.0)
    (15.0, 30.0)
    """
    missed = max(0, math.floor((now_s - last_due_s) / length_s))
    return last_due_s + (missed + 1) * length_s
