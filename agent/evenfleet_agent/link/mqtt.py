"""The broker session: the only file that knows the MQTT client.

Decides nothing of what is said: what happens on the connection is put into `inbox`, and `wake` is called so that the loop
looks there. One thread makes one session after another, each with a client of its own; `pace` says when, `wire` carries
the bytes.

* Nothing waits from one session to the next: what must survive lies in the outbox, which sends it again, once.
* MQTT 5 is tried first and 3.1.1 spoken where the broker knows no more.
* A broker that is not heard for one and a half keepalives is gone, whatever its socket says.
* The will names the session that dies, which is a new one at every connection.
* Whatever the broker sends, the thread lives, and each kind of nonsense is one line in the log, once an hour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from socket import gaierror
from typing import TYPE_CHECKING, Any, Final, Literal

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from evenfleet_agent.link import Connected, Disconnected, LinkEvent, Received
from evenfleet_agent.link.figures import Figures
from evenfleet_agent.link.frames import MAX_PACKET_BYTES, NoMqttError
from evenfleet_agent.link.inbox import Inbox
from evenfleet_agent.link.pace import ReadPace, failures_after, reconnect_pause_s
from evenfleet_agent.link.purse import Purse
from evenfleet_agent.link.wire import SMALL_BUFFER_BYTES, BudgetError, Wire
from evenfleet_agent.traffic import on_the_wire
from evenfleet_shared import topics
from evenfleet_shared.messages import MAX_MESSAGE_BYTES, Network

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger(__name__)

ProtocolName = Literal["auto", "5", "3.1.1"]

MAX_HELD: Final = 1000
MAX_HELD_BYTES: Final = 2 * 1024 * 1024
MAX_IN_FLIGHT: Final = 50
# Not heard for so many keepalives, the broker is gone.
SILENT_KEEPALIVES: Final = 1.5
# From the connection to the broker's answer.
ANSWER_TIMEOUT_S: Final = 20.0
_ONCE_S: Final = 3600.0
_FAREWELL_S: Final = 2.0
_LONGEST_WAIT_S: Final = 10.0
_DOWN: Final = tuple(topics.DOWNLINK)
# Head, topic's length, number, properties.
_PUBLISH_BYTES: Final = 16
# An acknowledgement with its reason, at the socket.
_PUBACK_BYTES: Final = 128
_UNKNOWN_PROTOCOL: Final = (0x01, 0x84)
_NO_SUBSCRIBERS: Final = 0x10
_VERSIONS: Final = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


class _Client(Client):
    """The MQTT client over a wire of ours, for one session."""

    def __init__(self, wire: Wire, version: str, device: str) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=device, protocol=_VERSIONS[version], reconnect_on_failure=False
        )
        self._wire = wire

    def _create_socket(self) -> Any:
        # The one place where the client makes its socket.
        return self._wire


@dataclass(slots=True, eq=False)
class _Session:
    """One try to have a session, and the session."""

    name: str
    version: str
    client: _Client
    wire: Wire
    keepalive_s: float
    began_s: float
    stood_since_s: float | None = None
    # Why there is none, from what the broker said.
    refused: str | None = None
    why: str | None = None
    knows_no_five: bool = False
    asleep: bool = False
    # What the broker bounds.
    most: int = MAX_HELD
    max_packet_bytes: int = MAX_PACKET_BYTES
    retains: bool = True
    qos: int = 1
    # Handed to the client and not answered for: size and when; and what was answered before it stood here.
    pending: dict[int, tuple[int, float]] = field(default_factory=dict)
    early: dict[int, tuple[float, int]] = field(default_factory=dict)
    pending_bytes: int = 0
    # What the socket has had when everything handed over has gone out, at most.
    handed_bytes: int = 0
    # When the day's budget did not allow the next message.
    full_s: float | None = None
    told_bytes: tuple[int, int] = (0, 0)


class MqttLink:
    """A `Link` over MQTT."""

    def __init__(
        self,
        device: str,
        address: tuple[str, int],
        *,
        username: str,
        password: Callable[[], str | None],
        keepalive_s: int,
        new_session: Callable[[], str],
        will: Callable[[str], bytes],
        wake: Callable[[], None],
        uniform: Callable[[], float],
        purse: Purse,
        sleeping: Callable[[str], bytes],
        context: SSLContext | None = None,
        protocol: ProtocolName = "auto",
    ) -> None:
        """Prepare a connection.

        Args:
            device: Also the client id, which the broker insists on.
            address: Host and port.
            username: For the broker.
            password: Returns that for the broker, at each session: its file may have been replaced.
            keepalive_s: After one and a half of it without a word either side takes the other for dead.
            new_session: Names a connection.
            will: Given that name, returns the state message that the broker shall send if it dies.
            wake: Called from the link's thread after each event.
            uniform: Returns a random number from 0 to 1, for the pauses between sessions.
            purse: The day's budget of bytes.
            sleeping: Given the session's name, returns the state message for when that is used up.
            context: For TLS; None for a connection in the clear.
            protocol: The MQTT version, or ``auto``.
        """
        self._device = device
        self._address = address
        self._username = username
        self._password = password
        self._keepalive_s = keepalive_s
        self._new_session = new_session
        self._will = will
        self._wake = wake
        self._uniform = uniform
        self._purse = purse
        self._sleeping = sleeping
        self._context = context
        self._protocol = protocol
        self._inbox = Inbox()
        # Guards what both threads touch: the conditions, and what a session has pending.
        self._lock = threading.Lock()
        self._figures = Figures()
        self._session: _Session | None = None
        self._waits_for_room = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        # The thread's own.
        self._version: str = "5" if protocol == "auto" else protocol
        self._failures = 0
        # The beginning of the day whose budget is used up.
        self._slept_through_s: float | None = None
        self._told_s: dict[str, float] = {}
        self.refused_publishes: dict[str, int] = {}

    def open(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"link-{self._device}", daemon=True)
        self._thread.start()

    def events(self) -> list[LinkEvent]:
        if self._thread and not self._thread.is_alive() and not self._ending.is_set():
            # Without it there is silence for ever.
            self._inbox.put(Disconnected("the link's thread died of an error of its own", refused=False))
            self.open()
        return self._inbox.take()

    def publish(self, kind: str, payload: bytes, *, retain: bool = False, answers: Received | None = None) -> bool:
        session = self._session
        if session is None or session.stood_since_s is None:
            return False
        now_s = time.monotonic()
        topic = topics.build(self._device, kind)
        size = on_the_wire(len(payload) + len(topic) + _PUBLISH_BYTES, tls=self._context is not None)
        if len(payload) + len(topic) + _PUBLISH_BYTES > session.max_packet_bytes:
            self._tell(
                *("size", "a %s of %d bytes is more than the broker takes (%d); it is not sent", kind),
                *(len(payload), session.max_packet_bytes),
            )
            return True  # nothing behind it would ever be sent
        with self._lock:
            if session.full_s is not None or session.asleep:
                return False  # nothing goes behind the last words
            # A session is told of at once, whatever waits.
            self._waits_for_room = kind != "state" and not self._has_room(session, size)
            if self._waits_for_room:
                return False
            with self._purse.lock:
                # What the client has and the socket has not is not spent yet, nor what answers it.
                under_way = max(0, session.handed_bytes - session.wire.sent_bytes)
                expected = under_way + size + _PUBACK_BYTES * (len(session.pending) + 1)
                if not self._purse.allowance.may_send(expected, now_s):
                    session.full_s = now_s
                    return False
            session.handed_bytes += size
            self._figures.published(now_s)
        sent = session.client.publish(
            topic,
            payload,
            qos=session.qos,
            retain=retain and session.retains,
            properties=_answer(answers) if session.version == "5" else None,
        )
        with self._lock:
            if sent.mid in session.early:
                self._answered(session, size, now_s, *session.early.pop(sent.mid))
            else:
                session.pending[sent.mid] = (size, now_s)
                session.pending_bytes += size
        return True

    def network(self) -> Network:
        with self._lock:
            session = self._session
            if session:
                self._count_bytes(session)
            return self._figures.take(time.monotonic())

    def close(self, farewell: bytes) -> None:
        session = self._session
        if session and session.stood_since_s is not None:
            session.wire.last = True
            topic = topics.build(self._device, "state")
            last = session.client.publish(topic, farewell, qos=session.qos, retain=session.retains)
            with suppress(RuntimeError, ValueError):  # the session died over it
                last.wait_for_publish(timeout=_FAREWELL_S)
            self._ending.set()
            session.client.disconnect()
        self._ending.set()
        if self._thread:
            self._thread.join(_FAREWELL_S)
        self._purse.settle(time.monotonic())

    # the link's thread

    def _run(self) -> None:
        while not self._ending.is_set():
            lasted_s = None
            version = self._version
            try:
                lasted_s = self._hold()
            except Exception as error:  # noqa: BLE001 - there is no other thread to go on
                self._put(Disconnected(f"the link failed of an error of its own ({_short(error)})", refused=False))
            if self._version != version and lasted_s is None:
                continue  # the other version at once
            self._failures = failures_after(self._failures, lasted_s)
            # After a session that lasted the first pause is the shortest.
            self._ending.wait(reconnect_pause_s(max(0, self._failures - 1), self._uniform()))

    def _hold(self) -> float | None:
        """Make a session and hold it; return how long it stood."""
        name = self._new_session()
        last_words = self._sleeping(name)
        kept_bytes = on_the_wire(len(last_words) + 64 + _PUBLISH_BYTES, tls=True) + on_the_wire(4, tls=True)
        if not self._can_pay(kept_bytes):
            return None
        try:
            wire, failure = Wire.connect(self._address, context=self._context, purse=self._purse, kept_bytes=kept_bytes)
        except OSError as error:
            # Those of the resolver have numbers of their own.
            unresolved = f" ({error.strerror})" if isinstance(error, gaierror) else ""
            self._put(Disconnected(f"no broker answers at {self._there()}{unresolved}", refused=False))
            return None
        if failure is not None:
            with self._lock:
                self._figures.carried(wire.sent_bytes, wire.received_bytes)
            self._put(Disconnected(self._explain(failure, handshake=True), refused=False))
            return None
        session = self._begin(name, wire)
        try:
            self._turn(session, last_words)
        except Exception as error:  # noqa: BLE001 - the client meets nonsense in many ways
            session.why = f"{self._there()} sent what is no MQTT ({_short(error)})"
        return self._end(session)

    def _can_pay(self, kept_bytes: int) -> bool:
        """Sleep until there is a budget; return False if told to end meanwhile."""
        told = False
        while not self._ending.is_set():
            now_s = time.monotonic()
            with self._purse.lock:
                self._purse.cover(0, now_s)
                allowance = self._purse.allowance
                slept = allowance.began_s == self._slept_through_s
                if not slept and allowance.may_connect(2 * SMALL_BUFFER_BYTES, kept_bytes, now_s):
                    return True
                rest_s = self._purse.allowance.next_day_in_s(now_s)
            if not told:
                budget = self._purse.allowance.budget_bytes
                self._put(
                    Disconnected(
                        f"the day's budget of {budget} bytes is used up; the next session in {rest_s / 3600:.1f} hours",
                        refused=False,
                        asleep_s=rest_s,
                    )
                )
                told = True
            self._ending.wait(min(rest_s, _ONCE_S))
        return False

    def _begin(self, name: str, wire: Wire) -> _Session:
        client = _Client(wire, self._version, self._device)
        session = _Session(name, self._version, client, wire, self._keepalive_s, time.monotonic())
        client.username_pw_set(self._username, self._password())
        client.will_set(topics.build(self._device, "state"), self._will(name), qos=1, retain=True)
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        # With it the client leaves the writing to this thread, whoever publishes.
        client.on_socket_register_write = _leave_it
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._session = session
        if session.version == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            client.connect_async(*self._address, keepalive=self._keepalive_s, clean_start=True, properties=properties)
        else:
            client.connect_async(*self._address, keepalive=self._keepalive_s)
        return session

    def _turn(self, session: _Session, last_words: bytes) -> None:
        client, wire = session.client, session.wire
        pace, read_bytes = ReadPace(session.began_s), 0
        client.reconnect()
        while client.loop(self._wait_s(session)) == MQTTErrorCode.MQTT_ERR_SUCCESS:
            now_s = time.monotonic()
            wire.flush()
            with self._lock:
                self._count_bytes(session)
                if wire.ping_s is not None:
                    self._figures.tripped(wire.ping_s)
                    wire.ping_s = None
            for why, count in wire.frames.passed_over.items():
                self._tell(why, "messages from the broker that are %s are ignored (so far %d)", why, count)
            if self._should_sleep(session, now_s):
                self._go_to_sleep(session, last_words)
            if session.stood_since_s is None and now_s - session.began_s > ANSWER_TIMEOUT_S:
                session.why = f"{self._there()} did not answer within {ANSWER_TIMEOUT_S:.0f} s"
                return
            if now_s - wire.heard_s >= SILENT_KEEPALIVES * session.keepalive_s:
                session.why = f"{self._there()} was not heard for {now_s - wire.heard_s:.0f} s"
                return
            pause_s = pace.pause_s(wire.received_bytes - read_bytes, now_s)
            read_bytes = wire.received_bytes
            if pause_s:
                self._tell(
                    "flood", "the broker sends more than %s can be meant to read; it is read slowly", self._device
                )
                self._ending.wait(min(pause_s, 0.25))

    def _wait_s(self, session: _Session) -> float:
        if session.wire.waits or session.full_s is not None:
            return 0.05
        silent_in_s = session.wire.heard_s + SILENT_KEEPALIVES * session.keepalive_s - time.monotonic()
        return max(0.0, min(silent_in_s, session.keepalive_s / 4.0, _LONGEST_WAIT_S))

    def _should_sleep(self, session: _Session, now_s: float) -> bool:
        if session.asleep or self._ending.is_set():
            return False
        # What is under way is waited for, or it would cost the next day as much again.
        full = session.full_s is not None and (not session.pending or now_s - session.full_s > _FAREWELL_S)
        return session.wire.spent or full

    def _go_to_sleep(self, session: _Session, last_words: bytes) -> None:
        session.asleep = session.wire.last = True
        self._slept_through_s = self._purse.allowance.began_s
        # Not waited for: an acknowledgement would have to be read behind whatever else the broker has to say.
        topic = topics.build(self._device, "state")
        session.client.publish(topic, last_words, qos=0, retain=session.retains)
        session.client.disconnect()

    def _end(self, session: _Session) -> float | None:
        now_s = time.monotonic()
        self._session = None
        session.wire.close()
        client = session.client
        client.on_connect = client.on_disconnect = client.on_message = client.on_publish = None
        with self._lock:
            self._count_bytes(session)
            self._figures.lost(len(session.pending), now_s)
            session.pending.clear()
        stood_since_s, session.stood_since_s = session.stood_since_s, None
        if not self._ending.is_set() and not session.asleep:
            self._say_why(session, stood=stood_since_s is not None)
        return None if stood_since_s is None else now_s - stood_since_s

    def _say_why(self, session: _Session, *, stood: bool) -> None:
        connack, trouble = session.wire.frames.connack, session.wire.trouble
        if not connack and not session.why and not session.wire.ended and trouble is None:
            # The client has its own patience before the answer, and says nothing.
            session.why = f"{self._there()} did not answer within {time.monotonic() - session.began_s:.0f} s"
        if not stood and session.version == "5" and self._protocol == "auto":
            # A broker of 3.1.1 says so in its own form, or hangs up on what it does not know.
            other = len(connack) == 2 or connack[1:2] in map(_byte, _UNKNOWN_PROTOCOL)
            if other or (not connack and not session.why and not _is_tls(trouble)):
                self._version = "3.1.1"
                return
        if not stood and not connack and self._protocol == "auto":
            self._version = "5"  # it was not the version: nothing is known of this broker
        if session.refused:
            self._put(Disconnected(f"the broker refused the connection: {session.refused}", refused=True))
        elif connack[1:2] in map(_byte, _UNKNOWN_PROTOCOL):
            said = f"it does not speak MQTT {session.version}; see broker.protocol"
            self._put(Disconnected(f"the broker refused the connection: {said}", refused=True))
        elif session.why:
            self._put(Disconnected(session.why, refused=False))
        elif trouble is not None:
            self._put(Disconnected(self._explain(trouble), refused=False))
        elif not stood and not connack:
            hint = "; if it wants a certificate of this device, see broker.cert_file" if self._context else ""
            self._put(Disconnected(f"{self._there()} hung up without an answer{hint}", refused=False))
        else:
            self._put(Disconnected(f"the connection to {self._there()} was lost", refused=False))

    def _explain(self, error: OSError, *, handshake: bool = False) -> str:
        if isinstance(error, NoMqttError):
            return f"{self._there()} sent what is no MQTT ({error})"
        if isinstance(error, BudgetError):
            return f"{error} by the connection to {self._there()}"
        if _is_tls(error) or handshake:
            from evenfleet_agent.link import tls

            return tls.explain(error, self._there())
        return f"the connection to {self._there()} was lost"

    def _there(self) -> str:
        host, port = self._address
        return f"{host}:{port}"

    def _put(self, event: LinkEvent) -> None:
        gone = self._inbox.put(event)
        if gone:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._inbox.dropped.items()))
            if gone != "desired":
                self._tell("inbox", "the broker sends more than is read; so far these gave way: %s", counts)
        self._wake()

    def _tell(self, key: str, text: str, *arguments: object) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s.get(key, -_ONCE_S) >= _ONCE_S:
            self._told_s[key] = now_s
            log.warning(text, *arguments)

    # with the lock

    def _has_room(self, session: _Session, size: int) -> bool:
        return len(session.pending) < session.most and session.pending_bytes + size <= MAX_HELD_BYTES

    def _answered(self, session: _Session, size: int, sent_s: float, now_s: float, reason: int) -> None:
        self._figures.acknowledged(size, sent_s, now_s, taken=reason < 0x80)

    def _count_bytes(self, session: _Session) -> None:
        sent, received = session.wire.sent_bytes, session.wire.received_bytes
        self._figures.carried(sent - session.told_bytes[0], received - session.told_bytes[1])
        session.told_bytes = (sent, received)

    # what the client calls

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        session = self._session
        assert session is not None
        if code.is_failure:
            if code.value not in _UNKNOWN_PROTOCOL:
                session.refused = str(code)
            return
        if session.version == "5" and properties is not None:
            self._heed(session, properties)
        wanted = [topics.build(self._device, kind) for kind in _DOWN]
        for topic in wanted:
            client.subscribe(topic, qos=0)
        session.handed_bytes = session.wire.sent_bytes + sum(
            on_the_wire(len(topic) + _PUBLISH_BYTES, tls=self._context is not None) for topic in wanted
        )
        with self._lock:
            self._figures.began()
        session.stood_since_s = time.monotonic()
        tls = "+tls" if self._context is not None else ""
        self._put(Connected(session.name, f"mqtt/{session.version}{tls}"))

    def _heed(self, session: _Session, properties: Properties) -> None:
        """Keep to what the broker bounds."""
        receive_maximum = getattr(properties, "ReceiveMaximum", MAX_HELD)
        if receive_maximum < MAX_IN_FLIGHT:
            session.most = receive_maximum
        session.max_packet_bytes = min(MAX_PACKET_BYTES, getattr(properties, "MaximumPacketSize", MAX_PACKET_BYTES))
        session.retains = bool(getattr(properties, "RetainAvailable", 1))
        session.qos = min(1, getattr(properties, "MaximumQoS", 1))
        session.keepalive_s = getattr(properties, "ServerKeepAlive", 0) or session.keepalive_s

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        session = self._session
        if session and flags.is_disconnect_packet_from_server and code.is_failure:
            session.why = f"{self._there()} ended the session: {code}"

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        session, now_s = self._session, time.monotonic()
        assert session is not None
        wanted = False
        with self._lock:
            held = session.pending.pop(mid, None)
            if held is None:
                session.early[mid] = (now_s, code.value)
            else:
                session.pending_bytes -= held[0]
                if not session.pending:
                    session.handed_bytes = session.wire.sent_bytes
                self._answered(session, *held, now_s, code.value)
            # Not at each single one: every look at a full outbox costs.
            wanted = self._waits_for_room and len(session.pending) <= session.most // 2
        if code.value >= 0x80 or code.value == _NO_SUBSCRIBERS:
            name = str(code)
            count = self.refused_publishes[name] = self.refused_publishes.get(name, 0) + 1
            self._tell(name, "the broker answers what this device publishes with: %s (so far %d times)", name, count)
        if wanted:
            self._wake()

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if len(message.payload) > MAX_MESSAGE_BYTES:
            self._tell("large", "ignored a message of %d bytes from the broker", len(message.payload))
            return
        said = message.properties
        self._put(
            Received(
                message.topic,
                bytes(message.payload),
                expires_in_s=getattr(said, "MessageExpiryInterval", None),
                response_topic=getattr(said, "ResponseTopic", None),
                correlation=getattr(said, "CorrelationData", None),
            )
        )


def _answer(received: Received | None) -> Properties | None:
    """Return what a reply repeats of what it is for."""
    if received is None or (received.response_topic is None and received.correlation is None):
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if received.response_topic is not None:
        properties.ResponseTopic = received.response_topic
    if received.correlation is not None:
        properties.CorrelationData = received.correlation
    return properties


def _leave_it(client: Client, userdata: Any, sock: Any) -> None:
    """Take no notice."""


def _byte(value: int) -> bytes:
    return bytes([value])


def _is_tls(error: OSError | None) -> bool:
    # Without loading OpenSSL to find out.
    return error is not None and type(error).__module__ == "ssl"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]
