"""The broker session: the only file that knows the MQTT client.

Decides nothing: what happens on the connection is put into a queue, and `wake` is called so that the loop looks there.
The client's own thread does the network. Reconnecting is the client's, with a growing pause.

* Little waits in the client, and nothing new while there is no connection: what must survive lies in the outbox.
* A session that did not last does not begin the pauses anew: where two clients have one id, the broker ends the session of
  one for that of the other, and back, once a second for ever.
* The will names the session that dies, which is a new one at every connection.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from evenfleet_shared import topics

RECONNECT_MIN_S: Final = 1
RECONNECT_MAX_S: Final = 60
# A shorter one is one that something ends as soon as it stands.
LASTING_SESSION_S: Final = 30.0
MAX_HELD: Final = 1000
_DOWN: Final = tuple(topics.DOWNLINK)


@dataclass(frozen=True, slots=True)
class Connected:
    """The session stands; `session` is the one that the will names."""

    session: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no session; `refused` when the broker said no, rather than nothing."""

    reason: str
    refused: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A downlink message."""

    topic: str
    payload: bytes


LinkEvent = Connected | Disconnected | Received


class Link(Protocol):
    """A device's connection to its broker."""

    def open(self) -> None:
        """Start connecting, and keep at it."""

    def events(self) -> list[LinkEvent]:
        """Return what has happened since the last call."""

    def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand over a message at QoS 1; False when there is no connection, or no room until others have gone."""

    def close(self, farewell: bytes) -> None:
        """Publish a last state, disconnect and end."""


def reconnect_pause_s(short_sessions: int) -> int:
    """Return how long to wait for the next session, after so many in a row that did not last.

    >>> [reconnect_pause_s(count) for count in (0, 1, 2, 3, 7, 1000)]
    [1, 1, 2, 4, 60, 60]
    """
    return min(RECONNECT_MAX_S, RECONNECT_MIN_S << min(max(0, short_sessions - 1), 10))


class MqttLink:
    """A `Link` over MQTT 3.1.1."""

    def __init__(
        self,
        device: str,
        address: tuple[str, int],
        *,
        username: str,
        password: str | None,
        keepalive_s: int,
        new_session: Callable[[], str],
        will: Callable[[str], bytes],
        wake: Callable[[], None],
    ) -> None:
        """Prepare a connection.

        Args:
            device: Also the client id, which the broker insists on.
            address: Host and port.
            username: For the broker.
            password: For the broker.
            keepalive_s: After one and a half of it without a word the broker sends the will.
            new_session: Names a connection.
            will: Given that name, returns the state message that the broker shall send if it dies.
            wake: Called from the client's thread after each event.
        """
        self._device = device
        self._address = address
        self._keepalive_s = keepalive_s
        self._new_session = new_session
        self._will = will
        self._wake = wake
        self._session = ""
        self._queue: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._opened = False
        # Of the session that stands, when it began; both are the client's thread's.
        self._stood_since_s: float | None = None
        self._short_sessions = 0
        self._refused = False
        # The client keeps what was not acknowledged across connections, and is given the same again at each of them.
        self._held = 0
        self._held_lock = threading.Lock()
        self._waits_for_room = False
        client = Client(CallbackAPIVersion.VERSION2, client_id=device, protocol=MQTTProtocolVersion.MQTTv311)
        client.username_pw_set(username, password)
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)
        client.max_inflight_messages_set(50)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._client = client

    def open(self) -> None:
        self._client.connect_async(*self._address, keepalive=self._keepalive_s)
        self._client.loop_start()
        self._opened = True

    def events(self) -> list[LinkEvent]:
        self._keep_alive()
        # One consumer: what is not empty stays so until it takes something.
        found: list[LinkEvent] = []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found

    def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> bool:
        if not self._client.is_connected():
            return False
        with self._held_lock:
            # A session is told of at once, whatever waits.
            self._waits_for_room = kind != "state" and self._held >= MAX_HELD
            if self._waits_for_room:
                return False
            self._held += 1
        self._client.publish(topics.build(self._device, kind), payload, qos=1, retain=retain)
        return True

    def close(self, farewell: bytes) -> None:
        if self._client.is_connected():
            last = self._client.publish(topics.build(self._device, "state"), farewell, qos=1, retain=True)
            last.wait_for_publish(timeout=2.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _keep_alive(self) -> None:
        """Start the client's thread anew if an error in it has ended it; without it, there is silence for ever."""
        name = f"paho-mqtt-client-{self._device}"
        if self._opened and not any(thread.name == name for thread in threading.enumerate()):
            self._client.loop_stop()
            self._queue.put(Disconnected("the MQTT client's thread died of an error of its own", refused=False))
            self.open()

    def _put(self, event: LinkEvent) -> None:
        self._queue.put(event)
        self._wake()

    def _on_pre_connect(self, client: Client, userdata: Any) -> None:
        self._refused = False
        self._session = self._new_session()
        client.will_set(topics.build(self._device, "state"), self._will(self._session), qos=1, retain=True)

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._refused = True
            self._put(Disconnected(f"the broker refused the connection: {code}", refused=True))
            return
        self._stood_since_s = time.monotonic()
        for kind in _DOWN:
            client.subscribe(topics.build(self._device, kind), qos=0)
        self._put(Connected(self._session))

    def _on_connect_fail(self, client: Client, userdata: Any) -> None:
        host, port = self._address
        self._put(Disconnected(f"no broker answers at {host}:{port}", refused=False))

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if self._refused:
            return  # it was said why
        stood_since_s, self._stood_since_s = self._stood_since_s, None
        if stood_since_s is not None:
            short = time.monotonic() - stood_since_s < LASTING_SESSION_S
            self._short_sessions = self._short_sessions + 1 if short else 0
            # The client forgets its own pause when a session stands.
            client.reconnect_delay_set(reconnect_pause_s(self._short_sessions), RECONNECT_MAX_S)
        # A broker of MQTT 3.1.1 says nothing when it ends a connection, and the client calls that an unspecified error.
        why = "" if code == "Unspecified error" else f": {code}"
        host, port = self._address
        self._put(Disconnected(f"the connection to {host}:{port} was lost{why}", refused=False))

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        with self._held_lock:
            self._held -= 1
            # Not at each single one: every look at a full outbox costs.
            wanted = self._waits_for_room and self._held <= MAX_HELD // 2
        if wanted:
            self._wake()

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        self._put(Received(message.topic, bytes(message.payload)))
