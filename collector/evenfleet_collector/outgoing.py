"""Send the rows that are to be sent: receipts, `desired` and commands.

Rules never call the broker; they leave rows, and this loop sends them and marks them. A kill between the two sends
one twice, which does no harm: a receipt is cumulative, a `desired` carries its revision, and a device does a command
once, however often it comes.

* A command goes again and again, less and less often, until its device has answered or its time is over; and at once
  when its device is born.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evenfleet_collector.store import Writer
from evenfleet_collector.store.rows import CommandRow
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Command, Desired, Receipt

BATCH = 500
FIRST_AGAIN_S: Final = 2.0
LAST_AGAIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to send, and what to mark when it has gone: a number, or the command's row."""

    message: Receipt | Desired | Command
    mark: int | CommandRow

    @property
    def topic(self) -> str:
        """Return where it goes."""
        kinds = {Receipt: "receipt", Desired: "desired", Command: "command"}
        return topics.build(self.message.device, kinds[type(self.message)])

    @property
    def payload(self) -> bytes:
        """Return its bytes."""
        return messages.encode(self.message)

    @property
    def retain(self) -> bool:
        """Return whether the broker shall keep it for a device that connects later."""
        return isinstance(self.message, Desired)


def due(store: Writer, now_s: float) -> list[Outgoing]:
    """Return what is to be sent now.

    Args:
        store: The writing connection.
        now_s: Seconds since 1970, by the collector's clock.
    """
    with store.transaction() as tx:
        receipts = [Outgoing(tx.receipt(device), mark) for device, mark in tx.receipts_due(BATCH)]
        desired = [Outgoing(desired, desired.revision) for desired in tx.desired_due(BATCH)]
        tx.expire_commands(now_s)
        commands = [
            Outgoing(command_of(row, now_s), row) for row in tx.commands_due(now_s, now_s + LAST_AGAIN_S, BATCH)
        ]
        return receipts + desired + commands


def sent(store: Writer, gone: Sequence[Outgoing], now_s: float) -> None:
    """Mark what has gone; what became due again meanwhile stays due."""
    with store.transaction() as tx:
        for one in gone:
            if isinstance(one.mark, CommandRow):
                tx.command_sent(one.mark, now_s, now_s + again_in_s(now_s - one.mark.offered_s))
            elif isinstance(one.message, Receipt):
                tx.receipt_sent(one.message.device, one.mark)
            else:
                tx.desired_sent(one.message.device, one.mark)


def command_of(row: CommandRow, now_s: float) -> Command:
    """Return the copy of a command that is sent now."""
    return Command(
        device=row.device,
        correlation_id=row.correlation_id,
        command=row.command,
        variant=row.variant,
        ttl_s=row.ttl_s,
        sustained_s=row.sustained_s,
        offline_s=row.offline_s,
        age_s=max(0.0, now_s - row.asked_s),
    )


def again_in_s(offered_for_s: float) -> float:
    """Return how long to wait before a command is sent again: as long as it has been offered already, within bounds.

    So each wait is twice the one before.

    >>> [again_in_s(offered_for_s) for offered_for_s in (0.0, 2.0, 4.0, 8.0, 1000.0)]
    [2.0, 2.0, 4.0, 8.0, 60.0]
    """
    return min(LAST_AGAIN_S, max(FIRST_AGAIN_S, offered_for_s))
