"""The link to the embedded broker: JetStream's work queue upward, NATS and one MQTT session downward.

nats-server turns an MQTT publish of a device into a NATS message; the stream UP keeps it until it is acknowledged.

The client library's own `fetch` waits for a full batch once the first message is there. The pulls here are two:
one message is waited for, the rest is taken as it lies there, so that a message is never held up for company.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from evenfleet_collector.access import COLLECTOR_USER, Endpoint
from evenfleet_collector.link import Backlog, Message
from evenfleet_collector.link.retained import RetainedPublisher
from evenfleet_shared import topics
from evenfleet_shared.errors import StoreError, UnreachableError

log = logging.getLogger(__name__)

STREAM: Final = "UP"
CONSUMER: Final = "ingest"
MAX_QUEUE_BYTES: Final = 1 << 30
ACK_WAIT_S: Final = 10.0
_MAX_ACK_PENDING: Final = 20_000

# No device's: a device has one segment more, and may publish its own topics only.
_PROBE_SUBJECT: Final = "evenfleet.probe"
_QUESTION_TIMEOUT_S: Final = 2.0
# "Maximum bytes exceeded", of a stream that discards new messages.
_FULL: Final = 10077

# A batch of the largest messages must not fill the memory.
_MAX_PULL_BYTES: Final = 32 * 1024 * 1024
_PULL_ANSWER_TIMEOUT_S: Final = 2.0
_PAUSE_S: Final = 0.1
_RECONNECT_WAIT_S: Final = 0.1
# For ever: whether the broker is given up is decided where it is watched, and that ends the collector.
_RECONNECT_ATTEMPTS: Final = -1

# "Nothing there", "expired", "enough bytes or the server is going down": all end a pull without harm.
_HARMLESS: Final = frozenset({"404", "408", "409"})


class JetStreamLink:
    """A `Link` over NATS JetStream."""

    def __init__(
        self, endpoint: Endpoint, *, max_queue_bytes: int = MAX_QUEUE_BYTES, ack_wait_s: float = ACK_WAIT_S
    ) -> None:
        """Prepare the link.

        Args:
            endpoint: Where the broker listens.
            max_queue_bytes: The queue's size on disk; what comes after is lost to the broker, not to the device,
                which keeps it until the receipt.
            ack_wait_s: After this long without an acknowledgement a message is delivered again.
        """
        self._endpoint = endpoint
        self._max_queue_bytes = max_queue_bytes
        self._ack_wait_s = ack_wait_s
        self._client: Client | None = None
        self._retained = RetainedPublisher(
            endpoint.mqtt_host, endpoint.mqtt_port, COLLECTOR_USER, endpoint.collector_password
        )
        self._inbox = ""
        self._pulls = 0
        self._connections = 0
        self._probe_waits = False
        self._arrived: deque[Msg] = deque()
        self._arrival = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Return whether both the NATS connection and the MQTT session stand."""
        return self._client is not None and self._client.is_connected and self._retained.connected

    async def open(self) -> None:
        """See `Link.open`."""
        try:
            self._client = await nats.connect(
                self._endpoint.nats_url,
                name="evenfleet link",
                user=COLLECTOR_USER,
                password=self._endpoint.collector_password,
                reconnect_time_wait=_RECONNECT_WAIT_S,
                max_reconnect_attempts=_RECONNECT_ATTEMPTS,
                error_cb=_log_client_error,
                reconnected_cb=self._note_reconnection,
            )
            await self._provision()
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(f"{self._inbox}.*", cb=self._note_arrival)
            await self._retained.open()
        except (nats.errors.Error, OSError) as error:
            await self.close()
            raise UnreachableError(f"no link to the broker at {self._endpoint.nats_url}: {error!r}") from None
        except UnreachableError:
            await self.close()
            raise

    async def close(self) -> None:
        """See `Link.close`."""
        await self._retained.close()
        if self._client:
            # Flushes what was acknowledged.
            await self._client.close()
            self._client = None
        self._arrived.clear()

    async def receive(self, max_messages: int, timeout_s: float) -> list[Message]:
        """See `Link.receive`."""
        client = self._open_client()
        try:
            messages = await self._pull(max_messages, wait_s=None)
            if not messages:
                messages = await self._pull(1, wait_s=timeout_s)
                if messages and max_messages > 1:
                    messages += await self._pull(max_messages - 1, wait_s=None)
        except nats.errors.Error as error:
            if client.is_closed:
                raise UnreachableError(_gone(self._endpoint)) from None
            log.debug("receive: %r", error)
            await asyncio.sleep(_PAUSE_S)
            return []
        return [Message(topics.from_subject(message.subject), message.data, message.reply) for message in messages]

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """See `Link.acknowledge`."""
        client = self._open_client()
        try:
            for message in messages:
                await client.publish(str(message.handle))
        except nats.errors.Error as error:
            log.debug("acknowledge: %r", error)

    async def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See `Link.send`."""
        if retain:
            await self._retained.publish(topic, payload)
            return
        client = self._open_client()
        # While it connects anew the client would keep the message back and send it long after.
        if not client.is_connected:
            raise UnreachableError(f"{topic}: not connected to the broker at {self._endpoint.nats_url}")
        try:
            await client.publish(topics.to_subject(topic), payload)
        except nats.errors.Error as error:
            raise UnreachableError(f"{topic}: {error!r}") from None

    async def backlog(self) -> Backlog:
        """See `Link.backlog`."""
        try:
            info = await self._questions().stream_info(STREAM)
        except nats.errors.Error as error:
            raise UnreachableError(f"the broker does not tell of its stream {STREAM}: {error!r}") from None
        return Backlog(
            messages=info.state.messages,
            size_bytes=info.state.bytes,
            max_bytes=info.config.max_bytes or self._max_queue_bytes,
        )

    async def probe(self) -> None:
        """See `Link.probe`."""
        if self._probe_waits:
            return  # one was stored and nobody has received since: more would only pile up
        try:
            await self._questions().publish(_PROBE_SUBJECT, b"", stream=STREAM)
        except nats.js.errors.NoStreamResponseError:
            raise StoreError(f"the broker has no stream {STREAM}; it is made anew as soon as the broker can") from None
        except nats.js.errors.APIError as error:
            if error.err_code == _FULL:
                return
            raise StoreError(f"the broker's stream {STREAM} takes no message: {error.description}") from None
        except nats.errors.TimeoutError:
            # So does a stream whose disk was full once, until the server is started again.
            raise StoreError(
                f"the broker did not store a message in its stream {STREAM} within {_QUESTION_TIMEOUT_S:g} s"
            ) from None
        except nats.errors.Error as error:
            raise UnreachableError(f"the broker was not asked to store a message: {error!r}") from None
        self._probe_waits = True

    async def _provision(self) -> None:
        """Make the stream and its consumer, or bring them up to date."""
        self._probe_waits = False  # it may have gone with the stream
        jetstream: JetStreamContext = self._open_client().jetstream()
        stream = StreamConfig(
            name=STREAM,
            # The one wildcard of the system, and only the collector has it.
            subjects=[*(f"{topics.to_subject(topics.PREFIX)}.*.{kind}" for kind in topics.UPLINK), _PROBE_SUBJECT],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            max_bytes=self._max_queue_bytes,
            discard=DiscardPolicy.NEW,
        )
        try:
            await jetstream.update_stream(stream)
        except NotFoundError:
            await jetstream.add_stream(stream)
        await jetstream.add_consumer(
            STREAM,
            ConsumerConfig(
                name=CONSUMER,
                durable_name=CONSUMER,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait_s,
                max_ack_pending=_MAX_ACK_PENDING,
            ),
        )

    async def _pull(self, batch: int, *, wait_s: float | None) -> list[Msg]:
        """Ask for `batch` messages: those that are there (`wait_s` None), or wait for the first ones."""
        client = self._open_client()
        self._pulls += 1
        reply = f"{self._inbox}.{self._pulls}"
        request: dict[str, object] = {"batch": batch, "max_bytes": _MAX_PULL_BYTES}
        if wait_s is None:
            request["no_wait"] = True
        else:
            request["expires"] = max(1, int(wait_s * 1e9))
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", json.dumps(request).encode(), reply)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + (_PULL_ANSWER_TIMEOUT_S if wait_s is None else wait_s)
        connection = self._connections
        messages: list[Msg] = []
        while len(messages) < batch:
            if not self._arrived:
                if connection != self._connections:
                    break  # the pull was lost with the connection that it was made on
                self._arrival.clear()
                try:
                    await asyncio.wait_for(self._arrival.wait(), max(0.0, deadline_s - loop.time()))
                except asyncio.TimeoutError:
                    break
            if not self._arrived:
                continue
            message = self._arrived.popleft()
            status = message.headers.get("Status") if message.headers else None
            # The status of a pull bears that pull's own reply address; a message bears the device's subject.
            if message.subject == reply:
                if status not in _HARMLESS:
                    # 503: the stream is gone, for instance with its folder, or is not up again yet.
                    log.info("the broker answers %s for stream %s; making it anew if it is gone", status, STREAM)
                    await asyncio.sleep(_PAUSE_S)
                    await self._provision()
                break
            if message.subject == _PROBE_SUBJECT:
                self._probe_waits = False
                await client.publish(message.reply)
                break
            if not message.subject.startswith(self._inbox):
                messages.append(message)
        return messages

    async def _note_arrival(self, message: Msg) -> None:
        self._arrived.append(message)
        self._arrival.set()

    async def _note_reconnection(self) -> None:
        self._connections += 1
        self._arrival.set()

    def _questions(self) -> JetStreamContext:
        return self._open_client().jetstream(timeout=_QUESTION_TIMEOUT_S)

    def _open_client(self) -> Client:
        if self._client is None:
            raise UnreachableError("the link is not open")
        return self._client


def _gone(endpoint: Endpoint) -> str:
    return f"the broker at {endpoint.nats_url} was not there for {_RECONNECT_ATTEMPTS} attempts; gave up"


async def _log_client_error(error: Exception) -> None:
    log.debug("link connection: %r", error)
