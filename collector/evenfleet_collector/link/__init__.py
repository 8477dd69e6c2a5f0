"""How the collector hears from its devices and speaks to them; one Protocol, one file per kind of broker.

A link moves bytes. What they mean, whether they are saved, and what is answered is `ingest`'s.

* Nothing is taken from the broker's queue before `acknowledge`. What is not acknowledged comes again, to whoever
  asks then: duplicates and any order are normal.
* A message on a topic that is not ours is handed up like any other; the link never drops or judges one.
* What is sent without `retain` may be lost on the way (receipts are cumulative, commands are repeated). A retained
  message was stored by the broker when `send` returns, and every device that subscribes later gets the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One message from a device, as the broker has it.

    `topic` is the MQTT topic; `handle` is what the link acknowledges by and nobody else's business.
    """

    topic: str
    payload: bytes
    handle: object


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the broker: messages neither delivered for good nor given up; from `max_bytes` on, new ones are lost."""

    messages: int
    size_bytes: int
    max_bytes: int


class Link(Protocol):
    """The collector's connection to a broker."""

    @property
    def connected(self) -> bool:
        """Return whether devices could be heard right now: their silence counts only while this is so."""
        ...

    async def open(self) -> None:
        """Connect and make the queue if there is none.

        Raises:
            UnreachableError: The broker does not answer or refuses.
        """
        ...

    async def close(self) -> None:
        """Disconnect. What was received and not acknowledged comes again at the next `open`."""
        ...

    async def receive(self, max_messages: int, timeout_s: float) -> list[Message]:
        """Return what is there, up to `max_messages`; wait for the first one for `timeout_s` at most.

        Returns:
            An empty list when nothing came, and also while the link is connecting anew.

        Raises:
            UnreachableError: The link has given up connecting anew.
        """
        ...

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Take messages out of the broker's queue; call it only after they are committed.

        Never fails: an acknowledgement that does not arrive costs a duplicate.
        """
        ...

    async def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send one message to a device; an empty retained one removes what was retained.

        Raises:
            UnreachableError: The broker could not be given the message (not retained) or did not confirm it
                (retained). Sending it again does no harm.
        """
        ...

    async def backlog(self) -> Backlog:
        """Return how full the queue is; answers or raises within seconds.

        Raises:
            UnreachableError: The broker does not answer.
        """
        ...

    async def probe(self) -> None:
        """Have the queue take one message, which `receive` never returns; answers or raises within seconds.

        A device's PUBACK says nothing of it, and a broker whose disk fails still tells how full the queue is. A full
        queue is no error here: `backlog` tells of it.

        Raises:
            StoreError: The broker answers and does not store.
            UnreachableError: It does not answer.
        """
        ...
