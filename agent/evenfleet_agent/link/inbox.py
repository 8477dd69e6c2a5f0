"""What the link has for the loop, bounded: a broker may say more than anybody reads.

Decides what gives way. `desired` and `receipt` are cumulative, so an older one gives way to a newer; of anything else
beyond the bound the newest is dropped. Every drop is counted by the kind of the message.

* How a session begins and ends is always told, a reason that is told already only once.
"""

from __future__ import annotations

import threading
from typing import Final

from evenfleet_agent.link import Connected, Disconnected, LinkEvent, Received

MAX_MESSAGES: Final = 64
MAX_BYTES: Final = 1024 * 1024
# Of each, the newest says everything.
CUMULATIVE: Final = ("desired", "receipt")
# More beginnings and ends than this have nobody who reads them.
_MAX_TURNS: Final = 32


class Inbox:
    """Filled by the client's thread, emptied by the loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[LinkEvent] = []
        self._messages = 0
        self._bytes = 0
        self.dropped: dict[str, int] = {}

    def put(self, event: LinkEvent) -> str | None:
        """Add what happened; return the kind of a message that had to give way to it, or did itself."""
        with self._lock:
            if not isinstance(event, Received):
                self._turn(event)
                return None
            kind = event.topic.rpartition("/")[2]
            gone = None
            # A receipt is worth its look as long as there is room.
            replaces = kind == "desired" or (kind in CUMULATIVE and not self._has_room(event))
            if replaces and (older := self._oldest(event.topic)) is not None:
                self._remove(older)
                gone = kind
            if not self._has_room(event):
                gone = kind
            else:
                self._events.append(event)
                self._messages += 1
                self._bytes += len(event.payload)
            if gone:
                # Whatever anybody calls a topic, the counts stay few.
                name = gone if gone in CUMULATIVE or gone == "command" else "other"
                self.dropped[name] = self.dropped.get(name, 0) + 1
            return gone

    def take(self) -> list[LinkEvent]:
        """Return everything, and be empty."""
        with self._lock:
            events, self._events = self._events, []
            self._messages = self._bytes = 0
            return events

    def _has_room(self, event: Received) -> bool:
        return self._messages < MAX_MESSAGES and self._bytes + len(event.payload) <= MAX_BYTES

    def _oldest(self, topic: str) -> int | None:
        return next(
            (at for at, held in enumerate(self._events) if isinstance(held, Received) and held.topic == topic), None
        )

    def _remove(self, at: int) -> None:
        removed = self._events.pop(at)
        assert isinstance(removed, Received)
        self._messages -= 1
        self._bytes -= len(removed.payload)

    def _turn(self, event: Connected | Disconnected) -> None:
        if isinstance(event, Disconnected) and self._events and self._events[-1] == event:
            return
        turns = [at for at, held in enumerate(self._events) if not isinstance(held, Received)]
        if len(turns) >= _MAX_TURNS:
            # The last of them says how it is now.
            self._events.pop(turns[0])
        self._events.append(event)
