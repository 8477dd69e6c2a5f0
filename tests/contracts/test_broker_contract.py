"""What the device's link needs of a broker: the same tests on each that is on this machine, the others named as left out."""

from __future__ import annotations

import queue
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from evenfleet_agent.link import Connected, Disconnected, Received
from evenfleet_agent.link.tls import client_context
from evenfleet_shared import topics
from fakes.certificates import Authority
from fakes.link_ends import DEVICE, Ends, link_to
from fakes.mqtt_servers import Server, Tls, installed, running

WAIT_S = 20.0
BROKERS = installed()


@dataclass
class Stage:
    """One broker, spoken to in the clear or over TLS, with a client of the other side."""

    server: Server
    directory: Path
    stack: ExitStack
    authority: Authority | None

    def link(self, **changes: object) -> Ends:
        if self.authority:
            changes.setdefault("context", client_context(ca_file=self.authority.file))
        return self.stack.enter_context(link_to(self.server.address, directory=self.directory, **changes))

    def other(self) -> Other:
        other = Other(self)
        self.stack.callback(other.close)
        return other


class Other:
    """The collector's side, over a client of its own."""

    def __init__(self, stage: Stage) -> None:
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        granted: queue.Queue[object] = queue.Queue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="other", reconnect_on_failure=False)
        if stage.authority:
            self._client.tls_set(stage.authority.file)
        self._client.on_connect = lambda client, *_: client.subscribe("evenfleet/v1/+/+", 1)
        self._client.on_subscribe = lambda *_: granted.put(None)
        self._client.on_message = lambda _c, _u, m: self.inbox.put((m.topic, bytes(m.payload)))
        self._client.connect(*stage.server.address)
        self._client.loop_start()
        granted.get(timeout=WAIT_S)

    def next(self, kind: str) -> bytes:
        """Return the next message of the device of a kind."""
        while True:
            topic, payload = self.inbox.get(timeout=WAIT_S)
            if topic == topics.build(DEVICE, kind):
                return payload

    def send(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topics.build(DEVICE, kind), payload, 1, retain).wait_for_publish(WAIT_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(params=[f"{name}{tls}" for name in BROKERS for tls in ("", "+tls")])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    name, _, tls = request.param.partition("+")
    if not BROKERS[name]:
        pytest.skip(f"{name} is not installed")
    authority = Authority(tmp_path) if tls else None
    with ExitStack() as stack:
        shown = Tls(authority.issue("localhost")) if authority else None
        server = stack.enter_context(running(name, tmp_path, shown))
        yield Stage(server, tmp_path, stack.enter_context(ExitStack()), authority)


def test_newest_version_that_the_broker_knows_is_spoken(stage: Stage) -> None:
    tls = "+tls" if stage.authority else ""
    assert stage.link().until(Connected).transport == f"mqtt/{stage.server.speaks}{tls}"


def test_messages_pass_both_ways(stage: Stage) -> None:
    other, ends = stage.other(), stage.link()
    ends.until(Connected)
    ends.until_taken("window", b"\x00 a window")
    assert other.next("window") == b"\x00 a window"
    other.send("receipt", b"a receipt")
    assert ends.until(Received) == Received(topics.build(DEVICE, "receipt"), b"a receipt")


def test_many_messages_all_arrive_in_order(stage: Stage) -> None:
    other, ends = stage.other(), stage.link()
    ends.until(Connected)
    for number in range(200):
        ends.until_taken("window", b"%d " % number + b"x" * 1000)
    assert [int(other.next("window").split()[0]) for _ in range(200)] == list(range(200))


def test_retained_desired_comes_at_every_session(stage: Stage) -> None:
    stage.other().send("desired", b"desired", retain=True)
    ends = stage.link()
    assert ends.until(Received).payload == b"desired"


def test_link_that_dies_has_its_will_sent_and_one_that_closes_its_farewell(stage: Stage) -> None:
    other, ends = stage.other(), stage.link()
    ends.until(Connected)
    session = ends.link._session
    assert session
    session.wire._sock.shutdown(socket.SHUT_RDWR)
    ends.until(Disconnected)
    assert other.next("state") == b"will of abcdef01"
    ends.until(Connected)
    ends.link.close(b"farewell")
    assert other.next("state") == b"farewell"


def test_broker_that_stops_without_closing_is_noticed_and_found_again(stage: Stage) -> None:
    ends = stage.link(keepalive_s=2)
    ends.until(Connected)
    stage.server.process.send_signal(signal.SIGSTOP)
    assert "was not heard for 3 s" in ends.until(Disconnected).reason
    stage.server.process.send_signal(signal.SIGCONT)
    ends.until(Connected)
    ends.until_taken("window", b"x")


def test_budget_ends_the_session_with_a_last_word(stage: Stage) -> None:
    other, ends = stage.other(), stage.link(budget_bytes=100_000)
    ends.until(Connected)
    # Each comes down again at the device, too: half as many are affordable.
    while ends.link.publish("window", b"x" * 1000) or not any(isinstance(e, Disconnected) for e in ends.link.events()):
        pass
    assert other.next("state") == b"sleep of abcdef01"
    assert ends.link._purse.allowance.spent_bytes <= 100_000
