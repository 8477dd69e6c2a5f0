"""Put what happens on the device into messages, keep them in the outbox, and hand them to the broker's session.

Decides what goes up before what: a birth first, then losses, then what the outbox says is due. Leaves to `outbox` what that
is, to `link` how it travels, to `supervisor` what there is to tell.

* A message is in the outbox before it is published. States and replies are not numbered, and are published or not.
* A run context goes up once per incarnation and session, before the first window that names it.
* A disk that is full or fails ends nothing: what cannot be kept is counted, and the log says so once for each reason.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from evenfleet_agent import appwindow
from evenfleet_agent.appwindow import AppBody
from evenfleet_agent.clock import Clock
from evenfleet_agent.commands import Answer
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.link import Link, Received
from evenfleet_agent.outbox import Outbox
from evenfleet_shared import __version__, messages
from evenfleet_shared.errors import StoreError
from evenfleet_shared.messages import (
    Command,
    Context,
    Event,
    EventName,
    Incarnation,
    Loss,
    Numbered,
    Receipt,
    Reply,
    RunContext,
    State,
    Window,
)

log = logging.getLogger(__name__)

# Messages read from the outbox at a time: each is in memory until it is published.
SEND_BATCH: Final = 50
# A failing disk is not asked again at every turn.
STORE_RETRY_S: Final = 30.0
# Contexts that are remembered, to be told again; a device changes its own a few times a year.
MAX_CONTEXTS: Final = 64


class Post:
    """What one device sends up."""

    def __init__(self, settings: AgentSettings, outbox: Outbox, link: Link, clock: Clock) -> None:
        self._settings = settings
        self._outbox = outbox
        self._link = link
        self._clock = clock
        self._session: str | None = None
        # What the collector last told us to do; births say so.
        self.desired_revision = 0
        self._contexts: dict[str, RunContext] = {}
        self._told_contexts: set[tuple[Incarnation, str]] = set()
        # What is wrong with the disk, by what it was asked for.
        self._store_troubles: dict[str, str] = {}
        self._retry_s = -math.inf
        self._not_kept = 0

    # the session

    @property
    def online(self) -> bool:
        """Return whether a session stands."""
        return self._session is not None

    def connected(self, session: str) -> None:
        """A session stands: say who speaks, and send everything that is not receipted again."""
        self._session = session
        self._outbox.reconnected()
        # What the collector was told may be gone: from a full outbox, or with the collector's disk.
        self._told_contexts.clear()
        self.birth()

    def disconnected(self) -> None:
        """There is no session."""
        self._session = None
        self._outbox.disconnected()

    def birth(self) -> None:
        """Tell where the device stands, if anybody can hear."""
        if self._session:
            self._link.publish("state", self._state("birth", self._session, self._clock.uptime_s()), retain=True)

    def farewell(self) -> bytes:
        """Return the last state of a device that is told to stop."""
        return self._state("gone", self._session or "00000000")

    def will(self, session: str) -> bytes:
        """Return what the broker shall publish if a session dies.

        Called from the link's thread, where the outbox cannot be asked: a will says nothing of numbers.
        """
        return self._encode_state("lost", session, seq=0, floor=1)

    def sleeping(self, session: str) -> bytes:
        """Return what is said when the day's bytes are used up; from the link's thread, as the will."""
        return self._encode_state("sleeping", session, seq=0, floor=1)

    def settle(self, receipt: Receipt) -> bool:
        """Let go of what a receipt settles; return whether a new incarnation began, which is told of at once."""
        try:
            begun = self._outbox.settle(receipt, self._clock.monotonic_s())
        except StoreError as error:
            self._store_fails("receipt", error, "the next receipt says the same again")
            return False
        self._store_works("receipt")
        if begun:
            self.birth()
        return begun

    def exchange(self, now_s: float) -> None:
        """Send what is due."""
        if now_s < self._retry_s:
            return
        try:
            self._outbox.tend(now_s)
            # Losses are not told while nobody can hear: each event would take the place of more messages, which would
            # be losses to tell.
            if self._session is not None:
                self._tell_damages()
                self._tell_losses(now_s)
                self._send(now_s)
        except StoreError as error:
            self._retry_s = now_s + STORE_RETRY_S
            self._store_fails("send", error, "messages wait")
        else:
            self._store_works("send")

    def due_s(self, now_s: float) -> float | None:
        """Return when there is something to send, or a disk that failed to be asked again, though nothing happens."""
        if self._retry_s > now_s:
            return self._retry_s
        return self._outbox.next_due_s(now_s) if self._session else None

    # what there is to tell

    def app(self, body: AppBody) -> int | None:
        """Keep what an application did; return its number, None where the disk does not take it."""

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return appwindow.message(body, device=self._settings.device, incarnation=incarnation, seq=seq, floor=floor)

        return self.keep("window", make)

    def window(self, run: RunContext, fields: dict[str, Any]) -> int | None:
        """Keep a window.

        Args:
            run: What it was measured in.
            fields: All of `Window` but the header, the context and the clocks.

        Returns:
            Its number, None where the disk does not take it.
        """
        digest = messages.context_digest(run)
        if digest not in self._contexts:
            if len(self._contexts) >= MAX_CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[digest] = run
        self._tell_context(digest)
        comparability = messages.comparability(run)

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Window(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                context=digest,
                comparability=comparability,
                ended_uptime_s=self._clock.uptime_s(),
                ended_wall_s=self._clock.wall_s(),
                **fields,
            )

        return self.keep("window", make)

    def tell(
        self,
        event: EventName,
        *,
        release: str | None = None,
        variant: str | None = None,
        detail: str = "",
        losses: tuple[Loss, ...] = (),
    ) -> int | None:
        """Keep an event; return its number, None where the disk does not take it."""

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Event(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                event=event,
                happened_uptime_s=self._clock.uptime_s(),
                happened_wall_s=self._clock.wall_s(),
                release=release or None,
                variant=variant,
                # A path that is no UTF-8 may stand in it.
                detail=detail.encode(errors="replace").decode()[:500],
                losses=losses,
            )

        return self.keep("event", make)

    def keep(self, kind: str, make: Callable[[Incarnation, int, int], Numbered]) -> int | None:
        """Write a message to the outbox; return its number, None where the disk does not take it."""
        life = self._outbox.incarnation
        try:
            seq = self._outbox.append(kind, make)
        except StoreError as error:
            # The disk is full or failing: the device goes on, and the next window tries again.
            self._not_kept += 1
            self._store_fails("keep", error, f"this {kind} is not kept, nor what comes until the disk works again")
            return None
        if self._outbox.incarnation != life:
            self.birth()  # the file was damaged, and numbering begins anew
        if self._not_kept:
            log.warning("the outbox can be written again; %d messages were not kept", self._not_kept)
            self._not_kept = 0
        self._store_works("keep")
        return seq

    def reply(self, command: Command, answer: Answer, asked: Received | None = None) -> None:
        """Answer a command, if there is a session; whoever sent it sends it again until an answer comes.

        Args:
            command: What was to be done.
            answer: What became of it.
            asked: How it came, for what MQTT 5 repeats in an answer.
        """
        seq, floor = self._numbers()
        reply = Reply(
            device=self._settings.device,
            incarnation=self._outbox.incarnation,
            seq=seq,
            floor=floor,
            correlation_id=command.correlation_id,
            command=command.command,
            status=answer.status,
            detail=answer.detail[:500],
            seqs=answer.seqs,
            result=answer.result,
        )
        if self._session:
            self._link.publish("reply", self._encode(reply), answers=asked)

    def _tell_context(self, digest: str) -> None:
        key = (self._outbox.incarnation, digest)
        if key in self._told_contexts:
            return

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Context(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                digest=digest,
                run=self._contexts[digest],
            )

        if self.keep("context", make) is not None:
            self._told_contexts.add(key)

    def _tell_damages(self) -> None:
        details = self._outbox.damages()
        told = [detail for detail in details if self.tell("outbox-damaged", detail=detail) is not None]
        if told:
            self._outbox.damages_told(told)  # or they are told once more

    def _tell_losses(self, now_s: float) -> None:
        losses = self._outbox.losses_due(now_s)
        if not losses:
            return
        counts = Counter[str]()
        for loss in losses:
            counts[loss.reason] += loss.last_seq - loss.first_seq + 1
        detail = ", ".join(f"{count} messages: {reason}" for reason, count in sorted(counts.items()))
        if self.tell("loss", losses=tuple(losses), detail=detail) is not None:
            log.warning("given up before the collector had them: %s", detail)
            self._outbox.told(losses)  # or they are told once more

    def _send(self, now_s: float) -> None:
        while entries := self._outbox.due(now_s, SEND_BATCH):
            for entry in entries:
                if not self._link.publish(entry.kind, entry.payload):
                    return
                self._outbox.sent(entry.key, now_s)

    # what a state says

    def _state(self, status: str, session: str, uptime_s: float | None = None) -> bytes:
        seq, floor = self._numbers()
        return self._encode_state(status, session, seq=seq, floor=floor, uptime_s=uptime_s)

    def _numbers(self) -> tuple[int, int]:
        try:
            numbers = self._outbox.last_seq, self._outbox.floor()
        except StoreError as error:
            self._store_fails("state", error, "the collector is told no numbers")
            return 0, 1
        self._store_works("state")
        return numbers

    def _encode_state(self, status: str, session: str, *, seq: int, floor: int, uptime_s: float | None = None) -> bytes:
        return self._encode(
            State(
                device=self._settings.device,
                incarnation=self._outbox.incarnation,
                seq=seq,
                floor=floor,
                status=status,  # type: ignore[arg-type]
                session=session,
                device_class=self._settings.device_class,
                agent_version=__version__,
                formats=self._settings.formats,
                desired_revision=self.desired_revision,
                contexts=tuple(self._contexts),
                uptime_s=uptime_s,
            )
        )

    def _encode(self, message: Reply | State) -> bytes:
        packed = self._settings.packed
        return messages.encode(message, compact=packed, packed=packed)

    # the disk

    def _store_fails(self, doing: str, error: StoreError, consequence: str) -> None:
        """Log what is wrong with the disk when it begins or changes, not each time."""
        if self._store_troubles.get(doing) != str(error):
            self._store_troubles[doing] = str(error)
            log.error("%s; %s", error, consequence)

    def _store_works(self, doing: str) -> None:
        self._store_troubles.pop(doing, None)
