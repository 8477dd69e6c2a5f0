"""Decide when each message of the outbox goes out, again, or never, and how fast what was measured offline may follow.

Pure: `now_s` is an argument of every rule. Leaves to `outbox` which messages there are, to `link` how they travel. What
is known here is forgotten with the process, which only costs a resend.

* A message that was sent goes again on reconnection, when receipts show a gap, or after 5 minutes doubling to 1 hour.
* A gap counts once for each time that the message was really sent again, however many receipts show it.
* Backfill never takes more than its rate, first tries and resends together; what is measured now does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from evenfleet_shared.messages import Incarnation

# Messages published and not receipted, at most: what a slow collector or a lost receipt can make us hold in memory.
MAX_UNDER_WAY: Final = 1000

RESEND_FIRST_S: Final = 300.0
RESEND_MAX_S: Final = 3600.0
# A gap that a receipt shows is news only of what was sent some time before the receipt came.
GAP_PATIENCE_S: Final = 5.0
# How long a missing message waits to be sent again, by how often it was already, and at last to be given up. What never
# arrives although later messages do cannot be decoded over there, not even its number; but a queue that is full
# acknowledges messages and drops them just so, and a slow collector has not come to them yet. So it takes hours, and a
# queue that is full for one and a half of them, then an hour behind, costs nothing.
GAP_WAITS_S: Final = (GAP_PATIENCE_S, 60.0, 600.0, 1800.0, 3600.0, 7200.0)
MAX_GAP_RESENDS: Final = len(GAP_WAITS_S) - 1

Key = tuple[int, str, int]


@dataclass(slots=True)
class _Sending:
    """What is known of a message's way."""

    sent_s: float
    again_s: float
    wait_s: float


@dataclass(slots=True)
class _Gap:
    """A message that receipts show as missing; kept over reconnections, or a poor link would let it try for ever.

    `since_s` is when it was sent for the last time that counts: `resends` are those that waited for their time, not
    those that a reconnection brought.
    """

    since_s: float
    resends: int = 0
    shown: bool = True

    @property
    def due_s(self) -> float:
        return self.since_s + GAP_WAITS_S[self.resends]


class Ways:
    """Where each message that was sent is on its way."""

    def __init__(self) -> None:
        self._sending: dict[Key, _Sending] = {}
        self._gaps: dict[Key, _Gap] = {}

    def waiting(self, now_s: float) -> set[Key]:
        """Return what was sent and is not to be sent again yet."""
        return {key for key, sending in self._sending.items() if now_s < sending.again_s}

    def sent(self, key: Key, now_s: float, jitter: float) -> None:
        """Note that a message was handed to the broker's client; `jitter` is a factor around 1 for its waiting time."""
        before = self._sending.get(key)
        wait_s = min(RESEND_MAX_S, before.wait_s * 2) if before else RESEND_FIRST_S
        self._sending[key] = _Sending(now_s, now_s + wait_s * jitter, wait_s)
        gap = self._gaps.get(key)
        if gap and gap.shown and gap.resends < MAX_GAP_RESENDS and now_s >= gap.due_s:
            self._gaps[key] = _Gap(now_s, gap.resends + 1, shown=False)

    def reconnected(self) -> None:
        """Make everything due again: what was under way may be lost."""
        self._sending.clear()

    def show_gap(self, life: Incarnation, first: int, last: int, now_s: float) -> list[Key]:
        """Make what a receipt misses due in its time; return what has had all its tries."""
        hopeless = []
        for key in _within(self._sending, life, first, last):
            sending = self._sending[key]
            if now_s - sending.sent_s < GAP_PATIENCE_S:
                continue
            gap = self._gaps.setdefault(key, _Gap(sending.sent_s))
            gap.shown = True
            if gap.resends < MAX_GAP_RESENDS:
                sending.again_s = max(now_s, gap.due_s)
            elif now_s < gap.due_s:
                sending.again_s = math.inf  # that was the last time, but for a reconnection
            else:
                hopeless.append(key)
        return hopeless

    def forget(self, life: Incarnation, first: int, last: int) -> None:
        """Forget messages that are no longer held."""
        for key in _within(self._sending, life, first, last):
            del self._sending[key]
        for key in _within(self._gaps, life, first, last):
            del self._gaps[key]


class Rate:
    """How many messages of the backfill may go now: `per_s` on average, a second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s)
        self._tokens = self._most
        self._at_s = -math.inf

    def allows(self, now_s: float) -> int:
        """Return how many may go now."""
        return int(self._tokens_at(now_s))

    def took(self, now_s: float) -> None:
        """Note that one went."""
        self._tokens, self._at_s = self._tokens_at(now_s) - 1.0, now_s

    def next_s(self, now_s: float) -> float:
        """Return when one more may go: now, or later."""
        return now_s + max(0.0, 1.0 - self._tokens_at(now_s)) / self._per_s

    def _tokens_at(self, now_s: float) -> float:
        if self._at_s == -math.inf:
            return self._most
        # A thousandth of a message is rounding, not patience.
        return min(self._most, self._tokens + (now_s - self._at_s) * self._per_s + 1e-6)


def _within(known: Collection[Key], life: Incarnation, first: int, last: int) -> list[Key]:
    """Return the keys of a range; a receipt may name hundreds of short ones, and one that never ends."""
    if last - first < len(known):
        return [key for seq in range(first, last + 1) if (key := (*life, seq)) in known]
    return [key for key in known if key[:2] == life and first <= key[2] <= last]
