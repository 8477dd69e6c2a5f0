"""A device's broker session without a broker: a test fills in what happens, and reads what was published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from evenfleet_agent.link import Connected, Disconnected, LinkEvent, Received
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Command, Desired, Network, Receipt


@dataclass(frozen=True, slots=True)
class Published:
    """One message as it was handed over."""

    kind: str
    payload: bytes
    retain: bool
    answers: Received | None = None

    @property
    def message(self) -> Any:
        return messages.decode(self.kind, self.payload)


class FakeLink:
    """A `Link` in memory. `connect` and `disconnect` set what `publish` answers and queue the event that tells of it.

    `takes` bounds how many messages the session takes before it drops dead without a word, as a real one may between
    two looks at its events.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._events: list[LinkEvent] = []
        self._sessions = 0
        self.connected = False
        self.opened = False
        self.takes: int | None = None
        self.published: list[Published] = []
        self.farewell: Published | None = None
        # What `network` says next, once.
        self.conditions = Network(round_trips=0)

    def open(self) -> None:
        self.opened = True

    def events(self) -> list[LinkEvent]:
        events, self._events = self._events, []
        return events

    def receive(self, topic: str, payload: bytes) -> None:
        """Let anything at all come on a topic."""
        self._events.append(Received(topic, payload))

    def network(self) -> Network:
        said, self.conditions = self.conditions, Network(round_trips=0)
        return said

    def publish(self, kind: str, payload: bytes, *, retain: bool = False, answers: Received | None = None) -> bool:
        if self.takes is not None and self.takes <= 0:
            self.connected = False
        if not self.connected:
            return False
        if self.takes is not None:
            self.takes -= 1
        self.published.append(Published(kind, payload, retain, answers))
        return True

    def close(self, farewell: bytes) -> None:
        self.farewell = Published("state", farewell, retain=True)
        if self.connected:
            self.published.append(self.farewell)
        self.connected = False

    # The test's side.

    def connect(self) -> str:
        """Let a new session stand; returns its name."""
        self._sessions += 1
        session = f"{self._sessions:08x}"
        self.connected = True
        self.takes = None
        self._events.append(Connected(session))
        return session

    def disconnect(self, reason: str = "gone", *, refused: bool = False) -> None:
        self.connected = False
        self._events.append(Disconnected(reason, refused))

    def deliver(self, message: Desired | Receipt | Command) -> None:
        """Let a downlink message arrive."""
        kind = message.schema.partition("/")[0]
        self.deliver_bytes(kind, messages.encode(message))

    def deliver_bytes(self, kind: str, payload: bytes) -> None:
        self._events.append(Received(topics.build(self._device, kind), payload))

    def deliver_on(self, topic: str, payload: bytes) -> None:
        self._events.append(Received(topic, payload))

    def take(self) -> list[Published]:
        """Return what was published since the last call."""
        taken, self.published = self.published, []
        return taken


def again(desired: Desired, **changes: Any) -> Desired:
    """Return the next revision of what a device should run."""
    return replace(desired, revision=desired.revision + 1, **changes)
