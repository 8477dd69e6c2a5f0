"""Leave on disk how this device stands, for whoever asks from outside: `evenfleet-agent status`.

Decides how often that is worth a write, for flash wears out: when a session begins or ends, when the reason for having
none changes, when trouble begins or ends, when a variant can or can no longer be measured, and for receipts and for what
the agent takes at most once a minute. Nothing depends on the file, so it is not synced either.

* Times are of the device's monotonic clock, so the file names the boot that they belong to.
* A file that cannot be written is said once and ends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_shared.disk import write_whole

log = logging.getLogger(__name__)

FILE_NAME: Final = "standing.json"
RECEIPT_EVERY_S: Final = 60.0
TAKEN_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known at the last write.

    `since_s` is when the session, or the lack of one, began; `reason` says why there is none. `receipt_s` is when the
    last receipt came, or up to a minute before: None for none since the device's start. `trouble` is what someone must
    act on beside that. `variants` says of each whether it can be measured, and why not; `cpu_ratio` is what the agent last
    took of one processor, `budget_ratio` what it may.
    """

    boot: str
    connected: bool
    since_s: float
    reason: str | None
    receipt_s: float | None
    trouble: str | None = None
    variants: dict[str, str] = field(default_factory=dict)
    cpu_ratio: float | None = None
    budget_ratio: float | None = None


class StandingFile:
    """The file, seen from the agent."""

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        before = read(path)
        # A receipt was one, whichever process it came to.
        receipt_s = before.receipt_s if before and before.boot == boot else None
        self._standing = Standing(boot=boot, connected=False, since_s=0.0, reason=None, receipt_s=receipt_s)
        self._failing = False
        self._taken_s: float | None = None

    def connected(self, now_s: float) -> None:
        """A session begins."""
        self._keep(replace(self._standing, connected=True, since_s=now_s, reason=None))

    def disconnected(self, reason: str, now_s: float) -> None:
        """There is no session, perhaps for another reason than before."""
        standing = self._standing
        if standing.connected or standing.reason is None:
            self._keep(replace(standing, connected=False, since_s=now_s, reason=reason))
        elif reason != standing.reason:
            self._keep(replace(standing, reason=reason))

    def receipted(self, now_s: float) -> None:
        """A receipt has come."""
        before_s = self._standing.receipt_s
        if before_s is None or now_s - before_s >= RECEIPT_EVERY_S:
            self._keep(replace(self._standing, receipt_s=now_s))

    def troubled(self, trouble: str | None) -> None:
        """Something is wrong that someone must act on, or no longer is."""
        self._keep(replace(self._standing, trouble=trouble))

    def runs(self, variants: Mapping[str, str]) -> None:
        """What is to be run, and how each of it is."""
        # A path that is no UTF-8 may stand in a reason.
        told = {name: how.encode(errors="replace").decode()[:300] for name, how in variants.items()}
        if told != self._standing.variants:
            self._keep(replace(self._standing, variants=told))

    def took(self, cpu_ratio: float, budget_ratio: float, now_s: float) -> None:
        """What the agent has taken since it last said so, as a share of one processor."""
        if self._taken_s is None or now_s - self._taken_s >= TAKEN_EVERY_S:
            self._taken_s = now_s
            self._keep(replace(self._standing, cpu_ratio=cpu_ratio, budget_ratio=budget_ratio))

    def _keep(self, standing: Standing) -> None:
        self._standing = standing
        try:
            write_whole(self._path, msgspec.json.encode(standing), synced=False)
        except OSError as error:
            if not self._failing:
                log.warning("cannot write %s: %s; 'status' will not say how the session is", self._path, error.strerror)
            self._failing = True
        else:
            self._failing = False


def read(path: Path) -> Standing | None:
    """Return what was left, None where there is nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Standing)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
