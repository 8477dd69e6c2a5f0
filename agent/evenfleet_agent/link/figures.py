"""How the way to the broker is, from what was sent and what came back: round trips, throughput, loss, bytes.

Pure: every call takes the time. Whoever sends tells it, and asks once per window for what was since the last time.

* A publish counts once: acknowledged, or not because its session died or the broker refused it.
* Round trips are of publishes and of pings; throughput is what was acknowledged while something was under way, which a
  link that is never busy shows too low: it is what it did, not what it could do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from evenfleet_shared.messages import Network

# Between two windows; of more the latest count.
_MAX_TRIPS: Final = 512


@dataclass(slots=True)
class _Counted:
    """What was counted since the last `take`."""

    latest_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_TRIPS))
    trips: int = 0
    longest_s: float = 0.0
    busy_s: float = 0.0
    acknowledged: int = 0
    acknowledged_bytes: int = 0
    unacknowledged: int = 0
    sessions: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Figures:
    """What was since the last `take`."""

    def __init__(self) -> None:
        self._counted = _Counted()
        # What is under way goes on over a `take`.
        self._under_way = 0
        self._busy_since_s = 0.0

    def began(self) -> None:
        """A session stands."""
        self._counted.sessions += 1

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
            self._counted.acknowledged += 1
            self._counted.acknowledged_bytes += size_bytes
        else:
            self._counted.unacknowledged += 1

    def lost(self, count: int, now_s: float) -> None:
        """A session died with so many messages unanswered."""
        self._counted.unacknowledged += count
        for _ in range(count):
            self._landed(now_s)

    def tripped(self, took_s: float) -> None:
        """A question to the broker and its answer took so long."""
        counted = self._counted
        counted.trips += 1
        counted.longest_s = max(counted.longest_s, took_s)
        counted.latest_trips_s.append(took_s)

    def carried(self, sent_bytes: int, received_bytes: int) -> None:
        """So many bytes went over the socket."""
        self._counted.sent_bytes += sent_bytes
        self._counted.received_bytes += received_bytes

    def take(self, now_s: float) -> Network:
        """Return what was, and begin anew.

        >>> figures = Figures()
        >>> figures.published(0.0)
        >>> figures.acknowledged(500, 0.0, 0.5)
        >>> figures.take(1.0).throughput_bytes_per_s
        1000.0
        """
        counted, self._counted = self._counted, _Counted()
        busy_s = counted.busy_s + (max(0.0, now_s - self._busy_since_s) if self._under_way else 0.0)
        self._busy_since_s = now_s
        ended = counted.acknowledged + counted.unacknowledged
        trips_s = sorted(counted.latest_trips_s)
        return Network(
            round_trips=counted.trips,
            rtt_p50_ms=1000.0 * trips_s[(len(trips_s) - 1) // 2] if trips_s else None,
            rtt_max_ms=1000.0 * counted.longest_s if trips_s else None,
            throughput_bytes_per_s=counted.acknowledged_bytes / busy_s
            if counted.acknowledged and busy_s > 0.0
            else None,
            unacknowledged_ratio=counted.unacknowledged / ended if ended else None,
            sent_bytes=counted.sent_bytes,
            received_bytes=counted.received_bytes,
            sessions=counted.sessions,
        )

    def _landed(self, now_s: float) -> None:
        if self._under_way:
            self._under_way -= 1
            if not self._under_way:
                self._counted.busy_s += max(0.0, now_s - self._busy_since_s)
