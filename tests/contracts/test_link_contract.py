"""What every `Link` does, the fake included: the same tests on each."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from evenfleet_collector.link import Link, Message
from evenfleet_collector.link.jetstream import JetStreamLink
from evenfleet_shared import topics
from evenfleet_shared.errors import UnreachableError
from fakes.brokers import WAIT_S, Device, LoopThread, RunningBroker
from fakes.links import FakeBroker, FakeLink

ACK_WAIT_S = 1.0
WINDOW = topics.build("press-07", "window")
STATE = topics.build("press-07", "state")
DESIRED = topics.build("press-07", "desired")
RECEIPT = topics.build("press-07", "receipt")


class Stage(Protocol):
    """One broker with one link, and the device press-07 on the other side."""

    runner: LoopThread

    def link(self) -> Link:
        """Return a link, not open yet."""

    def connect(self, will: tuple[str, bytes] | None = None) -> None: ...

    def vanish(self) -> None: ...

    def publish(self, topic: str, payload: bytes) -> None: ...

    def subscribe(self, topic: str) -> None: ...

    def next(self) -> tuple[str, bytes] | None:
        """Return what arrives at the device next; None where nothing does within a moment."""

    def close(self) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        self.runner = LoopThread()
        self.broker = FakeBroker()

    def link(self) -> Link:
        return FakeLink(self.broker, ack_wait_s=ACK_WAIT_S)

    def connect(self, will: tuple[str, bytes] | None = None) -> None:
        self.broker.connect("press-07", will=will)

    def vanish(self) -> None:
        self.broker.disconnect("press-07", clean=False)

    def publish(self, topic: str, payload: bytes) -> None:
        self.broker.publish("press-07", topic, payload)

    def subscribe(self, topic: str) -> None:
        self.broker.subscribe("press-07", topic)

    def next(self) -> tuple[str, bytes] | None:
        inbox = self.broker.inboxes["press-07"]
        return inbox.pop(0) if inbox else None

    def close(self) -> None:
        self.runner.close()


class JetStreamStage:
    def __init__(self, data: Path) -> None:
        self._running = RunningBroker(data, anonymous=True, ack_wait_s=ACK_WAIT_S)
        self.runner = self._running.runner
        # The suite opens its own.
        self.runner.call(self._running.link.close())
        self._device: Device | None = None

    def link(self) -> Link:
        return JetStreamLink(self._running.endpoint, ack_wait_s=ACK_WAIT_S)

    def connect(self, will: tuple[str, bytes] | None = None) -> None:
        self._device = self._running.device("press-07", will=will)
        assert self._device.connect() == "Success"

    def vanish(self) -> None:
        assert self._device
        self._device.vanish()

    def publish(self, topic: str, payload: bytes) -> None:
        assert self._device
        assert self._device.publish(topic, payload)

    def subscribe(self, topic: str) -> None:
        assert self._device
        assert self._device.subscribe(topic)

    def next(self) -> tuple[str, bytes] | None:
        assert self._device
        try:
            return self._device.next(0.5)[:2]
        except queue.Empty:
            return None

    def close(self) -> None:
        if self._device:
            self._device.close()
        self._running.close()


@pytest.fixture(params=["fake", "jetstream"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    stage: Stage = FakeStage() if request.param == "fake" else JetStreamStage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture
def link(stage: Stage) -> Iterator[Link]:
    link = stage.link()
    stage.runner.call(link.open())
    stage.connect()
    yield link
    stage.runner.call(link.close())


def receive(stage: Stage, link: Link, count: int) -> list[Message]:
    """Receive until `count` messages are there."""

    async def collect() -> list[Message]:
        found: list[Message] = []
        while len(found) < count:
            found += await link.receive(100, WAIT_S)
        return found

    return stage.runner.call(asyncio.wait_for(collect(), WAIT_S))


def test_published_messages_are_received_with_topic_and_bytes(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"\x00one")
    stage.publish(STATE, b"")

    messages = receive(stage, link, 2)

    assert sorted((message.topic, message.payload) for message in messages) == [(STATE, b""), (WINDOW, b"\x00one")]


def test_one_message_is_not_held_up_for_company(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"alone")

    messages = stage.runner.call(asyncio.wait_for(link.receive(1000, 60.0), WAIT_S))

    assert [message.payload for message in messages] == [b"alone"]


def test_message_that_comes_while_waiting_ends_the_wait(stage: Stage, link: Link) -> None:
    waiting = asyncio.run_coroutine_threadsafe(link.receive(10, 60.0), stage.runner.loop)

    stage.publish(WINDOW, b"late")

    assert [message.payload for message in waiting.result(WAIT_S)] == [b"late"]


def test_nothing_published_and_an_empty_list_comes_after_the_timeout(stage: Stage, link: Link) -> None:
    assert stage.runner.call(link.receive(10, 0.05)) == []


def test_no_more_than_asked_for_is_received(stage: Stage, link: Link) -> None:
    for number in range(5):
        stage.publish(WINDOW, b"%d" % number)

    first = stage.runner.call(link.receive(3, WAIT_S))

    assert 1 <= len(first) <= 3
    assert len(first) + len(receive(stage, link, 5 - len(first))) == 5


def test_acknowledged_message_does_not_come_again(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"once")
    stage.runner.call(link.acknowledge(receive(stage, link, 1)))

    assert stage.runner.call(link.receive(10, ACK_WAIT_S * 1.5)) == []
    assert stage.runner.call(link.backlog()).messages == 0


def test_message_without_acknowledgement_comes_again(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"twice")
    first = receive(stage, link, 1)

    second = receive(stage, link, 1)

    assert [message.payload for message in (*first, *second)] == [b"twice", b"twice"]


def test_message_received_by_a_link_that_went_away_comes_to_the_next(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"kept")
    receive(stage, link, 1)
    stage.runner.call(link.close())
    successor = stage.link()
    stage.runner.call(successor.open())

    assert [message.payload for message in receive(stage, successor, 1)] == [b"kept"]
    stage.runner.call(successor.close())


def test_backlog_counts_what_is_not_acknowledged(stage: Stage, link: Link) -> None:
    stage.publish(WINDOW, b"12345")
    receive(stage, link, 1)

    backlog = stage.runner.call(link.backlog())

    assert backlog.messages == 1
    assert 5 <= backlog.size_bytes <= backlog.max_bytes


def test_probe_is_stored_and_received_by_nobody(stage: Stage, link: Link) -> None:
    for _ in range(3):
        stage.runner.call(link.probe())
        stage.publish(WINDOW, b"one")
        stage.runner.call(link.acknowledge(receive(stage, link, 1)))

    assert stage.runner.call(link.receive(10, ACK_WAIT_S * 1.5)) == []
    assert stage.runner.call(link.backlog()).messages == 0


def test_sent_message_arrives_at_a_subscribed_device(stage: Stage, link: Link) -> None:
    stage.subscribe(RECEIPT)

    stage.runner.call(link.send(RECEIPT, b"\xff receipt"))

    assert stage.next() == (RECEIPT, b"\xff receipt")


def test_sent_message_that_is_not_retained_is_gone_for_a_later_subscriber(stage: Stage, link: Link) -> None:
    stage.runner.call(link.send(RECEIPT, b"early"))
    stage.runner.call(link.backlog())  # a question and its answer: the broker has what was sent before it

    stage.subscribe(RECEIPT)

    assert stage.next() is None


def test_retained_message_arrives_at_a_device_that_subscribes_later_newest_only(stage: Stage, link: Link) -> None:
    stage.runner.call(link.send(DESIRED, b"1", retain=True))
    stage.runner.call(link.send(DESIRED, b"2", retain=True))

    stage.subscribe(DESIRED)

    assert stage.next() == (DESIRED, b"2")
    assert stage.next() is None


def test_empty_retained_message_removes_what_was_retained(stage: Stage, link: Link) -> None:
    stage.runner.call(link.send(DESIRED, b"1", retain=True))
    stage.runner.call(link.send(DESIRED, b"", retain=True))

    stage.subscribe(DESIRED)

    assert stage.next() is None


def test_device_that_vanishes_has_its_will_received(stage: Stage, link: Link) -> None:
    stage.connect(will=(STATE, b"gone"))

    stage.vanish()

    assert [(message.topic, message.payload) for message in receive(stage, link, 1)] == [(STATE, b"gone")]


def test_link_is_connected_only_while_open(stage: Stage) -> None:
    link = stage.link()
    before = link.connected
    stage.runner.call(link.open())
    while_open = link.connected
    stage.runner.call(link.close())

    assert (before, while_open, link.connected) == (False, True, False)
    with pytest.raises(UnreachableError):
        stage.runner.call(link.receive(1, 0.1))
