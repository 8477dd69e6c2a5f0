"""The day's budget of bytes on disk, so that an agent that dies and comes back cannot spend it anew.

Decides how often that is worth a write, for flash wears out: what is written is a step ahead of what is spent, so at
most a few dozen times a day. An agent that is killed loses the rest of its step.

* Nothing is spent beyond what the file says is spent, as long as it can be written.
* Without a budget there is no file.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_agent.traffic import Allowance
from evenfleet_shared.disk import write_whole

log = logging.getLogger(__name__)

FILE_NAME: Final = "traffic.json"
STEPS: Final = 32
# The day grows older on disk too, or a device that reboots every hour would never see the next one.
AGE_EVERY_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    boot: str
    began_s: float
    age_s: float
    spent_bytes: int


class Purse:
    """An allowance that remembers; used by the link's thread, and asked by the loop's."""

    def __init__(self, budget_bytes: int | None, path: Path, boot: str, now_s: float) -> None:
        """Open it.

        Args:
            budget_bytes: Of a day; None for no bound.
            path: The file.
            boot: Names this boot of the device, which the monotonic clock begins with.
            now_s: Monotonic seconds.
        """
        self._path = path
        self._boot = boot
        self._failing = False
        self.lock = threading.RLock()
        before = _read(path) if budget_bytes is not None else None
        if before is None:
            age_s, spent_bytes = 0.0, 0
        else:
            # Of a boot before only what was counted is known: how long the device was off is not.
            age_s = max(0.0, now_s - before.began_s) if before.boot == boot else max(0.0, before.age_s)
            spent_bytes = max(0, before.spent_bytes)
        self.allowance = Allowance(budget_bytes, now_s=now_s, age_s=age_s, spent_bytes=spent_bytes)
        self._covered_bytes = spent_bytes
        self._began_s = self.allowance.began_s
        self._written_s = now_s

    def cover(self, size_bytes: int, now_s: float) -> None:
        """See to it that the file knows of so many more bytes, before they are spent."""
        allowance = self.allowance
        if allowance.budget_bytes is None:
            return
        allowance.turn(now_s)
        wanted = allowance.spent_bytes + size_bytes
        if allowance.began_s != self._began_s or wanted > self._covered_bytes or now_s - self._written_s > AGE_EVERY_S:
            step = allowance.budget_bytes // STEPS
            self._write(min(max(wanted, allowance.budget_bytes), wanted + step), now_s)

    def settle(self, now_s: float) -> None:
        """Write what was really spent, at an orderly end."""
        if self.allowance.budget_bytes is not None:
            self.allowance.turn(now_s)
            self._write(self.allowance.spent_bytes, now_s)

    def _write(self, spent_bytes: int, now_s: float) -> None:
        began_s = self.allowance.began_s
        spent = _Spent(boot=self._boot, began_s=began_s, age_s=now_s - began_s, spent_bytes=spent_bytes)
        try:
            write_whole(self._path, msgspec.json.encode(spent))
        except OSError as error:
            if not self._failing:
                log.warning(
                    "cannot write %s: %s; a restart would forget what of the day's bytes is spent",
                    *(self._path, error.strerror),
                )
            self._failing = True
        else:
            self._failing = False
        self._covered_bytes, self._began_s, self._written_s = spent_bytes, began_s, now_s


def _read(path: Path) -> _Spent | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Spent)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
