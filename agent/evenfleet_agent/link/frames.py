"""Watch the bytes that a broker sends go by, packet by packet, before the MQTT client sees them.

Decides what the client must not be given: a packet beyond the bound, which it would collect in memory first, and a message
at QoS 2, which it would keep until a second word that need never come. Both are passed over, and counted. What is no
MQTT at all ends the connection. Leaves the meaning of everything else to the client.

* Of a packet's bytes nothing is kept but its head, whatever its length.
"""

from __future__ import annotations

from typing import Final

from evenfleet_shared.messages import MAX_MESSAGE_BYTES

# The topic and what MQTT 5 says beside the message.
MAX_PACKET_BYTES: Final = MAX_MESSAGE_BYTES + 4096

CONNACK: Final = 2
PUBLISH: Final = 3
PINGREQ: Final = 12
PINGRESP: Final = 13
_MAX_LENGTH_DIGITS: Final = 4


class NoMqttError(ConnectionError):
    """What the broker sent cannot be MQTT."""


class Frames:
    """The stream of one connection.

    `packets` counts those that have begun by their kind, `passed_over` those that the client was not given by the reason.
    `connack` is the body of the broker's first answer, as far as it has come.
    """

    def __init__(self) -> None:
        self.packets: dict[int, int] = {}
        self.passed_over: dict[str, int] = {}
        self.connack = b""
        self._head = bytearray()
        # Of the packet under way.
        self._left = 0
        self._kind = 0
        self._passes = True

    def feed(self, data: bytes) -> bytes:
        r"""Return what of `data` the client shall be given.

        Raises:
            NoMqttError: It is no MQTT.

        >>> frames = Frames()
        >>> frames.feed(bytes([0xD0, 0, 0x30, 1])), frames.feed(b"a"), frames.packets
        (b'\xd0\x000\x01', b'a', {13: 1, 3: 1})
        """
        if not self._head and len(data) <= self._left:
            return self._body(data)
        given = bytearray()
        at = 0
        while at < len(data):
            if self._left:
                body = data[at : at + self._left]
                given += self._body(body)
                at += len(body)
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) > 1 and not self._head[-1] & 0x80:
                given += self._begin()
            elif len(self._head) > _MAX_LENGTH_DIGITS:
                raise NoMqttError("a packet's length has no end")
        return bytes(given)

    def _body(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._kind == CONNACK and len(self.connack) < MAX_PACKET_BYTES:
            self.connack += data
        return data if self._passes else b""

    def _begin(self) -> bytes:
        head, self._head = bytes(self._head), bytearray()
        self._kind, flags = head[0] >> 4, head[0] & 0x0F
        self._left = sum((digit & 0x7F) << 7 * place for place, digit in enumerate(head[1:]))
        if not self._kind or (not self.packets and self._kind != CONNACK):
            raise NoMqttError(f"a packet of kind {self._kind} came where the answer to the connection belongs")
        self.packets[self._kind] = self.packets.get(self._kind, 0) + 1
        why = None
        if self._left > MAX_PACKET_BYTES:
            if self._kind != PUBLISH:
                raise NoMqttError(f"a packet of kind {self._kind} has {self._left} bytes")
            why = f"larger than {MAX_MESSAGE_BYTES} bytes"
        elif self._kind == PUBLISH and flags >> 1 & 3 > 1:
            why = "at a quality of service that was not asked for"
        if why:
            self.passed_over[why] = self.passed_over.get(why, 0) + 1
        self._passes = why is None
        return head if self._passes else b""
