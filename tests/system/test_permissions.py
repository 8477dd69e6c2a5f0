"""What a device may not do to the real nats-server, and that nothing comes of it when it tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import nats
import nats.errors
import pytest

from evenfleet_shared import topics
from fakes.brokers import Device, RunningBroker

OWN, OTHER = "press-07", "press-08"

FORBIDDEN_TO_SUBSCRIBE = [
    "#", "+", "+/+/+/+", "evenfleet/#", "evenfleet/v1/+/receipt", f"evenfleet/v1/{OWN}/#", f"evenfleet/v1/{OWN}/+",
    f"evenfleet/v1/{OTHER}/desired", f"evenfleet/v1/{OTHER}/window", f"evenfleet/v1/{OWN}/window", "$JS/#",
    "$JS/API/#", "$JS/EVENT/#", "$SYS/#", "$SYS/REQ/USER/AUTH", "$MQTT/#", "$MQTT/msgs/#", "_INBOX/#", ">", "*",
    "evenfleet/v1/*/receipt", f"$share/group/evenfleet/v1/{OTHER}/desired",
]  # fmt: skip

FORBIDDEN_TO_PUBLISH = [
    "$JS/API/STREAM/DELETE/UP", "$JS/API/STREAM/PURGE/UP", "$JS/API/CONSUMER/DELETE/UP/ingest",
    "$JS/API/STREAM/DELETE/$MQTT_rmsgs", "$JS/ACK/UP/ingest/1/1/1/1/0", "$SYS/REQ/SERVER/PING",
    "$SYS/REQ/USER/AUTH", f"$MQTT/msgs/evenfleet.v1.{OTHER}.window", "$MQTT/JSA/x", "_INBOX/x", "x", "#", "+", "*",
    f"evenfleet/v1/{OTHER}/window", f"evenfleet/v1/{OTHER}/desired", f"evenfleet/v1/{OWN}/desired",
    f"evenfleet/v1/{OWN}/receipt", f"evenfleet/v1/{OWN}/window/more", f"evenfleet/v1/{OWN}/win.dow",
    "evenfleet/v1/*/window", f"evenfleet/v1/{OWN}/win dow", f"evenfleet/v1/{OWN}/wíndow",
]  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    running = RunningBroker(tmp_path_factory.mktemp("broker"), {OWN: "token 7", OTHER: "token 8"})
    yield running
    running.close()


@pytest.fixture
def other(running: RunningBroker) -> Iterator[Device]:
    running.call(running.link.send(topics.build(OTHER, "desired"), b"", retain=True))
    other = running.device(OTHER)
    assert other.connect() == "Success"
    for kind in topics.DOWNLINK:
        assert other.subscribe(topics.build(OTHER, kind))
    yield other
    other.close()


def connected(running: RunningBroker) -> Device:
    device = running.device(OWN)
    assert device.connect() == "Success"
    return device


def test_subscribing_anything_but_its_own_downlink_is_refused_and_nothing_leaks(
    running: RunningBroker, other: Device
) -> None:
    device = connected(running)
    for topic in FORBIDDEN_TO_SUBSCRIBE:
        try:
            assert not device.subscribe(topic), topic
        except ValueError:
            continue  # paho itself refuses to ask
        if device.disconnected.is_set():
            device = connected(running)
    assert device.subscribe(topics.build(OWN, "receipt"))

    running.call(running.link.send(topics.build(OTHER, "receipt"), b"for the other"))
    assert other.publish(topics.build(OTHER, "window"), b"of the other")
    running.call(running.link.send(topics.build(OWN, "receipt"), b"for the device"))

    assert other.next().payload == b"for the other"
    # What came before it on the same connection would be here by now.
    assert device.next().payload == b"for the device"
    assert device.inbox.empty()
    assert running.drain(1) == [(topics.build(OTHER, "window"), b"of the other")]
    device.close()


@pytest.mark.parametrize("retain", [False, True])
def test_publishing_anything_but_its_own_uplink_does_no_harm(
    running: RunningBroker, other: Device, retain: bool
) -> None:
    running.call(running.link.send(topics.build(OTHER, "desired"), b"true", retain=True))
    assert other.next().payload == b"true"
    waiting = connected(running)
    assert waiting.publish(topics.build(OWN, "window"), b"in the queue")
    waiting.close()
    for topic in FORBIDDEN_TO_PUBLISH:
        device = connected(running)
        try:
            device.publish(topic, b"evil", retain=retain)
        except ValueError:
            continue  # paho itself refuses to send
        finally:
            device.close()

    assert running.call(running.link.backlog()).messages == 1
    assert running.drain(1) == [(topics.build(OWN, "window"), b"in the queue")]
    assert running.call(running.link.receive(10, 0.2)) == []
    assert other.inbox.empty()
    late = running.device(OTHER)
    late.connect()
    late.subscribe(topics.build(OTHER, "desired"))
    assert late.next().payload == b"true"
    late.close()


def test_will_on_anothers_topic_is_not_delivered(running: RunningBroker) -> None:
    device = running.device(OWN, will=(topics.build(OTHER, "state"), b"evil"))
    device.connect()

    device.vanish()

    assert running.call(running.link.receive(10, 0.3)) == []


@pytest.mark.parametrize(
    ("user", "password", "client_id"),
    [
        (OWN, "wrong", OWN),
        (OWN, "", OWN),
        (OWN, "token 8", OWN),
        (OWN, "token 7", OTHER),
        (OWN, "token 7", ""),
        (OWN, "token 7", "_collector"),
        (OWN, "token 7", f"{OTHER}\n"),
        ("unknown", "token 7", "unknown"),
        ("_collector", "", "_collector"),
        ("_access", "wrong", "_access"),
        ("#", "token 7", "#"),
        (None, None, OTHER),
    ],
)
def test_wrong_connection_is_refused_and_throws_nobody_off(
    running: RunningBroker, other: Device, user: str | None, password: str | None, client_id: str
) -> None:
    intruder = Device(running.endpoint, user, password, client_id=client_id)

    assert intruder.connect() in ("Not authorized", "Client identifier not valid")

    intruder.close()
    assert not other.disconnected.is_set()
    assert running.link.connected
    running.call(running.link.send(topics.build(OTHER, "receipt"), b"still there"))
    assert other.next().payload == b"still there"


def test_device_token_does_not_open_the_nats_port(running: RunningBroker) -> None:
    async def knock(**login: str) -> None:
        async def quiet(_error: Exception) -> None:
            pass

        client = await nats.connect(running.endpoint.nats_url, allow_reconnect=False, error_cb=quiet, **login)
        await client.close()

    with pytest.raises(nats.errors.Error, match="Authorization"):
        running.call(knock(user=OWN, password="token 7"))
    with pytest.raises(nats.errors.Error, match="Authorization"):
        running.call(knock())


def test_revoked_token_is_refused_at_the_next_connect(running: RunningBroker) -> None:
    running.tokens["press-09"] = "token 9"
    first = running.device("press-09")
    assert first.connect() == "Success"
    first.close()

    del running.tokens["press-09"]

    assert running.device("press-09", password="token 9").connect() == "Not authorized"


def test_first_connections_right_after_start_are_all_accepted_at_the_first_try(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A connection whose question nobody hears is refused after the server's timeout: the callout must be there first.

    Without paho, which would try again by itself.
    """
    fresh = RunningBroker(tmp_path_factory.mktemp("fresh"), anonymous=True)

    async def connect(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(fresh.endpoint.mqtt_host, fresh.endpoint.mqtt_port)
        client_id = b"device-%03d" % number
        body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(client_id).to_bytes(2, "big") + client_id
        writer.write(b"\x10" + bytes([len(body)]) + body)
        answer = await reader.readexactly(4)
        writer.close()
        return answer

    async def connect_all() -> list[bytes]:
        return await asyncio.gather(*(connect(number) for number in range(50)))

    started_s = time.monotonic()
    answers = fresh.call(connect_all())

    assert set(answers) == {b"\x20\x02\x00\x00"}
    assert time.monotonic() - started_s < 4.0
    assert fresh.callout.admitted == 50
    fresh.close()
