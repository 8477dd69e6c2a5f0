"""A broker of a few lines that does what a test tells it to, right or wrong: MQTT 3.1.1 and 5, in the clear or over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple


class Sent(NamedTuple):
    """One message that a device published."""

    topic: str
    payload: bytes
    # The bytes of what MQTT 5 says beside it.
    properties: bytes
    qos: int
    session: int


def packet(head: int, body: bytes) -> bytes:
    """Return an MQTT packet."""
    length, digits = len(body), bytearray()
    while True:
        length, digit = length >> 7, length & 0x7F
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([head, *digits]) + body


def message(topic: str, payload: bytes, *, five: bool = False, properties: bytes = b"", qos: int = 0) -> bytes:
    """Return a PUBLISH packet."""
    number = b"\x00\x07" if qos else b""
    beside = bytes([len(properties)]) + properties if five else b""
    return packet(0x30 | qos << 1, len(topic).to_bytes(2, "big") + topic.encode() + number + beside + payload)


@dataclass
class ScriptedBroker:
    """Accepts every session, unless told otherwise.

    `connack` overrides its answer to a connection, `puback` the reason in its acknowledgements (MQTT 5), `hangs_up_on`
    names the protocol levels (4, 5) that it hangs up on; a deaf broker answers no pings and acknowledges nothing.
    `at_session` is called with each new session, to send what it likes.
    """

    context: ssl.SSLContext | None = None
    connack: bytes | None = None
    connack_properties: bytes = b""
    puback: int | None = None
    acknowledges: bool = True
    deaf: bool = False
    hangs_up_on: tuple[int, ...] = ()
    at_session: Callable[[socket.socket, int], None] | None = None
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    sessions: list[socket.socket] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    goodbyes: int = 0
    pings: int = 0
    received_bytes: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.listener.getsockname()[1])

    def until(self, what: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until something holds; it is looked at whenever anything happens here."""
        with self.changed:
            assert self.changed.wait_for(what, timeout_s), "it never came to that"

    def say(self, data: bytes) -> None:
        """Send something to everybody."""
        for session in list(self.sessions):
            with suppress(OSError):
                session.sendall(data)

    def hang_up(self) -> None:
        for session in self.sessions:
            with suppress(OSError):
                session.shutdown(socket.SHUT_RDWR)
        self.sessions.clear()

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()

    def _accept(self) -> None:
        while True:
            try:
                session, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session: socket.socket) -> None:
        try:
            if self.context:
                session = self.context.wrap_socket(session, server_side=True)
            self._listen(session)
        except (OSError, IndexError):
            return
        finally:
            session.close()

    def _listen(self, session: socket.socket) -> None:
        stream = session.makefile("rb")
        level = number = 0
        while first := stream.read(1):
            length, shift, size = 0, 0, 1
            while (byte := stream.read(1)[0]) & 0x80:
                length, shift, size = length + ((byte & 0x7F) << shift), shift + 7, size + 1
            body = stream.read(length + (byte << shift))
            with self.changed:
                self.received_bytes += size + 1 + len(body)
                kind = first[0] >> 4
                if kind == 1:
                    level = body[6]
                    self.levels.append(level)
                    if level in self.hangs_up_on:
                        self.changed.notify_all()
                        return
                    self._begin(session, level)
                    number = len(self.levels)
                elif kind == 3:
                    self._take(session, first[0], body, five=level == 5, number=number)
                elif kind == 8 and not self.deaf:
                    granted = b"\x00" * 3
                    session.sendall(packet(0x90, body[:2] + (b"\x00" if level == 5 else b"") + granted[:1]))
                elif kind == 12:
                    self.pings += 1
                    if not self.deaf:
                        session.sendall(b"\xd0\x00")
                elif kind == 14:
                    self.goodbyes += 1
                    self.changed.notify_all()
                    return
                self.changed.notify_all()

    def _begin(self, session: socket.socket, level: int) -> None:
        properties = bytes([len(self.connack_properties)]) + self.connack_properties if level == 5 else b""
        # Before the client knows of it, or whoever then hangs up finds none to end.
        self.sessions.append(session)
        session.sendall(packet(0x20, b"\x00\x00" + properties) if self.connack is None else self.connack)
        if self.at_session:
            # In a thread of its own: it may never end.
            threading.Thread(target=self._act, args=(session, level), daemon=True).start()

    def _act(self, session: socket.socket, level: int) -> None:
        assert self.at_session
        with suppress(OSError):
            self.at_session(session, level)

    def _take(self, session: socket.socket, head: int, body: bytes, *, five: bool, number: int) -> None:
        qos = head >> 1 & 3
        at = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:at].decode()
        mid = body[at : at + 2] if qos else b""
        at += len(mid)
        properties = b""
        if five:
            properties = body[at + 1 : at + 1 + body[at]]
            at += 1 + body[at]
        self.sent.append(Sent(topic, body[at:], properties, qos, number))
        if qos and self.acknowledges and not self.deaf:
            reason = bytes([self.puback]) if five and self.puback is not None else b""
            session.sendall(packet(0x40, mid + reason))
