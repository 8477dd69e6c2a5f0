"""The MQTT client against a broker that hangs up on it: what it keeps in memory, and when it asks for more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from evenfleet_agent.link import MAX_HELD, Connected, Disconnected, LinkEvent, MqttLink

CONNACK = b"\x20\x02\x00\x00"


@dataclass
class Broker:
    """Accepts every session; acknowledges what is published only when told to."""

    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    sessions: list[socket.socket] = field(default_factory=list)
    acknowledges: bool = False
    connack: bytes = CONNACK
    published: int = 0

    def __post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.listener.getsockname()[1])

    def hang_up(self) -> None:
        for session in self.sessions:
            session.shutdown(socket.SHUT_RDWR)
        self.sessions.clear()

    def _accept(self) -> None:
        while True:
            try:
                session, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session: socket.socket) -> None:
        stream = session.makefile("rb")
        try:
            while first := stream.read(1):
                length, shift = 0, 0
                while (byte := stream.read(1)[0]) & 0x80:
                    length, shift = length + ((byte & 0x7F) << shift), shift + 7
                body = stream.read(length + (byte << shift))
                kind = first[0] >> 4
                if kind == 1:
                    self.sessions.append(session)
                    session.sendall(self.connack)
                elif kind == 8:
                    session.sendall(b"\x90\x03" + body[:2] + b"\x00")
                elif kind == 3:
                    self.published += 1
                    topic_end = 2 + int.from_bytes(body[:2], "big")
                    if self.acknowledges:
                        session.sendall(b"\x40\x02" + body[topic_end : topic_end + 2])
        except (OSError, IndexError):
            return
        finally:
            session.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.listener.close()


Event = TypeVar("Event", bound=LinkEvent)


@dataclass
class Ends:
    """A link, and the wake-ups that it asked for."""

    link: MqttLink
    woken: threading.Event

    def until(self, kind: type[Event]) -> Event:
        deadline_s = time.monotonic() + 20.0
        while True:
            for event in self.link.events():
                if isinstance(event, kind):
                    return event
            assert self.woken.wait(max(0.0, deadline_s - time.monotonic())), f"no {kind.__name__}"
            self.woken.clear()


@pytest.fixture
def ends(broker: Broker) -> Iterator[Ends]:
    woken = threading.Event()
    link = MqttLink(
        "press-01",
        broker.address,
        username="press-01",
        password=None,
        keepalive_s=60,
        new_session=lambda: "abcdef01",
        will=lambda session: b"will of " + session.encode(),
        wake=woken.set,
    )
    link.open()
    yield Ends(link, woken)
    link.close(b"farewell")


def test_a_connection_that_ends_is_said_to_be_lost_and_to_whom(broker: Broker, ends: Ends) -> None:
    ends.until(Connected)
    broker.hang_up()

    host, port = broker.address
    assert ends.until(Disconnected).reason == f"the connection to {host}:{port} was lost"


def test_sessions_that_do_not_last_are_further_and_further_apart(broker: Broker, ends: Ends) -> None:
    pauses_s = []
    ends.until(Connected)
    for _ in range(2):
        broker.hang_up()
        ends.until(Disconnected)
        lost_s = time.monotonic()
        ends.until(Connected)
        pauses_s.append(time.monotonic() - lost_s)

    assert pauses_s[0] >= 0.9
    assert pauses_s[1] >= 1.9


def test_a_refusal_is_said_once(broker: Broker, ends: Ends) -> None:
    ends.until(Connected)
    broker.connack = b"\x20\x02\x00\x05"
    broker.hang_up()
    ends.until(Disconnected)

    refused = ends.until(Disconnected)
    assert refused == Disconnected("the broker refused the connection: Not authorized", refused=True)
    assert ends.until(Disconnected) == refused


def test_what_is_not_acknowledged_fills_the_client_once_however_often_the_broker_hangs_up(
    broker: Broker, ends: Ends
) -> None:
    """The outbox hands everything over again at each session, and the client sends what it kept by itself."""
    for _ in range(2):
        ends.until(Connected)
        while ends.link.publish("window", b"x"):
            pass
        assert MAX_HELD <= len(ends.link._client._out_messages) <= MAX_HELD + 1
        assert ends.link.publish("state", b"birth", retain=True)
        broker.hang_up()
        ends.until(Disconnected)
        assert not ends.link.publish("window", b"x")
    assert len(ends.link._client._out_messages) <= MAX_HELD + 2


def test_room_that_was_made_wakes_the_loop_that_waits_for_it(broker: Broker, ends: Ends) -> None:
    ends.until(Connected)
    while ends.link.publish("window", b"x"):
        pass
    ends.woken.clear()
    broker.acknowledges = True
    broker.hang_up()
    ends.until(Connected)

    deadline_s = time.monotonic() + 20.0
    while not ends.link.publish("window", b"x"):
        assert ends.woken.wait(max(0.0, deadline_s - time.monotonic()))
        ends.woken.clear()
    assert broker.published >= MAX_HELD // 2


def test_nobody_there_is_said_and_ends_soon_when_told_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    woken = threading.Event()
    link = MqttLink(
        "press-01",
        address,
        username="press-01",
        password=None,
        keepalive_s=60,
        new_session=lambda: "abcdef01",
        will=lambda _: b"",
        wake=woken.set,
    )
    link.open()
    ends = Ends(link, woken)
    ends.until(Disconnected)
    began_s = time.monotonic()
    link.close(b"farewell")
    assert time.monotonic() - began_s < 3.0
