"""A broker in memory, and the link to it: deterministic, with seeded faults.

`FakeBroker` is plain methods, for the world test, which has no event loop. `FakeLink` is a thin `Link` over it and
passes the same contract suite as the real one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from evenfleet_collector.link import Backlog, Message
from evenfleet_shared import topics
from evenfleet_shared.errors import RefusedError, UnreachableError


@dataclass(slots=True)
class FakeSession:
    """One device's session: subscriptions at QoS 0, so what is sent while it is away is gone unless retained."""

    will: tuple[str, bytes] | None
    subscribed: set[str] = field(default_factory=set)


class FakeBroker:
    """Queue upward, retained and passing messages downward.

    `downlink_loss_ratio` loses messages to a device that are not the retained answer to its subscription;
    `duplicate_ratio` delivers an uplink message twice; `shuffle` delivers in any order. `up` is whether there is a broker.
    """

    def __init__(
        self, seed: int = 0, *, downlink_loss_ratio: float = 0.0, duplicate_ratio: float = 0.0, shuffle: bool = False
    ) -> None:
        self._random = random.Random(seed)
        self.downlink_loss_ratio = downlink_loss_ratio
        self.duplicate_ratio = duplicate_ratio
        self.shuffle = shuffle
        self.up = True
        self.on_arrival: Callable[[], None] = lambda: None
        self.inboxes: dict[str, list[tuple[str, bytes]]] = {}
        self.retained: dict[str, bytes] = {}
        self._sessions: dict[str, FakeSession] = {}
        self._next_handle = 0
        self._waiting: list[Message] = []
        self._unacknowledged: dict[object, Message] = {}

    # The device's side.

    def connect(self, device: str, *, will: tuple[str, bytes] | None = None) -> None:
        self._require_up()
        self.disconnect(device, clean=False)  # one session per client id
        self._sessions[device] = FakeSession(will)
        self.inboxes.setdefault(device, [])

    def disconnect(self, device: str, *, clean: bool) -> None:
        session = self._sessions.pop(device, None)
        if session and session.will and not clean and self.up:
            self._queue(device, *session.will)

    def publish(self, device: str, topic: str, payload: bytes) -> None:
        """Returning is the PUBACK. Like the real one, a topic that is not the device's own is confirmed and dropped."""
        self._require_session(device)
        self._queue(device, topic, payload)

    def subscribe(self, device: str, topic: str) -> None:
        session = self._require_session(device)
        if topic not in {topics.build(device, kind) for kind in topics.DOWNLINK}:
            raise RefusedError(f"{device} may not subscribe {topic}")
        session.subscribed.add(topic)
        if topic in self.retained:
            self.inboxes[device].append((topic, self.retained[topic]))

    def inbox(self, device: str) -> list[tuple[str, bytes]]:
        """Return what arrived at the device since the last call."""
        arrived, self.inboxes[device] = self.inboxes.get(device, []), []
        return arrived

    # The collector's side.

    def deliver(self, max_messages: int) -> list[Message]:
        if not self.up:
            return []
        if self.shuffle:
            self._random.shuffle(self._waiting)
        delivered, self._waiting = self._waiting[:max_messages], self._waiting[max_messages:]
        self._unacknowledged.update({message.handle: message for message in delivered})
        return delivered

    def ack(self, message: Message) -> None:
        self._unacknowledged.pop(message.handle, None)

    def redeliver_unacked(self, messages: Iterable[Message] | None = None) -> None:
        """Let the acknowledgement's time run out, or the collector die: for all that was delivered, or some of it."""
        for message in list(self._unacknowledged.values()) if messages is None else messages:
            if self._unacknowledged.pop(message.handle, None):
                self._waiting.append(message)
        if self._waiting:
            self.on_arrival()

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._require_up()
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for device, session in self._sessions.items():
            if topic in session.subscribed and self._random.random() >= self.downlink_loss_ratio:
                self.inboxes[device].append((topic, payload))

    def crash(self) -> None:
        """Be gone: sessions end without wills, the queue and what is retained survive. `up = True` brings it back."""
        self.up = False
        self._sessions.clear()
        self.redeliver_unacked()

    def backlog(self) -> Backlog:
        held = [*self._waiting, *self._unacknowledged.values()]
        return Backlog(messages=len(held), size_bytes=sum(len(message.payload) for message in held), max_bytes=1 << 30)

    def inject(self, topic: str, payload: bytes) -> None:
        """Queue an uplink message as it is, permissions aside."""
        for _ in range(2 if self._random.random() < self.duplicate_ratio else 1):
            self._next_handle += 1
            self._waiting.append(Message(topic, payload, self._next_handle))
        self.on_arrival()

    def _queue(self, device: str, topic: str, payload: bytes) -> None:
        if topic in {topics.build(device, kind) for kind in topics.UPLINK}:
            self.inject(topic, payload)

    def _require_up(self) -> None:
        if not self.up:
            raise UnreachableError("the fake broker is down")

    def _require_session(self, device: str) -> FakeSession:
        self._require_up()
        if device not in self._sessions:
            raise UnreachableError(f"{device} is not connected")
        return self._sessions[device]


class FakeLink:
    """A `Link` to a `FakeBroker`, all in one event loop."""

    def __init__(self, broker: FakeBroker, *, ack_wait_s: float = 10.0) -> None:
        self._broker = broker
        self._ack_wait_s = ack_wait_s
        self._open = False
        self._arrival = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._open and self._broker.up

    async def open(self) -> None:
        if not self._broker.up:
            raise UnreachableError("the fake broker is down")
        self._open = True
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._arrival.set)

        self._broker.on_arrival = wake

    async def close(self) -> None:
        self._open = False
        self._broker.on_arrival = lambda: None

    async def receive(self, max_messages: int, timeout_s: float) -> list[Message]:
        self._require_open()
        self._arrival.clear()
        messages = self._broker.deliver(max_messages)
        if not messages:
            try:
                await asyncio.wait_for(self._arrival.wait(), timeout_s)
            except asyncio.TimeoutError:
                return []
            messages = self._broker.deliver(max_messages)
        asyncio.get_running_loop().call_later(self._ack_wait_s, self._broker.redeliver_unacked, messages)
        return messages

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        self._require_open()
        for message in messages:
            self._broker.ack(message)

    async def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._require_open()
        self._broker.send(topic, payload, retain=retain)

    async def backlog(self) -> Backlog:
        self._require_open()
        return self._broker.backlog()

    async def probe(self) -> None:
        self._require_open()

    def _require_open(self) -> None:
        if not self._open:
            raise UnreachableError("the link is not open")
