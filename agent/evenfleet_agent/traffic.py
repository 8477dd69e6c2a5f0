"""How many bytes may go over the broker's socket, within a day's budget.

Pure: every question takes the time. Leaves it to `link.purse` to remember across restarts, and to `link.wire` to ask.

* The budget is never exceeded, whatever the broker does. What it sends cannot be refused, but the kernel takes no more
  than the receive buffer until it is read: so the buffer counts as spent while a connection is open, and no more is
  read than may be.
* A last word has its room kept, so that the end of a session can be told.
* A day is 86,400 s of a clock that never goes back; time that nobody counted, with the device off, makes no day shorter.
"""

from __future__ import annotations

from typing import Final

DAY_S: Final = 86_400.0
# A TLS handshake with certificates of both sides, the session's beginning and its subscriptions. The handshake itself
# is counted as it happens: this is only what must be left for a try to be worth it.
CONNECT_BYTES: Final = 8192
# Of one record of TLS: head, tag, padding.
TLS_RECORD_BYTES: Final = 64
_MAX_RECORD_BYTES: Final = 16_384


def on_the_wire(size_bytes: int, *, tls: bool) -> int:
    """Return how many bytes at most a packet is at the socket.

    >>> on_the_wire(100, tls=False), on_the_wire(100, tls=True), on_the_wire(20_000, tls=True)
    (100, 164, 20128)
    """
    return size_bytes + (-(-size_bytes // _MAX_RECORD_BYTES) * TLS_RECORD_BYTES if tls else 0)


class Allowance:
    """What is left of a day.

    `spent_bytes` went over the socket in the day that began at `began_s`; `exposed_bytes` may lie in the kernel, unread.
    """

    def __init__(
        self, budget_bytes: int | None, *, now_s: float = 0.0, age_s: float = 0.0, spent_bytes: int = 0
    ) -> None:
        """Begin within a day that is `age_s` old, of which `spent_bytes` are gone. No budget: everything is allowed."""
        self.budget_bytes = budget_bytes
        self.began_s = now_s - age_s
        self.spent_bytes = spent_bytes
        self.exposed_bytes = 0
        self._kept_bytes = 0

    def may_send(self, size_bytes: int, now_s: float, *, last: bool = False) -> bool:
        """Return whether so many bytes may go out; those that are `last` may use the room that is kept for them."""
        self.turn(now_s)
        return self.budget_bytes is None or size_bytes <= self._left_bytes(last=last)

    def may_receive(self, now_s: float) -> int | None:
        """Return how many bytes may be read now; None for as many as there are."""
        self.turn(now_s)
        return None if self.budget_bytes is None else max(0, self._left_bytes(last=False))

    def may_connect(self, receive_buffer_bytes: int, kept_bytes: int, now_s: float) -> bool:
        """Return whether a connection is worth its beginning."""
        return self.may_send(receive_buffer_bytes + kept_bytes + CONNECT_BYTES, now_s)

    def opened(self, receive_buffer_bytes: int, kept_bytes: int) -> None:
        """A connection is about to be made; `kept_bytes` are for its last words."""
        self.exposed_bytes, self._kept_bytes = receive_buffer_bytes, kept_bytes

    def closed(self, unread_bytes: int) -> None:
        """The connection is gone; so much had come and was never read."""
        self.spent_bytes += min(unread_bytes, self.exposed_bytes)
        self.exposed_bytes = self._kept_bytes = 0

    def spend(self, size_bytes: int) -> None:
        """So many bytes were sent, or read."""
        self.spent_bytes += size_bytes

    def next_day_in_s(self, now_s: float) -> float:
        """Return when there is a whole budget again."""
        self.turn(now_s)
        return self.began_s + DAY_S - now_s

    def turn(self, now_s: float) -> None:
        """Begin a new day if it is time."""
        if now_s - self.began_s >= DAY_S:
            self.began_s += (now_s - self.began_s) // DAY_S * DAY_S
            self.spent_bytes = 0

    def _left_bytes(self, *, last: bool) -> int:
        assert self.budget_bytes is not None
        return self.budget_bytes - self.spent_bytes - self.exposed_bytes - (0 if last else self._kept_bytes)
