"""Send the rows that are to be sent: receipts and `desired`.

Rules never call the broker; they leave rows, and this loop sends them and marks them. A kill between the two sends
one twice, which does no harm: a receipt is cumulative, a `desired` carries its revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenfleet_collector.store import Writer
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Desired, Receipt

BATCH = 500


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to send, and what to mark when it has gone."""

    message: Receipt | Desired
    mark: int

    @property
    def topic(self) -> str:
        """Return where it goes."""
        return topics.build(self.message.device, "receipt" if isinstance(self.message, Receipt) else "desired")

    @property
    def payload(self) -> bytes:
        """Return its bytes."""
        return messages.encode(self.message)

    @property
    def retain(self) -> bool:
        """Return whether the broker shall keep it for a device that connects later."""
        return isinstance(self.message, Desired)


def due(store: Writer) -> list[Outgoing]:
    """Return what is to be sent now."""
    with store.transaction() as tx:
        receipts = [Outgoing(tx.receipt(device), mark) for device, mark in tx.receipts_due(BATCH)]
        return receipts + [Outgoing(desired, desired.revision) for desired in tx.desired_due(BATCH)]


def sent(store: Writer, gone: Sequence[Outgoing]) -> None:
    """Mark what has gone; what became due again meanwhile stays due."""
    with store.transaction() as tx:
        for one in gone:
            if isinstance(one.message, Receipt):
                tx.receipt_sent(one.message.device, one.mark)
            else:
                tx.desired_sent(one.message.device, one.mark)
