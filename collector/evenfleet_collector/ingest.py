"""Take arrivals to disk: decode or dead-letter, drop duplicates, settle numbers, in one transaction per batch.

Leaves to `link` where arrivals come from and when they are acknowledged (after `save` returned, never before), to
`judge` what the windows mean.

* A numbered message is there once, however often it arrives.
* Whatever arrives, the batch it is in goes through: a message that cannot be taken is a dead letter and, where its
  header can be read, a refusal by number, so that its device lets go of it.
* A summary of windows of which one is here is refused: nothing is counted twice.
* A number below a device's floor that has not arrived is a loss row: nothing waits for it.
* What is remembered of one incarnation's numbers is bounded: a message that would make one stretch more than
  `MAX_STRETCHES` is not taken, and no receipt says it was. Its device sends what the receipt shows missing first.
* The first answer to a command is kept, and no later one. An answer to what was never asked is counted, and that is all.
* Every batch leaves a receipt due to each device in it, duplicates included, for the receipt before may have been lost.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from evenfleet_collector import dating, seqs
from evenfleet_collector.store import IngestRows, Writer
from evenfleet_collector.store.rows import UNEXPLAINED, IncarnationRow, LossRow, NewWindow
from evenfleet_shared import messages, topics
from evenfleet_shared.errors import MessageError, StoreError
from evenfleet_shared.messages import (
    AppWindow,
    Context,
    Header,
    Incarnation,
    Numbered,
    Refusal,
    Reply,
    State,
    Summary,
    Window,
)

log = logging.getLogger(__name__)

# An agent of ours has at most 1,000 messages under way.
MAX_STRETCHES: Final = 2048

Settling = Literal["new", "duplicate", "too-many-gaps"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes that came on a topic."""

    topic: str
    payload: bytes


class Ingest:
    """The first loop of the collector."""

    def __init__(self, store: Writer) -> None:
        self._store = store

    def save(self, arrivals: Sequence[Arrival], now_s: float) -> None:
        """Bring a batch to disk; what it held is there, or refused, when this returns.

        Args:
            arrivals: In any order, duplicates among them.
            now_s: Seconds since 1970, by the collector's clock.

        Raises:
            StoreError: The batch may be offered again; what was written of it then counts as a duplicate.
        """
        try:
            self._save(arrivals, now_s)
        except StoreError:
            raise
        except Exception as error:
            # A fault of ours, on one of them: it must not hold up the others, nor come back for ever.
            if len(arrivals) > 1:
                half = len(arrivals) // 2
                self.save(arrivals[:half], now_s)
                self.save(arrivals[half:], now_s)
            else:
                log.exception("cannot take a message on %s; it is a dead letter", arrivals[0].topic)
                self._set_aside(arrivals[0], MessageError("internal", repr(error)[:300]), now_s)

    def _save(self, arrivals: Sequence[Arrival], now_s: float) -> None:
        with self._store.transaction() as tx:
            batch = _Batch(tx, now_s)
            for arrival in arrivals:
                batch.add(arrival)
            batch.write()

    def _set_aside(self, arrival: Arrival, error: MessageError, now_s: float) -> None:
        with self._store.transaction() as tx:
            batch = _Batch(tx, now_s)
            batch.set_aside(arrival, error)
            batch.write()


class _Batch:
    """A batch on its way to disk, grouped by incarnation."""

    def __init__(self, tx: IngestRows, now_s: float) -> None:
        self._tx = tx
        self._now_s = now_s
        self._lives: dict[tuple[str, Incarnation], _Life] = {}

    def add(self, arrival: Arrival) -> None:
        try:
            topic = _uplink_topic(arrival.topic)
        except MessageError as error:
            self._dead_letter(arrival, error)
            return
        header = None
        try:
            header = _own_header(topic, arrival.payload)
            message = messages.decode(topic.kind, arrival.payload)
            _check_numbers(message)
            if isinstance(message, Summary):
                self._check_overlap(message)
        except MessageError as error:
            self._refuse(arrival, topic, header, error)
            return
        if isinstance(message, State):
            self._tx.put_state(message, self._now_s)
        elif isinstance(message, Reply):
            if not self._tx.put_reply(message, self._now_s):
                self._tx.tally("unasked-reply", 1)
        else:
            self._take(message, backfill=topic.kind == "backfill")
        self.life(message.device, message.incarnation).hear(message, live=topic.kind in ("state", "window"))

    def set_aside(self, arrival: Arrival, error: MessageError) -> None:
        """Keep a message that could not be taken as a dead letter; refuse it where its number can be read."""
        try:
            topic = _uplink_topic(arrival.topic)
            header = _own_header(topic, arrival.payload)
        except Exception:  # noqa: BLE001 - what failed the first time may fail here as well
            self._dead_letter(arrival, error)
        else:
            self._refuse(arrival, topic, header, error)

    def life(self, device: str, incarnation: Incarnation) -> _Life:
        key = (device, incarnation)
        if key not in self._lives:
            self._lives[key] = _Life(self._tx, self._tx.incarnation(device, incarnation), self._now_s)
        return self._lives[key]

    def write(self) -> None:
        # Those that spoke themselves last: a receipt names the lives heard of last, and they wait for one.
        for life in sorted(self._lives.values(), key=lambda life: life.spoke):
            life.write()
        for device in sorted({device for device, _ in self._lives}):
            self._tx.see_device(device, self._now_s)
            self._tx.mark_receipt_due(device)

    def _take(self, message: Numbered, *, backfill: bool) -> None:
        life = self.life(message.device, message.incarnation)
        settling = life.settle(message.seq)
        self._tx.tally("committed" if settling == "new" else settling, 1)
        if settling != "new":
            return
        if isinstance(message, Window):
            life.windows.append(NewWindow(window=message, backfill=backfill))
        elif isinstance(message, AppWindow):
            self._tx.add_app_window(message, backfill=backfill, now_s=self._now_s)
        elif isinstance(message, Summary):
            self._tx.add_summary(message, self._now_s)
        elif isinstance(message, Context):
            self._tx.add_context(message, self._now_s)
        else:
            self._tx.add_event(message, self._now_s)
            for loss in message.losses:
                self.life(message.device, loss.incarnation).lose(loss.first_seq, loss.last_seq, loss.reason)

    def _check_overlap(self, summary: Summary) -> None:
        """See that no window that a summary stands for is here: it would count twice."""
        if self.life(summary.device, summary.incarnation).has_settled(summary.seq):
            return
        summarised = self.life(summary.device, summary.summarised)
        if self._tx.has_window_of(summary) or any(_stands_for(summary, new.window) for new in summarised.windows):
            raise MessageError(
                "overlaps", f"a window of {summary.variant} within {summary.first_seq} to {summary.last_seq} is here"
            )

    def _refuse(self, arrival: Arrival, topic: topics.Topic, header: Header | None, error: MessageError) -> None:
        self._dead_letter(arrival, error)
        if header is not None and topic.kind not in ("state", "reply"):
            self.life(header.device, header.incarnation).refuse(header.seq, error.reason)

    def _dead_letter(self, arrival: Arrival, error: MessageError) -> None:
        self._tx.add_dead_letter(arrival.topic, error, arrival.payload, self._now_s)
        self._tx.tally("dead_letter", 1)


class _Life:
    """One incarnation while a batch goes through it."""

    def __init__(self, tx: IngestRows, row: IncarnationRow, now_s: float) -> None:
        self.windows: list[NewWindow] = []
        self.spoke = False
        self._tx = tx
        self._row = row
        self._now_s = now_s

    def settle(self, seq: int) -> Settling:
        """Count a number as settled, unless it was already, or there is no room to remember it."""
        if seqs.contains(self._row.settled, seq):
            return "duplicate"
        settled = seqs.add(self._row.settled, seq)
        if len(settled) > max(MAX_STRETCHES, len(self._row.settled)):
            return "too-many-gaps"
        self._row = replace(self._row, settled=settled)
        return "new"

    def has_settled(self, seq: int) -> bool:
        return seqs.contains(self._row.settled, seq)

    def refuse(self, seq: int, reason: str) -> None:
        self.spoke = True
        if seq and self.settle(seq) == "new":
            self._tx.add_refusal(self._row.device, self._row.incarnation, Refusal(seq=seq, reason=reason))

    def hear(self, header: Header, *, live: bool) -> None:
        self.spoke = True
        row = self._row
        self._row = replace(row, floor=max(row.floor, header.floor), highest=max(row.highest, header.seq))
        uptime_s = _uptime_s(header) if live else None
        if uptime_s is not None:
            self._row = replace(self._row, booted_s=dating.booted_s(row.booted_s, self._now_s, uptime_s))

    def lose(self, first: int, last: int, reason: str) -> None:
        """Note as lost what is missing of `first` to `last`, and give their reason to those noted without one."""
        row = self._row
        if reason != UNEXPLAINED:
            self._tx.explain_loss(self._loss(first, last, reason))
        lost = seqs.missing(row.settled, first, last)
        settled = seqs.union([*row.settled, *lost])
        if len(settled) > max(MAX_STRETCHES, len(row.settled)):
            return  # what lies below the floor is closed by that, and joins what is there
        for low, high in lost:
            self._tx.add_loss(self._loss(low, high, reason), self._now_s)
        self._row = replace(row, settled=settled)

    def write(self) -> None:
        self._tx.add_windows([self._dated(new) for new in self.windows], self._now_s)
        self.lose(1, self._row.floor - 1, UNEXPLAINED)
        row = self._row
        last = row.settled[-1][1] if row.settled else 0
        self._tx.put_incarnation(replace(row, highest=max(row.highest, last)))

    def _dated(self, new: NewWindow) -> NewWindow:
        row, window = self._row, new.window
        later_s = self._tx.later_booted_s(row.device, row.incarnation) if row.booted_s is None else None
        found = dating.measured(
            window.ended_uptime_s,
            window.ended_wall_s,
            life_booted_s=row.booted_s,
            later_booted_s=later_s,
            received_s=self._now_s,
        )
        return replace(new, measured_s=found.at_s, dated=found.dated)

    def _loss(self, first: int, last: int, reason: str) -> LossRow:
        row = self._row
        return LossRow(device=row.device, incarnation=row.incarnation, first_seq=first, last_seq=last, reason=reason)


def _stands_for(summary: Summary, window: Window) -> bool:
    return summary.first_seq <= window.seq <= summary.last_seq and (
        (summary.release, summary.variant, summary.context) == (window.release, window.variant, window.context)
    )


def _uptime_s(header: Header) -> float | None:
    """Return the device's monotonic clock when a message was made that came without a delay of its own."""
    if isinstance(header, Window):
        return header.ended_uptime_s
    return header.uptime_s if isinstance(header, State) and header.status == "birth" else None


def _uplink_topic(text: str) -> topics.Topic:
    topic = topics.parse(text)
    if topic.kind not in topics.UPLINK:
        raise MessageError("topic", f"nothing comes up from a device as {topic.kind}")
    return topic


def _own_header(topic: topics.Topic, payload: bytes) -> Header:
    header = messages.decode_header(payload)
    if header.device != topic.device:
        # Nothing may be refused in another device's name, so this error leaves no number behind.
        raise MessageError("device", f"the topic belongs to {topic.device}, the body says {header.device}")
    return header


def _check_numbers(message: Header) -> None:
    if message.floor > message.seq + isinstance(message, State | Reply):
        raise MessageError("invalid", f"floor is {message.floor}, above seq {message.seq}, which is still held")
