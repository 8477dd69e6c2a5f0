"""How the way to the broker is, from what was sent and what came back: round trips, throughput, loss, bytes.

Pure: every call takes the time. Whoever sends tells it, and asks once per window for what was since the last time.

* A publish counts once: acknowledged, or not because its session died or the broker refused it.
* Round trips are of publishes and of pings; throughput is what was acknowledged while something was under way, which a
  link that is never busy shows too low: it is what it did, not what it could do.
"""

from __future__ import annotations

from typing import Final

from evenfleet_shared.messages import Network

# Between two windows; of more the latest count.
_MAX_TRIPS: Final = 512


class Conditions:
    """What was since the last `take`."""

    def __init__(self) -> None:
        self._trips_s: list[float] = []
        self._trips = 0
        self._longest_s = 0.0
        self._under_way = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._acknowledged_bytes = 0
        self._acknowledged = 0
        self._unacknowledged = 0
        self._sessions = 0
        self._sent_bytes = 0
        self._received_bytes = 0

    def began(self) -> None:
        """A session stands."""
        self._sessions += 1

    def published(self, now_s: float) -> None:
        """A message was handed over."""
        if not self._under_way:
            self._busy_since_s = now_s
        self._under_way += 1

    def acknowledged(self, size_bytes: int, sent_s: float, now_s: float, *, taken: bool = True) -> None:
        """The broker answered for a message; `taken` says whether it took it."""
        self._landed(now_s)
        self.tripped(now_s - sent_s)
        if taken:
            self._acknowledged += 1
            self._acknowledged_bytes += size_bytes
        else:
            self._unacknowledged += 1

    def lost(self, count: int, now_s: float) -> None:
        """A session died with so many messages unanswered."""
        self._unacknowledged += count
        for _ in range(count):
            self._landed(now_s)

    def tripped(self, took_s: float) -> None:
        """A question to the broker and its answer took so long."""
        self._trips += 1
        self._longest_s = max(self._longest_s, took_s)
        if len(self._trips_s) >= _MAX_TRIPS:
            del self._trips_s[0]
        self._trips_s.append(took_s)

    def carried(self, sent_bytes: int, received_bytes: int) -> None:
        """So many bytes went over the socket."""
        self._sent_bytes += sent_bytes
        self._received_bytes += received_bytes

    def take(self, now_s: float) -> Network:
        """Return what was, and begin anew.

        >>> conditions = Conditions()
        >>> conditions.published(0.0)
        >>> conditions.acknowledged(500, 0.0, 0.5)
        >>> conditions.take(1.0).throughput_bytes_per_s
        1000.0
        """
        busy_s = self._busy_s + (max(0.0, now_s - self._busy_since_s) if self._under_way else 0.0)
        ended = self._acknowledged + self._unacknowledged
        trips_s = sorted(self._trips_s)
        found = Network(
            round_trips=self._trips,
            rtt_p50_ms=1000.0 * trips_s[(len(trips_s) - 1) // 2] if trips_s else None,
            rtt_max_ms=1000.0 * self._longest_s if trips_s else None,
            throughput_bytes_per_s=self._acknowledged_bytes / busy_s if self._acknowledged and busy_s > 0.0 else None,
            unacknowledged_ratio=self._unacknowledged / ended if ended else None,
            sent_bytes=self._sent_bytes,
            received_bytes=self._received_bytes,
            sessions=self._sessions,
        )
        under_way = self._under_way
        self.__init__()  # type: ignore[misc]  # the same as new, but for what is under way
        self._under_way, self._busy_since_s = under_way, now_s
        return found

    def _landed(self, now_s: float) -> None:
        if self._under_way:
            self._under_way -= 1
            if not self._under_way:
                self._busy_s += max(0.0, now_s - self._busy_since_s)
