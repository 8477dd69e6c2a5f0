"""Decide when the next window is due: on a grid of the windows' length, and within what the agent may take of the processor.

Pure. Windows lie on a grid, so that their length does not grow by the time that measuring takes; one that was missed,
because the device slept or measuring took longer, is left out, not made up for.

* Over any long time the agent takes no more than its share: it earns processor time as time passes, up to an hour's worth,
  pays for what it took, and begins no window while it owes any. So it is late by what the last windows cost too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

# What was saved up in quiet times may be spent at once, but not that of a whole night.
MAX_SAVED_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The processor time that the agent may take: `saved_s` of it at `at_s`, below zero what it owes.

    `ratio` is its share of one processor.
    """

    ratio: float
    saved_s: float = 0.0
    at_s: float

    def at(self, now_s: float) -> Allowance:
        """Return the allowance with what was earned meanwhile."""
        earned_s = self.ratio * max(0.0, now_s - self.at_s)
        return replace(self, saved_s=min(self.ratio * MAX_SAVED_S, self.saved_s + earned_s), at_s=max(now_s, self.at_s))

    def less(self, cpu_s: float) -> Allowance:
        """Return the allowance after so much was taken."""
        return replace(self, saved_s=self.saved_s - max(0.0, cpu_s))

    @property
    def free_s(self) -> float:
        """Return when nothing will be owed any more, if nothing is taken until then.

        >>> Allowance(ratio=0.1, at_s=0.0).less(3.0).free_s
        30.0
        """
        return self.at_s + max(0.0, -self.saved_s) / self.ratio


def next_window_s(last_due_s: float, length_s: float, now_s: float) -> float:
    """Return when the window after the one due at `last_due_s` is due, on the same clock.

    >>> next_window_s(10.0, 5.0, 11.0), next_window_s(10.0, 5.0, 27.0)
    (15.0, 30.0)
    """
    missed = max(0, math.floor((now_s - last_due_s) / length_s))
    return last_due_s + (missed + 1) * length_s


def first_after_s(due_s: float, length_s: float, free_s: float) -> float:
    """Return the first time on the grid of `due_s` at which nothing is owed any more.

    >>> first_after_s(10.0, 5.0, 9.0), first_after_s(10.0, 5.0, 10.1)
    (10.0, 15.0)
    """
    return due_s + max(0, math.ceil((free_s - due_s) / length_s)) * length_s
