"""What a device's connection to its broker is to the rest of the agent; `link.mqtt` is the real one.

Nothing here knows the MQTT client, so whoever uses a link need not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evenfleet_shared.messages import Network


@dataclass(frozen=True, slots=True)
class Connected:
    """The session stands; `session` is the one that the will names, `transport` how it is spoken: ``mqtt/5+tls``."""

    session: str
    transport: str = "mqtt/3.1.1"


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no session; `refused` when the broker said no, rather than nothing.

    `asleep_s` is set when this side ended it because the day's budget of bytes is used up: so long until the next try.
    """

    reason: str
    refused: bool
    asleep_s: float | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A downlink message, with what MQTT 5 says beside it, if it was spoken: the body is what counts.

    `expires_in_s` is what was left of the message's life when it came; `response_topic` and `correlation` are what an
    answer repeats.
    """

    topic: str
    payload: bytes
    expires_in_s: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None


LinkEvent = Connected | Disconnected | Received


class Link(Protocol):
    """A device's connection to its broker."""

    def open(self) -> None:
        """Start connecting, and keep at it."""

    def events(self) -> list[LinkEvent]:
        """Return what has happened since the last call."""

    def publish(self, kind: str, payload: bytes, *, retain: bool = False, answers: Received | None = None) -> bool:
        """Hand over a message at QoS 1; False when there is no connection, or no room until others have gone.

        `answers` is the command that a reply is for.
        """

    def network(self) -> Network:
        """Return how the way to the broker was since the last call."""

    def close(self, farewell: bytes) -> None:
        """Publish a last state, disconnect and end."""
