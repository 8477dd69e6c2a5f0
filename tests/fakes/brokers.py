"""The real broker as the collector runs it, in a thread of its own, and a device of the tests' own over paho.

Not fakes: what the tests of the real thing share. The thread lives as long as the broker, because the kernel
ends the broker with the thread that started it.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from evenfleet_collector.access import Callout, Endpoint, Issuer
from evenfleet_collector.broker import Broker
from evenfleet_collector.link.jetstream import JetStreamLink

T = TypeVar("T")

WAIT_S = 10.0


class LoopThread:
    """An event loop in a thread, for tests that are plain functions."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()


class RunningBroker:
    """Server, access and link, started in the order in which the collector starts them."""

    def __init__(
        self,
        data: Path,
        tokens: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
        ack_wait_s: float = 10.0,
        max_restarts: int = 6,
    ) -> None:
        issuer = Issuer()
        self.tokens = dict(tokens or {})
        self.broker = Broker(data, issuer=issuer.public_key, max_restarts=max_restarts)
        self.runner = LoopThread()
        self.call = self.runner.call
        self.endpoint: Endpoint = self.call(self.broker.start())
        self.callout = Callout(
            self.endpoint, issuer, lambda device, token: self.tokens.get(device) == token, anonymous=anonymous
        )
        self.link = JetStreamLink(self.endpoint, ack_wait_s=ack_wait_s)
        self.call(self.callout.open())
        self.call(self.link.open())
        self.watching = asyncio.run_coroutine_threadsafe(self.broker.watch(), self.runner.loop)

    def device(self, device: str, *, password: str | None = None, client_id: str | None = None, **more: Any) -> Device:
        """Return a device, not connected yet, with the right token unless told otherwise."""
        password = self.tokens.get(device, "none") if password is None else password
        return Device(self.endpoint, device, password, client_id=device if client_id is None else client_id, **more)

    def drain(self, count: int, timeout_s: float = WAIT_S) -> list[tuple[str, bytes]]:
        """Receive and acknowledge until `count` different messages are there: one that comes twice counts once."""

        async def drain() -> list[tuple[str, bytes]]:
            found: list[tuple[str, bytes]] = []
            deadline_s = self.runner.loop.time() + timeout_s
            while len(set(found)) < count and self.runner.loop.time() < deadline_s:
                messages = await self.link.receive(1000, 0.2)
                await self.link.acknowledge(messages)
                found += [(message.topic, message.payload) for message in messages]
            return found

        return self.call(drain())

    def close(self) -> None:
        self.call(self.link.close())
        self.call(self.callout.close())
        self.call(self.broker.stop())
        wait([self.watching], WAIT_S)
        self.runner.close()


class Received(NamedTuple):
    topic: str
    payload: bytes
    retained: bool


class Device:
    """A device's MQTT session; never connects anew by itself."""

    def __init__(
        self,
        endpoint: Endpoint,
        user: str | None,
        password: str | None,
        *,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        clean_session: bool = True,
    ) -> None:
        self._endpoint = endpoint
        self.inbox: queue.Queue[Received] = queue.Queue()
        self.disconnected = threading.Event()
        self._answers: queue.Queue[Any] = queue.Queue()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False, clean_session=clean_session
        )
        if user is not None:
            self.client.username_pw_set(user, password)
        if will:
            self.client.will_set(*will, qos=1)
        self.client.on_connect = lambda _c, _u, _f, reason, _p: self._answers.put(str(reason))
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self._answers.put(reasons[0])
        self.client.on_disconnect = lambda *_: self.disconnected.set()
        self.client.on_message = lambda _c, _u, m: self.inbox.put(Received(m.topic, bytes(m.payload), m.retain))

    def connect(self) -> str:
        """Connect and return the server's first answer."""
        self.client.connect(self._endpoint.mqtt_host, self._endpoint.mqtt_port)
        self.client.loop_start()
        answer = self._answers.get(timeout=WAIT_S)
        assert isinstance(answer, str)
        return answer

    def subscribe(self, topic: str, qos: int = 0) -> bool:
        """Return whether the server grants the subscription; False too where it hangs up instead."""
        self.client.subscribe(topic, qos)
        while self._answers.empty() and not self.disconnected.wait(0.002):
            pass
        return not self._answers.empty() and not self._answers.get().is_failure

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> bool:
        """Publish and return whether the server confirmed it before hanging up."""
        published = self.client.publish(topic, payload, qos, retain)
        try:
            while not published.is_published():
                if self.disconnected.wait(0.002):
                    return bool(published.is_published())
        except RuntimeError:
            return False  # the server had hung up before the client could send
        return True

    def next(self, timeout_s: float = WAIT_S) -> Received:
        return self.inbox.get(timeout=timeout_s)

    def vanish(self) -> None:
        """Be gone without goodbye, so that the will is published."""
        sock = self.client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
