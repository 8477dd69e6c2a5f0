"""What may be done between one BEGIN and its COMMIT, by whom: one Protocol for each loop, so that each can do its own.

A `Transaction` is all of them; a loop's parts take the one that they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from evenfleet_collector.cell import Cell, ClassBaseline, ClassKey, Metric
from evenfleet_collector.store.rows import (
    ArrivalRow,
    CellRow,
    CommandRow,
    EventRow,
    FlagRow,
    IncarnationRow,
    LossRow,
    NewWindow,
    QuietCell,
    SteeredDevice,
    TagRow,
    WindowRow,
)
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.errors import MessageError
from evenfleet_shared.manifest import Manifest
from evenfleet_shared.messages import (
    AppWindow,
    Context,
    Desired,
    Event,
    Incarnation,
    Limit,
    Receipt,
    Refusal,
    Reply,
    RunContext,
    State,
    Summary,
)
from evenfleet_shared.signature import Signature


class Shared(Protocol):
    """What every loop may do."""

    def part(self) -> AbstractContextManager[None]:
        """Return a context: what is done within is undone if an error leaves it, what was done before stays."""
        ...

    def tally(self, name: str, count: int) -> None:
        """Add to a counter that lives as long as the database."""
        ...

    def policy(self) -> Policy:
        """Return the policy in force."""
        ...

    def put_policy(self, policy: Policy, now_s: float) -> None:
        """Put a policy in force."""
        ...

    def manifest(self, release: str) -> Manifest | None:
        """Return a release's manifest."""
        ...

    def desired(self, device: str) -> Desired | None:
        """Return what a device was last told to do."""
        ...

    def cell_count(self) -> int:
        """Return how many cells have been judged."""
        ...

    def incarnation(self, device: str, incarnation: Incarnation) -> IncarnationRow:
        """Return what is settled of an incarnation; nothing, for one never heard of."""
        ...

    def has_row(self, device: str, release: str, variant: str) -> bool:
        """Return whether readers see anything of a cell."""
        ...

    def hear_cell(self, device: str, release: str, variant: str, now_s: float, length_s: float | None = None) -> None:
        """Note that a window of a cell came, which was so long, or that one is waited for from now on."""
        ...

    def put_row(self, row: CellRow) -> None:
        """Write what readers see of a cell, its state unchanged; a cell that is new counts as heard of now."""
        ...


class IngestRows(Shared, Protocol):
    """What came."""

    def put_incarnation(self, row: IncarnationRow) -> None:
        """Write what is settled of an incarnation."""
        ...

    def add_windows(self, windows: Sequence[NewWindow], now_s: float) -> None:
        """Append windows to the log; the caller has made sure that they are new."""
        ...

    def later_booted_s(self, device: str, incarnation: Incarnation) -> float | None:
        """Return when the first later life of a device began that was heard of while it lasted."""
        ...

    def add_summary(self, summary: Summary, now_s: float) -> None:
        """Append what is left of windows that gave way on the device."""
        ...

    def has_window_of(self, summary: Summary) -> bool:
        """Return whether a window that a summary stands for is in the log."""
        ...

    def add_app_window(self, window: AppWindow, *, backfill: bool, now_s: float) -> None:
        """Keep an application's window; the caller has made sure that it is new."""
        ...

    def add_context(self, context: Context, now_s: float) -> None:
        """Keep a run context under its digest, and that the device told of it now."""
        ...

    def add_event(self, event: Event, now_s: float) -> None:
        """Append what a device reported."""
        ...

    def add_refusal(self, device: str, incarnation: Incarnation, refusal: Refusal) -> None:
        """Note that a numbered message will never be taken."""
        ...

    def add_loss(self, loss: LossRow, now_s: float) -> None:
        """Note numbers that will never come."""
        ...

    def explain_loss(self, loss: LossRow) -> None:
        """Give the reason for losses within `loss` that were noted without one."""
        ...

    def see_device(self, device: str, now_s: float) -> None:
        """Note that a device was heard of."""
        ...

    def put_state(self, state: State, now_s: float) -> None:
        """Note a device's birth, sleep or death; the will of another session than the last born is ignored.

        At a birth, everything that waits for the device is due to be sent again.
        """
        ...

    def put_reply(self, reply: Reply, now_s: float) -> bool:
        """Note the first answer to a command; False where its device was never told to do that."""
        ...

    def add_dead_letter(self, topic: str, error: MessageError, payload: bytes, now_s: float) -> None:
        """Keep a message that could not be taken."""
        ...

    def mark_receipt_due(self, device: str) -> None:
        """Ask for a receipt to be sent."""
        ...


class JudgeRows(Shared, Protocol):
    """The log in order, and what was made of it."""

    def cursor(self, name: str) -> int:
        """Return how far a loop has come."""
        ...

    def put_cursor(self, name: str, position: int) -> None:
        """Note how far a loop has come."""
        ...

    def arrivals(self, after: int, limit: int) -> Sequence[ArrivalRow]:
        """Return the log's newest entries by number: who sent them, not what they say."""
        ...

    def judging(self, device: str, incarnation: Incarnation) -> int:
        """Return the number up to which an incarnation's messages were judged or skipped."""
        ...

    def put_judging(self, device: str, incarnation: Incarnation, seq: int) -> None:
        """Note the number up to which an incarnation's messages were judged or skipped."""
        ...

    def newest_judged(self, device: str) -> Incarnation | None:
        """Return the incarnation with the highest counter of which a window was judged."""
        ...

    def unjudged(self, stale_s: float) -> Sequence[tuple[str, Incarnation]]:
        """Return the incarnations with windows received before `stale_s` that are not judged yet."""
        ...

    def windows_in(self, device: str, incarnation: Incarnation, first: int, last: int) -> Sequence[WindowRow]:
        """Return an incarnation's windows numbered `first` to `last`, by number."""
        ...

    def first_behind(
        self, device: str, incarnation: Incarnation, first: int, last: int, log_position: int
    ) -> int | None:
        """Return the lowest of the numbers `first` to `last` whose window stands behind a position of the log."""
        ...

    def received_from(self, device: str, incarnation: Incarnation, seq: int, limit: int) -> Sequence[float]:
        """Return when the first `limit` windows numbered `seq` or above were received, by number."""
        ...

    def cell_windows(self, device: str, release: str, variant: str) -> Sequence[WindowRow]:
        """Return a cell's windows in order of incarnation and number, as far as they were judged."""
        ...

    def events(self, after: int, limit: int) -> Sequence[EventRow]:
        """Return what devices reported, in the log's order."""
        ...

    def class_devices(self, device_class: str) -> int:
        """Return how many devices have said that they are of a class."""
        ...

    def device_class(self, device: str) -> str | None:
        """Return the class that a device has said it is of."""
        ...

    def add_skip(self, device: str, incarnation: Incarnation, first: int, last: int, reason: str) -> None:
        """Write down that numbers were passed over, so that a replay passes them over too."""
        ...

    def context(self, digest: str) -> RunContext | None:
        """Return a run context."""
        ...

    def class_baseline(self, key: ClassKey) -> ClassBaseline | None:
        """Return the baseline of a device class for one variant of a release."""
        ...

    def put_class_baseline(self, key: ClassKey, baseline: ClassBaseline) -> None:
        """Write a baseline."""
        ...

    def cell(self, device: str, release: str, variant: str) -> Cell | None:
        """Return the judge's state of one device × variant."""
        ...

    def class_cells(self, key: ClassKey) -> Sequence[Cell]:
        """Return the judge's states of a class for one variant of a release."""
        ...

    def put_cell(self, cell: Cell, row: CellRow) -> None:
        """Write the judge's state of a cell and what readers see of it; the row's version is given anew."""
        ...

    def quiet(self, policy: Policy, now_s: float, hearing_since_s: float, limit: int) -> Sequence[QuietCell]:
        """Return the cells of which nothing has come for longer than `Policy.silent_after` allows, nor was set aside.

        It counts from `hearing_since_s` on: what was sent before that may have been missed. A device that woke has slept
        for its cells until they are heard of: it has yet to send what waits.
        """
        ...

    def set_aside(self, device: str, release: str, variant: str) -> None:
        """Leave a cell out of `quiet` until it is heard of, or its device is told something new."""
        ...

    def open_flag(self, flag: FlagRow) -> None:
        """Write a new flag; its id is given anew."""
        ...

    def clear_flag(self, device: str, release: str, variant: str, metric: Metric, now_s: float) -> None:
        """Close the open flag of a cell's metric."""
        ...


class SteerRows(Shared, Protocol):
    """What devices should do."""

    def assignments(self) -> dict[str, str | None]:
        """Return the release of each device, ``*`` for those not named."""
        ...

    def steerable(self) -> Sequence[SteeredDevice]:
        """Return the devices that have told their class."""
        ...

    def signatures(self, release: str) -> Sequence[Signature]:
        """Return the signatures of a release, by key."""
        ...

    def limits(self, release: str, device_class: str) -> dict[str, tuple[Limit, ...]]:
        """Return the limits in force, by variant."""
        ...

    def put_desired(self, desired: Desired) -> None:
        """Write what a device should do, to be sent; none of its cells is set aside any more."""
        ...


class EditRows(Shared, Protocol):
    """What people change: access, releases, their signatures and tags, assignments; and what they have devices do."""

    def knows_device(self, device: str) -> bool:
        """Return whether a device was enrolled or has been heard of."""
        ...

    def put_assignment(self, device: str, release: str | None, now_s: float) -> None:
        """Assign a release."""
        ...

    def put_credential(self, device: str, token_hash: str, now_s: float) -> bool:
        """Enrol a device; False where it is enrolled already."""
        ...

    def put_release(self, digest: str, manifest: bytes, model: str, now_s: float) -> None:
        """Keep a release's manifest."""
        ...

    def signed_by(self, release: str) -> Sequence[str]:
        """Return the keys that a release has signatures of."""
        ...

    def put_signature(self, signature: Signature, now_s: float) -> None:
        """Keep a signature of a release, in place of an earlier one by the same key."""
        ...

    def tag(self, tag: str) -> TagRow | None:
        """Return one tag."""
        ...

    def put_tag(self, tag: str, release: str, now_s: float) -> None:
        """Let a tag stand for a release, and note that it moved; nothing changes where it did already."""
        ...

    def remove_tag(self, tag: str, now_s: float) -> None:
        """Take a tag away, and note that it went; nothing changes where there is none."""
        ...

    def commands_waiting(self, device: str) -> int:
        """Return how many commands a device has not answered yet."""
        ...

    def add_command(self, command: CommandRow) -> None:
        """Keep a command, to be sent; its id is given anew. The oldest that wait for nothing make room."""
        ...


class OutgoingRows(Shared, Protocol):
    """What is to be sent."""

    def expire_commands(self, now_s: float) -> None:
        """Give up the commands that were not answered within their time."""
        ...

    def commands_due(self, now_s: float, next_before_s: float, limit: int) -> Sequence[CommandRow]:
        """Return the commands to be sent now: those whose time has come.

        One whose time lies behind `next_before_s` is among them: the clock was set back.
        """
        ...

    def command_sent(self, command: CommandRow, now_s: float, next_s: float) -> None:
        """Note that a command went out, and when it is to go again; one that was offered anew meanwhile stays due."""
        ...

    def receipts_due(self, limit: int) -> Sequence[tuple[str, int]]:
        """Return devices that a receipt is due to, each with a mark that changes whenever one becomes due again."""
        ...

    def receipt(self, device: str) -> Receipt:
        """Return what is on disk of a device's messages, recomputed from rows."""
        ...

    def receipt_sent(self, device: str, mark: int) -> None:
        """Note that a receipt went out that was made after `mark`."""
        ...

    def desired_due(self, limit: int) -> Sequence[Desired]:
        """Return desired rows not sent yet."""
        ...

    def desired_sent(self, device: str, revision: int) -> None:
        """Note that a revision went out."""
        ...


class Transaction(IngestRows, JudgeRows, SteerRows, EditRows, OutgoingRows, Protocol):
    """All of it."""


class Writer(Protocol):
    """The one writing connection."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Return a context: what is done within is on disk when it is left, or not at all if it raises."""
        ...
