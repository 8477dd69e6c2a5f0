"""Wire the collector: start the broker, the loops and the HTTP server, and stop them in order. Nothing else.

One process beside nats-server: the loops share an event loop, all writing happens on one thread that holds the one
writing connection, and HTTP reads on connections of its own. (`docs/adr/0003` says when that becomes two processes.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import uvicorn

from evenfleet_collector import access, listen, outgoing
from evenfleet_collector.access import Callout, Issuer
from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.broker import Broker
from evenfleet_collector.config import ServeSettings
from evenfleet_collector.edits import StoreEdits
from evenfleet_collector.ingest import Arrival, Ingest
from evenfleet_collector.judge import Judge
from evenfleet_collector.link import Backlog, Link
from evenfleet_collector.link.jetstream import JetStreamLink
from evenfleet_collector.resources import Access
from evenfleet_collector.routes import HealthSnapshot, build_api
from evenfleet_collector.steer import Steer
from evenfleet_collector.store.sqlite import open_reader, open_writer
from evenfleet_collector.web.page import mount
from evenfleet_shared.disk import held
from evenfleet_shared.errors import ConfigError, EvenfleetError, StoreError, UnreachableError

log = logging.getLogger(__name__)

T = TypeVar("T")

RECEIVE_BATCH: Final = 1000
RECEIVE_WAIT_S: Final = 0.5
# How long a loop sleeps when nothing wakes it: silence is noticed and rows are sent after so long at the latest.
IDLE_S: Final = 1.0
PAUSE_S: Final = 2.0
QUEUE_LOOK_S: Final = 5.0
# A queue whose disk was full stays out of order when there is room again, until the broker is started anew.
QUEUE_FAILING_S: Final = 30.0
QUEUE_PATIENCE_MAX_S: Final = 3600.0
QUEUE_ROOM_BYTES: Final = 64 * 1024 * 1024
DRAIN_S: Final = 8.0
LOCK_NAME: Final = "collector.lock"


class Collector:
    """`evenfleet serve`: runs until `stop` is called or a part of it fails for good."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self._stop = asyncio.Event()
        self._stopping = threading.Event()
        self._windows_came = asyncio.Event()
        self._rows_to_send = asyncio.Event()
        self._connected_since_s: float | None = None
        self._failing: dict[str, Exception] = {}
        self._queue: Backlog | None = None
        self._queue_problem: str | None = None

    def stop(self) -> None:
        """Ask for the end; `run` returns soon after."""
        self._stopping.set()
        self._stop.set()

    async def run(self, started: Callable[[str, str], None]) -> None:
        """Serve.

        Args:
            started: Called once, with the URL of the API and the address of the broker, when both answer.

        Raises:
            EvenfleetError: What could not be started, or broke for good.
        """
        data = Path(self.settings.data)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_only_collector(data))
            self._writer = open_writer(data)
            stack.callback(self._writer.close)
            self._thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="writer"))
            reader = open_reader(data)
            http = stack.enter_context(listen.listening(self.settings.http_host, self.settings.http_port))
            url = f"http://{_reached(self.settings.http_host, http.getsockname()[1])}"
            issuer = Issuer()
            broker = Broker(
                data, issuer=issuer.public_key, mqtt_host=self.settings.mqtt_host, mqtt_port=self.settings.mqtt_port
            )
            stack.push_async_callback(broker.stop)
            endpoint = await broker.start()

            def check(device: str, token: str) -> bool:
                known = reader.credential(device)
                return known is not None and access.verify_token(token, known)

            callout = Callout(endpoint, issuer, check, anonymous=self.settings.anonymous_devices)
            link = JetStreamLink(endpoint)
            await link.open()
            stack.push_async_callback(link.close)
            # Devices are let in only now, when the broker's own parts for them are made.
            await callout.open()
            stack.push_async_callback(callout.close)
            # Before the first question about it can come.
            await self._look_at_queue(link)
            artifacts = ArtifactFolder(data / "artifacts")
            edits = StoreEdits(self._writer, self._thread, artifacts, self._changed)
            app = build_api(
                reader=lambda: reader,
                edits=edits,
                artifacts=artifacts,
                health=self._health(link),
                access=lambda: Access(admitted=callout.admitted, denied=dict(callout.denied)),
                stopping=self._stopping.is_set,
                hosts=self.settings.host_names(socket.gethostname()),
            )
            mount(app, lambda: reader)
            server = _Server(
                uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=3)
            )
            steer = Steer(self._writer, f"{(self.settings.public_url or url).rstrip('/')}/api/v1/artifacts")
            started(url, _reached(self.settings.mqtt_host, endpoint.mqtt_port))
            await self._until_stopped(
                server,
                broker.watch(),
                server.serve(sockets=[http]),
                self._ingest(link, Ingest(self._writer)),
                self._judge(Judge(self._writer), steer),
                self._send(link),
                self._watch_queue(link, broker),
            )

    async def _until_stopped(self, server: _Server, watch: Awaitable[None], *parts: Awaitable[None]) -> None:
        """Run everything until told to stop or a part fails; then let the parts end by themselves, the broker last."""
        tasks = [asyncio.ensure_future(part) for part in (*parts, watch)]
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
        finally:
            self.stop()
            server.should_exit = True
            await asyncio.wait(tasks[:-1], timeout=DRAIN_S)
            for task in [stop, *tasks]:
                task.cancel()
            await asyncio.gather(stop, *tasks, return_exceptions=True)

    async def _ingest(self, link: Link, ingest: Ingest) -> None:
        while not self._stop.is_set():
            async with self._enduring("ingest"):
                messages = await link.receive(RECEIVE_BATCH, RECEIVE_WAIT_S)
                self._note_connection(link)
                if not messages:
                    continue
                arrivals = [Arrival(message.topic, message.payload) for message in messages]
                # Where this fails nothing is acknowledged: the broker offers the batch again, and devices keep what has
                # no receipt.
                await self._write(ingest.save, arrivals, time.time())
                await link.acknowledge(messages)
                self._windows_came.set()
                self._rows_to_send.set()

    async def _judge(self, judge: Judge, steer: Steer) -> None:
        more = False
        while not self._stop.is_set():
            if not more:
                await _wait(self._windows_came, IDLE_S)
            self._windows_came.clear()
            more = False
            async with self._enduring("judging"):
                more = await self._write(_judged, judge, time.time(), self._connected_since_s)
                if await self._write(steer.step, time.time()):
                    self._rows_to_send.set()

    async def _send(self, link: Link) -> None:
        while not self._stop.is_set():
            await _wait(self._rows_to_send, IDLE_S)
            self._rows_to_send.clear()
            async with self._enduring("sending"):
                due = await self._write(outgoing.due, self._writer, time.time())
                for one in due:
                    await link.send(one.topic, one.payload, retain=one.retain)
                if due:
                    await self._write(outgoing.sent, self._writer, due, time.time())

    @contextlib.asynccontextmanager
    async def _enduring(self, loop: str) -> AsyncIterator[None]:
        """Let a loop outlive the failure of one round: it is logged, shown in `/readyz`, and tried again after a pause.

        A collector that ended instead would end again at its next start, and take what it can still do along. Whether the
        broker is given up is decided by `Broker.watch` alone, which does end the collector.
        """
        try:
            yield
        except Exception as error:
            # The same failure is said once, not every two seconds.
            if repr(self._failing.get(loop)) != repr(error):
                known = isinstance(error, EvenfleetError)
                log.log(logging.ERROR, "%s pauses: %s", loop, error if known else repr(error), exc_info=not known)
            self._failing[loop] = error
        else:
            self._failing.pop(loop, None)
            return
        await _wait(self._stop, PAUSE_S)

    async def _watch_queue(self, link: Link, broker: Broker) -> None:
        """Look at the queue again and again, so that `/readyz` answers at once, and mend what a full disk left."""
        failing_since_s: float | None = None
        patience_s = QUEUE_FAILING_S
        while not self._stop.is_set():
            await _wait(self._stop, QUEUE_LOOK_S)
            async with self._enduring("watching the queue"):
                now_s = time.monotonic()
                if await self._look_at_queue(link):
                    failing_since_s, patience_s = None, QUEUE_FAILING_S
                elif failing_since_s is None:
                    failing_since_s = now_s
                elif now_s - failing_since_s >= patience_s and self._has_room():
                    log.error("%s; starting the broker anew", self._queue_problem)
                    # A start that did not help is not tried again soon: it sends every device away.
                    failing_since_s, patience_s = None, min(2.0 * patience_s, QUEUE_PATIENCE_MAX_S)
                    broker.restart()

    async def _look_at_queue(self, link: Link) -> bool:
        """Note how the queue is; returns False where the broker answers and does not store."""
        stores = True
        problem = None
        try:
            self._queue = await link.backlog()
            await link.probe()
        except UnreachableError as error:
            self._queue, problem = None, str(error)
        except StoreError as error:
            stores, problem = False, str(error)
        if problem is not None and self._queue_problem is None:
            log.warning("%s; devices keep what they measure", problem)
        self._queue_problem = problem
        return stores

    def _has_room(self) -> bool:
        return shutil.disk_usage(self.settings.data).free >= QUEUE_ROOM_BYTES

    def _changed(self) -> None:
        self._windows_came.set()
        self._rows_to_send.set()

    async def _write(self, do: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)

    def _note_connection(self, link: Link) -> None:
        # What the broker does not store, or we cannot write, we do not hear.
        hears = link.connected and self._queue_problem is None and "ingest" not in self._failing
        if not hears:
            self._connected_since_s = None
        elif self._connected_since_s is None:
            self._connected_since_s = time.time()

    def _health(self, link: Link) -> Callable[[], HealthSnapshot]:
        reader = open_reader(Path(self.settings.data))

        def snapshot() -> HealthSnapshot:
            snapshot = HealthSnapshot(
                broker_connected=link.connected,
                failing={loop: str(error) or repr(error) for loop, error in self._failing.items()},
                lag_windows=reader.lag(),
                queue_problem=self._queue_problem,
            )
            queue = self._queue
            if queue is None:
                return snapshot
            return replace(
                snapshot,
                queue_messages=queue.messages,
                queue_bytes=queue.size_bytes,
                queue_max_bytes=queue.max_bytes,
            )

        return snapshot


class _Server(uvicorn.Server):
    """Leaves the signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _judged(judge: Judge, now_s: float, connected_since_s: float | None) -> bool:
    return judge.step(now_s, connected_since_s=connected_since_s)


def _reached(host: str, port: int) -> str:
    return listen.address(listen.reached_by(host), port)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


@contextlib.contextmanager
def _only_collector(data: Path) -> Iterator[None]:
    """Hold a data directory: two brokers on one queue, and two judges on one log, would ruin both."""
    with contextlib.ExitStack() as stack:
        try:
            data.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(data / LOCK_NAME))
        except BlockingIOError:
            raise StoreError(f"another collector runs on {data}; stop it, or give another --data") from None
        except OSError as error:
            # A file in its place, a disk mounted for reading: the argument is wrong, and a retry would not help.
            why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise ConfigError(
                f"cannot use {data} as --data: {why}; expected a directory that can be written, or made"
            ) from None
        yield
