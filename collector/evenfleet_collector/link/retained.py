"""The one MQTT session to our own broker, for retained messages, which a NATS client cannot publish.

The MQTT client has a thread of its own; nothing of it leaves this file but futures of the caller's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from evenfleet_shared.errors import UnreachableError

log = logging.getLogger(__name__)

_CONFIRM_TIMEOUT_S: Final = 10.0
_RECONNECT_MIN_S: Final = 1
_RECONNECT_MAX_S: Final = 2
_KEEPALIVE_S: Final = 30


class RetainedPublisher:
    """Publishes retained messages at QoS 1; connects anew by itself."""

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self._host = host
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected: asyncio.Future[str] | None = None
        # Written by the client's thread and by the loop's.
        self._lock = threading.Lock()
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=user, clean_session=True)
        self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(_RECONNECT_MIN_S, _RECONNECT_MAX_S)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish

    @property
    def connected(self) -> bool:
        """Return whether the session stands."""
        return self._client.is_connected()

    async def open(self) -> None:
        """Connect.

        Raises:
            UnreachableError: The broker does not answer, or refuses the collector's own user.
        """
        self._loop = asyncio.get_running_loop()
        self._connected = self._loop.create_future()
        try:
            await asyncio.to_thread(self._client.connect, self._host, self._port, _KEEPALIVE_S)
            self._client.loop_start()
            answer = await asyncio.wait_for(self._connected, _CONFIRM_TIMEOUT_S)
        except (OSError, asyncio.TimeoutError) as error:
            await self.close()
            raise UnreachableError(f"no MQTT session at {self._host}:{self._port}: {error!r}") from None
        if answer != "Success":
            await self.close()
            raise UnreachableError(f"the broker at {self._host}:{self._port} refuses the collector's session: {answer}")

    async def close(self) -> None:
        """Disconnect; what is not confirmed yet fails."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        with self._lock:
            futures = list(self._unconfirmed.values())
            self._unconfirmed.clear()
        for future in futures:
            _fail(future)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish one retained message and wait until the broker has confirmed it.

        Raises:
            UnreachableError: It did not confirm in time. The session may still deliver the message later.
        """
        assert self._loop is not None, "open first"
        future: asyncio.Future[None] = self._loop.create_future()
        # The confirmation may arrive before `publish` returns the number that it goes by: hold it off until noted.
        with self._lock:
            published = self._client.publish(topic, payload, qos=1, retain=True)
            self._unconfirmed[published.mid] = future
        try:
            await asyncio.wait_for(future, _CONFIRM_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise UnreachableError(
                f"{topic}: the broker did not confirm a retained message within {_CONFIRM_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            with self._lock:
                self._unconfirmed.pop(published.mid, None)

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        log.debug("MQTT session: %s", reason)
        if self._loop and self._connected:
            self._loop.call_soon_threadsafe(_resolve, self._connected, str(reason))

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, _reason: Any, _properties: Any) -> None:
        with self._lock:
            future = self._unconfirmed.get(mid)
        if self._loop and future:
            self._loop.call_soon_threadsafe(_resolve, future, None)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(UnreachableError("the MQTT session was closed before the broker confirmed"))
